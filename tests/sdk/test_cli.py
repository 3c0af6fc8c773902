"""The command line: every command explains itself; bad input is one clear line on stderr, its exit code, nothing done."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from bundle_fixture import SCHEMA
from usufruct.cli import app
from usufruct.cli.terminal import cell, counted, custodian_keystore, out, printable, say
from usufruct.client import Client
from usufruct.errors import ConfigurationError, UsufructError, VerificationError
from usufruct.home import Home, Organisation
from usufruct.ledger import Network
from usufruct.ledger import compile as compile_module
from usufruct.ledger.compile import find_compiler
from usufruct.lineage import Progress
from usufruct.privacy import NoiseLevel
from usufruct.records import JobId, JobState, Refusal, org_id
from usufruct.release import Release
from usufruct_node import cli as node_cli
from usufruct_node import storage_cli
from usufruct_node.cli import app as node_app

ID = "ab" * 32


def run(*words: object, of: typer.Typer = app) -> Result:
    return CliRunner().invoke(of, [str(word) for word in words])


def commands(of: typer.Typer) -> list[tuple[str, ...]]:
    def walk(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        inner = getattr(command, "commands", {})
        return [path, *(found for name, sub in inner.items() for found in walk(sub, (*path, name)))]

    return walk(typer.main.get_command(of), ())


@pytest.mark.parametrize("path", commands(app), ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    answer = run(*path, "--help")
    assert answer.exit_code == 0
    assert "Usage" in answer.output


@pytest.mark.parametrize("path", commands(node_app), ids=" ".join)
def test_every_command_of_the_node_has_help(path: tuple[str, ...]) -> None:
    assert run(*path, "--help", of=node_app).exit_code == 0


def refused(answer: Result, code: int, *said: str) -> None:
    """One error on stderr, nothing on stdout, the documented exit code, no traceback."""
    assert isinstance(answer.exception, SystemExit), repr(answer.exception)
    assert answer.exit_code == code, answer.stderr
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    for words in said:
        assert words in answer.stderr


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA.to_dict()))
    return path


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.npy"
    np.save(path, np.zeros((5, 2)))
    return path


# Step 1 needs no node.


def test_a_sound_matrix_is_accepted(matrix: Path, schema: Path, tmp_path: Path) -> None:
    answer = run("features", matrix, "--schema", schema, "--json")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout) == {"rows": 5, "features": 2, "max_abs": 100}
    (tmp_path / "m.csv").write_text("y,x\n0.1,0.2\n0.3,0.4\n")
    assert json.loads(run("features", tmp_path / "m.csv", "--schema", schema, "--json").stdout)["rows"] == 2


def test_a_pickle_is_never_loaded(schema: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused(run("features", tmp_path / "trap.npy", "--schema", schema), 2, "cannot be read as a matrix")
    assert not (tmp_path / "sprung").exists()


BAD_MATRICES = {
    "NaN": np.array([[np.nan, 0.0]]),
    "infinity": np.array([[np.inf, 0.0]]),
    "out of range": np.array([[1.5, 0.0]]),
    "pixels": np.zeros((5, 2), dtype=np.uint8),
    "an image": np.zeros((5, 5, 3)),
    "text": np.array([["a", "b"]]),
    "a column too many": np.zeros((5, 3)),
    "one dimension": np.zeros(5),
    "complex": np.zeros((5, 2), dtype=complex),
}


@pytest.mark.parametrize("what", BAD_MATRICES)
def test_a_matrix_that_breaks_its_schema_is_refused(what: str, schema: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", BAD_MATRICES[what])
    refused(run("features", tmp_path / "bad.npy", "--schema", schema), 2)


def test_raw_imagery_is_refused_with_advice(schema: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", BAD_MATRICES["pixels"])
    answer = run("features", tmp_path / "pixels.npy", "--schema", schema)
    refused(answer, 2, "RawImageryRejectedError", "extract features where the images are")


def test_files_that_are_absent_or_of_another_kind_are_refused(
    schema: Path, matrix: Path, tmp_path: Path
) -> None:
    refused(run("features", tmp_path / "absent.npy", "--schema", schema), 2, "absent.npy")
    refused(run("features", matrix, "--schema", tmp_path / "absent.json"), 2, "absent.json")
    refused(run("features", schema, "--schema", schema), 2, "neither .npy nor .csv")
    refused(run("features", tmp_path, "--schema", schema), 2)
    for content in ("", "[]", "{", "null", "1", '{"name": 1}', "[" * 100_000, "\x00"):
        schema.write_text(content)
        refused(run("features", matrix, "--schema", schema), 2)
    schema.write_bytes(b"\xff\xfe")
    refused(run("features", matrix, "--schema", schema), 2)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_matrix_file_never_leaves_the_error_tree(
    matrix: Path, schema: Path, data: st.DataObject
) -> None:
    sound = matrix.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "junk", "zip"]))
    at = data.draw(st.integers(0, len(sound) - 1))
    forged = {
        "cut": sound[:at],
        "flip": sound[:at] + bytes([sound[at] ^ data.draw(st.integers(1, 255))]) + sound[at + 1 :],
        "junk": data.draw(st.binary(max_size=50)),
        "zip": b"PK\x03\x04" + data.draw(st.binary(max_size=50)),
    }[kind]
    path = matrix.with_name("forged.npy")
    path.write_bytes(forged)
    answer = run("features", path, "--schema", schema)
    assert answer.exit_code in (0, 2), repr(answer.exception)
    assert answer.exception is None or isinstance(answer.exception, SystemExit)


@pytest.mark.parametrize(
    "shape", ["(1180591620717411303424, 2)", "(4611686018427387904, 2)", "(5, 2" + "+0" * 4000 + ")"]
)
def test_a_matrix_file_with_a_monstrous_header_is_refused(shape: str, schema: Path, tmp_path: Path) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    forged = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "forged.npy").write_bytes(forged)
    refused(run("features", tmp_path / "forged.npy", "--schema", schema), 2, "cannot be read as a matrix")


@pytest.mark.parametrize(
    "content", ["", "x,y", "x,y\n", "x,y\n1", "x,y\na,b", "x,z\n0,0", "x,x\n0,0", "x,y\n0,0,0", "x,y\nnan,0"]
)
def test_a_malformed_csv_is_refused(content: str, schema: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(content)
    refused(run("features", tmp_path / "bad.csv", "--schema", schema), 2)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("x,y\n0,0\n0,Jane Doe", "row 2, column 2"),
        ("x\n0,Jane Doe", "row 1, column 2"),
        ("0.1,Jane\n0,Jane", "row 1, column 2"),
        ("x,y\n0,at row 77, column 1", "bad.csv"),
    ],
)
def test_a_cell_that_is_no_number_is_named_and_not_shown(
    content: str, place: str, schema: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text(content)
    answer = run("features", tmp_path / "bad.csv", "--schema", schema)
    refused(answer, 2, place)
    assert "Jane" not in answer.stderr and "77, column" not in answer.stderr.replace(place, "")


def test_a_csv_as_spreadsheets_write_it_and_whole_numbers_as_bounds_are_taken(
    schema: Path, tmp_path: Path
) -> None:
    declared = json.loads(schema.read_text())
    for column in declared["columns"]:
        column |= {name: int(column[name]) for name in ("minimum", "maximum")}
    declared["max_l2"] = 10
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(declared))
    (tmp_path / "m.csv").write_bytes(b'\xef\xbb\xbf"x","y"\r\n0.1,"0.2"\r\n0.3,0.4\r\n')
    assert json.loads(run("features", tmp_path / "m.csv", "--schema", whole, "--json").stdout)["rows"] == 2
    (tmp_path / "bare.csv").write_text("x,y\n")
    refused(run("features", tmp_path / "bare.csv", "--schema", whole), 2, "has no rows")


# A file name is not an instruction to the terminal.


@pytest.mark.parametrize("name", ["[/red].npy", "[bold]x[/italic].npy", "\x1b[2J.npy", "a\nb.npy"])
def test_hostile_names_are_shown_and_not_obeyed(name: str, schema: Path, tmp_path: Path) -> None:
    answer = run("features", tmp_path / name, "--schema", schema)
    refused(answer, 2)
    assert "\x1b" not in answer.stderr


# Nor is what others say in a release or a lineage.

HOSTILE = ["sum[/x]", "[bold]sum", ":skull:", "sum\x1b]0;owned\x07\x1b[2J"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_release_is_shown_and_not_obeyed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Release(
        job_id=JobId(bytes(32)),
        kernel=text,
        values=np.array([1, 2]),
        count=10,
        result_scale=1.0,
        noise=(NoiseLevel(2, 1.0, 1),),
        rho_micro=1,
    )
    client = SimpleNamespace(
        find_id=lambda *_: bytes(32), open_release=lambda _: opened, release_artifact=lambda _: bytes(32)
    )
    monkeypatch.setattr(Client, "open", lambda *_, **__: client)
    answer = run("release", ID)
    assert answer.exit_code == 0, repr(answer.exception)
    assert f"kernel: {printable(text)}\n" in answer.stdout
    assert "values: [1 2]\n" in answer.stdout


def test_whoever_waits_for_anothers_job_is_told_whose_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(state=JobState.RELEASED, refusal=Refusal.NONE)
    record = SimpleNamespace(requester=org_id("university"))
    client = SimpleNamespace(
        name="auditor",
        find_id=lambda *_: bytes(32),
        ledger=SimpleNamespace(progress=lambda _: state, job=lambda _: record),
    )
    monkeypatch.setattr(Client, "open", lambda *_, **__: client)
    assert run("job", "wait", ID).stdout == "released, for university\n"
    state.state = JobState.REVEALING
    refused(run("job", "wait", ID, "--timeout", 0), 9, "still REVEALING", "job wait")
    state.state = JobState.STALE_CONSENT
    refused(run("job", "wait", ID), 7, "ended as STALE_CONSENT")


def test_a_job_shows_which_of_its_artifacts_is_which(monkeypatch: pytest.MonkeyPatch) -> None:
    times = dict.fromkeys(("deadline", "posted_at", "changed_at"), 1)
    found = times | {"verdicts": [], "events": [], "artifacts": ["aa" * 32, "bb" * 32]}
    found |= {"rho_micro": 500_000, "sigma_micro": 2_500_000, "refusal": "NONE", "release_digest": "00" * 32}
    client = SimpleNamespace(find_id=lambda *_: bytes(32), find_job=lambda _: found)
    monkeypatch.setattr(Client, "open", lambda *_, **__: client)
    told = run("job", "show", ID).stdout
    assert f"result: {'aa' * 32}\nrelease: {'bb' * 32}\n" in told
    assert "rho: 0.5\nsigma: 2.5 units" in told
    assert "refusal" not in told and "release_digest" not in told


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_index_does_not_steer_the_progress_of_a_lineage(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(_: bytes, *, progress: Progress) -> None:
        progress(text)
        raise VerificationError("a lie")

    client = SimpleNamespace(find_artifact=lambda _: bytes(32), lineage=walk)
    monkeypatch.setattr(Client, "open", lambda *_, **__: client)
    refused(run("lineage", ID), VerificationError.exit_code, "VerificationError: a lie")


@given(st.text(max_size=30))
def test_nothing_that_steers_a_terminal_is_left_in_a_cell(text: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in printable(text))
    assert "\x1b" not in cell([text])


# Homes.


@pytest.mark.parametrize(
    "words",
    [
        ("bundles",),
        ("job", "list"),
        ("job", "show", ID),
        ("rights", "list"),
        ("denials",),
        ("members", "list"),
        ("lineage", ID),
        ("verify", ID),
        ("release", ID),
        ("consent", "withdraw", "ada", "--scope", "x"),
        ("network", "verify"),
    ],
    ids=" ".join,
)
def test_a_directory_that_is_no_home_is_refused_with_what_to_type(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    refused(
        run(*words, "--home", tmp_path), 2, "is not a home directory", "usufruct-node init", "--role ROLE"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("status",), ("peers",), ("doctor",), ("blocks", "list")], ids=" ".join)
def test_the_node_s_commands_have_the_same_home_by_default(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USUFRUCT_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(run(*words, of=node_app), 2, f"{tmp_path}/.usufruct is not a home directory")


def never_asked(*_: object, **__: object) -> str:
    raise AssertionError("a passphrase was asked for")


def test_nothing_is_asked_for_a_home_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usufruct_node.cli.read_passphrase", never_asked)
    words = ("init", "--home", tmp_path / "home", "--name", "Bad Name", "--role", "steward")
    refused(run(*words, of=node_app), 2, "'Bad Name' is not a label")


def test_who_is_no_custodian_is_told_so_and_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usufruct.cli.terminal.read_passphrase", never_asked)
    Home(tmp_path).write("organisation.json", Organisation(name="north", roles=["steward"]))
    with pytest.raises(ConfigurationError, match="north is no custodian"):
        custodian_keystore(Home(tmp_path), None)


# What a pipe gets.


def test_what_is_said_in_a_pipe_is_not_broken_and_no_bar_is_drawn_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "usufruct bundles --home " + "directory/" * 30
    say(f"{command} [bold]")
    with counted("sealing") as progress:
        progress(54, 800)
    assert capsys.readouterr() == (f"{command} [bold]\n", "")


def test_a_bar_knows_no_total_before_it_is_told_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("usufruct.cli.terminal.err", shown)
    with counted("sealing"):
        pass
    assert "0/?" in shown.file.getvalue()


def test_both_programs_write_to_the_same_terminal() -> None:
    assert node_cli.out is storage_cli.out is out


# Recompiling.


def test_a_compiler_that_is_not_there_is_said_before_anything_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compile_module, "_CLONE", tmp_path / "clone")
    with pytest.raises(ConfigurationError, match="no npm package `solc`"):
        find_compiler(Path(sys.executable), None)
    with pytest.raises(ConfigurationError, match="no program"):
        find_compiler(tmp_path / "node", None)


def test_the_clone_s_compiler_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    (clone / "node_modules" / "solc").mkdir(parents=True)
    (clone / "node_modules" / "solc" / "package.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compile_module, "_CLONE", clone)
    assert find_compiler(Path(sys.executable), None)[1] == clone / "node_modules"


def test_a_wrong_passphrase_is_refused(node_home: Home, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the passphrase")
    wrong.chmod(0o600)
    refused(run("bundles", "--home", node_home.root, "--passphrase-file", wrong), 4, "WrongPassphraseError")
    wrong.chmod(0o644)
    refused(run("bundles", "--home", node_home.root, "--passphrase-file", wrong), 4)


# With a running node.


@pytest.mark.parametrize(
    "words",
    [
        ("bundles",),
        ("job", "list"),
        ("rights", "list"),
        ("denials",),
        ("members", "list"),
        ("kernels",),
        ("key-domain", "list"),
        ("consent", "list", "--scope", "study"),
    ],
    ids=" ".join,
)
def test_lists_are_json_for_machines(node_home: Home, words: tuple[str, ...]) -> None:
    place = () if words == ("kernels",) else ("--home", node_home.root)
    answer = run(*words, "--json", *place)
    assert answer.exit_code == 0, answer.stderr
    assert isinstance(json.loads(answer.stdout), list)
    assert run(*words, *place).exit_code == 0


BAD = {
    "malformed job id": (("job", "show", "xyz"), 2),
    "malformed artifact": (("lineage", "zz" * 32), 2),
    "malformed grant": (("rights", "deny", "12", "--reason", "PURPOSE_NOT_GRANTED"), 2),
    "unknown reason": (("rights", "deny", ID, "--reason", "WHIM"), 2),
    "unknown job": (("job", "show", ID), 2),
    "unknown lineage": (("lineage", ID), 2),
    "unknown impact": (("impact", ID), 2),
    "unknown verify": (("verify", ID), 2),
    "unknown release": (("release", ID), 2),
    "unknown state": (("job", "list", "--state", "flying"), 2),
    "unknown kernel": (("rights", "grant", ID, "--kernel", "cube"), 2),
    "uses overflow": (("rights", "grant", ID, "--kernel", "sum", "--uses", 1 << 32), 2),
    "uses zero": (("rights", "grant", ID, "--kernel", "sum", "--uses", 0), 2),
    "rho nan": (("rights", "grant", ID, "--kernel", "sum", "--rho", "nan"), 2),
    "rho infinite": (("rights", "grant", ID, "--kernel", "sum", "--rho", "inf"), 2),
    "rho negative": (("rights", "grant", ID, "--kernel", "sum", "--rho", "-1"), 2),
    "rho overflow": (("rights", "grant", ID, "--kernel", "sum", "--rho", "1e30"), 2),
    "days nan": (("rights", "grant", ID, "--kernel", "sum", "--days", "nan"), 2),
    "days infinite": (("rights", "grant", ID, "--kernel", "sum", "--days", "inf"), 2),
    "unknown grant": (("rights", "grant", ID, "--kernel", "sum"), 2),
    "unknown artifact's budget": (("rights", "budget", ID), 2),
    "unknown bundle": (("bundle", "show", ID), 2),
    "unknown bundle's rights": (("rights", "request", "00" * 32, "--kernel", "sum"), 2),
    "unknown bundle's copies": (("replication", "set", ID, "--copies", 2), 2),
    "unknown job's end": (("job", "wait", ID), 2),
    "unknown key domain": (("key-domain", "retire", ID, "--yes"), 2),
    "unknown member's faults": (("members", "faults", "nobody"), 2),
    "nothing to revoke": (("rights", "revoke"), 2),
    "two to revoke": (("rights", "revoke", ID, "--grantee", "south"), 2),
    "unknown subject": (("consent", "withdraw", "nobody", "--scope", "study"), 2),
    "malformed scope": (("consent", "receipt", "nobody", "--scope", "Not A Label"), 2),
    "unknown proposal": (("members", "vote", 99), 7),
    "unknown status": (("members", "set-status", "north", "--status", "happy"), 2),
    "unknown member's status": (("members", "set-status", "nobody", "--status", "suspended"), 2),
    "unknown member's points": (("members", "forgive", "nobody"), 2),
    "unknown member's fees": (("members", "refuel", "nobody"), 2),
    "malformed name": (("members", "set-status", "[/red]", "--status", "suspended"), 2),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_and_nothing_is_sent(node_home: Home, what: str) -> None:
    words, code = BAD[what]
    before = sent(node_home)
    refused(run(*words, "--home", node_home.root), code)
    assert sent(node_home) == before


def sent(home: Home) -> int:
    """Transactions of the authority so far."""
    from usufruct.client import Client

    client = Client.open(home)
    return int(client.ledger.endpoint.call("eth_getTransactionCount", client.ledger.address, "pending"), 16)


def test_a_hostile_participant_file_is_refused(node_home: Home, tmp_path: Path) -> None:
    sound = json.loads((node_home.root / "participant.json").read_text())
    changes = [
        {"account": "0x12"},
        {"account": "[/red]"},
        {"account": "0x" + "00" * 20},
        {"node_account": "north"},
        {"hpke_key": "zz"},
        {"hpke_key": ""},
        {"hpke_key": "ab"},
        {"hpke_key": "00" * 32},
        {"peer_id": "ab"},
        {"peer_id": "12" * 38},
        {"roles": []},
        {"roles": ["none"]},
        {"endpoint": "/" + "x" * 256},
        {"roles": ["emperor"]},
        {"name": "Not A Label"},
        {"name": "١"},
        {"surprise": 1},
        {"endpoint": None},
    ]
    path = tmp_path / "participant.json"
    before = sent(node_home)
    for change in changes:
        path.write_text(json.dumps(sound | change))
        refused(run("members", "admit", path, "--home", node_home.root), 2)
    for content in ("", "[]", "{"):
        path.write_text(content)
        refused(run("members", "admit", path, "--home", node_home.root), 2)
    assert sent(node_home) == before


def test_nobody_is_admitted_twice(node_home: Home) -> None:
    before = sent(node_home)
    answer = run("members", "admit", node_home.root / "participant.json", "--home", node_home.root)
    refused(answer, 2, "north was admitted before and is ACTIVE", "set-status")
    assert sent(node_home) == before


def test_a_proposal_is_shown_without_whole_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    call = f"admit(account 0x{'ab' * 20}, hpkeKey 0x{'cd' * 32}, endpoint /ip4/127.0.0.1)"
    rows = [{"proposal": 1, "proposer": "north", "call": call, "for": [], "against": [], "executed": False}]
    client = SimpleNamespace(content=SimpleNamespace(query=lambda _: rows))
    monkeypatch.setattr(Client, "open", lambda *_, **__: client)
    shown = run("members", "proposals").stdout
    assert "0xcdcdcdcdcd…" in shown and "cd" * 6 not in shown
    assert json.loads(run("members", "proposals", "--json").stdout) == rows


def test_what_a_publication_is_refused_for_is_found_before_anything_is_sealed(
    node_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seal(*_: object) -> None:
        raise AssertionError("sealed")

    monkeypatch.setattr("usufruct.client.Client.seal", seal)
    made = run("key-domain", "create", "--json", "--home", node_home.root)
    assert made.exit_code == 0, made.stderr
    key_id = json.loads(made.stdout)["key_id"]
    (tmp_path / "subjects").write_text("cy\ndi\n")
    (tmp_path / "notice").write_text("You may withdraw.")
    (tmp_path / "features.csv").write_text("x\n1\n0\n")
    schema = {
        "name": "f",
        "kind": "motion",
        "scale": 1,
        "max_l2": 1.0,
        "columns": [{"name": "x", "minimum": 0.0, "maximum": 1.0}],
        "extractor": {"name": "e", "sha256": "00" * 32},
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    scope = ("--scope", "early-study")
    recorded = run(
        *("consent", "record", tmp_path / "subjects", *scope),
        *("--notice", tmp_path / "notice", "--home", node_home.root),
    )
    assert recorded.exit_code == 0, recorded.stderr
    words = ("publish", tmp_path / "features.csv", "--schema", tmp_path / "schema.json", *scope)
    words += ("--subjects", tmp_path / "subjects", "--key-domain", key_id, "--home", node_home.root)
    assert "sealed" in repr(run(*words, "--kernel", "sum", "--min-cohort", 2).exception)
    for wrong, said in (
        (("--kernel", "cube"), "cube"),
        (("--kernel", "sum", "--min-cohort", 0), "at least 1"),
        (("--kernel", "sum", "--min-cohort", 3), "no release may be of fewer than 3"),
        (("--kernel", "sum", "--budget-rho", "-1"), "positive"),
        (("--kernel", "sum", "--retain-days", 0), "positive"),
        (("--kernel", "sum", "--holder", "nobody", "--copies", 2), "nobody"),
    ):
        refused(run(*words, *wrong), 2, said)


def test_a_number_of_too_many_digits_is_no_json(node_home: Home, tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    huge.write_text('{"scale": ' + "9" * 5000 + "}")
    (tmp_path / "m.csv").write_text("x\n1\n")
    refused(run("features", tmp_path / "m.csv", "--schema", huge), 2, "no JSON")
    words = ("job", "post", ID, "--kernel", "sum", "--rho", "1", "--parameters", huge)
    refused(run(*words, "--home", node_home.root), 2, "no JSON")


@pytest.mark.parametrize(
    ("command", "status"), [("retire", "RETIRED"), ("compromised", "COMPROMISED")], ids=str
)
def test_what_ends_a_key_domain_for_good_asks_first(
    node_home: Home, monkeypatch: pytest.MonkeyPatch, command: str, status: str
) -> None:
    home = ("--home", node_home.root)
    key_id = json.loads(run("key-domain", "create", "--json", *home).stdout)["key_id"]
    before = sent(node_home)
    refused(run("key-domain", command, key_id, *home), 2, "no terminal to ask at", "--yes")
    monkeypatch.setattr("usufruct.cli.terminal.sys", SimpleNamespace(stdin=Terminal()))
    words = ["key-domain", command, key_id, *map(str, home)]
    assert CliRunner().invoke(app, words, input="n\n").exit_code == 1
    assert sent(node_home) == before
    assert f"key domain is {status}\n" in CliRunner().invoke(app, words, input="y\n").stdout
    other = json.loads(run("key-domain", "create", "--json", *home).stdout)["key_id"]
    assert run("key-domain", command, other, "--yes", *home).stdout == f"key domain is {status}\n"


class Terminal:
    """A standard input at which somebody sits."""

    def isatty(self) -> bool:
        return True


def test_a_network_is_not_deployed_whose_file_could_not_be_written(node_home: Home, tmp_path: Path) -> None:
    before = sent(node_home)
    url = Network.load(node_home.network_file).rpc_urls[0]
    words = ("network", "deploy", "--rpc", url, "--founder", node_home.root / "participant.json")
    words += ("--home", node_home.root, "--output")
    refused(run(*words, tmp_path / "absent" / "network.json"), 2, "cannot be written")
    for quorum in (0, -1, 33, 300):
        refused(run(*words, tmp_path / "network.json", "--quorum", quorum), 2, "quorum")
    twice = ("--founder", node_home.root / "participant.json")
    refused(run(*words, tmp_path / "network.json", *twice), 2, "in common")
    assert sent(node_home) == before
    assert not list(tmp_path.iterdir())


def test_consents_are_recorded_once(node_home: Home, tmp_path: Path) -> None:
    (tmp_path / "subjects").write_text("ada\nbob\n\n")
    (tmp_path / "notice").write_text("You may withdraw.")
    words = (
        "consent",
        "record",
        tmp_path / "subjects",
        "--scope",
        "cli-study",
        "--notice",
        tmp_path / "notice",
    )
    answer = run(*words, "--home", node_home.root)
    assert answer.exit_code == 0, answer.stderr
    assert "2 receipts, epoch 1" in answer.stdout
    refused(run(*words, "--home", node_home.root), 2, "already")
    receipt = run("consent", "receipt", "ada", "--scope", "cli-study", "--home", node_home.root)
    assert json.loads(receipt.stdout)["scope"] == "cli-study"
    gone = run("consent", "withdraw", "ada", "--scope", "cli-study", "--home", node_home.root)
    assert "epoch 2" in gone.stdout


def test_the_programs_start_and_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "usufruct", "bundles", "--home", str(tmp_path)], capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "is not a home directory" in answer.stderr


def test_exit_codes_of_the_tree_are_those_documented() -> None:
    def tree(error: type[UsufructError]) -> list[type[UsufructError]]:
        return [error, *(found for sub in error.__subclasses__() for found in tree(sub))]

    codes = {error.__name__: error.exit_code for error in tree(UsufructError)}
    assert codes["InputError"] == 2
    assert codes["IntegrityError"] == 3
    assert codes["KeyStoreError"] == 4
    assert codes["ContentError"] == 5
    assert codes["LedgerError"] == 6
    assert codes["DeniedError"] == 7
    assert codes["VerificationError"] == 8
    assert codes["JobPendingError"] == 9
    assert set(codes.values()) <= set(range(1, 10))
