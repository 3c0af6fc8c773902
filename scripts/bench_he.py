#!/usr/bin/env python3
"""Measure the homomorphic engine beside its rivals and floors, in the same run: `scripts/bench he`.

Each row runs in a process of its own, so that peak memory is that row's. Within a row, ours and every rival take
turns; figures are medians over the rounds, and `first_s` is the first call of all, compilation included. What is too
slow to run in full (a ciphertext per subject, SEAL's evaluator) is run on a sample and scaled up linearly; `sampled`
in the JSON says by how much. Rivals:

plain_blas    numpy's float64 `W @ X` of the same shape, as many threads as ours
memory_read   reading as many bytes as the kernel has to, as many threads as ours
limbs_blas    the same product over residues as float64 BLAS on two limbs (`residues.combine`), one thread
seal_loop     SEAL's evaluator over resident ciphertexts (multiply_plain and add_inplace, or multiply and
              add_inplace), time divided by our threads
seal_encrypt  SEAL's bare encode and encrypt_symmetric, one thread, as ours
naive         a `CKKSVector` per subject and `dot` with plain weights, time divided by our threads
compute       computing what `verify` checks
one_process   the job of `processes` in one worker process instead of two
sha256        hashing the blocks, as many threads as ours
unpack, expand, resident   the parts of `cold`, each alone

`growth` is no case of its own: it is `linear` at 65,536 rows divided by `linear` at 4,096, as the table's last lines
say.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import bench_bfv
import bench_bgv
import numpy as np
from bench_case import Case, threads

from usufruct.he import lanes

N = 4096
Row = dict[str, object]


def cases(quick: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Every row as the name of its maker and that one's arguments."""
    sizes = [N] if quick else [N, 65536]
    widths = (128, 512)
    rows: list[tuple[str, tuple[int, ...]]] = [
        (name, (d, m, n))
        for name in ("linear", "similarity")
        for n in sizes
        for d in widths
        for m in (1, 4, 16, 64, 256)
    ]
    rows += [("blind-similarity", (512, m, N)) for m in (1, 16)]
    rows += [("sum", (d, n)) for n in sizes for d in widths]
    rows += [("moments", (16, n)) for n in sizes]
    rows += [("verify", (512, m)) for m in (16, 64, 256)]
    rows += [("seal", (64, N))]
    rows += [(name, (512,)) for name in ("unpack", "expand", "expand-alone", "expand-cached", "parse")]
    rows += [("cold", (512, m, N)) for m in (1, 64)]
    rows += [("published", (512, 65536))]
    if not quick:
        rows += [("seal", (64, 65536))]
        rows += [("cold", (512, m, 65536)) for m in (1, 64)]
        rows += [("processes", (512, m, 65536)) for m in (1, 64)]
        rows += [("million", (512, m, 1_000_000)) for m in (1, 64)]
    return rows


def measure(name: str, arguments: tuple[int, ...], rounds: int) -> Row:
    """Make and measure one row; runs in a process of its own."""
    makers: dict[str, Callable[..., Case]] = {
        "linear": bench_bfv.linear,
        "similarity": lambda *sizes: bench_bfv.linear(*sizes, name="similarity"),
        "million": bench_bfv.linear,
        "blind-similarity": bench_bgv.blind_similarity,
        "moments": bench_bgv.moments,
        "sum": bench_bfv.aggregate,
        "seal": bench_bfv.seal,
        "verify": bench_bfv.check,
        "published": bench_bfv.published,
    }
    if name in makers:
        return makers[name](*arguments).measure(rounds)
    on_disk: dict[str, Callable[..., Case]] = {"cold": bench_bfv.cold, "processes": bench_bfv.processes}
    with tempfile.TemporaryDirectory() as folder:
        if name in on_disk:
            return on_disk[name](*arguments, Path(folder)).measure(rounds)
        return next(case for case in bench_bfv.parts(*arguments, Path(folder)) if case.name == name).measure(
            rounds
        )


def host() -> Row:
    """The machine, as far as it explains the figures."""
    from threadpoolctl import threadpool_info

    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    blas = [f"{lib['internal_api']} {lib['version']} {lib.get('architecture')}" for lib in threadpool_info()]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads(),
        "clock": os.environ.get("USUFRUCT_BENCH_CLOCK", "wall"),
        "lanes": lanes.vector_lanes(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas,
    }


def growth(rows: list[Row]) -> list[str]:
    """How time and bytes of a case grow from 4,096 to 65,536 rows, where both were measured."""
    sizes = {(row["case"], row["d"], row["m"], row["n"]): row for row in rows}
    lines = []
    for (case, d, m, n), row in sizes.items():
        large = sizes.get((case, d, m, 16 * n)) if isinstance(n, int) else None
        if large is not None:
            times = large["ours_s"] / row["ours_s"]  # type: ignore[operator]
            n_bytes = large["bytes"] / row["bytes"]  # type: ignore[operator]
            lines.append(
                f"growth {case} d={d} m={m}: 16 times the rows, {times:.1f} times the time, {n_bytes:.1f} the bytes"
            )
    return lines


def show(row: Row) -> None:
    """One line of the table."""
    ours, rivals = row["ours_s"], row["rivals"]
    assert isinstance(ours, float) and isinstance(rivals, dict)
    beside = "  ".join(f"{rival} {seconds / ours:.3g}" for rival, seconds in rivals.items())
    print(
        f"{row['case']:16} {row['d']:4} {row['m']:4} {row['n']:8} {1e3 * ours:9.2f} ms "
        f"{row['us_per_row_output']:10.4f}  {beside}  rss {row['peak_rss_mb']:.0f} MB",
        flush=True,
    )


def main() -> int:
    """Measure, print a table, write JSON."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments.add_argument("--quick", action="store_true", help="4096 rows only, fewer rounds")
    arguments.add_argument("--case", action="append", help="only rows of this name; may be repeated")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    arguments.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts this process's time on a processor: for one thread, on a machine that is busy otherwise",
    )
    given = arguments.parse_args()
    os.environ["USUFRUCT_BENCH_CLOCK"] = given.clock
    # Set before a measuring process loads numpy, so that BLAS gets as many threads as ours.
    os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)
    rounds = 3 if given.quick else 7
    rows: list[Row] = []
    print(
        f"{'case':16} {'d':>4} {'m':>4} {'n':>8} {'ours':>12} {'us/row/out':>10}  time as a multiple of ours"
    )
    for name, sizes in cases(given.quick):
        if given.case and name not in given.case:
            continue
        # A process of a multiprocessing.Pool may start none of its own, as `processes` has to.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, name, sizes, rounds).result()
        rows.append(row)
        show(row)
    for line in growth(rows):
        print(line)
    if given.json:
        text = json.dumps({"schema": "usufruct-bench/1", "host": host(), "rows": rows}, indent=1) + "\n"
        given.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
