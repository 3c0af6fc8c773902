"""Receipts of transactions in flight, as the chain has them: which were included, and whether their blocks stand.

Reads only. Absent: sending, and what a receipt means (see `sender`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from operator import attrgetter
from typing import Any

from usufruct.ledger.endpoint import Endpoint, Head, natural, well_formed
from usufruct.ledger.journal import Pending

RawReceipt = dict[str, Any]
"""As an endpoint answered it."""

_CHUNK = 100
"""Lookups per JSON-RPC batch."""

_WHOLE_BLOCK = 20
"""Receipts wanted from which on a block's are asked for all at once."""


class FinalHead:
    """The newest final block, asked for once for all threads that want to know it at the same time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._asked_at = -math.inf
        self._answer: Future[Head] = Future()

    def not_older_than(self, seconds: float) -> Head:
        """The block as somebody asked for it, this many seconds ago or later; raises what the endpoint raised for them."""
        with self._lock:
            now = time.monotonic()
            asks = self._asked_at < now - seconds
            if asks:
                self._asked_at, self._answer = now, Future()
            answer = self._answer
        if asks:
            try:
                answer.set_result(self._endpoint.finalised())
            except BaseException as exc:
                answer.set_exception(exc)
        return answer.result()


class ReceiptReader:
    """Finds receipts of one account's transactions.

    Parameters
    ----------
    hashes_of :
        Hashes of all transactions that were signed for an intent, by the first of them.
    """

    def __init__(self, endpoint: Endpoint, hashes_of: Callable[[bytes], Iterable[bytes]]) -> None:
        self._endpoint = endpoint
        self._hashes_of = hashes_of

    def included(self, pending: Sequence[Pending]) -> list[RawReceipt | None]:
        """The receipts once the highest nonce is in a block; none before."""
        last = max(pending, key=attrgetter("nonce"))
        found = self.of([last])
        if found[0] is None or len(pending) == 1:
            return found if found[0] else []
        found = self.of(pending)
        return found if found[pending.index(last)] else []

    def newest_block(self, receipts: Sequence[RawReceipt | None]) -> int:
        """The highest number of a block that receipts name."""
        with well_formed(self._endpoint.url):
            return max(natural(receipt["blockNumber"]) for receipt in receipts if receipt)

    def stand(self, receipts: Sequence[RawReceipt | None], final: Head) -> bool:
        """Whether the blocks that receipts name are the chain's, of which `final` is one."""
        with well_formed(self._endpoint.url):
            named = {natural(receipt["blockNumber"]): receipt["blockHash"] for receipt in receipts if receipt}
            known = {final.number: "0x" + final.hash.hex()}
            if unknown := [number for number in named if number not in known]:
                blocks = self._endpoint.batch([("eth_getBlockByNumber", (hex(n), False)) for n in unknown])
                known |= {n: block and block["hash"] for n, block in zip(unknown, blocks, strict=True)}
            return all(known[number] == named_hash for number, named_hash in named.items())

    def of(self, pending: Sequence[Pending]) -> list[RawReceipt | None]:
        """The receipt of whichever transaction of each intent was included; None where none was.

        One sender's transactions stand together: while many are missing, the whole block of the first is asked for. A block
        that brings less than was missing from it, and what no block brought, is left to a lookup of each.
        """
        wanted = {
            "0x" + transaction.hex(): position
            for position, item in enumerate(pending)
            for transaction in self._hashes_of(item.transaction_hash)
        }
        found: list[RawReceipt | None] = [None] * len(pending)
        while len(wanted) >= _WHOLE_BLOCK:
            (first,) = self._look_up([next(iter(wanted))])
            if first is None:
                break
            with well_formed(self._endpoint.url):
                block = self._endpoint.call("eth_getBlockReceipts", first["blockNumber"]) or []
                brought = {r["transactionHash"]: r for r in block if r["transactionHash"] in wanted}
            for transaction, receipt in brought.items():
                found[wanted.pop(transaction)] = receipt
            if len(brought) < _WHOLE_BLOCK:
                break
        left = list(wanted)
        for at in range(0, len(left), _CHUNK):
            chunk = left[at : at + _CHUNK]
            for transaction, receipt in zip(chunk, self._look_up(chunk), strict=True):
                found[wanted[transaction]] = found[wanted[transaction]] or receipt
        return found

    def _look_up(self, transactions: Sequence[str]) -> list[Any]:
        return self._endpoint.batch([("eth_getTransactionReceipt", (hash_,)) for hash_ in transactions])

    def anywhere(self, pending: Sequence[Pending], found: list[RawReceipt | None]) -> list[RawReceipt | None]:
        """Receipts of nonces that are used: one endpoint's word is not enough to call a transaction replaced."""
        for position, item in enumerate(pending):
            for transaction in self._hashes_of(item.transaction_hash):
                if found[position] is None:
                    found[position] = self._endpoint.anyone(
                        "eth_getTransactionReceipt", "0x" + transaction.hex()
                    )
        return found
