"""Bitswap 1.2.0 on the wire, bounded: messages, wants and blocks, and nothing about who may ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from google.protobuf.message import DecodeError
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.utils.varint import encode_varint_prefixed

from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec
from usufruct.errors import CidError, PeerError
from usufruct_node.peers.protocol import Reader, read_exactly

PROTOCOL_ID: Final = "/ipfs/bitswap/1.2.0"

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""What the other implementations send at most."""

MAX_ENTRIES: Final = 1024
"""Wants and presences in one message at most, and wants of one peer that are remembered."""

MAX_FIELDS: Final = 4 * MAX_ENTRIES
"""Fields of one message and of its wantlist together, known or not; counted before the message is parsed."""

MAX_CID_BYTES: Final = 128

_VARINT_BYTES = 4
_WANTLIST_TAG = 1 << 3 | 2
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class Want:
    """One entry of a peer's wantlist."""

    key: bytes
    """The CID as the peer wrote it; not necessarily one of this network's."""

    block: bool
    """Whether the block itself is wanted, or only to know whether it is here."""

    say_absent: bool
    cancel: bool


@dataclass(frozen=True, slots=True)
class Received:
    """One message, with what this network has no use for left out."""

    full: bool
    """Whether the wants replace all former ones."""

    wants: tuple[Want, ...]
    blocks: tuple[tuple[Codec, bytes], ...]
    """Codec and unchecked bytes."""

    absent: tuple[Cid, ...]
    strange: int
    """Blocks of kinds that this network does not use."""


async def read_message(reader: Reader) -> Received | None:
    """Read one message; None at the end of the stream.

    Raises
    ------
    PeerError
        If it is cut, malformed, or has more than `MAX_MESSAGE_BYTES` or `MAX_ENTRIES`.
    """
    size_bytes = await _read_length(reader)
    return None if size_bytes is None else decode(await read_exactly(reader, size_bytes))


def decode(data: bytes) -> Received:
    """Decode one message.

    Raises
    ------
    PeerError
        If it is malformed or out of bounds.
    """
    _check_fields(data)
    message = Message()
    try:
        message.ParseFromString(data)
    except DecodeError as exc:
        raise PeerError("a malformed Bitswap message") from exc
    entries = message.wantlist.entries
    if max(len(entries), len(message.blockPresences), len(message.payload)) > MAX_ENTRIES:
        raise PeerError(f"a Bitswap message with more than {MAX_ENTRIES} entries")
    if any(len(entry.block) > MAX_CID_BYTES for entry in entries):
        raise PeerError(f"a want with a CID over {MAX_CID_BYTES} bytes")
    blocks: list[tuple[Codec, bytes]] = []
    for block in message.payload:
        codec = _codec_of(block.prefix)
        if codec is not None and len(block.data) <= MAX_BLOCK_BYTES:
            blocks.append((codec, block.data))
    absent = (one.cid for one in message.blockPresences if one.type == Message.DontHave)
    return Received(
        full=message.wantlist.full,
        wants=tuple(
            Want(entry.block, entry.wantType == Message.Wantlist.Block, entry.sendDontHave, entry.cancel)
            for entry in entries
        ),
        blocks=tuple(blocks),
        absent=tuple(cid for cid in map(cid_of, absent) if cid is not None),
        strange=len(message.payload) - len(blocks) + len(message.blocks),
    )


def encode_wants(cids: Iterable[Cid], *, cancel: bool = False) -> bytes:
    """Encode a message that asks for blocks, or no longer."""
    message = Message()
    for cid in cids:
        message.wantlist.entries.add(block=bytes(cid), priority=1, cancel=cancel, sendDontHave=not cancel)
    return bytes(encode_varint_prefixed(message.SerializeToString()))


def encode_replies(
    blocks: Sequence[tuple[Cid, bytes]], present: Iterable[bytes], absent: Iterable[bytes]
) -> bytes:
    """Encode a message with blocks, and with which others are here or not."""
    message = Message()
    for cid, data in blocks:
        message.payload.add(prefix=bytes(cid)[:4], data=data)
    for kind, keys in ((Message.Have, present), (Message.DontHave, absent)):
        for key in keys:
            message.blockPresences.add(cid=key, type=kind)
    return bytes(encode_varint_prefixed(message.SerializeToString()))


def cid_of(key: bytes) -> Cid | None:
    """The CID that a peer wrote, if it is one of this network's."""
    try:
        return Cid.from_bytes(bytes(key))
    except CidError:
        return None


def _codec_of(prefix: bytes) -> Codec | None:
    """The codec in a block's prefix, if it says CIDv1 with sha2-256."""
    if len(prefix) != 4 or prefix[0] != 1 or prefix[2:] != b"\x12\x20" or prefix[1] not in list(Codec):
        return None
    return Codec(prefix[1])


def _check_fields(data: bytes) -> None:
    """Count the fields without making anything of them; a parsed one takes fifty times the memory of the shortest."""
    count = 0
    for tag, inside in _fields(memoryview(data)):
        wants = islice(_fields(inside), MAX_FIELDS) if tag == _WANTLIST_TAG else ()
        count += 1 + sum(1 for _ in wants)
        if count > MAX_FIELDS:
            raise PeerError(f"a Bitswap message with more than {MAX_FIELDS} fields")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Tag and content of one field of a protobuf message after the other."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind, size_bytes = tag & 7, 0
        if kind == 2:
            size_bytes, at = _varint(data, at)
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in _FIXED_BYTES:
            size_bytes = _FIXED_BYTES[kind]
        else:
            raise PeerError("a malformed Bitswap message")
        if tag >= 1 << 32 or size_bytes > len(data) - at:
            raise PeerError("a malformed Bitswap message")
        yield tag, data[at : at + size_bytes]
        at += size_bytes


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, at + n + 1
    raise PeerError("a malformed Bitswap message")


async def _read_length(reader: Reader) -> int | None:
    value = 0
    for n in range(_VARINT_BYTES):
        byte = await reader.read(1)
        if not byte:
            if n == 0:
                return None
            raise PeerError("a Bitswap message with a cut length")
        value |= (byte[0] & 0x7F) << (7 * n)
        if byte[0] < 0x80:
            if value > MAX_MESSAGE_BYTES:
                break
            return value
    raise PeerError(f"a Bitswap message over {MAX_MESSAGE_BYTES} bytes")
