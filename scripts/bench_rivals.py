"""What the engine is measured beside: SEAL's evaluator and encryptor, a ciphertext per subject, memory, hashing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
from bench_case import threads

from usufruct.he.parameters import BFV_LINEAR

N, Q, T = BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.coeff_modulus, BFV_LINEAR.plain_modulus


def repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    """Do it several times."""

    def loop() -> None:
        for _ in range(times):
            call()

    return loop


def reader(arrays: list[np.ndarray]) -> Callable[[], object]:
    """Read every word once: compiled, one share per thread."""
    from numba import njit

    @njit(nogil=True)
    def read(words: np.ndarray) -> int:
        total = 0
        for index in range(words.size):
            total += words[index]
        return total

    shares = [part for array in arrays for part in np.array_split(array, threads())]
    pool = ThreadPoolExecutor(threads())
    return lambda: sum(pool.map(read, shares))


def hasher(blocks: list[bytes]) -> Callable[[], object]:
    """Hash blocks, shared among the threads."""
    pool = ThreadPoolExecutor(threads())
    shares = [blocks[first :: threads()] for first in range(threads())]
    return lambda: list(pool.map(lambda share: [sha256(block).digest() for block in share], shares))


def seal_context() -> object:
    """SEAL's context for our parameters."""
    import tenseal.sealapi as sealapi

    chosen = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(N)
    chosen.set_coeff_modulus([sealapi.Modulus(Q)])
    chosen.set_plain_modulus(T)
    return sealapi.SEALContext(chosen, False, sealapi.SEC_LEVEL_TYPE.TC128)


def seal_products(weights: list[int], chunks: int) -> Callable[[], object]:
    """One output for every chunk over resident ciphertexts, with SEAL's evaluator.

    All chunks are in memory, as ours are: one chunk alone would fit a cache that a bundle does not.
    """
    import tenseal.sealapi as sealapi

    context = seal_context()
    secret = sealapi.KeyGenerator(context).secret_key()
    encryptor, evaluator = sealapi.Encryptor(context, secret), sealapi.Evaluator(context)
    plain = sealapi.Plaintext("1x^7 + 3")

    def encrypted() -> object:
        made = sealapi.Ciphertext(context)
        encryptor.encrypt_symmetric(plain, made)
        return made

    rows = [[encrypted() for _ in weights] for _ in range(chunks)]
    scalars = [sealapi.Plaintext(f"{max(1, abs(weight)):X}") for weight in weights]

    def loop() -> None:
        for columns in rows:
            total, term = sealapi.Ciphertext(context), sealapi.Ciphertext(context)
            evaluator.multiply_plain(columns[0], scalars[0], total)
            for column, scalar, weight in zip(columns[1:], scalars[1:], weights[1:], strict=True):
                evaluator.multiply_plain(column, scalar, term)
                (evaluator.add_inplace if weight > 0 else evaluator.sub_inplace)(total, term)

    return loop


def seal_encryption(blocks: int) -> Callable[[], object]:
    """SEAL's own encoding and symmetric encryption of `blocks` full columns."""
    import tenseal.sealapi as sealapi

    context = seal_context()
    secret = sealapi.KeyGenerator(context).secret_key()
    encryptor, encoder = sealapi.Encryptor(context, secret), sealapi.BatchEncoder(context)
    values = np.random.default_rng(5).integers(-600, 601, N).tolist()

    def loop() -> None:
        for _ in range(blocks):
            plain, encrypted = sealapi.Plaintext(), sealapi.Ciphertext(context)
            encoder.encode(values, plain)
            encryptor.encrypt_symmetric(plain, encrypted)

    return loop


def naive(weights: np.ndarray) -> Callable[[], object]:
    """One subject, one output: a CKKS vector and its product with plain weights."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = 2**40
    context.generate_galois_keys()
    row = tenseal.ckks_vector(context, np.random.default_rng(6).random(weights.size).tolist())
    plain = weights.tolist()
    return lambda: row.dot(plain)
