"""The `sum` kernel: column sums over the permitted rows.

Row i of a block is coefficient i of the plaintext polynomial, so a sum over the permitted rows is one
multiplication by the 0/1 polynomial `M = sum_i mask_i X^(-i)`, whose effect is that coefficient 0 of the
product is `sum_i mask_i v_i`. Of such a product a result carries all of c1 but only coefficient 0 of c0:
no row can be decrypted from a published sum, not even by the owner of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from usufruct.he import lanes
from usufruct.he.kernels.blocks import BLOCKS_PER_TASK, chunk_mask, extracted, mask_polynomial
from usufruct.he.kernels.linear import FRESH_NOISE, summed_outputs
from usufruct.he.kernels.record import BundleShape, Implementation, Inputs, Kernel, Mask, Output, Part, Task
from usufruct.he.reading import read_sealed
from usufruct.he.residues import Spectrum, negacyclic_multiply, spectrum_of, total_of

_SPECTRA = 256
_COMPILED_BLOCKS = 4096
"""Blocks from which a job is worth the seconds that compiling takes in every process."""


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

    def linear_form(self, shape: BundleShape) -> None:
        """None: a sum is no linear map of single rows."""
        return


def _parse(parameters: Mapping[str, object]) -> SumParameters:
    return SumParameters()


def _worst_case(parameters: SumParameters, shape: BundleShape) -> tuple[int, int]:
    return shape.n_rows * shape.max_abs, shape.n_rows * FRESH_NOISE


def _n_outputs(parameters: SumParameters, shape: BundleShape) -> int:
    return shape.n_features


def _outputs(parameters: SumParameters, shape: BundleShape) -> list[Output]:
    return summed_outputs(shape.n_features)


def _plan(parameters: SumParameters, shape: BundleShape) -> list[Part]:
    chunks, features = range(shape.n_chunks), range(shape.n_features)
    width = max(1, BLOCKS_PER_TASK // shape.n_chunks)
    groups = (features[first : first + width] for first in range(0, shape.n_features, width))
    return [
        Part(inputs=tuple((chunk, feature) for feature in group for chunk in chunks), outputs=tuple(group))
        for group in groups
    ]


def _execute(task: Task, parameters: SumParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    shape, modulus = task.shape, task.shape.parameters.coeff_modulus
    q = np.uint64(modulus)
    degree = shape.parameters.poly_modulus_degree
    sums = {column: (0, np.zeros(degree, dtype=np.uint64)) for column in task.outputs}
    masks = {chunk: chunk_mask(mask, chunk, degree) for chunk in range(shape.n_chunks)}
    spectra: dict[int, Spectrum] = {}
    compiled = lanes.is_compiled() or shape.n_chunks * shape.n_features >= _COMPILED_BLOCKS
    columns = read_sealed(task.inputs, inputs, shape.parameters, shape.key_id, compiled=compiled)
    for (chunk, feature), ciphertext in zip(task.inputs, columns, strict=True):
        rows = masks[chunk]
        if chunk not in spectra:
            if len(spectra) == _SPECTRA:
                spectra.clear()
            spectra[chunk] = spectrum_of(mask_polynomial(rows))
        constant, linear = sums[feature]
        constant = (constant + total_of(ciphertext.c0[rows], modulus)) % modulus
        linear = (linear + negacyclic_multiply(ciphertext.c1, spectra[chunk], modulus)) % q
        sums[feature] = constant, linear
    return [
        extracted(np.array([constant], dtype=np.uint64), linear, shape) for constant, linear in sums.values()
    ]


SUM: Final = Kernel(
    name="sum",
    version=1,
    kernel_class="aggregate",
    scheme="bfv",
    parameter_schema=MappingProxyType({}),
    bounds=MappingProxyType({"value": "rows*max_abs", "noise": "rows*22"}),
    cost_model=MappingProxyType({"expansions": "chunks*features", "polynomial_products": "chunks*features"}),
    implementation=Implementation(
        parameters=SumParameters,
        parse=_parse,
        worst_case=_worst_case,
        n_outputs=_n_outputs,
        outputs=_outputs,
        plan=_plan,
        execute=_execute,
    ),
)
"""Column sums over the permitted rows: one extracted block per feature."""
