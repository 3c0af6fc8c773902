"""Nonces, finality and faults of the endpoint, on a real chain behind a door that can misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chain_fixture import Consortium, word
from rpc_door import Door, door_to
from usufruct.errors import (
    ConfigurationError,
    LedgerError,
    LedgerUnreachableError,
    TransactionLostError,
    TransactionRevertedError,
    WrongChainError,
    WrongContractCodeError,
)
from usufruct.ledger import Endpoint, Ledger, Network, Sender
from usufruct.ledger.abi import CONTRACTS


@pytest.fixture
def door(chain_url: str) -> Iterator[Door]:
    with door_to(chain_url) as door:
        yield door


def through(door: Door, consortium: Consortium, *, key: bytes, patience: float = 10.0) -> Ledger:
    network = consortium.network.model_copy(update={"rpc_urls": (door.url,)})
    endpoint = Endpoint(door.url, patience=patience)
    return Ledger(network, endpoint, Sender(endpoint, network.chain_id, key))


def nonce_of(ledger: Ledger) -> int:
    return int(ledger.endpoint.call("eth_getTransactionCount", ledger.address, "latest"), 16)


def move(ledger: Ledger, text: str) -> tuple[str | None, bytes]:
    return ledger.call_data("ParticipantRegistry", "setEndpoint", text)


# Nonces.


def test_twenty_threads_on_one_account_lose_no_transaction(consortium: Consortium) -> None:
    ledger = consortium["compute"].ledger
    before = nonce_of(ledger)
    with ThreadPoolExecutor(20) as pool:
        receipts = list(
            pool.map(
                lambda i: ledger.transact("ParticipantRegistry", "setEndpoint", f"/thread/{i}"), range(20)
            )
        )
    assert nonce_of(ledger) == before + 20
    assert len({receipt.transaction_hash for receipt in receipts}) == 20
    said = {ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] for receipt in receipts}
    assert said == {f"/thread/{i}" for i in range(20)}


SHARED = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from usufruct.ledger import Ledger, Network
network, key, lock, who = sys.argv[1:]
ledger = Ledger.open(Network.load(Path(network)), private_key=bytes.fromhex(key), journal=Path(lock))
with ThreadPoolExecutor(4) as pool:
    for _ in pool.map(lambda i: ledger.transact("ParticipantRegistry", "setEndpoint", f"/{who}/{i}"), range(8)):
        pass
"""


def test_two_processes_that_share_an_account_by_its_journal_lose_no_transaction(
    consortium: Consortium, tmp_path: Path
) -> None:
    organisation = consortium["auditor"]
    consortium.network.save(tmp_path / "network.json")
    before, first = nonce_of(organisation.ledger), consortium.reader.finalised().number
    shared = [str(tmp_path / "network.json"), organisation.authority_key.hex(), str(tmp_path / "lock")]
    processes = [subprocess.Popen([sys.executable, "-c", SHARED, *shared, who]) for who in ("one", "two")]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert nonce_of(organisation.ledger) == before + 16
    events = consortium.reader.events(first, consortium.reader.finalised().number)
    said = [e.args["endpoint"] for e in events if e.args.get("id") == organisation.id]
    assert sorted(said) == sorted(f"/{who}/{i}" for who in ("one", "two") for i in range(8))


def test_a_batch_is_carried_out_in_order(consortium: Consortium) -> None:
    ledger = consortium["compute"].ledger
    receipts = ledger.transact_many([move(ledger, f"/batch/{i}") for i in range(12)])
    said = [ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] for receipt in receipts]
    assert said == [f"/batch/{i}" for i in range(12)]
    assert consortium.reader.participant(consortium["compute"].id).endpoint == "/batch/11"
    assert ledger.transact_many([]) == []


@pytest.mark.parametrize("lag", [0, 2])
def test_a_receipt_is_given_only_for_a_finalised_block(consortium: Consortium, door: Door, lag: int) -> None:
    door.lag = lag
    ledger = through(door, consortium, key=consortium["compute"].authority_key)
    receipt = ledger.transact("ParticipantRegistry", "setEndpoint", "/final")
    assert receipt.block_number <= int(ledger.endpoint.call("eth_blockNumber"), 16) - lag
    assert receipt.block_number <= ledger.finalised().number
    assert ledger.endpoint.block(receipt.block_number).hash == receipt.block_hash
    assert receipt.gas_used > 0


# Refusals of contracts.


def test_a_refusal_found_by_simulation_sends_nothing_and_names_its_values(consortium: Consortium) -> None:
    ledger = consortium["university"].ledger
    before, artifact = nonce_of(ledger), word()
    with pytest.raises(TransactionRevertedError) as caught:
        ledger.transact("PrivacyBudget", "setBudget", artifact, 5)
    assert caught.value.name == "ParticipantRegistryMissingRole"
    assert caught.value.values == {"id": consortium["university"].id, "role": 1}
    assert nonce_of(ledger) == before


def test_a_transaction_that_reverts_in_its_block_is_told_apart_and_the_others_of_the_batch_stand(
    consortium: Consortium,
) -> None:
    ledger = consortium["compute"].ledger
    wrong = ledger.call_data("PrivacyBudget", "setBudget", word(), 5)
    before = nonce_of(ledger)
    with pytest.raises(TransactionRevertedError, match="ParticipantRegistryMissingRole"):
        ledger.transact_many([move(ledger, "/first"), wrong, move(ledger, "/last")])
    assert nonce_of(ledger) == before + 3
    assert consortium.reader.participant(consortium["compute"].id).endpoint == "/last"


def test_a_transaction_that_runs_out_of_gas_is_reported(consortium: Consortium) -> None:
    ledger = consortium["compute"].ledger
    with pytest.raises(TransactionRevertedError, match="OutOfGas"):
        ledger.transact_many([move(ledger, "/" + "long/" * 40)], gas=30_000)


def test_of_two_that_race_for_one_key_domain_one_wins_and_the_other_gets_the_typed_reason(
    consortium: Consortium,
) -> None:
    from chain_fixture import PARAMETERS_ID

    key_id = word()

    def register(name: str) -> object:
        try:
            return consortium[name].ledger.transact(
                "KeyRegistry", "registerKeyDomain", key_id, PARAMETERS_ID, word()
            )
        except TransactionRevertedError as exc:
            return (exc.name, exc.values)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(register, ("north", "south")))
    assert ("KeyRegistryAlreadyKnown", {"keyId": key_id}) in outcomes
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) == 1


# Faults of the endpoint.


@pytest.mark.parametrize("mined", [False, True], ids=["still pending", "already mined"])
def test_a_lost_reply_to_a_transaction_neither_loses_nor_repeats_it(
    consortium: Consortium, door: Door, mined: bool
) -> None:
    ledger = through(door, consortium, key=consortium["compute"].authority_key)
    before, lost = nonce_of(ledger), []

    def drop_first_reply(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction" or lost:
            return None
        lost.append(True)
        if mined:
            time.sleep(0.5)
        return b""

    door.after = drop_first_reply
    receipt = ledger.transact("ParticipantRegistry", "setEndpoint", f"/lost/{mined}")
    assert lost
    assert nonce_of(ledger) == before + 1
    assert ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] == f"/lost/{mined}"
    lost.clear()
    assert len(ledger.transact_many([move(ledger, f"/lost/{i}") for i in range(3)])) == 3
    assert nonce_of(ledger) == before + 4


@pytest.mark.parametrize("shown", [True, False], ids=["shown in the end", "never shown"])
def test_a_transaction_whose_nonce_is_used_is_looked_for_again_before_it_counts_as_refused(
    consortium: Consortium, door: Door, shown: bool
) -> None:
    """An engine's pool counts the nonce first, its newest block has it later, and the transaction is found later still: a
    caller told of a refusal would repeat it.
    """
    ledger = through(door, consortium, key=consortium["compute"].authority_key)
    before, sent, hidden = nonce_of(ledger), [], []

    def drop_first_reply(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction":
            return None
        time.sleep(0.5)
        return b""

    def refuse_the_second(calls: list[dict[str, Any]]) -> bytes | None:
        if calls[0]["method"] != "eth_sendRawTransaction":
            return None
        sent.append(calls)
        error = {"code": -32000, "message": f"nonce too low: next nonce {before + 1}, tx nonce {before}"}
        answers = [{"jsonrpc": "2.0", "id": call["id"], "error": error} for call in calls]
        return None if len(sent) == 1 else json.dumps(answers).encode()

    def hide(call: dict[str, Any], result: object) -> object:
        if call["method"] == "eth_getTransactionCount" and call["params"][1] == "latest":
            return hex(before)
        if call["method"] != "eth_getTransactionByHash" or (shown and len(hidden) >= 3):
            return result
        hidden.append(call)
        return None

    door.before, door.after, door.lie = refuse_the_second, drop_first_reply, hide
    if shown:
        ledger.transact("ParticipantRegistry", "setEndpoint", "/used")
        assert len(hidden) == 3
    else:
        with pytest.raises(LedgerError, match="nonce too low"):
            ledger.transact("ParticipantRegistry", "setEndpoint", "/used")
        assert len(hidden) > 3
    door.open()
    assert nonce_of(ledger) == before + 1


def test_an_endpoint_that_comes_back_within_patience_goes_unnoticed(
    consortium: Consortium, door: Door
) -> None:
    ledger = through(door, consortium, key=consortium["compute"].authority_key)
    down_until = time.monotonic() + 0.8
    door.before = lambda calls: b"" if time.monotonic() < down_until else None
    assert ledger.finalised().number > 0
    assert time.monotonic() >= down_until


def test_an_unreachable_chain_is_a_typed_error_within_patience() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        begun = time.monotonic()
        with pytest.raises(LedgerUnreachableError, match="does not answer"):
            Endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}", patience=0.6).finalised()
        assert 0.5 < time.monotonic() - begun < 4


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>gateway</html>",
        b"[]",
        b"null",
        b"{}",
        b'"text"',
        b'{"jsonrpc":"2.0","id":1,"error":"no"}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"limit"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":3,"message":"execution reverted","data":"0xzz"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":3,"message":"execution reverted","data":"0x08c379a0ff"}}',
        b"\xff\xfe",
    ],
)
def test_garbage_from_an_endpoint_is_a_typed_error(door: Door, reply: bytes) -> None:
    door.before = lambda calls: reply
    endpoint = Endpoint(door.url, patience=0.1)
    with pytest.raises(LedgerError):
        endpoint.call("eth_chainId")
    with pytest.raises(LedgerError):
        endpoint.batch([("eth_chainId", ()), ("eth_blockNumber", ())])


def test_a_transaction_that_is_not_final_in_time_is_reported_as_lost(
    consortium: Consortium, door: Door
) -> None:
    door.lag = 1_000_000
    organisation = consortium["compute"]
    sender = Sender(Endpoint(door.url), consortium.network.chain_id, organisation.authority_key, patience=0.5)
    before = nonce_of(organisation.ledger)
    with pytest.raises(TransactionLostError, match="not final") as caught:
        sender.transact(*move(organisation.ledger, "/late"))
    assert "repeat the command before any other" in caught.value.hint
    assert nonce_of(organisation.ledger) == before + 1


# The right chain, the right contracts.


def test_another_chain_id_or_genesis_is_refused(consortium: Consortium) -> None:
    network = consortium.network
    with pytest.raises(WrongChainError, match="serves chain"):
        Ledger.open(network.model_copy(update={"chain_id": network.chain_id + 1}))
    with pytest.raises(WrongChainError, match="genesis"):
        Ledger.open(network.model_copy(update={"genesis_hash": "0x" + "00" * 32}))


def changed(network: Network, **addresses: str) -> Network:
    return network.model_copy(update={"contracts": network.contracts | addresses})


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_network_file_that_names_another_contract_is_refused(consortium: Consortium, name: str) -> None:
    network = consortium.network
    other = network.contracts["KeyRegistry" if name != "KeyRegistry" else "JobLedger"]
    with pytest.raises(WrongContractCodeError, match=name):
        Ledger.open(changed(network, **{name: other}))
    with pytest.raises(WrongContractCodeError, match=name):
        Ledger.open(changed(network, **{name: "0x" + "12" * 20}))


def test_a_contract_with_the_right_code_that_the_address_book_does_not_name_is_refused(
    consortium: Consortium, chain_url: str
) -> None:
    twin = Consortium(chain_url, cast={"north": consortium["north"].record.roles})
    address = twin.network.contracts["KeyRegistry"]
    with pytest.raises(WrongContractCodeError, match="address book"):
        Ledger.open(changed(consortium.network, KeyRegistry=address))
    with pytest.raises(WrongContractCodeError, match="address book"):
        Ledger.open(consortium.network.model_copy(update={"address_book": twin.network.address_book}))
    with pytest.raises(WrongContractCodeError):
        Ledger.open(consortium.network.model_copy(update={"address_book": address}))


def test_a_ledger_for_reading_refuses_to_write(consortium: Consortium) -> None:
    with pytest.raises(ConfigurationError, match="reading only"):
        consortium.reader.transact("ParticipantRegistry", "setEndpoint", "/x")
    assert consortium.reader.organisation_of(consortium["north"].record.account) == consortium["north"].id


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 0},
        {"chain_id": "one"},
        {"genesis_hash": "0x12"},
        {"rpc_urls": []},
        {"address_book": "0x12"},
        {"contracts": {}},
        {"contracts": {"KeyRegistry": "nowhere"}},
        {"deployed_at_block": -1},
        {"surprise": 1},
        {"profile": "mainnet"},
    ],
)
def test_a_malformed_network_file_is_refused(consortium: Consortium, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "network.json"
    consortium.network.save(path)
    assert Network.load(path) == consortium.network
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=r"network\.json"):
        Network.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b"null"])
def test_a_network_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "network.json").write_bytes(content)
    with pytest.raises(ConfigurationError):
        Network.load(tmp_path / "network.json")
    with pytest.raises(ConfigurationError, match="no network file"):
        Network.load(tmp_path / "absent.json")
