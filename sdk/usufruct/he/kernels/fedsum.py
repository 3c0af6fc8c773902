"""The `fedsum` kernel: a weighted sum of update vectors that several members contribute.

A column is one member's update, a row one entry of it. Every member encrypts under the public key of one key domain
(`contribution`), so inputs are two-part ciphertexts and not sealed blocks: a steward's bundle cannot be summed across
its columns this way. Consent is by column, since a contribution and not a row belongs to somebody: a column that is
masked, or weighs nothing, is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from usufruct.errors import KernelParameterError
from usufruct.he import slots
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.kernels.linear import read_integers, row_outputs
from usufruct.he.kernels.record import (
    MAX_FEATURES,
    UPLOAD_MARGIN_BITS,
    BundleShape,
    Implementation,
    Inputs,
    Kernel,
    Mask,
    Output,
    Part,
    Task,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedsumParameters:
    """What each contribution counts. How long one may be, the shape says: `max_l2` is of a column here."""

    weights: tuple[int, ...]
    """shape (n_features,): one for every contribution, for example its number of examples; not all zero."""

    @property
    def row_level(self) -> bool:
        """A row is an entry of the sum, not a person."""
        return False

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {"weights": list(self.weights)}

    def linear_form(self, shape: BundleShape) -> None:
        """None: inputs are no sealed columns, so checks and bounds of linear models do not apply."""
        return

    def sensitivity(self, shape: BundleShape) -> int:
        """How far one contribution can move the whole result, in the 2-norm: what noise has to cover."""
        return max(abs(weight) for weight in self.weights) * shape.max_l2


def _parse(parameters: Mapping[str, object]) -> FedsumParameters:
    return FedsumParameters(weights=read_integers(parameters["weights"], "weights", MAX_FEATURES))


def _worst_case(parameters: FedsumParameters, shape: BundleShape) -> tuple[int, int]:
    if len(parameters.weights) != shape.n_features:
        raise KernelParameterError(f"{len(parameters.weights)} weights for {shape.n_features} contributions")
    l1 = sum(abs(weight) for weight in parameters.weights)
    if l1 == 0:
        raise KernelParameterError("every weight is zero, so the result would not be encrypted")
    return l1 * min(shape.max_abs, shape.max_l2), l1 * slots.uploaded_phase(shape.parameters)


def _n_outputs(parameters: FedsumParameters, shape: BundleShape) -> int:
    return shape.n_chunks


def _outputs(parameters: FedsumParameters, shape: BundleShape) -> list[Output]:
    return row_outputs(1, shape)


def _plan(parameters: FedsumParameters, shape: BundleShape) -> list[Part]:
    used = [column for column, weight in enumerate(parameters.weights) if weight]
    return [
        Part(inputs=tuple((chunk, column) for column in used), outputs=(chunk,))
        for chunk in range(shape.n_chunks)
    ]


def _execute(task: Task, parameters: FedsumParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    shape, chosen = task.shape, task.shape.parameters
    permitted = [(chunk, column) for chunk, column in task.inputs if mask[column]]
    if not permitted:
        raise KernelParameterError("no permitted contribution has a weight")
    q = slots.moduli(chosen)
    # A weight and a residue have at most 31 bits each, so 64 hold their product and a residue more.
    total = np.zeros((2, len(chosen.primes), chosen.poly_modulus_degree), dtype=np.uint64)
    for chunk, column in permitted:
        found = parse(inputs[chunk, column], key_id=shape.key_id, parameters=chosen, forms=(Form.CIPHERTEXT,))
        weight = np.array([[parameters.weights[column] % prime] for prime in chosen.primes], dtype=np.uint64)
        total = (total + weight * np.stack([found.c0, found.c1]).reshape(total.shape)) % q
    return [
        encode(
            Ciphertext(
                form=Form.CIPHERTEXT,
                parameters=chosen,
                key_id=shape.key_id,
                c0=total[0].reshape(-1),
                c1=total[1].reshape(-1),
            )
        )
    ]


FEDSUM: Final = Kernel(
    name="fedsum",
    version=1,
    kernel_class="aggregate",
    scheme="bgv",
    parameter_schema=MappingProxyType({"weights": "list[features] of int"}),
    bounds=MappingProxyType(
        {
            "value": "l1(weights)*min(max_abs,max_l2)",
            "noise": "l1(weights)*(t/2+t*21*(2*N+1))",
            "margin_bits": "20",
        }
    ),
    cost_model=MappingProxyType({"multiply_adds": "chunks*features*2*primes*N"}),
    implementation=Implementation(
        parameters=FedsumParameters,
        parse=_parse,
        worst_case=_worst_case,
        n_outputs=_n_outputs,
        outputs=_outputs,
        plan=_plan,
        execute=_execute,
        input_form=Form.CIPHERTEXT,
        mask_of_columns=True,
        margin_bits=UPLOAD_MARGIN_BITS,
    ),
)
"""Weighted sum of contributions, entry by entry: one two-part block for every N entries."""
