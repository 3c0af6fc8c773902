"""The JSON-RPC door of the embedded chain: an ASGI application.

Lets through an allow-list of methods that read, and `eth_sendRawTransaction`. Takes requests for a
loopback host without an `Origin` only, so that no web page reaches the chain through a browser.

Absent: filters, subscriptions, unlocked accounts, and every method that steers the engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from usufruct.errors import ChainEngineError, StoreFullError
from usufruct_node.chain.engine import EngineRefusalError

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_BATCH_CALLS = 2000
MAX_TRANSACTION_BYTES = 128 * 1024
MAX_DEPTH = 32
MAX_BRACKETS = 200_000
MAX_DIGITS = 100
BODY_TIMEOUT_S = 30.0

SEND = "eth_sendRawTransaction"
READS = frozenset(
    {
        "eth_accounts",
        "eth_blockNumber",
        "eth_call",
        "eth_chainId",
        "eth_createAccessList",
        "eth_estimateGas",
        "eth_feeHistory",
        "eth_gasPrice",
        "eth_getBalance",
        "eth_getBlockByHash",
        "eth_getBlockByNumber",
        "eth_getBlockReceipts",
        "eth_getBlockTransactionCountByHash",
        "eth_getBlockTransactionCountByNumber",
        "eth_getCode",
        "eth_getLogs",
        "eth_getProof",
        "eth_getStorageAt",
        "eth_getTransactionByBlockHashAndIndex",
        "eth_getTransactionByBlockNumberAndIndex",
        "eth_getTransactionByHash",
        "eth_getTransactionCount",
        "eth_getTransactionReceipt",
        "eth_syncing",
        "net_listening",
        "net_version",
        "web3_clientVersion",
        "web3_sha3",
    }
)
FIXED: dict[str, object] = {"eth_maxPriorityFeePerGas": "0x0"}
"""Answered here: Anvil suggests a tip of 1 gwei, which accounts without balance cannot pay."""

_FIELDS = {0: 9, 1: 11, 2: 12}
"""Transaction types that are taken (legacy, EIP-2930, EIP-1559) and how many fields they have."""

_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_JSON = [(b"content-type", b"application/json")]

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Chain(Protocol):
    """What the front needs; see `producer.Producer`."""

    async def submit(self, raw: bytes) -> bytes:
        """Accept a transaction durably and return its hash."""

    async def read(self, body: bytes) -> bytes:
        """Forward a JSON-RPC body that only reads."""


class _RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class _HttpError(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


class Front:
    """ASGI application over `chain`; takes transactions signed for `chain_id` only."""

    def __init__(self, chain: Chain, chain_id: int) -> None:
        self._chain = chain
        self._chain_id = chain_id

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one connection event of the server."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        try:
            _check_request(scope)
            status, body = await self._answer(await _read_body(receive))
        except _HttpError as exc:
            status, body = exc.status, _encode(_failure(None, -32600, exc.message))
        headers = [*_JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, body: bytes) -> tuple[int, bytes]:
        try:
            _check_depth(body)
            request = _parsed(body.decode())
        except ValueError:
            return 200, _encode(_failure(None, -32700, "the request is no JSON"))
        if isinstance(request, list):
            if not 0 < len(request) <= MAX_BATCH_CALLS:
                message = f"a batch has between 1 and {MAX_BATCH_CALLS} calls"
                return 200, _encode(_failure(None, -32600, message))
            answers = await self._batch(request)
            unavailable = any(_is_unavailable(answer) for answer in answers)
            return (503 if unavailable else 200), _encode(answers)
        try:
            method, params, call_id = _parse_call(request)
            if method in READS:
                try:
                    return 200, await self._chain.read(_forwarded(method, params, call_id))
                except ChainEngineError as exc:
                    raise _RpcError(-32002, str(exc)) from exc
        except _RpcError as exc:
            answer = _failure(_id_of(request), exc.code, exc.message)
        else:
            answer = await self._own(method, params, call_id)
        return (503 if _is_unavailable(answer) else 200), _encode(answer)

    async def _batch(self, requests: list[Any]) -> list[dict[str, Any]]:
        """Answer in the order of the calls: first what is sent, together, then what is read."""
        answers: list[dict[str, Any]] = [{}] * len(requests)
        reads: list[tuple[int, str, list[Any] | dict[str, Any], int | str | None]] = []

        async def own(at: int, method: str, params: Any, call_id: int | str | None) -> None:
            answers[at] = await self._own(method, params, call_id)

        async with trio.open_nursery() as nursery:
            for at, request in enumerate(requests):
                try:
                    method, params, call_id = _parse_call(request)
                except _RpcError as exc:
                    answers[at] = _failure(_id_of(request), exc.code, exc.message)
                    continue
                if method in READS:
                    reads.append((at, method, params, call_id))
                else:
                    nursery.start_soon(own, at, method, params, call_id)
        if reads:
            body = b"[" + b",".join(_forwarded(method, params, at) for at, method, params, _ in reads) + b"]"
            try:
                found = {answer["id"]: answer for answer in json.loads(await self._chain.read(body))}
            except ChainEngineError as exc:
                found = {at: _failure(None, -32002, str(exc)) for at, *_ in reads}
            for at, _, _, call_id in reads:
                answers[at] = {**found[at], "id": call_id}
        return answers

    async def _own(self, method: str, params: Any, call_id: int | str | None) -> dict[str, Any]:
        """Answer a call that is not forwarded."""
        try:
            if method in FIXED:
                result = FIXED[method]
            elif method == SEND:
                result = "0x" + (await self._chain.submit(_raw_transaction(params, self._chain_id))).hex()
            else:
                raise _RpcError(-32601, f"the method {method[:64]!r} is not offered here")
        except (_RpcError, EngineRefusalError) as exc:
            return _failure(call_id, exc.code, exc.message)
        except (ChainEngineError, StoreFullError) as exc:
            return _failure(call_id, -32002, str(exc))
        return {"jsonrpc": "2.0", "id": call_id, "result": result}


def _check_request(scope: dict[str, Any]) -> None:
    headers = {name.lower(): value for name, value in scope["headers"]}
    host = headers.get(b"host", b"").decode("latin-1")
    if host.rsplit(":", 1)[0] not in _LOOPBACK and host not in _LOOPBACK:
        raise _HttpError(403, "this endpoint answers for a loopback host only")
    if b"origin" in headers:
        raise _HttpError(403, "this endpoint does not answer web pages")
    if scope["method"] != "POST":
        raise _HttpError(405, "JSON-RPC goes by POST")
    if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        raise _HttpError(415, "the content type is not application/json")


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT_S):
        while True:
            event = await receive()
            if event["type"] != "http.request":
                raise _HttpError(400, "the request is cut short")
            body += event.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise _HttpError(413, f"the request has more than {MAX_BODY_BYTES} bytes")
            if not event.get("more_body", False):
                return bytes(body)
    raise _HttpError(408, "the request takes too long")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


def _check_depth(body: bytes) -> None:
    """Raise ValueError for input that is nested deeply; brackets inside texts count as well.

    A library (py_ecc) lifts Python's recursion limit when it is imported; from then on the JSON parser
    overruns the C stack on nested input and ends the process.
    """
    brackets = body.translate(None, _NO_BRACKETS)
    if len(brackets) > MAX_BRACKETS:
        raise ValueError("too many brackets")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")


def _parsed(text: str) -> Any:
    """Read a request; ValueError for what the engine's JSON parser would refuse, and with it a whole batch."""
    request = json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)
    if "\\u" in text:
        # Half of a character can be escaped, and is no text.
        json.dumps(request, ensure_ascii=False).encode()
    return request


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _parse_call(request: Any) -> tuple[str, list[Any] | dict[str, Any], int | str | None]:
    if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or "id" not in request:
        raise _RpcError(-32600, "a call is an object with jsonrpc '2.0' and an id")
    method, params, call_id = request.get("method"), request.get("params", []), request["id"]
    if not isinstance(method, str) or not isinstance(params, list | dict):
        raise _RpcError(-32600, "a call has a method name and a list of parameters")
    if call_id is not None and type(call_id) not in (int, str):
        raise _RpcError(-32600, "an id is a number, a text or null")
    return method, params, call_id


def _raw_transaction(params: Any, chain_id: int) -> bytes:
    if not isinstance(params, list) or len(params) != 1 or not isinstance(params[0], str):
        raise _RpcError(-32602, f"{SEND} takes one hexadecimal text")
    text = params[0]
    if not text.startswith("0x") or not text[2:].isalnum() or len(text) > 2 + 2 * MAX_TRANSACTION_BYTES:
        raise _RpcError(-32602, f"a transaction is 0x and at most {MAX_TRANSACTION_BYTES} bytes")
    try:
        raw = bytes.fromhex(text[2:])
    except ValueError as exc:
        raise _RpcError(-32602, "a transaction is hexadecimal") from exc
    if _chain_id_signed_for(raw) != chain_id:
        raise _RpcError(-32003, f"the transaction is not signed for chain {chain_id}")
    return raw


def _chain_id_signed_for(raw: bytes) -> int | None:
    """Return the chain id inside a transaction; Anvil itself takes legacy ones for any chain.

    Raises
    ------
    _RpcError
        If the type is not offered, or the bytes are not one RLP list to the last byte: then their
        hash would not be that of the transaction.
    """
    kind, envelope = (0, raw) if raw[0] >= 0xC0 else (raw[0], raw[1:])
    if kind not in _FIELDS:
        raise _RpcError(-32602, f"transactions of type {kind} are not taken")
    try:
        start, end = _rlp_span(envelope, 0, 0xC0)
        fields = []
        while start < end:
            inner, after = _rlp_span(envelope, start, 0xC0 if envelope[start] >= 0xC0 else 0x80)
            fields.append(envelope[inner:after])
            start = after
    except IndexError:
        start, end, fields = 0, 0, []
    if start != end or end != len(envelope) or len(fields) != _FIELDS[kind]:
        raise _RpcError(-32602, "a transaction is exactly one RLP list with the fields of its type")
    if kind:
        return int.from_bytes(fields[0], "big")
    recovery = int.from_bytes(fields[6], "big")
    return (recovery - 35) // 2 if recovery >= 35 else None


def _rlp_span(data: bytes, at: int, base: int) -> tuple[int, int]:
    """Return where the payload of the RLP item at `at` starts and ends; IndexError if there is none.

    `base` is 0xC0 for a list and 0x80 for a text.
    """
    prefix = data[at]
    if prefix < base:
        if base == 0xC0:
            raise IndexError
        return at, at + 1
    if prefix < base + 56:
        start, size = at + 1, prefix - base
    else:
        start = at + 1 + prefix - base - 55
        size = int.from_bytes(data[at + 1 : start], "big")
    if start + size > len(data):
        raise IndexError
    return start, start + size


def _forwarded(method: str, params: object, call_id: int | str | None) -> bytes:
    return _encode({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params})


def _failure(call_id: int | str | None, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": call_id, "error": {"code": code, "message": message}}


def _is_unavailable(answer: dict[str, Any]) -> bool:
    error = answer.get("error")
    return isinstance(error, dict) and error.get("code") == -32002


def _id_of(request: Any) -> int | str | None:
    call_id = request.get("id") if isinstance(request, dict) else None
    return call_id if type(call_id) in (int, str) else None


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
