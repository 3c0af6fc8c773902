"""JSON-RPC over HTTP through web3; imported when an endpoint is first made, since that takes long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from usufruct.errors import AnswerTooLargeError
from usufruct.ledger.recursion import recursion_limit_kept

with recursion_limit_kept():
    from web3 import HTTPProvider
    from web3.types import RPCEndpoint, RPCResponse


ANSWER_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024
_SLOWEST_BYTES_PER_S = 64 * 1024
_CONNECTIONS = 32
_LOOK_SECONDS = 0.25


class Transport(HTTPProvider):
    """Writes and reads JSON with orjson: an index is rebuilt out of gigabytes of answers, batches have hundreds of requests.

    An endpoint is hostile until checked: an answer has `timeout_s` for its headers and as much for its body, and a second more
    for every 64 KiB of it, however steadily its bytes drip; and at most `ANSWER_BYTES`. Redirections are not followed.
    Once `cut` is set, no answer is waited for.
    """

    def __init__(self, url: str, *, timeout_s: float, cut: threading.Event) -> None:
        session = requests.Session()
        session.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            session.mount(scheme, _BoundedAdapter(cut, pool_maxsize=_CONNECTIONS))
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


class _Watch:
    """When an answer must be here, and its connection is cut: timeouts of reads begin anew with every byte."""

    def __init__(self, connection: socket.socket, seconds: float, cut: threading.Event) -> None:
        self._connection = connection
        self._cut = cut
        self._ends_at = time.monotonic() + seconds
        _watchman.add(self)

    def allow(self, seconds: float) -> None:
        """So much more time."""
        self._ends_at += seconds

    def end(self) -> None:
        """The answer is here, or nobody waits for it any more."""
        _watchman.remove(self)

    def look(self) -> None:
        """Cut the connection if it is time."""
        if self._cut.is_set() or time.monotonic() >= self._ends_at:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)


class _Watchman:
    """One thread for all watches of the process: one for each would cost as much as a fifth of its request."""

    def __init__(self) -> None:
        self._watches: set[_Watch] = set()
        self._some = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, watch: _Watch) -> None:
        with self._some:
            self._watches.add(watch)
            # A forked process has the object and not the thread.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._go_round, name="answers", daemon=True)
                self._thread.start()
            self._some.notify()

    def remove(self, watch: _Watch) -> None:
        with self._some:
            self._watches.discard(watch)

    def _go_round(self) -> None:
        while True:
            with self._some:
                self._some.wait_for(lambda: self._watches)
                watches = list(self._watches)
            for watch in watches:
                watch.look()
            time.sleep(_LOOK_SECONDS)


_watchman = _Watchman()


class _Watched(HTTPConnection):
    """A connection whose answer comes with a watch over it, armed before its first byte."""

    def __init__(self, *args: Any, cut: threading.Event, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cut = cut

    def getresponse(self) -> Any:
        watch = _Watch(self.sock, self.timeout or 0, self._cut)
        try:
            response: Any = super().getresponse()
        except BaseException:
            watch.end()
            raise
        watch.allow(self.timeout or 0)
        response.watch = watch
        return response


class _SecureWatched(_Watched, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Watched


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureWatched


class _BoundedAdapter(HTTPAdapter):
    """Reads the whole answer within its bounds."""

    def __init__(self, cut: threading.Event, *, pool_maxsize: int) -> None:
        self._pools = {"http": partial(_Pool, cut=cut), "https": partial(_SecurePool, cut=cut)}
        super().__init__(pool_maxsize=pool_maxsize)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(request, *args, **{**kwargs, "stream": True})
        raw: Any = response.raw
        try:
            response._content = _body(raw)
        except (HTTPError, OSError) as exc:
            response.close()
            raise requests.ConnectionError(exc, request=request) from exc
        except BaseException:
            response.close()
            raise
        finally:
            raw.watch.end()
        return response


def _body(raw: Any) -> bytes:
    parts: list[bytes] = []
    left = ANSWER_BYTES
    while part := raw.read1(_READ_BYTES, decode_content=False):
        left -= len(part)
        if left < 0:
            raise AnswerTooLargeError(f"an answer has more than {ANSWER_BYTES} bytes")
        raw.watch.allow(len(part) / _SLOWEST_BYTES_PER_S)
        parts.append(part)
    return b"".join(parts)
