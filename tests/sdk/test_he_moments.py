"""The `moments` kernel: SEAL's bytes, numpy's values, bounds at the edge, and no row to be opened."""

import subprocess
import sys
from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from hypothesis import given, settings
from hypothesis import strategies as st

from bgv_oracle import context_of, from_seal, polynomial, seal_key, to_seal
from usufruct.errors import (
    ContainerError,
    KernelBoundError,
    KernelParameterError,
    KeyStoreError,
    WrongKeyDomainError,
)
from usufruct.he import ntt, slots
from usufruct.he.bgv import encrypt_columns, generate_secret_key, open_values
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.kernels import BundleShape, execute, kernel_by_name, outputs, plan, run
from usufruct.he.kernels.moments import MOMENTS, MomentsParameters, pairs_of, statistics
from usufruct.he.parameters import BFV_LINEAR, BGV_MOMENTS, BGV_PAIRS, Parameters
from usufruct.he.secret import SecretKey

N = BGV_MOMENTS.poly_modulus_degree
N_ROWS, N_FEATURES, MAX_ABS = N + 300, 5, 90


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return generate_secret_key(BGV_MOMENTS)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(3).integers(-MAX_ABS, MAX_ABS + 1, (N_ROWS, N_FEATURES))


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return np.random.default_rng(4).random(N_ROWS) < 0.7


@pytest.fixture(scope="module")
def blocks(secret: SecretKey, values: np.ndarray) -> dict[tuple[int, int], bytes]:
    return {(chunk, feature): block for chunk, feature, block in encrypt_columns(values, secret)}


def shape_of(secret: SecretKey, **changes: Any) -> BundleShape:
    fields = {
        "n_rows": N_ROWS,
        "n_features": N_FEATURES,
        "max_abs": MAX_ABS,
        "max_l2": 3 * MAX_ABS,
        "key_id": secret.key_id,
        "parameters": secret.parameters,
    }
    return BundleShape(**(fields | changes))


def moments(*columns: int) -> MomentsParameters:
    return MomentsParameters(columns=columns)


def results(
    columns: tuple[int, ...], shape: BundleShape, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> list[bytes]:
    made = dict(run(MOMENTS, moments(*columns), shape, lambda c, f: blocks[c, f], mask))
    assert sorted(made) == list(range(len(made)))
    return [made[index] for index in range(len(made))]


def test_opened_moments_are_those_of_numpy_over_permitted_rows(
    secret: SecretKey, values: np.ndarray, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> None:
    columns = (0, 2, 3, 4)
    opened = [
        open_values(block, secret, [0])[0] for block in results(columns, shape_of(secret), blocks, mask)
    ]
    chosen = values[mask][:, columns]
    assert opened[:4] == chosen.sum(axis=0).tolist()
    products = [int((chosen[:, i] * chosen[:, j]).sum()) for i, j in pairs_of(4)]
    assert opened[4:] == products
    found = statistics(opened, int(mask.sum()), n_columns=4, feature_scale=10)
    assert np.allclose(found.means, chosen.mean(axis=0) / 10, rtol=1e-12)
    assert np.allclose(found.covariances, np.cov(chosen.T / 10, bias=True), rtol=1e-9)


def test_results_are_the_bytes_of_seals_evaluator(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> None:
    """Multiply by the mask, multiply with the other column, add up the chunks; then keep coefficient 0 of c0."""
    evaluator, context = sealapi.Evaluator(context_of(BGV_MOMENTS)), context_of(BGV_MOMENTS)
    pair, total_sum, total_product = (0, 1), None, None
    for chunk in range(2):
        left, right = (
            to_seal([(found := parse(blocks[chunk, feature])).c0, found.c1], BGV_MOMENTS) for feature in pair
        )
        rows = np.zeros(N, dtype=np.int64)
        rows[: mask[chunk * N : (chunk + 1) * N].size] = mask[chunk * N : (chunk + 1) * N]
        # The sum of all slots is N times coefficient 0.
        plain = polynomial(slots.encode(rows * N, BGV_MOMENTS), BGV_MOMENTS)
        evaluator.multiply_plain_inplace(left, plain)
        product = sealapi.Ciphertext(context)
        evaluator.multiply(left, right, product)
        if total_sum is None:
            total_sum, total_product = left, product
        else:
            evaluator.add_inplace(total_sum, left)
            evaluator.add_inplace(total_product, product)
    made = results(pair, shape_of(secret), blocks, mask)
    assert made[0] == as_extracted(from_seal(total_sum, BGV_MOMENTS), secret, Form.EXTRACTED)
    assert made[3] == as_extracted(from_seal(total_product, BGV_MOMENTS), secret, Form.EXTRACTED_PRODUCT)


def as_extracted(parts: list[np.ndarray], secret: SecretKey, form: Form) -> bytes:
    """A container of SEAL's polynomials; coefficient 0 of c0 by an inverse transform."""
    primes = secret.parameters.primes
    c0 = [
        int(ntt.inverse(row, prime)[0])
        for row, prime in zip(np.split(parts[0], len(primes)), primes, strict=True)
    ]
    return encode(
        Ciphertext(
            form=form,
            parameters=secret.parameters,
            key_id=secret.key_id,
            c0=np.array(c0, dtype=np.uint64),
            c1=parts[1],
            c2=parts[2] if form is Form.EXTRACTED_PRODUCT else None,
        )
    )


def test_malicious_compute_node_no_row_can_be_opened_from_a_moment(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> None:
    """Positive control: the same product with all of c0 opens to rows, a published one only to the moment."""
    one, other = (parse(blocks[0, feature]) for feature in (0, 1))
    q = np.repeat(np.array(BGV_MOMENTS.primes, dtype=np.uint64), N)
    product = encode(
        Ciphertext(
            form=Form.PRODUCT,
            parameters=BGV_MOMENTS,
            key_id=secret.key_id,
            c0=one.c0 * other.c0 % q,
            c1=(one.c0 * other.c1 % q + one.c1 * other.c0 % q) % q,
            c2=one.c1 * other.c1 % q,
        )
    )
    assert len(open_values(product, secret, range(N))) == N
    for block in results((0, 1), shape_of(secret), blocks, mask):
        assert parse(block).form in (Form.EXTRACTED, Form.EXTRACTED_PRODUCT)
        assert parse(block).c0.shape == (len(BGV_MOMENTS.primes),)
        with pytest.raises(KeyStoreError, match="only the first 1"):
            open_values(block, secret, [1])


def test_withdrawn_rows_change_no_opened_moment(
    secret: SecretKey, values: np.ndarray, mask: np.ndarray, blocks: dict[tuple[int, int], bytes]
) -> None:
    other = values.copy()
    other[~mask] = np.random.default_rng(9).integers(-MAX_ABS, MAX_ABS + 1, other[~mask].shape)
    again = {(c, f): block for c, f, block in encrypt_columns(other[:, :2], secret)}
    opened = [
        [open_values(block, secret, [0])[0] for block in results((0, 1), shape_of(secret), which, mask)]
        for which in (blocks, again)
    ]
    assert opened[0] == opened[1]


def test_tasks_in_any_order_and_groups_give_every_result_once(
    secret: SecretKey,
    blocks: dict[tuple[int, int], bytes],
    mask: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from usufruct.he.kernels import moments as module

    columns, shape = (0, 1, 2, 3, 4), shape_of(secret)
    expected = results(columns, shape, blocks, mask)
    monkeypatch.setattr(module, "_COLUMNS_PER_GROUP", 2)
    monkeypatch.setattr(module, "_CHUNKS_PER_PASS", 1)
    tasks = plan(MOMENTS, moments(*columns), shape)
    assert len(tasks) == 6
    made: dict[int, bytes] = {}
    for task in reversed(tasks):
        assert list(task.outputs) == sorted(task.outputs)
        read: list[tuple[int, int]] = []
        found = execute(task, Watched(blocks, read), mask)
        assert read == list(task.inputs)
        made |= dict(zip(task.outputs, found, strict=True))
    assert [made[index] for index in range(len(made))] == expected


class Watched(dict[tuple[int, int], bytes]):
    """Notes the keys that are looked up."""

    def __init__(self, blocks: dict[tuple[int, int], bytes], read: list[tuple[int, int]]) -> None:
        super().__init__(blocks)
        self.read = read

    def __getitem__(self, key: tuple[int, int]) -> bytes:
        self.read.append(key)
        return super().__getitem__(key)


def test_output_descriptions_are_those_of_the_blocks(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> None:
    described = outputs(MOMENTS, moments(1, 3), shape_of(secret))
    made = results((1, 3), shape_of(secret), blocks, mask)
    assert [output.form for output in described] == [parse(block).form for block in made]
    assert [output.index for output in described] == list(range(5))
    assert all(output.coefficients == 1 and output.chunk is None for output in described)


def test_the_record_is_an_aggregate_on_bgv_that_stewards_can_grant() -> None:
    assert kernel_by_name("moments") is MOMENTS
    assert (MOMENTS.kernel_class, MOMENTS.scheme) == ("aggregate", "bgv")
    assert MOMENTS.parse({"columns": [0, 7]}) == moments(0, 7)
    assert moments(0, 7).to_dict() == {"columns": [0, 7]}


@pytest.mark.parametrize(
    "columns", [[], [1, 1], [2, 1], [-1], [True], ["0"], [0.0], None, 3, list(range(65)), {"0": 1}]
)
def test_malformed_columns_are_refused(columns: object) -> None:
    with pytest.raises(KernelParameterError):
        MOMENTS.parse({"columns": columns})


def test_columns_beyond_the_bundle_and_bundles_of_another_scheme_are_refused(secret: SecretKey) -> None:
    with pytest.raises(KernelParameterError, match="beyond the 5"):
        MOMENTS.validate(moments(0, 5), shape_of(secret))
    with pytest.raises(KernelParameterError, match="runs on bgv, not bfv"):
        MOMENTS.validate(moments(0), shape_of(secret, parameters=BFV_LINEAR))


@pytest.mark.parametrize(
    "wrong", [np.ones(3, dtype=bool), np.zeros(N_ROWS, dtype=bool), np.ones(N_ROWS, dtype=int)]
)
def test_masks_that_do_not_fit_or_permit_nobody_are_refused(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes], wrong: np.ndarray
) -> None:
    with pytest.raises(KernelParameterError):
        list(run(MOMENTS, moments(0), shape_of(secret), lambda c, f: blocks[c, f], wrong))


@settings(max_examples=200, deadline=None)
@given(
    n_rows=st.integers(1, 1 << 24),
    parameters=st.sampled_from([BGV_PAIRS, BGV_MOMENTS]),
)
def test_the_value_bound_is_tight_and_refused_one_beyond(n_rows: int, parameters: Parameters) -> None:
    """The largest declared range that passes, and the next one, which does not."""
    limit = parameters.value_limit
    largest = min(isqrt(limit // n_rows), limit // n_rows)
    secret_id = bytes(32)

    def fits(max_abs: int) -> bool:
        if not 1 <= max_abs <= limit:
            return False
        shape = BundleShape(
            n_rows=n_rows,
            n_features=2,
            max_abs=max_abs,
            max_l2=max_abs * 2,
            key_id=secret_id,
            parameters=parameters,
        )
        try:
            bounds = MOMENTS.validate(moments(0, 1), shape)
        except KernelBoundError as refusal:
            assert str(limit) in str(refusal) or "noise" in str(refusal)
            return False
        assert n_rows * max_abs**2 <= bounds.value_bound <= limit
        return True

    noisy = shape_margin(n_rows, parameters) < 8
    assert fits(largest) == (largest >= 1 and not noisy)
    assert not fits(largest + 1)


def shape_margin(n_rows: int, parameters: Parameters) -> int:
    """Bits between the noise of the definition and half the modulus, in Python integers."""
    degree, t = parameters.poly_modulus_degree, parameters.plain_modulus
    fresh = (t - 1) // 2 + 21 * t
    noise = -(-n_rows // degree) * degree * ((t - 1) // 2) * fresh * degree * fresh
    return ((parameters.coeff_modulus // 2 - 1) // noise).bit_length() - 1


@pytest.mark.parametrize("sign", [1, -1])
def test_values_at_the_bound_open_exactly(secret: SecretKey, sign: int) -> None:
    """Every row as large as the bound lets it be, so that the sum of products is next to t / 2."""
    n_rows = 200
    largest = isqrt(BGV_MOMENTS.value_limit // n_rows)
    values = np.full((n_rows, 2), largest) * np.array([1, sign])
    sealed = {(c, f): block for c, f, block in encrypt_columns(values, secret)}
    shape = shape_of(secret, n_rows=n_rows, n_features=2, max_abs=largest, max_l2=2 * largest)
    assert (
        MOMENTS.validate(moments(0, 1), shape).value_bound
        == n_rows * largest**2
        > 0.99 * BGV_MOMENTS.value_limit
    )
    made = results((0, 1), shape, sealed, np.ones(n_rows, dtype=bool))
    opened = [open_values(block, secret, [0])[0] for block in made]
    square = n_rows * largest**2
    assert opened == [n_rows * largest, sign * n_rows * largest, square, sign * square, square]


def test_the_noise_that_occurs_stays_below_the_bound_that_was_proved(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> None:
    """SEAL measures the budget of the whole product, which the published block no longer allows."""
    evaluator, context = sealapi.Evaluator(context_of(BGV_MOMENTS)), context_of(BGV_MOMENTS)
    left, right = (
        to_seal([(found := parse(blocks[0, feature])).c0, found.c1], BGV_MOMENTS) for feature in (0, 1)
    )
    plain = polynomial(slots.encode(mask[:N].astype(np.int64) * N, BGV_MOMENTS), BGV_MOMENTS)
    evaluator.multiply_plain_inplace(left, plain)
    evaluator.multiply_inplace(left, right)
    budget = sealapi.Decryptor(context, seal_key(secret)).invariant_noise_budget(left)
    proved = MOMENTS.validate(moments(0, 1), shape_of(secret))
    assert budget >= proved.margin_bits >= 8


def altered(block: bytes, at: int, value: int) -> bytes:
    return block[:at] + bytes([value]) + block[at + 1 :]


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (lambda block, other: other, WrongKeyDomainError),
        (lambda block, other: altered(block, 6, Form.CIPHERTEXT), ContainerError),
        (lambda block, other: block[:75] + b"\xff" * 8 + block[83:], ContainerError),
        (lambda block, other: block[:-1], ContainerError),
        (lambda block, other: altered(block, 5, 1), ContainerError),
    ],
)
def test_hostile_inputs_are_refused_by_the_kernel(
    secret: SecretKey,
    blocks: dict[tuple[int, int], bytes],
    mask: np.ndarray,
    forge: Callable[[bytes, bytes], bytes],
    error: type[Exception],
) -> None:
    foreign = next(encrypt_columns(np.array([[1]]), generate_secret_key(BGV_MOMENTS)))[2]
    forged = blocks | {(1, 0): forge(blocks[1, 0], foreign)}
    with pytest.raises(error):
        results((0, 1), shape_of(secret), forged, mask)


def test_foreign_key_blocks_of_the_other_parameters_are_refused_even_under_the_right_key_id(
    secret: SecretKey, blocks: dict[tuple[int, int], bytes], mask: np.ndarray
) -> None:
    other = next(encrypt_columns(np.array([[1]]), generate_secret_key(BGV_PAIRS)))[2]
    forged = blocks | {(0, 0): other[:39] + secret.key_id + other[71:]}
    with pytest.raises(ContainerError) as caught:
        results((0,), shape_of(secret), forged, mask)
    assert caught.value.field == "parameters_id"


def test_statistics_of_other_numbers_of_results_are_refused() -> None:
    assert statistics([6, 14], 3, n_columns=1, feature_scale=1).covariances.tolist() == [[2 / 3]]
    for opened, count in (([6], 3), ([6, 14, 1], 3), ([6, 14], 0)):
        with pytest.raises(KernelParameterError):
            statistics(opened, count, n_columns=1, feature_scale=1)


def test_compute_processes_load_no_homomorphic_library() -> None:
    code = "import sys, usufruct.he.kernels; sys.exit('tenseal' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
