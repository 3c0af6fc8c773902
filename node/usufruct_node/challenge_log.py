"""Outcomes of storage challenges: a table that only grows, under one rolling hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from usufruct.content import dag
from usufruct.custody import StorageChallenge, StorageProof
from usufruct.errors import ManifestError, MissingEventError
from usufruct.records import ArtifactId, OrgId
from usufruct_node.local import open_local

_PAGE = 200
"""Entries that are read at once while the log is walked."""

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
    payload: bytes
    head: bytes

    @property
    def detail(self) -> str:
        """What was said beside the outcome; decoded here, since that takes longer than all the rest."""
        try:
            return str(dag.decode_map(self.payload)["detail"])
        except (ManifestError, KeyError):
            return "the entry was altered"


class ChallengeLog:
    """Thread-safe; an entry is on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(path, *_TABLES)
        self._checking = threading.Lock()
        self._checked = 0, bytes(32)

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
        wanted = {"artifact_id": artifact_id, "org_id": org}
        # A condition that may be void would keep the database from its index.
        where = " AND ".join(f"{column} = :{column}" for column, value in wanted.items() if value is not None)
        rows = self._select(
            f"WHERE {where or 'TRUE'} ORDER BY sequence DESC LIMIT :limit", wanted | {"limit": limit}
        )
        return [
            Logged(
                sequence=row[0],
                artifact_id=ArtifactId(row[1]),
                org=OrgId(row[2]),
                outcome=Outcome(row[3]),
                at=row[4],
                payload=row[5],
                head=row[6],
            )
            for row in rows
        ]

    def check(self) -> tuple[int, bytes]:
        """Walk what was added since the last check, the first time all, and return the log's length and head.

        Raises
        ------
        MissingEventError
            If an entry is missing or altered. Who cuts the end off, or writes the whole anew, is found only by whoever
            has seen an earlier head, as this object has that of its last check.
        """
        with self._checking:
            length, head = self._checked
            known = self._select("WHERE sequence = :length", {"length": length})
            if length and [row[6] for row in known] != [head]:
                raise _altered(length)
            while rows := self._select(
                "WHERE sequence > :length ORDER BY sequence LIMIT :page", {"length": length, "page": _PAGE}
            ):
                for sequence, artifact, org, outcome, at, payload, found in rows:
                    length, head = length + 1, _next_head(head, length + 1, payload)
                    columns = {"artifact": artifact, "org": org, "outcome": outcome, "at": at}
                    whole = (sequence, found) == (length, head)
                    if not whole or not columns.items() <= dag.decode_map(payload).items():
                        raise _altered(length)
                    self._checked = length, head
            return self._checked

    def _select(self, which: str, values: Mapping[str, object]) -> list[Any]:
        columns = "sequence, artifact_id, org_id, outcome, at, payload, head"
        with self._lock:
            return self._db.execute(f"SELECT {columns} FROM challenge {which}", values).fetchall()  # noqa: S608

    def _end(self) -> tuple[int, bytes]:
        row = self._db.execute(
            "SELECT sequence, head FROM challenge ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        return (0, bytes(32)) if row is None else (int(row[0]), bytes(row[1]))


def _altered(number: int) -> MissingEventError:
    return MissingEventError(f"entry {number} of the challenge log is missing or altered")


def _next_head(previous: bytes, sequence: int, payload: bytes) -> bytes:
    return hashlib.sha256(previous + sequence.to_bytes(8, "big") + hashlib.sha256(payload).digest()).digest()
