"""What a partner can make of releases that it asks for one after the other, each attack with its control off first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_fixture import ROWS, SmallBundle
from chain_fixture import Consortium, word
from usufruct.client import Client
from usufruct.content import Cid, dag
from usufruct.differencing import CONTRIBUTIONS, DIRECTION_BYTES, Asked, check_differencing, directions, near
from usufruct.errors import PrivacyError, ReleaseRefusedError
from usufruct.he.kernels import BundleShape, kernel_by_name
from usufruct.he.parameters import BFV_LINEAR
from usufruct.job import FeatureBundle, JobParameters
from usufruct.privacy import (
    MICRO,
    discrete_gaussian,
    grid_for,
    linear_sensitivity,
    round_to_grid,
    sigma_for,
)
from usufruct.records import label

SCALE, FEATURES = 64, 32
BUDGET = 5 * MICRO
"""What the policy lets all releases on the bundle cost together."""
SHAPE = BundleShape(key_id=bytes(32), parameters=BFV_LINEAR, n_rows=60, n_features=4, max_abs=64, max_l2=64)
PEOPLE = np.arange(60)


def template() -> npt.NDArray[np.int64]:
    """A sealed row of norm 1 that the attacker wants to have."""
    row = np.random.default_rng(11).normal(size=FEATURES)
    return np.rint(row / np.linalg.norm(row) * SCALE).astype(np.int64)


def climb(score: Callable[[npt.NDArray[np.int64]], int], queries: int) -> npt.NDArray[np.int64]:
    """Keep whatever change of the query raises its score."""
    dice = np.random.default_rng(12)
    best = np.rint(dice.normal(size=FEATURES) * SCALE / np.sqrt(FEATURES)).astype(np.int64)
    highest = score(best)
    for _ in range(queries):
        tried = best + np.rint(dice.normal(size=FEATURES) * SCALE / 12).astype(np.int64)
        tried = np.rint(tried * SCALE / np.linalg.norm(tried)).astype(np.int64)
        if (found := score(tried)) > highest:
            best, highest = tried, found
    return best


def likeness(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("queries", [50, 500])
def test_match_oracle_hill_climbing_on_scores_stays_below_the_budget(queries: int) -> None:
    """Even an attacker that knows which of the shuffled rows is its victim's learns next to nothing of it."""
    target = template()
    exact = climb(lambda query: int(query @ target), 2000)
    assert likeness(exact, target) > 0.9, "positive control: exact scores give the template away"

    def noised(query: npt.NDArray[np.int64]) -> int:
        sensitivity = linear_sensitivity([query.tolist()], [0], SCALE, SCALE)
        sigma = sigma_for(BUDGET // queries, sensitivity)
        return round_to_grid(discrete_gaussian([int(query @ target)], sigma), grid_for(sigma))[0]

    assert np.median([likeness(climb(noised, queries), target) for _ in range(5)]) < 0.4


def job_parameters(kernel: str, record: dict[str, object]) -> JobParameters:
    found = kernel_by_name(kernel)
    return JobParameters(kernel=found, parameters=found.parse(record), result_scale=1.0)


def asked(kernel: str, record: dict[str, object], without: int = 0, rho: int = MICRO) -> Asked:
    told = directions(job_parameters(kernel, record), SHAPE)
    return Asked(directions=told, subjects=PEOPLE[without:], rho_micro=rho)


def linear(*weights: list[int], bias: int = 0) -> dict[str, object]:
    return {"output": "sum", "weights": list(weights), "bias": [bias] * len(weights)}


def test_query_differencing_sees_through_factors_biases_and_other_kernels() -> None:
    total = asked("sum", {})
    for disguise in (
        asked("sum", {}, 3),
        asked("linear", linear([0, 5, 0, 0]), 3),
        asked("linear", linear([0, 0, -2, 0], bias=40), 3),
        asked("linear", linear([1, 2, 3, 4], [0, 0, 0, 1]), 3),
        Asked(directions=None, subjects=PEOPLE[3:], rho_micro=MICRO),
    ):
        assert near(total, disguise, 20) and near(disguise, total, 20)
    for harmless in (
        asked("sum", {}),
        asked("sum", {}, 20),
        asked("linear", linear([1, 2, 3, 4]), 3),
    ):
        assert not near(total, harmless, 20)


def test_query_differencing_knows_a_column_of_a_sum_by_the_hash_of_its_weights() -> None:
    """As the custodian remembers it: a hash that changed would let the same be asked again."""
    for n_features in (1, 2, 5, 64):
        shape = replace(SHAPE, n_features=n_features)
        columns = np.eye(n_features, dtype=int).tolist()
        alone = [directions(job_parameters("linear", linear(column)), shape) for column in columns]
        assert directions(job_parameters("sum", {}), shape) == frozenset().union(*alone)
    (told,) = directions(job_parameters("sum", {}), replace(SHAPE, n_features=1)) or ()
    assert told.hex() == "2f4a9790108d87e12f409fec3a6f5195"


def test_query_differencing_directions_of_a_wide_sum_are_quick_to_tell() -> None:
    started = time.process_time()
    assert len(directions(job_parameters("sum", {}), replace(SHAPE, n_features=4096)) or ()) == 4096
    assert time.process_time() - started < 1


def test_query_differencing_charges_all_near_releases_together() -> None:
    earlier = [asked("sum", {}, 0), asked("sum", {}, 1), asked("sum", {}, 30)]
    check_differencing(asked("sum", {}, 2), earlier, minimum=10, limit_rho_micro=3 * MICRO)
    with pytest.raises(ReleaseRefusedError) as refused:
        check_differencing(asked("sum", {}, 2), earlier, minimum=10, limit_rho_micro=3 * MICRO - 1)
    assert refused.value.reason == "COHORTS_TOO_CLOSE"
    # Off: cohorts that differ by anybody count as different.
    check_differencing(asked("sum", {}, 2), earlier, minimum=1, limit_rho_micro=MICRO)


def told(stream: Iterable[Asked], limit: int, minimum: int = 10) -> list[Asked]:
    """What the guard lets through, in order."""
    released: list[Asked] = []
    for one in stream:
        with suppress(ReleaseRefusedError):
            check_differencing(one, released, minimum=minimum, limit_rho_micro=limit)
            released.append(one)
    return released


def test_query_differencing_a_cohort_asked_again_counts_with_the_near_one_in_either_order() -> None:
    """Else the averages of one cohort and of the other are each as exact as the whole budget makes them."""
    everybody, fewer = asked("sum", {}, 0, 10), asked("sum", {}, 1, 90)
    assert told([everybody] * 50, 100) == [everybody] * 50, "one cohort alone: the budget's matter"
    assert told([fewer] + [everybody] * 50, 100) == [fewer, everybody]
    assert told([everybody] * 5 + [fewer], 100) == [everybody] * 5
    # Neither another question over the cohort, nor the same over one that is far, is charged along.
    others = [asked("linear", linear([1, 2, 3, 4]), 1, 90), asked("sum", {}, 20, 90)]
    assert told([fewer, *others, everybody], 100) == [fewer, *others, everybody]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=8).flatmap(
        lambda stream: st.tuples(st.just(stream), st.permutations(stream))
    )
)
def test_query_differencing_over_cohorts_that_are_all_near_goes_by_the_total_in_any_order(
    orders: tuple[list[tuple[int, int]], list[tuple[int, int]]],
) -> None:
    for order in orders:
        stream = [Asked(directions=None, subjects=PEOPLE[without:], rho_micro=rho) for without, rho in order]
        fits = len({without for without, _ in order}) == 1 or sum(rho for _, rho in order) <= 100
        assert (told(stream, 100) == stream) == fits


QUESTIONS = [bytes([n]) * DIRECTION_BYTES for n in range(3)]


@given(
    st.lists(
        st.builds(
            lambda directions, subjects, rho: Asked(
                directions=directions, subjects=np.array(sorted(subjects), dtype=np.int64), rho_micro=rho
            ),
            st.none() | st.frozensets(st.sampled_from([*QUESTIONS, CONTRIBUTIONS]), min_size=1),
            st.frozensets(st.integers(0, 3)),
            st.integers(1, 10),
        ),
        max_size=12,
    )
)
def test_query_differencing_all_that_is_told_of_a_question_over_two_near_cohorts_keeps_to_the_limit(
    stream: list[Asked],
) -> None:
    def is_of(question: bytes, one: Asked, *pair: Asked) -> bool:
        here = one.directions is None or question in one.directions
        return here and any(np.array_equal(one.subjects, other.subjects) for other in pair)

    released = told(stream, 20, minimum=2)
    for one, other in combinations(released, 2):
        for question in QUESTIONS:
            if np.setxor1d(one.subjects, other.subjects).size == 1 and all(
                is_of(question, each, each) for each in (one, other)
            ):
                assert sum(each.rho_micro for each in released if is_of(question, each, one, other)) <= 20


@dataclass
class Desk:
    """Stands where the partner's node stands: one released job on one bundle, and records by their CID."""

    records: dict[Cid, dict[str, object]]
    job: dict[str, object]

    def get_record(self, cid: Cid, *, holder: str) -> dict[str, object]:
        return self.records[cid]

    def query(self, path: str, **_: object) -> list[object]:
        assert path == "/grants"
        return []

    def await_block(self, number: int) -> None:
        pass

    def query_all(self, path: str, **_: object) -> list[dict[str, object]]:
        assert path == "/jobs"
        return [self.job]


def test_query_differencing_an_estimate_counts_by_the_grants_minimum_cohort_where_it_is_the_larger(
    consortium: Consortium, bundle: SmallBundle
) -> None:
    """The custodian takes the larger of the policy's, 10 here, and the grant's; the cohorts differ by 12."""
    net, scope = consortium, label("estimate-study")
    artifact_id = net.bundle("north", net.key_domain("north"), scope=scope)
    featured = FeatureBundle(
        artifact_id=artifact_id,
        artifact=net.reader.artifact(artifact_id),
        steward="north",
        manifest=bundle.manifest,
        policy=bundle.policy,
    )
    parameters = bundle.parameters()
    bits = np.zeros(ROWS, dtype=np.uint8)
    bits[:12] = 1
    before = replace(bundle.status, bits=bytes(len(bundle.status.bits)))
    now = replace(before, epoch=2, bits=np.packbits(bits).tobytes())
    records = {dag.cid_of(one.to_record()): one.to_record() for one in (before, now, parameters)}
    status, asked = dag.cid_of(before.to_record()), dag.cid_of(parameters.to_record())
    job = {
        "job_id": "0a" * 32,
        "requester": "university",
        "artifact_id": artifact_id.hex(),
        "parameters_digest": asked.digest.hex(),
        "status_digest": status.digest.hex(),
        "rho_micro": 300_000,
    }
    digest = dag.cid_of(now.to_record()).digest
    net["north"].ledger.transact("ConsentRegistry", "anchorEpoch", scope, 1, word(), digest, 10)
    client = Client(
        name="university",
        content=Desk(records, job),  # type: ignore[arg-type]
        ledger=net["university"].ledger,
        keys=None,  # type: ignore[arg-type]
        book=None,  # type: ignore[arg-type]
    )
    loose, strict = (
        net.granted("university", "north", artifact_id, scope, min_cohort=cohort) for cohort in (5, 13)
    )
    for grant_id, joint in ((None, 500_000), (loose, 500_000), (strict, 800_000)):
        told = client.estimate(featured, parameters, rho=0.5, grant_id=grant_id)
        assert told.joint_rho_micro == joint


@pytest.mark.parametrize(
    ("sigma", "grid"), [(0.3, 1), (8.0, 1), (15.9, 1), (16.0, 2), (100.0, 8), (1e6, 65536)]
)
def test_the_grid_is_the_largest_power_of_two_that_adds_next_to_nothing(sigma: float, grid: int) -> None:
    assert grid_for(sigma) == grid
    assert round_to_grid([-grid, 0, grid, 3 * grid], grid) == [-grid, 0, grid, 3 * grid]


def test_values_go_to_the_nearest_multiple_of_the_grid() -> None:
    assert round_to_grid([-5, -4, -3, 3, 4, 5, 11], 8) == [-8, 0, 0, 0, 8, 8, 8]
    for wrong in (0, -1, 1.0, True):
        with pytest.raises(PrivacyError):
            round_to_grid([1], wrong)  # type: ignore[arg-type]
