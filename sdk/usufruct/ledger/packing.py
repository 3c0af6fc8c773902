"""Events whose words have fixed places, read and written by `struct`: twenty times as fast as by eth-abi.

One argument may be a list of `bytes32`: its words then stand after all others. Says None instead of an error
wherever words or arguments are not exactly what a contract writes: the caller then asks eth-abi, which knows every
type and every error. So nothing is accepted here that would be refused there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

_WORD = 32
_LIST = "bytes32[]"
_FORMATS = {
    "bytes32": "32s",
    "bool": "31x?",
    "uint8": "31xB",
    "uint16": "30xH",
    "uint32": "28xI",
    "uint64": "24xQ",
    _LIST: "24xQ",
}


_VALUE_BITS = {"bytes32": 256, "bool": 1, "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64, _LIST: 64}
"""Of a word; all above them are zero in what a contract writes."""


class Packing:
    """Layout of one event. Its indexed arguments come first, so that topics and data, one after the other, are the words of all
    arguments in the order of their declaration.
    """

    __slots__ = (
        "_covered",
        "_list",
        "_names",
        "_padding",
        "_tuples",
        "_whole",
        "_whole_offset",
        "covered_bytes",
    )

    def __init__(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        self._names = [entry["name"] for entry in inputs]
        self._tuples = [
            (place, [component["name"] for component in entry["components"]])
            for place, entry in enumerate(inputs)
            if entry["type"] == "tuple"
        ]
        self._list = next((place for place, entry in enumerate(inputs) if entry["type"] == _LIST), None)
        self._whole = struct.Struct(">" + "".join(_format(entry) for entry in inputs))
        self._padding = 0
        for entry in inputs:
            for leaf in _leaves(entry):
                self._padding = self._padding << 256 | (1 << 256) - (1 << _VALUE_BITS[leaf["type"]])
        self._covered = struct.Struct(">" + "".join(_format(entry) for entry in inputs[:-2]))
        self._whole_offset = self._whole.size - _WORD * sum(bool(entry["indexed"]) for entry in inputs)
        self.covered_bytes = None if self._list is not None else self._covered.size
        """Length of the words that `payload` gives; they stand at the beginning. None where there is a list."""

    @classmethod
    def of(cls, inputs: Sequence[Mapping[str, Any]]) -> Packing | None:
        """The layout of an event with these ABI inputs; None if it has none."""
        indexed = [bool(entry["indexed"]) for entry in inputs]
        types = [leaf["type"] for entry in inputs for leaf in _leaves(entry)]
        lists = [entry for entry in inputs if entry["type"] == _LIST]
        known = (
            indexed == sorted(indexed, reverse=True)
            and set(types) <= set(_FORMATS)
            and types.count(_LIST) == len(lists) <= 1
            and not any(entry["indexed"] or entry in inputs[-2:] for entry in lists)
            and not (lists and any(entry["type"] == "tuple" for entry in inputs))
        )
        return cls(inputs) if known else None

    def decode(self, words: bytes) -> dict[str, Any] | None:
        """Arguments by name from topics (but the first) and data."""
        size = self._whole.size
        if self._list is None:
            if len(words) != size:
                return None
            fixed = words
        else:
            fixed = words[:size]
            if len(fixed) != size:
                return None
        if int.from_bytes(fixed, "big") & self._padding:
            return None
        found = self._whole.unpack(fixed)
        if self._list is None and not self._tuples:
            return dict(zip(self._names, found, strict=True))
        values: list[Any] = list(found)
        if self._list is not None:
            items = _split(words[size:])
            if items is None or values[self._list] != self._whole_offset:
                return None
            values[self._list] = items
        for place, names in self._tuples:
            values[place : place + len(names)] = [dict(zip(names, values[place:], strict=False))]
        return dict(zip(self._names, values, strict=True))

    def payload(self, arguments: Mapping[str, Any]) -> bytes | None:
        """`abi.encode` of all arguments but the last two, of an event that ends in `(sequence, head)`."""
        values = [arguments[name] for name in self._names[:-2]]
        rest = b""
        try:
            for place, names in self._tuples:
                inner = values[place]
                values[place : place + 1] = [inner[name] for name in names]
            if self._list is not None:
                items = values[self._list]
                rest = b"".join([len(items).to_bytes(_WORD, "big"), *items])
                if _split(rest) != items:
                    return None
                values[self._list] = self._covered.size
            packed = self._covered.pack(*values)
        except (struct.error, TypeError):
            return None
        return packed + rest if list(self._covered.unpack(packed)) == values else None


def _split(words: bytes) -> list[bytes] | None:
    """Items of an encoded list that fills `words` from end to end."""
    items = [words[at : at + _WORD] for at in range(_WORD, len(words), _WORD)]
    whole = len(words) >= _WORD and len(words) % _WORD == 0
    return items if whole and int.from_bytes(words[:_WORD], "big") == len(items) else None


def _leaves(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return entry["components"] if entry["type"] == "tuple" else [entry]


def _format(entry: Mapping[str, Any]) -> str:
    return "".join(_FORMATS[leaf["type"]] for leaf in _leaves(entry))
