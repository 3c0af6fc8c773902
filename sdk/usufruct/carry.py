"""Carries a published bundle in one file, a CAR: from a machine without a network to the organisation's node, or out of it.

A bundle's archive has one root, the manifest; the manifest comes first, then its blocks in the manifest's order, each once, and
nothing else. Reading holds it to that, so that an archive cannot make a node stage what no manifest names.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from usufruct.content import Cid, Codec, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.content.durable import new_file, translated
from usufruct.errors import CarError, InputError
from usufruct.publish import Destination, Progress, PublishedBundle, read_manifest

Get = Callable[[Cid], bytes]


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
        with translated(f"{self._path} cannot be written"), _new_file(self._path) as file:
            writer = CarWriter(file, [cid])
            writer.add(cid, data)
            with self._waiting.open("rb") as waiting:
                for block, (start, size) in self._places.items():
                    waiting.seek(start)
                    writer.add(block, waiting.read(size))
        self.discard()
        return cid

    def discard(self) -> None:
        """Remove what waits; harmless at any time."""
        self._waiting.unlink(missing_ok=True)


def export_bundle(manifest_cid: Cid, get: Get, path: Path, *, progress: Progress | None = None) -> int:
    """Write a bundle into a new file and return its size in bytes.

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
    with translated(f"{path} cannot be written"), _new_file(path) as file:
        writer = CarWriter(file, [manifest_cid])
        writer.add(manifest_cid, data)
        for done, cid in enumerate(blocks, start=1):
            writer.add(cid, get(cid))
            if progress is not None:
                progress(done, len(blocks))
        return file.tell()


def import_bundle(path: Path, node: Destination, *, progress: Progress | None = None) -> PublishedBundle:
    """Hand the bundle of an archive to the organisation's node, verified block by block.

    Raises
    ------
    CarError
        If the archive is malformed, cut, lacks a block, or holds another than the manifest names; the node frees what it had
        staged.
    ManifestError, BlockMismatchError
    InputError
        If the file cannot be read.
    StoreFullError, NodeUnreachableError
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    with file:
        reader = CarReader(file)
        blocks = iter(reader)
        cid, data = next(blocks, (None, b""))
        if reader.roots != (cid,) or cid is None or cid.codec != Codec.DAG_CBOR:
            raise CarError("a bundle's archive has one root, its manifest, and begins with it")
        record = dag.decode_map(data)
        manifest = read_manifest(record)
        size = 0

        def expected() -> Iterator[bytes]:
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

        for _ in node.stage(expected()):
            pass
        if node.put_record("bundle", record) != cid:
            raise CarError("the manifest is not in its canonical form")
    return PublishedBundle(cid=cid, manifest=manifest, size_bytes=size)


def _new_file(target: Path) -> AbstractContextManager[BinaryIO]:
    return new_file(target, InputError(f"{target} exists already", hint="choose another name"))
