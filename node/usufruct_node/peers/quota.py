"""What one member may take from this node per unit of time.

Buckets that fill at a steady rate and may go into debt: what a request costs is known only once it is served, and the next one
waits until the debt is paid, or is refused if that would take too long. Knows no peers' business and no blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

BURST_SECONDS: Final = 5.0
"""A member that was idle may take at once what it could have had in this time."""

PATIENCE_SECONDS: Final = 2.0
"""A request waits for its turn at most this long; after that it is refused."""

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Bounds on one member."""

    streams: int = 8
    """Streams served at once; more are told that this node is busy."""

    blocks_per_s: float = 20_000.0
    """Blocks asked for per second, whether they are given or refused."""

    bytes_per_s: float = 500e6
    """Bytes of blocks given per second."""

    bytes_per_day: int | None = None
    """Bytes of blocks given in a day; None for no such bound."""


class _Bucket:
    """Tokens that come at `rate` per second, `burst` of them at most."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, now

    def wait_s(self, now: float) -> float:
        """Seconds until there is no debt."""
        self._fill(now)
        return max(0.0, -self._tokens / self._rate)

    def take(self, count: float, now: float) -> None:
        self._fill(now)
        self._tokens -= count

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Quotas:
    """The accounts of all members under one `Quota`; used from the event loop only."""

    def __init__(self, quota: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = quota
        self._clock = clock
        self._accounts: dict[str, tuple[_Bucket, ...]] = {}

    @property
    def streams(self) -> int:
        """Streams that a member may have served at once."""
        return self._quota.streams

    def wait_s(self, peer_id: str) -> float | None:
        """How long the member's next request has to wait, in seconds; None if that is longer than it may."""
        now = self._clock()
        wait = max(bucket.wait_s(now) for bucket in self._account(peer_id, now))
        return None if wait > PATIENCE_SECONDS else wait

    def charge(self, peer_id: str, *, blocks: int, size_bytes: int) -> None:
        """Note what the member asked for and was given."""
        now = self._clock()
        per_block, *per_byte = self._account(peer_id, now)
        per_block.take(blocks, now)
        for bucket in per_byte:
            bucket.take(size_bytes, now)

    def _account(self, peer_id: str, now: float) -> tuple[_Bucket, ...]:
        found = self._accounts.get(peer_id)
        if found is None:
            quota = self._quota
            made = [
                _Bucket(rate, rate * BURST_SECONDS, now) for rate in (quota.blocks_per_s, quota.bytes_per_s)
            ]
            if quota.bytes_per_day is not None:
                made.append(_Bucket(quota.bytes_per_day / _DAY_SECONDS, quota.bytes_per_day, now))
            found = self._accounts[peer_id] = tuple(made)
        return found
