"""What every role does with a job's inputs. Chain, peers and kernels are real."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from job_node import JobNode, JobStory, Task, served

from bundle_fixture import ROWS, SCOPE
from chain_fixture import Consortium
from usufruct.content import MAX_BLOCK_BYTES, Cid, dag
from usufruct.errors import BlockNotFoundError, ContainerError, UsufructError, WrongKeyDomainError
from usufruct.he.bfv import generate_secret_key
from usufruct.he.container import Form, encode, parse
from usufruct.job import JobParameters
from usufruct.publish import manifest_record
from usufruct.records import JobId, JobState
from usufruct.seal import seal_features
from usufruct_node.holdings import Purpose
from usufruct_node.roles import context as context_module
from usufruct_node.roles.context import job_pin, result_pin
from usufruct_node.roles.executor import Executor


@pytest.fixture(scope="module")
def story(chain_url: str) -> JobStory:
    return JobStory(Consortium(chain_url))


@pytest.fixture
def node(story: JobStory, tmp_path: Path) -> Iterator[JobNode]:
    """A verifier that is not the bundles' steward."""
    with JobNode(story, tmp_path, "south") as made:
        yield made


def executed(node: JobNode, task: Task) -> UsufructError | None:
    """Let the node execute a job whose steward gives what the manifest links; the error that it ends in."""

    async def run() -> UsufructError | None:
        async with node.peered(north=served(task.ciphertexts, *task.records[:3])) as context:
            row = node.row(task)
            try:
                assert await context.execute(row, await context.inputs(row)) == task.result
            except UsufructError as exc:
                return exc
        return None

    return trio.run(run)


def linking(story: JobStory, blocks: list[bytes], asked: JobParameters | None = None) -> Task:
    """A job on a bundle whose manifest links these blocks."""
    sealed = seal_features(story.made.features, story.made.secret)
    list(sealed)
    links = [Cid.of(block) for block in blocks]
    record = manifest_record(sealed.manifest, scope=SCOPE, row_subjects=range(ROWS), blocks=links)
    artifact_id = story.bundle(record=record)
    task = story.claimed(story.task(artifact_id=artifact_id, asked=asked))
    task.ciphertexts = blocks
    return task


def test_blocks_of_the_bundle_are_fetched_and_computed_on(node: JobNode) -> None:
    """Positive control."""
    task = node.story.claimed(node.story.task())
    node.given(task.records[3], "bundle")
    assert executed(node, task) is None
    assert all(job_pin(task.job_id) in node.store.pins(Cid.of(block)) for block in task.ciphertexts)


def test_blocks_that_cannot_be_the_bundles_never_reach_the_disk(node: JobNode) -> None:
    """A steward may link two mebibytes of anything as often as a manifest has room."""
    sealed = node.story.made.blocks[0]
    for blocks, error in (
        ([bytes([n]) * MAX_BLOCK_BYTES for n in (1, 2)], ContainerError),
        ([sealed, sealed[:-1]], ContainerError),
        ([sealed, bytes(len(sealed))], ContainerError),
        (
            [block.data for block in seal_features(node.story.made.features, generate_secret_key())],
            WrongKeyDomainError,
        ),
    ):
        task = linking(node.story, blocks)
        node.given(task.records[3], "bundle")
        assert isinstance(executed(node, task), error)
        assert not any(node.store.has(Cid.of(block)) for block in blocks)
        assert node.store.reasons(job_pin(task.job_id)) == []


@pytest.mark.parametrize("is_here", [True, False])
def test_what_a_node_finds_does_not_hang_on_the_blocks_that_it_has(node: JobNode, *, is_here: bool) -> None:
    """Else a steward could set honest verifiers against each other with one block that the job does not read."""
    story, made = node.story, node.story.made
    used, unused = (block.data for block in seal_features(made.features, made.secret))
    other = encode(replace(parse(unused), form=Form.CIPHERTEXT, seed=None))
    asked = story.made.parameters("linear", output="sum", weights=[[1, 0]], bias=[0])
    task = linking(story, [used, other], asked)
    node.given(task.records[3], "bundle")
    if is_here:
        node.store.put_many(task.ciphertexts, pin="held")
    assert isinstance(executed(node, task), ContainerError)


def flip(node: JobNode, cid: Cid) -> None:
    """Let one byte of a block that is here rot."""
    path = node.store.files.path_of(cid)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("is_sound", [False, True], ids=["while it is looked at", "while it is computed on"])
def test_what_is_damaged_here_is_fetched_anew_and_what_was_kept_it_for_stays(
    node: JobNode, *, is_sound: bool
) -> None:
    """Else the job of a node whose disk lost a bit lapses though its steward has the block."""
    task = node.story.claimed(node.story.task())
    node.has(task)
    block, record = Cid.of(task.ciphertexts[1]), dag.cid_of(task.records[0])
    for cid in (block, record):
        flip(node, cid)
    if is_sound:
        node.context.sound.add(task.bundle)
    assert executed(node, task) is None
    assert node.store.get(block) == task.ciphertexts[1]
    assert node.store.pins(block) == node.store.pins(record) == {"bundle", job_pin(task.job_id)}


def test_what_is_damaged_here_and_given_by_nobody_is_said(node: JobNode) -> None:
    task = node.story.claimed(node.story.task())
    node.has(task)
    flip(node, Cid.of(task.ciphertexts[1]))
    task.ciphertexts = task.ciphertexts[:1]
    assert isinstance(executed(node, task), BlockNotFoundError)


def test_what_was_kept_for_an_ended_job_goes_and_what_answers_for_a_release_stays(node: JobNode) -> None:
    rows = {
        JobId(bytes([number]) * 32): SimpleNamespace(
            job_id=JobId(bytes([number]) * 32),
            job=SimpleNamespace(state=state, request=SimpleNamespace(artifact_id=bundle)),
        )
        for number, (state, bundle) in enumerate(
            (
                (JobState.VERIFIED, JobState.VERIFIED),
                (JobState.RELEASED, JobState.RELEASED),
                (JobState.REFUSED, JobState.REFUSED),
                (JobState.REFUSED, JobState.VERIFIED),
            ),
            start=1,
        )
    }
    index: Any = SimpleNamespace(job=rows.get)
    context = replace(node.context, index=index)
    context.sound.update(JobState)  # type: ignore[arg-type]
    for job_id in rows:
        cid = node.store.put(job_id, pin=result_pin(job_id))
        node.store.put(bytes(job_id), pin=job_pin(job_id))
        for purpose in (Purpose.RESULT, Purpose.RELEASE):
            node.holdings.add([cid], purpose, job_id)
    assert context.tidy() == 2
    live, released, *_ = rows
    for purpose in (Purpose.RESULT, Purpose.RELEASE):
        assert [len(node.holdings.cids(purpose, job_id)) for job_id in rows] == [1, 1, 0, 0]
    assert node.store.reasons("job:") == [job_pin(live)]
    assert sorted(node.store.reasons("result:")) == [result_pin(live), result_pin(released)]
    assert JobState.VERIFIED in context.sound, "a job that goes on has its blocks here"
    assert not context.sound & {JobState.RELEASED, JobState.REFUSED}, "they may have to be fetched again"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each time that a job's inputs were decoded and checked."""
    done, check = list[int](), context_module.check_job

    def checked(*arguments: Any, **options: Any) -> Any:
        done.append(threading.get_ident())
        return check(*arguments, **options)

    monkeypatch.setattr(context_module, "check_job", checked)
    return done


def test_what_a_job_rests_on_is_decoded_once_beside_the_loop_and_few_jobs_are_remembered(
    node: JobNode, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "_KNOWN_JOBS", 2)
    tasks = [node.story.task() for _ in range(3)]
    for task in tasks:
        node.has(task, ciphertexts=False)

    async def run() -> None:
        context = node.context
        rows = [node.row(task) for task in tasks]
        first = await context.inputs(rows[0])
        assert await context.inputs(rows[0]) is first
        assert (len(checks), list(context.known)) == (1, [tasks[0].job_id])
        await context.inputs(rows[1])
        await context.inputs(rows[0])
        await context.inputs(rows[2])
        assert (len(checks), list(context.known)) == (3, [tasks[0].job_id, tasks[2].job_id])

    trio.run(run)
    assert threading.get_ident() not in checks


def test_consent_that_has_expired_since_its_status_was_read_is_noticed(
    story: JobStory, tmp_path: Path, checks: list[int]
) -> None:
    task = story.task()
    with JobNode(story, tmp_path, "compute") as node:
        node.has(task, ciphertexts=False)
        executor = Executor(node.context, room=9)

        async def run() -> None:
            row = node.row(task)
            inputs = await node.context.inputs(row)
            now, node.time = node.time, inputs.status.valid_until
            await executor.handle(row)
            node.time = now
            assert node.row(task).job.state == JobState.POSTED
            # Positive control.
            await Executor(replace(node.context), room=9).handle(row)
            assert node.row(task).job.state == JobState.CLAIMED

        trio.run(run)
    assert len(checks) == 1
