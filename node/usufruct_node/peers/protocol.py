"""The block protocol `/usufruct/blocks/1.0.0`: what goes over a stream, and nothing about who may ask.

A request is one byte n (1 to 64) and n binary CIDs of 36 bytes, all distinct. The reply has one item per CID,
in order: a status byte, a big-endian length of 32 bits, and the block if the status is `BLOCK`. A stream
carries any number of requests, one after another. Replies come in order, so a block that nobody asked for has
no place to stand.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, Protocol

from usufruct.content import MAX_BLOCK_BYTES, Cid
from usufruct.content.cid import CID_BYTES
from usufruct.errors import CidError, InputError, PeerError

PROTOCOL_ID: Final = "/usufruct/blocks/1.0.0"

MAX_CIDS: Final = 64
"""CIDs in one request at most."""

HEAD_BYTES: Final = 5
"""Length of a reply item's head."""

_HEAD = struct.Struct(">BI")


class Status(IntEnum):
    """What became of one requested block."""

    BLOCK = 0
    NOT_FOUND = 1
    NOT_AUTHORISED = 2
    BUSY = 3
    OVER_QUOTA = 4


class Reader(Protocol):
    """Where bytes come from: up to `n` of them, none only at the end."""

    async def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes, or none at the end of the stream."""


def encode_request(cids: Sequence[Cid]) -> bytes:
    """Encode a request.

    Raises
    ------
    InputError
        Unless there are 1 to `MAX_CIDS` distinct CIDs.
    """
    if not 1 <= len(cids) <= MAX_CIDS or len(set(cids)) != len(cids):
        raise InputError(f"a request names 1 to {MAX_CIDS} distinct blocks, not {len(cids)}")
    return bytes((len(cids),)) + b"".join(bytes(cid) for cid in cids)


def decode_request(data: bytes) -> list[Cid]:
    """Decode one whole request.

    Raises
    ------
    PeerError
        On any other length, number, repeated or malformed CID.
    """
    if not data or len(data) != request_bytes(data[0]):
        raise PeerError("a request of the wrong length")
    try:
        cids = [Cid.from_bytes(data[at : at + CID_BYTES]) for at in range(1, len(data), CID_BYTES)]
    except CidError as exc:
        raise PeerError("a request with a malformed CID") from exc
    if len(set(cids)) != len(cids):
        raise PeerError("a request that names a block twice")
    return cids


def request_bytes(count: int) -> int:
    """Return the length of a request whose first byte is `count`.

    Raises
    ------
    PeerError
        Unless `count` is 1 to `MAX_CIDS`.
    """
    if not 1 <= count <= MAX_CIDS:
        raise PeerError(f"a request for {count} blocks; 1 to {MAX_CIDS} are served at once")
    return 1 + count * CID_BYTES


def encode_head(status: Status, size_bytes: int = 0) -> bytes:
    """Encode the head of one reply item; `size_bytes` is the length of the block that follows."""
    return _HEAD.pack(status, size_bytes)


def decode_head(data: bytes) -> tuple[Status, int]:
    """Decode the head of one reply item.

    Raises
    ------
    PeerError
        On an unknown status, a block over `MAX_BLOCK_BYTES`, or a refusal with a length.
    """
    if len(data) != HEAD_BYTES:
        raise PeerError("a reply with a cut head")
    code, size_bytes = _HEAD.unpack(data)
    try:
        status = Status(code)
    except ValueError as exc:
        raise PeerError(f"a reply with unknown status {code}") from exc
    if size_bytes > (MAX_BLOCK_BYTES if status is Status.BLOCK else 0):
        raise PeerError(f"a reply that announces {size_bytes} bytes with status {status.name}")
    return status, size_bytes


async def read_exactly(reader: Reader, size_bytes: int) -> bytes:
    """Read `size_bytes` bytes.

    Raises
    ------
    PeerError
        If the stream ends before.
    """
    parts = bytearray()
    while len(parts) < size_bytes:
        part = await reader.read(size_bytes - len(parts))
        if not part:
            raise PeerError("the stream ended in the middle of a message")
        parts += part
    return bytes(parts)


async def read_request(reader: Reader, first: bytes) -> list[Cid]:
    """Read the rest of a request whose first byte is `first`.

    Raises
    ------
    PeerError
        If it is malformed or cut.
    """
    return decode_request(first + await read_exactly(reader, request_bytes(first[0]) - 1))
