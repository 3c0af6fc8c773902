"""The doctor: all well on a sound home, and one clear line for each thing that is broken."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from node_fixture import found_home
from usufruct.home import Home
from usufruct.keys.keystore import KeyStore
from usufruct.ledger import Ledger
from usufruct.records import MemberStatus, Role
from usufruct_node import doctor
from usufruct_node.app import exclusive
from usufruct_node.doctor import examine
from usufruct_node.enrol import create_home_with_passphrase_files

CHECKS = [
    "settings",
    "file modes",
    "node keys",
    "custodian",
    "disk",
    "block store",
    "chain and contracts",
    "membership",
    "node",
]


def findings(home: Home) -> dict[str, tuple[bool, str]]:
    found = examine(home, home.node_passphrase.read_text())
    assert [finding.check for finding in found] == CHECKS
    return {finding.check: (finding.ok, finding.detail) for finding in found}


def test_a_home_whose_node_runs_is_well(node_home: Home) -> None:
    assert all(ok for ok, _ in findings(node_home).values()), findings(node_home)


@pytest.fixture(scope="module")
def sound(chain_url: str, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return found_home(tmp_path_factory.mktemp("doctor") / "north", chain_url)


@pytest.fixture
def home(sound: Home, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(sound.root, tmp_path / "north")))


def network(home: Home, **changes: object) -> None:
    home.network_file.write_text(json.dumps(json.loads(home.network_file.read_text()) | changes))


def other_contract(home: Home) -> None:
    contracts = json.loads(home.network_file.read_text())["contracts"]
    network(home, contracts=contracts | {"KeyRegistry": contracts["JobLedger"]})


def foreign_keys(home: Home) -> None:
    other = home.root.with_name("other")
    create_home_with_passphrase_files(other, name="other", roles=Role.VERIFIER)
    shutil.copy(other / "participant.json", home.root / "participant.json")


def stranger(home: Home) -> None:
    (home.root / "organisation.json").write_text('{"name": "stranger", "roles": ["verifier"]}')


def killed_node(home: Home) -> None:
    (home.root / "api.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1}')


BROKEN: dict[str, tuple[Callable[[Home], object], str, str]] = {
    "setting": (lambda h: (h.root / "node.toml").write_text("colour = 1"), "settings", "colour"),
    "mode": (lambda h: h.node_keystore.chmod(0o644), "file modes", "chmod 600"),
    "passphrase mode": (lambda h: h.authority_passphrase.chmod(0o640), "file modes", "authority.passphrase"),
    "keystore gone": (lambda h: h.node_keystore.unlink(), "node keys", "node.keys"),
    "secrets gone": (lambda h: h.custodian_keystore.unlink(), "custodian", "custodian.keys"),
    "another passphrase of the secrets": (
        lambda h: h.custodian_passphrase.write_text("another"),
        "custodian",
        "does not open",
    ),
    "passphrase of the secrets gone empty": (
        lambda h: h.custodian_passphrase.write_text(""),
        "custodian",
        "empty",
    ),
    "secrets damaged": (lambda h: h.custodian_keystore.write_bytes(b"junk"), "custodian", "custodian.keys"),
    "keystore damaged": (lambda h: h.node_keystore.write_bytes(b"junk"), "node keys", "node.keys"),
    "another identity": (foreign_keys, "node keys", "another libp2p identity"),
    "network gone": (lambda h: h.network_file.unlink(), "chain and contracts", "no network file"),
    "another chain": (lambda h: network(h, chain_id=5), "chain and contracts", "not 5"),
    "no chain": (
        lambda h: network(h, rpc_urls=["http://127.0.0.1:1"]),
        "chain and contracts",
        "does not answer",
    ),
    "another contract": (other_contract, "chain and contracts", "KeyRegistry"),
    "no member": (stranger, "membership", "not an active member (NONE)"),
    "no node": (lambda h: None, "node", "no node runs"),
    "killed node": (killed_node, "node", "no node runs"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_broken_thing_is_named_by_its_check(home: Home, what: str) -> None:
    breaking, check, said = BROKEN[what]
    breaking(home)
    ok, detail = findings(home)[check]
    assert not ok
    assert said in detail
    assert "\n" not in detail or check == "settings"


def test_a_node_that_holds_its_home_but_does_not_answer_is_named(home: Home) -> None:
    killed_node(home)
    with exclusive(home):
        ok, detail = findings(home)["node"]
    assert not ok
    assert "does not answer" in detail


class Stranger(BaseHTTPRequestHandler):
    """Another service on the port that a killed node had."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'["something", "else"]')

    def log_message(self, *_: object) -> None:
        pass


def test_another_service_on_the_nodes_port_is_a_finding(home: Home) -> None:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server, exclusive(home):
        address = {"url": f"http://127.0.0.1:{server.server_port}", "pid": 1}
        (home.root / "api.json").write_text(json.dumps(address))
        threading.Thread(target=server.handle_request, daemon=True).start()
        ok, detail = findings(home)["node"]
    assert not ok
    assert "another service" in detail


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (MemberStatus.NONE, "propose its admission"),
        (MemberStatus.SUSPENDED, "set-status"),
        (MemberStatus.REMOVED, "for good"),
    ],
)
def test_who_is_no_active_member_is_told_what_to_ask_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, status: MemberStatus, said: str
) -> None:
    asked = Ledger.participant
    monkeypatch.setattr(Ledger, "participant", lambda *who: replace(asked(*who), status=status))
    ok, detail = findings(home)["membership"]
    assert not ok
    assert status.name in detail and said in detail


def test_a_wrong_passphrase_is_named(home: Home) -> None:
    (keys,) = [f for f in examine(home, "wrong") if f.check == "node keys"]
    assert not keys.ok
    assert "passphrase" in keys.detail


def test_a_disk_that_is_nearly_full_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 5 << 20)
    )
    ok, detail = findings(home)["disk"]
    assert not ok
    assert detail == "only 5 MiB free"


def test_examining_changes_nothing(home: Home) -> None:
    before = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}
    findings(home)
    assert {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()} == before
    assert KeyStore.open(home.node_keystore, home.node_passphrase.read_text())
