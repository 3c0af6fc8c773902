"""Who used a subject's data, from jobs and consent statuses; what is missing is said to be unknown, never left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bundle_fixture import SCOPE, SmallBundle
from usufruct.content import Cid, dag
from usufruct.errors import BlockNotFoundError, NodeUnreachableError
from usufruct.he.kernels import FEDSUM
from usufruct.job import PARAMETERS_TYPE, FeatureBundle
from usufruct.publish import Round
from usufruct.records import ArtifactId
from usufruct.uses import uses_of

OWN, OTHER = ArtifactId(b"\x01" * 32), ArtifactId(b"\x09" * 32)


class Node:
    """The own node: its jobs, and the records that it has."""

    def __init__(self, jobs: list[dict[str, Any]], records: list[dict[str, Any]]) -> None:
        self.jobs = jobs
        self.records = {dag.cid_of(record): record for record in records}
        self.asked = 0

    def query_all(self, path: str, *, key: str) -> list[dict[str, Any]]:
        assert (path, key) == ("/jobs", "job_id")
        return self.jobs

    def get_record(self, cid: Cid, *, holder: str) -> dict[str, Any]:
        self.asked += 1
        if cid not in self.records:
            raise BlockNotFoundError(f"{cid} is not here")
        return self.records[cid]


def job(status: dict[str, Any], **changes: object) -> dict[str, Any]:
    usual = {
        "job_id": "aa" * 32,
        "artifact_id": OWN.hex(),
        "requester": "university",
        "purpose": SCOPE,
        "kernel": "sum",
        "row_level": False,
        "state": "RELEASED",
        "rho_micro": 5,
        "consent_epoch": 1,
        "posted_at": 10,
        "changed_at": 20,
        "status_digest": dag.cid_of(status).digest.hex(),
        "parameters_digest": "00" * 32,
    }
    return usual | changes


@pytest.fixture
def featured(bundle: SmallBundle) -> FeatureBundle:
    return FeatureBundle(
        artifact_id=OWN,
        artifact=bundle.artifact,
        steward="north",
        manifest=bundle.manifest,
        policy=bundle.policy,
    )


def test_every_admitted_job_on_a_subjects_rows_is_told_and_whether_it_counted(
    bundle: SmallBundle, featured: FeatureBundle
) -> None:
    before = replace(bundle.status, bits=bytes(3)).to_record()
    now = bundle.status.to_record()
    jobs = [
        job(now, job_id="01"),
        job(before, job_id="02", state="EXPIRED", kernel="linear", row_level=True),
        job(now, job_id="03", state="DENIED"),
        job(now, job_id="04", artifact_id=OTHER.hex()),
        job(before, job_id="05", state="OPENED"),
    ]
    node = Node(jobs, [before, now])
    seen: list[tuple[int, int]] = []
    # Subject 3 consents no more.
    found = uses_of(node, [featured], 3, progress=lambda *step: seen.append(step))
    assert [(use.job_id, use.counted, use.decrypted) for use in found] == [
        ("01", False, True),
        ("02", True, False),
        ("05", True, True),
    ]
    assert (found[1].kernel, found[1].row_level, found[1].partner) == ("linear", True, "university")
    assert seen[-1] == (3, 3) and node.asked == 2, "a status is read once"
    assert [use.counted for use in uses_of(node, [featured], 4)] == [True, True, True]


def test_a_subject_without_rows_has_no_uses_and_one_bundle_may_hold_many_rows_of_it(
    bundle: SmallBundle, featured: FeatureBundle
) -> None:
    now = bundle.status.to_record()
    node = Node([job(now)], [now])
    assert uses_of(node, [featured], 99) == []
    same = replace(bundle.manifest, subjects=np.zeros_like(bundle.manifest.subjects))
    assert len(uses_of(node, [replace(featured, manifest=same)], 0)) == 1


def test_what_is_not_to_be_had_is_unknown_and_a_dead_node_is_an_error(
    bundle: SmallBundle, featured: FeatureBundle
) -> None:
    now = bundle.status.to_record()
    (use,) = uses_of(Node([job(now)], []), [featured], 3)
    assert use.counted is None and use.decrypted
    broken = job(now, status_digest=dag.cid_of({"type": "no status"}).digest.hex())
    (use,) = uses_of(Node([broken], [{"type": "no status"}]), [featured], 3)
    assert use.counted is None

    # A partner that does not post through this library can name any number of weights; the job expires and is listed.
    asked = {
        "type": PARAMETERS_TYPE,
        "kernel": FEDSUM.kernel_id,
        "parameters": {"weights": [1]},
        "result_scale": 1.0,
    }
    contributed = replace(
        bundle.manifest,
        round=Round(steward="north", call=bytes(32), signatures=()),
        subjects=np.array([3, 4]),
    )
    told = job(now, kernel="fedsum", parameters_digest=dag.cid_of(asked).digest.hex())
    for records in ([now], [now, asked]):
        (use,) = uses_of(Node([told], records), [replace(featured, manifest=contributed)], 4)
        assert use.counted is None
    whole = asked | {"parameters": {"weights": [1, 0]}}
    told |= {"parameters_digest": dag.cid_of(whole).digest.hex()}
    (use,) = uses_of(Node([told], [now, whole]), [replace(featured, manifest=contributed)], 4)
    assert use.counted is False

    class Dead(Node):
        def get_record(self, cid: Cid, *, holder: str) -> dict[str, Any]:
            raise NodeUnreachableError("off")

    with pytest.raises(NodeUnreachableError):
        uses_of(Dead([job(now)], []), [featured], 3)
