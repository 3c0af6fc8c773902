"""Verifier: re-executes claimed jobs, commits to what it found before the result is published, then reveals.

Its signed commitment, and later the opening, it gives to the job's executor for the asking, who can bring those of all in one
transaction; what the executor does not bring, it sends itself.

Also closes what others let pass their deadlines. A verdict is a function of the job and the node's keys, its salt included:
a node that was restored from an older backup finds again what its lost self committed to.
"""

from __future__ import annotations

import hashlib
import hmac

import trio

from usufruct.errors import (
    BlockMismatchError,
    InputError,
    IntegrityError,
    ReleaseRefusedError,
    UsufructError,
    VerificationError,
    WrongKeyDomainError,
)
from usufruct.records import JobId, JobState, MemberStatus, Participant, Reveal, Role, SignedVerdict
from usufruct.verify import possession, sign_verdict, verdict_commitment
from usufruct_node.index import JobRow
from usufruct_node.index.rows import MAX_TURNS, Verdict
from usufruct_node.peers.verdicts import Question, pack_reveal, pack_verdict
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.journal import OwnVerdict

_CLOSERS = {
    JobState.POSTED: "expireJob",
    JobState.CLAIMED: "expireJob",
    JobState.COMMITTED: "closeCommits",
    JobState.REVEALING: "closeReveals",
    JobState.DISPUTED: "expireJob",
    JobState.VERIFIED: "expireJob",
    JobState.OPENED: "expireJob",
}

_PARTS = (JobState.CLAIMED, JobState.COMMITTED, JobState.REVEALING)

_EXECUTORS_SECONDS = 8
"""For how long an executor may gather openings and bring them into a block."""

_WORD_SECONDS = 86_400
"""For how long a signed verdict holds: longer than commits are open, since its job may yet have to wait for a claim."""

_INVALID = bytes(31) + b"\x01"
"""Result digest of a verifier for whom the job has no valid result."""


class Verifier:
    """Role of a member that re-executes."""

    def __init__(self, context: RoleContext, *, verdict_key: bytes, node_key: bytes) -> None:
        self._context = context
        self._verdict_key = verdict_key
        self._node_key = node_key

    def wanted(self) -> list[JobRow]:
        """Jobs on which this node has something to do."""
        now = self._context.now()
        return [row for row in self._context.index.jobs(*_CLOSERS) if row.overdue(now) or self._has_part(row)]

    async def handle(self, row: JobRow) -> None:
        """One step: compute, commit, reveal, or close what is overdue."""
        if row.overdue(self._context.now()):
            if row.job.state == JobState.CLAIMED and not await self._nobody_took_over(row):
                return
            await trio.sleep(self._turn())
            await self._close(row)
        elif row.job.state == JobState.CLAIMED:
            await self._verdict(row)
        elif row.job.state == JobState.COMMITTED:
            await self._commit(row)
        else:
            await self._reveal(row)

    async def _close(self, row: JobRow) -> None:
        """End what is overdue, unless somebody else has meanwhile: where nothing is simulated, a second call is paid for."""
        if await trio.to_thread.run_sync(self._context.index.job, row.job_id) == row:
            await self._context.close(_CLOSERS[row.job.state], row.job_id)

    async def _nobody_took_over(self, row: JobRow) -> bool:
        """Whether the time is over in which another compute node may claim what one let lapse, or none may any more."""
        if row.turns >= MAX_TURNS:
            return True
        timings = await trio.to_thread.run_sync(self._context.ledger.timings)
        return self._context.now() >= row.job.deadline + timings.claim

    def _has_part(self, row: JobRow) -> bool:
        context, state = self._context, row.job.state
        if state not in _PARTS or context.org in (row.job.executor, row.job.requester):
            return False
        if state == JobState.CLAIMED:
            return context.journal.verdict(row.job_id) is None
        mine = self._mine(row)
        if state == JobState.COMMITTED:
            return mine is None
        return mine is not None and mine.result_digest is None and self._executor_had_its_time(row)

    def _executor_had_its_time(self, row: JobRow) -> bool:
        """Whether this node should send its opening itself, because the executor did not bring it."""
        given = min(_EXECUTORS_SECONDS, (row.job.deadline - row.changed_at) // 4)
        return self._context.now() >= row.changed_at + given

    def answer(self, member: Participant, question: Question, job_id: JobId) -> bytes | None:
        """What an executor may have of this node's verdict: its signed commitment before the result is committed, the opening
        once commits are closed.
        """
        row, kept = self._context.index.job(job_id), self._context.journal.verdict(job_id)
        if row is None or kept is None or member.id != row.job.executor:
            return None
        if question == Question.COMMITMENT:
            return pack_verdict(self._word(row, kept)) if row.job.state == JobState.CLAIMED else None
        mine = self._mine(row)
        due = row.job.state == JobState.REVEALING and mine is not None
        if not due or mine is None or mine.commitment != self._commitment(row, kept):
            return None
        return pack_reveal(self._reveal_of(kept))

    def _reveal_of(self, verdict: OwnVerdict) -> Reveal:
        return Reveal(
            verifier=self._context.org,
            result_digest=verdict.result_digest,
            possession=verdict.possession,
            salt=verdict.salt,
        )

    def _mine(self, row: JobRow) -> Verdict | None:
        verdicts = self._context.index.verdicts(row.job_id)
        return next((v for v in verdicts if v.verifier == self._context.org), None)

    def _turn(self) -> float:
        """Seconds to leave to verifiers before this one, so that not all pay for the same call."""
        members = [
            member
            for member in self._context.index.participants()
            if Role.VERIFIER in member.roles and member.status == MemberStatus.ACTIVE
        ]
        chain = self._context.ledger.network.chain
        # Where nothing is simulated, the call of the one before has to be in a block by then.
        each = 1.0 if chain.empty_blocks else 1.0 + chain.block_interval_s
        return each * sum(member.id < self._context.org for member in members)

    async def _commit(self, row: JobRow) -> None:
        word = self._word(row, await self._verdict(row))
        await self._context.transact("commitVerdicts", row.job_id, [word])

    async def _verdict(self, row: JobRow) -> OwnVerdict:
        journal = self._context.journal
        kept = journal.verdict(row.job_id)
        if kept is None:
            kept = await trio.to_thread.run_sync(journal.keep_verdict, row.job_id, await self._find(row))
        return kept

    def _commitment(self, row: JobRow, verdict: OwnVerdict) -> bytes:
        network = self._context.ledger.network
        return verdict_commitment(
            chain_id=network.chain_id,
            job_ledger=network.contracts["JobLedger"],
            job_id=row.job_id,
            verifier=self._context.org,
            result_digest=verdict.result_digest,
            held=verdict.possession,
            salt=verdict.salt,
        )

    def _word(self, row: JobRow, verdict: OwnVerdict) -> SignedVerdict:
        network = self._context.ledger.network
        return sign_verdict(
            self._node_key,
            chain_id=network.chain_id,
            job_ledger=network.contracts["JobLedger"],
            job_id=row.job_id,
            commitment=self._commitment(row, verdict),
            deadline=self._context.now() + _WORD_SECONDS,
        )

    async def _find(self, row: JobRow) -> OwnVerdict:
        context = self._context
        salt = hmac.digest(self._verdict_key, row.job_id, hashlib.sha256)
        try:
            result = await context.execute(row, await context.inputs(row))
        except UsufructError as exc:
            if not _is_finding(exc):
                raise
            log.warning("job %s has no valid result: %s", row.job_id.hex()[:12], exc)
            return OwnVerdict(result_digest=_INVALID, possession=bytes(32), salt=salt)
        blocks = await trio.to_thread.run_sync(context.blocks_of, result.blocks)
        held = await trio.to_thread.run_sync(possession, context.org, blocks)
        if row.job.state != JobState.CLAIMED and result.cid.digest != row.job.result_digest:
            log.warning("job %s: the committed result is not what its inputs give", row.job_id.hex()[:12])
        return OwnVerdict(result_digest=result.cid.digest, possession=held, salt=salt)

    async def _reveal(self, row: JobRow) -> None:
        kept, mine = await self._verdict(row), self._mine(row)
        if mine is None or mine.commitment != self._commitment(row, kept):
            raise VerificationError(
                "our commitment is to another verdict than we find now; it cannot be revealed"
            )
        await self._context.transact("revealVerdicts", row.job_id, [self._reveal_of(kept)])


def _is_finding(exc: UsufructError) -> bool:
    """Whether an error says something about the job, rather than about a peer, the network or this machine."""
    about_job = (InputError, IntegrityError, ReleaseRefusedError, WrongKeyDomainError)
    return isinstance(exc, about_job) and not isinstance(exc, BlockMismatchError)
