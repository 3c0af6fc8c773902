"""Copies of bundles at other members: jobs go on from them, failures are repaired, and at the deadline all is erased."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from organisations import Consortium, error_of, processes_below, register, run_cli

from usufruct.content import Cid, Codec, EmbeddedBlockStore
from usufruct.errors import ContentError, JobDeniedError, NotAuthorisedError, PeerError
from usufruct.job import FeatureBundle
from usufruct.keys import he_keys
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.privacy import MICRO
from usufruct.publish import PublishedBundle, read_manifest
from usufruct.records import JobState, MemberStatus, Refusal
from usufruct.replication import Replication
from usufruct.rights import terms
from usufruct_node.custody_store import CustodyStore

QUICK = {
    "USUFRUCT_NODE_CUSTODY_S": "0.3",
    "USUFRUCT_NODE_CHALLENGE_S": "0.5",
    "USUFRUCT_NODE_CHALLENGE_MISSES": "100",
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A network whose nodes look after copies several times a second."""
    root = tmp_path_factory.mktemp("copies")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        net = Consortium(root)
        try:
            yield net
        finally:
            net.close()
            Consortium.until(lambda: not processes_below(root), 10)


def row(network: Consortium, bundle: FeatureBundle) -> dict:
    """What the steward's node says of a bundle's copies."""
    known = network.clients[bundle.steward].copies()
    return next(one for one in known if one["artifact_id"] == bundle.artifact_id.hex())


def proved(network: Consortium, bundle: FeatureBundle, *holders: str) -> None:
    """Wait until these members, and no others, are the holders, have the blocks, and passed their last challenge.

    That may be of an earlier time when a member is named again.
    """
    everything = set(bundle.manifest.blocks)

    def whole() -> bool:
        now = row(network, bundle)
        passed = {name for name, last in now["challenges"].items() if last["outcome"] == "passed"}
        if not set(now["holders"]) == passed == set(holders):
            return False
        return all(blocks_at(network, name, bundle) == everything for name in holders)

    network.until(whole, 60)


def blocks_at(network: Consortium, name: str, bundle: FeatureBundle) -> set[Cid]:
    """Blocks of a bundle that rest with a member."""
    with EmbeddedBlockStore(network.net.home(name).blocks) as store:
        return {cid for cid in bundle.manifest.blocks if store.has(cid)}


def copied(
    network: Consortium, *holders: str, copies: int = 2, steward: str = "clinic-north"
) -> FeatureBundle:
    """Let these members hold a clinic's bundle, and wait until its node has read that."""
    clinic = network.clinics[steward]
    clinic.client.set_replication(clinic.bundle.artifact_id, Replication(copies=copies, holders=holders))
    clinic.bundle = clinic.client.bundle(clinic.bundle.artifact_id)
    network.until(lambda: row(network, clinic.bundle)["named"] == list(holders))
    return clinic.bundle


@pytest.mark.timeout(300)
def test_at_the_end_of_retention_all_holders_erase_and_sign_also_one_that_was_away(
    network: Consortium,
) -> None:
    clinic = network.clinics["clinic-north"]
    home = network.net.home("clinic-north")
    keys = KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase))
    secret, public = he_keys.create_key_domain()
    he_keys.store_secret(keys, secret)
    clinic.client.register_key_domain(public)
    wish = Replication(copies=3, holders=("clinic-south", "auditor"))
    rows = [clinic.positions[subject] for subject in clinic.subjects]
    bundle = register(clinic.client, clinic.features, secret, rows, replication=wish, retain_days=40 / 86_400)
    partner = network.university
    grant = partner.request(bundle, kernels=("sum",), uses=3, rho=3)
    granted = terms(
        kernels=("sum",),
        uses=3,
        expires_at=bundle.artifact.retain_until + 86_400,
        rho_micro=3 * MICRO,
        min_cohort=20,
        replicas=2,
        row_level=False,
    )
    clinic.client.grant(grant, granted)
    proved(network, bundle, "clinic-south", "auditor")
    everything = set(bundle.manifest.blocks)
    assert blocks_at(network, "auditor", bundle) == blocks_at(network, "clinic-south", bundle) == everything

    with network.stopped("auditor"):
        assert network.ledger.finalised().timestamp < bundle.artifact.retain_until
        left = bundle.artifact.retain_until - network.ledger.finalised().timestamp
        erased = network.until(
            lambda: (found := clinic.client.erasures(bundle.artifact_id))["awaited"] == ["auditor"] and found,
            left + 60,
        )
        assert erased["over"]
        stated = {(one["holder"], one["what"]): one for one in erased["statements"]}
        assert set(stated) == {
            ("clinic-north", "copy"),
            ("clinic-north", "key"),
            ("clinic-south", "copy"),
        }
        assert stated["clinic-south", "copy"]["blocks"] == len(everything)
        assert all(one["erased_at"] >= bundle.artifact.retain_until for one in erased["statements"])
        assert blocks_at(network, "clinic-north", bundle) == set()
        assert blocks_at(network, "clinic-south", bundle) == set()
        assert blocks_at(network, "auditor", bundle) == everything
        assert secret.key_id not in he_keys.key_ids(keys)
        assert clinic.secret.key_id in he_keys.key_ids(keys), "a key whose bundles are retained stays"
        denied = error_of(lambda: partner.post(bundle, "sum", rho=1.0, grant_id=grant))
        assert isinstance(denied, JobDeniedError) and denied.reason == Refusal.RETENTION_PASSED.name

    auditor = network.clients["auditor"]

    def told_to_auditor() -> dict | None:
        # The steward may still hold the connection of before for alive.
        with suppress(PeerError):
            found = auditor.erasures(bundle.artifact_id)
            return None if found["awaited"] else found
        return None

    told = network.until(told_to_auditor, 60)
    assert ("auditor", "copy") in {(one["holder"], one["what"]) for one in told["statements"]}
    assert blocks_at(network, "auditor", bundle) == set()
    home = str(network.net.home("auditor").root)
    shown = run_cli("usufruct", "replication", "erasures", bundle.artifact_id.hex(), "--home", home)
    assert shown.returncode == 0 and "awaited: nobody" in shown.stdout, shown.stderr
    for holder in ("clinic-north", "clinic-south"):
        asking = lambda holder=holder: auditor.content.get(bundle.manifest.blocks[0], holder=holder)  # noqa: E731
        assert isinstance(error_of(asking), NotAuthorisedError | ContentError)


@pytest.mark.timeout(300)
def test_job_goes_on_from_a_copy_when_the_stewards_node_is_dead_and_ends_when_it_is_back(
    network: Consortium,
) -> None:
    bundle = copied(network, "auditor")
    proved(network, bundle, "auditor")
    with network.timings(commit=25):
        network.net.stop("clinic-north", how=signal.SIGKILL)
        with network.stopped("clinic-north"):
            job_id = network.post()
            job = network.reached(job_id, JobState.VERIFIED, seconds=90)
            assert job.agreeing == 2, "the steward's own verdict is missing"
        network.reached(job_id, JobState.RELEASED)
    release = network.university.open_release(job_id)
    truth = network.clinics["clinic-north"].consenting().sum(axis=0)
    assert np.abs(release.values - truth).max() <= 12 * release.sigma


@pytest.mark.timeout(300)
def test_a_holder_that_deleted_its_copy_is_found_out_left_out_and_replaced(network: Consortium) -> None:
    bundle = copied(network, "auditor", "clinic-north", steward="clinic-south")
    (first,) = row(network, bundle)["holders"]
    proved(network, bundle, first)
    (second,) = {"auditor", "clinic-north"} - {first}
    with network.frozen(first), EmbeddedBlockStore(network.net.home(first).blocks) as store:
        for cid in bundle.manifest.blocks:
            for reason in store.pins(cid):
                store.unpin(cid, reason)
        store.gc()
    proved(network, bundle, second)
    assert row(network, bundle)["left_out"] == [first]
    log = network.clients["clinic-south"].challenges(limit=1000)
    assert log["whole"] and log["length"] >= len(log["entries"]) > 2
    mine = [one for one in log["entries"] if one["artifact_id"] == bundle.artifact_id.hex()]
    assert {"not-held", "passed"} <= {one["outcome"] for one in mine if one["holder"] == first}
    assert blocks_at(network, second, bundle) == set(bundle.manifest.blocks)
    home = str(network.net.home("clinic-south").root)
    shown = run_cli("usufruct", "replication", "show", "--home", home)
    assert shown.returncode == 0 and f"{second} (passed" in shown.stdout, shown.stderr
    told = run_cli("usufruct", "replication", "challenges", "--home", home, "--limit", "1000")
    assert told.returncode == 0 and "not-held" in told.stdout, told.stderr


@pytest.mark.timeout(300)
def test_a_killed_holder_goes_on_and_a_steward_that_lost_its_blocks_fetches_them_again(
    network: Consortium,
) -> None:
    bundle = copied(network, "compute-1")
    proved(network, bundle, "compute-1")
    network.net.stop("compute-1", how=signal.SIGKILL)
    with network.stopped("compute-1"):
        pass
    proved(network, bundle, "compute-1")

    everything, lost = set(bundle.manifest.blocks), bundle.manifest.blocks[:5]
    network.net.stop("clinic-north", how=signal.SIGKILL)
    with network.stopped("clinic-north"):
        with EmbeddedBlockStore(network.net.home("clinic-north").blocks) as store:
            for cid in lost:
                for reason in store.pins(cid):
                    store.unpin(cid, reason)
            store.gc()
        assert blocks_at(network, "clinic-north", bundle) == everything - set(lost)
    network.until(lambda: blocks_at(network, "clinic-north", bundle) == everything, 60)


@pytest.mark.timeout(300)
def test_a_former_holder_lets_go_once_the_new_one_has_proved_and_states_it(network: Consortium) -> None:
    bundle = copied(network, "clinic-south", "compute-1", "auditor", copies=4)
    proved(network, bundle, "clinic-south", "compute-1", "auditor")
    copied(network, "compute-1")
    proved(network, bundle, "compute-1")
    network.until(lambda: blocks_at(network, "clinic-south", bundle) == set(), 60)
    assert blocks_at(network, "compute-1", bundle) == set(bundle.manifest.blocks)
    database = network.net.home("clinic-south").node_database
    store = CustodyStore(database)
    (statement,) = network.until(lambda: store.erasures(bundle.artifact_id), 10)
    store.close()
    statement.check(network.ledger.network, network.ledger.participant(statement.holder))
    assert statement.blocks == len(set(bundle.manifest.blocks))


@pytest.mark.timeout(300)
def test_blocks_of_another_key_domain_are_not_taken_in(network: Consortium) -> None:
    """clinic-south, which holds clinic-north's bundle, registers a manifest of its own that links the same blocks."""
    victim = copied(network, "clinic-south")
    proved(network, victim, "clinic-south")
    south, auditor = network.clinics["clinic-south"], network.clients["auditor"]
    record = south.client.content.get_record(
        Cid.from_digest(victim.artifact.content_digest, Codec.DAG_CBOR), holder="clinic-north"
    )
    record["sealed"]["key_id"] = south.secret.key_id
    cid = south.client.content.put_record("bundle", record)
    forged = PublishedBundle(cid=cid, manifest=read_manifest(record), size_bytes=1)
    policy = replace(south.bundle.policy, replication=Replication(copies=2, holders=("auditor",)))
    artifact_id = south.client.register(forged, policy=policy, retain_days=30, budget_rho=1)
    trouble = network.until(
        lambda: auditor.content.query("/status")["copies_in_trouble"].get(artifact_id.hex()), 60
    )
    assert "key domain" in trouble
    held = {one["artifact_id"]: one["held_bytes"] for one in auditor.copies()}
    assert held[artifact_id.hex()] is None


@pytest.mark.timeout(300)
def test_a_suspended_holder_is_replaced_by_another_member(network: Consortium) -> None:
    """Last: the member stays suspended."""
    bundle = copied(network, "clinic-south", "compute-1")
    (first,) = row(network, bundle)["holders"]
    proved(network, bundle, first)
    (second,) = {"clinic-south", "compute-1"} - {first}
    network.set_status(first, MemberStatus.SUSPENDED)
    proved(network, bundle, second)
    assert blocks_at(network, second, bundle) == set(bundle.manifest.blocks)
