"""Canonical bytes of what a CKKS job reads and makes: ciphertexts, evaluation keys and pre-encoded models.

One value has one byte string and one byte string one value. Parsing is strict and touches no homomorphic library.
No floating-point number is in any of them: scales are exponents of two, fixed by the form. Layout in
`docs/engine.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import ContainerError, WrongKeyDomainError
from usufruct.he.ckks.parameters import CKKS_CUBIC, SCHEME_CODE
from usufruct.he.container import pack, unpack
from usufruct.he.residues import Residues

MAGIC: Final = b"UFCK"
VERSION: Final = 1
MAX_FEATURES: Final = 4096

MAX_MULTIPLIER_BITS: Final = 56
"""Width of the magnitude of a pre-encoded number."""

N: Final = CKKS_CUBIC.poly_modulus_degree
NO_KEY: Final = bytes(32)
"""Key id of a model, which belongs to no key domain."""

_HEADER = struct.Struct("<4sBBBBB32s32sI")
_MULTIPLIER = np.dtype("<i8")


class Form(IntEnum):
    """What a container carries."""

    SEALED = 1
    """A fresh ciphertext, on the top level."""

    RESULT = 2
    """A ciphertext on level 0, with one prime left."""

    RELINEARISATION_KEY = 3
    """What takes a product of two ciphertexts back to two parts; one pair of polynomials for each prime."""

    MODEL = 4
    """Pre-encoded plaintexts: the integers that SEAL multiplies and adds."""


_PLACES: Final = MappingProxyType(
    {
        Form.SEALED: (CKKS_CUBIC.top_level, CKKS_CUBIC.scale_bits),
        Form.RESULT: (0, CKKS_CUBIC.scale_bits),
        Form.RELINEARISATION_KEY: (CKKS_CUBIC.top_level, 0),
        Form.MODEL: (CKKS_CUBIC.top_level, 0),
    }
)
"""Level and scale bits that the header of a form has to state."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ciphertext:
    """c0 and c1, values of polynomials in SEAL's order; SEALED or RESULT by their number of primes."""

    key_id: bytes
    c0: Residues
    """shape (primes, N)."""

    c1: Residues
    """shape (primes, N)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelinearisationKey:
    """SEAL's key for the square of the secret, as values in SEAL's order."""

    key_id: bytes
    digits: Residues
    """shape (primes, 2, primes + 1, N)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """Three linear maps, pre-encoded. `kernel.encode_model` makes it, `kernel` says what the rows mean."""

    biases: NDArray[np.int64]
    """shape (3,)."""

    multipliers: NDArray[np.int64]
    """shape (3, n_features); no row is all zero."""


def encode_ciphertext(ciphertext: Ciphertext) -> bytes:
    """Write a ciphertext; raises ContainerError if `parse_ciphertext` would refuse it."""
    n_primes = ciphertext.c0.shape[0]
    forms = {len(CKKS_CUBIC.primes): Form.SEALED, 1: Form.RESULT}
    if n_primes not in forms or not ciphertext.c0.shape == ciphertext.c1.shape == (n_primes, N):
        raise ContainerError("polynomials that are not those of a CKKS ciphertext", field="length")
    pair = np.stack([ciphertext.c0, ciphertext.c1])
    _check_pair(pair, CKKS_CUBIC.primes[:n_primes])
    return _with_header(_pack_pair(pair, CKKS_CUBIC.primes[:n_primes]), forms[n_primes], ciphertext.key_id)


def parse_ciphertext(data: bytes, form: Form, *, key_id: bytes) -> Ciphertext:
    """Read a ciphertext from hostile bytes.

    Parameters
    ----------
    form :
        SEALED or RESULT.
    key_id :
        The key domain that it has to belong to.

    Raises
    ------
    ContainerError
        `field` is one of `magic`, `version`, `scheme`, `form`, `level`, `scale`, `parameters_id`, `length`,
        `residues` and `transparent`.
    WrongKeyDomainError
        If it names another key domain.
    """
    payload = _payload(data, form, key_id)
    pair = _unpack_pair(payload, CKKS_CUBIC.primes[: _PLACES[form][0] + 1])
    return Ciphertext(key_id=key_id, c0=pair[0], c1=pair[1])


def encode_relinearisation_key(key: RelinearisationKey) -> bytes:
    """Write an evaluation key; raises ContainerError if `parse_relinearisation_key` would refuse it."""
    primes = CKKS_CUBIC.key_primes
    if key.digits.shape != (len(CKKS_CUBIC.primes), 2, len(primes), N):
        raise ContainerError("polynomials that are not those of an evaluation key", field="length")
    for pair in key.digits:
        _check_pair(pair, primes)
    payload = b"".join(_pack_pair(pair, primes) for pair in key.digits)
    return _with_header(payload, Form.RELINEARISATION_KEY, key.key_id)


def parse_relinearisation_key(data: bytes, *, key_id: bytes) -> RelinearisationKey:
    """Read an evaluation key from hostile bytes; errors as `parse_ciphertext`."""
    primes, payload = CKKS_CUBIC.key_primes, _payload(data, Form.RELINEARISATION_KEY, key_id)
    size = _pair_size(primes)
    pairs = [
        _unpack_pair(payload[at : at + size], primes) for at in range(0, len(CKKS_CUBIC.primes) * size, size)
    ]
    return RelinearisationKey(key_id=key_id, digits=np.stack(pairs))


def encode_model_block(model: Model) -> bytes:
    """Write a model; raises ContainerError if `parse_model` would refuse it."""
    rows = np.concatenate([model.biases[:, None], model.multipliers], axis=1)
    _check_model(rows)
    return _with_header(rows.astype(_MULTIPLIER).tobytes(), Form.MODEL, NO_KEY)


def parse_model(data: bytes) -> Model:
    """Read a model from hostile bytes.

    Raises
    ------
    ContainerError
        As `parse_ciphertext`; `residues` for a number that is too wide, `transparent` for a map of zeros, whose value
        would not be encrypted.
    """
    payload = _payload(data, Form.MODEL, NO_KEY)
    rows = np.frombuffer(payload, dtype=_MULTIPLIER).reshape(3, -1).astype(np.int64)
    _check_model(rows)
    return Model(biases=rows[:, 0].copy(), multipliers=rows[:, 1:].copy())


def _check_model(rows: NDArray[np.int64]) -> None:
    if rows.shape[0] != 3 or not 2 <= rows.shape[1] <= 1 + MAX_FEATURES:
        raise ContainerError(f"a model has three maps of 1 to {MAX_FEATURES} features", field="length")
    limit = np.int64(1 << MAX_MULTIPLIER_BITS)
    if (rows <= -limit).any() or (rows >= limit).any():
        raise ContainerError(f"a number of more than {MAX_MULTIPLIER_BITS} bits", field="residues")
    if not rows[:, 1:].any(axis=1).all():
        raise ContainerError(
            "a map is zero for every feature, so its value would be in the clear", field="transparent"
        )


def _with_header(payload: bytes, form: Form, key_id: bytes) -> bytes:
    if len(key_id) != 32:
        raise ContainerError("a key id has 32 bytes", field="key_id")
    place = _PLACES[form]
    parameters_id = CKKS_CUBIC.parameters_id
    return (
        _HEADER.pack(MAGIC, VERSION, SCHEME_CODE, form, *place, parameters_id, key_id, len(payload)) + payload
    )


def _payload(data: bytes, expected: Form, key_id: bytes) -> bytes:
    """Check everything before the payload, and how long that is."""
    if len(data) < _HEADER.size:
        raise ContainerError(f"{len(data)} bytes are too short for a container", field="length")
    magic, version, scheme, form, level, scale_bits, parameters_id, found_key, length = _HEADER.unpack_from(
        data
    )
    for field, found, wanted in (
        ("magic", magic, MAGIC),
        ("version", version, VERSION),
        ("scheme", scheme, SCHEME_CODE),
        ("form", form, expected),
        ("level", level, _PLACES[expected][0]),
        ("scale", scale_bits, _PLACES[expected][1]),
        ("parameters_id", parameters_id, CKKS_CUBIC.parameters_id),
    ):
        if found != wanted:
            raise ContainerError(f"{field} is {found!r}, not {wanted!r}", field=field)
    n_bytes = len(data) - _HEADER.size
    if length != n_bytes or not _is_size(expected, n_bytes):
        raise ContainerError(f"a payload of {n_bytes} bytes, stated {length}", field="length")
    if found_key != key_id:
        raise WrongKeyDomainError(f"block of key domain {found_key.hex()[:16]}, not {key_id.hex()[:16]}")
    return data[_HEADER.size :]


def _is_size(form: Form, n_bytes: int) -> bool:
    if form is Form.MODEL:
        numbers, rest = divmod(n_bytes, 3 * _MULTIPLIER.itemsize)
        return rest == 0 and 2 <= numbers <= 1 + MAX_FEATURES
    if form is Form.RELINEARISATION_KEY:
        return n_bytes == len(CKKS_CUBIC.primes) * _pair_size(CKKS_CUBIC.key_primes)
    return n_bytes == _pair_size(CKKS_CUBIC.primes[: _PLACES[form][0] + 1])


def _pair_size(primes: Sequence[int]) -> int:
    # N is a multiple of eight, so every prime takes whole bytes and no padding bit exists.
    return sum(2 * N * prime.bit_length() // 8 for prime in primes)


def _pack_pair(pair: Residues, primes: Sequence[int]) -> bytes:
    """Two polynomials, each as N residues by the first prime, then by the next, at each prime's width."""
    return b"".join(
        pack(residues, prime.bit_length())
        for part in pair
        for residues, prime in zip(part, primes, strict=True)
    )


def _unpack_pair(payload: bytes, primes: Sequence[int]) -> Residues:
    pair: Residues = np.empty((2, len(primes), N), dtype=np.uint64)
    at = 0
    for part in pair:
        for index, prime in enumerate(primes):
            size = N * prime.bit_length() // 8
            part[index] = unpack(payload[at : at + size], N, prime.bit_length())
            at += size
    _check_pair(pair, primes)
    return pair


def _check_pair(pair: Residues, primes: Sequence[int]) -> None:
    if (pair >= np.array(primes, dtype=np.uint64)[:, None]).any():
        raise ContainerError("a residue is not below its prime", field="residues")
    if not pair[1].any(axis=-1).all():
        raise ContainerError("c1 is zero, so the message would be in the clear", field="transparent")
