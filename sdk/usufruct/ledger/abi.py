"""Precompiled ABI codecs: calls, returns, events and custom errors to and from records.

Pure functions over the generated artifacts; no chain, no keys.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import eth_abi.abi
import eth_abi.exceptions
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from usufruct.errors import InputError, TransactionRevertedError
from usufruct.ledger.packing import Packing
from usufruct.records import GrantStatus, JobState, KeyStatus, Refusal

Record = TypeVar("Record")

CONTRACTS = (
    "ParticipantRegistry",
    "MemberCouncil",
    "ChainPermissions",
    "ValidatorSet",
    "KeyRegistry",
    "LineageRegistry",
    "ConsentRegistry",
    "UsageRights",
    "PrivacyBudget",
    "JobLedger",
    "Reputation",
)
"""Names of a network's contracts that clients call, as the address book has them."""

IMPLEMENTATIONS = {"ChainPermissions": ("SubnetEvmPermissions", "OpenPermissions")}
"""Contracts that may stand under a name, where it is not the contract's own; the first has every event and error."""

_ENUMS: dict[str, type[IntEnum]] = {
    enum.__name__: enum for enum in (GrantStatus, JobState, KeyStatus, Refusal)
}
_NOTICES = {"AccessManagedUnauthorized": "Only a passed vote of the council may do this."}
"""For errors of libraries, which say nothing to people."""

_PANIC = keccak(b"Panic(uint256)")[:4]
_ERROR = keccak(b"Error(string)")[:4]


def abi_type(entry: Mapping[str, Any]) -> str:
    """Canonical type of one ABI input, tuples expanded: `tuple[]` with two words becomes `(bytes32,uint64)[]`."""
    if not entry["type"].startswith("tuple"):
        return str(entry["type"])
    inner = ",".join(abi_type(component) for component in entry["components"])
    return f"({inner}){entry['type'][len('tuple') :]}"


def _wire_type(entry: Mapping[str, Any]) -> str:
    """Type to decode with: strings as bytes, since a member may put anything but UTF-8 into one."""
    return abi_type(entry).replace("string", "bytes")


def to_abi(value: object) -> Any:
    """Turn records into the plain tuples and numbers that the encoder takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(to_abi(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, (IntEnum, IntFlag)):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [to_abi(item) for item in value]
    return value


@functools.cache
def _hints(record: Any) -> dict[str, Any]:
    return typing.get_type_hints(record)


def from_abi(record: type[Record], values: Sequence[Any]) -> Record:
    """Build a record from decoded words in the order of its fields."""
    hints = _hints(typing.cast(typing.Hashable, record))
    fields = dataclasses.fields(typing.cast(Any, record))
    return record(**{f.name: _convert(hints[f.name], value) for f, value in zip(fields, values, strict=True)})


def _convert(hint: Any, value: Any) -> Any:
    hint = getattr(hint, "__supertype__", hint)
    if dataclasses.is_dataclass(hint):
        return from_abi(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    if isinstance(hint, type) and issubclass(hint, (IntEnum, IntFlag)):
        return hint(value)
    if hint is str and isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if hint is str:
        return to_checksum_address(value)
    return value


def _named(inputs: Sequence[Mapping[str, Any]], values: Sequence[Any]) -> dict[str, Any]:
    return {entry["name"]: _named_value(entry, value) for entry, value in zip(inputs, values, strict=True)}


def _named_value(entry: Mapping[str, Any], value: Any) -> Any:
    if entry["type"] == "tuple":
        return _named(entry["components"], value)
    if entry["type"] == "address":
        return to_checksum_address(value)
    if entry["type"] == "string":
        return value.decode("utf-8", "backslashreplace")
    return list(value) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionCodec:
    """Codec of one function."""

    name: str
    selector: bytes
    inputs: tuple[Mapping[str, Any], ...]
    """ABI entries of the arguments, with their names."""
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]

    def encode(self, arguments: Sequence[object]) -> bytes:
        """Call data.

        Raises
        ------
        InputError
            If an argument does not fit its type: a number too large, an address that is none.
        """
        try:
            return self.selector + eth_abi.abi.encode(self.input_types, [to_abi(a) for a in arguments])
        except (eth_abi.exceptions.EncodingError, UnicodeEncodeError, TypeError) as exc:
            raise InputError(f"{self.name}: {exc}") from exc

    def decode(self, data: bytes) -> tuple[Any, ...]:
        """Returned words."""
        return tuple(eth_abi.abi.decode(self.output_types, data))


@dataclasses.dataclass(frozen=True, slots=True)
class EventCodec:
    """Codec of one event."""

    contract: str
    name: str
    topic: bytes
    inputs: tuple[Mapping[str, Any], ...]
    in_series: bool
    """Whether the event ends in `(sequence, head)`."""
    _packing: Packing | None = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, contract: str, name: str, topic: bytes, inputs: tuple[Mapping[str, Any], ...]) -> EventCodec:
        """The codec of an event with these ABI inputs."""
        in_series = [entry["name"] for entry in inputs[-2:]] == ["sequence", "head"]
        return cls(contract, name, topic, inputs, in_series, Packing.of(inputs))

    def decode(self, words: bytes) -> dict[str, Any]:
        """Arguments by name, in order of declaration; structs as nested dicts.

        Parameters
        ----------
        words :
            The topics but the first, then the data.

        Raises
        ------
        eth_abi.exceptions.DecodingError
            If no contract writes such words.
        """
        if self._packing is not None:
            packed = self._packing.decode(words)
            if packed is not None:
                return packed
        plain = [entry for entry in self.inputs if not entry["indexed"]]
        topics = 32 * (len(self.inputs) - len(plain))
        values = iter(eth_abi.abi.decode([_wire_type(entry) for entry in plain], words[topics:]))
        indexed = iter([words[at : at + 32] for at in range(0, topics, 32)])
        merged = [
            eth_abi.abi.decode([abi_type(entry)], next(indexed))[0] if entry["indexed"] else next(values)
            for entry in self.inputs
        ]
        return _named(self.inputs, merged)

    def covered(self, words: bytes) -> bytes:
        """As `payload`, from the words that `decode` took: where no list is among them, they begin with it."""
        if self._packing is not None and self._packing.covered_bytes is not None:
            return words[: self._packing.covered_bytes]
        return self.payload(self.decode(words))

    def payload(self, arguments: Mapping[str, Any]) -> bytes:
        """`abi.encode` of everything before `(sequence, head)`; what the rolling hash covers."""
        if self._packing is not None:
            packed = self._packing.payload(arguments)
            if packed is not None:
                return packed
        covered = self.inputs[:-2]
        return eth_abi.abi.encode(
            [abi_type(entry) for entry in covered],
            [_words(entry, arguments[entry["name"]]) for entry in covered],
        )


def _words(entry: Mapping[str, Any], value: Any) -> Any:
    if entry["type"] == "tuple":
        return tuple(_words(component, value[component["name"]]) for component in entry["components"])
    return value


class ErrorCodec(NamedTuple):
    """A custom error, and what the contracts' sources say about it to people."""

    name: str
    inputs: tuple[Mapping[str, Any], ...]
    notice: str


@dataclasses.dataclass(frozen=True, slots=True)
class ContractAbi:
    """All codecs of one contract."""

    name: str
    functions: dict[str, FunctionCodec]
    events: dict[bytes, EventCodec]
    errors: dict[bytes, ErrorCodec]


@functools.cache
def load_abi(name: str) -> ContractAbi:
    """Load the codecs of a contract from the package data."""
    (artifact, *_) = IMPLEMENTATIONS.get(name, (name,))
    text = resources.files("usufruct.ledger").joinpath("artifacts", f"{artifact}.json").read_text("utf-8")
    functions: dict[str, FunctionCodec] = {}
    events: dict[bytes, EventCodec] = {}
    errors: dict[bytes, ErrorCodec] = {}
    generated = json.loads(text)
    for entry in generated["abi"]:
        inputs = tuple(entry.get("inputs", ()))
        types = tuple(abi_type(item) for item in inputs)
        signature = f"{entry.get('name', '')}({','.join(types)})"
        digest = keccak(signature.encode())
        if entry["type"] == "function":
            outputs = tuple(_wire_type(item) for item in entry["outputs"])
            functions[entry["name"]] = FunctionCodec(entry["name"], digest[:4], inputs, types, outputs)
        elif entry["type"] == "event":
            events[digest] = EventCodec.of(name, entry["name"], digest, inputs)
        elif entry["type"] == "error":
            notice = generated["notices"].get(signature) or _NOTICES.get(entry["name"], "")
            errors[digest[:4]] = ErrorCodec(entry["name"], inputs, notice)
    return ContractAbi(name, functions, events, errors)


@functools.cache
def all_errors() -> dict[bytes, ErrorCodec]:
    """Custom errors of every contract by selector."""
    merged: dict[bytes, ErrorCodec] = {}
    for name in CONTRACTS:
        merged.update(load_abi(name).errors)
    return merged


def decode_revert(data: bytes) -> TransactionRevertedError:
    """Turn revert data into the typed error that names the custom error and its values; the hint is what it means."""
    selector, body = data[:4], data[4:]
    known = all_errors().get(selector)
    try:
        if known:
            values = eth_abi.abi.decode([_wire_type(entry) for entry in known.inputs], body)
            named = {
                entry["name"]: _as_enum(entry, value)
                for entry, value in zip(known.inputs, _named(known.inputs, values).values(), strict=True)
            }
            return TransactionRevertedError(known.name, named, hint=known.notice.replace("`", ""))
        if selector == _ERROR:
            message = eth_abi.abi.decode(["bytes"], body)[0].decode("utf-8", "backslashreplace")
            return TransactionRevertedError("Error", {"message": message})
        if selector == _PANIC:
            return TransactionRevertedError("Panic", {"code": eth_abi.abi.decode(["uint256"], body)[0]})
    except eth_abi.exceptions.DecodingError:
        pass
    return TransactionRevertedError("UnknownRevert", {"data": "0x" + data.hex()})


def _as_enum(entry: Mapping[str, Any], value: Any) -> Any:
    """The member of the enum that a contract's number stands for, where it has a name."""
    kind, _, name = str(entry.get("internalType", "")).partition(" ")
    members = _ENUMS.get(name.rpartition(".")[2], ()) if kind == "enum" else ()
    return next((member for member in members if member == value), value)


def args_to_json(value: object) -> Any:
    """Event arguments as JSON values: bytes become 0x-hex."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {key: args_to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [args_to_json(item) for item in value]
    return value


def args_from_json(codec: EventCodec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `args_to_json` for one event, by the types of its ABI."""
    return {entry["name"]: _from_json(entry, arguments[entry["name"]]) for entry in codec.inputs}


def _from_json(entry: Mapping[str, Any], value: Any) -> Any:
    kind = str(entry["type"])
    if kind == "tuple":
        return {c["name"]: _from_json(c, value[c["name"]]) for c in entry["components"]}
    if kind.endswith("[]"):
        return [_from_json({**entry, "type": kind[:-2]}, item) for item in value]
    return bytes.fromhex(value[2:]) if kind.startswith("bytes") else value
