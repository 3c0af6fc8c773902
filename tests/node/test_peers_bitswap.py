"""Bitswap: real Kubo both ways under our rules, and members that abuse it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from foreign_helia import running_helia
from foreign_ipfs import Kubo, running_kubo
from hypothesis import given
from hypothesis import strategies as st
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.utils.varint import encode_varint_prefixed
from peer_network import MEMBERS, Network, in_network, made_blocks, until

from usufruct.content import Cid, Codec, dag
from usufruct.errors import BlockNotFoundError, PeerError, PeerRefusedError, PeerTooSlowError
from usufruct_node.peers import Deadlines, Holder, PeerHost, Quota, bitswap_messages, fetch_blocks
from usufruct_node.peers.bitswap import ASK_AGAIN_SECONDS, Bitswap, BitswapLine, _Peer
from usufruct_node.peers.bitswap_messages import (
    MAX_ENTRIES,
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    Want,
    decode,
    encode_replies,
    encode_wants,
    read_message,
)
from usufruct_node.peers.connection import MemberStream
from usufruct_node.peers.gate import RefusalLog
from usufruct_node.peers.identify import PROTOCOL_ID as IDENTIFY
from usufruct_node.peers.protocol import PROTOCOL_ID as BLOCKS
from usufruct_node.peers.protocol import read_exactly
from usufruct_node.peers.quota import Quotas
from usufruct_node.peers.shelf import Shelf

HELD = made_blocks(300)
CIDS = list(HELD)
BIG = made_blocks(3, 1_900_000)


@pytest.fixture(scope="module")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    with running_kubo(tmp_path_factory.mktemp("kubo")) as daemon:
        yield daemon


class FakeStream:
    """Bytes that come in pieces."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    async def read(self, n: int) -> bytes:
        part, self.left = self.left[:n], self.left[n:]
        return part


async def fetch(client: PeerHost, holders: Sequence[Holder], cids: Sequence[Cid]) -> dict[Cid, bytes]:
    kept: dict[Cid, bytes] = {}
    await fetch_blocks(
        client,
        holders,
        cids,
        missing=lambda some: [cid for cid in some if cid not in kept],
        keep=kept.update,
        stall_s=20,
    )
    return kept


def without_block_protocol(host: PeerHost) -> PeerHost:
    """A host that speaks Bitswap only, as foreign software does."""
    del host._handlers[BLOCKS]
    return host


def test_kubo_fetches_from_us_what_it_may_and_nothing_else(kubo: Kubo) -> None:
    allowed = {*CIDS[:100], *BIG}

    async def scenario(network: Network) -> None:
        server = await network.start(
            0,
            read_block=(HELD | BIG).get,
            authorise=lambda peer_id, cid: peer_id == kubo.peer_id and cid in allowed,
        )
        with pytest.raises(AssertionError):
            await trio.to_thread.run_sync(kubo.connect, server.multiaddr)
        assert server.refusal_counts()["not a member"] >= 1
        network.members.add(kubo.peer_id)
        await trio.to_thread.run_sync(kubo.connect, server.multiaddr)
        assert server.connected() == [kubo.peer_id]
        for cid in allowed:
            assert await trio.to_thread.run_sync(kubo.get, cid) == (HELD | BIG)[cid]
        with pytest.raises(httpx.ReadTimeout):
            await trio.to_thread.run_sync(
                lambda: kubo.rpc.post("/api/v0/block/get", params={"arg": str(CIDS[200])}, timeout=3)
            )
        assert {(one.peer_id, one.cid) for one in server.refusals() if one.reason == "not authorised"} == {
            (kubo.peer_id, CIDS[200])
        }
        network.members.discard(kubo.peer_id)
        await server.close_peer(kubo.peer_id)
        assert server.connected() == []

    in_network(scenario)


def test_we_fetch_from_kubo_and_it_walks_our_records(kubo: Kubo) -> None:
    cids = [kubo.put(block) for block in [*HELD.values(), *BIG.values()]]
    assert cids == [*HELD, *BIG]
    record = dag.encode({"links": CIDS[:3], "n": 3})
    cid = kubo.put(record, Codec.DAG_CBOR)
    assert cid == Cid.of(record, Codec.DAG_CBOR)
    assert kubo.call("dag/get", f"{cid}/links/1").text != ""

    async def scenario(network: Network) -> None:
        network.members.add(kubo.peer_id)
        client = await network.start(1)
        holder = Holder(kubo.peer_id, kubo.multiaddr)
        assert await fetch(client, [holder], [*cids, cid]) == {**HELD, **BIG, cid: record}
        with pytest.raises(BlockNotFoundError):
            await fetch(client, [holder], [Cid.of(b"nobody has this")])
        network.members.discard(kubo.peer_id)
        with pytest.raises(PeerRefusedError):
            await fetch(client, [holder], cids[:1])

    in_network(scenario)


def test_kubo_and_one_of_ours_share_a_fetch(kubo: Kubo) -> None:
    for block in list(HELD.values())[:150]:
        kubo.put(block)

    async def scenario(network: Network) -> None:
        network.members.add(kubo.peer_id)
        ours = await network.start(0, read_block={cid: HELD[cid] for cid in CIDS[150:]}.get)
        client = await network.start(1)
        holders = [Holder(kubo.peer_id, kubo.multiaddr), Holder(ours.peer_id, ours.multiaddr)]
        assert await fetch(client, holders, CIDS) == HELD

    in_network(scenario)


def test_helia_and_we_fetch_from_each_other(tmp_path: Path) -> None:
    theirs = made_blocks(40, 50_000)
    with running_helia(tmp_path) as helia:
        for cid, block in theirs.items():
            helia.put(cid, block)

        async def scenario(network: Network) -> None:
            network.members.add(helia.peer_id)
            forbidden = CIDS[200]
            ours = await network.start(
                0, read_block=HELD.get, authorise=lambda peer_id, cid: cid != forbidden
            )
            await trio.to_thread.run_sync(helia.connect, ours.multiaddr)
            for cid in CIDS[:50]:
                assert await trio.to_thread.run_sync(helia.get, cid) == HELD[cid]
            with pytest.raises(AssertionError):
                await trio.to_thread.run_sync(lambda: helia.get(forbidden, seconds=2))
            assert ours.refusal_counts()["not authorised"] >= 1
            client = await network.start(1)
            holder = Holder(helia.peer_id, helia.multiaddr)
            assert await fetch(client, [holder], list(theirs)) == theirs

        in_network(scenario)


def test_two_of_ours_fall_back_to_bitswap() -> None:
    async def scenario(network: Network) -> None:
        server = without_block_protocol(await network.start(0, read_block=(HELD | BIG).get))
        client = await network.start(1)
        holder = Holder(server.peer_id, server.multiaddr)
        assert await fetch(client, [holder], [*HELD, *BIG]) == HELD | BIG
        with pytest.raises(BlockNotFoundError):
            await fetch(client, [holder], [CIDS[0], Cid.of(b"nobody has this")])
        await until(lambda: not client._bitswap._lines)
        assert "unsolicited" not in client.refusal_counts()

    in_network(scenario)


def test_bitswap_obeys_the_quota_and_the_authorisation() -> None:
    async def scenario(network: Network) -> None:
        server = without_block_protocol(
            await network.start(
                0,
                read_block=HELD.get,
                authorise=lambda peer_id, cid: cid != CIDS[0],
                quota=Quota(bytes_per_day=1_000_000),
            )
        )
        client = await network.start(1)
        holder = Holder(server.peer_id, server.multiaddr)
        with pytest.raises(BlockNotFoundError):
            await fetch(client, [holder], CIDS[:1])
        with pytest.raises(BlockNotFoundError):
            await fetch(client, [holder], CIDS[1:])
        counts = server.refusal_counts()
        assert counts["not authorised"] == 1
        assert counts["over quota"] >= 1

    in_network(scenario)


async def bitswap_stream(client: PeerHost, server: PeerHost) -> MemberStream:
    return await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)


async def presences_told(
    client: PeerHost, server: PeerHost, question: Message, count: int
) -> dict[bytes, int]:
    """What the server says to the question of which blocks are here, until it has said so much."""
    told: dict[bytes, int] = {}
    blocks: list[bytes] = []

    async def listen(peer_id: str, stream: MemberStream) -> None:
        while (size_bytes := await bitswap_messages._read_length(stream)) is not None:
            message = Message.FromString(await read_exactly(stream, size_bytes))
            told.update((one.cid, one.type) for one in message.blockPresences)
            blocks.extend(one.data for one in message.payload)

    client.handle(PROTOCOL_ID, listen)
    stream = await bitswap_stream(client, server)
    await stream.write(encode_varint_prefixed(question.SerializeToString()))
    await until(lambda: len(told) + len(blocks) >= count)
    await stream.abandon()
    assert blocks == [HELD[Cid.of(block)] for block in blocks]
    return told


def test_whether_blocks_are_here_is_told_without_reading_them_and_costs_no_bytes() -> None:
    read: list[Cid] = []
    forbidden, absent, fetched = CIDS[7], Cid.of(b"nobody has this"), CIDS[8]

    def read_block(cid: Cid) -> bytes | None:
        read.append(cid)
        return HELD.get(cid)

    async def scenario(network: Network) -> None:
        server = await network.start(
            0,
            read_block=read_block,
            has_block=HELD.__contains__,
            authorise=lambda peer_id, cid: cid != forbidden,
        )
        client = await network.start(1)
        question = Message()
        for cid in (*CIDS[:8], absent):
            question.wantlist.entries.add(block=bytes(cid), wantType=Message.Wantlist.Have, sendDontHave=True)
        question.wantlist.entries.add(block=bytes(fetched))
        told = await presences_told(client, server, question, 10)
        assert told == {bytes(cid): Message.Have for cid in CIDS[:7]} | {
            bytes(cid): Message.DontHave for cid in (forbidden, absent)
        }
        assert read == [fetched]
        assert server.shelf.given == {client.peer_id: len(HELD[fetched])}
        assert [one.cid for one in server.refusals() if one.reason == "not authorised"] == [forbidden]

    in_network(scenario)


def test_questions_whether_blocks_are_here_use_up_requests_but_no_bytes_of_the_quota() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get, quota=Quota(bytes_per_day=10_000))
        client = await network.start(1)
        question = Message()
        for cid in CIDS:
            question.wantlist.entries.add(block=bytes(cid), wantType=Message.Wantlist.Have)
        told = await presences_told(client, server, question, len(CIDS))
        assert told == {bytes(cid): Message.Have for cid in CIDS}
        assert server.refusals() == []

    in_network(scenario)


def test_a_question_that_became_a_want_while_it_was_looked_up_is_answered_with_the_block() -> None:
    cid = CIDS[0]

    async def main() -> None:
        shelf = Shelf(
            is_member=lambda peer_id: True,
            authorise=lambda peer_id, cid: True,
            read_block=HELD.get,
            has_block=lambda cid: trio.from_thread.run_sync(want_it) is None,
            refusals=RefusalLog(),
            quotas=Quotas(Quota()),
        )
        peer = _Peer(wants={bytes(cid): Want(bytes(cid), block=False, say_absent=False, cancel=False)})

        def want_it() -> None:
            peer.wants[bytes(cid)] = Want(bytes(cid), block=True, say_absent=False, cancel=False)

        server: Any = Bitswap(shelf=shelf, open_back=None, refuse=None, deadlines=Deadlines())  # type: ignore[arg-type]
        assert await server._next_message("peer", peer) == encode_replies([(cid, HELD[cid])], [], [])

    trio.run(main)


def test_a_peer_that_asks_on_while_it_is_answered_gets_messages_within_their_bound() -> None:
    size = MAX_ENTRIES // 2
    questions = [
        [
            bytes(Cid.of(b"%d of %d" % (n, number))) if n % 2 == 0 else b"foreign %d of %d" % (n, number)
            for n in range(size)
        ]
        for number in range(8)
    ]
    # The first of a question is looked up when all of the next question is here.
    behind = {Cid.from_bytes(keys[0]): after[-1] for keys, after in pairwise(questions)}
    told: dict[bytes, int] = {}
    sizes: list[int] = []

    async def listen(peer_id: str, stream: MemberStream) -> None:
        while (size_bytes := await bitswap_messages._read_length(stream)) is not None:
            message = Message.FromString(await read_exactly(stream, size_bytes))
            told.update((one.cid, one.type) for one in message.blockPresences)
            sizes.append(len(message.blockPresences))

    async def scenario(network: Network) -> None:
        def wants() -> dict[bytes, Want]:
            peer = server._bitswap._peers.get(client.peer_id)
            return peer.wants if peer else {}

        def has_block(cid: Cid) -> bool:
            if cid in behind:
                trio.from_thread.run(until, lambda: behind[cid] in wants())
            return False

        server = await network.start(0, has_block=has_block)
        client = await network.start(1)
        client.handle(PROTOCOL_ID, listen)
        stream = await bitswap_stream(client, server)
        for keys in questions:
            question = Message()
            for key in keys:
                question.wantlist.entries.add(block=key, wantType=Message.Wantlist.Have, sendDontHave=True)
            await until(lambda: len(wants()) + size <= MAX_ENTRIES)
            await stream.write(encode_varint_prefixed(question.SerializeToString()))
            await until(lambda last=keys[-1]: last in wants() or last in told)  # type: ignore[misc]
        await until(lambda: len(told) == len(questions) * size)
        await stream.abandon()
        assert set(told.values()) == {Message.DontHave}
        assert max(sizes) <= MAX_ENTRIES
        assert server.refusals() == []

    in_network(scenario)


def test_unsolicited_blocks_are_dropped_unhashed_and_counted() -> None:
    async def scenario(network: Network) -> None:
        server, client = await network.start(0), await network.start(1)
        stream = await bitswap_stream(client, server)
        for _ in range(5):
            await stream.write(encode_replies(list(HELD.items())[:20], [], []))
        await until(lambda: server.refusal_counts().get("unsolicited") == 5)
        assert server._bitswap._lines == {}

    in_network(scenario)


def test_blocks_that_were_not_asked_for_or_come_twice_do_not_displace_those_that_were() -> None:
    async def scenario(network: Network) -> None:
        server = without_block_protocol(await network.start(0))

        async def push(peer_id: str, stream: MemberStream) -> None:
            wanted = await read_message(stream)
            assert wanted is not None
            back = await server.open_back(peer_id, PROTOCOL_ID)
            unasked = [(cid, HELD[cid]) for cid in CIDS[10:20]]
            asked = [(cid, HELD[cid]) for cid in CIDS[:5]]
            for blocks in (unasked, asked[::-1], asked, asked):
                await back.write(encode_replies(blocks, [], []))
            await trio.sleep_forever()

        server.handle(PROTOCOL_ID, push)
        client = await network.start(1)
        holder = Holder(server.peer_id, server.multiaddr)
        assert await fetch(client, [holder], CIDS[:5]) == {cid: HELD[cid] for cid in CIDS[:5]}
        await until(lambda: client.refusal_counts().get("unsolicited", 0) >= 1)

    in_network(scenario)


class Sent:
    """A stream that keeps what is written into it."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self.messages.append(message)


def test_what_a_peer_forgot_is_asked_for_again_and_nothing_else() -> None:
    async def scenario() -> None:
        stream = Sent()
        line = BitswapLine("peer", stream, Deadlines(block=30), lambda line: None)  # type: ignore[arg-type]
        await line.ask(CIDS[:3])
        line.deliver([(CIDS[1], HELD[CIDS[1]])], [])
        assert [answer.cid for answer in await line.take()] == [CIDS[1]]
        begun = trio.current_time()
        with pytest.raises(PeerTooSlowError):
            await line.take()
        assert trio.current_time() - begun == pytest.approx(30)
        again = stream.messages[1:]
        assert set(again) == {encode_wants([CIDS[0], CIDS[2]])}
        assert len(again) == 30 / ASK_AGAIN_SECONDS - 1

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def hostile_messages() -> dict[str, bytes]:
    many = Message()
    for n in range(MAX_ENTRIES + 1):
        many.wantlist.entries.add(block=bytes(Cid.of(n.to_bytes(4))))
    long = Message()
    long.wantlist.entries.add(block=bytes(200))
    return {
        "garbage": b"\x05\xff\xff\xff\xff\xff",
        "oversize": b"\xff\xff\xff\x7f" + bytes(100),
        "endless length": b"\xff" * 20,
        "cut": encode_wants(CIDS[:3])[:-5],
        "too many": encode_varint_prefixed(many.SerializeToString()),
        "long cid": encode_varint_prefixed(long.SerializeToString()),
    }


@pytest.mark.parametrize("name", hostile_messages())
def test_hostile_bitswap_messages_end_the_stream_and_are_counted(name: str) -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get)
        client = await network.start(1)
        stream = await bitswap_stream(client, server)
        await stream.write(hostile_messages()[name])
        await stream.finish()
        await until(lambda: server.refusal_counts() == {"protocol": 1})
        await stream.abandon()
        assert server._bitswap._peers == {}
        assert await fetch(client, [Holder(server.peer_id, server.multiaddr)], CIDS[:3])

    in_network(scenario)


def test_wants_beyond_the_bound_are_refused_and_memory_holds_cids_only() -> None:
    async def scenario(network: Network) -> None:
        server = await network.start(0, read_block=HELD.get, quota=Quota(blocks_per_s=1.0))
        client = await network.start(1)
        stream = await bitswap_stream(client, server)
        for start in range(0, 5000, 1000):
            await stream.write(encode_wants([Cid.of(n.to_bytes(4)) for n in range(start, start + 1000)]))
        await until(lambda: "busy" in server.refusal_counts() or "over quota" in server.refusal_counts())
        for peer in server._bitswap._peers.values():
            assert len(peer.wants) <= MAX_ENTRIES

    in_network(scenario)


def repeated(field: bytes, *, inside: bytes = b"") -> bytes:
    """A message of nearly the longest length made of one short field, at the top or inside another."""
    data = field * ((MAX_MESSAGE_BYTES - 16) // len(field))
    return inside + encode_varint_prefixed(data) if inside else data


@pytest.mark.parametrize(
    "data",
    [
        repeated(b"\x0a\x00", inside=b"\x0a"),
        repeated(b"\x10\x01", inside=b"\x0a"),
        repeated(b"\x0a\x02\x0a\x00"),
        repeated(b"\x0a\x00"),
        repeated(b"\x12\x00"),
        repeated(b"\x1a\x00"),
        repeated(b"\x22\x00"),
        repeated(b"\x28\x00"),
        repeated(b"\xfa\x7f\x00"),
        b"\x8a\x80\x00" + encode_varint_prefixed(repeated(b"\x0a\x00")),
        b"\x0b" + repeated(b"\x0a\x00"),
    ],
    ids=[
        "wants",
        "numbers in the wantlist",
        "wantlists of one want",
        "empty wantlists",
        "old blocks",
        "blocks",
        "presences",
        "numbers",
        "unknown",
        "wants under a long tag",
        "a group",
    ],
)
def test_messages_of_too_many_fields_never_reach_the_parser(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parser() -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(bitswap_messages, "Message", parser)
    with pytest.raises(PeerError):
        decode(data)


@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=5),
    st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=300)), max_size=5),
    st.lists(st.binary(max_size=60), max_size=5),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=20),
)
def test_what_the_library_encodes_is_decoded(
    wants: list[bytes],
    blocks: list[tuple[bytes, bytes]],
    presences: list[bytes],
    pending: int,
    strange: bytes,
) -> None:
    message = Message(pendingBytes=pending, blocks=[strange])
    for want in wants:
        message.wantlist.entries.add(block=want, priority=-1)
    for prefix, data in blocks:
        message.payload.add(prefix=prefix, data=data)
    for presence in presences:
        message.blockPresences.add(cid=presence, type=Message.DontHave)
    assert [want.key for want in decode(message.SerializeToString()).wants] == wants


@given(st.binary(max_size=300))
def test_arbitrary_messages_decode_within_bounds_or_are_refused(data: bytes) -> None:
    try:
        received = decode(data)
    except PeerError:
        return
    assert len(received.wants) <= MAX_ENTRIES


@given(st.lists(st.sampled_from(CIDS), unique=True, max_size=20), st.booleans())
def test_wants_survive_the_wire(cids: list[Cid], cancel: bool) -> None:
    received = trio.run(read_message, FakeStream(encode_wants(cids, cancel=cancel)))
    assert received is not None
    assert [(want.key, want.cancel) for want in received.wants] == [(bytes(cid), cancel) for cid in cids]


def test_members_are_told_what_is_spoken_here() -> None:
    from libp2p.identity.identify.pb.identify_pb2 import Identify

    async def scenario(network: Network) -> None:
        server, client = await network.start(0), await network.start(1)
        stream = await client.open_stream(server.peer_id, server.multiaddr, IDENTIFY)
        data = b""
        while part := await stream.read(4096):
            data += part
        await stream.abandon()
        told = Identify.FromString(data[1:] if data[0] < 0x80 else data[2:])
        assert list(told.protocols) == sorted([BLOCKS, PROTOCOL_ID, IDENTIFY])
        assert told.public_key == MEMBERS[0].key_pair.public_key.serialize()

    in_network(scenario)
