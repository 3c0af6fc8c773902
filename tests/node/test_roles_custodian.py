"""What a custodian does when a job's executor does not give the result. Chain, peers, custodian and kernels are real."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from custodian_fixture import ASKING, custodian_home
from job_node import JobNode, JobStory, Task, served

from chain_fixture import Consortium, word
from usufruct.content import Cid, Codec, dag
from usufruct.errors import CustodianError
from usufruct.records import JobState, Refusal
from usufruct.replication import Replication
from usufruct_node.custodian import Case, CustodianProcess
from usufruct_node.custodian import process as process_module
from usufruct_node.holdings import Purpose
from usufruct_node.index import JobRow
from usufruct_node.roles import custodian as custodian_module
from usufruct_node.roles.context import job_pin
from usufruct_node.roles.custodian import Custodian


@pytest.fixture(scope="module")
def story(chain_url: str) -> JobStory:
    return JobStory(Consortium(chain_url))


@pytest.fixture
def node(story: JobStory, tmp_path: Path) -> Iterator[JobNode]:
    with JobNode(story, tmp_path, "north") as made:
        yield made


@contextmanager
def running_process(node: JobNode, root: Path) -> Iterator[CustodianProcess]:
    process = CustodianProcess(custodian_home(root / "home", node.story.made))
    try:
        yield process
    finally:
        process.close()


def carried_on(
    node: JobNode, task: Task, root: Path, **others: Callable[[Cid], bytes | None]
) -> list[JobState]:
    """States that the custodian brings a verified job through."""
    states = [node.row(task).job.state]

    async def run() -> None:
        async with node.peered(**others) as context:
            custodian = Custodian(context, process=process, signing_key=node.member.node_key)
            while states[-1] in (JobState.VERIFIED, JobState.OPENED):
                await custodian.handle(node.row(task))
                states.append(node.row(task).job.state)

    with running_process(node, root) as process:
        trio.run(run)
    return states


def nothing(cid: Cid) -> bytes | None:
    return None


def garbage(cid: Cid) -> bytes | None:
    return b"garbage"


@pytest.mark.parametrize("given", [nothing, garbage, None], ids=["nothing", "garbage", "no answer"])
def test_a_result_that_its_executor_withholds_is_computed_by_the_custodian_and_released(
    node: JobNode, tmp_path: Path, given: Callable[[Cid], bytes | None] | None
) -> None:
    task = node.story.verified(node.story.task())
    node.has(task)
    others = {} if given is None else {"compute": given}
    assert carried_on(node, task, tmp_path, **others) == [
        JobState.VERIFIED,
        JobState.OPENED,
        JobState.RELEASED,
    ]
    # It answers for its release, and gives nobody the result.
    assert node.holdings.cids(Purpose.RELEASE, task.job_id)
    assert node.holdings.cids(Purpose.RESULT, task.job_id) == []
    assert node.index.job(task.job_id).job.result_digest == task.result.cid.digest


def test_a_manifest_without_its_blocks_is_not_enough_and_the_blocks_are_computed(
    node: JobNode, tmp_path: Path
) -> None:
    task = node.story.verified(node.story.task())
    node.has(task)
    states = carried_on(node, task, tmp_path, compute=served([], task.result.to_record()))
    assert states[-1] == JobState.RELEASED


def test_a_result_that_its_executor_gives_is_not_computed_again(node: JobNode, tmp_path: Path) -> None:
    """Positive control: the custodian has no ciphertexts here."""
    task = node.story.verified(node.story.task())
    node.has(task, ciphertexts=False)
    given = served(task.blocks, task.result.to_record())
    assert carried_on(node, task, tmp_path, compute=given)[-1] == JobState.RELEASED


@pytest.mark.parametrize("is_given", [True, False], ids=["fetched anew", "computed"])
def test_records_and_result_blocks_that_are_damaged_here_keep_no_job_from_its_release(
    node: JobNode, tmp_path: Path, *, is_given: bool
) -> None:
    task = node.story.verified(node.story.task())
    node.has(task)
    pin = job_pin(task.job_id)
    node.store.put_many(task.blocks, pin=pin)
    node.given(task.result.to_record(), pin)
    trio.run(node.context.inputs, node.row(task))
    cids = [*map(dag.cid_of, task.records), Cid.of(task.blocks[0])]
    for cid in cids:
        node.store.files.path_of(cid).write_bytes(b"")
    others = served(task.blocks if is_given else [], *task.records)
    assert carried_on(node, task, tmp_path, compute=others, university=others)[-1] == JobState.RELEASED
    assert all(map(node.store.get, cids))


def test_an_executor_that_keeps_the_custodian_waiting_has_only_a_share_of_the_time(
    node: JobNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would give the result, and its time is over at once."""
    monkeypatch.setattr(custodian_module, "_EXECUTORS_SHARE", 0.0)
    task = node.story.verified(node.story.task())
    node.has(task)
    given = served(task.blocks, task.result.to_record())
    assert carried_on(node, task, tmp_path, compute=given)[-1] == JobState.RELEASED
    assert node.store.has(task.result.cid)


@pytest.mark.parametrize("kept", [True, False], ids=["holders have it", "nobody has it"])
def test_a_custodian_that_lost_its_memory_and_an_earlier_status_releases_again(
    node: JobNode, tmp_path: Path, *, kept: bool
) -> None:
    """Its holders keep the status; once they do not either, what the policy lets one job cost bounds both releases."""
    story = node.story
    bundle = story.bundle()
    first = story.verified(story.task(artifact_id=bundle, rho_micro=400_000))
    node.has(first)
    assert carried_on(node, first, tmp_path / "before")[-1] == JobState.RELEASED
    lost = Cid.of(dag.encode(first.records[2]), Codec.DAG_CBOR)
    node.store.unpin_all("bundle")
    node.store.unpin_all(job_pin(first.job_id))
    node.store.gc()
    assert not node.store.has(lost)
    second = story.verified(story.task(artifact_id=bundle))
    node.has(second)
    node.custody.keep_replication(
        node.artifact(bundle).policy_digest, Replication(copies=2, holders=("compute",))
    )
    held = [*second.records, first.records[2]] if kept else second.records
    given = served(second.blocks, second.result.to_record(), *held)
    assert carried_on(node, second, tmp_path / "after", compute=given)[-1] == JobState.RELEASED
    assert node.store.has(lost) == kept


def test_a_withheld_result_that_the_bundle_does_not_give_is_refused_without_cost(
    node: JobNode, tmp_path: Path
) -> None:
    """Executor and all verifiers agreed on a digest of nothing."""
    before = node.story.net.reader.budget
    task = node.story.verified(node.story.task(), digest=word())
    node.has(task)
    assert carried_on(node, task, tmp_path) == [JobState.VERIFIED, JobState.REFUSED]
    assert node.row(task).job.refusal == Refusal.RESULT_INVALID
    assert (before(task.bundle).spent, before(task.bundle).reserved) == (0, 0)


def test_a_job_is_put_to_the_process_with_all_that_is_under_way_by_then_and_by_itself(
    node: JobNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a question that took long to put together has the place of a job that came meanwhile given away."""
    story = node.story
    bundle = story.bundle()
    first, second = (story.verified(story.task(artifact_id=bundle)) for _ in range(2))
    third = story.task(artifact_id=bundle)
    for task in (first, second, third):
        node.has(task)
        node.store.put_many(task.blocks, pin="result")
        node.given(task.result.to_record(), "result")
    asked: list[Case] = []
    is_busy = threading.Lock()

    def examine(case: Case, *_: object) -> None:
        assert is_busy.acquire(blocking=False), "two at a time"
        time.sleep(0.2)
        asked.append(case)
        is_busy.release()
        raise CustodianError("enough is known")

    process: Any = SimpleNamespace(examine=examine)
    custodian = Custodian(node.context, process=process, signing_key=node.member.node_key)
    put_together = custodian._question

    async def slowly(row: JobRow) -> Any:
        question = await put_together(row)
        if row.job_id == first.job_id:
            story.verified(third)
            node.follow()
        return question

    monkeypatch.setattr(custodian, "_question", slowly)

    async def handle(task: Task) -> None:
        with pytest.raises(CustodianError):
            await custodian._ask(custodian._examine, node.row(task))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for task in (first, second):
                nursery.start_soon(handle, task)

    trio.run(run)
    (case,) = [case for case in asked if case.job_id == first.job_id]
    assert set(case.under_way) >= {first.job_id, second.job_id, third.job_id}
    assert len(asked) == 2


def test_a_custodian_that_waits_for_its_passphrase_keeps_neither_other_work_nor_a_stop_waiting(
    node: JobNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_MODULE", "custodian_fixture")
    monkeypatch.setenv("DIE", ASKING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    task = node.story.verified(node.story.task())
    node.has(task)
    given = served(task.blocks, task.result.to_record())

    async def run() -> None:
        async with node.peered(compute=given) as context, trio.open_nursery() as nursery:
            custodian = Custodian(context, process=process, signing_key=node.member.node_key)
            nursery.start_soon(custodian.handle, node.row(task))
            while not process.is_starting:
                await trio.sleep(0.01)
            assert (context.asking.borrowed_tokens, context.computing.borrowed_tokens) == (1, 0)
            assert process.pid is None, "whoever asks for its state must not wait for it either"
            nursery.cancel_scope.cancel()

    with running_process(node, tmp_path) as process:
        # If the stop had to wait for the passphrase, it would be for good.
        rescue = threading.Timer(60, process.close)
        rescue.start()
        trio.run(run)
        still_asking = process.is_starting
        rescue.cancel()
    assert still_asking
