"""The demonstration's report: what is told of steps."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from usufruct_node.demo.report import Report


def test_a_step_that_fails_says_which_it_was() -> None:
    report = Report(Console(file=io.StringIO(), width=100))
    with report.step("clinics share"):
        pass
    with pytest.raises(ZeroDivisionError), report.step("university posts four jobs"):
        raise ZeroDivisionError
    told = report.console.file.getvalue()  # type: ignore[attr-defined]
    assert "✓ clinics share" in told and "✗ university posts four jobs failed after" in told
    assert [step["step"] for step in report.steps] == ["clinics share"]
