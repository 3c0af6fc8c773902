"""What must stand on the chain's lists, and what is asked for; the lists themselves are read in tests/consortium."""

from __future__ import annotations

import pytest

from chain_fixture import Consortium
from usufruct.errors import WrongContractCodeError
from usufruct.ledger.permissions import _in_config, check_lists, due_roles
from usufruct.ledger.subnet_evm import (
    DEPLOYER_ALLOW_LIST,
    NATIVE_MINTER,
    TRANSACTION_ALLOW_LIST,
    AllowListRole,
)
from usufruct.records import MemberStatus, Participant, Role, org_id

COUNCIL, PERMISSIONS = "0x" + "c0" * 20, "0x" + "ad" * 20


def member(number: int, status: MemberStatus) -> Participant:
    return Participant(
        id=org_id(f"m{number}"),
        account=f"0x{2 * number:040x}",
        node_account=f"0x{2 * number + 1:040x}",
        roles=Role.PARTNER,
        status=status,
        hpke_key=bytes(32),
        peer_id=b"peer",
        endpoint="",
    )


def test_only_council_permissions_and_active_members_are_due_a_role() -> None:
    members = [member(i, status) for i, status in enumerate(MemberStatus) if status is not MemberStatus.NONE]
    due = due_roles(members, council=COUNCIL, permissions=PERMISSIONS)
    told = {(precompile, account.lower()): role for (precompile, account), role in due.items()}
    (active,) = (m for m in members if m.status is MemberStatus.ACTIVE)
    assert told == {
        (DEPLOYER_ALLOW_LIST, COUNCIL): AllowListRole.ADMIN,
        (NATIVE_MINTER, COUNCIL): AllowListRole.ADMIN,
        (TRANSACTION_ALLOW_LIST, COUNCIL): AllowListRole.ADMIN,
        (NATIVE_MINTER, PERMISSIONS): AllowListRole.ENABLED,
        (TRANSACTION_ALLOW_LIST, PERMISSIONS): AllowListRole.MANAGER,
        (TRANSACTION_ALLOW_LIST, active.account): AllowListRole.ENABLED,
        (TRANSACTION_ALLOW_LIST, active.node_account): AllowListRole.ENABLED,
    }


def test_accounts_are_found_in_genesis_in_upgrades_and_in_written_storage() -> None:
    slot = "0x" + "00" * 12 + "dd" * 20
    config = {
        "chainId": 1,
        "txAllowListConfig": {"adminAddresses": ["0xaa"], "enabledAddresses": ["0xbb"], "blockTimestamp": 0},
        "upgrades": {
            "precompileUpgrades": [{"contractNativeMinterConfig": {"managerAddresses": ["0xcc"]}}],
            "stateUpgrades": [
                {"accounts": {TRANSACTION_ALLOW_LIST.upper().replace("X", "x"): {"storage": {slot: "0x02"}}}},
                {"accounts": {"0x" + "11" * 20: {"storage": {"0x01": "0x02"}}}},
            ],
        },
    }
    assert sorted(_in_config(config)) == sorted(["0xaa", "0xbb", "0xcc", slot])


def test_a_chain_without_lists_has_nothing_to_check(consortium: Consortium) -> None:
    assert check_lists(consortium.reader) == []


def test_permissions_of_another_kind_of_chain_are_the_wrong_contract(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = consortium.network.model_copy(update={"profile": "subnet-evm"})
    monkeypatch.setattr(consortium.reader, "network", elsewhere)
    with pytest.raises(WrongContractCodeError, match="OpenPermissions, but this kind of chain needs"):
        check_lists(consortium.reader)
