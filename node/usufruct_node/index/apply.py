"""Turns one ledger event into rows. One function per event; together they rebuild every record of the contracts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from usufruct.errors import StaleLedgerError
from usufruct.ledger.abi import args_to_json
from usufruct.ledger.series import event_codec, next_head, series_of
from usufruct.records import (
    ZERO_32,
    ArtifactKind,
    FreezeState,
    GrantStatus,
    JobState,
    KeyStatus,
    LedgerEvent,
    MemberStatus,
    Refusal,
)

Args = dict[str, Any]

Handler = Callable[[sqlite3.Connection, LedgerEvent, Args], None]


def apply_event(db: sqlite3.Connection, event: LedgerEvent) -> None:
    """Store an event and what follows from it; the caller owns the transaction.

    Raises
    ------
    StaleLedgerError
        If an event of its series is missing before it: the endpoint did not show everything.
    """
    series = series_of(event)
    if series is not None:
        _continue_series(db, event, series)
    db.execute(
        "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            event.block_number,
            event.log_index,
            event.block_hash,
            event.timestamp,
            event.transaction_hash,
            event.contract,
            event.name,
            series,
            json.dumps(args_to_json(event.args), separators=(",", ":")),
        ),
    )
    handler = _HANDLERS.get(event.name)
    if handler is not None:
        handler(db, event, event.args)


def _continue_series(db: sqlite3.Connection, event: LedgerEvent, series: bytes) -> None:
    row = db.execute(
        "SELECT length, head FROM series WHERE contract = ? AND series = ?", (event.contract, series)
    ).fetchone()
    length, head = (row[0], row[1]) if row else (0, ZERO_32)
    codec = event_codec(event.contract, event.name)
    if event.args["sequence"] != length + 1 or event.args["head"] != next_head(head, codec, event.args):
        raise StaleLedgerError(
            f"the endpoint left out an event before {event.name} number {event.args['sequence']}"
            f" in block {event.block_number}"
        )
    db.execute(
        "INSERT INTO series VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " length = excluded.length, head = excluded.head",
        (event.contract, series, event.args["sequence"], event.args["head"]),
    )


def to_signed(value: int) -> int:
    """A `uint64` of the ledger as the signed integer of SQLite with the same bits: no number may stop the index."""
    return value - (1 << 64) if value >> 63 else value


def from_signed(value: int) -> int:
    """Inverse of `to_signed`."""
    return value & ((1 << 64) - 1)


def _admitted(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    member = args["participant"]
    db.execute(
        "INSERT INTO participant VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            args["id"],
            member["account"],
            member["nodeAccount"],
            member["roles"],
            MemberStatus.ACTIVE,
            member["hpkeKey"],
            member["peerId"],
            member["endpoint"],
        ),
    )


def _status(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE participant SET status = ? WHERE org_id = ?", (args["status"], args["id"]))


def _roles(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE participant SET roles = ? WHERE org_id = ?", (args["roles"], args["id"]))


def _endpoint(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE participant SET endpoint = ? WHERE org_id = ?", (args["endpoint"], args["id"]))


def _key_registered(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "INSERT INTO key_domain VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            args["keyId"],
            args["custodian"],
            args["parametersId"],
            args["publicDigest"],
            args["epoch"],
            event.timestamp,
            KeyStatus.ACTIVE,
        ),
    )


def _key_status(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE key_domain SET status = ? WHERE key_id = ?", (args["status"], args["keyId"]))


def _bundle(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    given = args["registration"]
    db.execute(
        "INSERT INTO artifact VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
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
            FreezeState.NONE,
        ),
    )
    db.execute("INSERT INTO policy VALUES (?, 1, ?)", (args["artifactId"], given["policyDigest"]))
    _edges(db, args["artifactId"], given["parents"])


def _derived(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "INSERT INTO artifact VALUES (?, ?, ?, ?, ?, ?, 0, ?, 0, ?, ?, ?)",
        (
            args["artifactId"],
            args["kind"],
            args["steward"],
            args["keyId"],
            args["contentDigest"],
            ZERO_32,
            ZERO_32,
            event.timestamp,
            FreezeState.NONE,
            args["jobId"],
        ),
    )
    _edges(db, args["artifactId"], args["parents"])


def _edges(db: sqlite3.Connection, child: bytes, parents: list[bytes]) -> None:
    db.executemany("INSERT OR IGNORE INTO parent_of VALUES (?, ?)", [(child, p) for p in parents])
    db.executemany("INSERT OR IGNORE INTO child_of VALUES (?, ?)", [(p, child) for p in parents])


def _policy(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    values = (args["policyDigest"], args["policyVersion"], args["artifactId"])
    db.execute("UPDATE artifact SET policy_digest = ?, policy_version = ? WHERE artifact_id = ?", values)
    db.execute(
        "INSERT INTO policy VALUES (?, ?, ?)",
        (args["artifactId"], args["policyVersion"], args["policyDigest"]),
    )


def _frozen(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE artifact SET frozen = ? WHERE artifact_id = ?", (args["frozen"], args["artifactId"]))


def _epoch(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "INSERT INTO consent_epoch VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            args["steward"],
            args["scope"],
            args["epoch"],
            event.timestamp,
            args["cohortFloor"],
            args["consentRoot"],
            args["statusDigest"],
        ),
    )


def _requested(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "INSERT INTO usage_grant VALUES (?, ?, ?, ?, ?, 0, ?, NULL, ?)",
        (
            args["grantId"],
            args["artifactId"],
            args["grantee"],
            args["purpose"],
            GrantStatus.REQUESTED,
            json.dumps(args_to_json(args["terms"])),
            event.timestamp,
        ),
    )


def _granted(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "UPDATE usage_grant SET status = ?, terms = ? WHERE grant_id = ?",
        (GrantStatus.GRANTED, json.dumps(args_to_json(args["terms"])), args["grantId"]),
    )


def _denied(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE usage_grant SET status = ? WHERE grant_id = ?", (GrantStatus.DENIED, args["grantId"]))


def _used(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE usage_grant SET used = ? WHERE grant_id = ?", (args["used"], args["grantId"]))


def _revoked(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute("UPDATE usage_grant SET status = ? WHERE grant_id = ?", (GrantStatus.REVOKED, args["grantId"]))


def _artifact_revoked(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "UPDATE usage_grant SET status = ? WHERE artifact_id = ? AND status = ?",
        (GrantStatus.REVOKED, args["artifactId"], GrantStatus.GRANTED),
    )


def _grantee_revoked(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "UPDATE usage_grant SET status = ? WHERE grantee = ? AND status = ? AND artifact_id IN"
        " (SELECT artifact_id FROM artifact WHERE steward = ?)",
        (GrantStatus.REVOKED, args["grantee"], GrantStatus.GRANTED, args["steward"]),
    )


def _budget_set(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "INSERT INTO budget VALUES (?, ?, 0, 0) ON CONFLICT DO UPDATE SET total = excluded.total",
        (args["artifactId"], to_signed(args["totalRhoMicro"])),
    )


def _budget_moved(reserved: int, spent: int) -> Handler:
    def apply(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
        before = db.execute("SELECT reserved, spent FROM budget WHERE artifact_id = ?", (args["artifactId"],))
        after = [
            to_signed(from_signed(word) + sign * args["rhoMicro"])
            for word, sign in zip(before.fetchone(), (reserved, spent), strict=True)
        ]
        db.execute(
            "UPDATE budget SET reserved = ?, spent = ? WHERE artifact_id = ?", (*after, args["artifactId"])
        )

    return apply


def _insert_job(
    db: sqlite3.Connection,
    event: LedgerEvent,
    args: Args,
    *,
    state: JobState,
    key_id: bytes,
    deadline: int,
    replicas: int,
    refusal: Refusal,
) -> None:
    request = args["request"]
    db.execute(
        "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
        (
            args["jobId"],
            state,
            args["requester"],
            ZERO_32,
            key_id,
            deadline,
            replicas,
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
            event.timestamp,
            event.timestamp,
        ),
    )


def _posted(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _insert_job(
        db,
        event,
        args,
        state=JobState.POSTED,
        key_id=args["keyId"],
        deadline=args["deadline"],
        replicas=args["replicas"],
        refusal=Refusal.NONE,
    )


def _job_denied(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    known = db.execute(
        "SELECT key_id FROM artifact WHERE artifact_id = ?", (args["request"]["artifactId"],)
    ).fetchone()
    _insert_job(
        db,
        event,
        args,
        state=JobState.DENIED,
        key_id=known[0] if known else ZERO_32,
        deadline=0,
        replicas=0,
        refusal=Refusal(args["reason"]),
    )


def _set_job(db: sqlite3.Connection, event: LedgerEvent, args: Args, **columns: object) -> None:
    names = ", ".join(f"{name} = ?" for name in columns)
    db.execute(
        f"UPDATE job SET {names}, changed_at = ? WHERE job_id = ?",  # noqa: S608
        (*columns.values(), event.timestamp, args["jobId"]),
    )


def _claimed(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(db, event, args, state=JobState.CLAIMED, executor=args["executor"], deadline=args["deadline"])


def _committed(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(
        db,
        event,
        args,
        state=JobState.COMMITTED,
        result_digest=args["resultDigest"],
        asked=args["asked"],
        deadline=args["deadline"],
    )


def _verdict(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "INSERT INTO verdict VALUES (?, ?, ?, NULL, NULL, NULL)",
        (args["jobId"], args["verifier"], args["commitment"]),
    )
    db.execute("UPDATE job SET commits = commits + 1 WHERE job_id = ?", (args["jobId"],))


def _closed(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(db, event, args, state=JobState.REVEALING, commits=args["commits"], deadline=args["deadline"])


def _revealed(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    db.execute(
        "UPDATE verdict SET result_digest = ?, possession = ?, agrees = ? WHERE job_id = ? AND verifier = ?",
        (args["resultDigest"], args["possession"], args["agrees"], args["jobId"], args["verifier"]),
    )
    agrees = bool(args["agrees"])
    db.execute(
        "UPDATE job SET agreeing = agreeing + ?, dissenting = dissenting + ? WHERE job_id = ?",
        (int(agrees), int(not agrees), args["jobId"]),
    )


def _disputed(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(db, event, args, state=JobState.DISPUTED, deadline=args["deadline"])


def _verified(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(db, event, args, state=JobState.VERIFIED, deadline=args["deadline"])


def _ended(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(db, event, args, state=args["state"], refusal=args["reason"], deadline=0)


def _opened(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(db, event, args, state=JobState.OPENED, deadline=args["deadline"])


def _released(db: sqlite3.Connection, event: LedgerEvent, args: Args) -> None:
    _set_job(
        db,
        event,
        args,
        state=JobState.RELEASED,
        deadline=0,
        release_digest=args["releaseDigest"],
        sigma_micro=to_signed(args["sigmaMicro"]),
    )


_HANDLERS: dict[str, Handler] = {
    "ParticipantAdmitted": _admitted,
    "ParticipantStatusChanged": _status,
    "ParticipantRolesChanged": _roles,
    "ParticipantEndpointChanged": _endpoint,
    "KeyDomainRegistered": _key_registered,
    "KeyStatusChanged": _key_status,
    "BundleRegistered": _bundle,
    "DerivedRecorded": _derived,
    "PolicyChanged": _policy,
    "ArtifactFrozen": _frozen,
    "ConsentEpochAnchored": _epoch,
    "UsageRequested": _requested,
    "UsageGranted": _granted,
    "UsageDenied": _denied,
    "UsageConsumed": _used,
    "UsageRestored": _used,
    "UsageRevoked": _revoked,
    "ArtifactUsageRevoked": _artifact_revoked,
    "GranteeUsageRevoked": _grantee_revoked,
    "BudgetSet": _budget_set,
    "BudgetReserved": _budget_moved(1, 0),
    "BudgetSettled": _budget_moved(-1, 1),
    "BudgetRefunded": _budget_moved(-1, 0),
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
}
