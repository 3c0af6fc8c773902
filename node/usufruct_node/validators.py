"""Five validators under a development network, on this machine: drives `scripts/consortium` of the clone.

Knows no contract and no member's key. Validators are built from source by whoever runs them, and are no part of the package.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from usufruct.errors import ChainEngineError, ConfigurationError
from usufruct.ledger.network import FinalityPin, Validator, validator_order

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "consortium"

Say = Callable[[str], None]


class RunningValidator(BaseModel):
    """One validator, as the launcher describes it."""

    model_config = ConfigDict(frozen=True)

    number: int
    bls_public_key: str
    weight: int
    rpc_url: str
    pid: int
    running: bool


class Description(BaseModel):
    """What `scripts/consortium` says of its network; it writes the same into `consortium.json`."""

    model_config = ConfigDict(frozen=True)

    network_id: int
    blockchain_id_hex: str
    chain_id: int
    rpc_urls: tuple[str, ...] = Field(min_length=1)
    validators: tuple[RunningValidator, ...]

    def finality(self) -> FinalityPin:
        """The validators as a network file pins them."""
        validators = [Validator(key=v.bls_public_key, weight=v.weight) for v in self.validators]
        return FinalityPin(
            network_id=self.network_id,
            chain=self.blockchain_id_hex,
            validators=tuple(sorted(validators, key=lambda v: validator_order(v.key))),
        )


class Validators:
    """The validators of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def exist(self) -> bool:
        """Whether there is a network in the directory, running or not."""
        return (self.directory / "consortium.json").is_file()

    def up(self, genesis: dict[str, object] | None = None, *, say: Say = lambda _: None) -> Description:
        """Build what is missing, start a new chain with this genesis, or the one in the directory from its disk.

        Raises
        ------
        ConfigurationError
            If this is no clone, or Go is missing.
        ChainEngineError
            If the validators do not come up.
        """
        say("validators' programs")
        self._run("build", say=say)
        say("validators")
        if self.exist():
            self._run("up", *self._place)
        else:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self.directory / "genesis.json"
            file.write_text(json.dumps(genesis, indent=2) + "\n", "utf-8")
            self._run("up", *self._place, "--genesis", str(file))
        return self.describe()

    def down(self) -> None:
        """Stop every validator."""
        if self.exist():
            self._run("down", *self._place)

    def kill(self, number: int) -> None:
        """End a validator at once."""
        self._run("kill", str(number), *self._place)

    def restart(self, number: int) -> None:
        """Start a validator from its disk."""
        self._run("restart", str(number), *self._place)

    def describe(self) -> Description:
        """Who validates, where they answer, and which of them run.

        Raises
        ------
        ChainEngineError
            If the launcher says something else.
        """
        told = self._run("status", *self._place, "--json")
        try:
            return Description.model_validate_json(told)
        except ValidationError as exc:
            raise ChainEngineError(
                f"the validators in {self.directory} are described in another form"
            ) from exc

    def running(self) -> dict[str, int | None]:
        """Process id of each validator that runs, by name."""
        if not self.exist():
            return {}
        return {f"validator-{v.number}": v.pid if v.running else None for v in self.describe().validators}

    @property
    def _place(self) -> tuple[str, str]:
        return "--directory", str(self.directory)

    def _run(self, *words: str, say: Say = lambda _: None) -> str:
        if not SCRIPT.is_file():
            raise ConfigurationError(
                f"there is no {SCRIPT}", hint="validators are built and run from a clone of the repository"
            )
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as output,
            subprocess.Popen(
                [str(SCRIPT), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            heard = []
            for line in process.stderr or ():
                heard.append(line.strip())
                say(line.strip())
            process.wait()
            output.seek(0)
            told = output.read()
        if process.returncode:
            reason = next(
                (line for line in reversed([*heard, *told.splitlines()]) if line.strip()), "no reason"
            )
            kind = ConfigurationError if process.returncode == 2 else ChainEngineError
            raise kind(f"scripts/consortium {words[0]}: {reason}")
        return told
