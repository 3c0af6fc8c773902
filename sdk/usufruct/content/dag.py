"""DAG-CBOR records: manifests, receipts, whatever is linked by CID.

One value has one encoding. What comes from peers is walked first, without recursion or allocation, so that
neither depth, nor announced lengths, nor foreign links reach the CBOR library; then the decoded value must
encode to the same bytes again. Meaning (which keys a manifest has) belongs to the callers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, Union

import cbor2

from usufruct.content.blockstore import MAX_BLOCK_BYTES
from usufruct.content.cid import CID_BYTES, Cid, Codec
from usufruct.errors import CidError, ManifestError

DagValue: TypeAlias = Union[bool, int, float, str, bytes, Cid, "list[DagValue]", "dict[str, DagValue]", None]
"""What a record is made of."""

MAX_DEPTH: Final = 32
"""Nested lists and maps at most."""

MAX_ITEMS: Final = 100_000
"""Values, keys and links in one record at most; bounds the time that a hostile record takes to decode."""

_INT_BOUND = 1 << 64
_LINK_TAG = 42
_LINK_HEAD = bytes((0x58, CID_BYTES + 1, 0))
"""A link: byte string of 37 bytes whose first is the identity multibase prefix."""


def encode(value: object) -> bytes:
    """Encode `value` canonically.

    Parameters
    ----------
    value :
        None, bool, int of 64 bits, finite float, str, bytes, `Cid`, or sequences and string-keyed mappings
        of these. Sequences become lists.

    Raises
    ------
    ManifestError
        If a part has another type, or the whole exceeds `MAX_DEPTH`, `MAX_ITEMS` or `MAX_BLOCK_BYTES`.

    Source
    ------
    IPLD DAG-CBOR specification.
    """
    data = _encode(value)
    _walk(data)
    return data


def decode(data: bytes) -> DagValue:
    """Decode exactly one canonical item.

    Raises
    ------
    ManifestError
        On truncation, trailing bytes, a non-canonical encoding, links other than this network's CIDs,
        or more than `MAX_DEPTH`, `MAX_ITEMS` or `MAX_BLOCK_BYTES`.
    """
    _walk(data)
    try:
        value: DagValue = cbor2.loads(
            data,
            semantic_decoders={_LINK_TAG: _read_link},
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except (cbor2.CBORDecodeError, ValueError) as exc:
        raise ManifestError("malformed DAG-CBOR") from exc
    if _encode(value) != data:
        raise ManifestError("not the canonical encoding of its value")
    return value


def decode_map(data: bytes) -> dict[str, DagValue]:
    """Decode one canonical item that must be a map.

    Raises
    ------
    ManifestError
        As `decode`, or if the item is not a map.
    """
    value = decode(data)
    if not isinstance(value, dict):
        raise ManifestError(f"a record is a map, this is {type(value).__name__}")
    return value


def cid_of(value: object) -> Cid:
    """Return the identifier of `value`'s encoding.

    Raises
    ------
    ManifestError
        As `encode`.
    """
    return Cid.of(encode(value), Codec.DAG_CBOR)


def _encode(value: object) -> bytes:
    try:
        return cbor2.dumps(_to_library(value, 0))
    except (cbor2.CBOREncodeError, ValueError) as exc:
        raise ManifestError(f"not encodable as DAG-CBOR: {exc}") from exc


def _to_library(value: object, depth: int) -> object:
    """Return `value` as the CBOR library writes it canonically: keys in order, links tagged, no sloppy number."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return value
    if isinstance(value, int):
        if not -_INT_BOUND <= value < _INT_BOUND:
            raise ManifestError("an integer of more than 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(f"a record cannot hold {value}")
        return value
    if isinstance(value, Cid):
        return cbor2.CBORTag(_LINK_TAG, b"\0" + bytes(value))
    if depth >= MAX_DEPTH:
        raise ManifestError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ManifestError("the keys of a record are strings")
        ordered = sorted((len(utf8 := key.encode()), utf8, key) for key in value)
        return {key: _to_library(value[key], depth + 1) for _, _, key in ordered}
    if isinstance(value, Sequence) and not isinstance(value, (bytearray, memoryview)):
        return [_to_library(item, depth + 1) for item in value]
    raise ManifestError(f"a record cannot hold {type(value).__name__}")


def _read_link(tagged: bytes, _immutable: bool) -> Cid:
    return Cid.from_bytes(tagged[1:])


def _walk(data: bytes) -> None:
    """Check size, lengths, nesting, number and links of one item without decoding it."""
    if len(data) > MAX_BLOCK_BYTES:
        raise ManifestError(f"a record of {len(data)} bytes exceeds a block of {MAX_BLOCK_BYTES}")
    position = 0
    items_left = MAX_ITEMS
    pending = [1]
    while pending:
        if pending[-1] == 0:
            pending.pop()
            continue
        pending[-1] -= 1
        if items_left == 0:
            raise ManifestError(f"more than {MAX_ITEMS} items")
        items_left -= 1
        kind, argument, position = _head(data, position)
        if kind in (2, 3):
            if argument > len(data) - position:
                raise ManifestError("truncated: a string is longer than what is left")
            position += argument
        elif kind in (4, 5):
            items = argument * (2 if kind == 5 else 1)
            if items > len(data) - position:
                raise ManifestError("truncated: more items announced than bytes are left")
            if len(pending) > MAX_DEPTH:
                raise ManifestError(f"nested deeper than {MAX_DEPTH}")
            pending.append(items)
        elif kind == 6:
            if argument != _LINK_TAG or data[position : position + 3] != _LINK_HEAD:
                raise ManifestError("a tag that is not a link to a block of this network")
            try:
                Cid.from_bytes(data[position + 3 : position + 3 + CID_BYTES])
            except CidError as exc:
                raise ManifestError("a link that is not a CID of this network") from exc
            position += 3 + CID_BYTES
    if position != len(data):
        raise ManifestError(f"{len(data) - position} bytes after the end of the record")


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Return major type, argument and the position after the head of the item at `position`."""
    if position >= len(data):
        raise ManifestError("truncated: an item is missing")
    kind, short = data[position] >> 5, data[position] & 31
    position += 1
    if short < 24:
        return kind, short, position
    if short > 27:
        raise ManifestError("indefinite lengths and reserved heads are not DAG-CBOR")
    width = 1 << (short - 24)
    if width > len(data) - position:
        raise ManifestError("truncated: the head of an item is cut")
    return kind, int.from_bytes(data[position : position + width]), position + width
