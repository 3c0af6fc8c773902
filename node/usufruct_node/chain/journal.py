"""The chain's journal: transactions and block records, on disk before anyone hears of them.

A journal is a row of segment files `journal-<sequence>.log`; a new one starts at each checkpoint.

Segment header, 110 bytes, big-endian:
    magic `UFJL`, version u8 = 1, scheme u8 = 1, chain id u64, genesis hash 32 bytes, sequence u64,
    number u64 and hash 32 bytes of the block that the segment continues, digest 16 bytes.
Frame, 31 bytes and the payload:
    marker `F5 4A`, kind u8, payload length u32, durable offset u64, payload, digest 16 bytes.
The digest is BLAKE2b over the frame's offset, its fields and its payload, keyed with the header's
digest, so that a frame holds only at its place in its segment. The durable offset is how much of the
file was known to be on disk when the frame was written: a damaged frame before the durable offset of
a sound one was once whole, which is corruption; any other damaged frame at the end is a torn write
that nobody was told of, and is cut.

Absent: the meaning of transactions, and replay (see `producer`).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from usufruct.errors import ChainDataError

MAGIC = b"UFJL"
MARKER = b"\xf5\x4a"
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
_DIGEST_BYTES = 16
_HEADER = struct.Struct(">4sBBQ32sQQ32s")
_FRAME = struct.Struct(">2sBIQ")
_BLOCK = struct.Struct(">QQ32s")
_TRANSACTION, _BLOCK_MADE, _REFUSED = 1, 2, 3

HEADER_BYTES = _HEADER.size + _DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed transaction, written before the engine sees it."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine did not take the transaction with this hash; it waits for no block."""

    tx_hash: bytes


@dataclass(frozen=True, slots=True)
class BlockMade:
    """A block and the order of its transactions, written before the block is served."""

    number: int
    timestamp: int
    block_hash: bytes
    tx_hashes: tuple[bytes, ...]


Record = Transaction | Refused | BlockMade


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What a segment belongs to and where it continues."""

    chain_id: int
    genesis_hash: bytes
    sequence: int
    parent_number: int
    parent_hash: bytes

    def encode(self) -> bytes:
        """Return the header's bytes, digest included."""
        packed = _HEADER.pack(
            MAGIC, 1, 1, self.chain_id, self.genesis_hash, self.sequence, self.parent_number, self.parent_hash
        )
        return packed + _digest(packed)

    @classmethod
    def decode(cls, data: bytes) -> SegmentHeader:
        """Parse the first `HEADER_BYTES` of a segment.

        Raises
        ------
        ChainDataError
            If they are not a sound header of this version.
        """
        packed, digest = data[: _HEADER.size], data[_HEADER.size : HEADER_BYTES]
        if len(data) < HEADER_BYTES or _digest(packed) != digest:
            raise ChainDataError("the header of a journal segment is damaged")
        magic, version, scheme, chain_id, genesis, sequence, number, parent = _HEADER.unpack(packed)
        if (magic, version, scheme) != (MAGIC, 1, 1):
            raise ChainDataError("a journal segment has an unknown format or version")
        return cls(
            chain_id=chain_id,
            genesis_hash=genesis,
            sequence=sequence,
            parent_number=number,
            parent_hash=parent,
        )


def segment_path(home: Path, sequence: int) -> Path:
    """Return where segment `sequence` lies."""
    return home / f"journal-{sequence:08d}.log"


def read_segment(path: Path, *, last: bool) -> tuple[SegmentHeader, list[Record], int]:
    """Read a segment.

    Parameters
    ----------
    path :
        The segment file.
    last :
        Whether it is the newest one; only that may end in a torn write.

    Returns
    -------
    header, records, length :
        `length` is the number of bytes up to the end of the last sound frame.

    Raises
    ------
    ChainDataError
        If the file cannot be read, or is damaged where it was once whole.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ChainDataError(f"journal segment {path.name} cannot be read: {exc}") from exc
    header = SegmentHeader.decode(data)
    key = data[_HEADER.size : HEADER_BYTES]
    records: list[Record] = []
    offset = HEADER_BYTES
    while (frame := _frame_at(data, offset, key)) is not None:
        kind, payload, _ = frame
        records.append(_decode_record(kind, payload, path.name))
        offset += _FRAME.size + len(payload) + _DIGEST_BYTES
    if offset < len(data) and not last:
        raise ChainDataError(f"journal segment {path.name} is damaged at byte {offset}")
    if any(durable > offset for durable in _durable_offsets_after(data, offset, key)):
        raise ChainDataError(
            f"journal segment {path.name} is damaged at byte {offset}, before records that were kept"
        )
    return header, records, offset


class JournalWriter:
    """Appends to the newest segment. One writer at a time; not safe for concurrent use."""

    def __init__(self, path: Path, length: int) -> None:
        """Open `path`, cut it to `length` bytes and continue there."""
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._key = os.pread(self._file, HEADER_BYTES, 0)[_HEADER.size :]
        os.ftruncate(self._file, length)
        os.fsync(self._file)
        self._length = length

    @classmethod
    def create(cls, home: Path, header: SegmentHeader, carried: Iterable[bytes]) -> JournalWriter:
        """Start a segment that carries on the waiting transactions `carried`; durable on return."""
        path = segment_path(home, header.sequence)
        content = bytearray(header.encode())
        key = bytes(content[_HEADER.size :])
        for raw in carried:
            content += _encode_frame(Transaction(raw), len(content), 0, key)
        write_durably(path, bytes(content))
        return cls(path, len(content))

    def append(self, records: Iterable[Record]) -> None:
        """Write `records` and make them durable.

        Raises
        ------
        OSError
            If the disk is full or broken; the segment is then as it was before.
        """
        content = bytearray()
        for record in records:
            content += _encode_frame(record, self._length + len(content), self._length, self._key)
        try:
            view = memoryview(content)
            at = self._length
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._length)
            raise
        self._length += len(content)

    def close(self) -> None:
        """Close the file; what was appended is already durable."""
        os.close(self._file)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by a file of mode 0600 with `content`, atomically and durably."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(*parts: bytes, key: bytes = b"") -> bytes:
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=key)
    for part in parts:
        state.update(part)
    return state.digest()


def _encode_frame(record: Record, offset: int, durable: int, key: bytes) -> bytes:
    match record:
        case Transaction(raw):
            kind, payload = _TRANSACTION, raw
        case Refused(tx_hash):
            kind, payload = _REFUSED, tx_hash
        case BlockMade(number, timestamp, block_hash, tx_hashes):
            kind, payload = _BLOCK_MADE, _BLOCK.pack(number, timestamp, block_hash) + b"".join(tx_hashes)
    packed = _FRAME.pack(MARKER, kind, len(payload), durable)
    return packed + payload + _digest(offset.to_bytes(8, "big"), packed, payload, key=key)


def _frame_at(data: bytes, offset: int, key: bytes) -> tuple[int, bytes, int] | None:
    """Return (kind, payload, durable offset) of a sound frame at `offset`, or None."""
    if offset + _FRAME.size + _DIGEST_BYTES > len(data):
        return None
    marker, kind, length, durable = _FRAME.unpack_from(data, offset)
    start = offset + _FRAME.size
    end = start + length
    if marker != MARKER or length > MAX_PAYLOAD_BYTES or end + _DIGEST_BYTES > len(data):
        return None
    payload = data[start:end]
    expected = _digest(offset.to_bytes(8, "big"), data[offset:start], payload, key=key)
    if data[end : end + _DIGEST_BYTES] != expected:
        return None
    return kind, payload, durable


def _durable_offsets_after(data: bytes, offset: int, key: bytes) -> Iterator[int]:
    at = data.find(MARKER, offset)
    while at >= 0:
        frame = _frame_at(data, at, key)
        if frame is not None:
            yield frame[2]
        at = data.find(MARKER, at + 1)


def _decode_record(kind: int, payload: bytes, name: str) -> Record:
    if kind == _TRANSACTION:
        return Transaction(payload)
    if kind == _REFUSED and len(payload) == 32:
        return Refused(payload)
    if kind == _BLOCK_MADE and len(payload) >= _BLOCK.size and (len(payload) - _BLOCK.size) % 32 == 0:
        number, timestamp, block_hash = _BLOCK.unpack_from(payload)
        hashes = tuple(payload[at : at + 32] for at in range(_BLOCK.size, len(payload), 32))
        return BlockMade(number, timestamp, block_hash, hashes)
    raise ChainDataError(f"journal segment {name} holds a record of unknown kind {kind}")
