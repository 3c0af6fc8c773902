"""Whoever waits for the node or the chain is told so once it lasts, and a node that hangs is given up on in time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from free_ports import free_port
from usufruct import waiting
from usufruct.content import node as node_module
from usufruct.content.node import NodeContent
from usufruct.errors import LedgerUnreachableError, NodeUnreachableError
from usufruct.ledger import PROFILES, Endpoints
from usufruct.ledger.endpoint import Endpoint


@pytest.fixture
def hanging() -> Iterator[str]:
    """URL of a server that answers nothing."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            over.wait(60)

        def do_POST(self) -> None:
            over.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_SILENT_SECONDS", 0.2)


def test_what_lasts_is_told_once_and_what_does_not_never(caplog: pytest.LogCaptureFixture) -> None:
    with waiting.told("nothing", most_s=30):
        pass
    with waiting.told("a moment", most_s=0.1):
        time.sleep(0.4)
    assert not caplog.messages
    with waiting.told("the kettle", most_s=30):
        time.sleep(0.6)
    assert caplog.messages == ["waiting for the kettle, up to 30 s"]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_node_that_hangs_is_named_and_given_up_on(
    hanging: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "_QUERY_SECONDS", 1.0)
    token = tmp_path / "token"
    token.write_text("secret")
    begun = time.monotonic()
    with closing(NodeContent(hanging, token)) as node, pytest.raises(NodeUnreachableError, match="timed out"):
        node.query("/bundles")
    assert time.monotonic() - begun < 5
    assert caplog.messages == [f"waiting for the node at {hanging}, up to 1 s"]


def test_a_chain_that_is_down_is_named_and_why(caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    chain = Endpoints(
        [url], profile=PROFILES["embedded"], chain_id=1, genesis_hash="0x" + "11" * 32, patience=1
    )
    with pytest.raises(LedgerUnreachableError) as caught:
        chain.finalised()
    assert str(caught.value).endswith(": connection refused")
    assert caplog.messages == [f"waiting for the chain at {url}, up to 1 s"]


def test_an_endpoint_that_says_nothing_is_told_apart_from_one_that_refuses(hanging: str) -> None:
    with pytest.raises(LedgerUnreachableError, match=r"(in time|without an answer)$"):
        Endpoint(hanging, patience=0, request_s=0.5).call("eth_chainId")
