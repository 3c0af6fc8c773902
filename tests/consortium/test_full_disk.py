"""The disk of one validator is full: the chain goes on without it, and it has the same chain once there is space."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from validators_fixture import RefusedError, TestValidators

VICTIM = 5
SPARE_BYTES = 2 << 30
"""The engine does not start with less than 512 MiB, and takes some itself."""
MOST_PAYMENTS = 25
FOLLOWS_SECONDS = 5.0

pytestmark = pytest.mark.timeout(500)


def data_directory(validators: TestValidators) -> Path:
    described = json.loads((validators.directory / "consortium.json").read_text("utf-8"))
    return next(Path(v["data_directory"]) for v in described["validators"] if v["number"] == VICTIM)


@pytest.fixture
def small_disk(validators: TestValidators, tmp_path: Path) -> Iterator[Path]:
    """The victim's data on a file system that holds little more than it."""
    data, kept = data_directory(validators), tmp_path / "kept"
    validators.kill(VICTIM)
    shutil.copytree(data, kept)
    used = sum(file.stat().st_blocks * 512 for file in kept.rglob("*") if file.is_file())
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(used + SPARE_BYTES)
    # A kind that reserves nothing for a file beforehand: elsewhere a database goes on for long in what it has reserved.
    for words in (
        ["mke2fs", "-q", "-F", "-t", "ext2", "-m", "0", str(image)],
        ["mount", "-o", "loop", str(image), str(data)],
    ):
        if refused := refusal(words):
            pytest.skip(f"no file system of a test's own ({refused}): no disk was full")
    try:
        data.chmod(0o700)
        shutil.copytree(kept, data, dirs_exist_ok=True)
        validators.restart(VICTIM)
        yield data
    finally:
        with contextlib.suppress(Exception):
            validators.kill(VICTIM)
        subprocess.run(["umount", str(data)], check=True)
        image.unlink()
        validators.restart(VICTIM)


def refusal(words: Sequence[str]) -> str | None:
    """Run a command of the system; what it said if it did not do it."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as exc:
        return str(exc)
    return (done.stderr.strip() or "no reason given") if done.returncode else None


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as exc:
                assert exc.errno == errno.ENOSPC, exc
    return ballast


def follows(validators: TestValidators, height: int) -> bool:
    """Whether the victim gets to this height in a while in which it easily could."""
    deadline = time.monotonic() + FOLLOWS_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, RefusedError, ValueError):
            if validators.height(VICTIM) >= height:
                return True
        time.sleep(0.2)
    return False


def test_full_disk_of_one_validator_stops_nobody_else_and_loses_nothing(
    validators: TestValidators, small_disk: Path
) -> None:
    early = validators.pay(1)
    validators.wait_mined(VICTIM, early["transactionHash"])
    ballast = fill(small_disk)
    payments = []
    for _ in range(MOST_PAYMENTS):
        payments.append(validators.pay(1))
        if not follows(validators, int(payments[-1]["blockNumber"], 16)):
            break
    else:
        pytest.fail("the validator with the full disk went on: this tests nothing")
    payments.append(validators.pay(2))
    ballast.unlink()
    validators.restart(VICTIM)
    for receipt in (early, *payments):
        assert validators.wait_mined(VICTIM, receipt["transactionHash"])["blockHash"] == receipt["blockHash"]
