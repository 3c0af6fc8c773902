"""The serving side of the block protocol: requests in, answers out, the next ones looked up while the last are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from usufruct.errors import PeerError, PeerTooSlowError
from usufruct_node.peers.connection import READ_BYTES, MemberStream
from usufruct_node.peers.deadlines import Deadlines, within
from usufruct_node.peers.protocol import Status, encode_head, read_request
from usufruct_node.peers.shelf import BATCH_BYTES, Answer, Shelf

if TYPE_CHECKING:
    from trio import MemoryReceiveChannel, MemorySendChannel


IN_HAND_BYTES: Final = 8 * 1024 * 1024
"""About what all streams together have looked up and not sent yet, twice: what is being sent, and what comes after it."""


class BlockServer:
    """Answers the block protocol's streams."""

    def __init__(self, shelf: Shelf, deadlines: Deadlines) -> None:
        self._shelf = shelf
        self._deadlines = deadlines
        self._streams = 0

    async def answer(self, peer_id: str, stream: MemberStream) -> None:
        """Answer requests until the peer has no more, leaves, or is no member any longer."""
        give, take = trio.open_memory_channel[bytes](0)
        self._streams += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream, take, nursery.cancel_scope)
                await self._look_up(peer_id, stream, give)
        finally:
            self._streams -= 1

    async def turn_away(self, stream: MemberStream) -> None:
        """Say that this node is busy, and nothing else."""
        with trio.move_on_after(self._deadlines.request):
            await stream.write(encode_head(Status.BUSY))
            await stream.finish()
            while await stream.read(READ_BYTES):
                pass

    async def _look_up(self, peer_id: str, stream: MemberStream, give: MemorySendChannel[bytes]) -> None:
        async with give:
            while True:
                with trio.move_on_after(self._deadlines.idle) as waiting:
                    first = await stream.read(1)
                if waiting.cancelled_caught or not first:
                    return
                with within(self._deadlines.request, "receiving a request"):
                    cids = await read_request(stream, first)
                while cids:
                    share = min(BATCH_BYTES, IN_HAND_BYTES // self._streams)
                    answers = await self._shelf.take(peer_id, cids, size_bytes=share)
                    if not answers:
                        return
                    cids = cids[len(answers) :]
                    # Nothing here holds the blocks any more while they are waited with.
                    await give.send(_encoded(answers))

    async def _send(
        self, stream: MemberStream, take: MemoryReceiveChannel[bytes], scope: trio.CancelScope
    ) -> None:
        while True:
            try:
                data = await take.receive()
            except trio.EndOfChannel:
                return
            with within(self._deadlines.block, "sending blocks"):
                try:
                    await stream.write(data)
                except PeerTooSlowError:
                    raise
                except PeerError:
                    # It left, which is its right.
                    scope.cancel()
                    return
            del data  # Not held until there is something else to send.


def _encoded(answers: list[Answer]) -> bytes:
    """Answers as they go over the wire; empties the list, so that every block is held once only."""
    parts: list[bytes] = []
    for answer in answers:
        parts += (encode_head(answer.status, len(answer.data)), answer.data)
    answers.clear()
    return b"".join(parts)
