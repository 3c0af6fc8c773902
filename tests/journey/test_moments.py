"""Covariances: the one job of the network whose ciphertexts are multiplied, from the command line to the partner's matrix."""

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


@pytest.mark.timeout(300)
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
