"""What a job costs before it is posted: blocks, bytes, and seconds that are measured and not assumed.

Seconds come from running the kernel here, on blocks of random residues, for one chunk of rows: once to load and compile
whatever the kernel needs, once with the clock on. The cost of every kernel is linear in the blocks it reads, so the
rest follows. Knows no key; the measured blocks hold nothing.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from usufruct.errors import KernelParameterError
from usufruct.he.container import SEED_BYTES, Ciphertext, Form, block_size, encode, expand_seed
from usufruct.he.kernels import BundleShape, Kernel, KernelParameters, Task, execute, outputs, plan
from usufruct.he.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one execution of a job takes."""

    seconds: float
    """Measured on this machine, one process, inputs at hand."""

    input_blocks: int
    """Blocks that are read, each as often as a task needs it."""

    input_bytes: int
    result_blocks: int
    result_bytes: int


def cost_of(kernel: Kernel, parameters: KernelParameters, shape: BundleShape) -> Cost:
    """Measure and count; errors as `Kernel.validate`.

    Takes twice the time of the job's first task on one chunk of rows; asking again for the same job takes none.
    """
    tasks = plan(kernel, parameters, shape)
    made = outputs(kernel, parameters, shape)
    own = kernel.implementation
    n_blocks, form = sum(len(task.inputs) for task in tasks), own.input_form
    return Cost(
        seconds=_seconds_per_block(_sample(kernel, tasks[0]), form, own.mask_of_columns) * n_blocks,
        input_blocks=n_blocks,
        input_bytes=n_blocks * block_size(form, shape.parameters),
        result_blocks=len(made),
        result_bytes=sum(block_size(output.form, shape.parameters) for output in made),
    )


def _sample(kernel: Kernel, first: Task) -> Task:
    """A task of the same job on one chunk of rows."""
    degree = first.shape.parameters.poly_modulus_degree
    one_chunk = replace(first.shape, n_rows=min(first.shape.n_rows, degree))
    try:
        return plan(kernel, first.parameters, one_chunk)[0]
    except KernelParameterError:
        # The parameters name rows beyond the first chunk; their tasks have one chunk each.
        return first


@lru_cache(maxsize=64)
def _seconds_per_block(task: Task, form: Form, mask_of_columns: bool) -> float:
    shape = task.shape
    inputs = dict.fromkeys(task.inputs, _random_block(shape.parameters, shape.key_id, form))
    mask = np.ones(shape.n_features if mask_of_columns else shape.n_rows, dtype=np.bool_)
    execute(task, inputs, mask)
    started = time.perf_counter()
    execute(task, inputs, mask)
    return (time.perf_counter() - started) / len(task.inputs)


def _random_block(parameters: Parameters, key_id: bytes, form: Form) -> bytes:
    seeds = [secrets.token_bytes(SEED_BYTES) for _ in range(2)]
    c0, c1 = (expand_seed(seed, parameters, key_id) for seed in seeds)
    seed = seeds[1] if form is Form.SEEDED else None
    return encode(Ciphertext(form=form, parameters=parameters, key_id=key_id, c0=c0, c1=c1, seed=seed))
