"""A member's whole node in one encrypted file, and back.

The archive is a sealed stream (`usufruct.keys.sealed`) of frames: kind, length, payload. A file of the home is named by
`_ITEMS`, a block by its CID; the format has no paths, links or modes. Passphrases, the API token and locks are never in it.

**Invariant:** what names something is copied before what it names. Signed transactions come before the databases with what
they reveal, databases before the blocks that their rows name, blocks before the keys that they were sealed under, so an archive
made while the node runs lacks nothing that it refers to. A block that is collected meanwhile belonged to a job that has ended,
and nobody asks for it again. Databases are checked on both ways; a damaged one that the node can build anew is left out.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from usufruct.content import Cid, EmbeddedBlockStore, dag
from usufruct.content.blockstore import MAX_BLOCK_BYTES
from usufruct.durable import new_file, sync_directory
from usufruct.errors import (
    BackupError,
    BlockNotFoundError,
    ConfigurationError,
    ContentError,
    IntegrityError,
    StoreFullError,
    UsufructError,
)
from usufruct.home import Home, ParticipantFile
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore
from usufruct.keys.sealed import PIECE_BYTES, SealedReader, SealedWriter
from usufruct.ledger import Network
from usufruct_node.config import NodeSettings
from usufruct_node.peers import PeerIdentity
from usufruct_node.storage import open_store

Advance = Callable[[int], None]
"""Told how many more bytes are done."""

_log = logging.getLogger(__name__)

_TYPE = "usufruct/backup/1"
_BATCH_BYTES = 16 << 20
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class _Item:
    """A file of a home."""

    name: str
    required: bool = False
    database: bool = False
    derived: bool = False
    """The node builds it anew when it is missing."""


_BEFORE_BLOCKS = (
    _Item("authority.transactions"),
    _Item("node.transactions"),
    _Item("node.db", database=True),
    _Item("custodian.db", database=True),
    _Item("index.db", database=True, derived=True),
)
_AFTER_BLOCKS = (
    _Item("consent.db", database=True),
    _Item("node.keys", required=True),
    _Item("custodian.keys"),
    _Item("authority.keys"),
    _Item("participant.json", required=True),
    _Item("network.json"),
    _Item("node.toml"),
    _Item("organisation.json", required=True),
)
_ITEMS = (*_BEFORE_BLOCKS, *_AFTER_BLOCKS)
BACKED_UP = frozenset(item.name for item in _ITEMS)
"""Files of a home that an archive holds, beside the blocks."""


class _Frame(bytes, Enum):
    HEAD = b"H"
    FILE = b"F"
    BLOCK = b"B"
    DATA = b"D"
    MANIFEST = b"M"


@dataclass(kw_only=True)
class Manifest:
    """What an archive holds; its last frame."""

    organisation: str
    made_at: int
    """Unix seconds."""
    indexed_block: int = -1
    """Newest block of the index in it; -1 when there is no index, or a damaged one was left out."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> `size_bytes`, `sha256` (hex)."""
    blocks: int = 0
    block_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As DAG-CBOR and JSON hold it."""
        return asdict(self)


def size_of(home: Home) -> int:
    """Bytes that a backup of this home will read, for showing progress."""
    files = sum(path.stat().st_size for item in _ITEMS if (path := home.root / item.name).is_file())
    with closing(open_store(home, NodeSettings.load(home.root))) as store:
        return files + store.usage_bytes()


def back_up(home: Home, target: Path, passphrase: str, *, advance: Advance = lambda _: None) -> Manifest:
    """Write everything that a home holds into one new file of mode 0600; the node may run meanwhile.

    Parameters
    ----------
    passphrase :
        That of the node's keystore; opens the archive, too.

    Raises
    ------
    ConfigurationError
        If the target exists.
    WrongPassphraseError, KeyStoreError
    BackupError
        If a database is damaged; one that the node can build anew is left out instead.
    BlockMismatchError
        If a block of the store is damaged.
    StoreFullError, ContentError
    """
    KeyStore.open(home.node_keystore, passphrase)
    manifest = Manifest(organisation=home.organisation().name, made_at=int(time.time()))
    with (
        _translated(f"the backup {target} cannot be written"),
        _workplace(home.root, ".backup-") as snapshots,
        _new_file(target) as file,
    ):
        writer = SealedWriter(file, passphrase)
        _put(writer, _Frame.HEAD, dag.encode({"type": _TYPE}))
        for item in _BEFORE_BLOCKS:
            _put_item(writer, home, item, snapshots, manifest, advance)
        _put_blocks(writer, home, manifest, advance)
        for item in _AFTER_BLOCKS:
            _put_item(writer, home, item, snapshots, manifest, advance)
        _put(writer, _Frame.MANIFEST, dag.encode(manifest.to_dict()))
        writer.finish()
    return manifest


def restore(archive: Path, root: Path, passphrase: str, *, advance: Advance = lambda _: None) -> Manifest:
    """Make a home of an archive: checked to the last byte in a directory beside it, then renamed.

    Raises
    ------
    ConfigurationError
        If `root` is there and not empty, or the archive cannot be read.
    WrongPassphraseError
    BackupError
        If the archive is altered, cut, or holds what no backup holds.
    StoreFullError, ContentError
    """
    root = root.expanduser().resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigurationError(f"{root} is not empty", hint="restore into a new or empty directory")
    with _opened(archive) as file, _translated(f"{root} cannot be written"):
        root.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(root.parent, f".{root.name}.restoring-") as unfinished:
            manifest = _Unpacking(unfinished, SealedReader(file, passphrase), advance).run()
            _check_home(unfinished, manifest, passphrase)
            unfinished.rename(root)
            sync_directory(root.parent)
    return manifest


@contextmanager
def _workplace(parent: Path, prefix: str) -> Iterator[Path]:
    """A new private directory, gone afterwards unless it was renamed; those that a kill left under the same prefix go first.

    Each is locked while its process lives; `parent` is, while one is made or looked for.
    """
    with ExitStack() as stack:
        with _locked(parent):
            for path in parent.iterdir():
                if path.name.startswith(prefix):
                    with suppress(OSError), _locked(path, fcntl.LOCK_NB):
                        shutil.rmtree(path)
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.enter_context(_locked(made))
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        yield made


@contextmanager
def _locked(directory: Path, how: int = 0) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(handle)


# Writing.


def _put(writer: SealedWriter, kind: _Frame, payload: bytes) -> None:
    writer.write(kind.value + len(payload).to_bytes(4, "big") + payload)


def _put_item(
    writer: SealedWriter, home: Home, item: _Item, snapshots: Path, manifest: Manifest, advance: Advance
) -> None:
    path = home.root / item.name
    if not path.exists():
        if item.required:
            raise ConfigurationError(f"{path} is missing", hint="`usufruct-node doctor` says what else is")
        return
    if not item.database:
        _put_file(writer, path, item.name, manifest, advance)
        return
    copy = snapshots / item.name
    try:
        _snapshot(path, copy)
        if item.derived:
            manifest.indexed_block = _indexed_block(copy)
    except BackupError as exc:
        if not item.derived:
            raise BackupError(str(exc), hint="take it from the newest backup; no new one was made") from exc
        _log.warning("%s; left out, since the node builds it anew when it is missing: delete it", exc)
    else:
        _put_file(writer, copy, item.name, manifest, advance)
    copy.unlink()


def _put_file(writer: SealedWriter, path: Path, name: str, manifest: Manifest, advance: Advance) -> None:
    with path.open("rb") as file:
        size = left = os.fstat(file.fileno()).st_size
        _put(writer, _Frame.FILE, dag.encode({"name": name, "size_bytes": size}))
        digest = hashlib.sha256()
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise ContentError(f"{path} shrank while it was read", hint="repeat the command")
            _put(writer, _Frame.DATA, piece)
            digest.update(piece)
            left -= len(piece)
            advance(len(piece))
    manifest.files[name] = {"size_bytes": size, "sha256": digest.hexdigest()}


def _put_blocks(writer: SealedWriter, home: Home, manifest: Manifest, advance: Advance) -> None:
    with closing(open_store(home, NodeSettings.load(home.root))) as store:
        for cid in store.cids():
            pins = sorted(store.pins(cid))
            if not pins:
                continue
            try:
                data = store.get(cid)
            except BlockNotFoundError:
                if store.has(cid):
                    raise
                continue
            _put(writer, _Frame.BLOCK, dag.encode({"cid": cid, "pins": pins}))
            _put(writer, _Frame.DATA, data)
            manifest.blocks += 1
            manifest.block_bytes += len(data)
            advance(len(data))


def _snapshot(source: Path, copy: Path) -> None:
    """A database as of one moment, while others write to it; checked."""
    copy.touch(mode=0o600)
    with (
        _examined(source),
        closing(sqlite3.connect(source.as_uri() + "?mode=rw", uri=True, timeout=30)) as live,
        closing(sqlite3.connect(copy)) as still,
    ):
        live.backup(still)
    _check_database(copy)


def _indexed_block(index: Path) -> int:
    with _examined(index), _opened_still(index) as db:
        row = db.execute("SELECT block_number FROM cursor").fetchone()
    return -1 if row is None else int(row[0])


def _new_file(target: Path) -> AbstractContextManager[BinaryIO]:
    return new_file(
        target, ConfigurationError(f"{target} exists already", hint="choose another name, or move it away")
    )


# Reading.


class _Unpacking:
    """Takes an archive apart into an empty directory. Every frame must be the one that a backup has there."""

    def __init__(self, root: Path, reader: SealedReader, advance: Advance) -> None:
        self._root = root
        self._reader = reader
        self._advance = advance
        self._files: dict[str, dict[str, Any]] = {}
        self._blocks = 0
        self._block_bytes = 0

    def run(self) -> Manifest:
        """Everything, up to the manifest, which must say the same."""
        kind, payload = self._frame()
        if kind is not _Frame.HEAD or _record(payload) != {"type": _TYPE}:
            raise BackupError("this is no backup of a node of this version")
        expected = [item.name for item in _ITEMS]
        with EmbeddedBlockStore(self._root / "blocks") as store:
            pending = _Pending(store)
            while (frame := self._frame())[0] is not _Frame.MANIFEST:
                kind, payload = frame
                if kind is _Frame.FILE:
                    name = self._file(_record(payload), expected)
                    del expected[: expected.index(name) + 1]
                elif kind is _Frame.BLOCK:
                    pending.add(*self._block(_record(payload)))
                else:
                    raise BackupError(f"a frame of kind {kind.name} stands where none may stand")
            pending.flush()
        self._reader.expect_end()
        return self._manifest(_record(frame[1]))

    def _frame(self) -> tuple[_Frame, bytes]:
        head = self._reader.read(5)
        try:
            kind = _Frame(head[:1])
        except ValueError as exc:
            raise BackupError(f"an unknown kind of frame, {head[:1]!r}") from exc
        size = int.from_bytes(head[1:], "big")
        if size > MAX_BLOCK_BYTES:
            raise BackupError(f"a frame of {size} bytes")
        payload = self._reader.read(size)
        self._advance(len(head) + size)
        return kind, payload

    def _data(self) -> bytes:
        kind, payload = self._frame()
        if kind is not _Frame.DATA:
            raise BackupError("bytes are missing")
        return payload

    def _file(self, record: Mapping[str, object], expected: list[str]) -> str:
        name, left = record.get("name"), record.get("size_bytes")
        if set(record) != {"name", "size_bytes"} or not isinstance(name, str) or type(left) is not int:
            raise BackupError("a malformed file entry")
        if name not in expected or left < 0:
            raise BackupError(f"{name!r} does not belong into a backup, or not in this place")
        digest, size = hashlib.sha256(), left
        descriptor = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            while left:
                piece = self._data()
                if not 0 < len(piece) <= left:
                    raise BackupError(f"{name} has another length than its entry says")
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = {"size_bytes": size, "sha256": digest.hexdigest()}
        return name

    def _block(self, record: Mapping[str, object]) -> tuple[Cid, bytes, frozenset[str]]:
        cid, pins = record.get("cid"), record.get("pins")
        if set(record) != {"cid", "pins"} or not isinstance(cid, Cid) or not isinstance(pins, list):
            raise BackupError("a malformed block entry")
        reasons = frozenset(pin for pin in pins if isinstance(pin, str))
        if not pins or len(reasons) != len(pins):
            raise BackupError(f"block {cid} is kept for no reason, or for one twice")
        data = self._data()
        cid.check(data)
        self._blocks += 1
        self._block_bytes += len(data)
        return cid, data, reasons

    def _manifest(self, record: Mapping[str, object]) -> Manifest:
        organisation, made_at = record.get("organisation"), record.get("made_at")
        indexed = record.get("indexed_block")
        if not isinstance(organisation, str) or type(made_at) is not int or type(indexed) is not int:
            raise BackupError("a malformed manifest")
        found = Manifest(
            organisation=organisation,
            made_at=made_at,
            indexed_block=indexed,
            files=self._files,
            blocks=self._blocks,
            block_bytes=self._block_bytes,
        )
        if record != found.to_dict():
            raise BackupError("the backup holds something else than its manifest says")
        lacking = [item.name for item in _ITEMS if item.required and item.name not in self._files]
        if lacking:
            raise BackupError(f"the backup lacks {', '.join(lacking)}")
        return found


class _Pending:
    """Blocks that are stored together, since each transaction of the store waits for the disk."""

    def __init__(self, store: EmbeddedBlockStore) -> None:
        self._store = store
        self._groups: dict[tuple[int, frozenset[str]], dict[Cid, bytes]] = {}
        self._size_bytes = 0

    def add(self, cid: Cid, data: bytes, pins: frozenset[str]) -> None:
        self._groups.setdefault((cid.codec, pins), {})[cid] = data
        self._size_bytes += len(data)
        if self._size_bytes > _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        for (_, pins), blocks in self._groups.items():
            codec = next(iter(blocks)).codec
            for pin in sorted(pins):
                self._store.put_many(list(blocks.values()), codec, pin=pin)
        self._groups.clear()
        self._size_bytes = 0


def _record(payload: bytes) -> dict[str, dag.DagValue]:
    try:
        return dag.decode_map(payload)
    except IntegrityError as exc:
        raise BackupError(f"a malformed frame: {exc}") from exc


def _check_home(root: Path, manifest: Manifest, passphrase: str) -> None:
    """That a node can run on it: its databases are whole, its keys are those of the public record."""
    home = Home.at(root)
    for item in _ITEMS:
        if not item.database or not (path := root / item.name).exists():
            continue
        try:
            _check_database(path)
        except BackupError as exc:
            if not item.derived:
                raise
            _log.warning("%s; left out, since the node builds it anew", exc)
            path.unlink()
            del manifest.files[item.name]
            manifest.indexed_block = -1
    if home.network_file.exists():
        Network.load(home.network_file)
    keys = identity.load_node_keys(KeyStore.open(home.node_keystore, passphrase))
    peer_id = PeerIdentity.from_seed(keys.peer_seed).peer_id_bytes.hex()
    record = ParticipantFile.load(root / "participant.json")
    if not record.name == home.organisation().name == manifest.organisation or record.peer_id != peer_id:
        raise BackupError("the backup holds keys and records of different organisations")


def _check_database(path: Path) -> None:
    with _examined(path), _opened_still(path) as db:
        db.execute("PRAGMA trusted_schema = OFF")
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise BackupError(f"{path.name} is damaged: {' '.join(verdict.split())}")


def _opened_still(path: Path) -> AbstractContextManager[sqlite3.Connection]:
    """A database that nobody writes to; makes no files beside it."""
    return closing(sqlite3.connect(path.as_uri() + "?immutable=1", uri=True))


@contextmanager
def _examined(path: Path) -> Iterator[None]:
    """Tell a database that is not what it should be from one that cannot be read now."""
    try:
        yield
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorname", "").startswith(_DAMAGED):
            raise BackupError(f"{path.name} is damaged: {exc}") from exc
        raise ContentError(f"{path} cannot be read: {exc}") from exc


@contextmanager
def _opened(archive: Path) -> Iterator[Any]:
    try:
        file = archive.open("rb")
    except OSError as exc:
        raise ConfigurationError(f"{archive} cannot be read: {exc.strerror}") from exc
    with file:
        yield file


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except UsufructError:
        raise
    except OSError as exc:
        if exc.errno in _FULL:
            raise StoreFullError(f"{what}: the disk is full") from exc
        raise ContentError(f"{what}: {exc.strerror or exc}") from exc
