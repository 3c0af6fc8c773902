"""The CKKS plug-in: proven errors, the same bytes everywhere, hostile blocks, and openings that tell nothing of the key.

Run this file as a program to print what the kernel makes of fixed blocks.
"""

import copy
import hashlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal.sealapi import _sealapi_cpp

from usufruct.errors import (
    ContainerError,
    FeatureRangeError,
    KernelBoundError,
    KernelParameterError,
    KeyStoreError,
    WorkerError,
    WrongKeyDomainError,
)
from usufruct.he.ckks import backend, container, flooding
from usufruct.he.ckks.container import Ciphertext, Form, RelinearisationKey
from usufruct.he.ckks.evaluate import CubicEvaluator
from usufruct.he.ckks.flooding import Flooding, flood, grid_of
from usufruct.he.ckks.isolated import CkksOpener, IsolatedEvaluator
from usufruct.he.ckks.kernel import KERNEL_ID, LOGISTIC, MAX_ABS, CubicScore, bounds_of, encode_model
from usufruct.he.ckks.owner import CkksSecret, generate_secret, open_slots, relinearisation_key, seal_columns
from usufruct.he.ckks.parameters import CKKS_CUBIC
from usufruct.he.parameters import MAX_COEFF_MODULUS_BITS
from usufruct.he.sampling import ERROR_BOUND
from usufruct.privacy import MAX_SCALE

N, SLOTS = CKKS_CUBIC.poly_modulus_degree, CKKS_CUBIC.slots
WEIGHTS = (0.5, -1.25, 0.3, 0.01)
SCORE = CubicScore(weights=WEIGHTS, bias=0.25, coefficients=LOGISTIC)
RANGE = 3.0
MODEL = encode_model(SCORE, RANGE)
BOUNDS = bounds_of(container.parse_model(MODEL), RANGE)
HEADER_BYTES = 77


def truth(score: CubicScore, rows: np.ndarray) -> np.ndarray:
    """The polynomial on plaintext rows, in numpy."""
    z = rows @ np.array(score.weights) + score.bias
    return np.polynomial.polynomial.polyval(z, score.coefficients)


class Held:
    """A secret, its evaluation key and a result, in a form that a report of hypothesis does not spell out."""

    def __init__(self, secret: CkksSecret, key: bytes, result: bytes) -> None:
        self.secret, self.key, self.result = secret, key, result


@pytest.fixture(scope="module")
def secret() -> CkksSecret:
    return generate_secret()


@pytest.fixture(scope="module")
def key(secret: CkksSecret) -> bytes:
    return relinearisation_key(secret)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(7).uniform(-RANGE, RANGE, (SLOTS, len(WEIGHTS)))


@pytest.fixture(scope="module")
def blocks(secret: CkksSecret, rows: np.ndarray) -> list[bytes]:
    return [block for _, _, block in seal_columns(rows, secret)]


@pytest.fixture(scope="module")
def result(secret: CkksSecret, key: bytes, blocks: list[bytes]) -> bytes:
    return CubicEvaluator(key, MODEL, secret.key_id).score(blocks)


@pytest.fixture(scope="module")
def held(secret: CkksSecret, key: bytes, result: bytes) -> Held:
    return Held(secret, key, result)


def decrypted(result: bytes, secret: CkksSecret) -> sealapi.Plaintext:
    """What no caller of the plug-in gets: SEAL's plaintext, noise and all."""
    plain = sealapi.Plaintext()
    ciphertext = container.parse_ciphertext(result, Form.RESULT, key_id=secret.key_id)
    sealapi.Decryptor(backend.context(), secret.seal_key()).decrypt(backend.to_seal(ciphertext), plain)
    return plain


def raw_values(result: bytes, secret: CkksSecret) -> np.ndarray:
    return np.array(sealapi.CKKSEncoder(backend.context()).decode_double(decrypted(result, secret)))


# Values and bounds.


def test_parameters_are_within_the_standard_and_seal_agrees() -> None:
    modulus = 1
    for prime in CKKS_CUBIC.key_primes:
        assert prime % (2 * N) == 1
        modulus *= prime
    assert modulus.bit_length() <= MAX_COEFF_MODULUS_BITS[N] and CKKS_CUBIC.scale_bits <= 40
    assert backend.context().parameters_set()


def test_results_are_those_of_numpy_within_the_proven_error(
    result: bytes, secret: CkksSecret, rows: np.ndarray
) -> None:
    errors = raw_values(result, secret) - truth(SCORE, rows)
    assert np.abs(errors).max() <= BOUNDS.error_bound < 1e-3
    assert np.abs(truth(SCORE, rows)).max() <= BOUNDS.value_bound
    # And that is no accident of a loose bound: the same rows under another bias are far outside it.
    other = CubicScore(weights=WEIGHTS, bias=0.26, coefficients=LOGISTIC)
    assert np.abs(raw_values(result, secret) - truth(other, rows)).max() > BOUNDS.error_bound


def sealed_with(column: np.ndarray, errors: np.ndarray, secret: CkksSecret, number: int = 0) -> bytes:
    """A block whose error is chosen: SEAL encodes, the encryption is the textbook one."""
    plain = sealapi.Plaintext()
    sealapi.CKKSEncoder(backend.context()).encode(column.tolist(), backend.SCALE, plain)
    words = plain.dyn_array()
    n_primes = len(CKKS_CUBIC.primes)
    message = np.array([words.at(i) for i in range(n_primes * N)], dtype=object).reshape(n_primes, N)
    primes = np.array(CKKS_CUBIC.primes, dtype=object)[:, None]
    c1 = np.stack(
        [np.random.default_rng([p, number]).integers(0, p, N, dtype=np.uint64) for p in CKKS_CUBIC.primes]
    )
    s, e = (backend.transformed(p)[:n_primes].astype(object) for p in (secret._coefficients, errors))
    c0 = ((message + e - c1.astype(object) * s) % primes).astype(np.uint64)
    return container.encode_ciphertext(Ciphertext(key_id=secret.key_id, c0=c0, c1=c1))


@lru_cache(maxsize=16)
def sealed_at_bound(sign: int, alternating: bool, secret: CkksSecret, number: int) -> bytes:
    errors = sign * ERROR_BOUND * np.where(np.arange(N) % 2, -1 if alternating else 1, 1)
    return sealed_with(np.full(SLOTS, 2.0 * sign), errors, secret, number)


@settings(max_examples=6, deadline=None)
@given(
    signs=st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4),
    coefficients=st.tuples(
        st.floats(-2, 2), st.floats(0.01, 2), st.floats(-2, 2), st.sampled_from([-1.0, 0.25, 1.0])
    ),
    alternating=st.booleans(),
)
def test_no_row_and_no_error_at_their_bounds_pass_the_proven_error(
    held: Held,
    signs: list[int],
    coefficients: tuple[float, float, float, float],
    alternating: bool,
) -> None:
    """Every value at its bound, every error at its largest and of one phase, signs chosen by the search."""
    score = CubicScore(weights=(0.25, -0.375, 0.125, 0.5), bias=0.25, coefficients=coefficients)
    block = encode_model(score, 2.0)
    bounds = bounds_of(container.parse_model(block), 2.0)
    made = [sealed_at_bound(sign, alternating, held.secret, number) for number, sign in enumerate(signs)]
    found = raw_values(CubicEvaluator(held.key, block, held.secret.key_id).score(made), held.secret)
    exact = truth(score, np.array([signs]) * 2.0)[0]
    assert abs(exact) <= bounds.value_bound
    assert np.abs(found - exact).max() <= bounds.error_bound


def test_errors_that_are_chosen_here_do_enter_the_result(secret: CkksSecret, key: bytes) -> None:
    """A positive control for the search: errors far larger than SEAL's break the bound, those at their largest do not."""
    evaluator, exact = CubicEvaluator(key, MODEL, secret.key_id), truth(SCORE, np.zeros((1, 4)))
    for size, within in ((ERROR_BOUND, True), (ERROR_BOUND << 26, False)):
        block = sealed_with(np.zeros(SLOTS), np.full(N, size, dtype=np.int64), secret)
        found = raw_values(evaluator.score([block] * len(WEIGHTS)), secret)
        assert (np.abs(found - exact).max() <= BOUNDS.error_bound) == within


def test_estimated_noise_is_above_what_is_measured_and_of_its_size(
    result: bytes, secret: CkksSecret, key: bytes, rows: np.ndarray
) -> None:
    """At random rows, and at the rows that the estimate is made for: all at the bound, with the weights' signs."""
    worst = np.tile(RANGE * np.sign(WEIGHTS), (SLOTS, 1))
    blocks = [block for _, _, block in seal_columns(worst, secret)]
    for found, values in ((result, rows), (CubicEvaluator(key, MODEL, secret.key_id).score(blocks), worst)):
        deviation = (raw_values(found, secret) - truth(SCORE, values)).std()
        assert deviation <= BOUNDS.noise_deviation <= 100 * deviation


def test_job_that_could_wrap_is_refused_with_the_bound_in_the_message() -> None:
    def admitted(size: float) -> None:
        score = CubicScore(weights=(size,), bias=0.0, coefficients=(0.0, 1.0, 0.0, 1.0))
        bounds_of(container.parse_model(encode_model(score, 1.0)), 1.0)

    # p0 / 4 is 128 at a scale of 2^40: z + z^3 passes it between 4.9 and 5.1.
    admitted(4.9)
    with pytest.raises(KernelBoundError, match="exceeds the limit"):
        admitted(5.1)
    with pytest.raises(KernelParameterError, match="56 bits"):
        admitted(1e6)


def test_models_are_exact_and_what_they_cannot_hold_is_refused() -> None:
    assert encode_model(SCORE, RANGE) == MODEL and len(MODEL) == HEADER_BYTES + 3 * 5 * 8
    parsed = container.parse_model(MODEL)
    assert container.encode_model_block(parsed) == MODEL
    # |z| is at most 6.43, so z is kept over 8.
    expected = [round(Fraction(w) / 8 * CKKS_CUBIC.primes[3]) for w in WEIGHTS]
    assert parsed.multipliers[0].tolist() == expected and parsed.biases[0] == round(0.25 / 8 * 2**40)
    for score, reason in (
        (CubicScore(weights=(float("nan"),), bias=0.0, coefficients=LOGISTIC), "finite"),
        (CubicScore(weights=(1.0,), bias=float("inf"), coefficients=LOGISTIC), "finite"),
        (CubicScore(weights=(), bias=0.0, coefficients=LOGISTIC), "weights"),
    ):
        with pytest.raises(KernelParameterError, match=reason):
            encode_model(score, RANGE)
    for weights, coefficients in (((0.0, 0.0), LOGISTIC), ((1.0,), (1.0, 1.0, 1.0, 0.0))):
        with pytest.raises(ContainerError, match="in the clear"):
            encode_model(CubicScore(weights=weights, bias=1.0, coefficients=coefficients), RANGE)
    for wrong in (0.0, MAX_ABS + 1.0, float("nan")):
        with pytest.raises(KernelParameterError, match="max_abs"):
            encode_model(SCORE, wrong)


def test_logistic_cubic_is_the_least_squares_one_on_minus_8_to_8() -> None:
    z = np.linspace(-8, 8, 20001)
    logistic = 1 / (1 + np.exp(-z))
    fitted = np.linalg.lstsq(np.stack([z, z**3], axis=1), logistic - 0.5, rcond=None)[0]
    assert np.allclose(fitted, [LOGISTIC[1], LOGISTIC[3]], rtol=1e-3)
    assert np.abs(np.polynomial.polynomial.polyval(z, LOGISTIC) - logistic).max() < 0.115


def test_zero_weights_are_skipped_and_only_finite_values_in_range_are_sealed(
    secret: CkksSecret, key: bytes, blocks: list[bytes], rows: np.ndarray
) -> None:
    score = CubicScore(weights=(0.5, 0.0, 0.0, 0.0), bias=0.0, coefficients=(0.0, 1.0, 1.0, 1.0))
    found = CubicEvaluator(key, encode_model(score, RANGE), secret.key_id).score(blocks)
    assert np.abs(raw_values(found, secret) - truth(score, rows)).max() < 1e-3
    for wrong in (
        np.array([[np.nan]]),
        np.array([[np.inf]]),
        np.array([[33.0]]),
        np.zeros((0, 2)),
        np.zeros(3),
    ):
        with pytest.raises(FeatureRangeError):
            seal_columns(wrong, secret)


# The same bytes wherever they are made.


def fixed_digest() -> str:
    """SHA-256 over the model and a result from fixed blocks: no message, no secret, the same in every process."""
    key_id = hashlib.sha256(b"ckks").digest()
    drawn = np.random.Generator(np.random.PCG64(11))

    def polynomials(primes: tuple[int, ...]) -> np.ndarray:
        return np.stack([drawn.integers(0, prime, N, dtype=np.uint64) for prime in primes])

    digits = np.stack(
        [np.stack([polynomials(CKKS_CUBIC.key_primes) for _ in range(2)]) for _ in CKKS_CUBIC.primes]
    )
    key = container.encode_relinearisation_key(RelinearisationKey(key_id=key_id, digits=digits))
    blocks = [
        container.encode_ciphertext(
            Ciphertext(key_id=key_id, c0=polynomials(CKKS_CUBIC.primes), c1=polynomials(CKKS_CUBIC.primes))
        )
        for _ in WEIGHTS
    ]
    model = encode_model(SCORE, RANGE)
    return hashlib.sha256(model + CubicEvaluator(key, model, key_id).score(blocks)).hexdigest()


def test_results_are_the_same_bytes_in_threads_processes_and_without_avx2_and_fma() -> None:
    with ThreadPoolExecutor(2) as pool:
        digests = {made.result() for made in [pool.submit(fixed_digest) for _ in range(2)]}
    for environment in (
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F"},
    ):
        digests.add(
            subprocess.run(
                [sys.executable, __file__],
                env=os.environ | environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        )
    assert digests == {fixed_digest()}


def test_blocks_come_back_from_their_bytes_and_the_record_has_its_id(
    secret: CkksSecret, key: bytes, blocks: list[bytes], result: bytes
) -> None:
    for block, form in ((blocks[0], Form.SEALED), (result, Form.RESULT)):
        assert (
            container.encode_ciphertext(container.parse_ciphertext(block, form, key_id=secret.key_id))
            == block
        )
    parsed = container.parse_relinearisation_key(key, key_id=secret.key_id)
    assert container.encode_relinearisation_key(parsed) == key
    assert [len(block) for block in (blocks[0], result, key)] == [346_189, 100_429, 1_785_933]
    assert len(KERNEL_ID) == 32


# Hostile blocks.


def changed(block: bytes, at: int, value: bytes) -> bytes:
    return block[:at] + value + block[at + len(value) :]


FIELDS = [
    ("magic", 0),
    ("version", 4),
    ("scheme", 5),
    ("form", 6),
    ("level", 7),
    ("scale", 8),
    ("parameters_id", 9),
]


@pytest.mark.parametrize(("field", "at"), FIELDS)
def test_header_of_another_value_is_refused(
    field: str, at: int, secret: CkksSecret, key: bytes, blocks: list[bytes], result: bytes
) -> None:
    """Scale among them: it is an exponent that the form fixes, so neither a doubled nor an infinite one can be written."""
    for value in {0, 1, 2, 4, 39, 41, 80, 255} - {blocks[0][at], result[at], key[at], MODEL[at]}:
        wrong = bytes([value])
        readers: list[tuple[Callable[[bytes], object], bytes]] = [
            (lambda data: container.parse_ciphertext(data, Form.SEALED, key_id=secret.key_id), blocks[0]),
            (lambda data: container.parse_ciphertext(data, Form.RESULT, key_id=secret.key_id), result),
            (lambda data: container.parse_relinearisation_key(data, key_id=secret.key_id), key),
            (container.parse_model, MODEL),
        ]
        for read, block in readers:
            with pytest.raises(ContainerError) as refused:
                read(changed(block, at, wrong))
            assert refused.value.field == field


def test_blocks_of_other_keys_lengths_residues_and_forms_are_refused(
    secret: CkksSecret, key: bytes, blocks: list[bytes], result: bytes
) -> None:
    block, prime = blocks[0], CKKS_CUBIC.primes[0]
    n_bytes = N * 49 // 8
    first = int.from_bytes(block[HEADER_BYTES : HEADER_BYTES + 7], "little") >> 49 << 49
    c1_at = HEADER_BYTES + (len(block) - HEADER_BYTES) // 2
    crafted = {
        "length": [
            block[:-1],
            block + b"\0",
            block[:HEADER_BYTES],
            b"",
            changed(block, 73, b"\xff\xff\xff\xff"),
        ],
        "form": [result, key, MODEL],
        "residues": [
            changed(block, HEADER_BYTES, (first | prime).to_bytes(7, "little")),
            changed(block, HEADER_BYTES, (first | (1 << 49) - 1).to_bytes(7, "little")),
        ],
        "transparent": [
            changed(block, c1_at, bytes(len(block) - c1_at)),
            changed(block, c1_at, bytes(n_bytes)),
        ],
    }
    for field, wrong in crafted.items():
        for data in wrong:
            with pytest.raises(ContainerError) as refused:
                container.parse_ciphertext(data, Form.SEALED, key_id=secret.key_id)
            assert refused.value.field == field
    # One below the prime is a residue.
    container.parse_ciphertext(
        changed(block, HEADER_BYTES, (first | prime - 1).to_bytes(7, "little")),
        Form.SEALED,
        key_id=secret.key_id,
    )
    with pytest.raises(WrongKeyDomainError):
        container.parse_ciphertext(block, Form.SEALED, key_id=bytes(32))
    with pytest.raises(WrongKeyDomainError):
        container.parse_model(changed(MODEL, 41, b"\1"))
    digit = len(key) - (len(key) - HEADER_BYTES) // 8
    for wrong_key, field in (
        (changed(key, digit, bytes(len(key) - digit)), "transparent"),
        (key[:-8], "length"),
    ):
        with pytest.raises(ContainerError) as refused:
            container.parse_relinearisation_key(wrong_key, key_id=secret.key_id)
        assert refused.value.field == field


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ((1 << 56, 1), "residues"),
        ((-(1 << 56), 1), "residues"),
        ((5, -(1 << 63)), "residues"),
        ((5, 0), "transparent"),
    ],
)
def test_model_of_numbers_too_wide_or_of_zeros_is_refused(row: tuple[int, int], field: str) -> None:
    payload = np.array([row, (1, 1), (1, 1)], dtype="<i8").tobytes()
    block = MODEL[:73] + struct.pack("<I", len(payload)) + payload
    with pytest.raises(ContainerError) as refused:
        container.parse_model(block)
    assert refused.value.field == field
    with pytest.raises(ContainerError):
        container.parse_model(MODEL[:73] + struct.pack("<I", 24) + bytes(24))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 2**31), flip=st.integers(1, 255), cut=st.none() | st.integers(0, 2**31))
def test_mutated_blocks_are_refused_or_canonical(held: Held, at: int, flip: int, cut: int | None) -> None:
    result, secret = held.result, held.secret
    data = changed(result, at % len(result), bytes([result[at % len(result)] ^ flip]))
    data = data if cut is None else data[: cut % len(data)]
    try:
        parsed = container.parse_ciphertext(data, Form.RESULT, key_id=secret.key_id)
    except (ContainerError, WrongKeyDomainError):
        return
    assert container.encode_ciphertext(parsed) == data


def test_evaluation_and_opening_refuse_what_the_parser_refuses_before_seal_sees_it(
    secret: CkksSecret, key: bytes, blocks: list[bytes], result: bytes
) -> None:
    evaluator = CubicEvaluator(key, MODEL, secret.key_id)
    for wrong in (blocks[:-1], [*blocks, blocks[0]]):
        with pytest.raises(KernelParameterError, match="4 blocks"):
            evaluator.score(wrong)
    foreign = next(seal_columns(np.ones((1, 1)), generate_secret()))[2]
    with pytest.raises(WrongKeyDomainError):
        evaluator.score([foreign, *blocks[1:]])
    with pytest.raises(ContainerError):
        evaluator.score([result, *blocks[1:]])
    with pytest.raises(WrongKeyDomainError):
        CubicEvaluator(key, MODEL, bytes(32))
    for slots in ([], [0, 0], [-1], [SLOTS]):
        with pytest.raises(KeyStoreError, match="slots"):
            open_slots(result, secret, slots, model=MODEL, max_abs=RANGE, flooding=Flooding())
    with pytest.raises(ContainerError):
        open_slots(blocks[0], secret, [0], model=MODEL, max_abs=RANGE, flooding=Flooding())


# Opening.


def recovered(values: np.ndarray, result: bytes, secret: CkksSecret) -> np.ndarray:
    """The secret that an exact opening would imply, from the public ciphertext and opened complex slots alone."""
    prime = CKKS_CUBIC.primes[0]
    ciphertext = container.parse_ciphertext(result, Form.RESULT, key_id=secret.key_id)
    plain = sealapi.Plaintext()
    sealapi.CKKSEncoder(backend.context()).encode(values.tolist(), backend.parms_id(0), backend.SCALE, plain)
    words = plain.dyn_array()
    opened = [words.at(i) for i in range(N)]
    s = [
        (m - c0) * pow(c1, -1, prime) % prime
        for m, c0, c1 in zip(opened, ciphertext.c0[0].tolist(), ciphertext.c1[0].tolist(), strict=True)
    ]
    tables = _sealapi_cpp.util.NTTTables(N.bit_length() - 1, sealapi.Modulus(prime))
    found = np.array(_sealapi_cpp.util.inverse_ntt_negacyclic_harvey(s, tables), dtype=np.int64) % prime
    return np.where(found > prime // 2, found - prime, found)


def test_one_raw_decoding_gives_back_the_secret_and_an_opening_does_not(
    result: bytes, secret: CkksSecret
) -> None:
    """The attack of Li and Micciancio (EUROCRYPT 2021), on its own key; it is even given the imaginary parts, which no
    opening has."""
    raw = np.array(sealapi.CKKSEncoder(backend.context()).decode_complex(decrypted(result, secret)))
    assert np.array_equal(recovered(raw, result, secret), secret._coefficients)
    opened = open_slots(
        result, secret, range(SLOTS), model=MODEL, max_abs=RANGE, flooding=Flooding(openings=1)
    )
    found = recovered(np.array(opened) + 1j * raw.imag, result, secret)
    assert (np.abs(found) > 1).mean() > 0.99
    assert np.array_equal(found, secret._coefficients) is False


def test_openings_hold_flooding_noise_of_the_stated_size_on_a_grid_and_nothing_else(
    result: bytes, secret: CkksSecret
) -> None:
    chosen = Flooding(openings=16)
    first, second = (
        np.array(open_slots(result, secret, range(SLOTS), model=MODEL, max_abs=RANGE, flooding=chosen))
        for _ in range(2)
    )
    sigma = chosen.sigma(BOUNDS.noise_deviation, SLOTS)
    noise = first - raw_values(result, secret)
    # 4,096 draws: the deviation of a sample's deviation is 1.1%.
    assert 0.93 < noise.std() / sigma < 1.07 and abs(noise.mean()) < 0.1 * sigma
    assert not np.array_equal(first, second)
    grid = grid_of(sigma / 4)
    assert np.array_equal(first / grid, np.round(first / grid)) and sigma / 8 < grid <= sigma / 4
    assert len(open_slots(result, secret, [4, 9], model=MODEL, max_abs=RANGE, flooding=chosen)) == 2


def test_sigma_is_that_of_the_published_formula_and_weaker_flooding_is_refused() -> None:
    norm = 1e-8 * (np.sqrt(100) + flooding.TAIL) + np.sqrt(100) * grid_of(1e-8)
    assert Flooding(openings=1000, security_bits=30).sigma(1e-8, 100) == pytest.approx(
        np.sqrt(12 * 1000) * 2**15 * norm
    )
    assert 0.5e-8 < grid_of(1e-8) <= 1e-8
    for wrong in ({"security_bits": 29}, {"openings": 0}, {"openings": 1.5}, {"security_bits": 129}):
        with pytest.raises(KeyStoreError):
            Flooding(**wrong)
    for value in (float("nan"), float("inf"), 1e30):
        with pytest.raises(KeyStoreError, match="no score"):
            flood([value], 1.0, 1e-8)


def test_noise_that_64_bits_do_not_hold_is_refused_and_never_cut(result: bytes, secret: CkksSecret) -> None:
    """Cut, it was the same for every opening: at 2^70 steps of the grid nothing but zeros."""
    for sigma in (float(MAX_SCALE), 2.0**70, float("inf")):
        with pytest.raises(KeyStoreError, match="64 bits"):
            flood([1.0, -2.0], sigma, 1.0)
    assert 0 < np.std(flood([0.0] * 100, MAX_SCALE / 2, 1.0)) / MAX_SCALE < 1
    with pytest.raises(KeyStoreError, match="64 bits"):
        open_slots(result, secret, [0], model=MODEL, max_abs=RANGE, flooding=Flooding(security_bits=128))


def test_secret_comes_back_from_its_bytes_and_is_neither_shown_nor_copied(secret: CkksSecret) -> None:
    data = secret.to_bytes()
    assert CkksSecret.from_bytes(data).key_id == secret.key_id
    for wrong in (data[:-1], b"X" + data[1:], data[:-1] + b"\xff", b""):
        with pytest.raises(KeyStoreError):
            CkksSecret.from_bytes(wrong)
    assert repr(secret) == f"CkksSecret(key_id={secret.key_id.hex()})"
    for leave in (copy.copy, copy.deepcopy, lambda held: held.__reduce__()):
        with pytest.raises(TypeError):
            leave(secret)


# Worker processes.


@pytest.fixture
def evaluator(secret: CkksSecret, key: bytes) -> Iterator[IsolatedEvaluator]:
    with IsolatedEvaluator(key, MODEL, secret.key_id) as evaluator:
        yield evaluator


def test_worker_gives_the_same_bytes_keeps_refusals_and_goes_on(
    evaluator: IsolatedEvaluator, blocks: list[bytes], result: bytes
) -> None:
    assert evaluator.score(blocks) == result
    pid = evaluator.pid
    with pytest.raises(ContainerError) as refused:
        evaluator.score([blocks[0][:-1], *blocks[1:]])
    assert refused.value.field == "length"
    foreign = next(seal_columns(np.ones((1, 1)), generate_secret()))[2]
    with pytest.raises(WrongKeyDomainError):
        evaluator.score([foreign, *blocks[1:]])
    with pytest.raises(KernelParameterError, match="4 blocks"):
        evaluator.score(blocks[1:])
    assert evaluator.score(blocks) == result and evaluator.pid == pid
    assert pid is not None
    assert "Max address space         536870912" in Path(f"/proc/{pid}/limits").read_text()


def test_worker_that_is_killed_or_out_of_memory_fails_that_chunk_alone(
    evaluator: IsolatedEvaluator, secret: CkksSecret, key: bytes, blocks: list[bytes], result: bytes
) -> None:
    evaluator.score(blocks)
    assert evaluator.pid is not None
    os.kill(evaluator.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="scores CKKS blocks was ended by signal 9"):
        evaluator.score(blocks)
    assert evaluator.score(blocks) == result
    with (
        IsolatedEvaluator(key, MODEL, secret.key_id, memory_bytes=32 << 20) as small,
        pytest.raises(WorkerError, match="scores CKKS blocks"),
    ):
        small.score(blocks)


def test_opener_counts_what_it_opens_and_stops_where_its_flooding_ends(
    result: bytes, secret: CkksSecret
) -> None:
    with CkksOpener(secret.to_bytes(), Flooding(openings=3), opened=1) as opener:
        assert len(opener.open_slots(result, [0, 5], model=MODEL, max_abs=RANGE)) == 2
        with pytest.raises(ContainerError):
            opener.open_slots(result[:-1], [0], model=MODEL, max_abs=RANGE)
        assert opener.opened == 3
        with pytest.raises(KeyStoreError, match="opened 3 times"):
            opener.open_slots(result, [0], model=MODEL, max_abs=RANGE)
        assert opener.opened == 3
        process = Path(f"/proc/{opener.pid}")
        exposed = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    data = secret.to_bytes()
    assert not any(data[start : start + 16] in exposed for start in range(0, len(data), 16))
    for wrong in (-1, 1.0):
        with pytest.raises(KeyStoreError):
            CkksOpener(data, Flooding(), opened=wrong)  # type: ignore[arg-type]


def test_plug_in_is_off_and_its_callers_load_no_seal() -> None:
    code = (
        "import sys, usufruct_node.app\n"
        "assert not any(name.startswith('usufruct.he.ckks') for name in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = (
        "import sys; sys.modules['tenseal'] = None; import usufruct.he.ckks.isolated, usufruct.he.ckks.kernel"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    print(fixed_digest())
