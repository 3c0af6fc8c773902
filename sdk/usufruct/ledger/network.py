"""The network file: which chain, which contracts, where the endpoints are. Public; carries no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from usufruct.errors import ConfigurationError
from usufruct.ledger.abi import CONTRACTS

Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]


class Network(BaseModel):
    """What a member needs to join: hand this file to it.

    `contracts` are checked against the address book contract on the chain when a ledger is opened.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "usufruct"
    chain_id: int = Field(gt=0)
    genesis_hash: str = Field(pattern=r"^0x[0-9a-f]{64}$")
    rpc_urls: tuple[str, ...] = Field(min_length=1)
    address_book: Address
    contracts: dict[str, Address]
    deployed_at_block: int = Field(ge=0)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read a network file.

        Raises
        ------
        ConfigurationError
            If the file is absent, is not valid, or lacks a contract.
        """
        try:
            network = cls.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError as exc:
            raise ConfigurationError(
                f"no network file at {path}",
                hint="copy network.json from another member into the home directory",
            ) from exc
        except (ValidationError, OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"{path} is not a network file: {exc}") from exc
        missing = [name for name in CONTRACTS if name not in network.contracts]
        if missing:
            raise ConfigurationError(f"{path} lacks the contracts {', '.join(missing)}")
        return network

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n", "utf-8")
        temporary.replace(path)
