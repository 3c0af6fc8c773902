"""Outcomes of storage challenges: a table that only grows, under one rolling hash."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from usufruct.content import dag
from usufruct.custody import StorageChallenge, StorageProof
from usufruct.errors import MissingEventError
from usufruct.records import ArtifactId, OrgId
from usufruct_node.local import open_local

_TABLES = (
    "CREATE TABLE IF NOT EXISTS challenge (sequence INTEGER PRIMARY KEY, artifact_id BLOB NOT NULL,"
    " org_id BLOB NOT NULL, outcome TEXT NOT NULL, at INTEGER NOT NULL, payload BLOB NOT NULL, head BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS challenge_of ON challenge (artifact_id, org_id, sequence)",
    "CREATE TRIGGER IF NOT EXISTS challenge_stays BEFORE UPDATE ON challenge"
    " BEGIN SELECT RAISE(ABORT, 'the log only grows'); END",
    "CREATE TRIGGER IF NOT EXISTS challenge_is_kept BEFORE DELETE ON challenge"
    " BEGIN SELECT RAISE(ABORT, 'the log only grows'); END",
)


class Outcome(StrEnum):
    """What a challenge showed."""

    PASSED = "passed"
    NOT_HELD = "not-held"
    """The member says itself that it does not have the bytes."""
    WRONG = "wrong"
    """An answer that is not signed by the member, or does not follow from the bytes."""
    SILENT = "silent"
    """No answer in time, or a refusal to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One challenge and what came of it."""

    artifact_id: ArtifactId
    org: OrgId
    """Who was asked."""
    outcome: Outcome
    at: int
    """Unix seconds, chain time."""
    detail: str
    challenge: StorageChallenge
    answer: StorageProof | None

    def payload(self) -> bytes:
        """What the rolling hash covers."""
        return dag.encode(
            {
                "artifact": self.artifact_id,
                "org": self.org,
                "outcome": str(self.outcome),
                "at": self.at,
                "detail": self.detail,
                "challenge": self.challenge.to_record(),
                "answer": None if self.answer is None else self.answer.to_record(),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An entry as it is listed."""

    sequence: int
    artifact_id: ArtifactId
    org: OrgId
    outcome: Outcome
    at: int
    detail: str
    head: bytes


class ChallengeLog:
    """Thread-safe; an entry is on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(path, *_TABLES)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def append(self, entry: Entry) -> None:
        """Add an entry."""
        payload = entry.payload()
        with self._lock, self._db:
            sequence, head = self._end()
            row = (
                sequence + 1,
                entry.artifact_id,
                entry.org,
                entry.outcome,
                entry.at,
                payload,
                _next_head(head, sequence + 1, payload),
            )
            self._db.execute("INSERT INTO challenge VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def last(
        self, artifact_id: ArtifactId | None = None, org: OrgId | None = None, *, limit: int
    ) -> list[Logged]:
        """Newest entries, newest first, of a bundle, a member, or all."""
        with self._lock:
            rows = self._db.execute(
                "SELECT sequence, artifact_id, org_id, outcome, at, payload, head FROM challenge"
                " WHERE (?1 IS NULL OR artifact_id = ?1) AND (?2 IS NULL OR org_id = ?2)"
                " ORDER BY sequence DESC LIMIT ?3",
                (artifact_id, org, limit),
            ).fetchall()
        return [
            Logged(
                sequence=row[0],
                artifact_id=ArtifactId(row[1]),
                org=OrgId(row[2]),
                outcome=Outcome(row[3]),
                at=row[4],
                detail=str(dag.decode_map(bytes(row[5]))["detail"]),
                head=row[6],
            )
            for row in rows
        ]

    def check(self) -> tuple[int, bytes]:
        """Walk the log and return its length and head.

        Raises
        ------
        MissingEventError
            If an entry is missing or altered. Who cuts the end off, or writes the whole anew, is found only by whoever
            has seen an earlier head.
        """
        head, expected = bytes(32), 0
        with self._lock:
            for sequence, payload, found, artifact, org, outcome, at in self._db.execute(
                "SELECT sequence, payload, head, artifact_id, org_id, outcome, at FROM challenge ORDER BY sequence"
            ):
                expected += 1
                head = _next_head(head, expected, payload)
                record = dag.decode_map(bytes(payload))
                columns = (record["artifact"], record["org"], record["outcome"], record["at"])
                if sequence != expected or head != found or columns != (artifact, org, outcome, at):
                    raise MissingEventError(f"entry {expected} of the challenge log is missing or altered")
        return expected, head

    def _end(self) -> tuple[int, bytes]:
        row = self._db.execute(
            "SELECT sequence, head FROM challenge ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        return (0, bytes(32)) if row is None else (int(row[0]), bytes(row[1]))


def _next_head(previous: bytes, sequence: int, payload: bytes) -> bytes:
    return hashlib.sha256(previous + sequence.to_bytes(8, "big") + hashlib.sha256(payload).digest()).digest()
