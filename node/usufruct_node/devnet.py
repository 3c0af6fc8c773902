"""A whole network on one machine: a chain and one node process per organisation, each with a home of its own.

The chain is one embedded process or five validators. For development, demonstration and tests. Processes meet only through the
chain and libp2p; what this module hands to each of them is the network file, as a founding member would.
"""

from __future__ import annotations

import contextlib
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
from typing import Any, Literal, cast, get_args

import httpx

from usufruct.durable import write_private
from usufruct.errors import ConfigurationError, NodeUnreachableError, UsufructError
from usufruct.he.parameters import ALLOWED
from usufruct.home import Home, ParticipantFile
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Network
from usufruct.ledger.genesis import found_network
from usufruct.ledger.subnet_evm import GenesisMember, genesis
from usufruct.records import ReputationRule, Role, Timings
from usufruct_node.chain import ChainEndpoint, read_endpoint
from usufruct_node.enrol import create_home_with_passphrase_files
from usufruct_node.validators import Validators

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
ChainKind = Literal["embedded", "consortium"]
"""One process of this package, or five validators of a permissioned chain."""


class Devnet:
    """Starts, stops and finds the processes of one directory."""

    def __init__(self, root: Path, *, members: Sequence[Member] = MEMBERS) -> None:
        self.root = root.resolve()
        self.members = tuple(members)
        self.validators = Validators(self.root / "validators")

    def home(self, name: str) -> Home:
        """Home of one organisation."""
        return Home(self.root / name)

    @property
    def network_file(self) -> Path:
        """The network file as the founders agreed on it."""
        return self.root / "network.json"

    @property
    def chain(self) -> ChainKind:
        """What this directory's network lives on."""
        return "consortium" if self.validators.exist() else "embedded"

    def up(
        self,
        *,
        chain: ChainKind | None = None,
        say: Say = lambda _: None,
        timings: Timings | None = None,
        reputation: ReputationRule | None = None,
        block_interval_s: float = 0.25,
    ) -> None:
        """Start everything; a directory that holds a network goes on where it stopped.

        Parameters
        ----------
        chain :
            For a new network, what it is to live on; by default one embedded process.
        block_interval_s :
            Of the embedded chain; validators set their own pace.

        Raises
        ------
        ConfigurationError
            If it runs already, or on another kind of chain.
        NodeUnreachableError
            If a process does not come up; its log names the reason.
        """
        if any(self.running().values()):
            raise ConfigurationError(
                f"a network runs on {self.root} already, wholly or in part",
                hint="`usufruct-node devnet down` stops what runs; then `up` goes on where it stopped",
            )
        founded = self.network_file.exists()
        if (founded or self.validators.exist()) and chain not in (None, self.chain):
            raise ConfigurationError(
                f"the network in {self.root} lives on the {self.chain} chain", hint="choose another directory"
            )
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        records = {} if founded else self._enrol(say)
        say("chain")
        if (chain or self.chain) == "consortium":
            self.start_validators(say=say)
        else:
            self.start_chain(block_interval_s=block_interval_s)
        if not founded:
            self._found(records, say, timings, reputation)
        for member in self.members:
            say(f"node {member.name}")
            self.start_node(member.name, wait=False)
        for member in self.members:
            self.wait_for_node(member.name)

    def down(self, *, say: Say = lambda _: None) -> None:
        """Stop everything, nodes first; waits until each process is gone."""
        for member in self.members:
            if pid := self._alive(member.name):
                _signal(pid, signal.SIGTERM)
        for name in [*(member.name for member in self.members), "chain"]:
            if self._alive(name):
                say(f"stopping {name}")
                self.stop(name)
        if any(self.validators.running().values()):
            say("stopping the validators")
            self.validators.down()

    def strangers(self) -> dict[str, int]:
        """Process id of each node that runs on a home of this network and was not started by it."""
        found: dict[str, int] = {}
        for member in self.members:
            with contextlib.suppress(UsufructError):
                pid = self.home(member.name).node_address().pid
                if pid != self._alive(member.name):
                    found[member.name] = pid
        return found

    def running(self) -> dict[str, int | None]:
        """Process id of each part that runs."""
        chain = {"chain": self._alive("chain")} if self.chain == "embedded" else self.validators.running()
        return chain | {member.name: self._alive(member.name) for member in self.members}

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

    def start_validators(self, *, say: Say = lambda _: None) -> None:
        """Start the validators; a new chain has the founders' accounts in its genesis."""
        founders = [
            ParticipantFile.load(self.root / member.name / "participant.json").to_participant()
            for member in self.members
            if member.founder
        ]
        first = genesis(
            chain_id=CHAIN_ID,
            members=[GenesisMember.of(founder) for founder in founders],
            deployer=founders[0].account,
        )
        self.validators.up(first, say=say)
        if self.network_file.exists():
            self.refresh_endpoint()

    def start_node(self, name: str, *, wait: bool = True) -> None:
        """Start one organisation's node."""
        self._spawn(name, ["usufruct_node", "run", "--home", str(self.home(name).root)])
        if wait:
            self.wait_for_node(name)

    def wait_for_node(self, name: str) -> None:
        """Wait until the node that was started answers on its HTTP interface: another one may hold the home.

        Raises
        ------
        NodeUnreachableError
            If it does not come up; carries the last line of its log.
        """
        self._until(name, lambda: self._own_health(name))

    def health(self, name: str) -> dict[str, Any]:
        """A node's own view of its dependencies."""
        return self._health(name)

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM, wait_s: float = 30.0) -> None:
        """Stop one process and wait until it is gone; killed if it does not go by itself."""
        pid = self._alive(name)
        if pid is None:
            return
        _signal(pid, how)
        deadline = time.monotonic() + wait_s
        while self._alive(name) is not None:
            if time.monotonic() > deadline:
                _signal(pid, signal.SIGKILL)
                deadline += wait_s
            _reap(pid)
            time.sleep(0.05)
        self._pid_file(name).unlink(missing_ok=True)

    def log_file(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self.root / f"{name}.log"

    def _enrol(self, say: Say) -> dict[str, ParticipantFile]:
        """Make the homes; those of an interrupted start are taken as they are."""
        records: dict[str, ParticipantFile] = {}
        for member in self.members:
            say(f"keys of {member.name}")
            path = self.root / member.name
            records[member.name] = (
                ParticipantFile.load(path / "participant.json")
                if (path / "organisation.json").exists()
                else create_home_with_passphrase_files(path, name=member.name, roles=member.roles)
            )
        return records

    def _found(
        self,
        records: dict[str, ParticipantFile],
        say: Say,
        timings: Timings | None,
        reputation: ReputationRule | None,
    ) -> None:
        """Deploy the contracts with the founders, and hand everybody the network file."""
        say("contracts")
        founders = [member.name for member in self.members if member.founder]
        consortium = self.chain == "consortium"
        network = found_network(
            self._rpc_urls()[0],
            deployer_key=self._authority_key(founders[0]) if consortium else secrets.token_bytes(32),
            founders=[records[name].to_participant() for name in founders],
            parameters=[(key, value.security_bits) for key, value in ALLOWED.items()],
            timings=timings,
            reputation=reputation,
            profile="subnet-evm" if consortium else "embedded",
            finality=self.validators.describe().finality() if consortium else None,
        )
        self._hand_out(network)

    def refresh_endpoint(self) -> None:
        """Write the chain's present addresses into every network file: ports may change over a restart."""
        self._hand_out(Network.load(self.network_file))

    def _hand_out(self, network: Network) -> None:
        """Everybody gets the network file; where there are several validators, each member asks another one first."""
        urls = self._rpc_urls()
        for number, member in enumerate(self.members):
            at = number % len(urls)
            network.model_copy(update={"rpc_urls": urls[at:] + urls[:at]}).save(
                self.home(member.name).network_file
            )
        network.model_copy(update={"rpc_urls": urls}).save(self.network_file)

    def _rpc_urls(self) -> tuple[str, ...]:
        if self.chain == "consortium":
            return self.validators.describe().rpc_urls
        return (read_endpoint(self.root / "chain").url,)

    def _authority_key(self, name: str) -> bytes:
        home = self.home(name)
        keystore = KeyStore.open(home.authority_keystore, read_passphrase(home.authority_passphrase))
        return identity.load_authority_keys(keystore).ledger_key

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
        told = {"pid": process.pid, "started": _Process.of(process.pid).started}
        write_private(self._pid_file(name), json.dumps(told).encode())

    def _pid_file(self, name: str) -> Path:
        return self.root / f"{name}.pid"

    def _alive(self, name: str) -> int | None:
        """Process id of a part that runs; a process that was given the same number since is another."""
        try:
            told = json.loads(self._pid_file(name).read_text("ascii"))
            pid, started = told["pid"], told["started"]
            _reap(pid)
            found = _Process.of(pid)
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            return None
        return pid if found.runs and found.started == started else None

    def _own_health(self, name: str) -> dict[str, Any]:
        if name in (strangers := self.strangers()):
            raise NodeUnreachableError(f"process {strangers[name]} runs on the home of {name}")
        return self._health(name)

    def _health(self, name: str) -> dict[str, Any]:
        url = self.home(name).node_address().url
        try:
            answer: dict[str, Any] = httpx.get(f"{url}/health", timeout=5, trust_env=False).json()
        except (httpx.HTTPError, ValueError) as exc:
            raise NodeUnreachableError(f"{name} does not answer: {exc}") from exc
        return answer

    def _until(self, name: str, probe: Callable[[], Any], *, wait_s: float = 180.0) -> Any:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return probe()
            except UsufructError as exc:
                if self._alive(name) is None or time.monotonic() > deadline:
                    raise NodeUnreachableError(
                        f"{name} did not start: {self._last_words(name) or exc}",
                        hint=f"its log is {self.log_file(name)}",
                    ) from exc
                time.sleep(0.05)

    def _last_words(self, name: str) -> str:
        """The last line of a process's log that is no hint."""
        lines = self.log_file(name).read_text("utf-8", "replace").splitlines()
        return next((line for line in reversed(lines) if line and not line.startswith(" ")), "")


@dataclass(frozen=True, slots=True)
class _Process:
    """What tells a process from another one of the same number.

    Not by psutil, whose start times are those of the wall clock: they move when that is set.
    """

    runs: bool
    started: int
    """Ticks of the system's clock since it booted."""

    @classmethod
    def of(cls, pid: int) -> _Process:
        """As the kernel tells it. Source: proc_pid_stat(5), fields 3 (state) and 22 (starttime)."""
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rsplit(")", 1)[1].split()
        return cls(runs=fields[0] not in "ZX", started=int(fields[19]))


def chain_kind(text: str) -> ChainKind:
    """The kind of chain that a command names.

    Raises
    ------
    ConfigurationError
    """
    for kind in get_args(ChainKind):
        if text == kind:
            return cast(ChainKind, kind)
    raise ConfigurationError(
        f"{text!r} is no kind of chain", hint=f"kinds are {', '.join(get_args(ChainKind))}"
    )


def _signal(pid: int, how: signal.Signals) -> None:
    """Send a signal to a process that may be gone by now."""
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
    except PermissionError as exc:
        raise ConfigurationError(
            f"process {pid} belongs to somebody else", hint="stop it as the user who started it"
        ) from exc


def _reap(pid: int) -> None:
    """Collect a child that has ended, if it is ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
