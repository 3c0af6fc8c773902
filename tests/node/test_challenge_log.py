"""The log of storage challenges: it grows, it is whole, and what was altered shows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from usufruct.content import Cid, dag
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


@pytest.fixture
def log(file: Path) -> Iterator[ChallengeLog]:
    opened = ChallengeLog(file)
    yield opened
    opened.close()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Payloads that were decoded, which takes milliseconds each."""
    seen: list[bytes] = []
    real = dag.decode_map

    def decode_map(payload: bytes) -> dict[str, dag.DagValue]:
        seen.append(payload)
        return real(payload)

    monkeypatch.setattr(dag, "decode_map", decode_map)
    return seen


def test_only_what_is_shown_is_decoded(log: ChallengeLog, decoded: list[bytes]) -> None:
    log.append(entry(6, Outcome.SILENT, detail="no answer"))
    newest, *others = log.last(BUNDLE, SOUTH, limit=1000)
    assert [one.outcome for one in (newest, *others)].count(Outcome.PASSED) == 4
    assert decoded == []
    assert newest.detail == "no answer"
    assert len(decoded) == 1


def test_what_was_checked_is_not_walked_again(log: ChallengeLog, decoded: list[bytes]) -> None:
    assert log.check()[0] == len(decoded) == 5
    log.append(entry(6))
    length, head = log.check()
    assert (length, head) == (6, log.last(limit=1)[0].head)
    assert len(decoded) == 6
    assert log.check() == (length, head)
    assert len(decoded) == 6


def test_others_read_and_append_while_the_log_is_walked(
    log: ChallengeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, busy = dag.decode_map, []

    def decode_map(payload: bytes) -> dict[str, dag.DagValue]:
        busy.append(log._lock.locked())
        return real(payload)

    monkeypatch.setattr(dag, "decode_map", decode_map)
    assert log.check()[0] == 5
    assert busy == [False] * 5


@pytest.mark.parametrize("cut", ["sequence = 5", "sequence > 0"])
def test_an_end_that_is_cut_off_is_found_by_who_has_checked_before(
    log: ChallengeLog, file: Path, cut: str
) -> None:
    log.check()
    with sqlite3.connect(file) as db:
        db.execute("DROP TRIGGER challenge_is_kept")
        db.execute(f"DELETE FROM challenge WHERE {cut}")
    db.close()
    with pytest.raises(MissingEventError, match="entry 5"):
        log.check()


def test_an_altered_entry_is_listed_and_found(log: ChallengeLog, file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("DROP TRIGGER challenge_stays")
        db.execute("UPDATE challenge SET payload = x'ff' WHERE sequence = 4")
    db.close()
    assert [one.detail for one in log.last(limit=2)] == ["", "the entry was altered"]
    with pytest.raises(MissingEventError, match="entry 4"):
        log.check()


def test_a_holder_without_entries_is_found_without_reading_those_of_others(log: ChallengeLog) -> None:
    row = log._db.execute("SELECT artifact_id, org_id, outcome, at, payload, head FROM challenge").fetchone()
    with log._db:
        log._db.executemany("INSERT INTO challenge VALUES (NULL, ?, ?, ?, ?, ?, ?)", [row] * 3000)
    steps: list[None] = []
    log._db.set_progress_handler(lambda: steps.append(None), 100)
    assert log.last(BUNDLE, EAST, limit=1) == []
    assert len(steps) < 5
