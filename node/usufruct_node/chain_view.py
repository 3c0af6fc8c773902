"""What a node says of the chain below it: whether it moves, through which endpoint, and why not through others."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from usufruct.errors import ChainStalledError
from usufruct.ledger import ChainHealth, Ledger


class ChainView:
    """Puts together what the ledger client observes and what following the chain runs into. Asks nobody itself.

    A call that hangs says nothing for as long as it hangs: so silence counts, too, once it lasts five block intervals.
    """

    def __init__(self, ledger: Ledger, *, now: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._now = now
        self._trouble: str | None = None
        self._heard_at = now()
        self._stall: ChainStalledError | None = None

    def heard(self, trouble: str | None = None) -> None:
        """The chain answered, or an attempt to follow it ended in `trouble`."""
        self._trouble = trouble
        if trouble is None:
            self._heard_at = self._now()

    def stood_still(self, stall: ChainStalledError) -> None:
        """Somebody gave up waiting for a block; that holds until one comes, whether or not anybody waits meanwhile."""
        self._stall = stall

    def state(self) -> str:
        """`ok`, or in a line what is wrong."""
        health, silent_s = self._ledger.health(), self._now() - self._heard_at
        since = self._stalled_since(health)
        if since is not None:
            return f"the chain stands still at block {health.height} since {_time(since)}"
        if self._trouble is not None:
            return self._trouble
        if silent_s > self._ledger.network.chain.stall_after_s:
            return f"no endpoint has answered for {silent_s:.0f} s{_reasons(health)}"
        return "ok"

    def to_dict(self) -> dict[str, Any]:
        """For `status`."""
        health = self._ledger.health()
        return {
            "state": self.state(),
            "profile": self._ledger.network.profile,
            "height": health.height,
            "stalled_since": None if (since := self._stalled_since(health)) is None else _time(since),
            "waiting_transactions": health.waiting,
            "endpoints": [
                {"url": e.url, "in_use": e.in_use, "height": e.height, "refused": e.trouble}
                for e in health.endpoints
            ],
        }

    def _stalled_since(self, health: ChainHealth) -> float | None:
        if health.stalled_since is None and self._stall is not None and health.height == self._stall.height:
            return self._stall.since
        return health.stalled_since


def _reasons(health: ChainHealth) -> str:
    troubles = [endpoint.trouble for endpoint in health.endpoints if endpoint.trouble]
    return f": {'; '.join(troubles)}" if troubles else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
