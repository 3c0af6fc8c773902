"""Which jobs a compute node takes on, and what it does when the ledger does not take its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from job_node import JobNode, JobStory, Task

from chain_fixture import Consortium, Vote
from usufruct.errors import ConfigurationError, ContainerError, InputError, LedgerUnreachableError
from usufruct.records import ArtifactId, JobId, JobState, MemberStatus, OrgId, Role
from usufruct_node.roles import context as context_module
from usufruct_node.roles import executor as executor_module
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
    executor._computed = {claimed[0].job_id: b"digest"}
    assert wanted(executor, claimed + posted) == [*claimed, posted[0]]
    executor._computed = {found.job_id: b"digest" for found in claimed}
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


# What it does when the ledger does not take its result. Chain, peers, words and kernels are real.


class Hiccup:
    """The node's ledger, but before the first result is committed something happens."""

    def __init__(self, ledger: object, happens: Callable[[], None]) -> None:
        self._ledger, self._happens = ledger, [happens]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def transact(self, contract: str, function: str, *arguments: object, **options: Any) -> object:
        if function == "commitResult" and self._happens:
            self._happens.pop()()
        return self.__getattr__("transact")(contract, function, *arguments, **options)


@pytest.fixture(scope="module")
def story(chain_url: str) -> JobStory:
    return JobStory(Consortium(chain_url))


@pytest.fixture
def node(story: JobStory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobNode]:
    monkeypatch.setattr(executor_module, "_COMPUTING_SECONDS", 0.0)
    with JobNode(story, tmp_path, "compute") as made:
        yield made


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a kernel was run."""
    done, compute = list[int](), context_module.compute_result

    def computed(*arguments: Any, **options: Any) -> Any:
        done.append(1)
        return compute(*arguments, **options)

    monkeypatch.setattr(context_module, "compute_result", computed)
    return done


def committed(
    node: JobNode, task: Task, votes: list[Vote], happens: Callable[[], None], *, tries: int
) -> None:
    """Let the executor try as often as it needs, while these verifiers give their word; `tries` is how often that was."""

    async def run() -> int:
        silent = {vote.verifier.name: lambda cid: None for vote in votes}
        async with node.peered(*votes, **silent) as context:
            executor = Executor(replace(context, ledger=Hiccup(context.ledger, happens)), room=2)
            for made in range(1, 4):
                (row,) = [found for found in executor.wanted() if found.job_id == task.job_id]
                try:
                    await executor.handle(row)
                except LedgerUnreachableError:
                    continue
                return made
        return 0

    assert trio.run(run) == tries


def test_a_result_is_computed_once_however_often_the_ledger_cannot_be_reached(
    node: JobNode, computations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "_SILENT_SECONDS", 0.0)
    task = node.story.claimed(node.story.task())
    node.has(task)

    def unreachable() -> None:
        raise LedgerUnreachableError("the endpoint is gone")

    committed(node, task, [], unreachable, tries=2)
    assert len(computations) == 1
    job = node.row(task).job
    assert (job.state, job.result_digest) == (JobState.COMMITTED, task.result.cid.digest)
    assert node.store.has(task.result.cid)


def test_the_word_of_a_verifier_that_was_suspended_meanwhile_is_left_out(
    node: JobNode, computations: list[int]
) -> None:
    net, task = node.story.net, node.story.claimed(node.story.task())
    node.has(task)
    votes = [v for v in node.story.votes(task, task.result.cid.digest) if v.verifier.name != "north"]

    def suspended() -> None:
        net.govern("ParticipantRegistry", "setStatus", net["south"].id, MemberStatus.SUSPENDED)

    try:
        committed(node, task, votes, suspended, tries=1)
    finally:
        net.govern("ParticipantRegistry", "setStatus", net["south"].id, MemberStatus.ACTIVE)
    job = node.row(task).job
    assert (job.state, job.commits) == (JobState.COMMITTED, 1)
    assert [verdict.verifier for verdict in node.index.verdicts(task.job_id)] == [net["auditor"].id]
    assert len(computations) == 1
