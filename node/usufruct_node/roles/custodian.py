"""Custodian: puts verified results of its key domains to the custodian's process; the ledger knows before anybody else.

Order of durable steps: examine everything; `openRelease` (budget spent, decryption announced); the process decrypts, noises,
encrypts to the partner, and keeps; sign; envelope and journal on disk; `recordRelease`; only then is the envelope given out.
After a crash the work goes on from the last of these. This side holds no secret but the key that signs.

A result that its executor does not give is computed here: the custodian has the bundle, kernels are exact, and the ledger has
the verified result's digest, so nobody has to be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import trio

from usufruct.content import Cid, Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    ForgottenReleasesError,
    InputError,
    IntegrityError,
    LedgerError,
    PeerError,
    ReleaseRefusedError,
    ResultMismatchError,
    WrongKeyDomainError,
)
from usufruct.job import JobInputs
from usufruct.records import JobId, JobState, MemberStatus, OrgId, Refusal, Role
from usufruct.release import sign_release
from usufruct.verify import ResultManifest, check_result
from usufruct_node.custodian import Case, CustodianProcess, Records, Sealed
from usufruct_node.holdings import Purpose
from usufruct_node.index import JobRow
from usufruct_node.roles.context import RoleContext, job_pin, log, result_pin
from usufruct_node.roles.journal import OwnRelease

Answer = TypeVar("Answer")

_PAUSES = (0.25, 0.5, 1.0, 2.0)
"""Seconds between asking an executor again."""
_EXECUTORS_SHARE = 0.25
"""Of the time left, for the executor to give the result; in the rest it can still be computed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What goes to the custodian's process about one job."""

    case: Case
    records: Records
    blocks: tuple[Cid, ...]


class Custodian:
    """Role of a member whose key domains others compute on."""

    def __init__(self, context: RoleContext, *, process: CustodianProcess, signing_key: bytes) -> None:
        self._context = context
        self._process = process
        self._signing_key = signing_key
        self._turn = trio.Lock()
        """Held while a job is put to the process: what is under way beside it is told as of then, and what the process hears
        nothing of it takes for over.
        """
        self._withheld: set[JobId] = set()
        """Opened, and then refused: consent or rights have gone since. They expire."""

    def wanted(self) -> list[JobRow]:
        """Jobs on which this node has something to do."""
        context, now = self._context, self._context.now()
        rows = context.index.jobs(JobState.VERIFIED, JobState.OPENED)
        return [
            row
            for row in rows
            if not row.overdue(now) and self._keeps(row) and row.job_id not in self._withheld
        ]

    async def handle(self, row: JobRow) -> None:
        """One step: announce or refuse, or release."""
        if row.job.state == JobState.VERIFIED:
            await self._open(row)
        else:
            await self._release(row)

    def _keeps(self, row: JobRow) -> bool:
        domain = self._context.index.key_domain(row.job.key_id)
        return domain is not None and domain.custodian == self._context.org

    async def _open(self, row: JobRow) -> None:
        try:
            if not self._is_stale(row):
                await self._ask(self._examine, row)
        except ReleaseRefusedError as exc:
            await self._refuse(row, Refusal[exc.reason], exc)
        except (BlockMismatchError, ConfigurationError):
            raise
        except (InputError, IntegrityError, WrongKeyDomainError) as exc:
            await self._refuse(row, Refusal.RESULT_INVALID, exc)
        else:
            await self._context.transact("openRelease", row.job_id)

    def _is_stale(self, row: JobRow) -> bool:
        """Whether another consent epoch is in force: then announcing lets the ledger end the job, and opens nothing."""
        artifact = self._context.index.artifact(row.job.request.artifact_id)
        if artifact is None:
            raise LedgerError("the index lacks the job's bundle")
        epoch = self._context.index.consent_epoch(artifact.steward, artifact.consent_scope)
        return epoch is not None and epoch.epoch != row.job.request.consent_epoch

    async def _refuse(self, row: JobRow, reason: Refusal, exc: Exception) -> None:
        log.warning("release of job %s refused (%s): %s", row.job_id.hex()[:12], reason.name, exc)
        await self._context.transact("refuseRelease", row.job_id, reason)

    async def _release(self, row: JobRow) -> None:
        context = self._context
        kept = context.journal.release(row.job_id)
        if kept is None:
            try:
                sealed = await self._ask(self._decrypt, row)
            except ReleaseRefusedError as exc:
                log.warning("job %s was opened and is not decrypted: %s", row.job_id.hex()[:12], exc)
                self._withheld.add(row.job_id)
                return
            kept = await trio.to_thread.run_sync(self._keep, row, sealed)
        await trio.to_thread.run_sync(context.pin, [kept.envelope], result_pin(row.job_id))
        await trio.to_thread.run_sync(
            context.holdings.add, [kept.envelope], Purpose.RELEASE, bytes(row.job_id)
        )
        await context.transact("recordRelease", row.job_id, kept.envelope.digest, kept.sigma_micro)

    async def _ask(self, ask: Callable[[_Question], Answer], row: JobRow) -> Answer:
        """Put a job to the process, and first, if it was restored, what it has forgotten."""
        question = await self._question(row)
        while True:
            try:
                async with self._turn:
                    question = replace(question, case=await trio.to_thread.run_sync(self._case, row))
                    return await self._context.ask(partial(ask, question))
            except ForgottenReleasesError as exc:
                log.warning("job %s: %s", row.job_id.hex()[:12], exc)
                for job in exc.jobs:
                    await self._remind(JobId(job))

    def _examine(self, question: _Question) -> None:
        self._process.examine(question.case, question.records, self._blocks(question))

    def _decrypt(self, question: _Question) -> Sealed:
        return self._process.release(question.case, question.records, self._blocks(question))

    def _blocks(self, question: _Question) -> Iterator[bytes]:
        return (self._context.store.get(cid) for cid in question.blocks)

    async def _remind(self, job_id: JobId) -> None:
        """Tell the process of a release that it has forgotten.

        Of whom it told stands in the status of an earlier epoch: whoever was restored may lack it, and holders of copies keep
        it for a time. Once all of them say that they do not have it, the process has to count with any cohort.
        """
        row = self._context.index.job(job_id)
        if row is None:
            raise LedgerError(f"the index lacks job {job_id.hex()[:12]}")
        case = await trio.to_thread.run_sync(self._case, row)
        pin = job_pin(job_id)
        sources = self._context.sources(row.job.request.artifact_id)
        manifest = await self._record(case.artifact.content_digest, pin, *sources)
        try:
            status = await self._record(case.cited_epoch.status_digest, pin, *sources)
        except BlockNotFoundError as exc:
            if self._context.placements.replication(case.artifact) is None:
                # Who holds copies is known once the policy was read.
                raise
            log.warning("job %s: of whom it told is not known any more: %s", job_id.hex()[:12], exc)
            status = b""
        records = Records(manifest=manifest, policy=b"", status=status, parameters=b"", result=b"")
        await self._context.ask(partial(self._process.remember, case, records))

    async def _question(self, row: JobRow) -> _Question:
        """Everything that a job rests on: what the index says, the records that it cites, the result blocks in the store."""
        context, request = self._context, row.job.request
        result = await self._result(row, await context.inputs(row))
        case = await trio.to_thread.run_sync(self._case, row)
        holders = (*context.sources(request.artifact_id), row.job.requester)
        kept = partial(self._kept, pin=job_pin(row.job_id), holders=holders)
        records = Records(
            manifest=await kept(case.artifact.content_digest),
            policy=await kept(case.policy_digest),
            status=await kept(case.cited_epoch.status_digest),
            parameters=await kept(request.parameters_digest),
            result=dag.encode(result.to_record()),
        )
        return _Question(case=case, records=records, blocks=result.blocks)

    async def _result(self, row: JobRow, inputs: JobInputs) -> ResultManifest:
        """The verified result, with its blocks in the store: from the executor, or else computed here.

        Raises
        ------
        ReleaseRefusedError
            If the bundle gives another result than the one that was verified.
        """
        context = self._context
        try:
            with trio.fail_after(_EXECUTORS_SHARE * max(0, row.job.deadline - context.now())):
                return await self._executors_in_time(row)
        except (PeerError, BlockNotFoundError, BlockMismatchError, trio.TooSlowError) as exc:
            log.warning(
                "job %s: its executor does not give the result, which is computed here: %s",
                row.job_id.hex()[:12],
                exc or "it takes too long",
            )
        result = await context.execute(row, inputs)
        try:
            check_result(row.job.result_digest, result)
        except ResultMismatchError as exc:
            raise ReleaseRefusedError(Refusal.RESULT_INVALID.name, hint=str(exc)) from exc
        data, pin = dag.encode(result.to_record()), job_pin(row.job_id)
        await trio.to_thread.run_sync(partial(context.store.put, data, Codec.DAG_CBOR, pin=pin))
        return result

    async def _executors_in_time(self, row: JobRow) -> ResultManifest:
        """What the executor gives; it may be a block behind, or have been started again, and is asked for some seconds."""
        for pause in _PAUSES:
            try:
                return await self._executors(row)
            except (PeerError, BlockNotFoundError) as exc:
                log.debug("job %s: nothing from its executor yet: %s", row.job_id.hex()[:12], exc)
            await trio.sleep(pause)
        return await self._executors(row)

    async def _executors(self, row: JobRow) -> ResultManifest:
        executor, pin = row.job.executor, job_pin(row.job_id)
        record = await self._record(row.job.result_digest, pin, executor)
        result = await trio.to_thread.run_sync(_read_result, record)
        await self._context.fetch(result.blocks, executor, pin=pin)
        damaged = await trio.to_thread.run_sync(self._context.damaged_among, result.blocks)
        await self._context.fetch(damaged, executor, pin=pin, anew=True)
        return result

    async def _record(self, digest: bytes, pin: str, *holders: OrgId) -> bytes:
        """A record, fetched from whoever may have it unless it is here."""
        await self._context.fetch([Cid.from_digest(digest, Codec.DAG_CBOR)], *holders, pin=pin)
        return await self._kept(digest, pin, holders)

    async def _kept(self, digest: bytes, pin: str, holders: Sequence[OrgId]) -> bytes:
        """A record that is here, as those are that the job's inputs were read from; fetched anew if it is damaged here."""
        cid = Cid.from_digest(digest, Codec.DAG_CBOR)
        return await self._context.read(partial(self._context.store.get, cid), [cid], *holders, pin=pin)

    def _case(self, row: JobRow) -> Case:
        """What the ledger says, as of the indexed block, which is final."""
        index, request = self._context.index, row.job.request
        artifact, grant = index.artifact(request.artifact_id), index.grant(request.grant_id)
        domain, requester = index.key_domain(row.job.key_id), index.participant(row.job.requester)
        if artifact is None or grant is None or domain is None or requester is None:
            raise LedgerError("the index lacks the job's bundle, grant, key domain or requester")
        cited = index.consent_epoch(artifact.steward, artifact.consent_scope, request.consent_epoch)
        in_force = index.consent_epoch(artifact.steward, artifact.consent_scope)
        policy_digest = index.policy_digest(request.artifact_id, request.policy_version)
        if cited is None or in_force is None or policy_digest is None:
            raise LedgerError("the index lacks the job's consent epoch or policy")
        live = index.jobs(JobState.VERIFIED, JobState.OPENED)
        released = index.jobs(JobState.RELEASED, artifact_id=request.artifact_id)
        return Case(
            chain_id=self._context.ledger.network.chain_id,
            now=self._context.now(),
            job_id=row.job_id,
            job=row.job,
            artifact=artifact,
            policy_digest=policy_digest,
            domain=domain,
            grant=grant,
            cited_epoch=cited,
            epoch_in_force=in_force.epoch,
            requester_active=requester.status == MemberStatus.ACTIVE and Role.PARTNER in requester.roles,
            recipient_key=requester.hpke_key,
            possessions=tuple(
                (verdict.verifier, verdict.possession)
                for verdict in index.verdicts(row.job_id)
                if verdict.agrees and verdict.possession is not None
            ),
            under_way=tuple(other.job_id for other in live if other.job.key_id == row.job.key_id),
            released=b"".join(other.job_id for other in released),
        )

    def _keep(self, row: JobRow, made: Sealed) -> OwnRelease:
        context = self._context
        envelope = sign_release(
            context.ledger.network,
            row.job_id,
            row.job,
            made.sealed,
            made.sigma_micro,
            signing_key=self._signing_key,
        )
        cid = context.store.put(envelope, Codec.DAG_CBOR, pin=job_pin(row.job_id))
        return context.journal.keep_release(
            row.job_id, OwnRelease(envelope=cid, sigma_micro=made.sigma_micro)
        )


def _read_result(record: bytes) -> ResultManifest:
    return ResultManifest.from_record(dag.decode_map(record))
