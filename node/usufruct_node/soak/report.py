"""What a soak shows: a line per fault, trouble and violation as they come, tables at the end, and all of it as JSON."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from usufruct_node.soak.plan import Action
from usufruct_node.soak.watch import Watcher


class Report:
    """Counts actions by what became of them. Thread-safe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begun = time.monotonic()
        self.outcomes: dict[str, Counter[str]] = {}
        self.faults: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def tell(self, text: str) -> None:
        """Print a line with the time since the start."""
        self.console.print(f"[{time.monotonic() - self.begun:7.1f} s] {text}", markup=False, highlight=False)

    def struck(self, action: Action) -> None:
        """A process was broken and brought back."""
        with self._lock:
            self.faults[f"{action.kind} {action.on}"] += 1
        self.tell(f"{action.number:5d} {action.kind} {action.on}, away for {action.outage_s:.1f} s")

    def done(self, action: Action, outcome: str, reason: str = "") -> None:
        """An action came to an end; `reason` says why it was not done."""
        with self._lock:
            self.outcomes.setdefault(action.kind, Counter())[outcome] += 1
            if reason:
                self.reasons[reason] += 1
        if reason:
            self.tell(f"{action.number:5d} {action.kind} on {action.on}: {reason}")

    def figures(self, watcher: Watcher, *, seed: int, chain: str, minutes: float) -> dict[str, Any]:
        """Everything as plain data."""
        memory = [
            {
                "process": name,
                "pid": pid,
                "seconds": round(s[-1][0] - s[0][0]),
                "rss_first": s[0][1],
                "rss_last": s[-1][1],
            }
            for (name, pid), s in watcher.memory.items()
        ]
        return {
            "seed": seed,
            "chain": chain,
            "minutes": minutes,
            "seconds": round(time.monotonic() - self.begun, 1),
            "actions": {kind: dict(counts) for kind, counts in sorted(self.outcomes.items())},
            "faults": dict(sorted(self.faults.items())),
            "not_done_because": dict(self.reasons.most_common()),
            "events": len(watcher.books.events),
            "jobs": dict(watcher.books.ends),
            "checks": dict(watcher.checks),
            "memory": memory,
            "violations": watcher.violations,
        }

    def show(self, figures: dict[str, Any]) -> None:
        """Print the tables."""
        actions = Table("action", "done", "not done", box=box.SIMPLE)
        for kind, counts in figures["actions"].items():
            actions.add_row(kind, str(counts.get("done", 0)), str(counts.get("not done", 0)))
        for fault, count in figures["faults"].items():
            actions.add_row(fault, str(count), "")
        self.console.print(actions)
        checks = Table("checked", "times", box=box.SIMPLE)
        for what, count in figures["checks"].items():
            checks.add_row(what, str(count))
        self.console.print(checks)
        memory = Table("process", "lived", "MiB at first", "MiB at last", box=box.SIMPLE)
        for line in sorted(figures["memory"], key=lambda line: -line["seconds"])[:10]:
            sizes = (f"{line[key] / 2**20:.0f}" for key in ("rss_first", "rss_last"))
            memory.add_row(f"{line['process']} ({line['pid']})", f"{line['seconds']} s", *sizes)
        self.console.print(memory)
        jobs = ", ".join(f"{count} {how}" for how, count in sorted(figures["jobs"].items())) or "none"
        self.console.print(f"{figures['events']} events; jobs: {jobs}", markup=False)
        for violation in figures["violations"]:
            self.console.print(f"VIOLATION: {violation}", style="red", markup=False)
        told = f"{len(figures['violations'])} violations" if figures["violations"] else "no violation"
        self.console.print(f"{told} in {figures['seconds']:.0f} s; seed {figures['seed']}", markup=False)
