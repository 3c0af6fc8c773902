"""One organisation's real node process on the shared chain: home, keys, contracts of its own network."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from chain_fixture import PARAMETERS_ID, until, word
from usufruct.home import Home
from usufruct.ledger.genesis import found_network
from usufruct.records import Role
from usufruct_node.enrol import create_home_with_passphrase_files

ROLES = Role.STEWARD | Role.CUSTODIAN | Role.VERIFIER | Role.PARTNER


def found_home(root: Path, chain_url: str, *, name: str = "north") -> Home:
    """A home whose organisation is the only founder of a fresh network."""
    record = create_home_with_passphrase_files(root, name=name, roles=ROLES)
    network = found_network(
        chain_url,
        deployer_key=word(),
        founders=[record.to_participant()],
        parameters=[(PARAMETERS_ID, 128)],
        quorum=1,
    )
    home = Home.at(root)
    network.save(home.network_file)
    return home


@contextmanager
def running_node(home: Home) -> Iterator[subprocess.Popen]:
    """`usufruct-node run` until the block ends; it must go by itself on SIGTERM."""
    log = (home.root / "node.log").open("ab")
    command = [sys.executable, "-m", "usufruct_node", "run", "--home", str(home.root)]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: (home.root / "api.json").exists() or process.poll() is not None)
        assert process.poll() is None, (home.root / "node.log").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        log.close()


def api_of(home: Home, *, token: bool = True) -> httpx.Client:
    """A client of the node's HTTP interface."""
    headers = {"Authorization": f"Bearer {home.api_token.read_text().strip()}"} if token else {}
    return httpx.Client(base_url=home.node_address().url, headers=headers, trust_env=False, timeout=30)
