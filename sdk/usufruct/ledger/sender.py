"""Signs transactions, owns the nonce of one account, waits for finality. Knows no contract."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from usufruct.errors import (
    LedgerError,
    LedgerUnreachableError,
    TransactionLostError,
    TransactionRevertedError,
)
from usufruct.ledger.endpoint import Endpoint, transaction_hash

_POLL_SECONDS = 0.1
_GAS_MARGIN = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A transaction in a finalised block."""

    transaction_hash: bytes
    block_number: int
    block_hash: bytes
    gas_used: int
    contract_address: str | None
    logs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A transaction that was sent; not yet final."""

    transaction_hash: bytes
    nonce: int
    to: str | None
    data: bytes


class Sender:
    """Sends from one account.

    Nonces are taken under a lock, and with `lock_file` under a file lock too, so that two processes that share the
    account never use one twice.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        chain_id: int,
        private_key: bytes,
        *,
        lock_file: Path | None = None,
        patience: float = 120.0,
    ) -> None:
        self._endpoint = endpoint
        self._chain_id = chain_id
        self._account: LocalAccount = Account.from_key(private_key)
        self._lock_file = lock_file
        self._lock = threading.Lock()
        self._patience = patience
        self.address: str = self._account.address

    def transact(self, to: str | None, data: bytes, *, least_gas: int = 0) -> Receipt:
        """Send one transaction and wait until it is final.

        `least_gas` is for calls that may cost more in the block than when they are simulated, because others act at the same
        time: whoever reveals last pays for the conclusion.

        Raises
        ------
        TransactionRevertedError
            If the contract refuses; found by simulation before anything is sent, or in the block.
        TransactionLostError
            If it is not final within `patience` seconds.
        """
        gas = max(self._estimate(to, data), least_gas)
        with self._nonces():
            raw = self._sign(to, data, gas, self._next_nonce(), self._gas_price())
            self._submit([raw])
        return self._settled(transaction_hash(raw), to, data)

    def transact_many(self, calls: Sequence[tuple[str | None, bytes]], *, gas: int) -> list[Receipt]:
        """Send calls as one batch, signed beforehand with consecutive nonces, and wait until all are final.

        `gas` is the limit of each, since a call that depends on an earlier one cannot be simulated. Raises for the first that
        reverted.
        """
        return self.settle(self.submit_many(calls, gas=gas))

    def submit_many(self, calls: Sequence[tuple[str | None, bytes]], *, gas: int) -> list[Pending]:
        """Send calls as one batch without waiting."""
        with self._nonces():
            price, first = self._gas_price(), self._next_nonce()
            raws = [self._sign(to, data, gas, first + i, price) for i, (to, data) in enumerate(calls)]
            self._submit(raws)
        return [
            Pending(transaction_hash=transaction_hash(raw), nonce=first + i, to=to, data=data)
            for i, (raw, (to, data)) in enumerate(zip(raws, calls, strict=True))
        ]

    def settle(self, pending: Sequence[Pending]) -> list[Receipt]:
        """Wait until all are final; raises for the first that reverted."""
        return [self._settled(item.transaction_hash, item.to, item.data) for item in pending]

    @contextlib.contextmanager
    def _nonces(self) -> Iterator[None]:
        with self._lock:
            if self._lock_file is None:
                yield
                return
            with self._lock_file.open("a") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield

    def _next_nonce(self) -> int:
        return self._endpoint.quantity("eth_getTransactionCount", self.address, "pending")

    def _gas_price(self) -> int:
        return self._endpoint.quantity("eth_gasPrice")

    def _estimate(self, to: str | None, data: bytes) -> int:
        return int(self._endpoint.quantity("eth_estimateGas", self._message(to, data)) * _GAS_MARGIN)

    def _message(self, to: str | None, data: bytes) -> dict[str, str]:
        message = {"from": self.address, "data": "0x" + data.hex()}
        return message if to is None else message | {"to": to}

    def _sign(self, to: str | None, data: bytes, gas: int, nonce: int, gas_price: int) -> bytes:
        fields: dict[str, Any] = {
            "nonce": nonce,
            "gas": gas,
            "gasPrice": gas_price,
            "value": 0,
            "data": data,
            "chainId": self._chain_id,
        }
        if to is not None:
            fields["to"] = to
        return bytes(self._account.sign_transaction(fields).raw_transaction)

    def _submit(self, raws: Sequence[bytes]) -> None:
        """Hand signed transactions over; a refusal counts only when the chain does not have them already.

        A reply that was lost makes the endpoint repeat the request, and the repetition is refused: the transaction is
        known, or its nonce used.
        """
        try:
            self._endpoint.batch([("eth_sendRawTransaction", ["0x" + raw.hex()]) for raw in raws])
        except LedgerUnreachableError:
            raise
        except LedgerError:
            lookups = [("eth_getTransactionByHash", ["0x" + transaction_hash(raw).hex()]) for raw in raws]
            if any(found is None for found in self._endpoint.batch(lookups)):
                raise

    def _settled(self, tx_hash: bytes, to: str | None, data: bytes) -> Receipt:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            receipt = self._endpoint.call("eth_getTransactionReceipt", "0x" + tx_hash.hex())
            if receipt is not None and int(receipt["blockNumber"], 16) <= self._endpoint.finalised().number:
                break
            time.sleep(_POLL_SECONDS)
        else:
            raise TransactionLostError(
                f"transaction 0x{tx_hash.hex()} is not final after {self._patience:.0f} s",
                hint="look it up before sending again: it may still be included",
            )
        if int(receipt["status"], 16) != 1:
            raise self._reason(receipt, to, data)
        return Receipt(
            transaction_hash=tx_hash,
            block_number=int(receipt["blockNumber"], 16),
            block_hash=bytes.fromhex(receipt["blockHash"][2:]),
            gas_used=int(receipt["gasUsed"], 16),
            contract_address=receipt.get("contractAddress"),
            logs=receipt["logs"],
        )

    def _reason(self, receipt: dict[str, Any], to: str | None, data: bytes) -> LedgerError:
        try:
            self._endpoint.call("eth_call", self._message(to, data), receipt["blockNumber"])
        except TransactionRevertedError as exc:
            return exc
        return TransactionRevertedError("OutOfGasOrChanged", {"transaction": receipt["transactionHash"]})
