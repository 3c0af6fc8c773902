"""What time it is on the chain, between blocks too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from usufruct.ledger import Head
from usufruct.ledger.profile import ChainProfile


class ChainClock:
    """Chain time in Unix seconds, advanced by this machine's stopwatch where no block comes unless somebody sends.

    On such a chain the newest block's time stands still while deadlines pass, and nobody would close what is overdue. The wall
    clock is not asked: a member's that is wrong by an hour would have it give up jobs that are in time.
    """

    def __init__(self, profile: ChainProfile, *, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._runs = not profile.empty_blocks
        self._stopwatch = stopwatch
        self._lock = threading.Lock()
        self._head: Head | None = None
        self._seen_at = 0.0

    def now(self, head: Head | None) -> int:
        """Unix seconds, given the newest block that is known; 0 without one."""
        if head is None:
            return 0
        with self._lock:
            if self._head is None or head.number != self._head.number:
                self._head, self._seen_at = head, self._stopwatch()
            passed = self._stopwatch() - self._seen_at if self._runs else 0.0
        return head.timestamp + int(passed)
