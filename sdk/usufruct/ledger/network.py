"""The network file: which chain, which contracts, where the endpoints are. Public; carries no secret."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from usufruct.durable import write_public
from usufruct.errors import ConfigurationError
from usufruct.fields import fault_of
from usufruct.ledger.abi import CONTRACTS
from usufruct.ledger.profile import PROFILES, ChainProfile

Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]


class Validator(BaseModel):
    """One validator, as finality proofs name it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(pattern=r"^0x([0-9a-f]{40}|[0-9a-f]{96})$")
    """Compressed BLS12-381 public key (48 bytes), or on Besu the address (20 bytes)."""
    weight: int = Field(gt=0, lt=1 << 64)


class FinalityPin(BaseModel):
    """Whose signatures make a block final. Against this, and nothing that an endpoint says, proofs are verified.

    The founding set; later sets are reached from it through `ValidatorSetChanged` events in blocks that the set before them
    proved, see `usufruct.ledger.finality`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network_id: int = Field(ge=0, lt=1 << 32)
    """Id of the Avalanche network; 0 on Besu."""
    chain: str = Field(pattern=r"^0x[0-9a-f]{64}$")
    """Blockchain id of the chain; on Besu its genesis hash."""
    validators: tuple[Validator, ...] = Field(min_length=1, max_length=256)
    """Strictly ascending by key, which is the order of the signer bit sets."""

    @model_validator(mode="after")
    def _ordered(self) -> FinalityPin:
        coordinates = [validator_order(validator.key) for validator in self.validators]
        if any(not a < b for a, b in pairwise(coordinates)):
            raise ValueError("validators are not strictly ascending by key")
        if sum(validator.weight for validator in self.validators) >= 1 << 64:
            raise ValueError("the validators' weights add up to more than 64 bits")
        return self


class _RunningValidator(BaseModel):
    bls_public_key: str
    weight: int


class _Running(BaseModel):
    network_id: int
    blockchain_id_hex: str
    validators: list[_RunningValidator]


def read_pin(path: Path) -> FinalityPin:
    """The pin of validators that run: from the `consortium.json` that `scripts/consortium` writes.

    Raises
    ------
    ConfigurationError
    """
    try:
        running = _Running.model_validate_json(path.read_text("utf-8"))
        validators = [Validator(key=v.bls_public_key, weight=v.weight) for v in running.validators]
        return FinalityPin(
            network_id=running.network_id,
            chain=running.blockchain_id_hex,
            validators=tuple(sorted(validators, key=lambda validator: validator_order(validator.key))),
        )
    except (OSError, UnicodeDecodeError, ValidationError) as exc:
        raise ConfigurationError(f"{path} does not describe running validators: {fault_of(exc)}") from exc


def validator_order(key: str) -> bytes:
    """What validators are sorted by: the x coordinate of a compressed BLS key, without its flag bits; an address itself.

    A validator set is ordered by uncompressed keys; since no two of a set share an x coordinate, it decides.
    """
    raw = bytes.fromhex(key[2:])
    return raw if len(raw) == 20 else bytes([raw[0] & 0x1F]) + raw[1:]


class Network(BaseModel):
    """What a member needs to join: hand this file to it.

    `contracts` are checked against the address book contract on the chain when a ledger is opened.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "usufruct"
    profile: str
    """Kind of chain, a name in `usufruct.ledger.profile.PROFILES`."""
    chain_id: int = Field(gt=0)
    genesis_hash: str = Field(pattern=r"^0x[0-9a-f]{64}$")
    rpc_urls: tuple[str, ...] = Field(min_length=1)
    address_book: Address
    contracts: dict[str, Address]
    deployed_at_block: int = Field(ge=0)
    finality: FinalityPin | None = None
    """The founding validators; None where the profile knows no finality proofs."""

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROFILES:
            raise ValueError(f"no such chain profile; known are {', '.join(sorted(PROFILES))}")
        return name

    @property
    def chain(self) -> ChainProfile:
        """What is particular to this kind of chain."""
        return PROFILES[self.profile]

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
            raise ConfigurationError(f"{path} is not a network file: {fault_of(exc)}") from exc
        missing = [name for name in CONTRACTS if name not in network.contracts]
        if missing:
            raise ConfigurationError(f"{path} lacks the contracts {', '.join(missing)}")
        return network

    def save(self, path: Path) -> None:
        """Write the file whole and durably, for everybody to read; raises ConfigurationError if it cannot be."""
        try:
            write_public(path, (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode())
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be written: {exc.strerror}") from exc
