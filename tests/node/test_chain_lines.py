"""Requests to an engine over its socket: an answer goes to whom it belongs, and silence is an error."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from usufruct.errors import ChainEngineError
from usufruct_node.chain.engine import SOCKETS
from usufruct_node.chain.lines import Lines

NAME = SOCKETS.replace("*", "of-a-test")
Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def answered_by(folder: Path, handler: Handler) -> AsyncIterator[Lines]:
    """Lines to a server that `handler` plays on every connection."""
    listener = trio.socket.socket(socket.AF_UNIX)
    folder.mkdir(exist_ok=True)
    await listener.bind(str(folder / NAME))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, handler, [trio.SocketListener(listener)]))
        lines = Lines(folder, NAME)
        try:
            yield lines
        finally:
            await lines.close()
            nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Answer each line by itself, in two parts; one that begins with `slow` a while later."""
    rest = b""
    async for part in stream:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            await trio.sleep(0.3 if line.startswith(b"slow") else 0)
            await stream.send_all(line[:3])
            await trio.sleep(0.01)
            await stream.send_all(line[3:] + b"\n")


def test_many_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with answered_by(tmp_path, echo) as lines, trio.open_nursery() as nursery:

            async def one(body: bytes) -> None:
                for _ in range(3):
                    assert await lines.ask(body) == body

            for number in range(100):
                nursery.start_soon(one, b"request %d " % number + b"x" * 40 * number)

    trio.run(main)


def test_the_answer_to_a_cancelled_request_reaches_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with answered_by(tmp_path, echo) as lines:
            assert await lines.ask(b"first") == b"first"
            with trio.move_on_after(0.1) as scope:
                await lines.ask(b"slow, given up")
            assert scope.cancelled_caught
            assert await lines.ask(b"next") == b"next"

    trio.run(main)


def test_a_connection_that_ends_within_an_answer_is_an_error_and_the_next_request_gets_another(
    tmp_path: Path,
) -> None:
    connections = 0

    async def broken_at_first(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await echo(stream)
            return
        await stream.receive_some()
        await stream.send_all(b"half an ans")
        await stream.aclose()

    async def main() -> None:
        async with answered_by(tmp_path, broken_at_first) as lines:
            with pytest.raises(ChainEngineError, match="does not answer: the connection ended"):
                await lines.ask(b"one")
            assert await lines.ask(b"two") == b"two"

    trio.run(main)


def test_a_socket_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        lines = Lines(tmp_path, NAME)
        with pytest.raises(ChainEngineError, match="does not answer"):
            await lines.ask(b"one")
        await lines.close()

    trio.run(main)


def test_a_folder_whose_path_is_longer_than_an_address_may_be(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*(["a-name-of-twenty-char"] * 8))
    deep.mkdir(parents=True)

    async def main() -> None:
        short = tmp_path / "s"
        async with answered_by(short, echo):
            (short / NAME).rename(deep / NAME)
            lines = Lines(deep, NAME)
            assert await lines.ask(b"far down") == b"far down"
            await lines.close()
            assert not (deep / NAME).exists()

    trio.run(main)
