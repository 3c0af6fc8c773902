"""Making a home: private files, fresh keys, nothing overwritten."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from eth_account import Account
from typer.testing import CliRunner

from usufruct.errors import ConfigurationError, InputError, WrongPassphraseError
from usufruct.home import Home, ParticipantFile
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore
from usufruct.records import Role
from usufruct_node.cli import app
from usufruct_node.enrol import create_home, create_home_with_passphrase_files

ROLES = Role.STEWARD | Role.VERIFIER


def make(root: Path, name: str = "clinic") -> ParticipantFile:
    return create_home(root, name=name, roles=ROLES, authority_passphrase="one", node_passphrase="two")


def test_a_home_holds_private_files_only(tmp_path: Path) -> None:
    create_home_with_passphrase_files(tmp_path / "home", name="clinic", roles=ROLES)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    for path in (tmp_path / "home").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_public_record_fits_the_keys_and_holds_no_secret(tmp_path: Path) -> None:
    record = make(tmp_path / "home")
    home = Home.at(tmp_path / "home")
    authority = identity.load_authority_keys(KeyStore.open(home.authority_keystore, "one"))
    node = identity.load_node_keys(KeyStore.open(home.node_keystore, "two"))
    participant = record.to_participant()
    assert participant.account == Account.from_key(authority.ledger_key).address
    assert participant.node_account == Account.from_key(node.ledger_key).address
    assert participant.hpke_key == authority.hpke_public
    assert participant.roles == ROLES
    assert ParticipantFile.load(home.root / "participant.json") == record
    public = (home.root / "participant.json").read_text()
    for secret in (authority.ledger_key, authority.hpke_private, node.ledger_key, node.peer_seed):
        assert secret.hex() not in public


def test_the_two_keystores_open_with_their_own_passphrases_only(tmp_path: Path) -> None:
    make(tmp_path / "home")
    home = Home.at(tmp_path / "home")
    for path, wrong in ((home.authority_keystore, "two"), (home.node_keystore, "one")):
        with pytest.raises(WrongPassphraseError):
            KeyStore.open(path, wrong)


def test_homomorphic_secrets_have_a_keystore_and_a_passphrase_of_their_own(tmp_path: Path) -> None:
    given = {"name": "clinic", "authority_passphrase": "one", "node_passphrase": "two"}
    for roles, passphrase in ((ROLES, "three"), (ROLES | Role.CUSTODIAN, None)):
        with pytest.raises(ConfigurationError, match="custodian"):
            create_home(tmp_path / "home", roles=roles, custodian_passphrase=passphrase, **given)
    create_home(tmp_path / "home", roles=ROLES | Role.CUSTODIAN, custodian_passphrase="three", **given)
    home = Home.at(tmp_path / "home")
    for wrong in ("one", "two"):
        with pytest.raises(WrongPassphraseError):
            KeyStore.open(home.custodian_keystore, wrong)
    assert KeyStore.open(home.custodian_keystore, "three").names() == []
    make(tmp_path / "other")
    assert not Home.at(tmp_path / "other").custodian_keystore.exists()


def test_a_home_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "home")
    before = {path.name: path.read_bytes() for path in (tmp_path / "home").iterdir()}
    with pytest.raises(ConfigurationError, match="already"):
        make(tmp_path / "home", name="other")
    assert {path.name: path.read_bytes() for path in (tmp_path / "home").iterdir()} == before


def test_a_place_that_can_be_no_home_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(ConfigurationError, match="is no directory"):
            make(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_member_has_a_role(tmp_path: Path) -> None:
    words = ["init", "--home", str(tmp_path / "home"), "--name", "clinic", "--role", "none"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2
    assert "at least one role" in answer.stderr
    assert not (tmp_path / "home").exists()


def test_a_name_that_is_no_label_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        make(tmp_path / "home", name="Not A Label")
    assert not (tmp_path / "home").exists()


def test_two_homes_share_no_key(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "two")
    for field in ("account", "node_account", "hpke_key", "peer_id"):
        assert getattr(one, field) != getattr(other, field)
