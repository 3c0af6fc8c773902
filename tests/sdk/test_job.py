"""Step 7: every check that executor, verifiers and custodian make for themselves, and posting on a real chain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_fixture import MODEL, ROWS, SCOPE, SmallBundle
from chain_fixture import FAR, TERMS, Consortium
from rpc_door import door_to
from usufruct.consent import ConsentStatus
from usufruct.content import Cid, dag
from usufruct.errors import (
    InputError,
    JobDeniedError,
    JobFailedError,
    JobPendingError,
    KernelBoundError,
    KernelParameterError,
    ManifestError,
    PrivacyError,
    ReleaseRefusedError,
    TransactionLostError,
    TransactionRevertedError,
    UnknownKernelError,
    UsufructError,
    WrongKeyDomainError,
)
from usufruct.he.kernels import BLIND, KERNELS, MOMENTS, BlindParameters, MomentsParameters
from usufruct.job import (
    FeatureBundle,
    JobParameters,
    check_job,
    estimate,
    job_parameters,
    post_job,
    wait_for_job,
)
from usufruct.ledger import Ledger, Sender
from usufruct.ledger.endpoint import Endpoint
from usufruct.ledger.gas import job_gas
from usufruct.privacy import noise_levels, products_sensitivity, sigma_for
from usufruct.records import ArtifactId, GrantId, JobId, JobState, KeyId, label


@dataclass
class Kept:
    """Stands where the organisation's node stands: keeps what it is given."""

    records: list[tuple[str, object]] = field(default_factory=list)

    def put_record(self, kind: str, record: object) -> Cid:
        self.records.append((kind, record))
        return dag.cid_of(record)


def featured(bundle: SmallBundle, artifact_id: ArtifactId = ArtifactId(b"\1" * 32)) -> FeatureBundle:
    return FeatureBundle(
        artifact_id=artifact_id,
        artifact=bundle.artifact,
        steward="north",
        manifest=bundle.manifest,
        policy=bundle.policy,
    )


# What everybody checks.


def checked(bundle: SmallBundle, parameters: JobParameters, **changes: object) -> object:
    request = changes.pop("request", None) or bundle.request(parameters)
    given_ = {
        "manifest": bundle.manifest,
        "policy": bundle.policy,
        "status": bundle.status,
        "parameters": parameters,
        "min_cohort": 10,
    }
    artifact = changes.pop("artifact", bundle.artifact)
    return check_job(request, artifact, **(given_ | changes))


def test_a_sound_job_passes_with_the_mask_of_consenting_rows(bundle: SmallBundle) -> None:
    inputs = checked(bundle, bundle.parameters("linear"))
    assert np.flatnonzero(~inputs.mask).tolist() == [3, 20]
    assert inputs.bounds.value_bound <= inputs.bounds.value_limit


REFUSALS = {
    "CONSENT_EPOCH_STALE": lambda b: {"status": replace(b.status, epoch=2)},
    "PURPOSE_NOT_GRANTED": lambda b: {"policy": replace(b.policy, purposes=("other",))},
    "KERNEL_NOT_GRANTED": lambda b: {"policy": replace(b.policy, kernels=("sum",))},
    "ROW_LEVEL_NOT_GRANTED": lambda b: {"policy": replace(b.policy, row_level=False)},
    "BUDGET_EXCEEDED": lambda b: {"policy": replace(b.policy, max_rho_micro_per_job=499_999)},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_the_policy_does_not_allow_is_refused_by_name(bundle: SmallBundle, reason: str) -> None:
    with pytest.raises(ReleaseRefusedError) as caught:
        checked(bundle, bundle.parameters("linear"), **REFUSALS[reason](bundle))
    assert caught.value.reason == reason


@pytest.mark.parametrize("bound", ["grant", "policy"])
def test_a_cohort_one_below_either_minimum_is_refused_and_one_at_it_is_not(
    bundle: SmallBundle, bound: str
) -> None:
    def ask(minimum: int) -> object:
        if bound == "grant":
            return checked(bundle, bundle.parameters(), min_cohort=minimum)
        return checked(bundle, bundle.parameters(), policy=replace(bundle.policy, min_cohort=minimum))

    ask(ROWS - 2)
    with pytest.raises(ReleaseRefusedError, match="COHORT_TOO_SMALL"):
        ask(ROWS - 1)


def test_the_cohort_counts_subjects_and_not_their_rows(bundle: SmallBundle) -> None:
    repeated = replace(bundle.manifest, subjects=np.array([0, 1] * (ROWS // 2)))
    with pytest.raises(ReleaseRefusedError, match="COHORT_TOO_SMALL"):
        checked(bundle, bundle.parameters(), manifest=repeated, min_cohort=3)
    checked(
        bundle,
        bundle.parameters(),
        manifest=repeated,
        min_cohort=2,
        policy=replace(bundle.policy, min_cohort=2),
    )


def test_noise_covers_all_rows_of_the_subject_that_has_most(bundle: SmallBundle) -> None:
    one_each, of_three = bundle.manifest, np.array([0, 0, 0, *range(1, ROWS - 2)])
    for asked in (
        bundle.parameters(),
        bundle.parameters("linear"),
        JobParameters(kernel=MOMENTS, parameters=MomentsParameters(columns=(0, 1)), result_scale=1.0),
    ):
        alone = asked.sensitivities(one_each)
        together = asked.sensitivities(replace(one_each, subjects=of_three))
        assert together == tuple((outputs, 3 * norm) for outputs, norm in alone)


def test_nobody_consenting_is_refused(bundle: SmallBundle) -> None:
    nobody = replace(bundle.status, bits=b"\xff" * 3)
    with pytest.raises(ReleaseRefusedError, match="COHORT_TOO_SMALL"):
        checked(bundle, bundle.parameters(), status=nobody, min_cohort=1)


MISFITS = {
    "kernel": (
        KernelParameterError,
        lambda b, p: {"request": b.request(p, kernel_id=KERNELS["sum"].kernel_id)},
    ),
    "row level": (KernelParameterError, lambda b, p: {"request": b.request(p, row_level=False)}),
    "key domain": (
        WrongKeyDomainError,
        lambda b, p: {"artifact": replace(b.artifact, key_id=KeyId(bytes(32)))},
    ),
    "scope of the bundle": (ManifestError, lambda b, p: {"manifest": replace(b.manifest, scope="other")}),
    "scope on the ledger": (
        ManifestError,
        lambda b, p: {"artifact": replace(b.artifact, consent_scope=label("other"))},
    ),
    "scope of the status": (ManifestError, lambda b, p: {"status": replace(b.status, scope="other")}),
}


@pytest.mark.parametrize("what", MISFITS)
def test_blocks_that_do_not_fit_each_other_are_refused(bundle: SmallBundle, what: str) -> None:
    error, change = MISFITS[what]
    parameters = bundle.parameters("linear")
    with pytest.raises(error):
        checked(bundle, parameters, **change(bundle, parameters))


def test_a_purpose_on_the_ledger_that_the_policy_does_not_name_is_refused(bundle: SmallBundle) -> None:
    parameters = bundle.parameters()
    with pytest.raises(ReleaseRefusedError, match="PURPOSE_NOT_GRANTED"):
        checked(bundle, parameters, request=bundle.request(parameters, purpose=b"\xff" * 32))


def test_a_model_that_could_overflow_is_refused_by_everybody_and_before_posting(bundle: SmallBundle) -> None:
    huge = {"output": "rows", "weights": [[10**6, 10**6]], "bias": [0]}
    with pytest.raises(KernelBoundError):
        job_parameters(featured(bundle), "linear", huge)
    with pytest.raises(KernelBoundError):
        checked(bundle, bundle.parameters("linear", **huge))
    with pytest.raises(KernelBoundError):
        estimate(featured(bundle), bundle.parameters("linear", **huge), rho_micro=1)


@pytest.mark.parametrize(
    ("kernel", "parameters", "error"),
    [
        ("cube", {}, UnknownKernelError),
        ("sum", {"weights": []}, KernelParameterError),
        ("sum", [1], KernelParameterError),
        ("linear", {}, KernelParameterError),
        ("linear", MODEL | {"weights": [[1, 2, 3]], "bias": [0]}, KernelParameterError),
        ("linear", MODEL | {"weights": [[1.5, 2]], "bias": [0]}, KernelParameterError),
    ],
    ids=repr,
)
def test_parameters_that_do_not_fit_are_refused(
    bundle: SmallBundle, kernel: str, parameters: dict, error: type
) -> None:
    with pytest.raises(error):
        job_parameters(featured(bundle), kernel, parameters)


def test_an_estimate_says_what_noise_a_budget_buys(bundle: SmallBundle) -> None:
    parameters = job_parameters(featured(bundle), "sum", {})
    told = estimate(featured(bundle), parameters, rho_micro=500_000)
    n_features = bundle.manifest.shape.n_features
    assert parameters.sensitivities(bundle.manifest) == ((n_features, told.sensitivity),)
    assert told.product_sigma == 0
    assert told.sigma == pytest.approx(sigma_for(500_000, told.sensitivity) / 100 / ROWS)
    assert estimate(featured(bundle), parameters, rho_micro=2_000_000).sigma == pytest.approx(told.sigma / 2)
    assert told.value_bound <= told.value_limit
    assert told.margin_bits >= 8
    assert (told.quantisation_error, told.gas) == (0.5 / 100, job_gas(3))
    assert told.read_bytes == sum(map(len, bundle.blocks))
    assert told.result_bytes == sum(map(len, bundle.result(parameters)))
    assert told.seconds > 0
    coarse = estimate(featured(bundle), parameters, rho_micro=500_000, model_error=0.25)
    assert coarse.quantisation_error == told.quantisation_error + 0.25


def test_kernel_without_a_proven_sensitivity_can_release_nothing(bundle: SmallBundle) -> None:
    """Noise that covers some other kernel's result would be no protection at all."""
    asked = MomentsParameters(columns=(0, 1))
    known = JobParameters(kernel=MOMENTS, parameters=asked, result_scale=1.0)
    norm = bundle.manifest.shape.max_l2
    assert known.sensitivities(bundle.manifest) == ((2, norm), (3, products_sensitivity(norm)))
    blind = BlindParameters(queries=(bytes(32),), max_abs=1, max_l2=1)
    unknown = replace(known, kernel=BLIND, parameters=blind)
    with pytest.raises(KernelParameterError, match="no proven sensitivity"):
        unknown.sensitivities(bundle.manifest)


def test_a_job_whose_noise_cannot_be_made_is_refused_before_anything_is_computed_or_opened(
    bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partner that does not post through this library can ask for a millionth of rho, which has no half."""

    def divided(_: int, moved: object) -> object:
        return noise_levels(1, [*moved, *moved])

    monkeypatch.setattr("usufruct.job.noise_levels", divided)
    with pytest.raises(PrivacyError, match="cannot be divided"):
        bundle.inputs(bundle.parameters())


# The block of parameters.


def test_job_parameters_come_back_from_their_record(bundle: SmallBundle) -> None:
    for kernel in ("sum", "linear"):
        given_ = bundle.parameters(kernel)
        assert JobParameters.from_record(dag.decode_map(dag.encode(given_.to_record()))) == given_


@pytest.mark.parametrize(
    "change",
    [
        {"type": "usufruct/parameters/2"},
        {"kernel": ...},
        {"kernel": "sum"},
        {"kernel": bytes(32)},
        {"kernel": b""},
        {"parameters": ...},
        {"parameters": []},
        {"parameters": {"weights": []}},
        {"result_scale": ...},
        {"result_scale": 100},
        {"result_scale": True},
        {"result_scale": 0.0},
        {"result_scale": -1.0},
        {"result_scale": float("nan")},
        {"result_scale": float("inf")},
        {"extra": None},
    ],
    ids=repr,
)
def test_a_malformed_record_of_parameters_is_refused(bundle: SmallBundle, change: dict) -> None:
    record = bundle.parameters("linear").to_record() | change
    with pytest.raises((ManifestError, UnknownKernelError, KernelParameterError)):
        JobParameters.from_record({key: value for key, value in record.items() if value is not ...})


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["output", "weights", "bias", "x"]),
        st.one_of(
            st.none(),
            st.integers(),
            st.text(max_size=4),
            st.floats(),
            st.lists(st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=3)), max_size=3),
        ),
    )
)
def test_hostile_model_parameters_never_leave_the_error_tree(bundle: SmallBundle, parameters: dict) -> None:
    try:
        job_parameters(featured(bundle), "linear", parameters)
    except UsufructError:
        return
    assert set(parameters) == {"output", "weights", "bias"}


# Posting, on a chain.


@dataclass
class Shared:
    net: Consortium
    bundle: FeatureBundle
    grant_id: GrantId


@pytest.fixture(scope="module")
def shared(consortium: Consortium, bundle: SmallBundle) -> Shared:
    scope = label(SCOPE)
    artifact_id = consortium.bundle("north", consortium.key_domain("north"), scope=scope)
    consortium.epoch("north", scope)
    kernels = tuple(kernel.kernel_id for kernel in KERNELS.values())
    grant_id = consortium.granted("university", "north", artifact_id, scope, kernels=kernels, expires_at=FAR)
    return Shared(consortium, featured(bundle, artifact_id), grant_id)


def post(shared: Shared, parameters: JobParameters, **changes: object) -> JobId:
    given_ = {"grant_id": shared.grant_id, "rho_micro": 1000}
    ledger = shared.net["university"].ledger
    return post_job(ledger, Kept(), shared.bundle, parameters, **(given_ | changes))


def test_a_posted_job_fixes_everything_by_hash(shared: Shared, bundle: SmallBundle) -> None:
    node, parameters = Kept(), bundle.parameters("linear", output="sum")
    ledger = shared.net["university"].ledger
    job_id = post_job(ledger, node, shared.bundle, parameters, grant_id=shared.grant_id, rho_micro=77)
    job = shared.net.reader.job(job_id)
    assert job.state == JobState.POSTED
    assert [kind for kind, _ in node.records] == ["parameters"]
    assert job.request.parameters_digest == dag.cid_of(parameters.to_record()).digest
    assert (job.request.kernel_id, job.request.rho_micro) == (parameters.kernel.kernel_id, 77)
    assert job.request.purpose == label(SCOPE)


def test_the_same_request_twice_gives_a_typed_error_and_one_job(shared: Shared, bundle: SmallBundle) -> None:
    parameters = bundle.parameters()
    first = post(shared, parameters, nonce=7)
    before = len(shared.net.events(["JobPosted", "JobDenied"]))
    with pytest.raises(TransactionRevertedError, match="JobLedgerDuplicate") as caught:
        post(shared, parameters, nonce=7)
    assert caught.value.values == {"jobId": first}
    assert len(shared.net.events(["JobPosted", "JobDenied"])) == before
    # Every field counts: what differs in any of them is another job.
    other = post(shared, parameters, nonce=7, rho_micro=2000)
    assert [shared.net.reader.job(job).request.rho_micro for job in (first, other)] == [1000, 2000]


@pytest.mark.parametrize("how", [TransactionLostError, KeyboardInterrupt])
def test_posting_again_what_was_given_up_on_its_way_is_the_same_job(
    shared: Shared,
    bundle: SmallBundle,
    chain_url: str,
    monkeypatch: pytest.MonkeyPatch,
    how: type[BaseException],
) -> None:
    parameters, network = bundle.parameters(), shared.net.network
    with door_to(chain_url) as door:
        endpoint = Endpoint(door.url)
        key = shared.net["university"].authority_key
        sender = Sender(
            endpoint, network.chain_id, key, patience=0.5 if how is TransactionLostError else 30.0
        )
        ledger = Ledger(network, endpoint, sender)

        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        def attempt(**changes: Any) -> JobId:
            given_ = {"grant_id": shared.grant_id, "rho_micro": 1234}
            return post_job(ledger, Kept(), shared.bundle, parameters, **(given_ | changes))

        before = len(shared.net.events(["JobPosted"]))
        with monkeypatch.context() as patch:
            if how is KeyboardInterrupt:
                patch.setattr(sender._head, "not_older_than", interrupt)
            door.keep_from_being_final()
            with pytest.raises(how):
                attempt()
        door.open()
        sender._patience = 30.0
        again, other = attempt(), attempt(rho_micro=1235)
        posted = [event.args["jobId"] for event in shared.net.events(["JobPosted"])][before:]
        assert posted == [again, other]
        # Once its outcome was told, the same request is meant anew.
        assert attempt() not in posted


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("CONSENT_EPOCH_STALE", {"consent_epoch": 99}),
        ("GRANT_UNKNOWN", {"grant_id": GrantId(bytes(32))}),
        ("PURPOSE_NOT_GRANTED", {"purpose": label("other")}),
        ("BUDGET_EXCEEDED", {"rho_micro": TERMS.rho_micro + 1}),
    ],
)
def test_a_denial_is_raised_with_the_reason_that_stands_on_the_ledger(
    shared: Shared, bundle: SmallBundle, reason: str, changes: dict
) -> None:
    with pytest.raises(JobDeniedError) as caught:
        post(shared, bundle.parameters(), **changes)
    assert caught.value.reason == reason
    job = shared.net.reader.job(JobId(caught.value.job_id))
    assert (job.state, job.refusal.name) == (JobState.DENIED, reason)


@pytest.mark.parametrize(
    "changes",
    [{"rho_micro": 0}, {"rho_micro": -5}, {"rho_micro": 1 << 64}, {"nonce": 1 << 64}, {"nonce": -1}],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_is_sent(
    shared: Shared, bundle: SmallBundle, changes: dict
) -> None:
    before = len(shared.net.events(["JobPosted", "JobDenied"]))
    with pytest.raises(InputError):
        post(shared, bundle.parameters(), **changes)
    assert len(shared.net.events(["JobPosted", "JobDenied"])) == before


def test_waiting_for_a_job_that_cannot_end_well_raises(shared: Shared, bundle: SmallBundle) -> None:
    reader, states = shared.net.reader, []
    waiting = post(shared, bundle.parameters())
    with pytest.raises(JobPendingError, match="still POSTED") as caught:
        wait_for_job(reader, waiting, timeout_s=0.3, poll_s=0.05, on_state=states.append)
    assert states == [JobState.POSTED]
    assert "usufruct release" in caught.value.hint
    with pytest.raises(InputError, match="knows no job"):
        wait_for_job(reader, JobId(bytes(32)), timeout_s=5)
    with pytest.raises(JobDeniedError) as denied:
        post(shared, bundle.parameters(), consent_epoch=99)
    with pytest.raises(JobFailedError, match=r"DENIED \(CONSENT_EPOCH_STALE\)"):
        wait_for_job(reader, JobId(denied.value.job_id), timeout_s=5)


def test_an_empty_status_leaves_nobody(bundle: SmallBundle) -> None:
    nobody = ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=b"")
    with pytest.raises(ReleaseRefusedError, match="COHORT_TOO_SMALL"):
        checked(bundle, bundle.parameters(), status=nobody, min_cohort=1)


def test_distances_are_told_in_squares_of_natural_units(bundle: SmallBundle) -> None:
    asked = job_parameters(featured(bundle), "distance", {"centroids": [[20, 0]], "norm": [[1, 7]]})
    assert asked.result_scale == 100.0**2
    assert job_parameters(featured(bundle), "linear", MODEL).result_scale == 100.0


def test_an_estimate_reckons_with_those_that_consent(bundle: SmallBundle) -> None:
    parameters = job_parameters(featured(bundle), "sum", {})
    everybody = estimate(featured(bundle), parameters, rho_micro=500_000)
    told = estimate(featured(bundle), parameters, rho_micro=500_000, status=bundle.status)
    assert told.sigma == pytest.approx(everybody.sigma * ROWS / (ROWS - 2))
