"""The custodian's memory: the guard over it is the guard over every release, and a cohort is kept once."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
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
        directions=directions, subjects=np.array(sorted(subjects), dtype=np.int64), rho_micro=rho
    ),
    DIRECTIONS,
    SUBJECTS,
    st.integers(1, LIMIT),
)


def entry(n: int, asked: Asked, *, under_way: Iterable[int] = (), artifact: int = 1) -> Entry:
    return Entry(
        job_id=JobId(n.to_bytes(32, "big")),
        artifact_id=ArtifactId(artifact.to_bytes(32, "big")),
        key_id=KeyId(bytes(32)),
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
