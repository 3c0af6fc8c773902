"""Real hosts on loopback: the gate, the exchange, and peers that misbehave."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_DATA, YAMUX_HEADER_FORMAT

from usufruct.content import MAX_BLOCK_BYTES, Cid, EmbeddedBlockStore
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    InputError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTooSlowError,
    StoreFullError,
)
from usufruct_node.peers import Deadlines, PeerHost, PeerIdentity, Quota
from usufruct_node.peers.connection import MAX_STREAMS, MemberStream, TcpStream
from usufruct_node.peers.protocol import PROTOCOL_ID, Status, encode_head, encode_request

NORTH, SOUTH, STRANGER = (PeerIdentity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
BLOCKS = [hashlib.shake_256(bytes([n])).digest(27_000) for n in range(200)]
HELD = {Cid.of(block): block for block in BLOCKS}
CIDS = list(HELD)
QUICK = Deadlines(connect=1.0, negotiate=0.5, idle=1.0, request=0.5, block=1.0)


class Network:
    """Hosts in one loop that share one set of members."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.members = {NORTH.peer_id, SOUTH.peer_id}

    async def start(self, identity: PeerIdentity, **options: Any) -> PeerHost:
        given: dict[str, Any] = {
            "is_member": self.members.__contains__,
            "authorise": lambda peer_id, cid: True,
            "read_block": HELD.get,
        }
        host = PeerHost(identity=identity, **(given | options))
        await self.nursery.start(host.run)
        return host


def in_network(scenario: Callable[[Network], Awaitable[None]]) -> None:
    """Run `scenario` with a network that is torn down after it, within a minute."""

    async def run() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await scenario(Network(nursery))
                nursery.cancel_scope.cancel()

    trio.run(run)


async def fetch_all(host: PeerHost, server: PeerHost, cids: Sequence[Cid]) -> list[tuple[Cid, bytes]]:
    async with aclosing(host.fetch(server.peer_id, server.multiaddr, cids)) as blocks:
        return [item async for item in blocks]


@asynccontextmanager
async def raw_stream(host: PeerHost, server: PeerHost) -> AsyncIterator[MemberStream]:
    """A negotiated stream on which a test may write what it likes."""
    stream = await host.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
    try:
        yield stream
    finally:
        await stream.abandon()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


def port_of(host: PeerHost) -> int:
    return int(host.multiaddr.split("/")[4])


def reasons(host: PeerHost) -> list[str]:
    return [refusal.reason for refusal in host.refusals()]


def test_blocks_arrive_whole_and_in_order() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        cids = list(reversed(HELD))
        assert await fetch_all(client, server, cids) == [(cid, HELD[cid]) for cid in cids]
        assert client.connected() == [NORTH.peer_id]
        assert server.connected() == [SOUTH.peer_id]
        assert server.refusals() == client.refusals() == []

    in_network(scenario)


@pytest.mark.parametrize("size_bytes", [0, 1, 70_000, MAX_BLOCK_BYTES])
def test_blocks_of_every_size_arrive(size_bytes: int) -> None:
    block = os.urandom(size_bytes)

    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, read_block=lambda cid: block)
        client = await network.start(SOUTH)
        assert await fetch_all(client, server, [Cid.of(block)]) == [(Cid.of(block), block)]

    in_network(scenario)


SERVER = """
import hashlib, sys, trio
from usufruct.content import Cid
from usufruct_node.peers import PeerHost, PeerIdentity
blocks = [hashlib.shake_256(n.to_bytes(2)).digest(27_000) for n in range(741)]
held = {Cid.of(block): block for block in blocks}
async def main():
    host = PeerHost(identity=PeerIdentity.from_seed(bytes([1]) * 32), is_member=lambda peer: True,
                    authorise=lambda peer, cid: True, read_block=held.get)
    async with trio.open_nursery() as nursery:
        print(await nursery.start(host.run), flush=True)
trio.run(main)
"""


def test_twenty_megabytes_move_between_two_processes_into_a_store(tmp_path: Path) -> None:
    wanted = [Cid.of(hashlib.shake_256(n.to_bytes(2)).digest(27_000)) for n in range(741)]
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None

    async def scenario(network: Network) -> None:
        assert server.stdout is not None
        multiaddr = (await trio.to_thread.run_sync(server.stdout.readline)).strip()
        client = await network.start(SOUTH)
        with EmbeddedBlockStore(tmp_path / "store") as store:
            async with aclosing(client.fetch(NORTH.peer_id, multiaddr, wanted)) as blocks:
                async for _, data in blocks:
                    await trio.to_thread.run_sync(store.put, data)
            assert set(store.cids()) == set(wanted)
            assert store.usage_bytes() == 741 * 27_000
        server.send_signal(signal.SIGKILL)
        with pytest.raises(PeerError):
            async with aclosing(client.fetch(NORTH.peer_id, multiaddr, wanted)) as blocks:
                async for _ in blocks:
                    pass

    try:
        in_network(scenario)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_a_non_member_is_refused_before_any_stream() -> None:
    asked: list[str] = []

    def authorise(peer_id: str, cid: Cid) -> bool:
        asked.append(peer_id)
        return True

    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, authorise=authorise)
        stranger = await network.start(STRANGER, is_member=lambda peer_id: True)
        for _ in range(3):
            with pytest.raises(PeerRefusedError):
                await fetch_all(stranger, server, CIDS[:1])
        assert asked == []
        assert server.connected() == []
        assert {(refusal.peer_id, refusal.reason) for refusal in server.refusals()} == {
            (STRANGER.peer_id, "not a member")
        }
        assert server.refusal_counts() == {"not a member": 3}
        assert abs(server.refusals()[0].at - time.time()) < 60

    in_network(scenario)


def test_a_non_member_is_not_even_dialled() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(STRANGER, is_member=lambda peer_id: True)
        client = await network.start(SOUTH)
        with pytest.raises(PeerRefusedError):
            await fetch_all(client, server, CIDS[:1])
        assert server.connected() == []
        assert server.refusal_counts() == {}
        assert reasons(client) == ["not a member"]

    in_network(scenario)


def test_another_identity_at_a_members_address_is_refused() -> None:
    async def scenario(network: Network) -> None:
        impostor = await network.start(STRANGER, is_member=lambda peer_id: True)
        client = await network.start(SOUTH)
        address = impostor.multiaddr.rsplit("/p2p/", 1)[0]
        with pytest.raises(PeerRefusedError, match="another identity"):
            async with aclosing(client.fetch(NORTH.peer_id, address, CIDS[:1])) as blocks:
                async for _ in blocks:
                    pass
        assert [(refusal.peer_id, refusal.reason) for refusal in client.refusals()] == [
            (NORTH.peer_id, "peer id mismatch")
        ]

    in_network(scenario)


class ClaimingKey:
    """The stranger's private key, passing itself off as north's."""

    def __init__(self) -> None:
        self._own = STRANGER.key_pair.private_key

    def get_public_key(self) -> Any:
        return NORTH.key_pair.public_key

    def sign(self, data: bytes) -> bytes:
        signed: bytes = self._own.sign(data)
        return signed


async def multistream(stream: trio.SocketStream, *proposals: str) -> list[str]:
    """Shake hands in multistream-select and return the answer to each proposal."""
    answers = []
    for line in ("/multistream/1.0.0", *proposals):
        await stream.send_all(bytes((len(line) + 1,)) + line.encode() + b"\n")
        head = await stream.receive_some(1)
        answer = b""
        while len(answer) < head[0]:
            answer += await stream.receive_some(head[0] - len(answer))
        answers.append(answer.decode().strip())
    return answers


def test_a_peer_that_claims_a_members_id_without_its_key_is_refused() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(SOUTH)
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
        assert (await multistream(stream, "/noise"))[-1] == "/noise"
        forger = NoiseTransport(
            KeyPair(ClaimingKey(), NORTH.key_pair.public_key),
            noise_privkey=create_noise_key_pair().private_key,
        )
        assert str(forger.local_peer) == NORTH.peer_id
        await forger.secure_outbound(RawConnection(TcpStream(stream), True), ID.from_string(SOUTH.peer_id))
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        assert server.connected() == []
        assert server.refusal_counts() == {"handshake": 1}

    in_network(scenario)


def test_only_noise_is_offered() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
        answers = await multistream(stream, "/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0", "ls")
        assert answers == ["/multistream/1.0.0", "na", "na", "na", "/noise"]

    in_network(scenario)


@pytest.mark.parametrize("protocol", ["/ipfs/kad/1.0.0", "/ipfs/ping/1.0.0", "/ipfs/bitswap/1.1.0"])
def test_only_block_protocols_are_offered_on_streams(protocol: str) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        await fetch_all(client, server, CIDS[:1])
        stream = await client._connections[NORTH.peer_id][0].open_stream()
        with pytest.raises(PeerError):
            await stream.choose(protocol, 1.0)
        await stream.abandon()
        assert len(await fetch_all(client, server, CIDS[:1])) == 1

    in_network(scenario)


def test_a_member_removed_mid_connection_is_cut_off_and_does_not_come_back() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        members_for_south = set(network.members)
        client = await network.start(SOUTH, is_member=members_for_south.__contains__)
        received = 0
        with pytest.raises(PeerError):
            async with aclosing(client.fetch(NORTH.peer_id, server.multiaddr, CIDS)) as blocks:
                async for _ in blocks:
                    received += 1
                    if received == 10:
                        network.members.discard(SOUTH.peer_id)
                        await server.close_peer(SOUTH.peer_id)
                        assert server.connected() == []
        assert 10 <= received < len(HELD)
        with pytest.raises(PeerRefusedError):
            await fetch_all(client, server, CIDS[:1])
        assert server.connected() == []
        assert "not a member" in reasons(server)
        network.members.add(SOUTH.peer_id)
        assert len(await fetch_all(client, server, CIDS[:1])) == 1

    in_network(scenario)


def test_a_removed_member_gets_no_further_block_even_before_its_connection_is_closed() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH, is_member=lambda peer_id: True)
        await fetch_all(client, server, CIDS[:1])
        network.members.discard(SOUTH.peer_id)
        with pytest.raises(PeerError):
            await fetch_all(client, server, CIDS[:1])
        assert reasons(server) == ["not a member"]

    in_network(scenario)


def test_an_existing_connection_does_not_help_once_our_side_no_longer_counts_the_peer() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, is_member=lambda peer_id: True)
        client = await network.start(SOUTH)
        await fetch_all(client, server, CIDS[:1])
        network.members.discard(NORTH.peer_id)
        with pytest.raises(PeerRefusedError):
            await fetch_all(client, server, CIDS[:1])

    in_network(scenario)


def test_an_unauthorised_block_is_refused_counted_and_never_read() -> None:
    allowed, forbidden, absent = CIDS[0], CIDS[1], Cid.of(b"nobody has this")
    read: list[Cid] = []

    def read_block(cid: Cid) -> bytes | None:
        read.append(cid)
        return HELD.get(cid)

    async def scenario(network: Network) -> None:
        server = await network.start(
            NORTH,
            authorise=lambda peer_id, cid: peer_id == SOUTH.peer_id and cid == allowed,
            read_block=read_block,
        )
        client = await network.start(SOUTH)
        assert len(await fetch_all(client, server, [allowed])) == 1
        for cid in (forbidden, absent):
            with pytest.raises(PeerRefusedError, match="may not have"):
                await fetch_all(client, server, [cid])
        assert read == [allowed]
        assert [(refusal.peer_id, refusal.reason, refusal.cid) for refusal in server.refusals()] == [
            (SOUTH.peer_id, "not authorised", forbidden),
            (SOUTH.peer_id, "not authorised", absent),
        ]

    in_network(scenario)


def test_an_absent_block_is_not_found_and_what_came_before_it_is_kept() -> None:
    present, absent = CIDS[0], Cid.of(b"nobody has this")

    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        kept = []
        with pytest.raises(BlockNotFoundError):
            async with aclosing(client.fetch(NORTH.peer_id, server.multiaddr, [present, absent])) as blocks:
                async for cid, _ in blocks:
                    kept.append(cid)
        assert kept == [present]

    in_network(scenario)


def broken_read(cid: Cid) -> bytes | None:
    raise StoreFullError("a store in trouble")


def oversize_read(cid: Cid) -> bytes | None:
    return bytes(MAX_BLOCK_BYTES + 1)


@pytest.mark.parametrize("read_block", [broken_read, oversize_read])
def test_trouble_in_the_servers_store_looks_like_an_absent_block(
    read_block: Callable[[Cid], bytes | None],
) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, read_block=read_block)
        client = await network.start(SOUTH)
        for _ in range(2):
            with pytest.raises(BlockNotFoundError):
                await fetch_all(client, server, CIDS[:1])
        assert client.connected() == [NORTH.peer_id]

    in_network(scenario)


def crashing_read(cid: Cid) -> bytes | None:
    raise ZeroDivisionError


def test_a_bug_behind_one_stream_ends_that_stream_only() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, read_block=crashing_read)
        client = await network.start(SOUTH)
        for _ in range(2):
            with pytest.raises(PeerError):
                await fetch_all(client, server, CIDS[:1])
        assert server.connected() == [SOUTH.peer_id]

    in_network(scenario)


def test_malicious_peer_wrong_block_never_reaches_the_caller() -> None:
    honest = CIDS[:3]
    lie = {honest[1]: HELD[honest[1]][:-1] + b"!"}

    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, read_block=(HELD | lie).get)
        client = await network.start(SOUTH)
        kept = []
        with pytest.raises(BlockMismatchError):
            async with aclosing(client.fetch(NORTH.peer_id, server.multiaddr, honest)) as blocks:
                async for cid, data in blocks:
                    kept.append((cid, data))
        assert kept == [(honest[0], HELD[honest[0]])]

    in_network(scenario)


def served_by(
    handler: Callable[[MemberStream], Awaitable[None]],
) -> Callable[[Network], Awaitable[PeerHost]]:
    """A server whose streams are answered by `handler` once the protocol is negotiated."""

    async def start(network: Network) -> PeerHost:
        server = await network.start(NORTH)

        async def answer(peer_id: str, stream: MemberStream) -> None:
            try:
                await stream.offer({PROTOCOL_ID}, 5.0)
                await handler(stream)
            except PeerError:
                pass
            finally:
                await stream.abandon()

        server._answer = answer  # type: ignore[method-assign]
        return server

    return start


def test_a_slow_loris_server_is_given_up() -> None:
    async def drip(stream: MemberStream) -> None:
        await stream.write(encode_head(Status.BLOCK, 1000))
        while True:
            await stream.write(b"x")
            await trio.sleep(0.1)

    async def scenario(network: Network) -> None:
        server = await served_by(drip)(network)
        client = await network.start(SOUTH, deadlines=QUICK)
        start = trio.current_time()
        with pytest.raises(PeerTooSlowError):
            await fetch_all(client, server, CIDS[:1])
        assert trio.current_time() - start < 4

    in_network(scenario)


@pytest.mark.parametrize(
    "reply",
    [b"\xff" * 100, encode_head(Status.BLOCK, 5) + b"abc", encode_head(Status.BLOCK)[:3], b""],
    ids=["garbage", "cut block", "cut head", "nothing"],
)
def test_a_server_that_breaks_the_protocol_is_a_peer_error(reply: bytes) -> None:
    async def answer(stream: MemberStream) -> None:
        if reply:
            await stream.write(reply)
        await stream.finish()
        await trio.sleep(1)

    async def scenario(network: Network) -> None:
        server = await served_by(answer)(network)
        client = await network.start(SOUTH, deadlines=QUICK)
        with pytest.raises(PeerError):
            await fetch_all(client, server, CIDS[:1])

    in_network(scenario)


def test_unsolicited_blocks_are_not_taken() -> None:
    asked, unasked = CIDS[:2]

    async def push(stream: MemberStream) -> None:
        await stream.read(37)
        for cid in (asked, unasked):
            await stream.write(encode_head(Status.BLOCK, len(HELD[cid])) + HELD[cid])
        await trio.sleep(1)

    async def scenario(network: Network) -> None:
        server = await served_by(push)(network)
        client = await network.start(SOUTH)
        assert await fetch_all(client, server, [asked]) == [(asked, HELD[asked])]

    in_network(scenario)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0",
        b"\xff" * 1000,
        b"\x01" + b"../../../etc/passwd".ljust(36, b"\0"),
        b"\x02" + bytes(CIDS[0]) * 2,
        b"\x01" + bytes(36),
    ],
    ids=["no block", "garbage", "path-like", "duplicate", "zeros"],
)
def test_a_client_that_breaks_the_protocol_loses_its_stream_and_is_counted(request_bytes: bytes) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as stream:
            await stream.write(request_bytes)
            with trio.fail_after(5):
                assert await stream.read(1) == b""
        assert reasons(server) == ["protocol"]
        assert len(await fetch_all(client, server, CIDS[:1])) == 1

    in_network(scenario)


def test_a_slow_loris_client_is_cut_off_and_its_slot_is_free_again() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, deadlines=QUICK, quota=Quota(streams=1))
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as stream:
            await stream.write(b"\x40")
            start = trio.current_time()
            with trio.fail_after(5):
                assert await stream.read(1) == b""
            assert trio.current_time() - start < 3
        assert reasons(server) == ["too slow"]
        assert len(await fetch_all(client, server, CIDS[:1])) == 1

    in_network(scenario)


def test_an_idle_stream_is_ended_without_blame() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, deadlines=QUICK)
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as stream:
            with trio.fail_after(5):
                assert await stream.read(1) == b""
        assert server.refusals() == []

    in_network(scenario)


def test_a_client_that_does_not_take_its_blocks_is_cut_off() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, deadlines=QUICK)
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as stream:
            for at in range(0, 192, 64):
                await stream.write(encode_request(CIDS[at : at + 64]))
            await until(lambda: bool(server.refusals()))
        assert reasons(server) == ["too slow"]

    in_network(scenario)


def test_more_streams_than_a_member_may_have_are_told_that_the_node_is_busy() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, quota=Quota(streams=2))
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as first, raw_stream(client, server) as second:
            for stream in (first, second):
                await stream.write(encode_request(CIDS[:1]))
                assert await stream.read(1) == b"\0"
            with pytest.raises(PeerBusyError):
                await fetch_all(client, server, CIDS[:1])
        await until(lambda: not server._streams)
        assert len(await fetch_all(client, server, CIDS[:1])) == 1
        assert reasons(server) == ["busy"]

    in_network(scenario)


def test_a_flood_of_streams_ends_the_connection() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        await fetch_all(client, server, CIDS[:1])
        connection = client._connections[NORTH.peer_id][0]
        with pytest.raises(PeerError):
            for _ in range(10 * MAX_STREAMS):
                await connection.open_stream()
                await trio.sleep(0)
        await until(lambda: server.connected() == [])
        assert len(await fetch_all(client, server, CIDS[:1])) == 1

    in_network(scenario)


@pytest.mark.parametrize("known_stream", [True, False])
def test_a_peer_that_ignores_its_window_is_cut_off(known_stream: bool) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as stream:
            muxer = client._connections[NORTH.peer_id][0]._muxer
            stream_id = stream._stream.stream_id if known_stream else 9999
            length = 300 * 1024
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream_id, length)
            with suppress(ConnectionClosedError):
                await muxer._write_frame(header + bytes(length))
            await until(lambda: server.connected() == [])

    in_network(scenario)


def test_a_frame_that_opens_a_stream_is_bounded_too() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        await fetch_all(client, server, CIDS[:1])
        muxer = client._connections[NORTH.peer_id][0]._muxer
        await muxer._write_frame(
            struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, FLAG_SYN, 9999, 15 * 1024 * 1024)
        )
        await until(lambda: server.connected() == [])

    in_network(scenario)


@pytest.mark.parametrize(
    "opening",
    [b"", b"\x13/multistream/1.0.0\n", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["silent", "half", "huge length", "http"],
)
def test_slow_loris_before_the_handshake_is_bounded_in_time(opening: bytes) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, deadlines=QUICK)
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
        if opening:
            await stream.send_all(opening)
        start = trio.current_time()
        with trio.fail_after(5):
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        assert trio.current_time() - start < 3
        await until(lambda: server.refusal_counts() == {"handshake": 1})
        assert len(await fetch_all(await network.start(SOUTH), server, CIDS[:1])) == 1

    in_network(scenario)


def test_a_flood_before_the_handshake_is_bounded_in_memory() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        before = psutil.Process().memory_info().rss

        async def flood() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
            await stream.send_all(b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
            try:
                for _ in range(64):
                    await stream.send_all(bytes(64 * 1024))
            except trio.BrokenResourceError:
                return

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(flood)
        assert psutil.Process().memory_info().rss - before < 20_000_000

    in_network(scenario)


def test_many_reconnections_leave_nothing_behind() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        for _ in range(30):
            assert len(await fetch_all(client, server, CIDS[:1])) == 1
            await client.close_peer(NORTH.peer_id)
            await until(lambda: server.connected() == [])
        await until(lambda: not server._connections)
        assert client._connections == {}
        assert len(server._doorstep) == 0
        assert client._dialling == {}

    in_network(scenario)


def test_a_burst_of_connections_of_one_member_leaves_no_more_than_it_may_have() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        diallers = [await network.start(SOUTH) for _ in range(30)]
        done = 0

        async def connect(host: PeerHost) -> None:
            nonlocal done
            with suppress(PeerError):
                stream = await host.open_stream(NORTH.peer_id, server.multiaddr, PROTOCOL_ID)
                await stream.abandon()
            done += 1

        for host in diallers:
            network.nursery.start_soon(connect, host)
        most = 0
        while done < len(diallers):
            most = max(most, len(server.peers()))
            await trio.sleep(0)
        assert most <= 4
        await until(lambda: len(server._connections[SOUTH.peer_id]) == 4)
        assert len(server.peers()) == 4

    in_network(scenario)


def test_a_member_removed_between_handshake_and_multiplexing_keeps_no_connection() -> None:
    async def scenario(network: Network) -> None:
        answers = [True]
        server = await network.start(NORTH, is_member=lambda peer_id: bool(answers) and answers.pop())
        client = await network.start(SOUTH)
        with pytest.raises(PeerError):
            await client.open_stream(NORTH.peer_id, server.multiaddr, PROTOCOL_ID)
        assert reasons(server) == ["not a member"]
        assert server.peers() == []
        await until(lambda: not server._connections)

    in_network(scenario)


def test_parallel_fetches_share_one_connection() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        cids = CIDS

        async def part(number: int) -> None:
            wanted = cids[number::6]
            assert [cid for cid, _ in await fetch_all(client, server, wanted)] == wanted

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(part, number)
        assert len(client._connections[NORTH.peer_id]) == 1
        assert server.refusals() == []

    in_network(scenario)


def test_a_connection_that_died_unseen_is_replaced() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH, deadlines=QUICK)
        await fetch_all(client, server, CIDS[:1])
        await client._connections[NORTH.peer_id][0]._tcp.stream.send_eof()
        assert len(await fetch_all(client, server, CIDS[:1])) == 1

    in_network(scenario)


def test_a_fetch_that_is_given_up_frees_the_server() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        for _ in range(20):
            async with aclosing(client.fetch(NORTH.peer_id, server.multiaddr, CIDS)) as blocks:
                async for _ in blocks:
                    break
        await until(lambda: not server._streams)
        await until(lambda: not server._connections[SOUTH.peer_id][0]._muxer.streams)
        assert client._connections[NORTH.peer_id][0]._muxer.streams == {}
        assert server.refusals() == []

    in_network(scenario)


def test_nobody_at_the_address_is_a_peer_error_within_the_deadline() -> None:
    async def scenario(network: Network) -> None:
        client = await network.start(SOUTH, deadlines=QUICK)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            for listening in (False, True):
                if listening:
                    silent.listen()
                start = trio.current_time()
                with pytest.raises(PeerError):
                    address = f"/ip4/127.0.0.1/tcp/{port}"
                    async with aclosing(client.fetch(NORTH.peer_id, address, CIDS[:1])) as blocks:
                        async for _ in blocks:
                            pass
                assert trio.current_time() - start < 3

    in_network(scenario)


def test_a_taken_port_is_a_configuration_error_that_names_it() -> None:
    async def scenario(network: Network) -> None:
        first = await network.start(NORTH)
        second = PeerHost(
            identity=SOUTH,
            is_member=lambda peer_id: True,
            authorise=lambda peer_id, cid: True,
            read_block=HELD.get,
            listen_port=port_of(first),
        )
        with pytest.raises(ConfigurationError, match=str(port_of(first))):
            await second.run()
        with pytest.raises(PeerError):
            _ = second.multiaddr

    in_network(scenario)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/4001",
        "/ip4/127.0.0.1/tcp/0",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/localhost/tcp/4001",
        "/ip4/::1/tcp/4001",
        "/ip6/127.0.0.1/tcp/4001",
        "/unix/tmp/socket",
        "/ip4/127.0.0.1/tcp/4001/p2p-circuit",
        "/ip4/127.0.0.1/tcp/4001/ws",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{STRANGER.peer_id}",
        "/ip4/127.0.0.1/tcp/4001\n",
    ],
)
def test_malformed_addresses_are_input_errors(address: str) -> None:
    async def scenario(network: Network) -> None:
        client = await network.start(SOUTH)
        with pytest.raises(InputError):
            async with aclosing(client.fetch(NORTH.peer_id, address, CIDS[:1])) as blocks:
                async for _ in blocks:
                    pass

    in_network(scenario)


def test_a_host_that_does_not_run_fetches_nothing() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(NORTH)
        idle = PeerHost(
            identity=SOUTH,
            is_member=lambda peer_id: True,
            authorise=lambda peer_id, cid: True,
            read_block=HELD.get,
        )
        with pytest.raises(PeerError, match="not running"):
            await fetch_all(idle, server, CIDS[:1])
        with pytest.raises(InputError, match="twice"):
            await fetch_all(idle, server, CIDS[:1] * 2)
        assert await fetch_all(idle, server, []) == []

    in_network(scenario)


def test_stopping_a_host_ends_its_connections_and_frees_its_port() -> None:
    async def scenario(network: Network) -> None:
        client = await network.start(SOUTH)
        port = 0
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                own = Network(nursery)
                server = await own.start(NORTH, listen_port=port)
                port = port_of(server)
                assert len(await fetch_all(client, server, CIDS[:1])) == 1
                nursery.cancel_scope.cancel()
            await until(lambda: client.connected() == [])

    in_network(scenario)


def test_refusals_are_bounded_in_number() -> None:
    forbidden = [Cid.of(n.to_bytes(2)) for n in range(640)]

    async def scenario(network: Network) -> None:
        server = await network.start(NORTH, authorise=lambda peer_id, cid: False)
        client = await network.start(SOUTH)
        async with raw_stream(client, server) as stream:
            for at in range(0, len(forbidden), 64):
                await stream.write(encode_request(forbidden[at : at + 64]))
            await until(lambda: server.refusal_counts().get("not authorised") == 640)
        assert len(server.refusals()) == 256
        assert server.refusals()[-1].cid == forbidden[-1]

    in_network(scenario)
