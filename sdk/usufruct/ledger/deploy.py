"""Deploys a network's contracts, wires their roles, leaves the members' council as the only administrator.

Sends nothing itself: the caller gives a function that sends one transaction. Reads nothing from the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eth_abi.abi import encode
from eth_utils.address import to_checksum_address

from usufruct.errors import LedgerError
from usufruct.ledger.abi import abi_type, load_abi, to_abi
from usufruct.ledger.compile import load_artifact
from usufruct.records import Participant, Timings

ADMIN_ROLE = 0
"""Role of the AccessManager for everything that is not wired otherwise; in the end the council's alone."""

JOB_LEDGER_ROLE = 1
"""Role for what a job's life changes in other contracts; held by `JobLedger`."""

JOB_LEDGER_FUNCTIONS = {
    "LineageRegistry": ("recordDerived",),
    "UsageRights": ("consumeUse", "restoreUse"),
    "PrivacyBudget": ("reserve", "settle", "refund"),
}

DEPLOYMENT_ORDER = (
    "AccessManager",
    "ParticipantRegistry",
    "KeyRegistry",
    "LineageRegistry",
    "ConsentRegistry",
    "UsageRights",
    "PrivacyBudget",
    "JobLedger",
    "MemberCouncil",
)
"""Names in the address book, in its order; `AddressBook` itself comes last."""


class Deployment(Protocol):
    """What is needed of a receipt."""

    @property
    def contract_address(self) -> str | None:
        """Address of the contract that the transaction created."""


Transact = Callable[[str | None, bytes], Deployment]
"""Sends `(to, data)` as one transaction from the deployer's account, creating a contract when `to` is None.

Returns once it is mined; raises when it reverts."""


def contract_name_word(name: str) -> bytes:
    """A contract's name as the address book holds it: ASCII, padded with zeros on the right to 32 bytes."""
    return name.encode("ascii").ljust(32, b"\0")


def deploy(
    *,
    transact: Transact,
    deployer: str,
    founders: Sequence[Participant | tuple[Any, ...]],
    parameters: Sequence[tuple[bytes, int]],
    timings: Timings,
    quorum: int,
    voting_period: int,
    quorum_bps: int,
) -> dict[str, str]:
    """Deploy and wire every contract of a new network.

    The deployer administers until the last two transactions, which hand over to the council and renounce. A
    deployment that fails midway leaves contracts that no network file names; start again from nothing.

    Parameters
    ----------
    transact :
        Sends one transaction from `deployer`.
    deployer :
        Address of the account that `transact` sends from.
    founders :
        Founding members; `status` is ignored. They become members without a vote.
    parameters :
        Allowed homomorphic parameter sets, as (id of 32 bytes, security bits).
    timings :
        Seconds per job state.
    quorum :
        Fewest agreeing verifiers of any job.
    voting_period, quorum_bps :
        The council's: seconds that a proposal stays open; share of members that support must exceed, in basis
        points.

    Returns
    -------
    contracts :
        Checksummed address by contract name: `DEPLOYMENT_ORDER` and `AddressBook`.

    Raises
    ------
    LedgerError
        If a creation has no contract address. Whatever `transact` raises passes through.
    """
    contracts: dict[str, str] = {}

    def create(name: str, *arguments: object) -> None:
        address = transact(None, _creation_code(name, arguments)).contract_address
        if address is None:
            raise LedgerError(f"the transaction that creates {name} has no contract address")
        contracts[name] = to_checksum_address(address)

    def call(name: str, function: str, *arguments: object) -> None:
        transact(contracts[name], load_abi(name).functions[function].encode(arguments))

    def at(*names: str) -> list[str]:
        return [contracts[name] for name in names]

    create("AccessManager", deployer)
    create("ParticipantRegistry", *at("AccessManager"))
    create("KeyRegistry", *at("AccessManager", "ParticipantRegistry"))
    create("LineageRegistry", *at("AccessManager", "ParticipantRegistry", "KeyRegistry"))
    create("ConsentRegistry", *at("ParticipantRegistry"))
    create("UsageRights", *at("AccessManager", "ParticipantRegistry", "LineageRegistry"))
    create("PrivacyBudget", *at("AccessManager", "ParticipantRegistry", "LineageRegistry", "UsageRights"))
    create(
        "JobLedger",
        *at("AccessManager", "ParticipantRegistry", "KeyRegistry", "LineageRegistry"),
        *at("ConsentRegistry", "UsageRights", "PrivacyBudget"),
        timings,
        quorum,
    )
    create("MemberCouncil", *at("ParticipantRegistry"), voting_period, quorum_bps)

    for target, functions in JOB_LEDGER_FUNCTIONS.items():
        selectors = [load_abi(target).functions[function].selector for function in functions]
        call("AccessManager", "setTargetFunctionRole", contracts[target], selectors, JOB_LEDGER_ROLE)
    call("AccessManager", "grantRole", JOB_LEDGER_ROLE, contracts["JobLedger"], 0)
    for founder in founders:
        call("ParticipantRegistry", "admit", founder)
    for parameters_id, security_bits in parameters:
        call("KeyRegistry", "allowParameters", parameters_id, security_bits)
    create("AddressBook", [contract_name_word(name) for name in DEPLOYMENT_ORDER], at(*DEPLOYMENT_ORDER))
    call("AccessManager", "grantRole", ADMIN_ROLE, contracts["MemberCouncil"], 0)
    call("AccessManager", "renounceRole", ADMIN_ROLE, deployer)
    return contracts


def _creation_code(name: str, arguments: Sequence[object]) -> bytes:
    artifact = load_artifact(name)
    constructor = next(entry for entry in artifact.abi if entry["type"] == "constructor")
    types = [abi_type(entry) for entry in constructor["inputs"]]
    return artifact.bytecode + encode(types, [to_abi(argument) for argument in arguments])
