"""Validators live, die, come back, come and go; the chain keeps its word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from eth_account import Account

from usufruct.errors import ChainEngineError
from usufruct_node.validators import SCRIPT
from validators_fixture import ACCOUNTS, KEYS, RefusedError, TestValidators, founders_genesis

STRANGER = b"\x77" * 32


def processes(directory: Path) -> list[int]:
    """Processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(directory) + b"/") for word in words):
            found.append(int(entry.parent.name))
    return found


def votes(validators: TestValidators) -> dict[int, int]:
    return {v.number: v.weight for v in validators.describe().validators}


def platform_heights(validators: TestValidators) -> set[int]:
    asked = {"jsonrpc": "2.0", "id": 1, "method": "platform.getHeight", "params": {}}
    urls = json.loads(validators.command("status", "--json"))["platform_urls"]
    return {int(httpx.post(url, json=asked, timeout=10).json()["result"]["height"]) for url in urls}


def test_every_validator_shows_the_same_block(validators: TestValidators) -> None:
    receipt = validators.pay(1)
    for number in validators.numbers():
        seen = validators.wait_mined(number, receipt["transactionHash"])
        assert seen["blockHash"] == receipt["blockHash"]


def test_account_that_is_not_listed_is_refused_by_every_validator(validators: TestValidators) -> None:
    stranger = Account.from_key(STRANGER).address
    raw = validators.sign(1, KEYS[2], to=stranger, value=10**12)
    validators.wait_mined(
        1, validators.broadcast(1, raw)
    )  # a member may pay anybody: funds alone admit nobody
    for number in validators.numbers():
        attack = validators.sign(number, STRANGER, to=ACCOUNTS[0])
        with pytest.raises(RefusedError, match="non-allow listed address"):
            validators.broadcast(number, attack)


def test_debugging_and_administration_are_not_offered(validators: TestValidators) -> None:
    assert validators.call(1, "eth_getProof", ACCOUNTS[0], [], "latest")
    for method in ("debug_traceBlockByNumber", "admin_peers", "personal_listAccounts"):
        with pytest.raises(RefusedError, match="does not exist"):
            validators.call(1, method)


def test_nobody_else_may_read_what_the_validators_write(validators: TestValidators) -> None:
    files = [path for path in validators.directory.rglob("*") if path.is_file()]
    keys = [path for path in files if path.name in ("flags.json", "config.json", "usufruct.json")]
    assert len(keys) >= 11
    assert [path for path in files if path.stat().st_mode & 0o077] == [validators.directory / "genesis.json"]


def test_nothing_listens_beyond_loopback(validators: TestValidators) -> None:
    inodes = set()
    for pid in (v.pid for v in validators.describe().validators):
        # The plugin runs in the validator's session.
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                session = int(stat.read_text().rsplit(")", 1)[1].split()[3])
                links = [link.readlink() for link in (stat.parent / "fd").iterdir()] if session == pid else []
            except OSError:
                continue
            inodes |= {str(link)[8:-1] for link in links if str(link).startswith("socket:[")}
    listening = []
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    assert len(listening) >= 10  # an interface and a peer port each, at least
    assert set(listening) <= {
        "0100007F",
        "00000000000000000000000001000000",
        "0000000000000000FFFF00000100007F",
    }


def test_chain_goes_on_without_one_validator(validators: TestValidators) -> None:
    validators.kill(2)
    first, second = validators.pay(1), validators.pay(3)
    validators.restart(2)
    assert validators.wait_mined(2, first["transactionHash"])["blockHash"] == first["blockHash"]
    assert validators.wait_mined(2, second["transactionHash"])["blockHash"] == second["blockHash"]


def test_chain_stops_without_two_validators_and_takes_up_what_was_pending(validators: TestValidators) -> None:
    validators.pay(1)
    before = validators.height(1)
    validators.kill(2)
    validators.kill(3)
    pending = validators.broadcast(1, validators.sign(1, KEYS[2], to=ACCOUNTS[4], value=7))
    time.sleep(10)
    assert validators.mined(1, pending) is None
    assert {validators.height(number) for number in (1, 4, 5)} == {before}
    validators.restart(2)
    validators.restart(3)
    receipt = validators.wait_mined(1, pending)
    assert {validators.wait_mined(n, pending)["blockHash"] for n in (2, 3, 4, 5)} == {receipt["blockHash"]}


def test_nothing_is_lost_when_all_five_are_killed_at_once(validators: TestValidators) -> None:
    receipt = validators.pay(5, value=11)
    urls = [validators.url(number) for number in validators.numbers()]
    for validator in validators.describe().validators:
        os.killpg(validator.pid, signal.SIGKILL)
    validators.command("up")
    assert [validators.url(number) for number in validators.numbers()] == urls
    for number in validators.numbers():
        assert validators.wait_mined(number, receipt["transactionHash"])["blockHash"] == receipt["blockHash"]
    validators.pay(1)


def test_validator_that_lost_its_disk_is_rebuilt_from_its_peers(validators: TestValidators) -> None:
    receipt = validators.pay(1)
    before = {v.number: v.bls_public_key for v in validators.describe().validators}
    validators.command("rebuild", "4")
    assert validators.wait_mined(4, receipt["transactionHash"])["blockHash"] == receipt["blockHash"]
    assert {v.number: v.bls_public_key for v in validators.describe().validators} == before
    validators.pay(4)


def test_validator_is_added_votes_and_is_removed(validators: TestValidators) -> None:
    receipt = validators.pay(1)
    validators.command("add")
    assert votes(validators)[6] == votes(validators)[1] > 0
    assert validators.wait_mined(6, receipt["transactionHash"])["blockHash"] == receipt["blockHash"]
    validators.pay(6)
    gone = next(v for v in validators.describe().validators if v.number == 6)
    validators.command("remove", "6")
    assert sorted(votes(validators)) == [1, 2, 3, 4, 5]
    assert gone.pid not in processes(validators.directory)
    validators.pay(1)


def test_validator_rotates_its_keys_and_keeps_its_vote(validators: TestValidators) -> None:
    before = {v.number: v for v in validators.describe().validators}
    validators.command("rotate", "3")
    after = {v.number: v for v in validators.describe().validators}
    assert after[3].bls_public_key != before[3].bls_public_key
    assert after[3].weight == before[3].weight
    assert len(platform_heights(validators)) == 1  # nobody is left with a set of validators that is no more
    assert all(after[n].bls_public_key == before[n].bls_public_key for n in (1, 2, 4, 5))
    receipt = validators.pay(3)
    validators.kill(1)  # with four, the new identity's vote decides
    validators.wait_mined(2, receipt["transactionHash"])
    validators.pay(2)


def test_engine_is_upgraded_one_validator_at_a_time(validators: TestValidators) -> None:
    subprocess.run(
        [SCRIPT, "build", "--name", "test-next", "--stamp", "test-next"], check=True, capture_output=True
    )
    for number in (1, 2):
        shown = validators.command("upgrade", str(number), "--to", "test-next", "--json")
        engines = {v["number"]: v["engine"] for v in json.loads(shown)["validators"]}
        assert [n for n in sorted(engines) if "test-next" in engines[n]] == list(range(1, number + 1))
        validators.pay(5)


def test_unknown_validator_or_build_is_named_and_nothing_stops(validators: TestValidators) -> None:
    before = validators.running()
    with pytest.raises(ChainEngineError, match="there is no validator 9"):
        validators.command("kill", "9")
    with pytest.raises(ChainEngineError, match="there is no such build"):
        validators.command("upgrade", "1", "--to", "nonsense")
    with pytest.raises(ChainEngineError, match="holds a network already"):
        validators.command("up", "--genesis", str(validators.directory / "genesis.json"))
    assert validators.running() == before


def test_down_cleans_up_after_a_launcher_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "genesis.json"
    file.write_text(json.dumps(founders_genesis()), "utf-8")
    words = [str(SCRIPT), "up", "--directory", str(tmp_path), "--genesis", str(file)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as launcher:
        deadline = time.monotonic() + 60
        while not (tmp_path / "network" / "validator-1" / "process.json").exists():
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        launcher.kill()
    assert processes(tmp_path)
    TestValidators(tmp_path).command("down")
    assert processes(tmp_path) == []
