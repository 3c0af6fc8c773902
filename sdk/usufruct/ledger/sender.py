"""Signs transactions, owns the nonces of one account, waits for finality. Knows no contract.

An intent is a call under one nonce. It is written to the journal before it is sent, sent as the same bytes again for
as long as its outcome is unknown, and signed anew only at a higher fee, under the same nonce. A call that was given
up on, by a crash or an error, and is made again, is taken up where it was left instead of being sent twice. That
holds until another call is sent: whoever goes back to an earlier one may mean it anew, so that what was included by
then is forgotten.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from coincurve import PrivateKey

from usufruct.errors import (
    LedgerError,
    LedgerUnreachableError,
    MalformedAnswerError,
    TransactionLostError,
    TransactionReplacedError,
    TransactionRevertedError,
)
from usufruct.ledger.endpoint import PRICE_BITS, Endpoint, natural, well_formed
from usufruct.ledger.journal import InFlight, Journal, Pending
from usufruct.ledger.receipts import FinalHead, RawReceipt, ReceiptReader
from usufruct.ledger.signing import address_of, sign_transaction

_POLL_SECONDS = 0.02, 0.1
"""Between two looks whether a transaction is final: at first, and at most."""

_LOOK_AGAIN_SECONDS = 1.0
"""After which a receipt is looked for again though there is no new block: an engine may show a block before its receipts."""

_LOOKUP_SECONDS = 3.0
"""For how long a transaction is looked for whose nonce is used."""

_OTHERS_ON_THEIR_WAY = 1_024
"""Transactions that programs with other journals may have on their way from the account: what a pool is sure to keep."""

_GAS_MARGIN = 1.3
_CHUNK = 100
"""Transactions per JSON-RPC batch; while one is on its way the next is signed and written down."""

_PART = 500
"""Transactions whose receipts are fetched as soon as they are included, while later ones are not yet."""

_RAISE_FEE_PERCENT = 125
"""Of the old fee; engines take a replacement from 110% on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A transaction in a finalised block."""

    transaction_hash: bytes
    block_number: int
    block_hash: bytes
    gas_used: int
    contract_address: str | None
    logs: list[dict[str, Any]]


class _Refused(Exception):
    """An endpoint takes these transactions not, and the chain does not have them."""

    def __init__(self, ids: list[bytes], reason: LedgerError) -> None:
        self.ids = ids
        self.reason = reason
        super().__init__(str(reason))


class Sender:
    """Sends from one account.

    Nonces are taken under a lock, and with a `journal` file under a file lock too, so that two processes that share the account
    never use one twice; what is in flight is in that file, so that neither a crash nor an endpoint that dies loses or doubles a
    transaction.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        chain_id: int,
        private_key: bytes,
        *,
        journal: Path | None = None,
        patience: float = 120.0,
    ) -> None:
        self._endpoint = endpoint
        self._chain_id = chain_id
        self._key = PrivateKey(private_key)
        self._journal = Journal(journal)
        self._patience = patience
        self._reader = ReceiptReader(endpoint, self._journal.hashes_of)
        self._head = FinalHead(endpoint)
        self.address = address_of(private_key)

    def transact(self, to: str | None, data: bytes, *, least_gas: int = 0) -> Receipt:
        """Send one transaction and wait until it is final.

        `least_gas` is for calls that may cost more in the block than when they are simulated, because others act at the same
        time: whoever reveals last pays for the conclusion.

        Raises
        ------
        TransactionRevertedError
            If the contract refuses; found by simulation before anything is sent, or in the block.
        ChainStalledError
            If no block comes for five block intervals; the same call, made again before any other, waits for the same
            transaction.
        TransactionReplacedError
            If another transaction took the nonce, from outside this library.
        TransactionLostError
            If it is not final within `patience` seconds; the same call, made again before any other, waits for the same
            transaction.
        """
        taken = self._take_up([(to, data)])[0]
        if taken is None:
            gas = max(self._simulate(to, data), least_gas)
            (taken,) = self._send([(to, data)], gas)
        return self.settle([taken])[0]

    def transact_many(self, calls: Sequence[tuple[str | None, bytes]], *, gas: int) -> list[Receipt]:
        """Send calls as one batch, signed beforehand with consecutive nonces, and wait until all are final.

        `gas` is the limit of each, since a call that depends on an earlier one cannot be simulated. Raises for the first that
        reverted.
        """
        return self.settle(self.submit_many(calls, gas=gas))

    def submit_many(self, calls: Sequence[tuple[str | None, bytes]], *, gas: int) -> list[Pending]:
        """Send calls as one batch without waiting."""
        taken = self._take_up(calls)
        try:
            fresh = iter(self._send([call for call, p in zip(calls, taken, strict=True) if p is None], gas))
        except BaseException:
            self._journal.release([pending.transaction_hash for pending in taken if pending])
            raise
        return [pending or next(fresh) for pending in taken]

    def settle(self, pending: Sequence[Pending]) -> list[Receipt]:
        """Wait until all are final; raises for the first that reverted."""
        if not pending:
            return []
        outcomes = zip(self._outcomes(pending), pending, strict=True)
        return [self._receipt_of(receipt, item) for receipt, item in outcomes]

    def given_up(self, to: str, data: bytes, word: slice) -> bytes | None:
        """What an earlier attempt at a call had in one place, if it is on its way and nobody waits for it any more."""
        with self._journal.locked():
            for entry in self._journal.in_flight():
                target, other = entry.call
                alike = data[: word.start] == other[: word.start] and data[word.stop :] == other[word.stop :]
                if target == to.lower() and alike and self._journal.is_orphan(entry):
                    return other[word]
        return None

    # Sending.

    def _take_up(self, calls: Sequence[tuple[str | None, bytes]]) -> list[Pending | None]:
        """What earlier attempts at these calls left in flight."""
        with self._journal.locked():
            if all(not self._journal.is_orphan(entry) for entry in self._journal.in_flight()):
                return [None] * len(calls)
            self._forget_replaced(calls)
            return [Pending.of(entry) if (entry := self._journal.take_up(call)) else None for call in calls]

    def _send(self, calls: Sequence[tuple[str | None, bytes]], gas: int) -> list[Pending]:
        """Sign calls under free nonces, write them down, hand them over."""
        if not calls:
            return []
        sent: list[Pending] = []
        on_its_way: Future[None] | None = None
        unsent: list[InFlight] = []
        with self._journal.locked(), ThreadPoolExecutor(1) as courier:
            self._forget_unclaimed()
            price, nonces = self._price_and_free_nonces(len(calls))
            numbered = list(zip(calls, nonces, strict=True))
            try:
                for at in range(0, len(numbered), _CHUNK):
                    unsent = [
                        self._intent(call, gas, nonce, price) for call, nonce in numbered[at : at + _CHUNK]
                    ]
                    self._journal.add(unsent)
                    if on_its_way is not None:
                        on_its_way.result()
                    sent += [Pending.of(entry) for entry in unsent]
                    on_its_way, unsent = courier.submit(self._broadcast, unsent), []
                if on_its_way is not None:
                    on_its_way.result()
            except _Refused as exc:
                self._journal.forget([entry.id for entry in unsent])
                self._journal.forget(exc.ids)
                self._journal.release([pending.transaction_hash for pending in sent])
                raise exc.reason from exc
            except LedgerError:
                self._journal.forget([entry.id for entry in unsent])
                self._journal.release([pending.transaction_hash for pending in sent])
                raise
            except BaseException:
                # Interrupted: whether the last ones were handed over is unknown.
                self._journal.release([*(p.transaction_hash for p in sent), *(entry.id for entry in unsent)])
                raise
        for pending in sent:
            self._endpoint.watch.sent(pending.transaction_hash)
        return sent

    def _price_and_free_nonces(self, wanted: int) -> tuple[int, list[int]]:
        """Wei per gas, and the lowest nonces that nothing on its way has; called while the journal is locked.

        An endpoint that was changed to, or that was restarted, may not know all of ours: they are handed over again,
        since a gap would hold up everything behind it. So one that a refusal left between them is filled first.
        """
        price, pending = self._price_and_pending()
        if ahead := [entry for entry in self._journal.in_flight() if entry.nonce >= pending]:
            self._hand_over_again(ahead)
        taken = {entry.nonce for entry in self._journal.in_flight()}
        free = (nonce for nonce in itertools.count(pending) if nonce not in taken)
        return price, list(itertools.islice(free, wanted))

    def _price_and_pending(self) -> tuple[int, int]:
        """Wei per gas and the first nonce that the chain has no transaction for; of another endpoint if one's cannot be."""
        tries = len(self._endpoint.members())
        while True:
            try:
                return self._believable_price_and_pending()
            except MalformedAnswerError as exc:
                self._endpoint.leave(exc)
                tries -= 1
                if tries < 1:
                    raise

    def _believable_price_and_pending(self) -> tuple[int, int]:
        """What the endpoint in use says.

        Raises
        ------
        MalformedAnswerError
            If it asks more than its kind of chain does, or counts more transactions than can be on their way: one under a
            nonce that is too high would wait for good.
        """
        # In one round trip, for which others of this account wait.
        answers = self._endpoint.batch(
            [
                ("eth_gasPrice", ()),
                ("eth_getTransactionCount", (self.address, "pending")),
                ("eth_getTransactionCount", (self.address, "latest")),
            ]
        )
        with well_formed(self._endpoint.url):
            asked = natural(answers[0], bits=PRICE_BITS)
            pending, included = natural(answers[1]), natural(answers[2])
        known = len(self._journal.in_flight())
        if pending > included + known + _OTHERS_ON_THEIR_WAY:
            raise MalformedAnswerError(
                f"{self._endpoint.url} counts {pending} transactions of {self.address}, of which {included} are in blocks "
                f"and {known} known to be on their way",
                hint="if another program did send so many, repeat this once they are in blocks",
            )
        return self._offer(asked), pending

    def _hand_over_again(self, ahead: Sequence[InFlight]) -> None:
        """Hand over what the endpoint does not count.

        Refused or not, what somebody waits for is theirs to drop. What nobody waits for goes if no endpoint has it: it
        would keep its nonce, and so hold up the account, for good.
        """
        try:
            self._broadcast(ahead)
        except _Refused as exc:
            orphans = [entry for entry in ahead if entry.id in exc.ids and self._journal.is_orphan(entry)]
            lost = [
                entry.id
                for entry in orphans
                if self._endpoint.nobody(
                    [("eth_getTransactionByHash", ("0x" + known.hex(),)) for known in entry.hashes]
                )
            ]
            self._journal.forget(lost)

    def _orphans_passed(self) -> list[InFlight]:
        """Intents of earlier attempts whose nonce is used in a final block, by themselves or by something else."""
        orphans = [entry for entry in self._journal.in_flight() if self._journal.is_orphan(entry)]
        if not orphans:
            return []
        tag = self._endpoint.profile.finality_tag
        used = self._endpoint.quantity("eth_getTransactionCount", self.address, tag)
        return [entry for entry in orphans if entry.nonce < used]

    def _forget_replaced(self, calls: Sequence[tuple[str | None, bytes]]) -> None:
        """Drop intents of these calls that can never be included, because others have their nonces in final blocks."""
        wanted = {(to and to.lower(), data) for to, data in calls}
        missing = [Pending.of(entry) for entry in self._orphans_passed() if entry.call in wanted]
        deadline = time.monotonic() + _LOOKUP_SECONDS
        while missing:
            receipts = self._reader.anywhere(missing, self._reader.of(missing))
            missing = [item for item, receipt in zip(missing, receipts, strict=True) if receipt is None]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS[1])
        self._journal.forget([item.transaction_hash for item in missing if self._are_replaced([item])])

    def _are_replaced(self, missing: Sequence[Pending]) -> bool:
        """Whether other transactions have these nonces in final blocks, as every endpoint says that may be asked.

        None of them has a receipt, and of several two at least show the nonces as used: one alone may be behind itself, or lie,
        and a call that is taken for replaced is made again.
        """
        last = max(item.nonce for item in missing)
        lookups = [
            ("eth_getTransactionReceipt", ("0x" + transaction.hex(),))
            for item in missing
            for transaction in self._journal.hashes_of(item.transaction_hash)
        ]
        tag = self._endpoint.profile.finality_tag
        with contextlib.suppress(LedgerError):
            counts = [
                member.quantity("eth_getTransactionCount", self.address, tag)
                for member in self._endpoint.members()
            ]
            if 0 < min(2, len(counts)) <= sum(count > last for count in counts):
                return self._endpoint.nobody(lookups)
        return False

    def _forget_unclaimed(self) -> None:
        """Drop outcomes that nobody came back for: whoever makes the same call after another means it anew."""
        self._journal.forget([entry.id for entry in self._orphans_passed()])

    def _offer(self, asked: int) -> int:
        """Wei per gas: what the chain asks, and never what it takes into its pool to leave there.

        Raises
        ------
        MalformedAnswerError
            If it asks more than chains of its kind do: an endpoint could have an account spend all it has.
        """
        profile = self._endpoint.profile
        if asked > profile.maximum_gas_price:
            raise MalformedAnswerError(
                f"{self._endpoint.url} asks {asked} wei per gas, more than the {profile.maximum_gas_price} "
                f"that a chain of profile {profile.name} may ask"
            )
        return max(asked, profile.minimum_gas_price)

    def _simulate(self, to: str | None, data: bytes) -> int:
        """Gas that a call is sent with; raises what the contract refuses it for.

        A refusal counts once the endpoint has every block that another one has: what the call builds on may be final for
        whoever made it and not here yet.
        """
        try:
            return self._estimate(to, data)
        except TransactionRevertedError:
            if not self._endpoint.catch_up():
                raise
        return self._estimate(to, data)

    def _estimate(self, to: str | None, data: bytes) -> int:
        needed = int(self._endpoint.quantity("eth_estimateGas", self._message(to, data)) * _GAS_MARGIN)
        return min(needed, self._endpoint.profile.transaction_gas)

    def _message(self, to: str | None, data: bytes) -> dict[str, str]:
        message = {"from": self.address, "data": "0x" + data.hex()}
        return message if to is None else message | {"to": to}

    def _intent(self, call: tuple[str | None, bytes], gas: int, nonce: int, gas_price: int) -> InFlight:
        to, data = call
        raw = self._sign(to, data, gas, nonce, gas_price)
        return InFlight.fresh(raw, nonce=nonce, gas_price=gas_price, gas=gas, to=to, data=data)

    def _sign(self, to: str | None, data: bytes, gas: int, nonce: int, gas_price: int) -> bytes:
        return sign_transaction(
            self._key,
            chain_id=self._chain_id,
            nonce=nonce,
            gas_price=gas_price,
            gas=gas,
            to=to,
            data=data,
        )

    def _broadcast(self, entries: Sequence[InFlight]) -> None:
        """Hand signed transactions over; a refusal counts only when the chain does not have them already.

        A reply that was lost makes the endpoint repeat the request, and the repetition is refused: the transaction is
        known, or its nonce used.
        """
        try:
            self._endpoint.broadcast([entry.raws[-1] for entry in entries])
        except LedgerUnreachableError:
            raise
        except LedgerError as exc:
            if refused := self._unknown(entries):
                raise _Refused([entry.id for entry in refused], exc) from exc

    def _unknown(self, entries: Sequence[InFlight]) -> list[InFlight]:
        """Those that the chain does not have.

        An engine may count a nonce as used some moments before it finds the transaction that used it, its pool sooner than its
        newest block: such ones are looked for again.
        """
        deadline = time.monotonic() + _LOOKUP_SECONDS
        while True:
            lookups = [("eth_getTransactionByHash", ["0x" + entry.hashes[-1].hex()]) for entry in entries]
            found = self._endpoint.batch(lookups)
            unknown = [entry for entry, known in zip(entries, found, strict=True) if known is None]
            if not unknown or time.monotonic() > deadline:
                return unknown
            used = self._endpoint.quantity("eth_getTransactionCount", self.address, "pending")
            if all(entry.nonce >= used for entry in unknown):
                return unknown
            time.sleep(_POLL_SECONDS[1])

    # Waiting.

    def _outcomes(self, pending: Sequence[Pending]) -> list[RawReceipt]:
        """Receipts in final blocks, in order; of reverted ones too.

        On return the journal has forgotten them. On an error it keeps them, for whoever makes the same calls again.
        """
        ids = [item.transaction_hash for item in pending]
        for entry_id in ids:
            self._endpoint.watch.sent(entry_id)
        try:
            receipts = self._wait(pending)
        except BaseException:
            self._journal.release(ids)
            raise
        finally:
            for entry_id in ids:
                self._endpoint.watch.settled(entry_id)
        self._journal.forget(ids)
        for item, receipt in zip(pending, receipts, strict=True):
            if receipt is None:
                raise TransactionReplacedError(
                    f"another transaction has nonce {item.nonce} of {self.address} in a final block"
                )
        return [receipt for receipt in receipts if receipt is not None]

    def _wait(self, pending: Sequence[Pending]) -> list[RawReceipt | None]:
        """Wait until the highest nonce is used in a final block, and so all before it; returns the receipts.

        They are fetched when there are new blocks, also while the block of the last is not final yet; again if a block of
        theirs did not stay, and if an engine counts a nonce before it shows the receipt. None stands for one that was replaced.
        """
        last = max(pending, key=attrgetter("nonce"))
        begun = time.monotonic()
        poll, at_most = _POLL_SECONDS
        pause = 2 * self._endpoint.profile.block_interval_s
        look_after = begun + pause
        looked_at, look_again = -1, begun
        used_since: float | None = None
        receipts: list[RawReceipt | None] = []
        while True:
            # Asked also while nothing is missing: by the answers the watch knows whether the chain goes on.
            final = self._head.not_older_than(poll)
            if final.number > looked_at or time.monotonic() >= look_again:
                looked_at, look_again = final.number, time.monotonic() + _LOOK_AGAIN_SECONDS
                while part := pending[len(receipts) : len(receipts) + _PART]:
                    if not (found := self._reader.included(part)):
                        break
                    receipts += found
            if len(receipts) == len(pending) and self._reader.newest_block(receipts) <= final.number:
                stand = self._reader.stand(receipts, final)
                if stand and None not in receipts:
                    return receipts
                if stand:
                    look_after = begun
                else:
                    looked_at = -1
                receipts = []
            self._endpoint.watch.check()
            now = time.monotonic()
            if now - begun >= self._patience:
                raise TransactionLostError(
                    f"transaction 0x{last.transaction_hash.hex()} is not final after {self._patience:.0f} s",
                    hint="it may still be included: repeat the command before any other of this account, so that it waits for"
                    " the same transaction; after another it is sent anew",
                )
            if now >= look_after:
                look_after = now + pause
                if self._look_after(pending) > last.nonce:
                    look_after = now + _LOOK_AGAIN_SECONDS
                    used_since = now if used_since is None else used_since
                    found = self._reader.anywhere(pending, self._reader.of(pending))
                    missing = [item for item, receipt in zip(pending, found, strict=True) if receipt is None]
                    looked_for = now - used_since >= _LOOKUP_SECONDS
                    if not missing or (looked_for and self._are_replaced(missing)):
                        return found
            time.sleep(poll)
            poll = min(1.5 * poll, at_most)

    def _look_after(self, pending: Sequence[Pending]) -> int:
        """Send what is not included yet again, at a higher fee if the chain asks for more by now.

        Returns how many nonces of the account are used in final blocks.
        """
        tag = self._endpoint.profile.finality_tag
        included = self._endpoint.quantity("eth_getTransactionCount", self.address, "latest")
        ids = {item.transaction_hash for item in pending if item.nonce >= included}
        if ids:
            with self._journal.locked():
                self._send_again(ids)
        return self._endpoint.quantity("eth_getTransactionCount", self.address, tag)

    def _send_again(self, ids: set[bytes]) -> None:
        try:
            answer = self._endpoint.call("eth_gasPrice")
            with well_formed(self._endpoint.url):
                price = self._offer(natural(answer, bits=PRICE_BITS))
        except MalformedAnswerError as exc:
            self._endpoint.leave(exc)
            price = 0  # What is signed is sent as it is.
        for entry in [entry for entry in self._journal.in_flight() if entry.id in ids]:
            if entry.gas_price < price:
                to, data = entry.call
                offer = max(price, entry.gas_price * _RAISE_FEE_PERCENT // 100 + 1)
                self._journal.replace(entry, self._sign(to, data, entry.gas, entry.nonce, offer))
        with contextlib.suppress(_Refused):
            self._broadcast([entry for entry in self._journal.in_flight() if entry.id in ids])

    def _receipt_of(self, receipt: RawReceipt, pending: Pending) -> Receipt:
        """The receipt as a record.

        Raises
        ------
        TransactionRevertedError
            If the contract refused in the block.
        """
        with well_formed(self._endpoint.url):
            if int(receipt["status"], 16) != 1:
                raise self._reason(receipt, pending.to, pending.data)
            return Receipt(
                transaction_hash=bytes.fromhex(receipt["transactionHash"][2:]),
                block_number=natural(receipt["blockNumber"]),
                block_hash=bytes.fromhex(receipt["blockHash"][2:]),
                gas_used=natural(receipt["gasUsed"]),
                contract_address=receipt.get("contractAddress"),
                logs=receipt["logs"],
            )

    def _reason(self, receipt: RawReceipt, to: str | None, data: bytes) -> LedgerError:
        try:
            self._endpoint.call("eth_call", self._message(to, data), receipt["blockNumber"])
        except TransactionRevertedError as exc:
            return exc
        return TransactionRevertedError("OutOfGasOrChanged", {"transaction": receipt["transactionHash"]})
