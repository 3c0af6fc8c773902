"""Contributions: vectors that members encrypt under the public key of somebody else's key domain, for `fedsum`.

Whoever may add a ciphertext of his choice to a sum that is opened can attack the key that opens it: (c0, c1 + k) adds
k s to the plaintext. So a contribution is encrypted with randomness expanded from one 32-byte seed, and the seed goes to
the custodian of the key domain, who could read the contribution anyway, and to nobody else. With it `check_contribution`
does the encryption again and accepts only blocks that it gives for some clipped update. It uses no secret key, so what
it answers tells nothing of one.

The public key is a sealed block of zeros: its c1 comes from a public seed, its c0 is -(c1 s) + t e.

Source: Brakerski, Gentry and Vaikuntanathan, ePrint 2011/277; randomness by seed: Fujisaki and Okamoto, CRYPTO 1999.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import ConfigurationError, ContributionRefusedError, FeatureRangeError
from usufruct.he import ntt, slots
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.parameters import Parameters
from usufruct.he.residues import Residues, signed_remainder
from usufruct.he.sampling import centred_binomial, ternary

RANDOMNESS_BYTES: Final = 32
MAX_ENTRIES: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What every contribution of one round keeps to, in quantised units."""

    n_entries: int

    max_abs: int
    """Bound on the magnitude of an entry."""

    max_l2: int
    """Bound on the 2-norm of the whole update."""

    def check(self, update: NDArray[np.int64]) -> None:
        """Raise FeatureRangeError if an update is longer, larger or of another shape."""
        if update.shape != (self.n_entries,):
            raise FeatureRangeError(f"an update of shape {update.shape}, expected ({self.n_entries},)")
        largest = max(int(update.max()), -int(update.min()))
        if largest > self.max_abs:
            raise FeatureRangeError(f"an entry of magnitude {largest}, at most {self.max_abs} is allowed")
        # Python integers add up what could pass 64 bits: so few squares at a time as cannot.
        length = ((1 << 63) - 1) // max(1, largest**2)
        parts = (update[first : first + length] for first in range(0, len(update), length))
        squared = sum(int(part @ part) for part in parts)
        if squared > self.max_l2**2:
            raise FeatureRangeError(f"a squared 2-norm of {squared}, at most {self.max_l2**2} is allowed")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Contribution:
    """An encrypted update, and what its encryption was made from."""

    blocks: tuple[bytes, ...]
    """Two-part containers, one for every N entries; for everybody."""

    randomness: bytes
    """32 bytes that decrypt `blocks` without a key: for the key domain's custodian, and nobody else."""


def clip_update(update: NDArray[np.floating[Any]], *, scale: int, clip: Clip) -> NDArray[np.int64]:
    """Quantise a real update so that it keeps to a clip: shortened to its 2-norm, cut to its largest entry.

    Parameters
    ----------
    update :
        Finite, shape (n_entries,), in natural units.
    scale :
        Integer units per 1.0; the same for all members of a round.

    Returns
    -------
    entries :
        Rounded towards zero, so that rounding makes nothing longer.

    Raises
    ------
    FeatureRangeError
        If an entry is not finite, or the update has another shape.
    """
    with np.errstate(over="ignore"):
        units = np.asarray(update, dtype=np.float64) * scale
    if units.shape != (clip.n_entries,) or not np.isfinite(units).all():
        raise FeatureRangeError(f"an update has {clip.n_entries} finite entries")
    largest = float(np.abs(units).max())
    # By parts of the largest entry, so that no square overflows.
    norm = largest * float(np.linalg.norm(units / largest)) if largest else 0.0
    if norm > clip.max_l2:
        # Less by more than the rounding of all these products.
        units *= clip.max_l2 / norm * (1 - 1e-9)
    return np.trunc(np.clip(units, -clip.max_abs, clip.max_abs)).astype(np.int64)


def encrypt_contribution(
    update: NDArray[np.signedinteger[Any]], public_key: bytes, clip: Clip
) -> Contribution:
    """Encrypt a clipped update.

    Parameters
    ----------
    update :
        Quantised, shape (n_entries,).
    public_key :
        A sealed block of zeros that the key domain's record vouches for.

    Raises
    ------
    FeatureRangeError
        If the update does not keep to the clip.
    ConfigurationError, ContainerError
        If this is no public key of the BGV scheme, or entries of this size do not fit it.
    """
    values = update.astype(np.int64)
    key = _parse_key(public_key, clip)
    clip.check(values)
    randomness = secrets.token_bytes(RANDOMNESS_BYTES)
    degree = key.parameters.poly_modulus_degree
    blocks = []
    for chunk, first in enumerate(range(0, clip.n_entries, degree)):
        entries = np.zeros(degree, dtype=np.int64)
        part = values[first : first + degree]
        entries[: part.size] = part
        c0, c1 = _zero(key, randomness, chunk)
        message = slots.transformed(slots.encode(entries, key.parameters), key.parameters)
        c0 = (c0 + message) % slots.moduli(key.parameters)
        blocks.append(_block(key, c0, c1))
    return Contribution(blocks=tuple(blocks), randomness=randomness)


def check_contribution(contribution: Contribution, public_key: bytes, clip: Clip) -> None:
    """Check that a contribution is an honest encryption of a clipped update; returns nothing if it is.

    Raises
    ------
    ContributionRefusedError
        If a block is not what its randomness gives, or the update does not keep to the clip.
    ContainerError, WrongKeyDomainError
        If a block is malformed, or of another key domain.
    ConfigurationError
        As for `encrypt_contribution`.
    """
    key = _parse_key(public_key, clip)
    parameters, degree = key.parameters, key.parameters.poly_modulus_degree
    n_blocks = -(-clip.n_entries // degree)
    if len(contribution.blocks) != n_blocks or len(contribution.randomness) != RANDOMNESS_BYTES:
        raise ContributionRefusedError(
            f"{len(contribution.blocks)} blocks and {len(contribution.randomness)} bytes of randomness,"
            f" expected {n_blocks} and {RANDOMNESS_BYTES}"
        )
    opened = []
    for chunk, block in enumerate(contribution.blocks):
        found = parse(block, key_id=key.key_id, parameters=parameters, forms=(Form.CIPHERTEXT,))
        c0, c1 = _zero(key, contribution.randomness, chunk)
        if not np.array_equal(found.c1, c1.reshape(-1)):
            raise ContributionRefusedError(f"c1 of block {chunk} is not what the randomness gives")
        q = slots.moduli(parameters)
        message = (found.c0.reshape(c0.shape) + q - c0) % q
        entries = _decode(message, parameters)
        if not np.array_equal(slots.transformed(slots.encode(entries, parameters), parameters), message):
            raise ContributionRefusedError(f"c0 of block {chunk} carries more than a plaintext")
        opened.append(entries)
    entries = np.concatenate(opened)
    if entries[clip.n_entries :].any():
        raise ContributionRefusedError("there is something after the last entry")
    try:
        clip.check(entries[: clip.n_entries])
    except FeatureRangeError as exc:
        raise ContributionRefusedError(f"the update is not clipped: {exc}") from exc


def _parse_key(public_key: bytes, clip: Clip) -> Ciphertext:
    key = parse(public_key, forms=(Form.SEEDED,))
    if key.parameters.scheme != "bgv":
        raise ConfigurationError("contributions are encrypted under bgv")
    if not 1 <= clip.n_entries <= MAX_ENTRIES or not 1 <= clip.max_abs <= key.parameters.value_limit:
        raise ConfigurationError(
            f"a round of {clip.n_entries} entries up to {clip.max_abs};"
            f" at most {MAX_ENTRIES} and {key.parameters.value_limit} fit"
        )
    return key


def _zero(key: Ciphertext, randomness: bytes, chunk: int) -> tuple[Residues, Residues]:
    """The encryption of zero that randomness gives for a chunk: c0 and c1, shape (primes, N) each."""
    parameters, degree = key.parameters, key.parameters.poly_modulus_degree
    source = _stream(key.key_id + (key.seed or b"") + randomness + chunk.to_bytes(4, "little"))
    q, t = slots.moduli(parameters), parameters.plain_modulus
    mask = slots.transformed(ternary(degree, source), parameters)
    parts = []
    for polynomial in (key.c0, key.c1):
        error = slots.transformed(t * centred_binomial(degree, source), parameters)
        parts.append((polynomial.reshape(error.shape) * mask % q + error) % q)
    return parts[0], parts[1]


def _stream(seed: bytes) -> Callable[[int], bytes]:
    """Bytes in place of the operating system's: call number i gives SHAKE256 over a tag, i and the seed."""
    calls = count()
    tag = b"usufruct/contribution/1\0"
    return lambda size: hashlib.shake_256(tag + next(calls).to_bytes(4, "little") + seed).digest(size)


def _decode(message: Residues, parameters: Parameters) -> NDArray[np.int64]:
    """Slots of a plaintext from its values by each prime."""
    t = parameters.plain_modulus
    rows: Sequence[Residues] = [
        ntt.inverse(values, prime) for values, prime in zip(message, parameters.primes, strict=True)
    ]
    found = ntt.forward(signed_remainder(np.stack(rows), parameters.primes, t), t).astype(np.int64)
    return np.where(found > parameters.value_limit, found - t, found)


def _block(key: Ciphertext, c0: Residues, c1: Residues) -> bytes:
    return encode(
        Ciphertext(
            form=Form.CIPHERTEXT,
            parameters=key.parameters,
            key_id=key.key_id,
            c0=c0.reshape(-1),
            c1=c1.reshape(-1),
        )
    )
