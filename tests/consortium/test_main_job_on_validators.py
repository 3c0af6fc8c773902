"""The demonstration on five validators: the same story, the same checks as on the embedded chain."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_main_job import run_the_main_job


@pytest.mark.timeout(500)
def test_the_main_job_runs_on_five_validators_from_features_to_lineage(tmp_path: Path) -> None:
    run_the_main_job(tmp_path, chain="consortium", chain_processes={f"validator-{n}" for n in range(1, 6)})
