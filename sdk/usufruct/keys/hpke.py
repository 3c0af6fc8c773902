"""Envelopes to one recipient: HPKE base mode with X25519, HKDF-SHA256 and AES-256-GCM.

The caller binds an envelope to its context (job, result, recipient) through `info`. Base mode does not
authenticate the sender: whoever needs that signs the envelope. Keeps no keys.

Source: RFC 9180, through `cryptography.hazmat.primitives.hpke`.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from usufruct.errors import EnvelopeError

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

OVERHEAD_BYTES: Final = 48
"""An envelope is this much longer than its plaintext: encapsulated key and tag."""


def generate_hpke_key() -> bytes:
    """Draw a private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def hpke_public(private_key: bytes) -> bytes:
    """Public key of a private key, 32 bytes."""
    return _private(private_key).public_key().public_bytes_raw()


def seal_to(public_key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Encrypt to the holder of a key.

    Parameters
    ----------
    public_key :
        32 bytes, X25519.
    plaintext :
        Any length.
    info :
        Context that the recipient has to name to open the envelope.

    Raises
    ------
    EnvelopeError
        If the public key is not a usable point.
    """
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info=info)
    except ValueError as exc:
        raise EnvelopeError(f"unusable recipient key {public_key.hex()}") from exc


def open_from(private_key: bytes, sealed: bytes, info: bytes) -> bytes:
    """Decrypt an envelope.

    Raises
    ------
    EnvelopeError
        If it was made for another key or context, or altered.
    """
    try:
        return _SUITE.decrypt(sealed, _private(private_key), info=info)
    except (InvalidTag, ValueError) as exc:
        raise EnvelopeError(
            "the envelope does not open: other recipient, other context, or altered bytes",
            hint="check that the envelope belongs to this job and to this organisation's key",
        ) from exc


def _private(private_key: bytes) -> X25519PrivateKey:
    try:
        return X25519PrivateKey.from_private_bytes(private_key)
    except ValueError as exc:
        raise EnvelopeError("an X25519 private key has 32 bytes") from exc
