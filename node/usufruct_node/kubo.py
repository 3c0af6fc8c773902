"""Configures the Kubo daemon that holds a node's blocks, and looks whether a running one is configured so.

Writes Kubo's `config` and `swarm.key` and the home's `kubo.token`; starts nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from usufruct.content.kubo import Credentials, KuboRpc, deviations, hardened
from usufruct.content.kubo.rpc import check_address
from usufruct.durable import write_private
from usufruct.errors import ConfigurationError, KuboRefusedError
from usufruct.home import Home
from usufruct_node.config import NodeSettings
from usufruct_node.storage import open_rpc

_USER = "node"


def configure(
    home: Home, repository: Path, *, rpc_address: str, swarm: Sequence[str] = (), new_secret: bool = False
) -> None:
    """Make Kubo's configuration a private daemon's; running it twice changes nothing.

    Parameters
    ----------
    repository :
        Kubo's own directory (`IPFS_PATH`), made by `ipfs init`; its identity and blocks are kept.
    rpc_address :
        Multiaddr on which Kubo's RPC will listen.
    swarm :
        Multiaddrs for other Kubo daemons that have the same `swarm.key`; none: it talks to nobody.
    new_secret :
        Replace the RPC's secret in both places.

    Raises
    ------
    ConfigurationError
        If there is no repository, its configuration is not one that can be made private, or a file cannot be written; a
        secret that the node has for Kubo is replaced after everything else.
    """
    check_address(rpc_address)
    config = repository / "config"
    try:
        current = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigurationError(
            f"{repository} is no repository of Kubo: {exc}",
            hint=f"make one with `IPFS_PATH={repository} ipfs init --empty-repo`",
        ) from exc
    if not isinstance(current, dict):
        raise ConfigurationError(f"{config} is no configuration of Kubo")
    if new_secret or not home.kubo_token.exists():
        credentials = Credentials(_USER, secrets.token_urlsafe(32))
    else:
        credentials = Credentials.load(home.kubo_token)
    made = hardened(
        current, rpc_address=rpc_address, user=credentials.user, secret=credentials.secret, swarm=swarm
    )
    swarm_key = repository / "swarm.key"
    if not swarm_key.exists():
        _write(swarm_key, f"/key/swarm/psk/1.0.0/\n/base16/\n{secrets.token_hex(32)}\n")
    _write(config, json.dumps(made, indent=2) + "\n")
    # Last: the node needs the earlier secret for as long as Kubo has it.
    _write(home.kubo_token, f"{credentials.user}:{credentials.secret}\n")


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text.encode())
    except OSError as exc:
        raise ConfigurationError(
            f"{path} cannot be written: {exc.strerror}",
            hint=f"let this user write in {path.parent}, or make room there; then repeat the command",
        ) from exc


def examine_kubo(home: Home, settings: NodeSettings) -> str:
    """Look whether the daemon that runs is a private one.

    Raises
    ------
    ConfigurationError
        Naming every deviation.
    KuboUnreachableError, KuboRefusedError, KuboVersionError
    """
    address = settings.kubo_address
    if address is None:
        return "blocks rest in the embedded store"
    rpc = open_rpc(home, address, deadline_s=settings.kubo_deadline_s)
    try:
        version = rpc.check()
        wrong = [
            str(deviation)
            for deviation in deviations(
                rpc.one("/config/show"), rpc_address=address, swarm=settings.kubo_swarm
            )
        ]
        wrong += _open_door(address, settings.kubo_deadline_s)
        wrong += _peers(rpc, settings.kubo_swarm)
        wrong += _swarm_key(rpc)
    finally:
        rpc.close()
    if wrong:
        raise ConfigurationError(
            f"Kubo at {address} is not private: " + "; ".join(wrong),
            hint="`usufruct-node kubo config` writes what it should be; restart Kubo after it",
        )
    return f"Kubo {version} at {address}, private"


def _open_door(address: str, deadline_s: float) -> list[str]:
    stranger = KuboRpc(address, Credentials("stranger", secrets.token_urlsafe(16)), deadline_s=deadline_s)
    try:
        stranger.check()
    except KuboRefusedError:
        return []
    finally:
        stranger.close()
    return ["the RPC answers callers who do not know the secret"]


def _peers(rpc: KuboRpc, swarm: Sequence[str]) -> list[str]:
    """A daemon without a swarm has no peers; one with a swarm has those that know the key."""
    peers = rpc.one("/swarm/peers").get("Peers") or []
    return [] if swarm or not peers else [f"{len(peers)} peers are connected"]


def _swarm_key(rpc: KuboRpc) -> list[str]:
    """The key's file, where the daemon's repository can be seen from here."""
    environment = rpc.one("/diag/sys").get("environment") or {}
    path = Path(str(environment.get("IPFS_PATH") or ""))
    if not environment.get("IPFS_PATH") or not os.access(path, os.R_OK | os.X_OK):
        return []
    key = path / "swarm.key"
    if not key.is_file():
        return [f"{key} is missing"]
    if stat.S_IMODE(key.stat().st_mode) & 0o077:
        return [f"{key} can be read by others"]
    return []
