"""Networks for the journey: one that most tests of a file share, and private ones for tests that break theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from organisations import Consortium, processes_below


def _stop(network: Consortium, root: Path) -> None:
    network.close()
    deadline = time.monotonic() + 10
    while (left := processes_below(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"processes left behind: {left}"


@pytest.fixture(scope="module")
def shared_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A network that every test leaves as it found it, but for finished jobs.

    Of one file: one that nobody needs any more still takes processor time.
    """
    root = tmp_path_factory.mktemp("shared")
    network = Consortium(root)
    try:
        yield network
    finally:
        _stop(network, root)


@pytest.fixture
def private_network(tmp_path: Path) -> Iterator[Consortium]:
    """A network of one test's own."""
    network = Consortium(tmp_path)
    try:
        yield network
    finally:
        _stop(network, tmp_path)
