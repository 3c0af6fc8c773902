"""The demonstration, as a newcomer runs it: real face patches from features to lineage, then the network is taken down."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from organisations import processes_below, run_cli

DENIED = {"DENIED KERNEL_NOT_GRANTED", "DENIED CONSENT_EPOCH_STALE"}


def _walk(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(below for parent in node["parents"] for below in _walk(parent))]


@pytest.mark.timeout(300)
def test_the_main_job_runs_from_features_to_lineage_and_the_kept_network_is_taken_down(
    tmp_path: Path,
) -> None:
    run_the_main_job(tmp_path, chain="embedded", chain_processes={"chain"})


def run_the_main_job(directory: Path, *, chain: str, chain_processes: set[str]) -> None:
    """The demonstration on one kind of chain, what it reports, and that nothing of it stays."""
    place, file = directory / "net", directory / "report.json"
    options = ("--chain", chain, "--dir", str(place), "--json", str(file), "--keep")
    told = run_cli("usufruct_node.demo", *options, seconds=450, COLUMNS="120")
    try:
        assert told.returncode == 0, told.stdout + told.stderr
        assert "the network runs on" in told.stdout
        report = json.loads(file.read_text("utf-8"))
        _check_report(report)

        states = json.loads(
            run_cli("usufruct-node", "devnet", "status", "--dir", str(place), "--json").stdout
        )
        nodes = {"clinic-north", "clinic-south", "university", "compute-1", "auditor"}
        assert {row["process"] for row in states} == nodes | chain_processes
        assert all(row["pid"] for row in states)
        assert {row["health"] for row in states if row["process"] in nodes} == {"ok"}
        jobs = json.loads(
            run_cli("usufruct", "job", "list", "--home", str(place / "auditor"), "--json").stdout
        )
        assert {job["state"] for job in jobs} == {"RELEASED", "DENIED"}
    finally:
        down = run_cli("usufruct-node", "devnet", "down", "--dir", str(place))
    assert down.returncode == 0, down.stderr
    assert processes_below(place) == {}


def _check_report(report: dict[str, Any]) -> None:
    assert set(report) == {"schema", "seconds", "steps", "jobs", "checks", "lineage"}
    assert report["schema"] == "usufruct-demo/1"
    assert report["steps"] and all(step["step"] and step["seconds"] >= 0 for step in report["steps"])

    failed = [check for check in report["checks"] if not check["held"]]
    assert not failed
    claims = " | ".join(check["claim"] for check in report["checks"])
    for claim in (
        "equals plaintext exactly",
        "within the declared noise",
        "withdrawn row is absent",
        "consent was signed and anchored",
        "stale",
    ):
        assert claim in claims

    released = [job for job in report["jobs"] if job["state"] == "RELEASED"]
    denied = [job for job in report["jobs"] if job["state"] != "RELEASED"]
    assert [(job["bundle"], job["kernel"]) for job in released].count(("clinic-north", "linear")) == 2
    assert len(released) == 5 and {job["state"] for job in denied} == DENIED
    for job in released:
        assert "2" in job["level"] or "3" in job["level"]
        assert job["rho"] > 0 and job["epsilon"] > 0 and job["gas"] > 100_000 and job["seconds"] > 0
        assert len(job["job_id"]) == 64
        assert math.isfinite(float(job["truth"])) and math.isfinite(float(job["released"]))
    assert all(job["gas"] > 0 and job["rho"] == 0 for job in denied)

    tree = _walk(report["lineage"]["root"])
    assert [node["kind"] for node in tree] == ["RELEASE", "RESULT", "BUNDLE"]
    steps = [step for node in tree for step in node["steps"]]
    assert len(steps) > 5 and all(step for step in steps)
    assert report["lineage"]["checked"]["events"] > 5 and report["lineage"]["checked"]["contents"] > 3
