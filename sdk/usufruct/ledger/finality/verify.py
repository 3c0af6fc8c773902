"""Verifies a finality proof against pinned validators. Asks nobody."""

from __future__ import annotations

from collections.abc import Callable

from usufruct.ledger.finality import besu, warp
from usufruct.ledger.finality.proof import FinalityProof, Signers
from usufruct.ledger.network import FinalityPin
from usufruct.ledger.profile import ProofKind

_VERIFIERS: dict[ProofKind, Callable[[FinalityProof, FinalityPin, bytes], Signers]] = {
    "warp": warp.verify,
    "qbft": besu.verify,
}


def verify_finality(proof: FinalityProof, pin: FinalityPin, block_hash: bytes) -> Signers:
    """Verify that the pinned validators made this block final.

    Parameters
    ----------
    block_hash :
        The block in question; a good proof of another one does not do.

    Returns
    -------
    signers :
        Who signed, with their weight.

    Raises
    ------
    MalformedProofError
        If the proof is not encoded in the one way in which proofs are.
    ForeignProofError
        If it is of another chain or network, or names others than the pinned validators.
    OtherBlockProofError
        If it is of another block.
    TooFewSignersError
        If the signers weigh too little.
    ProofSignatureError
        If a signature does not hold, or one validator signed twice.
    """
    return _VERIFIERS[proof.kind](proof, pin, block_hash)
