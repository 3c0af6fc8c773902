"""A member's machine is lost and its node restored from a backup that is older than the job under way.

What the lost node did after the backup is on the ledger only; nothing of it may happen twice, and the job goes on. The last
test runs a restored node beside the original, which nobody should and somebody will.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from books import completed_once, rows
from organisations import CLINICS, Consortium, Impostor, error_of, run_cli

from usufruct import Client
from usufruct.content import Cid, Codec
from usufruct.errors import UsufructError
from usufruct.home import Home
from usufruct.records import JobId, JobState, org_id
from usufruct_node.devnet import Devnet

MEMBERS = ("compute-1", "auditor", "clinic-north")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    network = Consortium(tmp_path_factory.mktemp("backup"))
    try:
        yield network
    finally:
        network.close()


@pytest.fixture(scope="module")
def archives(network: Consortium) -> dict[str, Path]:
    """Backups of running nodes, older than every job of these tests."""
    made = {name: network.net.root / f"{name}.backup" for name in MEMBERS}
    for name, archive in made.items():
        told = run_cli("usufruct-node", "backup", str(archive), "--home", str(network.net.home(name).root))
        assert told.returncode == 0, told.stderr
    return made


def restore(archive: Path, root: Path, old: Home) -> None:
    """As an operator does it on a new machine, who still has the passphrases."""
    words = ("restore", str(archive), "--home", str(root), "--passphrase-file", str(old.node_passphrase))
    told = run_cli("usufruct-node", *words)
    assert told.returncode == 0, told.stderr
    for passphrase in old.root.glob("*.passphrase"):
        shutil.copy(passphrase, root / passphrase.name)


def lose_and_restore(network: Consortium, archives: dict[str, Path], *names: str) -> None:
    """Kill nodes without notice, take their disks away, and start what their backups hold."""
    for name in names:
        home = network.net.home(name)
        network.net.stop(name, how=signal.SIGKILL)
        lost = home.root.rename(home.root.with_name(f"{name}.lost"))
        restore(archives[name], home.root, Home(lost))
        shutil.rmtree(lost)
        network.net.start_node(name, wait=False)
    for name in names:
        network.net.wait_for_node(name)
        reopen(network, name)


def reopen(network: Consortium, name: str) -> None:
    network.clients[name] = Client.open(network.net.home(name))
    if name in CLINICS:
        network.clinics[name].client = network.clients[name]


def releases_kept(home: Home, job: JobId) -> list[Cid]:
    found = rows(home.node_database, "SELECT job_id, envelope FROM release")
    return [Cid.from_bytes(bytes(envelope)) for key, envelope in found if key == job]


@pytest.mark.timeout(600)
def test_executor_verifier_and_custodian_restored_in_the_middle_of_a_job_finish_it(
    network: Consortium, archives: dict[str, Path]
) -> None:
    """All three had acted on the job after their backups were made: claimed, committed a result, committed verdicts."""
    before = network.account()
    with network.frozen("clinic-south"):
        job = network.post()
        network.until(lambda: network.ledger.job(job).commits == 2, 60)
        assert network.ledger.job(job).state is JobState.COMMITTED
        lose_and_restore(network, archives, *MEMBERS)
    assert network.reached(job, JobState.RELEASED, seconds=100).state is JobState.RELEASED
    completed_once(network, [job])
    reserved, spent, used = network.account()
    assert (reserved, spent - before[1], used - before[2]) == (0, 1_000_000, 1)
    assert network.university.open_release(job).job_id == job


@pytest.mark.timeout(600)
def test_custodian_restored_from_before_the_opening_draws_no_second_noise(
    network: Consortium, archives: dict[str, Path]
) -> None:
    job = network.post()
    named = network.reached(job, JobState.RELEASED).release_digest
    account, events = network.account(), network.events(job)
    # Positive control: until then the custodian has the one release and hands it out.
    assert [cid.digest for cid in releases_kept(network.net.home("clinic-north"), job)] == [named]
    release = network.university.open_release(job)

    lose_and_restore(network, archives, "clinic-north")
    network.indexed()
    later = network.post()
    network.reached(later, JobState.RELEASED, seconds=100)
    assert releases_kept(network.net.home("clinic-north"), job) == []
    assert len(releases_kept(network.net.home("clinic-north"), later)) == 1
    assert network.events(job) == events
    assert network.account() == (0, account[1] + 1_000_000, account[2] + 1)
    # What was made after the backup is gone with the machine: said as such, and never made again.
    assert isinstance(error_of(lambda: network.university.open_release(job)), UsufructError)
    assert release.job_id == job


@pytest.mark.timeout(600)
def test_a_restored_node_beside_the_original_doubles_nothing_and_the_original_stops(
    network: Consortium, archives: dict[str, Path]
) -> None:
    original = network.net.home("clinic-north")
    twins = Devnet(
        network.net.root / "twins", members=[m for m in network.net.members if m.name == "clinic-north"]
    )
    twins.root.mkdir()
    twin = twins.home("clinic-north")
    restore(archives["clinic-north"], twin.root, original)
    before = network.account()
    jobs = [network.post() for _ in range(3)]
    try:
        twins.start_node("clinic-north")
        jobs += [network.post() for _ in range(3)]
        for job in jobs:
            network.reached(job, JobState.RELEASED, seconds=100)
            completed_once(network, [job])
        _, spent, used = network.account()
        assert (spent - before[1], used - before[2]) == (6_000_000, 6)

        network.until(lambda: network.net.health("clinic-north")["identity"] != "ok")
        assert twins.health("clinic-north")["identity"] == "ok"
        assert not network.net.health("clinic-north")["ok"]

        kept = {job: [*releases_kept(original, job), *releases_kept(twin, job)] for job in jobs}
        with Impostor(network.node_keys("university").peer_seed) as asker:
            for job, envelopes in kept.items():
                named = network.ledger.job(job).release_digest
                assert Cid.from_digest(named, Codec.DAG_CBOR) in envelopes
                for other in (cid for cid in envelopes if cid.digest != named):
                    # Whoever asks at the address in the registry asks the twin.
                    assert isinstance(
                        error_of(lambda other=other: asker.fetch(network.ledger, "clinic-north", other)),
                        UsufructError,
                    )
        assert network.ledger.participant(org_id("clinic-north")).endpoint
    finally:
        twins.down()
    network.net.stop("clinic-north")
    network.net.start_node("clinic-north")
    reopen(network, "clinic-north")
    network.indexed()
    assert network.net.health("clinic-north")["identity"] == "ok"
    last = network.post()
    network.reached(last, JobState.RELEASED, seconds=100)
    completed_once(network, [last])
