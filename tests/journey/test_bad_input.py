"""Bad input on a running network: a typed error that says what to do, on the command line too, and nothing half-done."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest
from organisations import FEATURES, Consortium, error_of, model, register, run_cli

from free_ports import free_port
from usufruct.content import Cid, Codec, dag
from usufruct.errors import (
    DeniedError,
    InputError,
    JobDeniedError,
    JobPendingError,
    KernelBoundError,
    KernelParameterError,
    LedgerUnreachableError,
    StoreFullError,
    TransactionRevertedError,
    UnknownKernelError,
    UsufructError,
    WrongChainError,
    WrongContractCodeError,
    WrongKeyDomainError,
)
from usufruct.he.kernels import kernel_by_name
from usufruct.ledger import Ledger, Network
from usufruct.privacy import MICRO
from usufruct.records import GrantId, JobState, MemberStatus, Refusal, Role, org_id
from usufruct.rights import terms
from usufruct_node.enrol import create_home_with_passphrase_files

NORTH = "clinic-north"


def _said(result: CompletedProcess[str], code: int, *words: str) -> None:
    """The program failed with this code and these words, in prose and not in a stack."""
    text = result.stdout + result.stderr
    assert result.returncode == code, text
    assert "Traceback" not in text
    for word in words:
        assert re.search(word, " ".join(text.split()), re.IGNORECASE), (word, text)


def _home(network: Consortium, name: str = "university") -> str:
    return str(network.net.home(name).root)


# Rights.


def _expired(network: Consortium) -> GrantId:
    soon = network.ledger.finalised().timestamp + 10
    grant_id = network.grant(NORTH, expires_at=soon)
    network.until(lambda: network.ledger.finalised().timestamp >= soon)
    return grant_id


def _exhausted(network: Consortium) -> GrantId:
    grant_id = network.grant(NORTH, uses=1)
    network.reached(network.post(grant_id=grant_id), JobState.RELEASED)
    return grant_id


def _revoked(network: Consortium) -> GrantId:
    grant_id = network.grant(NORTH)
    network.clinics[NORTH].client.revoke(grant_id)
    return grant_id


def _for_another_kernel(network: Consortium) -> GrantId:
    allowed = terms(kernels=("linear",), uses=1, expires_at=1, rho_micro=1).kernels
    return network.grant(NORTH, kernels=allowed)


def _too_small_a_budget(network: Consortium) -> GrantId:
    return network.grant(NORTH, rho_micro=MICRO // 2)


def _never_granted(network: Consortium) -> GrantId:
    return network.university.request(network.clinics[NORTH].bundle, kernels=("sum",), uses=1, rho=1)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (_expired, Refusal.GRANT_EXPIRED),
        (_exhausted, Refusal.USES_EXHAUSTED),
        (_revoked, Refusal.GRANT_REVOKED),
        (_for_another_kernel, Refusal.KERNEL_NOT_GRANTED),
        (_too_small_a_budget, Refusal.BUDGET_EXCEEDED),
        (_never_granted, Refusal.GRANT_NOT_OPEN),
        (lambda _: GrantId(bytes(32)), Refusal.GRANT_UNKNOWN),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Refusal) else "",
)
def test_job_on_a_grant_that_does_not_stand_is_denied_and_the_denial_is_on_the_ledger(
    shared_network: Consortium, spoilt: Callable[[Consortium], GrantId], reason: Refusal
) -> None:
    network = shared_network
    grant_id = spoilt(network)
    artifact = network.clinics[NORTH].bundle.artifact_id
    before = network.ledger.budget(artifact)
    used = network.ledger.grant(grant_id).used if any(grant_id) else 0
    denied = error_of(lambda: network.post(grant_id=grant_id or GrantId(bytes(32))))
    assert isinstance(denied, JobDeniedError)
    assert denied.reason == reason.name
    assert network.ledger.job(denied.job_id).state is JobState.DENIED  # type: ignore[arg-type]
    assert network.ledger.budget(artifact) == before
    assert used == (network.ledger.grant(grant_id).used if any(grant_id) else 0)
    network.indexed()
    recorded = {entry["id"]: entry["reason"] for entry in network.auditor.denials()}
    assert recorded[denied.job_id.hex()] == reason.name


def test_a_denial_on_the_command_line_names_its_reason_and_exits_with_7(shared_network: Consortium) -> None:
    network = shared_network
    granted = network.grants["clinic-south"]
    network.clinics["clinic-south"].client.revoke(granted)
    try:
        network.indexed()
        artifact = network.clinics["clinic-south"].bundle.artifact_id.hex()
        words = ("job", "post", artifact, "--kernel", "sum", "--rho", "1", "--home", _home(network))
        _said(run_cli("usufruct", *words), 7, "denied", "GRANT_REVOKED")
    finally:
        network.grants["clinic-south"] = network.grant("clinic-south")


def test_suspended_member_cannot_post_and_its_verified_job_is_not_released(
    shared_network: Consortium,
) -> None:
    network = shared_network
    status = ("ParticipantRegistry", "setStatus", org_id("university"))
    with network.timings(commit=8), network.warmed("clinic-south", "compute-1", "auditor"):
        before = network.account()
        try:
            with network.frozen(NORTH):
                job = network.post()
                network.reached(job, JobState.VERIFIED)
                network.decide(*status, MemberStatus.SUSPENDED)
            ended = network.ended(job)
            assert (ended.state, ended.refusal) == (JobState.REFUSED, Refusal.REQUESTER_NOT_ACTIVE)
            refused = error_of(network.post)
            assert isinstance(refused, TransactionRevertedError)
            assert refused.name == "ParticipantRegistryNotActive"
            artifact = network.clinics[NORTH].bundle.artifact_id.hex()
            words = ("job", "post", artifact, "--kernel", "sum", "--rho", "1", "--home", _home(network))
            _said(run_cli("usufruct", *words), 7, "not an active member", "doctor")
            assert network.account() == before
        finally:
            network.decide(*status, MemberStatus.ACTIVE)
            network.indexed()
    network.reached(network.post(), JobState.RELEASED)


# Bundles, kernels and models.


def test_bundle_sealed_in_another_clinics_key_domain_is_not_registered(shared_network: Consortium) -> None:
    network, south = shared_network, shared_network.clinics["clinic-south"]
    before = len(network.university.content.query("/bundles"))
    rows = [south.positions[subject] for subject in south.subjects]
    refused = error_of(lambda: register(south.client, south.features, network.clinics[NORTH].secret, rows))
    assert isinstance(refused, WrongKeyDomainError)
    network.indexed()
    assert len(network.university.content.query("/bundles")) == before


@pytest.mark.parametrize(
    ("kernel", "parameters", "kind", "code"),
    [
        ("linear", {**model(), "weights": [[40_000] * FEATURES]}, KernelBoundError, 2),
        ("linear", {**model(), "weights": [[1] * (FEATURES - 1)]}, KernelParameterError, 2),
        (
            "linear",
            {**model(), "weights": [[1] * FEATURES] * 2000, "bias": [0] * 2000},
            KernelParameterError,
            2,
        ),
        ("covariance", {}, UnknownKernelError, 2),
        ("../sum", {}, UnknownKernelError, 2),
    ],
    ids=["overflow", "wrong-shape", "oversize", "unknown", "path-like"],
)
def test_kernel_or_model_that_cannot_run_is_refused_before_anything_is_sent(
    shared_network: Consortium,
    tmp_path: Path,
    kernel: str,
    parameters: dict[str, object],
    kind: type[UsufructError],
    code: int,
) -> None:
    network = shared_network
    network.indexed()
    before = network.account(), len(network.university.content.query("/jobs", limit=1000))
    refused = error_of(lambda: network.post(kernel=kernel, parameters=parameters))
    assert isinstance(refused, kind) and refused.hint + str(refused)
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps(parameters), "utf-8")
    artifact = network.clinics[NORTH].bundle.artifact_id.hex()
    words = ("job", "post", artifact, "--kernel", kernel, "--rho", "1", "--parameters", str(file))
    _said(run_cli("usufruct", *words, "--home", _home(network)), code)
    network.indexed()
    assert (network.account(), len(network.university.content.query("/jobs", limit=1000))) == before


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan"), float("inf")])
def test_budget_that_is_no_positive_number_is_refused_before_anything_is_sent(
    shared_network: Consortium, rho: float
) -> None:
    assert error_of(lambda: shared_network.post(rho=rho)).exit_code == 2


def test_a_job_that_only_the_policy_rules_out_is_refused_before_it_is_posted(
    shared_network: Consortium,
) -> None:
    network = shared_network
    before = network.account(), len(network.university.jobs())
    refused = error_of(lambda: network.post(rho=101))
    assert isinstance(refused, DeniedError) and "allows a job rho 100, not 101" in str(refused)
    artifact = network.clinics[NORTH].bundle.artifact_id.hex()
    words = ("job", "estimate", artifact, "--kernel", "sum", "--rho", "101", "--home", _home(network))
    _said(run_cli("usufruct", *words), 7, "allows a job rho 100")
    assert (network.account(), len(network.university.jobs())) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kernels": (kernel_by_name("distance").kernel_id,)}, "does not allow distance"),
        ({"replicas": 40}, "40 verifiers are to agree"),
        ({"min_cohort": 61}, "has 60 subjects, and no release may be of fewer than 61"),
        ({"min_cohort": 51}, "knows of 60 subjects only that they are 50 at least"),
    ],
)
def test_terms_under_which_no_job_could_run_are_not_granted(
    shared_network: Consortium, changes: dict[str, object], says: str
) -> None:
    refused = error_of(lambda: shared_network.grant(NORTH, **changes))
    assert isinstance(refused, InputError) and says in str(refused)


def test_rights_of_nobody_are_not_revoked(shared_network: Consortium) -> None:
    words = ("rights", "revoke", "--grantee", "nobody", "--home", _home(shared_network, NORTH))
    _said(run_cli("usufruct", *words), 2, "is no member")


def test_a_bundle_shows_its_columns_in_order_and_what_its_policy_allows(shared_network: Consortium) -> None:
    network = shared_network
    bundle = network.clinics[NORTH].bundle
    words = ("bundle", "show", bundle.artifact_id.hex(), "--home", _home(network))
    told = json.loads(run_cli("usufruct", *words, "--json").stdout)
    assert [column["name"] for column in told["columns"]] == [
        column.name for column in bundle.manifest.schema.columns
    ]
    assert told["kernels"] == ["sum", "linear"] and told["max_rho_per_job"] == 100 and told["row_level"]
    assert told["rows"] == bundle.manifest.shape.n_rows and told["frozen"] == "NONE"
    assert "f-00" in run_cli("usufruct", *words).stdout


def test_receipts_behind_a_job_are_handed_out_and_an_altered_one_is_found_out(
    shared_network: Consortium, tmp_path: Path
) -> None:
    network, north = shared_network, shared_network.clinics[NORTH]
    subject = next(name for row, name in enumerate(north.subjects) if row not in north.withdrawn)
    scope = north.bundle.manifest.scope
    clinic, auditor = ("--home", _home(network, NORTH)), ("--home", _home(network, "auditor"))
    for what in (("receipt", subject), ("export",)):
        given = run_cli("usufruct", "consent", *what, "--scope", scope, *clinic)
        (tmp_path / "proof").write_text(given.stdout)
        told = run_cli("usufruct", "consent", "check", str(tmp_path / "proof"), *auditor)
        assert told.returncode == 0, told.stderr
        assert f"signed by {NORTH}" in told.stdout
        proof = json.loads(given.stdout)
        proof["receipts"][0]["expires_at"] += 1
        (tmp_path / "altered").write_text(json.dumps(proof))
        told = run_cli("usufruct", "consent", "check", str(tmp_path / "altered"), *auditor)
        _said(told, 8, "signed by")
    _said(run_cli("usufruct", "consent", "export", "--scope", scope, *auditor), 2, "has anchored no consents")
    _said(run_cli("usufruct", "consent", "receipt", subject, *clinic), 2, "which purpose")


# Records and blocks handed to a node.


@pytest.fixture
def door(shared_network: Consortium) -> Iterator[httpx.Client]:
    home = shared_network.net.home(NORTH)
    headers = {"Authorization": f"Bearer {home.api_token.read_text('ascii').strip()}"}
    with httpx.Client(base_url=home.node_address().url, headers=headers, trust_env=False) as client:
        yield client


def test_truncated_manifest_is_refused_wherever_it_is_cut(
    shared_network: Consortium, door: httpx.Client
) -> None:
    bundle = shared_network.clinics[NORTH].bundle
    whole = shared_network.clinics[NORTH].client.content.get(
        Cid.from_digest(bundle.artifact.content_digest, Codec.DAG_CBOR), holder=NORTH
    )
    kept = door.get("/status").json()["holdings"]
    for length in (0, 1, 2, 10, len(whole) // 2, len(whole) - 33, len(whole) - 1):
        cut = whole[:length]
        answer = door.put(f"/records/bundle/{Cid.of(cut, Codec.DAG_CBOR)}", content=cut)
        assert answer.status_code == 422, (length, answer.text)
        assert answer.json()["error"] == "ManifestError"
    other = dag.encode({**dag.decode_map(whole), "blocks": []})
    answer = door.put(f"/records/bundle/{Cid.of(other, Codec.DAG_CBOR)}", content=other)
    assert (answer.status_code, answer.json()["error"]) == (422, "ManifestError")
    wrong = door.put(f"/records/bundle/{Cid.of(whole, Codec.DAG_CBOR)}", content=whole[:-1])
    assert (wrong.status_code, wrong.json()["error"]) == (422, "BlockMismatchError")
    assert door.get("/status").json()["holdings"] == kept
    # Positive control.
    assert door.put(f"/records/bundle/{Cid.of(whole, Codec.DAG_CBOR)}", content=whole).status_code == 200


@pytest.mark.parametrize(
    "cid", ["..%2f..%2fetc%2fpasswd", "bafk", "Qm" + "a" * 44, "bafkrei" + "a" * 300, "%00", "b" * 60]
)
def test_path_like_or_malformed_cid_is_refused(door: httpx.Client, cid: str) -> None:
    answer = door.get(f"/blocks/{cid}", params={"holder": NORTH})
    assert answer.status_code in (400, 404), answer.text
    assert "root:" not in answer.text
    if answer.status_code == 400:
        assert answer.json()["error"] == "CidError"


def test_requests_without_the_bearer_token_are_refused(door: httpx.Client) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        with httpx.Client(base_url=door.base_url, headers=headers, trust_env=False) as stranger:
            assert stranger.get("/health").status_code == 200
            assert stranger.get("/status").status_code == 401
            assert stranger.get("/bundles").status_code == 401
            assert stranger.put("/records/policy/x", content=b"x").status_code == 401


# Disk full.


def _restarted(network: Consortium, name: str, quota_bytes: int | None) -> None:
    """Restart a node with another quota."""
    settings = network.net.home(name).root / "node.toml"
    with network.stopped(name):
        if quota_bytes is None:
            settings.unlink()
        else:
            settings.write_text(f"quota_bytes = {quota_bytes}\n", "utf-8")


def test_full_disk_of_a_steward_refuses_a_bundle_whole(shared_network: Consortium) -> None:
    network, name = shared_network, "clinic-south"
    south = network.clinics[name]
    rows = [south.positions[subject] for subject in south.subjects]
    bundles = len(network.university.content.query("/bundles"))
    _restarted(network, name, 1)
    used = south.client.content.query("/status")["blocks_bytes"]
    try:
        refused = error_of(lambda: register(south.client, south.features, south.secret, rows))
        assert isinstance(refused, StoreFullError)
        assert "free space" in refused.hint
        assert south.client.content.query("/status")["blocks_bytes"] == used
    finally:
        _restarted(network, name, None)
    assert len(network.university.content.query("/bundles")) == bundles
    assert register(south.client, south.features, south.secret, rows).steward == name


def test_full_disk_of_a_compute_node_holds_a_job_up_until_there_is_space(shared_network: Consortium) -> None:
    network = shared_network
    _restarted(network, "compute-1", 1)
    try:
        job = network.post(kernel="linear", parameters=model(bias=int.from_bytes(os.urandom(1), "big") + 10))
        content = network.clients["compute-1"].content
        network.until(lambda: "do not fit" in content.query("/status")["jobs_in_trouble"].get(job.hex(), ""))
        assert network.ledger.job(job).state in (JobState.POSTED, JobState.CLAIMED)
    finally:
        _restarted(network, "compute-1", None)
    network.reached(job, JobState.RELEASED)


# Chain, ports and homes.


@pytest.fixture(scope="module")
def visitor(shared_network: Consortium, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that could run a node, of an organisation that nobody has admitted."""
    home = tmp_path_factory.mktemp("visitor") / "home"
    create_home_with_passphrase_files(home, name="visitor", roles=Role.VERIFIER)
    Network.load(shared_network.net.network_file).save(home / "network.json")
    return home


def _run_node(home: Path, **environment: str) -> CompletedProcess[str]:
    result = run_cli(
        "usufruct-node", "run", "--home", str(home), USUFRUCT_NODE_LEDGER_PATIENCE_S="1", **environment
    )
    assert not (home / "api.json").exists()
    return result


def test_unreachable_or_wrong_chain_and_other_contract_code_are_told_apart(
    shared_network: Consortium, visitor: Path
) -> None:
    right = Network.load(shared_network.net.network_file)
    nowhere = right.model_copy(update={"rpc_urls": (f"http://127.0.0.1:{free_port()}",)})
    other_chain = right.model_copy(update={"chain_id": right.chain_id + 1})
    other_start = right.model_copy(update={"genesis_hash": "0x" + "00" * 32})
    swapped = dict(right.contracts)
    swapped["JobLedger"], swapped["UsageRights"] = swapped["UsageRights"], swapped["JobLedger"]
    other_code = right.model_copy(update={"contracts": swapped})
    try:
        for network, kind, word in (
            (nowhere, LedgerUnreachableError, "does not answer"),
            (other_chain, WrongChainError, "chain"),
            (other_start, WrongChainError, "chain"),
            (other_code, WrongContractCodeError, "code"),
        ):
            assert isinstance(error_of(lambda n=network: Ledger.open(n, patience=0.5)), kind)
            network.save(visitor / "network.json")
            _said(_run_node(visitor), 6, word)
    finally:
        right.save(visitor / "network.json")


@pytest.mark.parametrize("setting", ["USUFRUCT_NODE_API_PORT", "USUFRUCT_NODE_LISTEN_PORT"])
def test_port_that_is_taken_is_named(visitor: Path, setting: str) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = str(squatter.getsockname()[1])
        _said(_run_node(visitor, **{setting: port}), 2, port)


def test_second_node_on_one_home_is_refused(shared_network: Consortium) -> None:
    home = shared_network.net.home("auditor").root
    result = run_cli("usufruct-node", "run", "--home", str(home))
    _said(result, 2, "runs on")
    assert shared_network.auditor.content.query("/status")["organisation"] == "auditor"


def test_wrong_passphrase_opens_nothing_and_changes_nothing(visitor: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the passphrase", "utf-8")
    wrong.chmod(0o600)
    before = (visitor / "node.keys").read_bytes()
    result = run_cli("usufruct-node", "run", "--home", str(visitor), "--passphrase-file", str(wrong))
    _said(result, 4, "passphrase")
    assert (visitor / "node.keys").read_bytes() == before


def test_directory_that_is_no_home_and_node_that_does_not_run_say_what_to_do(
    visitor: Path, tmp_path: Path
) -> None:
    _said(run_cli("usufruct", "bundles", "--home", str(tmp_path)), 2, "not a home directory", "init")
    _said(run_cli("usufruct", "bundles", "--home", str(visitor)), 5, "no node runs", "usufruct-node run")


def test_waiting_for_a_job_that_cannot_move_ends_with_its_state(shared_network: Consortium) -> None:
    network = shared_network
    with network.frozen("compute-1"):
        job = network.post()
        begun = time.monotonic()
        refused = error_of(lambda: network.university.wait(job, timeout_s=1.0))
        assert isinstance(refused, JobPendingError) and refused.state == "POSTED"
        assert time.monotonic() - begun < 10
        at_university = ("--home", _home(network))
        _said(run_cli("usufruct", "job", "wait", job.hex(), "--timeout", "0", *at_university), 9, "job wait")
        _said(run_cli("usufruct", "release", job.hex(), *at_university), 9, "still POSTED")
        _said(run_cli("usufruct", "lineage", job.hex(), *at_university), 9, "still POSTED")
    _said(run_cli("usufruct", "job", "wait", job.hex(), *at_university), 0, "mean:")
    at_auditor = ("--home", _home(network, "auditor"))
    _said(run_cli("usufruct", "job", "wait", job.hex()[:16], *at_auditor), 0, "released, for university")
    _said(run_cli("usufruct", "lineage", job.hex(), *at_auditor), 0, "release", "re-checked")
    released = network.university.release_artifact(job).hex()
    _said(run_cli("usufruct", "bundle", "show", released, *at_university), 2, "no registered bundle")
    _said(run_cli("usufruct", "rights", "budget", released, *at_university), 2, "no registered bundle")
