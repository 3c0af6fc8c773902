"""Worker processes of this machine. A worker imports the engine and the block files, and nothing else of the project."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any


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
            self._pool = ProcessPoolExecutor(
                self.count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=self._initializer,
            )
            return self._pool.submit(function, *arguments)

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
