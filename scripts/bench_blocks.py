#!/usr/bin/env python3
"""Measure blocks on the disk and between peers, each beside its floor in the same run: `scripts/bench blocks`.

publish           blocks into a new store; floor: each hashed, written and synced on its own
local_read        blocks out of the store, hashed; floor: files read and hashed
fetch             from one and from three holders, checked and thrown away, or kept; floor: bytes over one raw stream
bitswap           the same by Bitswap, between two of ours and from libp2p's own host to its own client
fetch_from_kubo   the same from a Kubo daemon
kubo              from one Kubo daemon to another, which keeps them as fetch_into_store does; where there is a Kubo
many              two hundred members at once, all of them in one process; an error ends the benchmark

Every process is new, so that its peak memory is its own. CPU seconds are those of the measured process and of its servers.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

SCRIPTS = Path(__file__).resolve().parent
PATHS = [str(SCRIPTS), *(str(SCRIPTS.parent / folder) for folder in ("tests", "tests/node"))]
sys.path[:0] = PATHS

from blocks_bench.data import fill  # noqa: E402
from blocks_bench.memory import peak_mb  # noqa: E402

from kubo_fixture import ipfs_program  # noqa: E402

CASES = {
    # name: (what is measured, kind of server, number of servers, floor)
    "hash_and_fsync": ("hash_and_fsync", None, 0, None),
    "publish": ("publish", None, 0, "hash_and_fsync"),
    "read_and_hash": ("read_and_hash", None, 0, None),
    "local_read": ("local_read", None, 0, "read_and_hash"),
    "raw": ("raw", "ours", 1, None),
    "fetch": ("fetch", "ours", 1, "raw"),
    "fetch_3_holders": ("fetch", "ours", 3, "raw"),
    "fetch_into_store": ("fetch_into_store", "ours", 1, "raw"),
    "bitswap": ("fetch", "bitswap", 1, "raw"),
    "bitswap_stock": ("stock_bitswap", "stock", 1, "raw"),
    "fetch_from_kubo": ("fetch", "kubo", 1, "raw"),
    "kubo": ("kubo", "kubo", 1, "raw"),
    "many": ("many", "ours", 1, "raw"),
}
TARGETS = {"publish": 0.8, "fetch": 0.9, "fetch_3_holders": 0.9}
MAX_RSS_MB = 150
SIZES = (100, 1000)


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench blocks", description="Measure blocks and peers.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--quick", action="store_true", help="100 MB only")
    parser.add_argument("--case", action="append", choices=CASES, help="only this; may be repeated")
    parser.add_argument("--dir", type=Path, help="where the blocks are put; default: a temporary directory")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for megabytes in SIZES[:1] if given.quick else SIZES:
        with tempfile.TemporaryDirectory(prefix="usufruct-bench-", dir=given.dir) as folder:
            fill(Path(folder), megabytes)
            rows += measure(Path(folder), megabytes, given.case)
    show(rows)
    if given.json:
        report = {"schema": "usufruct-bench/1", "host": host(), "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


def measure(directory: Path, megabytes: int, only: list[str] | None) -> list[dict[str, object]]:
    """Rows of one size."""
    rows: list[dict[str, object]] = []
    speed: dict[str, float] = {}
    wanted = dict.fromkeys(only or CASES)
    for name, (what, kind, n_servers, floor) in CASES.items():
        if name not in wanted and name not in {CASES[one][3] for one in wanted}:
            continue
        if kind == "stock" and megabytes > SIZES[0]:
            continue  # It keeps everything in memory, at both ends.
        if kind == "kubo" and ipfs_program() is None:
            sys.stderr.write(
                f"{name} is left out: no `ipfs` on the PATH, and `scripts/kubo build` was not run\n"
            )
            continue
        row = {"case": name, "mb": megabytes} | run(what, kind, n_servers, directory, megabytes)
        speed[name] = float(str(row["mb_per_s"]))
        if floor is not None:
            row |= {"floor": floor, "ratio": speed[name] / speed[floor]}
        rows.append(row)
        sys.stderr.write(f"{json.dumps(row)}\n")
    return rows


def run(what: str, kind: str | None, n_servers: int, directory: Path, megabytes: int) -> dict[str, object]:
    """One case in processes of its own."""
    arguments = [str(directory), str(megabytes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    with ExitStack() as stack:
        servers = []
        for number in range(n_servers):
            server = subprocess.Popen(
                [sys.executable, "-m", "blocks_bench.serve", str(kind), str(number + 1), *arguments],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.enter_context(server)
            # And not killed: a Kubo daemon ends with the process that owns it.
            stack.callback(server.terminate)
            servers.append(server)
        addresses = [server.stdout.readline().strip() for server in servers if server.stdout]
        watched = [psutil.Process(server.pid) for server in servers]
        watched += [child for one in watched for child in one.children()]
        before = sum(sum(one.cpu_times()[:2]) for one in watched)
        done = subprocess.run(
            [sys.executable, "-m", "blocks_bench.measure", what, *arguments, *addresses],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            check=True,
        )
        row: dict[str, object] = json.loads(done.stdout)
        if watched:
            row["servers_cpu_s"] = sum(sum(one.cpu_times()[:2]) for one in watched) - before
            row["servers_peak_rss_mb"] = max(peak_mb(one.pid) for one in watched)
    return row


def show(rows: list[dict[str, object]]) -> None:
    """Print a table."""
    table = Table(
        "case", "MB", "MB/s", "CPU s", "of servers", "peak MB", "of a server", "floor", "ratio", "target"
    )
    for row in rows:
        figures = (
            row["mb_per_s"],
            row["cpu_s"],
            row.get("servers_cpu_s"),
            row["peak_rss_mb"],
            row.get("servers_peak_rss_mb"),
        )
        told = [f"{figure:,.1f}" if isinstance(figure, float) else "" for figure in figures]
        ratio = row.get("ratio")
        name = str(row["case"])
        table.add_row(
            name,
            str(row["mb"]),
            *told,
            str(row.get("floor", "")),
            f"{ratio:.2f}" if isinstance(ratio, float) else "",
            str(TARGETS.get(name, "")),
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(
        f"peak memory is to stay under {MAX_RSS_MB} MB at any size, where many fetch at the server's; Bitswap is to be twice"
        " the stock one"
    )


def host() -> dict[str, object]:
    """What the figures were measured on."""
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}


if __name__ == "__main__":
    sys.exit(main())
