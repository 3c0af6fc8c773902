"""Step 7, job: what a job consists of, the checks that everybody makes on it, and posting it.

Executor, verifiers and custodian each call `check_job`, so that none has to trust another's admission.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec
from usufruct.content.node import NodeContent
from usufruct.errors import (
    DeniedError,
    InputError,
    JobDeniedError,
    JobFailedError,
    JobPendingError,
    KernelParameterError,
    LedgerError,
    ManifestError,
    ReleaseRefusedError,
    WrongKeyDomainError,
)
from usufruct.he.cost import cost_of
from usufruct.he.kernels import (
    FEDSUM,
    Bounds,
    DistanceParameters,
    FedsumParameters,
    Kernel,
    KernelParameters,
    MomentsParameters,
    SumParameters,
    kernel_by_id,
    kernel_by_name,
    linear_form,
    n_pairs,
)
from usufruct.he.quantise import rounding_bound
from usufruct.ledger import Ledger
from usufruct.ledger.gas import job_gas
from usufruct.privacy import (
    MICRO,
    NoiseLevel,
    linear_sensitivity,
    noise_levels,
    products_sensitivity,
    sum_sensitivity,
)
from usufruct.publish import BundleManifest, read_manifest
from usufruct.records import (
    FINAL_JOB_STATES,
    REFUSAL_HINTS,
    Artifact,
    ArtifactId,
    GrantId,
    Job,
    JobId,
    JobRequest,
    JobState,
    Refusal,
    unlabel,
)
from usufruct.register import Policy, registered_bundle

PARAMETERS_TYPE = "usufruct/parameters/1"

MAX_RELEASED_VALUES = 200_000
"""A release is one block of 2 MiB, 8 bytes a value."""

MAX_RESULT_BLOCKS = 20_000
"""A result's manifest is one block; a result block has 28 or 55 kB, so this bounds what a job makes others store."""


MIN_SCALE, MAX_SCALE = 2.0**-64, 2.0**64
"""Integer units per 1.0 of a result: no results of 64 bits need more, and their squares are numbers still."""

VERIFIERS = 3
"""Verifiers that answer a usual job: two have to agree, and one may fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParameters:
    """Kernel and parameters of a job, as they stand in the block that the ledger cites."""

    kernel: Kernel
    parameters: KernelParameters
    result_scale: float
    """Integer units per 1.0 of a result."""

    @property
    def row_level(self) -> bool:
        """Whether the result has one value per row."""
        return self.parameters.row_level

    def validate(self, manifest: BundleManifest) -> Bounds:
        """Prove the worst case of values, noise and sizes, before anything is sent, computed or decrypted.

        Raises
        ------
        KernelParameterError, KernelBoundError
        """
        shape = manifest.shape
        if self.kernel.of_contributions != manifest.of_contributions:
            raise KernelParameterError(
                f"kernel {self.kernel.name} is for"
                f" {'contributions of several members' if self.kernel.of_contributions else 'rows of one steward'}",
                hint="`usufruct bundle show` lists the kernels that the bundle's policy allows",
            )
        if isinstance(self.parameters, FedsumParameters) and min(self.parameters.weights) < 0:
            raise KernelParameterError("a contribution counts by a weight that is not negative")
        bounds = self.kernel.validate(self.parameters, shape)
        values = bounds.n_outputs
        if self.row_level or self.kernel.of_contributions:
            values = bounds.n_outputs // shape.n_chunks * shape.n_rows
        if values > MAX_RELEASED_VALUES or bounds.n_outputs > MAX_RESULT_BLOCKS:
            raise KernelParameterError(
                f"the job would release {values} values from {bounds.n_outputs} result blocks;"
                f" at most {MAX_RELEASED_VALUES} and {MAX_RESULT_BLOCKS} fit",
                hint="ask for fewer model outputs at a time",
            )
        return bounds

    def used(self, permitted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """What the job uses of permitted rows, or contributions: those without a weight tell of nobody. Same shape.

        Raises
        ------
        KernelParameterError
            If there are more or fewer weights than contributions.
        """
        if isinstance(self.parameters, FedsumParameters):
            weighted: npt.NDArray[np.bool_] = np.array(self.parameters.weights) != 0
            if weighted.shape != permitted.shape:
                raise KernelParameterError(f"{weighted.size} weights for {permitted.size} contributions")
            return permitted & weighted
        return permitted

    def count(self, used: npt.NDArray[np.bool_]) -> int:
        """By what a result over these is divided for its mean: their number, or what their weights add up to."""
        if isinstance(self.parameters, FedsumParameters):
            return sum(weight for weight, counts in zip(self.parameters.weights, used, strict=True) if counts)
        return int(used.sum())

    def to_record(self) -> dict[str, object]:
        """The record whose DAG-CBOR block the ledger cites."""
        return {
            "type": PARAMETERS_TYPE,
            "kernel": self.kernel.kernel_id,
            "parameters": self.parameters.to_dict(),
            "result_scale": float(self.result_scale),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> JobParameters:
        """Parse strictly.

        Raises
        ------
        ManifestError, UnknownKernelError, KernelParameterError
        """
        if record.get("type") != PARAMETERS_TYPE or set(record) != {
            "type",
            "kernel",
            "parameters",
            "result_scale",
        }:
            raise ManifestError("not a job parameters record")
        kernel_id, parameters, scale = record["kernel"], record["parameters"], record["result_scale"]
        if not isinstance(kernel_id, bytes) or not isinstance(parameters, Mapping):
            raise ManifestError("job parameters: a field has the wrong type")
        if not isinstance(scale, float) or not MIN_SCALE <= scale <= MAX_SCALE:
            raise ManifestError(
                f"job parameters: `result_scale` is no number from {MIN_SCALE} to {MAX_SCALE}"
            )
        kernel = kernel_by_id(kernel_id)
        return cls(kernel=kernel, parameters=kernel.parse(parameters), result_scale=scale)

    def sensitivities(self, manifest: BundleManifest) -> tuple[tuple[int, int], ...]:
        """Outputs in groups, in their order: how many, and their joint L2 sensitivity to one subject in integer units.

        Raises
        ------
        KernelParameterError
            If nobody has proven one for this kernel, so that no noise could cover its result.
        """
        shape = manifest.shape
        linear = linear_form(self.parameters, shape)
        per_row: tuple[tuple[int, int], ...]
        if linear is not None:
            norm = linear_sensitivity(linear.weights, linear.bias, shape.max_abs, shape.max_l2)
            per_row = ((len(linear.weights), norm),)
        elif isinstance(self.parameters, SumParameters):
            per_row = ((shape.n_features, sum_sensitivity(shape.max_l2)),)
        elif isinstance(self.parameters, MomentsParameters):
            # A row's products are larger than the row by its norm; noise that covers both would drown the sums.
            n_columns = len(self.parameters.columns)
            per_row = (
                (n_columns, sum_sensitivity(shape.max_l2)),
                (n_pairs(n_columns), products_sensitivity(shape.max_l2)),
            )
        elif isinstance(self.parameters, FedsumParameters):
            per_row = ((shape.n_rows, self.parameters.sensitivity(shape)),)
        else:
            raise KernelParameterError(f"results of kernel {self.kernel.name} have no proven sensitivity")
        return tuple((outputs, norm * manifest.max_items_per_subject) for outputs, norm in per_row)

    def noise(self, manifest: BundleManifest, rho_micro: int) -> tuple[NoiseLevel, ...]:
        """The noise that a release of `rho_micro` has on its outputs.

        Raises
        ------
        KernelParameterError
            As `sensitivities`.
        PrivacyError
            If the budget is too small to be divided among the outputs.
        """
        return noise_levels(rho_micro, self.sensitivities(manifest))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInputs:
    """Everything that a job depends on, fetched by hash and parsed."""

    manifest: BundleManifest
    policy: Policy
    status: ConsentStatus
    parameters: JobParameters
    mask: npt.NDArray[np.bool_]
    """Shape (n_rows,): True where the row's subject consents. Of a round, for each contribution that also has a weight."""
    bounds: Bounds

    @property
    def count(self) -> int:
        """What a result counts: rows, or the weights of contributions."""
        return self.parameters.count(self.mask)

    def value_bounds(self) -> tuple[int, ...]:
        """Largest magnitude of an opened value, for each level of noise: sums are smaller than sums of products."""
        if isinstance(self.parameters.parameters, MomentsParameters):
            shape = self.manifest.shape
            return (shape.n_rows * shape.max_abs, self.bounds.value_bound)
        return (self.bounds.value_bound,)


def check_job(
    request: JobRequest,
    artifact: Artifact,
    *,
    manifest: BundleManifest,
    policy: Policy,
    status: ConsentStatus,
    parameters: JobParameters,
    min_cohort: int,
) -> JobInputs:
    """Check what the ledger cannot see: that the cited blocks fit the request, the policy and each other.

    Raises
    ------
    ReleaseRefusedError
        With the ledger's name of the reason, if the policy or the cohort says no.
    KernelError, PrivacyError, ManifestError, WrongKeyDomainError
        If the blocks do not fit, or no noise could be right.
    """
    if parameters.kernel.kernel_id != request.kernel_id:
        raise KernelParameterError("the parameters are for another kernel than the job names")
    if parameters.row_level != request.row_level:
        raise KernelParameterError("the parameters' output does not fit the job's row level")
    if manifest.shape.key_id != artifact.key_id:
        raise WrongKeyDomainError("the manifest names another key domain than the ledger")
    if manifest.scope != unlabel(artifact.consent_scope) or status.scope != manifest.scope:
        raise ManifestError("manifest, consent status and ledger name different purposes")
    if manifest.round is not None and manifest.round.steward != unlabel(artifact.steward):
        raise ManifestError("the members of this round contributed to another steward's call")
    if status.epoch != request.consent_epoch:
        raise ReleaseRefusedError(Refusal.CONSENT_EPOCH_STALE.name)
    if unlabel(request.purpose) not in policy.purposes:
        raise ReleaseRefusedError(Refusal.PURPOSE_NOT_GRANTED.name)
    bounds = parameters.validate(manifest)
    mask = parameters.used(status.mask_of(manifest.subjects))
    ruled_out = _ruled_out(policy, parameters, rho_micro=request.rho_micro)
    ruled_out = ruled_out or _too_few(manifest, mask, max(min_cohort, policy.min_cohort))
    if ruled_out is not None:
        raise ReleaseRefusedError(ruled_out.reason.name)
    parameters.noise(manifest, request.rho_micro)
    return JobInputs(
        manifest=manifest, policy=policy, status=status, parameters=parameters, mask=mask, bounds=bounds
    )


class _RuledOut(NamedTuple):
    """Why a bundle's policy rules a job out: the ledger's reason, and what it says."""

    reason: Refusal
    says: str
    hint: str


def _ruled_out(policy: Policy, parameters: JobParameters, *, rho_micro: int) -> _RuledOut | None:
    kernel = parameters.kernel.name
    if kernel not in policy.kernels:
        return _RuledOut(
            Refusal.KERNEL_NOT_GRANTED,
            f"does not allow kernel {kernel}",
            f"it allows {', '.join(policy.kernels)}",
        )
    if parameters.row_level and not policy.row_level:
        return _RuledOut(Refusal.ROW_LEVEL_NOT_GRANTED, "allows no per-row results", "ask for output `sum`")
    if rho_micro > policy.max_rho_micro_per_job:
        return _RuledOut(
            Refusal.BUDGET_EXCEEDED,
            f"allows a job rho {policy.max_rho_micro_per_job / MICRO:g}, not {rho_micro / MICRO:g}",
            "spend less; the noise grows as 1 / sqrt(rho)",
        )
    return None


def _too_few(manifest: BundleManifest, mask: npt.NDArray[np.bool_], minimum: int) -> _RuledOut | None:
    if len(np.unique(manifest.subjects[mask])) >= minimum:
        return None
    who = "contributions with a weight" if manifest.of_contributions else "consenting subjects"
    return _RuledOut(
        Refusal.COHORT_TOO_SMALL,
        f"wants {minimum} {who}, and has fewer at present",
        REFUSAL_HINTS.get(Refusal.COHORT_TOO_SMALL, ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBundle:
    """A registered bundle as a partner sees it: metadata, never a value."""

    artifact_id: ArtifactId
    artifact: Artifact
    steward: str
    manifest: BundleManifest
    policy: Policy

    @property
    def scope(self) -> str:
        """Purpose that the subjects consented to."""
        return self.manifest.scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job would cost and how exact it would be."""

    sensitivity: int
    """Most that one subject moves the result, 2-norm in integer units; of moments, their sums of products."""

    sigma: float
    """Standard deviation of the noise, in natural units of the result (of the mean, for sums, moments and contributions)."""

    product_sigma: float
    """The same on the mean of a product of two columns, natural units squared; 0 where a job asks for none."""

    value_bound: int
    value_limit: int
    margin_bits: int
    """Worst-case bits between the noise of the ciphertext and a wrong decryption."""

    quantisation_error: float
    """Worst case of having rounded features and model to integers: natural units of one row's result, or of the mean (of
    products, for moments)."""

    seconds: float
    """For one execution, by one process of this machine; measured."""

    read_bytes: int
    """Of input blocks that an executor, and every verifier, reads."""

    result_bytes: int

    joint_rho_micro: int
    """What the custodian charges as one with this job, millionths of rho: its own cost, and that of the organisation's earlier
    releases of the same question over nearly the same subjects, as `differencing.charged_as_one`. Above the policy's
    `max_rho_micro_per_job` it is refused."""

    gas: int
    """From posting to release, all parties together, with `VERIFIERS` verifiers."""


def read_bundle(ledger: Ledger, node: NodeContent, artifact_id: ArtifactId) -> FeatureBundle:
    """Look up a registered bundle; its manifest and policy come from the steward's node, checked by hash.

    Raises
    ------
    InputError
        If the ledger knows no such bundle.
    ContentError, IntegrityError, NotAuthorisedError
        If manifest or policy cannot be read.
    """
    artifact = registered_bundle(ledger, artifact_id)
    steward = unlabel(artifact.steward)
    manifest = node.get_record(Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR), holder=steward)
    policy = node.get_record(Cid.from_digest(artifact.policy_digest, Codec.DAG_CBOR), holder=steward)
    return FeatureBundle(
        artifact_id=artifact_id,
        artifact=artifact,
        steward=steward,
        manifest=read_manifest(manifest),
        policy=Policy.from_record(policy),
    )


def estimate(
    bundle: FeatureBundle,
    parameters: JobParameters,
    *,
    rho_micro: int,
    status: ConsentStatus | None = None,
    model_error: float = 0.0,
) -> Estimate:
    """Check the worst case, run a sample of the work here, and say what the job costs and how exact it is.

    Parameters
    ----------
    status :
        Of the consent epoch in force: the fewer consent, the more the noise weighs in a mean. Without it all are taken to.
    model_error :
        `QuantisedModel.error_bound` of the model that the parameters were made from.

    Raises
    ------
    KernelBoundError
        If a value could overflow the plaintext modulus, or decrypt wrongly.
    """
    shape = bundle.manifest.shape
    bounds = parameters.validate(bundle.manifest)
    noise = parameters.noise(bundle.manifest, rho_micro)
    cost = cost_of(parameters.kernel, parameters.parameters, shape)
    subjects = bundle.manifest.subjects
    permitted = np.ones(subjects.shape, dtype=np.bool_) if status is None else status.mask_of(subjects)
    rows = 1 if parameters.row_level else max(1, parameters.count(parameters.used(permitted)))
    sigmas = [level.sigma / parameters.result_scale**power / rows for power, level in enumerate(noise, 1)]
    return Estimate(
        sensitivity=max(norm for _, norm in parameters.sensitivities(bundle.manifest)),
        sigma=sigmas[0],
        product_sigma=sum(sigmas[1:]),
        value_bound=bounds.value_bound,
        value_limit=bounds.value_limit,
        margin_bits=bounds.margin_bits,
        quantisation_error=rounding_bound(parameters.parameters, shape)
        / parameters.result_scale ** len(noise)
        + model_error,
        seconds=cost.seconds,
        read_bytes=cost.input_bytes,
        result_bytes=cost.result_bytes,
        joint_rho_micro=rho_micro,
        gas=job_gas(VERIFIERS),
    )


def job_parameters(
    bundle: FeatureBundle, kernel: str, parameters: Mapping[str, object], *, result_scale: float | None = None
) -> JobParameters:
    """Parse and check kernel parameters against a bundle. Contributions count alike where no weights are given.

    Parameters
    ----------
    result_scale :
        Integer units per 1.0 of a result; by default that of the features, of distances its square.

    Raises
    ------
    UnknownKernelError, KernelParameterError, KernelBoundError
    """
    record = kernel_by_name(kernel)
    if record is FEDSUM and not parameters:
        parameters = {"weights": [1] * bundle.manifest.shape.n_features}
    read, scale = record.parse(parameters), float(bundle.manifest.schema.scale)
    if isinstance(read, DistanceParameters):
        scale *= scale
    parsed = JobParameters(
        kernel=record, parameters=read, result_scale=scale if result_scale is None else result_scale
    )
    parsed.validate(bundle.manifest)
    return parsed


def check_allowed(
    bundle: FeatureBundle, parameters: JobParameters, *, rho_micro: int, status: ConsentStatus | None = None
) -> None:
    """Check what the bundle's policy asks of a job, which contracts do not read: nobody would execute it.

    Parameters
    ----------
    status :
        Of the consent epoch in force; without it the cohort is not checked.

    Raises
    ------
    DeniedError
    """
    ruled_out = _ruled_out(bundle.policy, parameters, rho_micro=rho_micro)
    if ruled_out is None and status is not None:
        mask = parameters.used(status.mask_of(bundle.manifest.subjects))
        ruled_out = _too_few(bundle.manifest, mask, bundle.policy.min_cohort)
    if ruled_out is not None:
        raise DeniedError(f"the bundle's policy {ruled_out.says}", hint=ruled_out.hint)


def post_job(
    ledger: Ledger,
    node: NodeContent,
    bundle: FeatureBundle,
    parameters: JobParameters,
    *,
    grant_id: GrantId,
    rho_micro: int,
    purpose: bytes | None = None,
    consent_epoch: int | None = None,
    nonce: int | None = None,
) -> JobId:
    """Post a job; everything that it depends on is fixed by hash.

    Parameters
    ----------
    rho_micro :
        What the release will cost under zCDP, in millionths of rho; decides the noise.
    nonce :
        Makes posting idempotent: the same request with the same nonce is the same job. By default random, or that of an
        attempt at the same request that was given up while it was on its way, which then goes on.

    Raises
    ------
    JobDeniedError
        If admission refused; the refusal and its reason are on the ledger.
    KernelBoundError, InputError
        Before anything is sent.
    """
    if rho_micro < 1:
        raise InputError("a job must spend at least one millionth of rho")
    parameters.validate(bundle.manifest)
    parameters.noise(bundle.manifest, rho_micro)
    cid = node.put_record("parameters", parameters.to_record())
    artifact = ledger.artifact(bundle.artifact_id)
    epoch = ledger.consent_epoch(artifact.steward, artifact.consent_scope).epoch
    request = JobRequest(
        artifact_id=bundle.artifact_id,
        grant_id=grant_id,
        kernel_id=parameters.kernel.kernel_id,
        parameters_digest=cid.digest,
        purpose=artifact.consent_scope if purpose is None else purpose,
        consent_epoch=epoch if consent_epoch is None else consent_epoch,
        policy_version=artifact.policy_version,
        rho_micro=rho_micro,
        row_level=parameters.row_level,
        nonce=secrets.randbits(63) if nonce is None else nonce,
    )
    if nonce is None:
        receipt = ledger.transact_once(
            "JobLedger", "postJob", lambda number: [replace(request, nonce=number)], request.nonce
        )
    else:
        receipt = ledger.transact("JobLedger", "postJob", request)
    for event in ledger.events_of(receipt):
        job_id = event.args.get("jobId")
        if event.name == "JobDenied" and isinstance(job_id, bytes):
            reason = Refusal(int(str(event.args["reason"])))
            raise JobDeniedError(job_id, reason.name, hint=REFUSAL_HINTS.get(reason, ""))
        if event.name == "JobPosted" and isinstance(job_id, bytes):
            return JobId(job_id)
    raise LedgerError("posting left neither a job nor a denial")


def wait_for_job(
    ledger: Ledger,
    job_id: JobId,
    *,
    timeout_s: float = 600.0,
    poll_s: float = 0.25,
    on_state: Callable[[JobState], None] | None = None,
) -> Job:
    """Wait until a job is released.

    Raises
    ------
    InputError, JobFailedError
        As `released_job`.
    JobPendingError
        If it is not over within `timeout_s`; it goes on all the same.
    """
    deadline = time.monotonic() + timeout_s
    seen = JobState.NONE
    while True:
        state = ledger.progress(job_id).state
        if state != seen and on_state:
            on_state(state)
        seen = state
        if state in FINAL_JOB_STATES or state == JobState.NONE or time.monotonic() > deadline:
            return released_job(ledger, job_id)
        time.sleep(poll_s)


def released_job(ledger: Ledger, job_id: JobId) -> Job:
    """A job that is released.

    Raises
    ------
    InputError
        If the ledger knows no such job.
    JobFailedError
        If it ended in any other way.
    JobPendingError
        If it is not over yet.
    """
    job = ledger.progress(job_id)
    if job.state == JobState.NONE:
        raise InputError(f"the ledger knows no job {job_id.hex()[:12]}")
    if job.state not in FINAL_JOB_STATES:
        raise JobPendingError(job_id, job.state.name)
    if job.state != JobState.RELEASED:
        reason = f" ({job.refusal.name})" if job.refusal else ""
        raise JobFailedError(job_id, job.state.name + reason, hint=REFUSAL_HINTS.get(job.refusal, ""))
    return ledger.job(job_id)
