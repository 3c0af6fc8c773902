"""What this node knows of copies of bundles, durable: policies read, notices, failures, what it holds, what was erased.

Rows only; who holds what is decided in `placement`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from usufruct.content import dag
from usufruct.custody import Erased, ErasureStatement, PlacementNotice
from usufruct.records import ArtifactId, OrgId
from usufruct.replication import Replication
from usufruct_node.local import open_local

_TABLES = (
    "CREATE TABLE IF NOT EXISTS replication (policy_digest BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS placement_notice (artifact_id BLOB PRIMARY KEY, sequence INTEGER NOT NULL,"
    " record BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS failed_holder (artifact_id BLOB, org_id BLOB, until INTEGER NOT NULL,"
    " PRIMARY KEY (artifact_id, org_id)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS designation (artifact_id BLOB, org_id BLOB, since INTEGER NOT NULL,"
    " last_at INTEGER NOT NULL, in_force INTEGER NOT NULL, PRIMARY KEY (artifact_id, org_id)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS held_bundle (artifact_id BLOB PRIMARY KEY, blocks INTEGER NOT NULL,"
    " size_bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS erasure (artifact_id BLOB, org_id BLOB, what INTEGER, erased_at INTEGER NOT NULL,"
    " record BLOB NOT NULL, PRIMARY KEY (artifact_id, org_id, what)) WITHOUT ROWID",
)

_ADD_ERASURE = (
    "INSERT INTO erasure VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET erased_at = excluded.erased_at,"
    " record = excluded.record WHERE excluded.erased_at > erasure.erased_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A bundle of another member that this node holds, or has begun to fetch."""

    artifact_id: ArtifactId
    blocks: int
    size_bytes: int
    """0 until the whole bundle is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Designation:
    """A member that this node, as steward, counted on for a copy."""

    org: OrgId
    since: int
    """Unix seconds, chain time, since when without a break."""
    last_at: int
    """When it was last among the holders."""
    in_force: bool


class CustodyStore:
    """Thread-safe; every write is on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(path, *_TABLES)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # What stewards wish.

    def keep_replication(self, policy_digest: bytes, replication: Replication) -> None:
        """Remember what a policy says; a digest has one content."""
        self._write(
            "INSERT OR IGNORE INTO replication VALUES (?, ?)",
            (policy_digest, dag.encode(replication.to_record())),
        )

    def replication(self, policy_digest: bytes) -> Replication | None:
        """What a policy says, if it was read."""
        row = self._one("SELECT record FROM replication WHERE policy_digest = ?", policy_digest)
        return None if row is None else Replication.from_record(dag.decode_map(bytes(row[0])))

    def keep_notice(self, notice: PlacementNotice) -> bool:
        """Keep a notice, whose signature was checked, unless one as new is here; says whether it was kept."""
        changed = self._write(
            "INSERT INTO placement_notice VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET sequence = excluded.sequence,"
            " record = excluded.record WHERE excluded.sequence > placement_notice.sequence",
            (notice.artifact_id, notice.sequence, dag.encode(notice.to_record())),
        )
        return changed > 0

    def notice(self, artifact_id: ArtifactId) -> PlacementNotice | None:
        """The newest notice on a bundle."""
        row = self._one("SELECT record FROM placement_notice WHERE artifact_id = ?", artifact_id)
        return None if row is None else PlacementNotice.from_record(dag.decode_map(bytes(row[0])))

    # What the steward's node remembers of its holders.

    def fail(self, artifact_id: ArtifactId, org: OrgId, until: int) -> None:
        """A holder does not count before `until`, Unix seconds."""
        self._write(
            "INSERT INTO failed_holder VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until = excluded.until",
            (artifact_id, org, until),
        )

    def failed(self, artifact_id: ArtifactId, now: int) -> tuple[OrgId, ...]:
        """Holders that do not count at `now`."""
        rows = self._all(
            "SELECT org_id FROM failed_holder WHERE artifact_id = ? AND until > ? ORDER BY org_id",
            artifact_id,
            now,
        )
        return tuple(OrgId(row[0]) for row in rows)

    def designate(self, artifact_id: ArtifactId, holders: Iterable[OrgId], now: int) -> None:
        """Note who is to hold a bundle as of `now`; who was before stays on the list, out of force."""
        chosen = set(holders)
        with self._lock, self._db:
            known = self._db.execute(
                "SELECT org_id FROM designation WHERE artifact_id = ? AND in_force", (artifact_id,)
            ).fetchall()
            for (org,) in known:
                if org not in chosen:
                    self._db.execute(
                        "UPDATE designation SET in_force = 0 WHERE artifact_id = ? AND org_id = ?",
                        (artifact_id, org),
                    )
            self._db.executemany(
                "INSERT INTO designation VALUES (?1, ?2, ?3, ?3, 1) ON CONFLICT DO UPDATE SET"
                " since = CASE WHEN in_force THEN since ELSE excluded.since END,"
                " last_at = max(last_at, excluded.last_at), in_force = 1",
                [(artifact_id, org, now) for org in chosen],
            )

    def designations(self, artifact_id: ArtifactId) -> list[Designation]:
        """Everybody that was ever to hold a copy of an own bundle."""
        rows = self._all(
            "SELECT org_id, since, last_at, in_force FROM designation WHERE artifact_id = ? ORDER BY org_id",
            artifact_id,
        )
        return [
            Designation(org=OrgId(row[0]), since=row[1], last_at=row[2], in_force=bool(row[3]))
            for row in rows
        ]

    # What this node holds for others.

    def hold(self, held: Held) -> None:
        """Note a bundle that is being fetched, or is here."""
        self._write(
            "INSERT INTO held_bundle VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET blocks = excluded.blocks,"
            " size_bytes = max(size_bytes, excluded.size_bytes)",
            (held.artifact_id, held.blocks, held.size_bytes),
        )

    def held(self) -> list[Held]:
        """Every bundle that is held or being fetched."""
        rows = self._all("SELECT artifact_id, blocks, size_bytes FROM held_bundle ORDER BY artifact_id")
        return [Held(artifact_id=ArtifactId(row[0]), blocks=row[1], size_bytes=row[2]) for row in rows]

    def let_go(self, artifact_id: ArtifactId, statement: ErasureStatement | None = None) -> None:
        """Forget a held bundle, and keep what this node states of its erasure: both or neither."""
        with self._lock, self._db:
            if statement is not None:
                self._db.execute(_ADD_ERASURE, _erasure_row(statement))
            self._db.execute("DELETE FROM held_bundle WHERE artifact_id = ?", (artifact_id,))

    # Erasures.

    def keep_erasure(self, statement: ErasureStatement) -> None:
        """Keep a statement, whose signature was checked; of one member's on the same thing, the newest."""
        self._write(_ADD_ERASURE, _erasure_row(statement))

    def erasures(self, artifact_id: ArtifactId) -> list[ErasureStatement]:
        """Statements on a bundle."""
        rows = self._all(
            "SELECT record FROM erasure WHERE artifact_id = ? ORDER BY what, org_id", artifact_id
        )
        return [ErasureStatement.from_record(dag.decode_map(bytes(row[0]))) for row in rows]

    def awaited(self, artifact_id: ArtifactId) -> list[OrgId]:
        """Members that were to hold a copy of an own bundle and have not stated that they erased it since."""
        erased = {s.holder: s.erased_at for s in self.erasures(artifact_id) if s.what == Erased.COPY}
        return [d.org for d in self.designations(artifact_id) if erased.get(d.org, -1) < d.last_at]

    def has_erased(self, artifact_id: ArtifactId, org: OrgId, what: Erased) -> bool:
        """Whether a member's statement on this is here."""
        query = "SELECT 1 FROM erasure WHERE artifact_id = ? AND org_id = ? AND what = ?"
        return self._one(query, artifact_id, org, what) is not None

    def _write(self, sql: str, values: tuple[object, ...]) -> int:
        with self._lock, self._db:
            return self._db.execute(sql, values).rowcount

    def _one(self, sql: str, *values: object) -> tuple[bytes, ...] | None:
        with self._lock:
            row: tuple[bytes, ...] | None = self._db.execute(sql, values).fetchone()
            return row

    def _all(self, sql: str, *values: object) -> list[tuple[bytes, int, int, int]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()


def _erasure_row(statement: ErasureStatement) -> tuple[object, ...]:
    record = dag.encode(statement.to_record())
    return (statement.artifact_id, statement.holder, statement.what, statement.erased_at, record)
