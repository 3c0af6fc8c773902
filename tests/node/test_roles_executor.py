"""Which jobs a compute node takes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from usufruct.records import JobId, JobState, OrgId
from usufruct_node.roles.executor import Executor

ME, PARTNER = OrgId(b"\1" * 32), OrgId(b"\2" * 32)


def row(number: int, state: JobState) -> Any:
    executor = ME if state == JobState.CLAIMED else OrgId(bytes(32))
    return SimpleNamespace(
        job_id=JobId(number.to_bytes(32, "big")),
        job=SimpleNamespace(state=state, executor=executor, requester=PARTNER),
        overdue=lambda now: False,
        lapsed=lambda now: False,
    )


def wanted(executor: Executor, rows: list[Any]) -> list[Any]:
    index = SimpleNamespace(jobs=lambda *states: [found for found in rows if found.job.state in states])
    executor._context = SimpleNamespace(org=ME, now=lambda: 0, index=index)  # type: ignore[assignment]
    return executor.wanted()


def test_only_claims_that_are_not_computed_yet_keep_a_node_from_claiming_more() -> None:
    executor = Executor(None, room=2)  # type: ignore[arg-type]
    claimed = [row(number, JobState.CLAIMED) for number in (1, 2)]
    posted = [row(number, JobState.POSTED) for number in (3, 4, 5)]
    assert wanted(executor, claimed + posted) == claimed
    executor._computed = {claimed[0].job_id}
    assert wanted(executor, claimed + posted) == [*claimed, posted[0]]
    executor._computed = {found.job_id for found in claimed}
    assert wanted(executor, claimed + posted) == [*claimed, *posted[:2]]
    assert wanted(executor, posted) == posted[:2]
    assert wanted(executor, claimed + posted) == claimed, "what the ledger forgot about is not remembered"
