"""Checks that the chain's own lists hold what the members decided, and nothing else. Reads; sends nothing.

The lists are Subnet-EVM's precompiles. They cannot be enumerated, so every account that genesis, an upgrade or an event ever
named is asked for. Absent: who keeps the lists (`contracts/SubnetEvmPermissions.sol`), how they are handed over (`deploy.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from usufruct.errors import ChainListError, WrongContractCodeError
from usufruct.ledger.compile import identify_runtime
from usufruct.ledger.endpoint import well_formed
from usufruct.ledger.ledger import Ledger
from usufruct.ledger.subnet_evm import (
    DEPLOYER_ALLOW_LIST,
    NATIVE_MINTER,
    TRANSACTION_ALLOW_LIST,
    AllowListRole,
    read_allow_list_call,
)
from usufruct.records import MemberStatus, Participant

LISTS = {
    "contract creators": DEPLOYER_ALLOW_LIST,
    "fee minters": NATIVE_MINTER,
    "transaction senders": TRANSACTION_ALLOW_LIST,
}
"""The lists by what those on it are."""

ROLE_SET = keccak(text="RoleSet(uint256,address,address,uint256)")
"""Topic of the event with which a list tells a change; the account is the second indexed argument."""

_NAMED_IN_CONFIG = ("adminAddresses", "managerAddresses", "enabledAddresses")


def due_roles(
    participants: Iterable[Participant], *, council: str, permissions: str
) -> dict[tuple[str, str], AllowListRole]:
    """The role that each account must have on each list, by (list, account); who is not in it must have none.

    The council administers all three; the permissions contract manages who sends, and mints; the accounts of active
    members send.
    """
    due: dict[tuple[str, str], AllowListRole] = {
        (precompile, to_checksum_address(council)): AllowListRole.ADMIN for precompile in LISTS.values()
    }
    due[TRANSACTION_ALLOW_LIST, to_checksum_address(permissions)] = AllowListRole.MANAGER
    due[NATIVE_MINTER, to_checksum_address(permissions)] = AllowListRole.ENABLED
    for member in participants:
        if member.status is MemberStatus.ACTIVE:
            for account in (member.account, member.node_account):
                due[TRANSACTION_ALLOW_LIST, to_checksum_address(account)] = AllowListRole.ENABLED
    return due


def check_lists(ledger: Ledger) -> list[dict[str, object]]:
    """Check the chain's lists against the members' registry, as of the newest finalised block.

    Returns
    -------
    rows :
        One for each list: how many accounts were asked for, how many hold a role. None on chains without lists.

    Raises
    ------
    WrongContractCodeError
        If the network's permissions are not those that its kind of chain needs.
    ChainListError
        If an account has another role than it must have.
    LedgerUnreachableError, LedgerError
        If the endpoint does not answer, or not in a form that makes sense.
    """
    wanted = ledger.network.chain.permissions
    contracts = ledger.network.contracts
    found = identify_runtime("ChainPermissions", ledger.endpoint.code(contracts["ChainPermissions"])).name
    if found != wanted:
        raise WrongContractCodeError(f"ChainPermissions is {found}, but this kind of chain needs {wanted}")
    if wanted != "SubnetEvmPermissions":
        return []
    members = ledger.participants()
    due = due_roles(members, council=contracts["MemberCouncil"], permissions=contracts["ChainPermissions"])
    accounts = _ever_named(ledger) | {account for _, account in due}
    accounts |= {to_checksum_address(a) for member in members for a in (member.account, member.node_account)}
    rows: list[dict[str, object]] = []
    for what, precompile in LISTS.items():
        roles = _roles(ledger, precompile, sorted(accounts))
        for account, role in roles.items():
            must = due.get((precompile, account), AllowListRole.NONE)
            if role is not must:
                raise ChainListError(what, account, role.name, must.name)
        holders = sum(role is not AllowListRole.NONE for role in roles.values())
        rows.append({"list": what, "address": precompile, "asked": len(roles), "with_role": holders})
    return rows


def _roles(ledger: Ledger, precompile: str, accounts: Sequence[str]) -> dict[str, AllowListRole]:
    tag = ledger.network.chain.finality_tag
    calls = [
        ("eth_call", ({"to": precompile, "data": "0x" + read_allow_list_call(account).hex()}, tag))
        for account in accounts
    ]
    answers = ledger.endpoint.batch(calls)
    with well_formed("the endpoint"):
        return {
            account: AllowListRole(int(answer, 16)) for account, answer in zip(accounts, answers, strict=True)
        }


def _ever_named(ledger: Ledger) -> set[str]:
    config = ledger.endpoint.call("eth_getChainConfig")
    logs = ledger.endpoint.logs(list(LISTS.values()), 0, ledger.endpoint.finalised().number)
    with well_formed("the endpoint"):
        told = {log["topics"][2][-40:] for log in logs if bytes.fromhex(log["topics"][0][2:]) == ROLE_SET}
        return {to_checksum_address("0x" + account[-40:]) for account in told | set(_in_config(config))}


def _in_config(config: Any) -> Iterator[str]:
    """Accounts that a chain's configuration puts on a list, by genesis, by an upgrade, or by writing the list's storage."""
    if isinstance(config, list):
        for item in config:
            yield from _in_config(item)
    elif isinstance(config, Mapping):
        for key, value in config.items():
            if key in _NAMED_IN_CONFIG:
                yield from value
            elif key.lower() in LISTS.values() and "storage" in value:
                yield from value["storage"]
            else:
                yield from _in_config(value)
