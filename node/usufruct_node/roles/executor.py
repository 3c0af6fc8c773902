"""Executor: claims posted jobs, runs the kernel on ciphertexts, commits to the result, and keeps it back until verifiers
have committed. Never sees a key."""

from __future__ import annotations

from functools import partial

import trio

from usufruct.content import Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    InputError,
    IntegrityError,
    ReleaseRefusedError,
    WrongKeyDomainError,
)
from usufruct.records import JobId, JobState
from usufruct_node.holdings import Purpose
from usufruct_node.index import JobRow
from usufruct_node.roles.context import RoleContext, job_pin, log, overdue


class Executor:
    """Role of a compute node."""

    def __init__(self, context: RoleContext) -> None:
        self._context = context
        self._unfit: set[JobId] = set()

    def wanted(self) -> list[JobRow]:
        """Jobs on which this node has something to do."""
        org, now = self._context.org, self._context.now()
        return [
            row
            for row in self._context.index.jobs(JobState.POSTED, JobState.CLAIMED)
            if row.job_id not in self._unfit
            and not overdue(row.job, now)
            and (row.job.requester != org if row.job.state == JobState.POSTED else row.job.executor == org)
        ]

    async def handle(self, row: JobRow) -> None:
        """One step: claim, or compute and commit."""
        context = self._context
        try:
            inputs = await context.inputs(row)
        except BlockMismatchError:
            raise
        except (InputError, IntegrityError, ReleaseRefusedError, WrongKeyDomainError) as exc:
            log.warning("job %s cannot be executed: %s", row.job_id.hex()[:12], exc)
            self._unfit.add(row.job_id)
            return
        if row.job.state == JobState.POSTED:
            await context.transact("claimJob", row.job_id)
            return
        result = await context.execute(row, inputs)
        data = dag.encode(result.to_record())
        cid = await trio.to_thread.run_sync(
            partial(context.store.put, data, Codec.DAG_CBOR, pin=job_pin(row.job_id))
        )
        await trio.to_thread.run_sync(context.keep_for_good, [cid, *result.blocks])
        await trio.to_thread.run_sync(
            context.holdings.add, [cid, *result.blocks], Purpose.RESULT, bytes(row.job_id)
        )
        await context.transact("commitResult", row.job_id, cid.digest)
