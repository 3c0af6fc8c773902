"""Checks that no event is missing: sequence numbers and rolling hashes of every series.

Source: `contracts/EventSeries.sol`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import eth_abi.abi
from eth_utils.crypto import keccak

from usufruct.errors import MissingEventError, VerificationError
from usufruct.ledger.abi import CONTRACTS, EventCodec, load_abi
from usufruct.ledger.keccak import keccak_many
from usufruct.records import LedgerEvent

_SERIES_KEYS = {
    "LineageRegistry": ("artifactId",),
    "ConsentRegistry": ("steward", "scope"),
    "UsageRights": ("grantId",),
    "JobLedger": ("jobId",),
    "ValidatorSet": ("chain",),
    "Reputation": ("organisation",),
}


class Link(NamedTuple):
    """An event as the chain wrote it, and the head of its series before it."""

    previous: bytes
    codec: EventCodec
    event: LedgerEvent


@lru_cache(maxsize=1024)
def event_codec(contract: str, name: str) -> EventCodec:
    """The codec of an event by name.

    Raises
    ------
    VerificationError
        If no contract of the network has such an event.
    """
    if contract in CONTRACTS:
        for codec in load_abi(contract).events.values():
            if codec.name == name:
                return codec
    raise VerificationError(f"no contract {contract!r} with an event {name!r}")


def series_of(event: LedgerEvent) -> bytes | None:
    """Key of the series that an event belongs to; None when it is in none."""
    if not event_codec(event.contract, event.name).in_series:
        return None
    return b"".join([_bytes(event.args[key]) for key in _SERIES_KEYS[event.contract]])


def next_head(previous: bytes, codec: EventCodec, arguments: Mapping[str, Any]) -> bytes:
    """Rolling hash after an event, recomputed from its own arguments."""
    words = (previous, arguments["sequence"], codec.topic, keccak(codec.payload(arguments)))
    return bytes(keccak(eth_abi.abi.encode(["bytes32", "uint64", "bytes32", "bytes32"], words)))


def next_heads(links: Sequence[Link]) -> list[bytes]:
    """Rolling hash after each event, as `next_head`; each link is computed by itself, so that all are hashed at once."""
    payloads = keccak_many([codec.covered(event.words) for _, codec, event in links])
    return keccak_many(
        [
            previous + _number(event).to_bytes(32, "big") + codec.topic + payload
            for payload, (previous, codec, event) in zip(payloads, links, strict=True)
        ]
    )


def check_series(events: Sequence[LedgerEvent], *, final_head: bytes | None = None) -> bytes:
    """Walk the events of one series in order and return its last head.

    Raises
    ------
    MissingEventError
        If one is missing, repeated, altered or out of order, or if the last head is not `final_head`.
    """
    head = bytes(32)
    for expected, event in enumerate(events, start=1):
        if event.args["sequence"] != expected:
            raise MissingEventError(
                f"event {expected} of the series is missing: found {event.name} number {event.args['sequence']}"
            )
        head = next_head(head, event_codec(event.contract, event.name), event.args)
        if head != event.args["head"]:
            raise MissingEventError(
                f"{event.name} number {expected} does not fit the rolling hash of its series"
            )
    if final_head is not None and head != final_head:
        raise MissingEventError("the series goes on after the events at hand")
    return head


def _number(event: LedgerEvent) -> int:
    number = event.args["sequence"]
    if not isinstance(number, int):
        raise MissingEventError(f"a sequence number is {type(number).__name__}, not a number")
    return number


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise MissingEventError(f"series key is {type(value).__name__}, not bytes")
    return value
