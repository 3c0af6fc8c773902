"""The guard before the multiplexer: no frame out of bounds gets past it, however its bytes are cut into messages."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.utils import read_exactly
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
)
from peer_network import MEMBERS, Network, in_network

from usufruct_node.peers import PeerHost
from usufruct_node.peers.connection import MAX_STRAY_BYTES, MAX_STREAMS, FrameGuard
from usufruct_node.peers.protocol import PROTOCOL_ID

WINDOW = 100
"""What the one stream of these tests may still be sent."""


def frame(kind: int, length: int, *, flags: int = 0, stream_id: int = 1) -> bytes:
    """A frame, its body included."""
    header = struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length)
    return header + (bytes(length) if kind == TYPE_DATA else b"")


def header_of(kind: int, length: int, *, flags: int = 0, stream_id: int = 1) -> bytes:
    return frame(kind, length, flags=flags, stream_id=stream_id)[:HEADER_SIZE]


class Messages:
    """Noise messages that have been decrypted; the connection is cut after the last."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._left = list(messages)

    async def read_msg(self) -> bytes:
        if not self._left:
            raise ConnectionClosedError("the end")
        return self._left.pop(0)


def guarded(messages: Sequence[bytes], *, streams: int = 1) -> FrameGuard:
    session = SecureSession(
        local_peer=None,
        local_private_key=MEMBERS[0].key_pair.private_key,
        remote_peer=None,
        remote_permanent_pubkey=MEMBERS[1].key_pair.public_key,
        is_initiator=False,
        conn=Messages(messages),
    )
    guard = FrameGuard(session)
    guard.muxer = SimpleNamespace(
        streams=dict.fromkeys(range(1, streams + 1), SimpleNamespace(recv_window=WINDOW))
    )
    return guard


def passed_on(messages: Sequence[bytes], *, streams: int = 1) -> bytes:
    """What a multiplexer reads that ends at a header that fails and goes on behind a body that does, as Yamux does."""

    async def read_frames() -> bytes:
        guard, got = guarded(messages, streams=streams), b""
        with suppress(ConnectionClosedError, IncompleteReadError):
            while True:
                header = await read_exactly(guard, HEADER_SIZE)
                got += header
                _, kind, _, _, length = struct.unpack(YAMUX_HEADER_FORMAT, header)
                if kind == TYPE_DATA and length:
                    with suppress(ConnectionClosedError, IncompleteReadError):
                        got += await read_exactly(guard, length)
        return got

    return trio.run(read_frames)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The same bytes in pieces; a place that is named twice makes an empty piece."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


fair_frames = st.lists(
    st.one_of(
        st.builds(frame, st.just(TYPE_DATA), st.integers(0, WINDOW)),
        st.builds(frame, st.just(TYPE_WINDOW_UPDATE), st.integers(0, 2**32 - 1)),
        st.builds(frame, st.just(TYPE_PING), st.integers(0, 2**32 - 1)),
    ),
    max_size=6,
)
places = st.lists(st.integers(0, 2000), max_size=12)
HOSTILE = {
    "beyond the window": header_of(TYPE_DATA, WINDOW + 1),
    "stray and long": header_of(TYPE_DATA, MAX_STRAY_BYTES + 1, stream_id=9999),
    "opening and long": header_of(TYPE_DATA, 15 * 1024 * 1024, flags=FLAG_SYN, stream_id=9999),
}


@given(fair_frames, places)
def test_fair_frames_pass_whole_however_they_are_cut_into_messages(
    frames: list[bytes], places: list[int]
) -> None:
    messages = [piece for piece in cut(b"".join(frames), places) if piece]
    assert passed_on(messages) == b"".join(frames)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@given(frames=fair_frames, places=places)
def test_a_frame_out_of_bounds_never_passes_however_it_is_cut_into_messages(
    hostile: bytes, frames: list[bytes], places: list[int]
) -> None:
    fair = b"".join(frames)
    # Empty messages among them: the session then gives less than it was asked for.
    got = passed_on(cut(fair + hostile + bytes(300), places))
    assert fair.startswith(got)


@pytest.mark.parametrize("at", range(HEADER_SIZE + 1))
def test_a_header_cut_by_an_empty_message_opens_no_stream_beyond_the_bound(at: int) -> None:
    opening = header_of(TYPE_WINDOW_UPDATE, 0, flags=FLAG_SYN, stream_id=9999)
    assert passed_on([opening[:at], b"", opening[at:]], streams=MAX_STREAMS) == b""


@pytest.mark.parametrize("empty_messages", [1, 2])
@pytest.mark.parametrize("at", [0, 1, WINDOW - HEADER_SIZE, WINDOW - 1])
def test_nothing_passes_behind_a_body_that_was_cut(at: int, empty_messages: int) -> None:
    # Taken for a header, what follows would announce as much as it likes.
    header, hidden = header_of(TYPE_DATA, WINDOW), header_of(TYPE_DATA, 15 * 1024 * 1024)
    messages = [header + bytes(at), *[b""] * empty_messages, hidden, bytes(1000)]
    assert passed_on(messages) == header


async def send_pieces(client: PeerHost, server: PeerHost, pieces: Sequence[bytes]) -> None:
    """Send raw messages on the connection that the client has."""
    stream = await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
    guard = client._connections[server.peer_id][0]._muxer.secured_conn
    for piece in pieces:
        await guard._session.conn.write_msg(piece)
    with trio.fail_after(10):
        while server.connected():
            await trio.sleep(0.01)
    await stream.abandon()


@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_member_that_cuts_a_header_by_an_empty_message_is_cut_off(at: int) -> None:
    hostile: Any = HOSTILE["opening and long"]

    async def scenario(network: Network) -> None:
        server, client = await network.start(0), await network.start(1)
        await send_pieces(client, server, [hostile[:at], b"", hostile[at:]])

    in_network(scenario)
