"""Jobs on real bundles, on a real chain, and a node that has a part in them; its peers are real hosts that may lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio
from custody_node import CustodyNode, Story, digest_of

from bundle_fixture import SmallBundle
from chain_fixture import Vote, reveal_moves, word
from usufruct.content import Cid, Codec, dag
from usufruct.job import JobParameters
from usufruct.publish import read_manifest
from usufruct.records import ArtifactId, JobId, JobRequest
from usufruct.verify import ResultManifest, possession
from usufruct_node.index import JobRow
from usufruct_node.peers import PeerHost, PeerIdentity
from usufruct_node.peers.verdicts import PROTOCOL_ID as VERDICTS
from usufruct_node.peers.verdicts import Question, VerdictHandler, pack_verdict
from usufruct_node.roles.compute import Workers
from usufruct_node.roles.context import RoleContext
from usufruct_node.roles.journal import Journal

VERIFIERS = ("north", "south", "auditor")


@dataclass(kw_only=True)
class Task:
    """One job of the university on a bundle of north."""

    job_id: JobId
    bundle: ArtifactId
    records: list[dict[str, object]]
    """What the job cites: manifest, policy, status, parameters."""
    ciphertexts: list[bytes]
    result: ResultManifest
    """What an honest executor finds."""
    blocks: list[bytes]
    """Its result blocks."""


@dataclass
class JobStory(Story):
    """Bundles of `north` with jobs on them."""

    nonce: int = field(default=0)

    def task(
        self,
        *,
        artifact_id: ArtifactId | None = None,
        asked: JobParameters | None = None,
        rho_micro: int = 500_000,
    ) -> Task:
        """Post a job; by default one that sums the columns, on a bundle of its own."""
        artifact_id = artifact_id or self.bundle()
        status = self.anchor()
        asked = asked or self.made.parameters()
        artifact = self.net.reader.artifact(artifact_id)
        scope = artifact.consent_scope
        kernels = (asked.kernel.kernel_id,)
        self.nonce += 1
        request = JobRequest(
            artifact_id=artifact_id,
            grant_id=self.net.granted("university", "north", artifact_id, scope, kernels=kernels),
            kernel_id=asked.kernel.kernel_id,
            parameters_digest=digest_of(asked.to_record()),
            purpose=scope,
            consent_epoch=self.net.reader.consent_epoch(artifact.steward, scope).epoch,
            policy_version=artifact.policy_version,
            rho_micro=rho_micro,
            row_level=False,
            nonce=self.nonce,
        )
        (job_id,) = self.net.post("university", [request])
        return self._task(job_id, artifact_id, status, asked)

    def _task(
        self, job_id: JobId, artifact_id: ArtifactId, status: dict[str, object], asked: JobParameters
    ) -> Task:
        records = [self.records[artifact_id], self.policy.to_record(), status, asked.to_record()]
        blocks = self.sealed(artifact_id).result(asked)
        bundle, _, epoch, parameters = map(dag.cid_of, records)
        return Task(
            job_id=job_id,
            bundle=artifact_id,
            records=records,
            ciphertexts=self.blocks[artifact_id],
            blocks=blocks,
            result=ResultManifest(
                job_id=job_id,
                kernel_id=asked.kernel.kernel_id,
                bundle=bundle,
                status=epoch,
                parameters=parameters,
                blocks=tuple(Cid.of(block) for block in blocks),
            ),
        )

    def sealed(self, artifact_id: ArtifactId) -> SmallBundle:
        """A bundle with its secret."""
        record = self.records[artifact_id]
        return replace(
            self.made, record=record, manifest=read_manifest(record), blocks=self.blocks[artifact_id]
        )

    def claimed(self, task: Task) -> Task:
        """Let the compute node claim it."""
        self.net.claim([task.job_id])
        return task

    def verified(self, task: Task, *, digest: bytes | None = None) -> Task:
        """Let the compute node commit to the honest result, or another digest, and all verifiers agree."""
        digest = digest or task.result.cid.digest
        self.net.claim([task.job_id])
        self.net.commit({task.job_id: digest})
        votes = self.votes(task, digest)
        self.net.together(vote.commit_move(self.net.network) for vote in votes)
        self.net.together(reveal_moves(votes))
        return task

    def votes(self, task: Task, digest: bytes) -> list[Vote]:
        """What all verifiers say, for this digest."""
        return [
            Vote(verifier, task.job_id, digest, word(), possession(verifier.id, task.blocks))
            for verifier in map(self.net.__getitem__, VERIFIERS)
        ]


class JobNode(CustodyNode):
    """The node of a member, with workers and a journal; `peered` gives it real peers."""

    def __init__(self, story: JobStory, root: Path, name: str) -> None:
        super().__init__(story, root, name)
        self.time = self.story.net.reader.finalised().timestamp
        workers, journal = Workers(1), Journal(root / "node.db")
        self.callback(workers.close)
        self.enter_context(closing(journal))
        self.context = replace(
            self.context, ledger=self.member.node, workers=workers, journal=journal, on_stall=lambda exc: None
        )

    def has(self, task: Task, *, ciphertexts: bool = True) -> None:
        """Put what a job rests on into the store."""
        for record in task.records:
            self.given(record, "bundle")
        if ciphertexts:
            self.store.put_many(task.ciphertexts, Codec.RAW, pin="bundle")

    def row(self, task: Task) -> JobRow:
        """The job as the ledger has it now."""
        self.follow()
        found = self.index.job(task.job_id)
        assert found is not None
        return found

    @asynccontextmanager
    async def peered(
        self, *voters: Vote, **others: Callable[[Cid], bytes | None]
    ) -> AsyncIterator[RoleContext]:
        """Run this node's host and those of other members, which give what these functions give, or their word on a job."""
        async with trio.open_nursery() as nursery:
            for name, read in others.items():
                host = _host(self.story.net[name].peer, read)
                for vote in voters:
                    if vote.verifier.name == name:
                        host.handle(VERDICTS, VerdictHandler(partial(self._word, vote)).serve)
                await nursery.start(host.run)
                endpoint = host.multiaddr.split("/p2p/")[0]
                self.story.net[name].node.transact("ParticipantRegistry", "setEndpoint", endpoint)
            mine = _host(self.member.peer, lambda cid: None)
            await nursery.start(mine.run)
            self.follow()
            yield replace(self.context, host=mine)
            nursery.cancel_scope.cancel()

    def _word(self, vote: Vote, peer_id: str, question: Question, job_id: JobId) -> bytes:
        return pack_verdict(vote.word(self.story.net.network))


def _host(identity: PeerIdentity, read: Callable[[Cid], bytes | None]) -> PeerHost:
    anybody: Any = lambda *_: True  # noqa: E731
    return PeerHost(identity=identity, is_member=anybody, authorise=anybody, read_block=read)


def served(blocks: Sequence[bytes], *records: dict[str, object]) -> Callable[[Cid], bytes | None]:
    """Gives these and nothing else."""
    found = {Cid.of(block): block for block in blocks}
    for record in records:
        data = dag.encode(record)
        found[Cid.of(data, Codec.DAG_CBOR)] = data
    return found.get
