"""A home directory: what is missing or malformed is said in one typed error."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from usufruct.client import Client, micro, seconds
from usufruct.durable import write_private
from usufruct.errors import (
    ConfigurationError,
    InputError,
    JobFailedError,
    JobPendingError,
    KeyStoreError,
    NodeUnreachableError,
    UsufructError,
    WrongPassphraseError,
)
from usufruct.home import Home, Organisation
from usufruct.keys.he_keys import create_key_domain
from usufruct.records import ArtifactKind, JobId, JobState, Refusal, Role


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "organisation.json").write_text('{"name": "clinic", "roles": ["steward", "verifier"]}')
    return Home.at(tmp_path)


def test_an_organisation_is_read_with_its_roles(home: Home) -> None:
    organisation = home.organisation()
    assert organisation.role_bits == Role.STEWARD | Role.VERIFIER
    assert organisation.id.rstrip(b"\0") == b"clinic"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"name": 1, "roles": []}', '{"name": "a", "roles": "x"}',
                                     '{"name": "a", "roles": [], "key": 1}', "\x00"])  # fmt: skip
def test_a_malformed_organisation_is_refused(home: Home, content: str) -> None:
    (home.root / "organisation.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"organisation\.json"):
        home.organisation()


def test_unknown_roles_and_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="emperor"):
        _ = Organisation(name="a", roles=["emperor"]).role_bits
    with pytest.raises(InputError):
        _ = Organisation(name="A B", roles=[]).id


def test_a_directory_that_is_no_home_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigurationError, match="not a home directory") as caught:
            Home.at(path)
        assert "usufruct-node init" in caught.value.hint


def test_a_node_that_does_not_run_is_said_so(home: Home) -> None:
    with pytest.raises(NodeUnreachableError, match="no node runs"):
        home.node_address()
    (home.root / "api.json").write_text("{}")
    with pytest.raises(NodeUnreachableError, match="no node runs"):
        home.node_address()
    with (home.root / "node.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError):
            home.node_address()


def test_private_files_are_written_whole_and_readable_by_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "absent" / "secret", b"x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "full").touch()
    with pytest.raises(OSError, match="taken"):
        write_private(tmp_path / "taken", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret", "taken"], "no temporary file is left"


def test_a_private_file_is_on_disk_before_it_has_its_name_and_its_name_before_anybody_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves the old file, or none, behind what its writer went on to do: a token, a passphrase."""
    path, synced, real = tmp_path / "secret", [], os.fsync
    path.write_bytes(b"old")

    def fsync(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_private(path, b"new")
    assert synced == [(False, b"old"), (True, b"new")]


# Opening a client.


def test_a_client_of_a_running_node_opens_and_asks(node_home: Home) -> None:
    client = Client.open(node_home)
    assert client.name == "north"
    # Other tests may have published at this node already.
    assert {bundle.artifact_id.hex() for bundle in client.bundles()} == {
        row["artifact_id"] for row in client.content.query("/bundles")
    }
    assert client.denials() == []


@pytest.mark.parametrize(
    ("missing", "error", "said"),
    [
        ("authority.keys", KeyStoreError, "authority.keys"),
        ("network.json", ConfigurationError, "network.json"),
        ("api.json", NodeUnreachableError, "no node runs"),
        ("api.token", ConfigurationError, "api.token"),
        ("organisation.json", ConfigurationError, "not a home directory"),
    ],
)
def test_a_home_that_lacks_a_file_is_refused(
    node_home: Home, tmp_path: Path, missing: str, error: type[UsufructError], said: str
) -> None:
    for path in node_home.root.iterdir():
        if (
            path.is_file()
            and path.name != missing
            and path.suffix in (".json", ".keys", ".token", ".passphrase")
        ):
            write_private(tmp_path / path.name, path.read_bytes())
    with (tmp_path / "node.lock").open("a") as running, pytest.raises(error, match=said):
        fcntl.flock(running, fcntl.LOCK_EX)
        Client.open(tmp_path)


def test_a_wrong_or_public_passphrase_file_is_refused(node_home: Home, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    write_private(wrong, b"not it")
    with pytest.raises(WrongPassphraseError):
        Client.open(node_home, passphrase_file=wrong)
    right = tmp_path / "right"
    right.write_bytes(node_home.authority_passphrase.read_bytes())
    right.chmod(0o644)
    with pytest.raises(KeyStoreError):
        Client.open(node_home, passphrase_file=right)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -float("inf"), "1", None, True, [1]])
def test_budgets_and_durations_are_positive_finite_numbers(value: Any) -> None:
    for convert in (micro, seconds):
        with pytest.raises(InputError):
            convert(value)
    assert (micro(1.5), micro(1e-12), seconds(0.5)) == (1_500_000, 1, 43_200)
    assert micro(np.float64(1.5)) == 1_500_000 and seconds(np.int64(1)) == 86_400


def test_what_is_no_bundle_is_named_before_anything_is_asked(node_home: Home) -> None:
    client = Client.open(node_home)
    for wrong in ("ab" * 32, None, b"\xab" * 32):
        for use in (
            lambda bundle: client.post(bundle, "sum", rho=1),
            lambda bundle: client.parameters(bundle, "sum"),
            lambda bundle: client.estimate(bundle, {}, rho=1),
            lambda bundle: client.quantise_model(bundle, [1.0], 0.0),
        ):
            with pytest.raises(InputError, match="a bundle is wanted, not"):
                use(wrong)


def test_ids_are_found_by_their_first_digits_only_when_they_are_unambiguous(node_home: Home) -> None:
    client = Client.open(node_home)
    for text in ("", "abc", "zzzz", "ab" * 33, "zz" * 32, "../.."):
        with pytest.raises(InputError, match=" is no job"):
            client.find_id("job", text)
    for text, said in (("abcd", "no job begins with abcd"), ("ab" * 32, "no job has the id abababababab…")):
        with pytest.raises(InputError, match=said) as refused:
            client.find_id("job", text)
        assert not refused.value.hint


def test_a_whole_id_that_the_ledger_knows_needs_no_index(
    node_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client.open(node_home)
    _, public = create_key_domain()
    key_id = client.register_key_domain(public)

    def query(_: str) -> None:
        raise NodeUnreachableError("off")

    monkeypatch.setattr(client.content, "query", query)
    assert client.find_id("key domain", "0x" + key_id.hex().upper()) == key_id
    with pytest.raises(NodeUnreachableError):
        client.find_id("job", key_id.hex())


class Desk(Client):
    """A client whose node and ledger say what a test wants."""

    def __init__(self, state: JobState, *, artifacts: list[str]) -> None:
        self.name = "north"
        self.indexed: list[dict[str, str]] = []
        self.artifacts = artifacts
        self.content = SimpleNamespace(query=self._query, await_block=self._await_block)
        unknown = SimpleNamespace(kind=ArtifactKind.NONE)
        self.ledger = SimpleNamespace(
            finalised=lambda: SimpleNamespace(number=7),
            artifact=lambda _: unknown,
            progress=lambda _: SimpleNamespace(state=state, refusal=Refusal.NONE),
            job=lambda _: None,
        )

    def _query(self, path: str) -> object:
        if path.startswith("/ids/"):
            return [entry for entry in self.indexed if entry["id"].startswith(path[5:])]
        return {"artifacts": self.artifacts}

    def _await_block(self, number: int) -> None:
        assert number == 7
        self.indexed = [{"kind": "job", "id": "ab" * 32}, {"kind": "grant", "id": "ab" * 31 + "00"}]


RESULT, RELEASE = "01" * 32, "02" * 32


def test_an_id_that_the_index_learns_a_moment_later_is_found() -> None:
    assert Desk(JobState.NONE, artifacts=[]).find_id("job", "abab") == b"\xab" * 32


@pytest.mark.parametrize(
    ("state", "artifacts", "found"),
    [(JobState.RELEASED, [RESULT, RELEASE], RELEASE), (JobState.VERIFIED, [RESULT], RESULT)],
)
def test_a_job_stands_for_what_it_left(state: JobState, artifacts: list[str], found: str) -> None:
    desk = Desk(state, artifacts=artifacts)
    for text in ("ab" * 32, "abab"):
        assert desk.find_artifact(text).hex() == found


def test_a_job_that_left_nothing_stands_for_no_artifact() -> None:
    with pytest.raises(JobPendingError, match="still CLAIMED"):
        Desk(JobState.CLAIMED, artifacts=[]).find_artifact("ab" * 32)
    with pytest.raises(InputError, match="ended as DENIED and left no result"):
        Desk(JobState.DENIED, artifacts=[]).find_artifact("ab" * 32)
    with pytest.raises(InputError, match="no artifact or job begins with cdcd"):
        Desk(JobState.NONE, artifacts=[]).find_artifact("cdcd")


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (JobState.COMMITTED, JobPendingError),
        (JobState.REFUTED, JobFailedError),
        (JobState.NONE, InputError),
    ],
)
def test_a_release_is_not_opened_before_there_is_one(state: JobState, error: type[UsufructError]) -> None:
    with pytest.raises(error):
        Desk(state, artifacts=[]).open_release(JobId(b"\xab" * 32))


def test_a_list_longer_than_the_node_gives_at_once_is_fetched_whole(
    node_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client.open(node_home)
    entries = [{"id": f"{n:02}"} for n in range(11)]
    asked = []

    def query(path: str, *, limit: int, offset: int, **_: object) -> list[dict[str, str]]:
        asked.append((path, limit, offset))
        if offset:  # Meanwhile another came in, and shifted the rest.
            return ([{"id": "new"}, *entries])[offset : offset + limit]
        return entries[offset : offset + limit]

    monkeypatch.setattr("usufruct.content.node._PAGE", 4)
    monkeypatch.setattr(client.content, "query", query)
    assert [entry["id"] for entry in client.denials()] == [entry["id"] for entry in entries]
    assert asked == [("/denials", 4, offset) for offset in (0, 4, 8, 12)]
