"""Opens the node's own small database: what only this node knows, durable the moment a call returns."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def open_local(path: Path, *statements: str) -> sqlite3.Connection:
    """A connection for any thread (its owner holds a lock), mode 0600, every commit on disk before it returns."""
    path.touch(mode=0o600, exist_ok=True)
    db = sqlite3.connect(path, check_same_thread=False, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    with db:
        for statement in statements:
            db.execute(statement)
    return db
