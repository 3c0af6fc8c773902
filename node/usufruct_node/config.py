"""Settings of a node: defaults, then `node.toml` in the home, then environment variables `USUFRUCT_NODE_*`.

No secret is a setting: passphrases come from files or a prompt, never from here.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from usufruct.content.kubo.rpc import check_address
from usufruct.errors import ConfigurationError
from usufruct.fields import fault_of
from usufruct_node.peers.quota import Quota


class NodeSettings(BaseSettings):
    """What an operator may change."""

    model_config = SettingsConfigDict(env_prefix="USUFRUCT_NODE_", extra="forbid")

    listen_host: str = "127.0.0.1"
    """Address on which other members' nodes connect (libp2p over TCP)."""
    listen_port: int = Field(default=0, ge=0, le=65535)
    """0 takes a free port and announces it on the ledger."""
    announce: str | None = None
    """Multiaddr that others are told, such as `/dns4/node.example.org/tcp/4001`, where `listen_host` cannot be dialled."""
    api_port: int = Field(default=0, ge=0, le=65535)
    """Loopback port of the HTTP interface; 0 takes a free one."""
    poll_s: float = Field(default=0.4, gt=0, le=3600)
    """Seconds between looks at the chain."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run kernels."""
    expansion_cache_bytes: int = Field(default=0, ge=0)
    """Size of the file in which expanded seeds are kept from one job to the next; 0 keeps none."""
    quota_bytes: int | None = Field(default=None, gt=0)
    """Most bytes that the block store keeps; no limit by default."""
    hold_bytes: int | None = Field(default=None, ge=0)
    """Most bytes of other members' bundles that this node keeps copies of; no limit by default but `quota_bytes`."""
    custody_s: float = Field(default=5.0, gt=0, le=3600)
    """Seconds between looks at which bundles are to be held, and which retention is over."""
    challenge_s: float = Field(default=3600.0, gt=0, le=604_800)
    """Seconds between two storage challenges of one holder on one bundle."""
    challenge_misses: int = Field(default=3, ge=1, le=100)
    """Unanswered challenges in a row after which a holder is left out."""
    challenge_answer_s: float = Field(default=10.0, gt=0, le=300)
    """Seconds that a holder has to answer a challenge."""
    hold_grace_s: int = Field(default=21_600, ge=0, le=2_592_000)
    """Seconds that a new holder has to fetch its copy."""
    left_out_s: int = Field(default=86_400, ge=1, le=31_536_000)
    """Seconds for which a holder that failed a challenge does not count."""
    peer_streams: int = Field(default=8, ge=1, le=64)
    """Requests of one member that are served at once."""
    peer_blocks_per_s: float = Field(default=20_000.0, gt=0)
    """Blocks that one member may ask for per second."""
    peer_bytes_per_s: float = Field(default=500e6, gt=0)
    """Bytes of blocks that one member is given per second."""
    peer_bytes_per_day: int | None = Field(default=None, gt=0)
    """Bytes of blocks that one member is given in a day; no limit by default."""
    swarm_key_file: Path | None = None
    """File of mode 0600 in Kubo's `swarm.key` format, the same at all members; connections are hidden under it."""
    kubo_address: str | None = None
    """Multiaddr of the RPC of the Kubo daemon that holds the blocks, such as `/ip4/127.0.0.1/tcp/5001`; the embedded store
    holds them by default."""
    kubo_deadline_s: float = Field(default=60.0, gt=0, le=3600)
    """How long one call to Kubo may take."""
    kubo_swarm: tuple[str, ...] = ()
    """Addresses on which that Kubo may talk to others that have its swarm key; none by default."""
    rpc_urls: tuple[str, ...] = ()
    """JSON-RPC endpoints of the chain to use before those of the network file, such as that of one's own validator."""
    key_openings: int = Field(default=1 << 20, ge=1)
    """Result blocks that one homomorphic key may open in its life; after that its custodian refuses (docs/protocol.md)."""
    ledger_patience_s: float = Field(default=30.0, gt=0, le=86_400)
    """How long a call is repeated while no endpoint answers."""

    def quota(self) -> Quota:
        """What one member may take from this node."""
        return Quota(
            streams=self.peer_streams,
            blocks_per_s=self.peer_blocks_per_s,
            bytes_per_s=self.peer_bytes_per_s,
            bytes_per_day=self.peer_bytes_per_day,
        )

    @classmethod
    def load(cls, home: Path) -> NodeSettings:
        """Settings of the node in this home.

        Raises
        ------
        ConfigurationError
            If a setting is unknown or out of range.
        """
        file = home / "node.toml"
        prefix = str(cls.model_config.get("env_prefix", ""))
        known = {f"{prefix}{name}".upper() for name in cls.model_fields}
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known
        )
        if unknown:
            raise ConfigurationError(
                f"no setting is called {unknown[0]}", hint=f"settings are {', '.join(sorted(known))}"
            )

        class HomeSettings(cls, toml_file=file):  # type: ignore[valid-type,misc,call-arg]
            """The same settings with this home's file."""

        try:
            loaded: NodeSettings = HomeSettings()
        except ValueError as exc:
            raise ConfigurationError(
                f"settings of {home}: {fault_of(exc)}",
                hint=f"correct {file}; settings are {', '.join(sorted(cls.model_fields))}",
            ) from exc
        if loaded.kubo_address is not None:
            check_address(loaded.kubo_address)
        if loaded.announce is None and loaded.listen_host in ("0.0.0.0", "::", ""):  # noqa: S104
            raise ConfigurationError(
                f"settings of {home}: nobody can dial {loaded.listen_host!r}",
                hint=f"set `announce` in {file} to the address that other members reach",
            )
        return loaded

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """First wins: arguments, environment, the home's file."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))
