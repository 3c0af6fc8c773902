"""Keeps the index at the newest finalised block. Reads the chain; decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import trio

from usufruct.errors import LedgerError, LedgerUnreachableError, StaleLedgerError
from usufruct.ledger import Head, Ledger
from usufruct.records import LedgerEvent
from usufruct_node.index.database import Index, IndexFileError

_log = logging.getLogger(__name__)
_SPAN = 2_000
_UNKNOWN_TO_ALL = "no endpoint has the block indexed last; if that lasts, stop the node and delete index.db: it is built anew"


def catch_up(index: Index, ledger: Ledger, *, between: Callable[[], None] = lambda: None) -> bool:
    """Index every finalised block not indexed yet, reading ahead by one span; returns whether there was any.

    Parameters
    ----------
    between :
        Called at the start and before each span; what it raises ends the work, and what is indexed by then stays.

    Raises
    ------
    StaleLedgerError
        If the endpoint shows an older chain, or another one, than was indexed, or events with a gap in a series.
    LedgerError
        If it answers with an error, or with what makes no sense. In both cases the ledger turns to another one if it can.
    LedgerUnreachableError, IndexFileError
        If no endpoint answers, or the index's file cannot be written.
    """
    try:
        return _catch_up(index, ledger, between)
    except (LedgerUnreachableError, IndexFileError):
        raise
    except LedgerError as exc:
        ledger.endpoint.leave(exc)
        raise


async def catch_up_in_thread(index: Index, ledger: Ledger) -> bool:
    """`catch_up` beside the event loop; a cancellation takes effect at the next span."""
    between = trio.from_thread.check_cancelled
    try:
        return await trio.to_thread.run_sync(partial(catch_up, index, ledger, between=between))
    except LedgerError:
        # A node that stops closes its ledger: that is no trouble of the chain.
        await trio.lowlevel.checkpoint_if_cancelled()
        raise


def _catch_up(index: Index, ledger: Ledger, between: Callable[[], None]) -> bool:
    between()
    index.complete()
    head = ledger.finalised()
    cursor = index.cursor()
    first = ledger.network.deployed_at_block
    if cursor is not None:
        if head.number < cursor.number:
            raise _unlike(
                ledger, cursor, f"the endpoint is at block {head.number}, the index at {cursor.number}"
            )
        now = head if head.number == cursor.number else ledger.endpoint.block(cursor.number)
        if now.hash != cursor.hash:
            raise _unlike(ledger, cursor, f"the endpoint has another block {cursor.number} than was indexed")
        if head.number == cursor.number:
            return False
        first = cursor.number + 1
    spans = [(at, min(at + _SPAN - 1, head.number)) for at in range(first, head.number + 1, _SPAN)]
    whole = index.growing() if len(spans) > 1 else nullcontext()
    with whole, ThreadPoolExecutor(1, "index-ahead") as ahead:
        read = partial(_read, ledger, head)
        coming = ahead.submit(read, spans[0])
        for following in [*spans[1:], None]:
            events, reached = coming.result()
            between()
            if following is not None:
                coming = ahead.submit(read, following)
            index.advance(events, reached)
    return True


def _unlike(ledger: Ledger, cursor: Head, said: str) -> StaleLedgerError:
    """An endpoint that does not have the block up to which was indexed; perhaps none has it."""
    known = ledger.endpoint.anyone("eth_getBlockByHash", "0x" + cursor.hash.hex(), False)
    return StaleLedgerError(said, hint="" if known else _UNKNOWN_TO_ALL)


def _read(ledger: Ledger, head: Head, span: tuple[int, int]) -> tuple[list[LedgerEvent], Head]:
    first, last = span
    return ledger.events(first, last), head if last == head.number else ledger.endpoint.block(last)


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
            moved = await catch_up_in_thread(index, ledger)
        except LedgerError as exc:
            _log.warning("ledger: %s%s", exc, f" ({exc.hint})" if exc.hint else "")
            on_trouble(str(exc))
            await trio.sleep(max(poll_s, 1.0))
            continue
        on_trouble(None)
        if moved:
            on_advance()
        await trio.sleep(poll_s)
