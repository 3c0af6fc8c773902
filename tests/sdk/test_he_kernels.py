"""Kernels: exact results, static bounds, strict parameters, independent tasks."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import (
    ContainerError,
    KernelBoundError,
    KernelParameterError,
    KeyStoreError,
    UnknownKernelError,
    WrongKeyDomainError,
)
from usufruct.he import kernels, lanes
from usufruct.he.bfv import SecretKey, encrypt_columns, generate_secret_key, open_coefficients
from usufruct.he.container import Form, parse
from usufruct.he.kernels import (
    DISTANCE,
    FRESH_NOISE,
    IDENTIFY,
    KERNELS,
    LINEAR,
    MARGIN_BITS,
    SUM,
    VERIFY,
    BundleShape,
    Kernel,
    KernelParameters,
    LinearParameters,
    SumParameters,
    execute,
    kernel_by_id,
    kernel_by_name,
    linear,
    norm_columns,
    outputs,
    plan,
    run,
)
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.quantise import quantise_model

N, T = BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.plain_modulus
N_ROWS, N_FEATURES, MAX_ABS = N + 50, 5, 30


class Bundle:
    """A sealed matrix of two row chunks, with its plaintext."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.secret: SecretKey = generate_secret_key()
        self.values = rng.integers(-MAX_ABS, MAX_ABS + 1, (N_ROWS, N_FEATURES))
        self.mask = rng.random(N_ROWS) < 0.9
        self.blocks = {(c, f): block for c, f, block in encrypt_columns(self.values, self.secret)}
        self.shape = shape(key_id=self.secret.key_id)

    def block(self, chunk: int, feature: int) -> bytes:
        return self.blocks[chunk, feature]


def shape(**changes: object) -> BundleShape:
    fields: dict[str, object] = {
        "n_rows": N_ROWS,
        "n_features": N_FEATURES,
        "max_abs": MAX_ABS,
        "max_l2": 68,
        "key_id": bytes(32),
        "parameters": BFV_LINEAR,
    }
    return BundleShape(**(fields | changes))


def model(output: str, weights: list[list[int]], bias: list[int]) -> LinearParameters:
    parsed = LINEAR.parse({"output": output, "weights": weights, "bias": bias})
    assert isinstance(parsed, LinearParameters)
    return parsed


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle()


def test_sum_equals_the_plaintext_sum_over_permitted_rows_of_all_chunks(bundle: Bundle) -> None:
    results = list(run(SUM, SumParameters(), bundle.shape, bundle.block, bundle.mask))
    assert [index for index, _ in results] == list(range(N_FEATURES))
    opened = [open_coefficients(block, bundle.secret, [0])[0] for _, block in results]
    assert opened == bundle.values[bundle.mask].sum(axis=0).tolist()
    assert {parse(block).form for _, block in results} == {Form.EXTRACTED}


@pytest.mark.parametrize("row", [0, 1, N - 1, N, N_ROWS - 1])
def test_withdrawn_row_is_truly_absent_from_the_next_sum(bundle: Bundle, row: int) -> None:
    everyone = np.ones(N_ROWS, dtype=bool)
    without = everyone.copy()
    without[row] = False
    totals = [
        [
            open_coefficients(b, bundle.secret, [0])[0]
            for _, b in run(SUM, SumParameters(), bundle.shape, bundle.block, m)
        ]
        for m in (everyone, without)
    ]
    assert (np.array(totals[0]) - np.array(totals[1])).tolist() == bundle.values[row].tolist()


def test_sum_of_a_single_permitted_row_is_that_row(bundle: Bundle) -> None:
    only = np.zeros(N_ROWS, dtype=bool)
    only[N + 7] = True
    results = run(SUM, SumParameters(), bundle.shape, bundle.block, only)
    assert [open_coefficients(b, bundle.secret, [0])[0] for _, b in results] == bundle.values[N + 7].tolist()


def test_scores_per_row_equal_the_plaintext_scores(bundle: Bundle) -> None:
    parameters = model("rows", [[5, -3, 0, 100, 1], [0, 0, 0, 0, -7], [-250, 0, 9, 0, 1]], [10, -20, 0])
    results = dict(run(LINEAR, parameters, bundle.shape, bundle.block, bundle.mask))
    expected = bundle.values @ np.array(parameters.weights).T + np.array(parameters.bias)
    described = outputs(LINEAR, parameters, bundle.shape)
    assert sorted(results) == [output.index for output in described] == list(range(6))
    for output in described:
        assert output.chunk is not None
        first = output.chunk * N
        opened = open_coefficients(results[output.index], bundle.secret, range(output.coefficients))
        assert opened == expected[first : first + N, output.column].tolist()
        assert parse(results[output.index]).form is output.form is Form.CIPHERTEXT


def test_summed_scores_equal_the_plaintext_scores_over_permitted_rows(bundle: Bundle) -> None:
    parameters = model("sum", [[1, -1, 0, 0, 0], [0, 0, 0, 0, 1]], [3, -2])
    small = replace(bundle.shape, max_l2=20)
    results = list(run(LINEAR, parameters, small, bundle.block, bundle.mask))
    expected = (bundle.values[bundle.mask] @ np.array(parameters.weights).T + np.array(parameters.bias)).sum(
        axis=0
    )
    assert [open_coefficients(block, bundle.secret, [0])[0] for _, block in results] == expected.tolist()
    assert [(o.index, o.column, o.chunk, o.coefficients) for o in outputs(LINEAR, parameters, small)] == [
        (0, 0, None, 1),
        (1, 1, None, 1),
    ]


def test_results_sit_exactly_at_the_value_limit_without_wrapping() -> None:
    limit = T // 2
    secret = generate_secret_key()
    values = np.array([[limit], [-limit]])
    blocks = {(c, f): b for c, f, b in encrypt_columns(values, secret)}
    tight = BundleShape(
        n_rows=2, n_features=1, max_abs=limit, max_l2=limit, key_id=secret.key_id, parameters=BFV_LINEAR
    )
    parameters = model("rows", [[-1]], [0])
    assert LINEAR.validate(parameters, tight).value_bound == limit
    ((_, block),) = run(LINEAR, parameters, tight, lambda c, f: blocks[c, f], np.ones(2, dtype=bool))
    assert open_coefficients(block, secret, [0, 1]) == [-limit, limit]
    with pytest.raises(KernelBoundError, match=f"{limit + 1} exceeds the limit {limit}"):
        LINEAR.validate(model("rows", [[-1]], [-1]), tight)


@pytest.mark.parametrize("parameters", [SumParameters(), model("rows", [[1, 2, 0, 3, 4]], [5])])
def test_tasks_are_independent_and_run_in_other_processes_to_the_same_bytes(
    bundle: Bundle, parameters: SumParameters | LinearParameters
) -> None:
    kernel = SUM if isinstance(parameters, SumParameters) else LINEAR
    tasks = plan(kernel, parameters, bundle.shape)
    here = dict(run(kernel, parameters, bundle.shape, bundle.block, bundle.mask))
    inputs = [{key: bundle.blocks[key] for key in task.inputs} for task in tasks]
    with ProcessPoolExecutor(1) as pool:
        made = list(pool.map(execute, reversed(tasks), reversed(inputs), [bundle.mask] * len(tasks)))
    there = {
        i: b
        for task, blocks in zip(reversed(tasks), made, strict=True)
        for i, b in zip(task.outputs, blocks, strict=True)
    }
    assert there == here


@pytest.mark.parametrize("output", ["rows", "sum"])
def test_compiled_lanes_and_blas_give_the_same_blocks(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    parameters = model(output, [[1, -2, 0, 3, 1], [0, 0, 0, 0, -1], [1, 1, 1, 1, 1]], [1, -2, 0])
    small = replace(bundle.shape, max_l2=20)
    with monkeypatch.context() as patched:
        patched.setattr(linear, "_is_worth_compiling", lambda weights, shape: False)
        patched.setattr(lanes, "multiply", None)
        by_blas = list(run(LINEAR, parameters, small, bundle.block, bundle.mask))
    monkeypatch.setattr(linear, "_COMPILED_WORK", 0)
    monkeypatch.setattr(linear, "_PANEL_FEATURES", 2)
    monkeypatch.setattr(linear, "combine", None)
    assert list(run(LINEAR, parameters, small, bundle.block, bundle.mask)) == by_blas


def test_weights_too_wide_for_the_lanes_run_on_blas_to_the_right_scores(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_COMPILED_WORK", 0)
    parameters = model("rows", [[0, 40_000, 0, 0, 0]], [0])
    tiny = replace(bundle.shape, max_abs=12)
    values = bundle.values % 12
    blocks = {(c, f): b for c, f, b in encrypt_columns(values, bundle.secret)}
    results = dict(run(LINEAR, parameters, tiny, lambda c, f: blocks[c, f], bundle.mask))
    assert open_coefficients(results[0], bundle.secret, range(N)) == (values[:N, 1] * 40_000).tolist()


def test_every_output_belongs_to_one_task_or_is_a_sum_of_all_and_unweighted_columns_are_not_read() -> None:
    wide = shape(n_rows=3 * N, n_features=200, max_abs=10)
    for kernel, parameters in (
        (SUM, SumParameters()),
        (LINEAR, model("rows", [[0] * 199 + [1], [0] * 198 + [1, 0]], [0, 0])),
        (LINEAR, model("sum", [[0] * 199 + [1]], [0])),
    ):
        tasks = plan(kernel, parameters, wide)
        every = [output.index for output in outputs(kernel, parameters, wide)]
        if tasks[0].partial:
            assert all(list(task.outputs) == every and task.partial for task in tasks)
        else:
            assert sorted(index for task in tasks for index in task.outputs) == every
        reads = [key for task in tasks for key in task.inputs]
        assert len(set(reads)) == len(reads)
        assert [task.index for task in tasks] == list(range(len(tasks)))
        read = {feature for task in tasks for _, feature in task.inputs}
        assert len(read) == {0: 200, 2: 2, 1: 1}[len(getattr(parameters, "weights", ()))]


def test_a_sum_of_scores_is_the_same_however_many_chunks_a_task_takes_and_in_whatever_order_they_finish(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = model("sum", [[1, 0, 1, 0, -1], [0, 2, 0, 0, 0]], [3, -4])
    narrow = replace(bundle.shape, max_l2=20)
    made = []
    for most in (1, 2):
        monkeypatch.setattr(linear, "_SUM_TASKS", most)
        tasks = plan(LINEAR, parameters, narrow)
        assert len(tasks) == most
        collector = kernels.Collector(LINEAR, parameters, narrow, bundle.mask, tasks)
        found = [
            done
            for task in reversed(tasks)
            for done in collector.add(task, kernels.execute(task, bundle.blocks, bundle.mask))
        ]
        made.append(found)
        with pytest.raises(ValueError, match="added before"):
            collector.add(tasks[0], [])
    assert made[0] == made[1] and [index for index, _ in made[0]] == [0, 1]


def test_inputs_are_looked_up_once_and_in_the_order_of_the_plan(bundle: Bundle) -> None:
    seen: list[tuple[int, int]] = []

    def block(chunk: int, feature: int) -> bytes:
        seen.append((chunk, feature))
        return bundle.blocks[chunk, feature]

    parameters = model("sum", [[1, 0, 1, 0, -1]], [0])
    list(run(LINEAR, parameters, replace(bundle.shape, max_l2=20), block, bundle.mask))
    assert seen == [(c, f) for c in (0, 1) for f in (0, 2, 4)]


def test_curious_compute_node_kernels_run_where_no_homomorphic_library_can_be_imported() -> None:
    """The package's front door is left out, so that only what the kernels import themselves is loaded."""
    code = (
        "import sys, types\n"
        "sys.modules['tenseal'] = sys.modules['cryptography'] = None\n"
        "front = sys.modules['usufruct'] = types.ModuleType('usufruct')\n"
        "front.__path__ = [sys.argv[1]]\n"
        "import usufruct.he.kernels, usufruct.he.container\n"
        "try:\n"
        "    import usufruct.he.bfv\n"
        "except ImportError:\n"
        "    sys.exit(7)\n"
    )
    package = Path(kernels.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(package)], check=False).returncode == 7


def test_malicious_peer_tampered_input_is_refused(bundle: Bundle) -> None:
    def tampered(chunk: int, feature: int) -> bytes:
        block = bundle.blocks[chunk, feature]
        return block[:75] + b"\xff" * 7 + block[82:] if (chunk, feature) == (1, 3) else block

    with pytest.raises(ContainerError):
        list(run(SUM, SumParameters(), bundle.shape, tampered, bundle.mask))


def test_foreign_key_input_of_another_key_domain_is_refused(bundle: Bundle) -> None:
    with pytest.raises(WrongKeyDomainError):
        list(run(SUM, SumParameters(), shape(), bundle.block, bundle.mask))


def test_a_result_is_not_accepted_as_an_input(bundle: Bundle) -> None:
    parameters = model("rows", [[1, 0, 0, 0, 0]], [0])
    result = dict(run(LINEAR, parameters, bundle.shape, bundle.block, bundle.mask))[0]
    with pytest.raises(ContainerError) as caught:
        list(run(SUM, SumParameters(), bundle.shape, lambda c, f: result, bundle.mask))
    assert caught.value.field == "form"


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros(N_ROWS, dtype=bool),
        np.ones(N_ROWS - 1, dtype=bool),
        np.ones(N_ROWS, dtype=np.int64),
        np.ones((N_ROWS, 1), dtype=bool),
    ],
)
def test_mask_that_does_not_fit_or_permits_nobody_is_refused_before_work(
    bundle: Bundle, mask: np.ndarray
) -> None:
    def never(chunk: int, feature: int) -> bytes:
        raise AssertionError("a block was read")

    with pytest.raises(KernelParameterError, match="mask"):
        list(run(SUM, SumParameters(), bundle.shape, never, mask))


def test_all_zero_weights_are_refused_since_their_result_would_be_in_the_clear() -> None:
    with pytest.raises(KernelParameterError, match="row 1 is all zero"):
        LINEAR.validate(model("rows", [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [0, 1]), shape())


def test_model_for_another_number_of_features_is_refused() -> None:
    with pytest.raises(KernelParameterError, match="4 weights for 5 features"):
        plan(LINEAR, model("rows", [[1, 2, 3, 4]], [0]), shape())


def test_parameters_of_another_kernel_are_refused() -> None:
    with pytest.raises(KernelParameterError):
        SUM.validate(model("rows", [[1]], [0]), shape(n_features=1))
    with pytest.raises(KernelParameterError):
        LINEAR.validate(SumParameters(), shape())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"output": "rows", "weights": [[1]]},
        {"output": "rows", "weights": [[1]], "bias": [0], "code": "import os"},
        {"output": "columns", "weights": [[1]], "bias": [0]},
        {"output": "rows", "weights": [], "bias": []},
        {"output": "rows", "weights": [[]], "bias": [0]},
        {"output": "rows", "weights": [[1], [1, 2]], "bias": [0, 0]},
        {"output": "rows", "weights": [[1]], "bias": [0, 0]},
        {"output": "rows", "weights": [[1.0]], "bias": [0]},
        {"output": "rows", "weights": [[True]], "bias": [0]},
        {"output": "rows", "weights": [[1 << 31]], "bias": [0]},
        {"output": "rows", "weights": ["12"], "bias": [0]},
        {"output": "rows", "weights": [[1]], "bias": None},
        {"output": ["rows"], "weights": [[1]], "bias": [0]},
        {"output": "rows", "weights": [[1]] * 1025, "bias": [0] * 1025},
    ],
)
def test_malformed_parameters_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(KernelParameterError):
        LINEAR.parse(fields)


def test_parameters_come_back_from_their_plain_form() -> None:
    parameters = model("sum", [[1, -2], [0, 3]], [5, -6])
    assert LINEAR.parse(parameters.to_dict()) == parameters
    assert SUM.parse(SumParameters().to_dict()) == SumParameters()
    with pytest.raises(KernelParameterError):
        SUM.parse({"columns": [0]})


@pytest.mark.parametrize(
    "changes",
    [{"n_rows": 0}, {"n_rows": (1 << 24) + 1}, {"n_features": 0}, {"max_abs": 0}, {"max_abs": T // 2 + 1},
     {"max_l2": 0}, {"key_id": b"short"}, {"n_rows": True}, {"n_rows": 1.5}],
)  # fmt: skip
def test_impossible_shapes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(KernelParameterError):
        shape(**changes)


def test_unknown_kernels_are_refused_by_name_and_by_id() -> None:
    with pytest.raises(UnknownKernelError):
        kernel_by_name("identify-1:N")
    with pytest.raises(UnknownKernelError):
        kernel_by_id(bytes(32))
    for name, kernel in KERNELS.items():
        assert kernel_by_name(name) is kernel_by_id(kernel.kernel_id) is kernel


def opened_rows(
    kernel: Kernel, parameters: KernelParameters, bundle: Bundle, shape: BundleShape
) -> np.ndarray:
    """Every per-row result, shape (n_rows, m)."""
    results = dict(run(kernel, parameters, shape, bundle.block, bundle.mask))
    columns: dict[int, list[int]] = {}
    for output in outputs(kernel, parameters, shape):
        assert parse(results[output.index]).form is output.form is Form.CIPHERTEXT
        opened = open_coefficients(results[output.index], bundle.secret, range(output.coefficients))
        columns.setdefault(output.column, []).extend(opened)
    return np.array([columns[column] for column in sorted(columns)]).T


def test_distances_are_the_squared_distances_to_every_centroid() -> None:
    """Three features and two norm columns; the numbers are those of numpy on plaintext."""
    rng = np.random.default_rng(21)
    features = rng.integers(-20, 21, (N + 9, 3))
    bundle = Bundle()
    bundle.values = np.hstack([features, norm_columns(features, 40)])
    assert bundle.values.max() <= 40
    bundle.blocks = {(c, f): block for c, f, block in encrypt_columns(bundle.values, bundle.secret)}
    bundle.mask = np.ones(N + 9, dtype=bool)
    declared = shape(n_rows=N + 9, max_abs=40, max_l2=70, key_id=bundle.secret.key_id)
    centroids = rng.integers(-20, 21, (4, 3))
    parameters = DISTANCE.parse(
        {"centroids": [[*map(int, row), 0, 0] for row in centroids], "norm": [[3, 40], [4, 1]]}
    )
    expected = ((features[:, None, :] - centroids[None]) ** 2).sum(axis=2)
    assert np.array_equal(opened_rows(DISTANCE, parameters, bundle, declared), expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_row_within_its_declared_ranges_exceeds_the_bound_of_a_distance(data: st.DataObject) -> None:
    max_abs = data.draw(st.integers(1, 60))
    row = np.array(data.draw(st.lists(st.integers(-max_abs, max_abs), min_size=4, max_size=4)))
    centroid = [*data.draw(st.lists(st.integers(-60, 60), min_size=3, max_size=3)), 0]
    unit = data.draw(st.integers(1, 500))
    max_l2 = max(1, int(np.ceil(np.linalg.norm(row))))
    declared = shape(n_rows=3, n_features=4, max_abs=max_abs, max_l2=max_l2)
    parameters = DISTANCE.parse({"centroids": [centroid], "norm": [[3, unit]]})
    value = int(row[3]) * unit - 2 * int(row @ np.array(centroid)) + sum(c * c for c in centroid)
    assert abs(value) <= DISTANCE.validate(parameters, declared).value_bound


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"centroids": [[1, 0, 0, 0, 0]], "norm": []}, "1 to 8 pairs"),
        ({"centroids": [[1, 0, 0, 0, 0]], "norm": [[4]]}, "a column and a positive unit"),
        ({"centroids": [[1, 0, 0, 0, 0]], "norm": [[4, 0]]}, "a column and a positive unit"),
        ({"centroids": [[1, 0, 0, 0, 0]], "norm": [[5, 1]]}, "beyond the 5 features"),
        ({"centroids": [[1, 0, 0, 0, 0]], "norm": [[-1, 1]]}, "beyond the 5 features"),
        ({"centroids": [[1, 0, 0, 0, 0]], "norm": [[4, 1], [4, 2]]}, "names a column twice"),
        ({"centroids": [[1, 0, 0, 0, 7]], "norm": [[4, 1]]}, "0 in every norm column"),
        ({"centroids": [[1, 0, 0, 0]], "norm": [[3, 1]]}, "needs 5 values"),
    ],
)
def test_malformed_distances_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(KernelParameterError, match=message):
        DISTANCE.validate(DISTANCE.parse(fields), shape())


def test_norm_columns_hold_the_exact_squared_norm() -> None:
    values = np.random.default_rng(22).integers(-(2**20), 2**20, (50, 7))
    columns = norm_columns(values, 1 << 22)
    assert np.array_equal(columns @ [1 << 22, 1], (values**2).sum(axis=1))
    assert columns.min() >= 0 and columns.max() < 1 << 22
    with pytest.raises(KernelParameterError):
        norm_columns(values, 1)


QUERIES = [[5, -3, 0, 100, 1], [-250, 0, 9, 0, 1], [0, 0, 1, 0, 0]]


def test_identification_gives_every_inner_product(bundle: Bundle) -> None:
    found = opened_rows(IDENTIFY, IDENTIFY.parse({"queries": QUERIES}), bundle, bundle.shape)
    assert np.array_equal(found, bundle.values @ np.array(QUERIES).T)


def test_verification_gives_the_inner_product_with_the_named_row_and_nothing_else(bundle: Bundle) -> None:
    everyone = np.ones(N_ROWS, dtype=bool)
    rows = [N + 3, 0, N - 1]
    parameters = VERIFY.parse({"queries": QUERIES, "rows": rows})
    results = dict(run(VERIFY, parameters, bundle.shape, bundle.block, everyone))
    described = outputs(VERIFY, parameters, bundle.shape)
    assert [(o.form, o.chunk, o.coefficients) for o in described] == [
        (Form.EXTRACTED, c, 1) for c in (1, 0, 0)
    ]
    opened = [open_coefficients(results[index], bundle.secret, [0])[0] for index in range(3)]
    assert opened == [int(bundle.values[row] @ query) for row, query in zip(rows, QUERIES, strict=True)]
    with pytest.raises(KeyStoreError, match="only the first 1"):
        open_coefficients(results[0], bundle.secret, [1])


def test_verification_reads_only_the_chunks_that_hold_a_named_row(bundle: Bundle) -> None:
    parameters = VERIFY.parse({"queries": QUERIES[:1], "rows": [N + 1]})
    tasks = plan(VERIFY, parameters, bundle.shape)
    assert [task.inputs for task in tasks] == [tuple((1, feature) for feature in (0, 1, 3, 4))]


def test_verification_of_a_withdrawn_row_is_refused_before_work(bundle: Bundle) -> None:
    mask = np.ones(N_ROWS, dtype=bool)
    mask[17] = False
    parameters = VERIFY.parse({"queries": QUERIES[:2], "rows": [N, 17]})

    def never(chunk: int, feature: int) -> bytes:
        raise AssertionError("a block was read")

    with pytest.raises(KernelParameterError, match="query 1 names row 17"):
        list(run(VERIFY, parameters, bundle.shape, never, mask))


@pytest.mark.parametrize("rows", [[0], [0, N_ROWS, 1], [0, -1, 1]])
def test_verification_of_rows_that_do_not_exist_is_refused(rows: list[int]) -> None:
    with pytest.raises(KernelParameterError):
        VERIFY.validate(VERIFY.parse({"queries": QUERIES, "rows": rows}), shape())


def test_similarity_that_could_overflow_is_refused_at_the_first_step_over_the_limit() -> None:
    tight = shape(max_abs=1, max_l2=1)
    for kernel, more in ((IDENTIFY, {}), (VERIFY, {"rows": [0]})):
        most = kernel.parse({"queries": [[T // 2, 0, 0, 0, 0]], **more})
        assert kernel.validate(most, tight).value_bound == T // 2
        over = kernel.parse({"queries": [[T // 2 + 1, 0, 0, 0, 0]], **more})
        with pytest.raises(KernelBoundError, match="exceeds the limit"):
            kernel.validate(over, tight)


@pytest.mark.parametrize("kernel", [VERIFY, IDENTIFY])
def test_match_oracle_kernels_about_single_persons_are_out_of_reach_unless_their_class_is_enabled(
    kernel: Kernel,
) -> None:
    assert kernel.name not in KERNELS
    for enabled in ((), ("score", "aggregate")):
        with pytest.raises(UnknownKernelError, match="not enabled"):
            kernel_by_name(kernel.name, enabled=enabled)
        with pytest.raises(UnknownKernelError, match="not enabled"):
            kernel_by_id(kernel.kernel_id, enabled=enabled)
    only = {kernel.kernel_class}
    assert kernel_by_name(kernel.name, enabled=only) is kernel_by_id(kernel.kernel_id, enabled=only) is kernel


def test_match_oracle_no_code_of_the_network_enables_a_restricted_class() -> None:
    """Rights, policies, jobs and roles look kernels up without enabling anything, so they cannot reach one."""
    root = Path(kernels.__file__).parents[3]
    for path in [*root.rglob("*.py"), *(root.parent / "node").rglob("*.py")]:
        if Path(kernels.__file__).parent not in path.parents:
            text = path.read_text(encoding="utf-8")
            for word in ("enabled=", "RESTRICTED", "IDENTIFY", "VERIFY,", "similarity-"):
                assert word not in text, f"{path.name} mentions {word}"


def test_match_oracle_a_job_or_grant_for_identification_is_refused() -> None:
    from usufruct.job import JobParameters
    from usufruct.rights import terms

    record = {
        "type": "usufruct/parameters/1",
        "kernel": bytes(IDENTIFY.kernel_id),
        "parameters": {"queries": QUERIES},
        "result_scale": 1.0,
    }
    with pytest.raises(UnknownKernelError):
        JobParameters.from_record(record)
    with pytest.raises(UnknownKernelError):
        terms(kernels=[IDENTIFY.name], uses=1, expires_at=1, rho_micro=1)


@pytest.mark.parametrize("kernel", [DISTANCE, VERIFY, IDENTIFY])
def test_parameters_of_the_other_kernels_come_back_from_their_plain_form(kernel: Kernel) -> None:
    fields = {
        "distance": {"centroids": [[1, 2, 0]], "norm": [[2, 9]]},
        "similarity-verify": {"queries": [[1, 2, 3]], "rows": [4]},
        "similarity-identify": {"queries": [[1, 2, 3]]},
    }[kernel.name]
    parsed = kernel.parse(fields)
    assert parsed.to_dict() == fields and kernel.parse(parsed.to_dict()) == parsed
    assert parsed.row_level
    with pytest.raises(KernelParameterError):
        kernel.parse(fields | {"code": "import os"})


def test_kernel_id_covers_every_field_of_the_record() -> None:
    ids = {LINEAR.kernel_id, SUM.kernel_id}
    changes: dict[str, object] = {
        "name": "other", "version": 2, "kernel_class": "aggregate", "scheme": "bgv",
        "parameter_schema": {}, "bounds": {}, "cost_model": {},
    }  # fmt: skip
    for field, value in changes.items():
        ids.add(replace(LINEAR, **{field: value}).kernel_id)
    assert len(ids) == 2 + len(changes)
    assert set(changes) == set(Kernel.__dataclass_fields__) - {"implementation"}


def test_sum_that_could_overflow_the_plaintext_modulus_is_refused_with_bound_and_limit() -> None:
    limit = T // 2
    assert SUM.validate(SumParameters(), shape(n_rows=100, max_abs=limit // 100)).value_bound <= limit
    with pytest.raises(KernelBoundError, match=rf"{100 * (limit // 100 + 1)} exceeds the limit {limit}"):
        SUM.validate(SumParameters(), shape(n_rows=100, max_abs=limit // 100 + 1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_input_within_its_declared_ranges_exceeds_the_value_bound(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 6))
    max_abs = data.draw(st.integers(1, 40))
    weights = data.draw(st.lists(st.integers(-50, 50), min_size=d, max_size=d).filter(any))
    bias = data.draw(st.integers(-100, 100))
    row = np.array(data.draw(st.lists(st.integers(-max_abs, max_abs), min_size=d, max_size=d)))
    max_l2 = max(1, int(np.ceil(np.linalg.norm(row))))
    declared = shape(n_rows=3, n_features=d, max_abs=max_abs, max_l2=max_l2)
    score = int(row @ np.array(weights)) + bias
    assert abs(score) <= LINEAR.validate(model("rows", [weights], [bias]), declared).value_bound
    assert 3 * abs(score) <= LINEAR.validate(model("sum", [weights], [bias]), declared).value_bound


def test_noise_of_a_sum_adds_up_over_its_rows() -> None:
    bundle = shape(n_features=2, n_rows=100)
    for output, repeats in (("rows", 1), ("sum", bundle.n_rows)):
        asked = LinearParameters(output=output, weights=((3, -2),), bias=(0,))
        assert LINEAR.validate(asked, bundle).noise_bound == repeats * 5 * FRESH_NOISE + 1


def test_exact_scheme_cpad_a_kernel_whose_noise_margin_is_too_thin_is_refused() -> None:
    """Value bounds alone would let these through: rows of tiny norm leave room for huge weights."""
    thin = shape(n_rows=1, n_features=60000, max_abs=1, max_l2=1)
    weights = [900] * 60000
    with pytest.raises(KernelBoundError, match="noise"):
        LINEAR.validate(model("rows", [[w * 2 for w in weights]], [0]), thin)
    bounds = LINEAR.validate(model("rows", [[20] * 60000], [0]), thin)
    assert bounds.margin_bits >= MARGIN_BITS
    assert bounds.noise_bound << bounds.margin_bits <= bounds.noise_limit


def test_quantised_model_uses_the_room_and_reproduces_the_real_scores(bundle: Bundle) -> None:
    rng = np.random.default_rng(12)
    weights, bias, scale = rng.normal(size=(2, N_FEATURES)), rng.normal(size=2), 10
    quantised = quantise_model(weights, bias, shape=bundle.shape, feature_scale=scale, output="rows")
    bounds = LINEAR.validate(quantised.parameters, bundle.shape)
    assert 0.99 * bounds.value_limit < bounds.value_bound <= bounds.value_limit
    results = dict(run(LINEAR, quantised.parameters, bundle.shape, bundle.block, bundle.mask))
    opened = np.array(open_coefficients(results[0], bundle.secret, range(N))) / quantised.result_scale
    real = bundle.values[:N] / scale @ weights[0] + bias[0]
    assert np.abs(opened - real).max() < 0.01


def test_quantised_model_for_sums_is_coarser_than_for_rows() -> None:
    weights = np.array([1.0, -2.0, 0.5, 0.25, 3.0])
    of = {
        output: quantise_model(weights, 0.5, shape=shape(n_rows=80), feature_scale=4, output=output)
        for output in ("rows", "sum")
    }
    ratio = of["rows"].weight_scale / of["sum"].weight_scale
    assert 75 < ratio < 85


def test_model_whose_worst_case_overflows_at_every_scale_is_refused() -> None:
    vast = shape(n_rows=1 << 20, max_abs=T // 2)
    with pytest.raises(KernelBoundError, match="no weight scale"):
        quantise_model(np.ones(N_FEATURES), 0.0, shape=vast, feature_scale=1, output="sum")


@pytest.mark.parametrize(
    ("weights", "bias"),
    [
        (np.zeros(N_FEATURES), 0.0),
        (np.full(N_FEATURES, np.nan), 0.0),
        (np.full(N_FEATURES, np.inf), 0.0),
        (np.ones(N_FEATURES), float("-inf")),
        (np.ones(N_FEATURES + 1), 0.0),
        (np.ones((2, N_FEATURES)), np.ones(3)),
        (np.full(N_FEATURES, "a"), 0.0),
        (np.ones(N_FEATURES), "a"),
        (np.ones(N_FEATURES), None),
        (np.ones(N_FEATURES), {}),
        ([[1.0], [1.0, 2.0]], 0.0),
        ([10**400] * N_FEATURES, 0.0),
    ],
)
def test_models_that_are_not_usable_are_refused(weights: object, bias: object) -> None:
    with pytest.raises(KernelParameterError):
        quantise_model(weights, bias, shape=shape(), feature_scale=4, output="rows")
