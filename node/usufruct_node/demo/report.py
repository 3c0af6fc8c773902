"""What the demonstration shows: steps as they happen, a table of jobs, the checks, the lineage tree, and all of it as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from usufruct.cli import lineage_tree
from usufruct.lineage import Lineage


@dataclass(slots=True, kw_only=True)
class JobLine:
    """One job of the story."""

    question: str
    bundle: str
    kernel: str
    state: str
    level: str = ""
    truth: str = ""
    released: str = ""
    rho: float = 0.0
    epsilon: float = 0.0
    gas: int = 0
    seconds: float = 0.0
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and whether it did."""

    claim: str
    held: bool
    detail: str


@dataclass(slots=True)
class Report:
    """Collects what happens and prints it."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    steps: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[JobLine] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    lineage: Lineage | None = None

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step while it runs, and how long it took once it is done, or until it failed."""
        begun = time.monotonic()
        try:
            with self.console.status(text):
                yield
        except BaseException:
            failed = f"[red]✗[/red] {text} [dim]failed after {time.monotonic() - begun:.1f} s[/dim]"
            self.console.print(failed, highlight=False)
            raise
        took = time.monotonic() - begun
        self.steps.append({"step": text, "seconds": round(took, 2)})
        self.console.print(f"[green]✓[/green] {text} [dim]{took:.1f} s[/dim]", highlight=False)

    def note(self, text: str) -> None:
        """A finding within a step."""
        self.console.print(f"    [dim]{text}[/dim]", highlight=False)

    def check(self, claim: str, held: bool, detail: str) -> None:
        """Record a check; the demonstration fails when one does not hold."""
        self.checks.append(Check(claim, held, detail))

    @property
    def failed(self) -> list[Check]:
        """Checks that did not hold."""
        return [check for check in self.checks if not check.held]

    def show(self) -> None:
        """Print tables and tree."""
        table = Table(
            title="jobs",
            box=box.SIMPLE,
            caption="truth and released: the mean; of 128 mean features, their norm",
        )
        for column in ("job", "kernel", "verified", "truth", "released", "rho", "gas", "s"):
            table.add_column(
                column, justify="right" if column in ("truth", "released", "rho", "gas", "s") else "left"
            )
        for job in self.jobs:
            table.add_row(
                f"{job.question}, {job.bundle.removeprefix('clinic-')}",
                job.kernel,
                job.level or f"[yellow]{job.state}[/yellow]",
                job.truth,
                job.released,
                f"{job.rho:g}" if job.rho else "",
                f"{job.gas / 1000:,.0f}k",
                f"{job.seconds:.1f}" if job.seconds else "",
            )
        self.console.print(table)
        for check in self.checks:
            mark = "[green]✓[/green]" if check.held else "[red]✗ FAILED[/red]"
            self.console.print(f"{mark} {check.claim} [dim]({check.detail})[/dim]", highlight=False)
        if self.lineage is not None:
            self.console.print(lineage_tree(self.lineage.root))

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        document = {
            "schema": "usufruct-demo/1",
            "seconds": round(time.monotonic() - self.started, 2),
            "steps": self.steps,
            "jobs": [asdict(job) for job in self.jobs],
            "checks": [asdict(check) for check in self.checks],
            "lineage": None if self.lineage is None else self.lineage.to_json(),
        }
        path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
