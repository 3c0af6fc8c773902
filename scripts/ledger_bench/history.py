"""A history of as many events as wanted, out of one that a real chain wrote, and an endpoint that serves it.

A released job is recorded from the chain with all its events, verdicts of three verifiers among them. Every copy has ids and
digests of its own and begins a series of its own, so that sequence numbers and rolling hashes are those that the contracts
would have written. Served as JSON-RPC over loopback by another process, as a node serves it; what a node needs to find its
logs is not part of it.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import eth_abi.abi
import httpx
import orjson

from chain_fixture import Consortium, Vote, reveal_moves, word
from usufruct.ledger.abi import EventCodec, abi_type
from usufruct.ledger.series import event_codec, next_head, series_of
from usufruct.records import ZERO_32, JobId, JobRequest, LedgerEvent, label

SCOPE = label("bench")
_SPAN = 2_000
"""Blocks asked for at once, as an index does."""

_OWN = ("jobId", "artifactId", "contentDigest", "resultDigest", "releaseDigest", "commitment", "possession")
"""Arguments whose values are another job's in every copy."""


def release_job(net: Consortium) -> JobId:
    """Take one job from its bundle to its release on a real chain."""
    bundle = net.bundle("north", net.key_domain("north"), scope=SCOPE)
    epoch = net.epoch("north", SCOPE)
    grant = net.granted("university", "north", bundle, SCOPE)
    (job,) = net.post(
        "university",
        [
            JobRequest(
                artifact_id=bundle,
                grant_id=grant,
                kernel_id=net.reader.grant(grant).terms.kernels[0],
                parameters_digest=word(),
                purpose=SCOPE,
                consent_epoch=epoch,
                policy_version=1,
                rho_micro=1,
                row_level=False,
                nonce=1,
            )
        ],
    )
    result = word()
    net.claim([job])
    net.commit({job: result})
    votes = [Vote.of(net[name], job, result) for name in ("north", "south", "auditor")]
    net.together(vote.commit_move(net.network) for vote in votes)
    net.together(reveal_moves(votes))
    node = net["north"].node
    node.transact("JobLedger", "openRelease", job)
    node.transact("JobLedger", "recordRelease", job, word(), 1_500_000)
    return job


class History:
    """Logs of one network in a file, block after block, as they stand in a JSON-RPC answer.

    Parameters
    ----------
    path :
        File to write.
    contracts :
        Addresses by name.
    events :
        What the chain wrote up to the end of `job`, whose release is the last thing that happened.
    """

    def __init__(self, path: Path, contracts: dict[str, str], events: list[LedgerEvent], job: JobId) -> None:
        self.path = path
        self.first_block = events[0].block_number
        self.offsets: list[int] = []
        self.n_events = 0
        self._contracts = contracts
        posting = next(e.transaction_hash for e in events if e.name == "JobPosted" and e.args["jobId"] == job)
        begin = next(i for i, event in enumerate(events) if event.transaction_hash == posting)
        self._before, self._life = events[:begin], events[begin:]
        self._series: dict[tuple[str, bytes | None], tuple[int, bytes]] = {}

    @property
    def last_block(self) -> int:
        """Number of the newest block."""
        return self.first_block + len(self.offsets) - 2

    def write(self, n_events: int) -> None:
        """Write at least so many events: those before the job in one block, then each copy of the job in a block."""
        own = _values(self._life) - _values(self._before)
        with self.path.open("wb") as file:
            self._write_block(file, self._before)
            copy = 0
            while self.n_events < n_events:
                copy += 1
                fresh = {word: sha256(word + copy.to_bytes(8, "big")).digest() for word in own}
                given = [replace(event, args=_replaced(event.args, fresh)) for event in self._life]
                self._write_block(file, given)
            self.offsets.append(file.tell())

    def _write_block(self, file: BinaryIO, events: list[LedgerEvent]) -> None:
        number = self.first_block + len(self.offsets)
        self.offsets.append(file.tell())
        for place, event in enumerate(events):
            file.write(json.dumps(self._log(event, number, place), separators=(",", ":")).encode() + b",")
        self.n_events += len(events)

    def _log(self, event: LedgerEvent, number: int, place: int) -> dict[str, Any]:
        codec = event_codec(event.contract, event.name)
        if codec.in_series:
            key = event.contract, series_of(event)
            length, head = self._series.get(key, (0, ZERO_32))
            event.args["sequence"] = length + 1
            event.args["head"] = next_head(head, codec, event.args)
            self._series[key] = length + 1, event.args["head"]
        topics, data = _encoded(codec, event.args)
        return {
            "address": self._contracts[event.contract],
            "topics": ["0x" + topic.hex() for topic in topics],
            "data": "0x" + data.hex(),
            "blockHash": "0x" + block_hash(number).hex(),
            "blockNumber": hex(number),
            "blockTimestamp": hex(block_time(number)),
            "transactionHash": "0x" + event.transaction_hash.hex(),
            "transactionIndex": "0x0",
            "logIndex": hex(place),
            "removed": False,
        }


_DYNAMIC = re.compile(r"address|string|bytes(?!\d)|\[\]")
"""Types that `_words` cannot write: of variable length, or held as text."""


def block_hash(number: int) -> bytes:
    """Hash of a block of the history."""
    return sha256(b"block" + number.to_bytes(8, "big")).digest()


def block_time(number: int) -> int:
    """Unix seconds of a block of the history."""
    return 1_700_000_000 + 2 * number


def _values(events: list[LedgerEvent]) -> set[object]:
    return {event.args[name] for event in events for name in _OWN if name in event.args}


def _replaced(value: Any, fresh: dict[bytes, bytes]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(item, fresh) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, fresh) for item in value]
    return fresh.get(value, value) if isinstance(value, bytes) else value


def _encoded(codec: EventCodec, args: dict[str, Any]) -> tuple[list[bytes], bytes]:
    """Topics and data of a log."""
    plain = [entry for entry in codec.inputs if not entry["indexed"]]
    topics = [codec.topic, *(_words(args[entry["name"]]) for entry in codec.inputs if entry["indexed"])]
    kinds, values = [abi_type(entry) for entry in plain], [args[entry["name"]] for entry in plain]
    if any(_DYNAMIC.search(kind) for kind in kinds):
        return topics, eth_abi.abi.encode(kinds, [_tuple(value) for value in values])
    return topics, b"".join(map(_words, values))


def _words(value: Any) -> bytes:
    """Encoding of what has no dynamic part."""
    if isinstance(value, dict):
        return b"".join(map(_words, value.values()))
    return value if isinstance(value, bytes) else int(value).to_bytes(32, "big")


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value.values())) if isinstance(value, dict) else value


def bare_copy(url: str, history: History, path: Path) -> float:
    """Seconds to read a served history and put its logs, as they are, into one table: less no index can do in this language."""
    begun = time.perf_counter()
    with closing(sqlite3.connect(path)) as db, httpx.Client(timeout=60, trust_env=False) as client:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE log (block TEXT, place TEXT, address TEXT, topics TEXT, data TEXT)")
        for first in range(history.first_block, history.last_block + 1, _SPAN):
            last = min(first + _SPAN - 1, history.last_block)
            query = {"fromBlock": hex(first), "toBlock": hex(last)}
            call = {"jsonrpc": "2.0", "id": 1, "method": "eth_getLogs", "params": [query]}
            logs = orjson.loads(client.post(url, json=call).content)["result"]
            with db:
                db.executemany(
                    "INSERT INTO log VALUES (?, ?, ?, ?, ?)",
                    [
                        (
                            log["blockNumber"],
                            log["logIndex"],
                            log["address"],
                            "".join(log["topics"]),
                            log["data"],
                        )
                        for log in logs
                    ],
                )
    return time.perf_counter() - begun


@contextmanager
def served(history: History) -> Iterator[str]:
    """Serve a history from a process of its own; gives the URL."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(str(history.path), history.offsets, history.first_block, there), daemon=True
    )
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(path: str, offsets: list[int], first_block: int, ready: Connection) -> None:
    last_block = first_block + len(offsets) - 2

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            begin = b'{"jsonrpc":"2.0","id":' + json.dumps(request["id"]).encode() + b',"result":'
            body = begin + self._result(request["method"], request["params"]) + b"}"
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _result(self, method: str, params: list[Any]) -> bytes:
            if method == "eth_getLogs":
                low = int(params[0]["fromBlock"], 16) - first_block
                high = int(params[0]["toBlock"], 16) - first_block + 1
                with Path(path).open("rb") as file:
                    file.seek(offsets[low])
                    return b"[" + file.read(offsets[high] - offsets[low])[:-1] + b"]"
            if method == "eth_getBlockByNumber":
                number = last_block if params[0] == "finalized" else int(params[0], 16)
                block = {
                    "number": hex(number),
                    "hash": "0x" + block_hash(number).hex(),
                    "timestamp": hex(block_time(number)),
                }
                return json.dumps(block).encode()
            raise ValueError(f"no method {method} in a history")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_port)
    server.serve_forever()
