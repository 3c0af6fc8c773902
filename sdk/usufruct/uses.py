"""Step 10, asked from a subject's side: which jobs touched its rows, for whom, for what, and whether it counted in them.

For the steward alone: nobody else knows which position of a bitstring is whose. Rests on the own node's index, and on the
consent status that each job cites; re-checks no event, as `lineage` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec
from usufruct.content.node import NodeContent
from usufruct.errors import (
    ContentError,
    IntegrityError,
    KernelError,
    NodeUnreachableError,
    NotAuthorisedError,
)
from usufruct.job import FeatureBundle, JobParameters
from usufruct.records import JobState

_DECRYPTED = (JobState.OPENED.name, JobState.RELEASED.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A job on a bundle that has rows, or a contribution, of a subject."""

    job_id: str
    artifact_id: str
    partner: str
    purpose: str
    kernel: str
    row_level: bool
    """Whether values of single rows were asked for, noised and without a name."""

    state: str
    decrypted: bool
    """Whether a result was, or may have been, opened by the custodian."""

    counted: bool | None
    """Whether the subject consented at the job's epoch and had a weight; None where the records of that are not to be had."""

    rho_micro: int
    consent_epoch: int
    posted_at: int
    """Unix seconds."""

    changed_at: int
    """Unix seconds at which the job came into its state."""


def uses_of(
    node: NodeContent,
    bundles: Iterable[FeatureBundle],
    position: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Use]:
    """Every admitted job on own bundles with rows of the subject at a position, newest first.

    Parameters
    ----------
    bundles :
        Of one purpose, of the caller's own.
    position :
        In the status bitstring of that purpose.

    Raises
    ------
    NodeUnreachableError
    """
    own = {
        bundle.artifact_id.hex(): bundle for bundle in bundles if np.any(bundle.manifest.subjects == position)
    }
    asked = [
        job
        for job in (node.query_all("/jobs", key="job_id") if own else ())
        if job["artifact_id"] in own and job["state"] != JobState.DENIED.name
    ]
    statuses: dict[str, ConsentStatus | None] = {}
    found = []
    for done, job in enumerate(asked, start=1):
        found.append(_use(node, own[job["artifact_id"]], job, position, statuses))
        if progress is not None:
            progress(done, len(asked))
    return found


def _use(
    node: NodeContent,
    bundle: FeatureBundle,
    job: dict[str, Any],
    position: int,
    statuses: dict[str, ConsentStatus | None],
) -> Use:
    digest = job["status_digest"]
    if digest not in statuses:
        statuses[digest] = _status(node, digest, bundle.steward)
    status = statuses[digest]
    return Use(
        job_id=job["job_id"],
        artifact_id=job["artifact_id"],
        partner=job["requester"],
        purpose=job["purpose"],
        kernel=job["kernel"],
        row_level=job["row_level"],
        state=job["state"],
        decrypted=job["state"] in _DECRYPTED,
        counted=None if status is None else _counted(node, bundle, job, position, status),
        rho_micro=job["rho_micro"],
        consent_epoch=job["consent_epoch"],
        posted_at=job["posted_at"],
        changed_at=job["changed_at"],
    )


def _counted(
    node: NodeContent, bundle: FeatureBundle, job: dict[str, Any], position: int, status: ConsentStatus
) -> bool | None:
    subjects = bundle.manifest.subjects
    used = status.mask_of(subjects)
    if bundle.manifest.of_contributions and used[subjects == position].any():
        # Who consents to a round counts if the job gives it a weight.
        record = _record(node, job["parameters_digest"], job["requester"])
        try:
            if record is None:
                return None
            used = JobParameters.from_record(record).used(used)
        except (IntegrityError, KernelError):
            return None
    return bool(used[subjects == position].any())


def _status(node: NodeContent, digest: str, steward: str) -> ConsentStatus | None:
    record = _record(node, digest, steward)
    try:
        return None if record is None else ConsentStatus.from_record(record)
    except IntegrityError:
        return None


def _record(node: NodeContent, digest: str, holder: str) -> dict[str, Any] | None:
    try:
        return node.get_record(Cid.from_digest(bytes.fromhex(digest), Codec.DAG_CBOR), holder=holder)
    except NodeUnreachableError:
        raise
    except (ContentError, IntegrityError, NotAuthorisedError):
        return None
