"""The block protocol's codec and the peer identities: strict both ways, whatever arrives."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import multihash

from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec
from usufruct.errors import BlockMismatchError, InputError, PeerBusyError, PeerError, PeerQuotaError
from usufruct_node.peers import Deadlines, PeerIdentity, parse_peer_id
from usufruct_node.peers.asking import BlockLine
from usufruct_node.peers.protocol import (
    MAX_CIDS,
    Status,
    decode_head,
    decode_request,
    encode_head,
    encode_request,
    read_request,
    request_bytes,
)
from usufruct_node.peers.shelf import Answer

cids = st.builds(Cid.from_digest, st.binary(min_size=32, max_size=32), st.sampled_from(list(Codec)))
requests = st.lists(cids, min_size=1, max_size=MAX_CIDS, unique=True)


async def replies_in(data: bytes, asked: list[Cid], step: int = 100) -> list[Answer]:
    """What the asking side makes of these bytes, when it asked for these blocks."""
    line = BlockLine(Drip(data, step), "peer", Deadlines())  # type: ignore[arg-type]
    await line.ask(asked)
    answers: list[Answer] = []
    while len(answers) < len(asked):
        answers += await line.take()
    return answers


class Drip:
    """A stream that hands out its bytes a few at a time and then ends."""

    def __init__(self, data: bytes, step: int = 7) -> None:
        self.left = data
        self.step = step
        self.largest_asked = 0

    async def write(self, data: bytes) -> None:
        """Take what is written, and forget it."""

    async def read(self, n: int) -> bytes:
        self.largest_asked = max(self.largest_asked, n)
        part, self.left = self.left[: min(n, self.step)], self.left[min(n, self.step) :]
        return part


@given(requests)
def test_a_request_decodes_to_what_was_asked(asked: list[Cid]) -> None:
    data = encode_request(asked)
    assert decode_request(data) == asked
    assert len(data) == request_bytes(data[0])

    async def read() -> list[Cid]:
        return await read_request(Drip(data[1:]), data[:1])

    assert trio.run(read) == asked


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_are_a_request_or_a_peer_error(data: bytes) -> None:
    try:
        asked = decode_request(data)
    except PeerError:
        return
    assert encode_request(asked) == data


@given(requests, st.data())
def test_a_cut_or_lengthened_request_is_refused(asked: list[Cid], data: st.DataObject) -> None:
    whole = encode_request(asked)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(PeerError):
        decode_request(whole[:cut])
    with pytest.raises(PeerError):
        decode_request(whole + b"\0")

    async def read() -> None:
        await read_request(Drip(whole[1:cut]), whole[:1])

    if cut > 0:
        with pytest.raises(PeerError):
            trio.run(read)


@pytest.mark.parametrize("count", [0, MAX_CIDS + 1, 255])
def test_a_request_for_no_block_or_too_many_is_refused_at_its_first_byte(count: int) -> None:
    with pytest.raises(PeerError):
        request_bytes(count)


def test_a_request_that_names_a_block_twice_is_refused_both_ways() -> None:
    cid = Cid.of(b"block")
    with pytest.raises(InputError):
        encode_request([cid, cid])
    with pytest.raises(PeerError, match="twice"):
        decode_request(b"\2" + bytes(cid) * 2)
    with pytest.raises(InputError):
        encode_request([])
    with pytest.raises(InputError):
        encode_request([Cid.of(bytes([n])) for n in range(MAX_CIDS + 1)])


@given(st.integers(0, MAX_BLOCK_BYTES))
def test_a_head_decodes_to_what_was_encoded(size_bytes: int) -> None:
    assert decode_head(encode_head(Status.BLOCK, size_bytes)) == (Status.BLOCK, size_bytes)


@given(st.binary(max_size=8))
@settings(max_examples=200)
def test_arbitrary_heads_are_bounded_or_refused(data: bytes) -> None:
    try:
        status, size_bytes = decode_head(data)
    except PeerError:
        return
    assert size_bytes <= (MAX_BLOCK_BYTES if status is Status.BLOCK else 0)
    assert encode_head(status, size_bytes) == data


@pytest.mark.parametrize(
    "head",
    [
        b"\0" + (MAX_BLOCK_BYTES + 1).to_bytes(4),
        b"\0\xff\xff\xff\xff",
        b"\1\0\0\0\1",
        b"\5\0\0\0\0",
        b"\xff\0\0\0\0",
    ],
    ids=lambda head: head.hex(),
)
def test_oversize_and_unknown_replies_are_refused_before_their_body_is_awaited(head: bytes) -> None:
    with pytest.raises(PeerError):
        trio.run(replies_in, head, [Cid.of(b"")])


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5, unique=True), st.integers(1, 40))
def test_replies_are_read_whatever_the_pieces(blocks: list[bytes], step: int) -> None:
    data = b"".join(encode_head(Status.BLOCK, len(block)) + block for block in blocks)
    asked = [Cid.of(block) for block in blocks]
    assert trio.run(replies_in, data, asked, step) == [
        Answer(cid, Status.BLOCK, block) for cid, block in zip(asked, blocks, strict=True)
    ]


def test_malicious_peer_wrong_block_is_refused_for_every_flipped_byte() -> None:
    block = bytes(range(64))
    reply = encode_head(Status.BLOCK, len(block)) + block
    for at in range(len(reply)):
        flipped = reply[:at] + bytes((reply[at] ^ 0x40,)) + reply[at + 1 :]
        with pytest.raises((PeerError, BlockMismatchError)):
            for answer in trio.run(replies_in, flipped, [Cid.of(block)]):
                answer.cid.check(answer.data)


def test_a_reply_cut_anywhere_is_a_peer_error() -> None:
    block = bytes(range(64))
    reply = encode_head(Status.BLOCK, len(block)) + block
    for length in range(len(reply)):
        with pytest.raises(PeerError):
            trio.run(replies_in, reply[:length], [Cid.of(block)])


@pytest.mark.parametrize("status", [Status.BUSY, Status.OVER_QUOTA])
def test_what_came_before_a_busy_answer_is_taken_first(status: Status) -> None:
    data = encode_head(Status.BLOCK, 3) + b"abc" + encode_head(status)

    async def read() -> None:
        line = BlockLine(Drip(data, 100), "peer", Deadlines())  # type: ignore[arg-type]
        await line.ask([Cid.of(b"abc"), Cid.of(b"")])
        assert await line.take() == [Answer(Cid.of(b"abc"), Status.BLOCK, b"abc")]
        await line.take()

    with pytest.raises(PeerBusyError if status is Status.BUSY else PeerQuotaError):
        trio.run(read)


def test_an_identity_follows_from_its_seed() -> None:
    one, same, other = (PeerIdentity.from_seed(seed) for seed in (b"1" * 32, b"1" * 32, b"2" * 32))
    assert one == same != other
    assert one.peer_id.startswith("12D3KooW")
    assert len(one.peer_id_bytes) == 38
    assert multihash.unwrap(one.peer_id_bytes) == one.peer_id_bytes[2:]
    assert "key" not in repr(one)


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=30)
def test_peer_ids_parse_back(seed: bytes) -> None:
    identity = PeerIdentity.from_seed(seed)
    assert parse_peer_id(identity.peer_id) == identity.peer_id_bytes


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33), "1" * 32])
def test_a_seed_has_thirty_two_bytes(seed: bytes) -> None:
    with pytest.raises(InputError):
        PeerIdentity.from_seed(seed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12D3KooW",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "12D3KooW" + "1" * 44,
        "12D3KooW" + "z" * 44,
        "12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCD0",
        "12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCDSS",
        " 12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCDS",
        "12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCDS\n",
        "../12D3KooW",
    ],
)
def test_other_texts_are_no_peer_ids(text: str) -> None:
    with pytest.raises(InputError):
        parse_peer_id(text)
