"""The genesis of a chain of the members' own: who may do what on it from the first block, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from usufruct.cli import app
from usufruct.errors import ConfigurationError
from usufruct.ledger.profile import PROFILES
from usufruct.ledger.subnet_evm import (
    BLOCK_GAS_LIMIT,
    AllowListRole,
    GenesisMember,
    genesis,
    mint_call,
    read_allow_list_call,
    set_role_call,
)

addresses = st.binary(min_size=20, max_size=20).filter(any).map(to_checksum_address)
founders = st.lists(addresses, min_size=2, max_size=20, unique=True).map(
    lambda found: [
        GenesisMember(account=found[i], node_account=found[i + 1]) for i in range(0, len(found) - 1, 2)
    ]
)


def account(number: int) -> str:
    return to_checksum_address(number.to_bytes(20, "big"))


def members(*numbers: int) -> list[GenesisMember]:
    return [GenesisMember(account=account(n), node_account=account(n + 100)) for n in numbers]


@given(founders, st.data())
def test_founders_and_nobody_else_are_funded_and_listed(
    who: list[GenesisMember], data: st.DataObject
) -> None:
    accounts = {a for member in who for a in (member.account, member.node_account)}
    deployer = data.draw(st.sampled_from(sorted(accounts)))
    made = genesis(chain_id=5, members=who, deployer=deployer)
    config = made["config"]
    assert set(made["alloc"]) == accounts
    assert all(int(entry["balance"], 16) > 0 for entry in made["alloc"].values())
    listed = config["txAllowListConfig"]
    assert {*listed["adminAddresses"], *listed["enabledAddresses"]} == accounts
    assert len(listed["enabledAddresses"]) == len(accounts) - 1
    for name in ("txAllowListConfig", "contractDeployerAllowListConfig", "contractNativeMinterConfig"):
        assert config[name]["adminAddresses"] == [deployer]
    for name in ("contractDeployerAllowListConfig", "contractNativeMinterConfig"):
        assert "enabledAddresses" not in config[name]
        assert "managerAddresses" not in config[name]


def test_same_founders_give_the_same_genesis() -> None:
    made = [
        json.dumps(genesis(chain_id=9, members=members(1, 2), deployer=account(1).lower())) for _ in range(2)
    ]
    assert made[0] == made[1]


def test_block_gas_is_what_the_profile_says() -> None:
    assert PROFILES["subnet-evm"].block_gas == BLOCK_GAS_LIMIT
    made = genesis(chain_id=9, members=members(1), deployer=account(1))
    assert int(made["gasLimit"], 16) == made["config"]["feeConfig"]["gasLimit"] == BLOCK_GAS_LIMIT
    assert made["config"]["feeConfig"]["minBaseFee"] <= PROFILES["subnet-evm"].minimum_gas_price


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chain_id": 0}, "no chain id"),
        ({"chain_id": 1 << 53}, "no chain id"),
        ({"members": members(1, 1)}, "share an account"),
        ({"members": members(1, 101)}, "share an account"),
        ({"members": [GenesisMember(account=account(1), node_account=account(1))]}, "share an account"),
        ({"members": [GenesisMember(account=account(1), node_account=account(0))]}, "no account"),
        ({"members": [GenesisMember(account=account(1), node_account="0x12")]}, "no account"),
        ({"deployer": account(3)}, "no founding member"),
        ({"members": []}, "no founding member"),
    ],
)
def test_unusable_founders_are_refused(changes: dict[str, object], said: str) -> None:
    good = {"chain_id": 5, "members": members(1, 2), "deployer": account(1)}
    genesis(**good)
    with pytest.raises(ConfigurationError, match=said):
        genesis(**(good | changes))


def test_call_data_is_what_the_precompiles_parse() -> None:
    argument = bytes(12) + bytes.fromhex(account(7)[2:])
    assert read_allow_list_call(account(7)) == keccak(text="readAllowList(address)")[:4] + argument
    names = {
        AllowListRole.NONE: "setNone",
        AllowListRole.ENABLED: "setEnabled",
        AllowListRole.ADMIN: "setAdmin",
        AllowListRole.MANAGER: "setManager",
    }
    for role, name in names.items():
        assert set_role_call(account(7), role) == keccak(text=f"{name}(address)")[:4] + argument
    minted = keccak(text="mintNativeCoin(address,uint256)")[:4] + argument + (5).to_bytes(32, "big")
    assert mint_call(account(7), 5) == minted
    for amount in (-1, 1 << 256):
        with pytest.raises(ConfigurationError, match="no amount"):
            mint_call(account(7), amount)


# `usufruct network init`


def founding(directory: Path, text: str | None = None) -> Path:
    """A members file with two participants beside it."""
    for number, name in enumerate(("north", "south"), 1):
        described = {
            "name": name,
            "roles": ["steward"],
            "account": account(number),
            "node_account": account(number + 100),
            "hpke_key": "01" * 32,
            "peer_id": "002408011220" + f"{number:02x}" * 32,
            "endpoint": "/ip4/127.0.0.1/tcp/4001",
        }
        (directory / f"{name}.json").write_text(json.dumps(described), "utf-8")
    file = directory / "members.toml"
    file.write_text(
        text or 'chain_id = 777\ndeployer = "south"\nparticipants = ["north.json", "south.json"]\n', "utf-8"
    )
    return file


def init(members_file: Path, output: Path, *more: str) -> object:
    return CliRunner().invoke(
        app, ["network", "init", "--members", str(members_file), "--output", str(output), *more]
    )


def test_init_writes_the_genesis_that_the_founders_agreed_on(tmp_path: Path) -> None:
    output = tmp_path / "genesis.json"
    answer = init(founding(tmp_path), output, "--profile", "subnet-evm", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout) == {"genesis_file": str(output), "chain_id": 777, "founders": 2}
    assert json.loads(output.read_text("utf-8")) == genesis(
        chain_id=777, members=members(1, 2), deployer=account(2)
    )


def test_init_never_overwrites_a_genesis(tmp_path: Path) -> None:
    output = tmp_path / "genesis.json"
    output.write_text("in use", "utf-8")
    assert init(founding(tmp_path), output).exit_code == 2
    assert output.read_text("utf-8") == "in use"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chain_id = 777", "no members file"),
        ("chain_id =", "no members file"),
        ('chain_id = -1\ndeployer = "south"\nparticipants = ["north.json"]', "no members file"),
        ('chain_id = 777\ndeployer = "south"\nparticipants = []', "no members file"),
        ('chain_id = 777\ndeployer = "south"\nparticipants = ["south.json"]\nadmin = "x"', "no members file"),
        ('chain_id = 777\ndeployer = "east"\nparticipants = ["south.json"]', "no participant"),
        ('chain_id = 777\ndeployer = "south"\nparticipants = ["south.json", "south.json"]', "same name"),
        ('chain_id = 777\ndeployer = "south"\nparticipants = ["missing.json"]', "no participant file"),
    ],
)
def test_init_refuses_an_unusable_members_file_and_writes_nothing(
    tmp_path: Path, text: str, said: str
) -> None:
    output = tmp_path / "genesis.json"
    answer = init(founding(tmp_path, text), output)
    assert answer.exit_code == 2
    assert said in " ".join(answer.stderr.split())
    assert not output.exists()


def test_init_knows_which_profiles_have_a_genesis(tmp_path: Path) -> None:
    answer = init(founding(tmp_path), tmp_path / "genesis.json", "--profile", "embedded")
    assert answer.exit_code == 2
    assert "subnet-evm" in answer.stderr
