"""A node that is told to stop stops, also while it still reads the chain."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from chain_fixture import until
from node_fixture import found_home
from rpc_door import Door, door_to
from usufruct.home import Home
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


def home_that_asks(rpc_url: str, chain_url: str, root: Path) -> Home:
    """A founder's home on the chain, which knows it by another address."""
    home = found_home(root / "north", chain_url)
    network = json.loads(home.network_file.read_text("utf-8"))
    home.network_file.write_text(json.dumps(network | {"rpc_urls": [rpc_url]}), "utf-8")
    assert Network.load(home.network_file).rpc_urls == (rpc_url,)
    return home


def hang(door: Door) -> None:
    """Keep every caller waiting for its answer."""
    door.before = lambda calls: time.sleep(60) or b""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_node_that_reads_the_chain_for_the_first_time_obeys_signals(
    how: signal.Signals, chain_url: str, slow: SlowLogs, tmp_path: Path
) -> None:
    home = home_that_asks(slow.url, chain_url, tmp_path)
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


@pytest.mark.parametrize("fault", [Door.shut, hang], ids=["down", "hanging"])
def test_a_node_whose_chain_is_gone_says_that_it_stops_and_does(
    fault: Callable[[Door], None], chain_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with door_to(chain_url) as door, log.open("wb") as told:
        home = home_that_asks(door.url, chain_url, tmp_path)
        run = [sys.executable, "-m", "usufruct_node", "run", "--home", str(home.root)]
        with subprocess.Popen(run, stdout=told, stderr=subprocess.STDOUT) as node:
            try:
                until(lambda: "is up" in log.read_text() or node.poll() is not None)
                assert "north is starting on" in log.read_text()
                fault(door)
                asked = len(door.seen)
                until(lambda: len(door.seen) > asked)
                node.send_signal(signal.SIGTERM)
                told_at = time.monotonic()
                until(lambda: "north is stopping" in log.read_text(), wait_s=10)
                assert node.wait(30) == 0
                assert time.monotonic() - told_at < 20, "calls are repeated for thirty seconds"
            finally:
                node.kill()
    assert log.read_text().rstrip().endswith("north has stopped")
    assert "Traceback" not in log.read_text()


def test_a_node_says_once_that_its_chain_is_gone_and_once_that_it_is_back(
    chain_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with door_to(chain_url) as door, log.open("wb") as told:
        home = home_that_asks(door.url, chain_url, tmp_path)
        run = [sys.executable, "-m", "usufruct_node", "run", "--home", str(home.root)]
        with subprocess.Popen(run, stdout=told, stderr=subprocess.STDOUT) as node:
            try:
                until(lambda: "is up" in log.read_text() or node.poll() is not None)
                opened = door.before
                door.shut()
                until(lambda: "health_log: ledger: " in log.read_text(), wait_s=60)
                door.before = opened
                until(lambda: "health_log: ledger: ok again" in log.read_text(), wait_s=60)
                node.send_signal(signal.SIGTERM)
                assert node.wait(30) == 0
            finally:
                node.kill()
    assert log.read_text().count("health_log: ledger: ") == 2
