"""The custody protocol `/usufruct/custody/1.0.0`: one DAG-CBOR map asked, one answered, on a stream of its own.

A message is a big-endian length of 32 bits and at most `MAX_MESSAGE_BYTES` bytes. What the maps mean is decided elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from usufruct.content import dag
from usufruct.errors import ManifestError, PeerError
from usufruct_node.peers.connection import READ_BYTES, MemberStream
from usufruct_node.peers.deadlines import within
from usufruct_node.peers.host import PeerHost
from usufruct_node.peers.protocol import Reader, read_exactly

PROTOCOL_ID: Final = "/usufruct/custody/1.0.0"
MAX_MESSAGE_BYTES: Final = 64 * 1024

Message = Mapping[str, Any]
Answer = Callable[[str, Message], Message]
"""Answers a question of the member whose peer id it is given. Called in a worker thread."""

_REQUEST_SECONDS = 5.0
_THREADS = 2
_LENGTH = struct.Struct(">I")


def encode_message(message: Message) -> bytes:
    """Encode a message with its length.

    Raises
    ------
    PeerError
        If it is too long to be sent.
    """
    data = dag.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise PeerError(f"a custody message of {len(data)} bytes is not sent")
    return _LENGTH.pack(len(data)) + data


async def read_message(reader: Reader) -> Message:
    """Read one message.

    Raises
    ------
    PeerError
        If it is cut, too long, or no canonical map.
    """
    (size,) = _LENGTH.unpack(await read_exactly(reader, _LENGTH.size))
    if not 1 <= size <= MAX_MESSAGE_BYTES:
        raise PeerError(f"a custody message that announces {size} bytes")
    try:
        return dag.decode_map(await read_exactly(reader, size))
    except ManifestError as exc:
        raise PeerError(f"a malformed custody message: {exc}") from exc


class CustodyHandler:
    """Serves the protocol; register `serve` with `PeerHost.handle`."""

    def __init__(self, answer: Answer, *, request_s: float = _REQUEST_SECONDS) -> None:
        """Prepare.

        Parameters
        ----------
        request_s :
            Seconds for a question from its first byte to its last, and for taking the answer.
        """
        self._answer = answer
        self._request_s = request_s
        self._threads = trio.CapacityLimiter(_THREADS)

    async def serve(self, peer_id: str, stream: MemberStream) -> None:
        """Answer the one question of a stream.

        Raises
        ------
        PeerError
            If the peer is too slow or breaks the protocol.
        """
        with within(self._request_s, "receiving a question"):
            question = await read_message(stream)
        answer = await trio.to_thread.run_sync(self._answer, peer_id, question, limiter=self._threads)
        with within(self._request_s, "sending an answer"):
            await stream.write(encode_message(answer))
            await stream.finish()
            while await stream.read(READ_BYTES):
                pass


async def ask(host: PeerHost, peer_id: str, multiaddr: str, question: Message, *, seconds: float) -> Message:
    """Ask one member; the answer is whatever it says, a canonical map of bounded size.

    Parameters
    ----------
    seconds :
        For question and answer, once the stream is open.

    Raises
    ------
    InputError
        If the peer id or the address is malformed.
    PeerRefusedError
        If either side's gate refuses.
    PeerError
        If it is unreachable, too slow or breaks the protocol.
    """
    stream = await host.open_stream(peer_id, multiaddr, PROTOCOL_ID)
    try:
        with within(seconds, "an answer"):
            await stream.write(encode_message(question))
            return await read_message(stream)
    finally:
        await stream.abandon()
