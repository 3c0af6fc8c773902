"""The algebraic check accepts honest results and nothing else."""

import hashlib
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ContainerError, KernelParameterError, VerificationError, WrongKeyDomainError
from usufruct.he import algebraic, kernels
from usufruct.he.algebraic import ALGEBRAIC, REPLICATED, SOUNDNESS_BITS, check_linear, is_cheaper, verify
from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.kernels import (
    DISTANCE,
    IDENTIFY,
    LINEAR,
    SUM,
    VERIFY,
    BundleShape,
    Collector,
    DistanceParameters,
    IdentifyParameters,
    Kernel,
    KernelParameters,
    LinearParameters,
    SumParameters,
    Task,
    VerifyParameters,
    plan,
)
from usufruct.he.pace import Pace, measured_pace
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.projection import ENTRY_BITS, project
from usufruct.he.residues import negacyclic_multiply

N, Q = BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.coeff_modulus
KEY = bytes(range(32))
N_ROWS, N_FEATURES = N + 20, 6
SHAPE = BundleShape(
    n_rows=N_ROWS, n_features=N_FEATURES, max_abs=2, max_l2=4, key_id=KEY, parameters=BFV_LINEAR
)
MASK = np.arange(N_ROWS) % 5 != 2
LIMIT = 1 << ENTRY_BITS
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
    "columns": (SUM, SumParameters()),
}


def execute(tasks: list[Task], inputs: dict[tuple[int, int], bytes], mask: np.ndarray) -> list[bytes]:
    """Results of one task, or of all partial ones."""
    kernel = next(kernel for kernel, _ in JOBS.values() if kernel.name == tasks[0].kernel)
    collector = Collector(kernel, tasks[0].parameters, SHAPE, mask, tasks)
    return [block for task in tasks for _, block in collector.add(task, kernels.execute(task, inputs, mask))]


def work(name: str) -> list[tuple[list[Task], list[bytes]]]:
    tasks = plan(*JOBS[name], SHAPE)
    units = [tasks] if tasks[0].partial else [[task] for task in tasks]
    return [(unit, execute(unit, INPUTS, MASK)) for unit in units]


HONEST = {name: work(name) for name in JOBS}


def refused(task: list[Task], results: list[bytes], **changes: object) -> None:
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
            refused(task, execute([wrong], INPUTS, MASK))


def test_another_rows_ciphertext_and_a_stale_mask_are_rejected() -> None:
    task = HONEST["rows"][0][0]
    swapped = INPUTS | {(0, 1): INPUTS[1, 1]}
    refused(task, execute(task, swapped, MASK))
    stale = MASK.copy()
    stale[7] = ~stale[7]
    for name in ("sum", "columns"):
        summed, honest = HONEST[name][0]
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
    """Positive control: errors that the known vectors cancel get through, and no other challenge lets them."""
    tasks, results = HONEST["rows"][0]
    (a, b, c), (d, e, f) = algebraic._vectors(CHALLENGE, 2 * N)[:, :3].astype(object)
    # Errors on three residues that both vectors take to zero: their cross product.
    errors = (b * f - c * e, c * d - a * f, a * e - b * d)
    found = parse(results[1])
    c0 = found.c0.copy()
    c0[:3] = [(int(residue) + error) % Q for residue, error in zip(c0[:3], errors, strict=True)]
    forged = [results[0], encode(replace(found, c0=c0)), *results[2:]]
    assert forged != results
    check_linear(tasks, INPUTS, forged, MASK, CHALLENGE)
    refused(tasks, forged, challenge=hashlib.sha256(b"another").digest())


def test_every_vector_has_30_bits_of_its_own_and_depends_on_the_challenge() -> None:
    vectors = algebraic._vectors(CHALLENGE, 500)
    assert vectors.shape == (2, 500) and SOUNDNESS_BITS == 2 * ENTRY_BITS == 60
    assert vectors.max() < 1 << 30 and vectors.max() >> 29 == 1
    assert np.unique(vectors).size > 990
    assert not np.array_equal(vectors, algebraic._vectors(bytes(32), 500))


def test_kernels_that_are_not_linear_maps_of_their_inputs_are_left_to_execution() -> None:
    task = plan(VERIFY, VerifyParameters(queries=WEIGHTS[:1], rows=(3,)), SHAPE)[0]
    with pytest.raises(KernelParameterError, match="executing it again"):
        check_linear([task], INPUTS, kernels.execute(task, INPUTS, MASK), MASK, CHALLENGE)
    assert not is_cheaper(task)


def test_tasks_that_make_results_of_their_own_are_checked_one_by_one() -> None:
    (first, made), (second, also) = HONEST["rows"]
    with pytest.raises(KernelParameterError, match="checked together"):
        check_linear([*first, *second], INPUTS, [*made, *also], MASK, CHALLENGE)


def test_short_challenges_and_masks_that_do_not_fit_are_refused() -> None:
    task, results = HONEST["rows"][0]
    with pytest.raises(KernelParameterError, match="32 bytes"):
        check_linear(task, INPUTS, results, MASK, bytes(31))
    with pytest.raises(KernelParameterError, match="mask"):
        check_linear(task, INPUTS, results, MASK[1:], CHALLENGE)


def test_the_planner_checks_where_it_costs_less_and_says_which_level_that_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scores(m: int) -> Task:
        weights = ((1,) * N_FEATURES,) * m
        return plan(LINEAR, LinearParameters(output="rows", weights=weights, bias=(0,) * m), SHAPE)[0]

    # Checking one input costs 4, computing on it 2 m; a result costs 1 to write, 5 to check.
    pace = Pace(fill=0, multiply=2, write=1, read=1, project=4)
    assert [is_cheaper(scores(m), pace) for m in (1, 2, 3, 4, 256)] == [False, False, False, True, True]
    assert not is_cheaper(plan(VERIFY, VerifyParameters(queries=WEIGHTS[:1], rows=(3,)), SHAPE)[0])
    for name, slow, level in (
        ("rows", 4, ALGEBRAIC),
        ("rows", 9, REPLICATED),
        ("sum", 9, ALGEBRAIC),
        ("columns", 9, ALGEBRAIC),
    ):
        now = replace(pace, project=slow)
        monkeypatch.setattr(algebraic, "measured_pace", lambda now=now: now)
        for tasks, results in HONEST[name]:
            assert verify(tasks, INPUTS, results, MASK, CHALLENGE) == level
            assert verify(tasks, INPUTS, results, MASK, None) == REPLICATED
            wrong = [results[-1], *results[1:-1], results[0]]
            for challenge in (CHALLENGE, None):
                with pytest.raises(VerificationError):
                    verify(tasks, INPUTS, wrong, MASK, challenge)
    assert (ALGEBRAIC, REPLICATED) == ("ALGEBRAIC(2^-60)", "REPLICATED")


def test_the_pace_is_measured_and_finds_the_check_cheaper_for_many_outputs_of_many_features() -> None:
    pace = measured_pace()
    assert all(seconds > 0 for seconds in astuple(pace)) and measured_pace() is pace
    # A tenth and less where it was measured; far from a race.
    assert pace.check(512, 1024) < pace.execution(512, 1024)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_inner_products_equal_python_integers(data: st.DataObject) -> None:
    k, n, c = (data.draw(st.integers(1, high)) for high in (4, 140, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vectors = rng.integers(0, LIMIT, (c, n), dtype=np.uint64)
    residues = rng.integers(0, Q, (k, n), dtype=np.uint64)
    if data.draw(st.booleans()):
        vectors[:], residues[:] = LIMIT - 1, Q - 1
    expected = [[sum(int(x) * int(v) for x, v in zip(row, vector, strict=True)) % Q for vector in vectors]
                for row in residues]  # fmt: skip
    assert project(residues, vectors, Q).tolist() == expected


def test_inner_products_of_the_longest_rows_at_every_bound_are_exact() -> None:
    """Also where the last run is short, and where the last word of a lane is beyond the row."""
    for length in (1 << 16, (1 << 16) - 8, (1 << 16) - 5, 1025):
        residues, vectors = np.full((1, length), Q - 1, dtype=np.uint64), np.full((1, length), LIMIT - 1)
        assert project(residues, vectors.astype(np.uint64), Q).tolist() == [[-(LIMIT - 1) * length % Q]]


def test_wider_vectors_than_were_proved_exact_are_refused() -> None:
    ones = np.ones((1, 1), dtype=np.uint64)
    for residues, vectors, modulus in (
        (ones, ones << np.uint64(ENTRY_BITS), Q),
        (ones, ones, 1 << 54),
        (np.ones((1, (1 << 16) + 1), dtype=np.uint64), np.ones((1, (1 << 16) + 1), dtype=np.uint64), Q),
    ):
        with pytest.raises(OverflowError):
            project(residues, vectors, modulus)
    with pytest.raises(ValueError, match="2 entries for rows of 1"):
        project(ones, np.ones((1, 2), dtype=np.uint64), Q)


@pytest.mark.parametrize("fill", [0, 1, LIMIT - 1])
def test_the_transpose_of_a_mask_gives_what_the_masked_product_gives(fill: int) -> None:
    """Also where the transposed vector's entries are as large as they get."""
    rng = np.random.default_rng(8)
    rows = np.ones(N, dtype=bool) if fill else rng.random(N) < 0.5
    vectors = (
        np.full((2, N), fill, dtype=np.uint64) if fill else rng.integers(0, LIMIT, (2, N), dtype=np.uint64)
    )
    residues = rng.integers(0, Q, (2, N), dtype=np.uint64)
    residues[1] = Q - 1
    transposed = algebraic._transposed(rows, vectors, Q)
    masked = negacyclic_multiply(residues, kernels.mask_polynomial(rows), Q)
    assert np.array_equal(algebraic._with_digits(residues, transposed, Q), project(masked, vectors, Q))
