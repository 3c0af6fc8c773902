"""A short soak as an operator runs it, and one whose network is tampered with: the first finds nothing, the second must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from organisations import processes_below

from usufruct_node.devnet import Devnet


def soak(folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, figures and what was told meanwhile."""
    network = folder / "net"
    command = [sys.executable, "-m", "usufruct_node.soak", "--json", "--dir", str(network), *words]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=840, check=False)
    finally:
        Devnet(network).down()
    assert ended.stdout, ended.stderr
    assert processes_below(folder) == {}
    return ended.returncode, json.loads(ended.stdout), ended.stderr


@pytest.mark.timeout(900)
def test_a_while_of_random_life_and_faults_break_no_invariant(tmp_path: Path) -> None:
    code, figures, told = soak(tmp_path, "--minutes", "1.5", "--seed", "20261123")
    assert (code, figures["violations"]) == (0, []), told
    assert sum(figures["faults"].values()) > 0
    assert figures["jobs"]["RELEASED"] > 0
    assert all(figures["checks"].values())
    done = {kind for kind, outcomes in figures["actions"].items() if outcomes.get("done")}
    assert {"sum job", "consent", "withdrawal"} <= done


@pytest.mark.timeout(900)
def test_a_soak_finds_a_row_that_somebody_changed_in_an_index(tmp_path: Path) -> None:
    code, figures, _ = soak(tmp_path, "--minutes", "0.1", "--seed", "1", "--sabotage", "policy")
    assert code == 1
    assert any(
        said.startswith("table policy of the index of auditor differs") for said in figures["violations"]
    )
