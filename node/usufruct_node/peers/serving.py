"""The serving side of the block protocol: requests in, answers out, the next ones looked up while the last are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from usufruct.errors import PeerError, PeerTooSlowError
from usufruct_node.peers.connection import READ_BYTES, MemberStream
from usufruct_node.peers.deadlines import Deadlines, within
from usufruct_node.peers.protocol import Status, encode_head, read_request
from usufruct_node.peers.shelf import Answer, Shelf

if TYPE_CHECKING:
    from trio import MemoryReceiveChannel, MemorySendChannel


class BlockServer:
    """Answers the block protocol's streams."""

    def __init__(self, shelf: Shelf, deadlines: Deadlines) -> None:
        self._shelf = shelf
        self._deadlines = deadlines

    async def answer(self, peer_id: str, stream: MemberStream) -> None:
        """Answer requests until the peer has no more, leaves, or is no member any longer."""
        give, take = trio.open_memory_channel[list[Answer]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, take, nursery.cancel_scope)
            await self._look_up(peer_id, stream, give)

    async def turn_away(self, stream: MemberStream) -> None:
        """Say that this node is busy, and nothing else."""
        with trio.move_on_after(self._deadlines.request):
            await stream.write(encode_head(Status.BUSY))
            await stream.finish()
            while await stream.read(READ_BYTES):
                pass

    async def _look_up(
        self, peer_id: str, stream: MemberStream, give: MemorySendChannel[list[Answer]]
    ) -> None:
        async with give:
            while True:
                with trio.move_on_after(self._deadlines.idle) as waiting:
                    first = await stream.read(1)
                if waiting.cancelled_caught or not first:
                    return
                with within(self._deadlines.request, "receiving a request"):
                    cids = await read_request(stream, first)
                while cids:
                    answers = await self._shelf.take(peer_id, cids)
                    if not answers:
                        return
                    await give.send(answers)
                    cids = cids[len(answers) :]

    async def _send(
        self, stream: MemberStream, take: MemoryReceiveChannel[list[Answer]], scope: trio.CancelScope
    ) -> None:
        async for answers in take:
            parts: list[bytes] = []
            for answer in answers:
                parts += (encode_head(answer.status, len(answer.data)), answer.data)
            with within(self._deadlines.block, f"sending {len(answers)} blocks"):
                try:
                    await stream.write(b"".join(parts))
                except PeerTooSlowError:
                    raise
                except PeerError:
                    # It left, which is its right.
                    scope.cancel()
                    return
