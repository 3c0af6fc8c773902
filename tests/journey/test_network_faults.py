"""A publication and a whole job over a bad network: late, lossy, one-way, parted, churning, with nodes that restart in a storm.

Every connection between two nodes goes through a proxy. Each test publishes a bundle that a second member is to hold, and
posts a job on it; it ends released with the right numbers, or in a final state with use and budget given back. Then the network
is mended, and the next job, the budget and every store must be as if nothing had been.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pytest
from books import home_is_whole, index_equals_a_fresh_replay, store_is_whole
from faulty_links import FaultyLinks
from organisations import CLINICS, Consortium, processes_below, register

from usufruct import Client
from usufruct.job import FeatureBundle
from usufruct.privacy import MICRO
from usufruct.records import FINAL_JOB_STATES, JobId, JobState, org_id
from usufruct.replication import Replication
from usufruct_node.devnet import MEMBERS

STEWARD, HOLDER, EXECUTOR, PARTNER = "clinic-north", "auditor", "compute-1", "university"
NODES = (STEWARD, HOLDER, EXECUTOR, PARTNER, "clinic-south")
HERE, THERE = (STEWARD, PARTNER), (HOLDER, EXECUTOR, "clinic-south")
"""Two sides, of which neither can do a job alone."""
SETTINGS = "custody_s = 0.5\nchallenge_s = 5.0\nchallenge_misses = 100\n"
SLOW = 60_000.0
"""Bytes per second at which a bundle of 333 kB takes seconds, so that faults fall into the middle of it."""


@dataclass(frozen=True)
class Scene:
    """A network and what is wrong between its nodes."""

    network: Consortium
    links: FaultyLinks

    @property
    def bundle(self) -> FeatureBundle:
        """The one that was published last."""
        return self.network.clinics[STEWARD].bundle

    def publish(self) -> None:
        """Publish and register a bundle with two copies."""
        clinic = self.network.clinics[STEWARD]
        rows = [clinic.positions[subject] for subject in clinic.subjects]
        wish = Replication(copies=2, holders=(HOLDER,))
        clinic.bundle = register(clinic.client, clinic.features, clinic.secret, rows, replication=wish)

    def grant(self) -> None:
        """Let the partner compute on the bundle."""
        self.network.grants[STEWARD] = self.network.grant(STEWARD)

    def post(self) -> JobId:
        """Let the partner compute on the bundle, and post a job."""
        self.grant()
        return self.network.post()

    def is_copied(self) -> bool:
        """Whether the holder says that it holds the bundle, and has proved it to the steward."""
        mine = self.bundle.artifact_id.hex()
        told = {row["artifact_id"]: row for row in self.network.clients[HOLDER].copies()}
        seen = {row["artifact_id"]: row for row in self.network.clients[STEWARD].copies()}
        if mine not in told or mine not in seen:
            return False
        proof = seen[mine]["challenges"].get(HOLDER)
        return bool(told[mine]["held_bytes"]) and proof is not None and proof["outcome"] == "passed"

    def copied(self) -> None:
        """Wait until the publication is complete."""
        self.network.until(self.is_copied, 60)

    def released(self, job: JobId, *, seconds: float = 90) -> None:
        """Wait for a job's release and compare it with the plaintext."""
        self.network.reached(job, JobState.RELEASED, seconds=seconds)
        release = self.network.university.open_release(job)
        truth = self.network.clinics[STEWARD].consenting().sum(axis=0)
        assert np.abs(release.values - truth).max() <= 12 * release.sigma

    def goes_on_as_if_nothing_had_been(self, *, released: int) -> None:
        """After `released` jobs on the bundle: mend everything, do one more, and read the books."""
        self.links.mend()
        self.network.until(lambda: self.network.account(STEWARD) == (0, released * MICRO, released))
        self.released(self.network.post())
        assert self.network.account(STEWARD) == (0, (released + 1) * MICRO, released + 1)
        self.copied()
        self.network.indexed()
        for name in NODES:
            self.network.until(lambda name=name: self.network.net.health(name)["ok"], 60)
        self.stores_are_whole()

    def stores_are_whole(self) -> None:
        """No member has a part of a block, or a temporary file."""
        for name in NODES:
            self.network.until(lambda name=name: _is_whole(self.network, name))

    def round_trip_s(self) -> float:
        """What a question of the holder's node to the steward's takes."""
        begun = time.monotonic()
        self.network.clients[HOLDER].erasures(self.bundle.artifact_id)
        return time.monotonic() - begun

    def reopen(self, *names: str) -> None:
        """Wait for nodes that were killed; they have other HTTP addresses now."""
        for name in names:
            self.network.net.wait_for_node(name)
            self.network.clients[name].content.close()
            self.network.clients[name] = Client.open(self.network.net.home(name))
            if name in CLINICS:
                self.network.clinics[name].client = self.network.clients[name]

    def parted(self, seconds: float) -> int:
        """Part the two sides for a while; returns how many bytes got through."""
        between = self.links.between(HERE, THERE)
        for way in between:
            way.blocked = True
        time.sleep(0.2)
        before = sum(way.sent_bytes for way in between)
        time.sleep(seconds)
        through = sum(way.sent_bytes for way in between) - before
        self.links.mend()
        return through


def _is_whole(network: Consortium, name: str) -> bool:
    """Whether a running node's store is whole; while a block is being put, it may not seem so."""
    with suppress(AssertionError, OSError):
        store_is_whole(network, name)
        return True
    return False


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("faults")
    with FaultyLinks(root, MEMBERS, settings=SETTINGS) as links:
        network = Consortium(root)
        try:
            for name in NODES:
                told = lambda name=name: network.ledger.participant(org_id(name)).endpoint  # noqa: E731
                network.until(lambda told=told, name=name: told() == links.endpoint(name))
            yield Scene(network, links)
        finally:
            network.close()
            Consortium.until(lambda: not processes_below(root), 10)


@pytest.fixture(autouse=True)
def mended(scene: Scene) -> Iterator[None]:
    """Whatever a test does, the next one finds the links whole."""
    yield
    scene.links.mend()


@contextmanager
def repeatedly(call: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call again and again in a thread, until the block ends."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.timeout(300)
def test_publication_and_job_complete_where_every_round_trip_takes_200_ms(scene: Scene) -> None:
    for way in scene.links.ways():
        way.delay_s = 0.1
    scene.publish()
    scene.copied()
    assert scene.round_trip_s() >= 0.2
    scene.released(scene.post())
    scene.links.mend()
    assert min(scene.round_trip_s() for _ in range(5)) < 0.2, "the delay was not in the path"
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_publication_and_job_complete_over_links_that_lose_a_twentieth(scene: Scene) -> None:
    lost, sent = sum(way.lost_chunks for way in scene.links.ways()), scene.links.sent_bytes()
    for way in scene.links.ways():
        way.delay_s, way.loss = 0.02, 0.05
    scene.publish()
    scene.copied()
    scene.released(scene.post())
    assert sum(way.lost_chunks for way in scene.links.ways()) >= lost + 20
    assert scene.links.sent_bytes() > sent + 500_000
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_executor_that_hears_nothing_from_the_steward_computes_from_the_copy(scene: Scene) -> None:
    scene.publish()
    scene.copied()
    deaf, other = scene.links.way(STEWARD, EXECUTOR), scene.links.way(HOLDER, EXECUTOR)
    deaf.blocked = True
    before, copy = deaf.sent_bytes, other.sent_bytes
    job = scene.post()
    scene.network.reached(job, JobState.VERIFIED, seconds=90)
    assert deaf.sent_bytes == before
    assert other.sent_bytes >= copy + 100_000
    scene.links.mend()
    scene.released(job)
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_link_that_never_works_both_ways_leaves_the_result_to_the_custodian(scene: Scene) -> None:
    """The steward can never ask the executor for it, and has the bundle itself."""
    scene.publish()
    scene.copied()
    deaf = scene.links.way(STEWARD, EXECUTOR)
    deaf.blocked = True
    before = deaf.sent_bytes
    job = scene.post()
    scene.released(job)
    assert deaf.sent_bytes == before
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_partition_in_mid_publication_and_mid_job_that_heals_is_waited_for(scene: Scene) -> None:
    copying = scene.links.way(STEWARD, HOLDER)
    copying.bytes_per_s, begun = SLOW, copying.sent_bytes
    scene.publish()
    scene.network.until(lambda: copying.sent_bytes >= begun + 100_000)
    assert not scene.is_copied()
    assert scene.parted(2) == 0
    scene.copied()

    job = scene.post()
    scene.network.reached(job, JobState.CLAIMED)
    assert scene.parted(2) == 0
    assert JobState.CLAIMED <= scene.network.ledger.job(job).state <= JobState.VERIFIED
    scene.released(job)
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_partition_that_does_not_heal_expires_the_job_and_gives_use_and_budget_back(scene: Scene) -> None:
    for way in scene.links.between([STEWARD], [HOLDER, EXECUTOR]):
        way.bytes_per_s = SLOW / 6
    with scene.network.timings(claim=6, compute=2):
        scene.publish()
        job = scene.post()
        scene.network.reached(job, JobState.CLAIMED)
        assert scene.network.account(STEWARD) == (MICRO, 0, 1)
        for way in scene.links.ways():
            way.blocked = True
        time.sleep(0.2)
        before = scene.links.sent_bytes()
        assert scene.network.ended(job).state == JobState.EXPIRED
        assert scene.links.sent_bytes() == before
    scene.stores_are_whole()
    assert scene.network.account(STEWARD) == (0, 0, 0)
    assert not scene.is_copied(), "the publication was over before the partition"
    scene.goes_on_as_if_nothing_had_been(released=0)


@pytest.mark.timeout(300)
def test_publication_and_job_complete_though_every_connection_is_cut_again_and_again(scene: Scene) -> None:
    proxies = scene.links.proxies.values()
    cuts, accepted = sum(proxy.cuts for proxy in proxies), sum(proxy.accepted for proxy in proxies)
    for way in scene.links.ways():
        way.bytes_per_s = 5 * SLOW
    with repeatedly(scene.links.cut, every_s=1.5):
        scene.publish()
        scene.copied()
        scene.released(scene.post())
    assert sum(proxy.cuts for proxy in proxies) >= cuts + 10
    assert sum(proxy.accepted for proxy in proxies) >= accepted + 10
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_publication_and_job_complete_while_holder_executor_and_verifiers_restart_in_a_storm(
    scene: Scene,
) -> None:
    network, copying = scene.network, scene.links.way(STEWARD, HOLDER)

    def storm(*names: str, lives: int) -> None:
        """Kill nodes without notice and start them, so many times, before they are quite up but for the last."""
        for _ in range(lives):
            for name in names:
                network.net.stop(name, how=signal.SIGKILL)
            for name in names:
                network.net.start_node(name, wait=False)
            time.sleep(0.5)
        scene.reopen(*names)

    copying.bytes_per_s, begun = SLOW, copying.sent_bytes
    scene.publish()
    network.until(lambda: copying.sent_bytes >= begun + 100_000)
    assert not scene.is_copied()
    storm(HOLDER, lives=2)
    scene.links.mend()
    job = scene.post()
    network.reached(job, JobState.CLAIMED)
    assert network.ledger.job(job).state not in FINAL_JOB_STATES
    storm(*THERE, lives=4)
    scene.copied()
    scene.released(job)
    scene.goes_on_as_if_nothing_had_been(released=1)


@pytest.mark.timeout(300)
def test_after_all_of_it_every_home_is_whole_and_every_index_is_what_the_chain_says(scene: Scene) -> None:
    """Last: the nodes stay down."""
    for name in NODES:
        scene.network.net.stop(name)
        home_is_whole(scene.network, name)
        index_equals_a_fresh_replay(scene.network, name)
