"""Receipts and the proof that one is in a block: from a header that is trusted to an event that then is too.

A block's receipts are the leaves of a Merkle-Patricia tree whose root stands in the header; keys are RLP of the position.

Sources: Yellow Paper, appendix D; EIP-2718 (typed receipts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rlp
from trie import HexaryTrie

from usufruct.errors import InclusionError, LedgerError, MalformedProofError
from usufruct.ledger.finality.strict_rlp import decode_rlp
from usufruct.ledger.finality.tree import path_of, value_at

MAX_RECEIPT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProvenLog:
    """One event as the chain holds it."""

    address: str
    """Lower-case hex with 0x."""
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionReceipt:
    """What a transaction left behind, as its block commits to it."""

    succeeded: bool
    logs: tuple[ProvenLog, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptProof:
    """Shows that a receipt is the one at a position in a block."""

    position: int
    nodes: tuple[bytes, ...]
    """Nodes of the tree from the root to the receipt, each in RLP."""


def encode_receipt(receipt: object) -> bytes:
    """The consensus encoding of a receipt in a JSON-RPC answer.

    Raises
    ------
    LedgerError
        If the answer has not the form of a receipt.
    """
    try:
        if not isinstance(receipt, dict):
            raise TypeError("no object")
        kind = int(receipt.get("type", "0x0"), 16)
        logs = [
            [_hex(log["address"]), [_hex(topic) for topic in log["topics"]], _hex(log["data"])]
            for log in receipt["logs"]
        ]
        fields = [
            _integer(receipt["status"]),
            _integer(receipt["cumulativeGasUsed"]),
            _hex(receipt["logsBloom"]),
            logs,
        ]
        if not 0 <= kind < 0x80:
            raise ValueError(f"type {kind}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise LedgerError(f"the endpoint gave a malformed receipt: {exc!r}") from exc
    return (bytes([kind]) if kind else b"") + bytes(rlp.encode(fields))


def receipts_root(encoded: Sequence[bytes]) -> bytes:
    """Root of the tree of all receipts of a block, in order."""
    return bytes(_tree(encoded).root_hash)


def prove_receipt(encoded: Sequence[bytes], position: int) -> ReceiptProof:
    """Proof for one of all receipts of a block.

    Raises
    ------
    InclusionError
        If the block has no receipt there.
    """
    if not 0 <= position < len(encoded):
        raise InclusionError(f"the block has no receipt {position}")
    return ReceiptProof(position=position, nodes=path_of(_tree(encoded), rlp.encode(position)))


def check_receipt_inclusion(root: bytes, proof: ReceiptProof) -> TransactionReceipt:
    """The receipt that stands at a position of the tree with this root.

    Raises
    ------
    MalformedProofError
        If a node or the receipt is malformed, or there are nodes that the path does not need.
    InclusionError
        If the nodes do not lead from the root to a receipt.
    """
    if not proof.nodes or not 0 <= proof.position < 1 << 32:
        raise MalformedProofError("a receipt proof has no nodes, or an impossible position")
    key = rlp.encode(proof.position)
    value = value_at(root, key, proof.nodes, f"receipt {proof.position}", limit=MAX_RECEIPT_BYTES)
    if not value:
        raise InclusionError(f"the block has no receipt {proof.position}")
    return _decode_receipt(value)


def _decode_receipt(data: bytes) -> TransactionReceipt:
    body = data[1:] if data[0] < 0x80 else data
    items = decode_rlp(body, "receipt", limit=MAX_RECEIPT_BYTES)
    if not isinstance(items, list) or len(items) != 4 or items[0] not in (b"", b"\x01"):
        raise MalformedProofError("a receipt has not the form of one")
    if not isinstance(items[3], list):
        raise MalformedProofError("a receipt has no list of logs")
    return TransactionReceipt(succeeded=items[0] == b"\x01", logs=tuple(_decode_log(log) for log in items[3]))


def _decode_log(log: Any) -> ProvenLog:
    well_formed = (
        isinstance(log, list)
        and len(log) == 3
        and isinstance(log[0], bytes)
        and len(log[0]) == 20
        and isinstance(log[1], list)
        and all(isinstance(topic, bytes) and len(topic) == 32 for topic in log[1])
        and isinstance(log[2], bytes)
    )
    if not well_formed:
        raise MalformedProofError("a log of a receipt has not the form of one")
    return ProvenLog("0x" + log[0].hex(), tuple(log[1]), log[2])


def _tree(encoded: Sequence[bytes]) -> HexaryTrie:
    tree = HexaryTrie({})
    for position, receipt in enumerate(encoded):
        tree[rlp.encode(position)] = receipt
    return tree


def _hex(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))


def _integer(value: str) -> bytes:
    number = int(value, 16)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
