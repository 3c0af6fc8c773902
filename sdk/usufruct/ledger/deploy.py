"""Deploys a network's contracts, wires their roles, leaves the members' council as the only administrator.

Sends nothing itself: the caller gives a function that sends one transaction. Reads nothing from the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import rlp
from eth_abi.abi import encode
from eth_utils.address import to_canonical_address, to_checksum_address
from eth_utils.crypto import keccak

from usufruct.errors import ConfigurationError, LedgerError
from usufruct.ledger.abi import IMPLEMENTATIONS, abi_type, load_abi, to_abi
from usufruct.ledger.compile import load_artifact
from usufruct.ledger.subnet_evm import (
    DEPLOYER_ALLOW_LIST,
    FOUNDER_FUNDS_WEI,
    NATIVE_MINTER,
    TRANSACTION_ALLOW_LIST,
    AllowListRole,
    set_role_call,
)
from usufruct.records import ZERO_32, Participant, ReputationRule, Timings

ADMIN_ROLE = 0
"""Role of the AccessManager for everything that is not wired otherwise; in the end the council's alone."""

REGISTRY_ROLE = 1
"""Role for who may send transactions at all; held by `ParticipantRegistry`."""

REPUTATION_ROLE = 2
"""Role for who may suspend a member by rule; held by `Reputation`."""

WIRING = (
    (REGISTRY_ROLE, "ParticipantRegistry", "ChainPermissions", ("allow", "revoke")),
    (REPUTATION_ROLE, "Reputation", "ParticipantRegistry", ("suspend",)),
)
"""Roles of the AccessManager besides the council's: (role, its only holder, contract, functions that it may call)."""

DEPLOYMENT_ORDER = (
    "AccessManager",
    "ChainPermissions",
    "ParticipantRegistry",
    "KeyRegistry",
    "LineageRegistry",
    "ConsentRegistry",
    "UsageRights",
    "PrivacyBudget",
    "JobLedger",
    "MemberCouncil",
    "ValidatorSet",
    "Reputation",
)
"""Names in the address book, in its order; `AddressBook` itself comes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLevel:
    """What of the chain itself the members' council will rule."""

    permissions: str = "OpenPermissions"
    """Contract that carries decisions about members down to the chain; one of those for `ChainPermissions`."""
    fee_allowance_wei: int = FOUNDER_FUNDS_WEI
    """Up to what an account of an active member is filled for fees."""
    fee_period_s: int = 86_400
    """In how many seconds an account receives no more than the allowance."""
    proof_chain: bytes = ZERO_32
    """What finality proofs call the chain; zeros on chains without."""
    validators: tuple[tuple[bytes, int], ...] = ()
    """Compressed BLS public key (48 bytes) and weight of each validator, ascending as `IValidatorSet.sol` asks; none on chains
    without proofs."""

    @property
    def has_lists(self) -> bool:
        """Whether the chain keeps lists that must be handed over to the council."""
        return self.permissions == "SubnetEvmPermissions"


class Deployment(Protocol):
    """What is needed of a receipt."""

    @property
    def contract_address(self) -> str | None:
        """Address of the contract that the transaction created."""


_MAX_NONCE = 100_000

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
    reputation: ReputationRule,
    quorum: int,
    voting_period: int,
    quorum_bps: int,
    chain: ChainLevel | None = None,
    settled: Callable[[], object] = lambda: None,
) -> dict[str, str]:
    """Deploy and wire every contract of a new network.

    The deployer administers until the last transactions, which hand over to the council and renounce: the contracts,
    and on a chain with lists those too, where of its own it stays on the transaction list only, if it is a founder. A
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
    reputation :
        What faults cost, and when a member is suspended for them.
    quorum :
        Fewest agreeing verifiers of any job.
    voting_period, quorum_bps :
        The council's: seconds that a proposal stays open; share of members that support must exceed, in basis
        points.
    chain :
        The chain level; None for a chain without lists and proofs.
    settled :
        Called before the deployer gives its rights away; raises if a transaction so far failed.

    Returns
    -------
    contracts :
        Checksummed address by contract name: `DEPLOYMENT_ORDER` and `AddressBook`.

    Raises
    ------
    ConfigurationError
        If `chain` names no contract for its permissions.
    LedgerError
        If a creation has no contract address. Whatever `transact` raises passes through.
    """
    contracts: dict[str, str] = {}
    chain = chain or ChainLevel()
    if chain.permissions not in IMPLEMENTATIONS["ChainPermissions"]:
        raise ConfigurationError(f"there are no chain permissions {chain.permissions!r}")

    def create(name: str, *arguments: object, implementation: str | None = None) -> None:
        code = _creation_code(implementation or name, arguments)
        address = transact(None, code).contract_address
        if address is None:
            raise LedgerError(f"the transaction that creates {name} has no contract address")
        contracts[name] = to_checksum_address(address)

    def call(name: str, function: str, *arguments: object) -> None:
        transact(contracts[name], load_abi(name).functions[function].encode(arguments))

    def at(*names: str) -> list[str]:
        return [contracts[name] for name in names]

    create("AccessManager", deployer)
    fees = (*at("AccessManager"), chain.fee_allowance_wei, chain.fee_period_s) if chain.has_lists else ()
    create("ChainPermissions", *fees, implementation=chain.permissions)
    create("ParticipantRegistry", *at("AccessManager", "ChainPermissions"))
    create("KeyRegistry", *at("AccessManager", "ParticipantRegistry"))
    create("LineageRegistry", *at("AccessManager", "ParticipantRegistry", "KeyRegistry"))
    create("ConsentRegistry", *at("ParticipantRegistry"))
    job_ledger = contract_address(deployer, nonce_of(deployer, contracts["ConsentRegistry"]) + 3)
    create("UsageRights", *at("ParticipantRegistry", "LineageRegistry"), job_ledger)
    create("PrivacyBudget", *at("ParticipantRegistry", "LineageRegistry"), job_ledger)
    create(
        "JobLedger",
        *at("AccessManager", "ParticipantRegistry", "LineageRegistry"),
        *at("ConsentRegistry", "UsageRights", "PrivacyBudget"),
        timings,
        quorum,
    )
    if contracts["JobLedger"] != job_ledger:
        raise LedgerError(f"JobLedger came to stand at {contracts['JobLedger']}, not at {job_ledger}")
    create("MemberCouncil", *at("ParticipantRegistry"), voting_period, quorum_bps)
    create("ValidatorSet", *at("AccessManager"), chain.proof_chain)
    create("Reputation", *at("AccessManager", "ParticipantRegistry", "JobLedger"), reputation)

    for role, holder, target, functions in WIRING:
        selectors = [load_abi(target).functions[function].selector for function in functions]
        call("AccessManager", "setTargetFunctionRole", contracts[target], selectors, role)
        call("AccessManager", "grantRole", role, contracts[holder], 0)
    if chain.has_lists:
        (permissions,) = at("ChainPermissions")
        transact(TRANSACTION_ALLOW_LIST, set_role_call(permissions, AllowListRole.MANAGER))
        transact(NATIVE_MINTER, set_role_call(permissions, AllowListRole.ENABLED))
    if chain.validators:
        weights = [weight for _, weight in chain.validators]
        call("ValidatorSet", "replace", b"".join(key for key, _ in chain.validators), weights)
    for founder in founders:
        call("ParticipantRegistry", "admit", founder)
    for parameters_id, security_bits in parameters:
        call("KeyRegistry", "allowParameters", parameters_id, security_bits)
    create("AddressBook", [contract_name_word(name) for name in DEPLOYMENT_ORDER], at(*DEPLOYMENT_ORDER))
    settled()
    call("AccessManager", "grantRole", ADMIN_ROLE, contracts["MemberCouncil"], 0)
    call("AccessManager", "renounceRole", ADMIN_ROLE, deployer)
    if chain.has_lists:
        _hand_over_lists(transact, contracts["MemberCouncil"], deployer, founders)
    return contracts


def contract_address(creator: str, nonce: int) -> str:
    """Checksummed address of the contract that an account's transaction with this nonce creates. Source: Yellow Paper, 7."""
    return to_checksum_address(keccak(rlp.encode([to_canonical_address(creator), nonce]))[12:])


def nonce_of(creator: str, created: str) -> int:
    """Nonce of the transaction that created a contract.

    Raises
    ------
    LedgerError
        If none of the account's first 100,000 transactions did.
    """
    for nonce in range(_MAX_NONCE):
        if contract_address(creator, nonce) == created:
            return nonce
    raise LedgerError(f"{creator} did not create {created} in its first {_MAX_NONCE} transactions")


def _hand_over_lists(
    transact: Transact, council: str, deployer: str, founders: Sequence[Participant | tuple[Any, ...]]
) -> None:
    """Make the council the only administrator of each list; the transaction list last, since it lets this send."""
    accounts = {str(account).lower() for founder in founders for account in to_abi(founder)[1:3]}
    member = deployer.lower() in accounts
    for precompile in (DEPLOYER_ALLOW_LIST, NATIVE_MINTER, TRANSACTION_ALLOW_LIST):
        stays = member and precompile == TRANSACTION_ALLOW_LIST
        transact(precompile, set_role_call(council, AllowListRole.ADMIN))
        transact(precompile, set_role_call(deployer, AllowListRole.ENABLED if stays else AllowListRole.NONE))


def _creation_code(name: str, arguments: Sequence[object]) -> bytes:
    artifact = load_artifact(name)
    inputs = next((entry["inputs"] for entry in artifact.abi if entry["type"] == "constructor"), ())
    types = [abi_type(entry) for entry in inputs]
    return artifact.bytecode + encode(types, [to_abi(argument) for argument in arguments])
