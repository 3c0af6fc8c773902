"""A small bundle with everything that a job on it depends on, made with real keys and real ciphertexts, without a chain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec
from usufruct.features import Column, Extractor, Features, FeatureSchema, prepare_features
from usufruct.he.bfv import SecretKey, generate_secret_key
from usufruct.he.kernels import kernel_by_name, run
from usufruct.job import JobInputs, JobParameters, check_job
from usufruct.publish import BundleManifest, manifest_record, read_manifest
from usufruct.records import (
    ZERO_32,
    Artifact,
    ArtifactId,
    ArtifactKind,
    FreezeState,
    GrantId,
    Job,
    JobId,
    JobRequest,
    JobState,
    KeyId,
    Refusal,
    label,
    org_id,
)
from usufruct.register import Policy
from usufruct.seal import seal_features

SCOPE = "occupancy-research"
ROWS = 24
MODEL = {"output": "rows", "weights": [[3, -2], [1, 5]], "bias": [7, -1]}
JOB_ID = JobId(b"\x0a" * 32)
SCHEMA = FeatureSchema(
    name="gaze",
    kind="gaze",
    columns=(Column(name="x", minimum=-1.0, maximum=1.0), Column(name="y", minimum=-1.0, maximum=1.0)),
    extractor=Extractor(name="tracker", sha256="00" * 32),
    max_l2=1.5,
    scale=100,
)


@dataclass(frozen=True)
class SmallBundle:
    """Twenty-four rows of two features, one row per subject; subjects 3 and 20 do not consent."""

    secret: SecretKey
    features: Features
    blocks: list[bytes]
    record: dict[str, object]
    manifest: BundleManifest
    policy: Policy
    status: ConsentStatus
    artifact: Artifact

    def parameters(self, kernel: str = "sum", **changes: object) -> JobParameters:
        given = {} if kernel == "sum" else MODEL | changes
        record = kernel_by_name(kernel)
        return JobParameters(kernel=record, parameters=record.parse(given), result_scale=100.0)

    def request(self, parameters: JobParameters, **changes: object) -> JobRequest:
        usual = JobRequest(
            artifact_id=ArtifactId(b"\x01" * 32),
            grant_id=GrantId(b"\x02" * 32),
            kernel_id=parameters.kernel.kernel_id,
            parameters_digest=ZERO_32,
            purpose=label(SCOPE),
            consent_epoch=1,
            policy_version=1,
            rho_micro=500_000,
            row_level=parameters.row_level,
            nonce=1,
        )
        return replace(usual, **changes)

    def job(self, parameters: JobParameters, **changes: object) -> Job:
        usual = Job(
            state=JobState.OPENED,
            requester=org_id("university"),
            executor=org_id("compute"),
            key_id=self.artifact.key_id,
            deadline=0,
            replicas=2,
            asked=3,
            commits=3,
            agreeing=3,
            dissenting=0,
            refusal=Refusal.NONE,
            result_digest=b"\x0b" * 32,
            release_digest=ZERO_32,
            request=self.request(parameters),
        )
        return replace(usual, **changes)

    def inputs(self, parameters: JobParameters) -> JobInputs:
        return check_job(
            self.request(parameters),
            self.artifact,
            manifest=self.manifest,
            policy=self.policy,
            status=self.status,
            parameters=parameters,
            min_cohort=10,
        )

    def result(self, parameters: JobParameters) -> list[bytes]:
        """Result blocks of an honest executor."""
        columns = self.manifest.shape.n_features
        made = run(
            parameters.kernel,
            parameters.parameters,
            self.manifest.shape,
            lambda chunk, feature: self.blocks[chunk * columns + feature],
            self.inputs(parameters).mask,
        )
        return [block for _, block in made]

    def truth(self, parameters: JobParameters) -> npt.NDArray[np.int64]:
        """The same on plaintext."""
        rows = self.features.values[self.inputs(parameters).mask].astype(np.int64)
        if parameters.kernel.name == "sum":
            return rows.sum(axis=0)
        scores = rows @ np.array(MODEL["weights"]).T + np.array(MODEL["bias"])
        return scores if parameters.row_level else scores.sum(axis=0)


def small_bundle() -> SmallBundle:
    secret = generate_secret_key()
    features = prepare_features(np.random.default_rng(5).uniform(-1, 1, (ROWS, 2)), SCHEMA)
    sealed = seal_features(features, secret)
    blocks = [block.data for block in sealed]
    record = manifest_record(
        sealed.manifest,
        scope=SCOPE,
        row_subjects=range(ROWS),
        blocks=[Cid.of(block, Codec.RAW) for block in blocks],
    )
    bits = np.zeros(ROWS, dtype=np.uint8)
    bits[[3, 20]] = 1
    return SmallBundle(
        secret=secret,
        features=features,
        blocks=blocks,
        record=record,
        manifest=read_manifest(record),
        policy=Policy(
            purposes=(SCOPE,),
            kernels=("sum", "linear"),
            min_cohort=10,
            row_level=True,
            max_rho_micro_per_job=1_000_000,
        ),
        status=ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=np.packbits(bits).tobytes()),
        artifact=Artifact(
            kind=ArtifactKind.BUNDLE,
            steward=org_id("north"),
            key_id=KeyId(secret.key_id),
            content_digest=b"\x03" * 32,
            policy_digest=b"\x04" * 32,
            policy_version=1,
            consent_scope=label(SCOPE),
            retain_until=1 << 40,
            registered_at=1,
            frozen=FreezeState.NONE,
        ),
    )
