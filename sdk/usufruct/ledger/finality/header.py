"""Block headers as the bytes that hash to the block hash, on each kind of chain. Verifies no signature.

The fields beyond the fifteen old ones depend on the engine. All are optional at the end of the list: a chain that has not
reached the upgrade which brings one leaves it and all later ones out, and one that is skipped is an empty string.

Sources: EIP-1559, EIP-4895, EIP-4844, EIP-4788, EIP-7685; `plugin/evm/customtypes/header_ext.go` of Subnet-EVM v0.8.0 (no
withdrawals, block gas cost before the blob fields, milliseconds and minimum delay after them); `BftBlockHeaderFunctions` of
Besu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import rlp
from eth_utils.crypto import keccak

from usufruct.errors import HeaderMismatchError, LedgerError, MalformedProofError
from usufruct.ledger.finality.extra_data import QbftExtraData
from usufruct.ledger.finality.strict_rlp import decode_rlp
from usufruct.ledger.profile import HeaderKind

MAX_HEADER_BYTES = 64 * 1024

_WORD, _ADDRESS, _BLOOM, _NONCE, _NUMBER, _BYTES = 32, 20, 256, 8, 0, -1
"""Length of a field; `_NUMBER` is an integer without leading zeros, `_BYTES` anything."""

_OLD = (
    ("parentHash", _WORD),
    ("sha3Uncles", _WORD),
    ("miner", _ADDRESS),
    ("stateRoot", _WORD),
    ("transactionsRoot", _WORD),
    ("receiptsRoot", _WORD),
    ("logsBloom", _BLOOM),
    ("difficulty", _NUMBER),
    ("number", _NUMBER),
    ("gasLimit", _NUMBER),
    ("gasUsed", _NUMBER),
    ("timestamp", _NUMBER),
    ("extraData", _BYTES),
    ("mixHash", _WORD),
    ("nonce", _NONCE),
)
_ETHEREUM = (
    *_OLD,
    ("baseFeePerGas", _NUMBER),
    ("withdrawalsRoot", _WORD),
    ("blobGasUsed", _NUMBER),
    ("excessBlobGas", _NUMBER),
    ("parentBeaconBlockRoot", _WORD),
    ("requestsHash", _WORD),
)
_SUBNET_EVM = (
    *_OLD,
    ("baseFeePerGas", _NUMBER),
    ("blockGasCost", _NUMBER),
    ("blobGasUsed", _NUMBER),
    ("excessBlobGas", _NUMBER),
    ("parentBeaconBlockRoot", _WORD),
    ("timestampMilliseconds", _NUMBER),
    ("minDelayExcess", _NUMBER),
)
_LAYOUTS: dict[HeaderKind, tuple[tuple[str, int], ...]] = {
    "ethereum": _ETHEREUM,
    "subnet-evm": _SUBNET_EVM,
    "qbft": _ETHEREUM,
}
_EXTRA_DATA = 12


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """A header, field by field, as its encoding has them."""

    kind: HeaderKind
    fields: tuple[bytes, ...]

    @property
    def parent_hash(self) -> bytes:
        """Hash of the block before."""
        return self.fields[0]

    @property
    def state_root(self) -> bytes:
        """Root of the accounts after this block."""
        return self.fields[3]

    @property
    def receipts_root(self) -> bytes:
        """Root of this block's receipts."""
        return self.fields[5]

    @property
    def number(self) -> int:
        """Height."""
        return int.from_bytes(self.fields[8], "big")

    @property
    def timestamp(self) -> int:
        """Unix seconds."""
        return int.from_bytes(self.fields[11], "big")

    @property
    def extra_data(self) -> bytes:
        """Up to the engine; on Besu with the committed seals."""
        return self.fields[_EXTRA_DATA]

    def with_extra_data(self, extra_data: bytes) -> BlockHeader:
        """The same header with other extra data."""
        before, after = self.fields[:_EXTRA_DATA], self.fields[_EXTRA_DATA + 1 :]
        return BlockHeader(self.kind, (*before, extra_data, *after))

    def encode(self) -> bytes:
        """RLP of the fields."""
        return bytes(rlp.encode(list(self.fields)))

    @classmethod
    def decode(cls, data: bytes, kind: HeaderKind) -> BlockHeader:
        """Take an encoded header apart; strict.

        Raises
        ------
        MalformedProofError
            If it is not the one encoding of a header of this kind.
        """
        items = decode_rlp(data, "block header", limit=MAX_HEADER_BYTES)
        layout = _LAYOUTS[kind]
        if not isinstance(items, list) or not len(_OLD) <= len(items) <= len(layout):
            raise MalformedProofError("a block header has another number of fields")
        for position, ((name, length), item) in enumerate(zip(layout, items, strict=False)):
            if not isinstance(item, bytes) or not _fits(item, length, optional=position >= len(_OLD)):
                raise MalformedProofError(f"field {name} of a block header has the wrong form")
        return cls(kind, tuple(items))

    @classmethod
    def from_json(cls, block: object, kind: HeaderKind) -> BlockHeader:
        """The header in a JSON-RPC answer of `eth_getBlockBy...`; that it hashes to what it says is not checked here.

        Raises
        ------
        LedgerError
            If the answer has not the form of a block.
        """
        if not isinstance(block, dict):
            raise LedgerError("the endpoint has no such block")
        layout = _LAYOUTS[kind]
        values: list[bytes | None] = [_field(block, name, length) for name, length in layout]
        while values and values[-1] is None:
            values.pop()
        if len(values) < len(_OLD) or None in values[: len(_OLD)]:
            raise LedgerError("the endpoint's block lacks a field of the header")
        return cls(kind, tuple(value or b"" for value in values))


def block_hash_of(header: BlockHeader) -> bytes:
    """Hash by which the chain calls a block: on Besu without committed seals, and as if agreed in round 0."""
    if header.kind == "qbft":
        extra = QbftExtraData.decode(header.extra_data)
        header = header.with_extra_data(extra.encode(round_number=0, seals=()))
    return bytes(keccak(header.encode()))


def check_header(data: bytes, block_hash: bytes, kind: HeaderKind) -> BlockHeader:
    """The header that an encoding holds, provided that it is the one of this block.

    Raises
    ------
    MalformedProofError
        If it is no header of this kind.
    HeaderMismatchError
        If it hashes to something else.
    """
    header = BlockHeader.decode(data, kind)
    found = block_hash_of(header)
    if found != block_hash:
        raise HeaderMismatchError(f"the header hashes to {found.hex()}, not {block_hash.hex()}")
    return header


def _fits(item: bytes, length: int, *, optional: bool) -> bool:
    if length == _BYTES or (optional and not item):
        return True
    if length == _NUMBER:
        return len(item) <= 32 and not item.startswith(b"\0")
    return len(item) == length


def _field(block: dict[str, Any], name: str, length: int) -> bytes | None:
    value = block.get(name)
    if value is None:
        return None
    try:
        if length == _NUMBER:
            number = int(value, 16)
            return number.to_bytes((number.bit_length() + 7) // 8, "big")
        raw = bytes.fromhex(value.removeprefix("0x"))
    except (TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise LedgerError(f"field {name} of the endpoint's block is malformed") from exc
    if length not in (_BYTES, len(raw)):
        raise LedgerError(f"field {name} of the endpoint's block has {len(raw)} bytes")
    return raw
