"""The `linear` kernel, and the weighted sums of columns that other kernels build on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isqrt
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelParameterError
from usufruct.he import lanes, packed
from usufruct.he.container import Ciphertext, Form, encode, pack
from usufruct.he.kernels.blocks import (
    BLOCKS_PER_TASK,
    chunk_mask,
    extracted,
    features_by_chunk,
    mask_polynomial,
    used_columns,
)
from usufruct.he.kernels.record import (
    MAX_FEATURES,
    BundleShape,
    Implementation,
    Inputs,
    Kernel,
    KernelParameters,
    Mask,
    Output,
    Part,
    Task,
)
from usufruct.he.parameters import Parameters
from usufruct.he.reading import read_sealed
from usufruct.he.residues import Residues, combine, negacyclic_multiply, scale_up, total_of

FRESH_NOISE: Final = 22
"""Worst-case noise of a sealed block's coefficient: an error of 21 and the rounding of q m / t."""

MAX_MODEL_OUTPUTS: Final = 1024
_PANEL_FEATURES = 256
_SUM_TASKS = 64
"""Most parts that a sum over all rows is cut into."""

_COMPILED_WORK = 2048
"""Weights times chunks from which a job is worth the seconds that compiling takes in every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearParameters:
    """An integer linear model: `weights @ row + bias`."""

    output: Literal["rows", "sum"]
    """`rows`: a score for every row; `sum`: one sum of scores over the permitted rows."""

    weights: tuple[tuple[int, ...], ...]
    """shape (m, n_features)."""

    bias: tuple[int, ...]
    """shape (m,)."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return self.output == "rows"

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {
            "output": self.output,
            "weights": [list(row) for row in self.weights],
            "bias": list(self.bias),
        }

    def linear_form(self, shape: BundleShape) -> LinearParameters:
        """The parameters themselves."""
        return self


def linear_form(parameters: KernelParameters, shape: BundleShape) -> LinearParameters | None:
    """Return the linear model that these parameters amount to; None if they are no linear map of the columns.

    Raises
    ------
    KernelParameterError
        If they do not fit the shape.
    """
    return parameters.linear_form(shape)


def linear_worst_case(
    linear: LinearParameters,
    shape: BundleShape,
    *,
    fresh_noise: int = FRESH_NOISE,
    zero_allowed: bool = False,
) -> tuple[int, int]:
    """Worst-case value and noise of any result of a linear model over sealed columns.

    Raises
    ------
    KernelParameterError
        If the model does not fit the shape, or a result would be the zero ciphertext.
    """
    if len(linear.weights) != len(linear.bias) or not linear.weights:
        raise KernelParameterError("weights and bias differ in length, or are empty")
    for index, row in enumerate(linear.weights):
        if len(row) != shape.n_features:
            raise KernelParameterError(
                f"weights row {index} has {len(row)} weights for {shape.n_features} features"
            )
    repeats = shape.n_rows if linear.output == "sum" else 1
    value = noise = 0
    norms = zip(*_norms(linear.weights), strict=True)
    for index, ((l1, squares), bias) in enumerate(zip(norms, linear.bias, strict=True)):
        if l1 == 0 and not zero_allowed:
            raise KernelParameterError(
                f"weights row {index} is all zero, so its result would not be encrypted"
            )
        squared = squares * shape.max_l2**2
        l2 = isqrt(squared - 1) + 1 if squared else 0
        value = max(value, repeats * (min(l1 * shape.max_abs, l2) + abs(bias)))
        noise = max(noise, repeats * l1 * fresh_noise + 1)
    return value, noise


def _norms(weights: Sequence[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Sums of magnitudes and of squares, of each row."""
    matrix = np.array(weights, dtype=object)
    peak = int(np.abs(matrix).max())
    if peak**2 * matrix.shape[1] < 1 << 63:
        matrix = matrix.astype(np.int64)
    magnitudes = np.abs(matrix)
    return magnitudes.sum(axis=1).tolist(), (magnitudes * magnitudes).sum(axis=1).tolist()


def row_outputs(n_models: int, shape: BundleShape) -> list[Output]:
    """Describe results that hold one coefficient for every row: all models of chunk 0, then of chunk 1."""
    return [
        Output(
            index=chunk * n_models + column,
            form=Form.CIPHERTEXT,
            column=column,
            chunk=chunk,
            coefficients=shape.rows_in_chunk(chunk),
        )
        for chunk in range(shape.n_chunks)
        for column in range(n_models)
    ]


def summed_outputs(n_outputs: int) -> list[Output]:
    """Describe results that open in coefficient 0 only and belong to no chunk."""
    return [
        Output(index=column, form=Form.EXTRACTED, column=column, chunk=None, coefficients=1)
        for column in range(n_outputs)
    ]


def row_parts(weights: Sequence[tuple[int, ...]], shape: BundleShape) -> list[Part]:
    """One part for each chunk, which makes the results of all models."""
    used, n_models = used_columns(weights), len(weights)
    return [
        Part(
            inputs=tuple((chunk, feature) for feature in used),
            outputs=tuple(range(chunk * n_models, (chunk + 1) * n_models)),
        )
        for chunk in range(shape.n_chunks)
    ]


def n_row_outputs(weights: Sequence[tuple[int, ...]], shape: BundleShape) -> int:
    """Results of `row_parts`."""
    return len(weights) * shape.n_chunks


def _n_outputs(parameters: LinearParameters, shape: BundleShape) -> int:
    return len(parameters.weights) * (shape.n_chunks if parameters.row_level else 1)


def _outputs(parameters: LinearParameters, shape: BundleShape) -> list[Output]:
    n_models = len(parameters.weights)
    return row_outputs(n_models, shape) if parameters.row_level else summed_outputs(n_models)


def _plan(parameters: LinearParameters, shape: BundleShape) -> list[Part]:
    if parameters.row_level:
        return row_parts(parameters.weights, shape)
    used, everything = used_columns(parameters.weights), tuple(range(len(parameters.weights)))
    width = -(-shape.n_chunks // _SUM_TASKS)
    return [
        Part(
            inputs=tuple(
                (chunk, feature)
                for chunk in range(first, min(first + width, shape.n_chunks))
                for feature in used
            ),
            outputs=everything,
            partial=True,
        )
        for first in range(0, shape.n_chunks, width)
    ]


def execute_rows(task: Task, linear: LinearParameters, inputs: Inputs) -> list[bytes]:
    """Run one task of a linear model that gives a score for every row; as `registry.execute`."""
    shape, degree = task.shape, task.shape.parameters.poly_modulus_degree
    modulus, t = shape.parameters.coeff_modulus, shape.parameters.plain_modulus
    ((chunk, features),) = features_by_chunk(task).items()
    weights = np.array(linear.weights, dtype=np.int64)
    scores = weighted_sums(weights, chunk, features, inputs, shape)
    n_rows = shape.rows_in_chunk(chunk)
    bias = scale_up(np.array([b % t for b in linear.bias]), modulus, t)
    scores[:, :n_rows] = (scores[:, :n_rows] + bias[:, None]) % np.uint64(modulus)
    packer = packed.pack if _is_worth_compiling(weights, shape) else pack
    return [
        encode(
            Ciphertext(
                form=Form.CIPHERTEXT,
                parameters=shape.parameters,
                key_id=shape.key_id,
                c0=score[:degree],
                c1=score[degree:],
            ),
            packer=packer,
        )
        for score in scores
    ]


def _execute(task: Task, parameters: LinearParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    if parameters.row_level:
        return execute_rows(task, parameters, inputs)
    shape, degree = task.shape, task.shape.parameters.poly_modulus_degree
    modulus = shape.parameters.coeff_modulus
    weights = np.array(parameters.weights, dtype=np.int64)
    total = np.zeros((weights.shape[0], 1 + degree), dtype=np.uint64)
    for chunk, features in features_by_chunk(task).items():
        scores = weighted_sums(weights, chunk, features, inputs, shape)
        rows = chunk_mask(mask, chunk, degree)
        constants = [total_of(score[:degree][rows], modulus) for score in scores]
        total[:, 0] += np.array(constants, dtype=np.uint64)
        total[:, 1:] += negacyclic_multiply(scores[:, degree:], mask_polynomial(rows), modulus)
        total %= np.uint64(modulus)
    return [pack(addend, shape.parameters.residue_bits) for addend in total]


def _finish(parameters: LinearParameters, shape: BundleShape, mask: Mask, total: Residues) -> list[bytes]:
    modulus, t = shape.parameters.coeff_modulus, shape.parameters.plain_modulus
    count = int(mask.sum())
    bias = scale_up(np.array([b * count % t for b in parameters.bias], dtype=np.int64), modulus, t)
    constants = (total[:, 0] + bias) % np.uint64(modulus)
    return [extracted(constants[i : i + 1], total[i, 1:], shape) for i in range(len(total))]


def _is_worth_compiling(weights: NDArray[np.int64], shape: BundleShape) -> bool:
    """Small jobs use BLAS, so that none waits for a compiler; the residues are the same."""
    return lanes.is_compiled() or weights.size * shape.n_chunks >= _COMPILED_WORK


def weighted_sums(
    weights: NDArray[np.int64],
    chunk: int,
    features: Sequence[int],
    inputs: Inputs,
    shape: BundleShape,
) -> Residues:
    """Weighted sums of one chunk's columns.

    Parameters
    ----------
    weights :
        shape (m, shape.n_features).
    features :
        The columns to read; the weights of all others have to be zero.

    Returns
    -------
    sums :
        Residues of c0, then of c1; shape (m, 2 N).
    """
    parameters = shape.parameters
    compiled = _is_worth_compiling(weights, shape)
    exact = lanes.is_exact(weights, parameters.coeff_modulus)
    product, group_size = (_on_lanes, _PANEL_FEATURES) if compiled and exact else (_on_blas, BLOCKS_PER_TASK)
    scores = np.zeros((weights.shape[0], 2 * parameters.poly_modulus_degree), dtype=np.uint64)
    for first in range(0, len(features), group_size):
        group = features[first : first + group_size]
        keys = [(chunk, feature) for feature in group]
        columns = read_sealed(keys, inputs, parameters, shape.key_id, compiled=compiled)
        scores = product(weights[:, group], columns, parameters, scores)
    return scores


def _on_lanes(
    weights: NDArray[np.int64], columns: Iterator[Ciphertext], parameters: Parameters, addend: Residues
) -> Residues:
    degree, n_features = parameters.poly_modulus_degree, weights.shape[1]
    panel = lanes.Panel(n_features, 2 * degree)
    for first in range(0, n_features, 2):
        pair = list(islice(columns, 2))
        panel.fill(first, *(found.c0 for found in pair))
        panel.fill(first, *(found.c1 for found in pair), column=degree)
    return lanes.multiply(weights, panel, parameters.coeff_modulus, addend=addend)


def _on_blas(
    weights: NDArray[np.int64], columns: Iterator[Ciphertext], parameters: Parameters, addend: Residues
) -> Residues:
    degree, modulus = parameters.poly_modulus_degree, parameters.coeff_modulus
    stacked = np.empty((weights.shape[1], 2 * degree), dtype=np.uint64)
    for position, found in enumerate(columns):
        stacked[position, :degree], stacked[position, degree:] = found.c0, found.c1
    total: Residues = (addend + combine(weights, stacked, modulus)) % np.uint64(modulus)
    return total


def _parse(parameters: Mapping[str, object]) -> LinearParameters:
    output = parameters["output"]
    if output != "rows" and output != "sum":
        raise KernelParameterError(f"output is {output!r}, expected 'rows' or 'sum'")
    rows = read_matrix(parameters["weights"], "weights")
    bias = read_integers(parameters["bias"], "bias", MAX_MODEL_OUTPUTS)
    if len(bias) != len(rows):
        raise KernelParameterError(f"{len(bias)} biases for {len(rows)} rows of weights")
    return LinearParameters(output="rows" if output == "rows" else "sum", weights=rows, bias=bias)


def read_matrix(values: object, name: str) -> tuple[tuple[int, ...], ...]:
    """Rows of integers, all of one length; raises KernelParameterError for anything else."""
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= MAX_MODEL_OUTPUTS:
        raise KernelParameterError(f"{name} have to be 1 to {MAX_MODEL_OUTPUTS} rows")
    rows = tuple(read_integers(row, f"{name} row {index}", MAX_FEATURES) for index, row in enumerate(values))
    if len({len(row) for row in rows}) != 1:
        raise KernelParameterError(f"{name} rows differ in length")
    return rows


def read_integers(values: object, name: str, longest: int) -> tuple[int, ...]:
    """1 to `longest` integers below 2^31; raises KernelParameterError for anything else."""
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= longest:
        raise KernelParameterError(f"{name} has to be a list of 1 to {longest} integers")
    for value in values:
        if type(value) is not int or abs(value) >= 1 << 31:
            raise KernelParameterError(f"{name} holds {value!r}, expected integers below 2^31")
    return tuple(values)


LINEAR: Final = Kernel(
    name="linear",
    version=1,
    kernel_class="score",
    scheme="bfv",
    parameter_schema=MappingProxyType(
        {
            "output": "'rows' | 'sum'",
            "weights": "list[m][features] of int",
            "bias": "list[m] of int",
        }
    ),
    bounds=MappingProxyType(
        {
            "value": "r*max_j(min(l1(W_j)*max_abs,ceil(l2(W_j)*max_l2))+abs(b_j))",
            "noise": "r*max_j(l1(W_j))*22+1",
            "r": "1 for rows, rows for sum",
        }
    ),
    cost_model=MappingProxyType(
        {
            "expansions": "chunks*features",
            "multiply_adds": "chunks*features*m*2*N",
            "polynomial_products": "chunks*m for sum, 0 for rows",
        }
    ),
    implementation=Implementation(
        parameters=LinearParameters,
        parse=_parse,
        worst_case=linear_worst_case,
        n_outputs=_n_outputs,
        outputs=_outputs,
        plan=_plan,
        execute=_execute,
        finish=_finish,
    ),
)
"""Scores of a linear model, per row or summed over the permitted rows."""
