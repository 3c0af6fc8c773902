#!/usr/bin/env python3
"""Measure jobs from posting to release on a network of real nodes, all on this machine: `scripts/bench jobs`.

latency         blocks from the one that has the posting to the one that has the release, and what of it is not computing
throughput      jobs released per minute while so many are in flight
gas             per job and step, over every transaction of a job's life; what registration or consent costs is not in it
ledger bytes    transactions and event logs of one job, as the chain keeps them

Computing is what executor and one verifier take for the kernel on their own, measured in the same run; verifiers compute at
the same time, but on as many processors as this machine has, so with many of them on few processors it is not all compute.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "journey")]

import organisations  # noqa: E402
from organisations import LASTING, Consortium  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from usufruct.records import FINAL_JOB_STATES, JobId, JobState, LedgerEvent, Role  # noqa: E402
from usufruct_node.devnet import MEMBERS, ChainKind, Member  # noqa: E402

VERIFIERS = (3, 5, 9)
IN_FLIGHT = (1, 8, 64)
BLOCK_SECONDS = 1.0
TARGET_BLOCKS = 6
"""Block times beyond computing, at one job in flight."""
PATIENT = replace(LASTING, claim=3600, compute=3600, commit=3600, reveal=3600, release=3600)


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench jobs", description="Measure jobs end to end.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--quick", action="store_true", help="three verifiers, one and four jobs in flight")
    parser.add_argument(
        "--chain",
        choices=("embedded", "consortium"),
        default="embedded",
        help="embedded: one process, blocks of one second; consortium: five validators, blocks of two",
    )
    for name, counts in (("verifiers", VERIFIERS), ("in-flight", IN_FLIGHT)):
        shown = ", ".join(map(str, counts))
        parser.add_argument(f"--{name}", type=int, nargs="+", metavar="N", help=f"instead of {shown}")
    given = parser.parse_args()
    if min(given.verifiers or VERIFIERS) < min(VERIFIERS) or min(given.in_flight or IN_FLIGHT) < 1:
        parser.error(
            f"at least {min(VERIFIERS)} verifiers, which every network here has, and one job in flight"
        )
    verifier_counts = given.verifiers or (VERIFIERS[:1] if given.quick else VERIFIERS)
    flights = given.in_flight or ((1, 4) if given.quick else IN_FLIGHT)
    rows: list[dict[str, object]] = []
    for verifiers in verifier_counts:
        with network_of(verifiers, given.chain) as network:
            computing = compute_seconds(network)
            released(network, [network.post()])
            for in_flight in flights:
                rows.append(measure(network, verifiers, in_flight, computing, quick=given.quick))
                sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    show(rows)
    if given.json:
        host = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
        report = {"schema": "usufruct-bench/1", "host": host, "chain": given.chain, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


@contextmanager
def network_of(verifiers: int, chain: ChainKind = "embedded") -> Iterator[Consortium]:
    """Two clinics, a compute node, an auditor, a partner, and as many more verifiers as are wanted."""
    organisations.BLOCK_SECONDS = BLOCK_SECONDS
    more = [Member(f"verifier-{number}", Role.VERIFIER) for number in range(4, verifiers + 1)]
    with tempfile.TemporaryDirectory(prefix="usufruct-bench-") as folder:
        members = (*MEMBERS[:-1], *more, MEMBERS[-1])
        network = Consortium(Path(folder), chain=chain, members=members, timings=PATIENT)
        try:
            yield network
        finally:
            network.close()


def compute_seconds(network: Consortium) -> float:
    """Median time of the kernel alone, by one process of this machine, for executor and verifier after each other."""
    bundle = network.clinics["clinic-north"].bundle
    parameters = network.university.parameters(bundle, "sum")
    taken = [network.university.estimate(bundle, parameters, rho=1.0).seconds for _ in range(3)]
    return 2 * statistics.median(taken)


def measure(
    network: Consortium, verifiers: int, in_flight: int, computing: float, *, quick: bool
) -> dict[str, object]:
    """One row: so many jobs in flight until all of a round are released."""
    rounds = 1 if in_flight > 1 or quick else 5
    begun = time.perf_counter()
    jobs: list[JobId] = []
    for _ in range(rounds):
        # At once: a posting returns when it is final, blocks later.
        with ThreadPoolExecutor(in_flight) as pool:
            posted = list(pool.map(lambda _: network.post(), range(in_flight)))
        released(network, posted)
        jobs += posted
    seconds = time.perf_counter() - begun
    lives = lives_of(network, jobs)
    blocks = [life["blocks"] for life in lives]
    row: dict[str, object] = {
        "verifiers": verifiers,
        "in_flight": in_flight,
        "jobs": len(jobs),
        "jobs_per_minute": 60 * len(jobs) / seconds,
        "latency_blocks": statistics.median(blocks),
        "latency_seconds": statistics.median(life["seconds"] for life in lives),
        "compute_seconds": computing,
        "ledger_bytes": round(statistics.mean(life["bytes"] for life in lives)),
        "gas": round(statistics.mean(life["gas"] for life in lives)),
    }
    if in_flight == 1:
        row["blocks_beyond_compute"] = statistics.median(blocks) - math.floor(computing / BLOCK_SECONDS)
        row["gas_by_step"] = steps_of(lives)
    return row


def released(network: Consortium, jobs: list[JobId]) -> None:
    """Wait until all are over; a job that ends otherwise ends the benchmark."""
    for job in jobs:
        while (state := network.ledger.job(job).state) not in FINAL_JOB_STATES:
            time.sleep(0.1)
        if state != JobState.RELEASED:
            raise RuntimeError(f"job {job.hex()[:12]} ended as {state.name}")


def lives_of(network: Consortium, jobs: list[JobId]) -> list[dict]:
    """Every transaction of each job's life: blocks between posting and release, gas, bytes."""
    ledger, wanted = network.ledger, set(jobs)
    calls: dict[JobId, dict[bytes, str]] = defaultdict(dict)
    at: dict[JobId, dict[str, LedgerEvent]] = defaultdict(dict)
    for event in ledger.events(ledger.network.deployed_at_block, ledger.finalised().number):
        if event.args.get("jobId") in wanted and event.contract == "JobLedger":
            job = event.args["jobId"]
            calls[job].setdefault(event.transaction_hash, event.name)
            at[job][event.name] = event
    lives = []
    for job in jobs:
        gas: Counter[str] = Counter()
        size = 0
        for transaction, step in calls[job].items():
            name = "0x" + transaction.hex()
            receipt = ledger.endpoint.call("eth_getTransactionReceipt", name)
            sent = ledger.endpoint.call("eth_getTransactionByHash", name)
            gas[step] += int(receipt["gasUsed"], 16)
            size += len(sent["input"]) // 2 - 1 + 110  # signature, nonce, gas, addresses
            size += sum(len(log["data"]) // 2 - 1 + 32 * len(log["topics"]) + 20 for log in receipt["logs"])
        begin, end = at[job]["JobPosted"], at[job]["JobReleased"]
        lives.append(
            {
                "blocks": end.block_number - begin.block_number,
                "seconds": end.timestamp - begin.timestamp,
                "gas": sum(gas.values()),
                "bytes": size,
                "steps": dict(gas),
            }
        )
    return lives


def steps_of(lives: list[dict]) -> dict[str, int]:
    """Mean gas of each step over some jobs; a step is named by the first event of its transaction."""
    total: Counter[str] = Counter()
    for life in lives:
        total.update(life["steps"])
    return {step: round(gas / len(lives)) for step, gas in total.items()}


def show(rows: list[dict[str, object]]) -> None:
    """Print a table, and the gas of the steps."""
    names = ("verifiers", "in_flight", "jobs_per_minute", "latency_blocks", "latency_seconds")
    names += ("blocks_beyond_compute", "compute_seconds", "gas", "ledger_bytes")
    table = Table(*names)
    for row in rows:
        values = (row.get(name, "") for name in names)
        table.add_row(*(f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if v != "" else "" for v in values))
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for row in rows:
        for step, gas in row.get("gas_by_step", {}).items():
            console.print(f"{row['verifiers']} verifiers, {step}: {gas:,} gas", highlight=False)
    console.print(
        f"to reach: at most {TARGET_BLOCKS} blocks beyond compute at one job in flight", highlight=False
    )


if __name__ == "__main__":
    sys.exit(main())
