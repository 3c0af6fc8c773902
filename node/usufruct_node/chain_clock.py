"""What time it is on the chain, between blocks too."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from usufruct.ledger import Head
from usufruct.ledger.profile import ChainProfile
from usufruct_node.local import open_local

_KEPT_EVERY_S = 60.0


class ChainClock:
    """Chain time in Unix seconds, advanced by this machine's stopwatch where no block comes unless somebody sends.

    On such a chain the newest block's time stands still while deadlines pass, and nobody would close what is overdue. The wall
    clock is not asked: a member's that is wrong by an hour would have it give up jobs that are in time. What has passed since
    the newest block is kept, so that nobody is served past a deadline because the node was started again; no time passes while
    it is stopped.
    """

    def __init__(
        self, profile: ChainProfile, database: Path, *, stopwatch: Callable[[], float] = time.monotonic
    ) -> None:
        self._runs = not profile.empty_blocks
        self._stopwatch = stopwatch
        self._lock = threading.Lock()
        self._head: Head | None = None
        self._seen_at = self._kept_at = 0.0
        self._db = open_local(
            database,
            "CREATE TABLE IF NOT EXISTS clock (only INTEGER PRIMARY KEY CHECK (only = 0), block BLOB NOT NULL,"
            " seconds INTEGER NOT NULL)",
        )
        # Asked from the event loop, which waits neither for other writers nor for the disk.
        self._db.execute("PRAGMA busy_timeout = 0")
        self._db.execute("PRAGMA synchronous = NORMAL")

    def now(self, head: Head | None) -> int:
        """Unix seconds, given the newest block that is known; 0 without one."""
        if head is None:
            return 0
        with self._lock:
            if not self._runs:
                return head.timestamp
            now = self._stopwatch()
            if self._head is None or head.number != self._head.number:
                self._head, self._kept_at, self._seen_at = head, now, now - self._kept(head)
            passed = int(now - self._seen_at)
            if now - self._kept_at >= _KEPT_EVERY_S:
                self._keep(head, passed)
                self._kept_at = now
        return head.timestamp + passed

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # A disk that is full or broken makes the clock no worse than one that keeps nothing.

    def _kept(self, head: Head) -> int:
        with contextlib.suppress(sqlite3.Error):
            row = self._db.execute("SELECT seconds FROM clock WHERE block = ?", (head.hash,)).fetchone()
            return row[0] if row else 0
        return 0

    def _keep(self, head: Head, passed: int) -> None:
        with contextlib.suppress(sqlite3.Error), self._db:
            self._db.execute("INSERT OR REPLACE INTO clock VALUES (0, ?, ?)", (head.hash, passed))
