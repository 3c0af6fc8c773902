"""One encrypted, multiplexed connection to one member, with the bounds that the library leaves open.

libp2p's own `Swarm` and `BasicHost` are not used: they dial on their own, offer more protocols than blocks,
keep a slot for every connection they ever accepted, and share listening ports silently. Its Noise, Yamux and
protocol negotiation are. Which peers may connect is the gate's business, what they may ask the host's.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_SYN,
    HEADER_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
    Yamux,
)

from usufruct.errors import PeerError, PeerProtocolError, PeerTooSlowError
from usufruct_node.peers.deadlines import within
from usufruct_node.peers.private_network import PrivateWire

if TYPE_CHECKING:
    from trio_typing import TaskStatus

READ_BYTES: Final = 64 * 1024
"""What one read of a socket or of a served stream returns at most, whatever length a peer has announced."""

STREAM_READ_BYTES: Final = 256 * 1024
"""The same for a stream that we asked for something."""

NEGOTIATION_READ_BYTES: Final = 1024
"""The same while protocols are negotiated; libp2p gives up after a hundred reads for one message."""

FRAME_BYTES: Final = MAX_PLAINTEXT_LENGTH - HEADER_SIZE
"""What is written at once: a frame that fills one Noise message. A byte more would make two of it."""

MAX_STREAMS: Final = 64
"""Streams open at once on one connection, both directions together; a peer that opens more is cut off."""

MAX_STRAY_BYTES: Final = 256 * 1024
"""Longest frame for a stream that is already closed: the window that a new stream starts with."""

_CLOSE_SECONDS: Final = 1.0
_START_SECONDS: Final = 30.0


class TcpStream:
    """A TCP stream in the shape that libp2p reads and writes, with bounded reads."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.read_bytes = NEGOTIATION_READ_BYTES
        self.received_bytes = 0
        self.sent_bytes = 0

    async def read(self, n: int | None = None) -> bytes:
        """Return up to `n` bytes, none at the end."""
        try:
            data = bytes(await self.stream.receive_some(min(n or self.read_bytes, self.read_bytes)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError("the connection is closed", transport="tcp") from exc
        self.received_bytes += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError("the connection is closed", transport="tcp") from exc
        self.sent_bytes += len(data)

    async def close(self) -> None:
        """Close the socket."""
        await self.stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's address, or None once the socket is gone."""
        try:
            host, port, *_ = self.stream.socket.getpeername()
        except OSError:
            return None
        return host, port


class FrameGuard:
    """The secure session as Yamux reads it, checked frame by frame.

    Yamux reads a header of 12 bytes, then the body, and only warns when a peer ignores its window or opens
    streams without end. Here that ends the connection, and so does whatever comes in pieces that are not a
    frame's: Yamux goes on behind a body that was cut, and would take what follows for a header.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._body_left = 0
        self._is_whole = True
        self.muxer: Any = None
        self.is_initiator: bool = session.is_initiator

    async def read(self, n: int) -> bytes:
        """Return `n` bytes: a whole header, or the whole body of the frame whose header was read last.

        Raises
        ------
        ConnectionClosedError
            At a frame that is cut or out of bounds, and ever after.
        """
        if not self._is_whole or n != (self._body_left or HEADER_SIZE):
            raise ConnectionClosedError("no frame goes on here")
        self._is_whole = False
        data: bytes = await self._session.read(n)
        # The session gives less when the peer sends an empty message.
        if len(data) != n:
            raise ConnectionClosedError("the peer cuts its frames")
        if self._body_left:
            self._body_left = 0
        else:
            self._check_frame(data)
        self._is_whole = True
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        await self._session.write(data)

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    def get_remote_address(self) -> Any:
        """Return the peer's address."""
        return self._session.get_remote_address()

    def _check_frame(self, header: bytes) -> None:
        _, kind, flags, stream_id, length = struct.unpack(YAMUX_HEADER_FORMAT, header)
        streams = self.muxer.streams
        if flags & FLAG_SYN and len(streams) >= MAX_STREAMS:
            raise ConnectionClosedError("the peer opens too many streams")
        if kind == TYPE_DATA:
            stream = streams.get(stream_id)
            if length > (MAX_STRAY_BYTES if stream is None else stream.recv_window):
                raise ConnectionClosedError("the peer ignores its window")
            self._body_left = length


class MemberStream:
    """One stream to a member, with bounded reads."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._read_bytes = STREAM_READ_BYTES
        self._window_bytes = DEFAULT_WINDOW_SIZE
        self._unreleased_bytes = 0

    async def widen(self, window_bytes: int) -> None:
        """Let the peer have so much under way to us, instead of the 256 KiB that a stream begins with.

        Raises
        ------
        PeerError
            If the connection is gone.
        """
        more, self._window_bytes = window_bytes - self._window_bytes, window_bytes
        try:
            await self._release(more)
        except BaseLibp2pError as exc:
            raise PeerError("the peer broke off the stream") from exc

    async def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes, none when the stream has ended, orderly or not."""
        stream = self._stream
        try:
            data = bytes(await stream.conn.read_stream(stream.stream_id, min(n, self._read_bytes)))
            self._unreleased_bytes += len(data)
            # The library would send a message for every read.
            if self._unreleased_bytes >= self._window_bytes // 2 and not stream.recv_closed:
                released, self._unreleased_bytes = self._unreleased_bytes, 0
                await self._release(released)
        except (BaseLibp2pError, KeyError):
            return b""
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`.

        Raises
        ------
        PeerTooSlowError
            If the peer keeps its window shut for several seconds.
        PeerError
            If the peer has ended the stream or the connection.
        """
        try:
            for at in range(0, len(data), FRAME_BYTES):
                await self._stream.write(data[at : at + FRAME_BYTES])
        except (BaseLibp2pError, KeyError) as exc:
            if not self._stream.closed:
                raise PeerTooSlowError("the peer does not take what is sent") from exc
            raise PeerError("the peer broke off the stream") from exc

    async def _release(self, size_bytes: int) -> None:
        """Let the peer send so much more."""
        self._stream.recv_window += size_bytes
        await self._stream.send_window_update(size_bytes)

    async def finish(self) -> None:
        """Say that nothing more will be written; raises PeerError if the connection is gone."""
        try:
            await self._stream.close()
        except BaseLibp2pError as exc:
            raise PeerError("the peer broke off the stream") from exc

    async def abandon(self) -> None:
        """Drop the stream in both directions, whatever its state; never raises and never takes long."""
        muxer = self._stream.conn
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
            with contextlib.suppress(BaseLibp2pError, OSError):
                await self._stream.reset()
            # The library keeps a stream with unread bytes for another minute, and it counts as open.
            muxer.stream_buffers.pop(self._stream.stream_id, None)
            await muxer._finalize_stream(self._stream, fully_closed=True)

    async def offer(self, protocols: Collection[str], seconds: float) -> str:
        """Wait for the peer to choose one of `protocols`, and return it.

        Raises
        ------
        PeerError
            If it does not, or sends something else.
        """

        async def listen(communicator: Any, timeout: float) -> Any:
            chosen, _ = await Multiselect(dict.fromkeys(protocols)).negotiate(communicator, timeout)
            return chosen

        return str(await self._negotiate(listen, seconds))

    async def choose(self, protocol: str, seconds: float) -> None:
        """Ask the peer for `protocol`.

        Raises
        ------
        PeerProtocolError
            If it does not offer it.
        PeerError
            If it answers something else, late, or not at all.
        """

        async def select(communicator: Any, timeout: float) -> Any:
            client = MultiselectClient()
            with within(timeout, "agreeing on a protocol"):
                await client.handshake(communicator)
                return await client.try_select(communicator, protocol)

        await self._negotiate(select, seconds)

    async def _negotiate(self, how: Callable[[Any, float], Awaitable[Any]], seconds: float) -> Any:
        self._read_bytes = NEGOTIATION_READ_BYTES
        try:
            chosen = await how(MultiselectCommunicator(self), seconds)
        except ProtocolNotSupportedError as exc:
            raise PeerProtocolError("the peer does not speak the protocol") from exc
        except (BaseLibp2pError, ValueError) as exc:
            raise PeerError("the peer does not agree on a protocol") from exc
        self._read_bytes = STREAM_READ_BYTES
        return chosen


class Connection:
    """A connection that has passed the gate; lives inside `run`."""

    def __init__(self, peer_id: str, session: Any, tcp: TcpStream) -> None:
        self.peer_id = peer_id
        self.opened_at = time.time()
        """Unix seconds."""
        self.is_outgoing: bool = session.is_initiator
        self.closed = trio.Event()
        self._tcp = tcp
        self._scope = trio.CancelScope()
        guard = FrameGuard(session)
        self._muxer = Yamux(guard, session.get_remote_peer(), is_initiator=session.is_initiator)
        guard.muxer = self._muxer

    async def run(
        self,
        answer: Callable[[str, MemberStream], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the peer's streams with `answer` until the connection ends or `close` is called."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._muxer.start)
                    with trio.fail_after(_START_SECONDS):
                        await self._muxer.event_started.wait()
                    task_status.started()
                    while True:
                        try:
                            stream = await self._muxer.accept_stream()
                        except MuxedConnUnavailable:
                            break
                        nursery.start_soon(answer, self.peer_id, MemberStream(stream))
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._tcp.stream)
                with trio.move_on_after(_CLOSE_SECONDS):
                    await self._muxer.close()
            self.closed.set()

    def close(self) -> None:
        """End the connection at once; `closed` is set when it is gone."""
        self._scope.cancel()

    @property
    def address(self) -> str:
        """The peer's IP address and port; empty once the socket is gone."""
        found = self._tcp.get_remote_address()
        return "" if found is None else f"{found[0]} port {found[1]}"

    @property
    def received_bytes(self) -> int:
        """Bytes that came over the wire."""
        return self._tcp.received_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes that went over the wire."""
        return self._tcp.sent_bytes

    @property
    def is_live(self) -> bool:
        """Whether streams can be opened."""
        return not (self._scope.cancel_called or self._muxer.event_shutting_down.is_set())

    async def open_stream(self) -> MemberStream:
        """Open a stream.

        Raises
        ------
        PeerError
            If the connection is gone.
        """
        try:
            stream = await self._muxer.open_stream()
        except BaseLibp2pError as exc:
            raise PeerError("the connection is gone") from exc
        return MemberStream(stream)


def raw_connection(stream: TcpStream | PrivateWire, *, initiator: bool) -> Any:
    """Wrap `stream` for libp2p's security upgrade."""
    return RawConnection(stream, initiator)
