"""One job as a node puts it to the custodian: what the ledger says, the records that the ledger cites, whether they fit.

The custodian has no network, so it takes the ledger's word from the node, as of a finalised block. Everything that follows from
it is checked here again: hashes, policy, purpose, consent of every row, cohort, proofs of possession, worst-case bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

from pydantic import TypeAdapter, ValidationError

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.errors import CustodianError, IntegrityError, ReleaseRefusedError
from usufruct.job import JobInputs, JobParameters, check_job
from usufruct.publish import read_manifest
from usufruct.records import (
    Artifact,
    ConsentEpoch,
    FreezeState,
    GrantStatus,
    Job,
    JobId,
    JobState,
    KeyDomain,
    KeyStatus,
    OrgId,
    Refusal,
    UsageGrant,
)
from usufruct.register import Policy
from usufruct.verify import ResultManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the ledger says of a job, as of one finalised block."""

    chain_id: int
    now: int
    """Chain time, Unix seconds."""
    job_id: JobId
    job: Job
    artifact: Artifact
    policy_digest: bytes
    """Of the policy version that the job names."""
    domain: KeyDomain
    grant: UsageGrant
    cited_epoch: ConsentEpoch
    epoch_in_force: int
    requester_active: bool
    recipient_key: bytes
    """32 bytes, X25519."""
    possessions: tuple[tuple[OrgId, bytes], ...]
    """Verifier and proof, of each that agreed."""
    under_way: tuple[JobId, ...]
    """Jobs on bundles under the key domain that are Verified or Opened."""
    released: bytes
    """Ids of the released jobs on the bundle, 32 bytes each, one after the other."""

    def to_record(self) -> dict[str, object]:
        """As it crosses the socket."""
        return {name: _plain(value) for name, value in _ADAPTER.dump_python(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Case:
        """Parse strictly: what it parses to has to have the same bytes again; raises CustodianError."""
        try:
            found = _ADAPTER.validate_python(record)
        except ValidationError as exc:
            raise CustodianError(f"a case has {exc.error_count()} fields that are wrong") from exc
        if dag.encode(found.to_record()) != dag.encode(record):
            raise CustodianError("a case has fields that belong to none")
        return found

    @property
    def released_jobs(self) -> set[JobId]:
        """The released jobs on the bundle."""
        return {JobId(self.released[at : at + 32]) for at in range(0, len(self.released), 32)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """DAG-CBOR blocks that the ledger cites by digest."""

    manifest: bytes
    policy: bytes
    status: bytes
    parameters: bytes
    result: bytes

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """In the order in which they cross the socket."""
        return tuple(field.name for field in fields(cls))


def check_case(case: Case, records: Records, org: OrgId, state: JobState) -> tuple[JobInputs, ResultManifest]:
    """Check everything but the result blocks.

    Parameters
    ----------
    org :
        The custodian's organisation.
    state :
        In which the job has to be.

    Raises
    ------
    ReleaseRefusedError
        With the ledger's name of the reason.
    IntegrityError, InputError, WrongKeyDomainError
        If the records are not those that the ledger cites, or do not fit each other.
    """
    reason = _refusal(case, org)
    if reason != Refusal.NONE:
        raise ReleaseRefusedError(reason.name)
    if case.job.state != state:
        raise CustodianError(f"the job is {case.job.state.name}, not {state.name}")
    request = case.job.request
    cited = {
        "manifest": case.artifact.content_digest,
        "policy": case.policy_digest,
        "status": case.cited_epoch.status_digest,
        "parameters": request.parameters_digest,
        "result": case.job.result_digest,
    }
    for name, digest in cited.items():
        Cid.from_digest(digest, Codec.DAG_CBOR).check(getattr(records, name))
    inputs = check_job(
        request,
        case.artifact,
        manifest=read_manifest(dag.decode_map(records.manifest)),
        policy=Policy.from_record(dag.decode_map(records.policy)),
        status=ConsentStatus.from_record(dag.decode_map(records.status)),
        parameters=JobParameters.from_record(dag.decode_map(records.parameters)),
        min_cohort=case.grant.terms.min_cohort,
    )
    inputs.status.check_in_force(case.now)
    result = ResultManifest.from_record(dag.decode_map(records.result))
    named = (result.job_id, result.kernel_id, result.bundle, result.status, result.parameters)
    links = tuple(
        Cid.from_digest(cited[name], Codec.DAG_CBOR) for name in ("manifest", "status", "parameters")
    )
    if named != (case.job_id, request.kernel_id, *links):
        raise IntegrityError("the result manifest names other inputs than the job")
    return inputs, result


def _refusal(case: Case, org: OrgId) -> Refusal:
    job, request, artifact, grant = case.job, case.job.request, case.artifact, case.grant
    allowed = grant.terms
    checks: Sequence[tuple[bool, Refusal]] = (
        (artifact.steward == org == case.domain.custodian, Refusal.ARTIFACT_MISMATCH),
        (artifact.key_id == job.key_id, Refusal.ARTIFACT_MISMATCH),
        (artifact.frozen == FreezeState.NONE, Refusal.ARTIFACT_FROZEN),
        (case.now < artifact.retain_until, Refusal.RETENTION_PASSED),
        (case.domain.status == KeyStatus.ACTIVE, Refusal.KEY_DOMAIN_NOT_ACTIVE),
        (case.requester_active, Refusal.REQUESTER_NOT_ACTIVE),
        (grant.status == GrantStatus.GRANTED, Refusal.GRANT_REVOKED),
        (case.now < allowed.expires_at, Refusal.GRANT_EXPIRED),
        (grant.artifact_id == request.artifact_id, Refusal.ARTIFACT_MISMATCH),
        (grant.grantee == job.requester, Refusal.GRANTEE_MISMATCH),
        (grant.purpose == request.purpose, Refusal.PURPOSE_NOT_GRANTED),
        (request.kernel_id in allowed.kernels, Refusal.KERNEL_NOT_GRANTED),
        (allowed.row_level or not request.row_level, Refusal.ROW_LEVEL_NOT_GRANTED),
        (job.replicas >= max(1, allowed.replicas), Refusal.LEVEL_TOO_LOW),
        (request.policy_version == artifact.policy_version, Refusal.POLICY_VERSION_STALE),
        (request.consent_epoch == case.cited_epoch.epoch, Refusal.CONSENT_EPOCH_STALE),
        (request.consent_epoch == case.epoch_in_force, Refusal.CONSENT_EPOCH_STALE),
        (0 < request.rho_micro <= allowed.rho_micro, Refusal.BUDGET_EXCEEDED),
    )
    return next((reason for holds, reason in checks if not holds), Refusal.NONE)


def _plain(value: object) -> object:
    """Enumerations as integers, tuples as lists; bytes, text and numbers as they are."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, IntEnum) else value


_ADAPTER: Final = TypeAdapter(Case)
