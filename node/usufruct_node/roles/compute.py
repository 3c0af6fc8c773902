"""Runs kernels in worker processes: inputs from the block store, result blocks back. Holds no key.

Workers import the engine and nothing else of the project: no chain, no peer, no SEAL. A worker that dies fails the attempt
with a typed error; the pool is made anew and the node goes on.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import numpy.typing as npt

from usufruct.content import BlockStore, Cid
from usufruct.errors import UsufructError
from usufruct.he.kernels import Task, execute, plan
from usufruct.job import JobInputs
from usufruct_node.parent import end_with_parent

_WORKER_SECONDS = 3600.0


class WorkerDiedError(UsufructError):
    """A worker process ended in the middle of a task."""


class Workers:
    """A pool of worker processes, started at the first job."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def run(
        self, task: Task, inputs: Mapping[tuple[int, int], bytes], mask: npt.NDArray[np.bool_]
    ) -> list[bytes]:
        """One task; blocks.

        Raises
        ------
        WorkerDiedError
        """
        try:
            return self._started().submit(execute, task, inputs, mask).result(_WORKER_SECONDS)
        except BrokenProcessPool as exc:
            self.close()
            raise WorkerDiedError("a worker process died; the task will be tried again") from exc

    def close(self) -> None:
        """Stop the processes."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._count,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=end_with_parent,
                )
            return self._pool


def compute_result(
    inputs: JobInputs, store: BlockStore, workers: Workers, keep: Callable[[bytes], Cid]
) -> list[Cid]:
    """Run a job's kernel over the local input blocks, task by task; CIDs of the result blocks in output order.

    Parameters
    ----------
    keep :
        Stores one result block; called as soon as a task is done, so memory holds one task's blocks.
    """
    parameters, manifest = inputs.parameters, inputs.manifest
    cids: dict[int, Cid] = {}
    for task in plan(parameters.kernel, parameters.parameters, manifest.shape):
        blocks = {key: store.get(manifest.block_of(*key)) for key in task.inputs}
        results = workers.run(task, blocks, inputs.mask)
        cids.update(zip(task.outputs, (keep(block) for block in results), strict=True))
    return [cids[index] for index in sorted(cids)]
