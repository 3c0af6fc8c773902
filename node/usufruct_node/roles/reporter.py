"""Reporter: puts on the ledger what members did wrong in jobs that have ended; role of an auditor's node."""

from __future__ import annotations

import trio

from usufruct.ledger.reputation import faults_of, shown
from usufruct.records import JobId, unlabel
from usufruct_node.index import JobRow
from usufruct_node.roles.context import RoleContext, log


class Reporter:
    """Shows the events of such jobs to the ledger, which draws its own conclusions."""

    def __init__(self, context: RoleContext) -> None:
        self._context = context
        self._faultless: set[JobId] = set()

    def wanted(self) -> list[JobRow]:
        """Jobs that have ended and in which somebody may have done wrong that is not recorded yet."""
        return [row for row in self._context.index.suspect_jobs() if row.job_id not in self._faultless]

    async def handle(self, row: JobRow) -> None:
        """Report a job, or find that nobody did wrong."""
        events = await trio.to_thread.run_sync(self._context.ledger.job_events, row.job_id)
        faults = faults_of(events)
        if not faults:
            self._faultless.add(row.job_id)
            return
        await self._context.report(row.job_id, shown(events))
        told = ", ".join(f"{unlabel(org)} {fault.name.lower()}" for org, fault in faults)
        log.info("reported job %s: %s", row.job_id.hex()[:12], told)
