"""The proof of what a contract's storage holds: from the state root of a trusted header to the end of a series of events.

Events prove that they happened; that none came after them only the contract's count of them does.

Sources: Yellow Paper, section 4.1 (accounts) and appendix D; EIP-1186 (`eth_getProof`); Solidity documentation, "Layout of
State Variables in Storage".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eth_utils.crypto import keccak

from usufruct.errors import InclusionError, MalformedProofError, VerificationError
from usufruct.ledger.compile import SeriesLayout, load_artifact
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.finality.strict_rlp import decode_rlp
from usufruct.ledger.finality.tree import value_at

MAX_NODE_BYTES = 1024
"""A branch has seventeen items of 33 bytes at most."""

_WORD = 32

Nodes = tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateProof:
    """What an endpoint handed over to show some of a contract's storage; believed only once it is checked."""

    account: Nodes
    slots: Mapping[int, Nodes]
    """By slot, the nodes from the storage's root; they may show that the slot holds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A contract as the state commits to it."""

    storage_root: bytes
    code_hash: bytes


def fetch_state(endpoint: Endpoint, address: str, slots: Sequence[int], number: int) -> StateProof:
    """A contract's storage with its proof, after a block, as the endpoint tells it.

    Raises
    ------
    LedgerError
        If the endpoint gives none, or not in the form of one.
    """
    answer = endpoint.call("eth_getProof", address, [f"0x{slot:064x}" for slot in slots], hex(number))
    with well_formed(endpoint.url):
        proofs = {int(entry["key"], 16): _nodes(entry["proof"]) for entry in answer["storageProof"]}
        return StateProof(
            account=_nodes(answer["accountProof"]), slots={slot: proofs[slot] for slot in slots}
        )


def check_account(state_root: bytes, address: str, nodes: Sequence[bytes]) -> Account:
    """The contract at an address under this state root.

    Raises
    ------
    MalformedProofError, InclusionError
        If the nodes do not show it, or show that there is nothing.
    """
    data = value_at(state_root, _place(bytes.fromhex(address[2:])), nodes, address, limit=MAX_NODE_BYTES)
    if not data:
        raise InclusionError(f"there is nothing at {address}")
    fields = decode_rlp(data, f"account {address}", limit=MAX_NODE_BYTES)
    if not isinstance(fields, list) or len(fields) < 4 or any(len(field) != _WORD for field in fields[2:4]):
        raise MalformedProofError(f"account {address} has not the form of one")
    return Account(storage_root=fields[2], code_hash=fields[3])


def check_slot(storage_root: bytes, slot: int, nodes: Sequence[bytes]) -> int:
    """What a slot of this storage holds; 0 where it was never written.

    Raises
    ------
    MalformedProofError, InclusionError
    """
    what = f"slot {slot:#x}"
    data = value_at(storage_root, _place(slot.to_bytes(_WORD, "big")), nodes, what, limit=MAX_NODE_BYTES)
    word = decode_rlp(data, what, limit=_WORD + 1) if data else b""
    if not isinstance(word, bytes) or len(word) > _WORD or word.startswith(b"\0"):
        raise MalformedProofError(f"{what} holds no word")
    return int.from_bytes(word, "big")


def series_slots(contract: str, key: bytes) -> tuple[int, int]:
    """The slots that hold the number of a series' events, and its head; `key` as in `usufruct.ledger.series.series_of`.

    Raises
    ------
    VerificationError
        If the contract keeps no series.
    """
    layout = _layout(contract)
    place = layout.slot.to_bytes(_WORD, "big")
    for at in range(0, len(key), _WORD):
        place = bytes(keccak(key[at : at + _WORD] + place))
    first = int.from_bytes(place, "big")
    return first + layout.length_slot, first + layout.head_slot


def series_end(contract: str, words: tuple[int, int]) -> tuple[int, bytes]:
    """Number of events and head of a series, from what its two slots hold."""
    layout = _layout(contract)
    length = words[0] >> (8 * layout.length_offset) & ((1 << (8 * layout.length_bytes)) - 1)
    return length, words[1].to_bytes(_WORD, "big")


def _layout(contract: str) -> SeriesLayout:
    layout = load_artifact(contract).series
    if layout is None:
        raise VerificationError(f"{contract} keeps no series of events")
    return layout


def _place(key: bytes) -> bytes:
    """The state's trees have keys by their hashes."""
    return bytes(keccak(key))


def _nodes(told: Sequence[str]) -> Nodes:
    return tuple(bytes.fromhex(node.removeprefix("0x")) for node in told)
