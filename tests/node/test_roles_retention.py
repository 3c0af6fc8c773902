"""The end of retention at the steward: what is erased although others are silent, or although the manifest is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from custody_node import CustodyNode, Story

from chain_fixture import FAR, KERNEL, Consortium, Vote, reveal_moves, word
from usufruct.content import Cid, Codec, dag
from usufruct.custody import Erased, ErasureStatement
from usufruct.errors import PeerError
from usufruct.records import ArtifactId, JobRequest, KeyId, OrgId, Refusal
from usufruct_node.holdings import Purpose
from usufruct_node.intake import STAGED, accept_record
from usufruct_node.roles import custody_peers
from usufruct_node.roles import retention as retention_module
from usufruct_node.roles.retention import Retention


class Steward(CustodyNode):
    """The node of `north` when every bundle's retention is over; `compute` does not answer, others state their erasures."""

    answer_s = 10.0

    def __init__(self, story: Story, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(story, root, "north")
        self.time, self.stopwatch = FAR, 100.0
        self.destroyed: list[KeyId] = []
        self.asked: list[tuple[OrgId, bool]] = []
        """Whom, and whether this node had erased all of its own by then."""
        peers: Any = self
        self.retention = Retention(
            self.context,
            peers,
            self.custody,
            destroy_secret=self.destroyed.append,
            signing_key=self.member.node_key,
        )
        monkeypatch.setattr(custody_peers, "time", SimpleNamespace(monotonic=lambda: self.stopwatch))

    def own(self) -> ArtifactId:
        """A bundle of this node, with its ciphertexts."""
        artifact_id = self.story.bundle()
        self.follow()
        self.store.put_many(self.story.blocks[artifact_id], pin=STAGED)
        accept_record(self.store, self.holdings, "bundle", dag.encode(self.story.records[artifact_id]))
        return artifact_id

    async def erasures(
        self, org: OrgId, artifact_id: ArtifactId
    ) -> tuple[list[ErasureStatement], list[OrgId]]:
        done = all(
            self.custody.has_erased(one, self.member.id, what)
            for one in self.story.records
            for what in Erased
        )
        self.asked.append((org, done))
        if org == self.story.net["compute"].id:
            raise PeerError("too slow")
        statement = ErasureStatement.sign(
            self.context.ledger.network,
            artifact_id,
            org,
            what=Erased.COPY,
            blocks=2,
            erased_at=FAR,
            signing_key=word(),
        )
        return [statement], []

    def look(self) -> list[tuple[OrgId, bool]]:
        """Whom one look asks."""
        self.asked.clear()
        trio.run(self.tend)
        return sorted(self.asked)

    async def tend(self) -> None:
        """One look, while the index follows the chain, which goes on by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_following)
            await self.retention.tend()
            nursery.cancel_scope.cancel()

    async def _keep_following(self) -> None:
        while True:
            await trio.to_thread.run_sync(self.follow)
            await trio.sleep(0.05)

    def erased(self, artifact_id: ArtifactId) -> set[tuple[OrgId, Erased]]:
        return {(one.holder, one.what) for one in self.custody.erasures(artifact_id)}


@pytest.fixture
def steward(chain_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steward]:
    with Steward(Story(Consortium(chain_url)), tmp_path, monkeypatch) as made:
        yield made


def test_no_erasure_waits_for_a_member_that_is_silent(steward: Steward) -> None:
    silent, auditor = steward.story.net["compute"].id, steward.story.net["auditor"].id
    bundles = [steward.own() for _ in range(3)]
    for artifact_id in bundles:
        steward.custody.designate(artifact_id, [silent, auditor], 50)
    assert steward.look() == sorted([(silent, True), *[(auditor, True)] * 3])
    for artifact_id in bundles:
        own = {(steward.member.id, Erased.COPY), (steward.member.id, Erased.KEY)}
        assert steward.erased(artifact_id) == own | {(auditor, Erased.COPY)}
    assert steward.retention.troubles == {}

    assert steward.look() == [], "one that was silent is left alone for a while"
    steward.stopwatch += steward.answer_s
    assert steward.look() == [(silent, True)]


@pytest.mark.parametrize("loss", ["altered", "gone"])
def test_a_lost_manifest_keeps_neither_blocks_nor_key(steward: Steward, loss: str) -> None:
    artifact_id = steward.own()
    blocks = [Cid.of(block) for block in steward.story.blocks[artifact_id]]
    manifest = Cid.from_digest(steward.artifact(artifact_id).content_digest, Codec.DAG_CBOR)
    path = steward.store.files.path_of(manifest)
    path.write_bytes(b"\0") if loss == "altered" else path.unlink()
    steward.look()
    assert steward.retention.troubles == {}
    assert steward.destroyed == [steward.story.made.artifact.key_id]
    assert not any(map(steward.store.has, blocks)) and not any(map(steward.holdings.of, blocks))
    copy, key = steward.custody.erasures(artifact_id)
    assert (copy.what, copy.blocks, key.what) == (Erased.COPY, len(blocks), Erased.KEY)
    assert steward.holdings.cids(Purpose.BUNDLE, manifest.digest) == []


def test_no_key_is_destroyed_on_the_word_of_an_index_that_is_behind_the_ledger(
    steward: Steward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lacks may be a bundle under that key, which nobody could ever open."""
    monkeypatch.setattr(retention_module, "_CATCHING_UP_SECONDS", 0.2)
    steward.own()
    steward.story.bundle(retain_until=FAR + 100)
    trio.run(steward.retention.tend)
    assert steward.destroyed == []
    steward.look()
    assert steward.destroyed == [], "that bundle is retained"
    steward.time += 100
    steward.look()
    assert set(steward.destroyed) == {steward.story.made.artifact.key_id}


def test_a_bundle_that_was_handed_over_and_is_not_registered_keeps_its_key(steward: Steward) -> None:
    artifact_id, made = steward.own(), steward.story.made
    steward.store.put_many(made.blocks, pin=STAGED)
    cid = accept_record(steward.store, steward.holdings, "bundle", dag.encode(made.record))
    steward.look()
    assert steward.destroyed == []
    assert str(cid) in steward.retention.troubles[artifact_id.hex()]
    steward.store.files.path_of(cid).unlink()
    steward.look()
    assert steward.destroyed == [made.artifact.key_id], "nobody can open what has no manifest"
    assert steward.retention.troubles == {}


def test_what_was_handed_over_and_never_registered_goes_with_its_key_a_week_after(steward: Steward) -> None:
    """Publishing was interrupted and repeated: the second bundle has other blocks, and the first is nobody's."""
    artifact_id, made = steward.own(), steward.story.made
    steward.store.put_many(made.blocks, pin=STAGED)
    accept_record(steward.store, steward.holdings, "bundle", dag.encode(made.record))
    steward.time = steward.artifact(artifact_id).retain_until + 7 * 86_400 - 1
    steward.look()
    assert steward.destroyed == [] and steward.retention.troubles
    steward.time += 1
    steward.look()
    assert steward.destroyed == [made.artifact.key_id]
    assert steward.retention.troubles == {}
    assert not any(steward.store.has(block) for block in made.manifest.blocks)
    assert steward.holdings.refs(Purpose.BUNDLE) == []


def test_neither_copy_nor_key_is_said_to_be_gone_while_the_blocks_are_kept_for_a_job(
    steward: Steward,
) -> None:
    artifact_id = steward.own()
    steward.store.put_many(steward.story.blocks[artifact_id], pin="job")
    steward.look()
    assert "still kept" in steward.retention.troubles[artifact_id.hex()]
    assert steward.erased(artifact_id) == set() and steward.destroyed == []
    steward.store.unpin_all("job")
    steward.look()
    assert steward.retention.troubles == {}
    assert steward.erased(artifact_id) == {(steward.member.id, what) for what in Erased}


def test_a_key_stays_while_a_verified_job_under_it_may_still_be_opened(steward: Steward) -> None:
    artifact_id, net = steward.own(), steward.story.net
    scope = steward.story.made.artifact.consent_scope
    request = JobRequest(
        artifact_id=artifact_id,
        grant_id=net.granted("university", "north", artifact_id, scope),
        kernel_id=KERNEL,
        parameters_digest=word(),
        purpose=scope,
        consent_epoch=net.reader.consent_epoch(steward.member.id, scope).epoch,
        policy_version=1,
        rho_micro=1,
        row_level=False,
        nonce=1,
    )
    (job,) = net.post("university", [request])
    digest = word()
    net.claim([job])
    net.commit({job: digest})
    votes = [Vote.of(net[name], job, digest) for name in ("auditor", "north", "south")]
    net.together(vote.commit_move(net.network) for vote in votes)
    net.together(reveal_moves(votes))
    steward.follow()
    steward.look()
    assert steward.erased(artifact_id) == {(steward.member.id, Erased.COPY)} and steward.destroyed == []
    steward.member.node.transact("JobLedger", "refuseRelease", job, Refusal.RESULT_INVALID)
    steward.follow()
    steward.look()
    assert steward.destroyed == [steward.story.made.artifact.key_id]


def test_what_keys_are_needed_for_is_looked_up_once_however_many_bundles_have_ended(
    steward: Steward, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        steward.own()
    asked, artifacts = list[object](), steward.index.artifacts
    monkeypatch.setattr(steward.index, "artifacts", lambda kind: asked.append(kind) or artifacts(kind))
    steward.look()
    assert len(steward.destroyed) == 3
    assert len(asked) == 3, "for what has ended, and for the keys before and after the index has caught up"
    asked.clear()
    steward.look()
    assert len(asked) == 1, "no key is left"


def test_blocks_that_came_back_after_their_erasure_was_stated_are_erased_again(steward: Steward) -> None:
    artifact_id = steward.own()
    steward.look()
    pin = "bundle:" + steward.artifact(artifact_id).content_digest.hex()
    cids = steward.store.put_many(steward.story.blocks[artifact_id], pin=pin)
    steward.time += 1
    steward.look()
    assert not any(map(steward.store.has, cids))
    copy = next(one for one in steward.custody.erasures(artifact_id) if one.what == Erased.COPY)
    assert (copy.erased_at, copy.blocks) == (steward.time, len(cids))


def test_a_bundle_that_is_fetched_back_while_its_retention_ends_is_gone_in_the_end(steward: Steward) -> None:
    artifact_id = steward.story.bundle()
    steward.follow()
    steward.custody.keep_replication(
        steward.artifact(artifact_id).policy_digest, steward.story.policy.replication
    )
    steward.given(steward.story.records[artifact_id], "bundle")
    steward.given(steward.story.policy.to_record(), "policy")
    blocks = {Cid.of(block): block for block in steward.story.blocks[artifact_id]}
    steward.peers.blocks = dict(blocks)
    steward.time = FAR - 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def end(*_: object) -> None:
                """Retention begins, and has all the time that it needs, before the peer answers."""
                if steward.time == FAR - 1:
                    steward.time = FAR
                    nursery.start_soon(steward.tend)
                    with trio.move_on_after(0.5):
                        while not steward.erased(artifact_id):
                            await trio.sleep(0.01)

            steward.peers.before = end
            await steward.pinner.tend()

    trio.run(main)
    assert (steward.member.id, Erased.COPY) in steward.erased(artifact_id)
    assert not any(map(steward.store.has, blocks)) and not any(map(steward.holdings.of, blocks))
