"""Quotas: what a member may take in a time, refused by type, counted, and no other member's loss."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import trio
from peer_network import MEMBERS, Network, in_network, made_blocks

from usufruct.content import Cid
from usufruct.errors import PeerQuotaError
from usufruct_node.peers import Deadlines, Holder, PeerHost, PeerIdentity, Quota, fetch_blocks
from usufruct_node.peers.bitswap_messages import PROTOCOL_ID as BITSWAP
from usufruct_node.peers.bitswap_messages import encode_wants
from usufruct_node.peers.quota import BURST_SECONDS, PATIENCE_SECONDS, Quotas

HELD = made_blocks(100)
CIDS = list(HELD)
PATIENT = Deadlines(connect=100, negotiate=100, request=100, block=100)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_member_waits_for_its_debt_and_is_refused_when_that_is_long() -> None:
    clock = Clock()
    quotas = Quotas(Quota(blocks_per_s=10, bytes_per_s=1000), clock)
    assert quotas.wait_s("a") == 0
    quotas.charge("a", blocks=1, size_bytes=int(1000 * BURST_SECONDS))
    assert quotas.wait_s("a") == 0
    quotas.charge("a", blocks=1, size_bytes=1000)
    assert quotas.wait_s("a") == pytest.approx(1)
    quotas.charge("a", blocks=1, size_bytes=int(1000 * PATIENCE_SECONDS))
    assert quotas.wait_s("a") is None
    assert quotas.wait_s("b") == 0
    clock.now += 1.5
    assert quotas.wait_s("a") == pytest.approx(1 + PATIENCE_SECONDS - 1.5)
    clock.now += 10_000
    quotas.charge("a", blocks=int(10 * BURST_SECONDS) + 5, size_bytes=0)
    assert quotas.wait_s("a") == pytest.approx(0.5)


def test_a_daily_quota_comes_back_over_the_day() -> None:
    clock = Clock()
    quotas = Quotas(Quota(bytes_per_day=86_400), clock)
    quotas.charge("a", blocks=1, size_bytes=90_000)
    assert quotas.wait_s("a") is None
    clock.now += 3_600
    assert quotas.wait_s("a") == 0


async def fetch(client: PeerHost, server: PeerHost, cids: Sequence[Cid]) -> None:
    await fetch_blocks(
        client,
        [Holder(server.peer_id, server.multiaddr)],
        cids,
        missing=list,
        keep=lambda blocks: None,
        patience_s=0.3,
    )


def test_a_member_over_its_daily_quota_is_refused_by_type_and_others_are_not() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get, quota=Quota(bytes_per_day=1_000_000))
        greedy, modest = await network.start(1), await network.start(2)
        with pytest.raises(PeerQuotaError):
            await fetch(greedy, server, CIDS)
        assert server.refusal_counts()["over quota"] >= 1
        assert {one.peer_id for one in server.refusals()} == {MEMBERS[1].peer_id}
        await fetch(modest, server, CIDS[:20])
        given = server.shelf.given
        assert given[MEMBERS[2].peer_id] == sum(len(HELD[cid]) for cid in CIDS[:20])
        assert 1_000_000 <= given[MEMBERS[1].peer_id] < 2_000_000

    in_network(scenario)


def test_a_member_at_its_rate_is_slowed_down_not_refused() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get, quota=Quota(bytes_per_s=400_000.0))
        client = await network.start(1)
        begun = time.monotonic()
        await fetch(client, server, CIDS)
        # 2.7 MB at 0.4 MB/s, of which the first two megabytes are free; no upper bound, machines are slow.
        assert time.monotonic() - begun > 0.5
        assert server.refusals() == []

    in_network(scenario)


def test_refused_requests_use_up_the_quota_too() -> None:
    asked: list[Cid] = []

    def authorise(peer_id: str, cid: Cid) -> bool:
        asked.append(cid)
        return False

    async def scenario(network: Network) -> None:
        server = await network.start(0, authorise=authorise, quota=Quota(blocks_per_s=1.0))
        client = await network.start(1)
        stream = await client.open_stream(server.peer_id, server.multiaddr, BITSWAP)
        for start in range(0, 100, 10):
            await stream.write(encode_wants(CIDS[start : start + 10]))
        with trio.fail_after(20):
            while "over quota" not in server.refusal_counts():
                await trio.sleep(0.01)
        assert len(asked) < 100

    in_network(scenario)


def test_sixty_members_at_once_are_served_without_an_error() -> None:
    identities = [PeerIdentity.from_seed(n.to_bytes(32)) for n in range(1000, 1060)]

    async def scenario(network: Network) -> None:
        network.members |= {identity.peer_id for identity in identities}
        server = await network.start(0, read_block=HELD.get, deadlines=PATIENT)

        async def one(identity: PeerIdentity) -> None:
            host = PeerHost(
                identity=identity,
                is_member=network.members.__contains__,
                authorise=lambda peer_id, cid: False,
                read_block=lambda cid: None,
                deadlines=PATIENT,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(host.run)
                kept: dict[Cid, bytes] = {}
                await fetch_blocks(
                    host,
                    [Holder(server.peer_id, server.multiaddr)],
                    CIDS[:3],
                    missing=list,
                    keep=kept.update,
                    patience_s=30,
                    stall_s=60,
                )
                assert kept == {cid: HELD[cid] for cid in CIDS[:3]}
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for identity in identities:
                nursery.start_soon(one, identity)
        assert server.refusals() == []

    in_network(scenario)
