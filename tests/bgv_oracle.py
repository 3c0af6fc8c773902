"""SEAL's BGV for our parameters, as the oracle of tests and the rival of benchmarks.

SEAL keeps the last prime of several for key switching. The context here has one more prime than our parameters, so that
the level of ciphertexts has exactly ours; it is not a parameter set anybody encrypts under, and SEAL is told not to
judge it.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi

from usufruct.he.parameters import Parameters
from usufruct.he.seal_blob import load, seal_array
from usufruct.he.secret import SecretKey
from usufruct.he.slots import transformed

_BGV = 3
"""SEAL's number for the scheme, which the binding's enumeration lacks."""


@lru_cache(maxsize=4)
def with_special_prime(parameters: Parameters) -> Parameters:
    """Our parameters and the largest prime of 30 bits that is 1 modulo 2N."""
    step = 2 * parameters.poly_modulus_degree
    candidate = (1 << 30) + 1 - step
    while any(pow(base, candidate - 1, candidate) != 1 for base in (2, 3, 5, 7, 11)):
        candidate -= step
    return replace(parameters, primes=(*parameters.primes, candidate))


@lru_cache(maxsize=4)
def context_of(parameters: Parameters) -> Any:
    """SEAL's context, whose first data level has our primes."""
    chosen = sealapi.EncryptionParameters(_BGV)
    chosen.set_poly_modulus_degree(parameters.poly_modulus_degree)
    primes = with_special_prime(parameters).primes
    chosen.set_coeff_modulus([sealapi.Modulus(prime) for prime in primes])
    chosen.set_plain_modulus(parameters.plain_modulus)
    context = sealapi.SEALContext(chosen, True, sealapi.SEC_LEVEL_TYPE.NONE)
    assert context.parameters_set(), context.parameters_error_message()
    return context


def to_seal(parts: list[np.ndarray], parameters: Parameters) -> Any:
    """SEAL's ciphertext of flat polynomials of values, prime after prime."""
    context = context_of(parameters)
    head = struct.pack(
        "<4QBQQQdQ",
        *context.first_parms_id(),
        1,
        len(parts),
        parameters.poly_modulus_degree,
        len(parameters.primes),
        1.0,
        1,
    )
    target = sealapi.Ciphertext(context)
    load(target, head + seal_array(np.concatenate(parts)), context)
    return target


def from_seal(ciphertext: Any, parameters: Parameters) -> list[np.ndarray]:
    """The flat polynomials of SEAL's ciphertext."""
    words = ciphertext.dyn_array()
    count = ciphertext.size() * parameters.residues
    flat = np.array([words.at(index) for index in range(count)], dtype=np.uint64)
    return list(flat.reshape(-1, parameters.residues))


def seal_key(secret: SecretKey) -> Any:
    """SEAL's secret key of one of ours: its values by every prime of the context."""
    context = context_of(secret.parameters)
    words = transformed(secret._coefficients, with_special_prime(secret.parameters)).reshape(-1)
    key = sealapi.SecretKey()
    payload = struct.pack("<4QQd", *context.key_parms_id(), words.size, 1.0) + seal_array(words)
    load(key, payload, context)
    return key


def seal_opens(ciphertext: Any, secret: SecretKey) -> list[int]:
    """SEAL's plaintext polynomial, N coefficients below t."""
    plain = sealapi.Plaintext()
    sealapi.Decryptor(context_of(secret.parameters), seal_key(secret)).decrypt(ciphertext, plain)
    found = [plain.data(index) for index in range(plain.coeff_count())]
    return found + [0] * (secret.parameters.poly_modulus_degree - len(found))


def polynomial(coefficients: np.ndarray, parameters: Parameters) -> Any:
    """SEAL's plaintext of signed coefficients."""
    t = parameters.plain_modulus
    terms = [f"{int(c) % t:X}x^{i}" for i, c in reversed(list(enumerate(coefficients))) if c % t]
    return sealapi.Plaintext(" + ".join(terms))
