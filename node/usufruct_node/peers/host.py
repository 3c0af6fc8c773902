"""The peer host: serves blocks to members that may have them, fetches blocks from members.

Every block is asked for as (member, CID) and hashed on arrival. Which addresses members have, what makes one
a member, and what a role entitles it to, is decided elsewhere and passed in.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from usufruct.content import MAX_BLOCK_BYTES, Cid
from usufruct.errors import (
    BlockNotFoundError,
    ConfigurationError,
    InputError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTooSlowError,
    UsufructError,
)
from usufruct_node.peers import gate
from usufruct_node.peers.connection import READ_BYTES, Connection, MemberStream, TcpStream, raw_connection
from usufruct_node.peers.gate import GatedNoise, Refusal, RefusalLog
from usufruct_node.peers.identity import PeerIdentity, parse_peer_id
from usufruct_node.peers.protocol import (
    MAX_CIDS,
    PROTOCOL_ID,
    Status,
    encode_head,
    encode_request,
    read_reply,
    read_request,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_LOG = logging.getLogger(__name__)

StreamHandler = Callable[[str, MemberStream], Awaitable[None]]
"""Serves one stream of the member whose peer id it is given; whatever it raises ends that stream only."""

_MULTIADDR = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[0-9A-Za-z.:-]{1,253})/tcp/(?P<port>[0-9]{1,5})"
    r"(?:/p2p/(?P<peer>[0-9A-Za-z]{1,80}))?",
    re.ASCII,
)

_MAX_CONNECTIONS = 256
_MAX_HANDSHAKES = 32
_CONNECTIONS_PER_MEMBER = 4
_LOOKUP_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each step with a peer may take, in seconds."""

    connect: float = 10.0
    """Dialling, handshake and multiplexing, either direction."""

    negotiate: float = 5.0
    """Agreeing on the block protocol on a new stream."""

    idle: float = 30.0
    """A stream without a request before the server ends it."""

    request: float = 5.0
    """A request from its first byte to its last."""

    block: float = 30.0
    """One block from request to last byte, in either direction."""


class PeerHost:
    """One node's end of the block exchange.

    **Invariant:** no byte of a block leaves before `is_member` and `authorise` have both said yes for this
    very request, and none is handed on before its hash was checked.
    """

    def __init__(
        self,
        *,
        identity: PeerIdentity,
        is_member: Callable[[str], bool],
        authorise: Callable[[str, Cid], bool],
        read_block: Callable[[Cid], bytes | None],
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        streams_per_member: int = 8,
        deadlines: Deadlines | None = None,
    ) -> None:
        """Prepare a host; nothing is opened before `run`.

        Parameters
        ----------
        identity :
            This node's key; its peer id is what members dial.
        is_member :
            Whether a peer id is an active member's. Called in the event loop: must not block.
        authorise :
            Whether the peer may have the block. Called in a worker thread, before `read_block`.
        read_block :
            The block, or None if it is not here. Called in a worker thread.
        listen_host :
            IP address to listen on.
        listen_port :
            TCP port; 0 lets the system choose.
        streams_per_member :
            Streams that are served at once for one member; more are told that this node is busy.
        """
        self._identity = identity
        self._is_member = is_member
        self._authorise = authorise
        self._read_block = read_block
        self._listen_host = listen_host
        self._listen_port = listen_port
        self._streams_per_member = streams_per_member
        self._deadlines = deadlines or Deadlines()
        self._refusals = RefusalLog()
        self._handlers: dict[str, StreamHandler] = {PROTOCOL_ID: self._serve}
        noise = GatedNoise(identity, is_member=is_member, refusals=self._refusals)
        self._upgrader = TransportUpgrader({NOISE: noise}, {YAMUX: Yamux})
        self._connections: dict[str, list[Connection]] = {}
        self._streams: Counter[str] = Counter()
        self._handshakes = 0
        self._dialling: dict[str, trio.Lock] = {}
        self._lookups = trio.CapacityLimiter(_LOOKUP_THREADS)
        self._nursery: trio.Nursery | None = None
        self._multiaddr: str | None = None

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Offer one more protocol to members; they may open streams for it on any connection."""
        self._handlers[protocol] = handler

    @property
    def peer_id(self) -> str:
        """This node's peer id."""
        return self._identity.peer_id

    @property
    def multiaddr(self) -> str:
        """Where this node listens, with its peer id at the end.

        Raises
        ------
        PeerError
            Before `run` has started.
        """
        if self._multiaddr is None:
            raise PeerError("the peer host is not running")
        return self._multiaddr

    async def run(self, *, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; use `multiaddr = await nursery.start(host.run)`.

        Raises
        ------
        ConfigurationError
            If the address cannot be listened on, because the port is taken for instance.
        """
        if self._multiaddr is not None:
            raise PeerError("a peer host runs once")
        try:
            address = ipaddress.ip_address(self._listen_host)
            listeners = await trio.open_tcp_listeners(self._listen_port, host=self._listen_host)
        except ValueError as exc:
            raise ConfigurationError(f"not an IP address to listen on: {self._listen_host!r}") from exc
        except OSError as exc:
            raise ConfigurationError(
                f"cannot listen on {self._listen_host} port {self._listen_port}: {exc.strerror or exc}",
                hint="stop what uses the port, or set another one",
            ) from exc
        port = listeners[0].socket.getsockname()[1]
        self._multiaddr = f"/ip{address.version}/{address}/tcp/{port}/p2p/{self.peer_id}"
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started(self._multiaddr)
                await trio.serve_listeners(self._accept, listeners, handler_nursery=nursery)
        finally:
            self._nursery = None

    def connected(self) -> list[str]:
        """Return the peer ids with a live connection, sorted."""
        return sorted(peer for peer, held in self._connections.items() if any(one.is_live for one in held))

    def refusals(self) -> list[Refusal]:
        """Return the last refusals by this node, oldest first."""
        return self._refusals.last()

    def refusal_counts(self) -> dict[str, int]:
        """Return how many refusals there were since the start, by reason."""
        return self._refusals.counts()

    async def close_peer(self, peer_id: str) -> None:
        """End every connection to the peer; make `is_member` false first, or it will simply come back."""
        held = list(self._connections.get(peer_id, ()))
        for connection in held:
            connection.close()
        for connection in held:
            await connection.closed.wait()

    async def fetch(
        self, peer_id: str, multiaddr: str, cids: Sequence[Cid]
    ) -> AsyncGenerator[tuple[Cid, bytes], None]:
        """Fetch blocks from one member, in the order of `cids`.

        Use it under `contextlib.aclosing`, and store each block before the next: a pause of several seconds
        between two makes the peer give up.

        Parameters
        ----------
        peer_id :
            Who must answer; another identity at the address is refused.
        multiaddr :
            `/ip4|ip6|dns|dns4|dns6/…/tcp/…`, with `/p2p/<peer_id>` or without.
        cids :
            Distinct; any number.

        Raises
        ------
        InputError
            If the peer id or the address is malformed, or a CID is repeated.
        BlockNotFoundError
            If the peer does not have a block.
        PeerRefusedError
            If either side's gate refuses, or the peer says that we may not have a block.
        PeerBusyError
            If the peer serves enough of our streams already.
        BlockMismatchError
            If the peer sent other bytes than those asked for.
        PeerError
            If it is unreachable, too slow or breaks the protocol.
        """
        parse_peer_id(peer_id)
        _dial_address(multiaddr, peer_id)
        if len(set(cids)) != len(cids):
            raise InputError("a block is asked for twice in one fetch")
        if not cids:
            return
        stream = await self.open_stream(peer_id, multiaddr, PROTOCOL_ID)
        try:
            batches = [cids[at : at + MAX_CIDS] for at in range(0, len(cids), MAX_CIDS)]
            await self._ask(stream, batches[0])
            for batch, following in zip(batches, [*batches[1:], None], strict=True):
                if following is not None:
                    await self._ask(stream, following)
                for cid in batch:
                    with _deadline(self._deadlines.block, f"block {cid}"):
                        status, data = await read_reply(stream, cid)
                    if status is not Status.BLOCK:
                        raise _refusal_of(status, peer_id, cid)
                    yield cid, data
        finally:
            await stream.abandon()

    async def _ask(self, stream: MemberStream, cids: Sequence[Cid]) -> None:
        with _deadline(self._deadlines.request, "sending a request"):
            await stream.write(encode_request(cids))

    async def open_stream(self, peer_id: str, multiaddr: str, protocol: str) -> MemberStream:
        """Open a stream on a live connection, or on a new one if there is none or it turns out to be dead.

        Raises
        ------
        InputError
            If the peer id or the address is malformed.
        PeerRefusedError
            If either side's gate refuses.
        PeerError
            If the peer is unreachable, too slow, or does not speak the protocol.
        """
        parse_peer_id(peer_id)
        host, port = _dial_address(multiaddr, peer_id)
        if not self._is_member(peer_id):
            self._refusals.add(gate.NOT_A_MEMBER, peer_id)
            raise PeerRefusedError(f"{peer_id} is not an active member")
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                for connection in self._live(peer_id):
                    try:
                        return await self._negotiated(connection, protocol)
                    except PeerError:
                        connection.close()
                        await connection.closed.wait()
                return await self._negotiated(await self._dial(peer_id, host, port), protocol)
        finally:
            if not lock.locked():
                self._dialling.pop(peer_id, None)

    async def _negotiated(self, connection: Connection, protocol: str) -> MemberStream:
        with _deadline(self._deadlines.negotiate, "opening a stream"):
            stream = await connection.open_stream()
            try:
                await stream.choose(protocol, self._deadlines.negotiate)
            except BaseException:
                await stream.abandon()
                raise
        return stream

    async def _dial(self, peer_id: str, host: str, port: int) -> Connection:
        if self._nursery is None:
            raise PeerError("the peer host is not running")
        with _deadline(self._deadlines.connect, f"connecting to {peer_id}"):
            try:
                tcp = TcpStream(await trio.open_tcp_stream(host, port))
            except OSError as exc:
                raise PeerError(f"{peer_id} is unreachable at {host} port {port}: {exc}") from exc
            try:
                connection = await self._upgrade(tcp, peer_id)
            except BaseException:
                await trio.aclose_forcefully(tcp.stream)
                raise
            try:
                await self._nursery.start(self._hold, connection)
            except RuntimeError as exc:
                raise PeerError(f"the connection to {peer_id} ended at once") from exc
        return connection

    async def _upgrade(self, tcp: TcpStream, peer_id: str) -> Connection:
        """Shake hands and agree on the multiplexer, as the side that dialled."""
        try:
            session = await self._upgrader.upgrade_security(
                raw_connection(tcp, initiator=True), True, ID.from_string(peer_id)
            )
        except SecurityUpgradeFailure as exc:
            if isinstance(exc.__cause__, PeerIDMismatchesPubkey):
                raise PeerRefusedError(f"another identity than {peer_id} answers at its address") from exc
            raise PeerError(f"the handshake with {peer_id} failed") from exc
        except Exception as exc:
            raise PeerError(f"the handshake with {peer_id} failed") from exc
        tcp.read_bytes = READ_BYTES
        try:
            await self._upgrader.muxer_multistream.select_transport(session)
        except Exception as exc:
            raise PeerRefusedError(
                f"{peer_id} closed the connection after the handshake",
                hint="it may not yet count this node as a member, or no longer",
            ) from exc
        return Connection(peer_id, session, tcp)

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Take one incoming connection from handshake to end."""
        held = sum(len(connections) for connections in self._connections.values())
        if self._handshakes >= _MAX_HANDSHAKES or held >= _MAX_CONNECTIONS:
            self._refusals.count(gate.BUSY)
            return
        tcp = TcpStream(stream)
        self._handshakes += 1
        try:
            with trio.fail_after(self._deadlines.connect):
                session = await self._upgrader.upgrade_security(raw_connection(tcp, initiator=False), False)
                tcp.read_bytes = READ_BYTES
                await self._upgrader.muxer_multistream.select_transport(session)
        except Exception as exc:
            if not isinstance(exc.__cause__, gate.NotAMemberError):
                self._refusals.count(gate.HANDSHAKE)
            _LOG.debug("an incoming connection failed: %r", exc)
            return
        finally:
            self._handshakes -= 1
        await self._hold(Connection(str(session.get_remote_peer()), session, tcp))

    async def _hold(
        self, connection: Connection, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the connection in the books while it lives; a failure inside ends it and nothing else."""
        held = self._connections.setdefault(connection.peer_id, [])
        held.append(connection)
        if len(held) > _CONNECTIONS_PER_MEMBER:
            held[0].close()
        try:
            await connection.run(self._answer, task_status=task_status)
        except Exception:
            _LOG.exception("the connection to %s failed", connection.peer_id)
        finally:
            held.remove(connection)
            if not held and self._connections.get(connection.peer_id) is held:
                del self._connections[connection.peer_id]

    def _live(self, peer_id: str) -> list[Connection]:
        return [connection for connection in self._connections.get(peer_id, ()) if connection.is_live]

    async def _answer(self, peer_id: str, stream: MemberStream) -> None:
        """Serve one stream of a member; whatever it sends, only this stream ends."""
        self._streams[peer_id] += 1
        try:
            protocol = await stream.offer(list(self._handlers), self._deadlines.negotiate)
            if self._streams[peer_id] > self._streams_per_member:
                self._refusals.add(gate.BUSY, peer_id)
                if protocol == PROTOCOL_ID:
                    await self._turn_away(stream)
            else:
                await self._handlers[protocol](peer_id, stream)
        except PeerTooSlowError:
            self._refusals.add(gate.TOO_SLOW, peer_id)
        except PeerError as exc:
            self._refusals.add(gate.PROTOCOL, peer_id)
            _LOG.debug("a stream of %s ended: %s", peer_id, exc)
        except Exception:
            _LOG.exception("serving a stream of %s failed", peer_id)
        finally:
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]
            await stream.abandon()

    async def _turn_away(self, stream: MemberStream) -> None:
        with trio.move_on_after(self._deadlines.request):
            await stream.write(encode_head(Status.BUSY))
            await stream.finish()
            while await stream.read(READ_BYTES):
                pass

    async def _serve(self, peer_id: str, stream: MemberStream) -> None:
        """Answer requests until the peer has no more, leaves, or is no member any longer."""
        while True:
            with trio.move_on_after(self._deadlines.idle) as waiting:
                first = await stream.read(1)
            if waiting.cancelled_caught or not first:
                return
            with _deadline(self._deadlines.request, "receiving a request"):
                cids = await read_request(stream, first)
            for cid in cids:
                if not self._is_member(peer_id):
                    self._refusals.add(gate.NOT_A_MEMBER, peer_id, cid)
                    return
                status, data = await trio.to_thread.run_sync(
                    self._look_up, peer_id, cid, limiter=self._lookups
                )
                if status is Status.NOT_AUTHORISED:
                    self._refusals.add(gate.NOT_AUTHORISED, peer_id, cid)
                try:
                    with _deadline(self._deadlines.block, f"sending block {cid}"):
                        await stream.write(encode_head(status, len(data)) + data)
                except PeerTooSlowError:
                    raise
                except PeerError:
                    return

    def _look_up(self, peer_id: str, cid: Cid) -> tuple[Status, bytes]:
        """Decide and read, in a worker thread; a failure of this node looks like an absent block."""
        try:
            if not self._authorise(peer_id, cid):
                return Status.NOT_AUTHORISED, b""
            data = self._read_block(cid)
            if data is None or len(data) > MAX_BLOCK_BYTES:
                return Status.NOT_FOUND, b""
        except UsufructError as exc:
            _LOG.warning("block %s cannot be served: %s", cid, exc)
            return Status.NOT_FOUND, b""
        return Status.BLOCK, data


@contextlib.contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as exc:
        raise PeerTooSlowError(f"{what} took more than {seconds:g} s") from exc


def _refusal_of(status: Status, peer_id: str, cid: Cid) -> UsufructError:
    if status is Status.NOT_FOUND:
        return BlockNotFoundError(f"{peer_id} does not have block {cid}")
    if status is Status.BUSY:
        return PeerBusyError(f"{peer_id} serves enough of our streams already")
    return PeerRefusedError(
        f"{peer_id} says that we may not have block {cid}",
        hint="a live job or grant must give this organisation a role that needs the block",
    )


def _dial_address(multiaddr: str, peer_id: str) -> tuple[str, int]:
    """Return host and port of a multiaddr that, if it names a peer, names `peer_id`."""
    match = _MULTIADDR.fullmatch(multiaddr)
    if match is None:
        raise InputError(
            f"not an address that can be dialled: {multiaddr[:200]!r}",
            hint="it looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
        )
    host, port = match["host"], int(match["port"])
    if match["peer"] is not None and match["peer"] != peer_id:
        raise InputError(f"the address {multiaddr!r} belongs to another peer than {peer_id}")
    if match["kind"] in ("ip4", "ip6"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError as exc:
            raise InputError(f"not an IP address: {host!r}") from exc
        if version != int(match["kind"][2]):
            raise InputError(f"not an IPv{match['kind'][2]} address: {host!r}")
    if not 1 <= port <= 65535:
        raise InputError(f"not a TCP port: {port}")
    return host, port
