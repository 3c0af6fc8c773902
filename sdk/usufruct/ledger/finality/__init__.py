"""Finality that an outsider can check: from the pinned validators to a block, from the block to an event in it.

Start at `verify_finality`. `fetch` asks endpoints for proofs, `validators` follows changes of the set, `state` goes from a
block to what contracts held after it; the rest is pure: `proof` (the record), `warp` and `besu` (one verifier for each way of
signing), `header`, `receipts`, `tree`, `bls`.
"""

from usufruct.ledger.finality.fetch import fetch_finality, fetch_header
from usufruct.ledger.finality.header import BlockHeader, block_hash_of, check_header
from usufruct.ledger.finality.proof import FinalityProof, Signers
from usufruct.ledger.finality.receipts import (
    ProvenLog,
    ReceiptProof,
    TransactionReceipt,
    check_receipt_inclusion,
    encode_receipt,
    prove_receipt,
    receipts_root,
)
from usufruct.ledger.finality.validators import (
    ValidatorChange,
    ValidatorVersion,
    adopt,
    follow_validators,
    founding_version,
    prove_block,
    prove_final,
    trace_validators,
    vouching,
)
from usufruct.ledger.finality.verify import verify_finality

__all__ = [
    "BlockHeader",
    "FinalityProof",
    "ProvenLog",
    "ReceiptProof",
    "Signers",
    "TransactionReceipt",
    "ValidatorChange",
    "ValidatorVersion",
    "adopt",
    "block_hash_of",
    "check_header",
    "check_receipt_inclusion",
    "encode_receipt",
    "fetch_finality",
    "fetch_header",
    "follow_validators",
    "founding_version",
    "prove_block",
    "prove_final",
    "prove_receipt",
    "receipts_root",
    "trace_validators",
    "verify_finality",
    "vouching",
]
