"""Differencing: what two releases over nearly the same people would tell of the few in whom they differ.

The difference of two sums over cohorts that differ by three subjects is a sum over these three. So releases of one question
over cohorts that differ by fewer subjects than the policy's minimum cohort are charged as one, with whatever else was told of
the same over either of them: all of that together may cost what the policy lets one job cost, in whatever order it is asked.
Cohorts that differ by enough subjects, and one cohort asked again with none near it, are charged to the bundle's budget alone.

A question is asked again when any output has the same direction: the same weights up to a factor, whatever the bias. New
questions that are sums of old ones are not recognised; against those stands the budget. Sums of contributions that weigh them
differently are charged as one whatever they weigh: contributors are few, and a weight singles one out as leaving it out does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.content.node import NodeContent
from usufruct.errors import ReleaseRefusedError
from usufruct.he.kernels import BundleShape, FedsumParameters, MomentsParameters, SumParameters, linear_form
from usufruct.job import FeatureBundle, JobInputs, JobParameters
from usufruct.ledger import Ledger
from usufruct.publish import BundleManifest
from usufruct.records import JobState, Refusal

DIRECTION_BYTES = 16
CONTRIBUTIONS = hashlib.sha256(b"usufruct/question/contributions").digest()[:DIRECTION_BYTES]
"""Stands in every question about contributions, beside what they weigh."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What one release tells, and of whom."""

    directions: frozenset[bytes] | None
    """From `directions`; None where only the cohort is known, which counts as every question."""
    subjects: npt.NDArray[np.int64] | None
    """Positions of the consenting subjects, ascending, each once; None where the cohort is not known any more, which is near to
    every cohort: any one that were put in its place would be far from most.
    """
    rho_micro: int

    @classmethod
    def by(cls, inputs: JobInputs, rho_micro: int) -> Asked:
        """What a job asks."""
        return cls(
            directions=directions(inputs.parameters, inputs.manifest.shape),
            subjects=subjects_of(inputs.manifest.subjects, inputs.mask),
            rho_micro=rho_micro,
        )

    @classmethod
    def forgotten(cls, manifest: BundleManifest, status: ConsentStatus | None, rho_micro: int) -> Asked:
        """What a release told that nobody remembers; of whom is known from its status, if somebody still has that."""
        return cls(
            # Of whom a sum of contributions told hangs on weights that are not known any more: it is near to every other.
            directions=frozenset([CONTRIBUTIONS]) if manifest.of_contributions else None,
            subjects=None
            if status is None
            else subjects_of(manifest.subjects, status.mask_of(manifest.subjects)),
            rho_micro=rho_micro,
        )


def subjects_of(row_subjects: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Positions of the subjects whose rows are used, ascending, each once."""
    return np.unique(row_subjects[mask])


def directions(parameters: JobParameters, shape: BundleShape) -> frozenset[bytes]:
    """The outputs of a job up to factor and bias, 16 bytes each; of moments, their sums.

    Raises
    ------
    KernelParameterError
        If the parameters do not fit the shape.
    """
    model = linear_form(parameters.parameters, shape)
    if model is not None:
        return frozenset(_direction(row) for row in model.weights)
    if isinstance(parameters.parameters, SumParameters):
        return frozenset(_column(feature, shape) for feature in range(shape.n_features))
    if isinstance(parameters.parameters, MomentsParameters):
        # Whoever asks a product again asks the sums of its columns again.
        return frozenset(_column(feature, shape) for feature in parameters.parameters.columns)
    if isinstance(parameters.parameters, FedsumParameters):
        return frozenset([CONTRIBUTIONS, _direction(parameters.parameters.weights)])
    return frozenset([_hash(parameters.kernel.kernel_id, dag.encode(parameters.parameters.to_dict()))])


def near(one: Asked, other: Asked, minimum: int) -> bool:
    """Whether both ask the same of cohorts that differ, but by fewer than `minimum` subjects."""
    if one.directions is not None and other.directions is not None:
        common = one.directions & other.directions
        if not common:
            return False
        if common == {CONTRIBUTIONS}:
            return True
    if one.subjects is None or other.subjects is None:
        return True
    return 0 < np.setxor1d(one.subjects, other.subjects, assume_unique=True).size < minimum


def repeated(one: Asked, other: Asked) -> bool:
    """Whether both, which are not near each other, ask the same of one cohort."""
    if one.directions is not None and other.directions is not None and not one.directions & other.directions:
        return False
    if one.subjects is None or other.subjects is None:
        return False
    return np.array_equal(one.subjects, other.subjects)


def charged_as_one(asked: Asked, earlier: Iterable[Asked], minimum: int) -> int:
    """What a release costs with the earlier ones that count as one with it, millionths of rho.

    Those are the ones near it and, if there are any, those that asked the same of its own cohort, since they are as near to
    these. Under a limit, all that is told of one question over two cohorts that are near each other then keeps to it, in any
    order.
    """
    close = again = 0
    for one in earlier:
        if near(asked, one, minimum):
            close += one.rho_micro
        elif repeated(asked, one):
            again += one.rho_micro
    return asked.rho_micro + (close + again if close else 0)


def check_differencing(asked: Asked, earlier: Iterable[Asked], *, minimum: int, limit_rho_micro: int) -> None:
    """Refuse a release that would, with earlier ones, tell more of a few subjects than one job may.

    Parameters
    ----------
    minimum :
        Fewest subjects in which the cohorts of two releases may differ without being charged as one.
    limit_rho_micro :
        What all of them may cost together.

    Raises
    ------
    ReleaseRefusedError
        With the reason `COHORTS_TOO_CLOSE`.
    """
    joint = charged_as_one(asked, earlier, minimum)
    if joint > limit_rho_micro:
        raise ReleaseRefusedError(
            Refusal.COHORTS_TOO_CLOSE.name,
            hint=f"with earlier releases over this cohort and those that differ by fewer than {minimum} subjects it would"
            f" cost {joint} millionths of rho; {limit_rho_micro} are allowed",
        )


def joint_cost(
    ledger: Ledger,
    node: NodeContent,
    bundle: FeatureBundle,
    parameters: JobParameters,
    *,
    rho_micro: int,
    requester: str,
    min_cohort: int,
) -> int:
    """What a job would be charged as one with its requester's own released jobs, millionths of rho.

    Those of other partners count with the custodian, too, but what they asked is theirs.

    Parameters
    ----------
    min_cohort :
        The grant's; the policy's counts where it is larger.

    Raises
    ------
    ContentError, IntegrityError, LedgerError
    """
    artifact = bundle.artifact
    manifest, steward = bundle.manifest, bundle.steward

    def of(asked: JobParameters, status_digest: bytes, cost: int) -> Asked:
        block = node.get_record(Cid.from_digest(status_digest, Codec.DAG_CBOR), holder=steward)
        mask = asked.used(ConsentStatus.from_record(block).mask_of(manifest.subjects))
        return Asked(
            directions=directions(asked, manifest.shape),
            subjects=subjects_of(manifest.subjects, mask),
            rho_micro=cost,
        )

    minimum = max(min_cohort, bundle.policy.min_cohort)
    now = of(
        parameters, ledger.consent_epoch(artifact.steward, artifact.consent_scope).status_digest, rho_micro
    )

    def earlier() -> Iterator[Asked]:
        for job in node.query_all("/jobs", key="job_id", state=JobState.RELEASED.name):
            if job["requester"] == requester and job["artifact_id"] == bundle.artifact_id.hex():
                cid = Cid.from_digest(bytes.fromhex(job["parameters_digest"]), Codec.DAG_CBOR)
                told = JobParameters.from_record(node.get_record(cid, holder=requester))
                yield of(told, bytes.fromhex(job["status_digest"]), job["rho_micro"])

    return charged_as_one(now, earlier(), minimum)


def _column(feature: int, shape: BundleShape) -> bytes:
    """`_direction` of one column alone; written out by whole runs of zeros, since `sum` asks for each of up to 2^16 columns."""
    return _hash(b"direction", b"0," * feature + b"1" + b",0" * (shape.n_features - 1 - feature))


def _direction(weights: Sequence[int]) -> bytes:
    divisor = math.gcd(*weights) or 1
    if next((weight for weight in weights if weight), 0) < 0:
        divisor = -divisor
    return _hash(b"direction", ",".join(str(weight // divisor) for weight in weights).encode("ascii"))


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.sha256(b"usufruct/question/1\0")
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()[:DIRECTION_BYTES]
