"""Fetching from several holders at once, some of which stall, lie, vanish or have half of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from peer_network import MEMBERS, Network, in_network, made_blocks
from trio.testing import MockClock

from usufruct.content import Cid, EmbeddedBlockStore
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    InputError,
    PeerError,
    PeerRefusedError,
    StoreFullError,
    UsufructError,
)
from usufruct_node.peers import Deadlines, FetchReport, Holder, PeerHost, Quota, fetch_blocks
from usufruct_node.peers.connection import MemberStream
from usufruct_node.peers.fetching import KEEP_AFTER_SECONDS, WINDOW, _Plan
from usufruct_node.peers.protocol import Status, encode_head
from usufruct_node.peers.shelf import Answer

HELD = made_blocks(200)
CIDS = list(HELD)
QUICK = Deadlines(connect=2.0, negotiate=2.0, idle=5.0, request=2.0, block=2.0)


class Shelf:
    """Where fetched blocks go: remembers what was kept, and refuses what is not genuine."""

    def __init__(self) -> None:
        self.kept: dict[Cid, bytes] = {}
        self.times_kept = 0

    def missing(self, cids: Sequence[Cid]) -> list[Cid]:
        return [cid for cid in cids if cid not in self.kept]

    def keep(self, blocks: Sequence[tuple[Cid, bytes]]) -> None:
        for cid, data in blocks:
            cid.check(data)
            self.kept[cid] = data
            self.times_kept += 1


def at(*hosts: PeerHost) -> list[Holder]:
    return [Holder(host.peer_id, host.multiaddr) for host in hosts]


async def fetch(
    client: PeerHost,
    hosts: Sequence[PeerHost],
    shelf: Shelf,
    cids: Sequence[Cid] = CIDS,
    *,
    patience_s: float = 1.0,
) -> FetchReport:
    return await fetch_blocks(
        client,
        at(*hosts),
        cids,
        missing=shelf.missing,
        keep=shelf.keep,
        stall_s=1.5,
        patience_s=patience_s,
    )


def test_three_holders_share_the_work() -> None:
    async def scenario(network: Network) -> None:
        # A steady pace makes sure that none of them is done before the others have begun.
        pace = Quota(bytes_per_s=200_000.0)
        hosts = [await network.start(n, read_block=HELD.get, quota=pace) for n in range(3)]
        client, shelf = await network.start(3), Shelf()
        report = await fetch(client, hosts, shelf)
        assert shelf.kept == HELD
        assert report.blocks == len(HELD) == sum(report.by_holder.values())
        assert report.size_bytes == sum(map(len, HELD.values()))
        assert set(report.by_holder) == {host.peer_id for host in hosts}
        assert report.struck == {}

    in_network(scenario)


def test_each_block_may_be_with_another_holder() -> None:
    shares = [{cid: HELD[cid] for cid in CIDS[n::3]} for n in range(3)]

    async def scenario(network: Network) -> None:
        hosts = [await network.start(n, read_block=share.get) for n, share in enumerate(shares)]
        shelf = Shelf()
        report = await fetch(await network.start(3), hosts, shelf)
        assert shelf.kept == HELD
        assert report.by_holder == {
            host.peer_id: len(share) for host, share in zip(hosts, shares, strict=True)
        }

    in_network(scenario)


async def stall(stream: MemberStream, cids: list[Cid]) -> None:
    await trio.sleep_forever()


async def lie(stream: MemberStream, cids: list[Cid]) -> None:
    for cid in cids:
        data = HELD[cid][:-1] + b"!"
        await stream.write(encode_head(Status.BLOCK, len(data)) + data)


async def lie_late(stream: MemberStream, cids: list[Cid]) -> None:
    for n, cid in enumerate(cids):
        data = HELD[cid] if n < 9 else HELD[cid][:-1] + b"!"
        await stream.write(encode_head(Status.BLOCK, len(data)) + data)


async def vanish(stream: MemberStream, cids: list[Cid]) -> None:
    await stream.write(encode_head(Status.BLOCK, len(HELD[cids[0]])) + HELD[cids[0]][:1000])
    raise PeerError("gone")


async def oversize(stream: MemberStream, cids: list[Cid]) -> None:
    await stream.write(b"\0\x7f\xff\xff\xff" + bytes(100_000))


async def out_of_order(stream: MemberStream, cids: list[Cid]) -> None:
    for cid in reversed(cids):
        await stream.write(encode_head(Status.BLOCK, len(HELD[cid])) + HELD[cid])


async def repeat(stream: MemberStream, cids: list[Cid]) -> None:
    for _ in cids:
        await stream.write(encode_head(Status.BLOCK, len(HELD[cids[0]])) + HELD[cids[0]])


async def drip(stream: MemberStream, cids: list[Cid]) -> None:
    await stream.write(encode_head(Status.BLOCK, 27_000))
    while True:
        await stream.write(b"x")
        await trio.sleep(0.2)


HOSTILE = [stall, lie, lie_late, vanish, oversize, out_of_order, repeat, drip]


@pytest.mark.parametrize("behaviour", HOSTILE, ids=lambda one: one.__name__)
def test_a_hostile_holder_beside_an_honest_one_costs_nothing_but_time(behaviour: object) -> None:
    async def scenario(network: Network) -> None:
        honest = await network.start(0, read_block=HELD.get, quota=Quota(bytes_per_s=400_000.0))
        hostile = await network.start_hostile(1, behaviour)  # type: ignore[arg-type]
        client, shelf = await network.start(2, deadlines=QUICK), Shelf()
        await fetch(client, [hostile, honest], shelf)
        assert shelf.kept == HELD
        if behaviour in (lie, lie_late, out_of_order, repeat):
            assert "wrong block" in client.refusal_counts()

    in_network(scenario)


def test_what_arrived_from_a_liar_while_its_lie_was_found_out_is_asked_of_another() -> None:
    class SlowShelf(Shelf):
        def keep(self, blocks: Sequence[tuple[Cid, bytes]]) -> None:
            time.sleep(0.5)
            super().keep(blocks)

    async def scenario(network: Network) -> None:
        honest = await network.start(0, read_block=HELD.get, quota=Quota(bytes_per_s=400_000.0))
        hostile = await network.start_hostile(1, repeat)
        client, shelf = await network.start(2, deadlines=QUICK), SlowShelf()
        report = await fetch(client, [hostile, honest], shelf)
        assert shelf.kept == HELD
        assert set(report.struck) == {hostile.peer_id}

    in_network(scenario, seconds=30)


@pytest.mark.parametrize("behaviour", HOSTILE, ids=lambda one: one.__name__)
def test_a_hostile_holder_alone_is_a_typed_error_and_nothing_false_is_kept(behaviour: object) -> None:
    async def scenario(network: Network) -> None:
        hostile = await network.start_hostile(1, behaviour)  # type: ignore[arg-type]
        client, shelf = await network.start(2, deadlines=QUICK), Shelf()
        with pytest.raises((PeerError, BlockMismatchError)):
            await fetch(client, [hostile], shelf)
        assert shelf.kept.items() <= HELD.items()
        if behaviour is lie_late:
            assert len(shelf.kept) >= 9

    in_network(scenario)


class _Liars:
    """Opens lines of which one answers at once and falsely, the other truthfully once the first was struck off."""

    def __init__(self, blocks: dict[Cid, bytes]) -> None:
        self.blocks = blocks
        self.struck = trio.Event()

    async def line(self, peer_id: str, multiaddr: str) -> _Scripted:
        return _Scripted(self, false=peer_id == "false")

    def refuse(self, reason: str, peer_id: str, cid: Cid | None = None) -> None:
        self.struck.set()


class _Scripted:
    def __init__(self, lines: _Liars, *, false: bool) -> None:
        self._lines, self._false = lines, false
        self._asked: list[Cid] = []

    async def ask(self, cids: Sequence[Cid]) -> None:
        self._asked += cids

    async def take(self) -> list[Answer]:
        if not self._false:
            await self._lines.struck.wait()
            await trio.sleep(0.5)
        asked, self._asked = self._asked, []
        blocks = self._lines.blocks
        return [
            Answer(cid, Status.BLOCK, b"a lie" if self._false and not n else blocks[cid])
            for n, cid in enumerate(asked)
        ]

    async def abandon(self) -> None:
        pass


def test_what_a_liar_was_looking_up_when_it_was_struck_off_is_fetched_all_the_same() -> None:
    blocks = {Cid.of(data): data for data in (n.to_bytes(4) for n in range(3 * WINDOW + 100))}
    cids, shelf = list(blocks), Shelf()
    # The end of the first window is here, and the second as a whole: it is looked up, slowly, when the lie comes out.
    shelf.kept = {cid: blocks[cid] for cid in cids[128 : 2 * WINDOW]}

    def missing(asked: Sequence[Cid]) -> list[Cid]:
        if asked[0] == cids[WINDOW]:
            time.sleep(0.3)
        return shelf.missing(asked)

    async def main() -> FetchReport:
        holders = [Holder("false", ""), Holder("true", "")]
        return await fetch_blocks(_Liars(blocks), holders, cids, missing=missing, keep=shelf.keep)

    report = trio.run(main)
    assert list(report.struck) == ["false"]
    assert shelf.kept == blocks


class _Honest:
    """A line that answers whatever was asked, at once."""

    def __init__(self, blocks: dict[Cid, bytes]) -> None:
        self._blocks, self._asked = blocks, list[Cid]()

    async def line(self, peer_id: str, multiaddr: str) -> _Honest:
        return self

    async def ask(self, cids: Sequence[Cid]) -> None:
        self._asked += cids

    async def take(self) -> list[Answer]:
        asked, self._asked = self._asked, []
        return [Answer(cid, Status.BLOCK, self._blocks[cid]) for cid in asked]

    async def abandon(self) -> None:
        pass

    def refuse(self, reason: str, peer_id: str, cid: Cid | None = None) -> None:
        raise AssertionError(reason)


def test_blocks_that_are_looked_up_when_all_others_have_arrived_are_fetched_too() -> None:
    blocks = {Cid.of(data): data for data in (n.to_bytes(4) for n in range(WINDOW + 10))}
    cids, shelf = list(blocks), Shelf()

    def missing(asked: Sequence[Cid]) -> list[Cid]:
        if asked[0] == cids[WINDOW]:
            until = time.monotonic() + 10
            while len(shelf.kept) < WINDOW and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.3)
        return shelf.missing(asked)

    async def main() -> FetchReport:
        return await fetch_blocks(
            _Honest(blocks), [Holder("true", "")], cids, missing=missing, keep=shelf.keep
        )

    trio.run(main)
    assert shelf.kept == blocks


def test_looking_up_what_is_here_already_can_be_cancelled() -> None:
    cids = [Cid.of(n.to_bytes(4)) for n in range(20 * WINDOW)]
    looked_up = 0

    def missing(asked: Sequence[Cid]) -> list[Cid]:
        nonlocal looked_up
        looked_up += len(asked)
        time.sleep(0.1)
        return []

    async def main() -> None:
        with trio.move_on_after(0.35) as scope:
            await fetch_blocks(_Liars({}), [Holder("true", "")], cids, missing=missing, keep=Shelf().keep)
        assert scope.cancelled_caught

    trio.run(main)
    assert looked_up < len(cids)


class _Partial:
    """Opens lines to holders of which one has nothing and says so block by block, and the other gives them all."""

    def __init__(self, blocks: dict[Cid, bytes]) -> None:
        self.blocks = blocks

    async def line(self, peer_id: str, multiaddr: str) -> _OneByOne:
        return _OneByOne({} if peer_id == "empty" else self.blocks)

    def refuse(self, reason: str, peer_id: str, cid: Cid | None = None) -> None:
        pass


class _OneByOne:
    def __init__(self, blocks: dict[Cid, bytes]) -> None:
        self._blocks = blocks
        self._asked: list[Cid] = []

    async def ask(self, cids: Sequence[Cid]) -> None:
        self._asked += cids

    async def take(self) -> list[Answer]:
        # Refusals are had at once, blocks slowly.
        await trio.sleep(0.0005 if self._blocks else 0)
        cid = self._asked.pop(0)
        data = self._blocks.get(cid)
        return [Answer(cid, Status.NOT_FOUND) if data is None else Answer(cid, Status.BLOCK, data)]

    async def abandon(self) -> None:
        pass


class _CountingDict(dict[Cid, dict[str, UsufructError]]):
    """Counts the walks over all of it."""

    walks = 0

    def items(self) -> Any:
        self.walks += 1
        return super().items()

    def __iter__(self) -> Iterator[Cid]:
        self.walks += 1
        return super().__iter__()


class _CountingQueue(deque[Cid]):
    """Counts what is taken out."""

    taken = 0

    def popleft(self) -> Cid:
        self.taken += 1
        return super().popleft()


def test_a_refusal_costs_no_walk_over_all_that_is_open_or_queued() -> None:
    blocks = {Cid.of(data): data for data in (n.to_bytes(4) for n in range(WINDOW))}
    shelf, seen, queue = Shelf(), _CountingDict(), _CountingQueue()

    async def main() -> FetchReport:
        holders = [Holder("empty", ""), Holder("full", "")]
        plan = _Plan(_Partial(blocks), holders, iter(blocks), shelf.missing, shelf.keep, 10.0, 3.0)
        plan._open, plan._queue = seen, queue
        await plan.run()
        return plan.report

    report = trio.run(main)
    assert shelf.kept == blocks
    assert report.by_holder == {"full": WINDOW}
    assert seen.walks < 10
    assert queue.taken < 10 * WINDOW


class _Drip:
    """Lines to a holder that gives four blocks, one each time that short runs are kept, and then is silent."""

    def __init__(self, blocks: dict[Cid, bytes], clock: MockClock) -> None:
        self.blocks, self.clock = blocks, clock
        self.owed: deque[Cid] = deque()
        self.given: list[Cid] = []
        self.silent = trio.Event()

    async def line(self, peer_id: str, multiaddr: str) -> _Drip:
        return self

    async def ask(self, cids: Sequence[Cid]) -> None:
        self.owed.extend(cids)

    async def take(self) -> list[Answer]:
        if len(self.given) == 4:
            self.silent.set()
            await trio.sleep_forever()
        self.clock.jump(KEEP_AFTER_SECONDS)
        self.given.append(self.owed.popleft())
        return [Answer(self.given[-1], Status.BLOCK, self.blocks[self.given[-1]])]

    async def abandon(self) -> None:
        """Nothing to give up."""

    def refuse(self, *_: object) -> None:
        """Nobody is refused here."""


def test_what_came_of_a_slow_fetch_that_is_given_up_stays() -> None:
    blocks = {Cid.of(data): data for data in (n.to_bytes(4) for n in range(20))}
    shelf, clock = Shelf(), MockClock()

    async def main() -> None:
        lines = _Drip(blocks, clock)
        plan = _Plan(lines, [Holder("slow", "")], iter(blocks), shelf.missing, shelf.keep, 10.0, 3.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plan.run)
            await lines.silent.wait()
            nursery.cancel_scope.cancel()
        assert list(shelf.kept) == lines.given

    trio.run(main, clock=clock)


def test_a_holder_killed_in_mid_transfer_is_replaced_by_the_others(tmp_path: Path) -> None:
    with serving(1) as doomed, serving(2) as other:

        async def scenario(network: Network) -> None:
            client = await network.start(0)
            with EmbeddedBlockStore(tmp_path / "store") as store:
                calls = 0

                def keep(blocks: Sequence[tuple[Cid, bytes]]) -> None:
                    nonlocal calls
                    calls += 1
                    if calls == 2:
                        doomed.kill()
                    store.put_many([data for _, data in blocks])

                report = await fetch_blocks(
                    client,
                    [await doomed.holder(), await other.holder()],
                    BIG_CIDS,
                    missing=lambda cids: [cid for cid in cids if not store.has(cid)],
                    keep=keep,
                    patience_s=0.5,
                )
                assert set(store.cids()) == set(BIG_CIDS)
                assert report.by_holder.keys() >= {MEMBERS[2].peer_id}

        in_network(scenario)


def test_a_fetch_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving(1) as server:

        async def scenario(network: Network) -> None:
            client = await network.start(0)
            with EmbeddedBlockStore(tmp_path / "store") as store:
                given: list[Cid] = []

                def keep(blocks: Sequence[tuple[Cid, bytes]]) -> None:
                    store.put_many([data for _, data in blocks])
                    given.extend(cid for cid, _ in blocks)
                    if scope is not None and len(given) >= 200:
                        trio.from_thread.run_sync(scope.cancel)

                async def go() -> FetchReport:
                    return await fetch_blocks(
                        client,
                        [await server.holder()],
                        BIG_CIDS,
                        missing=lambda cids: [cid for cid in cids if not store.has(cid)],
                        keep=keep,
                    )

                scope: trio.CancelScope | None = trio.CancelScope()
                with scope:
                    await go()
                assert scope.cancelled_caught
                before = sum(store.has(cid) for cid in BIG_CIDS)
                assert 200 <= before < len(BIG_CIDS)
                scope = None
                report = await go()
                assert report.held == before
                assert report.blocks == len(BIG_CIDS) - before
                assert len(given) == len(set(given)) == len(BIG_CIDS)

        in_network(scenario)


def test_a_holder_that_comes_back_within_the_patience_is_used_again() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get)
        client, shelf = await network.start(1), Shelf()
        cut = False

        def keep(blocks: Sequence[tuple[Cid, bytes]]) -> None:
            nonlocal cut
            shelf.keep(blocks)
            if not cut:
                cut = True
                trio.from_thread.run(server.close_peer, client.peer_id)

        await fetch_blocks(client, at(server), CIDS, missing=shelf.missing, keep=keep, patience_s=20)
        assert cut
        assert shelf.kept == HELD

    in_network(scenario)


def test_what_nobody_has_or_gives_is_named_by_the_error() -> None:
    absent = Cid.of(b"nobody has this")

    async def scenario(network: Network) -> None:
        first, second = [await network.start(n, read_block=HELD.get) for n in range(2)]
        strict = await network.start(2, authorise=lambda peer_id, cid: False)
        client = await network.start(3)
        with pytest.raises(BlockNotFoundError, match=str(absent)):
            await fetch(client, [first, second], Shelf(), [CIDS[0], absent])
        with pytest.raises(BlockNotFoundError):
            await fetch(client, [first], Shelf(), [absent])
        with pytest.raises(PeerRefusedError):
            await fetch(client, [first, strict], Shelf(), [absent])
        shelf = Shelf()
        await fetch(client, [strict, first], shelf)
        assert shelf.kept == HELD
        with pytest.raises(BlockNotFoundError, match="no holder"):
            await fetch(client, [], Shelf())

    in_network(scenario)


def test_a_full_store_ends_the_fetch_at_once() -> None:
    def keep(blocks: Sequence[tuple[Cid, bytes]]) -> None:
        raise StoreFullError("full")

    async def scenario(network: Network) -> None:
        server, client = await network.start(0, read_block=HELD.get), await network.start(1)
        with pytest.raises(StoreFullError):
            await fetch_blocks(client, at(server), CIDS, missing=lambda cids: cids, keep=keep)

    in_network(scenario)


def test_nothing_is_asked_of_anybody_when_all_is_here() -> None:
    async def scenario(network: Network) -> None:
        client, shelf = await network.start(0), Shelf()
        shelf.kept.update(HELD)
        report = await fetch(client, [], shelf)
        assert (report.held, report.blocks) == (len(HELD), 0)
        with pytest.raises(InputError, match="twice"):
            await fetch_blocks(
                client,
                [Holder("x", "y"), Holder("x", "z")],
                CIDS,
                missing=shelf.missing,
                keep=shelf.keep,
            )

    in_network(scenario)


def test_memory_stays_flat_however_many_blocks_there_are() -> None:
    block = bytes(1_000_000)
    served = Cid.of(block)
    taken = 0

    def endless() -> Iterator[Cid]:
        nonlocal taken
        for n in range(150_000):
            taken += 1
            yield Cid.of(n.to_bytes(8))
        yield served

    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=lambda cid: block)
        client = await network.start(1)
        before = psutil.Process().memory_info().rss
        report = await fetch_blocks(
            client,
            at(server),
            endless(),
            missing=lambda cids: [cid for cid in cids if cid == served],
            keep=lambda blocks: None,
        )
        assert (report.blocks, report.held, taken) == (1, 150_000, 150_000)
        assert psutil.Process().memory_info().rss - before < 30_000_000

    in_network(scenario)


BIG_CIDS = list(made_blocks(741))

SERVER = """
import sys, trio
from peer_network import MEMBERS, made_blocks
from usufruct_node.peers import PeerHost
held = made_blocks(741)
async def main():
    host = PeerHost(identity=MEMBERS[int(sys.argv[1])], is_member=lambda peer: True,
                    authorise=lambda peer, cid: True, read_block=held.get)
    async with trio.open_nursery() as nursery:
        print(await nursery.start(host.run), flush=True)
trio.run(main)
"""


class serving:  # noqa: N801
    """A holder in a process of its own."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> serving:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self._number)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    async def holder(self) -> Holder:
        assert self._process.stdout is not None
        address = getattr(self, "_address", None) or await trio.to_thread.run_sync(
            self._process.stdout.readline
        )
        self._address = address
        return Holder(MEMBERS[self._number].peer_id, address.strip())

    def kill(self) -> None:
        self._process.kill()
