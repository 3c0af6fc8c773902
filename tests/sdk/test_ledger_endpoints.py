"""Several endpoints of a real chain behind doors that shut, hang and lie: nothing lost, nothing doubled, no lie believed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc.bls import G2ProofOfPossession as Scheme

from chain_fixture import Consortium, running_chain, until
from rpc_door import Door, door_to
from usufruct.errors import (
    ChainStalledError,
    ConfigurationError,
    ContradictingEndpointError,
    LedgerError,
    LedgerUnreachableError,
    MalformedAnswerError,
    StaleLedgerError,
    TransactionLostError,
    TransactionReplacedError,
    TransactionRevertedError,
    WrongChainError,
)
from usufruct.ledger import PROFILES, Endpoints, Head, Ledger, Sender
from usufruct.ledger.endpoint import Endpoint, transaction_hash
from usufruct.ledger.endpoints import Arbiter
from usufruct.ledger.finality.fetch import cb58
from usufruct.ledger.finality.witness import reaches_quorum
from usufruct.ledger.health import ChainWatch
from usufruct.ledger.journal import InFlight, Journal, Pending
from usufruct.ledger.ledger import _kept_hash, _kept_number
from usufruct.ledger.network import FinalityPin, Validator
from usufruct.ledger.signing import sign_transaction

EMBEDDED = PROFILES["embedded"]
QUICK = replace(EMBEDDED, block_interval_s=0.5)
"""The fixture's chain makes a block every tenth of a second."""

UNKNOWN_PROPOSAL = "0x" + keccak(b"MemberCouncilUnknownProposal(uint256)")[:4].hex()


@pytest.fixture
def doors(chain_url: str) -> Iterator[list[Door]]:
    with ExitStack() as stack:
        yield [stack.enter_context(door_to(chain_url)) for _ in range(3)]


def through(
    doors: list[Door],
    consortium: Consortium,
    *,
    key: bytes | None = None,
    journal: Path | None = None,
    patience: float = 10.0,
    arbiter: Arbiter | None = None,
) -> Ledger:
    """A ledger through these doors, in their order."""
    network = consortium.network.model_copy(update={"rpc_urls": tuple(door.url for door in doors)})
    endpoint = Endpoints(
        network.rpc_urls,
        profile=QUICK,
        chain_id=network.chain_id,
        genesis_hash=network.genesis_hash,
        patience=patience,
        arbiter=arbiter,
    )
    sender = None
    if key is not None:
        sender = Sender(endpoint, network.chain_id, key, journal=journal, patience=patience)
    return Ledger(network, endpoint, sender)


def count(ledger: Ledger, tag: str = "latest") -> int:
    return int(ledger.endpoint.call("eth_getTransactionCount", ledger.address, tag), 16)


def say(ledger: Ledger, text: str) -> Any:
    return ledger.transact("ParticipantRegistry", "setEndpoint", text)


def broadcasts(door: Door) -> list[str]:
    return [call["params"][0] for call in door.seen if call["method"] == "eth_sendRawTransaction"]


# Which endpoint is used.


def test_the_first_endpoint_is_used_while_it_is_fit_and_the_next_when_it_is_not(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors, consortium)
    height = ledger.finalised().number
    assert ledger.endpoint.url == doors[0].url
    doors[0].shut()
    assert ledger.finalised().number >= height
    assert ledger.endpoint.url == doors[1].url
    health = ledger.health()
    assert [e.in_use for e in health.endpoints] == [False, True, False]
    assert "does not answer" in (health.endpoints[0].trouble or "")
    assert not health.stalled


def test_an_endpoint_that_answers_with_rubbish_is_left_for_the_next(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors, consortium)
    ledger.finalised()
    for rubbish in (b"<html>", b"[]", b"null", b'{"jsonrpc":"2.0","id":1}'):
        doors[0].before = lambda calls, rubbish=rubbish: rubbish
        assert ledger.endpoint.quantity("eth_chainId") == consortium.network.chain_id
        assert ledger.endpoint.batch([("eth_chainId", ())]) == [hex(consortium.network.chain_id)]
        assert ledger.endpoint.url != doors[0].url


def test_an_endpoint_whose_batch_has_an_answer_that_is_none_is_left_for_the_next(
    consortium: Consortium, doors: list[Door]
) -> None:
    for number, rubbish in enumerate(({}, None, 7, "text", {"result": None})):
        ledger = through(doors, consortium)
        ledger.finalised()

        def reply(calls: list[dict[str, Any]], rubbish: Any = rubbish) -> bytes | None:
            if calls[-1]["method"] != "eth_chainId":
                return None
            good = {"jsonrpc": "2.0", "id": calls[0]["id"], "result": "0x1"}
            odd = (
                rubbish | {"jsonrpc": "2.0", "id": calls[-1]["id"]} if isinstance(rubbish, dict) else rubbish
            )
            return json.dumps([good, odd]).encode()

        doors[0].before = reply
        twice = ledger.endpoint.batch([("eth_chainId", ())] * 2)
        doors[0].open()
        left = number < 4  # An answer without a value is one.
        assert twice == ([hex(consortium.network.chain_id)] * 2 if left else ["0x1", None])
        assert (ledger.endpoint.url != doors[0].url) is left


def test_more_blocks_with_events_than_an_engine_takes_calls_in_a_batch_are_read(
    consortium: Consortium, doors: list[Door]
) -> None:
    """Subnet-EVM tells no time with a log and takes a thousand calls at once: each block is asked for its time."""
    blocks, (emitter,) = 1_500, [consortium.network.contracts["ParticipantRegistry"]]
    ledger = through(doors[:1], consortium)
    (event, *_) = ledger.endpoint.logs(
        [emitter], consortium.network.deployed_at_block, ledger.finalised().number
    )
    del event["blockTimestamp"]

    def tell(call: dict[str, Any], result: Any) -> Any:
        asked = call["params"][0] if call["params"] else None
        if call["method"] == "eth_getLogs":
            return [event | {"blockNumber": hex(number)} for number in range(1, blocks + 1)]
        if call["method"] == "eth_getBlockByNumber" and asked != "finalized":
            return {"number": asked, "hash": event["blockHash"], "timestamp": hex(10**9 + int(asked, 16))}
        return result

    def refuse_large(calls: list[dict[str, Any]]) -> bytes | None:
        error = {
            "jsonrpc": "2.0",
            "id": calls[0]["id"],
            "error": {"code": -32600, "message": "batch too large"},
        }
        return json.dumps([error]).encode() if len(calls) > 1_000 else None

    doors[0].lie, doors[0].before = tell, refuse_large
    events = ledger.events(1, blocks)
    assert [(e.block_number, e.timestamp) for e in events] == [(n, 10**9 + n) for n in range(1, blocks + 1)]


def test_all_of_a_large_batch_is_asked_for_before_its_first_failure_is_told(doors: list[Door]) -> None:
    door = doors[0]
    calls: list[tuple[str, tuple[object, ...]]] = [("eth_sendRawTransaction", ("0x00",))]
    calls += [("eth_getBlockByNumber", (hex(n), False)) for n in range(450)]
    with pytest.raises(LedgerError, match="eth_sendRawTransaction"):
        Endpoint(door.url).batch(calls)
    assert len(door.seen) == len(calls)


@pytest.mark.parametrize(
    "field", ["blockNumber", "logIndex", "blockTimestamp", "blockHash", "transactionHash", "topics"]
)
def test_a_log_with_a_number_or_hash_of_any_length_is_refused_and_not_kept(
    consortium: Consortium, doors: list[Door], field: str
) -> None:
    ledger = through(doors[:1], consortium)
    first, last = consortium.network.deployed_at_block, ledger.finalised().number
    long = "0x" + "0" * 1_000_000 + "1"

    def stretch(call: dict[str, Any], result: Any) -> Any:
        if call["method"] != "eth_getLogs":
            return result
        return [log | {field: [long, *log["topics"][1:]] if field == "topics" else long} for log in result]

    assert ledger.events(first, last)
    kept = _kept_hash.cache_info().misses, _kept_number.cache_info().misses
    doors[0].lie = stretch
    with pytest.raises(MalformedAnswerError):
        ledger.events(first, last)
    assert (_kept_hash.cache_info().misses, _kept_number.cache_info().misses) == kept


def test_endpoints_that_all_come_back_within_patience_go_unnoticed(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors, consortium)
    ledger.finalised()
    for door in doors:
        door.shut()
    threading.Timer(0.8, doors[2].open).start()
    assert ledger.finalised().number > 0
    assert ledger.endpoint.url == doors[2].url


def test_when_no_endpoint_answers_the_error_is_typed(consortium: Consortium, doors: list[Door]) -> None:
    ledger = through(doors, consortium, patience=0.5)
    for door in doors:
        door.shut()
    with pytest.raises(LedgerUnreachableError, match="does not answer"):
        ledger.finalised()


def test_an_endpoint_that_hangs_does_not_hold_up_the_others(
    consortium: Consortium, doors: list[Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usufruct.ledger.endpoints._PROBE_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        network = consortium.network
        endpoints = Endpoints(
            (f"http://127.0.0.1:{silent.getsockname()[1]}", doors[0].url),
            profile=QUICK,
            chain_id=network.chain_id,
            genesis_hash=network.genesis_hash,
        )
        assert endpoints.finalised().number > 0
        assert endpoints.url == doors[0].url


# Lies.


@pytest.mark.parametrize(
    ("method", "lie"),
    [
        ("eth_chainId", lambda result: hex(int(result, 16) + 1)),
        ("eth_getBlockByNumber", lambda block: block and block | {"hash": "0x" + "66" * 32}),
    ],
    ids=["other chain id", "other genesis"],
)
def test_an_endpoint_on_another_chain_is_refused(
    consortium: Consortium, doors: list[Door], method: str, lie: Any
) -> None:
    doors[0].lie = lambda call, result: lie(result) if call["method"] == method else result
    ledger = through(doors, consortium)
    assert ledger.finalised().number > 0
    assert ledger.endpoint.url == doors[1].url
    alone = through(doors[:1], consortium, patience=0.5)
    with pytest.raises(WrongChainError, match="serves"):
        alone.finalised()


def as_of(door: Door, block: dict[str, Any]) -> None:
    """Have the door tell that this block is still the newest."""

    def lie(call: dict[str, Any], result: Any) -> Any:
        asked = call["params"][0] if call["params"] else None
        if call["method"] == "eth_getBlockByNumber":
            if asked in ("finalized", "latest"):
                return block
            return None if int(asked, 16) > int(block["number"], 16) else result
        return result

    door.lie = lie


def test_an_endpoint_that_falls_back_behind_what_was_seen_is_refused(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:2], consortium)
    old = ledger.endpoint.call("eth_getBlockByNumber", "finalized", False)
    until(lambda: ledger.finalised().number > int(old["number"], 16) + 1)
    seen = ledger.finalised()
    assert ledger.endpoint.url == doors[0].url
    as_of(doors[0], old)
    assert ledger.finalised().number >= seen.number
    assert ledger.endpoint.url == doors[1].url
    as_of(doors[1], old)
    impatient = ledger.endpoint
    impatient._patience = 0.5
    with pytest.raises(StaleLedgerError, match="already seen"):
        ledger.finalised()


def test_an_endpoint_that_is_behind_the_others_from_the_beginning_is_refused(
    consortium: Consortium, doors: list[Door]
) -> None:
    old = consortium.reader.endpoint.call("eth_getBlockByNumber", "finalized", False)
    until(lambda: consortium.reader.finalised().number > int(old["number"], 16) + 4)
    as_of(doors[0], old)
    ledger = through(doors, consortium)
    assert ledger.finalised().number > int(old["number"], 16) + 3
    assert ledger.endpoint.url == doors[1].url
    assert "another endpoint at" in (ledger.health().endpoints[0].trouble or "")


def claim(door: Door, consortium: Consortium, ahead: int = 1500) -> int:
    """Have the door tell an invented block, that far above the newest, is final; its number."""
    newest = consortium.reader.endpoint.call("eth_getBlockByNumber", "finalized", False)
    number = int(newest["number"], 16) + ahead
    as_of(door, newest | {"number": hex(number), "hash": "0x" + "66" * 32})
    return number


def follow_for_a_while(ledger: Ledger) -> list[int]:
    """Heights that were shown as final, over several looks at the other endpoints and a new block."""
    heights = [ledger.finalised().number]
    enough = time.monotonic() + 6 * QUICK.block_interval_s

    def moved() -> bool:
        heights.append(ledger.finalised().number)
        return time.monotonic() > enough and heights[-1] > heights[0]

    until(moved)
    return heights


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("later", [False, True], ids=["from the beginning", "later"])
def test_a_block_far_ahead_that_only_one_of_three_endpoints_claims_is_not_followed(
    consortium: Consortium, doors: list[Door], place: int, later: bool
) -> None:
    ledger = through(doors, consortium)
    if later:
        ledger.finalised()
    invented = claim(doors[place], consortium)
    heights = follow_for_a_while(ledger)
    assert max(heights) < invented
    health = ledger.health().endpoints
    assert f"claims block {invented}" in (health[place].trouble or "")
    assert not health[place].in_use
    doors[place].open()
    doors[1].shut()
    doors[2 - place].shut()
    assert ledger.finalised().number >= heights[-1]
    assert ledger.endpoint.url == doors[place].url, "it is used again once it tells the truth"


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("later", [False, True], ids=["from the beginning", "later"])
def test_where_blocks_can_be_proven_one_of_two_endpoints_is_not_followed_to_an_unproven_one(
    consortium: Consortium, doors: list[Door], place: int, later: bool
) -> None:
    truth, asked = consortium.reader.endpoint, []

    def prove(_: Endpoint, head: Head) -> bool:
        asked.append(head.number)
        return head.number <= truth.finalised().number and truth.block(head.number).hash == head.hash

    ledger = through(doors[:2], consortium, arbiter=prove)
    if later:
        ledger.finalised()
    invented = claim(doors[place], consortium)
    heights = follow_for_a_while(ledger)
    assert invented in asked
    assert max(heights) < invented


@pytest.mark.parametrize("later", [False, True], ids=["from the beginning", "later"])
@pytest.mark.parametrize("can_prove", [True, False])
def test_of_two_endpoints_the_one_behind_is_left_if_the_other_is_proven_or_nothing_can_be(
    consortium: Consortium, doors: list[Door], can_prove: bool, later: bool
) -> None:
    truth = consortium.reader.endpoint
    ledger = through(
        doors[:2],
        consortium,
        arbiter=lambda _, head: can_prove and truth.block(head.number).hash == head.hash,
    )
    newest = truth.finalised().number
    for door in doors[:2]:
        as_of(door, truth.call("eth_getBlockByNumber", hex(newest - 8), False))
    if later:
        ledger.finalised()
    doors[1].open()
    until(lambda: ledger.finalised().number >= newest)
    assert ledger.endpoint.url == doors[1].url
    assert "another endpoint at" in (ledger.health().endpoints[0].trouble or "")


def test_endpoints_that_are_behind_what_was_seen_have_no_say(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors, consortium)
    truth = consortium.reader.endpoint
    newest = truth.finalised().number
    for door in doors:
        as_of(door, truth.call("eth_getBlockByNumber", hex(newest - 8), False))
    assert ledger.finalised().number == newest - 8
    for door in doors[1:]:
        as_of(door, truth.call("eth_getBlockByNumber", hex(newest - 16), False))
    doors[0].open()
    ledger.endpoint._patience = 0.0
    assert ledger.finalised().number >= newest
    assert ledger.endpoint.url == doors[0].url


def test_a_block_number_that_no_chain_reaches_is_a_malformed_answer(
    consortium: Consortium, doors: list[Door]
) -> None:
    for number in ("0xffffffffffffffff", hex(1 << 63), "-0x1"):
        doors[0].lie = lambda call, block, number=number: block | {"number": number}
        with pytest.raises(MalformedAnswerError, match="63 bits"):
            Endpoint(doors[0].url).finalised()
    doors[0].lie = lambda call, block: block | {"number": hex((1 << 63) - 1)}
    assert Endpoint(doors[0].url).finalised().number == (1 << 63) - 1


def forge(door: Door, number: int) -> None:
    """Have the door tell another block at this height."""

    def lie(call: dict[str, Any], result: Any) -> Any:
        if call["method"] == "eth_getBlockByNumber" and result and int(result["number"], 16) == number:
            return result | {"hash": "0x" + "66" * 32}
        return result

    door.lie = lie


def test_an_endpoint_that_contradicts_a_block_seen_as_final_is_not_used_again(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:2], consortium)
    seen = ledger.finalised()
    forge(doors[0], seen.number)
    until(lambda: ledger.endpoint.finalised().number > seen.number)
    assert ledger.endpoint.url == doors[1].url
    doors[0].open()
    doors[1].shut()
    ledger.endpoint._patience = 0.5
    with pytest.raises((ContradictingEndpointError, LedgerUnreachableError)):
        ledger.finalised()
    assert "shows block" in (ledger.health().endpoints[0].trouble or "")


def test_an_endpoint_that_contradicts_a_proven_block_is_refused(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:2], consortium)
    seen = ledger.finalised()
    assert isinstance(ledger.endpoint, Endpoints)
    ledger.endpoint.hold_final(seen)  # Positive control: the endpoint showed the proven block.
    with pytest.raises(ContradictingEndpointError, match="is final as"):
        ledger.endpoint.hold_final(Head(seen.number, b"\x66" * 32, seen.timestamp))


def test_of_two_that_differ_the_one_that_can_prove_its_block_is_believed(
    consortium: Consortium, doors: list[Door]
) -> None:
    network, truth = consortium.network, consortium.reader.endpoint
    endpoints = Endpoints(
        [doors[0].url, doors[1].url],
        profile=QUICK,
        chain_id=network.chain_id,
        genesis_hash=network.genesis_hash,
        arbiter=lambda asked, head: asked is endpoints and truth.block(head.number).hash == head.hash,
    )
    until(lambda: consortium.reader.finalised().number > 2)
    number = consortium.reader.finalised().number
    forge(doors[0], number)
    doors[1].shut()
    until(lambda: endpoints.finalised().number >= number)
    assert endpoints._final.get(number, b"\x66" * 32) == b"\x66" * 32
    doors[1].open()
    doors[0].shut()
    until(lambda: endpoints.finalised().number > number)
    assert endpoints.block(number).hash == consortium.reader.endpoint.block(number).hash


def test_an_endpoint_whose_answers_were_wrong_is_left_for_a_while(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:2], consortium)
    ledger.finalised()
    ledger.endpoint.leave(StaleLedgerError("it left out an event"))
    ledger.finalised()
    assert ledger.endpoint.url == doors[1].url
    assert ledger.health().endpoints[0].trouble == "it left out an event"
    ledger.endpoint.leave(StaleLedgerError("so did this one"))
    ledger.finalised()
    assert ledger.endpoint.url == doors[1].url, "there is no other that could be used by now"


# Simulations by an endpoint that is a little behind.


def test_a_refusal_of_an_endpoint_that_is_behind_counts_once_it_has_caught_up(
    consortium: Consortium, doors: list[Door]
) -> None:
    """What one member made final through its own endpoint is built on by another through another endpoint at once."""
    ledger = through(doors, consortium, key=consortium["compute"].authority_key)
    proposer = consortium["north"].ledger
    target, data = proposer.call_data("ParticipantRegistry", "setEndpoint", "/behind")
    made = proposer.event_of(proposer.transact("MemberCouncil", "propose", target, data), "ProposalMade")
    simulated = []

    def simulate_as_of_then(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_estimateGas" or simulated:
            return None
        simulated.append(True)
        threading.Timer(0.3, doors[0].open).start()
        refused = {"code": 3, "message": "execution reverted", "data": UNKNOWN_PROPOSAL + "00" * 31 + "01"}
        return json.dumps({"jsonrpc": "2.0", "id": calls[0]["id"], "error": refused}).encode()

    seen = hex(ledger.finalised().number)
    as_of(doors[0], consortium.reader.endpoint.call("eth_getBlockByNumber", seen, False))
    doors[0].before = simulate_as_of_then
    ledger.transact("MemberCouncil", "vote", made.args["proposalId"], True)
    assert simulated


def test_a_refusal_stands_although_another_endpoint_claims_blocks_that_there_are_not(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:2], consortium, key=consortium["compute"].authority_key)
    ledger.finalised()
    newest = consortium.reader.endpoint.call("eth_getBlockByNumber", "finalized", False)
    as_of(doors[1], newest | {"number": hex(int(newest["number"], 16) + 3)})
    with pytest.raises(TransactionRevertedError, match="MemberCouncilUnknownProposal"):
        ledger.transact("MemberCouncil", "vote", 1 << 200, True)
    assert broadcasts(doors[0]) == []


# Transactions over a change of endpoint.


def test_an_endpoint_that_dies_between_sending_and_receipt_loses_and_doubles_nothing(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors, consortium, key=consortium["compute"].authority_key)
    before = count(ledger)
    died = []

    def die_after_sending(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] == "eth_sendRawTransaction":
            died.append(True)
            doors[0].shut()
            return b""
        return None

    doors[0].after = die_after_sending
    receipt = say(ledger, "/survivor")
    assert died
    assert ledger.endpoint.url == doors[1].url
    assert count(ledger) == before + 1
    assert ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] == "/survivor"


def test_an_endpoint_that_swallows_a_transaction_costs_time_but_no_transaction(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors, consortium, key=consortium["compute"].authority_key)
    before = count(ledger)

    def swallow(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction":
            return None
        answers = [
            {
                "jsonrpc": "2.0",
                "id": call["id"],
                "result": "0x" + transaction_hash(bytes.fromhex(call["params"][0][2:])).hex(),
            }
            for call in calls
        ]
        doors[0].before = lambda calls: None
        threading.Timer(0.3, doors[0].shut).start()
        return json.dumps(answers).encode()

    doors[0].before = swallow
    say(ledger, "/swallowed")
    assert count(ledger) == before + 1
    first, *again = broadcasts(doors[0]) + broadcasts(doors[1])
    assert again, "it was never sent again"
    assert set(again) == {first}, "another transaction than the first was sent"


def test_a_receipt_of_a_block_that_did_not_stay_is_fetched_again(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:1], consortium, key=consortium["compute"].authority_key)
    receipts = []

    def from_another_branch(call: dict[str, Any], result: Any) -> Any:
        if call["method"] != "eth_getTransactionReceipt" or result is None:
            return result
        receipts.append(result)
        return result if len(receipts) > 1 else result | {"blockHash": "0x" + "5a" * 32, "status": "0x0"}

    doors[0].lie = from_another_branch
    receipt = say(ledger, "/branches")
    assert len(receipts) > 1
    assert receipt.block_hash == ledger.endpoint.block(receipt.block_number).hash


def test_a_nonce_gap_that_a_forgetful_endpoint_left_is_filled_with_the_same_bytes(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member = consortium["auditor"]
    ledger = through(doors, consortium, key=member.authority_key, journal=tmp_path / "in-flight")
    before = count(ledger)
    lost = sign_for(ledger, member.authority_key, nonce=before, text="/lost")
    journal = Journal(tmp_path / "in-flight")
    with journal.locked():
        journal.add([InFlight.signed(lost)])  # Signed and written down, but never handed over.
    receipt = say(ledger, "/behind")
    assert count(ledger) == before + 2
    assert ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] == "/behind"
    found = ledger.endpoint.call("eth_getTransactionByHash", "0x" + transaction_hash(lost).hex())
    assert int(found["nonce"], 16) == before


def sign_for(ledger: Ledger, key: bytes, *, nonce: int, text: str, gas_price: int = 0) -> bytes:
    to, data = ledger.call_data("ParticipantRegistry", "setEndpoint", text)
    return sign_transaction(
        PrivateKey(key),
        chain_id=ledger.network.chain_id,
        nonce=nonce,
        gas_price=gas_price,
        gas=300_000,
        to=to,
        data=data,
    )


def test_a_call_that_was_given_up_on_and_is_made_again_is_the_same_transaction(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:1], consortium, key=consortium["auditor"].authority_key, patience=1.0)
    before = count(ledger)
    sent: list[str] = []

    def shut_after_sending(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] == "eth_sendRawTransaction":
            sent.append(calls[0]["params"][0])
            doors[0].shut()
        return None

    doors[0].after = shut_after_sending
    with pytest.raises((LedgerUnreachableError, TransactionLostError)):
        say(ledger, "/twice")
    doors[0].open()
    receipt = say(ledger, "/twice")
    assert receipt.transaction_hash == transaction_hash(bytes.fromhex(sent[0][2:]))
    assert count(ledger) == before + 1
    say(ledger, "/twice")  # Its outcome was handed over: from now on the same call is meant anew.
    assert count(ledger) == before + 2


@pytest.mark.timeout(60)
def test_a_transaction_that_the_chain_refuses_leaves_its_nonce_free(
    consortium: Consortium, tmp_path: Path
) -> None:
    member = consortium["south"]
    path = tmp_path / "journal"
    ledger = Ledger.open(consortium.network, private_key=member.node_key, journal=path)
    before = count(ledger)
    call = ledger.call_data("ParticipantRegistry", "organisations")
    with pytest.raises(LedgerError):
        ledger.transact_many([call] * 150, gas=10**12)
    assert journal_ids(path) == set()
    assert len(ledger.transact_many([call] * 150, gas=100_000)) == 150
    assert count(ledger) == before + 150


CRASHING = """
import os, signal, sys
from pathlib import Path
from usufruct.ledger import Ledger, Network
network, key, journal = sys.argv[1:]
ledger = Ledger.open(Network.load(Path(network)), private_key=bytes.fromhex(key), journal=Path(journal))
sender = ledger._require_sender()
broadcast = sender._endpoint.broadcast
def die(raws):
    if "after" in journal:
        broadcast(raws)
    os.kill(os.getpid(), signal.SIGKILL)
sender._endpoint.broadcast = die
ledger.transact("ParticipantRegistry", "setEndpoint", "/crash")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_killed_around_sending_leaves_one_transaction_however_often_it_is_repeated(
    consortium: Consortium, tmp_path: Path, moment: str
) -> None:
    member = consortium["university"]
    network = tmp_path / "network.json"
    consortium.network.save(network)
    journal = tmp_path / f"killed-{moment}"
    before = count(member.ledger)
    arguments = [str(network), member.authority_key.hex(), str(journal)]
    killed = subprocess.run([sys.executable, "-c", CRASHING, *arguments], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert journal.stat().st_mode & 0o777 == 0o600
    (raw,) = [json.loads(line)["raw"] for line in journal.read_text().splitlines()]
    ledger = Ledger.open(consortium.network, private_key=member.authority_key, journal=journal)
    receipt = say(ledger, "/crash")
    assert receipt.transaction_hash == transaction_hash(bytes.fromhex(raw))
    assert count(ledger) == before + 1


def test_a_transaction_whose_nonce_something_else_took_is_reported_as_replaced(
    consortium: Consortium, tmp_path: Path
) -> None:
    member = consortium["south"]
    rival = Ledger.open(consortium.network, private_key=member.authority_key)
    before = count(rival)
    journal = Journal(tmp_path / "journal")
    never_sent = InFlight.signed(sign_for(rival, member.authority_key, nonce=before, text="/loser"))
    with journal.locked():
        journal.add([never_sent])
    say(rival, "/winner")
    ledger = Ledger.open(consortium.network, private_key=member.authority_key, journal=tmp_path / "journal")
    sender = ledger._require_sender()
    with pytest.raises(TransactionReplacedError, match=f"has nonce {before}"):
        sender.settle([Pending.of(never_sent)])
    assert journal_ids(tmp_path / "journal") == set()


def test_a_receipt_that_is_shown_after_its_nonce_counts_is_waited_for(
    consortium: Consortium, doors: list[Door]
) -> None:
    """A call that is taken for replaced is made again, and was included already."""
    ledger = through(doors[:1], consortium, key=consortium["auditor"].authority_key)
    before, hidden = count(ledger), []

    def hide(call: dict[str, Any], result: Any) -> Any:
        if call["method"] != "eth_getTransactionReceipt" or result is None or used_looks(doors[0]) >= 3:
            return result
        hidden.append(call)
        return None

    doors[0].lie = hide
    receipt = say(ledger, "/late-receipt")
    assert hidden
    assert count(ledger) == before + 1
    assert ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] == "/late-receipt"


def used_looks(door: Door) -> int:
    """How often a wait asked which nonces are used in final blocks."""
    asked = [call["params"][1] for call in door.seen if call["method"] == "eth_getTransactionCount"]
    return asked.count("finalized")


@pytest.mark.parametrize("fault", ["denies", "is silent"])
def test_a_transaction_counts_as_replaced_only_when_every_endpoint_and_two_counts_say_so(
    consortium: Consortium, doors: list[Door], tmp_path: Path, fault: str
) -> None:
    """The first endpoint counts a nonce that was never used, the second denies it or does not answer."""
    member, journal = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:2], consortium, key=member.authority_key, journal=journal, patience=8.0)
    before = count(ledger)

    def swallow(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction":
            return None
        return json.dumps(
            [{"jsonrpc": "2.0", "id": call["id"], "result": "0x" + "00" * 32} for call in calls]
        ).encode()

    def count_too_many(call: dict[str, Any], result: Any) -> Any:
        told = call["method"] == "eth_getTransactionCount" and call["params"][1] == "finalized"
        return hex(before + 1) if told else result

    doors[0].before, doors[0].lie = swallow, count_too_many
    if fault == "is silent":
        doors[1].lie = count_too_many
        doors[1].before = lambda calls: b"" if calls[0]["method"] == "eth_getTransactionReceipt" else None
    with pytest.raises(TransactionLostError):
        say(ledger, "/kept")
    (kept,) = journal_ids(journal)
    doors[0].open()
    doors[1].open()
    assert say(ledger, "/kept").transaction_hash == kept
    assert count(ledger) == before + 1


def test_a_call_made_again_is_not_sent_twice_because_its_receipt_is_shown_late(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member, path = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:1], consortium, key=member.authority_key)
    before = count(ledger)
    raw = sign_for(ledger, member.authority_key, nonce=before, text="/made-again")
    ledger.endpoint.broadcast([raw])
    until(lambda: count(ledger, "finalized") > before)
    journal = Journal(path)
    with journal.locked():
        journal.add([InFlight.signed(raw)])
    journal.release([transaction_hash(raw)])
    again = through(doors[:1], consortium, key=member.authority_key, journal=path)
    hidden: list[bool] = []

    def hide_at_first(call: dict[str, Any], result: Any) -> Any:
        if call["method"] != "eth_getTransactionReceipt" or len(hidden) >= 3:
            return result
        hidden.append(True)
        return None

    doors[0].lie = hide_at_first
    assert say(again, "/made-again").transaction_hash == transaction_hash(raw)
    assert hidden
    assert count(ledger) == before + 1


# Nonces that something made wrong.


def test_a_count_of_transactions_that_cannot_be_leaves_the_account_usable(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member, journal = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:2], consortium, key=member.authority_key, journal=journal)
    ledger.finalised()
    before = count(ledger)

    def boast(call: dict[str, Any], result: Any) -> Any:
        pending = call["method"] == "eth_getTransactionCount" and call["params"][1] == "pending"
        return hex(1_000_000) if pending else result

    doors[0].lie = boast
    say(ledger, "/past-the-boaster")  # Through the other endpoint.
    assert ledger.endpoint.url == doors[1].url
    alone = through(doors[:1], consortium, key=member.authority_key, journal=journal)
    with pytest.raises(MalformedAnswerError, match="counts 1000000 transactions"):
        say(alone, "/boasted")
    assert journal_ids(journal) == set()
    doors[0].open()
    say(alone, "/honest-again")
    assert count(ledger) == before + 2


def test_a_gap_that_a_refusal_left_in_a_batch_is_filled_by_the_next_transaction(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member, path = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:1], consortium, key=member.authority_key, journal=path, patience=5.0)
    before = count(ledger)

    def refuse_the_middle(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction":
            return None
        first, middle, last = calls
        answers = json.loads(doors[0].forward(json.dumps([first, last]).encode()))
        error = {"code": -32000, "message": "txpool is full"}
        return json.dumps([*answers, {"jsonrpc": "2.0", "id": middle["id"], "error": error}]).encode()

    doors[0].before = refuse_the_middle
    calls = [ledger.call_data("ParticipantRegistry", "setEndpoint", f"/gap/{i}") for i in range(3)]
    with pytest.raises(LedgerError, match="txpool is full"):
        ledger.transact_many(calls)
    doors[0].open()
    say(ledger, "/gap/filled")
    assert count(ledger) == before + 3
    say(ledger, "/gap/behind")
    assert count(ledger) == before + 4


def test_what_somebody_waits_for_is_not_dropped_because_another_is_refused_it(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member, path = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:1], consortium, key=member.authority_key, journal=path, patience=20.0)
    before = count(ledger)
    raw = sign_for(ledger, member.authority_key, nonce=before, text="/first")
    journal = Journal(path)
    with journal.locked():
        journal.add([InFlight.signed(raw)])  # Waited for in this process, and not in the endpoint's pool.
    refused: list[bool] = []

    def refuse_it_once(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction" or calls[0]["params"][0][2:] != raw.hex():
            return None
        if refused:
            return None
        refused.append(True)
        error = {"code": -32000, "message": "txpool is full"}
        return json.dumps([{"jsonrpc": "2.0", "id": calls[0]["id"], "error": error}]).encode()

    doors[0].before = refuse_it_once
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(say, ledger, "/second")
        until(lambda: len(journal_ids(path)) == 2)
        assert transaction_hash(raw) in journal_ids(path)
        first = ledger._require_sender().settle([Pending.of(InFlight.signed(raw))])
        second.result()
    assert refused
    assert first[0].transaction_hash == transaction_hash(raw)
    assert count(ledger) == before + 2


def test_what_nobody_waits_for_and_no_endpoint_takes_does_not_hold_up_the_account(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member, path = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:2], consortium, key=member.authority_key, journal=path)
    before = count(ledger)
    to, data = ledger.call_data("ParticipantRegistry", "setEndpoint", "/too-dear")
    never = sign_transaction(
        PrivateKey(member.authority_key),
        chain_id=ledger.network.chain_id,
        nonce=before,
        gas_price=10**9,  # The account holds nothing.
        gas=300_000,
        to=to,
        data=data,
    )
    journal = Journal(path)
    with journal.locked():
        journal.add([InFlight.signed(never)])
    journal.release([transaction_hash(never)])
    say(ledger, "/goes-on")
    assert count(ledger) == before + 1
    assert journal_ids(path) == set()


def test_calls_of_a_batch_whose_sending_failed_are_taken_up_again_and_not_doubled(
    consortium: Consortium, doors: list[Door]
) -> None:
    ledger = through(doors[:1], consortium, key=consortium["auditor"].authority_key, patience=1.0)
    before = count(ledger)
    calls = [ledger.call_data("ParticipantRegistry", "setEndpoint", f"/again/{i}") for i in range(2)]
    told = {"eth_getTransactionReceipt": None, "eth_getTransactionCount": hex(before)}
    doors[0].lie = lambda call, result: told.get(call["method"], result)
    with pytest.raises(TransactionLostError):
        ledger.transact_many(calls[:1])
    doors[0].open()
    doors[0].before = lambda calls: b"" if calls[0]["method"] == "eth_gasPrice" else None
    with pytest.raises(LedgerUnreachableError):
        ledger.transact_many(calls)
    doors[0].open()
    assert len(ledger.transact_many(calls)) == 2
    assert count(ledger) == before + 2


# Prices and numbers that are none.


@pytest.mark.parametrize(
    ("method", "told", "said"),
    [
        ("eth_gasPrice", hex(10**13), "asks 10000000000000 wei"),
        ("eth_gasPrice", hex(1 << 128), "128 bits"),
        ("eth_gasPrice", "-0x1", "128 bits"),
        ("eth_getTransactionCount", "-0x1", "63 bits"),
        ("eth_getTransactionCount", hex(1 << 63), "63 bits"),
        ("eth_estimateGas", "-0x10", "63 bits"),
        ("eth_estimateGas", hex(1 << 2000), "63 bits"),
    ],
)
def test_a_price_or_count_that_cannot_be_is_a_malformed_answer_and_nothing_is_signed(
    consortium: Consortium, doors: list[Door], tmp_path: Path, method: str, told: str, said: str
) -> None:
    member, path = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:1], consortium, key=member.authority_key, journal=path)
    ledger.finalised()
    doors[0].lie = lambda call, result: told if call["method"] == method else result
    with pytest.raises(MalformedAnswerError, match=said):
        say(ledger, "/odd")
    assert broadcasts(doors[0]) == []
    assert journal_ids(path) == set()


def test_an_endpoint_that_asks_too_much_is_left_and_what_waits_is_not_signed_dearer(
    consortium: Consortium, doors: list[Door], tmp_path: Path
) -> None:
    member, path = consortium["auditor"], tmp_path / "journal"
    ledger = through(doors[:2], consortium, key=member.authority_key, journal=path)
    ledger.finalised()
    before = count(ledger)

    def swallow_then_ask(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction":
            return None
        doors[0].before = lambda calls: None
        doors[0].lie = lambda call, result: hex(10**13) if call["method"] == "eth_gasPrice" else result
        ids = [call["id"] for call in calls]
        return json.dumps([{"jsonrpc": "2.0", "id": at, "result": "0x" + "00" * 32} for at in ids]).encode()

    doors[0].before = swallow_then_ask
    say(ledger, "/cheap")
    assert ledger.endpoint.url == doors[1].url
    assert len(set(broadcasts(doors[0]) + broadcasts(doors[1]))) == 1
    assert count(ledger) == before + 1


def journal_ids(path: Path) -> set[bytes]:
    journal = Journal(path)
    with journal.locked():
        return {entry.id for entry in journal.in_flight()}


# Standing still.


def test_a_chain_that_stands_still_shows_within_five_block_intervals_and_goes_on_by_itself(
    tmp_path: Path,
) -> None:
    with running_chain(tmp_path) as url:
        consortium = Consortium(url)
        with door_to(url) as door:
            ledger = through([door], consortium, key=consortium["compute"].authority_key)
            ledger.finalised()
            assert not ledger.health().stalled
            frozen = ledger.endpoint.call("eth_getBlockByNumber", "finalized", False)

            def lie(call: dict[str, Any], result: Any) -> Any:
                if call["method"] == "eth_getBlockByNumber" and call["params"][0] == "finalized":
                    return frozen
                if call["method"] == "eth_getTransactionCount":
                    return "0x0"
                return None if call["method"] == "eth_getTransactionReceipt" else result

            door.lie = lie
            height = int(frozen["number"], 16)
            with pytest.raises(ChainStalledError, match=f"stood still at block {height} since") as caught:
                say(ledger, "/waiting")
            assert caught.value.height == height
            assert ledger.health().stalled_since == caught.value.since
            door.open()
            ledger.finalised()
            assert not ledger.health().stalled
            before = count(ledger)
            say(ledger, "/waiting")
            assert count(ledger) == before, "the call that was given up on was sent twice"


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_a_chain_with_empty_blocks_stands_still_when_none_comes_for_five_intervals() -> None:
    clock = Clock()
    watch = ChainWatch(EMBEDDED, now=clock)
    watch.observed(7)
    clock.at = EMBEDDED.stall_after_s
    watch.observed(7)
    assert watch.stalled_since() is None
    clock.at += 0.1
    watch.observed(7)
    with pytest.raises(ChainStalledError, match="block 7"):
        watch.check()
    watch.observed(8)
    watch.check()


def test_time_in_which_nobody_looked_does_not_count_as_standing_still() -> None:
    clock = Clock()
    watch = ChainWatch(EMBEDDED, now=clock)
    watch.observed(7)
    clock.at = 1000.0
    assert watch.stalled_since() is None
    watch.observed(7)  # The endpoint was away meanwhile, or nobody asked.
    assert watch.stalled_since() is None
    clock.at += EMBEDDED.stall_after_s
    watch.observed(7)
    clock.at += 0.1
    watch.observed(7)
    assert watch.stalled_since() is not None


def test_a_chain_without_empty_blocks_stands_still_only_while_something_waits() -> None:
    profile, clock = PROFILES["subnet-evm"], Clock()
    watch = ChainWatch(profile, now=clock)
    watch.observed(7)
    clock.at = 1000.0
    watch.observed(7)
    assert watch.stalled_since() is None
    watch.sent(b"mine")
    clock.at += profile.stall_after_s
    watch.observed(7)
    assert watch.stalled_since() is None
    clock.at += 0.1
    watch.observed(7)
    assert watch.stalled_since() is not None
    watch.settled(b"mine")
    assert watch.stalled_since() is None
    watch.pooled(3)
    assert watch.waiting == 3
    for _ in range(2):
        clock.at += profile.stall_after_s
        watch.observed(7)
    assert watch.stalled_since() is not None
    watch.pooled(0)
    assert watch.stalled_since() is None


def test_validators_that_do_not_reach_a_quorum_show_a_standstill_although_nothing_waits() -> None:
    profile, clock = PROFILES["subnet-evm"], Clock()
    watch = ChainWatch(profile, now=clock)
    watch.observed(7)

    def tell(reached: bool | None, seconds: float) -> None:
        clock.at += seconds
        watch.observed(7)
        watch.quorum(reached)

    tell(False, 1.0)
    assert watch.stalled_since() is None, "one look says little"
    tell(False, profile.apart_after_s)
    assert clock.at < profile.stall_after_s
    assert watch.stalled_since() is not None
    with pytest.raises(ChainStalledError, match="block 7"):
        watch.check()
    tell(None, 1.0)
    assert watch.stalled_since() is None, "nobody says so any more"
    for _ in range(3):
        tell(False, profile.apart_after_s)
    tell(True, 1.0)
    assert watch.stalled_since() is None
    tell(False, 1.0)
    tell(False, profile.stall_after_s + 1)  # Nobody looked meanwhile.
    assert watch.stalled_since() is None
    tell(False, profile.apart_after_s)
    watch.observed(8)
    assert watch.stalled_since() is None, "a block came"


CHAIN = "0x" + "ab" * 32


@pytest.mark.parametrize(
    ("connected", "stalls"),
    [((0.6, 0.4), True), ((0.6, 0.8), False), ((0.6, None), True), ((None, None), False), (("nonsense", 1), False)],
    ids=["all apart", "one reaches a quorum", "one is silent", "all are silent", "rubbish"],
)  # fmt: skip
def test_an_idle_chain_is_said_to_stand_still_only_by_validators_none_of_whom_reaches_a_quorum(
    consortium: Consortium, doors: list[Door], connected: tuple[Any, ...], stalls: bool
) -> None:
    key = "0x" + Scheme.SkToPk(7).hex()
    pin = FinalityPin(network_id=1, chain=CHAIN, validators=(Validator(key=key, weight=1),))

    def saying(share: Any) -> Callable[[list[dict[str, Any]]], bytes | None]:
        checks = {cb58(bytes.fromhex(CHAIN[2:])): {"message": {"networking": {"percentConnected": share}}}}
        told = {"jsonrpc": "2.0", "id": 0, "result": {"checks": checks if share is not None else {}}}
        return lambda calls: json.dumps(told).encode() if calls[0]["method"] == "health.health" else None

    for door, share in zip(doors, connected, strict=False):
        door.before = saying(share)
    profile = replace(PROFILES["subnet-evm"], block_interval_s=0.2)
    endpoints = Endpoints(
        [door.url for door in doors[:2]],
        profile=profile,
        chain_id=consortium.network.chain_id,
        genesis_hash=consortium.network.genesis_hash,
        census=partial(reaches_quorum, pin),
    )
    frozen = endpoints.call("eth_getBlockByNumber", "finalized", False)
    for door in doors[:2]:
        door.lie = lambda call, result: frozen if call["params"][:1] == ["finalized"] else result
    deadline = time.monotonic() + (20 if stalls else 1.5)
    while not endpoints.health().stalled and time.monotonic() < deadline:
        endpoints.finalised()
        time.sleep(0.05)
    assert endpoints.health().stalled == stalls


# The journal and the signer.


def entry_of(nonce: int, data: bytes = b"\1", price: int = 0) -> InFlight:
    raw = sign_transaction(
        PrivateKey(b"\7" * 32),
        chain_id=5,
        nonce=nonce,
        gas_price=price,
        gas=9,
        to="0x" + "ab" * 20,
        data=data,
    )
    return InFlight.signed(raw)


def test_a_torn_last_line_of_the_journal_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    with journal.locked():
        journal.add([entry_of(1), entry_of(2)])
    whole = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(whole[:-cut])
        assert journal_ids(path) == {entry_of(1).id}
        again = Journal(path)
        with again.locked():
            again.add([entry_of(3)])
        assert journal_ids(path) == {entry_of(1).id, entry_of(3).id}


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b"rubbish", b'{"id": "00", "raw": "c0", "owner": "1.2"}', b'{"done": 5}', b"\xff"]
)
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(line + b"\n")
    with pytest.raises(ConfigurationError, match="not a journal"), Journal(path).locked():
        pass
    assert path.read_bytes() == line + b"\n"


def test_what_another_live_process_waits_for_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    mine = entry_of(1)
    parent = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    for owner, free in (
        (f"{os.getppid()}.{parent}", False),
        (f"{os.getppid()}.0", True),  # The number was used again since.
        ("999999999.7", True),
    ):
        path.write_text(json.dumps({"id": mine.id.hex(), "raw": mine.raws[0].hex(), "owner": owner}) + "\n")
        journal = Journal(path)
        with journal.locked():
            assert journal.is_orphan(mine if free is None else journal.in_flight()[0]) is free
            assert (journal.take_up(mine.call) is not None) is free
            assert journal.take_up(mine.call) is None
        journal.release([mine.id])


def test_a_journal_that_has_grown_begins_anew_with_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usufruct.ledger.journal._COMPACT_ABOVE_BYTES", 1000)
    path = tmp_path / "journal"
    one, other = Journal(path), Journal(path)
    entries = [entry_of(nonce) for nonce in range(10)]
    with one.locked():
        one.add(entries)
    with other.locked():
        assert len(other.in_flight()) == 10
    one.forget([entry.id for entry in entries[:9]])
    assert path.stat().st_size < 1000
    with other.locked():
        assert [entry.id for entry in other.in_flight()] == [entries[9].id]
    one.forget([entries[9].id])
    with other.locked():
        assert other.in_flight() == []
        other.add([entries[0]])
    with one.locked():
        assert [entry.id for entry in one.in_flight()] == [entries[0].id]
    other.release([entries[0].id])


def test_a_journal_with_always_something_in_flight_stays_small_and_other_processes_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usufruct.ledger.journal._COMPACT_ABOVE_BYTES", 20_000)
    monkeypatch.setattr("usufruct.ledger.journal.os.fsync", lambda descriptor: None)
    path = tmp_path / "journal"
    one, other = Journal(path), Journal(path)
    dear = entry_of(0)
    with one.locked():
        one.add([dear])
        one.replace(dear, entry_of(0, price=7).raws[0])
    before = dear
    for nonce in range(1, 3000):
        entry, journal = entry_of(nonce), (one, other)[nonce % 2]
        with journal.locked():
            journal.add([entry])
            assert {dear.id, before.id, entry.id} == {kept.id for kept in journal.in_flight()}
        if before is not dear:
            journal.forget([before.id])
        before = entry
        assert path.stat().st_size < 21_000
    assert journal_ids(path) == {dear.id, before.id}
    with other.locked():
        (kept,) = [entry for entry in other.in_flight() if entry.id == dear.id]
    assert kept.raws == (dear.raws[0], entry_of(0, price=7).raws[0])
    assert path.stat().st_mode & 0o777 == 0o600
    one.release([dear.id, before.id])


@pytest.mark.parametrize("at", ["os.open", "os.fsync", "Path.replace"])
def test_a_journal_that_cannot_be_replaced_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr("usufruct.ledger.journal._COMPACT_ABOVE_BYTES", 1000)
    path = tmp_path / "journal"
    journal, entries = Journal(path), [entry_of(nonce) for nonce in range(10)]
    with journal.locked():
        journal.add(entries)
    true, full = os.open, OSError(28, "No space left on device")

    def refuse(name: Any, *rest: Any, **options: Any) -> int:
        if at != "os.open" or str(name).endswith(".new"):
            raise full
        return true(name, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(f"usufruct.ledger.journal.{at}", refuse)
        journal.forget([entry.id for entry in entries[:9]])
    assert journal_ids(path) == {entries[9].id}
    with journal.locked():
        journal.add([entry_of(11)])
    assert journal_ids(path) == {entries[9].id, entry_of(11).id}
    journal.release([entries[9].id, entry_of(11).id])


def test_what_cannot_be_forgotten_is_waited_for_by_nobody_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever makes the call again in this process never takes it up, and sends it twice."""
    journal, entry = Journal(tmp_path / "journal"), entry_of(1)
    with journal.locked():
        journal.add([entry])

    def fail(*_: object, **__: object) -> None:
        raise ConfigurationError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(ConfigurationError):
        patched.setattr(journal, "_append", fail)
        journal.forget([entry.id])
    with journal.locked():
        assert journal.take_up(entry.call) == entry
    journal.release([entry.id])


def test_a_journal_begun_anew_by_another_process_is_read_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system may give the new file the inode of the old one; neither is what is in flight overlooked nor removed."""
    monkeypatch.setattr("usufruct.ledger.journal._COMPACT_ABOVE_BYTES", 3000)
    path = tmp_path / "journal"
    commands, client = Journal(path), Journal(path)
    nonces = iter(range(1000))

    def sent(journal: Journal, *, told: bool) -> InFlight:
        entry = entry_of(next(nonces))
        with journal.locked():
            journal.add([entry])
        if told:
            journal.forget([entry.id])
        return entry

    sent(commands, told=True)
    with client.locked():
        pass
    while path.exists():
        sent(commands, told=True)
    in_flight = [sent(commands, told=False) for _ in range(3)]
    with client.locked():
        assert [entry.id for entry in client.in_flight()] == [entry.id for entry in in_flight]
    for _ in range(20):
        sent(client, told=True)
    assert journal_ids(path) == {entry.id for entry in in_flight}
    commands.forget([entry.id for entry in in_flight])


@settings(max_examples=60, deadline=None)
@given(
    key=st.integers(1, 2**200).map(lambda i: i.to_bytes(32, "big")),
    chain_id=st.integers(1, 2**53),
    nonce=st.integers(0, 2**40),
    gas_price=st.integers(0, 2**70),
    gas=st.integers(21_000, 2**40),
    to=st.none() | st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex()),
    data=st.binary(max_size=300),
)
def test_the_signer_makes_the_bytes_that_eth_account_makes(
    key: bytes, chain_id: int, nonce: int, gas_price: int, gas: int, to: str | None, data: bytes
) -> None:
    fields: dict[str, Any] = {
        "nonce": nonce,
        "gasPrice": gas_price,
        "gas": gas,
        "value": 0,
        "data": data,
        "chainId": chain_id,
    }
    if to is not None:
        from eth_utils.address import to_checksum_address

        fields["to"] = to_checksum_address(to)
    theirs = bytes(Account.from_key(key).sign_transaction(fields).raw_transaction)
    ours = sign_transaction(
        PrivateKey(key), chain_id=chain_id, nonce=nonce, gas_price=gas_price, gas=gas, to=to, data=data
    )
    assert ours == theirs
