"""A job whose claims lapse, as compute nodes and verifiers see it; chain and index are real."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from job_node import JobNode, JobStory, Task

from chain_fixture import CAST, Consortium, until
from usufruct.errors import TransactionRevertedError
from usufruct.records import JobState, Role, Timings
from usufruct_node.index.rows import MAX_TURNS
from usufruct_node.roles.executor import Executor
from usufruct_node.roles.verifier import Verifier

COMPUTE = [f"compute-{n}" for n in range(1, MAX_TURNS + 2)]


def lapse(node: JobNode, task: Task, name: str) -> None:
    """Let a compute node claim the job and bring nothing until its time is over."""
    net = node.story.net
    net[name].node.transact("JobLedger", "claimJob", task.job_id)
    deadline = net.reader.job(task.job_id).deadline
    until(lambda: net.reader.finalised().timestamp >= deadline)
    node.time = net.reader.finalised().timestamp


def test_a_job_that_may_be_claimed_no_more_is_asked_for_by_nobody_and_closed_at_once(
    chain_url: str, tmp_path: Path
) -> None:
    cast = CAST | dict.fromkeys(COMPUTE, Role.COMPUTE)
    story = JobStory(Consortium(chain_url, cast=cast, timings=Timings(compute=1)))
    task = story.task()
    with ExitStack() as stack:
        for folder in ("idle", "judge"):
            (tmp_path / folder).mkdir()
        idle = stack.enter_context(JobNode(story, tmp_path / "idle", COMPUTE[-1]))
        executor = Executor(idle.context, room=2)
        for turn, name in enumerate(COMPUTE[:MAX_TURNS], 1):
            idle.follow()
            assert [row.job_id for row in executor.wanted()] == [task.job_id]
            lapse(idle, task, name)
            assert idle.row(task).turns == turn
        assert executor.wanted() == []
        with pytest.raises(TransactionRevertedError, match="JobLedgerWrongState"):
            story.net[COMPUTE[-1]].node.transact("JobLedger", "claimJob", task.job_id)

        judge = stack.enter_context(JobNode(story, tmp_path / "judge", "auditor"))
        judge.time = idle.time
        verifier = Verifier(judge.context, verdict_key=bytes(32), node_key=judge.member.node_key)
        assert [row.job_id for row in verifier.wanted()] == [task.job_id]
        trio.run(verifier.handle, judge.row(task))
        assert judge.row(task).job.state == JobState.EXPIRED
