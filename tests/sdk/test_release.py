"""Step 9: exact before noise, sane noise, and an envelope that opens for one partner, one job, one custodian."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_fixture import JOB_ID, ROWS, SmallBundle
from chain_fixture import Organisation
from usufruct import release as release_module
from usufruct.content import dag
from usufruct.errors import (
    ContainerError,
    EnvelopeError,
    InputError,
    ManifestError,
    UnknownKernelError,
    UsufructError,
    VerificationError,
    WorkerError,
    WrongKeyDomainError,
)
from usufruct.he import isolated
from usufruct.he.bfv import SecretKey, generate_secret_key
from usufruct.he.isolated import IsolatedOpener
from usufruct.he.kernels import MOMENTS, MomentsParameters
from usufruct.job import JobInputs, JobParameters
from usufruct.keys import hpke
from usufruct.ledger import Network, typed_data
from usufruct.ledger.abi import CONTRACTS
from usufruct.privacy import MICRO, NoiseLevel, discrete_gaussian, sigma_for
from usufruct.records import Job, JobId, Role
from usufruct.release import (
    ENVELOPE_TYPE,
    PAYLOAD_TYPE,
    Release,
    add_noise,
    decrypt_result,
    open_envelope,
    read_payload,
    seal_payload,
    sigma_micro,
    sign_release,
)

NETWORK = Network(
    profile="embedded",
    chain_id=881812,
    genesis_hash="0x" + "00" * 32,
    rpc_urls=("http://127.0.0.1:1",),
    address_book="0x" + "01" * 20,
    contracts={name: f"0x{number:040x}" for number, name in enumerate(CONTRACTS, start=2)},
    deployed_at_block=0,
)
NORTH = Organisation("north", Role.CUSTODIAN)
SOUTH = Organisation("south", Role.CUSTODIAN)
PARTNER = Organisation("university", Role.PARTNER)
RIVAL = Organisation("rival", Role.PARTNER)


# Decryption.


def decrypted(inputs: JobInputs, blocks: Sequence[bytes], secret: SecretKey) -> np.ndarray:
    """What the custodian's worker opens of a result."""
    with IsolatedOpener(secret) as opener:
        return decrypt_result(inputs, blocks, opener)


@pytest.mark.parametrize(("kernel", "output"), [("sum", "sum"), ("linear", "sum"), ("linear", "rows")])
def test_opened_values_are_exact_before_noise(bundle: SmallBundle, kernel: str, output: str) -> None:
    parameters = bundle.parameters(kernel, output=output)
    opened = decrypted(bundle.inputs(parameters), bundle.result(parameters), bundle.secret)
    assert opened.dtype == np.int64
    assert np.array_equal(opened, bundle.truth(parameters))


def opened_rows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of every block that the custodian asks its worker for, while it goes on."""
    asked: list[list[int]] = []
    honest = IsolatedOpener.open_values

    def watched(opener: IsolatedOpener, block: bytes, rows: Sequence[int]) -> object:
        asked.append(list(rows))
        return honest(opener, block, rows)

    monkeypatch.setattr(IsolatedOpener, "open_values", watched)
    return asked


def test_withdrawn_rows_are_never_opened(bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, asked = bundle.parameters("linear"), opened_rows(monkeypatch)
    opened = decrypted(bundle.inputs(parameters), bundle.result(parameters), bundle.secret)
    assert opened.shape == (ROWS - 2, 2)
    assert {row for rows in asked for row in rows} == set(range(ROWS)) - {3, 20}


def test_an_aggregate_opens_one_coefficient_of_each_block(
    bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, asked = bundle.parameters(), opened_rows(monkeypatch)
    decrypted(bundle.inputs(parameters), bundle.result(parameters), bundle.secret)
    assert asked == [[0], [0]]


def test_worker_that_does_not_work_fails_the_release_which_can_be_tried_again(
    bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = bundle.parameters()
    with monkeypatch.context() as patch:
        patch.setattr(isolated, "_WORKER", "usufruct.he.nowhere")
        with pytest.raises(WorkerError, match="ended with code 1"):
            decrypted(bundle.inputs(parameters), bundle.result(parameters), bundle.secret)
    opened = decrypted(bundle.inputs(parameters), bundle.result(parameters), bundle.secret)
    assert np.array_equal(opened, bundle.truth(parameters))


def test_too_few_or_too_many_result_blocks_are_refused(bundle: SmallBundle) -> None:
    parameters = bundle.parameters()
    inputs, blocks = bundle.inputs(parameters), bundle.result(parameters)
    for wrong in ([], blocks[:1], [*blocks, blocks[0]]):
        with pytest.raises(VerificationError, match="result blocks"):
            decrypted(inputs, wrong, bundle.secret)


def test_foreign_key_a_result_of_another_domain_is_refused(bundle: SmallBundle) -> None:
    parameters = bundle.parameters()
    with pytest.raises(WrongKeyDomainError):
        decrypted(bundle.inputs(parameters), bundle.result(parameters), generate_secret_key())


def test_garbage_in_place_of_a_result_block_is_refused(bundle: SmallBundle) -> None:
    parameters = bundle.parameters()
    blocks = bundle.result(parameters)
    for garbage in (b"", b"\0" * 100, blocks[0][:-1], blocks[0] + b"\0"):
        with pytest.raises(ContainerError):
            decrypted(bundle.inputs(parameters), [garbage, blocks[1]], bundle.secret)


# Noise.


def test_noise_has_mean_zero_and_the_deviation_that_the_budget_buys(bundle: SmallBundle) -> None:
    parameters = bundle.parameters()
    inputs = bundle.inputs(parameters)
    ((outputs, norm),) = parameters.sensitivities(bundle.manifest)
    sigma = sigma_for(500_000, norm)
    drawn = []
    for _ in range(5):
        noised, (told,) = add_noise(np.zeros((200, outputs), dtype=np.int64), inputs, rho_micro=500_000)
        assert (told.outputs, told.sigma) == (outputs, sigma)
        drawn.extend(noised.ravel().tolist())
    n = len(drawn)
    assert abs(np.mean(drawn)) < 5 * sigma / np.sqrt(n)
    assert abs(np.std(drawn) / sigma - 1) < 5 / np.sqrt(2 * n)
    assert len(set(drawn)) > 30


def test_values_outside_the_static_bound_are_clipped_before_noise(bundle: SmallBundle) -> None:
    """Poisoned bundle: whatever the ciphertext holds, it moves a release by no more than the bound."""
    inputs = bundle.inputs(bundle.parameters())
    bound = inputs.bounds.value_bound
    noised, (level,) = add_noise(np.array([10**12, -(10**12)]), inputs, rho_micro=10**15)
    assert np.abs(noised - np.array([bound, -bound])).max() <= 10 * level.sigma + 1


def test_released_values_are_on_a_grid_far_finer_than_the_noise(bundle: SmallBundle) -> None:
    inputs = bundle.inputs(bundle.parameters())
    noised, (level,) = add_noise(np.zeros((200, 2), dtype=np.int64), inputs, rho_micro=500)
    grid, sigma = level.grid, level.sigma
    assert grid > 1 and sigma / 16 < grid <= sigma / 8
    assert not (noised % grid).any()
    # Positive control: the noise itself is on no grid.
    assert any(value % grid for value in discrete_gaussian([0] * 400, sigma))


def test_rows_come_back_in_another_order(bundle: SmallBundle) -> None:
    parameters = bundle.parameters("linear")
    rows = np.arange(2 * (ROWS - 2)).reshape(-1, 2) * 1000 - 20_000
    inputs = replace(
        bundle.inputs(parameters), bounds=replace(bundle.inputs(parameters).bounds, value_bound=10**9)
    )
    noised, _ = add_noise(rows, inputs, rho_micro=10**15)
    nearest = np.rint((noised + 20_000) / 1000).astype(int)
    assert sorted(map(tuple, nearest)) == [(2 * i, 2 * i + 1) for i in range(ROWS - 2)]
    assert nearest[:, 0].tolist() != sorted(nearest[:, 0]), "one chance in 22! of this"


def test_sums_of_moments_are_clipped_to_what_sums_can_be(bundle: SmallBundle) -> None:
    asked = JobParameters(kernel=MOMENTS, parameters=MomentsParameters(columns=(0,)), result_scale=1.0)
    shape = bundle.manifest.shape
    inputs = replace(bundle.inputs(bundle.parameters()), parameters=asked)
    inputs = replace(inputs, bounds=replace(inputs.bounds, value_bound=10**9))
    noised, levels = add_noise(np.array([10**12, 10**12]), inputs, rho_micro=10**15)
    bounds = [shape.n_rows * shape.max_abs, 10**9]
    assert [level.outputs for level in levels] == [1, 1]
    for value, bound, level in zip(noised, bounds, levels, strict=True):
        assert abs(value - bound) <= 10 * level.sigma + level.grid


def test_products_of_moments_have_their_own_noise(bundle: SmallBundle) -> None:
    """A subject moves them further than the sums: with the noise of these they would show it."""
    asked = JobParameters(kernel=MOMENTS, parameters=MomentsParameters(columns=(0,)), result_scale=1.0)
    inputs = replace(bundle.inputs(bundle.parameters()), parameters=asked)
    drawn = []
    for _ in range(5):
        noised, levels = add_noise(np.zeros((200, 2), dtype=np.int64), inputs, rho_micro=500_000)
        drawn.append(noised)
    assert levels[1].sigma > 10 * levels[0].sigma
    for values, level in zip(np.concatenate(drawn).T, levels, strict=True):
        assert abs(np.std(values) / level.sigma - 1) < 5 / np.sqrt(2 * len(values))


def test_noise_that_is_not_for_every_output_is_added_to_none(bundle: SmallBundle) -> None:
    with pytest.raises(VerificationError, match="noise for 2"):
        add_noise(np.zeros(3, dtype=np.int64), bundle.inputs(bundle.parameters()), rho_micro=500)


@given(st.floats(1e-3, 1e6))
def test_the_logged_noise_scale_is_never_below_the_true_one(sigma: float) -> None:
    logged = sigma_micro([NoiseLevel(2, sigma / 2, 1), NoiseLevel(1, sigma, 1)])
    assert sigma <= logged / MICRO * (1 + 1e-12)
    assert logged - sigma * MICRO < 1 + 1e-3


# The envelope.


@pytest.fixture(scope="module")
def job(bundle: SmallBundle) -> Job:
    return bundle.job(bundle.parameters())


@pytest.fixture(scope="module")
def envelope(bundle: SmallBundle, job: Job) -> bytes:
    return sealed(bundle, job)


def sealed(bundle: SmallBundle, job: Job, **changes: object) -> bytes:
    parameters = bundle.parameters("linear") if job.request.row_level else bundle.parameters()
    inputs = bundle.inputs(parameters)
    noised, levels = add_noise(bundle.truth(parameters), inputs, rho_micro=job.request.rho_micro)
    given_ = {"network": NETWORK, "recipient": PARTNER.record, "signing_key": NORTH.node_key} | changes
    network = given_.pop("network")
    box = seal_payload(
        network.chain_id,
        JOB_ID,
        job,
        inputs,
        noised,
        levels,
        recipient_key=given_["recipient"].hpke_key,
    )
    return sign_release(network, JOB_ID, job, box, sigma_micro(levels), signing_key=given_["signing_key"])


def opened(job: Job, data: bytes, **changes: object) -> Release:
    given_ = {"custodian": NORTH.record, "hpke_private": PARTNER.hpke_private} | changes
    network, job_id = given_.pop("network", NETWORK), given_.pop("job_id", JOB_ID)
    payload = open_envelope(network, job_id, job, data, **given_)
    return read_payload(data, payload, job_id, job.request)


def test_the_partner_opens_what_the_custodian_sealed(bundle: SmallBundle, job: Job, envelope: bytes) -> None:
    found = opened(job, envelope)
    truth = bundle.truth(bundle.parameters())
    assert (found.kernel, found.count, found.rho_micro) == ("sum", ROWS - 2, 500_000)
    assert np.abs(found.values - truth).max() <= 12 * found.sigma
    assert np.allclose(found.mean(), found.values / (100 * found.count))
    assert np.abs(found.mean() - truth / (100 * found.count)).max() <= found.mean_error(1e-12)
    assert not found.row_level


def test_row_level_releases_have_one_row_per_consenting_row(bundle: SmallBundle) -> None:
    job = bundle.job(bundle.parameters("linear"))
    found = opened(job, sealed(bundle, job))
    assert found.values.shape == (ROWS - 2, 2)
    assert found.row_level
    truth = bundle.truth(bundle.parameters("linear")).sum(axis=0) / (100 * found.count)
    assert np.abs(found.mean() - truth).max() <= found.mean_error(1e-12)


def test_only_the_partner_opens_it(job: Job, envelope: bytes) -> None:
    for key in (RIVAL.hpke_private, NORTH.hpke_private):
        with pytest.raises(EnvelopeError):
            opened(job, envelope, hpke_private=key)


def test_another_custodians_signature_is_refused(bundle: SmallBundle, job: Job, envelope: bytes) -> None:
    with pytest.raises(VerificationError, match="signed by"):
        opened(job, envelope, custodian=SOUTH.record)
    for forger in (SOUTH.node_key, NORTH.authority_key, PARTNER.node_key):
        with pytest.raises(VerificationError, match="signed by"):
            opened(job, sealed(bundle, job, signing_key=forger))


def test_signature_replay_for_another_job_result_budget_or_network_is_refused(
    job: Job, envelope: bytes
) -> None:
    with pytest.raises(VerificationError, match="another job"):
        opened(job, envelope, job_id=JobId(b"\x0c" * 32))
    dearer = replace(job, request=replace(job.request, rho_micro=1))
    for changed in (replace(job, result_digest=b"\x0c" * 32), dearer):
        with pytest.raises(VerificationError):
            opened(changed, envelope)
    moved = NETWORK.model_copy(update={"chain_id": 5})
    with pytest.raises(VerificationError):
        opened(job, envelope, network=moved)


def test_other_values_under_the_custodians_signature_are_refused(
    bundle: SmallBundle, job: Job, envelope: bytes
) -> None:
    """Anybody can encrypt to the partner."""
    record, forged = (dag.decode_map(data) for data in (envelope, sealed(bundle, job)))
    assert record["sealed"] != forged["sealed"] and record["sigma_micro"] == forged["sigma_micro"]
    with pytest.raises(VerificationError, match="signed by"):
        opened(job, dag.encode(record | {"sealed": forged["sealed"]}))


def test_what_is_sealed_opens_for_its_own_job_and_network_only_whoever_signs_it(
    job: Job, envelope: bytes
) -> None:
    record = dag.decode_map(envelope)
    elsewhere = NETWORK.model_copy(update={"chain_id": 5})
    for network, job_id in ((elsewhere, JOB_ID), (NETWORK, JobId(b"\x0c" * 32))):
        again = sign_release(
            network, job_id, job, record["sealed"], record["sigma_micro"], signing_key=NORTH.node_key
        )
        with pytest.raises(EnvelopeError):
            opened(job, again, network=network, job_id=job_id)


@pytest.mark.parametrize("field", ["type", "job", "sealed", "sigma_micro", "signature"])
def test_a_tampered_byte_in_any_field_is_refused(job: Job, envelope: bytes, field: str) -> None:
    record = dag.decode_map(envelope)
    value = record[field]
    if isinstance(value, bytes):
        forged = [
            value[:i] + bytes([value[i] ^ 1]) + value[i + 1 :] for i in {0, len(value) // 2, len(value) - 1}
        ]
    else:
        forged = [value + 1] if isinstance(value, int) else [value + "0"]
    for changed in forged:
        with pytest.raises(UsufructError):
            opened(job, dag.encode(record | {field: changed}))
    with pytest.raises(ManifestError):
        opened(job, dag.encode({key: kept for key, kept in record.items() if key != field}))
    with pytest.raises(ManifestError):
        opened(job, dag.encode(record | {"extra": 1}))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_or_missing_byte_of_the_envelope_is_refused(
    job: Job, envelope: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(envelope) - 1))
    flipped = envelope[:at] + bytes([envelope[at] ^ data.draw(st.integers(1, 255))]) + envelope[at + 1 :]
    for forged in (flipped, envelope[:at], envelope + b"\0"):
        with pytest.raises(UsufructError):
            opened(job, forged)


PAYLOAD = {
    "type": PAYLOAD_TYPE,
    "salt": bytes(32),
    "job": bytes(JOB_ID),
    "kernel": "sum",
    "values": np.array([1, 2], dtype="<i8").tobytes(),
    "columns": 0,
    "count": 22,
    "result_scale": 100.0,
    "noise": [[2, 5, 1]],
    "rho_micro": 500_000,
}


def signed(job: Job, payload: object, *, committed: object = None) -> bytes:
    """What a custodian that does not keep to the format could seal and sign."""
    data = dag.encode(payload)
    box = hashlib.sha256(data if committed is None else dag.encode(committed)).digest() + hpke.seal_to(
        PARTNER.record.hpke_key, data, release_module._info(NETWORK.chain_id, JOB_ID)
    )
    values = release_module._signed_values(JOB_ID, job, box, 5)
    domain = release_module._domain(NETWORK)
    signature = typed_data.sign(NORTH.node_key, typed_data.RELEASE, values, **domain)
    return dag.encode(
        {"type": ENVELOPE_TYPE, "job": bytes(JOB_ID), "sealed": box, "sigma_micro": 5, "signature": signature}
    )


def test_a_payload_as_it_should_be_opens(job: Job) -> None:
    assert opened(job, signed(job, PAYLOAD)).values.tolist() == [1, 2]
    rows = PAYLOAD | {"columns": 1, "count": 2, "noise": [[1, 5, 1]]}
    of_rows = replace(job, request=replace(job.request, row_level=True))
    assert opened(of_rows, signed(of_rows, rows)).values.tolist() == [[1], [2]]
    for asked, payload in ((job, rows), (of_rows, PAYLOAD)):
        with pytest.raises(ManifestError, match="of rows where the job asks for none"):
            opened(asked, signed(asked, payload))


@pytest.mark.parametrize(
    "change",
    [
        *({name: ...} for name in PAYLOAD),
        {"extra": 1},
        {"type": "usufruct/release/1"},
        {"salt": bytes(31)},
        {"salt": "0" * 32},
        {"job": bytes(32)},
        {"kernel": 1},
        {"kernel": "linear"},
        {"kernel": "sum[/x]"},
        {"kernel": "sum\x1b[2J"},
        {"values": b""},
        {"values": [1, 2]},
        {"values": "12345678"},
        {"values": bytes(15)},
        {"values": bytes(17)},
        {"columns": -1},
        {"columns": True},
        {"columns": 3},
        {"columns": 1},
        {"count": 0},
        {"count": -22},
        {"count": 22.0},
        {"result_scale": 0.0},
        {"result_scale": -1.0},
        {"result_scale": 100},
        {"noise": []},
        {"noise": {}},
        {"noise": [[2, 5]]},
        {"noise": [[2, 5, 1, 1]]},
        {"noise": [[2, 4, 1]]},
        {"noise": [[0, 5, 1], [2, 5, 1]]},
        {"noise": [[1, 5, 1], [1, 5, 1]]},
        {"noise": [[1, 5, 1]]},
        {"noise": [[3, 5, 1]]},
        {"noise": [[1 << 60, 5, 1]]},
        {"noise": [[2, 5, 0]]},
        {"noise": [[2, 5, 2]]},
        {"noise": [[2, 5, 1.0]]},
        {"noise": [[2, 5, True]]},
        {"noise": [[2, 5, 1 << 63]]},
        {"noise": [[2, 5, (1 << 64) - 1]]},
        {"rho_micro": 1},
    ],
    ids=repr,
)
def test_a_malformed_payload_is_refused_even_when_the_custodian_signed_it(job: Job, change: dict) -> None:
    payload = {key: value for key, value in (PAYLOAD | change).items() if value is not ...}
    with pytest.raises((ManifestError, VerificationError)):
        opened(job, signed(job, payload))


def test_a_custodian_cannot_commit_to_other_values_than_it_seals(job: Job) -> None:
    other = PAYLOAD | {"values": np.array([1, 3], dtype="<i8").tobytes()}
    with pytest.raises(VerificationError, match="committed to another payload"):
        opened(job, signed(job, PAYLOAD, committed=other))


def test_what_the_partner_discloses_is_what_was_sealed_and_nothing_else(job: Job, envelope: bytes) -> None:
    payload = open_envelope(
        NETWORK, JOB_ID, job, envelope, custodian=NORTH.record, hpke_private=PARTNER.hpke_private
    )
    found = read_payload(envelope, payload, JOB_ID, job.request)
    assert found.values.tolist() == opened(job, envelope).values.tolist()
    record = dag.decode_map(payload)
    better = dag.encode(record | {"values": bytes(len(record["values"]))})
    for forged in (better, payload[:-1], b"", dag.encode(record | {"salt": bytes(32)})):
        with pytest.raises(VerificationError, match="committed to another payload"):
            read_payload(envelope, forged, JOB_ID, job.request)
    with pytest.raises(VerificationError, match="another job"):
        read_payload(envelope, payload, JobId(b"\x0c" * 32), job.request)


def test_two_seals_of_the_same_values_commit_to_different_words(bundle: SmallBundle, job: Job) -> None:
    """So that nobody can try out values against a commitment."""
    first, second = (dag.decode_map(sealed(bundle, job))["sealed"][:32] for _ in range(2))
    assert first != second


def test_a_release_of_another_kernel_than_the_jobs_is_refused(bundle: SmallBundle, job: Job) -> None:
    with pytest.raises(VerificationError, match="another kernel than the job's, sum"):
        opened(job, signed(job, PAYLOAD | {"kernel": "linear"}))
    unknown = replace(job, request=replace(job.request, kernel_id=b"\x0c" * 32))
    with pytest.raises(UnknownKernelError):
        opened(unknown, signed(unknown, PAYLOAD))


def moments(job: Job, **changes: object) -> tuple[Job, dict[str, object]]:
    """A job for the moments of two columns, and what its custodian seals."""
    values = np.array([300, 500, 1200, 1900, 3000], dtype="<i8").tobytes()
    payload = PAYLOAD | {"kernel": "moments", "values": values, "noise": [[2, 1, 1], [3, 5, 1]]}
    asked = replace(job, request=replace(job.request, kernel_id=MOMENTS.kernel_id))
    return asked, payload | {"count": 100, "result_scale": 10.0} | changes


def test_moments_are_read_as_means_and_covariances(job: Job) -> None:
    found = opened(*_signed_moments(job))
    assert found.mean().tolist() == [0.3, 0.5]
    assert np.allclose(found.natural(), [30, 50, 12, 19, 30])
    means = np.array([3.0, 5.0])
    products = np.array([[12.0, 19.0], [19.0, 30.0]])
    assert np.allclose(found.covariances(), (products - np.outer(means, means)) / 100)
    assert found.sigma == 5e-6
    # So little noise moves an integer by one at most: 0.001 of a mean of sums, 0.0001 of one of products.
    assert found.mean_error() == pytest.approx(0.001)
    assert np.allclose(
        found.covariance_errors(), 0.0001 + 0.001 * np.array([[0.6, 0.8], [0.8, 1.0]]) + 0.001**2
    )
    single = opened(job, signed(job, PAYLOAD))
    with pytest.raises(InputError, match="no covariances"):
        single.covariances()
    with pytest.raises(InputError, match="no covariances"):
        single.covariance_errors()


@pytest.mark.parametrize(
    "change",
    [
        {"noise": [[5, 5, 1]]},
        {"noise": [[3, 1, 1], [2, 5, 1]]},
        {"noise": [[1, 1, 1], [4, 5, 1]]},
        {"noise": [[2, 1, 1], [3, 4, 1]]},
        {"noise": [[2, 1, 7], [3, 5, 1]]},
        {"noise": [[2, 1, 1], [2, 5, 1], [1, 5, 1]]},
        {"noise": [[4, 1, 1], [1, 5, 1]]},
        {"values": bytes(8 * 200_000), "noise": [[199_999, 1, 1], [1, 5, 1]]},
        {"columns": 5, "count": 1},
        {"result_scale": 1e200},
        {"result_scale": 1e-170},
        {"result_scale": 5e-324},
    ],
    ids=repr,
)
def test_moments_with_noise_that_does_not_fit_are_refused(job: Job, change: dict) -> None:
    with pytest.raises((ManifestError, VerificationError)):
        opened(*_signed_moments(job, **change))


def _signed_moments(job: Job, **changes: object) -> tuple[Job, bytes]:
    asked, payload = moments(job, **changes)
    return asked, signed(asked, payload)


def test_a_payload_that_is_no_map_is_refused(job: Job) -> None:
    for payload in ([], None, 1, "text"):
        with pytest.raises(ManifestError):
            opened(job, signed(job, payload))


def test_two_envelopes_of_one_release_share_no_ciphertext(bundle: SmallBundle, job: Job) -> None:
    make = partial(sealed, bundle, job)
    assert dag.decode_map(make())["sealed"] != dag.decode_map(make())["sealed"]
