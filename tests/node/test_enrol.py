"""Making a home: private files, fresh keys, nothing overwritten."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account
from typer.testing import CliRunner

from usufruct.errors import ConfigurationError, InputError, WrongPassphraseError
from usufruct.home import Home, ParticipantFile
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore
from usufruct.ledger import Network
from usufruct.ledger.network import CONTRACTS
from usufruct.records import Role
from usufruct_node import enrol
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


def stopped(root: Path, how: str) -> None:
    """A process that makes a home and is killed on the way."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom usufruct.records import Role\n"
        "from usufruct_node import enrol\n"
        f"{how}\n"
        "enrol.create_home_with_passphrase_files(Path(sys.argv[1]), name='clinic', roles=Role.STEWARD)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], check=False, capture_output=True)
    assert done.returncode == 9, done.stderr.decode()


AMONG_THE_KEYS = "enrol.identity.create_node_keys = lambda _: os._exit(9)"
BEFORE_THE_LAST_FILE_IS_IN_PLACE = """
link = Path.hardlink_to
Path.hardlink_to = lambda to, of: os._exit(9) if to.name == "organisation.json" else link(to, of)
"""


@pytest.mark.parametrize(
    ("is_there", "how"),
    [(False, AMONG_THE_KEYS), (True, AMONG_THE_KEYS), (True, BEFORE_THE_LAST_FILE_IS_IN_PLACE)],
    ids=["new", "there", "there, nearly whole"],
)
def test_a_home_whose_making_was_killed_is_made_by_the_next_attempt(
    tmp_path: Path, is_there: bool, how: str
) -> None:
    root = tmp_path / "home"
    if is_there:
        root.mkdir(mode=0o755)
        (root / "node.toml").write_text("")
    stopped(root, how)
    assert not (root / "organisation.json").exists()
    record = create_home_with_passphrase_files(root, name="clinic", roles=ROLES)
    home = Home.at(root)
    keys = identity.load_node_keys(KeyStore.open(home.node_keystore, home.node_passphrase.read_text()))
    assert Account.from_key(keys.ledger_key).address == record.node_account
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not [path.name for path in root.iterdir() if path.is_dir()]
    assert {path.stat().st_nlink for path in root.iterdir()} == {1}


@pytest.mark.parametrize("at", range(5))
def test_a_home_whose_making_was_interrupted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    steps = iter(range(at + 1))

    def interrupted(path: Path, data: bytes) -> None:
        if next(steps) == at:
            raise KeyboardInterrupt
        path.write_bytes(data)

    monkeypatch.setattr(enrol, "write_private", interrupted)
    monkeypatch.setattr(Home, "write", lambda home, name, model: interrupted(home.root / name, b""))
    with pytest.raises(KeyboardInterrupt):
        create_home_with_passphrase_files(tmp_path / "home", name="clinic", roles=ROLES | Role.CUSTODIAN)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_keeps_its_files_and_its_mode_unless_it_is_empty(tmp_path: Path) -> None:
    for name, mode in (("empty", 0o700), ("used", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
        if name == "used":
            (tmp_path / name / "node.toml").write_text("listen_port = 1")
        make(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    assert (tmp_path / "used" / "node.toml").read_text() == "listen_port = 1"


def test_a_file_in_the_way_is_named_and_nothing_else_is_put_there(tmp_path: Path) -> None:
    (tmp_path / "node.keys").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"/node\.keys exists already"):
        make(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("node.keys", "mine")]


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Home, "write", full)
    with pytest.raises(ConfigurationError, match="cannot be made a home: No space left"):
        make(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_the_network_file_is_in_the_home_from_the_beginning(tmp_path: Path) -> None:
    network = Network(
        profile="embedded",
        chain_id=1,
        genesis_hash="0x" + "00" * 32,
        rpc_urls=("http://127.0.0.1:1",),
        address_book="0x" + "11" * 20,
        contracts=dict.fromkeys(CONTRACTS, "0x" + "22" * 20),
        deployed_at_block=0,
    )
    create_home(
        tmp_path / "home",
        name="clinic",
        roles=ROLES,
        authority_passphrase="one",
        node_passphrase="two",
        network=network,
    )
    assert Network.load(tmp_path / "home" / "network.json") == network
