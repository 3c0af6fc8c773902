"""Which jobs a compute node takes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from usufruct.errors import ConfigurationError, ContainerError, InputError
from usufruct.records import ArtifactId, JobId, JobState, OrgId, Role
from usufruct_node.roles.executor import Executor

ME, PARTNER = OrgId(b"\1" * 32), OrgId(b"\2" * 32)


def row(
    number: int,
    state: JobState,
    *,
    bundle: int = 1,
    requester: OrgId = PARTNER,
    asked: int = 3,
    replicas: int = 2,
) -> Any:
    executor = ME if state == JobState.CLAIMED else OrgId(bytes(32))
    request = SimpleNamespace(artifact_id=ArtifactId(bundle.to_bytes(32, "big")))
    return SimpleNamespace(
        job_id=JobId(number.to_bytes(32, "big")),
        job=SimpleNamespace(
            state=state,
            executor=executor,
            requester=requester,
            request=request,
            asked=asked,
            replicas=replicas,
        ),
        overdue=lambda now: False,
        lapsed=lambda now: False,
    )


def wanted(executor: Executor, rows: list[Any], *, roles: Role = Role.COMPUTE) -> list[Any]:
    index = SimpleNamespace(
        jobs=lambda *states: [found for found in rows if found.job.state in states],
        participant=lambda org: SimpleNamespace(roles=roles),
    )
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


def failing(executor: Executor, found: Any, error: Exception) -> None:
    """Let the execution of a claimed job fail."""

    async def execute(_: Any) -> None:
        raise error

    executor._execute = execute  # type: ignore[method-assign]
    trio.run(executor.handle, found)


def test_a_claim_that_cannot_be_fulfilled_takes_its_place_until_it_lapses() -> None:
    """Else whoever posts jobs on malformed ciphertexts has a node claim them all, let them lapse, and be suspended."""
    executor = Executor(None, room=2)  # type: ignore[arg-type]
    claimed = [row(number, JobState.CLAIMED, bundle=number) for number in (1, 2)]
    posted = [row(number, JobState.POSTED, bundle=number) for number in (3, 4, 5)]
    for found in claimed:
        wanted(executor, claimed + posted)
        failing(executor, found, ContainerError("magic"))
    assert wanted(executor, claimed + posted) == []
    claimed[0].overdue = lambda now: True
    assert wanted(executor, claimed + posted) == posted[:1]


def test_a_bundle_that_was_malformed_after_a_claim_is_not_claimed_again() -> None:
    executor = Executor(None, room=9)  # type: ignore[arg-type]
    bad, odd = row(1, JobState.CLAIMED, bundle=1), row(2, JobState.CLAIMED, bundle=2)
    again, other = row(3, JobState.POSTED, bundle=1), row(4, JobState.POSTED, bundle=2)
    rows = [bad, odd, again, other]
    assert wanted(executor, rows) == rows
    failing(executor, bad, ContainerError("magic"))
    failing(executor, odd, InputError("odd"))
    assert wanted(executor, rows) == [other]
    with pytest.raises(ConfigurationError):
        failing(executor, odd, ConfigurationError("the disk is full: not the job's fault"))


def test_a_verifier_does_not_claim_what_lacks_its_verdict() -> None:
    executor = Executor(None, room=9)  # type: ignore[arg-type]
    tight, loose = row(1, JobState.POSTED, asked=3, replicas=3), row(2, JobState.POSTED, asked=3, replicas=2)
    assert wanted(executor, [tight, loose]) == [tight, loose]
    assert wanted(executor, [tight, loose], roles=Role.COMPUTE | Role.VERIFIER) == [loose]
