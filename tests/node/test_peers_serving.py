"""What the serving side holds in memory while many members fetch and none of them reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from usufruct.content import Cid
from usufruct_node.peers import Deadlines
from usufruct_node.peers.protocol import MAX_CIDS, Status, encode_request
from usufruct_node.peers.serving import IN_HAND_BYTES, BlockServer
from usufruct_node.peers.shelf import BATCH_BYTES, Answer

BLOCK_BYTES = 16 * 1024
WANTED = [Cid.of(bytes([number])) for number in range(MAX_CIDS)]


class CountingShelf:
    """Gives blocks of one size, and counts the bytes that it gave."""

    def __init__(self) -> None:
        self.given_bytes = 0

    async def take(self, peer_id: str, cids: Sequence[Cid], *, size_bytes: int) -> list[Answer]:
        await trio.lowlevel.checkpoint()
        count = min(len(cids), -(-size_bytes // BLOCK_BYTES))
        self.given_bytes += count * BLOCK_BYTES
        return [Answer(cid, Status.BLOCK, bytes(BLOCK_BYTES)) for cid in cids[:count]]


class DeafStream:
    """A member's stream that asks for everything and takes nothing, until it is let."""

    def __init__(self, may_take: trio.Event) -> None:
        self._question = encode_request(WANTED)
        self._may_take = may_take
        self.taken_bytes = 0

    async def read(self, n: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data, self._question = self._question[:n], self._question[n:]
        return data

    async def write(self, data: bytes) -> None:
        await self._may_take.wait()
        self.taken_bytes += len(data)


@pytest.mark.parametrize("members", [1, 8, 32, 200, 500])
def test_what_many_slow_members_make_a_node_hold_is_bounded_for_all_of_them_together(members: int) -> None:
    async def scenario() -> None:
        shelf: Any = CountingShelf()
        server = BlockServer(shelf, Deadlines())
        may_take = trio.Event()
        streams: list[Any] = [DeafStream(may_take) for _ in range(members)]
        async with trio.open_nursery() as nursery:
            for number, stream in enumerate(streams):
                nursery.start_soon(server.answer, str(number), stream)
            await trio.sleep(1)
            # What is being sent and what comes next; the first streams to come had more of it to themselves.
            share = min(members * BATCH_BYTES, IN_HAND_BYTES)
            assert shelf.given_bytes <= 2 * (share + members * BLOCK_BYTES)
            assert shelf.given_bytes >= 2 * members * BLOCK_BYTES, "nobody waits for another"
            may_take.set()
        assert min(stream.taken_bytes for stream in streams) > MAX_CIDS * BLOCK_BYTES
        assert shelf.given_bytes == members * MAX_CIDS * BLOCK_BYTES

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
