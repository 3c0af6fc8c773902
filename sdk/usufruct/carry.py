"""Carries a published bundle in one file, a CAR: from a machine without a network to the organisation's node, or out of it.

A bundle's archive has one root, the manifest; the manifest comes first, then its blocks in the manifest's order, each once, and
nothing else. Reading holds it to that, so that an archive cannot make a node stage what no manifest names. The archive's own
CID, which every IPFS tool finds again, can be told another way than the archive goes.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from usufruct.content import Cid, Codec, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.content.unixfs import FileCid, FileHasher
from usufruct.durable import new_file, translated
from usufruct.errors import ArchiveMismatchError, CarError, InputError
from usufruct.publish import Destination, Progress, PublishedBundle, read_manifest

Get = Callable[[Cid], bytes]
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """A bundle's file as it was written."""

    cid: FileCid
    """CID of the file itself, not of the bundle in it."""
    size_bytes: int


class CarDestination:
    """Takes a bundle instead of a node: `publish_bundle(sealed, CarDestination(path), ...)` needs no network.

    The file appears under its name when the manifest is put; while the blocks come, they wait in a file beside it.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError if the file exists."""
        if os.path.lexists(path):
            raise InputError(f"{path} exists already", hint="choose another name, or move it away")
        self._path = path
        self._waiting = path.with_name(f".{path.name}.{secrets.token_hex(8)}.blocks")
        self._places: dict[Cid, tuple[int, int]] = {}
        self._archive: Archive | None = None

    @property
    def archive(self) -> Archive:
        """What was written.

        Raises
        ------
        InputError
            Until the manifest was put.
        """
        if self._archive is None:
            raise InputError(f"{self._path} is not complete: its manifest is missing")
        return self._archive

    def stage(self, blocks: Iterable[bytes]) -> Iterator[Cid]:
        """Take ciphertext blocks; yields their CIDs in order."""
        with translated(f"{self._path} cannot be written"):
            descriptor = os.open(self._waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for data in blocks:
                    cid = Cid.of(data)
                    if cid not in self._places:
                        self._places[cid] = (file.tell(), len(data))
                        file.write(data)
                    yield cid

    def put_record(self, kind: str, record: object) -> Cid:
        """Take the bundle's manifest, which completes the file."""
        if kind != "bundle":
            raise InputError(f"a bundle's archive holds no record of kind {kind!r}")
        data = dag.encode(record)
        cid = Cid.of(data, Codec.DAG_CBOR)
        with translated(f"{self._path} cannot be written"), _new_file(self._path) as target:
            file = _Hashed(target)
            writer = CarWriter(file, [cid])
            writer.add(cid, data)
            with self._waiting.open("rb") as waiting:
                for block, (start, size) in self._places.items():
                    waiting.seek(start)
                    writer.add(block, waiting.read(size))
        self._archive = file.archive()
        self.discard()
        return cid

    def discard(self) -> None:
        """Remove what waits; harmless at any time."""
        self._waiting.unlink(missing_ok=True)


def export_bundle(manifest_cid: Cid, get: Get, path: Path, *, progress: Progress | None = None) -> Archive:
    """Write a bundle into a new file.

    Parameters
    ----------
    get :
        Gives each block; hashed before it is written.

    Raises
    ------
    InputError
        If the file exists.
    ManifestError
        If the CID names no bundle's manifest.
    BlockNotFoundError, NotAuthorisedError, BlockMismatchError
        As `get`.
    StoreFullError, ContentError
    """
    if os.path.lexists(path):
        raise InputError(f"{path} exists already", hint="choose another name, or move it away")
    data = get(manifest_cid)
    manifest_cid.check(data)
    blocks = list(dict.fromkeys(read_manifest(dag.decode_map(data)).blocks))
    with translated(f"{path} cannot be written"), _new_file(path) as target:
        file = _Hashed(target)
        writer = CarWriter(file, [manifest_cid])
        writer.add(manifest_cid, data)
        for done, cid in enumerate(blocks, start=1):
            writer.add(cid, get(cid))
            if progress is not None:
                progress(done, len(blocks))
    return file.archive()


def import_bundle(
    path: Path, node: Destination, *, expected: FileCid | None = None, progress: Progress | None = None
) -> PublishedBundle:
    """Hand the bundle of an archive to the organisation's node, verified block by block.

    Parameters
    ----------
    expected :
        CID of the archive itself. The whole file is read and held against it before the node gets anything; what is then
        handed over is hashed again, so a file that changes in between is refused as well.

    Raises
    ------
    ArchiveMismatchError
        If the archive is not the expected file; the node has no record of it, and frees in time what it had staged.
    CarError
        If the archive is malformed, cut, lacks a block, or holds another than the manifest names; the node frees in time what
        it had staged.
    ManifestError, BlockMismatchError
    InputError
        If the file cannot be read, or the bundle is of contributions.
    StoreFullError, NodeUnreachableError
    """
    with _readable(path), path.open("rb") as file:
        if expected is not None:
            _check_whole(path, file, expected)
        source = _Hashed(file)
        reader = CarReader(file if expected is None else source)
        blocks = iter(reader)
        cid, data = next(blocks, (None, b""))
        if reader.roots != (cid,) or cid is None or cid.codec != Codec.DAG_CBOR:
            raise CarError("a bundle's archive has one root, its manifest, and begins with it")
        record = dag.decode_map(data)
        manifest = read_manifest(record)
        if manifest.of_contributions:
            raise InputError(
                "contributions of several members are not taken from an archive: nobody has checked these",
                hint="`usufruct round close` takes the files that members handed in",
            )
        size = 0

        def named() -> Iterator[bytes]:
            nonlocal size
            wanted = list(dict.fromkeys(manifest.blocks))
            for done, due in enumerate(wanted, start=1):
                found, block = next(blocks, (None, b""))
                if found is None:
                    raise CarError(f"the archive lacks {len(wanted) - done + 1} of {len(wanted)} blocks")
                if found != due:
                    raise CarError(f"the archive holds {found} where the manifest names {due}")
                size += len(block)
                yield block
                if progress is not None:
                    progress(done, len(wanted))
            if next(blocks, None) is not None:
                raise CarError("the archive holds blocks that the manifest does not name")
            if expected is not None and (actual := source.archive().cid) != expected:
                raise ArchiveMismatchError(str(expected), str(actual))

        for _ in node.stage(named()):
            pass
        if node.put_record("bundle", record) != cid:
            raise CarError("the manifest is not in its canonical form")
    return PublishedBundle(cid=cid, manifest=manifest, size_bytes=size)


class _Hashed:
    """A file from its first byte on, hashed as it is read or written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = FileHasher()
        self._size = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._take(data)
        return data

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._take(data)

    def archive(self) -> Archive:
        """What went through; called once, at the end."""
        return Archive(cid=self._hasher.finish(), size_bytes=self._size)

    def _take(self, data: bytes) -> None:
        self._hasher.update(data)
        self._size += len(data)


def _check_whole(path: Path, file: BinaryIO, expected: FileCid) -> None:
    """Read all of a file, compare its CID, and go back to its beginning."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise InputError(f"{path} is read twice to check its CID, and so has to be a file")
    source = _Hashed(file)
    while source.read(_READ_BYTES):
        pass
    actual = source.archive().cid
    if actual != expected:
        raise ArchiveMismatchError(str(expected), str(actual))
    file.seek(0)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _new_file(target: Path) -> AbstractContextManager[BinaryIO]:
    return new_file(target, InputError(f"{target} exists already", hint="choose another name"))
