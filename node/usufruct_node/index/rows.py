"""Rows of the index as the ledger's records. Knows columns; asks no database."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from usufruct.ledger.abi import args_to_json
from usufruct.ledger.series import event_codec
from usufruct.records import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    Fault,
    FreezeState,
    GrantId,
    GrantStatus,
    GrantTerms,
    Job,
    JobId,
    JobRequest,
    JobState,
    KeyDomain,
    KeyId,
    KeyStatus,
    Level,
    MemberStatus,
    OrgId,
    Participant,
    Refusal,
    Role,
    UsageGrant,
)
from usufruct_node.index.apply import from_signed

MAX_TURNS: Final = 3
"""Claims that a job may have; when the last of them lapses, nobody takes it over. Source: `contracts/JobLedger.sol`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job with its id and the block times of posting and of its last change."""

    job_id: JobId
    job: Job
    posted_at: int
    changed_at: int
    sigma_micro: int
    turns: int
    """Claims so far."""

    def overdue(self, now: int) -> bool:
        """Whether the present state's deadline has passed, in chain time."""
        return self.job.deadline != 0 and now >= self.job.deadline

    def lapsed(self, now: int) -> bool:
        """Whether the job was claimed and not delivered in time, so that another compute node may claim it."""
        return self.job.state == JobState.CLAIMED and self.overdue(now) and self.turns < MAX_TURNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one verifier committed and, once opened, revealed."""

    verifier: OrgId
    commitment: bytes
    result_digest: bytes | None
    possession: bytes | None
    agrees: bool | None


@dataclass(frozen=True, slots=True)
class FaultRow:
    """What one member did wrong in one job; `points` are what it had after that, and the time is the block's."""

    job_id: JobId
    fault: Fault
    points: int
    recorded_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reputation:
    """What a member has on its account now, and how often it ever did wrong."""

    points: int
    faults: int


BLAMELESS = Reputation(points=0, faults=0)


def participant_of(row: sqlite3.Row) -> Participant:
    """An organisation."""
    return Participant(
        id=OrgId(row["org_id"]),
        account=row["account"],
        node_account=row["node_account"],
        roles=Role(row["roles"]),
        status=MemberStatus(row["status"]),
        hpke_key=row["hpke_key"],
        peer_id=row["peer_id"],
        endpoint=row["endpoint"],
    )


def key_domain_of(row: sqlite3.Row) -> KeyDomain:
    """A key domain."""
    return KeyDomain(
        custodian=OrgId(row["custodian"]),
        parameters_id=row["parameters_id"],
        public_digest=row["public_digest"],
        epoch=row["epoch"],
        registered_at=row["registered_at"],
        status=KeyStatus(row["status"]),
    )


def artifact_of(row: sqlite3.Row) -> Artifact:
    """A bundle, result or release."""
    return Artifact(
        kind=ArtifactKind(row["kind"]),
        steward=OrgId(row["steward"]),
        key_id=KeyId(row["key_id"]),
        content_digest=row["content_digest"],
        policy_digest=row["policy_digest"],
        policy_version=row["policy_version"],
        consent_scope=row["consent_scope"],
        retain_until=from_signed(row["retain_until"]),
        registered_at=row["registered_at"],
        frozen=FreezeState(row["frozen"]),
    )


_NO_TERMS = GrantTerms(
    kernels=(), uses=0, expires_at=0, rho_micro=0, min_cohort=0, level=Level.NONE, replicas=0
)


def terms_of(given: dict[str, Any] | None) -> GrantTerms:
    """Terms of a grant from their JSON; empty ones for None."""
    if given is None:
        return _NO_TERMS
    return GrantTerms(
        kernels=tuple(bytes.fromhex(kernel[2:]) for kernel in given["kernels"]),
        uses=given["uses"],
        expires_at=given["expiresAt"],
        rho_micro=given["rhoMicro"],
        min_cohort=given["minCohort"],
        level=Level(given["level"]),
        replicas=given["replicas"],
        row_level=given["rowLevel"],
    )


def grant_of(row: sqlite3.Row) -> UsageGrant:
    """A request or grant."""
    return UsageGrant(
        artifact_id=ArtifactId(row["artifact_id"]),
        grantee=OrgId(row["grantee"]),
        purpose=row["purpose"],
        status=GrantStatus(row["status"]),
        used=row["used"],
        terms=terms_of(None if row["terms"] is None else json.loads(row["terms"])),
    )


def job_of(row: sqlite3.Row) -> JobRow:
    """A job."""
    request = JobRequest(
        artifact_id=ArtifactId(row["artifact_id"]),
        grant_id=GrantId(row["grant_id"]),
        kernel_id=row["kernel_id"],
        parameters_digest=row["parameters_digest"],
        purpose=row["purpose"],
        consent_epoch=from_signed(row["consent_epoch"]),
        policy_version=row["policy_version"],
        rho_micro=from_signed(row["rho_micro"]),
        row_level=bool(row["row_level"]),
        nonce=from_signed(row["nonce"]),
    )
    job = Job(
        state=JobState(row["state"]),
        requester=OrgId(row["requester"]),
        executor=OrgId(row["executor"]),
        key_id=KeyId(row["key_id"]),
        deadline=row["deadline"],
        replicas=row["replicas"],
        asked=row["asked"],
        commits=row["commits"],
        agreeing=row["agreeing"],
        dissenting=row["dissenting"],
        refusal=Refusal(row["refusal"]),
        result_digest=row["result_digest"],
        release_digest=row["release_digest"],
        request=request,
    )
    return JobRow(
        job_id=JobId(row["job_id"]),
        job=job,
        posted_at=row["posted_at"],
        changed_at=row["changed_at"],
        sigma_micro=from_signed(row["sigma_micro"]),
        turns=row["turns"],
    )


def event_of(row: sqlite3.Row) -> dict[str, Any]:
    """An event, as a JSON-able dict."""
    codec = event_codec(row["contract"], row["name"])
    return {
        "contract": row["contract"],
        "name": row["name"],
        "args": args_to_json(codec.decode(row["words"])),
        "block_number": row["block_number"],
        "block_hash": "0x" + row["block_hash"].hex(),
        "block_time": row["block_time"],
        "transaction_hash": "0x" + row["transaction_hash"].hex(),
        "log_index": row["log_index"],
    }
