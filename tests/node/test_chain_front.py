"""The chain's door: what it lets through, what it refuses, and how it says so."""

from __future__ import annotations

import http.client
import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chain_process import CHAIN_ID, account, call, post, running_chain, signed, terminate, until
from eth_hash.auto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ConfigurationError, LedgerUnreachableError
from usufruct_node.chain import ChainSettings, read_endpoint
from usufruct_node.chain.front import MAX_BATCH_CALLS, MAX_BODY_BYTES

MALFORMED = "a transaction is exactly one RLP list with the fields of its type"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_chain(tmp_path_factory.mktemp("chain"), "--block-interval", "0.1") as chain:
        yield chain


@pytest.fixture(scope="module")
def url(chain: Any) -> str:
    return chain.wait_ready().url


def rpc(method: str, *params: object, call_id: object = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}


@pytest.mark.parametrize(
    "method",
    [
        "anvil_dumpState",
        "anvil_setBalance",
        "anvil_impersonateAccount",
        "evm_mine",
        "evm_setNextBlockTimestamp",
        "hardhat_setCode",
        "debug_traceTransaction",
        "txpool_content",
        "eth_sendTransaction",
        "eth_sign",
        "eth_newFilter",
        "eth_subscribe",
        "personal_unlockAccount",
        "ETH_CHAINID",
        "",
    ],
)
def test_a_method_that_is_not_on_the_list_is_refused(url: str, method: str) -> None:
    status, answer = post(url, rpc(method))
    assert (status, answer["error"]["code"], answer["id"]) == (200, -32601, 1)


def test_the_refused_method_has_no_effect_inside_a_batch_either(url: str) -> None:
    address = account(1).address
    batch = [rpc("anvil_setBalance", address, "0x64"), rpc("eth_getBalance", address, "latest", call_id="b")]
    answers = post(url, batch)[1]
    assert [answer["id"] for answer in answers] == [1, "b"]
    assert answers[0]["error"]["code"] == -32601
    assert answers[1]["result"] == "0x0"


def test_a_batch_is_answered_in_order_with_the_callers_ids(url: str) -> None:
    raw, tx_hash = signed(account(11), 0)
    batch = [
        rpc("eth_chainId", call_id="same"),
        rpc("eth_sendRawTransaction", raw, call_id="same"),
        "nonsense",
    ]
    batch += [rpc("eth_maxPriorityFeePerGas", call_id=None)]
    status, answers = post(url, batch)
    assert status == 200
    assert [answer["id"] for answer in answers] == ["same", "same", None, None]
    assert [answer.get("result") for answer in answers] == [hex(CHAIN_ID), tx_hash, None, "0x0"]
    assert answers[2]["error"]["code"] == -32600


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b'{"a":' * 100_000, -32700),
        (b"[]," * 1_000_000, -32700),
        (b"[" * 33 + b"]" * 33, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[NaN]}', -32700),
        (b"[]", -32600),
        (b"1", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":[],"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":["eth_chainId"]}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":"x"}', -32600),
    ],
)
def test_a_malformed_request_is_refused(url: str, body: bytes, code: int) -> None:
    assert post(url, body)[1]["error"]["code"] == code


@pytest.mark.parametrize(
    "value", [b"1e400", b"-1e400", b"9" * 400, rb'"\ud800"', rb'{"\udfff":1}', b'"\xed\xa0\x80"', b'"\xff"']
)
@pytest.mark.parametrize("form", [b"%b", b"[%b]"], ids=["alone", "in a batch"])
def test_what_no_json_parser_but_pythons_takes_is_refused(url: str, form: bytes, value: bytes) -> None:
    for call_id, params in ((b"1", value), (value, b"")):
        body = b'{"jsonrpc":"2.0","id":%b,"method":"eth_chainId","params":[%b]}' % (call_id, params)
        status, answer = post(url, form % body)
        assert (status, answer["error"]["code"]) == (200, -32700)


def test_large_numbers_and_escaped_characters_are_taken(url: str) -> None:
    body = rb'{"jsonrpc":"2.0","id":"\ud83d\ude00","method":"eth_chainId","params":[]}'
    assert post(url, body)[1] == {"jsonrpc": "2.0", "id": "\U0001f600", "result": hex(CHAIN_ID)}
    assert post(url, [rpc("eth_chainId", 1e300), rpc("eth_chainId", 1 << 256)])[0] == 200


def test_a_batch_that_is_too_long_is_refused(url: str) -> None:
    answer = post(url, [rpc("eth_chainId")] * (MAX_BATCH_CALLS + 1))[1]
    assert answer["error"]["code"] == -32600


def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(url: str) -> None:
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=20)
    try:
        connection.request("POST", "/", b" " * (MAX_BODY_BYTES + 1), {"content-type": "application/json"})
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()
    assert call(url, "eth_chainId") == hex(CHAIN_ID)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "example.org"}, 403),
        ({"host": "127.0.0.1.example.org:80"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"host": "localhost"}, 200),
    ],
)
def test_web_pages_and_foreign_hosts_are_turned_away(url: str, headers: dict[str, str], status: int) -> None:
    assert post(url, rpc("eth_chainId"), **headers)[0] == status


def test_only_post_is_answered(url: str) -> None:
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=10)
    connection.request("GET", "/")
    assert connection.getresponse().status == 405
    connection.close()


@pytest.mark.parametrize(
    "raw",
    [
        "0x",
        "0x0",
        "0xzz",
        "00",
        "0x00",
        "0xc0",
        "0x02",
        "0x02c0",
        "0x03" + "c0",
        "0x04" + "c0",
        "0xf8",
        "0xf800",
        "0x" + "ff" * 40,
        "0x 02",
        "0x" + "c1" * 200_000,
        7,
        None,
    ],
)
def test_a_malformed_transaction_is_refused_and_nothing_is_journaled(url: str, raw: object) -> None:
    answer = post(url, rpc("eth_sendRawTransaction", raw))[1]
    assert answer["error"]["code"] in (-32602, -32003)


def test_bytes_behind_a_transaction_are_refused_because_its_hash_would_differ(url: str) -> None:
    raw, tx_hash = signed(account(12), 0)
    for changed in (raw + "00", raw + raw[2:]):
        answer = post(url, rpc("eth_sendRawTransaction", changed))[1]
        assert answer["error"] == {"code": -32602, "message": MALFORMED}
    assert call(url, "eth_getTransactionByHash", tx_hash) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gasPrice": 0, "accessList": [], "type": 1},
        {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0, "type": 2},
    ],
)
def test_signature_replay_from_another_chain_is_refused(url: str, fields: dict[str, object]) -> None:
    base = {"nonce": 0, "to": account(1).address, "value": 0, "gas": 40_000}
    for chain_id, taken in ((CHAIN_ID + 1, False), (CHAIN_ID, True)):
        made = account(13).sign_transaction({**(fields or {"gasPrice": 0}), **base, "chainId": chain_id})
        answer = post(url, rpc("eth_sendRawTransaction", "0x" + bytes(made.raw_transaction).hex()))[1]
        if taken and fields.get("type", 0) == 0:
            assert answer["result"] == "0x" + bytes(made.hash).hex()
        elif not taken:
            assert answer["error"]["message"] == f"the transaction is not signed for chain {CHAIN_ID}"


def test_a_legacy_transaction_that_names_no_chain_is_refused(url: str) -> None:
    fields = {"nonce": 0, "to": account(1).address, "value": 0, "gas": 40_000, "gasPrice": 0}
    raw = bytes(account(17).sign_transaction(fields).raw_transaction)
    answer = post(url, rpc("eth_sendRawTransaction", "0x" + raw.hex()))[1]
    assert answer["error"]["code"] == -32003


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_transaction_is_refused_or_keeps_its_own_hash(url: str, data: st.DataObject) -> None:
    raw = bytearray.fromhex(signed(account(18), 0)[0][2:])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    answer = post(url, rpc("eth_sendRawTransaction", "0x" + raw.hex()))[1]
    if "result" in answer:
        assert answer["result"] == "0x" + keccak(bytes(raw)).hex()
    else:
        assert answer["error"]["code"] in (-32602, -32003, -32000)


def test_an_eip_1559_transaction_without_any_balance_is_mined_and_becomes_final(url: str) -> None:
    made = account(14).sign_transaction(
        {
            "nonce": 0,
            "to": account(1).address,
            "value": 0,
            "gas": 21_000,
            "maxFeePerGas": 0,
            "maxPriorityFeePerGas": int(call(url, "eth_maxPriorityFeePerGas"), 16),
            "chainId": CHAIN_ID,
        }
    )
    tx_hash = call(url, "eth_sendRawTransaction", "0x" + bytes(made.raw_transaction).hex())
    receipt = until(lambda: call(url, "eth_getTransactionReceipt", tx_hash))
    assert receipt["status"] == "0x1"
    final = call(url, "eth_getBlockByNumber", "finalized", False)
    assert int(final["number"], 16) >= int(receipt["blockNumber"], 16)


def test_the_same_transaction_is_acknowledged_again_while_waiting_and_when_mined(url: str) -> None:
    raw, tx_hash = signed(account(15), 0)
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: call(url, "eth_sendRawTransaction", raw), range(12))) == {tx_hash}
    until(lambda: call(url, "eth_getTransactionReceipt", tx_hash))
    assert call(url, "eth_sendRawTransaction", raw) == tx_hash
    assert call(url, "eth_getTransactionCount", account(15).address, "pending") == "0x1"


def test_a_transaction_whose_nonce_is_used_is_refused_with_the_engines_words(url: str) -> None:
    first, second = signed(account(16), 0), signed(account(16), 0, gas=30_000)
    call(url, "eth_sendRawTransaction", first[0])
    until(lambda: call(url, "eth_getTransactionReceipt", first[1]))
    error = post(url, rpc("eth_sendRawTransaction", second[0]))[1]["error"]
    assert (error["code"], error["message"]) == (-32003, "nonce too low")


def test_while_anvil_is_replaced_the_answer_is_503_and_then_the_chain_goes_on(
    tmp_path: Path,
) -> None:
    with running_chain(tmp_path, "--block-interval", "0.1") as chain:
        url = chain.wait_ready().url
        head = call(url, "eth_blockNumber")
        block = call(url, "eth_getBlockByNumber", head, False)
        statuses = []
        for _ in range(3):
            terminate(chain.engine_pids()[0])
            status, answer = post(url, rpc("eth_blockNumber"))
            statuses.append(status)
            assert status == 200 or answer["error"]["code"] == -32002
            until(lambda: post(url, rpc("eth_blockNumber"))[0] == 200)
            if 503 in statuses:
                break
        assert 503 in statuses
        assert call(url, "eth_getBlockByNumber", head, False)["hash"] == block["hash"]


def test_the_endpoint_file_names_a_running_process_and_is_private(chain: Any, url: str) -> None:
    path = chain.home / "rpc.json"
    fields = json.loads(path.read_text())
    genesis = call(url, "eth_getBlockByNumber", "0x0", False)["hash"]
    assert fields == {
        "url": url,
        "chain_id": CHAIN_ID,
        "pid": chain.process.pid,
        "genesis_hash": genesis,
    }
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in chain.home.iterdir()}
    assert not {name: oct(mode) for name, mode in modes.items() if mode & 0o077}
    assert read_endpoint(chain.home).genesis_hash == genesis


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"url":1,"chain_id":1,"pid":1,"genesis_hash":""}',
        b'{"url":"http://127.0.0.1:1","chain_id":1,"pid":99999999,"genesis_hash":"0x00"}',
    ],
)
def test_an_endpoint_file_that_leads_nowhere_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rpc.json").write_bytes(content)
    with pytest.raises(LedgerUnreachableError):
        read_endpoint(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chain_id": 0},
        {"chain_id": 2**53},
        {"port": 65536},
        {"port": -1},
        {"block_interval_s": 0.0},
        {"block_interval_s": 3.0, "idle_interval_s": 2.0},
        {"checkpoint_every": 0},
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ChainSettings(**{"home": tmp_path, "chain_id": 1, **wrong})
