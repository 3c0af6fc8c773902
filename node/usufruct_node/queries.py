"""Answers of the index as JSON: who is a member, what was derived from what, who used it, what was refused and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import eth_abi.abi
import eth_abi.exceptions

from usufruct.errors import BlockNotFoundError, UnknownKernelError
from usufruct.he.kernels import kernel_by_id
from usufruct.he.parameters import PARAMETER_SETS
from usufruct.ledger.abi import load_abi
from usufruct.records import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    GrantId,
    GrantTerms,
    Job,
    JobId,
    JobRequest,
    JobState,
    Level,
    MemberStatus,
    OrgId,
    Refusal,
    Role,
    UsageGrant,
    label,
    unlabel,
)
from usufruct_node.index import Index, JobRow
from usufruct_node.index.rows import BLAMELESS


class UnknownRecordError(BlockNotFoundError):
    """The index knows nothing under this id."""


class Queries:
    """Read-only; every answer is as of the newest indexed block."""

    def __init__(self, index: Index, contracts: Mapping[str, str]) -> None:
        self._index = index
        self._contracts = {address.lower(): name for name, address in contracts.items()}

    def cursor(self) -> dict[str, int]:
        """The newest indexed block, 0 while there is none."""
        head = self._index.cursor()
        return {"indexed_block": head.number if head else 0}

    def members(self) -> list[dict[str, Any]]:
        """Every organisation ever admitted, with the points that it has for faults now and the number of faults ever."""
        head = self._index.cursor()
        reputation = self._index.reputation(head.timestamp if head else 0)
        return [
            {
                "name": member.name,
                "status": member.status.name,
                "roles": [role.name for role in Role if role and role in member.roles],
                **asdict(reputation.get(member.id, BLAMELESS)),
                "account": member.account,
                "node_account": member.node_account,
                "peer_id": member.peer_id.hex(),
                "endpoint": member.endpoint,
            }
            for member in self._index.participants()
        ]

    def faults(self, org: OrgId) -> list[dict[str, Any]]:
        """What a member did wrong in jobs, newest first."""
        if self._index.participant(org) is None:
            raise UnknownRecordError(f"no member {unlabel(org)}")
        return [
            {
                "job_id": row.job_id.hex(),
                "fault": row.fault.name,
                "points": row.points,
                "recorded_at": row.recorded_at,
            }
            for row in self._index.faults(org)
        ]

    def bundles(self) -> list[dict[str, Any]]:
        """Registered bundles with consent epoch and privacy account."""
        return [self._bundle(id_, record) for id_, record in self._index.artifacts(ArtifactKind.BUNDLE)]

    def consent_epochs(self, steward: OrgId, scope: str) -> list[dict[str, Any]]:
        """The events of a steward's consent epochs for a purpose, in order."""
        return self._index.events_of_series("ConsentRegistry", steward + label(scope))

    def key_domains(self) -> list[dict[str, Any]]:
        """Homomorphic key domains, newest first."""
        names = {known.parameters_id: name for name, known in PARAMETER_SETS.items()}
        return [
            {
                "key_id": key_id.hex(),
                "custodian": unlabel(domain.custodian),
                "parameters": names.get(domain.parameters_id, domain.parameters_id.hex()),
                "status": domain.status.name,
                "registered_at": domain.registered_at,
            }
            for key_id, domain in self._index.key_domains()
        ]

    def grants(self, *, grantee: OrgId | None, steward: OrgId | None) -> list[dict[str, Any]]:
        """Requests and grants, newest first."""
        return [
            _grant(id_, grant, asked)
            for id_, grant, asked in self._index.grants(grantee=grantee, steward=steward)
        ]

    def grant(self, grant_id: GrantId) -> dict[str, Any]:
        """One grant with its events."""
        found = self._index.request(grant_id)
        if found is None:
            raise UnknownRecordError(f"no grant {grant_id.hex()}")
        events = self._index.events_of_series("UsageRights", grant_id)
        return _grant(grant_id, *found) | {"events": events}

    def jobs(self, states: Sequence[JobState], limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """Jobs, newest first, after the first `offset` of them."""
        rows = self._index.jobs(*states, newest_first=True, limit=limit, offset=offset)
        return [self._job(row) for row in rows]

    def job(self, job_id: JobId) -> dict[str, Any]:
        """One job with its verdicts, artifacts and events."""
        row = self._index.job(job_id)
        if row is None:
            raise UnknownRecordError(f"no job {job_id.hex()}")
        return self._job(row) | {
            "verdicts": [
                {"verifier": unlabel(v.verifier), "agrees": v.agrees, "revealed": v.result_digest is not None}
                for v in self._index.verdicts(job_id)
            ],
            "artifacts": [artifact.hex() for artifact in self._index.derived(job_id)],
            "events": self._index.events_of_series("JobLedger", job_id),
        }

    def denials(self, limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """Refusals, newest first, after the first `offset` of them."""
        found: list[dict[str, Any]] = []
        for event in self._index.refusals(limit=limit, offset=offset):
            args = event["args"]
            reason = Refusal(args["reason"])
            subject = args.get("jobId") or args.get("grantId")
            row = self._index.job(JobId(bytes.fromhex(args["jobId"][2:]))) if "jobId" in args else None
            found.append(
                {
                    "what": event["name"],
                    "id": subject[2:],
                    "reason": reason.name,
                    "requester": unlabel(row.job.requester) if row else None,
                    "artifact": row.job.request.artifact_id.hex() if row else None,
                    "kernel": _kernel_name(row.job.request.kernel_id) if row else None,
                    "block_number": event["block_number"],
                    "block_time": event["block_time"],
                    "transaction_hash": event["transaction_hash"],
                }
            )
        return found

    def proposals(self) -> list[dict[str, Any]]:
        """Proposals of the members' council, newest first: what would be called, and who voted how."""
        votes: dict[int, dict[str, bool]] = {}
        executed = set()
        answers = []
        for event in reversed(self._index.events("ProposalMade", "VoteCast", "ProposalExecuted")):
            args = event["args"]
            number = args["proposalId"]
            if event["name"] == "VoteCast":
                votes.setdefault(number, {})[_org_name(args["voter"])] = args["support"]
            elif event["name"] == "ProposalExecuted":
                executed.add(number)
            else:
                answers.append(
                    {
                        "proposal": number,
                        "proposer": _org_name(args["proposer"]),
                        "call": _call_text(
                            self._contracts.get(args["target"].lower()), bytes.fromhex(args["data"][2:])
                        ),
                        "deadline": args["deadline"],
                    }
                )
        return [
            answer
            | {
                "executed": answer["proposal"] in executed,
                "for": [name for name, support in votes.get(answer["proposal"], {}).items() if support],
                "against": [
                    name for name, support in votes.get(answer["proposal"], {}).items() if not support
                ],
            }
            for answer in reversed(answers)
        ]

    def lineage(self, artifact_id: ArtifactId, direction: str) -> dict[str, Any]:
        """Artifacts and (child, parent) edges reachable from one artifact."""
        self._require(artifact_id)
        if direction == "ancestors":
            edges = self._index.ancestors(artifact_id)
        else:
            edges = [(child, parent) for parent, child in self._index.descendants(artifact_id)]
        nodes = dict.fromkeys([artifact_id, *(node for edge in edges for node in edge)])
        return {
            "root": artifact_id.hex(),
            "artifacts": [self.artifact(node) for node in nodes],
            "edges": [[child.hex(), parent.hex()] for child, parent in edges],
        }

    def artifact(self, artifact_id: ArtifactId) -> dict[str, Any]:
        """One artifact, with the job, grant, consent epoch and policy in force when it was made."""
        record = self._require(artifact_id)
        answer: dict[str, Any] = {
            "artifact_id": artifact_id.hex(),
            "kind": record.kind.name,
            "steward": unlabel(record.steward),
            "key_id": record.key_id.hex(),
            "content_digest": record.content_digest.hex(),
            "events": self._index.events_of_series("LineageRegistry", artifact_id),
        }
        if record.kind == ArtifactKind.BUNDLE:
            return answer | self._bundle(artifact_id, record)
        job_id = self._index.artifact_job(artifact_id)
        row = None if job_id is None else self._index.job(job_id)
        if row is None:
            return answer
        bundle = self._require(row.job.request.artifact_id)
        scope = unlabel(bundle.consent_scope)
        policy = self._index.policy_digest(row.job.request.artifact_id, row.job.request.policy_version)
        epoch = self._index.consent_epoch(bundle.steward, bundle.consent_scope, row.job.request.consent_epoch)
        return answer | {
            "job": self.job(row.job_id),
            "grant": self.grant(row.job.request.grant_id),
            "policy": {
                "version": row.job.request.policy_version,
                "digest": (policy or b"").hex(),
                "holder": unlabel(bundle.steward),
            },
            "consent": {
                "steward": unlabel(bundle.steward),
                "scope": scope,
                "epoch": row.job.request.consent_epoch,
                "status_digest": (epoch.status_digest if epoch else b"").hex(),
                "consent_root": (epoch.consent_root if epoch else b"").hex(),
                "events": self._index.events_of_series(
                    "ConsentRegistry", bundle.steward + bundle.consent_scope
                ),
            },
            "stale": self._stale(row, bundle),
        }

    def impact(self, artifact_id: ArtifactId) -> list[dict[str, Any]]:
        """Results and releases that rest on a bundle; `stale` where the consent epoch used is no longer in force."""
        self._require(artifact_id)
        answers = []
        for child in dict.fromkeys(child for _, child in self._index.descendants(artifact_id)):
            record = self._require(child)
            job_id = self._index.artifact_job(child)
            row = None if job_id is None else self._index.job(job_id)
            if row is None:
                continue
            bundle = self._require(row.job.request.artifact_id)
            current = self._index.consent_epoch(bundle.steward, bundle.consent_scope)
            answers.append(
                {
                    "artifact_id": child.hex(),
                    "kind": record.kind.name,
                    "job_id": row.job_id.hex(),
                    "requester": unlabel(row.job.requester),
                    "kernel": _kernel_name(row.job.request.kernel_id),
                    "consent_epoch": row.job.request.consent_epoch,
                    "current_epoch": current.epoch if current else 0,
                    "stale": self._stale(row, bundle),
                }
            )
        return answers

    def _stale(self, row: JobRow, bundle: Artifact) -> bool:
        current = self._index.consent_epoch(bundle.steward, bundle.consent_scope)
        return current is None or row.job.request.consent_epoch != current.epoch

    def _require(self, artifact_id: ArtifactId) -> Artifact:
        record = self._index.artifact(artifact_id)
        if record is None:
            raise UnknownRecordError(f"no artifact {artifact_id.hex()}")
        return record

    def _bundle(self, artifact_id: ArtifactId, record: Artifact) -> dict[str, Any]:
        epoch = self._index.consent_epoch(record.steward, record.consent_scope)
        budget = self._index.budget(artifact_id)
        return {
            "artifact_id": artifact_id.hex(),
            "steward": unlabel(record.steward),
            "scope": unlabel(record.consent_scope),
            "key_id": record.key_id.hex(),
            "content_digest": record.content_digest.hex(),
            "policy_version": record.policy_version,
            "policy_digest": record.policy_digest.hex(),
            "retain_until": record.retain_until,
            "registered_at": record.registered_at,
            "frozen": record.frozen.name,
            "consent_epoch": epoch.epoch if epoch else 0,
            "cohort_floor": epoch.cohort_floor if epoch else 0,
            "budget": {"total": budget.total, "reserved": budget.reserved, "spent": budget.spent},
        }

    def _status_digest(self, request: JobRequest) -> str:
        """Digest, in hex, of the status block of the consent epoch that a job cites; empty when there is none."""
        artifact = self._index.artifact(request.artifact_id)
        if artifact is None:
            return ""
        epoch = self._index.consent_epoch(artifact.steward, artifact.consent_scope, request.consent_epoch)
        return "" if epoch is None else epoch.status_digest.hex()

    def _job(self, row: JobRow) -> dict[str, Any]:
        job, request = row.job, row.job.request
        return {
            "job_id": row.job_id.hex(),
            "state": job.state.name,
            "refusal": job.refusal.name,
            "requester": unlabel(job.requester),
            "executor": unlabel(job.executor) if any(job.executor) else None,
            "artifact_id": request.artifact_id.hex(),
            "grant_id": request.grant_id.hex(),
            "kernel": _kernel_name(request.kernel_id),
            "purpose": unlabel(request.purpose),
            "consent_epoch": request.consent_epoch,
            "status_digest": self._status_digest(request),
            "policy_version": request.policy_version,
            "rho_micro": request.rho_micro,
            "row_level": request.row_level,
            "level": _level(job),
            "deadline": job.deadline,
            "parameters_digest": request.parameters_digest.hex(),
            "result_digest": job.result_digest.hex(),
            "release_digest": job.release_digest.hex(),
            "sigma_micro": row.sigma_micro,
            "posted_at": row.posted_at,
            "changed_at": row.changed_at,
        }


def _level(job: Job) -> str | None:
    """What stands behind a job's result; None when there is none, or it came to nothing."""
    if job.state in (JobState.VERIFIED, JobState.OPENED, JobState.RELEASED):
        return f"{Level.REPLICATED.name}({job.agreeing}/{job.asked})"
    if job.state in (JobState.COMMITTED, JobState.REVEALING, JobState.DISPUTED):
        return Level.CLAIMED.name
    return None


def _grant(grant_id: GrantId, grant: UsageGrant, asked: GrantTerms) -> dict[str, Any]:
    return {
        "grant_id": grant_id.hex(),
        "artifact_id": grant.artifact_id.hex(),
        "grantee": unlabel(grant.grantee),
        "purpose": unlabel(grant.purpose),
        "status": grant.status.name,
        "used": grant.used,
        "terms": _terms(grant.terms),
        "asked": _terms(asked),
    }


def _terms(terms: GrantTerms) -> dict[str, Any]:
    return {
        "kernels": [_kernel_name(kernel) for kernel in terms.kernels],
        "uses": terms.uses,
        "expires_at": terms.expires_at,
        "rho_micro": terms.rho_micro,
        "min_cohort": terms.min_cohort,
        "level": terms.level.name,
        "replicas": terms.replicas,
        "row_level": terms.row_level,
    }


def _kernel_name(kernel_id: bytes) -> str:
    try:
        return kernel_by_id(kernel_id).name
    except UnknownKernelError:
        return kernel_id.hex()


def _org_name(value: str) -> str:
    return unlabel(bytes.fromhex(value[2:]))


def _call_text(contract: str | None, data: bytes) -> str:
    """A governed call in full: contract, function, and every argument."""
    if contract is None:
        return f"UNKNOWN CONTRACT: {data.hex()}"
    for function in load_abi(contract).functions.values():
        if function.selector == data[:4]:
            try:
                values = eth_abi.abi.decode(function.input_types, data[4:])
            except (eth_abi.exceptions.DecodingError, UnicodeDecodeError):
                break
            return f"{contract}.{function.name}({_arguments(function.inputs, values)})"
    return f"{contract}: UNKNOWN CALL {data.hex()}"


def _arguments(entries: Iterable[Mapping[str, Any]], values: Iterable[Any]) -> str:
    return ", ".join(
        f"{entry['name']} {_argument(entry, value)}" for entry, value in zip(entries, values, strict=True)
    )


def _argument(entry: Mapping[str, Any], value: Any) -> str:
    """An argument as people read it; whoever votes sees every bit of it."""
    kind = str(entry["type"])
    if kind == "tuple":
        return f"({_arguments(entry['components'], value)})"
    if kind.endswith("[]"):
        return f"[{', '.join(_argument({**entry, 'type': kind[:-2]}, item) for item in value)}]"
    if entry["name"] == "roles":
        return _role_names(value)
    if entry.get("internalType") == "enum IParticipantRegistry.Status" and value in list(MemberStatus):
        return MemberStatus(value).name
    if isinstance(value, bytes):
        return unlabel(value) if len(value) == 32 else "0x" + value.hex()
    return str(value)


def _role_names(bits: int) -> str:
    named = [role for role in Role if role and role in Role(bits)]
    unknown = bits & ~sum(named)
    return (
        "+".join([*(str(role.name) for role in named), *([f"UNKNOWN {unknown}"] if unknown else [])]) or "0"
    )
