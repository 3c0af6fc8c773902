"""One JSON-RPC endpoint of the chain: calls, batches, finalised head, logs. Knows no contract and no key.

`usufruct.ledger.endpoints` has the same interface over several.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import requests
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak
from tenacity import (
    AttemptManager,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential_jitter,
)

from usufruct.errors import (
    AnswerTooLargeError,
    LedgerError,
    LedgerUnreachableError,
    MalformedAnswerError,
    TransactionRevertedError,
    WrongChainError,
)
from usufruct.ledger.abi import FunctionCodec, decode_revert
from usufruct.ledger.health import ChainHealth, ChainWatch, EndpointHealth
from usufruct.ledger.profile import PROFILES, ChainProfile
from usufruct.waiting import told

_LOG_SPAN = 5_000
_BATCH_CALLS = 200
"""Calls of one request: engines refuse batches of more than 1,000."""

PRICE_BITS = 128
_REQUEST_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Head:
    """A finalised block."""

    number: int
    hash: bytes
    timestamp: int
    """Unix seconds."""


class Endpoint:
    """Blocking, thread-safe access to one endpoint; translates every library error.

    Transport failures are repeated for `patience` seconds: reads are safe to repeat, and so is sending the same raw
    transaction, which the chain identifies by its hash.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = 30.0,
        profile: ChainProfile = PROFILES["embedded"],
        request_s: float = _REQUEST_SECONDS,
        closed: threading.Event | None = None,
    ) -> None:
        self.url = url
        self.profile = profile
        self.watch = ChainWatch(profile)
        self._patience = patience
        self._closed = closed or threading.Event()
        # Here, and not above: a command's help, a custodian and a compute worker know this class and ask no chain.
        from usufruct.ledger.transport import Transport

        self._transport = Transport(url, timeout_s=request_s, cut=self._closed)

    def close(self) -> None:
        """End what waits for the chain in any thread, and let nothing wait again: LedgerUnreachableError."""
        self._closed.set()

    def call(self, method: str, *params: object) -> Any:
        """One request; returns `result`.

        Raises
        ------
        LedgerUnreachableError
            If no answer came within `patience` seconds, or before this was closed.
        TransactionRevertedError
            If a contract refused; carries the custom error.
        LedgerError
            If the endpoint answered with any other error.
        """
        for attempt in self._attempts():
            with attempt:
                answer = self._post(method, params)
        return self._unwrap(method, answer)

    def quantity(self, method: str, *params: object) -> int:
        """One request whose result is a number, not negative and of at most 63 bits; errors as in `call`."""
        answer = self.call(method, *params)
        with well_formed(self.url):
            return natural(answer)

    def batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        """Many requests in few round trips; results in order; raises for the first that failed once all were made."""
        answers: list[dict[str, Any]] = []
        for at in range(0, len(calls), _BATCH_CALLS):
            part = calls[at : at + _BATCH_CALLS]
            for attempt in self._attempts():
                with attempt:
                    answered = self._post_batch(part)
            answers += answered
        return [self._unwrap(method, answer) for (method, _), answer in zip(calls, answers, strict=True)]

    def members(self) -> list[Endpoint]:
        """The single endpoints behind this one that may be asked."""
        return [self]

    def anyone(self, method: str, *params: object) -> Any:
        """The first answer of a member that is not empty; None when none has one."""
        for member in self.members():
            with contextlib.suppress(LedgerError):
                found = member.call(method, *params)
                if found is not None:
                    return found
        return None

    def nobody(self, calls: Sequence[tuple[str, Sequence[object]]]) -> bool:
        """Whether every member answers, and each of these calls with nothing."""
        try:
            return all(found is None for member in self.members() for found in member.batch(calls))
        except LedgerError:
            return False

    def catch_up(self) -> bool:
        """Wait until every final block that another endpoint shows is final here, too; False when there is no other.

        For two block intervals at most: another may lie, or this one fall behind for good.
        """
        return False

    def check_chain(self, chain_id: int, genesis_hash: str) -> None:
        """Refuse an endpoint that serves another chain.

        Raises
        ------
        WrongChainError
            If chain id or genesis differ.
        """
        served_id = self.quantity("eth_chainId")
        if served_id != chain_id:
            raise WrongChainError(f"{self.url} serves chain {served_id}, not {chain_id}")
        genesis = self.call("eth_getBlockByNumber", "0x0", False)
        with well_formed(self.url):
            same = genesis is not None and genesis["hash"] == genesis_hash
        if not same:
            raise WrongChainError(f"{self.url} serves another genesis than {genesis_hash}")

    def finalised(self) -> Head:
        """The newest finalised block."""
        head = self._head(self.profile.finality_tag)
        self.watch.observed(head.number)
        return head

    def broadcast(self, raws: Sequence[bytes]) -> list[Any]:
        """Hand signed transactions over, in order; answers as in `batch`."""
        return self.batch([("eth_sendRawTransaction", ["0x" + raw.hex()]) for raw in raws])

    def leave(self, trouble: LedgerError) -> None:
        """What was read through this endpoint was found out to be wrong: use another, where there is one."""

    def health(self) -> ChainHealth:
        """What this process has seen of the chain; asks nobody."""
        height = self.watch.height
        return ChainHealth(
            height=height,
            stalled_since=self.watch.stalled_since(),
            waiting=self.watch.waiting,
            endpoints=(EndpointHealth(url=self.url, in_use=True, height=height, trouble=None),),
        )

    def block(self, number: int) -> Head:
        """The block with this number."""
        return self._head(hex(number))

    def logs(
        self, addresses: Sequence[str], first: int, last: int, *, subject: bytes | None = None, limit: int = 0
    ) -> list[dict[str, Any]]:
        """Raw logs of blocks first..last, both included, in order.

        Parameters
        ----------
        subject :
            Only logs whose first indexed argument is this.
        limit :
            Look no further once there are this many; 0 for all.
        """
        found: list[dict[str, Any]] = []
        for start in range(first, last + 1, _LOG_SPAN):
            stop = min(start + _LOG_SPAN - 1, last)
            query: dict[str, Any] = {"address": list(addresses)}
            if subject is not None:
                query["topics"] = [None, "0x" + subject.hex()]
            found.extend(self._logs(query, start, stop))
            if limit and len(found) >= limit:
                return found[:limit]
        return found

    def _logs(self, query: dict[str, Any], first: int, last: int) -> list[dict[str, Any]]:
        """Logs of a span of blocks, in halves where they are too many for one answer."""
        try:
            logs = self.call("eth_getLogs", {**query, "fromBlock": hex(first), "toBlock": hex(last)})
        except AnswerTooLargeError:
            if first == last:
                raise
            middle = (first + last) // 2
            return self._logs(query, first, middle) + self._logs(query, middle + 1, last)
        if not isinstance(logs, list):
            raise MalformedAnswerError(f"{self.url} answers eth_getLogs with no list")
        return logs

    def code(self, address: str) -> bytes:
        """Runtime code at an address."""
        return self.data("eth_getCode", address, self.profile.finality_tag)

    def data(self, method: str, *params: object) -> bytes:
        """One request whose result is bytes in hexadecimal; errors as in `call`."""
        answer = self.call(method, *params)
        with well_formed(self.url):
            return bytes.fromhex(answer[2:])

    def view(self, to: str, codec: FunctionCodec, arguments: Sequence[object], tag: str) -> tuple[Any, ...]:
        """Call a view of a contract as of the block `tag`; decoded words; errors as in `call`."""
        answer = self.data("eth_call", {"to": to, "data": "0x" + codec.encode(arguments).hex()}, tag)
        with well_formed(self.url):
            return codec.decode(answer)

    def _head(self, tag: str) -> Head:
        block = self.call("eth_getBlockByNumber", tag, False)
        if block is None:
            raise LedgerError(f"{self.url} has no block {tag}")
        with well_formed(self.url):
            return head_of(block)

    def _attempts(self) -> Iterator[AttemptManager]:
        with told(f"the chain at {self.url}", most_s=self._patience):
            yield from self._retrying()

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(LedgerUnreachableError),
            wait=wait_exponential_jitter(multiplier=0.1, max=2.0),
            stop=stop_after_delay(self._patience) | stop_when_event_set(self._closed),
            sleep=sleep_using_event(self._closed),
            reraise=True,
        )

    def _post(self, method: str, params: Sequence[object]) -> object:
        self._require_open()
        try:
            return self._transport.post(method, params)
        except (requests.RequestException, OSError, ValueError) as exc:
            raise LedgerUnreachableError(f"{self.url} does not answer {method}: {_brief(exc)}") from exc

    def _post_batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[dict[str, Any]]:
        self._require_open()
        try:
            answers = self._transport.post_batch(calls)
        except (TypeError, KeyError, AttributeError) as exc:
            raise LedgerError(f"{self.url} answers a batch with what is no JSON-RPC response") from exc
        except (requests.RequestException, OSError, ValueError) as exc:
            raise LedgerUnreachableError(f"{self.url} does not answer a batch: {_brief(exc)}") from exc
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise LedgerError(f"{self.url} refused a batch: {str(answers)[:200]}")
        if not all(map(is_response, answers)):
            raise LedgerError(f"{self.url} answers a batch with what is no JSON-RPC response")
        return cast(list[dict[str, Any]], answers)

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise LedgerUnreachableError(f"{self.url} is not asked any more: this connection was closed")

    @staticmethod
    def _unwrap(method: str, answer: object) -> Any:
        if not is_response(answer):
            raise LedgerError(f"{method}: the answer is no JSON-RPC response")
        error = answer.get("error")
        if error is None:
            return answer.get("result")
        data = error.get("data") if isinstance(error, dict) else None
        if isinstance(data, str) and re.fullmatch(r"0x([0-9a-fA-F]{2}){4,}", data):
            raise decode_revert(bytes.fromhex(data[2:]))
        message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        if "revert" in message.lower():
            raise TransactionRevertedError("Reverted", {"message": message})
        raise LedgerError(f"{method}: {message}")


@contextlib.contextmanager
def well_formed(source: str) -> Iterator[None]:
    """Translate what a malformed answer of an endpoint raises when it is taken apart."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, DecodingError) as exc:
        raise MalformedAnswerError(f"{source} gave a malformed answer: {exc!r}") from exc


def is_response(answer: object) -> TypeGuard[dict[str, Any]]:
    """Whether an answer has the shape of a JSON-RPC response."""
    return isinstance(answer, dict) and bool({"error", "result"} & answer.keys())


def natural(text: str, *, bits: int = 63) -> int:
    """A block number, a place in a block, a time, a nonce or an amount of gas from its hex digits.

    Raises
    ------
    ValueError
        If it is negative or does not fit: there is none such of more than 63 bits, and a database takes no larger. Wei per gas
        may have `PRICE_BITS`.
    """
    number = int(text, 16)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{text[:20]} does not fit {bits} bits")
    return number


def head_of(block: dict[str, Any]) -> Head:
    """A block as an endpoint tells it; what it raises is for `well_formed` to translate."""
    return Head(natural(block["number"]), bytes.fromhex(block["hash"][2:]), natural(block["timestamp"]))


def transaction_hash(raw: bytes) -> bytes:
    """Hash that identifies a signed transaction."""
    return bytes(keccak(raw))


def _brief(exc: BaseException) -> str:
    """Why there is no answer, as the system says it; the libraries in between wrap it in their own objects."""
    causes: list[BaseException] = [exc]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[:1].lower() + cause.strerror[1:200]
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
        return "no answer in time"
    if any(isinstance(cause, ConnectionError) for cause in causes):
        return "the connection ended without an answer"
    return str(exc)[:200]
