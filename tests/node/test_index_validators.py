"""The validators' pin is a series like any other: the index follows it, and refuses one with a version missing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from chain_fixture import Consortium
from usufruct.errors import MissingEventError
from usufruct.ledger.series import check_series, series_of
from usufruct_node.index import Index, catch_up


def key(x: int) -> bytes:
    return bytes([0x80]) + x.to_bytes(47, "big")


@pytest.fixture(scope="module")
def repinned(chain_url: str) -> Consortium:
    """A network whose validators were voted in twice."""
    consortium = Consortium(chain_url)
    for keys, weights in [([key(1), key(2)], [10, 20]), ([key(3)], [5])]:
        consortium.govern("ValidatorSet", "replace", b"".join(keys), weights)
    return consortium


def test_every_version_of_the_validators_reaches_the_index_in_order(
    repinned: Consortium, tmp_path: Path
) -> None:
    index = Index(tmp_path / "index.db")
    catch_up(index, repinned.reader)
    indexed = [event["args"] for event in reversed(index.events("ValidatorSetChanged"))]
    index.close()
    with sqlite3.connect(tmp_path / "index.db") as db:
        (end,) = db.execute("SELECT length, head FROM series WHERE contract = 'ValidatorSet'").fetchall()
    assert [(event["weights"], event["sequence"]) for event in indexed] == [([10, 20], 1), ([5], 2)]
    assert end == repinned.reader.series_head("ValidatorSet", bytes(32))
    assert {series_of(event) for event in repinned.events(["ValidatorSetChanged"])} == {bytes(32)}


def test_a_version_that_is_left_out_shows(repinned: Consortium) -> None:
    first, second = repinned.events(["ValidatorSetChanged"])
    length, head = repinned.reader.series_head("ValidatorSet", bytes(32))
    assert length == 2
    assert check_series([first, second], final_head=head) == head
    for events in ([second], [first], [second, first]):
        with pytest.raises(MissingEventError):
            check_series(events, final_head=head)
