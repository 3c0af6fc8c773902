"""An endpoint that drips, never ends or answers nonsense costs bounded time and memory, and gives a typed error."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from usufruct.errors import AnswerTooLargeError, LedgerError, LedgerUnreachableError, MalformedAnswerError
from usufruct.ledger import PROFILES, Endpoints
from usufruct.ledger import endpoints as endpoints_module
from usufruct.ledger import transport as transport_module
from usufruct.ledger.endpoint import Endpoint

GENESIS = "0x" + "11" * 32
QUICK = replace(PROFILES["embedded"], block_interval_s=0.5)
Conduct = Callable[[socket.socket, Any], None]
"""What a server does with a connection after it has read a request."""


@contextmanager
def endpoint_that(conduct: Conduct) -> Iterator[str]:
    """URL of a server that answers every request as `conduct` does."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as lines:
            while lines.readline():
                length = 0
                while (line := lines.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                conduct(connection, json.loads(lines.read(length)))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def dripping(connection: socket.socket, first: bytes) -> None:
    """Send `first`, then a byte every tenth of a second for ever."""
    connection.sendall(first)
    while True:
        connection.sendall(b"x")
        time.sleep(0.1)


def drips_its_headers(connection: socket.socket, _: Any) -> None:
    dripping(connection, b"HTTP/1.1 200 OK\r\nX-Long: ")


def drips_its_body(connection: socket.socket, _: Any) -> None:
    dripping(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")


def drips_its_chunks(connection: socket.socket, _: Any) -> None:
    dripping(connection, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n")


def drips_a_chunk_size(connection: socket.socket, _: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"0")
        time.sleep(0.1)


def drips_trailers(connection: socket.socket, _: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    while True:
        connection.sendall(b"X: y\r\n")
        time.sleep(0.1)


def never_ends(connection: socket.socket, _: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def answering(result: Callable[[str, Any], object]) -> Conduct:
    """Well-formed JSON-RPC with `result(method, parameters)`."""

    def conduct(connection: socket.socket, asked: Any) -> None:
        calls = asked if isinstance(asked, list) else [asked]
        answers = [
            {"jsonrpc": "2.0", "id": c["id"], "result": result(c["method"], c["params"])} for c in calls
        ]
        body = json.dumps(answers if isinstance(asked, list) else answers[0]).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    return conduct


def sound(method: str, parameters: Any) -> object:
    if method == "eth_getBlockByNumber":
        first = parameters[0] == "0x0"
        return {
            "number": hex(0 if first else 5),
            "hash": GENESIS if first else "0x" + "22" * 32,
            "timestamp": "0x1",
        }
    return {"eth_chainId": "0x1", "eth_getLogs": []}.get(method)


@pytest.mark.parametrize(
    "conduct", [drips_its_headers, drips_its_body, drips_its_chunks, drips_a_chunk_size, drips_trailers]
)
def test_an_answer_that_drips_is_given_up(conduct: Conduct) -> None:
    with endpoint_that(conduct) as url:
        endpoint = Endpoint(url, patience=0.0, request_s=1.0)
        done = threading.Event()

        def ask() -> None:
            for call in (
                lambda: endpoint.call("eth_chainId"),
                lambda: endpoint.batch([("eth_chainId", ())] * 2),
            ):
                with pytest.raises(LedgerUnreachableError, match="does not answer"):
                    call()
            done.set()

        threading.Thread(target=ask, daemon=True).start()
        assert done.wait(30), "a dripping endpoint holds its caller"


def test_an_answer_without_end_is_given_up_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "ANSWER_BYTES", 1 << 20)
    with endpoint_that(never_ends) as url, pytest.raises(AnswerTooLargeError):
        Endpoint(url, patience=0.0).call("eth_chainId")


def test_an_answer_that_is_slow_for_its_size_only_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_SLOWEST_BYTES_PER_S", 10_000)

    def slow(connection: socket.socket, asked: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": "x" * 60_000}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 10_000):
            connection.sendall(body[at : at + 10_000])
            time.sleep(0.4)

    with endpoint_that(slow) as url:
        # More than its two seconds in all, and each part well within what its size allows.
        assert Endpoint(url, patience=0.0, request_s=1.0).call("eth_getLogs") == "x" * 60_000


def test_logs_that_are_too_many_for_one_answer_are_asked_for_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "ANSWER_BYTES", 10_000)
    asked = []

    def result(_: str, parameters: Any) -> object:
        first, last = (int(parameters[0][end], 16) for end in ("fromBlock", "toBlock"))
        asked.append((first, last))
        return [{"blockNumber": hex(n), "data": "0x" + "ab" * 500} for n in range(first, last + 1)]

    with endpoint_that(answering(result)) as url:
        logs = Endpoint(url, patience=0.0).logs(["0x" + "00" * 20], 3, 40)
        assert [int(log["blockNumber"], 16) for log in logs] == list(range(3, 41))
        assert asked[0] == (3, 40) and len(asked) > 4
        monkeypatch.setattr(transport_module, "ANSWER_BYTES", 500)
        with pytest.raises(AnswerTooLargeError):
            Endpoint(url, patience=0.0).logs(["0x" + "00" * 20], 3, 40)


def test_a_redirection_is_not_followed() -> None:
    followed = threading.Event()

    def target(connection: socket.socket, asked: Any) -> None:
        followed.set()
        answering(sound)(connection, asked)

    with endpoint_that(target) as other:

        def redirects(connection: socket.socket, _: Any) -> None:
            connection.sendall(
                b"HTTP/1.1 307 Moved\r\nLocation: " + other.encode() + b"\r\nContent-Length: 0\r\n\r\n"
            )

        with endpoint_that(redirects) as url, pytest.raises(LedgerError):
            Endpoint(url, patience=0.0).call("eth_chainId")
    assert not followed.is_set()


@pytest.mark.parametrize("nonsense", [None, 7, {}, [[]], "0x", "0xabc", True])
def test_nonsense_is_a_typed_error(nonsense: object) -> None:
    address = "0x" + "00" * 20
    with endpoint_that(answering(lambda *_: nonsense)) as url:
        endpoint = Endpoint(url, patience=0.0)
        for call in (
            lambda: endpoint.check_chain(1, GENESIS),
            lambda: endpoint.finalised(),
            lambda: endpoint.block(3),
        ):
            with pytest.raises(LedgerError):
                call()
        if not isinstance(nonsense, list):
            with pytest.raises(MalformedAnswerError):
                endpoint.logs([address], 0, 5)
        if nonsense != "0x":
            with pytest.raises(MalformedAnswerError):
                endpoint.code(address)


@pytest.mark.parametrize("conduct", [drips_its_headers, drips_its_body])
def test_one_that_drips_does_not_hold_up_the_others(
    conduct: Conduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints_module, "_SURVEY_SECONDS", 2.0)
    with endpoint_that(conduct) as bad, endpoint_that(answering(sound)) as good:
        several = Endpoints([bad, good], profile=QUICK, chain_id=1, genesis_hash=GENESIS, patience=20.0)
        done = threading.Event()

        def choose() -> None:
            several.check_chain(1, GENESIS)
            done.set()

        threading.Thread(target=choose, daemon=True).start()
        assert done.wait(30), "nothing was chosen"
        assert several.url == good
        trouble = {seen.url: seen.trouble for seen in several.health().endpoints}
        assert trouble[good] is None and trouble[bad] is not None


def keeps_silent(connection: socket.socket, _: Any) -> None:
    connection.recv(1)


def refuses(connection: socket.socket, _: Any) -> None:
    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("conduct", [keeps_silent, refuses])
def test_closing_ends_what_waits_in_other_threads(conduct: Conduct) -> None:
    with endpoint_that(conduct) as url:
        chain = Endpoints([url], profile=QUICK, chain_id=1, genesis_hash=GENESIS, patience=60)
        closing = threading.Timer(0.5, chain.close)
        closing.start()
        begun = time.monotonic()
        with pytest.raises(LedgerUnreachableError):
            chain.finalised()
        with pytest.raises(LedgerUnreachableError):
            chain.call("eth_chainId")
        assert time.monotonic() - begun < 30
