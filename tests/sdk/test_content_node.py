"""The client of a node's HTTP interface, against a server that counts connections."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from usufruct.client import Client
from usufruct.content.node import NodeContent
from usufruct.errors import NodeUnreachableError
from usufruct.home import Home


def test_a_connection_that_the_node_may_be_closing_is_not_used_again(tmp_path: Path) -> None:
    connections = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            connections.append(self.client_address)

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    token = tmp_path / "token"
    token.write_text("secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with closing(NodeContent(f"http://127.0.0.1:{server.server_port}", token)) as node:
            node.query("/health")
            node.query("/health")
            assert len(connections) == 1
            time.sleep(2.5)
            node.query("/health")
            assert len(connections) == 2
        server.shutdown()


def test_the_index_is_waited_for_and_not_for_ever(node_home: Home) -> None:
    client = Client.open(node_home)
    head = client.ledger.finalised().number
    client.content.await_block(head)
    assert client.content.query("/status")["indexed_block"] >= head
    with pytest.raises(NodeUnreachableError, match=f"of {head + 10**6}"):
        client.content.await_block(head + 10**6, patience_s=0)
