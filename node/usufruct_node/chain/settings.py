"""Parameters of the embedded chain and the files by which others find it.

Holds no process and opens no connection.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from usufruct.errors import ConfigurationError, LedgerUnreachableError

ENDPOINT_FILE = "rpc.json"
BLOCK_GAS_LIMIT = 300_000_000
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings:
    """What one embedded chain needs to know; checked when made.

    Raises
    ------
    ConfigurationError
        If a value is out of range.
    """

    home: Path
    """Data directory; made with mode 0700 when absent."""

    chain_id: int
    """EIP-155 chain id; fixed at the first start."""

    port: int = 0
    """TCP port on 127.0.0.1; 0 takes the port of the previous run, or any free one."""

    block_interval_s: float = 0.25
    """Seconds between blocks while transactions come in and until they are final."""

    idle_interval_s: float = 2.0
    """Seconds between the empty blocks of an idle chain, which keep its time near the wall clock."""

    checkpoint_every: int = 2000
    """Blocks, each eight transactions counting as one more, between two checkpoints."""

    anvil: Path | None = None
    """The Anvil executable; looked for by `find_anvil` when not given."""

    def __post_init__(self) -> None:
        if not 0 < self.chain_id < 2**53:
            raise ConfigurationError(f"chain id {self.chain_id} is not between 1 and 2^53 - 1")
        if not 0 <= self.port < 65536:
            raise ConfigurationError(f"port {self.port} is not between 0 and 65535")
        if not 0.02 <= self.block_interval_s <= self.idle_interval_s <= 3600:
            raise ConfigurationError(
                f"block interval {self.block_interval_s} s and idle interval {self.idle_interval_s} s: "
                "need 0.02 <= block interval <= idle interval <= 3600"
            )
        if self.checkpoint_every < 1:
            raise ConfigurationError(f"checkpoint_every {self.checkpoint_every} is below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEndpoint:
    """Where a running chain listens; the content of `rpc.json`."""

    url: str
    chain_id: int
    pid: int
    genesis_hash: str

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def read_endpoint(home: Path) -> ChainEndpoint:
    """Return where the chain of `home` listens.

    Raises
    ------
    LedgerUnreachableError
        If `rpc.json` is absent or malformed, or its process is gone.
    """
    path = home / ENDPOINT_FILE
    try:
        fields = json.loads(path.read_bytes())
        endpoint = ChainEndpoint(**fields)
        if not (
            isinstance(endpoint.url, str)
            and isinstance(endpoint.genesis_hash, str)
            and type(endpoint.chain_id) is int
            and type(endpoint.pid) is int
            and endpoint.pid > 0
        ):
            raise ValueError("a field has the wrong type")
        if not Path("/proc", str(endpoint.pid)).exists():
            raise ValueError(f"process {endpoint.pid} is gone")
    except (OSError, ValueError, TypeError) as exc:
        raise LedgerUnreachableError(f"no chain runs in {home}: {exc}") from exc
    return endpoint


def find_anvil(explicit: Path | None = None) -> Path:
    """Return the Anvil executable.

    Looks at `explicit`, then at the environment variable USUFRUCT_ANVIL, then for the npm package
    `@foundry-rs/anvil` in every `node_modules` above this package and above the working directory.

    Raises
    ------
    ConfigurationError
        If none of them is an executable file.
    """
    named = explicit or (Path(os.environ["USUFRUCT_ANVIL"]) if os.environ.get("USUFRUCT_ANVIL") else None)
    if named is not None:
        candidates = [named]
    else:
        machine = _MACHINES.get(platform.machine().lower(), platform.machine().lower())
        inside = Path("node_modules", "@foundry-rs", f"anvil-linux-{machine}", "bin", "anvil")
        above = [*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents]
        candidates = [folder / inside for folder in above]
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise ConfigurationError(
        f"Anvil is not at {candidates[0]}" if named else "Anvil was not found",
        hint="run `python3.11 scripts/setup.py`, or name the executable with --anvil or USUFRUCT_ANVIL",
    )
