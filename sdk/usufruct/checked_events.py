"""Events that an index tells of, each compared with the chain's own logs, every series without a gap.

The index proposes; this module disposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from usufruct.errors import MissingEventError, VerificationError
from usufruct.ledger.abi import args_from_json
from usufruct.ledger.series import check_series, event_codec, series_of
from usufruct.records import LedgerEvent


class Chronicle(Protocol):
    """What is asked of a chain, be it a ledger or evidence of one."""

    def events(self, first: int, last: int) -> list[LedgerEvent]:
        """Decoded events of blocks first..last, in order."""

    def series_head(self, contract: str, key: bytes) -> tuple[int, bytes]:
        """Number of events in a series, and its rolling hash."""


class CheckedEvents:
    """Checks series of events against one chain, and remembers what it has checked."""

    def __init__(self, ledger: Chronicle) -> None:
        self._ledger = ledger
        self._blocks: dict[int, list[LedgerEvent]] = {}
        self._told: dict[tuple[str, bytes], Sequence[Mapping[str, Any]]] = {}
        """What each series was checked from; the same told again needs no second check."""
        self.known: dict[tuple[str, bytes], list[LedgerEvent]] = {}
        """Series that were checked, by contract and key."""
        self.n_events = 0
        self.n_series = 0

    def series(
        self, contract: str, key: bytes, raw: Sequence[Mapping[str, Any]], *, may_be_empty: bool = False
    ) -> list[LedgerEvent]:
        """Events of the series with this key: each as it stands on the chain, none missing.

        Parameters
        ----------
        raw :
            The events as the index tells of them.

        Raises
        ------
        VerificationError
            If they are not what the chain says.
        MissingEventError
            If the series goes on where they end.
        """
        if self._told.get((contract, key)) == raw:
            return self.known[contract, key]
        events = [self._on_chain(item) for item in raw]
        is_missing = not events and not may_be_empty
        if is_missing or any((event.contract, series_of(event)) != (contract, key) for event in events):
            raise VerificationError(
                f"the index shows no events, or those of another record, for {key.hex()[:12]}"
            )
        last = check_series(events)
        length, head = self._ledger.series_head(contract, key)
        if (length, head) != (len(events), last):
            raise MissingEventError(
                f"the series of {key.hex()[:12]} has {length} events on the chain, the index shows {len(events)}",
                hint="the node may be a block behind: ask again",
            )
        self.n_series += bool(events)
        self.known[contract, key] = events
        self._told[contract, key] = raw
        return events

    def _on_chain(self, item: Mapping[str, Any]) -> LedgerEvent:
        number = item["block_number"]
        if type(number) is not int:
            raise VerificationError("the index tells of an event in a block that has no number")
        if number not in self._blocks:
            self._blocks[number] = self._ledger.events(number, number)
        arguments = args_from_json(event_codec(item["contract"], item["name"]), item["args"])
        told = (item["contract"], item["name"], item["log_index"], arguments)
        for event in self._blocks[number]:
            if (event.contract, event.name, event.log_index, event.args) == told:
                self.n_events += 1
                return event
        raise VerificationError(f"{item['name']} is not in block {number} as the index tells it")


def registered(events: Sequence[LedgerEvent]) -> tuple[bytes, Mapping[str, Any]]:
    """Steward and registration of a bundle, from its events.

    Raises
    ------
    VerificationError
        If nobody registered it.
    """
    args: dict[str, Any] | None = next((e.args for e in events if e.name == "BundleRegistered"), None)
    if args is None:
        raise VerificationError("the index tells of a bundle that nobody registered")
    return args["steward"], args["registration"]
