"""Checks the result of a linear kernel without computing it again.

For a result Y that is claimed to be W X over residues modulo the prime q, with public integers W, the check draws
random r after Y is fixed and compares r Y with (r W) X: two combinations instead of m outputs. If any residue of Y
is wrong, one comparison misses it with probability at most 2^-30, since r is uniform on 2^30 values and the
equation for an entry of r whose error is not zero has one root modulo q; two independent ones miss it with at most
2^-60. What follows the product in a kernel (bias, mask) is done again, on the combinations.

Source: Freivalds, Probabilistic machines can use less running time, IFIP 1977. Holds no key, and decides nothing
about whose word to trust: the caller has to make the challenge unpredictable until the results are committed to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelParameterError, VerificationError
from usufruct.he import lanes
from usufruct.he.container import Form, parse
from usufruct.he.kernels import (
    LinearParameters,
    Mask,
    Task,
    VerifyParameters,
    check_mask,
    chunk_mask,
    features_by_chunk,
    linear_form,
    mask_polynomial,
    weighted_sums,
)
from usufruct.he.residues import Residues, negacyclic_multiply, scale_up, shift_left, total_of

SOUNDNESS_BITS: Final = 60
"""A wrong result passes with probability at most 2^-60."""

CHALLENGE_BYTES: Final = 32

_COMBINATIONS = SOUNDNESS_BITS // lanes.COEFFICIENT_BITS
_DIGIT_BITS = 11
"""Narrow and balanced, so that 32-bit sums of the lanes take some hundred features."""


def is_cheaper(task: Task) -> bool:
    """Tell whether the check costs fewer multiplications than executing the task again.

    The check takes two combinations of about five digits each over the inputs, and two over the results.
    """
    linear = linear_form(task.parameters, task.shape)
    if linear is None or isinstance(task.parameters, VerifyParameters):
        return False
    return len(linear.weights) > 2 * 5 * _COMBINATIONS


def check_linear(
    task: Task,
    inputs: Mapping[tuple[int, int], bytes],
    results: Sequence[bytes],
    mask: Mask,
    challenge: bytes,
) -> None:
    """Check that `results` is what `kernels.execute` gives for this task; returns nothing if it is.

    Parameters
    ----------
    task, inputs, mask :
        As for `kernels.execute`.
    results :
        The claimed blocks, in the order of `task.outputs`.
    challenge :
        At least 32 bytes that nobody who chose `results` could foresee: drawn, or revealed, after the results were
        committed to. One challenge may serve all tasks of a job.

    Raises
    ------
    VerificationError
        If a result is wrong, or missing.
    ContainerError, WrongKeyDomainError
        If a block is not one that a kernel could read or write.
    KernelParameterError
        If the task is not of a kernel that can be checked this way, the challenge is short, or the mask does not
        fit.
    """
    linear = linear_form(task.parameters, task.shape)
    if linear is None or isinstance(task.parameters, VerifyParameters):
        raise KernelParameterError(f"results of kernel {task.kernel} are checked by executing it again")
    if len(challenge) < CHALLENGE_BYTES:
        raise KernelParameterError(f"a challenge has at least {CHALLENGE_BYTES} bytes, not {len(challenge)}")
    check_mask(mask, task.shape)
    if len(results) != len(task.outputs):
        raise VerificationError(f"{len(results)} results for a task that gives {len(task.outputs)}")
    factors = _factors(challenge, task.index, len(linear.weights))
    form = Form.CIPHERTEXT if linear.output == "rows" else Form.EXTRACTED
    claimed = [
        parse(block, key_id=task.shape.key_id, forms=(form,), unpacker=lanes.unpack) for block in results
    ]
    # Coefficients of c0 first, as many as the form holds.
    stacked = np.stack([np.concatenate([found.c0, found.c1]) for found in claimed])
    found = lanes.combine_rows(factors, stacked, task.shape.parameters.coeff_modulus)
    if not np.array_equal(found, _expected(task, linear, inputs, mask, factors)):
        raise VerificationError(f"the results of task {task.index} are not those of kernel {task.kernel}")


def _factors(challenge: bytes, index: int, n_models: int) -> NDArray[np.uint64]:
    """Uniform coefficients of 30 bits, shape (2, m): SHAKE256 over a tag, the task's index and the challenge."""
    stream = hashlib.shake_256(b"usufruct/freivalds/1\0" + index.to_bytes(8, "little") + challenge)
    words = np.frombuffer(stream.digest(4 * _COMBINATIONS * n_models), dtype="<u4").astype(np.uint64)
    return (words & np.uint64((1 << lanes.COEFFICIENT_BITS) - 1)).reshape(_COMBINATIONS, n_models)


def _expected(
    task: Task,
    linear: LinearParameters,
    inputs: Mapping[tuple[int, int], bytes],
    mask: Mask,
    factors: NDArray[np.uint64],
) -> Residues:
    """The combinations of the true results."""
    shape, degree = task.shape, task.shape.parameters.poly_modulus_degree
    modulus, t = shape.parameters.coeff_modulus, shape.parameters.plain_modulus
    q = np.uint64(modulus)
    digits = combination_digits(factors, np.array(linear.weights, dtype=np.int64))
    n_digits = digits.shape[0] // _COMBINATIONS
    count = shape.rows_in_chunk(task.inputs[0][0]) if linear.output == "rows" else int(mask.sum())
    repeats = 1 if linear.output == "rows" else count
    scaled = scale_up(np.array([b * repeats % t for b in linear.bias], dtype=np.int64), modulus, t)
    bias = lanes.combine_rows(factors, scaled[:, None], modulus)
    constants = bias
    linears = np.zeros((_COMBINATIONS, degree), dtype=np.uint64)
    for chunk, features in features_by_chunk(task).items():
        sums = weighted_sums(digits, chunk, features, inputs, shape)
        whole = np.zeros((_COMBINATIONS, 2 * degree), dtype=np.uint64)
        for digit in reversed(range(n_digits)):
            whole = shift_left(whole, _DIGIT_BITS, modulus)
            whole = (whole + sums[digit * _COMBINATIONS : (digit + 1) * _COMBINATIONS]) % q
        if linear.output == "rows":
            whole[:, :count] = (whole[:, :count] + bias) % q
            return whole
        rows = chunk_mask(mask, chunk, degree)
        opened = [[total_of(one[:degree][rows], modulus)] for one in whole]
        constants = (constants + np.array(opened, dtype=np.uint64)) % q
        linears = (linears + negacyclic_multiply(whole[:, degree:], mask_polynomial(rows), modulus)) % q
    return np.concatenate([constants, linears], axis=1)


def combination_digits(factors: NDArray[np.uint64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Combine the rows of integer weights, and cut the combinations into digits that the lanes take.

    Parameters
    ----------
    factors :
        shape (c, m), below 2^30.
    weights :
        shape (m, d).

    Returns
    -------
    digits :
        In [-2^10, 2^10), to the base 2^11, lowest first: shape (n * c, d), all first digits before all second ones.

    Raises
    ------
    KernelParameterError
        If a combination could pass 62 bits; a kernel's noise bound keeps weights below 2^21, and there are at most
        2^10 outputs, so none does.
    """
    if int(np.abs(weights).sum(axis=0).max()) >> (62 - lanes.COEFFICIENT_BITS):
        raise KernelParameterError("these weights are too large to be combined exactly")
    return _digits(factors.astype(np.int64) @ weights)


def _digits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Balanced digits to the base 2^11, lowest first, stacked; shape (digits * rows, columns)."""
    half = 1 << (_DIGIT_BITS - 1)
    digits: list[NDArray[np.int64]] = []
    while not digits or values.any():
        digits.append(((values + half) & (2 * half - 1)) - half)
        values = (values - digits[-1]) >> _DIGIT_BITS
    return np.concatenate(digits)
