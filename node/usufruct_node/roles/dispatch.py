"""Runs the roles: after each new finalised block every role says which jobs want it, and each gets one task at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import trio

from usufruct.errors import TransactionRevertedError, UsufructError
from usufruct.records import JobId
from usufruct_node.index import JobRow

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
"""Longest time between two looks at the jobs."""

_FIRST_PAUSE = 0.25
"""Before the first repetition: most failures are a peer that is a block behind."""

_LONGEST_PAUSE = 60.0
_CATCHING_UP_SECONDS = 5.0
"""Longest time for which a step that was done is not begun again because the index does not show it yet."""
_MOVED_ON = frozenset(
    {
        "JobLedgerWrongState",
        "JobLedgerDeadlinePassed",
        "JobLedgerDeadlineNotPassed",
        "JobLedgerAlreadyCommitted",
        "JobLedgerAlreadyRevealed",
        "JobLedgerHistoryMismatch",
        "ReputationAlreadyReported",
    }
)
"""Refusals that only say that somebody else was quicker, or that a block has passed."""


class Role(Protocol):
    """A role sees the index and acts on single jobs; every step may be repeated after a crash."""

    def wanted(self) -> list[JobRow]:
        """Jobs on which this role has something to do now."""

    async def handle(self, row: JobRow) -> None:
        """Do the next step of one job."""


class Dispatcher:
    """Starts at most one task per role and job; failures are logged, kept for `status`, and tried again later."""

    def __init__(self, roles: Sequence[Role]) -> None:
        self._roles = list(roles)
        self._busy: set[tuple[int, JobId]] = set()
        self._failures: dict[tuple[int, JobId], tuple[int, float]] = {}
        self._done: dict[tuple[int, JobId], tuple[JobRow, float]] = {}
        self._changed = trio.Event()
        self._held = False
        self._troubles: dict[str, str] = {}
        """Job id in hex -> last error of a step on it."""
        self._blind: dict[int, str] = {}
        """Roles that could not look for work, and why."""

    @property
    def troubles(self) -> dict[str, str]:
        """Job id in hex -> last error of a step on it, and role -> why it cannot look for work; empty when all is well."""
        blind = {type(self._roles[number]).__name__.lower(): why for number, why in self._blind.items()}
        return self._troubles | blind

    def wake(self) -> None:
        """Look again; called when the index has advanced."""
        self._changed.set()

    def hold(self, held: bool) -> None:
        """Begin nothing more, or begin again; what is under way ends."""
        self._held = held

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                wanted: set[tuple[int, JobId]] = set()
                for number, role in enumerate(() if self._held else self._roles):
                    for row in await self._wanted(number, role):
                        key = (number, row.job_id)
                        wanted.add(key)
                        if key not in self._busy and self._rested(key) and not self._is_done(key, row):
                            self._busy.add(key)
                            nursery.start_soon(self._step, key, role, row)
                self._forget_all_but(wanted | self._busy)
                with trio.move_on_after(self._rest()):
                    await self._changed.wait()

    async def _wanted(self, number: int, role: Role) -> list[JobRow]:
        try:
            rows = await trio.to_thread.run_sync(role.wanted)
        except Exception as exc:
            # Such as a database that is locked or on a full disk: the other roles go on, and so does the node.
            unexpected = exc if not isinstance(exc, UsufructError) else None
            _log.warning("%s cannot look for work: %s", type(role).__name__, exc, exc_info=unexpected)
            self._blind[number] = f"cannot look for work: {exc}"
            return []
        self._blind.pop(number, None)
        return rows

    def _forget_all_but(self, current: set[tuple[int, JobId]]) -> None:
        """A job that went on without this node, or is over, is no trouble any more."""
        known = current | {key for key in self._failures if key[0] in self._blind}
        self._failures = {key: held for key, held in self._failures.items() if key in known}
        self._done = {key: held for key, held in self._done.items() if key in known}
        jobs = {job_id.hex() for _, job_id in known}
        self._troubles = {job: why for job, why in self._troubles.items() if job in jobs}

    def _rest(self) -> float:
        """Seconds until something may be tried again, if nothing changes before."""
        due = min((at for _, at in self._failures.values()), default=float("inf"))
        return min(_LOOK_SECONDS, max(_FIRST_PAUSE, due - time.monotonic()))

    def _is_done(self, key: tuple[int, JobId], row: JobRow) -> bool:
        """Whether the index still shows the job as it was before the step that has just been done on it."""
        if key not in self._done:
            return False
        before, at = self._done[key]
        if before == row and time.monotonic() < at + _CATCHING_UP_SECONDS:
            return True
        del self._done[key]
        return False

    def _rested(self, key: tuple[int, JobId]) -> bool:
        return key not in self._failures or time.monotonic() >= self._failures[key][1]

    async def _step(self, key: tuple[int, JobId], role: Role, row: JobRow) -> None:
        job = row.job_id.hex()
        try:
            await role.handle(row)
        except Exception as exc:
            await trio.lowlevel.checkpoint_if_cancelled()
            if isinstance(exc, TransactionRevertedError) and exc.name in _MOVED_ON:
                _log.info("job %s: the ledger has moved on (%s)", job[:12], exc)
                self._failures[key] = (0, time.monotonic() + 2 * _FIRST_PAUSE)
                return
            # Jobs carry other members' data: whatever one of them provokes must not take the node down.
            if not isinstance(exc, (UsufructError, OSError)):
                _log.exception("job %s: unexpected error", job[:12])
            tries = self._failures.get(key, (0, 0.0))[0] + 1
            pause = min(_FIRST_PAUSE * 2 ** min(tries - 1, 8), _LONGEST_PAUSE)
            self._failures[key] = (tries, time.monotonic() + pause)
            self._troubles[job] = f"{type(role).__name__.lower()}: {exc}"
            _log.warning("job %s: %s; again in %.2g s", job[:12], exc, pause)
        else:
            self._done[key] = (row, time.monotonic())
            self._failures.pop(key, None)
            self._troubles.pop(job, None)
        finally:
            self._busy.discard(key)
