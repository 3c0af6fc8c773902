"""What members did wrong in a job, as the job's events show it, and what is left of it with time.

The same conclusions as `contracts/Reputation.sol` draws, which believes nobody: whoever reports shows the whole series. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from usufruct.ledger.series import event_codec
from usufruct.records import Fault, JobState, LedgerEvent, OrgId, Refusal, SeriesEvent


class Points(NamedTuple):
    """What a member has on its account; zero points fade no further."""

    points: int = 0
    since: int = 0
    """Unix seconds from which they fade."""


def faded(held: Points, now: int, fade_seconds: int) -> Points:
    """What is left at a time: one point less for each `fade_seconds` that have passed since, and the rest of that time kept."""
    gone = (now - held.since) // fade_seconds
    if gone >= held.points:
        return Points(0, now)
    return Points(held.points - gone, held.since + gone * fade_seconds)


def faults_of(events: Sequence[LedgerEvent]) -> list[tuple[OrgId, Fault]]:
    """Who did wrong in a job, in the order in which the contract records it.

    Parameters
    ----------
    events :
        All events of the job, in order.

    Returns
    -------
    faults :
        Organisations and what they did; empty while the job has not ended, or when nobody did wrong.
    """
    claimant = executor = OrgId(b"")
    result = b""
    found: dict[bytes, bytes | None] = {}
    faults: list[tuple[OrgId, Fault]] = []
    closed = verified = refuted = ended = False
    for event in events:
        args: dict[str, Any] = event.args
        match event.name:
            case "JobClaimed":
                if claimant:
                    faults.append((claimant, Fault.LAPSED_CLAIM))
                claimant = OrgId(args["executor"])
            case "ResultCommitted":
                executor, result = OrgId(args["executor"]), args["resultDigest"]
            case "VerdictCommitted":
                found[args["verifier"]] = None
            case "CommitsClosed":
                closed = True
            case "VerdictRevealed":
                found[args["verifier"]] = args["resultDigest"]
            case "JobVerified":
                verified = True
            case "JobReleased":
                ended = True
            case "JobEnded":
                if args["from"] == JobState.CLAIMED:
                    faults.append((claimant, Fault.LAPSED_CLAIM))
                ended, refuted = True, _is_refuted(args)
    if not ended:
        return []
    if refuted:
        faults.append((executor, Fault.REFUTED_RESULT))
    for verifier, digest in found.items() if closed else ():
        if digest is None:
            faults.append((OrgId(verifier), Fault.UNREVEALED_VERDICT))
        elif refuted if digest == result else verified:
            faults.append((OrgId(verifier), Fault.WRONG_VERDICT))
    return faults


def _is_refuted(ended: dict[str, Any]) -> bool:
    """By a quorum or by the council's word; its silence refutes, too, but does not say who was right."""
    is_decided = ended["from"] == JobState.REVEALING or ended["reason"] == Refusal.RESULT_INVALID
    return bool(ended["state"] == JobState.REFUTED and is_decided)


def shown(events: Sequence[LedgerEvent]) -> list[SeriesEvent]:
    """A job's events as `report` wants them."""
    codecs = [event_codec(event.contract, event.name) for event in events]
    return [
        SeriesEvent(topic=codec.topic, payload=codec.payload(event.args))
        for codec, event in zip(codecs, events, strict=True)
    ]
