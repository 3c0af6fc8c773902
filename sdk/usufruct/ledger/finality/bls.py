"""BLS signatures as Avalanche's validators make them. The only place that knows the curve library.

Minimal-pubkey-size variant with proofs of possession (ciphersuite `BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_`).

Source: draft-irtf-cfrg-bls-signature-05, sections 3.3 and 4.2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from eth_typing import BLSPubkey, BLSSignature
from py_ecc.bls import G2ProofOfPossession as Scheme

PUBLIC_KEY_BYTES = 48
SIGNATURE_BYTES = 96


def is_public_key(key: bytes) -> bool:
    """Whether these bytes are a compressed point of the right group, not its identity."""
    return len(key) == PUBLIC_KEY_BYTES and bool(Scheme.KeyValidate(BLSPubkey(key)))


def is_signed_by_all(keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
    """Whether the aggregate signature holds for one message under all keys; hostile input only makes it False.

    The sum of keys is meaningful only where each has shown a proof of possession: see `is_possessed`.
    """
    return bool(
        Scheme.FastAggregateVerify([BLSPubkey(key) for key in keys], message, BLSSignature(signature))
    )


def is_possessed(key: bytes, proof: bytes) -> bool:
    """Whether the proof shows that somebody holds the secret of this key, so that it was not chosen to cancel others."""
    return bool(Scheme.PopVerify(BLSPubkey(key), BLSSignature(proof)))


def is_signature(data: bytes) -> bool:
    """Whether these bytes are a point that a signature can be; says nothing about whose."""
    try:
        return len(data) == SIGNATURE_BYTES and bool(Scheme.Aggregate([BLSSignature(data)]))
    except ValueError:
        return False


def aggregate(signatures: Sequence[bytes]) -> bytes:
    """Sum of signatures that were each checked before."""
    return cast(bytes, Scheme.Aggregate([BLSSignature(signature) for signature in signatures]))
