"""Proves that the code on the chain is the code of this package: recompiles the shipped sources and compares byte by byte.

And that the chain's own lists, where it keeps any, hold what the members decided, and the registry counts what its records say.
"""

from __future__ import annotations

from pathlib import Path

from usufruct.errors import LedgerError, WrongContractCodeError
from usufruct.ledger.abi import CONTRACTS, load_abi
from usufruct.ledger.compile import (
    compare_runtime,
    identify_runtime,
    immutable_values,
    load_standard_input,
    recompile,
)
from usufruct.ledger.deploy import contract_name_word
from usufruct.ledger.ledger import Ledger
from usufruct.ledger.permissions import check_lists
from usufruct.records import MemberStatus, Role

_IMMUTABLES = {
    "PARTICIPANTS": "ParticipantRegistry",
    "KEYS": "KeyRegistry",
    "LINEAGE": "LineageRegistry",
    "CONSENTS": "ConsentRegistry",
    "RIGHTS": "UsageRights",
    "BUDGETS": "PrivacyBudget",
    "PERMISSIONS": "ChainPermissions",
    "JOB_LEDGER": "JobLedger",
    "JOBS": "JobLedger",
    "_cachedThis": "JobLedger",
}
"""Contract that each immutable address must be."""


def verify_network(ledger: Ledger, *, node: Path, node_modules: Path) -> list[dict[str, object]]:
    """Recompile with py-solc-x and compare every contract, its immutable addresses and its authority; then the chain's lists.

    Parameters
    ----------
    node, node_modules :
        The Node program, and the directory with the npm package `solc`.

    Raises
    ------
    WrongContractCodeError
        For the first contract that differs.
    ChainListError
        For the first account that a list of the chain treats otherwise than the members decided.
    LedgerError
        As `check_counts`.
    ConfigurationError
        If the compiler cannot be found.
    """
    network = ledger.network
    built = recompile(load_standard_input(), node=node, node_modules=node_modules)
    manager = _looked_up(ledger, "AccessManager")
    addresses = {**network.contracts, "AddressBook": network.address_book, "AccessManager": manager}
    rows: list[dict[str, object]] = []
    for name, address in addresses.items():
        code = ledger.endpoint.code(address)
        artifact = built[identify_runtime(name, code).name]
        compare_runtime(artifact, code)
        for variable, word in immutable_values(artifact, code).items():
            expected = _IMMUTABLES.get(variable)
            if expected and word[-20:] != bytes.fromhex(addresses[expected][2:]):
                raise WrongContractCodeError(f"{name} was built with another {expected} than the network's")
        if name in CONTRACTS and "authority" in load_abi(artifact.name).functions:
            (authority,) = ledger.read(name, "authority")
            if authority.lower() != manager.lower():
                raise WrongContractCodeError(
                    f"{name} obeys another authority than the network's AccessManager"
                )
        rows.append({"contract": name, "address": address, "size_bytes": len(code), "outcome": "as shipped"})
    check_counts(ledger)
    for found in check_lists(ledger):
        held = f"{found['with_role']} accounts, as the members decided"
        rows.append(
            {"contract": found["list"], "address": found["address"], "size_bytes": 0, "outcome": held}
        )
    return rows


def check_counts(ledger: Ledger) -> None:
    """Compare how many members the registry counts as active, in all and with each role, with what their records say.

    Only a recovery writes these counts otherwise than by a change of a member (see `usufruct.ledger.recovery`).

    Raises
    ------
    LedgerError
        If a count is wrong.
    """
    active = [member for member in ledger.participants() if member.status is MemberStatus.ACTIVE]
    due = {"": (len(active), ledger.read("ParticipantRegistry", "activeCount"))}
    for role in Role:
        holders = sum(role in member.roles for member in active)
        counted = ledger.read("ParticipantRegistry", "activeCountWithRole", int(role))
        due[f" with the role {role.name}"] = holders, counted
    for which, (holders, (counted,)) in due.items():
        if counted != holders:
            raise LedgerError(
                f"the registry counts {counted} active members{which}, but {holders} are",
                hint="if a member changed just now, repeat this; else see docs/consortium.md, Recovery",
            )


def _looked_up(ledger: Ledger, name: str) -> str:
    lookup = load_abi("AddressBook").functions["addressOf"]
    book, tag = ledger.network.address_book, ledger.network.chain.finality_tag
    return str(ledger.endpoint.view(book, lookup, [contract_name_word(name)], tag)[0])
