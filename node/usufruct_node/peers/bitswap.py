"""Bitswap 1.2.0 with members that run other IPFS software: the same rules as the block protocol, another wire.

A peer's wants are kept as CIDs, never as data, and looked up when it is their turn. Replies go out on a stream that this node
opens to the peer, as Kubo and Helia expect. What nobody here asked that peer for is dropped before it is hashed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import trio

from usufruct.content import Cid, Codec
from usufruct.errors import PeerError
from usufruct_node.peers import gate
from usufruct_node.peers.bitswap_messages import (
    MAX_ENTRIES,
    PROTOCOL_ID,
    Received,
    Want,
    cid_of,
    encode_replies,
    encode_wants,
    read_message,
)
from usufruct_node.peers.connection import MemberStream
from usufruct_node.peers.deadlines import Deadlines, within
from usufruct_node.peers.protocol import Status
from usufruct_node.peers.shelf import Answer, Shelf

MESSAGE_BYTES: Final = 1024 * 1024
"""Blocks in one reply, about."""

ARRIVED_BYTES: Final = 4 * 1024 * 1024
"""Blocks that wait to be taken; beyond that no more is read of the peer."""

ASK_AGAIN_SECONDS: Final = 5.0
"""Silence after which what is outstanding is asked for again, as Kubo does with its own wants: as a server it forgets a few of
several thousand (3 to 10 of 3,617 in each of four fetches)."""

_CLOSING_SECONDS = 5.0


@dataclass(slots=True)
class _Peer:
    """What one member wants of us, while it has a stream here."""

    wants: dict[bytes, Want] = field(default_factory=dict)
    streams: int = 0
    is_served: bool = False


class Bitswap:
    """Both sides of Bitswap for one host."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        open_back: Callable[[str, str], Awaitable[MemberStream]],
        refuse: Callable[[str, str], None],
        deadlines: Deadlines,
    ) -> None:
        self._shelf = shelf
        self._open_back = open_back
        self._refuse = refuse
        self._deadlines = deadlines
        self._peers: dict[str, _Peer] = {}
        self._lines: dict[str, list[BitswapLine]] = {}

    async def answer(self, peer_id: str, stream: MemberStream) -> None:
        """Read a peer's messages until its stream ends, and see that its wants are answered."""
        peer = self._peers.setdefault(peer_id, _Peer())
        peer.streams += 1
        try:
            async with trio.open_nursery() as nursery:
                while (message := await read_message(stream)) is not None:
                    await self._deliver(peer_id, message)
                    self._note_wants(peer_id, peer, message)
                    if peer.wants and not peer.is_served:
                        peer.is_served = True
                        nursery.start_soon(self._serve, peer_id, peer)
        finally:
            peer.streams -= 1
            if not peer.streams:
                self._peers.pop(peer_id, None)

    def line(self, peer_id: str, stream: MemberStream) -> BitswapLine:
        """A way to ask the peer at the other end of `stream` for blocks."""
        line = BitswapLine(peer_id, stream, self._deadlines, self._drop)
        self._lines.setdefault(peer_id, []).append(line)
        return line

    def _drop(self, line: BitswapLine) -> None:
        held = self._lines.get(line.peer_id, [])
        if line in held:
            held.remove(line)
        if not held:
            self._lines.pop(line.peer_id, None)

    # What it wants.

    def _note_wants(self, peer_id: str, peer: _Peer, message: Received) -> None:
        if message.full:
            peer.wants.clear()
        for want in message.wants:
            if want.cancel:
                peer.wants.pop(want.key, None)
            elif len(peer.wants) < MAX_ENTRIES or want.key in peer.wants:
                peer.wants[want.key] = want
            else:
                self._refuse(gate.BUSY, peer_id)
                return

    async def _serve(self, peer_id: str, peer: _Peer) -> None:
        """Answer what the peer wants until there is nothing left."""
        try:
            while peer.wants:
                stream = await self._open_back(peer_id, PROTOCOL_ID)
                try:
                    while peer.wants and (message := await self._next_message(peer_id, peer)):
                        with within(self._deadlines.block, f"sending blocks to {peer_id}"):
                            await stream.write(message)
                    await stream.finish()
                    # A reset would throw away what the peer has not read yet.
                    with trio.move_on_after(_CLOSING_SECONDS):
                        while await stream.read(1024):
                            pass
                finally:
                    await stream.abandon()
        except BaseException:
            peer.wants.clear()
            raise
        finally:
            # No await since the queue was seen empty: a want that came later starts this again.
            peer.is_served = False

    async def _next_message(self, peer_id: str, peer: _Peer) -> bytes:
        """The next replies, `MAX_ENTRIES` at most; nothing once the peer is no member any more."""
        blocks: list[tuple[Cid, bytes]] = []
        present: list[bytes] = []
        absent: list[bytes] = []
        size_bytes = 0
        # A peer may ask on while it is answered, and what is not here has no size.
        while (
            peer.wants
            and size_bytes < MESSAGE_BYTES
            and (room := MAX_ENTRIES - len(blocks) - len(present) - len(absent))
        ):
            wants = list(islice(peer.wants.values(), min(room, 64)))
            foreign = [want for want in wants if cid_of(want.key) is None]
            for want in foreign:
                del peer.wants[want.key]
            absent += (want.key for want in foreign if want.say_absent)
            known = [(want, cid) for want in wants if (cid := cid_of(want.key)) is not None]
            if not known:
                continue
            # Questions whether a block is here are answered without reading it.
            of_blocks = known[0][0].block
            ask = self._shelf.take if of_blocks else self._shelf.look
            answers = await ask(peer_id, [cid for want, cid in known if want.block is of_blocks])
            if not answers:
                peer.wants.clear()
                return b""
            for answer in answers:
                key = bytes(answer.cid)
                asked = peer.wants.get(key)
                # Cancelled meanwhile, or the other question by now: that one's turn comes.
                if asked is None or asked.block is not of_blocks:
                    continue
                del peer.wants[key]
                if answer.status is not Status.BLOCK:
                    absent += [key] if asked.say_absent else []
                elif of_blocks:
                    blocks.append((answer.cid, answer.data))
                    size_bytes += len(answer.data)
                else:
                    present.append(key)
        return encode_replies(blocks, present, absent) if blocks or present or absent else b""

    # What it gives.

    async def _deliver(self, peer_id: str, message: Received) -> None:
        if message.strange:
            self._refuse(gate.UNSOLICITED, peer_id)
        if not (message.blocks or message.absent):
            return
        lines = list(self._lines.get(peer_id, ()))
        if message.blocks and not any(line.is_waiting for line in lines):
            self._refuse(gate.UNSOLICITED, peer_id)
            return
        named = await trio.to_thread.run_sync(_name_all, message.blocks) if message.blocks else []
        for line in lines:
            named = line.deliver(named, message.absent)
            await line.room()
        if named:
            self._refuse(gate.UNSOLICITED, peer_id)


class BitswapLine:
    """A `Line` over Bitswap. Replies come in any order, and are genuine: a block's name is worked out from its bytes."""

    def __init__(
        self,
        peer_id: str,
        stream: MemberStream,
        deadlines: Deadlines,
        on_end: Callable[[BitswapLine], None],
    ) -> None:
        self.peer_id = peer_id
        self._stream = stream
        self._deadlines = deadlines
        self._on_end = on_end
        self._wanted: dict[Cid, None] = {}
        self._arrived: list[Answer] = []
        self._arrived_bytes = 0
        self._changed = trio.Event()

    @property
    def is_waiting(self) -> bool:
        """Whether blocks are outstanding."""
        return bool(self._wanted)

    async def ask(self, cids: Sequence[Cid]) -> None:
        """Ask for distinct blocks; errors as for `BlockLine.ask`."""
        self._wanted.update(dict.fromkeys(cids))
        await self._send(encode_wants(cids))

    async def take(self) -> list[Answer]:
        """The replies that are there; see `Line.take`.

        Raises
        ------
        PeerTooSlowError
            If none comes within the time for one block.
        """
        with within(self._deadlines.block, f"a block of {self.peer_id}"):
            while not self._arrived:
                with trio.move_on_after(ASK_AGAIN_SECONDS) as silence:
                    await self._changed.wait()
                if silence.cancelled_caught and self._wanted:
                    await self._send(encode_wants(self._wanted))
        arrived, self._arrived, self._arrived_bytes = self._arrived, [], 0
        self._change()
        return arrived

    def deliver(self, blocks: Iterable[tuple[Cid, bytes]], absent: Iterable[Cid]) -> list[tuple[Cid, bytes]]:
        """Take what was asked for, once; returns the blocks that were not."""
        left: list[tuple[Cid, bytes]] = []
        for cid, data in blocks:
            if cid in self._wanted:
                del self._wanted[cid]
                self._arrived.append(Answer(cid, Status.BLOCK, data))
                self._arrived_bytes += len(data)
            else:
                left.append((cid, data))
        for cid in absent:
            if cid in self._wanted:
                del self._wanted[cid]
                self._arrived.append(Answer(cid, Status.NOT_FOUND))
        if self._arrived:
            self._change()
        return left

    async def room(self) -> None:
        """Wait until what arrived has been taken, if it is much."""
        while self._arrived_bytes > ARRIVED_BYTES:
            await self._changed.wait()

    async def abandon(self) -> None:
        """Take back what is outstanding, as well as that can be done quickly."""
        self._on_end(self)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1), contextlib.suppress(PeerError):
            if self._wanted:
                await self._send(encode_wants(self._wanted, cancel=True))
            await self._stream.finish()
        self._wanted.clear()
        self._arrived, self._arrived_bytes = [], 0
        self._change()
        await self._stream.abandon()

    async def _send(self, message: bytes) -> None:
        with within(self._deadlines.request, "sending a wantlist"):
            await self._stream.write(message)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _name_all(blocks: Sequence[tuple[Codec, bytes]]) -> list[tuple[Cid, bytes]]:
    return [(Cid.of(data, codec), data) for codec, data in blocks]
