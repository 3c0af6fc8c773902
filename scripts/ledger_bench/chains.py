"""What a chain does for the library, beside the same chain asked as barely as can be."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from coincurve import PrivateKey

from chain_fixture import Consortium, Organisation, running_chain, word
from governed_fixture import governed_consortium
from usufruct.errors import ProofUnavailableError, TooFewSignersError
from usufruct.ledger.finality import fetch_finality, verify_finality
from usufruct.ledger.signing import sign_transaction
from usufruct.records import label
from usufruct_node.index import Index, catch_up

GAS = 200_000
BATCH = 100
_POLL_SECONDS = 0.01


@dataclass(slots=True)
class Epochs:
    """Consent epochs that a steward anchors one after the other: real transactions, one event each."""

    net: Consortium
    member: Organisation
    scope: bytes
    number: int = 0

    def calls(self, count: int) -> list[tuple[str | None, bytes]]:
        """Calls for the next epochs."""
        begin, self.number = self.number, self.number + count
        return [
            self.net.reader.call_data(
                "ConsentRegistry", "anchorEpoch", self.scope, begin + at + 1, word(), word(), 50
            )
            for at in range(count)
        ]


@contextmanager
def network_on(chain: str) -> Iterator[Consortium]:
    """A network of five members on a new chain of this kind."""
    with tempfile.TemporaryDirectory(prefix="usufruct-bench-") as folder:
        if chain == "embedded":
            with running_chain(Path(folder)) as url:
                yield Consortium(url)
        else:
            with governed_consortium(Path(folder)) as net:
                yield net


def transactions(net: Consortium, *, count: int, rounds: int) -> dict[str, Any]:
    """Transactions per second until all are final: through the library, and signed beforehand and posted in batches.

    The library also reads every receipt, without which nobody knows which were reverted; the batches with and without it.
    """
    ours, bare, checked = [], [], []
    sdk = Epochs(net, net["north"], label("bench-sdk"))
    raw = Epochs(net, net["south"], label("bench-raw"))
    for _ in range(rounds):
        calls = sdk.calls(count)
        begun = time.perf_counter()
        sdk.member.ledger.transact_many(calls, gas=GAS)
        ours.append(count / (time.perf_counter() - begun))
        signed = _signed(net, raw.member, raw.calls(count))
        begun = time.perf_counter()
        hashes = _post_batches(net, signed)
        _wait_for_nonce(net, raw.member)
        bare.append(count / (time.perf_counter() - begun))
        _check_receipts(net, hashes)
        checked.append(count / (time.perf_counter() - begun))
    row = {"name": "transactions", "count": count, "rounds": rounds}
    sdk_rate, bare_rate, checked_rate = map(statistics.median, (ours, bare, checked))
    return row | {
        "sdk_per_s": sdk_rate,
        "presigned_per_s": bare_rate,
        "ratio": sdk_rate / bare_rate,
        "presigned_with_receipts_per_s": checked_rate,
        "ratio_with_receipts": sdk_rate / checked_rate,
    }


def latency(net: Consortium, *, count: int) -> dict[str, Any]:
    """Seconds from handing over one signed transaction to its receipt, and until its block is final."""
    epochs = Epochs(net, net["south"], label("bench-latency"))
    included, final = [], []
    for call in epochs.calls(count):
        (raw,) = _signed(net, epochs.member, [call])
        begun = time.perf_counter()
        (answer,) = _post(net, [("eth_sendRawTransaction", ["0x" + raw.hex()])])
        receipt = _poll(lambda answer=answer: _post(net, [("eth_getTransactionReceipt", [answer])])[0])
        included.append(time.perf_counter() - begun)
        block = int(receipt["blockNumber"], 16)
        _poll(lambda block=block: net.reader.finalised().number >= block)
        final.append(time.perf_counter() - begun)
    return {
        "name": "latency",
        "count": count,
        "inclusion_s": statistics.median(included),
        "inclusion_worst_s": max(included),
        "finality_s": statistics.median(final),
        "finality_worst_s": max(final),
    }


def live_index(net: Consortium) -> dict[str, Any]:
    """Events per second, out of the chain's own logs into a new index."""
    with tempfile.TemporaryDirectory() as folder, closing(Index(Path(folder, "index.db"))) as index:
        begun = time.perf_counter()
        catch_up(index, net.reader)
        took = time.perf_counter() - begun
        return {"name": "index", "events": index.event_count(), "events_per_s": index.event_count() / took}


def finality(net: Consortium, *, count: int) -> dict[str, Any]:
    """Seconds to fetch the proof of a final block and to verify it against the pinned validators."""
    pin, endpoint = net.network.finality, net.reader.endpoint
    newest = net.reader.finalised().number
    fetched, verified, unavailable = [], [], 0
    for number in range(newest - count + 1, newest + 1):
        block_hash = endpoint.block(number).hash
        begun = time.perf_counter()
        try:
            proof = fetch_finality(endpoint, net.network.chain, pin, block_hash)
            between = time.perf_counter()
            verify_finality(proof, pin, block_hash)
        except (ProofUnavailableError, TooFewSignersError):
            unavailable += 1
            continue
        fetched.append(between - begun)
        verified.append(time.perf_counter() - between)
    row = {"name": "finality proof", "count": count, "unavailable": unavailable}
    if not fetched:
        return row
    worst = max(map(sum, zip(fetched, verified, strict=True)))
    return row | {
        "fetch_s": statistics.median(fetched),
        "verify_s": statistics.median(verified),
        "fetch_verify_worst_s": worst,
    }


def _signed(net: Consortium, member: Organisation, calls: Sequence[tuple[str | None, bytes]]) -> list[bytes]:
    (nonce,) = _post(net, [("eth_getTransactionCount", [member.record.account, "pending"])])
    (price,) = _post(net, [("eth_gasPrice", [])])
    return [
        sign_transaction(
            PrivateKey(member.authority_key),
            chain_id=net.network.chain_id,
            nonce=int(nonce, 16) + at,
            gas_price=max(int(price, 16), net.network.chain.minimum_gas_price),
            gas=GAS,
            to=to,
            data=data,
        )
        for at, (to, data) in enumerate(calls)
    ]


def _post_batches(net: Consortium, signed: Sequence[bytes]) -> list[str]:
    hashes: list[str] = []
    for at in range(0, len(signed), BATCH):
        hashes += _post(
            net, [("eth_sendRawTransaction", ["0x" + raw.hex()]) for raw in signed[at : at + BATCH]]
        )
    return hashes


def _check_receipts(net: Consortium, hashes: Sequence[str]) -> None:
    for at in range(0, len(hashes), BATCH):
        receipts = _post(net, [("eth_getTransactionReceipt", [tx]) for tx in hashes[at : at + BATCH]])
        if any(receipt["status"] != "0x1" for receipt in receipts):
            raise RuntimeError("a transaction was reverted")


def _wait_for_nonce(net: Consortium, member: Organisation) -> None:
    """Wait until every transaction that was handed over is in a final block."""
    (pending,) = _post(net, [("eth_getTransactionCount", [member.record.account, "pending"])])
    tag = net.network.chain.finality_tag
    _poll(lambda: _post(net, [("eth_getTransactionCount", [member.record.account, tag])])[0] == pending)


def _poll(condition: Callable[[], Any]) -> Any:
    while not (value := condition()):
        time.sleep(_POLL_SECONDS)
    return value


_http = httpx.Client(timeout=60, trust_env=False)


def _post(net: Consortium, calls: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
    """JSON-RPC without anything around it."""
    body = [
        {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        for number, (method, params) in enumerate(calls)
    ]
    content = json.dumps(body).encode()
    answers = _http.post(
        net.network.rpc_urls[0], content=content, headers={"Content-Type": "application/json"}
    ).json()
    if failed := [answer for answer in answers if "error" in answer]:
        raise RuntimeError(f"the chain refused: {failed[0]['error']}")
    return [answer["result"] for answer in sorted(answers, key=lambda answer: answer["id"])]
