"""The benchmark runs, and writes what its readers expect."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_benchmark_writes_ratios_to_rivals_measured_in_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPTS / "bench_he.py"), "--quick", "--threads", "1", "--json", str(file)]
    chosen = ["unpack", "expand-cached", "verify", "published", "seal"]
    for name in chosen:
        command += ["--case", name]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads(file.read_text())
    assert report["schema"] == "usufruct-bench/1"
    assert report["host"]["threads"] == 1 and report["host"]["cpus"] >= 1
    assert sorted({row["case"] for row in report["rows"]}) == sorted(chosen)
    for row in report["rows"]:
        assert row["ours_s"] > 0 and row["peak_rss_mb"] > 0 and row["bytes"] > 0 and row["rounds"] == 3
        assert abs(row["us_per_row_output"] - 1e6 * row["ours_s"] / (row["n"] * row["m"])) < 1e-6
        assert row["rivals"] and all(seconds > 0 for seconds in row["rivals"].values())
        assert set(row["sampled"]) <= set(row["rivals"])


def test_a_published_bundle_of_65536_rows_and_512_features_costs_at_most_6_9_bytes_per_value(
    tmp_path: Path,
) -> None:
    """Counted, not timed: every block and the manifest as it is published."""
    file = tmp_path / "bench.json"
    command = [
        sys.executable,
        str(SCRIPTS / "bench_he.py"),
        "--quick",
        "--case",
        "published",
        "--json",
        str(file),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["d"], row["n"]) == (512, 65536)
    assert 6.75 < row["bytes_per_value"] <= 6.9


def test_every_case_of_the_benchmark_can_be_made() -> None:
    """The list of rows names makers that exist, and covers what the documentation says."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import bench_he\n"
        "print(*sorted({name for name, _ in bench_he.cases(False)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPTS)], check=True, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == {
        "linear", "similarity", "blind-similarity", "sum", "moments", "verify", "seal", "unpack", "expand",
        "expand-alone", "expand-cached", "parse", "cold", "published", "processes", "million",
    }  # fmt: skip
