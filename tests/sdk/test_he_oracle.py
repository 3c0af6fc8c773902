"""SEAL as the oracle: it decrypts what we seal, and its evaluator gives the bytes that our kernels give."""

import struct
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as sealapi

from usufruct.he import bfv
from usufruct.he.bfv import SecretKey, encrypt_columns, generate_secret_key, open_coefficients
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.kernels import (
    DISTANCE,
    IDENTIFY,
    LINEAR,
    SUM,
    VERIFY,
    BundleShape,
    DistanceParameters,
    IdentifyParameters,
    LinearParameters,
    SumParameters,
    VerifyParameters,
    run,
)
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.residues import combine, negacyclic_multiply, scale_up
from usufruct.he.sampling import ERROR_BOUND, centred_binomial
from usufruct.he.seal_blob import load, seal_array

Q, T, N = BFV_LINEAR.coeff_modulus, BFV_LINEAR.plain_modulus, BFV_LINEAR.poly_modulus_degree
N_ROWS, N_FEATURES = 200, 9
CONTEXT = bfv._context(BFV_LINEAR)
EVALUATOR = sealapi.Evaluator(CONTEXT)


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return generate_secret_key()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(3).integers(-60, 61, (N_ROWS, N_FEATURES))


@pytest.fixture(scope="module")
def blocks(secret: SecretKey, values: np.ndarray) -> dict[tuple[int, int], bytes]:
    return {(chunk, feature): block for chunk, feature, block in encrypt_columns(values, secret)}


def to_seal(c0: np.ndarray, c1: np.ndarray) -> Any:
    payload = struct.pack("<4QBQQQdQ", *CONTEXT.first_parms_id(), 0, 2, N, 1, 1.0, 1)
    target = sealapi.Ciphertext(CONTEXT)
    load(target, payload + seal_array(np.concatenate([c0, c1])), CONTEXT)
    return target


def from_seal(ciphertext: Any) -> tuple[np.ndarray, np.ndarray]:
    words = ciphertext.dyn_array()
    both = np.array([words.at(i) for i in range(2 * N)], dtype=np.uint64)
    return both[:N], both[N:]


def polynomial(coefficients: np.ndarray) -> Any:
    """SEAL's plaintext of signed coefficients."""
    terms = [f"{int(c) % T:X}x^{i}" for i, c in reversed(list(enumerate(coefficients))) if c]
    return sealapi.Plaintext(" + ".join(terms))


def weighted_sum(weights: list[int], blocks: dict[tuple[int, int], bytes]) -> Any:
    """SEAL's evaluator, one scalar at a time: |w| first, then add or subtract."""
    total = None
    for feature, weight in enumerate(weights):
        if weight == 0:
            continue
        found = parse(blocks[0, feature])
        term = sealapi.Ciphertext(CONTEXT)
        EVALUATOR.multiply_plain(to_seal(found.c0, found.c1), sealapi.Plaintext(f"{abs(weight):X}"), term)
        if total is None:
            total = term
            if weight < 0:
                EVALUATOR.negate_inplace(total)
        else:
            (EVALUATOR.add_inplace if weight > 0 else EVALUATOR.sub_inplace)(total, term)
    return total


def seal_decryptor(secret: SecretKey) -> Any:
    open_coefficients(next(iter(encrypt_columns(np.array([[1]]), secret)))[2], secret, [0])
    return secret._decryptor


def test_seal_decrypts_what_we_seal(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes]
) -> None:
    for feature in range(N_FEATURES):
        found = parse(blocks[0, feature])
        plain = sealapi.Plaintext()
        seal_decryptor(secret).decrypt(to_seal(found.c0, found.c1), plain)
        opened = [plain.data(i) for i in range(plain.coeff_count())]
        expected = values[:, feature] % T
        assert opened == np.trim_zeros(expected, "b").tolist()


def test_a_sealed_block_has_the_noise_budget_of_seals_own_encryption(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes]
) -> None:
    found = parse(blocks[0, 0])
    decryptor = seal_decryptor(secret)
    assert decryptor.invariant_noise_budget(to_seal(found.c0, found.c1)) in (28, 29, 30)


def test_what_seal_encrypts_is_opened_by_us(secret: SecretKey) -> None:
    """SEAL encrypts under the same secret, loaded from our keystore form."""
    restored = SecretKey.from_bytes(secret.to_bytes())
    context_data = CONTEXT.key_context_data()
    residues = np.mod(restored._coefficients, Q).tolist()
    transformed = bfv._sealapi_cpp.util.ntt_negacyclic_harvey(residues, context_data.small_ntt_tables())
    key = sealapi.SecretKey()
    words = np.array(transformed, dtype=np.uint64) % np.uint64(Q)
    load(key, struct.pack("<4QQd", *CONTEXT.key_parms_id(), N, 1.0) + seal_array(words), CONTEXT)
    message = np.random.default_rng(5).integers(-500_000, 500_000, N)
    encrypted = sealapi.Ciphertext(CONTEXT)
    sealapi.Encryptor(CONTEXT, key).encrypt_symmetric(polynomial(message), encrypted)
    c0, c1 = from_seal(encrypted)
    block = encode(
        Ciphertext(form=Form.CIPHERTEXT, parameters=BFV_LINEAR, key_id=secret.key_id, c0=c0, c1=c1)
    )
    assert open_coefficients(block, secret, range(N)) == message.tolist()


def test_opening_by_seal_agrees_with_the_definition_of_decryption(secret: SecretKey) -> None:
    message = np.random.default_rng(6).integers(-T // 2 + 1, T // 2, (N, 1))
    block = next(encrypt_columns(message, secret))[2]
    found = parse(block)
    phase = (found.c0 + negacyclic_multiply(found.c1, secret._coefficients, Q)) % np.uint64(Q)
    by_hand = [(int(x) * T + Q // 2) // Q % T for x in phase]
    by_hand = [x - T if x > T // 2 else x for x in by_hand]
    assert open_coefficients(block, secret, range(N)) == by_hand == message[:, 0].tolist()


def test_plaintext_scaling_is_seals(secret: SecretKey, blocks: dict[tuple[int, int], bytes]) -> None:
    found = parse(blocks[0, 0])
    message = np.random.default_rng(9).integers(-T // 2 + 1, T // 2, N)
    added = to_seal(found.c0, found.c1)
    EVALUATOR.add_plain_inplace(added, polynomial(message))
    c0, c1 = from_seal(added)
    assert np.array_equal((found.c0 + scale_up(message, Q, T)) % np.uint64(Q), c0)
    assert np.array_equal(found.c1, c1)


@pytest.mark.parametrize(
    "weights",
    [
        [3, -7, 0, 250, -299, 1, 0, -1, 41],
        [-1, 0, 0, 0, 0, 0, 0, 0, 0],
        [300] * N_FEATURES,
    ],
)
def test_linear_kernel_gives_the_bytes_of_seals_evaluator(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes], weights: list[int]
) -> None:
    bias = -321
    shape = shape_of(secret)
    model = LinearParameters(output="rows", weights=(tuple(weights),), bias=(bias,))
    ((index, block),) = run(LINEAR, model, shape, lambda c, f: blocks[c, f], np.ones(N_ROWS, dtype=bool))
    expected = weighted_sum(weights, blocks)
    EVALUATOR.add_plain_inplace(expected, polynomial(np.full(N_ROWS, bias)))
    c0, c1 = from_seal(expected)
    oracle = Ciphertext(form=Form.CIPHERTEXT, parameters=BFV_LINEAR, key_id=secret.key_id, c0=c0, c1=c1)
    assert (index, block) == (0, encode(oracle))
    budget = seal_decryptor(secret).invariant_noise_budget(expected)
    assert budget >= LINEAR.validate(model, shape).margin_bits
    assert open_coefficients(block, secret, range(N_ROWS)) == (values @ weights + bias).tolist()


def mask_polynomial(mask: np.ndarray) -> np.ndarray:
    """sum_i mask_i X^(-i), written out from its definition."""
    coefficients = np.zeros(N, dtype=int)
    for i in np.flatnonzero(mask):
        coefficients[0 if i == 0 else N - i] += 1 if i == 0 else -1
    return coefficients


def test_sum_kernel_gives_the_bytes_of_seals_evaluator(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes]
) -> None:
    mask = np.random.default_rng(4).random(N_ROWS) < 0.7
    results = list(run(SUM, SumParameters(), shape_of(secret), lambda c, f: blocks[c, f], mask))
    for feature, block in results:
        found = parse(blocks[0, feature])
        product = sealapi.Ciphertext(CONTEXT)
        EVALUATOR.multiply_plain(to_seal(found.c0, found.c1), polynomial(mask_polynomial(mask)), product)
        c0, c1 = from_seal(product)
        oracle = Ciphertext(
            form=Form.EXTRACTED, parameters=BFV_LINEAR, key_id=secret.key_id, c0=c0[:1], c1=c1
        )
        assert block == encode(oracle)
        margin = SUM.validate(SumParameters(), shape_of(secret)).margin_bits
        assert seal_decryptor(secret).invariant_noise_budget(product) >= margin
    opened = [open_coefficients(block, secret, [0])[0] for _, block in results]
    assert opened == values[mask].sum(axis=0).tolist()


def test_linear_sum_gives_the_bytes_of_seals_evaluator(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes]
) -> None:
    mask = np.random.default_rng(10).random(N_ROWS) < 0.5
    weights, bias = [1, -2, 0, 3, 0, 1, 0, -1, 2], -5
    model = LinearParameters(output="sum", weights=(tuple(weights),), bias=(bias,))
    ((_, block),) = run(LINEAR, model, shape_of(secret), lambda c, f: blocks[c, f], mask)
    product = sealapi.Ciphertext(CONTEXT)
    EVALUATOR.multiply_plain(weighted_sum(weights, blocks), polynomial(mask_polynomial(mask)), product)
    EVALUATOR.add_plain_inplace(product, polynomial(np.array([bias * int(mask.sum())])))
    c0, c1 = from_seal(product)
    oracle = Ciphertext(form=Form.EXTRACTED, parameters=BFV_LINEAR, key_id=secret.key_id, c0=c0[:1], c1=c1)
    assert block == encode(oracle)
    assert open_coefficients(block, secret, [0]) == [int((values[mask] @ weights + bias).sum())]


def test_distance_and_identification_give_the_bytes_of_seals_evaluator(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes]
) -> None:
    centroid, norm = [4, -5, 0, 7, 0, 0, 0, 1, 0], ((2, 30), (8, 1))
    distance = DistanceParameters(centroids=(tuple(centroid),), norm=norm)
    query = [9, 0, -8, 0, 0, 1, 0, 0, 30]
    jobs = [
        (DISTANCE, distance, [-8, 10, 30, -14, 0, 0, 0, -2, 1], 4**2 + 5**2 + 7**2 + 1),
        (IDENTIFY, IdentifyParameters(queries=(tuple(query),)), query, 0),
    ]
    for kernel, parameters, weights, bias in jobs:
        everyone = np.ones(N_ROWS, dtype=bool)
        ((_, block),) = run(kernel, parameters, shape_of(secret), lambda c, f: blocks[c, f], everyone)
        expected = weighted_sum(weights, blocks)
        if bias:
            EVALUATOR.add_plain_inplace(expected, polynomial(np.full(N_ROWS, bias)))
        c0, c1 = from_seal(expected)
        oracle = Ciphertext(form=Form.CIPHERTEXT, parameters=BFV_LINEAR, key_id=secret.key_id, c0=c0, c1=c1)
        assert block == encode(oracle)
        margin = kernel.validate(parameters, shape_of(secret)).margin_bits
        assert seal_decryptor(secret).invariant_noise_budget(expected) >= margin
        assert open_coefficients(block, secret, range(N_ROWS)) == (values @ weights + bias).tolist()


@pytest.mark.parametrize("row", [0, 1, N_ROWS - 1])
def test_verification_gives_the_bytes_of_seals_evaluator(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes], row: int
) -> None:
    query = [3, -7, 0, 250, -299, 1, 0, -1, 41]
    parameters = VerifyParameters(queries=(tuple(query),), rows=(row,))
    everyone = np.ones(N_ROWS, dtype=bool)
    ((_, block),) = run(VERIFY, parameters, shape_of(secret), lambda c, f: blocks[c, f], everyone)
    product = weighted_sum(query, blocks)
    if row:
        # X^(-row) = -X^(N-row); SEAL would take a lone coefficient of t - 1 for itself, not for -1.
        EVALUATOR.multiply_plain_inplace(product, sealapi.Plaintext(f"1x^{N - row}"))
        EVALUATOR.negate_inplace(product)
    c0, c1 = from_seal(product)
    oracle = Ciphertext(form=Form.EXTRACTED, parameters=BFV_LINEAR, key_id=secret.key_id, c0=c0[:1], c1=c1)
    assert block == encode(oracle)
    assert open_coefficients(block, secret, [0]) == [int(values[row] @ query)]


def test_products_with_residues_that_seal_made_are_seals(secret: SecretKey) -> None:
    rng = np.random.default_rng(11)
    residues = rng.integers(0, Q, (3, 2 * N), dtype=np.uint64)
    total = sealapi.Ciphertext(CONTEXT)
    weights = [17, 901, 5]
    for row, weight in zip(residues, weights, strict=True):
        term = sealapi.Ciphertext(CONTEXT)
        EVALUATOR.multiply_plain(to_seal(row[:N], row[N:]), sealapi.Plaintext(f"{weight:X}"), term)
        if weight == weights[0]:
            total = term
        else:
            EVALUATOR.add_inplace(total, term)
    assert np.array_equal(combine(np.array([weights]), residues, Q)[0], np.concatenate(from_seal(total)))


def test_errors_have_seals_distribution() -> None:
    """Centred binomial over 21 + 21 bits: within its bound, mean 0, variance 10.5 (all limits at 8 sigma)."""
    sample = np.concatenate([centred_binomial(N) for _ in range(50)])
    n = sample.size
    assert np.abs(sample).max() <= ERROR_BOUND
    assert abs(sample.mean()) < 8 * (10.5 / n) ** 0.5
    assert abs((sample**2).mean() - 10.5) < 8 * (2 * 10.5**2 / n) ** 0.5
    share = np.mean(sample == 0)
    expected = 538257874440 / 2**42
    assert abs(share - expected) < 8 * (expected / n) ** 0.5


def test_secrets_are_ternary_and_uniform(secret: SecretKey) -> None:
    for one in (secret, generate_secret_key()):
        counts = [int((one._coefficients == value).sum()) for value in (-1, 0, 1)]
        assert sum(counts) == N
        assert all(abs(count - N / 3) < 8 * (N * 2 / 9) ** 0.5 for count in counts)


def shape_of(secret: SecretKey) -> BundleShape:
    return BundleShape(
        n_rows=N_ROWS,
        n_features=N_FEATURES,
        max_abs=60,
        max_l2=180,
        key_id=secret.key_id,
        parameters=BFV_LINEAR,
    )
