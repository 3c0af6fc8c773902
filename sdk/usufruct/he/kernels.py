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
from collections.abc import Callable, Iterator, Mapping
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
from usufruct.he.residues import Residues, combine, negacyclic_multiply, scale_up

KernelId = NewType("KernelId", bytes)

FRESH_NOISE: Final = 22
"""Worst-case noise of a sealed block's coefficient: an error of 21 and the rounding of q m / t."""

MARGIN_BITS: Final = 8
"""Least factor, in bits, that a result's worst-case noise stays below the decryption limit."""

MAX_MODEL_OUTPUTS: Final = 1024
MAX_FEATURES: Final = 1 << 16
MAX_ROWS: Final = 1 << 24
MAX_REAL_WEIGHT: Final = 1e12
_BLOCKS_PER_TASK = 64
_PANEL_FEATURES = 256
_COMPILED_WEIGHTS = 1024

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

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {
            "output": self.output,
            "weights": [list(row) for row in self.weights],
            "bias": list(self.bias),
        }


KernelParameters = SumParameters | LinearParameters


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
    """Feature for `sum`, row of the model for `linear`."""

    chunk: int | None
    """Row chunk for per-row results, else None."""

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
    """`aggregate` or `score`; consent and policy speak of classes."""

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
        if self.name == SUM.name:
            return SumParameters()
        output = parameters["output"]
        if output != "rows" and output != "sum":
            raise KernelParameterError(f"output is {output!r}, expected 'rows' or 'sum'")
        weights = parameters["weights"]
        if not isinstance(weights, list | tuple) or not 1 <= len(weights) <= MAX_MODEL_OUTPUTS:
            raise KernelParameterError(f"weights have to be 1 to {MAX_MODEL_OUTPUTS} rows")
        rows = tuple(
            _integers(row, f"weights row {index}", MAX_FEATURES) for index, row in enumerate(weights)
        )
        if len({len(row) for row in rows}) != 1:
            raise KernelParameterError("weights rows differ in length")
        bias = _integers(parameters["bias"], "bias", MAX_MODEL_OUTPUTS)
        if len(bias) != len(rows):
            raise KernelParameterError(f"{len(bias)} biases for {len(rows)} rows of weights")
        return LinearParameters(output="rows" if output == "rows" else "sum", weights=rows, bias=bias)

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

KERNELS: Final[Mapping[str, Kernel]] = MappingProxyType({kernel.name: kernel for kernel in (SUM, LINEAR)})
"""Every registered kernel by name."""

_BY_ID: Final = {kernel.kernel_id: kernel for kernel in KERNELS.values()}


def kernel_by_name(name: str) -> Kernel:
    """Look up a kernel; raises UnknownKernelError."""
    try:
        return KERNELS[name]
    except KeyError:
        raise UnknownKernelError(f"no kernel is called {name!r}") from None


def kernel_by_id(kernel_id: bytes) -> Kernel:
    """Look up a kernel by the id that the ledger holds; raises UnknownKernelError."""
    try:
        return _BY_ID[KernelId(kernel_id)]
    except KeyError:
        raise UnknownKernelError(f"no kernel has the id {kernel_id.hex()}") from None


def outputs(kernel: Kernel, parameters: KernelParameters, shape: BundleShape) -> list[Output]:
    """Describe every result block in index order; errors as `Kernel.validate`."""
    kernel.validate(parameters, shape)
    if isinstance(parameters, LinearParameters) and parameters.output == "rows":
        n_models = len(parameters.weights)
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
    if isinstance(parameters, SumParameters):
        width = max(1, _BLOCKS_PER_TASK // shape.n_chunks)
        for first in range(0, shape.n_features, width):
            group = features[first : first + width]
            parts.append((tuple((chunk, feature) for feature in group for chunk in chunks), tuple(group)))
    else:
        # A column that no model weighs is not read at all.
        used = [f for f in features if any(row[f] for row in parameters.weights)]
        n_models = len(parameters.weights)
        if parameters.output == "rows":
            for chunk in chunks:
                indices = range(chunk * n_models, (chunk + 1) * n_models)
                parts.append((tuple((chunk, feature) for feature in used), tuple(indices)))
        else:
            parts.append((tuple((chunk, f) for chunk in chunks for f in used), tuple(range(n_models))))
    return [
        Task(index=index, kernel=kernel.name, parameters=parameters, shape=shape, inputs=needed, outputs=made)
        for index, (needed, made) in enumerate(parts)
    ]


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
        If the mask does not fit, or permits no row.
    ContainerError, WrongKeyDomainError
        If an input is not a sealed block of the bundle's key domain.
    """
    shape = task.shape
    if mask.dtype != np.bool_ or mask.shape != (shape.n_rows,):
        raise KernelParameterError(f"the mask is {mask.dtype}{mask.shape}, expected bool ({shape.n_rows},)")
    if not mask.any():
        raise KernelParameterError(
            "the mask permits no row", hint="no subject of this bundle consents at this epoch"
        )
    if isinstance(task.parameters, SumParameters):
        return _execute_sum(task, inputs, mask)
    return _execute_linear(task, task.parameters, inputs, mask)


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
    for chunk, feature in task.inputs:
        rows = _chunk_mask(mask, chunk, degree)
        ciphertext = _sealed(inputs[chunk, feature], shape)
        constant, linear = sums[feature]
        constant = (constant + sum(ciphertext.c0[rows].tolist())) % modulus
        linear = (linear + negacyclic_multiply(ciphertext.c1, _mask_polynomial(rows), modulus)) % q
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
    bias = np.array([b % t for b in parameters.bias], dtype=np.int64)
    constants = np.zeros(n_models, dtype=np.uint64)
    linears = np.zeros((n_models, degree), dtype=np.uint64)
    # Small models use BLAS, so that no small job waits for a compiler; the residues are the same.
    compiled = weights.size >= _COMPILED_WEIGHTS and lanes.is_exact(weights, modulus)
    product, group_size = (_on_lanes, _PANEL_FEATURES) if compiled else (_on_blas, _BLOCKS_PER_TASK)
    by_chunk: dict[int, list[int]] = {}
    for chunk, feature in task.inputs:
        by_chunk.setdefault(chunk, []).append(feature)
    for chunk, features in by_chunk.items():
        scores = np.zeros((n_models, 2 * degree), dtype=np.uint64)
        for first in range(0, len(features), group_size):
            group = features[first : first + group_size]
            sealed = (_sealed(inputs[chunk, feature], shape) for feature in group)
            scores = product(weights[:, group], sealed, shape.parameters, scores)
        if parameters.output == "rows":
            n_rows = shape.rows_in_chunk(chunk)
            scores[:, :n_rows] = (scores[:, :n_rows] + scale_up(bias, modulus, t)[:, None]) % q
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
        rows = _chunk_mask(mask, chunk, degree)
        for index in range(n_models):
            constants[index] = (int(constants[index]) + sum(scores[index, :degree][rows].tolist())) % modulus
        products = negacyclic_multiply(scores[:, degree:], _mask_polynomial(rows), modulus)
        linears = (linears + products) % q
    count = int(mask.sum())
    total_bias = np.array([b * count % t for b in parameters.bias], dtype=np.int64)
    constants = (constants + scale_up(total_bias, modulus, t)) % q
    return [_extracted(constants[i : i + 1], linears[i], shape) for i in range(n_models)]


def _on_lanes(
    weights: NDArray[np.int64], sealed: Iterator[Ciphertext], parameters: Parameters, addend: Residues
) -> Residues:
    degree = parameters.poly_modulus_degree
    panel = lanes.Panel(weights.shape[1], 2 * degree)
    for position, ciphertext in enumerate(sealed):
        panel.fill(position, ciphertext.c0)
        panel.fill(position, ciphertext.c1, column=degree)
    return lanes.multiply(weights, panel, parameters.coeff_modulus, addend=addend)


def _on_blas(
    weights: NDArray[np.int64], sealed: Iterator[Ciphertext], parameters: Parameters, addend: Residues
) -> Residues:
    degree, modulus = parameters.poly_modulus_degree, parameters.coeff_modulus
    stacked = np.empty((weights.shape[1], 2 * degree), dtype=np.uint64)
    for position, ciphertext in enumerate(sealed):
        stacked[position, :degree], stacked[position, degree:] = ciphertext.c0, ciphertext.c1
    total: Residues = (addend + combine(weights, stacked, modulus)) % np.uint64(modulus)
    return total


def _sealed(block: bytes, shape: BundleShape) -> Ciphertext:
    return parse(block, key_id=shape.key_id, forms=(Form.SEEDED,))


def _chunk_mask(mask: Mask, chunk: int, degree: int) -> Mask:
    """The mask of one chunk, False beyond the last row; shape (N,)."""
    rows = np.zeros(degree, dtype=np.bool_)
    part = mask[chunk * degree : (chunk + 1) * degree]
    rows[: part.size] = part
    return rows


def _mask_polynomial(rows: Mask) -> NDArray[np.int64]:
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
    if isinstance(parameters, SumParameters) != (kernel.name == SUM.name):
        raise KernelParameterError(f"these are not parameters of kernel {kernel.name}")
    if isinstance(parameters, SumParameters):
        return shape.n_rows * shape.max_abs, shape.n_rows * FRESH_NOISE
    if len(parameters.weights) != len(parameters.bias) or not parameters.weights:
        raise KernelParameterError("weights and bias differ in length, or are empty")
    repeats = shape.n_rows if parameters.output == "sum" else 1
    value = noise = 0
    for index, (row, bias) in enumerate(zip(parameters.weights, parameters.bias, strict=True)):
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
    if isinstance(parameters, SumParameters):
        return shape.n_features
    n_models = len(parameters.weights)
    return n_models * shape.n_chunks if parameters.output == "rows" else n_models


def _integers(values: object, name: str, longest: int) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= longest:
        raise KernelParameterError(f"{name} has to be a list of 1 to {longest} integers")
    for value in values:
        if type(value) is not int or abs(value) >= 1 << 31:
            raise KernelParameterError(f"{name} holds {value!r}, expected integers below 2^31")
    return tuple(values)
