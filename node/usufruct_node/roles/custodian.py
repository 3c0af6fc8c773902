"""Custodian: decrypts verified results of its own key domains, once, and only after the ledger was told.

Order of durable steps: check everything; `openRelease` (budget spent, decryption announced); decrypt, clip, noise, encrypt to
the partner, sign; envelope and journal on disk; `recordRelease`; only then is the envelope given out. After a crash the work
goes on from the last of these; noise that was kept is never drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from usufruct.content import Cid, Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    InputError,
    IntegrityError,
    LedgerError,
    ReleaseRefusedError,
    VerificationError,
    WrongKeyDomainError,
)
from usufruct.he.secret import SecretKey
from usufruct.job import JobInputs
from usufruct.keys import hpke
from usufruct.records import JobState, KeyId, Participant, Refusal
from usufruct.release import add_noise, decrypt_result, make_envelope, sigma_micro
from usufruct.verify import ResultManifest, check_possessions
from usufruct_node.holdings import Purpose
from usufruct_node.index import JobRow
from usufruct_node.roles.context import RoleContext, job_pin, log, overdue, result_pin
from usufruct_node.roles.journal import OwnRelease


class Custodian:
    """Role of a member that keeps homomorphic secrets."""

    def __init__(
        self, context: RoleContext, *, secret_of: Callable[[KeyId], SecretKey], signing_key: bytes
    ) -> None:
        self._context = context
        self._secret_of = secret_of
        self._signing_key = signing_key

    def wanted(self) -> list[JobRow]:
        """Jobs on which this node has something to do."""
        context, now = self._context, self._context.now()
        rows = context.index.jobs(JobState.VERIFIED, JobState.OPENED)
        return [row for row in rows if not overdue(row.job, now) and self._keeps(row.job.key_id)]

    async def handle(self, row: JobRow) -> None:
        """One step: announce or refuse, or release."""
        if row.job.state == JobState.VERIFIED:
            await self._open(row)
        else:
            await self._release(row)

    def _keeps(self, key_id: KeyId) -> bool:
        domain = self._context.index.key_domain(key_id)
        return domain is not None and domain.custodian == self._context.org

    async def _open(self, row: JobRow) -> None:
        try:
            inputs, _ = await self._check(row)
            inputs.status.check_in_force(self._context.now())
            await trio.to_thread.run_sync(self._rehearse, row)
        except ReleaseRefusedError as exc:
            await self._refuse(row, Refusal[exc.reason], exc)
        except VerificationError as exc:
            await self._refuse(row, Refusal.POSSESSION_UNPROVEN, exc)
        except BlockMismatchError:
            raise
        except (InputError, IntegrityError, WrongKeyDomainError) as exc:
            await self._refuse(row, Refusal.RESULT_INVALID, exc)
        else:
            await self._context.transact("openRelease", row.job_id)

    async def _refuse(self, row: JobRow, reason: Refusal, exc: Exception) -> None:
        log.warning("release of job %s refused (%s): %s", row.job_id.hex()[:12], reason.name, exc)
        await self._context.transact("refuseRelease", row.job_id, reason)

    async def _check(self, row: JobRow) -> tuple[JobInputs, list[bytes]]:
        """Everything that the ledger cannot check: inputs, result blocks, proofs of possession."""
        context = self._context
        artifact = context.index.artifact(row.job.request.artifact_id)
        if artifact is None or artifact.steward != context.org:
            raise ReleaseRefusedError(Refusal.ARTIFACT_MISMATCH.name)
        inputs = await context.inputs(row)
        record = await self._result_record(row)
        result = ResultManifest.from_record(record)
        if result != context.result_manifest(row, result.blocks):
            raise IntegrityError("the result manifest names other inputs than the job")
        await context.fetch(result.blocks, row.job.executor, pin=job_pin(row.job_id))
        blocks = await trio.to_thread.run_sync(context.blocks_of, result.blocks)
        agreeing = {
            verdict.verifier: verdict.possession
            for verdict in context.index.verdicts(row.job_id)
            if verdict.agrees and verdict.possession is not None
        }
        await trio.to_thread.run_sync(partial(check_possessions, agreeing, blocks, replicas=row.job.replicas))
        return inputs, blocks

    async def _result_record(self, row: JobRow) -> dict[str, dag.DagValue]:
        context = self._context
        cid = Cid.from_digest(row.job.result_digest, Codec.DAG_CBOR)
        await context.fetch([cid], row.job.executor, pin=job_pin(row.job_id))
        return dag.decode_map(await trio.to_thread.run_sync(context.store.get, cid))

    async def _release(self, row: JobRow) -> None:
        context = self._context
        kept = context.journal.release(row.job_id)
        if kept is None:
            inputs, blocks = await self._check(row)
            made = await trio.to_thread.run_sync(self._make, row, inputs, blocks)
            kept = await trio.to_thread.run_sync(context.journal.keep_release, row.job_id, made)
        await trio.to_thread.run_sync(context.pin, [kept.envelope], result_pin(row.job_id))
        await trio.to_thread.run_sync(
            context.holdings.add, [kept.envelope], Purpose.RELEASE, bytes(row.job_id)
        )
        await context.transact("recordRelease", row.job_id, kept.envelope.digest, kept.sigma_micro)

    def _rehearse(self, row: JobRow) -> None:
        """Whatever could fail after the budget is spent is tried before: the secret, and the partner's key."""
        self._secret_of(row.job.key_id)
        hpke.seal_to(self._recipient(row).hpke_key, b"rehearsal", b"usufruct/rehearsal")

    def _recipient(self, row: JobRow) -> Participant:
        recipient = self._context.index.participant(row.job.requester)
        if recipient is None:
            raise LedgerError("the index lacks the job's requester")
        return recipient

    def _make(self, row: JobRow, inputs: JobInputs, blocks: list[bytes]) -> OwnRelease:
        context = self._context
        opened = decrypt_result(inputs, blocks, self._secret_of(row.job.key_id))
        noised, sigma = add_noise(opened, inputs, rho_micro=row.job.request.rho_micro)
        envelope = make_envelope(
            context.ledger.network,
            row.job_id,
            row.job,
            inputs,
            noised,
            sigma,
            recipient=self._recipient(row),
            signing_key=self._signing_key,
        )
        cid = context.store.put(envelope, Codec.DAG_CBOR, pin=job_pin(row.job_id))
        return OwnRelease(envelope=cid, sigma_micro=sigma_micro(sigma))
