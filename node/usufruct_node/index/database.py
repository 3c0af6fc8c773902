"""The index: one SQLite file with the finalised events and the records that follow from them."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any
from zlib import crc32

from usufruct.errors import InputError, LedgerError, StaleLedgerError
from usufruct.ledger import Head
from usufruct.ledger.reputation import Points, faded
from usufruct.records import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    BudgetAccount,
    ConsentEpoch,
    Fault,
    GrantId,
    GrantTerms,
    JobId,
    JobState,
    KeyDomain,
    KeyId,
    LedgerEvent,
    OrgId,
    Participant,
    UsageGrant,
)
from usufruct_node.index.apply import apply_events, from_signed
from usufruct_node.index.rows import (
    FaultRow,
    JobRow,
    Reputation,
    Verdict,
    artifact_of,
    event_of,
    grant_of,
    job_of,
    key_domain_of,
    participant_of,
    terms_of,
)

MAX_GRAPH_EDGES = 100_000
_CACHE_KIB = 32_768
_SCHEMA = resources.files("usufruct_node.index").joinpath("schema.sql").read_text("utf-8")
_VERSION = crc32(_SCHEMA.encode()) >> 1
"""Kept in the file: tables of another version are not read but built anew from the ledger."""

_TREES = re.findall(r"^CREATE INDEX IF NOT EXISTS (\w+)", _SCHEMA, re.MULTILINE)

_log = logging.getLogger(__name__)


class GraphTooLargeError(InputError):
    """A lineage has more edges than one answer holds; a partial one would look complete."""

    hint = "ask for the lineage of a single job's release instead"


class IndexFileError(LedgerError):
    """The index's file cannot be read or written; no endpoint has part in it."""

    hint = "look for free space on its disk; while the node is stopped, index.db may be deleted: it is built anew"


class DamagedIndexError(IndexFileError):
    """The index's file is no database, or a damaged one."""


class Index:
    """Thread-safe; one connection under one lock, since every statement is short.

    A file whose tables are those of another version of this package is emptied, and one that is no database or a damaged one is
    set aside: the ledger's events rebuild it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._open(path)
        except DamagedIndexError as exc:
            aside = _set_aside(path)
            _log.warning("%s; it is now %s, and the index is built anew from the ledger", exc, aside)
            self._open(path)

    def _open(self, path: Path) -> None:
        path.touch(mode=0o600, exist_ok=True)
        with _translated():
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=30)
            try:
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                self._drop_other_version()
                self._create()
            except (sqlite3.Error, IndexFileError):
                self._db.close()
                raise

    def _drop_other_version(self) -> None:
        tables = self._all("SELECT name FROM sqlite_master WHERE type = 'table'")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables and version != _VERSION:
            _log.warning("the index is of another version of this package and is built anew from the ledger")
            with self._transaction() as db:
                for (name,) in tables:
                    db.execute(f"DROP TABLE {name}")

    def _create(self) -> None:
        with self._transaction() as db:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        self._is_complete = True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # Following the chain.

    def cursor(self) -> Head | None:
        """The last block whose events are in the index."""
        row = self._one("SELECT block_number, block_hash, block_time FROM cursor")
        return None if row is None else Head(row[0], row[1], row[2])

    def advance(self, events: Sequence[LedgerEvent], head: Head) -> None:
        """Apply the events up to `head` and move the cursor, all or nothing.

        Raises
        ------
        StaleLedgerError
            If `head` is older than the cursor.
        """
        with self._transaction() as db:
            before = self.cursor()
            if before is not None and head.number < before.number:
                raise StaleLedgerError(f"block {head.number} is older than the indexed block {before.number}")
            apply_events(db, events)
            db.execute(
                "INSERT INTO cursor VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE SET block_number ="
                " excluded.block_number, block_hash = excluded.block_hash, block_time = excluded.block_time",
                (head.number, head.hash, head.timestamp),
            )

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Do without the secondary search trees meanwhile, and build each in one go at the end.

        For many events at once: in a tree that grows event by event, every event lands on another page. Queries stay right, but
        read whole tables. A process that dies meanwhile leaves the trees to whoever opens the file next; after a full disk,
        `complete` builds them.
        """
        self._is_complete = False
        with self._transaction() as db:
            for tree in _TREES:
                db.execute(f"DROP INDEX IF EXISTS {tree}")
        try:
            yield
        except Exception:
            self.complete()
            raise
        # Whoever stops a node does not wait for the trees: a cancellation leaves them to the next opening too.
        self.complete()

    def complete(self) -> None:
        """Build the secondary search trees that are missing.

        Raises
        ------
        IndexFileError
            If there is no space for them.
        """
        if not self._is_complete:
            self._create()

    # Members.

    def participants(self) -> list[Participant]:
        """Every organisation ever admitted."""
        return [participant_of(row) for row in self._all("SELECT * FROM participant ORDER BY org_id")]

    def participant(self, org: OrgId) -> Participant | None:
        """One organisation."""
        row = self._one("SELECT * FROM participant WHERE org_id = ?", org)
        return None if row is None else participant_of(row)

    def participant_by_peer(self, peer_id: bytes) -> Participant | None:
        """The organisation whose node has this libp2p identity."""
        row = self._one("SELECT * FROM participant WHERE peer_id = ?", peer_id)
        return None if row is None else participant_of(row)

    # Records.

    def key_domain(self, key_id: KeyId) -> KeyDomain | None:
        """A key domain."""
        row = self._one("SELECT * FROM key_domain WHERE key_id = ?", key_id)
        return None if row is None else key_domain_of(row)

    def key_domains(self) -> list[tuple[KeyId, KeyDomain]]:
        """Every key domain, newest first."""
        rows = self._all("SELECT * FROM key_domain ORDER BY registered_at DESC, key_id")
        return [(KeyId(row["key_id"]), key_domain_of(row)) for row in rows]

    def artifact(self, artifact_id: ArtifactId) -> Artifact | None:
        """A bundle, result or release."""
        row = self._one("SELECT * FROM artifact WHERE artifact_id = ?", artifact_id)
        return None if row is None else artifact_of(row)

    def artifacts(self, kind: ArtifactKind) -> list[tuple[ArtifactId, Artifact]]:
        """All artifacts of a kind, oldest first."""
        rows = self._all("SELECT * FROM artifact WHERE kind = ? ORDER BY registered_at, artifact_id", kind)
        return [(ArtifactId(row["artifact_id"]), artifact_of(row)) for row in rows]

    def artifact_job(self, artifact_id: ArtifactId) -> JobId | None:
        """The job that left a result or release behind."""
        row = self._one("SELECT job_id FROM artifact WHERE artifact_id = ?", artifact_id)
        return None if row is None or row[0] is None else JobId(row[0])

    def derived(self, job_id: JobId) -> list[ArtifactId]:
        """Artifacts that a job left behind: result, then release."""
        return [
            ArtifactId(row[0])
            for row in self._all("SELECT artifact_id FROM artifact WHERE job_id = ? ORDER BY kind", job_id)
        ]

    def bundles_with_content(self, digest: bytes) -> list[ArtifactId]:
        """Bundles whose manifest has this digest."""
        return [
            ArtifactId(row[0])
            for row in self._all("SELECT artifact_id FROM artifact WHERE content_digest = ?", digest)
        ]

    def policy_digest(self, artifact_id: ArtifactId, version: int) -> bytes | None:
        """Digest of the policy that was in force as this version."""
        row = self._one(
            "SELECT digest FROM policy WHERE artifact_id = ? AND version = ?", artifact_id, version
        )
        return None if row is None else bytes(row[0])

    def consent_epoch(self, steward: OrgId, scope: bytes, epoch: int | None = None) -> ConsentEpoch | None:
        """A consent epoch; the one in force when `epoch` is None."""
        row = self._one(
            "SELECT * FROM consent_epoch WHERE steward = ? AND scope = ? AND (?3 IS NULL OR epoch = ?3)"
            " ORDER BY epoch DESC LIMIT 1",
            steward,
            scope,
            epoch,
        )
        if row is None:
            return None
        return ConsentEpoch(
            epoch=row["epoch"],
            anchored_at=row["anchored_at"],
            cohort_floor=row["cohort_floor"],
            consent_root=row["consent_root"],
            status_digest=row["status_digest"],
        )

    def grant(self, grant_id: GrantId) -> UsageGrant | None:
        """A grant; terms empty until granted, as on the ledger."""
        row = self._one("SELECT * FROM usage_grant WHERE grant_id = ?", grant_id)
        return None if row is None else grant_of(row)

    def request(self, grant_id: GrantId) -> tuple[UsageGrant, GrantTerms] | None:
        """A request or grant, with the terms that were asked for."""
        row = self._one("SELECT * FROM usage_grant WHERE grant_id = ?", grant_id)
        return None if row is None else (grant_of(row), terms_of(json.loads(row["asked"])))

    def grants(
        self, *, grantee: OrgId | None = None, steward: OrgId | None = None
    ) -> list[tuple[GrantId, UsageGrant, GrantTerms]]:
        """Requests and grants, newest first, with the terms that were asked for."""
        rows = self._all(
            "SELECT g.* FROM usage_grant g JOIN artifact a USING (artifact_id)"
            " WHERE (?1 IS NULL OR g.grantee = ?1) AND (?2 IS NULL OR a.steward = ?2)"
            " ORDER BY g.requested_at DESC, g.grant_id",
            grantee,
            steward,
        )
        return [(GrantId(r["grant_id"]), grant_of(r), terms_of(json.loads(r["asked"]))) for r in rows]

    def budget(self, artifact_id: ArtifactId) -> BudgetAccount:
        """Privacy account of a bundle."""
        row = self._one("SELECT total, reserved, spent FROM budget WHERE artifact_id = ?", artifact_id)
        total, reserved, spent = (0, 0, 0) if row is None else map(from_signed, row)
        return BudgetAccount(total=total, reserved=reserved, spent=spent)

    # Jobs.

    def job(self, job_id: JobId) -> JobRow | None:
        """One job."""
        row = self._one("SELECT * FROM job WHERE job_id = ?", job_id)
        return None if row is None else job_of(row)

    def jobs(
        self,
        *states: JobState,
        artifact_id: ArtifactId | None = None,
        newest_first: bool = False,
        limit: int = -1,
        offset: int = 0,
    ) -> list[JobRow]:
        """Jobs in any of these states (all when none is given), oldest first or newest first; a negative limit is none."""
        order = "DESC" if newest_first else "ASC"
        marks = ",".join(str(int(state)) for state in states or tuple(JobState))
        # A condition that is not asked for is left out: with it SQLite would not use the index on bundles.
        of_bundle = "" if artifact_id is None else " AND artifact_id = ?"
        values = () if artifact_id is None else (artifact_id,)
        rows = self._all(
            f"SELECT * FROM job WHERE state IN ({marks}){of_bundle}"  # noqa: S608
            f" ORDER BY posted_at {order}, job_id {order} LIMIT ? OFFSET ?",
            *values,
            limit,
            offset,
        )
        return [job_of(row) for row in rows]

    def job_count(self, state: JobState) -> int:
        """Number of jobs in a state."""
        row = self._one("SELECT count(*) FROM job WHERE state = ?", state)
        return int(row[0]) if row else 0

    def jobs_with_parameters(self, digest: bytes) -> list[JobRow]:
        """Jobs whose parameters block has this digest."""
        return [job_of(row) for row in self._all("SELECT * FROM job WHERE parameters_digest = ?", digest)]

    def suspect_jobs(self) -> list[JobRow]:
        """Jobs that have ended and in which somebody may have done wrong that the ledger has not recorded; oldest first."""
        rows = self._all("SELECT * FROM job WHERE suspect = 1 AND deadline = 0 ORDER BY posted_at, job_id")
        return [job_of(row) for row in rows]

    def doubtful_jobs(self) -> list[JobRow]:
        """Released jobs that a member executed or vouched for not long before it was found to lie; oldest first."""
        rows = self._all(
            "SELECT job.* FROM doubtful CROSS JOIN job USING (job_id) ORDER BY job.posted_at, job.job_id"
        )
        return [job_of(row) for row in rows]

    def reputation(self, now: int) -> dict[OrgId, Reputation]:
        """What each member that ever did wrong has on its account at a time, in Unix seconds of the chain."""
        rule = self._one("SELECT fade_seconds FROM reputation_rule")
        return {
            OrgId(row["org_id"]): Reputation(
                points=faded(Points(row["points"], row["since"]), now, rule[0] if rule else 1).points,
                faults=row["faults"],
            )
            for row in self._all("SELECT * FROM standing")
        }

    def faults(self, org: OrgId) -> list[FaultRow]:
        """What a member did wrong, newest first."""
        rows = self._all("SELECT * FROM fault WHERE org_id = ? ORDER BY sequence DESC", org)
        return [
            FaultRow(JobId(row["job_id"]), Fault(row["fault"]), row["points"], row["recorded_at"])
            for row in rows
        ]

    def verdicts(self, job_id: JobId) -> list[Verdict]:
        """What the verifiers of a job committed and revealed."""
        return [
            Verdict(
                verifier=OrgId(row["verifier"]),
                commitment=row["commitment"],
                result_digest=row["result_digest"],
                possession=row["possession"],
                agrees=None if row["agrees"] is None else bool(row["agrees"]),
            )
            for row in self._all("SELECT * FROM verdict WHERE job_id = ? ORDER BY verifier", job_id)
        ]

    # Lineage.

    def ancestors(self, artifact_id: ArtifactId) -> list[tuple[ArtifactId, ArtifactId]]:
        """Edges (child, parent) from an artifact upwards, nearest first."""
        return self._walk("parent_of", "child", "parent", artifact_id)

    def descendants(self, artifact_id: ArtifactId) -> list[tuple[ArtifactId, ArtifactId]]:
        """Edges (parent, child) from an artifact downwards, nearest first."""
        return self._walk("child_of", "parent", "child", artifact_id)

    def _walk(
        self, table: str, near: str, far: str, start: ArtifactId
    ) -> list[tuple[ArtifactId, ArtifactId]]:
        rows = self._all(
            f"WITH RECURSIVE reach(node) AS (SELECT ?1 UNION SELECT e.{far} FROM {table} e"  # noqa: S608
            f" JOIN reach ON e.{near} = reach.node LIMIT ?2)"
            f" SELECT e.{near}, e.{far} FROM reach CROSS JOIN {table} e ON e.{near} = reach.node LIMIT ?2",
            start,
            MAX_GRAPH_EDGES + 1,
        )
        if len(rows) > MAX_GRAPH_EDGES:
            raise GraphTooLargeError(f"more than {MAX_GRAPH_EDGES} edges hang on {start.hex()[:12]}")
        return [(ArtifactId(row[0]), ArtifactId(row[1])) for row in rows]

    def events_of_series(self, contract: str, series: bytes) -> list[dict[str, Any]]:
        """Events of one series in order, as JSON-able dicts."""
        return [
            event_of(row)
            for row in self._all(
                "SELECT * FROM event WHERE contract = ? AND series = ? ORDER BY block_number, log_index",
                contract,
                series,
            )
        ]

    def refusals(self, *, limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """Newest events that carry a reason to refuse, newest first, after the first `offset` of them."""
        rows = self._all(
            "SELECT event.* FROM (SELECT * FROM refusal ORDER BY block_number DESC, log_index DESC LIMIT ? OFFSET ?)"
            " CROSS JOIN event USING (block_number, log_index) ORDER BY block_number DESC, log_index DESC",
            limit,
            offset,
        )
        return [event_of(row) for row in rows]

    def events(self, *names: str, limit: int = -1) -> list[dict[str, Any]]:
        """Newest events with these names (any when none is given), newest first."""
        marks = ",".join("?" * len(names))
        where = f"WHERE name IN ({marks})" if names else ""
        rows = self._all(
            f"SELECT * FROM event {where} ORDER BY block_number DESC, log_index DESC LIMIT ?",  # noqa: S608
            *names,
            limit,
        )
        return [event_of(row) for row in rows]

    def ids(self, prefix: str, *, limit: int = 20) -> list[tuple[str, bytes]]:
        """(kind, id) of artifacts, jobs, grants and key domains whose id begins with these hex digits."""
        whole = prefix.lower().ljust(64, "0"), prefix.lower().ljust(64, "f")
        low, high = bytes.fromhex(whole[0]), bytes.fromhex(whole[1])
        rows = self._all(
            "SELECT 'artifact', artifact_id FROM artifact WHERE artifact_id BETWEEN ?1 AND ?2"
            " UNION ALL SELECT 'job', job_id FROM job WHERE job_id BETWEEN ?1 AND ?2"
            " UNION ALL SELECT 'grant', grant_id FROM usage_grant WHERE grant_id BETWEEN ?1 AND ?2"
            " UNION ALL SELECT 'key domain', key_id FROM key_domain WHERE key_id BETWEEN ?1 AND ?2 LIMIT ?3",
            low,
            high,
            limit,
        )
        return [(str(row[0]), bytes(row[1])) for row in rows]

    def event_count(self) -> int:
        """Number of events indexed."""
        row = self._one("SELECT count(*) FROM event")
        return int(row[0]) if row else 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(), self._db:
            yield self._db

    def _one(self, sql: str, *values: object) -> sqlite3.Row | None:
        with self._lock, _translated():
            row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
            return row

    def _all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        with self._lock, _translated():
            return self._db.execute(sql, values).fetchall()


def _set_aside(path: Path) -> Path:
    """Rename a database and the files that SQLite keeps beside it."""
    aside = path.with_name(f"{path.name}.damaged")
    for kind in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{kind}").replace(f"{aside}{kind}")
    return aside


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        is_damaged = getattr(exc, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
        kind = DamagedIndexError if is_damaged else IndexFileError
        raise kind(f"the index cannot be read or written: {exc}") from exc
