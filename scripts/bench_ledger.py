#!/usr/bin/env python3
"""Measure the ledger's client and index beside the chain asked as barely as can be: `scripts/bench ledger`.

transactions    signed transactions per second until all are final, through the library (signing and journal included), beside
                batches that were signed beforehand and are posted with nothing around them
latency         one transaction: to its receipt, and until its block is final
index           events per second out of the chain's own logs into a new index
finality proof  fetching and verifying the validators' signature of a block (chains that have such proofs)
rebuild         a new index out of a million events: a recorded job, copied with ids and rolling hashes of its own; beside it
                the floor: the same logs read, parsed and put into one bare table, nothing decoded, checked or derived
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from ledger_bench import chains, history  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from usufruct.ledger import Endpoint, Ledger  # noqa: E402
from usufruct_node.index import Index, catch_up  # noqa: E402

CHAINS = ("embedded", "consortium")
TARGETS = {"ratio": 0.8, "events_per_s": 50_000, "fetch_verify_worst_s": 1.0}


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench ledger", description="Measure the ledger's client and index."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--chain", choices=(*CHAINS, "both"), default="both", help="consortium needs Go")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: to see that it runs")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    rows = []
    for chain in CHAINS if given.chain == "both" else (given.chain,):
        rows += measure(chain, share)
    rows.append(rebuild(1_000_000 // share))
    show(rows)
    if given.json:
        report = {"schema": "usufruct-bench/1", "host": host(), "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


def measure(chain: str, share: int) -> list[dict[str, object]]:
    """Rows of one chain, all on the same network."""
    with chains.network_on(chain) as net:
        steps = [
            lambda: chains.latency(net, count=max(20 // share, 3)),
            lambda: chains.transactions(net, count=2_000 // share, rounds=1 if share > 1 else 3),
            lambda: chains.live_index(net),
        ]
        if net.network.finality is not None:
            steps.append(lambda: chains.finality(net, count=max(20 // share, 3)))
        rows = []
        for step in steps:
            rows.append({"chain": chain} | step())
            sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    return rows


def rebuild(n_events: int) -> dict[str, object]:
    """One row: a new index out of so many events, served over loopback by another process."""
    with tempfile.TemporaryDirectory(prefix="usufruct-bench-") as folder:
        with chains.network_on("embedded") as net:
            job = history.release_job(net)
            past = history.History(Path(folder, "history.json"), net.network.contracts, net.events(), job)
        past.write(n_events)
        network = net.network.model_copy(update={"deployed_at_block": past.first_block})
        with history.served(past) as url, closing(Index(Path(folder, "index.db"))) as index:
            begun = time.perf_counter()
            catch_up(index, Ledger(network, Endpoint(url)))
            took = time.perf_counter() - begun
            if index.event_count() != past.n_events:
                raise RuntimeError(f"{index.event_count()} of {past.n_events} events are in the index")
            floor = history.bare_copy(url, past, Path(folder, "bare.db"))
    size = past.n_events
    return {
        "chain": "recorded",
        "name": "rebuild",
        "events": size,
        "seconds": took,
        "events_per_s": size / took,
        "floor_events_per_s": size / floor,
        "share_of_floor": floor / took,
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print a table: one line per figure."""
    table = Table("chain", "measured", "figure", "value", "target")
    for row in rows:
        for figure, value in row.items():
            if isinstance(value, float):
                target = TARGETS.get(figure)
                table.add_row(
                    str(row["chain"]),
                    str(row["name"]),
                    figure,
                    f"{value:,.3f}",
                    "" if target is None else f"{target:,}",
                )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def host() -> dict[str, object]:
    """What the figures were measured on."""
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main())
