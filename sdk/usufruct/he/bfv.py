"""BFV keys, encryption and opening: what the owner of a key domain does, and nobody else.

TenSEAL's SEAL samples the secret keys and decrypts. Encryption is the textbook symmetric one, written here
because a block's c1 has to come from a public seed of our own derivation: c0 = round(q m / t) + e - c1 s,
with SEAL's rounding, SEAL's error distribution and exact arithmetic, so that SEAL decrypts it. SEAL's
loader sees only blobs that are rebuilt from fields which `container.parse` has checked. Row i of a block
is coefficient i of the plaintext polynomial. Noise budgets are never computed: their value leaks about the
key on hostile input.

Source: Fan and Vercauteren, ePrint 2012/144.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi
from numpy.typing import NDArray
from tenseal.sealapi import _sealapi_cpp

from usufruct.errors import ConfigurationError, KeyStoreError
from usufruct.he import packed
from usufruct.he.container import SEED_BYTES, Form, encode_seeded, parse
from usufruct.he.parameters import BFV_LINEAR, Parameters, check_scheme, check_values
from usufruct.he.reading import GROUP_BLOCKS, expand_seeds
from usufruct.he.residues import Residues, Spectrum, negacyclic_multiply, scale_up, spectrum_of
from usufruct.he.sampling import centred_binomial
from usufruct.he.seal_blob import load, seal_array
from usufruct.he.secret import SALT_BYTES
from usufruct.he.secret import SecretKey as SecretKey
from usufruct.he.secret import key_id_of as key_id_of

_COMPILED_BLOCKS = 16_384
"""Blocks from which sealing a matrix is worth the seconds that compiling takes."""


def generate_secret_key(parameters: Parameters = BFV_LINEAR) -> SecretKey:
    """Draw a ternary secret with SEAL's key generator and a salt from the operating system."""
    context = _context(parameters)
    degree = parameters.poly_modulus_degree
    # The binding hands out views: each owner stays named while its view is read.
    generator = sealapi.KeyGenerator(context)
    key = generator.secret_key()
    plain = key.data()
    words = plain.dyn_array()
    transformed = [words.at(index) for index in range(degree)]
    context_data = context.key_context_data()
    tables = context_data.small_ntt_tables()
    residues = _sealapi_cpp.util.inverse_ntt_negacyclic_harvey(transformed, tables)
    # The transforms leave residues anywhere below 2q.
    signed = np.array(residues, dtype=np.int64) % parameters.coeff_modulus
    signed[signed == parameters.coeff_modulus - 1] = -1
    return SecretKey(parameters, signed, secrets.token_bytes(SALT_BYTES))


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
        Of the key domain; N = 4096 rows fit one block.

    Yields
    ------
    chunk, feature, block :
        In the order of chunks, within a chunk of features; `block` is a container in the seeded form.

    Raises
    ------
    FeatureRangeError
        If a value does not fit the plaintext modulus; before the first block.
    """
    check_scheme(secret.parameters, "bfv")
    check_values(values, secret.parameters)
    return _encrypt_columns(values, secret)


def _encrypt_columns(
    values: NDArray[np.signedinteger[Any]], secret: SecretKey
) -> Iterator[tuple[int, int, bytes]]:
    parameters, degree = secret.parameters, secret.parameters.poly_modulus_degree
    n_rows, n_features = values.shape
    n_chunks = -(-n_rows // degree)
    compiled = n_chunks * n_features >= _COMPILED_BLOCKS
    for chunk in range(n_chunks):
        rows = values[chunk * degree : (chunk + 1) * degree]
        for first in range(0, n_features, GROUP_BLOCKS):
            width = min(GROUP_BLOCKS, n_features - first)
            columns = np.zeros((width, degree), dtype=np.int64)
            columns[:, : rows.shape[0]] = rows[:, first : first + width].T
            seeds = [secrets.token_bytes(SEED_BYTES) for _ in range(width)]
            expanded = expand_seeds(seeds, parameters, secret.key_id, compiled=compiled)
            for index, (message, seed, c1) in enumerate(zip(columns, seeds, expanded, strict=True)):
                c0 = _masked(message, c1, secret)
                block = encode_seeded(
                    c0, seed, parameters, secret.key_id, packer=packed.pack if compiled else None
                )
                yield chunk, first + index, block


def _masked(message: NDArray[np.int64], c1: Residues, secret: SecretKey) -> Residues:
    """c0 = round(q m / t) + e - c1 s with a fresh error; shape (N,)."""
    parameters = secret.parameters
    q = np.uint64(parameters.coeff_modulus)
    total = scale_up(message, parameters.coeff_modulus, parameters.plain_modulus)
    total += q - negacyclic_multiply(c1, _spectrum(secret), parameters.coeff_modulus)
    total += (centred_binomial(message.size) + parameters.coeff_modulus).astype(np.uint64)
    # Three summands below 2^55 each.
    c0: Residues = total - total // q * q
    return c0


def _spectrum(secret: SecretKey) -> Spectrum:
    if secret._spectrum is None:
        secret._spectrum = spectrum_of(secret._coefficients)
    return secret._spectrum


def open_coefficients(block: bytes, secret: SecretKey, coefficients: Sequence[int]) -> list[int]:
    """Decrypt a block and return only the named coefficients.

    Call it only for blocks that the ledger calls verified: decrypting anything else answers questions
    about the secret key.

    Parameters
    ----------
    block :
        A container of any form.
    secret :
        Of the key domain that the block names.
    coefficients :
        Which to open, in [0, N); only 0 exists in the extracted form.

    Returns
    -------
    values :
        One per coefficient asked for, in (-t/2, t/2).

    Raises
    ------
    ContainerError, WrongKeyDomainError
        If the block is malformed or of another key domain.
    KeyStoreError
        If a coefficient lies outside what the form can open.
    """
    ciphertext = parse(block, key_id=secret.key_id)
    if ciphertext.parameters != secret.parameters:
        raise KeyStoreError("the block's parameters are not those of the key")
    degree = secret.parameters.poly_modulus_degree
    openable = 1 if ciphertext.form is Form.EXTRACTED else degree
    for index in coefficients:
        if not 0 <= index < openable:
            raise KeyStoreError(
                f"coefficient {index} cannot be opened from this block, only the first {openable}"
            )
    c0 = np.zeros(degree, dtype=np.uint64)
    c0[: ciphertext.c0.size] = ciphertext.c0
    plain = _decrypt(c0, ciphertext.c1, secret)
    modulus = secret.parameters.plain_modulus
    # SEAL trims a plaintext after its last non-zero coefficient.
    length = plain.coeff_count()
    opened = (plain.data(index) if index < length else 0 for index in coefficients)
    return [value - modulus if value > secret.parameters.value_limit else value for value in opened]


def _decrypt(c0: Residues, c1: Residues, secret: SecretKey) -> Any:
    """Let SEAL decrypt two polynomials; returns its plaintext."""
    context = _context(secret.parameters)
    if secret._decryptor is None:
        context_data = context.key_context_data()
        tables = context_data.small_ntt_tables()
        residues = np.mod(secret._coefficients, secret.parameters.coeff_modulus).tolist()
        transformed = np.array(_sealapi_cpp.util.ntt_negacyclic_harvey(residues, tables), dtype=np.uint64)
        transformed %= np.uint64(secret.parameters.coeff_modulus)
        payload = (
            struct.pack("<4Q", *context.key_parms_id())
            + struct.pack("<Qd", transformed.size, 1.0)
            + seal_array(transformed)
        )
        key = sealapi.SecretKey()
        load(key, payload, context)
        secret._decryptor = sealapi.Decryptor(context, key)
    payload = (
        struct.pack("<4Q", *context.first_parms_id())
        + struct.pack("<BQQQdQ", 0, 2, c0.size, 1, 1.0, 1)
        + seal_array(np.concatenate([c0, c1]))
    )
    ciphertext, plain = sealapi.Ciphertext(context), sealapi.Plaintext()
    load(ciphertext, payload, context)
    secret._decryptor.decrypt(ciphertext, plain)
    return plain


@lru_cache(maxsize=4)
def _context(parameters: Parameters) -> Any:
    check_scheme(parameters, "bfv")
    chosen = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(parameters.poly_modulus_degree)
    chosen.set_coeff_modulus([sealapi.Modulus(parameters.coeff_modulus)])
    chosen.set_plain_modulus(parameters.plain_modulus)
    context = sealapi.SEALContext(chosen, False, sealapi.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ConfigurationError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context
