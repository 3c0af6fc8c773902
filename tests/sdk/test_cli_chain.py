"""Commands about the chain: what makes no sense is refused, and then nothing is written or proposed."""

from __future__ import annotations

import json
import resource
import stat
import time
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chain_fixture import Consortium
from usufruct.cli import app
from usufruct.cli.chain import _read_validators
from usufruct.errors import InputError
from usufruct.home import Home
from usufruct.records import Role
from usufruct_node.enrol import create_home

LATER = int(time.time()) + 1_000_000


@pytest.fixture
def home(consortium: Consortium, tmp_path: Path) -> Path:
    """A home whose network file says that the chain is a Subnet-EVM, so that the members can be read from it."""
    network = consortium.network.model_copy(update={"profile": "subnet-evm"})
    (tmp_path / "organisation.json").write_text("{}")
    network.save(Home.at(tmp_path).network_file)
    return tmp_path


def recovery(home: Path, *words: object, at: int = LATER) -> Result:
    given = ["network", "recovery", "--home", home, "--at", at, "--output", home / "upgrade.json", *words]
    return CliRunner().invoke(app, [str(word) for word in given])


def test_the_upgrade_file_names_those_to_suspend_and_keeps_earlier_upgrades(home: Path) -> None:
    answer = recovery(home, "--suspend", "south", "--suspend", "auditor", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["suspended"] == ["south", "auditor"]
    (first,) = json.loads((home / "upgrade.json").read_text())["stateUpgrades"]
    assert first["blockTimestamp"] == LATER

    (home / "upgrade.json").rename(home / "earlier.json")
    answer = recovery(home, "--suspend", "north", "--earlier", home / "earlier.json", at=LATER + 1)
    assert answer.exit_code == 0, answer.output
    written = json.loads((home / "upgrade.json").read_text())["stateUpgrades"]
    assert [upgrade["blockTimestamp"] for upgrade in written] == [LATER, LATER + 1]
    assert written[0] == first


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "3",
        '{"stateUpgrades": 3}',
        '{"stateUpgrades": [{}]}',
        '{"stateUpgrades": [{"blockTimestamp": "1"}]}',
    ],
)
def test_what_is_no_upgrade_file_is_refused(home: Path, content: str) -> None:
    (home / "earlier.json").write_text(content)
    answer = recovery(home, "--suspend", "south", "--earlier", home / "earlier.json")
    assert answer.exit_code == 2, answer.output
    assert "is no upgrade file" in answer.stderr
    assert not (home / "upgrade.json").exists()


def test_a_time_that_is_past_and_members_that_are_none_are_refused(home: Path) -> None:
    for answer, said in [
        (recovery(home, "--suspend", "south", at=1), "is past"),
        (recovery(home, "--suspend", "south", "--suspend", "nobody"), "'nobody' is not an active member"),
        (recovery(home, "--suspend", "south", "--earlier", home / "absent.json"), "cannot be read"),
    ]:
        assert answer.exit_code == 2, answer.output
        assert said in answer.stderr
        assert not (home / "upgrade.json").exists()


def test_a_file_that_is_there_is_not_written_over(home: Path) -> None:
    (home / "upgrade.json").write_text("mine")
    answer = recovery(home, "--suspend", "south")
    assert answer.exit_code == 2
    assert (home / "upgrade.json").read_text() == "mine"


def members_file(place: Path) -> Path:
    """What a single founder agrees on."""
    create_home(
        place / "north",
        name="north",
        roles=Role.STEWARD,
        authority_passphrase="one",
        node_passphrase="two",
    )
    (place / "members.toml").write_text(
        'chain_id = 881\ndeployer = "north"\nparticipants = ["north/participant.json"]\n'
    )
    return place / "members.toml"


def test_a_file_that_a_full_disk_cut_is_not_there_and_the_retry_writes_it(home: Path) -> None:
    genesis = ["network", "init", "--members", members_file(home), "--output", home / "genesis.json"]
    commands = {
        "upgrade.json": partial(recovery, home, "--suspend", "south"),
        "genesis.json": lambda: CliRunner().invoke(app, [str(word) for word in genesis]),
    }
    before = {path.name for path in home.iterdir()}
    for name, command in commands.items():
        usual, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            answer = command()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (usual, hard))
        assert answer.exit_code == 2, answer.output
        assert f"{name} cannot be written: File too large" in answer.stderr.replace("\n", " ")
        assert {path.name for path in home.iterdir()} == before
        assert command().exit_code == 0
        json.loads((home / name).read_text())
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o644
        before.add(name)


KEYS = ["0x80" + "00" * 46 + f"{number:02x}" for number in (2, 1, 3)]
DESCRIPTION = {
    "network_id": 5,
    "blockchain_id_hex": "0x" + "cc" * 32,
    "validators": [{"bls_public_key": key, "weight": number} for number, key in enumerate(KEYS)],
}


def test_validators_are_read_in_the_order_of_the_signer_bits_and_those_without_a_vote_left_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "consortium.json").write_text(json.dumps(DESCRIPTION))
    pin = _read_validators(tmp_path / "consortium.json")
    assert [(validator.key, validator.weight) for validator in pin.validators] == [(KEYS[1], 1), (KEYS[2], 2)]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"validators": []}',
        json.dumps({**DESCRIPTION, "validators": []}),
        json.dumps({**DESCRIPTION, "validators": [{"bls_public_key": "0x80", "weight": 1}]}),
        json.dumps({**DESCRIPTION, "validators": [{"bls_public_key": KEYS[0], "weight": 1 << 64}]}),
        json.dumps({**DESCRIPTION, "validators": [{"bls_public_key": KEYS[0], "weight": 1}] * 2}),
    ],
)
def test_what_describes_no_validators_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "consortium.json").write_text(content)
    with pytest.raises(InputError, match="describes no validators"):
        _read_validators(tmp_path / "consortium.json")


def test_validators_of_another_chain_are_not_proposed(node_home: Home, tmp_path: Path) -> None:
    (tmp_path / "consortium.json").write_text(json.dumps(DESCRIPTION))
    words = ["network", "propose-validators", tmp_path / "consortium.json", "--home", node_home.root]
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 2, answer.output
    assert "another chain" in answer.stderr
