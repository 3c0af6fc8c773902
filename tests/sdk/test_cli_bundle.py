"""The commands that carry a bundle on a stick, from sealing to import, at a real node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bundle_fixture import SCHEMA, SCOPE
from usufruct.cli import app
from usufruct.client import Client
from usufruct.content import EmbeddedBlockStore
from usufruct.content.unixfs import FileHasher
from usufruct.home import Home

ROWS = 24


def run(home: Home, *words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--home", str(home.root)])


def answer(home: Home, *words: object) -> dict[str, Any]:
    result = run(home, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def cid_of(file: Path) -> str:
    hasher = FileHasher()
    hasher.update(file.read_bytes())
    return str(hasher.finish())


@pytest.mark.timeout(200)
def test_a_stick_is_told_by_its_cid(node_home: Home, tmp_path: Path) -> None:
    names = tmp_path / "subjects.txt"
    names.write_text("".join(f"patient-{row}\n" for row in range(ROWS)))
    notice = tmp_path / "notice.txt"
    notice.write_text("Your features may be used, encrypted.")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA.to_dict()))
    matrix = tmp_path / "features.npy"
    np.save(matrix, np.random.default_rng(5).uniform(-1, 1, (ROWS, 2)))
    domain = answer(node_home, "key-domain", "create")
    consent = ("consent", "record", names, "--scope", SCOPE, "--notice", notice)
    assert run(node_home, *consent).exit_code == 0
    assert run(node_home, "consent", "anchor", "--scope", SCOPE).exit_code == 0
    kernel = ("--kernel", "sum")
    sealing = ("--schema", schema, "--scope", SCOPE, "--subjects", names, "--key-domain", domain["key_id"])
    first, second, copy = (tmp_path / f"{name}.car" for name in ("first", "second", "copy"))
    sealed = answer(node_home, "bundle", "seal", matrix, first, *sealing)
    assert (sealed["archive_cid"], sealed["archive_bytes"]) == (cid_of(first), first.stat().st_size)
    shown = run(node_home, "bundle", "seal", matrix, second, *sealing)
    assert f"archive {cid_of(second)}" in shown.stdout

    with EmbeddedBlockStore(node_home.blocks) as store:
        before = set(store.cids())
    refused = run(node_home, "bundle", "import", second, "--cid", sealed["archive_cid"], *kernel)
    assert refused.exit_code == 3
    said = " ".join(refused.output.split())
    assert "ArchiveMismatchError" in said and cid_of(second) in said and sealed["archive_cid"] in said
    malformed = run(node_home, "bundle", "import", first, "--cid", sealed["manifest"], *kernel)
    assert malformed.exit_code == 3 and "CidError" in malformed.output
    with EmbeddedBlockStore(node_home.blocks) as store:
        assert set(store.cids()) == before, "what was refused left a block"

    large = run(node_home, "bundle", "import", first, *kernel, "--min-cohort", str(ROWS + 1))
    assert large.exit_code == 2 and f"rows of {ROWS} subjects" in large.output
    other = run(node_home, "bundle", "import", first, "--kernel", "moments")
    assert other.exit_code == 2 and "moments runs on bundles sealed under bgv" in " ".join(
        other.output.split()
    )

    taken = answer(node_home, "bundle", "import", first, "--cid", sealed["archive_cid"], *kernel)
    assert taken["manifest"] == sealed["manifest"]
    exported = answer(node_home, "bundle", "export", taken["artifact_id"], copy)
    assert exported["archive_cid"] == sealed["archive_cid"]
    assert copy.read_bytes() == first.read_bytes()


@dataclass
class Office:
    """A steward's files: features of subjects who consented, a schema, a key domain."""

    home: Home
    files: Path
    scope: str

    def __post_init__(self) -> None:
        self.names, self.matrix = self.files / "subjects.txt", self.files / "features.npy"
        self.schema, notice = self.files / "schema.json", self.files / "notice.txt"
        self.names.write_text("".join(f"patient-{row}\n" for row in range(ROWS)))
        notice.write_text("Your features may be used, encrypted.")
        self.schema.write_text(json.dumps(SCHEMA.to_dict()))
        np.save(self.matrix, np.random.default_rng(5).uniform(-1, 1, (ROWS, 2)))
        consent = ("consent", "record", self.names, "--scope", self.scope, "--notice", notice)
        assert run(self.home, *consent).exit_code == 0
        self.key_id = answer(self.home, "key-domain", "create")["key_id"]

    def publish(self, *options: object) -> Result:
        words = ("--schema", self.schema, "--scope", self.scope, "--subjects", self.names, "--kernel", "sum")
        return run(self.home, "publish", self.matrix, *words, "--key-domain", self.key_id, *options, "--json")


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


@pytest.mark.timeout(200)
def test_a_bundle_of_the_same_subjects_and_copies_that_nobody_holds_are_warned_of(
    node_home: Home, tmp_path: Path
) -> None:
    office = Office(node_home, tmp_path, "again-study")
    greedy = office.publish("--max-rho", 20, "--budget-rho", 10)
    assert greedy.exit_code == 2 and "one job may spend rho 20" in said(greedy)
    first = office.publish("--copies", 9)
    assert "9 copies are wanted, and as the members are now there can be 1" in said(first)
    assert "some of these subjects" not in said(first)
    artifact = json.loads(first.stdout)["artifact_id"]
    client = Client.open(node_home)
    client.content.await_block(client.ledger.finalised().number)
    again = office.publish()
    assert f"rows of some of these subjects are in {artifact[:12]} too: budgets are per bundle" in said(again)
    assert "copies are wanted" not in said(again)
    for old in (artifact, json.loads(again.stdout)["artifact_id"]):
        assert run(node_home, "freeze", old).exit_code == 0
    client.content.await_block(client.ledger.finalised().number)
    assert said(office.publish()) == ""


@pytest.mark.timeout(200)
def test_a_policy_is_changed_where_an_option_says_so_and_stays_otherwise(
    node_home: Home, tmp_path: Path
) -> None:
    office = Office(node_home, tmp_path, "policy-study")
    artifact = json.loads(office.publish("--max-rho", 2).stdout)["artifact_id"]
    before = answer(node_home, "policy", "show", artifact)
    assert (before["version"], before["kernels"], before["min_cohort"]) == (1, ["sum"], 20)
    for options, told in (
        ((), "says the same"),
        (("--max-rho", 2), "says the same"),
        (("--min-cohort", ROWS + 1), f"rows of {ROWS} subjects"),
        (("--max-rho", 11), "the budget over all jobs is 10"),
        (("--kernel", "moments"), "moments runs on bundles sealed under bgv"),
    ):
        refused = run(node_home, "policy", "set", artifact, *options)
        assert refused.exit_code == 2 and told in said(refused)
    assert answer(node_home, "policy", "show", artifact) == before
    answer(node_home, "policy", "set", artifact, "--kernel", "sum", "--kernel", "linear", "--row-level")
    after = answer(node_home, "policy", "show", artifact)
    changed = {"version": 2, "kernels": ["sum", "linear"], "row_level": True}
    assert after == before | changed
    answer(node_home, "policy", "set", artifact, "--no-row-level", "--min-cohort", 10, "--max-rho", 0.5)
    changed |= {"version": 3, "row_level": False, "min_cohort": 10, "max_rho_per_job": 0.5}
    assert answer(node_home, "policy", "show", artifact) == before | changed
    assert "kernels: sum, linear" in run(node_home, "policy", "show", artifact).stdout
