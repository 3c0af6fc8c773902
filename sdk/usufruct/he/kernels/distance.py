"""The `distance` kernel: squared distances to public centroids, by columns that hold the rows' squared norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelParameterError
from usufruct.he.kernels.linear import (
    LinearParameters,
    execute_rows,
    linear_worst_case,
    n_row_outputs,
    read_integers,
    read_matrix,
    row_outputs,
    row_parts,
)
from usufruct.he.kernels.record import BundleShape, Implementation, Inputs, Kernel, Mask, Output, Part, Task

MAX_NORM_COLUMNS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceParameters:
    """Public centroids, and the columns in which the steward sealed every row's squared norm."""

    centroids: tuple[tuple[int, ...], ...]
    """shape (m, n_features), in quantised units; zero in the norm columns."""

    norm: tuple[tuple[int, int], ...]
    """(column, unit): the squared norm is the sum of unit times column; see `norm_columns`."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return True

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {
            "centroids": [list(row) for row in self.centroids],
            "norm": [list(digit) for digit in self.norm],
        }

    def linear_form(self, shape: BundleShape) -> LinearParameters:
        """Weights -2 C, and the units in the norm columns; the bias is |C|^2."""
        units = dict(self.norm)
        if len(units) != len(self.norm) or not all(0 <= column < shape.n_features for column in units):
            raise KernelParameterError(
                f"norm names a column twice, or beyond the {shape.n_features} features"
            )
        for index, centroid in enumerate(self.centroids):
            if len(centroid) != shape.n_features or any(centroid[column] for column in units):
                raise KernelParameterError(
                    f"centroid {index} needs {shape.n_features} values, and 0 in every norm column"
                )
        return LinearParameters(
            output="rows",
            weights=tuple(
                tuple(units.get(column, -2 * value) for column, value in enumerate(centroid))
                for centroid in self.centroids
            ),
            bias=tuple(sum(value * value for value in centroid) for centroid in self.centroids),
        )


def norm_columns(values: NDArray[np.signedinteger[Any]], unit: int) -> NDArray[np.int64]:
    """Squared norms as two columns to seal beside the features, for `distance` to be exact.

    Parameters
    ----------
    values :
        Quantised features, shape (n_rows, n_features).
    unit :
        At least 2. Small columns keep the bundle's `max_abs` small; the root of the largest squared norm balances
        the two.

    Returns
    -------
    columns :
        shape (n_rows, 2): squared norm // unit and squared norm % unit; name them as
        `norm=((first, unit), (second, 1))`.
    """
    if unit < 2:
        raise KernelParameterError(f"unit is {unit}, expected at least 2")
    squared = (values.astype(np.int64) ** 2).sum(axis=1)
    return np.stack([squared // unit, squared % unit], axis=1)


def _worst_case(parameters: DistanceParameters, shape: BundleShape) -> tuple[int, int]:
    return linear_worst_case(parameters.linear_form(shape), shape)


def _n_outputs(parameters: DistanceParameters, shape: BundleShape) -> int:
    return n_row_outputs(parameters.centroids, shape)


def _outputs(parameters: DistanceParameters, shape: BundleShape) -> list[Output]:
    return row_outputs(len(parameters.centroids), shape)


def _plan(parameters: DistanceParameters, shape: BundleShape) -> list[Part]:
    return row_parts(parameters.linear_form(shape).weights, shape)


def _execute(task: Task, parameters: DistanceParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    return execute_rows(task, parameters.linear_form(task.shape), inputs)


def _parse(parameters: Mapping[str, object]) -> DistanceParameters:
    digits = parameters["norm"]
    if not isinstance(digits, list | tuple) or not 1 <= len(digits) <= MAX_NORM_COLUMNS:
        raise KernelParameterError(f"norm has to be 1 to {MAX_NORM_COLUMNS} pairs of column and unit")
    norm = []
    for digit in digits:
        pair = read_integers(digit, "norm", 2)
        if len(pair) != 2 or pair[1] < 1:
            raise KernelParameterError(f"norm holds {digit!r}, expected a column and a positive unit")
        norm.append((pair[0], pair[1]))
    return DistanceParameters(centroids=read_matrix(parameters["centroids"], "centroids"), norm=tuple(norm))


DISTANCE: Final = Kernel(
    name="distance",
    version=1,
    kernel_class="score",
    scheme="bfv",
    parameter_schema=MappingProxyType(
        {"centroids": "list[m][features] of int, 0 in norm columns", "norm": "list of [column, unit]"}
    ),
    bounds=MappingProxyType(
        {
            "value": "max_j(min(l1(W_j)*max_abs,ceil(l2(W_j)*max_l2))+abs(b_j))",
            "noise": "max_j(l1(W_j))*22+1",
            "W_j": "-2*C_j, unit in norm columns",
            "b_j": "l2(C_j)^2",
        }
    ),
    cost_model=MappingProxyType({"expansions": "chunks*features", "multiply_adds": "chunks*features*m*2*N"}),
    implementation=Implementation(
        parameters=DistanceParameters,
        parse=_parse,
        worst_case=_worst_case,
        n_outputs=_n_outputs,
        outputs=_outputs,
        plan=_plan,
        execute=_execute,
    ),
)
"""Squared distance of every row to public centroids: |x|^2 - 2 c x + |c|^2, with |x|^2 sealed as columns."""
