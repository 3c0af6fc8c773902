"""The custody protocol between real hosts on loopback, and peers that misuse it."""

from __future__ import annotations

import struct
from contextlib import aclosing
from typing import Any

import pytest
import trio
from test_peers_host import HELD, NORTH, SOUTH, STRANGER, in_network, reasons, until

from usufruct.content import dag
from usufruct.errors import PeerError, PeerRefusedError, PeerTooSlowError
from usufruct_node.peers import PeerHost
from usufruct_node.peers.custody import MAX_MESSAGE_BYTES, PROTOCOL_ID, Answer, CustodyHandler, ask

QUESTION = {"ask": "erasures", "artifact": bytes(32)}


def echo(peer_id: str, question: Any) -> dict[str, object]:
    return {"from": peer_id, "question": dict(question)}


async def answering(network: Any, answer: Answer = echo, **options: Any) -> PeerHost:
    server = await network.start(NORTH, **options)
    server.handle(PROTOCOL_ID, CustodyHandler(answer, request_s=0.5).serve)
    return server


async def asked(client: PeerHost, server: PeerHost, *, seconds: float = 5) -> Any:
    return await ask(client, server.peer_id, server.multiaddr, QUESTION, seconds=seconds)


def test_a_question_is_answered_beside_the_exchange_of_blocks() -> None:
    async def scenario(network: Any) -> None:
        server = await answering(network)
        client = await network.start(SOUTH)
        for _ in range(20):
            given = await asked(client, server, seconds=5)
            assert given == {"from": SOUTH.peer_id, "question": QUESTION}
        cid = next(iter(HELD))
        async with aclosing(client.fetch(server.peer_id, server.multiaddr, [cid])) as blocks:
            assert [item async for item in blocks] == [(cid, HELD[cid])]
        assert server.refusals() == []

    in_network(scenario)


def test_a_stranger_gets_no_answer() -> None:
    heard: list[str] = []

    def answer(peer_id: str, question: Any) -> dict[str, object]:
        heard.append(peer_id)
        return {}

    async def scenario(network: Any) -> None:
        server = await answering(network, answer)
        stranger = await network.start(STRANGER, is_member=lambda peer_id: True)
        with pytest.raises(PeerRefusedError):
            await asked(stranger, server, seconds=5)
        assert heard == []

    in_network(scenario)


def test_a_host_without_answers_does_not_offer_the_protocol() -> None:
    async def scenario(network: Any) -> None:
        server = await network.start(NORTH)
        client = await network.start(SOUTH)
        with pytest.raises(PeerError):
            await asked(client, server, seconds=5)

    in_network(scenario)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", 0),
        struct.pack(">I", MAX_MESSAGE_BYTES + 1),
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 3) + b"\xff\xff\xff",
        struct.pack(">I", 1) + dag.encode([]),
    ],
    ids=["empty", "too long", "endless", "no cbor", "no map"],
)
def test_oversize_and_malformed_questions_end_their_stream_and_are_counted(sent: bytes) -> None:
    async def scenario(network: Any) -> None:
        server = await answering(network)
        client = await network.start(SOUTH)
        stream = await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
        await stream.write(sent)
        assert await stream.read(10) == b""
        await stream.abandon()
        assert reasons(server) == ["protocol"]
        assert (await asked(client, server, seconds=5))["from"]

    in_network(scenario)


def test_a_question_that_never_ends_is_cut_off() -> None:
    async def scenario(network: Any) -> None:
        server = await answering(network)
        client = await network.start(SOUTH)
        stream = await client.open_stream(server.peer_id, server.multiaddr, PROTOCOL_ID)
        await stream.write(struct.pack(">I", 100) + b"\xa1")
        await until(lambda: reasons(server) == ["too slow"])
        await stream.abandon()

    in_network(scenario)


def test_an_answer_that_does_not_come_is_given_up_on() -> None:
    released = trio.Event()

    def answer(peer_id: str, question: Any) -> dict[str, object]:
        trio.from_thread.run(released.wait)
        return {}

    async def scenario(network: Any) -> None:
        server = await answering(network, answer)
        client = await network.start(SOUTH)
        with pytest.raises(PeerTooSlowError):
            await asked(client, server, seconds=0.2)
        released.set()

    in_network(scenario)


def test_a_lying_server_cannot_make_the_asker_take_more_than_a_message() -> None:
    async def scenario(network: Any) -> None:
        server = await answering(network, lambda peer_id, question: {"much": bytes(MAX_MESSAGE_BYTES)})
        client = await network.start(SOUTH)
        with pytest.raises(PeerError):
            await asked(client, server, seconds=5)

    in_network(scenario)
