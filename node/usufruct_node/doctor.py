"""Looks at a home from outside: everything that must be right before its node is started, and whether one answers."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from usufruct.errors import ConfigurationError, NodeUnreachableError, UsufructError
from usufruct.home import Home, ParticipantFile
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Ledger, Network
from usufruct.records import MemberStatus, Role
from usufruct_node.config import NodeSettings
from usufruct_node.kubo import examine_kubo
from usufruct_node.peers import PeerIdentity

_LEAST_FREE_BYTES = 1 << 30
_BACK_IN = {
    MemberStatus.NONE: "ask one to propose its admission",
    MemberStatus.SUSPENDED: "`usufruct members faults` says why if no vote did it;"
    " ask one to propose `usufruct members set-status NAME --status active`",
    MemberStatus.REMOVED: "that is for good",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of one check."""

    check: str
    ok: bool
    detail: str


def examine(home: Home, node_passphrase: str) -> list[Finding]:
    """Every check, in an order in which a failure explains those after it; none changes anything."""
    findings: list[Finding] = []

    def check(name: str, look: Callable[[], str]) -> None:
        try:
            findings.append(Finding(name, True, look()))
        except (UsufructError, OSError) as exc:
            findings.append(Finding(name, False, str(exc)))

    check("settings", lambda: f"{len(NodeSettings.load(home.root).model_dump())} settings")
    check("file modes", lambda: _modes(home))
    check("node keys", lambda: _keys(home, node_passphrase))
    check("custodian", lambda: _custodian(home))
    check("disk", lambda: _disk(home))
    check("block store", lambda: examine_kubo(home, NodeSettings.load(home.root)))
    check("chain and contracts", lambda: _chain(home))
    check("membership", lambda: _membership(home))
    check("node", lambda: _node(home))
    return findings


def _modes(home: Home) -> str:
    private = [p for p in home.root.iterdir() if p.suffix in (".keys", ".passphrase", ".token", ".db")]
    for path in private:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationError(f"{path} is readable by others; `chmod 600` it")
    return f"{len(private)} private files"


def _keys(home: Home, passphrase: str) -> str:
    keys = identity.load_node_keys(KeyStore.open(home.node_keystore, passphrase))
    record = ParticipantFile.load(home.root / "participant.json")
    found = PeerIdentity.from_seed(keys.peer_seed)
    if found.peer_id_bytes.hex() != record.peer_id:
        raise ConfigurationError("the node keystore holds another libp2p identity than participant.json")
    return found.peer_id


def _custodian(home: Home) -> str:
    """The keystore of homomorphic secrets has to be there, and a passphrase that lies beside it has to open it."""
    if Role.CUSTODIAN not in home.organisation().role_bits:
        return "no custodian"
    if not home.custodian_keystore.is_file():
        raise ConfigurationError(f"{home.custodian_keystore} is missing; restore it from a backup")
    if not home.custodian_passphrase.is_file():
        return (
            f"{home.custodian_keystore.name} is there; its passphrase comes from the terminal, at every start"
        )
    KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase))
    return f"{home.custodian_passphrase.name} opens {home.custodian_keystore.name}"


def _disk(home: Home) -> str:
    free = shutil.disk_usage(home.root).free
    if free < _LEAST_FREE_BYTES:
        raise ConfigurationError(f"only {free >> 20} MiB free")
    return f"{free >> 30} GiB free"


def _chain(home: Home) -> str:
    ledger = _open(home)
    number = ledger.finalised().number
    return f"chain {ledger.network.chain_id}, finalised block {number} at {ledger.endpoint.url}, contracts as shipped"


def _open(home: Home) -> Ledger:
    urls = NodeSettings.load(home.root).rpc_urls
    return Ledger.open(Network.load(home.network_file), patience=3.0, rpc_urls=urls)


def _membership(home: Home) -> str:
    ledger = _open(home)
    member = ledger.participant(home.organisation().id)
    if member.status != MemberStatus.ACTIVE:
        raise ConfigurationError(
            f"{home.organisation().name} is not an active member ({member.status.name}): {_BACK_IN[member.status]}"
        )
    return f"active, listening at {member.endpoint}"


def _node(home: Home) -> str:
    """A node that was killed leaves its address behind, so ask."""
    url = home.node_address().url
    try:
        answer: object = httpx.get(f"{url}/health", timeout=5, trust_env=False).json()
    except (httpx.HTTPError, ValueError) as exc:
        raise NodeUnreachableError(f"{url} does not answer: {exc}") from exc
    if not isinstance(answer, dict):
        raise NodeUnreachableError(f"{url} does not answer as a node does: another service may have its port")
    unwell = [f"{part}: {state}" for part, state in answer.items() if part != "ok" and state != "ok"]
    if unwell:
        raise ConfigurationError(f"{url} is up, but {', '.join(unwell)}")
    return url
