"""Checks the result of a linear kernel without computing it again.

Results Y that are claimed to be a linear map of the inputs' residues X modulo the prime q, Y = W X with public integers W, are
multiplied with random vectors s that are drawn after Y is fixed: Y s has to be W (X s). That is one inner product for every
input and output instead of one sum of polynomials for every pair of them. If a result has a wrong residue, an entry of s there
has one root modulo q, so one vector with entries uniform on 2^30 values misses it with probability at most 2^-30, and two
independent ones with at most 2^-60. What a kernel does after the product is linear as well and moves to the vectors: where the
result is the product with a row mask's polynomial M, the inputs are multiplied with the transpose of M applied to s.

Source: Freivalds, Probabilistic machines can use less running time, IFIP 1977. Holds no key, and decides nothing about whose
word to trust: the caller has to make the challenge unpredictable until the results are committed to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelParameterError, VerificationError
from usufruct.he import packed
from usufruct.he.container import Form, parse
from usufruct.he.kernels import (
    SUM,
    BundleShape,
    Collector,
    LinearParameters,
    Mask,
    Task,
    VerifyParameters,
    check_mask,
    chunk_mask,
    execute,
    features_by_chunk,
    kernel_by_name,
    linear_form,
)
from usufruct.he.pace import Pace, measured_pace
from usufruct.he.projection import ENTRY_BITS, project
from usufruct.he.reading import GROUP_BLOCKS, read_sealed
from usufruct.he.residues import Residues, combine, negacyclic_multiply, scale_up, shift_left

N_VECTORS: Final = 2
SOUNDNESS_BITS: Final = N_VECTORS * ENTRY_BITS
"""A wrong result passes with probability at most 2^-60."""

CHALLENGE_BYTES: Final = 32

ALGEBRAIC: Final = f"ALGEBRAIC(2^-{SOUNDNESS_BITS})"
REPLICATED: Final = "REPLICATED"
"""Levels of verification, as `DESIGN.md`, section 6, names them."""

_SHIFT = 1 << 43


def is_checkable(task: Task) -> bool:
    """Tell whether `check_linear` takes the results of this task's kernel."""
    if isinstance(task.parameters, VerifyParameters):
        return False
    return task.kernel == SUM.name or linear_form(task.parameters, task.shape) is not None


def is_cheaper(task: Task, pace: Pace | None = None) -> bool:
    """Tell whether the check costs less than executing the task again.

    Both read the same inputs, so what comes after counts, at the pace of this machine or at the one given. Sums over rows
    are polynomial products to compute and inner products to check, so the check always wins there.
    """
    if not is_checkable(task):
        return False
    linear = linear_form(task.parameters, task.shape)
    if linear is None or linear.output == "sum":
        return True
    sizes = len(task.inputs), len(linear.weights)
    pace = pace or measured_pace()
    return pace.check(*sizes) < pace.execution(*sizes)


def verify(
    tasks: Sequence[Task],
    inputs: Mapping[tuple[int, int], bytes],
    results: Sequence[bytes],
    mask: Mask,
    challenge: bytes | None,
) -> str:
    """Check results by whichever way costs less; returns the level that this gives them.

    Parameters
    ----------
    tasks, inputs, results, mask :
        As for `check_linear`, for any kernel.
    challenge :
        As for `check_linear`; None where nobody could have drawn it late enough, which leaves only execution.

    Returns
    -------
    level :
        `ALGEBRAIC(2^-60)` or `REPLICATED`.

    Raises
    ------
    VerificationError
        If a result is wrong, or missing; other errors as `check_linear` and `kernels.execute`.
    UnknownKernelError
        If a restricted kernel would have to be executed.
    """
    first = tasks[0]
    if challenge is not None and is_cheaper(first):
        check_linear(tasks, inputs, results, mask, challenge)
        return ALGEBRAIC
    kernel = kernel_by_name(first.kernel)
    collector = Collector(kernel, first.parameters, first.shape, mask, tasks)
    made = [block for task in tasks for _, block in collector.add(task, execute(task, inputs, mask))]
    if made != list(results):
        raise VerificationError(f"the results of task {first.index} are not those of kernel {first.kernel}")
    return REPLICATED


def check_linear(
    tasks: Sequence[Task],
    inputs: Mapping[tuple[int, int], bytes],
    results: Sequence[bytes],
    mask: Mask,
    challenge: bytes,
) -> None:
    """Check that `results` is what these tasks give; returns nothing if it is.

    Parameters
    ----------
    tasks :
        One task, or all tasks of a job where they are partial.
    inputs, mask :
        As for `kernels.execute`.
    results :
        The claimed blocks, in the order of the tasks' `outputs`.
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
        If the tasks are not of a kernel that can be checked this way, the challenge is short, or the mask does not fit.
    """
    first, shape = tasks[0], tasks[0].shape
    if not is_checkable(first):
        raise KernelParameterError(f"results of kernel {first.kernel} are checked by executing it again")
    if len(tasks) > 1 and not first.partial:
        raise KernelParameterError("only addends of the same results are checked together")
    if len(challenge) < CHALLENGE_BYTES:
        raise KernelParameterError(f"a challenge has at least {CHALLENGE_BYTES} bytes, not {len(challenge)}")
    check_mask(mask, shape)
    if len(results) != len(first.outputs):
        raise VerificationError(f"{len(results)} results for a task that gives {len(first.outputs)}")
    linear = linear_form(first.parameters, shape)
    summed = linear is None or linear.output == "sum"
    form = Form.EXTRACTED if summed else Form.CIPHERTEXT
    vectors = _vectors(challenge, (1 if summed else shape.parameters.residues) + shape.parameters.residues)
    modulus = shape.parameters.coeff_modulus
    claimed = []
    for block in results:
        found = parse(
            block, key_id=shape.key_id, parameters=shape.parameters, forms=(form,), unpacker=packed.unpack
        )
        # Coefficients of c0 first, as many as the form holds.
        claimed.append(project(np.concatenate([found.c0, found.c1])[None], vectors, modulus)[0])
    if linear is None or linear.output == "sum":
        expected = _summed(tasks, linear, inputs, mask, vectors)
    else:
        expected = _scored(first, linear, inputs, vectors)
    if not np.array_equal(np.stack(claimed), expected):
        raise VerificationError(f"the results of task {first.index} are not those of kernel {first.kernel}")


def _vectors(challenge: bytes, length: int) -> NDArray[np.uint64]:
    """Uniform entries of 30 bits, shape (2, length): SHAKE256 over a tag and the challenge."""
    stream = hashlib.shake_256(b"usufruct/freivalds/3\0" + challenge)
    words = np.frombuffer(stream.digest(4 * N_VECTORS * length), dtype="<u4").astype(np.uint64)
    return (words & np.uint64((1 << ENTRY_BITS) - 1)).reshape(N_VECTORS, length)


def _scored(
    task: Task,
    linear: LinearParameters,
    inputs: Mapping[tuple[int, int], bytes],
    vectors: NDArray[np.uint64],
) -> Residues:
    """What the true scores of one chunk's rows give with the vectors; shape (m, 2)."""
    shape = task.shape
    modulus, t = shape.parameters.coeff_modulus, shape.parameters.plain_modulus
    columns = np.concatenate(
        [project(np.hstack(group), vectors, modulus) for group in _groups(task.inputs, inputs, shape)]
    )
    weights = np.array(linear.weights, dtype=np.int64)[:, [feature for _, feature in task.inputs]]
    count = shape.rows_in_chunk(task.inputs[0][0])
    bias = scale_up(np.array([b % t for b in linear.bias], dtype=np.int64), modulus, t)
    offsets = project(np.repeat(bias[:, None], count, axis=1), vectors[:, :count], modulus)
    scored: Residues = (combine(weights, columns, modulus) + offsets) % np.uint64(modulus)
    return scored


def _summed(
    tasks: Sequence[Task],
    linear: LinearParameters | None,
    inputs: Mapping[tuple[int, int], bytes],
    mask: Mask,
    vectors: NDArray[np.uint64],
) -> Residues:
    """What the true sums over the permitted rows give with the vectors; shape (results, 2)."""
    shape = tasks[0].shape
    modulus, degree = shape.parameters.coeff_modulus, shape.parameters.poly_modulus_degree
    q = np.uint64(modulus)
    columns: dict[int, Residues] = {}
    for chunk, features in _features_by_chunk(tasks).items():
        rows = chunk_mask(mask, chunk, degree)
        permitted = rows[None].astype(np.uint64)
        transposed = _transposed(rows, vectors[:, 1:], modulus)
        keys = [(chunk, feature) for feature in features]
        found = [
            project(project(c0, permitted, modulus), vectors[:, :1], modulus)
            + _with_digits(c1, transposed, modulus)
            for c0, c1 in _groups(keys, inputs, shape)
        ]
        for feature, here in zip(features, np.concatenate(found), strict=True):
            columns[feature] = (columns.get(feature, np.uint64(0)) + here) % q
    if linear is None:
        return np.stack([columns[feature] for feature in tasks[0].outputs])
    t, count = shape.parameters.plain_modulus, int(mask.sum())
    weights = np.array(linear.weights, dtype=np.int64)[:, list(columns)]
    bias = scale_up(np.array([b * count % t for b in linear.bias], dtype=np.int64), modulus, t)
    products = combine(weights, np.stack(list(columns.values())), modulus)
    summed: Residues = (products + project(bias[:, None], vectors[:, :1], modulus)) % q
    return summed


def _transposed(rows: Mask, vectors: NDArray[np.uint64], modulus: int) -> NDArray[np.uint64]:
    """The transpose of the product with the row mask's polynomial M = sum_i mask_i X^(-i), applied to vectors.

    It is the product with sum_i mask_i X^i. Its coefficients are below 2^42 in magnitude, so 2^43 is added to them and they
    are cut into digits of 30 bits: lower digits, upper digits, and a vector of ones to take 2^43 off again; shape (5, N).
    """
    products = negacyclic_multiply(vectors, rows.astype(np.int64), modulus).astype(np.int64)
    shifted = np.where(products > modulus // 2, products - modulus, products) + _SHIFT
    digits = [shifted & ((1 << ENTRY_BITS) - 1), shifted >> ENTRY_BITS, np.ones((1, rows.size))]
    return np.concatenate(digits).astype(np.uint64)


def _with_digits(residues: Residues, transposed: NDArray[np.uint64], modulus: int) -> Residues:
    """Products with the vectors that `_transposed` cut into digits; shape (k, 2)."""
    made = project(residues, transposed, modulus)
    low, high, ones = made[:, :N_VECTORS], made[:, N_VECTORS:-1], made[:, -1:]
    q = np.uint64(modulus)
    off = shift_left(ones, _SHIFT.bit_length() - 1, modulus)
    whole: Residues = (low + shift_left(high, ENTRY_BITS, modulus) + (q - off)) % q
    return whole


def _features_by_chunk(tasks: Sequence[Task]) -> dict[int, list[int]]:
    by_chunk: dict[int, list[int]] = {}
    for task in tasks:
        for chunk, features in features_by_chunk(task).items():
            by_chunk.setdefault(chunk, []).extend(features)
    return by_chunk


def _groups(
    keys: Sequence[tuple[int, int]], inputs: Mapping[tuple[int, int], bytes], shape: BundleShape
) -> Iterator[tuple[Residues, Residues]]:
    """c0 and c1 of the input blocks, a few at a time; shapes (k, N)."""
    blocks = read_sealed(keys, inputs, shape.parameters, shape.key_id, compiled=True)
    while group := list(islice(blocks, GROUP_BLOCKS)):
        yield np.stack([found.c0 for found in group]), np.stack([found.c1 for found in group])
