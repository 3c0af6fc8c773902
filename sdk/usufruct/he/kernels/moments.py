"""The `moments` kernel: sums and sums of products of chosen columns, over the permitted rows.

Means, variances and covariances follow from them in the clear (`statistics`). A product of two sealed columns holds
x_i y_i in slot i. The sum over permitted slots is coefficient 0 of its product with the mask polynomial
(`slots.mask_values`), and a result carries, besides c1 and c2, only that coefficient of c0: no row can be decrypted
from a published moment, not even by the owner of the key. The mask multiplies one factor before the tensor product,
once for every column instead of once for every pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelParameterError
from usufruct.he import ntt, packed
from usufruct.he.container import Ciphertext, Form, encode
from usufruct.he.kernels.blocks import chunk_mask
from usufruct.he.kernels.record import BundleShape, Implementation, Inputs, Kernel, Mask, Output, Part, Task
from usufruct.he.reading import read_sealed
from usufruct.he.residues import Residues
from usufruct.he.slots import mask_values, reduced, sealed_phase
from usufruct.he.tensor import Stack, Sums, sums_of_each

MAX_MOMENT_COLUMNS: Final = 64

_COLUMNS_PER_GROUP = 16
"""Columns that a task pairs with each other, or with as many others; a pair's sums take 24 bytes per residue."""

_CHUNKS_PER_PASS = 8
"""Chunks that are multiplied together; more make fewer passes over the sums and take more memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsParameters:
    """The columns to describe."""

    columns: tuple[int, ...]
    """Feature numbers, ascending."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return False

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {"columns": list(self.columns)}

    def linear_form(self, shape: BundleShape) -> None:
        """None: products of columns are not linear."""
        return


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What opened moments say, in natural units."""

    count: int
    means: NDArray[np.float64]
    """shape (k,)."""

    covariances: NDArray[np.float64]
    """shape (k, k), of the population: divided by the count. Variances are on the diagonal."""


def pairs_of(n_columns: int) -> list[tuple[int, int]]:
    """Positions of the columns of every product, in the order of the results that follow the sums."""
    return [(first, second) for first in range(n_columns) for second in range(first, n_columns)]


def n_pairs(n_columns: int) -> int:
    """Number of `pairs_of`."""
    return n_columns * (n_columns + 1) // 2


def statistics(opened: Sequence[int], count: int, *, n_columns: int, feature_scale: float) -> Statistics:
    """Means and covariances from the opened results of a job.

    Parameters
    ----------
    opened :
        The k sums, then the k (k + 1) / 2 sums of products, in index order.
    count :
        Permitted rows.
    n_columns :
        k.
    feature_scale :
        Integer units per 1.0 of a feature.

    Raises
    ------
    KernelParameterError
        If there are more or fewer results, or no rows.
    """
    pairs = pairs_of(n_columns)
    if len(opened) != n_columns + len(pairs) or count < 1:
        raise KernelParameterError(
            f"{len(opened)} results over {count} rows are not the moments of {n_columns} columns"
        )
    sums, products = opened[:n_columns], opened[n_columns:]
    covariances = np.empty((n_columns, n_columns))
    for (first, second), product in zip(pairs, products, strict=True):
        # Exact in integers: the difference of two large numbers may be small.
        value = (count * product - sums[first] * sums[second]) / count**2 / feature_scale**2
        covariances[first, second] = covariances[second, first] = value
    means = np.array([total / count / feature_scale for total in sums])
    return Statistics(count=count, means=means, covariances=covariances)


def _parse(parameters: Mapping[str, object]) -> MomentsParameters:
    columns = parameters["columns"]
    if not isinstance(columns, list | tuple) or not 1 <= len(columns) <= MAX_MOMENT_COLUMNS:
        raise KernelParameterError(f"columns has to be a list of 1 to {MAX_MOMENT_COLUMNS} feature numbers")
    if any(type(column) is not int or column < 0 for column in columns):
        raise KernelParameterError("columns holds something else than feature numbers")
    if any(later <= earlier for earlier, later in pairwise(columns)):
        raise KernelParameterError("columns has to be ascending, each column named once")
    return MomentsParameters(columns=tuple(columns))


def _worst_case(parameters: MomentsParameters, shape: BundleShape) -> tuple[int, int]:
    if not parameters.columns or max(parameters.columns) >= shape.n_features:
        raise KernelParameterError(f"columns name features beyond the {shape.n_features} of the bundle")
    degree, limit = shape.parameters.poly_modulus_degree, shape.parameters.value_limit
    value = shape.n_rows * max(shape.max_abs, min(shape.max_abs, shape.max_l2) ** 2)
    # A product of two polynomials adds N products of coefficients: mask times column, times the other column.
    phase = sealed_phase(shape.parameters)
    return value, shape.n_chunks * (degree * limit * phase) * degree * phase


def _n_outputs(parameters: MomentsParameters, shape: BundleShape) -> int:
    n_columns = len(parameters.columns)
    return n_columns + n_pairs(n_columns)


def _outputs(parameters: MomentsParameters, shape: BundleShape) -> list[Output]:
    n_columns = len(parameters.columns)
    return [
        Output(
            index=index,
            form=Form.EXTRACTED if index < n_columns else Form.EXTRACTED_PRODUCT,
            column=index,
            chunk=None,
            coefficients=1,
        )
        for index in range(_n_outputs(parameters, shape))
    ]


def _plan(parameters: MomentsParameters, shape: BundleShape) -> list[Part]:
    n_columns = len(parameters.columns)
    places = {pair: n_columns + place for place, pair in enumerate(pairs_of(n_columns))}
    groups = [
        range(first, min(n_columns, first + _COLUMNS_PER_GROUP))
        for first in range(0, n_columns, _COLUMNS_PER_GROUP)
    ]
    parts = []
    for number, lefts in enumerate(groups):
        for rights in groups[number:]:
            own = list(lefts) if lefts == rights else []
            members = sorted({*lefts, *rights})
            inputs = tuple(
                (chunk, parameters.columns[member]) for chunk in range(shape.n_chunks) for member in members
            )
            made = [places[left, right] for left in lefts for right in rights if left <= right]
            parts.append(Part(inputs=inputs, outputs=tuple(own + made)))
    return parts


def _execute(task: Task, parameters: MomentsParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    shape, settings = task.shape, task.shape.parameters
    n_columns, degree, size = len(parameters.columns), settings.poly_modulus_degree, settings.residues
    features = list(dict.fromkeys(feature for _, feature in task.inputs))
    position = {parameters.columns.index(feature): row for row, feature in enumerate(features)}
    all_pairs = pairs_of(n_columns)
    chosen = [all_pairs[index - n_columns] for index in task.outputs if index >= n_columns]
    rows = [(position[a], position[b]) for a, b in chosen]
    sums = np.zeros((len(features), 2, len(settings.primes), degree), dtype=np.uint64)
    passes = _passes(task, len(features), inputs, mask, sums)
    if shape.n_chunks <= _CHUNKS_PER_PASS:
        results = sums_of_each(rows, *next(passes), settings.primes)
    else:
        products = Sums(rows, settings.primes, size)
        for masked, plain in passes:
            products.add(masked, plain)
        results = products.results()
    return [
        _extracted(sums[position[index]].reshape(2, size) if index < n_columns else next(results), shape)
        for index in task.outputs
    ]


def _passes(
    task: Task, n_features: int, inputs: Inputs, mask: Mask, sums: Residues
) -> Iterator[tuple[Stack, Stack]]:
    """Columns times the mask, and columns, a few chunks at a time; the masked columns are added to `sums`."""
    shape, settings = task.shape, task.shape.parameters
    degree, size = settings.poly_modulus_degree, settings.residues
    blocks = _parts(task, inputs)
    for first in range(0, shape.n_chunks, _CHUNKS_PER_PASS):
        chunks = range(first, min(shape.n_chunks, first + _CHUNKS_PER_PASS))
        masked, plain = (Stack(n_features, len(chunks), size) for _ in range(2))
        for term, chunk in enumerate(chunks):
            values = mask_values(chunk_mask(mask, chunk, degree), settings)
            for row in range(n_features):
                parts = next(blocks)
                plain.fill(row, term, *parts.reshape(2, size))
                permitted = reduced(parts * values, settings)
                masked.fill(row, term, *permitted.reshape(2, size))
                sums[row] = reduced(sums[row] + permitted, settings)
        yield masked, plain


def _parts(task: Task, inputs: Inputs) -> Iterator[Residues]:
    """Both polynomials of every input, by prime; shape (2, primes, N)."""
    settings = task.shape.parameters
    for found in read_sealed(task.inputs, inputs, settings, task.shape.key_id, compiled=True):
        yield np.stack([found.c0, found.c1]).reshape(2, len(settings.primes), settings.poly_modulus_degree)


def _extracted(parts: Residues, shape: BundleShape) -> bytes:
    """A result of two or three polynomials, of the first only coefficient 0."""
    settings = shape.parameters
    by_prime = parts[0].reshape(len(settings.primes), settings.poly_modulus_degree)
    constant = [
        ntt.constant_term(values, prime) for values, prime in zip(by_prime, settings.primes, strict=True)
    ]
    made = Ciphertext(
        form=Form.EXTRACTED if len(parts) == 2 else Form.EXTRACTED_PRODUCT,
        parameters=settings,
        key_id=shape.key_id,
        c0=np.array(constant, dtype=np.uint64),
        c1=parts[1],
        c2=parts[2] if len(parts) == 3 else None,
    )
    return encode(made, packer=packed.pack)


MOMENTS: Final = Kernel(
    name="moments",
    version=1,
    kernel_class="aggregate",
    scheme="bgv",
    parameter_schema=MappingProxyType({"columns": "list[k] of int, ascending"}),
    bounds=MappingProxyType(
        {
            "value": "rows*max(max_abs,min(max_abs,max_l2)^2)",
            "noise": "chunks*N^2*((t-1)/2)*F^2",
            "F": "(t-1)/2+21*t",
        }
    ),
    cost_model=MappingProxyType(
        {
            "expansions": "chunks*k, times ceil(k/16) for k above 16",
            "transforms": "chunks*primes",
            "multiply_adds": "chunks*k*(k+1)/2*4*primes*N",
        }
    ),
    implementation=Implementation(
        parameters=MomentsParameters,
        parse=_parse,
        worst_case=_worst_case,
        n_outputs=_n_outputs,
        outputs=_outputs,
        plan=_plan,
        execute=_execute,
    ),
)
"""Sums and sums of products of columns over the permitted rows: one extracted block each."""
