"""What a kernel is: a record whose hash is its id, and the functions that carry it out.

Plain data and the rules that every kernel shares: parameters are read strictly, and no job starts unless its worst
case fits the plaintext modulus and leaves the noise margin. No kernel is defined here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NewType, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelBoundError, KernelParameterError
from usufruct.he.container import Form
from usufruct.he.parameters import Parameters

if TYPE_CHECKING:
    from usufruct.he.kernels.linear import LinearParameters

KernelId = NewType("KernelId", bytes)

MARGIN_BITS: Final = 8
"""Least factor, in bits, that a result's worst-case noise stays below the decryption limit."""

UPLOAD_MARGIN_BITS: Final = 20
"""The same where ciphertexts enter that somebody else than the bundle's steward encrypted."""

MAX_FEATURES: Final = 1 << 16
MAX_ROWS: Final = 1 << 24

Mask = NDArray[np.bool_]
Inputs = Mapping[tuple[int, int], bytes]
"""Container bytes by (chunk, feature)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleShape:
    """What a kernel has to know of a sealed bundle; nothing in it depends on the data."""

    n_rows: int
    n_features: int

    max_abs: int
    """Declared bound on the magnitude of a quantised value."""

    max_l2: int
    """Declared bound on the 2-norm of a quantised row; where members contribute columns, of a column."""

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


class KernelParameters(Protocol):
    """Parameters of one kernel: a frozen dataclass that `Kernel.parse` returns."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        ...

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        ...

    def linear_form(self, shape: BundleShape) -> LinearParameters | None:
        """The linear model that these parameters amount to; None if they are no linear map of the columns.

        Raises
        ------
        KernelParameterError
            If they do not fit the shape.
        """
        ...


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

    partial: bool = False
    """Whether it makes an addend of each of these results, like every other task of the job, and not the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one task reads and makes."""

    inputs: tuple[tuple[int, int], ...]
    """(chunk, feature) of every input block, in the order in which they are read."""

    outputs: tuple[int, ...]
    """Positions of the results in the job's result list, ascending."""

    partial: bool = False
    """Whether it makes an addend of each of these results, like every other task of the job, and not the results."""


P = TypeVar("P", bound=KernelParameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation(Generic[P]):
    """The functions behind a record. None of them sees parameters of another class or an unproven shape."""

    parameters: type[P]

    parse: Callable[[Mapping[str, object]], P]
    """From plain data whose field names are those of the schema."""

    worst_case: Callable[[P, BundleShape], tuple[int, int]]
    """Largest value and noise of any result; raises KernelParameterError if the parameters do not fit the shape."""

    n_outputs: Callable[[P, BundleShape], int]

    outputs: Callable[[P, BundleShape], list[Output]]
    """In index order."""

    plan: Callable[[P, BundleShape], list[Part]]
    """Every output is in exactly one part, or all are in every part if the parts are partial."""

    execute: Callable[[Task, P, Inputs, Mask], list[bytes]]
    """Blocks, or addends, in the order of `task.outputs`; reads `task.inputs` once each, in order."""

    finish: Callable[[P, BundleShape, Mask, NDArray[np.uint64]], list[bytes]] | None = None
    """Blocks from the sum of all addends; None if no task is partial. An addend is the residues of coefficient 0 of
    c0, then of c1, packed; their sum has shape (m, N + 1)."""

    input_form: Form = Form.SEEDED
    """Of the blocks that are read."""

    mask_of_columns: bool = False
    """Whether consent is given by column (a contribution) instead of by row."""

    margin_bits: int = MARGIN_BITS

    def checked(self, parameters: KernelParameters) -> P:
        """Return the parameters if they are of this kernel's class; else raise KernelParameterError."""
        if not isinstance(parameters, self.parameters):
            raise KernelParameterError(f"found {type(parameters).__name__}, not {self.parameters.__name__}")
        return parameters


def noise_limit(parameters: Parameters) -> int:
    """Noise at which a ciphertext could decrypt wrongly.

    BFV: decryption is right while noise * 2t < q; two units are kept for the rounding of t * x / q. BGV: noise is
    the whole of message and error, which must not wrap modulo q.
    """
    if parameters.scheme == "bfv":
        return parameters.coeff_modulus // (2 * parameters.plain_modulus) - 2
    return parameters.coeff_modulus // 2 - 1


def id_of_record(record: Mapping[str, object]) -> KernelId:
    """SHA-256 over `"usufruct/kernel/1" 00` and the record as JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(dict(record), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return KernelId(hashlib.sha256(b"usufruct/kernel/1\0" + text.encode("ascii")).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A registered computation. Every field but the implementation is part of its id."""

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

    implementation: Implementation[Any] = field(repr=False, compare=False)

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
    def of_contributions(self) -> bool:
        """Whether it sums what several members contribute, a column each, instead of one steward's rows."""
        return self.implementation.mask_of_columns

    @property
    def kernel_id(self) -> KernelId:
        """The hash of the record."""
        return id_of_record(self.to_dict())

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
        parsed: KernelParameters = self.implementation.parse(parameters)
        return parsed

    def validate(self, parameters: KernelParameters, shape: BundleShape) -> Bounds:
        """Prove the worst case from declared ranges.

        Raises
        ------
        KernelParameterError
            If the parameters do not fit the shape, or a result would be the zero ciphertext.
        KernelBoundError
            If a value could reach t / 2, or the noise margin is under the kernel's; the text carries bound and
            limit.
        """
        if shape.parameters.scheme != self.scheme:
            raise KernelParameterError(
                f"kernel {self.name} runs on {self.scheme}, not {shape.parameters.scheme}"
            )
        own = self.implementation
        parameters = own.checked(parameters)
        value, noise = own.worst_case(parameters, shape)
        limit = shape.parameters.value_limit
        if value > limit:
            raise KernelBoundError(f"kernel {self.name}: worst-case value {value} exceeds the limit {limit}")
        highest = noise_limit(shape.parameters)
        margin = (highest // noise).bit_length() - 1
        if margin < own.margin_bits:
            raise KernelBoundError(
                f"kernel {self.name}: worst-case noise {noise} exceeds the limit {highest >> own.margin_bits}"
            )
        return Bounds(
            value_bound=value,
            value_limit=limit,
            noise_bound=noise,
            noise_limit=highest,
            margin_bits=margin,
            n_outputs=own.n_outputs(parameters, shape),
        )
