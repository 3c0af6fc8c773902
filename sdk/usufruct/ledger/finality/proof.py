"""The record of a finality proof, whatever engine made it. Plain data; verifies nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from usufruct.errors import MalformedProofError
from usufruct.ledger.profile import ProofKind

MAX_PAYLOAD_BYTES = 64 * 1024
"""More than 256 committed seals and a header need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalityProof:
    """What an endpoint handed over to show that a block is final; nothing in it is believed before it is verified."""

    kind: ProofKind
    chain: bytes
    """32 bytes: Avalanche's blockchain id; on Besu the genesis hash."""
    block_hash: bytes
    payload: bytes
    """`warp`: the signed message as the engine encodes it. `qbft`: the RLP of the header with its committed seals."""

    def to_record(self) -> dict[str, Any]:
        """Text and bytes only, for any encoding that has both (DAG-CBOR has)."""
        return {
            "kind": self.kind,
            "chain": self.chain,
            "block_hash": self.block_hash,
            "payload": self.payload,
        }

    @classmethod
    def from_record(cls, record: object) -> FinalityProof:
        """Take a record apart that somebody else made.

        Raises
        ------
        MalformedProofError
        """
        if not isinstance(record, dict) or record.keys() != {"kind", "chain", "block_hash", "payload"}:
            raise MalformedProofError("a finality proof has the fields kind, chain, block_hash and payload")
        if record["kind"] not in get_args(ProofKind):
            raise MalformedProofError(f"no finality proof is of kind {record['kind']!r}")
        for name in ("chain", "block_hash"):
            if not isinstance(record[name], bytes) or len(record[name]) != 32:
                raise MalformedProofError(f"{name} of a finality proof is no word of 32 bytes")
        payload = record["payload"]
        if not isinstance(payload, bytes) or not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
            raise MalformedProofError("the payload of a finality proof is absent or too long")
        return cls(**record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """Whose signatures a verified proof carries."""

    keys: tuple[str, ...]
    """As in the pin, in its order."""
    weight: int
    total_weight: int
