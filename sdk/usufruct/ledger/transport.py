"""JSON-RPC over HTTP through web3; imported when an endpoint is first made, since that takes long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson

from usufruct.ledger.recursion import recursion_limit_kept

with recursion_limit_kept():
    from web3 import HTTPProvider
    from web3.types import RPCEndpoint, RPCResponse


class Transport(HTTPProvider):
    """Writes and reads JSON with orjson: an index is rebuilt out of gigabytes of answers, batches have hundreds of requests."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        super().__init__(url, request_kwargs={"timeout": timeout_s}, exception_retry_configuration=None)

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
