"""The asking side of the block protocol: one stream to one member, several requests ahead of their replies.

What arrives is not believed here: whoever takes a reply hashes it against its CID before using it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from usufruct.content import Cid
from usufruct.errors import (
    BlockNotFoundError,
    PeerBusyError,
    PeerError,
    PeerQuotaError,
    PeerRefusedError,
    UsufructError,
)
from usufruct_node.peers.connection import STREAM_READ_BYTES, MemberStream
from usufruct_node.peers.deadlines import Deadlines, within
from usufruct_node.peers.protocol import HEAD_BYTES, MAX_CIDS, Status, decode_head, encode_request
from usufruct_node.peers.shelf import Answer

WINDOW_BYTES: Final = 4 * 1024 * 1024
"""What a member may have under way to us on one stream."""


class Line(Protocol):
    """A way to ask one member for blocks."""

    async def ask(self, cids: Sequence[Cid]) -> None:
        """Ask for blocks; the replies come out of `take`."""

    async def take(self) -> list[Answer]:
        """The replies that are there, at least one, in whatever order they came; their bytes are unchecked."""

    async def abandon(self) -> None:
        """Give up what is outstanding; never raises and never takes long."""


class BlockLine:
    """A `Line` over the block protocol. Replies come in the order of the requests."""

    def __init__(self, stream: MemberStream, peer_id: str, deadlines: Deadlines) -> None:
        self._stream = stream
        self._peer_id = peer_id
        self._deadlines = deadlines
        self._outstanding: deque[Cid] = deque()
        self._buffer = bytearray()

    async def ask(self, cids: Sequence[Cid]) -> None:
        """Ask for distinct blocks, any number.

        Raises
        ------
        PeerError
            If the stream is gone or the peer does not take what is sent.
        """
        for at in range(0, len(cids), MAX_CIDS):
            part = cids[at : at + MAX_CIDS]
            with within(self._deadlines.request, "sending a request"):
                await self._stream.write(encode_request(part))
            self._outstanding.extend(part)

    async def take(self) -> list[Answer]:
        """The next replies; see `Line.take`.

        Raises
        ------
        PeerBusyError
            If the peer serves enough of our streams already.
        PeerQuotaError
            If we are over the peer's quota.
        PeerTooSlowError
            If a block takes longer than it may.
        PeerError
            If the peer breaks the protocol or the stream.
        """
        with within(self._deadlines.block, f"a block of {self._peer_id}"):
            while not (answers := self._whole_replies()):
                part = await self._stream.read(STREAM_READ_BYTES)
                if not part:
                    raise PeerError(f"{self._peer_id} ended the stream in the middle of a message")
                self._buffer += part
        return answers

    async def abandon(self) -> None:
        """Drop the stream."""
        await self._stream.abandon()

    def _whole_replies(self) -> list[Answer]:
        answers: list[Answer] = []
        at = 0
        with memoryview(self._buffer) as view:
            while len(view) - at >= HEAD_BYTES and self._outstanding:
                status, size_bytes = decode_head(bytes(view[at : at + HEAD_BYTES]))
                end = at + HEAD_BYTES + size_bytes
                if end > len(view):
                    break
                if status in (Status.BUSY, Status.OVER_QUOTA) and not answers:
                    raise refusal_of(status, self._peer_id, self._outstanding[0])
                if status in (Status.BUSY, Status.OVER_QUOTA):
                    break
                answers.append(
                    Answer(self._outstanding.popleft(), status, bytes(view[at + HEAD_BYTES : end]))
                )
                at = end
        del self._buffer[:at]
        return answers


def refusal_of(status: Status, peer_id: str, cid: Cid) -> UsufructError:
    """The error that says why a block was not given."""
    if status is Status.NOT_FOUND:
        return BlockNotFoundError(f"{peer_id} does not have block {cid}")
    if status is Status.BUSY:
        return PeerBusyError(f"{peer_id} serves enough of our streams already")
    if status is Status.OVER_QUOTA:
        return PeerQuotaError(f"{peer_id} has given us as much as it will for now")
    return PeerRefusedError(
        f"{peer_id} says that we may not have block {cid}",
        hint="a live job or grant must give this organisation a role that needs the block",
    )
