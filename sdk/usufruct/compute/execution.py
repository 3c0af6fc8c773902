"""Plans a job, keeps a bounded number of its tasks under way, and gives out results as they are complete."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, Final, Protocol

from usufruct.compute.cache import CacheSettings
from usufruct.compute.work import BlockSource, CarriedBlocks, Work, carry_out, pack_mask
from usufruct.content import Cid
from usufruct.errors import ComputationCancelledError, WorkerError
from usufruct.he.kernels import BundleShape, Collector, Kernel, KernelParameters, Mask, Task, plan

_POLL_S = 0.1
TASK_SECONDS: Final = 3600.0
"""How long to wait while no task at all is done."""
_LEAVE_SECONDS: Final = 60.0


class TaskExecutor(Protocol):
    """Whatever carries out work elsewhere: `pool.WorkerPool`, `cluster.ClusterExecutor`."""

    @property
    def in_flight(self) -> int:
        """Tasks to keep under way."""
        ...

    @property
    def failures(self) -> tuple[type[BaseException], ...]:
        """What `submit`, or a future's result, raises where a worker died and not the task failed."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Call a function with plain data in a worker."""
        ...

    def check(self) -> None:
        """Have the futures of workers that died done, where they would not be by themselves; called while none is done."""
        ...


def compute(
    kernel: Kernel,
    parameters: KernelParameters,
    shape: BundleShape,
    mask: Mask,
    *,
    cid_of: Callable[[int, int], Cid],
    blocks: BlockSource,
    executor: TaskExecutor,
    cache: CacheSettings | None = None,
    carried: bool = False,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Run a job over stored blocks.

    At most `executor.in_flight` tasks are under way, and no more is submitted before results are taken: memory is
    that of as many tasks, whatever the bundle's size. When the iterator ends, fails or is closed, no task of the
    job is running any more.

    Parameters
    ----------
    kernel, parameters, shape, mask :
        As for `kernels.run`.
    cid_of :
        CID of the block at (chunk, feature).
    blocks :
        Where workers read the blocks.
    cache :
        Where workers keep expansions; None for nowhere.
    carried :
        Read the blocks here and send them along, for workers that share no file system with this process.
    cancelled :
        Asked several times a second; true, or an exception of its own, ends the job early.
    progress :
        Told tasks done and tasks in all.

    Yields
    ------
    index, block :
        Every result once, in any order.

    Raises
    ------
    ComputationCancelledError
        If it was cancelled.
    WorkerError
        If a worker died, or no task was done for an hour.
    KernelBoundError, KernelParameterError, ContentError, IntegrityError, WrongKeyDomainError
        As `kernels.plan` and `work.carry_out`.
    """
    tasks = plan(kernel, parameters, shape)
    collector = Collector(kernel, parameters, shape, mask, tasks)
    mask_bits, waiting, n_done = pack_mask(mask), list(reversed(tasks)), 0
    pending: dict[Future[list[bytes]], Task] = {}
    changed_at = time.monotonic()
    with _lease(pending) as lease:
        while waiting or pending:
            while waiting and len(pending) < executor.in_flight:
                task = waiting.pop()
                cids = tuple(cid_of(*key) for key in task.inputs)
                source: BlockSource = blocks
                if carried:
                    source = CarriedBlocks({cid: blocks.read(cid) for cid in cids})
                source.announce(cids)
                work = Work(
                    task=task,
                    cids=cids,
                    blocks=source,
                    mask_bits=mask_bits,
                    mask_length=mask.size,
                    cache=cache,
                    lease=None if carried else lease,
                )
                with _translated(executor.failures):
                    pending[executor.submit(carry_out, work)] = task
            done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            if cancelled is not None and cancelled():
                raise ComputationCancelledError("the computation was cancelled")
            if not done:
                executor.check()
            if not done and time.monotonic() - changed_at > TASK_SECONDS:
                raise WorkerError(f"no task was done within {TASK_SECONDS:.0f} seconds")
            for future in done:
                task, changed_at = pending.pop(future), time.monotonic()
                with _translated(executor.failures):
                    made = future.result()
                yield from collector.add(task, made)
                n_done += 1
                if progress is not None:
                    progress(n_done, len(tasks))


@contextlib.contextmanager
def _translated(failures: tuple[type[BaseException], ...]) -> Iterator[None]:
    try:
        yield
    except failures as exc:
        raise WorkerError("a worker process died in the middle of a task") from exc


@contextlib.contextmanager
def _lease(pending: dict[Future[list[bytes]], Task]) -> Iterator[Path]:
    """A file that tells workers that somebody waits for them; on leaving, no task is running any more."""
    handle, name = tempfile.mkstemp(prefix="usufruct-lease-")
    os.close(handle)
    lease = Path(name)
    try:
        yield lease
    finally:
        lease.unlink(missing_ok=True)
        for future in pending:
            future.cancel()
        wait([future for future in pending if not future.cancelled()], timeout=_LEAVE_SECONDS)
