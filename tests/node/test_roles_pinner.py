"""What a holder of copies opens to others, and what it does when its copy is damaged, unreadable or too large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from custody_node import CustodyNode, Story, digest_of

from bundle_fixture import ROWS, SCOPE
from chain_fixture import KERNEL, Consortium, word
from usufruct.content import Cid, Codec, dag
from usufruct.content.files import BlockFiles
from usufruct.custody import Erased
from usufruct.errors import (
    BlockMismatchError,
    ContainerError,
    ContentError,
    ManifestError,
    StoreFullError,
    WrongKeyDomainError,
)
from usufruct.he.bfv import generate_secret_key
from usufruct.publish import manifest_record
from usufruct.records import Artifact, ArtifactId, ArtifactKind, JobRequest, JobState, OrgId
from usufruct.replication import Replication
from usufruct.seal import seal_features
from usufruct_node.custody_store import CustodyStore
from usufruct_node.holdings import Holding, Holdings, Purpose
from usufruct_node.placement import Placements
from usufruct_node.roles.context import RoleContext
from usufruct_node.roles.room import held_pin

READS = {"read_policies": 1, "read_notices": 2, "tend": 2}
"""How often a part of a look reads one bundle's replication, at most."""

JOB_PIN = "job:" + "ab" * 32


@pytest.fixture(scope="module")
def story(chain_url: str) -> Story:
    return Story(Consortium(chain_url))


@pytest.fixture
def node(story: Story, tmp_path: Path) -> Iterator[CustodyNode]:
    with CustodyNode(story, tmp_path) as made:
        yield made


@pytest.fixture
def copy(node: CustodyNode) -> tuple[ArtifactId, list[Cid]]:
    """A bundle that is whole at its holder."""
    artifact_id = node.story.bundle()
    status = node.story.anchor()
    node.follow()
    cids = node.give_all(artifact_id, status)
    assert node.look(artifact_id) is None
    return artifact_id, cids


def held(node: CustodyNode) -> dict[ArtifactId, int]:
    return {one.artifact_id: one.size_bytes for one in node.custody.held()}


def whole_size(node: CustodyNode) -> int:
    """Length of any bundle's ciphertexts."""
    return sum(map(len, node.story.made.blocks))


def later(node: CustodyNode) -> None:
    """As if the pause were over, and nobody had been silent lately."""
    node.pinner._pauses.clear()
    node.pinner._silent._until.clear()
    node.pinner._wishes._lost.clear()


@pytest.mark.parametrize("cited", ["parameters of somebody else's job", "another epoch", "another scope"])
def test_a_consent_epoch_opens_only_its_own_status(
    node: CustodyNode, copy: tuple[ArtifactId, list[Cid]], cited: str
) -> None:
    """A steward may anchor any digest, such as that of parameters, which the ledger shows to all."""
    artifact_id, _ = copy
    record = {
        "parameters of somebody else's job": {"type": "usufruct/job-parameters/1", "weights": [31337]},
        "another epoch": node.story.status(epoch=99),
        "another scope": node.story.status(scope="another-study"),
    }[cited]
    cid = node.given(record, JOB_PIN)
    node.story.anchor(record)
    node.follow()
    assert isinstance(node.look(artifact_id), ManifestError)
    assert node.holdings.of(cid) == []
    assert node.store.pins(cid) == {JOB_PIN}, "it stays for the job alone"
    assert held(node) == {artifact_id: whole_size(node)}

    honest = node.given(node.story.anchor(), JOB_PIN)
    node.follow()
    later(node)
    assert node.look(artifact_id) is None
    assert node.holdings.of(honest) == [Holding(Purpose.CATALOGUE, artifact_id)]
    assert node.store.pins(honest) == {JOB_PIN, held_pin(artifact_id)}


def test_a_manifest_that_is_none_is_not_kept(node: CustodyNode) -> None:
    record: dict[str, object] = {"type": "usufruct/job-parameters/1", "weights": [1]}
    artifact_id = node.story.bundle(record=record)
    node.follow()
    node.give_all(artifact_id)
    cid = node.given(record, JOB_PIN)
    assert isinstance(node.look(artifact_id), ManifestError)
    assert node.holdings.of(cid) == [] and node.store.pins(cid) == {JOB_PIN}


@pytest.mark.parametrize("loss", ["altered", "gone"])
def test_only_what_is_damaged_is_fetched_again(
    node: CustodyNode, copy: tuple[ArtifactId, list[Cid]], loss: str
) -> None:
    artifact_id, cids = copy
    path = node.store.files.path_of(cids[0])
    path.write_bytes(b"\0" * 100) if loss == "altered" else path.unlink()
    node.peers.blocks = {cids[0]: node.story.blocks[artifact_id][0]}
    node.pinner.damaged(artifact_id)
    assert node.look(artifact_id) is None
    assert node.peers.asked == [cids[0]]
    assert [node.store.get(cid) for cid in cids] == node.story.blocks[artifact_id]
    assert held(node) == {artifact_id: whole_size(node)}


def test_a_damaged_record_is_fetched_again(node: CustodyNode, copy: tuple[ArtifactId, list[Cid]]) -> None:
    artifact_id, _ = copy
    data = dag.encode(node.story.policy.to_record())
    cid = Cid.of(data, Codec.DAG_CBOR)
    node.store.files.path_of(cid).write_bytes(b"\0")
    node.peers.blocks = {cid: data}
    node.pinner.damaged(artifact_id)
    assert node.look(artifact_id) is None
    assert node.store.get(cid) == data


@pytest.mark.parametrize("lost", ["manifest", "policy", "status", "ciphertext"])
def test_a_steward_fetches_back_what_it_lost_from_a_holder(
    story: Story, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one_by_one(
        self: RoleContext, cids: Sequence[Cid], *sources: OrgId, pin: str, gave_up: object = None
    ) -> None:
        for cid in cids:
            if not self.store.has(cid):
                self.store.put(await self.fetch_once(cid, *sources), cid.codec, pin=pin)

    monkeypatch.setattr(RoleContext, "fetch", one_by_one)
    artifact_id = story.bundle()
    with CustodyNode(story, tmp_path, "north") as node:
        status = story.anchor()
        node.follow()
        node.custody.keep_replication(digest_of(story.policy.to_record()), story.policy.replication)
        sound = {
            "manifest": dag.encode(story.records[artifact_id]),
            "policy": dag.encode(story.policy.to_record()),
            "status": dag.encode(status),
        }
        codecs = dict.fromkeys(sound, Codec.DAG_CBOR) | {"ciphertext": Codec.RAW}
        sound["ciphertext"] = story.blocks[artifact_id][0]
        for kind, data in sound.items():
            if kind != lost:
                node.store.put(data, codecs[kind], pin=kind)
        node.store.put_many(story.blocks[artifact_id][1:], pin="ciphertext")
        cid = Cid.of(sound[lost], codecs[lost])
        node.peers.answers = False
        assert isinstance(node.look(artifact_id), ContentError)
        node.peers.answers, node.peers.blocks = True, {cid: sound[lost]}
        later(node)
        assert node.look(artifact_id) is None
        assert node.store.get(cid) == sound[lost]
        assert set(node.peers.asked) == {cid}
        for kind in ("manifest", "policy", "status"):
            record = Cid.of(sound[kind], Codec.DAG_CBOR)
            assert node.holdings.of(record) == [Holding(Purpose.CATALOGUE, b"")], "it is given out again"
        for block in map(Cid.of, story.blocks[artifact_id]):
            assert node.holdings.of(block) == [Holding(Purpose.BUNDLE, digest_of(story.records[artifact_id]))]


def test_a_steward_whose_backup_is_older_than_a_bundle_gets_all_of_it_back(
    story: Story, tmp_path: Path
) -> None:
    """Its `node.db` knows nothing of the policy either, which alone says who holds the bundle."""
    artifact_id = story.bundle()
    records = {
        Cid.of(data, Codec.DAG_CBOR): data
        for data in map(dag.encode, (story.records[artifact_id], story.policy.to_record(), story.anchor()))
    }
    blocks = {Cid.of(block): block for block in story.blocks[artifact_id]}
    with CustodyNode(story, tmp_path, "north") as node:
        node.follow()
        trio.run(node.pinner.tend)
        assert artifact_id.hex() in node.pinner.troubles, "nobody has it"
        node.peers.blocks = records | blocks
        later(node)
        trio.run(node.pinner.tend)
        assert artifact_id.hex() not in node.pinner.troubles
        for cid in records:
            assert node.holdings.of(cid) == [Holding(Purpose.CATALOGUE, b"")]
        for cid in blocks:
            assert node.holdings.of(cid) == [Holding(Purpose.BUNDLE, digest_of(story.records[artifact_id]))]


def test_an_own_bundle_whose_blocks_are_of_another_key_is_given_to_nobody(
    story: Story, tmp_path: Path
) -> None:
    sealed = seal_features(story.made.features, generate_secret_key())
    blocks = [block.data for block in sealed]
    record = manifest_record(
        sealed.manifest, scope=SCOPE, row_subjects=range(ROWS), blocks=[Cid.of(block) for block in blocks]
    )
    record["sealed"] = story.made.record["sealed"]
    artifact_id = story.bundle(record=record)
    with CustodyNode(story, tmp_path, "north") as node:
        node.given(record, "bundle")
        cids = node.store.put_many(blocks, pin="bundle:" + digest_of(record).hex())
        assert isinstance(node.look(artifact_id), WrongKeyDomainError)
        assert not any(map(node.holdings.of, cids))


def test_of_policies_and_status_a_holder_keeps_those_in_force_and_those_that_a_job_cites(
    node: CustodyNode, copy: tuple[ArtifactId, list[Cid]]
) -> None:
    artifact_id, cids = copy
    net, scope = node.story.net, node.story.made.artifact.consent_scope
    north = net["north"]

    def records() -> set[bytes]:
        kept = {cid.digest for cid in node.holdings.cids(Purpose.CATALOGUE, artifact_id)}
        pinned = node.store.pinned(held_pin(artifact_id))
        assert kept == {cid.digest for cid in pinned if cid.codec == Codec.DAG_CBOR}
        return kept

    def in_force() -> set[bytes]:
        artifact, epoch = node.artifact(artifact_id), node.index.consent_epoch(north.id, scope)
        assert epoch is not None
        return {artifact.content_digest, artifact.policy_digest, epoch.status_digest}

    def change() -> None:
        """Another policy and another status, both of which the steward gives."""
        policy = replace(node.story.policy, min_cohort=node.index.event_count()).to_record()
        north.ledger.transact("LineageRegistry", "setPolicy", artifact_id, digest_of(policy))
        node.custody.keep_replication(digest_of(policy), node.story.policy.replication)
        for record in (policy, node.story.anchor()):
            node.given(record, held_pin(artifact_id))
        node.follow()
        assert node.look(artifact_id) is None

    before = in_force()
    change()
    assert records() == in_force() and not before & in_force() - {node.artifact(artifact_id).content_digest}

    artifact = node.artifact(artifact_id)
    request = JobRequest(
        artifact_id=artifact_id,
        grant_id=net.granted("university", "north", artifact_id, scope),
        kernel_id=KERNEL,
        parameters_digest=word(),
        purpose=scope,
        consent_epoch=north.ledger.consent_epoch(north.id, scope).epoch,
        policy_version=artifact.policy_version,
        rho_micro=1000,
        row_level=False,
        nonce=1,
    )
    (job_id,) = net.post("university", [request])
    cited = in_force()
    change()
    job = node.index.job(job_id)
    assert job is not None and job.job.state == JobState.POSTED
    change()
    assert records() == in_force() | cited
    assert [node.store.get(cid) for cid in cids] == node.story.blocks[artifact_id]


@pytest.mark.parametrize("killed", ["before it is noted", "after it is noted"])
def test_an_erasure_that_a_kill_cut_off_is_stated_of_as_many_blocks(
    node: CustodyNode,
    copy: tuple[ArtifactId, list[Cid]],
    killed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact_id, cids = copy

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if killed == "before it is noted":
            patch.setattr(CustodyStore, "let_go", die)
        else:
            patch.setattr(Holdings, "drop", die)
        node.look(artifact_id, retain_until=node.time)
    node.time += 1
    node.start()
    if held(node):
        assert node.look(artifact_id, retain_until=node.time) is None
    trio.run(node.pinner.tend)
    (statement,) = node.custody.erasures(artifact_id)
    assert statement.blocks == len(cids)
    assert held(node) == {} and node.holdings.count() == 0 and not any(map(node.store.has, cids))


def test_a_copy_stays_while_nobody_can_replace_what_is_damaged(
    node: CustodyNode, copy: tuple[ArtifactId, list[Cid]]
) -> None:
    artifact_id, cids = copy
    node.store.files.path_of(cids[0]).write_bytes(b"\0" * 100)
    node.peers.answers = False
    node.pinner.damaged(artifact_id)
    assert isinstance(node.look(artifact_id), BlockMismatchError)
    assert isinstance(node.look(artifact_id), ContentError) and len(node.peers.asked) == 1, (
        "not at every look"
    )
    assert held(node) == {artifact_id: whole_size(node)}
    assert node.store.get(cids[1]) == node.story.blocks[artifact_id][1]
    assert node.holdings.of(cids[1]) == [Holding(Purpose.HELD, artifact_id)]

    node.peers.answers, node.peers.blocks = True, {cids[0]: node.story.blocks[artifact_id][0]}
    later(node)
    assert node.look(artifact_id) is None
    assert node.store.get(cids[0]) == node.story.blocks[artifact_id][0]


def test_a_copy_stays_when_a_block_cannot_be_read_for_once(
    node: CustodyNode, copy: tuple[ArtifactId, list[Cid]], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_id, cids = copy

    read = BlockFiles.read_unchecked

    def unreadable(files: BlockFiles, cid: Cid) -> bytes | None:
        if cid == cids[-1]:
            raise OSError(24, "Too many open files")
        return read(files, cid)

    node.start()
    with monkeypatch.context() as patch:
        patch.setattr(BlockFiles, "read_unchecked", unreadable)
        assert isinstance(node.look(artifact_id), ContentError)
    assert all(map(node.store.has, cids)) and held(node) == {artifact_id: whole_size(node)}
    later(node)
    assert node.look(artifact_id) is None and node.peers.asked == []


def test_a_whole_copy_stays_when_the_limit_is_lowered(
    node: CustodyNode, copy: tuple[ArtifactId, list[Cid]]
) -> None:
    artifact_id, cids = copy
    node.start(limit_bytes=1)
    assert node.look(artifact_id) is None
    assert all(map(node.store.has, cids)) and held(node) == {artifact_id: whole_size(node)}

    another = node.story.bundle()
    node.given(node.story.anchor(), held_pin(another))
    node.follow()
    node.give_all(another)
    assert isinstance(node.look(another), StoreFullError)
    assert all(node.store.pins(cid) == {held_pin(artifact_id)} for cid in cids)


def test_a_member_without_room_states_at_the_end_that_it_has_no_copy(node: CustodyNode) -> None:
    artifact_id = node.story.bundle()
    node.follow()
    cids = node.give_all(artifact_id)
    node.start(limit_bytes=1)
    assert isinstance(node.look(artifact_id), StoreFullError)
    assert not any(map(node.store.has, cids)) and held(node) == {artifact_id: 0}
    assert node.look(artifact_id, retain_until=node.time) is None
    (statement,) = node.custody.erasures(artifact_id)
    assert (statement.what, statement.holder, statement.blocks) == (Erased.COPY, node.member.id, 0)
    assert held(node) == {}


@pytest.mark.parametrize("content", ["of another key", "no ciphertext"])
def test_a_bundle_of_blocks_that_are_not_sealed_under_its_key_is_dropped(
    node: CustodyNode, content: str
) -> None:
    sealed = seal_features(node.story.made.features, generate_secret_key())
    blocks = [block.data for block in sealed] if content == "of another key" else [b"a secret", b"another"]
    record = manifest_record(
        sealed.manifest,
        scope=node.story.made.manifest.scope,
        row_subjects=range(ROWS),
        blocks=[Cid.of(block) for block in blocks],
    )
    record["sealed"] = node.story.made.record["sealed"]
    artifact_id = node.story.bundle(record=record)
    node.follow()
    node.give_all(artifact_id)
    node.given(record, held_pin(artifact_id))
    cids = node.store.put_many(blocks, pin=held_pin(artifact_id))
    expected = WrongKeyDomainError if content == "of another key" else ContainerError
    assert isinstance(node.look(artifact_id), expected)
    assert not any(map(node.store.has, cids)) and not any(map(node.holdings.of, cids))


@pytest.mark.parametrize("name", ["north", "compute"])
def test_a_policy_whose_block_is_damaged_is_read_once_it_is_whole(
    story: Story, tmp_path: Path, name: str
) -> None:
    """The steward's own is read when it was put right, a holder's is had from the steward."""
    with CustodyNode(story, tmp_path, name) as node:
        artifact_id = story.bundle()
        node.follow()
        data = dag.encode(story.policy.to_record())
        cid = node.given(story.policy.to_record(), "policy")
        node.store.files.path_of(cid).write_bytes(b"\0")
        node.peers.answers = False
        read = partial(node.pinner._wishes.read_policies, node.index.artifacts(ArtifactKind.BUNDLE))
        trio.run(read)
        assert node.context.placements.holders(artifact_id) == ()

        node.peers.answers, node.peers.blocks = True, {cid: data}
        later(node)
        if name == "north":
            node.store.put(data, Codec.DAG_CBOR)
        trio.run(read)
        assert node.context.placements.holders(artifact_id) == (story.net["compute"].id,)


def test_other_tasks_run_while_thousands_of_bundles_are_looked_at(
    node: CustodyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [node.story.bundle() for _ in range(4)]
    status = node.story.anchor()
    node.follow()
    node.give_all(bundles[0])
    digests = (digest_of(node.story.policy.to_record()), digest_of(status))
    node.pinner._whole = {one: digests for one, _ in node.index.artifacts(ArtifactKind.BUNDLE)}
    turns = 0
    read_at: Counter[int] = Counter()
    replication = Placements.replication

    def noted(placements: Placements, artifact: Artifact) -> Replication | None:
        read_at[turns] += 1
        return replication(placements, artifact)

    async def tick() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            found, wishes = node.index.artifacts(ArtifactKind.BUNDLE), node.pinner._wishes
            parts = {
                "read_policies": partial(wishes.read_policies, found),
                "read_notices": partial(wishes.read_notices, node.story.net["north"].id, found),
                "tend": node.pinner.tend,
            }
            for name, part in parts.items():
                read_at.clear()
                await part()
                # Tasks of one batch run in any order, so that two bundles may come between two turns of another task.
                assert sum(read_at.values()) >= 4 and max(read_at.values()) <= 2 * READS[name]
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(Placements, "replication", noted)
    trio.run(main)
