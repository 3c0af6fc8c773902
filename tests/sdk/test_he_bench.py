"""The benchmark runs, and writes what its readers expect."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_he.py"


def test_benchmark_writes_ratios_to_rivals_measured_in_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", "--json", str(file)]
    subprocess.run([*command, "--case", "unpack", "--case", "seal"], check=True, capture_output=True)
    report = json.loads(file.read_text())
    assert report["schema"] == "usufruct-bench/1"
    assert report["host"]["threads"] == 1 and report["host"]["cpus"] >= 1
    assert [row["case"] for row in report["rows"]] == ["seal", "unpack"]
    for row in report["rows"]:
        assert row["ours_s"] > 0 and row["peak_rss_mb"] > 0 and row["bytes"] > 0
        assert abs(row["us_per_row_output"] - 1e6 * row["ours_s"] / (row["n"] * row["m"])) < 1e-6
        assert row["rivals"] and all(seconds > 0 for seconds in row["rivals"].values())
