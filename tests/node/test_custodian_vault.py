"""The custodian's memory: the guard over it is the guard over every release, and a cohort is kept once."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.differencing import DIRECTION_BYTES, Asked, check_differencing
from usufruct.errors import ReleaseRefusedError
from usufruct.records import ArtifactId, JobId, KeyId
from usufruct_node.custodian.vault import Entry, Vault

MINIMUM, LIMIT = 3, 20
DIRECTIONS = st.none() | st.frozensets(
    st.sampled_from([bytes([n]) * DIRECTION_BYTES for n in range(3)]), min_size=1
)
SUBJECTS = st.frozensets(st.integers(0, 7), max_size=8)
ASKED = st.builds(
    lambda directions, subjects, rho: Asked(
        directions=directions,
        subjects=None if subjects is None else np.array(sorted(subjects), dtype=np.int64),
        rho_micro=rho,
    ),
    DIRECTIONS,
    st.none() | SUBJECTS,
    st.integers(1, LIMIT),
)


def entry(n: int, asked: Asked, *, under_way: Iterable[int] = (), artifact: int = 1) -> Entry:
    return Entry(
        job_id=JobId(n.to_bytes(32, "big")),
        artifact_id=ArtifactId(artifact.to_bytes(32, "big")),
        key_id=KeyId(bytes(32)),
        result_digest=n.to_bytes(32, "little"),
        asked=asked,
        under_way=[JobId(job.to_bytes(32, "big")) for job in under_way],
        minimum=MINIMUM,
        limit_rho_micro=LIMIT,
        openings=1,
        most_openings=1000,
    )


def cohorts(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM cohort").fetchone()[0])


@settings(max_examples=150, deadline=None)
@given(st.lists(ASKED, min_size=1, max_size=12))
def test_what_it_refuses_is_what_the_guard_over_all_releases_refuses(stream: list[Asked]) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Vault(Path(folder, "custodian.db"))) as vault:
        released: list[Asked] = []
        for n, asked in enumerate(stream):
            refused = [False, False]
            try:
                check_differencing(asked, released, minimum=MINIMUM, limit_rho_micro=LIMIT)
            except ReleaseRefusedError:
                refused[0] = True
            try:
                vault.open(entry(n, asked))
            except ReleaseRefusedError:
                refused[1] = True
            assert refused[0] == refused[1]
            if not refused[0]:
                released.append(asked)


def test_a_cohort_is_kept_once_however_often_it_is_asked_of(tmp_path: Path) -> None:
    path = tmp_path / "custodian.db"
    with closing(Vault(path)) as vault:
        everybody = Asked(
            directions=frozenset([b"d" * DIRECTION_BYTES]), subjects=np.arange(1000), rho_micro=1
        )
        for n in range(50):
            vault.open(entry(n, everybody, artifact=n % 2))
        assert cohorts(path) == 1


def test_the_cohort_of_a_job_that_ended_unopened_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "custodian.db"
    few = Asked(directions=None, subjects=np.arange(5), rho_micro=LIMIT)
    fewer = Asked(directions=None, subjects=np.arange(4), rho_micro=LIMIT)
    with closing(Vault(path)) as vault:
        vault.announce(entry(1, few))
        with pytest.raises(ReleaseRefusedError):
            vault.announce(entry(2, fewer, under_way=[1]))
        assert cohorts(path) == 1
        vault.announce(entry(2, fewer))
        assert cohorts(path) == 1


SOME = Asked(directions=None, subjects=np.arange(5), rho_micro=1)


def of_key(n: int, *, under_way: Iterable[int] = (), artifact: int = 1, openings: int = 4) -> Entry:
    """A job on one of several bundles under a key that may open ten blocks."""
    return replace(
        entry(n, SOME, under_way=under_way, artifact=artifact), openings=openings, most_openings=10
    )


def refusal_of(call: Callable[[], object]) -> str:
    with pytest.raises(ReleaseRefusedError) as refused:
        call()
    return refused.value.reason


def test_what_is_announced_is_reserved_among_the_keys_openings_until_the_job_is_over(tmp_path: Path) -> None:
    """Else two jobs are announced, both pay, and the second is refused what it paid for."""
    path, key = tmp_path / "custodian.db", bytes(32)
    with closing(Vault(path)) as vault:
        vault.announce(of_key(1, under_way=[1]))
        vault.announce(of_key(1, under_way=[1]))
        vault.announce(of_key(2, under_way=[1, 2], artifact=2))
        third = of_key(3, under_way=[1, 2, 3], artifact=3)
        assert refusal_of(lambda: vault.announce(third)) == "KEY_EXHAUSTED"
        assert refusal_of(lambda: vault.open(third)) == "KEY_EXHAUSTED"
        assert vault.openings() == {}
    with closing(Vault(path)) as vault:
        vault.open(of_key(2, under_way=[1, 2], artifact=2))
        assert refusal_of(lambda: vault.announce(third)) == "KEY_EXHAUSTED"
        # Job 1 has ended unopened, though nothing was ever asked again of its bundle; what was opened stays counted.
        vault.announce(replace(third, under_way=[third.job_id]))
        assert refusal_of(lambda: vault.announce(of_key(4, openings=3, under_way=[3, 4]))) == "KEY_EXHAUSTED"
        assert vault.openings() == {key: 4}


def test_a_result_that_is_begun_again_counts_once_and_another_of_the_same_job_anew(tmp_path: Path) -> None:
    path, key = tmp_path / "custodian.db", bytes(32)
    for _ in range(3):
        with closing(Vault(path)) as vault:
            vault.open(of_key(1))
            assert vault.openings() == {key: 4}
    other = replace(of_key(1), result_digest=b"other".ljust(32))
    with closing(Vault(path)) as vault:
        vault.open(other)
        assert vault.openings() == {key: 8}
        assert refusal_of(lambda: vault.open(of_key(2))) == "KEY_EXHAUSTED"
        # What is counted may be tried again, also when the key has nothing left.
        vault.open(other)
        vault.announce(of_key(1))
        assert vault.openings() == {key: 8}


MOVES = st.lists(
    st.tuples(st.sampled_from(["announce", "open", "end"]), st.integers(1, 6), st.integers(1, 5)), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(MOVES)
def test_a_key_never_opens_more_than_it_may_and_never_refuses_what_was_announced(
    moves: list[tuple[str, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(Vault(Path(folder, "custodian.db"))) as vault:
        live: dict[int, int] = {}
        opened: dict[int, int] = {}
        for move, n, openings in moves:
            if move == "end":
                live.pop(n, None)
                continue
            blocks = opened.get(n) or live.get(n) or openings
            asked = of_key(n, under_way=[*live, n], artifact=n % 3, openings=blocks)
            try:
                (vault.announce if move == "announce" else vault.open)(asked)
            except ReleaseRefusedError:
                assert n not in live and n not in opened
                assert sum(opened.values()) + sum(live[m] for m in live if m not in opened) + blocks > 10
                continue
            live[n] = blocks
            if move == "open":
                opened[n] = blocks
            assert vault.openings().get(bytes(32), 0) == sum(opened.values()) <= 10
