"""Runs Hardhat's tests and pytest, both even if the first fails, and sums up their counts.

The last line of the output is `N passed, M failed`, with `, K skipped` where some were. The exit code
is 0 only if both runs ended well and something passed in each. Absent: set-up (see `scripts/test`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = (
    "tests/consortium",
    *(
        f"tests/journey/test_{name}.py"
        for name in ("backup", "copies", "crash", "load", "network_faults", "soak")
    ),
)
"""About half of the time, most of it waiting for blocks or processes."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SUMMARY = re.compile(r"^\s*(\d+) (passing|failing|pending|skipped|todo)(?: \([^()]*\))?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """How many tests of a run ended how."""

    passed: int
    failed: int
    skipped: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def held_against_exit_code(counts: Counts, exit_code: int) -> Counts:
    """Count a run that failed without a failing test, or that ran nothing, as one failure."""
    sound = (exit_code == 0) == (counts.failed == 0) and counts.passed + counts.failed > 0
    return counts if sound else Counts(counts.passed, max(counts.failed, 1), counts.skipped)


def count_hardhat(output: str, exit_code: int) -> Counts:
    """Count by Hardhat's closing lines, such as `12 passing (3 solidity, 9 mocha)`."""
    found = {word: int(number) for number, word in _SUMMARY.findall(_ANSI.sub("", output))}
    not_run = found.get("pending", 0) + found.get("skipped", 0) + found.get("todo", 0)
    counts = Counts(found.get("passing", 0), found.get("failing", 0), not_run)
    return held_against_exit_code(counts, exit_code)


def count_pytest(report: Path, exit_code: int) -> Counts:
    """Count a JUnit report; an error in a fixture or at import is a failure."""
    passed = failed = skipped = 0
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314
    except (OSError, ElementTree.ParseError):
        cases = []
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return held_against_exit_code(Counts(passed, failed, skipped), exit_code)


def run_hardhat() -> Counts:
    """Run the contracts' tests, showing their output as it comes."""
    hardhat = ROOT / "node_modules" / ".bin" / "hardhat"
    try:
        output, exit_code = shown([hardhat, "test"])
    except OSError as exc:
        sys.stdout.write(f"hardhat cannot be run: {exc}\n")
        output, exit_code = "", 1
    return count_hardhat(output, exit_code)


def run_pytest(arguments: list[str]) -> Counts:
    """Run pytest with `arguments`; without any, run everything in two processes."""
    if arguments:
        return pytest_process(arguments)
    apart = [f"--ignore={path}" for path in BESIDE]
    with ThreadPoolExecutor(2) as both:
        beside = both.submit(pytest_process, BESIDE, mark="beside | ")
        others = both.submit(pytest_process, apart)
        return beside.result() + others.result()


def pytest_process(arguments: Sequence[str], *, mark: str = "") -> Counts:
    """Run pytest in a process of its own; its output comes as it is, or marked and line by line."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-u", "-m", "pytest", f"--junitxml={report}", *arguments]
        exit_code = (
            shown(command, mark=mark)[1]
            if mark
            else subprocess.run(command, cwd=ROOT, check=False).returncode
        )
        return count_pytest(report, exit_code)


def shown(command: Sequence[str | Path], *, mark: str = "") -> tuple[str, int]:
    """Run a command in the clone, showing each line as it comes; returns the output and the exit code."""
    output: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            sys.stdout.write(mark + line)
            sys.stdout.flush()
            output.append(line)
    return "".join(output), process.returncode


def main() -> int:
    """Run both and return the exit code."""
    contracts = run_hardhat()
    python = run_pytest(sys.argv[1:])
    total = contracts + python
    sys.stdout.write(f"\ncontracts (Hardhat): {contracts}\nsdk, node, journey (pytest): {python}\n{total}\n")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
