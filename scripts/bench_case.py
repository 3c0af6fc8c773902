"""One row of a benchmark: what is timed in turns, and what it is about."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

Timed = dict[str, Callable[[], object]]


def threads() -> int:
    """How many threads ours and the rivals get; the parent process sets it."""
    return int(os.environ["OPENBLAS_NUM_THREADS"])


def clock() -> Callable[[], float]:
    """What seconds are measured by; the parent process sets it."""
    return time.process_time if os.environ.get("USUFRUCT_BENCH_CLOCK") == "cpu" else time.perf_counter


class Case:
    """One row.

    `timed` maps a name to something to call; the first is ours. `scale` says by how much a rival's time is
    multiplied. `facts` are further figures that are counted, not timed.
    """

    def __init__(self, name: str, *, d: int, m: int, n: int, n_bytes: int) -> None:
        self.name, self.d, self.m, self.n, self.n_bytes = name, d, m, n, n_bytes
        self.timed: Timed = {}
        self.scale: dict[str, float] = {}
        self.facts: dict[str, float] = {}
        self.close: Callable[[], object] = lambda: None

    def measure(self, rounds: int) -> dict[str, object]:
        """Warm up ours, note the peak memory, then take turns; figures are medians."""
        first, now = next(iter(self.timed)), clock()
        begun = now()
        self.timed[first]()
        first_s = now() - begun
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        for name, call in self.timed.items():
            if name != first and name not in self.scale:
                call()
        seconds: dict[str, list[float]] = {name: [] for name in self.timed}
        for _ in range(rounds):
            for name, call in self.timed.items():
                begun = now()
                call()
                seconds[name].append(now() - begun)
        self.close()
        median = {name: statistics.median(taken) * self.scale.get(name, 1) for name, taken in seconds.items()}
        ours = median.pop(first)
        return {
            "case": self.name,
            "d": self.d,
            "m": self.m,
            "n": self.n,
            "ours_s": ours,
            "us_per_row_output": 1e6 * ours / (self.n * self.m),
            "rivals": median,
            "sampled": self.scale,
            "first_s": first_s,
            "bytes": self.n_bytes,
            "peak_rss_mb": peak,
            "rounds": rounds,
            **self.facts,
        }
