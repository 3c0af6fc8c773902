"""Which members are to hold what, from a real registry; and what a node remembers of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chain_fixture import CAST, Consortium, word
from usufruct.custody import Erased, ErasureStatement, PlacementNotice
from usufruct.records import ArtifactId, MemberStatus, Role, label
from usufruct.replication import Replication
from usufruct_node.custody_store import CustodyStore, Held
from usufruct_node.index import Index, catch_up
from usufruct_node.placement import Placements

SCOPE = label("placement-study")
BUNDLE = ArtifactId(b"\x07" * 32)


@pytest.fixture(scope="module")
def net(chain_url: str) -> Consortium:
    return Consortium(chain_url, cast=CAST | {"east": Role.AUDITOR, "west": Role.COMPUTE})


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    found = Index(tmp_path / "index.db")
    yield found
    found.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CustodyStore]:
    found = CustodyStore(tmp_path / "node.db")
    yield found
    found.close()


def test_holders_follow_policy_notice_and_registry(
    net: Consortium, index: Index, store: CustodyStore
) -> None:
    policy = word()
    bundle = net.bundle("north", net.key_domain("north"), scope=SCOPE, policy_digest=policy)
    catch_up(index, net.reader)
    placements = Placements(index, store)
    assert placements.holders(bundle) == (), "the policy was not read yet"
    assert placements.sources(bundle, but=net["south"].id) == (net["north"].id,)

    store.keep_replication(policy, Replication(copies=3))
    first, second = placements.holders(bundle)
    assert {first, second} <= {net[name].id for name in ("south", "compute", "auditor", "east", "west")}
    assert placements.is_holder(bundle, first) and not placements.is_holder(bundle, net["north"].id)
    assert placements.sources(bundle, but=first) == (net["north"].id, second)

    def notice(sequence: int, *left_out: bytes) -> bool:
        signed = PlacementNotice.sign(
            net.network, bundle, sequence=sequence, left_out=left_out, signing_key=net["north"].node_key
        )
        return store.keep_notice(signed)

    assert notice(5, first)
    assert first not in placements.holders(bundle) and second in placements.holders(bundle)
    assert not notice(4), "an older notice changes nothing"
    assert first not in placements.holders(bundle)
    assert notice(6)
    assert placements.holders(bundle) == (first, second)

    gone = next(member for member in net.members.values() if member.id == second)
    net.govern("ParticipantRegistry", "setStatus", gone.id, MemberStatus.SUSPENDED)
    catch_up(index, net.reader)
    assert second not in placements.holders(bundle) and len(placements.holders(bundle)) == 2
    net.govern("ParticipantRegistry", "setStatus", gone.id, MemberStatus.ACTIVE)
    catch_up(index, net.reader)
    assert placements.holders(bundle) == (first, second)

    net["north"].ledger.transact("LineageRegistry", "setPolicy", bundle, word())
    catch_up(index, net.reader)
    assert placements.holders(bundle) == (), "the new policy was not read yet"


def test_designations_remember_since_when_without_a_break_and_who_was_before(store: CustodyStore) -> None:
    one, two = word(), word()
    store.designate(BUNDLE, [one], 10)
    store.designate(BUNDLE, [one, two], 20)
    store.designate(BUNDLE, [two], 30)
    found = {d.org: (d.since, d.last_at, d.in_force) for d in store.designations(BUNDLE)}
    assert found == {one: (10, 20, False), two: (20, 30, True)}
    store.designate(BUNDLE, [one], 40)
    found = {d.org: (d.since, d.last_at, d.in_force) for d in store.designations(BUNDLE)}
    assert found == {one: (40, 40, True), two: (20, 30, False)}


def test_a_failed_holder_counts_again_when_its_time_is_over(store: CustodyStore) -> None:
    org = word()
    store.fail(BUNDLE, org, 100)
    assert store.failed(BUNDLE, 99) == (org,)
    assert store.failed(BUNDLE, 100) == ()
    store.fail(BUNDLE, org, 200)
    assert store.failed(BUNDLE, 150) == (org,)


def test_an_erasure_from_before_the_last_designation_is_still_awaited(
    net: Consortium, store: CustodyStore
) -> None:
    south = net["south"]

    def state(at: int) -> None:
        store.keep_erasure(
            ErasureStatement.sign(
                net.network,
                BUNDLE,
                south.id,
                what=Erased.COPY,
                blocks=1,
                erased_at=at,
                signing_key=south.node_key,
            )
        )

    store.designate(BUNDLE, [south.id], 50)
    assert store.awaited(BUNDLE) == [south.id]
    state(60)
    assert store.awaited(BUNDLE) == []
    store.designate(BUNDLE, [south.id], 70)
    assert store.awaited(BUNDLE) == [south.id]
    state(80)
    state(55)
    assert store.awaited(BUNDLE) == [] and store.erasures(BUNDLE)[0].erased_at == 80


def test_what_is_held_survives_a_restart(tmp_path: Path) -> None:
    store = CustodyStore(tmp_path / "node.db")
    begun = Held(artifact_id=BUNDLE, blocks=7, size_bytes=0)
    store.hold(begun)
    store.close()
    again = CustodyStore(tmp_path / "node.db")
    assert again.held() == [begun]
    again.hold(Held(artifact_id=BUNDLE, blocks=7, size_bytes=900))
    again.hold(begun)
    assert again.held() == [Held(artifact_id=BUNDLE, blocks=7, size_bytes=900)]
    again.let_go(BUNDLE)
    assert again.held() == []
    again.close()
