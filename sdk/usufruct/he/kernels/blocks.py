"""What the kernels share when they read and write blocks: sealed inputs, masks, extracted results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelParameterError
from usufruct.he.container import Ciphertext, Form, encode
from usufruct.he.kernels.record import BundleShape, Mask, Task
from usufruct.he.residues import Residues

BLOCKS_PER_TASK = 64


def features_by_chunk(task: Task) -> dict[int, list[int]]:
    """The task's features by chunk, in the order of its inputs."""
    by_chunk: dict[int, list[int]] = {}
    for chunk, feature in task.inputs:
        by_chunk.setdefault(chunk, []).append(feature)
    return by_chunk


def used_columns(weights: Sequence[tuple[int, ...]]) -> list[int]:
    """Columns that any model weighs; the others are not read at all."""
    return [feature for feature in range(len(weights[0])) if any(row[feature] for row in weights)]


def check_mask(mask: Mask, shape: BundleShape, *, of_columns: bool = False) -> None:
    """Raise KernelParameterError if a mask does not fit a bundle's rows, or columns, or permits none."""
    length = shape.n_features if of_columns else shape.n_rows
    if mask.dtype != np.bool_ or mask.shape != (length,):
        raise KernelParameterError(f"the mask is {mask.dtype}{mask.shape}, expected bool ({length},)")
    if not mask.any():
        raise KernelParameterError(
            f"the mask permits no {'column' if of_columns else 'row'}",
            hint="no subject of this bundle consents at this epoch",
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


def extracted(constant: Residues, linear: Residues, shape: BundleShape) -> bytes:
    """A result that opens in coefficient 0 only: `constant` is that of c0, shape (1,); `linear` is c1."""
    return encode(
        Ciphertext(
            form=Form.EXTRACTED, parameters=shape.parameters, key_id=shape.key_id, c0=constant, c1=linear
        )
    )
