"""A job as its events tell it, and what its later steps must show of the earlier ones.

The job ledger stores where a job stands and the head of its series, nothing else: what was asked is hashed into the job's id,
and what was committed into the series. Source: `contracts/IJobLedger.sol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from eth_utils.crypto import keccak

from usufruct.errors import LedgerError
from usufruct.ledger.abi import load_abi
from usufruct.ledger.series import event_codec
from usufruct.records import (
    ZERO_32,
    ArtifactId,
    ArtifactKind,
    Commitments,
    GrantId,
    Job,
    JobId,
    JobRequest,
    JobState,
    KeyId,
    LedgerEvent,
    Opening,
    OrgId,
    Refusal,
    Reveal,
)

NOBODY: Final = OrgId(ZERO_32)

NO_REQUEST: Final = JobRequest(
    artifact_id=ArtifactId(ZERO_32),
    grant_id=GrantId(ZERO_32),
    kernel_id=ZERO_32,
    parameters_digest=ZERO_32,
    purpose=ZERO_32,
    consent_epoch=0,
    policy_version=0,
    rho_micro=0,
    row_level=False,
    nonce=0,
)
"""What a job asks that nobody posted."""

NO_JOB: Final = Job(
    state=JobState.NONE,
    requester=NOBODY,
    executor=NOBODY,
    key_id=KeyId(ZERO_32),
    deadline=0,
    replicas=0,
    asked=0,
    commits=0,
    agreeing=0,
    dissenting=0,
    refusal=Refusal.NONE,
    result_digest=ZERO_32,
    release_digest=ZERO_32,
    request=NO_REQUEST,
)

NO_COMMITMENTS: Final = Commitments(
    head=ZERO_32,
    executor=NOBODY,
    result_digest=ZERO_32,
    deadline=0,
    verifiers=(),
    commitments=(),
    revealed=(),
)

_STATE_AFTER: Final = {
    "JobPosted": JobState.POSTED,
    "JobDenied": JobState.DENIED,
    "JobClaimed": JobState.CLAIMED,
    "ResultCommitted": JobState.COMMITTED,
    "CommitsClosed": JobState.REVEALING,
    "JobDisputed": JobState.DISPUTED,
    "JobVerified": JobState.VERIFIED,
    "ReleaseOpened": JobState.OPENED,
    "JobReleased": JobState.RELEASED,
}
_SAID: Final = {
    "requester": "requester",
    "executor": "executor",
    "replicas": "replicas",
    "asked": "asked",
    "resultDigest": "result_digest",
    "releaseDigest": "release_digest",
    "reason": "refusal",
}


def job_of(events: Sequence[LedgerEvent], key_id: KeyId) -> Job:
    """The job that these events, in order, make up; `key_id` is its bundle's."""
    told: dict[str, Any] = {name: getattr(NO_JOB, name) for name in Job.__dataclass_fields__}
    told["key_id"] = key_id
    for event in events:
        args: dict[str, Any] = event.args
        if event.name in ("JobPosted", "JobDenied"):
            told["request"] = request_of(event)
        if event.name == "VerdictCommitted":
            told["commits"] += 1
        elif event.name == "VerdictRevealed":
            told["agreeing" if args["agrees"] else "dissenting"] += 1
        else:
            told["state"] = JobState(args.get("state", _STATE_AFTER.get(event.name, told["state"])))
            told["deadline"] = args.get("deadline", 0)
            told |= {name: args[word] for word, name in _SAID.items() if word in args}
    told["refusal"] = Refusal(told["refusal"])
    return Job(**told)


def request_of(posting: LedgerEvent) -> JobRequest:
    """What a job asks, from its first event."""
    given: Any = posting.args["request"]
    return JobRequest(
        artifact_id=ArtifactId(given["artifactId"]),
        grant_id=GrantId(given["grantId"]),
        kernel_id=given["kernelId"],
        parameters_digest=given["parametersDigest"],
        purpose=given["purpose"],
        consent_epoch=given["consentEpoch"],
        policy_version=given["policyVersion"],
        rho_micro=given["rhoMicro"],
        row_level=given["rowLevel"],
        nonce=given["nonce"],
    )


def commitments_of(events: Sequence[LedgerEvent]) -> Commitments:
    """What whoever reveals must show of a job's events.

    Raises
    ------
    LedgerError
        If no result was committed.
    """
    at = next((place for place, event in enumerate(events) if event.name == "ResultCommitted"), 0)
    if at == 0:
        raise LedgerError("no result of this job was committed")
    result: dict[str, Any] = events[at].args
    before: dict[str, Any] = events[at - 1].args
    committed: list[dict[str, Any]] = [e.args for e in events if e.name == "VerdictCommitted"]
    return Commitments(
        head=before["head"],
        executor=OrgId(result["executor"]),
        result_digest=result["resultDigest"],
        deadline=result["deadline"],
        verifiers=tuple(OrgId(args["verifier"]) for args in committed),
        commitments=tuple(args["commitment"] for args in committed),
        revealed=tuple(
            bytes(keccak(event_codec(e.contract, e.name).payload(e.args)))
            for e in events
            if e.name == "VerdictRevealed"
        ),
    )


def openings_of(committed: Commitments, reveals: Sequence[Reveal]) -> list[Opening]:
    """Reveals by their places among the commitments.

    Raises
    ------
    LedgerError
        If a verifier did not commit.
    """
    places = {verifier: place for place, verifier in enumerate(committed.verifiers)}
    if missing := [reveal for reveal in reveals if reveal.verifier not in places]:
        raise LedgerError(f"{len(missing)} of the verifiers to be revealed did not commit")
    return [
        Opening(
            position=places[reveal.verifier],
            result_digest=reveal.result_digest,
            possession=reveal.possession,
            salt=reveal.salt,
        )
        for reveal in reveals
    ]


@lru_cache(maxsize=1024)
def derived_id(job_id: JobId, kind: ArtifactKind) -> ArtifactId:
    """Id of the result or release that a job leaves behind. Source: `contracts/ILineageRegistry.sol`, `derivedIdOf`."""
    return ArtifactId(bytes(keccak(job_id + int(kind).to_bytes(32, "big"))))


@lru_cache(maxsize=1)
def steps_with_request() -> frozenset[str]:
    """Functions of `JobLedger` that begin with a job's requester and request."""
    functions = load_abi("JobLedger").functions
    wanted = functions["jobIdOf"].input_types
    return frozenset(name for name, f in functions.items() if f.input_types[:2] == wanted) - {"jobIdOf"}
