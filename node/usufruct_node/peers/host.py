"""The peer host: the connections of one node, and what is spoken on their streams.

Which addresses members have, what makes one a member, and what a role entitles it to, is decided elsewhere and passed in.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from usufruct.content import Cid
from usufruct.errors import (
    ConfigurationError,
    InputError,
    PeerError,
    PeerProtocolError,
    PeerRefusedError,
    PeerTooSlowError,
)
from usufruct_node.peers import bitswap_messages, gate, identify
from usufruct_node.peers.address import dial_address
from usufruct_node.peers.asking import WINDOW_BYTES, BlockLine, Line, refusal_of
from usufruct_node.peers.bitswap import Bitswap
from usufruct_node.peers.connection import READ_BYTES, Connection, MemberStream, TcpStream, raw_connection
from usufruct_node.peers.deadlines import Deadlines, within
from usufruct_node.peers.doorstep import Doorstep
from usufruct_node.peers.gate import GatedNoise, Refusal, RefusalLog
from usufruct_node.peers.identity import PeerIdentity, parse_peer_id
from usufruct_node.peers.private_network import PrivateWire
from usufruct_node.peers.protocol import MAX_CIDS, PROTOCOL_ID, Status
from usufruct_node.peers.quota import Quota, Quotas
from usufruct_node.peers.serving import BlockServer
from usufruct_node.peers.shelf import Shelf

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_LOG = logging.getLogger(__name__)

StreamHandler = Callable[[str, MemberStream], Awaitable[None]]
"""Serves one stream of the member whose peer id it is given; whatever it raises ends that stream only."""

_MAX_CONNECTIONS = 512
_CONNECTIONS_PER_MEMBER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerState:
    """One live connection."""

    peer_id: str

    address: str

    is_outgoing: bool
    """Whether this node dialled."""

    opened_at: float
    """Unix seconds."""

    received_bytes: int
    """Over the wire, encryption included."""

    sent_bytes: int


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
        has_block: Callable[[Cid], bool] | None = None,
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        quota: Quota | None = None,
        swarm_key: bytes | None = None,
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
        has_block :
            Whether the block is here, without reading it. Called in a worker thread. None asks `read_block`.
        listen_host :
            IP address to listen on.
        listen_port :
            TCP port; 0 lets the system choose.
        quota :
            What one member may take.
        swarm_key :
            32 bytes shared by all members, under which every connection is hidden; None for no such layer.
        """
        self._identity = identity
        self._is_member = is_member
        self._listen_host = listen_host
        self._listen_port = listen_port
        self._swarm_key = swarm_key
        self._deadlines = deadlines or Deadlines()
        self._refusals = RefusalLog()
        self.quota = quota or Quota()
        self._quotas = Quotas(self.quota)
        self.shelf = Shelf(
            is_member=is_member,
            authorise=authorise,
            read_block=read_block,
            has_block=has_block,
            refusals=self._refusals,
            quotas=self._quotas,
        )
        self._blocks = BlockServer(self.shelf, self._deadlines)
        self._bitswap = Bitswap(
            shelf=self.shelf, open_back=self.open_back, refuse=self.refuse, deadlines=self._deadlines
        )
        self._handlers: dict[str, StreamHandler] = {
            PROTOCOL_ID: self._blocks.answer,
            bitswap_messages.PROTOCOL_ID: self._bitswap.answer,
        }
        self._handlers[identify.PROTOCOL_ID] = identify.Identification(
            identity,
            multiaddr=lambda: self.multiaddr,
            protocols=self._handlers.keys(),
            deadlines=self._deadlines,
        ).answer
        noise = GatedNoise(identity, is_member=is_member, refusals=self._refusals)
        self._upgrader = TransportUpgrader({NOISE: noise}, {YAMUX: Yamux})
        self._connections: dict[str, list[Connection]] = {}
        self._streams: Counter[str] = Counter()
        self._doorstep = Doorstep()
        self._dialling: dict[str, trio.Lock] = {}
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

    @property
    def is_private(self) -> bool:
        """Whether connections are hidden under a shared key."""
        return self._swarm_key is not None

    def connected(self) -> list[str]:
        """Return the peer ids with a live connection, sorted."""
        return sorted(peer for peer in self._connections if self._live(peer))

    def peers(self) -> list[PeerState]:
        """Return the live connections, by peer id."""
        return [
            PeerState(
                peer_id=peer,
                address=connection.address,
                is_outgoing=connection.is_outgoing,
                opened_at=connection.opened_at,
                received_bytes=connection.received_bytes,
                sent_bytes=connection.sent_bytes,
            )
            for peer in self.connected()
            for connection in self._live(peer)
        ]

    def refusals(self) -> list[Refusal]:
        """Return the last refusals by this node, oldest first."""
        return self._refusals.last()

    def refusal_counts(self) -> dict[str, int]:
        """Return how many refusals there were since the start, by reason."""
        return self._refusals.counts()

    def refuse(self, reason: str, peer_id: str, cid: Cid | None = None) -> None:
        """Record that a peer was refused something, or struck off, for one of `gate`'s reasons."""
        self._refusals.add(reason, peer_id, cid)

    async def close_peer(self, peer_id: str) -> None:
        """End every connection to the peer; make `is_member` false first, or it will simply come back."""
        held = list(self._connections.get(peer_id, ()))
        for connection in held:
            connection.close()
        for connection in held:
            await connection.closed.wait()

    async def open_stream(self, peer_id: str, multiaddr: str, protocol: str) -> MemberStream:
        """Open a stream to a member, on a live connection or a new one; abandon it in the end.

        Parameters
        ----------
        peer_id :
            Who must answer; another identity at the address is refused.
        multiaddr :
            `/ip4|ip6|dns|dns4|dns6/…/tcp/…`, with `/p2p/<peer_id>` or without.

        Raises
        ------
        InputError
            If the peer id or the address is malformed.
        PeerRefusedError
            If either side's gate refuses.
        PeerProtocolError
            If the peer does not speak the protocol.
        PeerError
            If it is unreachable or too slow.
        """
        parse_peer_id(peer_id)
        host, port = dial_address(multiaddr, peer_id)
        if not self._is_member(peer_id):
            self._refusals.add(gate.NOT_A_MEMBER, peer_id)
            raise PeerRefusedError(f"{peer_id} is not an active member")
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                for connection in self._live(peer_id):
                    try:
                        return await self._negotiated(connection, protocol)
                    except PeerProtocolError:
                        raise
                    except PeerError:
                        connection.close()
                        await connection.closed.wait()
                return await self._negotiated(await self._dial(peer_id, host, port), protocol)
        finally:
            if not lock.locked():
                self._dialling.pop(peer_id, None)

    async def open_back(self, peer_id: str, protocol: str) -> MemberStream:
        """Open a stream to a member that is connected; never dials.

        Raises
        ------
        PeerError
            If it is not connected, or does not agree on the protocol.
        """
        for connection in self._live(peer_id):
            return await self._negotiated(connection, protocol)
        raise PeerError(f"{peer_id} is not connected")

    async def line(self, peer_id: str, multiaddr: str) -> Line:
        """Open a way to ask a member for blocks, by Bitswap if it does not speak the block protocol.

        Errors as for `open_stream`.
        """
        try:
            stream = await self.open_stream(peer_id, multiaddr, PROTOCOL_ID)
        except PeerProtocolError:
            stream = await self.open_stream(peer_id, multiaddr, bitswap_messages.PROTOCOL_ID)
            return self._bitswap.line(peer_id, stream)
        try:
            await stream.widen(WINDOW_BYTES)
        except BaseException:
            await stream.abandon()
            raise
        return BlockLine(stream, peer_id, self._deadlines)

    async def fetch(
        self, peer_id: str, multiaddr: str, cids: Sequence[Cid]
    ) -> AsyncGenerator[tuple[Cid, bytes], None]:
        """Fetch blocks from one member, in the order in which they come.

        Use it under `contextlib.aclosing`. A pause of several seconds between two blocks makes the peer give up. For many
        blocks, or several holders, see `fetching.fetch_blocks`.

        Parameters
        ----------
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
        PeerQuotaError
            If we are over the peer's quota.
        BlockMismatchError
            If the peer sent other bytes than those asked for.
        PeerError
            If it is unreachable, too slow or breaks the protocol.
        """
        parse_peer_id(peer_id)
        if len(set(cids)) != len(cids):
            raise InputError("a block is asked for twice in one fetch")
        if not cids:
            dial_address(multiaddr, peer_id)
            return
        line = await self.line(peer_id, multiaddr)
        try:
            asked, got = 0, 0
            while got < len(cids):
                while asked < min(len(cids), got + 2 * MAX_CIDS):
                    batch = cids[asked : asked + MAX_CIDS]
                    await line.ask(batch)
                    asked += len(batch)
                for answer in await line.take():
                    if answer.status is not Status.BLOCK:
                        raise refusal_of(answer.status, peer_id, answer.cid)
                    answer.cid.check(answer.data)
                    got += 1
                    yield answer.cid, answer.data
        finally:
            await line.abandon()

    async def _negotiated(self, connection: Connection, protocol: str) -> MemberStream:
        with within(self._deadlines.negotiate, "opening a stream"):
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
        with within(self._deadlines.connect, f"connecting to {peer_id}"):
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
                self._raw(tcp, initiator=True), True, ID.from_string(peer_id)
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

    def _raw(self, tcp: TcpStream, *, initiator: bool) -> Any:
        """The connection as the handshake sees it."""
        wire = tcp if self._swarm_key is None else PrivateWire(tcp, self._swarm_key)
        return raw_connection(wire, initiator=initiator)

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Take one incoming connection from handshake to end."""
        if sum(map(len, self._connections.values())) >= _MAX_CONNECTIONS:
            self._refusals.count(gate.BUSY)
            return
        tcp, session = TcpStream(stream), None
        with self._doorstep.place(tcp) as place:
            session = await self._admit(tcp)
        if place.cancel_called:
            self._refusals.count(gate.BUSY)
        elif session is not None:
            await self._hold(Connection(str(session.get_remote_peer()), session, tcp))

    async def _admit(self, tcp: TcpStream) -> Any:
        """Shake hands with whoever connected; the session, or None if it is not to go on."""
        try:
            with trio.fail_after(self._deadlines.connect):
                # Whoever dials speaks first.
                with trio.fail_after(self._deadlines.silence):
                    await trio.lowlevel.wait_readable(tcp.stream.socket.fileno())
                session = await self._upgrader.upgrade_security(self._raw(tcp, initiator=False), False)
                tcp.read_bytes = READ_BYTES
                await self._upgrader.muxer_multistream.select_transport(session)
        except Exception as exc:
            if not isinstance(exc.__cause__, gate.NotAMemberError):
                self._refusals.count(gate.HANDSHAKE)
            _LOG.debug("an incoming connection failed: %r", exc)
            return None
        return session

    async def _hold(
        self, connection: Connection, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the connection in the books while it lives; a failure inside ends it and nothing else."""
        held = self._connections.setdefault(connection.peer_id, [])
        held.append(connection)
        if not self._is_member(connection.peer_id):
            # It was one during the handshake.
            self._refusals.add(gate.NOT_A_MEMBER, connection.peer_id)
            connection.close()
        for old in self._live(connection.peer_id)[:-_CONNECTIONS_PER_MEMBER]:
            old.close()
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
            protocol = await stream.offer(self._handlers, self._deadlines.negotiate)
            if self._streams[peer_id] <= self._quotas.streams:
                await self._handlers[protocol](peer_id, stream)
            else:
                self._refusals.add(gate.BUSY, peer_id)
                if protocol == PROTOCOL_ID:
                    await self._blocks.turn_away(stream)
        except* PeerTooSlowError:
            self._refusals.add(gate.TOO_SLOW, peer_id)
        except* PeerError as group:
            self._refusals.add(gate.PROTOCOL, peer_id)
            _LOG.debug("a stream of %s ended: %r", peer_id, group.exceptions)
        except* Exception:
            _LOG.exception("serving a stream of %s failed", peer_id)
        finally:
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]
            await stream.abandon()
