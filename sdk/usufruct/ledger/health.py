"""Whether the chain moves, and which endpoints are fit for use: what was observed, as plain records.

Counts time between observations of one process only; no clock of the chain and no wall clock enters a decision, so a
wrong clock neither hides a standstill nor invents one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from usufruct.errors import ChainStalledError
from usufruct.ledger.profile import ChainProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointHealth:
    """What is known of one endpoint."""

    url: str
    in_use: bool
    height: int | None
    """Newest final block that it showed; None before it answered."""
    trouble: str | None
    """Why it is not used; None when it could be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHealth:
    """What is known of the chain."""

    height: int | None
    """Newest final block seen."""
    stalled_since: float | None
    """Unix seconds since when the chain stands still; None while it moves, or could.

    When the last block was seen to come; where none was due, when the validators were first seen apart.
    """
    waiting: int
    """Transactions that wait for a block, as far as known."""
    endpoints: tuple[EndpointHealth, ...]

    @property
    def stalled(self) -> bool:
        """Whether blocks are due and none comes, or none could come."""
        return self.stalled_since is not None


class ChainWatch:
    """Decides whether a chain stands still from the heights that one process observes; thread-safe.

    A block is due always where the engine makes empty ones, elsewhere while a transaction waits. While none is due, validators
    that say of themselves that they do not reach a quorum show that none could come.
    """

    def __init__(self, profile: ChainProfile, *, now: Callable[[], float] = time.monotonic) -> None:
        self._profile = profile
        self._now = now
        self._lock = threading.Lock()
        self._height: int | None = None
        self._first_seen = self._last_seen = now()
        self._advanced_at = time.time()
        self._due_since: float | None = now() if profile.empty_blocks else None
        self._ours: set[bytes] = set()
        self._pool = 0
        self._apart: tuple[float, float, float] | None = None
        """When the validators were first and last seen not to reach a quorum, and Unix seconds of the first."""

    def observed(self, height: int) -> None:
        """The newest final block, just read from the chain."""
        with self._lock:
            now = self._now()
            # A gap, in which the endpoint was away or nobody asked, says nothing about the chain.
            if now - self._last_seen > self._profile.stall_after_s:
                self._first_seen = now
            if height != self._height:
                self._height, self._first_seen, self._advanced_at = height, now, time.time()
                self._apart = None
            self._last_seen = now

    def sent(self, transaction: bytes) -> None:
        """A transaction of ours waits for a block from now on."""
        with self._lock:
            self._ours.add(transaction)
            self._mark()

    def settled(self, transaction: bytes) -> None:
        """A transaction of ours is in a block, or will never be."""
        with self._lock:
            self._ours.discard(transaction)
            self._mark()

    def pooled(self, transactions: int) -> None:
        """How many transactions the endpoint's pool holds."""
        with self._lock:
            self._pool = transactions
            self._mark()

    def quorum(self, reached: bool | None) -> None:
        """Whether any validator that was asked reaches a quorum of the others; None if none could say."""
        with self._lock:
            now = self._now()
            if reached is not False:
                self._apart = None
            elif self._apart is None or now - self._apart[1] > self._profile.stall_after_s:
                self._apart = now, now, time.time()
            else:
                self._apart = self._apart[0], now, self._apart[2]

    @property
    def height(self) -> int | None:
        """Newest final block observed."""
        with self._lock:
            return self._height

    @property
    def waiting(self) -> int:
        """Transactions that wait, ours and others'."""
        with self._lock:
            return max(len(self._ours), self._pool)

    def stalled_since(self) -> float | None:
        """Unix seconds since when the chain stands still; None while it moves, or could."""
        with self._lock:
            if self._due_since is not None:
                # The same height at both ends of the span: what was not looked at does not count as standing still.
                span = self._last_seen - max(self._first_seen, self._due_since)
                if span > self._profile.stall_after_s:
                    return self._advanced_at
            if self._apart is not None:
                first, last, since = self._apart
                if last - first >= self._profile.apart_after_s:
                    return since
            return None

    def check(self) -> None:
        """Raise if the chain stands still.

        Raises
        ------
        ChainStalledError
        """
        since = self.stalled_since()
        if since is not None:
            raise ChainStalledError(self.height or 0, since)

    def _mark(self) -> None:
        if self._profile.empty_blocks:
            return
        if not self._ours and not self._pool:
            self._due_since = None
        elif self._due_since is None:
            self._due_since = self._now()
