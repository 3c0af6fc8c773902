"""Plaintext queries against an encrypted gallery: one named row each, or every row.

Both kernels are about single persons, hence restricted; see `registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from usufruct.errors import KernelParameterError
from usufruct.he.container import Form
from usufruct.he.kernels.blocks import extracted, features_by_chunk, used_columns
from usufruct.he.kernels.linear import (
    MAX_MODEL_OUTPUTS,
    LinearParameters,
    execute_rows,
    linear_worst_case,
    n_row_outputs,
    read_integers,
    read_matrix,
    row_outputs,
    row_parts,
    weighted_sums,
)
from usufruct.he.kernels.record import BundleShape, Implementation, Inputs, Kernel, Mask, Output, Part, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyParameters:
    """Plaintext queries, each with the one row that it claims to be."""

    queries: tuple[tuple[int, ...], ...]
    """shape (m, n_features), in quantised units."""

    rows: tuple[int, ...]
    """shape (m,): the row that each query is compared with."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return True

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {"queries": [list(row) for row in self.queries], "rows": list(self.rows)}

    def linear_form(self, shape: BundleShape) -> LinearParameters:
        """The queries as weights."""
        return LinearParameters(output="rows", weights=self.queries, bias=(0,) * len(self.queries))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifyParameters:
    """Plaintext queries, each compared with every row."""

    queries: tuple[tuple[int, ...], ...]
    """shape (m, n_features), in quantised units."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return True

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {"queries": [list(row) for row in self.queries]}

    def linear_form(self, shape: BundleShape) -> LinearParameters:
        """The queries as weights."""
        return LinearParameters(output="rows", weights=self.queries, bias=(0,) * len(self.queries))


def _verify_worst_case(parameters: VerifyParameters, shape: BundleShape) -> tuple[int, int]:
    if len(parameters.rows) != len(parameters.queries) or not all(
        0 <= row < shape.n_rows for row in parameters.rows
    ):
        raise KernelParameterError(f"every query needs one row below {shape.n_rows}")
    return linear_worst_case(parameters.linear_form(shape), shape)


def _verify_n_outputs(parameters: VerifyParameters, shape: BundleShape) -> int:
    return len(parameters.queries)


def _verify_outputs(parameters: VerifyParameters, shape: BundleShape) -> list[Output]:
    degree = shape.parameters.poly_modulus_degree
    return [
        Output(index=index, form=Form.EXTRACTED, column=index, chunk=row // degree, coefficients=1)
        for index, row in enumerate(parameters.rows)
    ]


def _verify_plan(parameters: VerifyParameters, shape: BundleShape) -> list[Part]:
    parts = []
    for chunk, queries in _queries_by_chunk(parameters, shape).items():
        used = used_columns([parameters.queries[query] for query in queries])
        inputs = tuple((chunk, feature) for feature in used)
        parts.append(Part(inputs=inputs, outputs=tuple(queries)))
    return parts


def _queries_by_chunk(parameters: VerifyParameters, shape: BundleShape) -> dict[int, list[int]]:
    by_chunk: dict[int, list[int]] = {}
    for query, row in enumerate(parameters.rows):
        by_chunk.setdefault(row // shape.parameters.poly_modulus_degree, []).append(query)
    return dict(sorted(by_chunk.items()))


def _verify_execute(task: Task, parameters: VerifyParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    for query, row in enumerate(parameters.rows):
        if not mask[row]:
            raise KernelParameterError(f"query {query} names row {row}, which is not permitted")
    shape, degree = task.shape, task.shape.parameters.poly_modulus_degree
    ((chunk, features),) = features_by_chunk(task).items()
    weights = np.array([parameters.queries[query] for query in task.outputs], dtype=np.int64)
    made = []
    for query, score in zip(
        task.outputs, weighted_sums(weights, chunk, features, inputs, shape), strict=True
    ):
        row = parameters.rows[query] - chunk * degree
        # Multiplying by X^(-row) brings the row's coefficient to the front; the rest of c0 stays behind.
        c1 = score[degree:]
        wrapped = (np.uint64(shape.parameters.coeff_modulus) - c1[:row]) % np.uint64(
            shape.parameters.coeff_modulus
        )
        made.append(extracted(score[row : row + 1], np.concatenate([c1[row:], wrapped]), shape))
    return made


def _identify_worst_case(parameters: IdentifyParameters, shape: BundleShape) -> tuple[int, int]:
    return linear_worst_case(parameters.linear_form(shape), shape)


def _identify_n_outputs(parameters: IdentifyParameters, shape: BundleShape) -> int:
    return n_row_outputs(parameters.queries, shape)


def _identify_outputs(parameters: IdentifyParameters, shape: BundleShape) -> list[Output]:
    return row_outputs(len(parameters.queries), shape)


def _identify_plan(parameters: IdentifyParameters, shape: BundleShape) -> list[Part]:
    return row_parts(parameters.queries, shape)


def _identify_execute(task: Task, parameters: IdentifyParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    return execute_rows(task, parameters.linear_form(task.shape), inputs)


def _verify_parse(parameters: Mapping[str, object]) -> VerifyParameters:
    queries = read_matrix(parameters["queries"], "queries")
    rows = read_integers(parameters["rows"], "rows", MAX_MODEL_OUTPUTS)
    if len(rows) != len(queries):
        raise KernelParameterError(f"{len(rows)} rows for {len(queries)} queries")
    return VerifyParameters(queries=queries, rows=rows)


def _identify_parse(parameters: Mapping[str, object]) -> IdentifyParameters:
    return IdentifyParameters(queries=read_matrix(parameters["queries"], "queries"))


_SIMILARITY_BOUNDS: Final = MappingProxyType(
    {
        "value": "max_j(min(l1(Q_j)*max_abs,ceil(l2(Q_j)*max_l2)))",
        "noise": "max_j(l1(Q_j))*22+1",
    }
)

VERIFY: Final = Kernel(
    name="similarity-verify",
    version=1,
    kernel_class="verify-1:1",
    scheme="bfv",
    parameter_schema=MappingProxyType({"queries": "list[m][features] of int", "rows": "list[m] of int"}),
    bounds=_SIMILARITY_BOUNDS,
    cost_model=MappingProxyType({"expansions": "chunks named*features", "multiply_adds": "features*m*2*N"}),
    implementation=Implementation(
        parameters=VerifyParameters,
        parse=_verify_parse,
        worst_case=_verify_worst_case,
        n_outputs=_verify_n_outputs,
        outputs=_verify_outputs,
        plan=_verify_plan,
        execute=_verify_execute,
    ),
)
"""Inner product of each query with the one row that it names: one extracted block per query.

No other row's product can be decrypted from the result, not even by the owner of the key.
"""

IDENTIFY: Final = Kernel(
    name="similarity-identify",
    version=1,
    kernel_class="identify-1:N",
    scheme="bfv",
    parameter_schema=MappingProxyType({"queries": "list[m][features] of int"}),
    bounds=_SIMILARITY_BOUNDS,
    cost_model=MappingProxyType({"expansions": "chunks*features", "multiply_adds": "chunks*features*m*2*N"}),
    implementation=Implementation(
        parameters=IdentifyParameters,
        parse=_identify_parse,
        worst_case=_identify_worst_case,
        n_outputs=_identify_n_outputs,
        outputs=_identify_outputs,
        plan=_identify_plan,
        execute=_identify_execute,
    ),
)
"""Inner product of each query with every row."""
