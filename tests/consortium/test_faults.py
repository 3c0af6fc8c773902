"""Validators, endpoints and clocks fail in the middle of jobs: nothing is lost, nothing happens twice, indexes equal a replay.

Every test posts jobs on one network and remembers them; the last looks at all of them, and at every member's index.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from books import budgets_conserve, completed_once, home_is_whole, index_equals_a_fresh_replay
from members_fixture import VALIDATORS, Members
from organisations import processes_below

from usufruct.records import JobId, JobState

SECONDS = 200.0
NODES = ("clinic-north", "clinic-south", "compute-1", "auditor", "university")

pytestmark = pytest.mark.timeout(500)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    root = tmp_path_factory.mktemp("members")
    network = Members(root)
    try:
        yield network
    finally:
        network.close()
        Members.until(lambda: not processes_below(root), 30)


@pytest.fixture(scope="module")
def jobs() -> list[JobId]:
    """Every job of this module that was released."""
    return []


def reach(members: Members, job: JobId, state: JobState) -> None:
    """Wait until a job is at least in this state."""
    deadline = time.monotonic() + SECONDS
    while members.ledger.job(job).state < state:
        assert time.monotonic() < deadline, members.ledger.job(job).state.name
        time.sleep(0.1)


def test_two_of_five_validators_down_stop_the_chain_and_everything_completes_once_they_are_back(
    members: Members, jobs: list[JobId]
) -> None:
    job = members.post()
    reach(members, job, JobState.CLAIMED)
    with members.killed(4, 5):
        # Its endpoint lives: what the executor sees is a chain that takes its transaction and makes no block.
        members.until(lambda: "stands still" in members.ledger_state("compute-1"), 120)
        height = members.ledger.finalised().number
        assert not members.net.health("compute-1")["ok"]
        assert members.ledger.job(job).state < JobState.RELEASED
        assert members.ledger.finalised().number == height
    members.reopen()
    members.reached(job, JobState.RELEASED, seconds=SECONDS)
    members.until(lambda: members.ledger_state("compute-1") == "ok", 60)
    completed_once(members, [job])
    jobs.append(job)


@pytest.mark.parametrize(
    ("node", "state"),
    [
        ("compute-1", JobState.POSTED),
        ("auditor", JobState.COMMITTED),
        ("clinic-north", JobState.REVEALING),
        ("clinic-north", JobState.OPENED),
    ],
    ids=["sending to receipt", "before commitments", "commitment to revealing", "decryption to logging"],
)  # fmt: skip
def test_the_endpoint_in_use_dies_and_the_node_goes_on_through_another(
    members: Members, jobs: list[JobId], node: str, state: JobState
) -> None:
    job = members.post()
    reach(members, job, state)
    with members.killed(members.in_use_by(node)):
        members.reached(job, JobState.RELEASED, seconds=SECONDS)
    members.reopen()
    completed_once(members, [job])
    jobs.append(job)


def test_clocks_wrong_by_an_hour_in_both_directions_change_nothing(
    members: Members, jobs: list[JobId], tmp_path: Path
) -> None:
    with members.clocks_wrong(tmp_path, clinic_north=3600, compute_1=-3600, auditor=-3600):
        assert members.ledger_state("clinic-north") == "ok"
        job = members.post()
        members.reached(job, JobState.RELEASED, seconds=SECONDS)
        completed_once(members, [job])
    jobs.append(job)


def test_a_job_that_nobody_takes_expires_although_no_block_comes_by_itself(members: Members) -> None:
    before = members.account()
    with members.timings(claim=8):
        with members.stopped("compute-1"):
            job = members.post()
            assert members.ended(job, seconds=SECONDS).state is JobState.EXPIRED
        members.reopen()
    assert members.account() == before


def test_all_five_validators_are_killed_at_once_and_the_job_goes_on_after_their_restart(
    members: Members, jobs: list[JobId]
) -> None:
    job = members.post()
    reach(members, job, JobState.COMMITTED)
    with members.killed(*VALIDATORS):
        members.until(lambda: members.ledger_state("clinic-north") != "ok", 120)
    members.reopen()
    members.reached(job, JobState.RELEASED, seconds=SECONDS)
    completed_once(members, [job])
    jobs.append(job)


def test_after_all_faults_budgets_conserve_and_every_home_and_index_is_whole(
    members: Members, jobs: list[JobId]
) -> None:
    last = members.post("clinic-south")
    members.reached(last, JobState.RELEASED, seconds=SECONDS)
    jobs.append(last)
    completed_once(members, jobs)
    budgets_conserve(members, jobs)
    members.indexed()
    for name in NODES:
        members.net.stop(name)
        home_is_whole(members, name)
        index_equals_a_fresh_replay(members, name)
