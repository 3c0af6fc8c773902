"""A node that is told to stop stops, also while it still reads the chain."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from node_fixture import found_home
from usufruct.ledger import Network


class SlowLogs:
    """An endpoint like the one behind it, but for logs, which it gives when it is let."""

    def __init__(self, chain_url: str) -> None:
        self.asked, self.let = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if b"eth_getLogs" in body:
                    outer.asked.set()
                    outer.let.wait(60)
                answer = httpx.post(chain_url, content=body, headers={"Content-Type": "application/json"})
                self.send_response(answer.status_code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.let.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def slow(chain_url: str) -> Iterator[SlowLogs]:
    endpoint = SlowLogs(chain_url)
    try:
        yield endpoint
    finally:
        endpoint.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_node_that_reads_the_chain_for_the_first_time_obeys_signals(
    how: signal.Signals, chain_url: str, slow: SlowLogs, tmp_path: Path
) -> None:
    home = found_home(tmp_path / "north", chain_url)
    network = json.loads(home.network_file.read_text("utf-8"))
    home.network_file.write_text(json.dumps(network | {"rpc_urls": [slow.url]}), "utf-8")
    assert Network.load(home.network_file).rpc_urls == (slow.url,)
    run = [str(Path(sys.executable).parent / "usufruct-node"), "run", "--home", str(home.root)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as node:
        try:
            assert slow.asked.wait(60), "it never asked for logs"
            node.send_signal(how)
            slow.let.set()
            told = node.communicate(timeout=60)[0]
        finally:
            node.kill()
    assert node.returncode == 0, told
    assert "is up" not in told and "Traceback" not in told
