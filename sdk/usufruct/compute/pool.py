"""Worker processes of this machine. A worker imports the engine and the block files, and nothing else of the project."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from types import TracebackType
from typing import Any


class _Results(SimpleQueue[Any]):
    """The pipe that workers write results into."""

    def hang_up(self) -> None:
        """Let go of this process's end for writing: once no worker has the other, reading ends instead of waiting for more."""
        self._writer.close()  # type: ignore[attr-defined]


class _Workshop(SpawnContext):
    """Remembers the processes and the pipe of one pool, of which the standard pool tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[BaseProcess] = []
        self.results: list[_Results] = []

    def Process(self, *arguments: Any, **options: Any) -> BaseProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnContext.Process(*arguments, **options)
        self.processes.append(process)
        return process

    def SimpleQueue(self) -> _Results:  # noqa: N802
        results = _Results(ctx=self)
        self.results.append(results)
        return results

    def lost(self) -> bool:
        """Whether a process has ended."""
        return bool(wait([process.sentinel for process in self.processes if process.pid is not None], 0))

    def wreck(self) -> None:
        """End all processes, and the pool's wait for the rest of a result whose writer is dead."""
        for process in self.processes:
            if process.pid is not None:
                process.kill()
        for results in self.results:
            with contextlib.suppress(OSError):
                results.hang_up()


class WorkerPool:
    """A pool of worker processes, started at the first task; one that lost a worker is made anew.

    Any number of threads may run jobs on one pool.

    Parameters
    ----------
    count :
        Processes.
    initializer :
        Called in every worker as it starts.
    """

    def __init__(self, count: int, *, initializer: Callable[[], None] | None = None) -> None:
        self.count = count
        self._initializer = initializer
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._workshop = _Workshop()

    @property
    def in_flight(self) -> int:
        """Tasks to keep under way: one for each worker, and as many whose blocks are read ahead."""
        return 2 * self.count

    @property
    def failures(self) -> tuple[type[BaseException], ...]:
        """What a future's result raises if a worker died."""
        return (BrokenProcessPool,)

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Have a worker call a function; the future's result raises BrokenProcessPool if a worker dies meanwhile."""
        with self._lock:
            if self._pool is not None:
                try:
                    return self._pool.submit(function, *arguments)
                except BrokenProcessPool:
                    self._pool.shutdown(wait=False)
            self._workshop = _Workshop()
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=self._workshop, initializer=self._initializer
            )
            return self._pool.submit(function, *arguments)

    def check(self) -> None:
        """Break the pool if a worker has died, so that every future under way is done.

        The standard pool does so by itself unless the worker died while it wrote a result: then it waits for the rest for ever.
        """
        with self._lock:
            if self._pool is not None and self._workshop.lost():
                self._workshop.wreck()

    def close(self) -> None:
        """Stop the processes; those that are in the middle of a task end after it. Closing twice is harmless."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
