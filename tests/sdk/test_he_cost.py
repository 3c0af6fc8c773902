"""What a job is said to cost: counted where it can be counted, measured where it cannot, and never from thin air."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st
from test_he_conformance import CASES, EVERY_CASE, Case, opened, results_of, sealed, secret_of

from usufruct.errors import KernelBoundError, KernelParameterError
from usufruct.he import cost
from usufruct.he.cost import cost_of
from usufruct.he.kernels import LINEAR, BlindParameters, BundleShape, FedsumParameters, LinearParameters, plan
from usufruct.he.quantise import quantise_model, rounding_bound
from usufruct.ledger.gas import JOB_GAS, job_gas

KEY = bytes(32)


@EVERY_CASE
def test_bytes_are_those_that_the_job_reads_and_writes(case: Case) -> None:
    values = np.ones((case.n_rows, 4), dtype=np.int64)
    blocks = sealed(case, values)
    read: list[int] = []

    def watched(chunk: int, feature: int) -> bytes:
        read.append(len(blocks[chunk, feature]))
        return blocks[chunk, feature]

    shape = case.shape(secret_of(case.chosen).key_id)
    found = cost_of(case.kernel, case.parameters, shape)
    made = results_of(case, shape.key_id, watched)
    assert opened(case, made).size
    if not case.kernel.implementation.mask_of_columns:
        assert (found.input_blocks, found.input_bytes) == (len(read), sum(read))
    assert (found.result_blocks, found.result_bytes) == (len(made), sum(map(len, made)))
    assert found.seconds > 0


def test_seconds_are_measured_once_for_a_job_and_grow_with_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock is told by hand: a task takes as long as it has inputs."""
    case = next(case for case in CASES if case.name == "bfv-linear-rows")
    shape, ticks, runs = case.shape(KEY), iter(range(100)), []
    cost._seconds_per_block.cache_clear()
    monkeypatch.setattr(cost, "execute", lambda task, inputs, mask: runs.append(len(task.inputs)))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(8 * next(ticks)))
    one = cost_of(LINEAR, case.parameters, replace(shape, n_rows=4096))
    assert one.seconds == 8.0 and runs == [4, 4]
    assert cost_of(LINEAR, case.parameters, replace(shape, n_rows=4096 * 5)).seconds == 40.0
    assert runs == [4, 4]
    cost._seconds_per_block.cache_clear()


def test_job_that_is_refused_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "execute", None)
    shape = CASES[0].shape(KEY)
    model = LinearParameters(output="rows", weights=((1 << 20,) * 4,), bias=(0,))
    with pytest.raises(KernelBoundError):
        cost_of(LINEAR, model, shape)


def test_gas_is_what_was_measured_on_the_chain() -> None:
    """`docs/gas.md` is generated from transactions; a number that moved there has to move here."""
    page = (Path(__file__).parents[2] / "docs" / "gas.md").read_text()
    found = re.findall(r"^\| \**(.+?)\** \| ([\d,]+) \|$", page, flags=re.MULTILINE)
    rows = {row.replace("`", ""): int(gas.replace(",", "")) for row, gas in found}
    assert {name: rows[name] for name in JOB_GAS} == JOB_GAS
    assert job_gas(3) == rows["posting to Released"]
    assert job_gas(4) - job_gas(3) == rows["one verifier more, its word and its opening"]


# Quantisation.


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["bfv-sum", "bfv-linear-rows", "bfv-distance", "bgv-moments"])
def test_rounding_features_moves_no_row_further_than_the_bound(name: str, data: st.DataObject) -> None:
    """Real rows within the declared range, against the same rows rounded to integers."""
    case = replace(next(case for case in CASES if case.name == name), n_rows=1)
    numbers = st.floats(-15, 15, allow_nan=False)
    real = np.array([data.draw(st.lists(numbers, min_size=4, max_size=4))])
    rounded = np.rint(real)
    if name == "bfv-distance":
        # The steward seals the norm of the rounded row.
        real[0, 3], rounded[0, 3] = (real[0, :3] ** 2).sum() / 5, (rounded[0, :3] ** 2).sum() / 5
    everybody = np.ones(1, dtype=np.bool_)
    moved = np.abs(case.truth(rounded, everybody) - case.truth(real, everybody)).max()
    assert moved <= rounding_bound(case.parameters, case.shape(KEY)) + 1e-9


def test_rounding_bound_is_reached_by_half_a_unit_in_every_feature() -> None:
    shape = CASES[0].shape(KEY)
    model = LinearParameters(output="rows", weights=((3, -1, 0, 2),), bias=(0,))
    assert rounding_bound(model, shape) == abs(np.array([3, -1, 0, 2]) @ [0.5, -0.5, 0.5, 0.5])
    with pytest.raises(KernelParameterError, match="sealed features"):
        rounding_bound(BlindParameters(queries=(bytes(32),), max_abs=1, max_l2=1), shape)
    assert rounding_bound(FedsumParameters(weights=(1, 1, 1, 1)), shape) == 1, "a whole unit: towards zero"


NUMBERS = st.lists(st.floats(-3, 3, allow_nan=False), min_size=4, max_size=4)
FINE = CASES[0].shape(KEY)
COARSE = replace(FINE, n_rows=60_000, max_abs=1, max_l2=2)
"""A sum of so many rows leaves a weight few steps."""


@settings(max_examples=60, deadline=None)
@given(
    weights=NUMBERS,
    bias=st.floats(-3, 3, allow_nan=False),
    rows=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
@example(weights=[1, 0.0586, 0, 0], bias=0, rows=[1, 1, 0, 0])
@pytest.mark.parametrize(("shape", "output", "scale"), [(FINE, "rows", 10), (COARSE, "sum", 1)])
def test_a_quantised_models_scores_stay_within_its_error_bounds(
    shape: BundleShape,
    output: Literal["rows", "sum"],
    scale: int,
    weights: list[float],
    bias: float,
    rows: list[float],
) -> None:
    """Of real rows: one that is rounded to the largest integer is up to half a unit larger."""
    assume(max(map(abs, weights)) >= 1e-3)
    try:
        model = quantise_model(np.array(weights), bias, shape=shape, feature_scale=scale, output=output)
    except KernelBoundError:
        reject()
    (integers,), (offset,) = model.parameters.weights, model.parameters.bias
    units = np.array(rows) * (shape.max_abs + 0.49)
    for seen, others in ((np.rint(units), 0.0), (units, rounding_bound(model.parameters, shape))):
        score = (np.rint(units) @ np.array(integers) + offset) / model.result_scale
        bound = model.error_bound + others / model.result_scale
        assert abs(score - (seen / scale @ weights + bias)) <= bound * (1 + 1e-9) + 1e-12


def test_sample_of_a_job_has_one_chunk_of_its_rows_whatever_its_length() -> None:
    for case in CASES:
        shape = replace(case.shape(KEY), n_rows=4 * case.chosen.poly_modulus_degree)
        if case.name in ("bfv-sum", "bfv-linear-sum"):
            shape = replace(shape, max_abs=1, max_l2=2)
        tasks = plan(case.kernel, case.parameters, shape)
        sample = cost._sample(case.kernel, tasks[0])
        assert sample.shape.n_rows == case.chosen.poly_modulus_degree
        assert {chunk for chunk, _ in sample.inputs if chunk < sample.shape.n_chunks} <= {0}
