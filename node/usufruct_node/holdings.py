"""What this node keeps its blocks for, and who may therefore have them.

A block is given out only to a member that has business with it: as party to a live job, as custodian or auditor, as one that
is to hold a copy, or as the partner that a release is for. At and after a bundle's retention nobody gets its ciphertexts.
Records that describe bundles (manifests, policies, consent status, public key material) are open to all active members.
Everything else is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from usufruct.content import Cid
from usufruct.records import Artifact, ArtifactId, JobId, JobState, MemberStatus, OrgId, Participant, Role
from usufruct_node.index import Index, JobRow
from usufruct_node.local import open_local

BUNDLE_PIN = "bundle:"


class Purpose(StrEnum):
    """Why a block is kept."""

    CATALOGUE = "catalogue"
    """Manifests, policies, consent status, public key material; `ref` is the id of the bundle that this node holds for
    another member, or empty."""
    BUNDLE = "bundle"
    """Ciphertext blocks of an own bundle; `ref` is the digest of its manifest."""
    HELD = "held"
    """Ciphertext blocks of another member's bundle that this node holds a copy of; `ref` is the bundle's id."""
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
_VERIFIED = frozenset({JobState.VERIFIED, JobState.OPENED, JobState.RELEASED})
_RESULT_PUBLIC = frozenset(
    {JobState.REVEALING, JobState.DISPUTED, JobState.VERIFIED, JobState.OPENED, JobState.RELEASED}
)


def bundle_pin(content_digest: bytes) -> str:
    """Pin under which the ciphertexts of an own bundle are kept; `content_digest` is its manifest's."""
    return BUNDLE_PIN + content_digest.hex()


class Holdings:
    """Durable map from CID to reasons; thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_local(
            path,
            "CREATE TABLE IF NOT EXISTS holding (cid BLOB, purpose TEXT, ref BLOB,"
            " PRIMARY KEY (cid, purpose, ref)) WITHOUT ROWID",
            "CREATE INDEX IF NOT EXISTS holding_for ON holding (purpose, ref)",
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

    def cids(self, purpose: Purpose, ref: bytes) -> list[Cid]:
        """Blocks that are kept for a reason."""
        with self._lock:
            rows = self._db.execute(
                "SELECT cid FROM holding WHERE purpose = ? AND ref = ?", (purpose, ref)
            ).fetchall()
        return [Cid.from_bytes(row[0]) for row in rows]

    def drop(self, purpose: Purpose, ref: bytes) -> None:
        """Forget a reason, for every block."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM holding WHERE purpose = ? AND ref = ?", (purpose, ref))

    def remove(self, cids: Iterable[Cid], purpose: Purpose, ref: bytes) -> None:
        """Forget a reason, for some blocks."""
        with self._lock, self._db:
            self._db.executemany(
                "DELETE FROM holding WHERE cid = ? AND purpose = ? AND ref = ?",
                [(bytes(cid), purpose, ref) for cid in cids],
            )

    def refs(self, purpose: Purpose) -> list[bytes]:
        """What blocks are kept for, of one purpose."""
        with self._lock:
            rows = self._db.execute(
                "SELECT DISTINCT ref FROM holding WHERE purpose = ?", (purpose,)
            ).fetchall()
        return [bytes(row[0]) for row in rows]

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


def may_read(
    index: Index,
    holder: OrgId,
    member: Participant,
    cid: Cid,
    holding: Holding,
    *,
    now: int,
    is_holder: Callable[[ArtifactId, OrgId], bool],
) -> bool:
    """Whether a member has business with a block that `holder`, whose node asks this, keeps for this reason.

    Decided as of the indexed block. Only what the ledger says about the holder's own bundles and jobs, and about the very
    bundles that it holds copies of, counts: a record of somebody else that cites the same digest opens nothing.

    Parameters
    ----------
    now :
        Unix seconds, chain time.
    is_holder :
        Whether a member is to hold a copy of a bundle.
    """
    if member.status != MemberStatus.ACTIVE:
        return False
    audits = Role.AUDITOR in member.roles
    if holding.purpose == Purpose.CATALOGUE:
        return True
    if holding.purpose in (Purpose.BUNDLE, Purpose.HELD):
        return any(
            audits
            or member.id == artifact.steward != holder
            or any(_executes(member, row) for row in index.jobs(*_EXECUTION, artifact_id=artifact_id))
            or is_holder(artifact_id, member.id)
            for artifact_id, artifact in _bundles_of(index, holder, holding)
            if now < artifact.retain_until
        )
    if holding.purpose == Purpose.PARAMETERS:
        own = [row for row in index.jobs_with_parameters(cid.digest) if row.job.requester == holder]
        live = [row for row in own if row.job.state != JobState.DENIED]
        return audits or any(
            _executes(member, row) or _may_claim(member, row, now) or _keeps_key(index, member, row)
            for row in live
        )
    row = index.job(JobId(holding.ref))
    if row is None:
        return False
    if holding.purpose == Purpose.RESULT:
        public = row.job.state in _RESULT_PUBLIC and _checks_result(index, member, row)
        return public or _reads_own_lineage(member, row, cid)
    # A node that was restored may hold a release beside the one that its lost self logged: only that one may ever be seen.
    logged = row.job.state == JobState.RELEASED and row.job.release_digest == cid.digest
    return logged and (audits or member.id == row.job.requester)


def _bundles_of(index: Index, holder: OrgId, holding: Holding) -> list[tuple[ArtifactId, Artifact]]:
    """The bundle that a copy is of, or those that the holder itself registered with this manifest."""
    own = holding.purpose == Purpose.BUNDLE
    ids = index.bundles_with_content(holding.ref) if own else [ArtifactId(holding.ref)]
    found = [(artifact_id, index.artifact(artifact_id)) for artifact_id in ids]
    return [(id_, artifact) for id_, artifact in found if artifact and (artifact.steward == holder) == own]


def _executes(member: Participant, row: JobRow) -> bool:
    """The compute node of a job and, once it is claimed, its verifiers; never the requester."""
    if member.id == row.job.requester:
        return False
    return member.id == row.job.executor or (row.job.state in _EXECUTION and Role.VERIFIER in member.roles)


def _may_claim(member: Participant, row: JobRow, now: int) -> bool:
    """Compute nodes while a job is open, or its claim has lapsed; never the requester."""
    claimable = row.job.state == JobState.POSTED or row.lapsed(now)
    return claimable and Role.COMPUTE in member.roles and member.id != row.job.requester


def _keeps_key(index: Index, member: Participant, row: JobRow) -> bool:
    domain = index.key_domain(row.job.key_id)
    return domain is not None and domain.custodian == member.id


def _checks_result(index: Index, member: Participant, row: JobRow) -> bool:
    """Custodian, verifiers and auditors; never the requester, whatever its roles."""
    if member.id == row.job.requester:
        return False
    return bool(member.roles & (Role.VERIFIER | Role.AUDITOR)) or _keeps_key(index, member, row)


def _reads_own_lineage(member: Participant, row: JobRow, cid: Cid) -> bool:
    """The requester, of its verified result: the manifest that names the ciphertexts, and none of these."""
    is_manifest = cid.digest == row.job.result_digest
    return is_manifest and row.job.state in _VERIFIED and member.id == row.job.requester
