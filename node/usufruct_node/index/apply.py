"""Turns ledger events into rows. One function per event; together they rebuild every record of the contracts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from usufruct.errors import MalformedAnswerError, StaleLedgerError
from usufruct.ledger.abi import args_to_json
from usufruct.ledger.jobs import derived_id
from usufruct.ledger.series import Link, event_codec, next_heads, series_of
from usufruct.records import (
    ZERO_32,
    ArtifactKind,
    FreezeState,
    GrantStatus,
    JobState,
    KeyStatus,
    LedgerEvent,
    Level,
    MemberStatus,
    Refusal,
)
from usufruct_node.index import faults
from usufruct_node.index.step import Step

Args = dict[str, Any]

Handler = Callable[[Step, LedgerEvent, Args], None]

_ADD_EVENT = "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_REFUSAL = "INSERT INTO refusal VALUES (?, ?)"
_ADD_POLICY = "INSERT INTO policy VALUES (?, ?, ?)"
_ADD_EPOCH = "INSERT INTO consent_epoch VALUES (?, ?, ?, ?, ?, ?, ?)"
_ADD_PARENT = "INSERT OR IGNORE INTO parent_of VALUES (?, ?)"
_ADD_CHILD = "INSERT OR IGNORE INTO child_of VALUES (?, ?)"

_REFUSING = frozenset({"JobDenied", "UsageDenied", "JobEnded"})
"""Events that may carry a reason to refuse."""


def apply_events(db: sqlite3.Connection, events: Iterable[LedgerEvent]) -> None:
    """Store events and what follows from them; the caller owns the transaction.

    Raises
    ------
    StaleLedgerError
        If an event of a series is missing before one of these, was changed, or is shown twice.
    MalformedAnswerError
        If an event has a state, reason or number that there is not.
    """
    try:
        _apply(db, events)
    except (ValueError, OverflowError) as exc:
        raise MalformedAnswerError(f"the endpoint showed an event that no contract emits: {exc}") from exc


def _apply(db: sqlite3.Connection, events: Iterable[LedgerEvent]) -> None:
    step = Step(db)
    store = step.appended(_ADD_EVENT).append
    refused = step.appended(_ADD_REFUSAL).append
    links: list[Link] = []
    for event in events:
        codec = event_codec(event.contract, event.name)
        series = series_of(event) if codec.in_series else None
        if series is not None:
            links.append(Link(_continue_series(step, event, series), codec, event))
        store(
            (
                event.block_number,
                event.log_index,
                event.block_hash,
                event.timestamp,
                event.transaction_hash,
                event.contract,
                event.name,
                series,
                event.words,
            )
        )
        if event.name in _REFUSING and event.args["reason"]:
            refused((event.block_number, event.log_index))
        handler = _HANDLERS.get(event.name)
        if handler is not None:
            handler(step, event, event.args)
    for link, head in zip(links, next_heads(links), strict=True):
        if head != link.event.args["head"]:
            raise _gap_before(link.event)
    step.write()


def _continue_series(step: Step, event: LedgerEvent, series: bytes) -> bytes:
    """Move a series on by one event; returns the head that the event must follow."""
    args: Args = event.args
    number, head = args["sequence"], args["head"]
    if number == 1:
        step.insert("series", event.contract, series, 1, head)
        return ZERO_32
    row = step.get("series", event.contract, series)
    if row is None or row["length"] != number - 1:
        raise _gap_before(event)
    before: bytes = row["head"]
    step.change("series", (event.contract, series), {"length": number, "head": head})
    return before


def _gap_before(event: LedgerEvent) -> StaleLedgerError:
    return StaleLedgerError(
        f"the endpoint left out an event before {event.name} number {event.args['sequence']}"
        f" in block {event.block_number}"
    )


def to_signed(value: int) -> int:
    """A `uint64` of the ledger as the signed integer of SQLite with the same bits: no number may stop the index."""
    return value - (1 << 64) if value >> 63 else value


def from_signed(value: int) -> int:
    """Inverse of `to_signed`."""
    return value & ((1 << 64) - 1)


def _admitted(step: Step, event: LedgerEvent, args: Args) -> None:
    member = args["participant"]
    step.insert(
        "participant",
        args["id"],
        member["account"],
        member["nodeAccount"],
        member["roles"],
        MemberStatus.ACTIVE,
        member["hpkeKey"],
        member["peerId"],
        member["endpoint"],
    )


def _status(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update("participant", args["id"], status=MemberStatus(args["status"]))


def _roles(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update("participant", args["id"], roles=args["roles"])


def _endpoint(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update("participant", args["id"], endpoint=args["endpoint"])


def _key_registered(step: Step, event: LedgerEvent, args: Args) -> None:
    step.insert(
        "key_domain",
        args["keyId"],
        args["custodian"],
        args["parametersId"],
        args["publicDigest"],
        args["epoch"],
        event.timestamp,
        KeyStatus.ACTIVE,
    )


def _key_status(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update("key_domain", args["keyId"], status=KeyStatus(args["status"]))


def _bundle(step: Step, event: LedgerEvent, args: Args) -> None:
    given = args["registration"]
    step.insert(
        "artifact",
        args["artifactId"],
        ArtifactKind.BUNDLE,
        args["steward"],
        given["keyId"],
        given["contentDigest"],
        given["policyDigest"],
        1,
        given["consentScope"],
        to_signed(given["retainUntil"]),
        event.timestamp,
        _frozen_before(step, args["artifactId"]),
        None,
    )
    step.append(_ADD_POLICY, args["artifactId"], 1, given["policyDigest"])
    _edges(step, args["artifactId"], given["parents"])


def _derived(
    step: Step, event: LedgerEvent, kind: ArtifactKind, *, steward: bytes, content: bytes, parent: bytes
) -> None:
    """What a job leaves behind; the ledger keeps no record of it but the job's events."""
    job_id: Any = event.args["jobId"]
    artifact_id = derived_id(job_id, kind)
    step.insert(
        "artifact",
        artifact_id,
        kind,
        steward,
        _known(step, "job", job_id)["key_id"],
        content,
        ZERO_32,
        0,
        ZERO_32,
        0,
        event.timestamp,
        _frozen_before(step, artifact_id),
        job_id,
    )
    _edges(step, artifact_id, [parent])


def _edges(step: Step, child: bytes, parents: list[bytes]) -> None:
    for parent in parents:
        step.append(_ADD_PARENT, child, parent)
        step.append(_ADD_CHILD, parent, child)


def _policy(step: Step, event: LedgerEvent, args: Args) -> None:
    digest, version = args["policyDigest"], args["policyVersion"]
    step.update("artifact", args["artifactId"], policy_digest=digest, policy_version=version)
    step.append(_ADD_POLICY, args["artifactId"], version, digest)


def _frozen(step: Step, event: LedgerEvent, args: Args) -> None:
    frozen = FreezeState(args["frozen"])
    if step.get("artifact", args["artifactId"]) is not None:
        step.update("artifact", args["artifactId"], frozen=frozen)
    elif step.get("early_freeze", args["artifactId"]) is None:
        step.insert("early_freeze", args["artifactId"], frozen)
    else:
        step.update("early_freeze", args["artifactId"], frozen=frozen)


def _frozen_before(step: Step, artifact_id: bytes) -> int:
    """The council may freeze what is not there yet."""
    row = step.find("early_freeze", artifact_id)
    return FreezeState.NONE if row is None else row["frozen"]


def _epoch(step: Step, event: LedgerEvent, args: Args) -> None:
    step.append(
        _ADD_EPOCH,
        args["steward"],
        args["scope"],
        args["epoch"],
        event.timestamp,
        args["cohortFloor"],
        args["consentRoot"],
        args["statusDigest"],
    )


def _terms(terms: Args) -> str:
    return json.dumps(args_to_json(terms | {"level": Level(terms["level"])}))


def _requested(step: Step, event: LedgerEvent, args: Args) -> None:
    step.insert(
        "usage_grant",
        args["grantId"],
        args["artifactId"],
        args["grantee"],
        args["purpose"],
        GrantStatus.REQUESTED,
        0,
        _terms(args["terms"]),
        None,
        event.timestamp,
    )


def _granted(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update("usage_grant", args["grantId"], status=GrantStatus.GRANTED, terms=_terms(args["terms"]))


def _denied(step: Step, event: LedgerEvent, args: Args) -> None:
    Refusal(args["reason"])  # No column of its own, but whoever lists refusals reads it.
    step.update("usage_grant", args["grantId"], status=GrantStatus.DENIED)


def _revoked(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update("usage_grant", args["grantId"], status=GrantStatus.REVOKED)


def _artifact_revoked(step: Step, event: LedgerEvent, args: Args) -> None:
    step.execute(
        "UPDATE usage_grant SET status = :revoked WHERE artifact_id = :artifact AND status = :granted",
        {
            "revoked": GrantStatus.REVOKED,
            "granted": GrantStatus.GRANTED,
            "artifact": args["artifactId"],
        },
    )


def _grantee_revoked(step: Step, event: LedgerEvent, args: Args) -> None:
    step.execute(
        "UPDATE usage_grant SET status = :revoked WHERE grantee = :grantee AND status = :granted"
        " AND artifact_id IN (SELECT artifact_id FROM artifact WHERE steward = :steward)",
        {
            "revoked": GrantStatus.REVOKED,
            "granted": GrantStatus.GRANTED,
            "grantee": args["grantee"],
            "steward": args["steward"],
        },
    )


def _budget_set(step: Step, event: LedgerEvent, args: Args) -> None:
    total = to_signed(args["totalRhoMicro"])
    if step.get("budget", args["artifactId"]) is None:
        step.insert("budget", args["artifactId"], total, 0, 0)
    else:
        step.update("budget", args["artifactId"], total=total)


def _known(step: Step, table: str, *key: object) -> dict[str, Any]:
    """A row that an earlier event made."""
    row = step.get(table, *key)
    if row is None:
        raise StaleLedgerError(f"the endpoint left out the event that makes a row of {table}")
    return row


def _move_rho(step: Step, job: Mapping[str, Any], *, reserved: int = 0, spent: int = 0) -> None:
    """Move a job's rho in its bundle's account."""
    account = _known(step, "budget", job["artifact_id"])
    rho = from_signed(job["rho_micro"])
    moved = {
        name: to_signed(from_signed(account[name]) + sign * rho)
        for name, sign in (("reserved", reserved), ("spent", spent))
    }
    step.update("budget", job["artifact_id"], **moved)


def _count_use(step: Step, job: Mapping[str, Any], uses: int) -> None:
    grant = _known(step, "usage_grant", job["grant_id"])
    step.update("usage_grant", job["grant_id"], used=grant["used"] + uses)


def _insert_job(
    step: Step,
    event: LedgerEvent,
    args: Args,
    *,
    state: JobState,
    key_id: bytes,
    deadline: int,
    replicas: int,
    asked: int,
    refusal: int,
) -> None:
    request = args["request"]
    step.insert(
        "job",
        args["jobId"],
        state,
        args["requester"],
        ZERO_32,
        key_id,
        deadline,
        replicas,
        asked,
        0,
        0,
        0,
        refusal,
        ZERO_32,
        ZERO_32,
        request["artifactId"],
        request["grantId"],
        request["kernelId"],
        request["parametersDigest"],
        request["purpose"],
        to_signed(request["consentEpoch"]),
        request["policyVersion"],
        to_signed(request["rhoMicro"]),
        request["rowLevel"],
        to_signed(request["nonce"]),
        0,
        event.timestamp,
        event.timestamp,
        0,
        0,
    )


def _posted(step: Step, event: LedgerEvent, args: Args) -> None:
    _insert_job(
        step,
        event,
        args,
        state=JobState.POSTED,
        key_id=_known(step, "artifact", args["artifactId"])["key_id"],
        deadline=args["deadline"],
        replicas=args["replicas"],
        asked=args["asked"],
        refusal=Refusal.NONE,
    )
    job = _known(step, "job", args["jobId"])
    _move_rho(step, job, reserved=1)
    _count_use(step, job, 1)


def _job_denied(step: Step, event: LedgerEvent, args: Args) -> None:
    known = step.get("artifact", args["request"]["artifactId"])
    _insert_job(
        step,
        event,
        args,
        state=JobState.DENIED,
        key_id=known["key_id"] if known else ZERO_32,
        deadline=0,
        replicas=0,
        asked=0,
        refusal=Refusal(args["reason"]),
    )


def _set_job(step: Step, event: LedgerEvent, args: Args, **columns: object) -> None:
    columns["changed_at"] = event.timestamp
    step.change("job", (args["jobId"],), columns)


def _count(step: Step, args: Args, column: str) -> None:
    job = step.get("job", args["jobId"])
    if job is not None:
        step.change("job", (args["jobId"],), {column: job[column] + 1})


def _claimed(step: Step, event: LedgerEvent, args: Args) -> None:
    job = _known(step, "job", args["jobId"])
    _set_job(
        step,
        event,
        args,
        state=JobState.CLAIMED,
        executor=args["executor"],
        deadline=args["deadline"],
        suspect=job["suspect"] or job["state"] == JobState.CLAIMED,
        turns=job["turns"] + 1,
    )


def _committed(step: Step, event: LedgerEvent, args: Args) -> None:
    _set_job(
        step,
        event,
        args,
        state=JobState.COMMITTED,
        executor=args["executor"],
        result_digest=args["resultDigest"],
        asked=args["asked"],
        deadline=args["deadline"],
    )


def _verdict(step: Step, event: LedgerEvent, args: Args) -> None:
    step.insert("verdict", args["jobId"], args["verifier"], args["commitment"], None, None, None)
    _count(step, args, "commits")


def _closed(step: Step, event: LedgerEvent, args: Args) -> None:
    _set_job(step, event, args, state=JobState.REVEALING, commits=args["commits"], deadline=args["deadline"])


def _revealed(step: Step, event: LedgerEvent, args: Args) -> None:
    step.update(
        "verdict",
        args["jobId"],
        args["verifier"],
        result_digest=args["resultDigest"],
        possession=args["possession"],
        agrees=args["agrees"],
    )
    _count(step, args, "agreeing" if args["agrees"] else "dissenting")


def _disputed(step: Step, event: LedgerEvent, args: Args) -> None:
    _set_job(step, event, args, state=JobState.DISPUTED, deadline=args["deadline"])


def _verified(step: Step, event: LedgerEvent, args: Args) -> None:
    _set_job(step, event, args, state=JobState.VERIFIED, deadline=args["deadline"])
    job = _known(step, "job", args["jobId"])
    _derived(
        step,
        event,
        ArtifactKind.RESULT,
        steward=job["executor"],
        content=job["result_digest"],
        parent=job["artifact_id"],
    )


def _ended(step: Step, event: LedgerEvent, args: Args) -> None:
    job = _known(step, "job", args["jobId"])
    state, reason = JobState(args["state"]), Refusal(args["reason"])
    suspect = faults.is_suspect(job, state)
    if args["from"] != JobState.OPENED:
        _move_rho(step, job, reserved=-1)
        _count_use(step, job, -1)
    _set_job(step, event, args, state=state, refusal=reason, deadline=0, suspect=suspect)


def _opened(step: Step, event: LedgerEvent, args: Args) -> None:
    _set_job(step, event, args, state=JobState.OPENED, deadline=args["deadline"])
    _move_rho(step, _known(step, "job", args["jobId"]), reserved=-1, spent=1)


def _released(step: Step, event: LedgerEvent, args: Args) -> None:
    _set_job(
        step,
        event,
        args,
        state=JobState.RELEASED,
        deadline=0,
        release_digest=args["releaseDigest"],
        sigma_micro=to_signed(args["sigmaMicro"]),
        suspect=faults.is_suspect(_known(step, "job", args["jobId"]), JobState.RELEASED),
    )
    _derived(
        step,
        event,
        ArtifactKind.RELEASE,
        steward=args["custodian"],
        content=args["releaseDigest"],
        parent=derived_id(args["jobId"], ArtifactKind.RESULT),
    )


_HANDLERS: dict[str, Handler] = {
    "ParticipantAdmitted": _admitted,
    "ParticipantStatusChanged": _status,
    "ParticipantRolesChanged": _roles,
    "ParticipantEndpointChanged": _endpoint,
    "KeyDomainRegistered": _key_registered,
    "KeyStatusChanged": _key_status,
    "BundleRegistered": _bundle,
    "PolicyChanged": _policy,
    "ArtifactFrozen": _frozen,
    "ConsentEpochAnchored": _epoch,
    "UsageRequested": _requested,
    "UsageGranted": _granted,
    "UsageDenied": _denied,
    "UsageRevoked": _revoked,
    "ArtifactUsageRevoked": _artifact_revoked,
    "GranteeUsageRevoked": _grantee_revoked,
    "BudgetSet": _budget_set,
    "JobPosted": _posted,
    "JobDenied": _job_denied,
    "JobClaimed": _claimed,
    "ResultCommitted": _committed,
    "VerdictCommitted": _verdict,
    "CommitsClosed": _closed,
    "VerdictRevealed": _revealed,
    "JobDisputed": _disputed,
    "JobVerified": _verified,
    "JobEnded": _ended,
    "ReleaseOpened": _opened,
    "JobReleased": _released,
    "FaultRecorded": faults.recorded,
    "FaultsForgiven": faults.forgiven,
    "RuleChanged": faults.rule_changed,
}
