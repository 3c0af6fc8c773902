"""BLS signatures as Avalanche's validators make them. The only place that knows the curve library.

Minimal-pubkey-size variant with proofs of possession (ciphersuite `BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_`).
Hostile input only ever makes an answer False.

Source: draft-irtf-cfrg-bls-signature-05, sections 2.5 to 2.9, 3.3 and 4.2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from py_arkworks_bls12381 import GT, G1Point, G2Point

_Point = TypeVar("_Point", G1Point, G2Point)

PUBLIC_KEY_BYTES = 48
SIGNATURE_BYTES = 96

_MESSAGE_TAG = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
_POSSESSION_TAG = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"


def is_public_key(key: bytes) -> bool:
    """Whether these bytes are a compressed point of the right group, not its identity."""
    return _public_key(key) is not None


def is_signed_by_all(keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
    """Whether the aggregate signature holds for one message under all keys; never for no keys.

    The sum of keys is meaningful only where each has shown a proof of possession: see `is_possessed`.
    """
    total = G1Point.identity()
    for key in keys:
        point = _public_key(key)
        if point is None:
            return False
        total += point
    return bool(keys) and _holds(total, message, signature, _MESSAGE_TAG)


def is_possessed(key: bytes, proof: bytes) -> bool:
    """Whether the proof shows that somebody holds the secret of this key, so that it was not chosen to cancel others."""
    point = _public_key(key)
    return point is not None and _holds(point, key, proof, _POSSESSION_TAG)


def is_signature(data: bytes) -> bool:
    """Whether these bytes are a point that a signature can be; says nothing about whose."""
    return _point(G2Point, data) is not None


def aggregate(signatures: Sequence[bytes]) -> bytes:
    """Sum of signatures that were each checked before."""
    total = G2Point.identity()
    for signature in signatures:
        total += G2Point.from_compressed_bytes(signature)
    return total.to_compressed_bytes()


def _holds(key: G1Point, message: bytes, signature: bytes, tag: bytes) -> bool:
    point = _point(G2Point, signature)
    if point is None or key == G1Point.identity():
        return False
    hashed = G2Point.hash_to_curve(message, tag)
    generator = G1Point()
    return GT.pairing_check([key, -generator], [hashed, point])


def _public_key(data: bytes) -> G1Point | None:
    """As `_point`; the identity, which anybody can sign for, is no key."""
    point = _point(G1Point, data)
    return None if point == G1Point.identity() else point


def _point(group: type[_Point], data: bytes) -> _Point | None:
    """The point, if these bytes are its only spelling and it is of the right group."""
    try:
        point = group.from_compressed_bytes(data)
    except ValueError:
        return None
    # The library reads some bytes that no encoder writes, such as zeros.
    return point if point.to_compressed_bytes() == data and point.is_in_subgroup() else None
