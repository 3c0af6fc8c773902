"""`usufruct-node blocks`: what it says of a home's store, and what it exits with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from block_homes import EmbeddedHome
from kubo_fixture import Kubo
from usufruct.content import Cid, Codec, EmbeddedBlockStore
from usufruct.home import Home
from usufruct_node.cli import app
from usufruct_node.holdings import Holdings, Purpose

BUNDLE = b"\x0b" * 32


def blocks(home: Home, *words: str) -> tuple[int, object]:
    answer = CliRunner().invoke(app, ["blocks", *words, "--home", str(home.root), "--json"])
    return answer.exit_code, json.loads(answer.output) if answer.output.startswith(
        ("[", "{")
    ) else answer.output


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "north")
    made.root.mkdir()
    (made.root / "organisation.json").write_text('{"name": "north", "roles": ["steward"]}')
    with EmbeddedBlockStore(made.blocks) as store:
        store.put_many([b"one", b"three"], pin=f"bundle:{BUNDLE.hex()}")
        store.put(b"\xa0", Codec.DAG_CBOR, pin="bundle")
        store.put(b"loose")
    yield made


def test_pins_say_what_is_kept_for_whom_and_list_why_each_block_is_here(home: Home) -> None:
    reason = f"bundle:{BUNDLE.hex()}"
    assert blocks(home, "pins") == (
        0,
        [
            {"reason": "bundle", "blocks": 1, "size_bytes": 1},
            {"reason": reason, "blocks": 2, "size_bytes": 8},
        ],
    )
    assert blocks(home, "pins", "--prefix", "bundle:")[1] == [
        {"reason": reason, "blocks": 2, "size_bytes": 8}
    ]
    code, rows = blocks(home, "list")
    assert code == 0
    assert {row["cid"]: row["kept_for"] for row in rows} == {
        str(Cid.of(b"one")): [reason],
        str(Cid.of(b"three")): [reason],
        str(Cid.of(b"\xa0", Codec.DAG_CBOR)): ["bundle"],
        str(Cid.of(b"loose")): [],
    }


def test_gc_removes_what_nobody_keeps(home: Home) -> None:
    assert blocks(home, "gc") == (0, {"removed": 1, "freed_bytes": 5})
    assert blocks(home, "gc") == (0, {"removed": 0, "freed_bytes": 0})


def test_missing_names_blocks_of_own_bundles_and_nothing_of_ended_jobs(home: Home) -> None:
    with closing(Holdings(home.node_database)) as holdings:
        holdings.add([Cid.of(b"one"), Cid.of(b"two")], Purpose.BUNDLE, BUNDLE)
        holdings.add([Cid.of(b"a result")], Purpose.RESULT, BUNDLE)
    assert blocks(home, "missing") == (
        1,
        [{"cid": str(Cid.of(b"two")), "needed_for": f"bundle:{BUNDLE.hex()}"}],
    )


def test_a_scan_exits_with_one_while_a_block_is_damaged(home: Home) -> None:
    assert blocks(home, "scan") == (0, [])
    EmbeddedHome(home.blocks).damage(Cid.of(b"three"))
    code, rows = blocks(home, "scan")
    assert code == 1
    assert rows == [
        {
            "cid": str(Cid.of(b"three")),
            "state": "corrupt",
            "kept_for": [f"bundle:{BUNDLE.hex()}"],
            "error": "",
        }
    ]


def test_a_home_of_kubo_adopts_what_the_embedded_store_kept(home: Home, kubo: Kubo) -> None:
    assert blocks(home, "adopt")[0] == 2
    (home.root / "node.toml").write_text(f'kubo_address = "{kubo.address}"\n')
    home.kubo_token.write_text(kubo.home.kubo_token.read_text())
    home.kubo_token.chmod(0o600)
    assert blocks(home, "adopt") == (0, {"copied": 3})
    assert blocks(home, "scan") == (0, [])
    assert len(kubo.at_rest()) == 3
    assert blocks(home, "pins", "--prefix", "bundle:")[1][0]["blocks"] == 2
