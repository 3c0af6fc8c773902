"""A whole network on one machine: the chain and one node process per organisation, each with a home of its own.

For development, demonstration and tests. Processes meet only through the chain and libp2p; what this module hands to each
of them is the network file, as a founding member would.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from usufruct.errors import ConfigurationError, NodeUnreachableError, UsufructError
from usufruct.he.parameters import ALLOWED
from usufruct.home import Home, ParticipantFile, write_private
from usufruct.ledger import Network
from usufruct.ledger.genesis import found_network
from usufruct.records import Role, Timings
from usufruct_node.chain import ChainEndpoint, read_endpoint
from usufruct_node.enrol import create_home_with_passphrase_files

CHAIN_ID = 88_1812
_STEWARD = Role.STEWARD | Role.CUSTODIAN | Role.VERIFIER


@dataclass(frozen=True, slots=True)
class Member:
    """An organisation of the development network."""

    name: str
    roles: Role
    founder: bool = True


MEMBERS = (
    Member("clinic-north", _STEWARD),
    Member("clinic-south", _STEWARD),
    Member("compute-1", Role.COMPUTE),
    Member("auditor", Role.AUDITOR | Role.VERIFIER),
    Member("university", Role.PARTNER, founder=False),
)

Say = Callable[[str], None]


class Devnet:
    """Starts, stops and finds the processes of one directory."""

    def __init__(self, root: Path, *, members: Sequence[Member] = MEMBERS) -> None:
        self.root = root.resolve()
        self.members = tuple(members)

    def home(self, name: str) -> Home:
        """Home of one organisation."""
        return Home(self.root / name)

    @property
    def network_file(self) -> Path:
        """The network file as the founders agreed on it."""
        return self.root / "network.json"

    def up(
        self,
        *,
        say: Say = lambda _: None,
        timings: Timings | None = None,
        block_interval_s: float = 0.25,
    ) -> None:
        """Start everything; a directory that holds a network goes on where it stopped.

        Raises
        ------
        ConfigurationError
            If it runs already.
        NodeUnreachableError
            If a process does not come up; its log names the reason.
        """
        if any(self.running().values()):
            raise ConfigurationError(
                f"a network runs on {self.root} already, wholly or in part",
                hint="`usufruct-node devnet down` stops what runs; then `up` goes on where it stopped",
            )
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        say("chain")
        self.start_chain(block_interval_s=block_interval_s)
        if not self.network_file.exists():
            self._found(say, timings)
        for member in self.members:
            say(f"node {member.name}")
            self.start_node(member.name, wait=False)
        for member in self.members:
            self.wait_for_node(member.name)

    def down(self, *, say: Say = lambda _: None) -> None:
        """Stop everything, nodes first; waits until each process is gone."""
        for member in self.members:
            if pid := self._alive(member.name):
                os.kill(pid, signal.SIGTERM)
        for name in [*(member.name for member in self.members), "chain"]:
            if self._alive(name):
                say(f"stopping {name}")
                self.stop(name)

    def running(self) -> dict[str, int | None]:
        """Process id of each part that runs."""
        return {name: self._alive(name) for name in ["chain", *(member.name for member in self.members)]}

    def start_chain(self, *, block_interval_s: float = 0.25) -> ChainEndpoint:
        """Start the chain process and wait until it answers."""
        home = self.root / "chain"
        home.mkdir(exist_ok=True, mode=0o700)
        options = {"--home": home, "--chain-id": CHAIN_ID, "--block-interval": block_interval_s}
        words = [str(word) for pair in options.items() for word in pair]
        self._spawn("chain", ["usufruct_node.chain", *words])
        self._until("chain", lambda: read_endpoint(home))
        if self.network_file.exists():
            self.refresh_endpoint()
        return read_endpoint(home)

    def start_node(self, name: str, *, wait: bool = True) -> None:
        """Start one organisation's node."""
        self._spawn(name, ["usufruct_node", "run", "--home", str(self.home(name).root)])
        if wait:
            self.wait_for_node(name)

    def wait_for_node(self, name: str) -> None:
        """Wait until a node answers on its HTTP interface."""
        self._until(name, lambda: self._health(name))

    def health(self, name: str) -> dict[str, Any]:
        """A node's own view of its dependencies."""
        return self._health(name)

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM, wait_s: float = 30.0) -> None:
        """Stop one process and wait until it is gone; killed if it does not go by itself."""
        pid = self._alive(name)
        if pid is None:
            return
        os.kill(pid, how)
        deadline = time.monotonic() + wait_s
        while self._alive(name) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline += wait_s
            _reap(pid)
            time.sleep(0.05)
        self._pid_file(name).unlink(missing_ok=True)

    def log_file(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self.root / f"{name}.log"

    def _found(self, say: Say, timings: Timings | None) -> None:
        """Make the homes, deploy the contracts with the founders, hand everybody the network file."""
        records: dict[str, ParticipantFile] = {}
        for member in self.members:
            say(f"keys of {member.name}")
            path = self.root / member.name
            records[member.name] = (
                ParticipantFile.load(path / "participant.json")
                if (path / "organisation.json").exists()
                else create_home_with_passphrase_files(path, name=member.name, roles=member.roles)
            )
        say("contracts")
        network = found_network(
            read_endpoint(self.root / "chain").url,
            deployer_key=secrets.token_bytes(32),
            founders=[records[member.name].to_participant() for member in self.members if member.founder],
            parameters=[(key, value.security_bits) for key, value in ALLOWED.items()],
            timings=timings,
        )
        for member in self.members:
            network.save(self.home(member.name).network_file)
        network.save(self.network_file)

    def refresh_endpoint(self) -> None:
        """Write the chain's present address into every network file: its port may change over a restart."""
        network = Network.load(self.network_file)
        url = read_endpoint(self.root / "chain").url
        if network.rpc_urls != (url,):
            moved = network.model_copy(update={"rpc_urls": (url,)})
            for path in [self.network_file, *(self.home(m.name).network_file for m in self.members)]:
                moved.save(path)

    def _spawn(self, name: str, module: list[str]) -> None:
        with self.log_file(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.root,
            )
        write_private(self._pid_file(name), json.dumps({"pid": process.pid}).encode())

    def _pid_file(self, name: str) -> Path:
        return self.root / f"{name}.pid"

    def _alive(self, name: str) -> int | None:
        try:
            pid = int(json.loads(self._pid_file(name).read_text("ascii"))["pid"])
            _reap(pid)
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError, KeyError):
            return None
        return pid if b"usufruct_node" in command else None

    def _health(self, name: str) -> dict[str, Any]:
        url = self.home(name).node_address().url
        try:
            answer: dict[str, Any] = httpx.get(f"{url}/health", timeout=5, trust_env=False).json()
        except (httpx.HTTPError, ValueError) as exc:
            raise NodeUnreachableError(f"{name} does not answer: {exc}") from exc
        return answer

    def _until(self, name: str, probe: Callable[[], Any], *, wait_s: float = 60.0) -> Any:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return probe()
            except UsufructError as exc:
                if self._alive(name) is None or time.monotonic() > deadline:
                    log = self.log_file(name).read_text("utf-8", "replace").strip().splitlines()
                    raise NodeUnreachableError(
                        f"{name} did not start: {log[-1] if log else exc}",
                        hint=f"its log is {self.log_file(name)}",
                    ) from exc
                time.sleep(0.05)


def _reap(pid: int) -> None:
    """Collect a child that has ended, if it is ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
