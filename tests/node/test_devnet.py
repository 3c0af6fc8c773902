"""A development network on one machine: what an interrupted start left goes on, and only its own processes are its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chain_fixture import until
from usufruct.errors import ConfigurationError, NodeUnreachableError
from usufruct.home import NodeAddress
from usufruct.keys.keystore import KeyStore
from usufruct.records import Role
from usufruct_node import enrol
from usufruct_node.app import exclusive
from usufruct_node.cli import app
from usufruct_node.devnet import Devnet, Member

MEMBERS = (Member("clinic", Role.STEWARD), Member("auditor", Role.AUDITOR))


@pytest.fixture
def net(tmp_path: Path) -> Devnet:
    return Devnet(tmp_path, members=MEMBERS)


@pytest.fixture
def namesake() -> Iterator[subprocess.Popen]:
    """A process of another network."""
    process = subprocess.Popen(["usufruct_node", "60"], executable="/bin/sleep")
    yield process
    process.kill()
    process.wait()


def start(net: Devnet) -> int:
    """A part that does nothing."""
    net._spawn("clinic", ["timeit", "-n", "1", "import time; time.sleep(60)"])
    pid = net.running()["clinic"]
    assert pid is not None
    return pid


def test_homes_that_an_interrupted_start_left_are_taken_and_the_others_made(
    net: Devnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = enrol.identity.create_node_keys
    calls = iter(range(9))

    def interrupted(keystore: KeyStore) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return make(keystore)

    monkeypatch.setattr(enrol.identity, "create_node_keys", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net._enrol(lambda _: None)
    (first,) = (path.read_text() for path in net.root.glob("*/participant.json"))
    records = net._enrol(lambda _: None)
    assert (net.home("clinic").root / "participant.json").read_text() == first
    assert list(records) == ["clinic", "auditor"]
    for member in MEMBERS:
        assert net._authority_key(member.name)
    assert sorted(path.name for path in net.root.iterdir()) == ["auditor", "clinic"]


def test_a_part_is_found_from_its_first_moment_on_until_it_has_ended(net: Devnet) -> None:
    pid = start(net)
    assert Devnet(net.root, members=MEMBERS).running()["clinic"] == pid
    net.stop("clinic")
    assert net.running()["clinic"] is None
    start(net)
    killed = net.running()["clinic"]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    until(lambda: net.running()["clinic"] is None)


def test_a_process_that_has_the_number_of_an_earlier_part_is_neither_taken_for_it_nor_stopped(
    net: Devnet, namesake: subprocess.Popen
) -> None:
    time.sleep(0.05)  # start times are in hundredths of a second
    start(net)
    file = net._pid_file("clinic")
    told = json.loads(file.read_text())
    net.stop("clinic")
    file.write_text(json.dumps(told | {"pid": namesake.pid}))
    assert net.running()["clinic"] is None
    net.down()
    assert namesake.poll() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": 1}', '{"pid": "x", "started": 1}'])
def test_a_file_that_names_no_process_means_that_none_runs(net: Devnet, content: str) -> None:
    net._pid_file("clinic").write_text(content)
    assert net.running()["clinic"] is None


def test_a_process_that_is_gone_is_no_trouble_and_one_of_somebody_else_is_named(
    net: Devnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_pid: int, _how: int) -> None:
        raise errors.pop(0)

    pid, errors = start(net), [PermissionError(), ProcessLookupError()]
    with monkeypatch.context() as patched, pytest.raises(ConfigurationError, match=f"process {pid} belongs"):
        patched.setattr(os, "kill", kill)
        net.down()
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", kill)
        patched.setattr(Devnet, "stop", lambda *_: None)
        net.down()
    assert not errors
    net.stop("clinic")


@pytest.fixture
def healthy() -> Iterator[str]:
    """URL of something that says that it is well."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"ok": true}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_node_that_was_started_by_hand_is_not_taken_for_the_one_that_could_not_start(
    net: Devnet, healthy: str
) -> None:
    net._enrol(lambda _: None)
    net.network_file.write_text("{}")
    home = net.home("auditor")
    with exclusive(home):
        home.write("api.json", NodeAddress(url=healthy, pid=os.getpid()))
        with pytest.raises(NodeUnreachableError) as caught:
            net.start_node("auditor")
        assert str(caught.value).startswith("auditor did not start: ConfigurationError: another node runs on")
        assert net.strangers() == {"auditor": os.getpid()}
        told = CliRunner().invoke(app, ["devnet", "down", "--dir", str(net.root)])
        assert f"process {os.getpid()} on the home of auditor" in told.stdout
    assert net.strangers() == {}


def test_the_status_of_a_network_that_is_down_is_an_error(net: Devnet) -> None:
    net.network_file.write_text("{}")
    words = ["devnet", "status", "--dir", str(net.root)]
    assert CliRunner().invoke(app, words).exit_code == 1
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 1
    assert {row["pid"] for row in json.loads(told.stdout)} == {None}
