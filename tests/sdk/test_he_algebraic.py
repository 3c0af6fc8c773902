"""The algebraic check accepts honest results and nothing else."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ContainerError, KernelParameterError, VerificationError, WrongKeyDomainError
from usufruct.he import algebraic, lanes
from usufruct.he.algebraic import SOUNDNESS_BITS, check_linear, is_cheaper
from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.kernels import (
    DISTANCE,
    IDENTIFY,
    LINEAR,
    SUM,
    VERIFY,
    BundleShape,
    DistanceParameters,
    IdentifyParameters,
    Kernel,
    KernelParameters,
    LinearParameters,
    SumParameters,
    Task,
    VerifyParameters,
    execute,
    plan,
)
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.residues import combine

N, Q = BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.coeff_modulus
KEY = bytes(range(32))
N_ROWS, N_FEATURES = N + 20, 6
SHAPE = BundleShape(
    n_rows=N_ROWS, n_features=N_FEATURES, max_abs=2, max_l2=4, key_id=KEY, parameters=BFV_LINEAR
)
MASK = np.arange(N_ROWS) % 5 != 2
CHALLENGE = hashlib.sha256(b"revealed after the commitment").digest()


def block(chunk: int, feature: int) -> bytes:
    rng = np.random.default_rng([chunk, feature])
    seed = rng.bytes(32)
    fields = {"form": Form.SEEDED, "parameters": BFV_LINEAR, "key_id": KEY, "seed": seed}
    return encode(
        Ciphertext(c0=rng.integers(0, Q, N, dtype=np.uint64), c1=expand_seed(seed, BFV_LINEAR, KEY), **fields)
    )


INPUTS = {(chunk, feature): block(chunk, feature) for chunk in (0, 1) for feature in range(N_FEATURES)}
RNG = np.random.default_rng(5)
WEIGHTS = tuple(tuple(row) for row in RNG.integers(-300, 301, (4, N_FEATURES)).tolist())
JOBS: dict[str, tuple[Kernel, KernelParameters]] = {
    "rows": (LINEAR, LinearParameters(output="rows", weights=WEIGHTS, bias=(9, -3, 0, 100))),
    "sum": (
        LINEAR,
        LinearParameters(output="sum", weights=((1, -2, 0, 3, 0, 1), (0, 0, -1, 0, 0, 0)), bias=(1, -1)),
    ),
    "distance": (DISTANCE, DistanceParameters(centroids=((1, 2, 0, -3, 0, 0),) * 2, norm=((4, 30), (5, 1)))),
    "identify": (IDENTIFY, IdentifyParameters(queries=WEIGHTS)),
}


def work(name: str) -> list[tuple[Task, list[bytes]]]:
    return [(task, execute(task, INPUTS, MASK)) for task in plan(*JOBS[name], SHAPE)]


HONEST = {name: work(name) for name in JOBS}


def refused(task: Task, results: list[bytes], **changes: object) -> None:
    given_ = {"inputs": INPUTS, "mask": MASK, "challenge": CHALLENGE} | changes
    with pytest.raises(VerificationError):
        check_linear(task, given_["inputs"], results, given_["mask"], given_["challenge"])


@pytest.mark.parametrize("name", sorted(JOBS))
def test_honest_results_are_accepted_whatever_the_challenge(name: str) -> None:
    for task, results in HONEST[name]:
        for number in range(5):
            check_linear(task, INPUTS, results, MASK, hashlib.sha256(bytes([number])).digest())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_one_changed_residue_anywhere_is_rejected(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(JOBS)))
    task, results = data.draw(st.sampled_from(HONEST[name]))
    which = data.draw(st.integers(0, len(results) - 1))
    found = parse(results[which])
    c0, c1 = found.c0.copy(), found.c1.copy()
    polynomial = data.draw(st.sampled_from([c0, c1]))
    at = data.draw(st.integers(0, polynomial.size - 1))
    by = data.draw(st.one_of(st.sampled_from([1, Q - 1, 1 << 27]), st.integers(1, Q - 1)))
    polynomial[at] = (int(polynomial[at]) + by) % Q
    forged = encode(Ciphertext(form=found.form, parameters=BFV_LINEAR, key_id=KEY, c0=c0, c1=c1))
    refused(task, [*results[:which], forged, *results[which + 1 :]])


@pytest.mark.parametrize("name", ["rows", "identify"])
def test_swapped_chunks_and_swapped_outputs_are_rejected(name: str) -> None:
    (first, made), (second, also) = HONEST[name]
    refused(first, also)
    refused(second, made)
    refused(first, [made[1], made[0], *made[2:]])


def test_results_for_other_weights_or_another_bias_are_rejected() -> None:
    kernel, parameters = JOBS["rows"]
    assert isinstance(parameters, LinearParameters)
    changed = [list(row) for row in parameters.weights]
    changed[2][1] += 1
    for other in (
        replace(parameters, weights=tuple(map(tuple, changed))),
        replace(parameters, bias=(9, -3, 1, 100)),
    ):
        for (task, _), wrong in zip(HONEST["rows"], plan(kernel, other, SHAPE), strict=True):
            refused(task, execute(wrong, INPUTS, MASK))


def test_another_rows_ciphertext_and_a_stale_mask_are_rejected() -> None:
    task = HONEST["rows"][0][0]
    swapped = INPUTS | {(0, 1): INPUTS[1, 1]}
    refused(task, execute(task, swapped, MASK))
    summed, honest = HONEST["sum"][0]
    stale = MASK.copy()
    stale[7] = ~stale[7]
    refused(summed, execute(summed, INPUTS, stale))
    refused(summed, honest, mask=stale)


def test_missing_and_surplus_results_are_rejected() -> None:
    task, results = HONEST["rows"][0]
    refused(task, results[:-1])
    refused(task, [*results, results[0]])


def test_malformed_results_and_results_of_another_key_are_refused() -> None:
    task, results = HONEST["rows"][0]
    with pytest.raises(ContainerError):
        check_linear(task, INPUTS, [INPUTS[0, 0], *results[1:]], MASK, CHALLENGE)
    found = parse(results[0])
    foreign = encode(replace(found, key_id=bytes(32)))
    with pytest.raises(WrongKeyDomainError):
        check_linear(task, INPUTS, [foreign, *results[1:]], MASK, CHALLENGE)


def test_malicious_compute_node_that_knows_the_challenge_can_pass_so_the_challenge_comes_after_the_commitment() -> (
    None
):
    """Positive control: errors that the known combination cancels get through, and no other challenge lets them."""
    task, results = HONEST["rows"][0]
    factors = algebraic._factors(CHALLENGE, task.index, len(results)).astype(object)
    # Errors e on three outputs with factors @ e = 0 modulo q, for both combinations.
    (a, b, c, _), (d, e, f, _) = factors
    errors = [(b * f - c * e) % Q, (c * d - a * f) % Q, (a * e - b * d) % Q]
    forged = []
    for error, result in zip(errors, results, strict=False):
        found = parse(result)
        c0 = found.c0.copy()
        c0[11] = (int(c0[11]) + error) % Q
        forged.append(encode(replace(found, c0=c0)))
    forged.append(results[3])
    assert forged != results
    check_linear(task, INPUTS, forged, MASK, CHALLENGE)
    refused(task, forged, challenge=hashlib.sha256(b"another").digest())


def test_each_combination_has_30_bits_of_its_own_and_depends_on_challenge_and_task() -> None:
    factors = algebraic._factors(CHALLENGE, 0, 500)
    assert factors.shape == (2, 500) and SOUNDNESS_BITS == 2 * lanes.COEFFICIENT_BITS
    assert factors.max() < 1 << 30 and factors.max() >> 29 == 1
    assert np.unique(factors).size > 990
    assert not np.array_equal(factors, algebraic._factors(CHALLENGE, 1, 500))
    assert not np.array_equal(factors, algebraic._factors(bytes(32), 0, 500))


def test_kernels_that_are_not_linear_maps_of_their_inputs_are_left_to_execution() -> None:
    verify = VerifyParameters(queries=WEIGHTS[:1], rows=(3,))
    for kernel, parameters in ((SUM, SumParameters()), (VERIFY, verify)):
        task = plan(kernel, parameters, SHAPE)[0]
        with pytest.raises(KernelParameterError, match="executing it again"):
            check_linear(task, INPUTS, execute(task, INPUTS, np.ones(N_ROWS, dtype=bool)), MASK, CHALLENGE)
        assert not is_cheaper(task)


def test_short_challenges_and_masks_that_do_not_fit_are_refused() -> None:
    task, results = HONEST["rows"][0]
    with pytest.raises(KernelParameterError, match="32 bytes"):
        check_linear(task, INPUTS, results, MASK, bytes(31))
    with pytest.raises(KernelParameterError, match="mask"):
        check_linear(task, INPUTS, results, MASK[1:], CHALLENGE)


def test_the_check_is_preferred_where_it_costs_less() -> None:
    def task(m: int) -> Task:
        weights = ((1,) * N_FEATURES,) * m
        return plan(LINEAR, LinearParameters(output="rows", weights=weights, bias=(0,) * m), SHAPE)[0]

    assert [is_cheaper(task(m)) for m in (1, 16, 64, 256)] == [False, False, True, True]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_few_combinations_of_many_rows_equal_python_integers(data: st.DataObject) -> None:
    m, k = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    coefficients = rng.integers(0, 1 << 30, (2, m), dtype=np.uint64)
    residues = rng.integers(0, Q, (m, k), dtype=np.uint64)
    if data.draw(st.booleans()):
        coefficients[:], residues[:] = (1 << 30) - 1, Q - 1
    expected = [[sum(int(c) * int(r) for c, r in zip(row, residues[:, i], strict=True)) % Q for i in range(k)]
                for row in coefficients]  # fmt: skip
    assert lanes.combine_rows(coefficients, residues, Q).tolist() == expected


def test_wider_coefficients_than_were_proved_exact_are_refused() -> None:
    ones = np.ones((1, 1), dtype=np.uint64)
    with pytest.raises(OverflowError):
        lanes.combine_rows(ones << np.uint64(30), ones, Q)
    with pytest.raises(OverflowError):
        lanes.combine_rows(ones, ones, 1 << 54)


def test_combinations_of_wide_weights_are_exact() -> None:
    """Digits put back together are the combination, for weights of any size that a kernel lets through."""
    values = np.array([[(1 << 61) - 1, -(1 << 61) + 1, 0, -1, 1 << 15]])
    digits = algebraic._digits(values)
    assert np.abs(digits).max() <= 1 << 10
    rebuilt = sum(int(digit[0]) << (11 * power) for power, digit in enumerate(digits))
    assert rebuilt == values[0, 0]
    residues = np.random.default_rng(6).integers(0, Q, (5, 3), dtype=np.uint64)
    sums = combine(digits, residues, Q)
    total = [sum((int(row[i]) << (11 * power)) for power, row in enumerate(sums)) % Q for i in range(3)]
    assert total == [
        sum(int(v) * int(r) for v, r in zip(values[0], residues[:, i], strict=True)) % Q for i in range(3)
    ]
