"""A release on a chain, with what its index tells and all contents: for tests of lineages and of their evidence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle_fixture import SCOPE, SmallBundle
from chain_fixture import Consortium, Vote, reveal_moves, word
from usufruct.checked_events import CheckedEvents
from usufruct.content import Cid, Codec, dag
from usufruct.ledger.jobs import derived_id
from usufruct.lineage import Lineage, lineage_of
from usufruct.privacy import NoiseLevel
from usufruct.records import ArtifactId, ArtifactKind, JobRequest, label
from usufruct.release import seal_payload, sigma_micro, sign_release
from usufruct.verify import ResultManifest
from usufruct_node.index import Index, catch_up
from usufruct_node.queries import Queries

RELEASED = (1234, 0)
"""Values of the scene's release."""

Lie = Callable[[dict[str, Any]], None]


@dataclass
class Told:
    """The index and the store of a node that may lie: `lie` changes the answer before it is given."""

    answer: dict[str, Any]
    blocks: dict[Cid, bytes]
    lie: Lie = field(default=lambda answer: None)

    def query(self, path: str) -> Any:
        answer = copy.deepcopy(self.answer)
        self.lie(answer)
        return json.loads(json.dumps(answer))

    def get(self, cid: Cid, *, holder: str) -> bytes:
        data = self.blocks[cid]
        cid.check(data)
        return data


@dataclass
class Scene:
    net: Consortium
    told: Told
    release: ArtifactId
    other: dict[str, Any]
    """What the index tells of another release of the same bundle."""

    def walk(self, lie: Lie = lambda answer: None) -> Lineage:
        node = Told(self.told.answer, self.told.blocks, lie)
        return lineage_of(CheckedEvents(self.net.reader), node, self.release)


def released_scene(chain_url: str, bundle: SmallBundle, directory: Path) -> Scene:
    """Two jobs of one bundle, both released; the result of the first is frozen."""
    net, scope = Consortium(chain_url), label(SCOPE)
    blocks: dict[Cid, bytes] = {Cid.of(block, Codec.RAW): block for block in bundle.blocks}

    def kept(record: object) -> Cid:
        data = dag.encode(record)
        blocks[Cid.of(data, Codec.DAG_CBOR)] = data
        return Cid.of(data, Codec.DAG_CBOR)

    manifest, status = kept(bundle.record), kept(bundle.status.to_record())
    policies = [kept(bundle.policy.to_record() | {"min_cohort": number}) for number in (1, 2)]
    key = net.key_domain("north")
    artifact = net.bundle(
        "north", key, scope=scope, content_digest=manifest.digest, policy_digest=policies[0].digest
    )
    north = net["north"].ledger
    north.transact("LineageRegistry", "setPolicy", artifact, policies[1].digest)
    north.transact("ConsentRegistry", "anchorEpoch", scope, 1, word(), status.digest, 20)
    parameters = bundle.parameters("linear")
    cid = kept(parameters.to_record())
    grant = net.granted("university", "north", artifact, scope, kernels=(parameters.kernel.kernel_id,))
    request = {
        "artifact_id": artifact,
        "grant_id": grant,
        "kernel_id": parameters.kernel.kernel_id,
        "parameters_digest": cid.digest,
        "purpose": scope,
        "consent_epoch": 1,
        "policy_version": 2,
        "rho_micro": 5,
        "row_level": False,
    }
    jobs = net.post("university", [JobRequest(**request, nonce=nonce) for nonce in (1, 2)])
    results = {}
    for job in jobs:
        result = ResultManifest(
            job_id=job,
            kernel_id=parameters.kernel.kernel_id,
            bundle=manifest,
            status=status,
            parameters=cid,
            blocks=tuple(bundle.manifest.blocks),
        )
        results[job] = kept(result.to_record()).digest
    net.claim(jobs)
    net.commit(results)
    votes = [Vote.of(net[v], job, results[job]) for job in jobs for v in ("north", "south", "auditor")]
    net.together(vote.commit_move(net.network) for vote in votes)
    net.together(reveal_moves(votes))
    node = net["north"].node
    net.together((node, "JobLedger", "openRelease", job) for job in jobs)
    inputs, levels = bundle.inputs(parameters), [NoiseLevel(2, 7.0, 1)]
    for number, job in enumerate(jobs):
        record = node.job(job)
        sealed = seal_payload(
            *(net.network.chain_id, job, record, inputs, np.array([RELEASED[0], number]), levels),
            recipient_key=net["university"].record.hpke_key,
        )
        sigma = sigma_micro(levels)
        envelope = sign_release(net.network, job, record, sealed, sigma, signing_key=net["north"].node_key)
        blocks[Cid.of(envelope, Codec.DAG_CBOR)] = envelope
        node.transact("JobLedger", "recordRelease", job, Cid.of(envelope, Codec.DAG_CBOR).digest, sigma)
    net.govern("LineageRegistry", "setFrozen", derived_id(jobs[0], ArtifactKind.RESULT), True)
    index = Index(directory / "index.db")
    catch_up(index, net.reader)
    releases = [index.derived(job)[1] for job in jobs]
    answers = [Queries(index, net.network.contracts).lineage(release, "ancestors") for release in releases]
    index.close()
    return Scene(net, Told(answers[0], blocks), releases[0], answers[1])
