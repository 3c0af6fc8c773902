"""The configuration of a private Kubo: what it must say, and where a given one says something else.

A daemon that runs under it stores blocks, answers its RPC on loopback to whoever knows the secret, and talks to nobody: no
bootstrap, routing, gateway, discovery, relay, telemetry or update check. Reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from usufruct.errors import ConfigurationError

Config = dict[str, Any]

_AUTO: Final = "auto"
"""Kubo's word for: ask its makers' server."""

_REQUIRED: Final[Mapping[str, object]] = {
    "Addresses.Announce": [],
    "Addresses.AppendAnnounce": [],
    "Addresses.Gateway": [],
    "Addresses.NoAnnounce": [],
    "AutoConf.Enabled": False,
    "AutoNAT.ServiceMode": "disabled",
    "AutoTLS.Enabled": False,
    "Bootstrap": [],
    "DNS.Resolvers": {},
    "Datastore.HashOnRead": True,
    "Discovery.MDNS.Enabled": False,
    "Gateway.ExposeRoutingAPI": False,
    "Gateway.NoDNSLink": True,
    "Gateway.NoFetch": True,
    "HTTPRetrieval.Enabled": False,
    "Import.CidVersion": 1,
    "Import.HashFunction": "sha2-256",
    "Import.UnixFSChunker": "size-262144",
    "Import.UnixFSFileMaxLinks": 174,
    "Import.UnixFSRawLeaves": True,
    "Ipns.DelegatedPublishers": [],
    "Peering.Peers": [],
    "Plugins.Plugins.telemetry.Disabled": True,
    "Provide.Enabled": False,
    "Pubsub.Enabled": False,
    "Routing.DelegatedRouters": [],
    "Routing.Type": "none",
    "Swarm.DisableNatPortMap": True,
    "Swarm.EnableHolePunching": False,
    "Swarm.RelayClient.Enabled": False,
    "Swarm.RelayService.Enabled": False,
    "Swarm.Transports.Network.QUIC": False,
    "Swarm.Transports.Network.Relay": False,
    "Swarm.Transports.Network.TCP": True,
    "Swarm.Transports.Network.WebRTCDirect": False,
    "Swarm.Transports.Network.WebTransport": False,
    "Swarm.Transports.Network.Websocket": False,
    "Version.SwarmCheckEnabled": False,
}
"""Key, as `ipfs config` takes it, and the only value that is accepted."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A key whose value is not the required one."""

    key: str
    found: object
    required: object

    def __str__(self) -> str:
        return f"{self.key} is {self.found!r} instead of {self.required!r}"


def hardened(
    config: Mapping[str, Any], *, rpc_address: str, user: str, secret: str, swarm: Sequence[str] = ()
) -> Config:
    """Return `config`, as `ipfs init` or a former run made it, with everything that a private daemon needs.

    Parameters
    ----------
    config :
        Identity and datastore are kept; only the datastore's files are made to be synchronised with the disk.
    rpc_address :
        Multiaddr on which the RPC listens.
    user, secret :
        What callers of the RPC authenticate with.
    swarm :
        Multiaddrs on which other Kubo nodes of the same swarm key may connect; none by default.

    Raises
    ------
    ConfigurationError
        If `config` has no identity or no flatfs datastore for its blocks.
    """
    made = deepcopy(dict(config))
    if not isinstance(made.get("Identity"), dict) or not made["Identity"].get("PrivKey"):
        raise ConfigurationError(
            "this configuration of Kubo has no identity", hint="make one with `ipfs init`"
        )
    for key, value in _REQUIRED.items():
        _set(made, key, deepcopy(value))
    stores = list(_flatfs(_get(made, "Datastore.Spec")))
    if not stores:
        raise ConfigurationError(
            "this configuration of Kubo keeps blocks in something else than flatfs",
            hint="make a new repository with `ipfs init`",
        )
    for store in stores:
        store["sync"] = True
    _set(made, "Addresses.API", [rpc_address])
    _set(made, "Addresses.Swarm", list(swarm))
    authorizations = {user: {"AuthSecret": f"basic:{user}:{secret}", "AllowedPaths": ["/api/v0"]}}
    _set(made, "API", {"HTTPHeaders": {}, "Authorizations": authorizations})
    for key in _autos(made):
        _set(made, key, None)
    return made


def deviations(config: Mapping[str, Any], *, rpc_address: str, swarm: Sequence[str] = ()) -> list[Deviation]:
    """Every key that `hardened` would have set otherwise, but for the secret, which Kubo does not show."""
    found = [
        Deviation(key, value, required)
        for key, required in _REQUIRED.items()
        if not _same(value := _get(config, key), required)
    ]
    for key, required in (("Addresses.API", [rpc_address]), ("Addresses.Swarm", list(swarm))):
        if not _same(value := _get(config, key), required):
            found.append(Deviation(key, value, required))
    if _get(config, "API.HTTPHeaders"):
        found.append(Deviation("API.HTTPHeaders", _get(config, "API.HTTPHeaders"), {}))
    spec = _get(config, "Datastore.Spec")
    stores = list(_flatfs(spec))
    if not stores:
        found.append(Deviation("Datastore.Spec", "no flatfs", "flatfs"))
    found += [
        Deviation("Datastore.Spec", "sync false", "sync true") for s in stores if s.get("sync") is not True
    ]
    return found + [Deviation(key, _AUTO, "nothing automatic") for key in _autos(config)]


def _same(value: object, required: object) -> bool:
    """Kubo leaves out what is empty, and writes a list of one as its item."""
    if isinstance(required, (list, dict)) and not required:
        return value is None or value == "" or value in ([], {})
    if isinstance(required, list) and isinstance(value, str):
        return [value] == required
    return type(value) is type(required) and value == required


def _get(config: object, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, Mapping):
            return None
        config = config.get(part)
    return config


def _set(config: Config, key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(config.get(part), dict):
            config[part] = {}
        config = config[part]
    if value is None:
        config.pop(last, None)
    else:
        config[last] = value


def _flatfs(spec: object) -> Iterator[Config]:
    """Every flatfs in a datastore's specification, whatever it is wrapped in."""
    if isinstance(spec, dict):
        if spec.get("type") == "flatfs":
            yield spec
        for value in spec.values():
            yield from _flatfs(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _flatfs(value)


def _autos(config: object, prefix: str = "") -> Iterator[str]:
    """Keys whose value, or an item of it, is left to Kubo's makers."""
    if not isinstance(config, Mapping):
        return
    for key, value in list(config.items()):
        name = f"{prefix}{key}"
        if value == _AUTO or (isinstance(value, list) and _AUTO in value):
            yield name
        else:
            yield from _autos(value, f"{name}.")
