"""What a soak looks for, found: each rule is broken once by an event or a row that was made up."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from ledger_story import Story

from usufruct.records import LedgerEvent
from usufruct_node.index import Index, catch_up
from usufruct_node.soak.books import Books
from usufruct_node.soak.plan import plan
from usufruct_node.soak.watch import differences, grown

JOB, ARTIFACT, GRANT = b"j" * 32, b"a" * 32, b"g" * 32
LIFE = (
    "JobPosted", "JobClaimed", "ResultCommitted", "CommitsClosed", "JobVerified", "ReleaseOpened", "JobReleased",
)  # fmt: skip
ONCE = tuple(name for name in LIFE if name != "JobClaimed")
"""Another may claim a job again when a claim lapsed."""


def event(name: str, **args: object) -> LedgerEvent:
    given = {
        "jobId": JOB,
        "artifactId": ARTIFACT,
        "grantId": GRANT,
        "request": {"rhoMicro": 5},
        "from": 3,
        "releaseDigest": b"r" * 32,
    }
    return LedgerEvent(
        contract="PrivacyBudget" if name.startswith("Budget") else "JobLedger",
        name=name,
        args=given | args,
        block_number=1,
        block_hash=bytes(32),
        transaction_hash=bytes(32),
        log_index=0,
        timestamp=0,
        words=b"",
    )


def complaints(names: Sequence[str], *, total: int = 10) -> list[str]:
    books = Books()
    assert books.add([event("BudgetSet", totalRhoMicro=total)]) == []
    return books.add([event(name) for name in names])


def test_books_of_a_real_network_that_went_through_every_state_balance(story: Story) -> None:
    books = Books()
    assert books.add(story.net.events()) == []
    assert {name: story.net.reader.budget(bundle).spent for name, bundle in story.bundles.items()} == {
        name: books.accounts[bundle].spent if bundle in books.accounts else 0
        for name, bundle in story.bundles.items()
    }
    released = {story.jobs["released"], story.jobs["released-rows"]}
    assert set(books.released) == released
    assert ("release", story.jobs["released"], books.released[story.jobs["released"]]) in books.facts
    assert books.open_jobs and not books.open_jobs & released


def test_a_whole_life_of_a_job_breaks_nothing() -> None:
    assert complaints(LIFE) == []


@pytest.mark.parametrize("missing", LIFE[:-1])
def test_a_step_of_a_job_that_was_left_out_is_found(missing: str) -> None:
    assert any(missing in said for said in complaints([name for name in LIFE if name != missing]))


def test_a_release_without_verification_is_found() -> None:
    assert complaints([name for name in LIFE if name != "JobVerified"]) == [
        f"ReleaseOpened without JobVerified for job {JOB.hex()[:12]}"
    ]


@pytest.mark.parametrize("again", ONCE)
def test_whatever_happens_twice_to_a_job_is_found(again: str) -> None:
    assert any(f"{again} twice" in said for said in complaints([*LIFE, again]))


def test_a_step_after_the_end_of_a_job_is_found() -> None:
    ended = [*LIFE[:4]]
    books = Books()
    books.add([event("BudgetSet", totalRhoMicro=10), *map(event, ended), event("JobEnded", state=11)])
    assert any("after the end" in said for said in books.add([event("JobVerified")]))


def test_budgets_that_do_not_conserve_are_found() -> None:
    assert any("does not conserve" in said for said in complaints(LIFE, total=4))
    assert any("had nothing reserved" in said for said in complaints(LIFE[1:]))


def test_the_same_seed_draws_the_same_actions_and_another_draws_others() -> None:
    def drawn(seed: int) -> list[object]:
        return list(islice(plan(seed, victims=["chain", "compute-1"], pausable=["compute-1"]), 300))

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    kinds = {action.kind for action in drawn(7)}
    assert {"sum job", "publication", "consent", "withdrawal", "kill", "job on an old epoch"} <= kinds


def test_a_row_that_differs_from_a_replay_is_found_in_any_table(story: Story, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole.db", tmp_path / "other.db"
    index = Index(whole)
    catch_up(index, story.net.reader)
    index.close()
    shutil.copy(whole, other)
    assert differences(whole, other) == {}
    with sqlite3.connect(other) as db:
        db.execute("UPDATE job SET agreeing = agreeing + 1 WHERE job_id = ?", (story.jobs["released"],))
        db.execute("DELETE FROM verdict WHERE job_id = ?", (story.jobs["disputed"],))
    assert differences(whole, other) == {"job": 2, "verdict": 3}
    assert differences(other, whole) == {"job": 2, "verdict": 3}


def test_a_process_that_keeps_growing_is_found_and_a_young_or_flat_one_is_not() -> None:
    steady = [(float(second), 200 << 20) for second in range(0, 1200, 2)]
    growing = [(at, size + int(at) * 200_000) for at, size in steady]
    warming = [(at, size + min(int(at), 300) * 500_000) for at, size in steady]
    assert grown(steady) == 0
    assert grown(warming) == 0
    assert grown(growing) > 16 << 20
    assert grown(growing[:200]) == 0
