"""Rechecker: re-executes released jobs of members that have since been found to lie; role of an auditor's node."""

from __future__ import annotations

import trio

from usufruct.records import unlabel
from usufruct_node.index import JobRow
from usufruct_node.roles.context import RoleContext, log, recheck_pin


class Rechecker:
    """Computes a doubtful result once more from the ciphertexts, and keeps whether it comes out the same."""

    def __init__(self, context: RoleContext) -> None:
        self._context = context

    def wanted(self) -> list[JobRow]:
        """Released jobs with a liar's hand in them, not rechecked yet; their ciphertexts must still be kept by somebody."""
        context, now = self._context, self._context.now()
        return [
            row
            for row in context.index.doubtful_jobs()
            if context.journal.recheck(row.job_id) is None and self._is_retained(row, now)
        ]

    async def handle(self, row: JobRow) -> None:
        """Recheck one job."""
        context, pin = self._context, recheck_pin(row.job_id)
        try:
            found = await context.execute(row, await context.inputs(row, pin=pin), pin=pin)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(context.store.unpin_all, pin)
        is_same = found.cid.digest == row.job.result_digest
        await trio.to_thread.run_sync(context.journal.keep_recheck, row.job_id, is_same)
        executor = unlabel(row.job.executor)
        if is_same:
            log.info("job %s of %s rechecked: the result is right", row.job_id.hex()[:12], executor)
        else:
            log.error("job %s of %s was released with a WRONG result", row.job_id.hex()[:12], executor)

    def _is_retained(self, row: JobRow, now: int) -> bool:
        artifact = self._context.index.artifact(row.job.request.artifact_id)
        return artifact is not None and now < artifact.retain_until
