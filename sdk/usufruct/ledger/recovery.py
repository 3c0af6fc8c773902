"""Way out of a council that cannot decide any more: an upgrade of the chain's state that suspends members who are lost.

Pure: makes the file on which the validators' operators have to agree. Absent: how they apply it (`docs/consortium.md`,
"Recovery").

The council needs the support of more than its quorum of active members. When so many have lost their keys, or never answer,
that the others can reach it no more, no transaction helps, for no transaction may change who counts as active. Validators can:
by common consent, from one block on, the state says that the lost members are suspended. Then the council votes again.

An upgrade emits no event. The recovered council therefore sets the same status once more by a vote: its event tells every
index what the state says already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from usufruct.errors import InputError
from usufruct.ledger.network import Network
from usufruct.ledger.subnet_evm import TRANSACTION_ALLOW_LIST, AllowListRole
from usufruct.records import MemberStatus, OrgId, Participant, Role

# `ParticipantRegistry` as the compiler lays it out; tests/sdk/test_ledger_recovery.py asks the compiler.
MEMBERS_SLOT = 1
ACTIVE_WITH_ROLE_SLOT = 4
ACTIVE_SLOT = 6
NODE_ACCOUNT_WORD = 1
"""Word of a `Member` that holds node account, roles, status and number, from the lowest bit on."""
ROLES_SHIFT = 160
STATUS_SHIFT = 176
NUMBER_SHIFT = 184


def suspension_storage(participants: Iterable[Participant], suspend: Collection[OrgId]) -> dict[int, int]:
    """Words of `ParticipantRegistry` to write so that members count as suspended, by slot.

    Parameters
    ----------
    participants :
        All organisations ever admitted, in order of admission, as the registry has them now.
    suspend :
        Active members to suspend.

    Raises
    ------
    InputError
        If nobody is to be suspended, one that is to be is not an active member, or no active member would be left.
    """
    known = list(participants)
    active = {member.id for member in known if member.status is MemberStatus.ACTIVE}
    for org in suspend:
        if org not in active:
            raise InputError(f"0x{org.hex()} is not an active member")
    left = [member for member in known if member.id in active and member.id not in suspend]
    if not suspend or not left:
        raise InputError("a recovery suspends at least one member and leaves at least one active")
    words = {ACTIVE_SLOT: len(left)}
    for role in Role:
        words[_mapped(encode(["uint16"], [int(role)]), ACTIVE_WITH_ROLE_SLOT)] = sum(
            role in member.roles for member in left
        )
    for number, member in enumerate(known, start=1):
        if member.id in suspend:
            slot = _mapped(member.id, MEMBERS_SLOT) + NODE_ACCOUNT_WORD
            words[slot] = (
                int(member.node_account, 16)
                | int(member.roles) << ROLES_SHIFT
                | int(MemberStatus.SUSPENDED) << STATUS_SHIFT
                | number << NUMBER_SHIFT
            )
    return words


def recovery_upgrade(
    network: Network,
    participants: Sequence[Participant],
    suspend: Collection[OrgId],
    *,
    activation: int,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of the `upgrade.json` that suspends members on a Subnet-EVM chain and takes them off its transaction list.

    Parameters
    ----------
    network, participants :
        The network, and all organisations ever admitted, in order of admission, as its registry has them now.
    suspend :
        Active members to suspend.
    activation :
        Unix seconds: the first block from then on has the new state. Every validator must have the file before, or it
        parts from the others.
    earlier :
        The `upgrade.json` in use, if any: upgrades that were applied must stay in the file.

    Raises
    ------
    InputError
        If the chain is no Subnet-EVM, if `activation` does not follow the earlier upgrades, or as `suspension_storage`.
    """
    if network.chain.permissions != "SubnetEvmPermissions":
        raise InputError(
            f"a {network.profile} chain has no upgrade file",
            hint="docs/consortium.md, Recovery, says what is possible on other chains",
        )
    content = dict(earlier or {})
    upgrades = list(content.get("stateUpgrades", ()))
    if upgrades and not activation > upgrades[-1]["blockTimestamp"]:
        raise InputError(
            f"{activation} does not follow the last upgrade, at {upgrades[-1]['blockTimestamp']}"
        )
    registry = suspension_storage(participants, suspend)
    accounts = [
        int(account, 16)
        for member in participants
        if member.id in suspend
        for account in (member.account, member.node_account)
    ]
    upgrades.append(
        {
            "blockTimestamp": activation,
            "accounts": {
                network.contracts["ParticipantRegistry"]: {"storage": _hex(registry)},
                TRANSACTION_ALLOW_LIST: {"storage": _hex(dict.fromkeys(accounts, int(AllowListRole.NONE)))},
            },
        }
    )
    return {**content, "stateUpgrades": upgrades}


def _mapped(key: bytes, slot: int) -> int:
    """Slot of a mapping's value. Source: Solidity documentation, "Layout of State Variables in Storage"."""
    return int.from_bytes(keccak(key + slot.to_bytes(32, "big")), "big")


def _hex(words: Mapping[int, int]) -> dict[str, str]:
    return {f"0x{slot:064x}": f"0x{word:064x}" for slot, word in words.items()}
