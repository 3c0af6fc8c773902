"""CAR, version 1: blocks in one file that every IPFS tool reads, for carrying them where no network goes.

Reads and writes streams, one block in memory at a time. Strict when it reads: one spelling of each length, only this network's
CIDs, every block hashed, nothing after the last one. What the blocks mean is for the callers.

Source: the CARv1 specification (ipld.io/specs/transport/car/carv1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from usufruct.content import dag
from usufruct.content.blockstore import MAX_BLOCK_BYTES
from usufruct.content.cid import CID_BYTES, Cid
from usufruct.content.varint import varint
from usufruct.errors import CarError, CidError, ManifestError

MAX_ROOTS: Final = 16
_HEADER_BYTES: Final = 2048
_VARINT_BYTES: Final = 9


class Source(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer than `size` only at the end."""


class Sink(Protocol):
    """What an archive is written to."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


class CarWriter:
    """Writes one archive to a stream; the header goes out at once."""

    def __init__(self, file: Sink, roots: Sequence[Cid]) -> None:
        """Raises OSError as the stream does."""
        self._file = file
        header = dag.encode({"roots": list(roots), "version": 1})
        file.write(varint(len(header)) + header)

    def add(self, cid: Cid, data: bytes) -> None:
        """Write one block.

        Raises
        ------
        BlockMismatchError
            If `data` is not the block of that CID.
        """
        cid.check(data)
        self._file.write(varint(CID_BYTES + len(data)) + bytes(cid))
        self._file.write(data)


class CarReader:
    """Reads one archive from a stream that may be hostile."""

    def __init__(self, file: Source) -> None:
        """Read the header.

        Raises
        ------
        CarError
        """
        self._file = file
        size = self._length()
        if size is None or size > _HEADER_BYTES:
            raise CarError("no header of a CAR")
        try:
            header = dag.decode_map(self._exactly(size))
        except ManifestError as exc:
            raise CarError(f"the header of the CAR is malformed: {exc}") from exc
        roots = header.get("roots")
        if set(header) != {"roots", "version"} or header["version"] != 1 or not isinstance(roots, list):
            raise CarError("not a CAR of version 1")
        found = [root for root in roots if isinstance(root, Cid)]
        if len(found) != len(roots) or not 0 < len(found) <= MAX_ROOTS:
            raise CarError(f"a CAR has 1 to {MAX_ROOTS} roots")
        self.roots: tuple[Cid, ...] = tuple(found)

    def __iter__(self) -> Iterator[tuple[Cid, bytes]]:
        """Blocks in the order of the file, each hashed.

        Raises
        ------
        CarError
            If the file is cut, or a length or CID is malformed.
        BlockMismatchError
            If a block is not the one of its CID.
        """
        while (size := self._length()) is not None:
            if not CID_BYTES <= size <= CID_BYTES + MAX_BLOCK_BYTES:
                raise CarError(f"a section of {size} bytes is no block")
            try:
                cid = Cid.from_bytes(self._exactly(CID_BYTES))
            except CidError as exc:
                raise CarError(f"a block with a CID that is not used here: {exc}") from exc
            data = self._exactly(size - CID_BYTES)
            cid.check(data)
            yield cid, data

    def _length(self) -> int | None:
        """The next varint in its shortest form; None at the end of the file."""
        value = 0
        for position in range(_VARINT_BYTES):
            byte = self._file.read(1)
            if not byte:
                if position:
                    raise CarError("the CAR is cut within a length")
                return None
            value |= (byte[0] & 0x7F) << (7 * position)
            if byte[0] < 0x80:
                if position and not byte[0]:
                    raise CarError("a length that is not in its shortest form")
                return value
        raise CarError("a length of more than 63 bits")

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise CarError("the CAR is cut within a block")
        return data
