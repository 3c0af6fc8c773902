"""The commands that carry a bundle on a stick, from sealing to import, at a real node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bundle_fixture import SCHEMA, SCOPE
from usufruct.cli import app
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
