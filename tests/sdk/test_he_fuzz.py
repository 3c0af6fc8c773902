"""Hostile containers, a bounded number of them; `scripts/fuzz he` runs as many as one likes."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))

import ckks_container
import he_container
from he_container import (
    ATTACKS,
    CASES,
    PEAK_LIMIT_MB,
    FuzzFailure,
    fuzz,
    independent_verdict,
    outcome,
    valid_block,
)

from usufruct.he.container import Form
from usufruct.he.parameters import Parameters


def test_malformed_blocks_are_refused_or_canonical_and_memory_stays_bounded() -> None:
    done = subprocess.run(
        [sys.executable, he_container.__file__, "--n", "5000", "--seed", "7"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert sum(report["outcomes"].values()) == 5000
    assert set(report["outcomes"]) == he_container.REFUSALS | {"canonical", "key_id"}
    assert report["peak_rss_mb"] < PEAK_LIMIT_MB


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0].scheme}-{case[0].poly_modulus_degree}-{case[1].name.lower()}"
)
def test_every_crafted_attack_is_refused_for_its_reason(case: tuple[Parameters, Form]) -> None:
    rng = random.Random(3)
    block = valid_block(*case, rng)
    assert outcome(block) == "canonical" and independent_verdict(block)
    for attack in ATTACKS:
        for _ in range(10):
            data, expected = attack(block, rng)
            seen = outcome(data)
            assert expected is None or seen == expected
            assert independent_verdict(data) == (seen == "canonical")


def test_the_fuzzer_notices_a_parser_that_accepts_what_is_not_canonical(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Positive control: without the check of residues, the run fails and keeps the input."""
    from usufruct.he import container

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(container, "_check_residues", lambda c0, others, parameters: None)
    with pytest.raises(FuzzFailure, match="kept as"):
        fuzz(300, seed=1)
    assert len(list(tmp_path.glob("fuzz-he-*.bin"))) == 1


def test_malformed_blocks_of_the_ckks_plug_in_are_refused_or_canonical() -> None:
    report = ckks_container.fuzz(400, seed=5)
    assert set(report["outcomes"]) >= ckks_container.REFUSALS - {"magic", "version", "scheme"}


@pytest.mark.parametrize("form", list(ckks_container.Form), ids=lambda form: form.name.lower())
def test_every_crafted_attack_on_the_ckks_plug_in_is_refused_for_its_reason(
    form: ckks_container.Form,
) -> None:
    rng = random.Random(4)
    block = ckks_container.valid_block(form, rng)
    assert ckks_container.outcome(block, form) == "canonical"
    assert ckks_container.independent_verdict(block, form)
    for attack in ckks_container.ATTACKS:
        data, expected = attack(block, form, rng)
        seen = ckks_container.outcome(data, form)
        assert expected is None or seen == expected
        assert ckks_container.independent_verdict(data, form) == (seen == "canonical")
