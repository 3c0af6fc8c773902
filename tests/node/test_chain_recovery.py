"""The embedded chain loses nothing: killed at any moment, it serves what it served before."""

from __future__ import annotations

import random
import resource
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path

import pytest
import trio
from chain_process import (
    CHAIN_ID,
    ChainProcess,
    account,
    call,
    is_alive,
    post,
    running_chain,
    signed,
    terminate,
    until,
)

from usufruct.errors import LedgerUnreachableError
from usufruct_node.chain import read_endpoint
from usufruct_node.chain.engine import SOCKETS
from usufruct_node.chain.journal import BlockMade, JournalWriter, read_segment
from usufruct_node.chain.producer import Producer
from usufruct_node.chain.settings import ChainSettings, find_anvil
from usufruct_node.chain.store import load_record

NO_ANSWER = (OSError, HTTPException)
FAST = ("--block-interval", "0.1")


class Load:
    """A few senders that repeat each transaction until it is acknowledged, and one reader.

    Keeps what the chain has promised: acknowledged hashes, and every block hash that it has shown.
    """

    def __init__(self, url: str, senders: int = 3, each: int = 4000) -> None:
        self.url = url
        self.acknowledged: set[str] = set()
        self.shown: dict[int, str] = {}
        self.places: dict[str, str] = {}
        self.problems: list[str] = []
        self._over = threading.Event()
        self._signed = [[signed(account(s + 1), nonce) for nonce in range(400)] for s in range(senders)]
        tasks: list[Callable[[], None]] = [
            self._read,
            *(partial(self._send, s, each) for s in range(senders)),
        ]
        self._threads = [threading.Thread(target=self._noting_problems, args=(task,)) for task in tasks]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _noting_problems(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as exc:
            self.problems.append(repr(exc))

    def _send(self, sender: int, each: int) -> None:
        draw = random.Random(sender)
        at = 0
        while not self._over.is_set() and at < each:
            count = draw.randint(1, 8)
            while len(self._signed[sender]) < at + count:
                self._signed[sender].append(signed(account(sender + 1), len(self._signed[sender])))
            part = self._signed[sender][at : at + count]
            body = [
                {"jsonrpc": "2.0", "id": index, "method": "eth_sendRawTransaction", "params": [raw]}
                for index, (raw, _) in enumerate(part)
            ]
            while not self._over.is_set():
                try:
                    status, answers = post(self.url, body)
                except NO_ANSWER:
                    time.sleep(0.02)
                    continue
                for answer, (_, tx_hash) in zip(answers, part, strict=True):
                    if "result" in answer:
                        if answer["result"] != tx_hash:
                            self.problems.append(f"acknowledged {tx_hash} as {answer['result']}")
                        self.acknowledged.add(tx_hash)
                    elif answer["error"]["code"] != -32002:
                        self.problems.append(f"refused {tx_hash}: {answer['error']}")
                if status == 200:
                    at += count
                    break
                time.sleep(0.02)

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                block = call(self.url, "eth_getBlockByNumber", "latest", False)
            except NO_ANSWER:
                continue
            if "hash" in block:
                number = int(block["number"], 16)
                if self.shown.setdefault(number, block["hash"]) != block["hash"]:
                    self.problems.append(f"block {number} changed")
                if number < max(self.shown):
                    self.problems.append(f"the head went back to {number}")
                self.places |= dict.fromkeys(block["transactions"], block["hash"])

    def check(self) -> None:
        """Compare the chain with all that it has promised."""
        assert self.problems == []
        for number, block_hash in self.shown.items():
            assert call(self.url, "eth_getBlockByNumber", hex(number), False)["hash"] == block_hash
        waiting = sorted(self.acknowledged)
        found: dict[str, str] = {}
        for at in range(0, len(waiting), 500):
            part = waiting[at : at + 500]
            receipts = until(lambda part=part: self._receipts(part))
            found |= {receipt["transactionHash"]: receipt["blockHash"] for receipt in receipts}
        assert set(found) == self.acknowledged
        assert {tx_hash: found[tx_hash] for tx_hash in self.places if tx_hash in found} == {
            tx_hash: block_hash for tx_hash, block_hash in self.places.items() if tx_hash in found
        }

    def _receipts(self, hashes: list[str]) -> list[dict[str, str]] | None:
        body = [
            {"jsonrpc": "2.0", "id": index, "method": "eth_getTransactionReceipt", "params": [tx_hash]}
            for index, tx_hash in enumerate(hashes)
        ]
        receipts = [answer.get("result") for answer in post(self.url, body)[1]]
        return receipts if all(receipts) else None


def test_every_acknowledged_transaction_survives_kills_of_the_supervisor_in_its_block(tmp_path: Path) -> None:
    draw = random.Random(20)
    chain = ChainProcess(tmp_path, *FAST, "--checkpoint-every", "40")
    url = chain.wait_ready().url
    load = Load(url)
    try:
        for _ in range(9):
            time.sleep(draw.uniform(0.05, 0.9))
            engines = chain.engine_pids()
            chain.kill()
            until(lambda pids=engines: not any(map(is_alive, pids)))
            chain = ChainProcess(tmp_path, *FAST, "--checkpoint-every", "40")
            assert chain.wait_ready().url == url
        time.sleep(0.5)
    finally:
        load.end()
    try:
        assert len(load.acknowledged) > 200
        load.check()
        assert list(tmp_path.glob("checkpoint-*.json"))
        chain.stop()
        assert not list(tmp_path.glob(SOCKETS)), "a killed process's engine left its socket behind"
    finally:
        chain.kill()


def test_every_acknowledged_transaction_survives_kills_of_anvil_alone(tmp_path: Path) -> None:
    draw = random.Random(21)
    with running_chain(tmp_path, *FAST, "--checkpoint-every", "60") as chain:
        url = chain.wait_ready().url
        load = Load(url, senders=2)
        try:
            for _ in range(5):
                time.sleep(draw.uniform(0.2, 0.8))
                for pid in chain.engine_pids():
                    terminate(pid)
                until(lambda: isinstance(call(url, "eth_blockNumber"), str))
                until(lambda before=max(load.shown): max(load.shown) > before + 9)
            time.sleep(0.3)
        finally:
            load.end()
        assert len(load.acknowledged) > 100
        load.check()


def test_nonces_have_no_gap_after_a_kill(tmp_path: Path) -> None:
    chain = ChainProcess(tmp_path, *FAST)
    url = chain.wait_ready().url
    sender = account(7)
    for nonce in range(25):
        assert call(url, "eth_sendRawTransaction", signed(sender, nonce)[0]) == signed(sender, nonce)[1]
    chain.kill()
    with running_chain(tmp_path, *FAST):
        until(lambda: call(url, "eth_getTransactionCount", sender.address, "latest") == hex(25))


def test_a_waiting_transaction_is_carried_over_a_checkpoint_and_a_kill(tmp_path: Path) -> None:
    first, later = signed(account(8), 0), signed(account(8), 1)
    with running_chain(tmp_path, *FAST) as chain:
        assert call(chain.wait_ready().url, "eth_sendRawTransaction", later[0]) == later[1]
        chain.stop()
    with running_chain(tmp_path, *FAST) as chain:
        chain.kill()
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        call(url, "eth_sendRawTransaction", first[0])
        assert until(lambda: call(url, "eth_getTransactionReceipt", later[1]))["status"] == "0x1"


def test_a_refused_transaction_stays_out_after_a_kill(tmp_path: Path) -> None:
    chain = ChainProcess(tmp_path, *FAST)
    url = chain.wait_ready().url
    poor = signed(account(9), 0, value=1)
    assert "nsufficient funds" in call(url, "eth_sendRawTransaction", poor[0])["message"]
    chain.kill()
    with running_chain(tmp_path, *FAST):
        assert call(url, "eth_getTransactionByHash", poor[1]) is None
        assert call(url, "eth_getTransactionCount", account(9).address, "pending") == "0x0"


def test_a_clean_stop_leaves_a_checkpoint_and_the_same_chain_comes_back(tmp_path: Path) -> None:
    with running_chain(tmp_path, *FAST) as chain:
        endpoint = chain.wait_ready()
        raw, tx_hash = signed(account(1), 0)
        call(endpoint.url, "eth_sendRawTransaction", raw)
        receipt = until(lambda: call(endpoint.url, "eth_getTransactionReceipt", tx_hash))
        assert "checkpoint at block" in chain.stop()
        assert chain.process.returncode == 0
        assert not (tmp_path / "rpc.json").exists()
    with running_chain(tmp_path, *FAST) as chain:
        again = chain.wait_ready()
        assert (again.url, again.genesis_hash) == (endpoint.url, endpoint.genesis_hash)
        assert call(again.url, "eth_getTransactionReceipt", tx_hash) == receipt
        assert call(again.url, "eth_getTransactionCount", account(1).address, "finalized") == "0x1"


def killed_with_content(home: Path) -> Path:
    """Run a chain, put transactions into several blocks, kill it; return its journal."""
    with running_chain(home, *FAST) as chain:
        url = chain.wait_ready().url
        for nonce in range(6):
            raw, tx_hash = signed(account(3), nonce)
            call(url, "eth_sendRawTransaction", raw)
            until(lambda tx_hash=tx_hash: call(url, "eth_getTransactionReceipt", tx_hash))
        chain.kill()
    return home / "journal-00000001.log"


def refusal_to_start(home: Path, *options: str, chain_id: int = CHAIN_ID) -> tuple[int, str]:
    chain = ChainProcess(home, *options, chain_id=chain_id)
    message = chain.ended()
    with pytest.raises(LedgerUnreachableError):
        read_endpoint(home)
    return chain.process.returncode, message


def test_a_torn_end_of_the_journal_is_cut(tmp_path: Path) -> None:
    journal = killed_with_content(tmp_path)
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[-40:])
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        assert call(url, "eth_getTransactionCount", account(3).address, "latest") == "0x6"
        assert journal.read_bytes()[: len(whole)] == whole


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6])
def test_a_tampered_journal_is_refused(tmp_path: Path, place: float) -> None:
    journal = killed_with_content(tmp_path)
    content = bytearray(journal.read_bytes())
    content[int(len(content) * place)] ^= 1
    journal.write_bytes(content)
    code, message = refusal_to_start(tmp_path)
    assert (code, message.startswith("error: ")) == (3, True)
    assert "damaged" in message
    assert journal.read_bytes() == content


def test_a_journal_rewritten_with_sound_checksums_is_refused_by_its_block_hashes(tmp_path: Path) -> None:
    journal = killed_with_content(tmp_path)
    header, records, _ = read_segment(journal, last=True)
    at = next(i for i, r in enumerate(records) if isinstance(r, BlockMade) and r.tx_hashes)
    made = records[at]
    records[at] = BlockMade(made.number, made.timestamp + 1, made.block_hash, made.tx_hashes)
    records[at + 1 :] = [r for r in records[at + 1 :] if not isinstance(r, BlockMade)]
    writer = JournalWriter.create(tmp_path, header, [])
    writer.append(records)
    writer.close()
    code, message = refusal_to_start(tmp_path)
    assert code == 3
    assert f"block {made.number} was {made.block_hash.hex()} when it was served" in message


def test_a_missing_journal_segment_is_refused(tmp_path: Path) -> None:
    killed_with_content(tmp_path).unlink()
    code, message = refusal_to_start(tmp_path)
    assert (code, "lacks a journal segment" in message) == (3, True)


def test_a_journal_without_its_record_is_not_overwritten(tmp_path: Path) -> None:
    journal = killed_with_content(tmp_path)
    before = journal.read_bytes()
    (tmp_path / "chain.json").unlink()
    code, message = refusal_to_start(tmp_path)
    assert (code, "has a journal but no chain.json" in message) == (3, True)
    assert journal.read_bytes() == before


def test_a_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    with running_chain(tmp_path, *FAST) as chain:
        chain.stop()
    state = next(tmp_path.glob("checkpoint-*.json"))
    state.write_bytes(state.read_bytes().replace(b"0", b"1", 1))
    code, message = refusal_to_start(tmp_path)
    assert (code, "has changed since it was written" in message) == (3, True)


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path: Path) -> None:
    killed_with_content(tmp_path)
    (tmp_path / "checkpoint-00000002.json").write_bytes(b'{"block"')
    with running_chain(tmp_path, *FAST) as chain:
        assert call(chain.wait_ready().url, "eth_getTransactionCount", account(3).address, "latest") == "0x6"
        assert not (tmp_path / "checkpoint-00000002.json").exists()


def test_a_crash_between_a_new_segment_and_the_record_of_its_checkpoint_loses_nothing(tmp_path: Path) -> None:
    journal = killed_with_content(tmp_path)
    with running_chain(tmp_path, *FAST) as chain:
        record = (tmp_path / "chain.json").read_bytes()
        with journal.open("rb") as first_segment:
            chain.stop()
            journal.write_bytes(first_segment.read())
        (tmp_path / "chain.json").write_bytes(record)
    assert (tmp_path / "journal-00000002.log").exists()
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        assert call(url, "eth_getTransactionCount", account(3).address, "latest") == "0x6"
        raw, tx_hash = signed(account(3), 6)
        assert call(url, "eth_sendRawTransaction", raw) == tx_hash
        chain.kill()
    with running_chain(tmp_path, *FAST):
        assert until(lambda: call(url, "eth_getTransactionReceipt", tx_hash))["status"] == "0x1"


def test_a_chain_goes_on_where_no_second_engine_can_be_started_to_try_a_checkpoint(tmp_path: Path) -> None:
    home, anvil, no_room, tries = (tmp_path / name for name in ("home", "anvil", "no-room", "tries"))
    home.mkdir(mode=0o700)
    no_room.touch()
    anvil.write_text(
        f"""#!/bin/sh
case "$*" in *--load-state*)
    echo >> {tries}
    if [ -e {no_room} ]; then exit 1; fi ;;
esac
exec {find_anvil()} "$@"
"""
    )
    anvil.chmod(0o700)
    settings = ChainSettings(
        home=home, chain_id=CHAIN_ID, block_interval_s=0.02, idle_interval_s=0.02, checkpoint_every=10
    )
    producer = Producer(settings, anvil)

    async def height(least: int) -> None:
        while producer._head.number < least:
            await trio.sleep(0.02)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(producer.run)
            with trio.fail_after(60):
                await height(85)
                assert len(tries.read_text().splitlines()) == 3, "after 10, 20 and 40 more blocks"
                no_room.unlink()
                while (record := load_record(home)) is None or record.checkpoint is None:
                    await trio.sleep(0.02)
                await height(record.checkpoint.number + 5)
            producer.stop()

    trio.run(scenario)


def test_a_checkpoint_that_cannot_be_written_leaves_the_journal_in_force(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "checkpoint-00000002.json").mkdir()
    with running_chain(tmp_path / "home", *FAST) as chain:
        url = chain.wait_ready().url
        raw, tx_hash = signed(account(6), 0)
        call(url, "eth_sendRawTransaction", raw)
        until(lambda: call(url, "eth_getTransactionReceipt", tx_hash))
        assert "no checkpoint at block" in chain.stop()
        assert not (tmp_path / "home" / "journal-00000002.log").exists()
    (tmp_path / "home" / "checkpoint-00000002.json").rmdir()
    with running_chain(tmp_path / "home", *FAST):
        assert call(url, "eth_getTransactionReceipt", tx_hash)["status"] == "0x1"


def test_another_chain_id_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    killed_with_content(tmp_path)
    code, message = refusal_to_start(tmp_path, chain_id=CHAIN_ID + 1)
    assert (code, "holds chain 4242, not chain 4243" in message) == (2, True)


def test_a_second_supervisor_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        second = ChainProcess(tmp_path)
        assert "another chain process runs on" in second.ended()
        assert second.process.returncode == 2
        assert call(url, "eth_chainId") == hex(CHAIN_ID)
        assert chain.wait_ready().url == url


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, message = refusal_to_start(tmp_path, "--port", str(port))
    assert (code, f"port {port} on 127.0.0.1 cannot be had" in message) == (2, True)
    assert "choose another port" in message


def test_a_missing_anvil_is_named_before_anything_is_made(tmp_path: Path) -> None:
    code, message = refusal_to_start(tmp_path / "home", "--anvil", str(tmp_path / "absent"))
    assert (code, "Anvil is not at" in message, (tmp_path / "home").exists()) == (2, True, False)


def test_a_full_disk_refuses_transactions_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        first = signed(account(4), 0)
        assert call(url, "eth_sendRawTransaction", first[0]) == first[1]
        until(lambda: call(url, "eth_getTransactionReceipt", first[1]))
        full = (tmp_path / "journal-00000001.log").stat().st_size
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(chain.process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        second = signed(account(4), 1)
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [second[0]]}
        status, answer = until(lambda: (found := post(url, body))[0] == 503 and found)
        assert (status, answer["error"]["code"]) == (503, -32002)
        resource.prlimit(chain.process.pid, resource.RLIMIT_FSIZE, unlimited)
        until(lambda: call(url, "eth_sendRawTransaction", second[0]) == second[1])
        until(lambda: call(url, "eth_getTransactionReceipt", second[1]))
        assert call(url, "eth_getTransactionReceipt", first[1])["status"] == "0x1"


def test_a_block_made_past_the_door_is_not_kept(tmp_path: Path) -> None:
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        raw, tx_hash = signed(account(5), 0)
        head = int(call(url, "eth_blockNumber"), 16)
        call(chain.engine_url(), "eth_sendRawTransaction", raw)
        until(lambda: isinstance(now := call(url, "eth_blockNumber"), str) and int(now, 16) > head + 3)
        assert call(url, "eth_getTransactionReceipt", tx_hash) is None


def test_block_times_follow_the_clock_and_never_go_back(tmp_path: Path) -> None:
    with running_chain(tmp_path, *FAST) as chain:
        url = chain.wait_ready().url
        until(lambda: int(call(url, "eth_blockNumber"), 16) >= 15)
        head = int(call(url, "eth_blockNumber"), 16)
        now = time.time()
        times = [
            int(call(url, "eth_getBlockByNumber", hex(n), False)["timestamp"], 16) for n in range(head + 1)
        ]
    assert times == sorted(times)
    assert abs(times[-1] - now) < 2.5
