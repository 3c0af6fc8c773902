"""Covariances of a steward's rows, and sums of what several members contribute, from the command line to the partner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from organisations import NOTICE, SCALE, SCOPE, Consortium, run_cli, schema, synthetic

from usufruct.privacy import MICRO
from usufruct.rights import terms

COLUMNS = (0, 3, 7)
RHO = 50.0


def told(network: Consortium, who: str, *words: str) -> Any:
    """What a command of an organisation prints for machines."""
    ran = run_cli("usufruct", *words, "--home", str(network.net.home(who).root), "--json", seconds=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_partner_reads_covariances_of_columns_that_nobody_shows(
    shared_network: Consortium, tmp_path: Path
) -> None:
    network = shared_network
    steward, partner = network.clients["clinic-north"], network.university
    rows = synthetic("moments")
    names = [f"clinic-north/moment-{row:03d}" for row in range(len(rows))]
    matrix, described, subjects, asked = (
        tmp_path / name for name in ("rows.npy", "schema.json", "subjects.txt", "columns.json")
    )
    np.save(matrix, rows)
    described.write_text(json.dumps(schema().to_dict()), "utf-8")
    subjects.write_text("\n".join(names), "utf-8")
    asked.write_text(json.dumps({"columns": COLUMNS}), "utf-8")
    steward.record_consents(names, scope=SCOPE, notice=NOTICE, days=365)
    steward.anchor_consents(scope=SCOPE)

    key = told(network, "clinic-north", "key-domain", "create", "--parameters", "moments")["key_id"]
    network.indexed()
    publish = ["publish", str(matrix), "--schema", str(described), "--scope", SCOPE, "--key-domain", key[:12]]
    publish += ["--subjects", str(subjects), "--max-rho", str(RHO), "--budget-rho", "200"]
    home = str(network.net.home("clinic-north").root)
    refused = run_cli("usufruct", *publish, "--kernel", "sum", "--home", home)
    assert refused.returncode == 2 and "sum runs on bundles sealed under bfv" in refused.stderr
    artifact = told(network, "clinic-north", *publish, "--kernel", "moments")["artifact_id"]

    bundle = partner.bundle(artifact)
    grant = partner.request(bundle, kernels=("moments",), uses=1, rho=100)
    granted = terms(
        kernels=("moments",),
        uses=1,
        expires_at=network.ledger.finalised().timestamp + 86_400,
        rho_micro=100 * MICRO,
        min_cohort=20,
        replicas=2,
        row_level=False,
    )
    steward.grant(grant, granted)
    withdrawn = 5
    steward.withdraw_consent(names[withdrawn], scope=SCOPE)
    book = told(network, "clinic-north", "consent", "list", "--scope", SCOPE)
    states = {row["subject"]: row["state"] for row in book}
    assert states[names[withdrawn]] == "withdrawn" and states[names[0]] == "in force"
    network.indexed()

    given = partner.parameters(bundle, "moments", {"columns": COLUMNS})
    estimate = partner.estimate(bundle, given, rho=RHO)
    released = told(
        *(network, "university", "job", "post", artifact, "--kernel", "moments"),
        *("--rho", str(RHO), "--parameters", str(asked)),
    )

    kept = np.rint(np.delete(rows, withdrawn, axis=0)[:, COLUMNS] * SCALE) / SCALE
    assert released["count"] == len(kept)
    assert np.abs(released["mean"] - kept.mean(axis=0)).max() <= released["mean_error_bound_1e-6"]
    covariances, bounds = (
        np.array(released[name]) for name in ("covariances", "covariance_error_bounds_1e-6")
    )
    assert (np.abs(covariances - np.cov(kept.T, bias=True)) <= bounds).all()
    assert len(released["values"]) == len(COLUMNS) + len(COLUMNS) * (len(COLUMNS) + 1) // 2
    shown = run_cli(
        "usufruct", "job", "show", released["job_id"][:12], "--home", home.replace("clinic-north", "auditor")
    )
    assert shown.returncode == 0, shown.stderr
    for fact in ("state: RELEASED", "kernel: moments", "REPLICATED(", "ReleaseOpened"):
        assert fact in shown.stdout
    # Means are told about as exactly as products: one noise for both would be `SCALE` times too much for them.
    assert estimate.sigma == pytest.approx(estimate.product_sigma, rel=0.1)


CONTRIBUTORS = ("clinic-north", "clinic-south", "auditor", "university")
TERMS = {
    "name": "gait-model",
    "extractor": {"name": "trainer", "sha256": "ab" * 32},
    "entries": 40,
    "max_abs": 1,
    "max_l2": 2.0,
    "scale": 1000,
}


def test_members_sum_their_updates_and_none_of_them_shows_its_own(
    shared_network: Consortium, tmp_path: Path
) -> None:
    network, scope = shared_network, "gait-round-1"
    terms_file, call = tmp_path / "terms.json", tmp_path / "call"
    terms_file.write_text(json.dumps(TERMS), "utf-8")
    key = told(network, "clinic-north", "key-domain", "create", "--parameters", "moments")["key_id"]
    network.indexed()
    opening = ("round", "open", str(terms_file), str(call), "--key-domain", key[:12], "--scope", scope)
    told(network, "clinic-north", *opening)
    rng = np.random.default_rng(8)
    updates = {name: rng.normal(0, 0.2, TERMS["entries"]) for name in CONTRIBUTORS}
    updates["auditor"] *= 10
    for name, update in updates.items():
        np.save(tmp_path / f"{name}.npy", update)
        said = told(
            *(network, name, "round", "contribute", str(call)),
            *(str(tmp_path / f"{name}.npy"), str(tmp_path / f"{name}.car")),
        )
        assert said["shortened"] == (name == "auditor") and said["steward"] == "clinic-north"
    files = [str(tmp_path / f"{name}.car") for name in CONTRIBUTORS]

    def close(*words: str, by: str = "clinic-north") -> Any:
        home = str(network.net.home(by).root)
        return run_cli("usufruct", "round", "close", str(call), *words, "--home", home, "--json", seconds=120)

    budget = ("--max-rho", "100", "--budget-rho", "500")
    for words, by, code, why in (
        ((*files, files[0]), "clinic-north", 2, "two contributions of clinic-north"),
        ((*files, "--min-cohort", "5"), "clinic-north", 2, "fewer than 5"),
        ((*files,), "clinic-south", 8, "of clinic-north, not of clinic-south"),
        ((*files[:3], str(call)), "clinic-north", 3, "call is no contribution"),
    ):
        refused = close(*words, *budget, by=by)
        assert (refused.returncode, why in refused.stderr) == (code, True), refused.stderr
    ran = close(*files, *budget)
    assert ran.returncode == 0, ran.stderr
    closed = json.loads(ran.stdout)
    assert closed["members"] == sorted(CONTRIBUTORS)
    assert json.loads(close(*files, *budget).stdout)["artifact_id"] == closed["artifact_id"], (
        "may be repeated"
    )
    network.indexed()

    artifact = closed["artifact_id"]
    checked = told(network, "auditor", "round", "verify", artifact[:12])
    assert checked["members"] == sorted(CONTRIBUTORS)
    partner, steward = network.university, network.clients["clinic-north"]
    bundle = partner.bundle(artifact)
    grant = partner.request(bundle, kernels=("fedsum",), uses=4, rho=400)
    granted = terms(
        kernels=("fedsum",),
        uses=4,
        expires_at=network.ledger.finalised().timestamp + 86_400,
        rho_micro=400 * MICRO,
        min_cohort=0,
        replicas=2,
    )
    steward.grant(grant, granted)
    network.indexed()
    shown = told(network, "university", "bundle", "show", artifact[:12])
    assert shown["kind"] == "update" and shown["subjects"] == 4

    def counted(name: str) -> Any:
        """An update as it counts: shortened to two units of length, cut to one, in thousandths towards zero."""
        update = updates[name] * min(1.0, 2.0 / np.linalg.norm(updates[name]))
        return np.trunc(np.clip(update, -1, 1) * 1000) / 1000

    post = ("job", "post", artifact[:12], "--kernel", "fedsum", "--rho", "90")
    everybody = told(network, "university", *post)
    truth = sum(map(counted, CONTRIBUTORS)) / 4
    assert everybody["count"] == 4 and len(everybody["values"]) == TERMS["entries"]
    assert np.abs(np.array(everybody["mean"]) - truth).max() <= everybody["mean_error_bound_1e-6"]

    # What leaves one out is charged together with what did not, and both are more than a job may cost.
    home = str(network.net.home("university").root)
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"weights": [3, 0, 1, 2]}), "utf-8")
    refused = run_cli("usufruct", *post, "--parameters", str(weights), "--home", home, seconds=120)
    assert refused.returncode == 7 and "COHORTS_TOO_CLOSE" in refused.stderr

    told(network, "clinic-north", "consent", "withdraw", "clinic-south", "--scope", scope)
    network.indexed()
    cheap = ("job", "post", artifact[:12], "--kernel", "fedsum", "--rho", "9")
    weights.write_text(json.dumps({"weights": [3, 1, 5, 2]}), "utf-8")
    fewer = told(network, "university", *cheap, "--parameters", str(weights))
    parts = {"auditor": 3, "clinic-north": 1, "university": 2}
    truth = sum(weight * counted(name) for name, weight in parts.items()) / 6
    assert fewer["count"] == 6, "clinic-south has withdrawn, whatever weight it is given"
    assert np.abs(np.array(fewer["mean"]) - truth).max() <= fewer["mean_error_bound_1e-6"]

    uses = {
        name: told(network, "clinic-north", "consent", "uses", name, "--scope", scope)
        for name in ("clinic-south", "clinic-north")
    }
    facts = [(use["partner"], use["kernel"], use["state"], use["decrypted"]) for use in uses["clinic-south"]]
    released, refused_one = (
        ("university", "fedsum", "RELEASED", True),
        ("university", "fedsum", "REFUSED", False),
    )
    assert facts == [released, refused_one, released]
    assert [use["counted"] for use in uses["clinic-south"]] == [False, True, True]
    assert [use["counted"] for use in uses["clinic-north"]] == [True, False, True], "without a weight in one"
