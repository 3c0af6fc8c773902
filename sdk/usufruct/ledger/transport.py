"""JSON-RPC over HTTP through web3; imported when an endpoint is first made, since that takes long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from usufruct.errors import AnswerTooLargeError
from usufruct.ledger.recursion import recursion_limit_kept

with recursion_limit_kept():
    from web3 import HTTPProvider
    from web3.types import RPCEndpoint, RPCResponse


ANSWER_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024
_CONNECTIONS = 32


class Transport(HTTPProvider):
    """Writes and reads JSON with orjson: an index is rebuilt out of gigabytes of answers, batches have hundreds of requests.

    An endpoint is hostile until checked: an answer has `timeout_s` for its headers and as much for its body, however steadily
    its bytes drip, and at most `ANSWER_BYTES`; redirections are not followed.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        session = requests.Session()
        session.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            session.mount(scheme, _BoundedAdapter(pool_maxsize=_CONNECTIONS))
        super().__init__(
            url,
            session=session,
            request_kwargs={"timeout": timeout_s, "allow_redirects": False},
            exception_retry_configuration=None,
        )

    def post(self, method: str, params: Sequence[object]) -> object:
        """One request; the answer as it came."""
        return self.make_request(RPCEndpoint(method), list(params))

    def post_batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> object:
        """Several requests in one round trip; the answers as they came."""
        return self.make_batch_request([(RPCEndpoint(method), list(params)) for method, params in calls])

    def encode_rpc_request(self, method: RPCEndpoint, params: Any) -> bytes:
        """The body of a request."""
        request = {"jsonrpc": "2.0", "id": next(self.request_counter), "method": method, "params": params}
        return orjson.dumps(request)

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> RPCResponse:
        """The body of an answer."""
        return cast(RPCResponse, orjson.loads(raw_response))


class _BoundedAdapter(HTTPAdapter):
    """Reads the whole answer within its bounds."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(request, *args, **{**kwargs, "stream": True})
        try:
            response._content = _body(response.raw, time.monotonic() + kwargs["timeout"])
        except (HTTPError, OSError) as exc:
            response.close()
            raise requests.ConnectionError(exc, request=request) from exc
        except BaseException:
            response.close()
            raise
        return response


def _body(raw: BaseHTTPResponse, ends_at: float) -> bytes:
    parts: list[bytes] = []
    left = ANSWER_BYTES
    while part := raw.read1(_READ_BYTES, decode_content=False):
        left -= len(part)
        if left < 0:
            raise AnswerTooLargeError(f"an answer has more than {ANSWER_BYTES} bytes")
        if time.monotonic() > ends_at:
            raise TimeoutError("the answer takes too long")
        parts.append(part)
    return b"".join(parts)


class _Cut(HTTPConnection):
    """A connection whose answer's headers have the read timeout in all, not for each byte."""

    def getresponse(self) -> Any:
        watch = threading.Timer(self.timeout or 0, self._shut)
        watch.daemon = True
        watch.start()
        try:
            return super().getresponse()
        finally:
            watch.cancel()

    def _shut(self) -> None:
        with suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _SecureCut(_Cut, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Cut


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureCut
