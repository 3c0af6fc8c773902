"""A door in front of a chain's JSON-RPC that can be shut, can lose replies, and can lie."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Call = dict[str, Any]
Fault = Callable[[list[Call]], bytes | None]
"""Takes the calls of one request; None lets it through, bytes are the reply instead, empty ones end the connection."""

Lie = Callable[[Call, Any], Any]
"""Takes a call and the chain's own result; gives the result that is told."""


class Door:
    """Forwards JSON-RPC to the chain.

    `before` may answer in the chain's place; `after` may replace the reply of a request that the chain has carried out; `lie`
    changes single results. A block is final `lag` blocks later than on the chain itself.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.before: Fault = lambda calls: None
        self.after: Fault = lambda calls: None
        self.lie: Lie = lambda call, result: result
        self.lag = 0
        self.seen: list[Call] = []
        """Calls that came in, whatever was answered."""
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = json.loads(body)
                calls = asked if isinstance(asked, list) else [asked]
                door.seen += calls
                reply = door.before(calls)
                if reply is None:
                    carried_out = door.forward(door.late(body) if door.lag else body)
                    reply = door.after(calls)
                    reply = door.told(calls, carried_out) if reply is None else reply
                if not reply:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def shut(self) -> None:
        """End every connection from now on."""
        self.before = lambda calls: b""

    def keep_from_being_final(self) -> None:
        """Let everything through, but show nothing as final any more once a transaction was sent."""

        def after(calls: list[Call]) -> None:
            if any(call["method"] == "eth_sendRawTransaction" for call in calls):
                self.lag = 1_000_000

        self.after = after

    def open(self) -> None:
        """Let everything through, truthfully and at once."""
        self.lag = 0
        self.before = lambda calls: None
        self.after = lambda calls: None
        self.lie = lambda call, result: result

    def forward(self, body: bytes) -> bytes:
        """What the chain itself answers."""
        request = urllib.request.Request(self.target, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    def late(self, body: bytes) -> bytes:
        """The request, with what is final meaning a block that many before the newest."""
        newest = json.loads(self.forward(b'{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}'))
        final = json.dumps(hex(max(0, int(newest["result"], 16) - self.lag)))
        return body.replace(b'"finalized"', final.encode())

    def told(self, calls: list[Call], carried_out: bytes) -> bytes:
        answers = json.loads(carried_out)
        by_id = {call.get("id"): call for call in calls}
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, dict) and "result" in answer:
                answer["result"] = self.lie(by_id[answer["id"]], answer["result"])
        return json.dumps(answers).encode()


@contextmanager
def door_to(target: str) -> Iterator[Door]:
    door = Door(target)
    thread = threading.Thread(target=door.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield door
    finally:
        door.server.shutdown()
        door.server.server_close()
