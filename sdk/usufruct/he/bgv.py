"""BGV keys, encryption and opening: what the owner of a key domain does, and nobody else.

A ciphertext (c0, c1) under the secret s satisfies c0 + c1 s = m + t e, with a product's c2 s^2 on the left as well.
Polynomials are kept as their values (`ntt`), so that a product of ciphertexts is pointwise; row i of a block is slot i,
the value of m at the i-th root of unity modulo t. Everything is exact integer arithmetic of our own, without SEAL,
which decrypts the same in the tests. No kernel switches the modulus, so the correction factor that SEAL keeps for
BGV is always 1.

Slots and not coefficients: a product acts on every slot alone, so whatever a query holds, the score of a permitted row
never depends on another row.

Source: Brakerski, Gentry and Vaikuntanathan, ePrint 2011/277; slots: Smart and Vercauteren, ePrint 2011/133.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KeyStoreError
from usufruct.he import ntt, slots
from usufruct.he.container import SEED_BYTES, Ciphertext, encode_seeded, expand_seed, parse
from usufruct.he.parameters import BGV_PAIRS, Parameters, check_scheme, check_values
from usufruct.he.residues import Residues, signed_remainder
from usufruct.he.sampling import centred_binomial, ternary
from usufruct.he.secret import SALT_BYTES, SecretKey


def generate_secret_key(parameters: Parameters = BGV_PAIRS) -> SecretKey:
    """Draw a ternary secret and a salt from the operating system."""
    check_scheme(parameters, "bgv")
    return SecretKey(parameters, ternary(parameters.poly_modulus_degree), secrets.token_bytes(SALT_BYTES))


def encrypt_columns(
    values: NDArray[np.signedinteger[Any]], secret: SecretKey
) -> Iterator[tuple[int, int, bytes]]:
    """Encrypt a matrix column by column, one block per chunk of N rows, lazily.

    Every block gets a fresh seed and a fresh error from the operating system. Rows beyond the last are
    zero.

    Parameters
    ----------
    values :
        Signed integers, shape (n_rows, n_features), magnitude below t / 2.
    secret :
        Of the key domain.

    Yields
    ------
    chunk, feature, block :
        In the order of chunks, within a chunk of features; `block` is a container in the seeded form.

    Raises
    ------
    FeatureRangeError
        If a value does not fit the plaintext modulus; before the first block.
    """
    check_scheme(secret.parameters, "bgv")
    check_values(values, secret.parameters)
    return _encrypt_columns(values, secret)


def encrypt_queries(
    queries: NDArray[np.signedinteger[Any]], secret: SecretKey
) -> Iterator[tuple[int, int, bytes]]:
    """Encrypt queries, every value into all slots of a block of its own, for `blind-similarity`.

    Parameters
    ----------
    queries :
        Signed integers, shape (m, n_features), magnitude below t / 2.
    secret :
        Of the gallery's key domain.

    Yields
    ------
    query, feature, block :
        In the order of queries; `block` is a container in the seeded form.

    Raises
    ------
    FeatureRangeError
        If a value does not fit the plaintext modulus; before the first block.
    """
    check_scheme(secret.parameters, "bgv")
    check_values(queries, secret.parameters)
    degree = secret.parameters.poly_modulus_degree
    return (
        # The same value in every slot is a constant polynomial.
        (query, feature, _encrypt(np.eye(1, degree, dtype=np.int64)[0] * int(value), secret))
        for query, row in enumerate(queries)
        for feature, value in enumerate(row)
    )


def public_key_of(secret: SecretKey) -> bytes:
    """A public key of the domain, to encrypt contributions under: a sealed block of zeros, fresh at every call."""
    check_scheme(secret.parameters, "bgv")
    return _encrypt(np.zeros(secret.parameters.poly_modulus_degree, dtype=np.int64), secret)


def _encrypt_columns(
    values: NDArray[np.signedinteger[Any]], secret: SecretKey
) -> Iterator[tuple[int, int, bytes]]:
    degree = secret.parameters.poly_modulus_degree
    n_rows, n_features = values.shape
    for chunk, start in enumerate(range(0, n_rows, degree)):
        rows = values[start : start + degree]
        for feature in range(n_features):
            column = np.zeros(degree, dtype=np.int64)
            column[: rows.shape[0]] = rows[:, feature]
            yield chunk, feature, _encrypt(slots.encode(column, secret.parameters), secret)


def _encrypt(message: NDArray[np.int64], secret: SecretKey) -> bytes:
    parameters = secret.parameters
    seed = secrets.token_bytes(SEED_BYTES)
    c1 = _by_prime(expand_seed(seed, parameters, secret.key_id), parameters)
    noisy = slots.transformed(message + parameters.plain_modulus * centred_binomial(message.size), parameters)
    masked = slots.reduced(c1 * _powers(secret)[0], parameters)
    c0 = slots.reduced(noisy + slots.moduli(parameters) - masked, parameters)
    return encode_seeded(c0.reshape(-1), seed, parameters, secret.key_id)


def open_values(block: bytes, secret: SecretKey, indices: Sequence[int]) -> list[int]:
    """Decrypt a block and return only the named slots, or coefficient 0 of an extracted block.

    Call it only for blocks that the ledger calls verified: decrypting anything else answers questions
    about the secret key.

    Parameters
    ----------
    block :
        A container of any form.
    secret :
        Of the key domain that the block names.
    indices :
        Which slots to open, in [0, N); of the extracted forms, only 0 exists.

    Returns
    -------
    values :
        One per index asked for, in (-t/2, t/2).

    Raises
    ------
    ContainerError, WrongKeyDomainError
        If the block is malformed or of another key domain.
    KeyStoreError
        If an index lies outside what the form can open.
    """
    ciphertext = parse(block, key_id=secret.key_id)
    parameters = secret.parameters
    if ciphertext.parameters != parameters:
        raise KeyStoreError("the block's parameters are not those of the key")
    openable = 1 if ciphertext.form.extracted else parameters.poly_modulus_degree
    for index in indices:
        if not 0 <= index < openable:
            raise KeyStoreError(f"slot {index} cannot be opened from this block, only the first {openable}")
    t = parameters.plain_modulus
    if ciphertext.form.extracted:
        values = signed_remainder(_first_coefficient(ciphertext, secret), parameters.primes, t)
    else:
        phase = _masked(ciphertext, secret) + _by_prime(ciphertext.c0, parameters)
        coefficients = [
            ntt.inverse(values % np.uint64(prime), prime)
            for values, prime in zip(phase, parameters.primes, strict=True)
        ]
        values = ntt.forward(signed_remainder(np.stack(coefficients), parameters.primes, t), t)
    opened = (int(values[index]) for index in indices)
    return [value - t if value > parameters.value_limit else value for value in opened]


def _masked(ciphertext: Ciphertext, secret: SecretKey) -> Residues:
    """c1 s, and c2 s^2 where there is one; shape (primes, N), below the primes."""
    parameters = secret.parameters
    q = slots.moduli(parameters)
    total = _by_prime(ciphertext.c1, parameters) * _powers(secret)[0] % q
    if ciphertext.c2 is not None:
        total = (total + _by_prime(ciphertext.c2, parameters) * _powers(secret)[1] % q) % q
    return total


def _first_coefficient(ciphertext: Ciphertext, secret: SecretKey) -> Residues:
    """Coefficient 0 of the phase, by each prime; shape (primes, 1)."""
    rows = zip(ciphertext.c0.tolist(), _masked(ciphertext, secret), secret.parameters.primes, strict=True)
    found = [(c0 + ntt.constant_term(values, prime)) % prime for c0, values, prime in rows]
    return np.array(found, dtype=np.uint64)[:, None]


def _powers(secret: SecretKey) -> list[Residues]:
    """Values of s and of s^2, by each prime."""
    if secret._powers is None:
        s = slots.transformed(secret._coefficients, secret.parameters)
        secret._powers = [s, s * s % slots.moduli(secret.parameters)]
    return secret._powers


def _by_prime(polynomial: Residues, parameters: Parameters) -> Residues:
    return polynomial.reshape(len(parameters.primes), parameters.poly_modulus_degree)
