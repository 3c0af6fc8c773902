"""What strangers may do to a node before it knows who they are: send keys of any kind, and sit on its doorstep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from Crypto.PublicKey import RSA
from libp2p.crypto.keys import KeyPair, KeyType
from libp2p.crypto.pb.crypto_pb2 import PublicKey
from libp2p.crypto.serialization import key_type_to_public_key_deserializer
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader
from peer_network import MEMBERS, Network, in_network, until

from usufruct.errors import PeerError
from usufruct_node.peers import Deadlines, PeerHost
from usufruct_node.peers.doorstep import PLACES
from usufruct_node.peers.protocol import PROTOCOL_ID

SLOW_KEY = RSA.generate(1024).export_key("DER", pkcs=1)
"""A private key, which the library takes for a public one, and tests for primes."""


class OddKey:
    """A member's private key that presents other bytes as its public key."""

    def __init__(self, kind: KeyType, data: bytes) -> None:
        self._presented = PublicKey(key_type=kind.value, data=data).SerializeToString()

    def get_public_key(self) -> OddKey:
        return self

    def serialize(self) -> bytes:
        return self._presented

    def sign(self, data: bytes) -> bytes:
        return bytes(64)


def under_odd_key(host: PeerHost, key: OddKey) -> PeerHost:
    """A host that shakes hands with such a key, in both directions."""
    honest: Any = MEMBERS[0].key_pair
    noise = NoiseTransport(KeyPair(key, honest.public_key), noise_privkey=create_noise_key_pair().private_key)
    host._upgrader = TransportUpgrader({NOISE: noise}, {YAMUX: Yamux})
    return host


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes that were parsed as an RSA key."""
    seen: list[bytes] = []

    def import_key(data: bytes, *_: Any) -> Any:
        seen.append(data)
        raise ValueError("parsed")

    monkeypatch.setattr(RSA, "import_key", import_key)
    return seen


ODD_KEYS = {
    "rsa": OddKey(KeyType.RSA, SLOW_KEY),
    "long rsa": OddKey(KeyType.RSA, b"\x30\x82\xfa\x00" + bytes(64_000)),
    "secp256k1": OddKey(KeyType.Secp256k1, b"\x02" + b"\x11" * 32),
    "ecdsa": OddKey(KeyType.ECDSA, SLOW_KEY),
    "ed25519 of the wrong length": OddKey(KeyType.Ed25519, SLOW_KEY),
}


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=ODD_KEYS)
def test_a_dialler_with_another_kind_of_key_is_refused_before_it_is_parsed(
    key: OddKey, parsed: list[bytes]
) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0)
        client = under_odd_key(await network.start(1), key)
        with pytest.raises(PeerError):
            await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
        await until(lambda: server.refusal_counts() == {"handshake": 1})
        assert server.connected() == []

    in_network(scenario)
    assert parsed == []


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=ODD_KEYS)
def test_a_member_that_answers_with_another_kind_of_key_is_refused_before_it_is_parsed(
    key: OddKey, parsed: list[bytes]
) -> None:
    async def scenario(network: Network) -> None:
        server = under_odd_key(await network.start(0), key)
        client = await network.start(1)
        with pytest.raises(PeerError, match="handshake"):
            await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
        assert client.connected() == []

    in_network(scenario)
    assert parsed == []


def test_the_library_knows_no_other_kind_of_public_key() -> None:
    assert list(key_type_to_public_key_deserializer) == [KeyType.Ed25519.value]


@asynccontextmanager
async def strangers(server: PeerHost, count: int, opening: bytes) -> AsyncIterator[list[trio.SocketStream]]:
    """So many connections that say `opening` and nothing else."""
    port = int(server.multiaddr.split("/")[4])
    streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(count)]
    try:
        if opening:
            for stream in streams:
                await stream.send_all(opening)
        yield streams
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("opening", [b"", b"\x13/multistream/1.0.0\n"], ids=["silent", "half"])
def test_a_member_gets_in_past_any_number_of_idle_strangers(opening: bytes) -> None:
    patient = Deadlines(connect=60, silence=60)

    async def scenario(network: Network) -> None:
        server = await network.start(0, deadlines=patient)
        async with strangers(server, PLACES + 50, opening):
            await until(lambda: server.refusal_counts() == {"busy": 50})
            client = await network.start(1)
            stream = await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
            await stream.abandon()
            assert server.connected() == [client.peer_id]
            assert server.refusal_counts() == {"busy": 51}
            assert len(server._doorstep) == PLACES - 1

    in_network(scenario)


def test_whoever_is_silent_gives_way_to_strangers_before_those_that_speak() -> None:
    patient = Deadlines(connect=60, silence=60)

    async def scenario(network: Network) -> None:
        server = await network.start(0, deadlines=patient)
        async with (
            strangers(server, 3, b"\x13/multistream/1.0.0\n"),
            strangers(server, PLACES, b""),
        ):
            await until(lambda: server.refusal_counts() == {"busy": 3})
            waiting = list(server._doorstep._waiting.values())
            assert [bool(tcp.received_bytes) for tcp in waiting] == [True] * 3 + [False] * (PLACES - 3)

    in_network(scenario)


def test_a_silent_stranger_is_let_go_long_before_one_that_speaks() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, deadlines=Deadlines(connect=60, silence=0.2))
        async with strangers(server, 2, b"") as silent, strangers(server, 1, b"\x13"):
            for stream in silent:
                assert await stream.receive_some() == b""
            await until(lambda: server.refusal_counts() == {"handshake": 2})
            assert len(server._doorstep) == 1

    in_network(scenario)
