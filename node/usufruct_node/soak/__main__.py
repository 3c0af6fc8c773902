"""`scripts/soak`: live on a network at random for a while, break it, and watch that nothing that must hold is broken."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from usufruct.cli import guarded
from usufruct.errors import InputError
from usufruct_node.devnet import chain_kind
from usufruct_node.soak.conductor import SABOTAGE, Conductor
from usufruct_node.soak.faults import Faults
from usufruct_node.soak.report import Report
from usufruct_node.soak.stage import BLOCK_SECONDS, Stage
from usufruct_node.soak.watch import Watcher

_PLAIN_WIDTH = 110


@guarded
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to act; settling comes on top.")] = 2.0,
    chain: Annotated[str, typer.Option(help="embedded, or consortium for five validators.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Draws the actions; the same seed draws the same ones.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")
    ] = False,
    directory: Annotated[Path, typer.Option("--dir", help="Directory of the network; emptied first.")] = Path(
        ".devnet/soak"
    ),
    sabotage: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Publications, consents, withdrawals, jobs, denials, kills and restarts at random; exit code 1 on any violation.

    Ctrl-C ends it early: what was begun is brought to rest, judged and reported.
    """
    if sabotage is not None and sabotage not in SABOTAGE:
        raise InputError(f"no sabotage {sabotage!r}")
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    report = Report(console)
    stage = Stage(directory, chain_kind(chain))
    stage.close()
    shutil.rmtree(directory, ignore_errors=True)
    try:
        stage.open(report.tell)
        watcher = Watcher(stage.net, stage.reader(), report.tell)
        faults = Faults(stage.net, stage.chain, block_interval_s=BLOCK_SECONDS)
        conductor = Conductor(stage, faults, watcher, report)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: conductor.end())
        conductor.run(seed, 60 * minutes, sabotage=sabotage)
    finally:
        stage.close()
    figures = report.figures(watcher, seed=seed, chain=chain, minutes=minutes)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        report.show(figures)
    if watcher.violations:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(soak)
