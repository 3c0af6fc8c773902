"""What this node keeps its blocks for, and who may therefore have them.

A block is given out only to a member that has business with it: as party to a live job, as custodian, auditor or the
partner that a release is for. Records that describe bundles (manifests, policies, consent status, public key material) are
open to all active members. Everything else is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from usufruct.content import Cid
from usufruct.records import JobId, JobState, MemberStatus, OrgId, Participant, Role
from usufruct_node.index import Index, JobRow
from usufruct_node.local import open_local


class Purpose(StrEnum):
    """Why a block is kept."""

    CATALOGUE = "catalogue"
    """Manifests, policies, consent status, public key material; `ref` is empty."""
    BUNDLE = "bundle"
    """Ciphertext blocks; `ref` is the digest of the bundle's manifest."""
    PARAMETERS = "parameters"
    """A job's kernel parameters; `ref` is empty."""
    RESULT = "result"
    """A job's result manifest and ciphertexts; `ref` is the job id."""
    RELEASE = "release"
    """A job's sealed release; `ref` is the job id."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One reason to keep one block."""

    purpose: Purpose
    ref: bytes


_EXECUTION = frozenset(
    {
        JobState.CLAIMED,
        JobState.COMMITTED,
        JobState.REVEALING,
        JobState.DISPUTED,
        JobState.VERIFIED,
        JobState.OPENED,
    }
)
_RESULT_PUBLIC = frozenset(
    {JobState.REVEALING, JobState.DISPUTED, JobState.VERIFIED, JobState.OPENED, JobState.RELEASED}
)


class Holdings:
    """Durable map from CID to reasons; thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(
            path,
            "CREATE TABLE IF NOT EXISTS holding (cid BLOB, purpose TEXT, ref BLOB,"
            " PRIMARY KEY (cid, purpose, ref)) WITHOUT ROWID",
        )

    def add(self, cids: Iterable[Cid], purpose: Purpose, ref: bytes = b"") -> None:
        """Note a reason for blocks; idempotent."""
        with self._lock, self._db:
            self._db.executemany(
                "INSERT OR IGNORE INTO holding VALUES (?, ?, ?)", [(bytes(cid), purpose, ref) for cid in cids]
            )

    def of(self, cid: Cid) -> list[Holding]:
        """Reasons to keep a block."""
        with self._lock:
            rows = self._db.execute(
                "SELECT purpose, ref FROM holding WHERE cid = ?", (bytes(cid),)
            ).fetchall()
        return [Holding(Purpose(row[0]), bytes(row[1])) for row in rows]

    def all(self, *purposes: Purpose) -> Iterator[tuple[Cid, Holding]]:
        """Every block that is kept for one of these purposes, in pages: others may add meanwhile."""
        after: tuple[bytes, str, bytes] = (b"", "", b"")
        while True:
            with self._lock:
                rows = self._db.execute(
                    "SELECT cid, purpose, ref FROM holding WHERE (cid, purpose, ref) > (?, ?, ?)"
                    " ORDER BY cid, purpose, ref LIMIT 1000",
                    after,
                ).fetchall()
            if not rows:
                return
            for cid, purpose, ref in rows:
                if purpose in purposes:
                    yield Cid.from_bytes(cid), Holding(Purpose(purpose), bytes(ref))
            after = rows[-1]

    def count(self) -> int:
        """Number of (block, reason) pairs."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM holding").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def may_read(index: Index, holder: OrgId, member: Participant, cid: Cid, holding: Holding) -> bool:
    """Whether a member has business with a block that `holder`, whose node asks this, keeps for this reason.

    Decided as of the indexed block. Only what the ledger says about the holder's own bundles and jobs counts: a record of
    somebody else that cites the same digest opens nothing.
    """
    if member.status != MemberStatus.ACTIVE:
        return False
    audits = Role.AUDITOR in member.roles
    if holding.purpose == Purpose.CATALOGUE:
        return True
    if holding.purpose == Purpose.BUNDLE:
        return audits or any(
            _executes(member, row) for row in _jobs_on_own_bundle(index, holder, holding.ref)
        )
    if holding.purpose == Purpose.PARAMETERS:
        own = [row for row in index.jobs_with_parameters(cid.digest) if row.job.requester == holder]
        live = [row for row in own if row.job.state != JobState.DENIED]
        return audits or any(_executes(member, row) or _keeps_key(index, member, row) for row in live)
    row = index.job(JobId(holding.ref))
    if row is None:
        return False
    if holding.purpose == Purpose.RESULT:
        return row.job.state in _RESULT_PUBLIC and _checks_result(index, member, row)
    # A node that was restored may hold a release beside the one that its lost self logged: only that one may ever be seen.
    logged = row.job.state == JobState.RELEASED and row.job.release_digest == cid.digest
    return logged and (audits or member.id == row.job.requester)


def _jobs_on_own_bundle(index: Index, holder: OrgId, manifest_digest: bytes) -> list[JobRow]:
    """Jobs in execution on bundles that the holder itself registered with this manifest."""
    found: list[JobRow] = []
    for artifact_id in index.bundles_with_content(manifest_digest):
        artifact = index.artifact(artifact_id)
        if artifact is not None and artifact.steward == holder:
            found += index.jobs(*_EXECUTION, artifact_id=artifact_id)
    return found


def _executes(member: Participant, row: JobRow) -> bool:
    """The compute node of a job, those that may still claim it, and its verifiers; never the requester."""
    if member.id == row.job.requester:
        return False
    if row.job.state == JobState.POSTED:
        return bool(member.roles & Role.COMPUTE)
    return member.id == row.job.executor or (row.job.state in _EXECUTION and Role.VERIFIER in member.roles)


def _keeps_key(index: Index, member: Participant, row: JobRow) -> bool:
    domain = index.key_domain(row.job.key_id)
    return domain is not None and domain.custodian == member.id


def _checks_result(index: Index, member: Participant, row: JobRow) -> bool:
    """Custodian, verifiers and auditors; never the requester, whatever its roles."""
    if member.id == row.job.requester:
        return False
    return bool(member.roles & (Role.VERIFIER | Role.AUDITOR)) or _keeps_key(index, member, row)
