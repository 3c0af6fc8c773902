"""What one steward can do to copies of the others' bundles, which is nothing: slow, silent, or writing nonsense."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from custody_node import CustodyNode, Story, digest_of
from trio.testing import MockClock

from chain_fixture import FAR, Consortium, word
from usufruct.content import Cid, Codec, dag
from usufruct.custody import Erased
from usufruct.errors import BlockNotFoundError, ContentError, PeerError
from usufruct.publish import MAX_SUBJECTS
from usufruct.records import ArtifactId, label
from usufruct_node.custody_store import Held
from usufruct_node.holdings import Purpose
from usufruct_node.roles import custody_peers, pinner
from usufruct_node.roles.custody_peers import Silent
from usufruct_node.roles.keeper import Keeper
from usufruct_node.roles.room import held_pin

SOUTHS = label("souths-study")


@pytest.fixture(scope="module")
def story(chain_url: str) -> Story:
    return Story(Consortium(chain_url))


@pytest.fixture
def node(story: Story, tmp_path: Path) -> Iterator[CustodyNode]:
    with CustodyNode(story, tmp_path) as made:
        yield made


def souths(node: CustodyNode, policy: dict[str, object]) -> ArtifactId:
    """A bundle of `south`, of which nothing is here but, at `south`, the policy."""
    net, data = node.story.net, dag.encode(policy)
    artifact_id = net.bundle("south", net.key_domain("south"), scope=SOUTHS, policy_digest=digest_of(policy))
    node.peers.blocks[Cid.of(data, Codec.DAG_CBOR)] = data
    return artifact_id


def norths(node: CustodyNode) -> ArtifactId:
    """A bundle of `north` that was being fetched, and that this node need only look at to have it."""
    artifact_id = node.story.bundle()
    status = node.story.anchor()
    node.follow()
    node.custody.hold(Held(artifact_id=artifact_id, blocks=2, size_bytes=0))
    node.give_all(artifact_id, status)
    return artifact_id


def whole(node: CustodyNode) -> set[ArtifactId]:
    return {one.artifact_id for one in node.custody.held() if one.size_bytes}


def test_a_policy_that_is_none_holds_up_nobody_elses_bundles(node: CustodyNode) -> None:
    """Its author may have an older or another library, which lets it write what ours refuses."""
    souths(node, node.story.policy.to_record() | {"min_cohort": MAX_SUBJECTS + 1})
    artifact_id = norths(node)
    trio.run(node.pinner.tend)
    assert whole(node) == {artifact_id}
    asked = len(node.peers.asked)
    trio.run(node.pinner.tend)
    assert len(node.peers.asked) == asked, "what is no policy is not asked for again"


def test_a_steward_that_never_answers_holds_up_its_own_bundles_only(node: CustodyNode) -> None:
    souths(node, node.story.policy.to_record() | {"min_cohort": 11})
    artifact_id = norths(node)

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.pinner.tend)
            while artifact_id not in whole(node) or not node.peers.asked:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    node.peers.before = never
    node.pinner._turn_s = 3600.0
    trio.run(main)


def test_what_has_ended_is_let_go_of_before_anything_is_fetched(node: CustodyNode) -> None:
    ending = node.story.bundle(retain_until=FAR - 1)
    status = node.story.anchor()
    node.follow()
    node.give_all(ending, status)
    assert node.look(ending) is None
    souths(node, node.story.policy.to_record() | {"min_cohort": 12})
    node.follow()
    stated: list[bool] = []

    async def note(*_: object) -> None:
        stated.append(node.custody.has_erased(ending, node.member.id, Erased.COPY))
        raise PeerError("it is silent")

    node.time, node.peers.before = FAR - 1, note
    trio.run(node.pinner.tend)
    assert stated and all(stated)


def test_a_turn_ends_where_it_is_and_the_next_begins_with_another_bundle(node: CustodyNode) -> None:
    """The rest of a long turn is not given to one bundle again and again."""
    first, second = (node.story.bundle() for _ in range(2))
    node.follow()
    node.custody.keep_replication(digest_of(node.story.policy.to_record()), node.story.policy.replication)
    by_cid = {
        Cid.from_digest(node.artifact(one).content_digest, Codec.DAG_CBOR): one for one in (first, second)
    }
    clock = MockClock()
    begun: list[ArtifactId] = []

    async def hang(peer_id: str, cids: Sequence[Cid]) -> None:
        asked = [by_cid[cid] for cid in cids if cid in by_cid]
        begun.extend(asked)
        if asked:
            clock.jump(2 * node.pinner._turn_s)
            await trio.sleep_forever()

    async def main() -> None:
        for _ in range(2):
            await node.pinner.tend()

    node.peers.before = hang
    trio.run(main, clock=clock)
    assert len(begun) == 2 and begun[0] != begun[1]


def test_a_member_that_gives_nothing_is_not_asked_again_for_a_while(
    node: CustodyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has long been asked when it says at last that it has nothing."""
    stopwatch = 100.0
    monkeypatch.setattr(custody_peers, "time", SimpleNamespace(monotonic=lambda: stopwatch))
    node.pinner = node.start()
    artifact_id = node.story.bundle()
    node.follow()
    node.custody.keep_replication(digest_of(node.story.policy.to_record()), node.story.policy.replication)

    async def slow(*_: object) -> None:
        nonlocal stopwatch
        stopwatch += 9.9

    assert isinstance(node.look(artifact_id), BlockNotFoundError)
    assert isinstance(node.look(artifact_id), BlockNotFoundError)
    assert len(node.peers.asked) == 2, "one that says at once that it has nothing may have it soon"
    node.peers.before = slow
    for _ in range(3):
        assert isinstance(node.look(artifact_id), BlockNotFoundError)
    assert len(node.peers.asked) == 3
    stopwatch += 60.0
    assert isinstance(node.look(artifact_id), BlockNotFoundError)
    assert len(node.peers.asked) == 4


def test_a_steward_that_is_silent_is_not_asked_whether_a_copy_was_replaced(node: CustodyNode) -> None:
    artifact_id = norths(node)
    assert node.look(artifact_id) is None
    asked = 0

    async def is_replaced(*_: object) -> bool:
        nonlocal asked
        asked += 1
        raise PeerError("nobody answers")

    peers: Any = SimpleNamespace(is_replaced=is_replaced)
    node.pinner._peers = peers
    policy = word()
    node.story.net["north"].ledger.transact("LineageRegistry", "setPolicy", artifact_id, policy)
    node.follow()
    node.custody.keep_replication(policy, node.story.made.policy.replication)
    assert isinstance(node.look(artifact_id), PeerError)
    assert node.look(artifact_id) is None and asked == 1
    assert whole(node) == {artifact_id}


def test_silence_is_what_took_long_or_did_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = 100.0
    monkeypatch.setattr(custody_peers, "time", SimpleNamespace(monotonic=lambda: stopwatch))
    silent, quick, slow, away = Silent(60.0), word(), word(), word()
    for member, seconds, why in (
        (quick, 0.1, BlockNotFoundError("no")),
        (slow, 9.9, BlockNotFoundError("no")),
        (away, 0.1, PeerError("no way there")),
    ):
        with pytest.raises(type(why)), silent.noting(member):
            stopwatch += seconds
            raise why
    assert [member in silent for member in (quick, slow, away)] == [False, True, True]


def test_a_part_whose_whole_look_fails_shows_in_the_troubles(node: CustodyNode) -> None:
    async def tend() -> None:
        """Nothing to do."""

    quiet: Any = SimpleNamespace(tend=tend, troubles={})
    keeper = Keeper(node.pinner, quiet, quiet, every_s=0.01)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            while not keeper.troubles:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    node.index.close()
    trio.run(main)
    assert keeper.troubles.keys() == {"pinner"}


def test_only_what_is_left_of_bundles_that_are_not_held_goes_at_the_start(node: CustodyNode) -> None:
    held = norths(node)
    assert node.look(held) is None
    stray = ArtifactId(word())
    cid = node.store.put(b"of a bundle that is not noted", pin="held:" + stray.hex())
    node.holdings.add([cid], Purpose.HELD, stray)
    node.start()
    trio.run(node.pinner.tend)
    assert not node.store.has(cid) and node.holdings.of(cid) == []
    assert whole(node) == {held} and node.holdings.cids(Purpose.HELD, held)


def test_what_a_steward_wishes_takes_up_a_part_of_its_turn_only(
    node: CustodyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a holder that answers slowly for a steward that is away would keep its bundles from ever being looked at."""
    artifact_id = norths(node)

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(node.pinner._wishes, "read_notices", never)
    node.pinner._turn_s = 6.0
    trio.run(node.pinner.tend)
    assert whole(node) == {artifact_id}


def test_wishes_that_end_in_an_unexpected_error_end_no_turn(
    node: CustodyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_id = norths(node)

    async def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(node.pinner._wishes, "read_policies", broken)
    trio.run(node.pinner.tend)
    assert whole(node) == {artifact_id}


def test_a_letting_go_that_fails_half_way_leaves_no_copy_that_counts_as_whole(
    node: CustodyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_id = norths(node)
    trio.run(node.pinner.tend)
    blocks = {Cid.of(block): block for block in node.story.blocks[artifact_id]}
    records = {
        cid: node.store.get(cid) for cid in node.store.pinned(held_pin(artifact_id)) if cid not in blocks
    }

    def kept_for_a_job(*_: object) -> None:
        raise ContentError("some are still kept for a job that is not over")

    with monkeypatch.context() as patch:
        patch.setattr(pinner, "check_gone", kept_for_a_job)
        with pytest.raises(ContentError):
            node.pinner._let_go(artifact_id)
    assert not any(map(node.store.has, blocks))
    node.peers.blocks = blocks | records
    trio.run(node.pinner.tend)
    assert all(map(node.store.has, blocks)), "it is a holder again, and has all of it again"
