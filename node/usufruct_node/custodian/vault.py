"""What the custodian remembers: one release for each job, of whom it told what, and how often each key opened something.

Durable before the answer that follows from it. Noised values are kept encrypted to the partner only; no secret is in it.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from usufruct.differencing import DIRECTION_BYTES, Asked, check_differencing
from usufruct.errors import ReleaseRefusedError
from usufruct.records import ArtifactId, JobId, KeyId, Refusal
from usufruct_node.local import open_local

_POSITION = np.dtype("<u4")
_UNKNOWN = b"?"
"""In place of the positions of a cohort that is not known any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A release that was made; its noise is never drawn again."""

    sealed: bytes
    """Encrypted to the partner."""
    sigma_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A release that is to be made, and what its guards are held against."""

    job_id: JobId
    artifact_id: ArtifactId
    key_id: KeyId
    result_digest: bytes
    asked: Asked
    under_way: Collection[JobId]
    """Jobs under the key that may still be opened."""
    minimum: int
    """Fewest subjects in which cohorts may differ without being charged as one."""
    limit_rho_micro: int
    """What releases over such cohorts may cost together."""
    openings: int
    """Result blocks that opening this result takes."""
    most_openings: int
    """Result blocks that one key may ever open."""


class Vault:
    """Thread-safe, and several processes may share the file: each step is one transaction, and the first of two stands."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(
            path,
            "CREATE TABLE IF NOT EXISTS cohort (digest BLOB PRIMARY KEY, subjects BLOB NOT NULL)",
            "CREATE TABLE IF NOT EXISTS told (job_id BLOB PRIMARY KEY, artifact_id BLOB NOT NULL, directions BLOB,"
            " cohort BLOB NOT NULL REFERENCES cohort (digest), rho_micro INTEGER NOT NULL, opened INTEGER NOT NULL)"
            " WITHOUT ROWID",
            "CREATE INDEX IF NOT EXISTS told_by_cohort ON told (artifact_id, cohort)",
            "CREATE TABLE IF NOT EXISTS made (job_id BLOB PRIMARY KEY, sealed BLOB NOT NULL,"
            " sigma_micro INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS key (key_id BLOB PRIMARY KEY, opened INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS opening (key_id BLOB NOT NULL, job_id BLOB NOT NULL, result_digest BLOB NOT NULL,"
            " blocks INTEGER NOT NULL, opened INTEGER NOT NULL, PRIMARY KEY (key_id, job_id, result_digest)) WITHOUT ROWID",
            "CREATE INDEX IF NOT EXISTS opening_reserved ON opening (key_id) WHERE NOT opened",
        )
        self._db.isolation_level = None

    def unknown(self, jobs: Collection[JobId]) -> list[JobId]:
        """Those of these jobs that it has no memory of, as after a restore from an older backup."""
        with self._step() as db:
            return [j for j in jobs if not db.execute("SELECT 1 FROM told WHERE job_id = ?", (j,)).fetchone()]

    def remember(self, job_id: JobId, artifact_id: ArtifactId, asked: Asked) -> None:
        """Note what an earlier self released."""
        with self._step() as db:
            self._note(db, job_id, artifact_id, asked)
            db.execute("UPDATE told SET opened = 1 WHERE job_id = ?", (job_id,))

    def announce(self, entry: Entry) -> None:
        """Reserve a place among the releases of a bundle and among the openings of its key; those announced for jobs that have
        ended unopened go.

        Raises
        ------
        ReleaseRefusedError
            `COHORTS_TOO_CLOSE` or `KEY_EXHAUSTED`.
        """
        with self._step() as db:
            self._enter(db, entry)

    def open(self, entry: Entry) -> None:
        """As `announce`, and count the blocks that are about to be decrypted: they count whether or not that succeeds, and
        those of one result of one job once, however often it is begun.
        """
        with self._step() as db:
            self._enter(db, entry)
            db.execute("UPDATE told SET opened = 1 WHERE job_id = ?", (entry.job_id,))
            first = db.execute(
                "UPDATE opening SET opened = 1 WHERE key_id = ? AND job_id = ? AND result_digest = ? AND NOT opened",
                (entry.key_id, entry.job_id, entry.result_digest),
            )
            if first.rowcount:
                db.execute(
                    "INSERT INTO key VALUES (?1, ?2) ON CONFLICT DO UPDATE SET opened = opened + ?2",
                    (entry.key_id, entry.openings),
                )

    def keep(self, job_id: JobId, made: Kept) -> Kept:
        """Keep a release; the first one kept for a job stands, and is returned."""
        with self._step() as db:
            db.execute("INSERT OR IGNORE INTO made VALUES (?, ?, ?)", (job_id, made.sealed, made.sigma_micro))
        kept = self.kept(job_id)
        return made if kept is None else kept

    def kept(self, job_id: JobId) -> Kept | None:
        """The release kept for a job."""
        with self._step() as db:
            row = db.execute("SELECT sealed, sigma_micro FROM made WHERE job_id = ?", (job_id,)).fetchone()
        return None if row is None else Kept(sealed=row[0], sigma_micro=row[1])

    def openings(self) -> dict[bytes, int]:
        """Result blocks that each key has opened."""
        with self._step() as db:
            return {bytes(key): count for key, count in db.execute("SELECT key_id, opened FROM key")}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @staticmethod
    def _note(db: sqlite3.Connection, job_id: JobId, artifact_id: ArtifactId, asked: Asked) -> None:
        told = None if asked.directions is None else b"".join(sorted(asked.directions))
        subjects = _UNKNOWN if asked.subjects is None else asked.subjects.astype(_POSITION).tobytes()
        digest = hashlib.sha256(subjects).digest()
        db.execute("INSERT OR IGNORE INTO cohort VALUES (?, ?)", (digest, subjects))
        db.execute(
            "INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?, ?, 0)",
            (job_id, artifact_id, told, digest, asked.rho_micro),
        )

    def _enter(self, db: sqlite3.Connection, entry: Entry) -> None:
        announced = db.execute(
            "SELECT job_id FROM told WHERE artifact_id = ? AND job_id <> ? AND NOT opened",
            (entry.artifact_id, entry.job_id),
        )
        gone = [(job,) for (job,) in announced.fetchall() if job not in entry.under_way]
        db.executemany("DELETE FROM told WHERE job_id = ?", gone)
        if gone:
            db.execute("DELETE FROM cohort WHERE digest NOT IN (SELECT cohort FROM told)")
        check_differencing(
            entry.asked,
            _earlier(db, entry),
            minimum=entry.minimum,
            limit_rho_micro=entry.limit_rho_micro,
        )
        _reserve(db, entry)
        self._note(db, entry.job_id, entry.artifact_id, entry.asked)


def _reserve(db: sqlite3.Connection, entry: Entry) -> None:
    """Keep a result's blocks free among those that its key may open, unless they are counted already; a job has one result."""
    this = (entry.key_id, entry.job_id, entry.result_digest)
    counted = db.execute(
        "SELECT 1 FROM opening WHERE key_id = ? AND job_id = ? AND result_digest = ? AND opened", this
    ).fetchone()
    if counted:
        return
    announced = db.execute(
        "SELECT job_id, blocks FROM opening WHERE key_id = ? AND NOT opened", (entry.key_id,)
    ).fetchall()
    under_way = set(entry.under_way) - {entry.job_id}
    gone = [(entry.key_id, job) for job, _ in announced if job not in under_way]
    db.executemany("DELETE FROM opening WHERE key_id = ? AND job_id = ? AND NOT opened", gone)
    reserved = sum(blocks for job, blocks in announced if job in under_way)
    count = db.execute("SELECT opened FROM key WHERE key_id = ?", (entry.key_id,)).fetchone()
    if (count[0] if count else 0) + reserved + entry.openings > entry.most_openings:
        raise ReleaseRefusedError(
            Refusal.KEY_EXHAUSTED.name,
            hint=f"key {entry.key_id.hex()[:12]} may open {entry.most_openings} blocks in all:"
            " seal under a new key domain",
        )
    db.execute("INSERT INTO opening VALUES (?, ?, ?, ?, 0)", (*this, entry.openings))


def _earlier(db: sqlite3.Connection, entry: Entry) -> Iterator[Asked]:
    """What the bundle's other releases told: those of one question and one cohort as one, one cohort in memory at a time."""
    questions = db.execute(
        "SELECT cohort, directions, sum(rho_micro) FROM told WHERE artifact_id = ? AND job_id <> ?"
        " GROUP BY cohort, directions ORDER BY cohort",
        (entry.artifact_id, entry.job_id),
    )
    for digest, group in itertools.groupby(questions.fetchall(), key=operator.itemgetter(0)):
        (subjects,) = db.execute("SELECT subjects FROM cohort WHERE digest = ?", (digest,)).fetchone()
        positions = None if subjects == _UNKNOWN else np.frombuffer(subjects, _POSITION).astype(np.int64)
        for _, told, rho_micro in group:
            yield Asked(directions=_split(told), subjects=positions, rho_micro=rho_micro)


def _split(told: bytes | None) -> frozenset[bytes] | None:
    if told is None:
        return None
    return frozenset(told[at : at + DIRECTION_BYTES] for at in range(0, len(told), DIRECTION_BYTES))
