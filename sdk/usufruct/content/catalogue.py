"""What is in a block store and why: an SQLite file of blocks, pins and holds, the same for every home of blocks.

Under the root: `catalogue.db`, `staging/<session>/` and `reserve`. A session is one open store of one process;
it holds a lock on its directory, so that another process sees when it is dead. Knows no block's bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from usufruct.content.cid import Cid
from usufruct.durable import make_directory, sync_directory, translated
from usufruct.errors import BlockNotFoundError, ContentError, InputError, StoreFullError

_SCHEMA_VERSION: Final = 2
_LOCK_SECONDS: Final = 60.0
"""How long one process waits for another's transaction."""

_RESERVE_BYTES: Final = 512 * 1024
"""Given up when the disk is full, so that blocks can still be unpinned and collected."""

_PAGE: Final = 1000

_SCHEMA = (
    "CREATE TABLE blocks (cid BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE pins (cid BLOB NOT NULL REFERENCES blocks (cid), reason TEXT NOT NULL,"
    " PRIMARY KEY (cid, reason)) WITHOUT ROWID",
    "CREATE INDEX pins_by_reason ON pins (reason, cid)",
    "CREATE TABLE holds (cid BLOB NOT NULL, session TEXT NOT NULL, hold TEXT NOT NULL,"
    " PRIMARY KEY (cid, hold)) WITHOUT ROWID",
    "CREATE TABLE identity (name TEXT NOT NULL)",
    "INSERT INTO identity VALUES (lower(hex(randomblob(8))))",
    "CREATE TABLE usage (total_bytes INTEGER NOT NULL)",
    "INSERT INTO usage VALUES (0)",
    "CREATE TRIGGER block_kept AFTER INSERT ON blocks BEGIN"
    " UPDATE usage SET total_bytes = total_bytes + NEW.size_bytes; END",
    "CREATE TRIGGER block_dropped AFTER DELETE ON blocks BEGIN"
    " UPDATE usage SET total_bytes = total_bytes - OLD.size_bytes; END",
)

Done = TypeVar("Done")


class Catalogue:
    """Rows of one store, for any number of threads and several processes; not usable across `os.fork`."""

    def __init__(self, root: Path, *, quota_bytes: int | None = None) -> None:
        """Open, or make, the catalogue in the directory `root`; errors as for the stores."""
        if quota_bytes is not None and quota_bytes < 0:
            raise InputError("a quota is not negative")
        self.quota_bytes = quota_bytes
        self._root = root
        self._staging = root / "staging"
        self._reserve = root / "reserve"
        self._lock = threading.RLock()
        self._closed = False
        self.session = secrets.token_hex(8)
        self.found_dead = False
        """Whether a session died without closing, and what it had begun may lie about since."""
        self.unrecorded: set[Cid] = set()
        """Blocks whose bytes may be here without a row; to be read inside a transaction."""
        self.with_reserve(self._open)
        self.set_reserve()

    @property
    def session_directory(self) -> Path:
        """Where this session alone puts files; whoever finds the session dead empties it."""
        return self._staging / self.session

    def close(self) -> None:
        """Release the file and the session; closing twice is harmless.

        A session that leaves bytes without a row stays behind like one that died, so that the next open looks for them.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._db.close()
            if not self.found_dead and not self.unrecorded:
                with contextlib.suppress(OSError):
                    self.session_directory.rmdir()
            os.close(self._session_fd)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock, which is the lock between threads and processes alike."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def with_reserve(self, act: Callable[[], Done]) -> Done:
        """Do what makes room; on a full disk, with the room that is put aside for it."""
        try:
            return act()
        except StoreFullError:
            self._reserve.unlink(missing_ok=True)
            return act()

    def set_reserve(self) -> None:
        """Put aside what the catalogue needs to make room on a full disk; without room, later."""
        with contextlib.suppress(OSError):
            handle = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(handle, 0, _RESERVE_BYTES)
            finally:
                os.close(handle)

    # Reading.

    @property
    def identity(self) -> str:
        """Random name that this catalogue was given when it was made."""
        with translated("the catalogue cannot be read"), self._lock:
            return str(self._db.execute("SELECT name FROM identity").fetchone()[0])

    def has(self, cid: Cid) -> bool:
        """Say whether the block has a row."""
        return self._row("SELECT 1 FROM blocks WHERE cid = ?", cid) is not None

    def size(self, cid: Cid) -> int:
        """Return the block's length in bytes, or raise BlockNotFoundError."""
        row = self._row("SELECT size_bytes FROM blocks WHERE cid = ?", cid)
        if row is None:
            raise BlockNotFoundError(f"block {cid} is not in this store")
        return int(row[0])

    def usage_bytes(self) -> int:
        """Return the total length of the blocks, in bytes."""
        row = self._row("SELECT total_bytes FROM usage", None)
        return 0 if row is None else int(row[0])

    def reasons(self, prefix: str) -> list[str]:
        """Return the reasons in use that begin with `prefix`."""
        with translated("the catalogue cannot be read"), self._lock:
            rows = self._db.execute(
                "SELECT DISTINCT reason FROM pins WHERE substr(reason, 1, ?) = ?", (len(prefix), prefix)
            ).fetchall()
        return [row[0] for row in rows]

    def pins(self, cid: Cid) -> frozenset[str]:
        """Return the reasons for which the block is kept."""
        with translated("the catalogue cannot be read"), self._lock:
            rows = self._db.execute("SELECT reason FROM pins WHERE cid = ?", (bytes(cid),)).fetchall()
        return frozenset(row[0] for row in rows)

    def cids(self) -> Iterator[Cid]:
        """Iterate over the blocks in order of their binary form."""
        return self._pages("SELECT cid FROM blocks WHERE cid > ?", ())

    def pinned(self, reason: str) -> Iterator[Cid]:
        """Iterate over the blocks that are kept for `reason`, in order of their binary form."""
        return self._pages("SELECT cid FROM pins WHERE reason = ? AND cid > ?", (reason,))

    # Writing.

    def check_room(self, sizes: Mapping[Cid, int]) -> None:
        """Raise StoreFullError if those of these blocks that are not here would exceed the quota."""
        if self.quota_bytes is None:
            return
        added = sum(size for cid, size in sizes.items() if not self.has(cid))
        used = self.usage_bytes()
        if added and used + added > self.quota_bytes:
            raise StoreFullError(
                f"{added} more bytes do not fit: {used} of {self.quota_bytes} bytes are in use"
            )

    def record(self, cid: Cid, size_bytes: int) -> None:
        """Note a block; inside a transaction."""
        self.check_room({cid: size_bytes})
        self._db.execute("INSERT OR IGNORE INTO blocks VALUES (?, ?)", (bytes(cid), size_bytes))

    def record_pins(self, cids: Iterable[Cid], reason: str) -> None:
        """Note a reason for blocks that have rows; inside a transaction."""
        self._db.executemany(
            "INSERT OR IGNORE INTO pins VALUES (?, ?)", [(bytes(cid), reason) for cid in cids]
        )

    def pin(self, cid: Cid, reason: str) -> None:
        """Note a reason for one block, durably, or raise BlockNotFoundError."""
        if self.pin_many([cid], reason):
            raise BlockNotFoundError(f"block {cid} is not in this store")

    def pin_many(self, cids: Sequence[Cid], reason: str) -> list[Cid]:
        """Note a reason for those of some blocks that have rows, durably and in one transaction; returns the others."""
        check_reason(reason)
        with translated("the pins could not be stored"), self.transaction():
            absent = [cid for cid in cids if not self.has(cid)]
            self.record_pins(set(cids).difference(absent), reason)
        return absent

    def unpin_many(self, cids: Sequence[Cid], reason: str) -> None:
        """Drop the pins of some blocks, as far as there are any, in one transaction."""
        self.with_reserve(lambda: self._delete_some(cids, reason))

    def unpin_all(self, reason: str) -> int:
        """Drop every pin for `reason`; returns how many there were."""
        return self.with_reserve(lambda: self._delete_all(reason))

    @contextlib.contextmanager
    def holding(self, cids: Iterable[Cid]) -> Iterator[None]:
        """Keep blocks from `drop_unkept` until the context ends, or this session does."""
        hold = secrets.token_hex(8)
        with translated("the hold could not be stored"), self.transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO holds VALUES (?, ?, ?)",
                [(bytes(cid), self.session, hold) for cid in cids],
            )
        try:
            yield
        finally:
            with self._lock:
                if not self._closed:
                    self.with_reserve(lambda: self._delete_hold(hold))

    def drop_unkept(self) -> int:
        """Delete the rows of blocks that have neither pin nor hold, suspect these, and return how many there were."""
        with self.transaction():
            self._bury_dead()
            unkept = (
                "SELECT cid FROM blocks WHERE cid NOT IN (SELECT cid FROM pins)"
                " AND cid NOT IN (SELECT cid FROM holds)"
            )
            rows = self._db.execute(f"DELETE FROM blocks WHERE cid IN ({unkept}) RETURNING cid").fetchall()  # noqa: S608
            self.suspect(Cid.from_bytes(row[0]) for row in rows)
            return len(rows)

    def suspect(self, cids: Iterable[Cid]) -> None:
        """Note blocks whose bytes may be here without a row."""
        with self._lock:
            self.unrecorded.update(cids)

    def swept(self) -> None:
        """Note that no bytes are here without a row; inside the transaction in which they were removed."""
        self.found_dead = False
        self.unrecorded.clear()

    def _delete_some(self, cids: Sequence[Cid], reason: str) -> None:
        with translated("the pins could not be dropped"), self.transaction():
            self._db.executemany(
                "DELETE FROM pins WHERE cid = ? AND reason = ?", [(bytes(cid), reason) for cid in cids]
            )

    def _delete_all(self, reason: str) -> int:
        with translated("the pins could not be dropped"), self.transaction():
            return self._db.execute("DELETE FROM pins WHERE reason = ?", (reason,)).rowcount

    def _delete_hold(self, hold: str) -> None:
        with translated("the hold could not be dropped"), self.transaction():
            self._db.execute("DELETE FROM holds WHERE hold = ?", (hold,))

    def _row(self, query: str, cid: Cid | None) -> tuple[int, ...] | None:
        with translated("the catalogue cannot be read"), self._lock:
            row: tuple[int, ...] | None = self._db.execute(
                query, () if cid is None else (bytes(cid),)
            ).fetchone()
        return row

    def _pages(self, query: str, values: tuple[object, ...]) -> Iterator[Cid]:
        after = b""
        while True:
            with translated("the catalogue cannot be read"), self._lock:
                rows = self._db.execute(f"{query} ORDER BY cid LIMIT {_PAGE}", (*values, after)).fetchall()
            if not rows:
                return
            for row in rows:
                yield Cid.from_bytes(row[0])
            after = rows[-1][0]

    # Opening.

    def _open(self) -> None:
        with translated(f"the block store at {self._root} cannot be opened"):
            for directory in (self._root, self._staging):
                make_directory(directory)
            self._db = self._open_file(self._root / "catalogue.db")
            try:
                self._session_fd = self._open_session()
            except BaseException:
                self._db.close()
                raise

    def _open_file(self, path: Path) -> sqlite3.Connection:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        sync_directory(path.parent)
        db = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            db.execute("COMMIT")
            if version not in (0, _SCHEMA_VERSION):
                raise ContentError(
                    f"{path} has catalogue version {version}, this release knows {_SCHEMA_VERSION}",
                    hint="use the release that wrote it, or newer",
                )
        except BaseException:
            db.close()
            raise
        return db

    def _open_session(self) -> int:
        """Make this session's directory, hold a lock on it, and clear what dead sessions left."""
        with self.transaction():
            self.session_directory.mkdir(mode=0o700)
            own = os.open(self.session_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_directory(self._staging)
            self._bury_dead()
        return own

    def _bury_dead(self) -> None:
        """Remove directories and holds of sessions that are dead; inside a transaction."""
        others = [path for path in self._staging.iterdir() if path.name != self.session]
        dead = [path.name for path in others if _clear_if_dead(path)]
        self.found_dead |= bool(dead)
        live = {self.session, *(path.name for path in others)} - set(dead)
        for (session,) in self._db.execute("SELECT DISTINCT session FROM holds").fetchall():
            if session not in live:
                self._db.execute("DELETE FROM holds WHERE session = ?", (session,))


def check_reason(reason: str) -> None:
    """Raise InputError unless `reason` is 1 to 200 printable characters."""
    if not 0 < len(reason) <= 200 or not reason.isprintable():
        raise InputError("a pin's reason is 1 to 200 printable characters")


def _clear_if_dead(directory: Path) -> bool:
    """Remove a directory whose session no longer holds its lock, and say whether it was so."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
