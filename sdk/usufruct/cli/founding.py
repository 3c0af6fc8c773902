"""`usufruct network init`: the genesis of a chain of the members' own, from what they hand to each other."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from usufruct.cli.terminal import JsonOption, done, guarded
from usufruct.durable import new_file
from usufruct.errors import ConfigurationError, InputError
from usufruct.fields import fault_of
from usufruct.home import ParticipantFile
from usufruct.ledger.subnet_evm import GenesisMember, genesis

PROFILE = "subnet-evm"


class MembersFile(BaseModel):
    """`members.toml`: what the founders agree on before there is a chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chain_id: int = Field(gt=0, lt=1 << 53)
    """EVM chain id; no other chain that the members use may have it."""
    deployer: str
    """Name of the founder whose authority deploys the contracts."""
    participants: tuple[Path, ...] = Field(min_length=1)
    """participant.json of each founder, relative to this file."""

    @classmethod
    def load(cls, path: Path) -> MembersFile:
        """Read the file; paths in it come back relative to the working directory.

        Raises
        ------
        ConfigurationError
        """
        try:
            found = cls.model_validate(tomllib.loads(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as exc:
            raise ConfigurationError(f"{path} is no members file: {fault_of(exc)}") from exc
        return found.model_copy(
            update={"participants": tuple(path.parent / participant for participant in found.participants)}
        )

    def genesis(self) -> dict[str, object]:
        """The chain's genesis with these founders.

        Raises
        ------
        ConfigurationError
            If a participant file cannot be used, a name stands twice, or nobody is called like the deployer.
        """
        files = [ParticipantFile.load(path) for path in self.participants]
        founders = [file.to_participant() for file in files]
        names = [file.name for file in files]
        if len(set(names)) != len(names):
            raise ConfigurationError("two participant files have the same name")
        if self.deployer not in names:
            raise ConfigurationError(
                f"the deployer {self.deployer!r} is no participant", hint=f"participants: {', '.join(names)}"
            )
        return genesis(
            chain_id=self.chain_id,
            members=[GenesisMember.of(founder) for founder in founders],
            deployer=founders[names.index(self.deployer)].account,
        )


@guarded
def network_init(
    members: Annotated[Path, typer.Option(help="members.toml: chain id, deployer, participant files.")],
    output: Annotated[Path, typer.Option(help="Genesis file to write; every validator starts from it.")],
    profile: Annotated[str, typer.Option(help="Kind of chain.")] = PROFILE,
    as_json: JsonOption = False,
) -> None:
    """Write the genesis of a chain that only its founders may use."""
    if profile != PROFILE:
        raise InputError(
            f"profile {profile!r} has no genesis to write",
            hint=f"only {PROFILE} has; an embedded chain makes its own, docs/consortium.md describes Besu's",
        )
    require_new(output)
    agreed = MembersFile.load(members)
    write_new(output, agreed.genesis())
    founders = len(agreed.participants)
    done(
        f"genesis of chain {agreed.chain_id} with {founders} founders; genesis file {output}",
        {"genesis_file": str(output), "chain_id": agreed.chain_id, "founders": founders},
        as_json=as_json,
    )


def require_new(output: Path) -> None:
    """Raise InputError if there is something under this name: a chain may run from it."""
    if os.path.lexists(output):
        raise _taken(output)


def write_new(output: Path, content: Mapping[str, object]) -> None:
    """Write a public JSON file that a chain will run from: whole, or not at all, and never in the place of another.

    Raises
    ------
    InputError
    """
    try:
        with new_file(output, _taken(output)) as file:
            os.fchmod(file.fileno(), 0o644)
            file.write((json.dumps(content, indent=2) + "\n").encode())
    except OSError as exc:
        raise InputError(f"{output} cannot be written: {exc.strerror}") from exc


def _taken(output: Path) -> InputError:
    return InputError(f"{output} exists already", hint="choose another file: a chain may run from it")
