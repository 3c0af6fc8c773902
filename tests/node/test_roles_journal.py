"""What a role must not forget, and that one job's trouble is not another's."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
import trio

from usufruct.content import Cid, Codec
from usufruct.errors import PeerError, TransactionRevertedError
from usufruct.records import JobId
from usufruct_node.roles.dispatch import Dispatcher
from usufruct_node.roles.journal import Journal, OwnRelease, OwnVerdict

JOB = JobId(b"\x01" * 32)


def verdict(number: int) -> OwnVerdict:
    word = bytes([number]) * 32
    return OwnVerdict(result_digest=word, possession=word, salt=word)


def release(number: int) -> OwnRelease:
    return OwnRelease(envelope=Cid.of(bytes([number]), Codec.DAG_CBOR), sigma_micro=number)


def test_query_differencing_the_first_release_and_verdict_of_a_job_stand_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    journal = Journal(path)
    assert journal.release(JOB) is None
    assert journal.verdict(JOB) is None
    assert journal.keep_release(JOB, release(1)) == release(1)
    assert journal.keep_release(JOB, release(2)) == release(1)
    assert journal.keep_verdict(JOB, verdict(1)) == verdict(1)
    assert journal.keep_verdict(JOB, verdict(2)) == verdict(1)
    journal.close()
    again = Journal(path)
    assert (again.release(JOB), again.verdict(JOB)) == (release(1), verdict(1))
    again.close()
    assert path.stat().st_mode & 0o077 == 0


def test_of_many_that_keep_a_release_at_once_all_get_the_same(tmp_path: Path) -> None:
    journal, kept = Journal(tmp_path / "node.db"), []
    threads = [
        threading.Thread(target=lambda n=n: kept.append(journal.keep_release(JOB, release(n))))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 16
    assert len(set(kept)) == 1
    journal.close()


class Row:
    def __init__(self, number: int) -> None:
        self.job_id = JobId(bytes([number]) * 32)


class Faulty:
    """Wants three jobs: one provokes an error, one the chain has moved past, one is sound."""

    def __init__(self, error: Exception) -> None:
        self.rows = [Row(1), Row(2), Row(3)]
        self.outcome = {
            self.rows[0].job_id: error,
            self.rows[1].job_id: TransactionRevertedError("JobLedgerWrongState", {}),
        }
        self.handled: list[JobId] = []

    def wanted(self) -> list[Row]:
        return self.rows

    async def handle(self, row: Row) -> None:
        self.handled.append(row.job_id)
        if row.job_id in self.outcome:
            raise self.outcome[row.job_id]
        self.rows.remove(row)


@pytest.mark.parametrize("error", [PeerError("gone"), sqlite3.OperationalError("database is locked")])
def test_a_role_that_cannot_look_for_work_ends_neither_the_node_nor_other_roles(error: Exception) -> None:
    role, looks = Faulty(PeerError("gone")), list[int]()

    class Blind:
        def wanted(self) -> list[Row]:
            looks.append(1)
            raise error

    dispatcher = Dispatcher([Blind(), role])

    async def run() -> None:
        with trio.move_on_after(0.5):
            await dispatcher.run()

    trio.run(run)
    assert looks
    assert len(role.handled) >= 3
    assert str(error) in dispatcher.troubles["blind"]


@pytest.mark.parametrize(
    "error", [PeerError("gone"), OSError("disk"), ZeroDivisionError("hostile"), RecursionError()]
)
def test_one_jobs_error_of_any_kind_stops_neither_the_node_nor_other_jobs(error: Exception) -> None:
    role = Faulty(error)
    sound = role.rows[2].job_id
    dispatcher = Dispatcher([role])

    async def run() -> None:
        with trio.move_on_after(0.6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dispatcher.run)
                for _ in range(10):
                    await trio.sleep(0.05)
                    dispatcher.wake()

    trio.run(run)
    assert role.handled.count(sound) == 1
    assert 1 <= role.handled.count(role.rows[0].job_id) < 5, (
        "woken ten times, it rests before it is tried again"
    )
    assert set(dispatcher.troubles) == {role.rows[0].job_id.hex()}, "a chain that moved on is no trouble"
