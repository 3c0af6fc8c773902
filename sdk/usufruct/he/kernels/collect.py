"""Puts together what tasks made: their results, or the results of all of them where they are addends of one sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from usufruct.he.container import unpack
from usufruct.he.kernels.record import BundleShape, Kernel, KernelParameters, Mask, Task
from usufruct.he.residues import Residues


class Collector:
    """Takes what each task of one job made, in any order; memory is that of one task's results.

    Parameters
    ----------
    tasks :
        All tasks of the job, from `plan`.
    mask :
        As for `execute`.
    """

    def __init__(
        self,
        kernel: Kernel,
        parameters: KernelParameters,
        shape: BundleShape,
        mask: Mask,
        tasks: Sequence[Task],
    ) -> None:
        self._kernel = kernel
        self._parameters = parameters
        self._shape = shape
        self._mask = mask
        self._left = {task.index for task in tasks}
        self._total: Residues | None = None

    def add(self, task: Task, made: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Take what `execute` gave for one task; returns (output index, block) of the results that are now complete.

        Raises
        ------
        ValueError
            If this task was added before.
        """
        if task.index not in self._left:
            raise ValueError(f"task {task.index} was added before, or is of another job")
        self._left.remove(task.index)
        finish = self._kernel.implementation.finish
        if not task.partial or finish is None:
            return list(zip(task.outputs, made, strict=True))
        parameters = self._shape.parameters
        count = parameters.poly_modulus_degree + 1
        addends = np.stack([unpack(addend, count, parameters.residue_bits) for addend in made])
        q = np.uint64(parameters.coeff_modulus)
        self._total = addends if self._total is None else (self._total + addends) % q
        if self._left:
            return []
        blocks = finish(self._parameters, self._shape, self._mask, self._total)
        return list(zip(task.outputs, blocks, strict=True))
