"""SEAL objects from checked fields, and back. Draws nothing, evaluates nothing, decrypts nothing."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi
from tenseal.sealapi import _sealapi_cpp

from usufruct.errors import ConfigurationError
from usufruct.he.ckks.container import Ciphertext, N, RelinearisationKey
from usufruct.he.ckks.parameters import CKKS_CUBIC
from usufruct.he.residues import Residues
from usufruct.he.seal_blob import load, seal_array, seal_blob

SCALE = float(1 << CKKS_CUBIC.scale_bits)


@lru_cache(maxsize=1)
def context() -> Any:
    """SEAL's context; raises ConfigurationError if SEAL does not find 128 bits of security in the parameters."""
    chosen = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    chosen.set_poly_modulus_degree(N)
    chosen.set_coeff_modulus([sealapi.Modulus(prime) for prime in CKKS_CUBIC.key_primes])
    made = sealapi.SEALContext(chosen, True, sealapi.SEC_LEVEL_TYPE.TC128)
    if not made.parameters_set():
        raise ConfigurationError(f"SEAL refuses the parameters: {made.parameters_error_message()}")
    return made


def parms_id(level: int) -> list[int]:
    """SEAL's name of a level."""
    data = context().first_context_data()
    for _ in range(CKKS_CUBIC.top_level - level):
        data = data.next_context_data()
    found: list[int] = data.parms_id()
    return found


def to_seal(ciphertext: Ciphertext) -> Any:
    """A SEAL ciphertext of scale 2^scale_bits."""
    target = sealapi.Ciphertext(context())
    load(
        target,
        _payload(np.stack([ciphertext.c0, ciphertext.c1]), parms_id(len(ciphertext.c0) - 1), SCALE),
        context(),
    )
    return target


def from_seal(ciphertext: Any, key_id: bytes) -> Ciphertext:
    """Fields of a SEAL ciphertext of two parts."""
    parts = _residues(ciphertext)
    return Ciphertext(key_id=key_id, c0=parts[0], c1=parts[1])


def constant(number: int, level: int, scale: float) -> Any:
    """The plaintext that holds one integer in every slot, as it stands: no encoder and no float is involved.

    Parameters
    ----------
    scale :
        What SEAL is told that the integer was scaled by.
    """
    primes = CKKS_CUBIC.primes[: level + 1]
    words = np.repeat(np.array([number % prime for prime in primes], dtype=np.uint64), N)
    return _plaintext(words, parms_id(level), scale)


def relinearisation_key_to_seal(key: RelinearisationKey) -> Any:
    """SEAL's evaluation keys, with this one in them."""
    pairs = b"".join(seal_blob(_payload(pair, context().key_parms_id(), 1.0)) for pair in key.digits)
    target = sealapi.RelinKeys()
    load(target, struct.pack("<4QQQ", *context().key_parms_id(), 1, len(key.digits)) + pairs, context())
    return target


def relinearisation_key_from_seal(keys: Any, key_id: bytes) -> RelinearisationKey:
    """Fields of SEAL's evaluation key."""
    # The binding hands out views: the owner of each stays named while it is read.
    found = []
    for public_key in keys.data(0):
        ciphertext = public_key.data()
        found.append(_residues(ciphertext))
    return RelinearisationKey(key_id=key_id, digits=np.stack(found))


def secret_key_to_seal(residues: Residues) -> Any:
    """A SEAL secret key from its values by every prime, shape (primes + 1, N)."""
    target = sealapi.SecretKey()
    payload = struct.pack("<4QQd", *context().key_parms_id(), residues.size, 1.0) + seal_array(
        residues.reshape(-1)
    )
    load(target, payload, context())
    return target


def transformed(coefficients: Any) -> Residues:
    """Values of a polynomial of small signed coefficients by every prime, in SEAL's order; shape (primes + 1, N)."""
    rows = []
    for prime in CKKS_CUBIC.key_primes:
        tables = _sealapi_cpp.util.NTTTables(N.bit_length() - 1, sealapi.Modulus(prime))
        values = _sealapi_cpp.util.ntt_negacyclic_harvey(np.mod(coefficients, prime).tolist(), tables)
        # The transform leaves values anywhere below twice the prime.
        rows.append(np.array(values, dtype=np.uint64) % np.uint64(prime))
    return np.stack(rows)


def _plaintext(words: Residues, level: list[int], scale: float) -> Any:
    target = sealapi.Plaintext()
    load(target, struct.pack("<4QQd", *level, words.size, scale) + seal_array(words), context())
    return target


def _payload(parts: Residues, level: list[int], scale: float) -> bytes:
    """SEAL's ciphertext: level, transformed or not, sizes, scale, correction factor, words; parts (size, primes, N)."""
    size, n_primes, degree = parts.shape
    return struct.pack("<4QBQQQdQ", *level, 1, size, degree, n_primes, scale, 1) + seal_array(
        parts.reshape(-1)
    )


def _residues(ciphertext: Any) -> Residues:
    shape = ciphertext.size(), ciphertext.coeff_modulus_size(), N
    words = ciphertext.dyn_array()
    return np.array([words.at(index) for index in range(int(np.prod(shape)))], dtype=np.uint64).reshape(shape)
