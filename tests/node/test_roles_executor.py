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
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    ContainerError,
    InputError,
    LedgerUnreachableError,
    PeerError,
    StoreFullError,
)
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
            deadline=600,
        ),
        changed_at=0,
        overdue=lambda now: False,
        lapsed=lambda now: False,
    )


class Everything:
    """As the bundles whose blocks have been here."""

    def __contains__(self, _: object) -> bool:
        return True


def wanted(
    executor: Executor, rows: list[Any], *, roles: Role = Role.COMPUTE, sound: object = Everything()
) -> list[Any]:
    """Jobs that an executor wants; bundles 10 to 19 are one steward's, and so on."""
    index = SimpleNamespace(
        jobs=lambda *states: [found for found in rows if found.job.state in states],
        participant=lambda org: SimpleNamespace(roles=roles),
        artifact=lambda bundle: SimpleNamespace(steward=(int.from_bytes(bundle) // 10).to_bytes(32)),
    )
    executor._context = SimpleNamespace(  # type: ignore[assignment]
        org=ME, now=lambda: 0, index=index, sound=sound, inputs=None
    )
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


def failing(executor: Executor, found: Any, error: Exception, *, step: str = "_execute") -> None:
    """Let the execution of a claimed job fail."""

    async def fail(*_: object) -> None:
        raise error

    setattr(executor, step, fail)
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


def test_a_job_whose_inputs_are_not_to_be_had_keeps_no_other_from_being_claimed() -> None:
    """Else four jobs whose partner withholds their parameters stop every compute node."""
    executor = Executor(None, room=4)  # type: ignore[arg-type]
    posted = [row(number, JobState.POSTED) for number in range(1, 7)]
    errors = (PeerError("silent"), BlockNotFoundError("not here"), BlockMismatchError("garbage"))
    for found in wanted(executor, posted):
        for error in errors:
            unclaimed(executor, found, error)
    assert wanted(executor, posted) == [*posted[4:], *posted[:2]], "and with room left they are tried again"
    unclaimed(executor, posted[0], errors[0])
    assert wanted(executor, posted) == [*posted[4:], *posted[1:3]], "the one that failed oftenest comes last"
    assert wanted(executor, posted[:1]) == posted[:1]


def test_a_claim_under_way_keeps_its_place() -> None:
    executor = Executor(None, room=1)  # type: ignore[arg-type]
    posted = [row(number, JobState.POSTED) for number in (1, 2)]
    wanted(executor, posted)
    unclaimed(executor, posted[0], PeerError("silent"))
    executor._claiming = {posted[0].job_id}
    assert wanted(executor, posted) == posted[:1]


def unclaimed(executor: Executor, found: Any, error: Exception) -> None:
    """Let the claim of an open job fail for want of its inputs."""

    async def inputs(_: Any) -> None:
        raise error

    executor._context.inputs = inputs  # type: ignore[method-assign, assignment]
    with pytest.raises(type(error)):
        trio.run(executor.handle, found)


def test_of_each_steward_one_claim_at_most_is_open_on_blocks_that_have_not_been_here() -> None:
    """Else a steward that withholds ciphertexts has nodes let claims lapse until they are suspended."""
    executor = Executor(None, room=9)  # type: ignore[arg-type]
    one, same, next_, other = (
        row(number, JobState.POSTED, bundle=bundle) for number, bundle in enumerate((10, 10, 11, 20))
    )
    rows = [one, same, next_, other]
    assert wanted(executor, rows, sound=set()) == [one, other]
    one.job.state, one.job.executor = JobState.CLAIMED, ME
    assert wanted(executor, rows, sound=set()) == [one, other]
    came = {same.job.request.artifact_id}
    assert wanted(executor, rows, sound=came) == [one, same, next_, other], (
        "once its blocks came others follow"
    )


def test_after_a_claim_lapsed_for_want_of_blocks_new_bundles_of_its_steward_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(monotonic=lambda: time)
    monkeypatch.setattr(executor_module, "time", clock)
    executor = Executor(None, room=9)  # type: ignore[arg-type]
    posted = [row(number, JobState.POSTED, bundle=bundle) for number, bundle in enumerate((11, 20), start=10)]
    time, number = 0.0, 0

    def lapse(*, sound: set[bytes] | None = None) -> list[Any]:
        nonlocal number
        number += 1
        claim = row(number, JobState.CLAIMED, bundle=10)
        wanted(executor, [claim], sound=sound or set())
        with pytest.raises(PeerError):
            failing(executor, claim, PeerError("no blocks"), step="_compute")
        claim.overdue = lambda now: True
        wanted(executor, [claim, *posted], sound=sound or set())
        return wanted(executor, [claim, *posted], sound=sound or set())

    assert lapse(sound={ArtifactId((10).to_bytes(32))}) == posted, "that was not its steward's doing"
    for minutes in (10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440):
        assert lapse() == posted[1:]
        time += minutes * 60 - 1
        assert wanted(executor, posted, sound=set()) == posted[1:]
        assert wanted(executor, posted, sound={ArtifactId((11).to_bytes(32))}) == posted
        time += 1
        assert wanted(executor, posted, sound=set()) == posted
    time += 86_400
    assert lapse() == posted[1:]
    time += 600
    assert wanted(executor, posted, sound=set()) == posted, "what is a day ago is forgotten"


@pytest.mark.parametrize(
    "error", [LedgerUnreachableError("gone"), StoreFullError("full")], ids=["ledger", "disk"]
)
def test_a_claim_that_lapsed_for_what_is_no_stewards_fault_puts_nobody_off(error: Exception) -> None:
    executor = Executor(None, room=9)  # type: ignore[arg-type]
    claim, posted = row(1, JobState.CLAIMED, bundle=10), row(2, JobState.POSTED, bundle=11)
    wanted(executor, [claim], sound=set())
    with pytest.raises(type(error)):
        if isinstance(error, LedgerUnreachableError):
            executor._computed[claim.job_id] = bytes(32)
            failing(executor, claim, error, step="_commit")
        else:
            failing(executor, claim, error, step="_compute")
    claim.overdue = lambda now: True
    wanted(executor, [claim, posted], sound=set())
    assert wanted(executor, [claim, posted], sound=set()) == [posted]


def test_a_claim_that_lapsed_while_the_node_was_down_is_not_its_stewards_doing() -> None:
    executor = Executor(None, room=9)  # type: ignore[arg-type]
    claim, posted = row(1, JobState.CLAIMED, bundle=10), row(2, JobState.POSTED, bundle=11)
    claim.overdue = lambda now: True
    assert wanted(executor, [claim, posted], sound=set()) == [posted]


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
