"""`scripts/demo`: start a network, run the main job on real face patches, show what came of it, stop the network."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from usufruct.cli import guarded
from usufruct_node.demo.report import Report
from usufruct_node.demo.story import Story
from usufruct_node.devnet import Devnet, chain_kind

_PLAIN_WIDTH = 110


@guarded
def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave the network running and say what to try next.")] = False,
    chain: Annotated[
        str, typer.Option(help="embedded: one process; consortium: five validators, needs Go.")
    ] = "embedded",
    directory: Annotated[Path, typer.Option("--dir", help="Directory of the network; emptied first.")] = Path(
        ".devnet/demo"
    ),
) -> None:
    """Run the main job: two clinics share encrypted face features, a university computes on them, an auditor checks."""
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    report = Report(console)
    net, kind = Devnet(directory), chain_kind(chain)
    net.down()
    shutil.rmtree(directory, ignore_errors=True)
    succeeded = False
    try:
        ground = "one chain process" if kind == "embedded" else "five validators"
        with report.step(f"starting {ground} and five nodes, each with its own keys and data"):
            net.up(chain=kind)
        Story(net, report).tell()
        report.show()
        if json_file is not None:
            report.write(json_file)
        succeeded = not report.failed
    finally:
        if not (keep and succeeded):
            net.down()
    took = time.monotonic() - report.started
    if not succeeded:
        console.print(f"[red]{len(report.failed)} of {len(report.checks)} checks failed[/red]")
        raise typer.Exit(1)
    console.print(f"all {len(report.checks)} checks held; {took:.0f} s")
    if keep:
        _next_steps(console, directory)


def _next_steps(console: Console, directory: Path) -> None:
    console.print("the network runs on; try:")
    for command in (
        f".venv/bin/usufruct-node devnet status --dir {directory}",
        f".venv/bin/usufruct bundles --home {directory}/university",
        f".venv/bin/usufruct denials --home {directory}/auditor",
        f".venv/bin/usufruct job list --home {directory}/auditor",
        f".venv/bin/usufruct-node devnet down --dir {directory}",
    ):
        console.print(f"  {command}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(demo)
