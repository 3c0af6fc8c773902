"""Rows about what members did wrong: in which ended jobs somebody may have, what the ledger recorded, what is left of it."""

from __future__ import annotations

from typing import Any

from usufruct.ledger.reputation import Points, faded
from usufruct.records import ZERO_32, Fault, JobState, LedgerEvent
from usufruct_node.index.step import Row, Step

Args = dict[str, Any]

_RULE = 1
"""Key of the only row of `reputation_rule`."""
_ADD_FAULT = "INSERT INTO fault VALUES (?, ?, ?, ?, ?, ?)"

DOUBTFUL_SECONDS = 30 * 86_400
"""How long before a lie a member's other work is doubted."""

_LIES = (Fault.REFUTED_RESULT, Fault.WRONG_VERDICT)
_DOUBT = (
    "INSERT OR IGNORE INTO doubtful SELECT job_id FROM job WHERE state = :released AND changed_at >= :since AND"
    " (executor = :org OR EXISTS (SELECT 1 FROM verdict WHERE verdict.job_id = job.job_id AND verifier = :org AND agrees))"
)


def is_suspect(job: Row, state: JobState) -> bool:
    """Whether somebody may have done wrong in a job that ends in this state. Its events tell whether somebody did."""
    revealed = job["agreeing"] + job["dissenting"]
    has_lapsed = state == JobState.EXPIRED and job["executor"] != ZERO_32
    return bool(
        job["suspect"]
        or state == JobState.REFUTED
        or has_lapsed
        or job["dissenting"]
        or job["commits"] > revealed
    )


def recorded(step: Step, event: LedgerEvent, args: Args) -> None:
    """The ledger recorded a fault."""
    org, job_id = args["organisation"], args["jobId"]
    fault = Fault(args["fault"])
    step.append(_ADD_FAULT, org, args["sequence"], job_id, fault, args["points"], event.timestamp)
    step.update("job", job_id, suspect=0)
    rule = step.get("reputation_rule", _RULE)
    held = step.get("standing", org)
    before = Points() if held is None else Points(held["points"], held["since"])
    since = faded(before, event.timestamp, rule["fade_seconds"] if rule else 1).since
    if held is None:
        step.insert("standing", org, args["points"], since, 1)
    else:
        step.update("standing", org, points=args["points"], since=since, faults=held["faults"] + 1)
    if fault in _LIES:
        since = event.timestamp - DOUBTFUL_SECONDS
        step.execute(_DOUBT, {"released": JobState.RELEASED, "since": since, "org": org})


def forgiven(step: Step, event: LedgerEvent, args: Args) -> None:
    """The council took a member's points away; what it did stays written."""
    step.update("standing", args["organisation"], points=0, since=event.timestamp)


def rule_changed(step: Step, event: LedgerEvent, args: Args) -> None:
    """Another rule is in force."""
    rule = args["rule"]
    if step.get("reputation_rule", _RULE) is None:
        step.insert("reputation_rule", _RULE, rule["fadeSeconds"], rule["limit"])
    else:
        step.update("reputation_rule", _RULE, fade_seconds=rule["fadeSeconds"], points_limit=rule["limit"])
