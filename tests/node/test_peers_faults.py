"""Fetches over a bad network: late, lossy, partitioned, one-way, churning, with holders that restart again and again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from peer_network import MEMBERS, Network, in_network, made_blocks

from fault_proxy import FaultProxy
from usufruct.content import Cid
from usufruct.errors import PeerError
from usufruct_node.peers import Deadlines, FetchReport, Holder, PeerHost, Quota, fetch_blocks

HELD = made_blocks(200)
CIDS = list(HELD)
QUICK = Deadlines(connect=3.0, negotiate=3.0, request=3.0, block=3.0)
PACE = Quota(bytes_per_s=400_000.0)
"""Slow enough that faults fall into the middle of a transfer."""


class Kept:
    """What was kept, and how often."""

    def __init__(self) -> None:
        self.blocks: dict[Cid, bytes] = {}
        self.puts = 0

    def missing(self, cids: Sequence[Cid]) -> list[Cid]:
        return [cid for cid in cids if cid not in self.blocks]

    def keep(self, blocks: Sequence[tuple[Cid, bytes]]) -> None:
        for cid, data in blocks:
            cid.check(data)
            self.puts += 1
            self.blocks[cid] = data


def port_of(host: PeerHost) -> int:
    return int(host.multiaddr.split("/")[4])


async def through(network: Network, host: PeerHost) -> tuple[FaultProxy, Holder]:
    proxy = FaultProxy(port_of(host))
    port = await network.nursery.start(proxy.run)
    return proxy, Holder(host.peer_id, f"/ip4/127.0.0.1/tcp/{port}")


async def fetch(
    client: PeerHost, holders: Sequence[Holder], kept: Kept, *, stall_s: float = 10, patience_s: float = 30
) -> FetchReport:
    return await fetch_blocks(
        client, holders, CIDS, missing=kept.missing, keep=kept.keep, stall_s=stall_s, patience_s=patience_s
    )


def test_a_fetch_over_a_slow_and_lossy_link_completes() -> None:
    async def scenario(network: Network) -> None:
        proxy, holder = await through(network, await network.start(0, read_block=HELD.get))
        for way in (proxy.up, proxy.down):
            way.delay_s, way.loss = 0.1, 0.05
        client, kept = await network.start(1), Kept()
        report = await fetch(client, [holder], kept)
        assert kept.blocks == HELD
        assert kept.puts == report.blocks == len(HELD)
        assert proxy.accepted == 1

    in_network(scenario)


@pytest.mark.parametrize(
    "blocked", [("up", "down"), ("up",), ("down",)], ids=["partition", "one way", "other way"]
)
def test_a_partition_in_mid_transfer_that_heals_is_waited_for(blocked: Sequence[str]) -> None:
    async def scenario(network: Network) -> None:
        proxy, holder = await through(network, await network.start(0, read_block=HELD.get, quota=PACE))
        client, kept = await network.start(1, deadlines=QUICK), Kept()

        async def trouble() -> None:
            while not kept.blocks:
                await trio.sleep(0.01)
            ways = [getattr(proxy, name) for name in blocked]
            for way in ways:
                way.blocked = True
            await trio.sleep(2)
            for way in ways:
                way.blocked = False

        network.nursery.start_soon(trouble)
        await fetch(client, [holder], kept, stall_s=1)
        assert kept.blocks == HELD

    in_network(scenario)


def test_a_partition_that_does_not_heal_fails_cleanly_or_falls_to_another_holder() -> None:
    async def scenario(network: Network) -> None:
        proxy, holder = await through(network, await network.start(0, read_block=HELD.get, quota=PACE))
        client, kept = await network.start(1, deadlines=QUICK), Kept()

        async def trouble() -> None:
            while not kept.blocks:
                await trio.sleep(0.01)
            proxy.up.blocked = proxy.down.blocked = True

        network.nursery.start_soon(trouble)
        with pytest.raises(PeerError):
            await fetch(client, [holder], kept, stall_s=1, patience_s=1)
        assert 0 < len(kept.blocks) < len(HELD)
        before = len(kept.blocks)
        other = await network.start(2, read_block=HELD.get)
        report = await fetch(client, [holder, Holder(other.peer_id, other.multiaddr)], kept, stall_s=1)
        assert kept.blocks == HELD
        assert (report.held, report.by_holder) == (before, {other.peer_id: len(HELD) - before})

    in_network(scenario)


@pytest.mark.parametrize("blocked", ["up", "down"])
def test_a_link_that_works_one_way_only_fails_within_the_deadlines(blocked: str) -> None:
    async def scenario(network: Network) -> None:
        proxy, holder = await through(network, await network.start(0, read_block=HELD.get))
        getattr(proxy, blocked).blocked = True
        client, kept = await network.start(1, deadlines=QUICK), Kept()
        with pytest.raises(PeerError):
            await fetch(client, [holder], kept, patience_s=0.1)
        assert kept.blocks == {}
        assert client.connected() == []

    in_network(scenario)


def test_a_holder_that_refused_too_early_is_asked_again_while_another_is_silent() -> None:
    async def scenario(network: Network) -> None:
        allowed, asked = trio.Event(), 0

        def authorise(peer_id: str, cid: Cid) -> bool:
            nonlocal asked
            asked += 1
            return allowed.is_set()

        behind = await network.start(0, read_block=HELD.get, authorise=authorise)
        proxy, silent = await through(network, await network.start(2, read_block=HELD.get))
        proxy.down.blocked = True
        client, kept = await network.start(1), Kept()

        async def catch_up() -> None:
            while not asked:
                await trio.sleep(0.01)
            allowed.set()

        network.nursery.start_soon(catch_up)
        with trio.fail_after(8):
            report = await fetch(client, [Holder(behind.peer_id, behind.multiaddr), silent], kept)
        assert kept.blocks == HELD
        assert report.by_holder == {behind.peer_id: len(HELD)}
        assert asked > len(HELD), "nothing was refused at first"

    in_network(scenario)


def test_connections_that_are_cut_again_and_again_cost_no_block_twice() -> None:
    async def scenario(network: Network) -> None:
        proxy, holder = await through(network, await network.start(0, read_block=HELD.get, quota=PACE))
        client, kept = await network.start(1), Kept()

        async def churn() -> None:
            for _ in range(6):
                await trio.sleep(0.6)
                await proxy.cut()

        network.nursery.start_soon(churn)
        await fetch(client, [holder], kept)
        assert kept.blocks == HELD
        assert kept.puts == len(HELD)
        assert proxy.accepted >= 2

    in_network(scenario)


def test_holders_that_restart_in_a_storm_are_used_whenever_they_are_there() -> None:
    async def scenario(network: Network) -> None:
        ready = trio.Event()
        ports: list[int] = [0, 0]

        async def storm(number: int) -> None:
            """Start the holder on its port, again and again, each time for a moment."""
            for life in range(50):
                async with trio.open_nursery() as nursery:
                    host = PeerHost(
                        identity=MEMBERS[number],
                        is_member=network.members.__contains__,
                        authorise=lambda peer_id, cid: True,
                        read_block=HELD.get,
                        listen_port=ports[number],
                        quota=PACE,
                    )
                    await nursery.start(host.run)
                    ports[number] = port_of(host)
                    if all(ports):
                        ready.set()
                    await trio.sleep(1 + 0.3 * number if life < 6 else trio.current_time())
                    nursery.cancel_scope.cancel()

        for number in range(2):
            network.nursery.start_soon(storm, number)
        await ready.wait()
        holders = [
            Holder(MEMBERS[number].peer_id, f"/ip4/127.0.0.1/tcp/{port}") for number, port in enumerate(ports)
        ]
        client, kept = await network.start(3), Kept()
        await fetch(client, holders, kept, stall_s=2)
        assert kept.blocks == HELD

    in_network(scenario)
