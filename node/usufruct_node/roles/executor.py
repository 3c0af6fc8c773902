"""Executor: claims posted jobs, runs the kernel on ciphertexts, commits to the result, and keeps it back until verifiers
have committed. Brings the verifiers' words along with its own where they give them to it. Never sees a key.

A claim counts against the node when it lapses, and whether a steward gives its ciphertexts shows only after it. So of each
steward one claim at most is open on a bundle whose blocks have not been here, and none for a time after such a one lapsed.

A result that it committed to and does not have, because the node was restored from an older backup, it computes again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import trio

from usufruct.content import Cid, Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    ContainerError,
    InputError,
    IntegrityError,
    LedgerError,
    PeerError,
    ReleaseRefusedError,
    TransactionRevertedError,
    WrongKeyDomainError,
)
from usufruct.records import ArtifactId, JobId, JobState, OrgId, Participant, Role, unlabel
from usufruct.verify import check_result
from usufruct_node.holdings import Purpose
from usufruct_node.index import JobRow
from usufruct_node.roles.context import RoleContext, log, result_pin
from usufruct_node.roles.gather import Patience, reveals, signed_verdicts

_SILENT_SECONDS = 2.0
"""For verifiers that do not answer: gone, or restarting."""

_COMPUTING_SECONDS = 20.0
"""Longer, for verifiers that go on answering that they have no verdict yet: they have more to do than this node.

Each that is not waited for sends a transaction of its own, which makes a busy network busier; until all have committed
the job does not go on anyway.
"""

_OPENING_SECONDS = 4.0
"""For verifiers that answer and whose index does not show yet that openings are due; they wait for the executor a little
longer than this.
"""

_LONGEST_PUT_OFF_SECONDS = 86_400.0
"""How long new bundles of a steward are left alone at most, after claims on its bundles lapsed."""

_ANSWERED_FOR = (
    JobState.COMMITTED,
    JobState.REVEALING,
    JobState.DISPUTED,
    JobState.VERIFIED,
    JobState.OPENED,
)
"""While a job is in one of these states, others ask its executor for the result."""


class Executor:
    """Role of a compute node."""

    def __init__(self, context: RoleContext, *, room: int) -> None:
        self._context = context
        self._room = room
        """Most jobs that are claimed, or about to be, and not computed yet; others may have the rest. A claim that this
        node cannot fulfil takes its place until it lapses, since each that lapses counts against it.
        """
        self._computed: dict[JobId, bytes] = {}
        """Jobs that wait for verifiers or for the ledger only, with the digest of what was computed."""
        self._unfit: set[JobId] = set()
        self._malformed: set[ArtifactId] = set()
        """Bundles whose blocks turned out to be malformed after a claim."""
        self._revealed: set[JobId] = set()
        """Jobs whose openings this node has gathered."""
        self._claiming: set[JobId] = set()
        """Open jobs that are being claimed, or are claimed already and shown as open still."""
        self._failed: dict[JobId, int] = {}
        """How often an open job's inputs were not to be had."""
        self._begun: set[JobId] = set()
        """Own claims whose ciphertexts are being fetched, or could not be had when last tried."""
        self._put_off: dict[OrgId, tuple[float, float]] = {}
        """Stewards on whose bundles claims lapsed: seconds of the last pause, and when it ends."""

    def wanted(self) -> list[JobRow]:
        """Jobs on which this node has something to do: those it has claimed, and as many more as it has room for, those among
        them that another claimed and let lapse.
        """
        org, now = self._context.org, self._context.now()
        rows = self._context.index.jobs(JobState.POSTED, JobState.CLAIMED)
        mine = [row for row in rows if row.job.state == JobState.CLAIMED and row.job.executor == org]
        open_claims = [row for row in mine if not row.overdue(now)]
        claimed = [row for row in open_claims if row.job_id not in self._unfit]
        self._judge([row for row in mine if row.overdue(now)])
        self._begun &= {row.job_id for row in mine}
        lost = self._lost()
        held = {row.job_id for row in lost}
        for job_id in set(self._computed) - {row.job_id for row in claimed}:
            self._computed.pop(job_id, None)
        room = max(0, self._room - len(open_claims) + len(self._computed))
        posted = self._claimable(rows, open_claims)[:room]
        return claimed + lost + [row for row in self._revealing() if row.job_id not in held] + posted

    async def handle(self, row: JobRow) -> None:
        """One step: claim, or compute and commit."""
        try:
            if row.job.state == JobState.POSTED or row.lapsed(self._context.now()):
                await self._claim(row)
            elif row.job.state == JobState.REVEALING and self._context.holdings.of(_result_cid(row)):
                await self._reveal(row)
            else:
                await self._execute(row)
        except (BlockMismatchError, ConfigurationError):
            raise
        except (InputError, IntegrityError, ReleaseRefusedError, WrongKeyDomainError) as exc:
            log.warning("job %s cannot be executed: %s", row.job_id.hex()[:12], exc)
            self._unfit.add(row.job_id)
            if row.job.executor == self._context.org and isinstance(exc, IntegrityError):
                log.warning("no other job on bundle %s is claimed", row.job.request.artifact_id.hex()[:12])
                self._malformed.add(row.job.request.artifact_id)

    def _claimable(self, rows: Sequence[JobRow], open_claims: Sequence[JobRow]) -> list[JobRow]:
        """Of these jobs those that this node may claim at once. Whose inputs were not to be had come last: they would keep
        others out until their time is over.
        """
        context, now = self._context, self._context.now()
        me = context.index.participant(context.org)
        verifies = me is not None and Role.VERIFIER in me.roles
        free = [row for row in rows if self._is_free(row, now) and self._may_claim(row, verifies)]
        known = {row.job_id for row in free}
        self._claiming &= known
        for job_id in set(self._failed) - known:
            self._failed.pop(job_id, None)
        free.sort(key=lambda row: -1 if row.job_id in self._claiming else self._failed.get(row.job_id, 0))
        return self._without_risk(free, open_claims)

    def _without_risk(self, free: Sequence[JobRow], open_claims: Sequence[JobRow]) -> list[JobRow]:
        """Leave out what would be a second claim on blocks of one steward that have not been here, or one too soon after such
        a one lapsed.
        """
        at_risk = {self._steward(row) for row in open_claims if not self._is_given(row)}
        chosen = []
        for row in free:
            if not self._is_given(row):
                steward = self._steward(row)
                if steward in at_risk or time.monotonic() < self._put_off.get(steward, (0.0, 0.0))[1]:
                    continue
                at_risk.add(steward)
            chosen.append(row)
        return chosen

    def _judge(self, lapsed: Sequence[JobRow]) -> None:
        """Put off the stewards of claims that lapsed because their blocks did not come, or were malformed: for as long as the
        claim was open, then for twice as long.
        """
        for row in lapsed:
            if row.job_id in self._begun and not self._is_given(row):
                steward, now = self._steward(row), time.monotonic()
                pause, until = self._put_off.get(steward, (0.0, 0.0))
                is_recent = now < until + _LONGEST_PUT_OFF_SECONDS
                pause = max(2 * pause if is_recent else 0.0, row.job.deadline - row.changed_at)
                pause = min(pause, _LONGEST_PUT_OFF_SECONDS)
                self._put_off[steward] = (pause, now + pause)
                log.warning(
                    "job %s: its claim lapsed for want of ciphertexts; no other new bundle of %s is claimed for %.0f s",
                    row.job_id.hex()[:12],
                    unlabel(steward),
                    pause,
                )
            self._begun.discard(row.job_id)

    def _is_given(self, row: JobRow) -> bool:
        """Whether every ciphertext that a job needs has been here lately, and was one."""
        return row.job.request.artifact_id in self._context.sound

    def _steward(self, row: JobRow) -> OrgId:
        artifact = self._context.index.artifact(row.job.request.artifact_id)
        if artifact is None:
            raise LedgerError("the index lacks the job's bundle")
        return artifact.steward

    def _is_free(self, row: JobRow, now: int) -> bool:
        """Whether a job is open, or another node let its claim lapse."""
        if row.job.state == JobState.POSTED:
            return not row.overdue(now) and row.job_id not in self._unfit
        return row.lapsed(now) and row.job.executor != self._context.org and row.job_id not in self._unfit

    def _may_claim(self, row: JobRow, verifies: bool) -> bool:
        """Whether the ledger lets this node have a job, and its bundle is not known to be malformed."""
        job = row.job
        needed = verifies and job.asked == job.replicas
        malformed = job.request.artifact_id in self._malformed
        return job.requester != self._context.org and not needed and not malformed

    def _revealing(self) -> list[JobRow]:
        """Own jobs whose openings are to be gathered."""
        context = self._context
        mine = [row for row in context.index.jobs(JobState.REVEALING) if row.job.executor == context.org]
        self._revealed &= {row.job_id for row in mine}
        return [row for row in mine if row.job_id not in self._revealed and not row.overdue(context.now())]

    def _lost(self) -> list[JobRow]:
        """Jobs whose committed result this node should have, and has not."""
        context = self._context
        own = [row for row in context.index.jobs(*_ANSWERED_FOR) if row.job.executor == context.org]
        return [
            row for row in own if not context.holdings.of(_result_cid(row)) and row.job_id not in self._unfit
        ]

    async def _claim(self, row: JobRow) -> None:
        self._claiming.add(row.job_id)
        try:
            inputs = await self._context.inputs(row)
            inputs.status.check_in_force(self._context.now())
            await self._context.transact("claimJob", row.job_id)
        except Exception as exc:
            self._claiming.discard(row.job_id)
            if not isinstance(exc, LedgerError):
                self._failed[row.job_id] = self._failed.get(row.job_id, 0) + 1
            raise

    async def _execute(self, row: JobRow) -> None:
        """Compute and commit; what was computed before something went wrong with the ledger is only committed."""
        if row.job.state != JobState.CLAIMED:
            await self._compute(row)
            return
        begun = trio.current_time()
        digest = self._computed.get(row.job_id) or await self._compute_claimed(row)
        self._computed[row.job_id] = digest
        await self._commit(row, digest, trio.current_time() - begun)

    async def _compute_claimed(self, row: JobRow) -> bytes:
        """As `_compute`; a steward is to blame only for blocks that do not come, or are none of its bundle's."""
        self._begun.add(row.job_id)
        try:
            digest = await self._compute(row)
        except (PeerError, BlockNotFoundError, BlockMismatchError, ContainerError, WrongKeyDomainError):
            raise
        except Exception:
            self._begun.discard(row.job_id)
            raise
        self._begun.discard(row.job_id)
        self._put_off.pop(self._steward(row), None)
        return digest

    async def _compute(self, row: JobRow) -> bytes:
        """Digest of a job's result manifest, which is kept with its blocks."""
        context = self._context
        result = await context.execute(row, await context.inputs(row))
        if row.job.state != JobState.CLAIMED:
            check_result(row.job.result_digest, result)
        data = dag.encode(result.to_record())
        cid = Cid.of(data, Codec.DAG_CBOR)
        await trio.to_thread.run_sync(
            partial(context.store.put, data, Codec.DAG_CBOR, pin=result_pin(row.job_id))
        )
        await trio.to_thread.run_sync(context.pin, result.blocks, result_pin(row.job_id))
        await trio.to_thread.run_sync(
            context.holdings.add, [cid, *result.blocks], Purpose.RESULT, bytes(row.job_id)
        )
        return cid.digest

    async def _commit(self, row: JobRow, digest: bytes, computing_s: float) -> None:
        """Commit to a result, with the words of the verifiers that give theirs."""
        # Verifiers began when the job was claimed, and need about as long.
        silent = _SILENT_SECONDS + computing_s
        most = (row.job.deadline - self._context.now()) / 2
        patience = Patience(min(silent, most), min(silent + _COMPUTING_SECONDS, most))
        words = await signed_verdicts(self._context, row, patience)
        while True:
            try:
                await self._context.transact("commitResult", row.job_id, digest, [word for _, word in words])
                return
            except TransactionRevertedError as exc:
                words, before = [word for word in words if not _names(exc, word[0])], len(words)
                if len(words) == before:
                    raise
                log.info("job %s: a verifier's word is left out: %s", row.job_id.hex()[:12], exc)

    async def _reveal(self, row: JobRow) -> None:
        """Bring the verifiers' openings, once; who is left out reveals for itself."""
        self._revealed.add(row.job_id)
        found = await reveals(self._context, row, Patience(_SILENT_SECONDS, _OPENING_SECONDS))
        if found:
            await self._context.transact("revealVerdicts", row.job_id, found)


def _names(refusal: TransactionRevertedError, member: Participant) -> bool:
    """Whether a refusal is about a member, such as one that has been suspended since it gave its word."""
    account = member.node_account.lower()
    return any(value == member.id or str(value).lower() == account for value in refusal.values.values())


def _result_cid(row: JobRow) -> Cid:
    return Cid.from_digest(row.job.result_digest, Codec.DAG_CBOR)
