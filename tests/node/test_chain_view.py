"""A node says when the chain below it stands still, which endpoint it uses, and goes on by itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from chain_fixture import Consortium, until
from node_fixture import api_of, found_home, running_node
from usufruct.errors import ChainStalledError
from usufruct.ledger import Head, Ledger
from usufruct.ledger.profile import PROFILES
from usufruct_node.chain_clock import ChainClock
from usufruct_node.chain_view import ChainView
from usufruct_node.devnet import Devnet
from usufruct_node.doctor import examine

NOBODY = "http://127.0.0.1:9/"


def head(number: int, timestamp: int) -> Head:
    return Head(number, bytes(32), timestamp)


def test_between_blocks_that_come_only_on_demand_chain_time_goes_on(tmp_path: Path) -> None:
    at = [100.0]
    clock = ChainClock(PROFILES["subnet-evm"], tmp_path / "node.db", stopwatch=lambda: at[0])
    assert clock.now(None) == 0
    assert clock.now(head(7, 1_000)) == 1_000
    at[0] = 130.9
    assert clock.now(head(7, 1_000)) == 1_030
    assert clock.now(head(8, 1_020)) == 1_020
    at[0] = 131.9
    assert clock.now(head(8, 1_020)) == 1_021


def test_a_node_that_is_started_again_does_not_fall_back_to_the_newest_block(tmp_path: Path) -> None:
    at, file = [100.0], tmp_path / "node.db"
    last, profile = head(7, 1_000), PROFILES["subnet-evm"]
    clock = ChainClock(profile, file, stopwatch=lambda: at[0])
    for at[0] in (100.0, 130.0, 161.0, 190.0):
        clock.now(last)
    clock.close()
    at[0] = 5.0
    again = ChainClock(profile, file, stopwatch=lambda: at[0])
    assert again.now(last) == 1_061, "of the last minute at most nothing is known"
    at[0] = 15.0
    assert again.now(last) == 1_071
    other = Head(8, b"\1" * 32, 1_020)
    assert again.now(other) == 1_020
    again.close()
    third = ChainClock(profile, file, stopwatch=lambda: at[0])
    assert third.now(other) == 1_020, "what passed after another block does not count"
    third.close()


def test_a_full_or_broken_disk_does_not_stop_the_clock(tmp_path: Path) -> None:
    at = [100.0]
    clock = ChainClock(PROFILES["subnet-evm"], tmp_path / "node.db", stopwatch=lambda: at[0])
    clock.now(head(7, 1_000))
    clock._db.execute("PRAGMA query_only = 1")
    at[0] = 200.0
    assert clock.now(head(7, 1_000)) == 1_100
    clock._db.execute("PRAGMA query_only = 0")
    clock._db.execute("DROP TABLE clock")
    assert clock.now(head(8, 1_200)) == 1_200
    at[0] = 300.0
    assert clock.now(head(8, 1_200)) == 1_300


def test_where_blocks_come_anyway_chain_time_is_that_of_the_newest_block(tmp_path: Path) -> None:
    at = [100.0]
    clock = ChainClock(PROFILES["embedded"], tmp_path / "node.db", stopwatch=lambda: at[0])
    clock.now(head(7, 1_000))
    at[0] = 5_000.0
    assert clock.now(head(7, 1_000)) == 1_000


def test_a_chain_found_to_stand_still_does_so_until_a_block_comes_whoever_gives_up_waiting(
    consortium: Consortium,
) -> None:
    ledger = Ledger.open(consortium.network)
    height, view = ledger.finalised().number, ChainView(ledger)
    assert view.state() == "ok"
    view.stood_still(ChainStalledError(height, 1_000.0))
    assert view.state() == f"the chain stands still at block {height} since 1970-01-01T00:16:40+00:00"
    assert view.to_dict()["stalled_since"] == "1970-01-01T00:16:40+00:00"
    until(lambda: ledger.finalised().number > height)
    assert view.state() == "ok" and view.to_dict()["stalled_since"] is None


def test_a_chain_that_stands_still_or_hangs_shows_in_health_status_and_metrics_and_work_resumes(
    tmp_path: Path,
) -> None:
    net = Devnet(tmp_path / "chain")
    net.root.mkdir()
    url = net.start_chain(block_interval_s=0.1).url
    try:
        home = found_home(tmp_path / "north", url)
        (home.root / "node.toml").write_text(f'rpc_urls = ["{NOBODY}", "{url}"]\nledger_patience_s = 2.0\n')
        with running_node(home), api_of(home) as api:

            def ledger() -> str:
                return str(api.get("/health").json()["ledger"])

            until(lambda: ledger() == "ok")
            assert "usufruct_chain_ok 1.0" in api.get("/metrics").text
            chain = api.get("/status").json()["chain"]
            assert [(e["url"], e["in_use"]) for e in chain["endpoints"]] == [(NOBODY, False), (url, True)]
            assert NOBODY in chain["endpoints"][0]["refused"] and chain["endpoints"][1]["refused"] is None
            assert chain["state"] == "ok" and chain["profile"] == "embedded"
            assert all(finding.ok for finding in examine(home, home.node_passphrase.read_text()))

            pid = net.running()["chain"]
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                until(lambda: ledger() != "ok", wait_s=40)
                assert api.get("/health").status_code == 503
                assert "usufruct_chain_ok 0.0" in api.get("/metrics").text
            finally:
                os.kill(pid, signal.SIGCONT)
            until(lambda: ledger() == "ok", wait_s=40)

            net.stop("chain", how=signal.SIGKILL)
            until(lambda: ledger() != "ok", wait_s=40)
            assert api.get("/status").json()["chain"]["state"] == ledger()
    finally:
        net.down()
