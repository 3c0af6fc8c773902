"""The log of storage challenges: it grows, it is whole, and what was altered shows."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from usufruct.content import Cid
from usufruct.custody import Segment, StorageChallenge, StorageProof
from usufruct.errors import MissingEventError
from usufruct.records import ArtifactId, org_id
from usufruct_node.challenge_log import ChallengeLog, Entry, Outcome

BUNDLE, OTHER = ArtifactId(b"\x01" * 32), ArtifactId(b"\x02" * 32)
SOUTH, EAST = org_id("south"), org_id("east")


def entry(at: int, outcome: Outcome = Outcome.PASSED, **changes: object) -> Entry:
    artifact_id = changes.get("artifact_id", BUNDLE)
    asked = StorageChallenge(
        artifact_id=artifact_id,
        challenger=org_id("north"),
        nonce=at.to_bytes(32, "big"),
        segments=(Segment(Cid.of(b"x"), 0, 1),),
    )
    given = StorageProof(proof=bytes(32), answered_at=at, signature=bytes(65))
    usual = {
        "artifact_id": artifact_id,
        "org": SOUTH,
        "outcome": outcome,
        "at": at,
        "detail": "",
        "challenge": asked,
        "answer": given if outcome == Outcome.PASSED else None,
    }
    return Entry(**(usual | changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    log = ChallengeLog(tmp_path / "node.db")
    for at in range(1, 6):
        log.append(entry(at, Outcome.SILENT if at == 3 else Outcome.PASSED))
    log.close()
    return tmp_path / "node.db"


def test_entries_are_listed_newest_first_and_the_head_follows_from_all(file: Path) -> None:
    log = ChallengeLog(file)
    length, head = log.check()
    assert length == 5 and log.last(limit=1)[0].head == head
    assert [one.at for one in log.last(limit=3)] == [5, 4, 3]
    log.append(entry(6, artifact_id=OTHER, org=EAST))
    assert log.check()[0] == 6 and log.check()[1] != head
    assert [one.at for one in log.last(BUNDLE, SOUTH, limit=2)] == [5, 4]
    assert [one.at for one in log.last(None, EAST, limit=9)] == [6]
    assert log.last(OTHER, SOUTH, limit=9) == []
    log.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE challenge SET outcome = 'passed' WHERE sequence = 3",
        "DELETE FROM challenge WHERE sequence = 2",
    ],
)
def test_the_table_itself_refuses_to_change_or_lose_an_entry(file: Path, statement: str) -> None:
    with sqlite3.connect(file) as db, pytest.raises(sqlite3.IntegrityError, match="only grows"):
        db.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE challenge SET outcome = 'passed' WHERE sequence = 3",
        "UPDATE challenge SET at = at + 1 WHERE sequence = 1",
        "UPDATE challenge SET payload = (SELECT payload FROM challenge WHERE sequence = 4) WHERE sequence = 3",
        "DELETE FROM challenge WHERE sequence = 2",
        "UPDATE challenge SET sequence = 9 WHERE sequence = 5",
    ],
)
def test_what_was_altered_past_the_triggers_is_found(file: Path, statement: str) -> None:
    with sqlite3.connect(file) as db:
        db.execute("DROP TRIGGER challenge_stays")
        db.execute("DROP TRIGGER challenge_is_kept")
        db.execute(statement)
    log = ChallengeLog(file)
    with pytest.raises(MissingEventError):
        log.check()
    log.close()
