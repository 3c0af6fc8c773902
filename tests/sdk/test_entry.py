"""Both programs end with a line and a code of their own, also where no command is there yet, or no output any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ("usufruct", "usufruct_node")


def run(words: str, *, redirected: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -m {words} {redirected}'
    return subprocess.run(
        ["/bin/sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_a_program_still_loads_leaves_no_traceback(program: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", program, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("numpy.linalg" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=60)
    # Where the interrupt came inside a string that a library executes, Python ends by the signal; to a shell both are 130.
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in shown[1] and not shown[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_disk_behind_the_output_is_one_line(program: str) -> None:
    answer = run(f"{program} --version", redirected=">/dev/full")
    assert answer.returncode == 1
    assert answer.stderr == "the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_closed_output_is_one_line(program: str) -> None:
    answer = run(f"{program} --version", redirected=">&-")
    assert answer.returncode == 1
    assert answer.stderr == "standard output and standard error must be open\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_the_output_s_encoding_has_no_letters_for_is_escaped(program: str) -> None:
    answer = run(f"{program} nö-such", PYTHONIOENCODING="ascii")
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr and r"n\xf6-such" in answer.stderr


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text("def app():\n    raise OSError(5, 'of its own')\n")
    answer = subprocess.run(
        [sys.executable, "-c", "from usufruct.entry import start; start('faulty')"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr and "of its own" in answer.stderr
