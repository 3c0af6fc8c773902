"""Keeps the index at the newest finalised block. Reads the chain; decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from usufruct.errors import LedgerError, StaleLedgerError
from usufruct.ledger import Ledger
from usufruct_node.index.database import Index

_log = logging.getLogger(__name__)
_SPAN = 2_000


def catch_up(index: Index, ledger: Ledger) -> bool:
    """Index every finalised block not indexed yet; returns whether there was any.

    Raises
    ------
    StaleLedgerError
        If the endpoint shows an older chain, or another one, than was indexed.
    """
    head = ledger.finalised()
    cursor = index.cursor()
    first = ledger.network.deployed_at_block
    if cursor is not None:
        if head.number < cursor.number:
            raise StaleLedgerError(f"the endpoint is at block {head.number}, the index at {cursor.number}")
        if ledger.endpoint.block(cursor.number).hash != cursor.hash:
            raise StaleLedgerError(f"the endpoint has another block {cursor.number} than was indexed")
        if head.number == cursor.number:
            return False
        first = cursor.number + 1
    while first <= head.number:
        last = min(first + _SPAN - 1, head.number)
        events = ledger.events(first, last)
        index.advance(events, head if last == head.number else ledger.endpoint.block(last))
        first = last + 1
    return True


async def follow(
    index: Index,
    ledger: Ledger,
    *,
    poll_s: float,
    on_advance: Callable[[], None],
    on_trouble: Callable[[str | None], None],
) -> None:
    """Catch up for ever; tells `on_trouble` why it cannot, and None once it can again."""
    while True:
        try:
            moved = await trio.to_thread.run_sync(catch_up, index, ledger)
        except LedgerError as exc:
            _log.warning("ledger: %s", exc)
            on_trouble(str(exc))
            await trio.sleep(max(poll_s, 1.0))
            continue
        on_trouble(None)
        if moved:
            on_advance()
        await trio.sleep(poll_s)
