"""What a role must remember across a crash: salts of verdicts and releases, before the ledger hears of them; jobs rechecked."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from usufruct.content import Cid
from usufruct.records import JobId
from usufruct_node.local import open_local


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnVerdict:
    """A verdict that this node committed to."""

    result_digest: bytes
    possession: bytes
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRelease:
    """A release that this node made; its noise is never drawn again."""

    envelope: Cid
    sigma_micro: int


class Journal:
    """Durable, thread-safe; every write is on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(
            path,
            "CREATE TABLE IF NOT EXISTS verdict (job_id BLOB PRIMARY KEY, result_digest BLOB NOT NULL,"
            " possession BLOB NOT NULL, salt BLOB NOT NULL) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS release (job_id BLOB PRIMARY KEY, envelope BLOB NOT NULL,"
            " sigma_micro INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS recheck (job_id BLOB PRIMARY KEY, is_same INTEGER NOT NULL) WITHOUT ROWID",
        )

    def keep_verdict(self, job_id: JobId, verdict: OwnVerdict) -> OwnVerdict:
        """Keep a verdict; the first one kept for a job stands, and is returned."""
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO verdict VALUES (?, ?, ?, ?)",
                (job_id, verdict.result_digest, verdict.possession, verdict.salt),
            )
        kept = self.verdict(job_id)
        return verdict if kept is None else kept

    def verdict(self, job_id: JobId) -> OwnVerdict | None:
        """The verdict kept for a job."""
        with self._lock:
            row = self._db.execute(
                "SELECT result_digest, possession, salt FROM verdict WHERE job_id = ?", (job_id,)
            ).fetchone()
        return None if row is None else OwnVerdict(result_digest=row[0], possession=row[1], salt=row[2])

    def keep_release(self, job_id: JobId, release: OwnRelease) -> OwnRelease:
        """Keep a release; the first one kept for a job stands, and is returned."""
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO release VALUES (?, ?, ?)",
                (job_id, bytes(release.envelope), release.sigma_micro),
            )
        kept = self.release(job_id)
        return release if kept is None else kept

    def release(self, job_id: JobId) -> OwnRelease | None:
        """The release kept for a job."""
        with self._lock:
            row = self._db.execute(
                "SELECT envelope, sigma_micro FROM release WHERE job_id = ?", (job_id,)
            ).fetchone()
        return None if row is None else OwnRelease(envelope=Cid.from_bytes(row[0]), sigma_micro=row[1])

    def keep_recheck(self, job_id: JobId, is_same: bool) -> None:
        """Keep whether a job that was executed again gave the result that the ledger has."""
        with self._lock, self._db:
            self._db.execute("INSERT OR IGNORE INTO recheck VALUES (?, ?)", (job_id, is_same))

    def recheck(self, job_id: JobId) -> bool | None:
        """Whether a job gave the same result again; None when it was not rechecked."""
        with self._lock:
            row = self._db.execute("SELECT is_same FROM recheck WHERE job_id = ?", (job_id,)).fetchone()
        return None if row is None else bool(row[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
