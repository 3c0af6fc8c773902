"""The shared-key layer: the cipher's published vectors, key files, ours with ours, and ours with a real Kubo."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from foreign_ipfs import running_kubo
from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox
from peer_network import Network, in_network, made_blocks, until

from usufruct.errors import ConfigurationError, PeerError
from usufruct_node.peers import Deadlines, Holder, PeerHost, fetch_blocks
from usufruct_node.peers.private_network import load_swarm_key, xsalsa20

HELD = made_blocks(50)
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
QUICK = Deadlines(connect=2.0)


def key_text(key: bytes) -> str:
    return f"/key/swarm/psk/1.0.0/\n/base16/\n{key.hex()}\n"


async def fetch(client: PeerHost, holder: Holder, *, patience_s: float = 0.2) -> None:
    kept: dict[object, bytes] = {}
    await fetch_blocks(
        client, [holder], HELD, missing=list, keep=kept.update, patience_s=patience_s, stall_s=20
    )
    assert kept == HELD


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.binary(max_size=200))
def test_the_stream_is_that_of_libsodium(key: bytes, nonce: bytes, data: bytes) -> None:
    # A secret box is XSalsa20 of the message after the 32 bytes that key its authenticator.
    boxed = SecretBox(key).encrypt(data, nonce).ciphertext[16:]
    assert xsalsa20(key, nonce).encrypt(bytes(32) + data)[32:] == boxed


def test_a_key_file_is_read_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_swarm_key(path)
    path.write_text(key_text(KEY))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others may read"):
        load_swarm_key(path)
    path.chmod(0o600)
    assert load_swarm_key(path) == KEY
    for wrong in ("", KEY.hex(), key_text(KEY)[:-3], key_text(KEY) + "x", key_text(KEY).replace("16", "64")):
        path.write_text(wrong)
        with pytest.raises(ConfigurationError, match="not a swarm key"):
            load_swarm_key(path)


@pytest.mark.parametrize(
    "keys", [(KEY, OTHER_KEY), (KEY, None), (None, KEY)], ids=["other", "none", "one-sided"]
)
def test_without_the_same_key_nothing_is_said_and_it_fails_within_the_deadline(
    keys: tuple[bytes | None, bytes | None],
) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get, swarm_key=keys[0], deadlines=QUICK)
        client = await network.start(1, swarm_key=keys[1], deadlines=QUICK)
        begun = trio.current_time()
        with pytest.raises(PeerError):
            await fetch(client, Holder(server.peer_id, server.multiaddr))
        assert trio.current_time() - begun < 20
        assert server.connected() == client.connected() == []
        await until(lambda: server.refusal_counts().get("handshake", 0) >= 1)

    in_network(scenario)


def test_members_with_the_key_fetch_and_the_gate_still_stands() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get, swarm_key=KEY)
        client = await network.start(1, swarm_key=KEY)
        await fetch(client, Holder(server.peer_id, server.multiaddr))
        stranger = await network.start(2, swarm_key=KEY, is_member=lambda peer_id: True)
        network.members.discard(stranger.peer_id)
        with pytest.raises(PeerError):
            await fetch(stranger, Holder(server.peer_id, server.multiaddr))
        assert server.refusal_counts()["not a member"] >= 1

    in_network(scenario)


def test_a_private_kubo_and_we_fetch_from_each_other(tmp_path: Path) -> None:
    with running_kubo(tmp_path, swarm_key=key_text(KEY)) as kubo:
        for block in HELD.values():
            kubo.put(block)
        own = made_blocks(5, 500_000)

        async def scenario(network: Network) -> None:
            network.members.add(kubo.peer_id)
            ours = await network.start(0, read_block=own.get, swarm_key=KEY)
            await fetch(ours, Holder(kubo.peer_id, kubo.multiaddr), patience_s=30)
            for cid, block in own.items():
                assert await trio.to_thread.run_sync(kubo.get, cid) == block
            wrong = await network.start(1, swarm_key=OTHER_KEY, deadlines=QUICK)
            begun = trio.current_time()
            with pytest.raises(PeerError):
                await fetch(wrong, Holder(kubo.peer_id, kubo.multiaddr))
            assert trio.current_time() - begun < 20

        in_network(scenario)
