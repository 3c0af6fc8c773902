"""What every role works with, and how it gets a job's inputs: by hash, from whoever must have them, checked."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from usufruct.consent import ConsentStatus
from usufruct.content import BlockStore, Cid, Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ChainStalledError,
    ContainerError,
    InputError,
    LedgerError,
    PeerError,
    UsufructError,
    WrongKeyDomainError,
)
from usufruct.he.container import block_size, check_header
from usufruct.job import JobInputs, JobParameters, check_job
from usufruct.ledger import Ledger
from usufruct.publish import BundleManifest, read_manifest
from usufruct.records import (
    FINAL_JOB_STATES,
    Artifact,
    ArtifactId,
    JobId,
    JobRequest,
    JobState,
    OrgId,
    Participant,
    SeriesEvent,
    unlabel,
)
from usufruct.register import Policy
from usufruct.verify import ResultManifest
from usufruct_node.chain_clock import ChainClock
from usufruct_node.holdings import Holdings, Purpose
from usufruct_node.index import Index, JobRow
from usufruct_node.peers import FetchReport, Holder, PeerHost, fetch_blocks
from usufruct_node.peers.identity import peer_id_text
from usufruct_node.placement import Placements
from usufruct_node.roles.compute import Workers, compute_result
from usufruct_node.roles.journal import Journal

log = logging.getLogger("usufruct_node.roles")

Result = TypeVar("Result")

_JOB_PIN = "job:"
_RESULT_PIN = "result:"
_RECHECK_PIN = "recheck:"
_SENDING_THREADS = 16
_STEP_GAS = 600_000
"""Enough for any step of a job, its conclusion included; see docs/gas.md."""
_COMPUTING_THREADS = 4
_ASKING_THREADS = 4
_KNOWN_JOBS = 8
"""Whose inputs are remembered; each may take as many megabytes as its manifest has, and some more."""


def _ignore(org: OrgId, why: UsufructError) -> None:
    """For whoever does not want to know who was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleContext:
    """Shared by the roles of one node."""

    org: OrgId
    ledger: Ledger
    index: Index
    store: BlockStore
    holdings: Holdings
    placements: Placements
    journal: Journal
    host: PeerHost
    workers: Workers
    clock: ChainClock
    on_stall: Callable[[ChainStalledError], None]
    """Told when a transaction was given up on because the chain makes no block."""
    sending: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_SENDING_THREADS))
    """Threads that wait for transactions; apart from the others, so that many jobs cannot starve the block protocol."""
    computing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_COMPUTING_THREADS))
    """Threads that wait for worker processes."""
    own_blocks: trio.Lock = field(default_factory=trio.Lock)
    """Held while ciphertexts of own bundles are fetched back, or erased: the end of retention comes before or after."""
    asking: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_ASKING_THREADS))
    """Threads that wait for the custodian's process, which may be waiting for somebody to type its passphrase."""
    known: OrderedDict[JobId, JobInputs] = field(default_factory=OrderedDict)
    """Inputs of the jobs that were asked for last."""
    sound: set[ArtifactId] = field(default_factory=set)
    """Bundles of which every block was found to be one of theirs, and has not been let go of with a job since."""

    async def fetch(
        self,
        cids: Iterable[Cid],
        *holders: OrgId,
        pin: str,
        gave_up: Callable[[OrgId, UsufructError], None] = _ignore,
        check: Callable[[bytes], None] | None = None,
        anew: bool = False,
    ) -> FetchReport:
        """Bring blocks into the local store; those that are there already are only pinned.

        Parameters
        ----------
        holders :
            Members that may have them, asked at the same time.
        gave_up :
            Told, at the end, of each member that was given up as a source, and why.
        check :
            Looks at each block that arrived before any of its run is kept; what it raises ends the fetch. Called in worker
            threads.
        anew :
            Fetch also those that are there: what the store has instead of them is replaced.

        Raises
        ------
        BlockNotFoundError, PeerRefusedError, PeerError, BlockMismatchError, StoreFullError
        """
        addresses: dict[OrgId, Holder] = {}
        failure: PeerError | None = None
        report = FetchReport()
        for org in dict.fromkeys(holders):
            if org != self.org:
                try:
                    addresses[org] = self._address_of(org)
                except PeerError as exc:
                    failure = exc
        if failure is not None and not addresses:
            raise failure
        try:
            return await fetch_blocks(
                self.host,
                list(addresses.values()),
                cids,
                missing=list if anew else partial(self.store.pin_many, reason=pin),
                keep=partial(self._keep, pin=pin, check=check),
                report=report,
            )
        except InputError as exc:
            raise PeerError(f"no holder can be dialled where it says it listens: {exc}") from exc
        finally:
            for org, holder in addresses.items():
                if holder.peer_id in report.struck:
                    gave_up(org, report.struck[holder.peer_id])

    async def read(
        self,
        use: Callable[[], Result],
        cids: Sequence[Cid],
        *holders: OrgId,
        pin: str,
        check: Callable[[bytes], None] | None = None,
        limiter: trio.CapacityLimiter | None = None,
    ) -> Result:
        """What a function that reads local blocks gives, in a worker thread; once more, if some of them are damaged here and
        `holders` give them anew. Other parameters and errors as for `fetch`.
        """
        try:
            return await trio.to_thread.run_sync(use, limiter=limiter)
        except (BlockMismatchError, BlockNotFoundError) as exc:
            damaged = await trio.to_thread.run_sync(self.damaged_among, cids, limiter=limiter)
            if not damaged:
                raise
            log.warning("%d blocks are damaged here, and fetched anew: %s", len(damaged), exc)
        await self.fetch(damaged, *holders, pin=pin, check=check, anew=True)
        return await trio.to_thread.run_sync(use, limiter=limiter)

    def damaged_among(self, cids: Iterable[Cid]) -> list[Cid]:
        """Those of some blocks that the store counts as here and that are gone or something else; in a worker thread."""
        damaged = []
        for cid in filter(self.store.has, cids):
            _is_given_up()
            try:
                self.store.get(cid)
            except (BlockMismatchError, BlockNotFoundError):
                damaged.append(cid)
        return damaged

    async def fetch_once(self, cid: Cid, holder: OrgId) -> bytes:
        """One block from a member, for somebody who asked; not kept.

        Raises
        ------
        BlockNotFoundError, PeerRefusedError, PeerError, BlockMismatchError
        """
        async with aclosing(self._sent_by(holder, [cid])) as blocks:
            async for _, data in blocks:
                return data
        raise BlockNotFoundError(f"{unlabel(holder)} sent nothing for {cid}")

    async def _sent_by(self, holder: OrgId, cids: Sequence[Cid]) -> AsyncGenerator[tuple[Cid, bytes], None]:
        """Blocks as a member sends them."""
        address = self._address_of(holder)
        try:
            async with aclosing(self.host.fetch(address.peer_id, address.multiaddr, cids)) as blocks:
                async for item in blocks:
                    yield item
        except InputError as exc:
            raise _undiallable(holder, exc) from exc

    def _address_of(self, org: OrgId) -> Holder:
        member = self.member(org)
        try:
            return Holder(peer_id_text(member.peer_id), member.endpoint)
        except InputError as exc:
            raise _undiallable(org, exc) from exc

    def sources(self, artifact_id: ArtifactId) -> tuple[OrgId, ...]:
        """Members that a bundle's blocks may be had from; its steward first."""
        return self.placements.sources(artifact_id, but=self.org)

    async def inputs(self, row: JobRow, *, pin: str | None = None) -> JobInputs:
        """Everything that a job depends on except the ciphertexts, fetched and checked.

        All of it is fixed by the job's hashes, so that of the last few jobs it is remembered. Which consent epoch is in force,
        and whether it still is, the caller has to look at each time.

        Parameters
        ----------
        pin :
            What the blocks are kept for; by default the job, until it ends.

        Raises
        ------
        ReleaseRefusedError, IntegrityError, KernelError, ContentError
        """
        known = self.known.pop(row.job_id, None)
        if known is None:
            known = await self._read_inputs(row, pin or job_pin(row.job_id))
        self.known[row.job_id] = known
        while len(self.known) > _KNOWN_JOBS:
            self.known.popitem(last=False)
        return known

    async def _read_inputs(self, row: JobRow, pin: str) -> JobInputs:
        request = row.job.request
        artifact = self.index.artifact(request.artifact_id)
        grant = self.index.grant(request.grant_id)
        if artifact is None or grant is None:
            raise LedgerError("the index lacks the job's bundle or grant")
        epoch = self.index.consent_epoch(artifact.steward, artifact.consent_scope, request.consent_epoch)
        policy_digest = self.index.policy_digest(request.artifact_id, request.policy_version)
        if epoch is None or policy_digest is None:
            raise LedgerError("the index lacks the job's consent epoch or policy")
        digests = (artifact.content_digest, policy_digest, epoch.status_digest)
        shared = [Cid.from_digest(digest, Codec.DAG_CBOR) for digest in digests]
        own = Cid.from_digest(request.parameters_digest, Codec.DAG_CBOR)
        # At once: over a link of much latency each question counts.
        sources = self.sources(request.artifact_id)
        await self.fetch(shared, *sources, pin=pin)
        await self.fetch([own], row.job.requester, pin=pin)
        cids = [*shared, own]
        check = partial(self._check_inputs, cids, request, artifact, min_cohort=grant.terms.min_cohort)
        return await self.read(check, cids, *sources, row.job.requester, pin=pin)

    def _check_inputs(
        self, cids: Sequence[Cid], request: JobRequest, artifact: Artifact, *, min_cohort: int
    ) -> JobInputs:
        """Decode and check a job's records; in a worker thread, since they may be large."""
        manifest, policy, status, parameters = (dag.decode_map(self.store.get(cid)) for cid in cids)
        return check_job(
            request,
            artifact,
            manifest=read_manifest(manifest),
            policy=Policy.from_record(policy),
            status=ConsentStatus.from_record(status),
            parameters=JobParameters.from_record(parameters),
            min_cohort=min_cohort,
        )

    async def execute(self, row: JobRow, inputs: JobInputs, *, pin: str | None = None) -> ResultManifest:
        """Fetch the ciphertexts and run the kernel; result blocks are in the local store afterwards, given to nobody.

        `pin` as for `inputs`.

        Raises
        ------
        ContainerError, WrongKeyDomainError
            Also at the first block that cannot be one of the bundle's: a manifest may link anything. None of that is kept.
            Blocks that were here before count like those that arrive, and those that the kernel does not read like those
            that it reads: what a node finds must not hang on what it has.
        ContentError, BlockMismatchError
            If blocks are not to be had; what is damaged here is fetched anew.
        """
        pin, artifact_id = pin or job_pin(row.job_id), row.job.request.artifact_id
        needed = list(dict.fromkeys(inputs.manifest.blocks))
        check = partial(_check_sealed, manifest=inputs.manifest)
        read = partial(self.read, pin=pin, check=check, limiter=self.computing)
        sources = self.sources(artifact_id)
        try:
            report = await self.fetch(needed, *sources, pin=pin, check=check)
            # What arrived was looked at then.
            if report.held and artifact_id not in self.sound:
                await read(partial(self._check_all, needed, check), needed, *sources)
            self.sound.add(artifact_id)
        except (ContainerError, WrongKeyDomainError):
            await trio.to_thread.run_sync(self._let_go, pin)
            raise
        compute = partial(
            compute_result,
            inputs,
            self.store,
            self.workers,
            partial(self.store.put, pin=pin),
            cancelled=_is_given_up,
        )
        return self.result_manifest(row, await read(compute, needed, *sources))

    def result_manifest(self, row: JobRow, blocks: Sequence[Cid]) -> ResultManifest:
        """The manifest that these result blocks make up for a job."""
        request = row.job.request
        artifact = self.index.artifact(request.artifact_id)
        if artifact is None:
            raise LedgerError("the index lacks the job's bundle")
        epoch = self.index.consent_epoch(artifact.steward, artifact.consent_scope, request.consent_epoch)
        if epoch is None:
            raise LedgerError("the index lacks the job's consent epoch")
        return ResultManifest(
            job_id=row.job_id,
            kernel_id=request.kernel_id,
            bundle=Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR),
            status=Cid.from_digest(epoch.status_digest, Codec.DAG_CBOR),
            parameters=Cid.from_digest(request.parameters_digest, Codec.DAG_CBOR),
            blocks=tuple(blocks),
        )

    async def transact(self, function: str, job_id: JobId, *arguments: object) -> None:
        """One call of the job ledger, final when it returns."""
        await self._send(
            partial(self.ledger.transact, "JobLedger", function, job_id, *arguments, least_gas=_STEP_GAS)
        )
        log.info("%s %s", function, job_id.hex()[:12])

    async def ask(self, call: Callable[[], Result]) -> Result:
        """Call something that waits for the custodian's process; whoever stops the node does not wait for it."""
        return await trio.to_thread.run_sync(call, limiter=self.asking, abandon_on_cancel=True)  # type: ignore[call-arg]

    async def report(self, job_id: JobId, events: Sequence[SeriesEvent]) -> None:
        """Show an ended job's whole series to the contract that records faults."""
        await self._send(partial(self.ledger.transact, "Reputation", "report", job_id, events))

    async def close(self, function: str, job_id: JobId) -> None:
        """End what is overdue.

        Not simulated where blocks come only when somebody sends: the newest block there is older than the deadline.
        """
        ledger = self.ledger
        if ledger.network.chain.empty_blocks:
            await self.transact(function, job_id)
            return
        call = await trio.to_thread.run_sync(ledger.call_data, "JobLedger", function, job_id)
        await self._send(partial(ledger.transact_many, [call], gas=_STEP_GAS))
        log.info("%s %s", function, job_id.hex()[:12])

    async def _send(self, call: Callable[[], object]) -> None:
        try:
            await trio.to_thread.run_sync(call, limiter=self.sending)
        except ChainStalledError as exc:
            self.on_stall(exc)
            raise

    def member(self, org: OrgId) -> Participant:
        """A member's record from the index.

        Raises
        ------
        PeerError
            If the index knows no such member.
        """
        found = self.index.participant(org)
        if found is None:
            raise PeerError(f"{unlabel(org)} is not a member")
        return found

    def now(self) -> int:
        """Chain time in Unix seconds."""
        return self.clock.now(self.index.cursor())

    def blocks_of(self, cids: Sequence[Cid]) -> list[bytes]:
        """Bytes of local blocks, each checked against its CID."""
        return [self.store.get(cid) for cid in cids]

    def pin(self, cids: Sequence[Cid], reason: str) -> None:
        """Keep local blocks for one more reason, all of them or, with BlockNotFoundError, those that are here."""
        if absent := self.store.pin_many(cids, reason):
            raise BlockNotFoundError(f"block {absent[0]} is not in this store")

    def tidy(self) -> int:
        """Let go of what was only needed for jobs that have ended; returns how many blocks went.

        Results of released jobs stay with their executor, and releases with their custodian: they answer for them.
        """
        ended: set[ArtifactId] = set()
        live: set[ArtifactId] = set()
        for reason in self.store.reasons(_JOB_PIN):
            row = self._job_of(reason.removeprefix(_JOB_PIN))
            if row is None:
                continue
            is_over = row.job.state in FINAL_JOB_STATES
            (ended if is_over else live).add(row.job.request.artifact_id)
            if is_over:
                self.store.unpin_all(reason)
        # What another job pins stays, and need not come again.
        self.sound.difference_update(ended - live)
        for reason in self.store.reasons(_RESULT_PIN):
            row = self._job_of(reason.removeprefix(_RESULT_PIN))
            if row is None or row.job.state not in FINAL_JOB_STATES or row.job.state == JobState.RELEASED:
                continue
            self.holdings.drop(Purpose.RESULT, row.job_id)
            self.holdings.drop(Purpose.RELEASE, row.job_id)
            self.store.unpin_all(reason)
        return self.store.gc()

    def _job_of(self, digits: str) -> JobRow | None:
        return self.index.job(JobId(bytes.fromhex(digits)))

    def forget_rechecks(self) -> None:
        """Let go of what an earlier run of the node kept for rechecks that it did not end."""
        for reason in self.store.reasons(_RECHECK_PIN):
            self.store.unpin_all(reason)

    def _check_all(self, cids: Sequence[Cid], check: Callable[[bytes], None]) -> None:
        for cid in cids:
            _is_given_up()
            check(self.store.get(cid))

    def _let_go(self, pin: str) -> None:
        self.store.unpin_all(pin)
        self.store.gc()

    def _keep(
        self, blocks: Sequence[tuple[Cid, bytes]], pin: str, check: Callable[[bytes], None] | None
    ) -> None:
        if check is not None:
            for _, data in blocks:
                check(data)
        for codec in Codec:
            group = [data for cid, data in blocks if cid.codec == codec]
            if group:
                self.store.put_many(group, codec, pin=pin)


def _undiallable(org: OrgId, why: InputError) -> PeerError:
    """An address that cannot be dialled is its member's fault, not that of the job."""
    return PeerError(f"{unlabel(org)} cannot be dialled where it says it listens: {why}")


def _check_sealed(data: bytes, manifest: BundleManifest) -> None:
    """Check that a block is as long as the bundle's blocks are, and under its key; its residues are not looked at."""
    expected = block_size(manifest.block_form, manifest.shape.parameters)
    if len(data) != expected:
        raise ContainerError(f"a block of the bundle has {len(data)} bytes, not {expected}", field="length")
    check_header(data, key_id=manifest.shape.key_id)


def job_pin(job_id: JobId) -> str:
    """Pin under which a job's blocks are kept."""
    return _JOB_PIN + job_id.hex()


def result_pin(job_id: JobId) -> str:
    """Pin under which an executor keeps a job's result, and a custodian its release."""
    return _RESULT_PIN + job_id.hex()


def recheck_pin(job_id: JobId) -> str:
    """Pin under which the blocks of an ended job are kept while it is executed again."""
    return _RECHECK_PIN + job_id.hex()


def _is_given_up() -> bool:
    """In a thread: raises trio.Cancelled where nobody waits for the thread any more, as when the node is stopped."""
    trio.from_thread.check_cancelled()
    return False
