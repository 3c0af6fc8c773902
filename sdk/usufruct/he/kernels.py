"""Registered kernels: the only computations that run on ciphertexts.

A kernel is a static record; its id is the hash of that record. `validate` proves from declared ranges
alone that no plaintext wraps and that every result decrypts correctly. `plan` splits a job into
independent tasks, `execute` runs one of them on container bytes: exact integer arithmetic, so every honest
node produces the same blocks. Never sees a secret key, a file or a peer, and hands no byte to a
homomorphic library.

Row i of a block is coefficient i of the plaintext polynomial, so a sum over the permitted rows is one
multiplication by the 0/1 polynomial `M = sum_i mask_i X^(-i)`, whose effect is that coefficient 0 of the
product is `sum_i mask_i v_i`. Of such a product a result carries all of c1 but only coefficient 0 of c0:
no row can be decrypted from a published sum, not even by the owner of the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Any, Final, Literal, NewType

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelBoundError, KernelParameterError, UnknownKernelError
from usufruct.he import lanes
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.parameters import Parameters
from usufruct.he.residues import (
    Residues,
    Spectrum,
    combine,
    negacyclic_multiply,
    scale_up,
    spectrum_of,
    total_of,
)

KernelId = NewType("KernelId", bytes)

FRESH_NOISE: Final = 22
"""Worst-case noise of a sealed block's coefficient: an error of 21 and the rounding of q m / t."""

MARGIN_BITS: Final = 8
"""Least factor, in bits, that a result's worst-case noise stays below the decryption limit."""

MAX_MODEL_OUTPUTS: Final = 1024
MAX_NORM_COLUMNS: Final = 8
MAX_FEATURES: Final = 1 << 16
MAX_ROWS: Final = 1 << 24
MAX_REAL_WEIGHT: Final = 1e12
_BLOCKS_PER_TASK = 64
_PANEL_FEATURES = 256
_SPECTRA = 256
_COMPILED_WORK = 2048
"""Weights times chunks from which a job is worth the seconds that compiling takes in every process."""


Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleShape:
    """What a kernel has to know of a sealed bundle; nothing in it depends on the data."""

    n_rows: int
    n_features: int

    max_abs: int
    """Declared bound on the magnitude of a quantised value."""

    max_l2: int
    """Declared bound on the 2-norm of a quantised row."""

    key_id: bytes
    """32 bytes: key domain that the bundle is sealed in."""

    parameters: Parameters

    def __post_init__(self) -> None:
        for name, value, highest in (
            ("n_rows", self.n_rows, MAX_ROWS),
            ("n_features", self.n_features, MAX_FEATURES),
            ("max_abs", self.max_abs, self.parameters.value_limit),
            ("max_l2", self.max_l2, self.parameters.value_limit * 256),
        ):
            if type(value) is not int or not 1 <= value <= highest:
                raise KernelParameterError(f"{name} is {value!r}, expected 1 to {highest}")
        if len(self.key_id) != 32:
            raise KernelParameterError("a key id has 32 bytes")

    @property
    def n_chunks(self) -> int:
        """Blocks per column: ceil(n_rows / N)."""
        return -(-self.n_rows // self.parameters.poly_modulus_degree)

    def rows_in_chunk(self, chunk: int) -> int:
        """Rows that chunk number `chunk` holds; only the last may hold fewer than N."""
        degree = self.parameters.poly_modulus_degree
        return min(degree, self.n_rows - chunk * degree)


@dataclass(frozen=True, slots=True, kw_only=True)
class SumParameters:
    """The `sum` kernel takes none."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return False

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {}


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


KernelParameters = (
    SumParameters | LinearParameters | DistanceParameters | VerifyParameters | IdentifyParameters
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What `validate` proved for every input that keeps to the declared ranges."""

    value_bound: int
    """Largest magnitude of an opened value."""

    value_limit: int
    """Largest magnitude that the plaintext modulus holds."""

    noise_bound: int
    """Largest noise of a result."""

    noise_limit: int
    """Noise at which a result could decrypt wrongly."""

    margin_bits: int
    """floor(log2(noise_limit / noise_bound))."""

    n_outputs: int
    """Result blocks of the whole job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One result block: where it stands and what its owner may open."""

    index: int
    """Position in the job's result list."""

    form: Form

    column: int
    """Feature for `sum`; number of the model's row, centroid or query for the others."""

    chunk: int | None
    """Row chunk for results that belong to one, else None."""

    coefficients: int
    """How many leading coefficients carry a result; 1 in the extracted form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An independent part of a job; plain data, so it can cross to a worker process."""

    index: int
    kernel: str
    parameters: KernelParameters
    shape: BundleShape

    inputs: tuple[tuple[int, int], ...]
    """(chunk, feature) of every input block, in the order in which `execute` reads them."""

    outputs: tuple[int, ...]
    """Positions of the results in the job's result list, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A registered computation. Every field is part of its id."""

    name: str
    version: int
    kernel_class: str
    """`aggregate`, `score`, `verify-1:1` or `identify-1:N`; consent and policy speak of classes."""

    scheme: str
    parameter_schema: Mapping[str, str]
    """Field to its type, in words of this page."""

    bounds: Mapping[str, str]
    """Worst-case value and noise as formulas over rows, max_abs, max_l2, weights W and bias b."""

    cost_model: Mapping[str, str]
    """Operations as formulas over the shape."""

    def to_dict(self) -> dict[str, object]:
        """The record as plain data."""
        return {
            "name": self.name,
            "version": self.version,
            "kernel_class": self.kernel_class,
            "scheme": self.scheme,
            "parameter_schema": dict(self.parameter_schema),
            "bounds": dict(self.bounds),
            "cost_model": dict(self.cost_model),
        }

    @property
    def kernel_id(self) -> KernelId:
        """SHA-256 over `"usufruct/kernel/1" 00` and the record as JSON: sorted keys, no spaces, ASCII."""
        record = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return KernelId(hashlib.sha256(b"usufruct/kernel/1\0" + record.encode("ascii")).digest())

    def parse(self, parameters: Mapping[str, object]) -> KernelParameters:
        """Read parameters from plain data that somebody else wrote.

        Raises
        ------
        KernelParameterError
            If a field is missing, unknown, of another type or out of range.
        """
        if not isinstance(parameters, Mapping) or set(parameters) != set(self.parameter_schema):
            found = (
                sorted(map(str, parameters)) if isinstance(parameters, Mapping) else type(parameters).__name__
            )
            raise KernelParameterError(
                f"kernel {self.name} takes {sorted(self.parameter_schema) or 'no parameters'}, found {found}"
            )
        return _PARSERS[self.name](parameters)

    def validate(self, parameters: KernelParameters, shape: BundleShape) -> Bounds:
        """Prove the worst case from declared ranges.

        Raises
        ------
        KernelParameterError
            If the parameters do not fit the shape, or a result would be the zero ciphertext.
        KernelBoundError
            If a value could reach t / 2 or the noise margin is under 8 bits; the text carries bound and
            limit.
        """
        if shape.parameters.scheme != self.scheme:
            raise KernelParameterError(
                f"kernel {self.name} runs on {self.scheme}, not {shape.parameters.scheme}"
            )
        value, noise = _worst_case(self, parameters, shape)
        limit = shape.parameters.value_limit
        if value > limit:
            raise KernelBoundError(f"kernel {self.name}: worst-case value {value} exceeds the limit {limit}")
        # Decryption is right while noise * 2t < q; two units are kept for the rounding of t * x / q.
        noise_limit = shape.parameters.coeff_modulus // (2 * shape.parameters.plain_modulus) - 2
        margin = (noise_limit // noise).bit_length() - 1
        if margin < MARGIN_BITS:
            raise KernelBoundError(
                f"kernel {self.name}: worst-case noise {noise} exceeds the limit {noise_limit >> MARGIN_BITS}"
            )
        return Bounds(
            value_bound=value,
            value_limit=limit,
            noise_bound=noise,
            noise_limit=noise_limit,
            margin_bits=margin,
            n_outputs=_n_outputs(parameters, shape),
        )


SUM: Final = Kernel(
    name="sum",
    version=1,
    kernel_class="aggregate",
    scheme="bfv",
    parameter_schema=MappingProxyType({}),
    bounds=MappingProxyType({"value": "rows*max_abs", "noise": "rows*22"}),
    cost_model=MappingProxyType({"expansions": "chunks*features", "polynomial_products": "chunks*features"}),
)
"""Column sums over the permitted rows: one extracted block per feature."""

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
)
"""Scores of a linear model, per row or summed over the permitted rows."""

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
)
"""Squared distance of every row to public centroids: |x|^2 - 2 c x + |c|^2, with |x|^2 sealed as columns."""

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
)
"""Inner product of each query with every row."""

KERNELS: Final[Mapping[str, Kernel]] = MappingProxyType(
    {kernel.name: kernel for kernel in (SUM, LINEAR, DISTANCE)}
)
"""Every kernel that a steward may grant, by name."""

RESTRICTED: Final[Mapping[str, Kernel]] = MappingProxyType(
    {kernel.name: kernel for kernel in (VERIFY, IDENTIFY)}
)
"""Kernels about single persons, by name.

No grant, policy or job reaches them: the look-ups refuse them unless the caller names their class as enabled,
which nothing in this release does. `identify-1:N` needs a vote of the members, for a purpose and until a date;
`verify-1:1` needs a release rule that holds without a minimum cohort.
"""


def kernel_by_name(name: str, *, enabled: Collection[str] = ()) -> Kernel:
    """Look up a kernel.

    Parameters
    ----------
    enabled :
        Restricted classes that are allowed here; the caller answers for that.

    Raises
    ------
    UnknownKernelError
        Also for a restricted kernel whose class is not enabled.
    """
    found = KERNELS.get(name) or RESTRICTED.get(name)
    if found is None:
        raise UnknownKernelError(f"no kernel is called {name!r}")
    return _if_enabled(found, enabled)


def kernel_by_id(kernel_id: bytes, *, enabled: Collection[str] = ()) -> Kernel:
    """Look up a kernel by the id that the ledger holds; as `kernel_by_name`."""
    for kernel in (*KERNELS.values(), *RESTRICTED.values()):
        if kernel.kernel_id == kernel_id:
            return _if_enabled(kernel, enabled)
    raise UnknownKernelError(f"no kernel has the id {kernel_id.hex()}")


def _if_enabled(kernel: Kernel, enabled: Collection[str]) -> Kernel:
    if kernel.name in RESTRICTED and kernel.kernel_class not in enabled:
        raise UnknownKernelError(
            f"kernel {kernel.name} is of class {kernel.kernel_class}, which is not enabled",
            hint="only a vote of the members can enable a class, for a purpose and until a date",
        )
    return kernel


def linear_form(parameters: KernelParameters, shape: BundleShape) -> LinearParameters | None:
    """Return the linear model that these parameters amount to; None for `sum`.

    Raises
    ------
    KernelParameterError
        If they do not fit the shape.
    """
    if isinstance(parameters, SumParameters):
        return None
    if isinstance(parameters, LinearParameters):
        return parameters
    if isinstance(parameters, DistanceParameters):
        return _distance_form(parameters, shape)
    return LinearParameters(output="rows", weights=parameters.queries, bias=(0,) * len(parameters.queries))


def _distance_form(parameters: DistanceParameters, shape: BundleShape) -> LinearParameters:
    units = dict(parameters.norm)
    if len(units) != len(parameters.norm) or not all(0 <= column < shape.n_features for column in units):
        raise KernelParameterError(f"norm names a column twice, or beyond the {shape.n_features} features")
    for index, centroid in enumerate(parameters.centroids):
        if len(centroid) != shape.n_features or any(centroid[column] for column in units):
            raise KernelParameterError(
                f"centroid {index} needs {shape.n_features} values, and 0 in every norm column"
            )
    return LinearParameters(
        output="rows",
        weights=tuple(
            tuple(units.get(column, -2 * value) for column, value in enumerate(centroid))
            for centroid in parameters.centroids
        ),
        bias=tuple(sum(value * value for value in centroid) for centroid in parameters.centroids),
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


def outputs(kernel: Kernel, parameters: KernelParameters, shape: BundleShape) -> list[Output]:
    """Describe every result block in index order; errors as `Kernel.validate`."""
    kernel.validate(parameters, shape)
    if isinstance(parameters, VerifyParameters):
        degree = shape.parameters.poly_modulus_degree
        return [
            Output(index=index, form=Form.EXTRACTED, column=index, chunk=row // degree, coefficients=1)
            for index, row in enumerate(parameters.rows)
        ]
    if parameters.row_level:
        n_models = _n_outputs(parameters, shape) // shape.n_chunks
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
    return [
        Output(index=column, form=Form.EXTRACTED, column=column, chunk=None, coefficients=1)
        for column in range(_n_outputs(parameters, shape))
    ]


def plan(kernel: Kernel, parameters: KernelParameters, shape: BundleShape) -> list[Task]:
    """Split a job into independent tasks.

    Each result belongs to exactly one task, so results do not depend on how tasks are spread. Errors as
    `Kernel.validate`, before any work.
    """
    kernel.validate(parameters, shape)
    chunks, features = range(shape.n_chunks), range(shape.n_features)
    parts: list[tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = []
    linear = linear_form(parameters, shape)
    if linear is None:
        width = max(1, _BLOCKS_PER_TASK // shape.n_chunks)
        for first in range(0, shape.n_features, width):
            group = features[first : first + width]
            parts.append((tuple((chunk, feature) for feature in group for chunk in chunks), tuple(group)))
    elif isinstance(parameters, VerifyParameters):
        for chunk, queries in _queries_by_chunk(parameters, shape).items():
            named = [linear.weights[query] for query in queries]
            parts.append((tuple((chunk, feature) for feature in _used(named)), tuple(queries)))
    else:
        used = _used(linear.weights)
        n_models = len(linear.weights)
        if linear.output == "rows":
            for chunk in chunks:
                indices = range(chunk * n_models, (chunk + 1) * n_models)
                parts.append((tuple((chunk, feature) for feature in used), tuple(indices)))
        else:
            parts.append((tuple((chunk, f) for chunk in chunks for f in used), tuple(range(n_models))))
    return [
        Task(index=index, kernel=kernel.name, parameters=parameters, shape=shape, inputs=needed, outputs=made)
        for index, (needed, made) in enumerate(parts)
    ]


def _used(weights: Sequence[tuple[int, ...]]) -> list[int]:
    """Columns that any model weighs; the others are not read at all."""
    return [feature for feature in range(len(weights[0])) if any(row[feature] for row in weights)]


def _queries_by_chunk(parameters: VerifyParameters, shape: BundleShape) -> dict[int, list[int]]:
    by_chunk: dict[int, list[int]] = {}
    for query, row in enumerate(parameters.rows):
        by_chunk.setdefault(row // shape.parameters.poly_modulus_degree, []).append(query)
    return dict(sorted(by_chunk.items()))


def execute(task: Task, inputs: Mapping[tuple[int, int], bytes], mask: Mask) -> list[bytes]:
    """Run one task.

    Parameters
    ----------
    task :
        From `plan`.
    inputs :
        Container bytes by (chunk, feature). Each of `task.inputs` is looked up once, in that order, so a
        mapping that loads on demand keeps one block at a time in memory.
    mask :
        bool, shape (n_rows,): True where consent is live. Applied to sums. Per-row scores are computed for
        every row and opened for permitted rows only.

    Returns
    -------
    blocks :
        Canonical containers, in the order of `task.outputs`.

    Raises
    ------
    KernelParameterError
        If the mask does not fit or permits no row, or a query names a row that it does not permit.
    ContainerError, WrongKeyDomainError
        If an input is not a sealed block of the bundle's key domain.
    """
    shape = task.shape
    check_mask(mask, shape)
    if isinstance(task.parameters, VerifyParameters):
        for query, row in enumerate(task.parameters.rows):
            if not mask[row]:
                raise KernelParameterError(f"query {query} names row {row}, which is not permitted")
        return _execute_verify(task, task.parameters, inputs)
    linear = linear_form(task.parameters, shape)
    if linear is None:
        return _execute_sum(task, inputs, mask)
    return _execute_linear(task, linear, inputs, mask)


def run(
    kernel: Kernel,
    parameters: KernelParameters,
    shape: BundleShape,
    block: Callable[[int, int], bytes],
    mask: Mask,
) -> Iterator[tuple[int, bytes]]:
    """Run a whole job in this process; yields (output index, block) in index order.

    Parameters
    ----------
    block :
        Returns the container at (chunk, feature).
    mask :
        As for `execute`.
    """
    for task in plan(kernel, parameters, shape):
        yield from zip(task.outputs, execute(task, _OnDemand(task.inputs, block), mask), strict=True)


class _OnDemand(Mapping[tuple[int, int], bytes]):
    """A mapping that calls for each block as it is looked up."""

    def __init__(self, keys: tuple[tuple[int, int], ...], block: Callable[[int, int], bytes]) -> None:
        self._keys = keys
        self._block = block

    def __getitem__(self, key: tuple[int, int]) -> bytes:
        return self._block(*key)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedModel:
    """An integer model and the scale of its results."""

    parameters: LinearParameters

    weight_scale: float
    """Integer units per 1.0 of a weight."""

    result_scale: float
    """Integer units per 1.0 of a score; a real score is `opened / result_scale`."""


def quantise_model(
    weights: NDArray[np.floating[Any]],
    bias: NDArray[np.floating[Any]] | float,
    *,
    shape: BundleShape,
    feature_scale: int,
    output: Literal["rows", "sum"],
) -> QuantisedModel:
    """Round a real linear model to integers, as finely as the worst case admits.

    Parameters
    ----------
    weights :
        Finite, shape (m, n_features) or (n_features,), in natural units of the features.
    bias :
        Finite, shape (m,) or a number.
    shape :
        Of the bundle that the model will run on.
    feature_scale :
        Integer units per 1.0 of a feature.
    output :
        Results for a sum must fit for all rows together, so its scale is smaller.

    Returns
    -------
    model :
        Weights times `weight_scale`, rounded half to even, the scale being a multiple of 2^-16 found by
        bisection: it validates, and the next one does not.

    Raises
    ------
    KernelParameterError
        If the model is not finite or does not fit the bundle.
    KernelBoundError
        If no scale both validates and leaves every output a non-zero weight.
    """
    matrix = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    offsets = np.atleast_1d(np.asarray(bias, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != shape.n_features or offsets.shape != (matrix.shape[0],):
        raise KernelParameterError(
            f"weights {matrix.shape} and bias {offsets.shape} do not fit {shape.n_features} features"
        )
    if not (np.abs(matrix) < MAX_REAL_WEIGHT).all() or not (np.abs(offsets) < MAX_REAL_WEIGHT).all():
        raise KernelParameterError(f"the model has a weight or bias that is not below {MAX_REAL_WEIGHT:g}")
    if feature_scale < 1:
        raise KernelParameterError(f"feature_scale is {feature_scale}, expected a positive integer")

    def rounded(step: int) -> LinearParameters:
        scale = step / 65536
        return LinearParameters(
            output=output,
            weights=tuple(tuple(int(w) for w in row) for row in np.rint(matrix * scale)),
            bias=tuple(int(b) for b in np.rint(offsets * scale * feature_scale)),
        )

    def fits(step: int) -> bool:
        value, noise = _worst_case(LINEAR, rounded(step), shape, zero_allowed=True)
        return (
            value <= shape.parameters.value_limit
            and noise << MARGIN_BITS
            <= shape.parameters.coeff_modulus // (2 * shape.parameters.plain_modulus) - 2
        )

    low, high = 0, 1
    while fits(high):
        low, high = high, high * 2
        if high > 1 << 60:
            raise KernelParameterError("every weight of the model is zero, or next to it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    parameters = rounded(low)
    try:
        LINEAR.validate(parameters, shape)
    except KernelParameterError as exc:
        raise KernelBoundError(f"no weight scale fits the plaintext modulus: {exc}") from exc
    scale = low / 65536
    return QuantisedModel(parameters=parameters, weight_scale=scale, result_scale=scale * feature_scale)


def _execute_sum(task: Task, inputs: Mapping[tuple[int, int], bytes], mask: Mask) -> list[bytes]:
    shape, modulus = task.shape, task.shape.parameters.coeff_modulus
    q = np.uint64(modulus)
    degree = shape.parameters.poly_modulus_degree
    sums = {column: (0, np.zeros(degree, dtype=np.uint64)) for column in task.outputs}
    masks = {chunk: chunk_mask(mask, chunk, degree) for chunk in range(shape.n_chunks)}
    spectra: dict[int, Spectrum] = {}
    for chunk, feature in task.inputs:
        rows = masks[chunk]
        if chunk not in spectra:
            if len(spectra) == _SPECTRA:
                spectra.clear()
            spectra[chunk] = spectrum_of(mask_polynomial(rows))
        ciphertext = sealed_input(inputs[chunk, feature], shape)
        constant, linear = sums[feature]
        constant = (constant + total_of(ciphertext.c0[rows], modulus)) % modulus
        linear = (linear + negacyclic_multiply(ciphertext.c1, spectra[chunk], modulus)) % q
        sums[feature] = constant, linear
    return [
        _extracted(np.array([constant], dtype=np.uint64), linear, shape) for constant, linear in sums.values()
    ]


def _execute_linear(
    task: Task, parameters: LinearParameters, inputs: Mapping[tuple[int, int], bytes], mask: Mask
) -> list[bytes]:
    shape = task.shape
    modulus, t = shape.parameters.coeff_modulus, shape.parameters.plain_modulus
    q = np.uint64(modulus)
    degree = shape.parameters.poly_modulus_degree
    weights = np.array(parameters.weights, dtype=np.int64)
    n_models = weights.shape[0]
    constants = np.zeros(n_models, dtype=np.uint64)
    linears = np.zeros((n_models, degree), dtype=np.uint64)
    for chunk, features in features_by_chunk(task).items():
        scores = weighted_sums(weights, chunk, features, inputs, shape)
        if parameters.output == "rows":
            n_rows = shape.rows_in_chunk(chunk)
            bias = scale_up(np.array([b % t for b in parameters.bias]), modulus, t)
            scores[:, :n_rows] = (scores[:, :n_rows] + bias[:, None]) % q
            return [
                encode(
                    Ciphertext(
                        form=Form.CIPHERTEXT,
                        parameters=shape.parameters,
                        key_id=shape.key_id,
                        c0=score[:degree],
                        c1=score[degree:],
                    )
                )
                for score in scores
            ]
        rows = chunk_mask(mask, chunk, degree)
        for index in range(n_models):
            total = total_of(scores[index, :degree][rows], modulus)
            constants[index] = (int(constants[index]) + total) % modulus
        products = negacyclic_multiply(scores[:, degree:], mask_polynomial(rows), modulus)
        linears = (linears + products) % q
    count = int(mask.sum())
    total_bias = np.array([b * count % t for b in parameters.bias], dtype=np.int64)
    constants = (constants + scale_up(total_bias, modulus, t)) % q
    return [_extracted(constants[i : i + 1], linears[i], shape) for i in range(n_models)]


def _execute_verify(
    task: Task, parameters: VerifyParameters, inputs: Mapping[tuple[int, int], bytes]
) -> list[bytes]:
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
        made.append(_extracted(score[row : row + 1], np.concatenate([c1[row:], wrapped]), shape))
    return made


def features_by_chunk(task: Task) -> dict[int, list[int]]:
    """The task's features by chunk, in the order of its inputs."""
    by_chunk: dict[int, list[int]] = {}
    for chunk, feature in task.inputs:
        by_chunk.setdefault(chunk, []).append(feature)
    return by_chunk


def weighted_sums(
    weights: NDArray[np.int64],
    chunk: int,
    features: Sequence[int],
    inputs: Mapping[tuple[int, int], bytes],
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
    # Small jobs use BLAS, so that none waits for a compiler; the residues are the same.
    compiled = weights.size * shape.n_chunks >= _COMPILED_WORK
    compiled = compiled and lanes.is_exact(weights, parameters.coeff_modulus)
    product, group_size = (_on_lanes, _PANEL_FEATURES) if compiled else (_on_blas, _BLOCKS_PER_TASK)
    scores = np.zeros((weights.shape[0], 2 * parameters.poly_modulus_degree), dtype=np.uint64)
    for first in range(0, len(features), group_size):
        group = features[first : first + group_size]
        blocks = (inputs[chunk, feature] for feature in group)
        scores = product(weights[:, group], blocks, shape, scores)
    return scores


def _on_lanes(
    weights: NDArray[np.int64], blocks: Iterator[bytes], shape: BundleShape, addend: Residues
) -> Residues:
    degree, n_features = shape.parameters.poly_modulus_degree, weights.shape[1]
    panel = lanes.Panel(n_features, 2 * degree)
    for first in range(0, n_features, 2):
        pair = [
            sealed_input(next(blocks), shape, unpacker=lanes.unpack)
            for _ in range(min(2, n_features - first))
        ]
        panel.fill(first, *(found.c0 for found in pair))
        panel.fill(first, *(found.c1 for found in pair), column=degree)
    return lanes.multiply(weights, panel, shape.parameters.coeff_modulus, addend=addend)


def _on_blas(
    weights: NDArray[np.int64], blocks: Iterator[bytes], shape: BundleShape, addend: Residues
) -> Residues:
    degree, modulus = shape.parameters.poly_modulus_degree, shape.parameters.coeff_modulus
    stacked = np.empty((weights.shape[1], 2 * degree), dtype=np.uint64)
    for position, block in enumerate(blocks):
        found = sealed_input(block, shape)
        stacked[position, :degree], stacked[position, degree:] = found.c0, found.c1
    total: Residues = (addend + combine(weights, stacked, modulus)) % np.uint64(modulus)
    return total


def sealed_input(
    block: bytes, shape: BundleShape, *, unpacker: Callable[[bytes, int, int], Residues] | None = None
) -> Ciphertext:
    """Parse an input of a job; arguments and errors as `container.parse`."""
    return parse(block, key_id=shape.key_id, forms=(Form.SEEDED,), unpacker=unpacker)


def check_mask(mask: Mask, shape: BundleShape) -> None:
    """Raise KernelParameterError if a mask does not fit a bundle, or permits no row."""
    if mask.dtype != np.bool_ or mask.shape != (shape.n_rows,):
        raise KernelParameterError(f"the mask is {mask.dtype}{mask.shape}, expected bool ({shape.n_rows},)")
    if not mask.any():
        raise KernelParameterError(
            "the mask permits no row", hint="no subject of this bundle consents at this epoch"
        )


def chunk_mask(mask: Mask, chunk: int, degree: int) -> Mask:
    """The mask of one chunk, False beyond the last row; shape (N,)."""
    rows = np.zeros(degree, dtype=np.bool_)
    part = mask[chunk * degree : (chunk + 1) * degree]
    rows[: part.size] = part
    return rows


def mask_polynomial(rows: Mask) -> NDArray[np.int64]:
    """Coefficients of sum_i mask_i X^(-i), where X^(-i) = -X^(N-i) for i > 0."""
    polynomial = np.zeros(rows.size, dtype=np.int64)
    polynomial[0] = rows[0]
    polynomial[1:] = -rows[:0:-1].astype(np.int64)
    return polynomial


def _extracted(constant: Residues, linear: Residues, shape: BundleShape) -> bytes:
    return encode(
        Ciphertext(
            form=Form.EXTRACTED, parameters=shape.parameters, key_id=shape.key_id, c0=constant, c1=linear
        )
    )


def _worst_case(
    kernel: Kernel, parameters: KernelParameters, shape: BundleShape, *, zero_allowed: bool = False
) -> tuple[int, int]:
    """Worst-case value and noise of any result."""
    if not isinstance(parameters, _PARAMETER_CLASSES[kernel.name]):
        raise KernelParameterError(f"these are not parameters of kernel {kernel.name}")
    if isinstance(parameters, VerifyParameters) and (
        len(parameters.rows) != len(parameters.queries)
        or not all(0 <= row < shape.n_rows for row in parameters.rows)
    ):
        raise KernelParameterError(f"every query needs one row below {shape.n_rows}")
    linear = linear_form(parameters, shape)
    if linear is None:
        return shape.n_rows * shape.max_abs, shape.n_rows * FRESH_NOISE
    if len(linear.weights) != len(linear.bias) or not linear.weights:
        raise KernelParameterError("weights and bias differ in length, or are empty")
    repeats = shape.n_rows if linear.output == "sum" else 1
    value = noise = 0
    for index, (row, bias) in enumerate(zip(linear.weights, linear.bias, strict=True)):
        if len(row) != shape.n_features:
            raise KernelParameterError(
                f"weights row {index} has {len(row)} weights for {shape.n_features} features"
            )
        l1 = sum(abs(weight) for weight in row)
        if l1 == 0 and not zero_allowed:
            raise KernelParameterError(
                f"weights row {index} is all zero, so its result would not be encrypted"
            )
        squared = sum(weight * weight for weight in row) * shape.max_l2**2
        l2 = isqrt(squared - 1) + 1 if squared else 0
        value = max(value, repeats * (min(l1 * shape.max_abs, l2) + abs(bias)))
        noise = max(noise, repeats * l1 * FRESH_NOISE + 1)
    return value, noise


def _n_outputs(parameters: KernelParameters, shape: BundleShape) -> int:
    linear = linear_form(parameters, shape)
    if linear is None:
        return shape.n_features
    per_chunk = parameters.row_level and not isinstance(parameters, VerifyParameters)
    return len(linear.weights) * (shape.n_chunks if per_chunk else 1)


def _parse_linear(parameters: Mapping[str, object]) -> LinearParameters:
    output = parameters["output"]
    if output != "rows" and output != "sum":
        raise KernelParameterError(f"output is {output!r}, expected 'rows' or 'sum'")
    rows = _matrix(parameters["weights"], "weights")
    bias = _integers(parameters["bias"], "bias", MAX_MODEL_OUTPUTS)
    if len(bias) != len(rows):
        raise KernelParameterError(f"{len(bias)} biases for {len(rows)} rows of weights")
    return LinearParameters(output="rows" if output == "rows" else "sum", weights=rows, bias=bias)


def _parse_distance(parameters: Mapping[str, object]) -> DistanceParameters:
    digits = parameters["norm"]
    if not isinstance(digits, list | tuple) or not 1 <= len(digits) <= MAX_NORM_COLUMNS:
        raise KernelParameterError(f"norm has to be 1 to {MAX_NORM_COLUMNS} pairs of column and unit")
    norm = []
    for digit in digits:
        pair = _integers(digit, "norm", 2)
        if len(pair) != 2 or pair[1] < 1:
            raise KernelParameterError(f"norm holds {digit!r}, expected a column and a positive unit")
        norm.append((pair[0], pair[1]))
    return DistanceParameters(centroids=_matrix(parameters["centroids"], "centroids"), norm=tuple(norm))


def _parse_verify(parameters: Mapping[str, object]) -> VerifyParameters:
    queries = _matrix(parameters["queries"], "queries")
    rows = _integers(parameters["rows"], "rows", MAX_MODEL_OUTPUTS)
    if len(rows) != len(queries):
        raise KernelParameterError(f"{len(rows)} rows for {len(queries)} queries")
    return VerifyParameters(queries=queries, rows=rows)


def _parse_identify(parameters: Mapping[str, object]) -> IdentifyParameters:
    return IdentifyParameters(queries=_matrix(parameters["queries"], "queries"))


_PARSERS: Final[Mapping[str, Callable[[Mapping[str, object]], KernelParameters]]] = MappingProxyType(
    {
        SUM.name: lambda parameters: SumParameters(),
        LINEAR.name: _parse_linear,
        DISTANCE.name: _parse_distance,
        VERIFY.name: _parse_verify,
        IDENTIFY.name: _parse_identify,
    }
)
_PARAMETER_CLASSES: Final[Mapping[str, type[object]]] = MappingProxyType(
    {
        SUM.name: SumParameters,
        LINEAR.name: LinearParameters,
        DISTANCE.name: DistanceParameters,
        VERIFY.name: VerifyParameters,
        IDENTIFY.name: IdentifyParameters,
    }
)


def _matrix(values: object, name: str) -> tuple[tuple[int, ...], ...]:
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= MAX_MODEL_OUTPUTS:
        raise KernelParameterError(f"{name} have to be 1 to {MAX_MODEL_OUTPUTS} rows")
    rows = tuple(_integers(row, f"{name} row {index}", MAX_FEATURES) for index, row in enumerate(values))
    if len({len(row) for row in rows}) != 1:
        raise KernelParameterError(f"{name} rows differ in length")
    return rows


def _integers(values: object, name: str, longest: int) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= longest:
        raise KernelParameterError(f"{name} has to be a list of 1 to {longest} integers")
    for value in values:
        if type(value) is not int or abs(value) >= 1 << 31:
            raise KernelParameterError(f"{name} holds {value!r}, expected integers below 2^31")
    return tuple(values)
