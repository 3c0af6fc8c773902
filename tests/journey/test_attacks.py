"""Attacks on a running network, each by a member with keys of its own, or by a stranger.

`mallory` is a member with no node: it speaks to the ledger and to peers through raw keys. Where an attack would succeed without
its control, the test shows that first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import eth_abi.abi
import numpy as np
import psutil
import pytest
from organisations import (
    FEATURES,
    PATIENT_RULE,
    ROWS,
    SCOPE,
    Consortium,
    Impostor,
    error_of,
    model,
    processes_below,
    register,
    synthetic,
)

from usufruct import consent_book, rights
from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    JobDeniedError,
    JobFailedError,
    LedgerError,
    NotAuthorisedError,
    PeerError,
    PeerRefusedError,
    TransactionRevertedError,
    UsufructError,
)
from usufruct.he.container import encode, parse
from usufruct.he.kernels import LinearParameters, kernel_by_name
from usufruct.he.parameters import BFV_LINEAR
from usufruct.home import Home
from usufruct.job import JobParameters
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Ledger, Network
from usufruct.ledger.abi import load_abi
from usufruct.privacy import MICRO
from usufruct.records import (
    ArtifactId,
    BundleRegistration,
    GrantId,
    JobId,
    JobRequest,
    JobState,
    KeyId,
    MemberStatus,
    Refusal,
    ReputationRule,
    Reveal,
    Role,
    SignedVerdict,
    label,
    org_id,
)
from usufruct.verify import ResultManifest, possession, sign_verdict, verdict_commitment
from usufruct_node.enrol import create_home_with_passphrase_files

NORTH = "clinic-north"
NODES = ("clinic-north", "clinic-south", "compute-1", "auditor", "university")


@dataclass(slots=True)
class Mallory:
    """A member that does not run our node."""

    network: Consortium
    authority: Ledger
    node: Ledger
    host: Impostor

    def take(self, *words: Any, **options: Any) -> JobId:
        """Let the university post a job and claim it before the honest compute node can."""
        with self.network.frozen("compute-1"):
            job = self.network.post(*words, **options)
            self.node.transact("JobLedger", "claimJob", job)
        return job

    def commit(self, job: JobId, manifest: ResultManifest, blocks: list[bytes]) -> None:
        """Serve a result and commit to it."""
        self.host.blocks.update({Cid.of(block): block for block in blocks})
        self.host.blocks[manifest.cid] = dag.encode(manifest.to_record())
        self.node.transact("JobLedger", "commitResult", job, manifest.cid.digest, [])

    def serve_record(self, data: bytes) -> Cid:
        """Serve bytes as if they were a record."""
        cid = Cid.of(data, Codec.DAG_CBOR)
        self.host.blocks[cid] = data
        return cid

    def set_endpoint(self, endpoint: bytes) -> None:
        """Announce any bytes as one's address."""
        call = load_abi("ParticipantRegistry").functions["setEndpoint"]
        padded = endpoint.ljust(-(-len(endpoint) // 32) * 32, b"\0")
        data = call.selector + (32).to_bytes(32, "big") + len(endpoint).to_bytes(32, "big") + padded
        self.node.transact_many([(self.node.network.contracts["ParticipantRegistry"], data)])


@pytest.fixture(scope="module")
def mallory(shared_network: Consortium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mallory]:
    place = tmp_path_factory.mktemp("mallory") / "home"
    roles = Role.STEWARD | Role.CUSTODIAN | Role.PARTNER | Role.COMPUTE
    create_home_with_passphrase_files(place, name="mallory", roles=roles)
    shared_network.admit(place)
    home, network = Home(place), Network.load(shared_network.net.network_file)
    people = KeyStore.open(home.authority_keystore, read_passphrase(home.authority_passphrase))
    machine = KeyStore.open(home.node_keystore, read_passphrase(home.node_passphrase))
    authority = Ledger.open(network, private_key=identity.load_authority_keys(people).ledger_key)
    keys = identity.load_node_keys(machine)
    node = Ledger.open(network, private_key=keys.ledger_key)
    with Impostor(keys.peer_seed) as host:
        found = Mallory(shared_network, authority, node, host)
        found.set_endpoint(host.endpoint.encode())
        shared_network.indexed()
        yield found
        shared_network.set_status("mallory", MemberStatus.REMOVED)


def _is_unharmed(network: Consortium) -> None:
    """Every node is well, and an honest job goes through."""
    job = network.post()
    network.reached(job, JobState.RELEASED)
    network.indexed()
    for name in NODES:
        network.until(lambda name=name: network.net.health(name)["ok"], 10)


# Malicious executor.


def _one_flipped_residue(network: Consortium, job: JobId) -> list[bytes]:
    blocks = network.computed(job)[1]
    result = parse(blocks[3])
    c0 = result.c0.copy()
    c0[0] = (int(c0[0]) + 5 * BFV_LINEAR.coeff_modulus // BFV_LINEAR.plain_modulus) % BFV_LINEAR.coeff_modulus
    blocks[3] = encode(replace(result, c0=c0))
    return blocks


def _first_row_instead_of_the_sum(network: Consortium, job: JobId) -> list[bytes]:
    return network.computed(job, mask=np.arange(ROWS) == 0)[1]


def _withdrawn_row_left_in(network: Consortium, job: JobId) -> list[bytes]:
    return network.computed(job, mask=np.ones(ROWS, dtype=np.bool_))[1]


def _other_weights(network: Consortium, job: JobId) -> list[bytes]:
    weights = (tuple(int(i == 0) for i in range(FEATURES)),)
    return network.computed(job, parameters=LinearParameters(output="sum", weights=weights, bias=(0,)))[1]


def _rows_of_another_bundle(network: Consortium, job: JobId) -> list[bytes]:
    clinic = network.clinics[NORTH]
    features = clinic.client.features(synthetic("another bundle"), clinic.features.schema)
    rows = [clinic.positions[subject] for subject in clinic.subjects]
    other = replace(clinic, bundle=register(clinic.client, features, clinic.secret, rows))
    true, network.clinics[NORTH] = network.clinics[NORTH], other
    try:
        taken = {f: network.block(NORTH, 0, f) for f in range(FEATURES)}
    finally:
        network.clinics[NORTH] = true
    return network.computed(job, block=lambda chunk, feature: taken[feature])[1]


@pytest.fixture(scope="module")
def withdrawn(shared_network: Consortium) -> None:
    """One subject of north has withdrawn, so that there is a row to leave out."""
    clinic = shared_network.clinics[NORTH]
    clinic.client.withdraw_consent(clinic.subjects[17], scope=SCOPE)
    clinic.withdrawn.add(17)


@pytest.mark.parametrize(
    "forge",
    [
        _one_flipped_residue,
        _first_row_instead_of_the_sum,
        _withdrawn_row_left_in,
        _other_weights,
        _rows_of_another_bundle,
    ],
    ids=lambda forge: forge.__name__.strip("_"),
)
def test_malicious_compute_node_returns_something_else_and_nothing_is_decrypted(
    shared_network: Consortium,
    mallory: Mallory,
    withdrawn: None,
    forge: Callable[[Consortium, JobId], list[bytes]],
) -> None:
    network = shared_network
    before = network.account()
    linear = forge is _other_weights
    job = mallory.take(kernel="linear" if linear else "sum", parameters=model() if linear else None)
    honest, true_blocks = network.computed(job)
    forged = forge(network, job)

    # Positive control: the clinic's key opens the forgery, and what comes out is not the answer.
    truth, leaked = network.opened(NORTH, true_blocks), network.opened(NORTH, forged)
    assert leaked != truth
    if forge is _first_row_instead_of_the_sum:
        assert leaked == network.clinics[NORTH].features.values[0].tolist()

    manifest = replace(honest, blocks=tuple(Cid.of(block) for block in forged))
    mallory.commit(job, manifest, forged)
    assert network.ended(job).state is JobState.REFUTED
    assert "ReleaseOpened" not in network.events(job) and "JobVerified" not in network.events(job)
    assert network.account() == before
    assert isinstance(error_of(lambda: network.university.wait(job)), JobFailedError)


def test_malicious_compute_node_that_uses_a_stale_consent_epoch_is_refuted(
    shared_network: Consortium, mallory: Mallory, withdrawn: None
) -> None:
    """It takes mask and status of the epoch before the withdrawal, and says so in its manifest."""
    network, clinic = shared_network, shared_network.clinics[NORTH]
    job = mallory.take()
    _, _, mask, status = network.inputs_of(job)
    before = replace(status, epoch=status.epoch - 1, bits=bytes(len(status.bits)))
    blocks = network.computed(job, mask=np.ones(ROWS, dtype=np.bool_))[1]
    # Positive control: the clinic's key would open a sum with the withdrawn rows in it.
    assert network.opened(NORTH, blocks) == clinic.features.values.sum(axis=0).tolist()
    assert not mask[17]
    mallory.commit(job, network.manifest(job, blocks, status=before), blocks)
    assert network.ended(job).state is JobState.REFUTED
    assert "ReleaseOpened" not in network.events(job)


def test_an_executor_that_works_by_the_rules_is_verified_and_released(
    shared_network: Consortium, mallory: Mallory
) -> None:
    """Positive control of all attacks by executors: the same attacker is not stopped when it does its work."""
    network = shared_network
    job = mallory.take()
    block = network.clinics[NORTH].bundle.manifest.block_of(0, 0)
    # It may read the inputs of the job that it has claimed, and nothing any more once that is over.
    network.indexed()
    assert mallory.host.fetch(network.ledger, NORTH, block)
    mallory.commit(job, *network.computed(job))
    assert network.ended(job).state is JobState.RELEASED
    release = network.university.open_release(job)
    truth = network.clinics[NORTH].consenting().sum(axis=0)
    assert np.abs(release.values - truth).max() <= 12 * release.sigma
    network.indexed()
    assert isinstance(error_of(lambda: mallory.host.fetch(network.ledger, NORTH, block)), PeerRefusedError)


def test_a_member_that_lies_twice_is_suspended_by_rule_and_reinstated_by_the_council(
    shared_network: Consortium, mallory: Mallory
) -> None:
    """Nobody votes for the suspension, and no node but the auditor's says anything: the ledger reads the jobs' events.

    What it did before is executed again.
    """
    network, liar = shared_network, org_id("mallory")
    honest = mallory.take()
    mallory.commit(honest, *network.computed(honest))
    assert network.ended(honest).state is JobState.RELEASED
    network.decide("Reputation", "forgive", liar)
    network.decide("Reputation", "setRule", ReputationRule())

    def standing() -> dict[str, object]:
        rows = network.auditor.content.query("/members")
        return next(row for row in rows if row["name"] == "mallory")

    for points, status in ((15, "ACTIVE"), (30, "SUSPENDED")):
        job = mallory.take()
        forged = _first_row_instead_of_the_sum(network, job)
        blocks = tuple(Cid.of(block) for block in forged)
        mallory.commit(job, replace(network.computed(job)[0], blocks=blocks), forged)
        assert network.ended(job).state is JobState.REFUTED
        network.until(lambda points=points: standing()["points"] == points, 30)
        assert standing()["status"] == status
    faults = network.auditor.content.query("/members/mallory/faults")
    assert [row["fault"] for row in faults[:2]] == ["REFUTED_RESULT"] * 2
    assert faults[0]["job_id"] == job.hex()

    def rechecked() -> object:
        rows = network.auditor.content.query("/rechecks")
        return next(row["is_same"] for row in rows if row["job_id"] == honest.hex())

    network.until(lambda: rechecked() is True, 60)
    assert network.net.health("auditor")["ok"]
    # Nobody records it twice, and who is suspended can do nothing.
    with pytest.raises(TransactionRevertedError, match="ReputationAlreadyReported"):
        network.university.report(job)
    with pytest.raises(LedgerError):
        mallory.take()
    network.decide("Reputation", "setRule", PATIENT_RULE)
    network.decide("Reputation", "forgive", liar)
    network.set_status("mallory", MemberStatus.ACTIVE)
    network.until(lambda: (standing()["points"], standing()["status"]) == (0, "ACTIVE"), 30)
    _is_unharmed(network)


def test_an_executor_that_answers_late_loses_its_turn_to_another(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    with network.timings(compute=12):
        job = mallory.take()
        manifest, blocks = network.computed(job)
        ended = network.ended(job, seconds=120)
    assert (ended.state, ended.executor) == (JobState.RELEASED, org_id("compute-1"))
    late = error_of(lambda: mallory.commit(job, manifest, blocks))
    assert isinstance(late, TransactionRevertedError)
    assert late.name == "JobLedgerWrongState"


def test_a_job_that_nobody_executes_gives_use_and_budget_back(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    before = network.account()
    with network.timings(compute=4, claim=4):
        job = mallory.take()
        reserved, spent, used = before
        assert network.account() == (reserved + MICRO, spent, used + 1)
        manifest, blocks = network.computed(job)
        with network.frozen("compute-1"):
            assert network.ended(job).state is JobState.EXPIRED
    assert network.account() == before
    late = error_of(lambda: mallory.commit(job, manifest, blocks))
    assert isinstance(late, TransactionRevertedError)
    assert late.name in ("JobLedgerWrongState", "JobLedgerDeadlinePassed")


@pytest.mark.parametrize("served", ["garbage", "nothing"])
def test_garbage_or_nothing_after_an_honest_commitment_is_never_decrypted_and_stops_no_release(
    shared_network: Consortium, mallory: Mallory, served: str
) -> None:
    """The custodian computes what it is not given; what it decrypts has the digest that was verified."""
    network = shared_network
    job = mallory.take()
    manifest, _ = network.computed(job)
    if served == "garbage":
        mallory.host.blocks[manifest.cid] = os.urandom(200)
    mallory.node.transact("JobLedger", "commitResult", job, manifest.cid.digest, [])
    assert network.ended(job).state is JobState.RELEASED
    assert manifest.cid in {cid for _, cid in mallory.host.asked}
    release = network.university.open_release(job)
    truth = network.clinics[NORTH].consenting().sum(axis=0)
    assert np.abs(release.values - truth).max() <= 12 * release.sigma


# Dishonest verifiers. The auditor's node is held still and its keys are in the attacker's hands.


def _commitment(network: Consortium, job: JobId, digest: bytes, held: bytes, salt: bytes) -> bytes:
    return verdict_commitment(
        chain_id=network.ledger.network.chain_id,
        job_ledger=network.ledger.network.contracts["JobLedger"],
        job_id=job,
        verifier=org_id("auditor"),
        result_digest=digest,
        held=held,
        salt=salt,
    )


def _word(network: Consortium, job: JobId, commitment: bytes, name: str = "auditor") -> SignedVerdict:
    return sign_verdict(
        network.node_keys(name).ledger_key,
        chain_id=network.ledger.network.chain_id,
        job_ledger=network.ledger.network.contracts["JobLedger"],
        job_id=job,
        commitment=commitment,
        deadline=1 << 40,
    )


def _reveal(digest: bytes, held: bytes, salt: bytes, name: str = "auditor") -> Reveal:
    return Reveal(verifier=org_id(name), result_digest=digest, possession=held, salt=salt)


def test_lazy_verifier_that_copies_the_public_digest_does_not_count(shared_network: Consortium) -> None:
    network = shared_network
    before = network.account()
    with network.timings(commit=10), network.frozen("auditor"):
        lazy = network.as_node("auditor")
        with network.frozen("clinic-south"):
            job = network.post()
            digest = network.reached(job, JobState.COMMITTED).result_digest
            held, salt = os.urandom(32), os.urandom(32)
            word = _word(network, job, _commitment(network, job, digest, held, salt))
            lazy.transact("JobLedger", "commitVerdicts", job, [word])
            network.reached(job, JobState.REVEALING)
            lazy.transact(
                "JobLedger", "revealVerdicts", job, [_reveal(digest, held, salt)], least_gas=600_000
            )
            ended = network.ended(job)
    # Positive control: the ledger, which cannot see the bytes, counted it.
    assert "JobVerified" in network.events(job) and ended.agreeing == ended.replicas == 2
    assert (ended.state, ended.refusal) == (JobState.REFUSED, Refusal.POSSESSION_UNPROVEN)
    assert "ReleaseOpened" not in network.events(job)
    assert network.account() == before


def test_copied_commitment_cannot_be_opened_and_its_silent_owner_does_not_stop_the_job(
    shared_network: Consortium,
) -> None:
    network = shared_network
    with network.timings(reveal=15), network.frozen("auditor"):
        copycat = network.as_node("auditor")
        job = network.post()
        network.reached(job, JobState.COMMITTED)
        content = network.university.content

        def verdicts() -> list[dict[str, Any]]:
            told = content.query(f"/jobs/{job.hex()}")["events"]
            return [event["args"] for event in told if event["name"] == "VerdictCommitted"]

        first = network.until(verdicts)[0]
        word = _word(network, job, bytes.fromhex(first["commitment"][2:]))
        copycat.transact("JobLedger", "commitVerdicts", job, [word])
        network.reached(job, JobState.REVEALING, JobState.VERIFIED)
        # It needs the other's salt, and even that opens the commitment for its owner only.
        revealed = network.until(lambda: _revealed(network, job, first["verifier"]))
        network.until(lambda: network.ledger.job(job).agreeing == 2)
        copied = _reveal(*revealed)
        refused = error_of(lambda: copycat.transact("JobLedger", "revealVerdicts", job, [copied]))
        assert isinstance(refused, TransactionRevertedError)
        assert refused.name == "JobLedgerCommitmentMismatch"
        ended = network.ended(job)
    assert (ended.state, ended.commits, ended.agreeing) == (JobState.RELEASED, 3, 2)


def _revealed(network: Consortium, job: JobId, verifier: str) -> tuple[bytes, bytes, bytes] | None:
    """Digest, proof and salt of a verifier's reveal: public once its transaction is in a block."""
    logs = network.ledger.events(network.ledger.network.deployed_at_block, network.ledger.finalised().number)
    for event in logs:
        if (
            event.name == "VerdictRevealed"
            and event.args["jobId"] == job
            and "0x" + bytes(event.args["verifier"]).hex() == verifier  # type: ignore[arg-type]
        ):
            sent = network.ledger.endpoint.call(
                "eth_getTransactionByHash", "0x" + event.transaction_hash.hex()
            )
            types = load_abi("JobLedger").functions["revealVerdicts"].input_types
            *_, committed, openings = eth_abi.abi.decode(types, bytes.fromhex(sent["input"][10:]))
            for position, digest, held, salt in openings:
                if "0x" + committed[4][position].hex() == verifier:
                    return digest, held, salt
    return None


def test_dissenter_crying_wolf_forces_a_dispute_that_the_council_settles(shared_network: Consortium) -> None:
    network = shared_network
    with network.frozen("auditor"):
        wolf = network.as_node("auditor")
        job = network.post()
        network.reached(job, JobState.COMMITTED)
        digest, held, salt = os.urandom(32), os.urandom(32), os.urandom(32)
        word = _word(network, job, _commitment(network, job, digest, held, salt))
        wolf.transact("JobLedger", "commitVerdicts", job, [word])
        network.reached(job, JobState.REVEALING)
        network.until(lambda: network.ledger.job(job).agreeing == 2)
        wolf.transact("JobLedger", "revealVerdicts", job, [_reveal(digest, held, salt)])
        disputed = network.reached(job, JobState.DISPUTED)
    assert (disputed.agreeing, disputed.dissenting) == (2, 1)
    assert "JobVerified" not in network.events(job) and "ReleaseOpened" not in network.events(job)
    network.decide("JobLedger", "settleDispute", job, True)
    assert network.ended(job).state is JobState.RELEASED


@contextmanager
def _colluding(network: Consortium, *names: str) -> Iterator[list[Ledger]]:
    """Nodes that are held still, and their keys in the attacker's hands."""
    with ExitStack() as held:
        for name in names:
            held.enter_context(network.frozen(name))
        yield [network.as_node(name) for name in names]


def _agree(
    network: Consortium, job: JobId, manifest: ResultManifest, blocks: list[bytes], names: Sequence[str]
) -> None:
    """Let colluding verifiers commit to a forged result, and reveal it: they have its bytes from the executor."""
    salt = os.urandom(32)
    held = {name: possession(org_id(name), blocks) for name in names}
    for name in names:
        commitment = verdict_commitment(
            chain_id=network.ledger.network.chain_id,
            job_ledger=network.ledger.network.contracts["JobLedger"],
            job_id=job,
            verifier=org_id(name),
            result_digest=manifest.cid.digest,
            held=held[name],
            salt=salt,
        )
        word = _word(network, job, commitment, name)
        network.as_node(name).transact("JobLedger", "commitVerdicts", job, [word], least_gas=600_000)
    network.reached(job, JobState.REVEALING)
    for name in names:
        said = _reveal(manifest.cid.digest, held[name], salt, name)
        network.as_node(name).transact("JobLedger", "revealVerdicts", job, [said], least_gas=600_000)


def test_verifier_colluding_with_the_executor_below_the_quorum_changes_nothing(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    with _colluding(network, "auditor"):
        job = mallory.take()
        honest, _ = network.computed(job)
        forged = network.computed(job, mask=np.arange(ROWS) == 0)[1]
        manifest = replace(honest, blocks=tuple(Cid.of(block) for block in forged))
        mallory.commit(job, manifest, forged)
        _agree(network, job, manifest, forged, ["auditor"])
        ended = network.ended(job)
    assert (ended.state, ended.agreeing, ended.dissenting) == (JobState.REFUTED, 1, 2)
    assert "ReleaseOpened" not in network.events(job)


def test_verifiers_colluding_at_the_quorum_are_stopped_by_one_dissent(
    shared_network: Consortium, mallory: Mallory
) -> None:
    """As many as are needed agree on a lie; one honest verifier is enough to bring it before the council."""
    network, names = shared_network, ["auditor", "clinic-south"]
    with _colluding(network, *names):
        job = mallory.take()
        honest, _ = network.computed(job)
        forged = network.computed(job, mask=np.arange(ROWS) == 0)[1]
        manifest = replace(honest, blocks=tuple(Cid.of(block) for block in forged))
        mallory.commit(job, manifest, forged)
        _agree(network, job, manifest, forged, names)
        disputed = network.reached(job, JobState.DISPUTED)
    # Positive control: without the dissent they would have been enough.
    assert (disputed.agreeing, disputed.dissenting) == (disputed.replicas, 1) == (2, 1)
    network.decide("JobLedger", "settleDispute", job, False)
    assert network.ended(job).state is JobState.REFUTED
    assert "JobVerified" not in network.events(job) and "ReleaseOpened" not in network.events(job)


# Consent.


class _Desk:
    """Keeps records that cannot be handed to a node which is held still."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, dict[str, object]]] = []

    def put_record(self, kind: str, record: dict[str, object]) -> Cid:
        self.kept.append((kind, record))
        return dag.cid_of(record)


def test_withdrawal_between_verification_and_release_leaves_the_job_with_stale_consent(
    shared_network: Consortium,
) -> None:
    network, clinic = shared_network, shared_network.clinics[NORTH]
    desk = _Desk()
    stale = network.ledger.consent_epoch(org_id(NORTH), label(SCOPE)).epoch
    with network.timings(commit=8), network.warmed("clinic-south", "compute-1", "auditor"):
        before = network.account()
        with network.frozen(NORTH):
            job = network.post()
            network.reached(job, JobState.VERIFIED)
            book: Any = clinic.client._book
            book.withdraw(clinic.subjects[40], scope=SCOPE)
            consent_book.anchor_epoch(book, clinic.client.ledger, desk, scope=SCOPE)  # type: ignore[arg-type]
            clinic.withdrawn.add(40)
        for kind, record in desk.kept:
            clinic.client.content.put_record(kind, record)
        ended = network.ended(job)
    assert (ended.state, ended.refusal) == (JobState.STALE_CONSENT, Refusal.CONSENT_EPOCH_STALE)
    assert "ReleaseOpened" not in network.events(job)
    assert network.account() == before

    denied = error_of(lambda: network.post(consent_epoch=stale))
    assert isinstance(denied, JobDeniedError) and denied.reason == "CONSENT_EPOCH_STALE"
    # Positive control: under the epoch in force the same job goes through, without the row.
    release = network.university.wait(network.post())
    assert release.count == ROWS - len(clinic.withdrawn)
    # Whoever asks again after the withdrawal is told that it counts together with what was released before.
    network.indexed()
    sums = network.university.parameters(clinic.bundle, "sum")
    assert network.university.estimate(clinic.bundle, sums, rho=1.0).joint_rho_micro > MICRO


# Peers and blocks.


def test_partner_is_given_neither_result_ciphertexts_nor_bundle_blocks(shared_network: Consortium) -> None:
    network = shared_network
    job = network.post()
    network.reached(job, JobState.RELEASED)
    network.indexed()
    manifest, _ = network.computed(job)
    bundle = network.clinics[NORTH].bundle
    # What its lineage needs: names of the ciphertexts.
    network.university.content.get(manifest.cid, holder="compute-1")
    with Impostor(network.node_keys("university").peer_seed) as partner:
        for holder, cid in [
            ("compute-1", manifest.blocks[0]),
            (NORTH, manifest.blocks[0]),
            (NORTH, bundle.manifest.block_of(0, 0)),
        ]:
            refused = error_of(lambda h=holder, c=cid: network.university.content.get(c, holder=h))
            assert isinstance(refused, NotAuthorisedError)
            refused = error_of(lambda h=holder, c=cid: partner.fetch(network.ledger, h, c))
            assert isinstance(refused, PeerRefusedError)
        # Positive control: the same peer gets what is public among members.
        assert partner.fetch(network.ledger, NORTH, _digest_cid(bundle.artifact.content_digest))
    assert network.auditor.verify(job) == 3


def _digest_cid(digest: bytes) -> Cid:
    return Cid.from_digest(digest, Codec.DAG_CBOR)


def test_query_averaging_same_release_asked_twice_is_identical_bytes_and_a_new_one_is_charged(
    shared_network: Consortium,
) -> None:
    network = shared_network
    _, spent, used = network.account()
    job = network.post(nonce=7_000_001)
    digest = network.reached(job, JobState.RELEASED).release_digest
    with Impostor(network.node_keys("university").peer_seed) as partner:
        network.indexed()
        copies = {
            partner.fetch(network.ledger, NORTH, _digest_cid(digest))[0],
            partner.fetch(network.ledger, NORTH, _digest_cid(digest))[0],
            network.university.content.get(_digest_cid(digest), holder=NORTH),
        }
    assert len(copies) == 1
    again = error_of(lambda: network.post(nonce=7_000_001))
    assert isinstance(again, TransactionRevertedError) and again.name == "JobLedgerDuplicate"
    assert network.account()[1:] == (spent + MICRO, used + 1)
    network.reached(network.post(), JobState.RELEASED)
    assert network.account()[1:] == (spent + 2 * MICRO, used + 2)


def test_stranger_is_shut_out_and_a_member_suspended_in_mid_connection_too(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    record = _digest_cid(network.clinics[NORTH].bundle.artifact.content_digest)
    with Impostor(os.urandom(32)) as stranger:
        for name in NODES:
            refused = error_of(lambda n=name: stranger.fetch(network.ledger, n, record))
            assert isinstance(refused, PeerError)

    grant = _grant_to(mallory, network)
    assert mallory.host.fetch(network.ledger, NORTH, record)
    network.set_status("mallory", MemberStatus.SUSPENDED)
    refused = error_of(lambda: mallory.host.fetch(network.ledger, NORTH, record))
    assert isinstance(refused, PeerError)
    bundle = network.clinics[NORTH].bundle.artifact_id
    for ledger, contract, function, arguments in (
        (mallory.authority, "JobLedger", "postJob", (_request(network, grant, bytes(range(32))),)),
        (mallory.authority, "UsageRights", "requestUsage", (bundle, label(SCOPE), _terms(network))),
        (mallory.authority, "ConsentRegistry", "anchorEpoch", (label(SCOPE), 1, os.urandom(32), os.urandom(32), 100)),
        (mallory.authority, "KeyRegistry", "registerKeyDomain", (os.urandom(32), BFV_LINEAR.parameters_id, os.urandom(32))),
        (mallory.authority, "MemberCouncil", "propose", network.ledger.call_data("JobLedger", "setQuorum", 1)),
        (mallory.node, "JobLedger", "claimJob", (os.urandom(32),)),
        (mallory.node, "JobLedger", "expireJob", (os.urandom(32),)),
        (mallory.node, "ParticipantRegistry", "setEndpoint", ("/ip4/127.0.0.1/tcp/1",)),
    ):  # fmt: skip
        refused = error_of(lambda le=ledger, c=contract, f=function, a=arguments: le.transact(c, f, *a))
        assert isinstance(refused, TransactionRevertedError)
        assert refused.name.startswith("ParticipantRegistry"), (function, refused.name)
    network.set_status("mallory", MemberStatus.ACTIVE)
    # Positive control: nothing but the status stood in the way.
    network.until(lambda: _fetched(network, mallory, record))


def _fetched(network: Consortium, mallory: Mallory, cid: Cid) -> list[bytes]:
    """A block from north, once its gate has heard that we may have it."""
    with suppress(PeerError):
        return mallory.host.fetch(network.ledger, NORTH, cid)
    return []


@pytest.mark.parametrize("identity_of", ["compute-1", "clinic-south", "university"])
def test_member_without_business_is_refused_a_block_of_a_bundle(
    shared_network: Consortium, identity_of: str
) -> None:
    network = shared_network
    network.indexed()
    block = network.clinics[NORTH].bundle.manifest.block_of(0, 0)
    with Impostor(network.node_keys(identity_of).peer_seed) as idle:
        assert isinstance(error_of(lambda: idle.fetch(network.ledger, NORTH, block)), PeerRefusedError)
    # Positive control: the auditor may look at any bundle.
    with Impostor(network.node_keys("auditor").peer_seed) as auditor:
        assert auditor.fetch(network.ledger, NORTH, block) == [network.block(NORTH, 0, 0)]


BYTE_CLASSES = {
    "magic": 0,
    "version": 4,
    "scheme": 5,
    "form": 6,
    "parameters": 7,
    "key": 39,
    "length": 71,
    "residues": 75,
    "seed": -1,
}


@pytest.mark.parametrize("where", BYTE_CLASSES)
def test_malicious_peer_wrong_block_each_byte_class_flipped_is_rejected(
    shared_network: Consortium, mallory: Mallory, where: str
) -> None:
    network = shared_network
    cid = network.clinics[NORTH].bundle.manifest.block_of(0, 1)
    right = network.block(NORTH, 0, 1)
    wrong = bytearray(right)
    wrong[BYTE_CLASSES[where]] ^= 1
    (file,) = (network.net.home(NORTH).blocks / "blocks").rglob(str(cid))
    with Impostor(network.node_keys("auditor").peer_seed) as auditor:
        # Served by a peer that lies.
        mallory.host.blocks[cid] = bytes(wrong)
        refused = error_of(lambda: auditor.fetch(network.ledger, "mallory", cid))
        assert isinstance(refused, BlockMismatchError)
        mallory.host.blocks[cid] = right
        assert auditor.fetch(network.ledger, "mallory", cid) == [right]
        del mallory.host.blocks[cid]
        # Rotten on the disk of a peer that does not lie.
        file.write_bytes(bytes(wrong))
        try:
            refused = error_of(lambda: auditor.fetch(network.ledger, NORTH, cid))
            assert isinstance(refused, BlockNotFoundError)
        finally:
            file.write_bytes(right)
        assert auditor.fetch(network.ledger, NORTH, cid) == [right]


# Secrets.


def _secrets_of(network: Consortium, but: str) -> dict[str, bytes]:
    """What no process or disk of `but` may hold: plaintext, secrets and passphrases of all others."""
    found: dict[str, bytes] = {}
    for name, clinic in network.clinics.items():
        secret = clinic.secret.to_bytes()
        found[f"secret key of {name}"] = secret[-64:]
        found[f"secret key of {name}, start"] = secret[8:72]
        found[f"secret key of {name}, as numbers"] = clinic.secret._coefficients[:64].tobytes()
        row = clinic.features.values[5]
        found.update(
            {
                f"row of {name} as {kind}": row.astype(kind).tobytes()
                for kind in ("<i1", "<i2", "<i4", "<i8", "<f8")
            }
        )
        found[f"rows of {name} as they came"] = synthetic(name)[5].tobytes()
        found[f"a subject of {name}"] = clinic.subjects[5].encode()
    for name in NODES:
        if name == but:
            continue
        home = network.net.home(name)
        keys = network.node_keys(name)
        found[f"ledger key of {name}"] = keys.ledger_key
        found[f"peer seed of {name}"] = keys.peer_seed
        for file in (
            home.node_passphrase,
            home.authority_passphrase,
            home.custodian_passphrase,
            home.api_token,
        ):
            if not file.exists():
                continue
            found[f"{file.name} of {name}"] = file.read_bytes().strip()
    return found


def _forms(secret: bytes) -> tuple[bytes, ...]:
    return secret, secret.hex().encode(), secret.hex().upper().encode()


def test_curious_compute_node_finds_no_secret_and_no_plaintext_on_its_disk(
    shared_network: Consortium,
) -> None:
    network = shared_network
    network.reached(network.post(kernel="linear", parameters=model("rows")), JobState.RELEASED)
    home = network.net.home("compute-1").root
    files = [path for path in home.rglob("*") if path.is_file()]
    disk = {path: path.read_bytes() for path in [*files, network.net.log_file("compute-1")]}
    for what, secret in _secrets_of(network, "compute-1").items():
        for form in _forms(secret):
            assert [str(path) for path, data in disk.items() if form in data] == [], what
    # Positive control: what it may hold is found by the same search, and the clinic's disk does hold a subject.
    block = network.block(NORTH, 0, 0)
    assert [path for path, data in disk.items() if block in data]
    own = network.net.home("compute-1").node_passphrase.read_bytes().strip()
    assert {path.name for path, data in disk.items() if own in data} == {"node.passphrase"}
    subject = network.clinics[NORTH].subjects[5].encode()
    assert subject in network.net.home(NORTH).consent_database.read_bytes()


def _memory(pid: int) -> Iterator[bytes]:
    """What a process can write to, region by region: whatever it computes with is there."""
    with suppress(OSError), Path(f"/proc/{pid}/mem").open("rb", buffering=0) as image:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            first, last = (int(edge, 16) for edge in span.split("-"))
            with suppress(OSError, ValueError, OverflowError):
                image.seek(first)
                yield image.read(last - first)


def _found_in_memory(pids: Iterable[int], wanted: dict[str, bytes]) -> set[str]:
    """Which of these are in the memory of any of these processes."""
    found: set[str] = set()
    for pid in pids:
        for region in _memory(pid):
            found |= {what for what, secret in wanted.items() if secret in region}
    return found


def _family(network: Consortium, name: str) -> list[int]:
    """A node's process and all below it."""
    node = psutil.Process(network.net.running()[name])
    return [node.pid, *(child.pid for child in node.children(recursive=True))]


def test_curious_compute_node_finds_no_secret_and_no_plaintext_in_its_memory_image(
    shared_network: Consortium,
) -> None:
    network = shared_network
    network.reached(network.post(kernel="linear", parameters=model("rows")), JobState.RELEASED)
    hidden = _secrets_of(network, "compute-1")
    assert _found_in_memory(_family(network, "compute-1"), hidden) == set()
    # Positive control: the same search finds what the node does hold, and the secret where it belongs.
    own = {"own": network.node_keys("compute-1").ledger_key}
    assert _found_in_memory(_family(network, "compute-1"), own) == {"own"}
    node, *below = _family(network, NORTH)
    (custodian,) = [
        pid for pid in below if b"usufruct_node.custodian" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    secret = {what: value for what, value in hidden.items() if what.startswith(f"secret key of {NORTH}")}
    assert f"secret key of {NORTH}, as numbers" in _found_in_memory([custodian], secret)
    # Not even the custodian's own node holds it.
    assert _found_in_memory([node], secret) == set()


def test_no_process_carries_a_secret_in_its_environment_or_command_line(shared_network: Consortium) -> None:
    network = shared_network
    hidden = _secrets_of(network, "nobody")
    running = processes_below(network.net.root)
    assert len(running) >= 7
    seen = b""
    for pid in running:
        with suppress(OSError):
            seen += Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"usufruct_node" in seen and b"PATH=" in seen
    for what, secret in hidden.items():
        assert not any(form in seen for form in _forms(secret) if len(form) > 12), what


# Hostile records on the ledger.


def _terms(network: Consortium) -> Any:
    return rights.terms(
        kernels=("sum", "linear"),
        uses=50,
        expires_at=network.ledger.finalised().timestamp + 86_400,
        rho_micro=100 * MICRO,
        min_cohort=20,
        row_level=True,
    )


def _grant_to(mallory: Mallory, network: Consortium) -> GrantId:
    bundle = network.clinics[NORTH].bundle
    wanted = _terms(network)
    grant_id = rights.request_usage(mallory.authority, bundle.artifact_id, purpose=SCOPE, wanted=wanted)
    network.clinics[NORTH].client.grant(grant_id, wanted)
    return grant_id


def _request(network: Consortium, grant_id: GrantId, parameters: bytes, **changes: Any) -> JobRequest:
    bundle = network.clinics[NORTH].bundle
    request = JobRequest(
        artifact_id=bundle.artifact_id,
        grant_id=grant_id,
        kernel_id=kernel_by_name("linear").kernel_id,
        parameters_digest=parameters,
        purpose=label(SCOPE),
        consent_epoch=network.ledger.consent_epoch(org_id(NORTH), label(SCOPE)).epoch,
        policy_version=bundle.artifact.policy_version,
        rho_micro=MICRO,
        row_level=False,
        nonce=int.from_bytes(os.urandom(7), "big"),
    )
    return replace(request, **changes)


def _posted(ledger: Ledger, request: JobRequest) -> JobId:
    receipt = ledger.transact("JobLedger", "postJob", request)
    return JobId(bytes(ledger.event_of(receipt, "JobPosted").args["jobId"]))  # type: ignore[arg-type]


def _hostile_parameters(network: Consortium) -> list[bytes]:
    bundle = network.clinics[NORTH].bundle
    good = JobParameters(
        kernel=kernel_by_name("linear"),
        parameters=LinearParameters(output="sum", weights=((1,) * FEATURES,), bias=(0,)),
        result_scale=1.0,
    ).to_record()
    assert isinstance(good["parameters"], dict)

    def altered(**changes: object) -> bytes:
        return dag.encode({**good, "parameters": {**good["parameters"], **changes}})  # type: ignore[dict-item]

    limit = bundle.manifest.shape.parameters.value_limit
    return [
        b"",
        os.urandom(100),
        dag.encode(good)[:-1],
        dag.encode([1, 2, 3]),
        dag.encode({**good, "kernel": os.urandom(32)}),
        dag.encode({**good, "result_scale": -1.0}),
        altered(output="everything"),
        altered(weights=[[1] * (FEATURES + 1)]),
        altered(weights=[[limit] * FEATURES]),
        altered(weights=[[2**62] * FEATURES]),
        altered(weights=[[1] * FEATURES] * 5000, bias=[0] * 5000),
        b"\x9b" + (2**63).to_bytes(8, "big"),
        b"\x81" * 5000,
        os.urandom(MAX_BLOCK_BYTES + 1),
    ]


def test_hostile_parameter_records_take_no_node_down_and_their_jobs_expire(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    grant = _grant_to(mallory, network)
    before = network.ledger.budget(network.clinics[NORTH].bundle.artifact_id)
    with network.timings(claim=5):
        jobs = []
        for data in _hostile_parameters(network):
            jobs.append(
                _posted(mallory.authority, _request(network, grant, mallory.serve_record(data).digest))
            )
        # A number that does not fit the signed 64 bits of a database.
        large = _request(network, grant, os.urandom(32), nonce=2**64 - 1)
        jobs.append(_posted(mallory.authority, large))
        for job in jobs:
            ended = network.ended(job)
            assert ended.state is JobState.EXPIRED
            assert "JobClaimed" not in network.events(job)
    assert network.ledger.budget(network.clinics[NORTH].bundle.artifact_id) == before
    assert network.ledger.grant(grant).used == 0
    _is_unharmed(network)


def test_hostile_bundle_manifests_take_no_node_down_and_hide_no_other_bundle(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    key_id = KeyId(os.urandom(32))
    mallory.authority.transact(
        "KeyRegistry", "registerKeyDomain", key_id, BFV_LINEAR.parameters_id, os.urandom(32)
    )
    mallory.authority.transact(
        "ConsentRegistry", "anchorEpoch", label(SCOPE), 1, os.urandom(32), os.urandom(32), 100
    )
    content = network.clinics[NORTH].client.content
    good = content.get_record(
        _digest_cid(network.clinics[NORTH].bundle.artifact.content_digest), holder=NORTH
    )
    policy = content.get(_digest_cid(network.clinics[NORTH].bundle.artifact.policy_digest), holder=NORTH)
    jobs = []
    with network.timings(claim=6):
        for data in (
            os.urandom(64),
            dag.encode(good)[:-1],
            dag.encode({**good, "blocks": []}),
            dag.encode({**good, "subjects": b"\xff" * 4 * ROWS}),
            dag.encode({**good, "scope": "../../etc/passwd"}),
            dag.encode(good),
        ):
            artifact = _register_raw(
                mallory, key_id, mallory.serve_record(data), mallory.serve_record(policy)
            )
            grant = rights.request_usage(
                network.university.ledger, artifact, purpose=SCOPE, wanted=_terms(network)
            )
            mallory.authority.transact("UsageRights", "grantUsage", grant, _terms(network))
            parameters = network.university.content.put_record(
                "parameters",
                network.university.parameters(network.clinics[NORTH].bundle, "linear", model()).to_record(),
            )
            request = _request(
                network, grant, parameters.digest, artifact_id=artifact, consent_epoch=1, policy_version=1
            )
            jobs.append(_posted(network.university.ledger, request))
        network.indexed()
        listed = {bundle.artifact_id for bundle in network.university.bundles()}
        assert {clinic.bundle.artifact_id for clinic in network.clinics.values()} <= listed
        for job in jobs:
            assert network.ended(job).state is JobState.EXPIRED
    _is_unharmed(network)


def _register_raw(mallory: Mallory, key_id: KeyId, content: Cid, policy: Cid) -> ArtifactId:
    registration = BundleRegistration(
        content_digest=content.digest,
        key_id=key_id,
        policy_digest=policy.digest,
        consent_scope=label(SCOPE),
        retain_until=2**64 - 1,
    )
    receipt = mallory.authority.transact("LineageRegistry", "registerBundle", registration)
    found = mallory.authority.event_of(receipt, "BundleRegistered").args["artifactId"]
    artifact = ArtifactId(bytes(found))  # type: ignore[call-overload]
    mallory.authority.transact("PrivacyBudget", "setBudget", artifact, 100 * MICRO)
    return artifact


HOSTILE_ENDPOINTS = (
    b"\xff\xfe\x80 not utf-8",
    b"/ip4/999.1.1.1/tcp/0/p2p/../../x",
    b"/dns4/" + b"a" * 150 + b"/tcp/99999",
    b"/ip4/127.0.0.1/tcp/1\0\n\r\x1b[2J",
)


def test_hostile_endpoints_of_one_member_stop_no_other(shared_network: Consortium, mallory: Mallory) -> None:
    network = shared_network
    try:
        for endpoint in HOSTILE_ENDPOINTS:
            mallory.set_endpoint(endpoint)
            network.indexed()
            names = {entry["name"] for entry in network.auditor.content.query("/members")}
            assert names == {*NODES, "mallory"}
            assert network.ledger.participant(org_id("mallory")).name == "mallory"
            refused = error_of(lambda: network.auditor.content.get(Cid.of(os.urandom(8)), holder="mallory"))
            assert isinstance(refused, UsufructError)
        _is_unharmed(network)
    finally:
        mallory.set_endpoint(mallory.host.endpoint.encode())


def test_requester_that_hides_its_address_from_verifiers_cannot_make_them_dissent(
    shared_network: Consortium, mallory: Mallory
) -> None:
    network = shared_network
    grant = _grant_to(mallory, network)
    weights = (tuple(range(2, FEATURES + 2)),)
    record = JobParameters(
        kernel=kernel_by_name("linear"),
        parameters=LinearParameters(output="sum", weights=weights, bias=(1,)),
        result_scale=1.0,
    ).to_record()
    parameters = mallory.serve_record(dag.encode(record))
    try:
        with network.frozen("auditor"), network.frozen("clinic-south"):
            job = _posted(mallory.authority, _request(network, grant, parameters.digest))
            network.until(lambda: network.ledger.job(job).commits == 1)
            mallory.set_endpoint(HOSTILE_ENDPOINTS[1])
        network.indexed()
        trouble = network.until(lambda: network.auditor.content.query("/status")["jobs_in_trouble"])
        assert "dialled" in trouble[job.hex()]
        assert network.ledger.job(job).commits == 1
    finally:
        mallory.set_endpoint(mallory.host.endpoint.encode())
    ended = network.ended(job)
    assert (ended.state, ended.agreeing, ended.dissenting) == (JobState.RELEASED, 3, 0)
