"""`scripts/consortium` before anything is built: what it says when it cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "consortium"


@pytest.fixture
def path_without_go(tmp_path: Path) -> str:
    """A PATH with what the script needs, and nothing else."""
    for name in ("bash", "env", "readlink", "dirname"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    (tmp_path / "python3.11").symlink_to(sys.executable)
    return str(tmp_path)


def consortium(*words: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *words], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


def test_build_without_go_says_so_in_one_line(path_without_go: str) -> None:
    answer = consortium("build", path=path_without_go)
    assert answer.returncode == 2
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("missing: Go 1.24.9 or newer")


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".hidden", "", "x" * 65, "-x"])
def test_build_refuses_a_name_that_could_lead_elsewhere(name: str) -> None:
    answer = consortium("build", f"--name={name}")
    assert answer.returncode == 2
    assert "letters, digits" in answer.stderr
