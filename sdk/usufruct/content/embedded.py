"""The embedded block store: one directory, plain files, an SQLite catalogue of blocks and pins.

Under the root: `blocks/<first byte of the digest>/<cid>`, `staging/<session>/<unique>`, `catalogue.db` and
`reserve`.
The catalogue says what is here and why. A file without a row is rubbish; `gc` removes it, and so does the
first open after a crash. No network and no replication.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from usufruct.content.blockstore import MAX_BLOCK_BYTES
from usufruct.content.cid import Cid, Codec
from usufruct.content.files import BlockFiles
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    CidError,
    ContentError,
    InputError,
    StoreFullError,
)

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SCHEMA_VERSION: Final = 1
_LOCK_SECONDS: Final = 60.0
"""How long one process waits for another's catalogue transaction."""

_RESERVE_BYTES: Final = 512 * 1024
"""Given up when the disk is full, so that blocks can still be unpinned and collected."""

_SCHEMA = (
    "CREATE TABLE blocks (cid BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE pins (cid BLOB NOT NULL REFERENCES blocks (cid), reason TEXT NOT NULL,"
    " PRIMARY KEY (cid, reason)) WITHOUT ROWID",
    "CREATE TABLE usage (total_bytes INTEGER NOT NULL)",
    "INSERT INTO usage VALUES (0)",
    "CREATE TRIGGER block_kept AFTER INSERT ON blocks BEGIN"
    " UPDATE usage SET total_bytes = total_bytes + NEW.size_bytes; END",
    "CREATE TRIGGER block_dropped AFTER DELETE ON blocks BEGIN"
    " UPDATE usage SET total_bytes = total_bytes - OLD.size_bytes; END",
)


class EmbeddedBlockStore:
    """A `BlockStore` in one directory, for any number of threads and several processes.

    **Invariant:** a row in the catalogue is committed only after its file and the file's directory entry are
    on disk, and a file is unlinked only after its row's deletion is. What was acknowledged survives `kill -9`
    and power loss; what was not leaves nothing that counts.

    Not usable across `os.fork`: open one in each process.
    """

    def __init__(self, root: Path, *, quota_bytes: int | None = None) -> None:
        """Open, or make, the store at `root`.

        Parameters
        ----------
        root :
            Directory of this store alone; made with mode 0700 if missing.
        quota_bytes :
            Upper bound on the sum of block lengths; None for no bound but the disk's.

        Raises
        ------
        ContentError
            If the directory or its catalogue cannot be used.
        """
        if quota_bytes is not None and quota_bytes < 0:
            raise InputError("a quota is not negative")
        self._root = root
        self._quota_bytes = quota_bytes
        self._blocks = root / "blocks"
        self.files = BlockFiles(self._blocks)
        """For processes that only read."""
        self._staging = root / "staging"
        self._lock = threading.RLock()
        self._closed = False
        self._reserve = root / "reserve"
        try:
            self._open()
        except StoreFullError:
            self._reserve.unlink(missing_ok=True)
            self._open()
        self._set_reserve()

    def close(self) -> None:
        """Release the catalogue and this session's staging directory; closing twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._db.close()
            with contextlib.suppress(OSError):
                self._session.rmdir()
            os.close(self._session_fd)

    def __enter__(self) -> EmbeddedBlockStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, data: bytes, codec: Codec = Codec.RAW, *, pin: str | None = None) -> Cid:
        """Store one block durably; see `BlockStore.put`."""
        return self.put_many([data], codec, pin=pin)[0]

    def put_many(
        self, blocks: Sequence[bytes], codec: Codec = Codec.RAW, *, pin: str | None = None
    ) -> list[Cid]:
        """Store all of `blocks` or none, in one catalogue transaction; see `BlockStore.put_many`."""
        if pin is not None:
            _check_reason(pin)
        for data in blocks:
            if type(data) is not bytes:
                raise InputError(f"a block is bytes, not {type(data).__name__}")
            if len(data) > MAX_BLOCK_BYTES:
                raise InputError(f"a block of {len(data)} bytes exceeds {MAX_BLOCK_BYTES}")
        cids = [Cid.of(data, codec) for data in blocks]
        wanted = dict(zip(cids, blocks, strict=True))
        staged: dict[Cid, Path] = {}
        with _translated("the blocks could not be stored"):
            try:
                while True:
                    for cid, data in wanted.items():
                        if cid not in staged and not self._is_intact(cid, data):
                            self._check_quota(len(data), cid)
                            staged[cid] = self._stage(data)
                    if self._commit(wanted, staged, pin):
                        return cids
            finally:
                for path in staged.values():
                    path.unlink(missing_ok=True)

    def get(self, cid: Cid) -> bytes:
        """Return the block, hashed again; see `BlockStore.get`."""
        size_bytes = self.size(cid)
        with _translated(f"block {cid} cannot be read"):
            data = self.files.read_unchecked(cid)
        if data is None:
            raise BlockNotFoundError(f"the file of block {cid} is gone", hint="fetch it again from its owner")
        if len(data) != size_bytes:
            raise BlockMismatchError(f"block {cid} has another length on disk than when it was stored")
        cid.check(data)
        return data

    def has(self, cid: Cid) -> bool:
        """Say whether the block is here."""
        return self._row("SELECT 1 FROM blocks WHERE cid = ?", cid) is not None

    def size(self, cid: Cid) -> int:
        """Return the block's length in bytes; see `BlockStore.size`."""
        row = self._row("SELECT size_bytes FROM blocks WHERE cid = ?", cid)
        if row is None:
            raise BlockNotFoundError(f"block {cid} is not in this store")
        return int(row[0])

    def pin(self, cid: Cid, reason: str) -> None:
        """Keep the block for `reason`; see `BlockStore.pin`."""
        _check_reason(reason)
        with _translated("the pin could not be stored"), self._transaction():
            if self._db.execute("SELECT 1 FROM blocks WHERE cid = ?", (bytes(cid),)).fetchone() is None:
                raise BlockNotFoundError(f"block {cid} is not in this store")
            self._db.execute("INSERT OR IGNORE INTO pins VALUES (?, ?)", (bytes(cid), reason))

    def unpin(self, cid: Cid, reason: str) -> None:
        """Drop the pin for `reason`, if there is one."""
        self._drop_pins("cid = ? AND reason = ?", (bytes(cid), reason))

    def unpin_all(self, reason: str) -> int:
        """Drop the pins of every block for `reason`; returns how many there were."""
        return self._drop_pins("reason = ?", (reason,))

    def reasons(self, prefix: str) -> list[str]:
        """Return the reasons in use that begin with `prefix`."""
        with _translated("the catalogue cannot be read"), self._lock:
            rows = self._db.execute(
                "SELECT DISTINCT reason FROM pins WHERE substr(reason, 1, ?) = ?", (len(prefix), prefix)
            ).fetchall()
        return [row[0] for row in rows]

    def pins(self, cid: Cid) -> frozenset[str]:
        """Return the reasons for which the block is kept."""
        with _translated("the catalogue cannot be read"), self._lock:
            rows = self._db.execute("SELECT reason FROM pins WHERE cid = ?", (bytes(cid),)).fetchall()
        return frozenset(row[0] for row in rows)

    def cids(self) -> Iterator[Cid]:
        """Iterate over the blocks that are here, in order of their binary form."""
        after = b""
        while True:
            with _translated("the catalogue cannot be read"), self._lock:
                rows = self._db.execute(
                    "SELECT cid FROM blocks WHERE cid > ? ORDER BY cid LIMIT 1000", (after,)
                ).fetchall()
            if not rows:
                return
            for row in rows:
                yield Cid.from_bytes(row[0])
            after = rows[-1][0]

    def gc(self) -> int:
        """Remove every block without a pin, and files that no row knows; return how many rows went."""
        try:
            removed = self._collect()
        except StoreFullError:
            self._reserve.unlink(missing_ok=True)
            removed = self._collect()
        self._set_reserve()
        return removed

    def usage_bytes(self) -> int:
        """Return the total length of the blocks that are here, in bytes."""
        row = self._row("SELECT total_bytes FROM usage", None)
        return 0 if row is None else int(row[0])

    def _open(self) -> None:
        with _translated(f"the block store at {self._root} cannot be opened"):
            for directory in (self._root, self._blocks, self._staging):
                _make_directory(directory)
            self._db = self._open_catalogue(self._root / "catalogue.db")
            try:
                self._session = self._staging / secrets.token_hex(8)
                self._session_fd = self._open_session()
            except BaseException:
                self._db.close()
                raise

    def _open_catalogue(self, path: Path) -> sqlite3.Connection:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        _sync_directory(path.parent)
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
        """Make this session's staging directory, hold a lock on it, and clear what dead sessions left."""
        with self._transaction():
            self._session.mkdir(mode=0o700)
            own = os.open(self._session, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync_directory(self._staging)
            others = [directory for directory in self._staging.iterdir() if directory != self._session]
            dead = [directory for directory in others if _clear_if_dead(directory)]
            if dead:
                self._sweep_files()
        return own

    def _stage(self, data: bytes) -> Path:
        path = self._session / secrets.token_hex(8)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        return path

    def _commit(self, wanted: dict[Cid, bytes], staged: dict[Cid, Path], pin: str | None) -> bool:
        """Move staged files into place and record them; False if an unstaged block has vanished meanwhile."""
        moved: set[Path] = set()
        try:
            with self._transaction():
                for cid, data in wanted.items():
                    if cid not in staged and not self._is_intact(cid, data):
                        return False
                for cid in staged:
                    self._check_quota(len(wanted[cid]), cid)
                    self._db.execute(
                        "INSERT OR IGNORE INTO blocks VALUES (?, ?)", (bytes(cid), len(wanted[cid]))
                    )
                if pin is not None:
                    self._db.executemany(
                        "INSERT OR IGNORE INTO pins VALUES (?, ?)", [(bytes(cid), pin) for cid in wanted]
                    )
                for cid, path in staged.items():
                    target = self.files.path_of(cid)
                    _make_directory(target.parent)
                    path.rename(target)
                    moved.add(target.parent)
                for directory in moved:
                    _sync_directory(directory)
        except BaseException:
            if moved:
                with self._transaction():
                    for cid in staged:
                        self._drop_if_unknown(cid)
            raise
        return True

    def _drop_pins(self, where: str, values: tuple[object, ...]) -> int:
        """Delete rows of the pin table, if need be with the room that is put aside for a full disk."""
        try:
            return self._delete_pins(where, values)
        except StoreFullError:
            self._reserve.unlink(missing_ok=True)
            return self._delete_pins(where, values)

    def _delete_pins(self, where: str, values: tuple[object, ...]) -> int:
        with _translated("the pin could not be dropped"), self._transaction():
            return self._db.execute(f"DELETE FROM pins WHERE {where}", values).rowcount  # noqa: S608

    def _collect(self) -> int:
        with _translated("garbage collection failed"):
            with self._transaction():
                unpinned = "SELECT cid FROM blocks WHERE cid NOT IN (SELECT cid FROM pins)"
                removed = self._db.execute(f"DELETE FROM blocks WHERE cid IN ({unpinned})").rowcount  # noqa: S608
            with self._transaction():
                self._sweep_files()
        return removed

    def _set_reserve(self) -> None:
        """Put aside what the catalogue needs to make room on a full disk; without room, later."""
        with contextlib.suppress(OSError):
            handle = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(handle, 0, _RESERVE_BYTES)
            finally:
                os.close(handle)

    def _is_intact(self, cid: Cid, data: bytes) -> bool:
        return self.has(cid) and self.files.read_unchecked(cid) == data

    def _check_quota(self, size_bytes: int, cid: Cid) -> None:
        if self._quota_bytes is None or self.has(cid):
            return
        used = self.usage_bytes()
        if used + size_bytes > self._quota_bytes:
            raise StoreFullError(
                f"a block of {size_bytes} bytes does not fit: {used} of {self._quota_bytes} bytes are in use"
            )

    def _sweep_files(self) -> None:
        """Unlink files that have no row; only inside a transaction, which keeps every `put` out."""
        for directory in self._blocks.iterdir():
            for path in directory.iterdir():
                try:
                    cid = Cid.parse(path.name)
                except CidError:
                    continue
                self._drop_if_unknown(cid)

    def _drop_if_unknown(self, cid: Cid) -> None:
        if not self.has(cid):
            self.files.path_of(cid).unlink(missing_ok=True)

    def _row(self, query: str, cid: Cid | None) -> tuple[int, ...] | None:
        with _translated("the catalogue cannot be read"), self._lock:
            row: tuple[int, ...] | None = self._db.execute(
                query, () if cid is None else (bytes(cid),)
            ).fetchone()
        return row

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the catalogue's write lock, which is the lock between threads and processes alike."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StoreFullError(f"{what}: the disk is full") from exc
        raise ContentError(f"{what}: {exc.strerror or exc}") from exc
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorname", "") == "SQLITE_FULL":
            raise StoreFullError(f"{what}: the disk is full") from exc
        raise ContentError(f"{what}: {exc}") from exc


def _check_reason(reason: str) -> None:
    if not 0 < len(reason) <= 200 or not reason.isprintable():
        raise InputError("a pin's reason is 1 to 200 printable characters")


def _make_directory(path: Path) -> None:
    """Make a directory of mode 0700 whose entry survives a crash; its parent exists or is made likewise."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear_if_dead(directory: Path) -> bool:
    """Remove a staging directory whose session no longer holds its lock, and say whether it was so."""
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
