"""One vote governs both levels: what the council decides about a member, every validator enforces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from chain_fixture import CAST, Organisation, until, word
from governed_fixture import GovernedConsortium
from usufruct.errors import ChainListError, TransactionRevertedError
from usufruct.ledger.code import verify_network
from usufruct.ledger.finality import follow_validators
from usufruct.ledger.permissions import LISTS, check_lists
from usufruct.ledger.subnet_evm import (
    DEPLOYER_ALLOW_LIST,
    FOUNDER_FUNDS_WEI,
    NATIVE_MINTER,
    TRANSACTION_ALLOW_LIST,
    AllowListRole,
    set_role_call,
)
from usufruct.records import MemberStatus, Role
from validators_fixture import CHAIN_ID

NODE_MODULES = Path(__file__).resolve().parents[2] / "node_modules"
REFUSED = "cannot issue transaction from non-allow listed address"
STRANGER = to_checksum_address("0x" + "5a" * 20)
GAS_PRICE = 2


def signed(governed: GovernedConsortium, key: bytes, **fields: Any) -> bytes:
    """A transaction that nothing but a list can refuse: next nonce, funds and price in order."""
    address = Account.from_key(key).address
    nonce = governed.reader.endpoint.quantity("eth_getTransactionCount", address, "pending")
    plain = {
        "nonce": nonce,
        "gas": 200_000,
        "gasPrice": GAS_PRICE,
        "value": 0,
        "chainId": CHAIN_ID,
        "data": b"",
    }
    return bytes(Account.sign_transaction({"to": STRANGER, **plain, **fields}, key).raw_transaction)


def mined(governed: GovernedConsortium, raw: bytes) -> dict[str, Any]:
    endpoint = governed.reader.endpoint
    digest = endpoint.call("eth_sendRawTransaction", "0x" + raw.hex())
    until(lambda: endpoint.call("eth_getTransactionReceipt", digest) is not None)
    receipt: dict[str, Any] = endpoint.call("eth_getTransactionReceipt", digest)
    return receipt


def keys_of(member: Organisation) -> tuple[bytes, bytes]:
    return member.authority_key, member.node_key


def decide(governed: GovernedConsortium, member: Organisation, status: MemberStatus) -> None:
    governed.govern("ParticipantRegistry", "setStatus", member.id, status)


def govern_calls(governed: GovernedConsortium, calls: list[tuple[str, bytes]]) -> None:
    """Have the council make calls to what is no contract of the network; three blocks, however many calls."""
    first, *others = (governed[name] for name in CAST)
    (made,) = governed.reader.read("MemberCouncil", "proposalCount")
    numbers = range(made + 1, made + 1 + len(calls))
    governed.together((first.ledger, "MemberCouncil", "propose", *call) for call in calls)
    governed.together((m.ledger, "MemberCouncil", "vote", n, True) for m in others for n in numbers)
    governed.together((first.ledger, "MemberCouncil", "execute", n) for n in numbers)


def test_a_founded_network_administers_its_chain_alone(governed: GovernedConsortium) -> None:
    rows = {row["address"]: row["with_role"] for row in check_lists(governed.reader)}
    council_and_permissions, accounts = 2, 2 * len(governed.members)
    assert rows == {
        DEPLOYER_ALLOW_LIST: 1,
        NATIVE_MINTER: council_and_permissions,
        TRANSACTION_ALLOW_LIST: council_and_permissions + accounts,
    }


def test_founding_validators_stand_in_the_contract_as_in_the_network_file(
    governed: GovernedConsortium,
) -> None:
    pin = governed.network.finality
    assert pin is not None
    (first, *_) = follow_validators(governed.reader.endpoint, governed.network)
    assert first.pin == pin
    # Another test may have voted for other weights since; keys stay.
    _, keys, weights = governed.reader.read("ValidatorSet", "current")
    assert "0x" + keys.hex() == "0x" + "".join(validator.key[2:] for validator in pin.validators)
    assert len(weights) == len(pin.validators)
    assert governed.reader.read("ValidatorSet", "chain") == (bytes.fromhex(pin.chain[2:]),)


def test_removed_members_raw_transactions_are_refused_by_every_validator(
    governed: GovernedConsortium,
) -> None:
    member = governed.join("passing", Role.PARTNER)
    for key in keys_of(member):
        assert mined(governed, signed(governed, key))["status"] == "0x1"
    hoarded = signed(governed, member.node_key)
    for status in (MemberStatus.SUSPENDED, MemberStatus.ACTIVE, MemberStatus.REMOVED):
        governed.govern("ParticipantRegistry", "setStatus", member.id, status)
        if status is MemberStatus.ACTIVE:
            assert mined(governed, signed(governed, member.authority_key))["status"] == "0x1"
        else:
            for raw in (hoarded, *(signed(governed, key) for key in keys_of(member))):
                reasons = governed.refusals(raw)
                assert len(reasons) == 5
                assert all(REFUSED in reason for reason in reasons), reasons
        check_lists(governed.reader)


def test_strangers_with_funds_are_refused_by_every_validator(governed: GovernedConsortium) -> None:
    key = word()
    gift = {"to": Account.from_key(key).address, "value": 10**9}
    assert mined(governed, signed(governed, governed["north"].authority_key, **gift))["status"] == "0x1"
    assert all(REFUSED in reason for reason in governed.refusals(signed(governed, key)))


def test_an_admitted_member_has_fees_and_transacts_but_creates_no_contract(
    governed: GovernedConsortium,
) -> None:
    member = governed.join("late", Role.PARTNER | Role.COMPUTE)
    balances = [
        governed.reader.endpoint.quantity("eth_getBalance", address, "latest")
        for address in (member.record.account, member.record.node_account)
    ]
    assert balances == [FOUNDER_FUNDS_WEI] * 2
    member.node.transact("ParticipantRegistry", "setEndpoint", "/dns4/late/tcp/4001")
    for key in (*keys_of(member), governed["north"].authority_key):
        creation = {"to": b"", "data": bytes.fromhex("600160005360016000f3")}
        receipt = mined(governed, signed(governed, key, **creation))
        assert receipt["status"] == "0x0"
        code = governed.reader.endpoint.call("eth_getCode", receipt["contractAddress"] or STRANGER, "latest")
        assert code == "0x"


def test_no_member_changes_a_list_or_mints_by_itself(governed: GovernedConsortium) -> None:
    member, endpoint = governed["north"], governed.reader.endpoint
    attempts = [
        (precompile, set_role_call(STRANGER, role)) for precompile in LISTS.values() for role in AllowListRole
    ]
    mint = keccak(text="mintNativeCoin(address,uint256)")[:4] + encode(["address", "uint256"], [STRANGER, 1])
    attempts.append((NATIVE_MINTER, mint))
    nonce = endpoint.quantity("eth_getTransactionCount", member.record.node_account, "pending")
    sent = [
        endpoint.call(
            "eth_sendRawTransaction",
            "0x" + signed(governed, member.node_key, to=to, data=data, nonce=nonce + i).hex(),
        )
        for i, (to, data) in enumerate(attempts)
    ]
    until(lambda: endpoint.call("eth_getTransactionReceipt", sent[-1]) is not None)
    receipts = [endpoint.call("eth_getTransactionReceipt", digest) for digest in sent]
    assert [receipt["status"] for receipt in receipts] == ["0x0"] * len(attempts)
    check_lists(governed.reader)


def test_roles_beside_the_members_decisions_are_found_one_by_one(governed: GovernedConsortium) -> None:
    account = governed["auditor"].record.node_account
    wrong = [
        (DEPLOYER_ALLOW_LIST, STRANGER, AllowListRole.ADMIN, AllowListRole.NONE),
        (NATIVE_MINTER, STRANGER, AllowListRole.ENABLED, AllowListRole.NONE),
        (TRANSACTION_ALLOW_LIST, account, AllowListRole.NONE, AllowListRole.ENABLED),
    ]
    govern_calls(governed, [(precompile, set_role_call(who, role)) for precompile, who, role, _ in wrong])
    for precompile, who, role, due in wrong:
        with pytest.raises(ChainListError, match=f"{role.name} instead of {due.name}") as caught:
            check_lists(governed.reader)
        assert (LISTS[caught.value.what], caught.value.account) == (precompile, who)
        govern_calls(governed, [(precompile, set_role_call(who, due))])
    check_lists(governed.reader)


def test_a_member_without_fees_is_fuelled_by_another(governed: GovernedConsortium) -> None:
    member, helper = governed["compute"], governed["south"]
    endpoint, address = governed.reader.endpoint, member.record.node_account
    balance = endpoint.quantity("eth_getBalance", address, "latest")
    spent = {"value": balance - 21_000 * GAS_PRICE, "gas": 21_000}
    assert mined(governed, signed(governed, member.node_key, **spent))["status"] == "0x1"
    assert endpoint.quantity("eth_getBalance", address, "latest") < 21_000 * GAS_PRICE
    helper.ledger.transact("ChainPermissions", "refuel", address)
    assert endpoint.quantity("eth_getBalance", address, "latest") == FOUNDER_FUNDS_WEI
    member.node.transact("ParticipantRegistry", "setEndpoint", "/dns4/compute/tcp/4001")
    with pytest.raises(TransactionRevertedError, match="NotAllowed"):
        helper.ledger.transact("ChainPermissions", "refuel", STRANGER)


def test_contracts_and_lists_are_verified_as_one_network(governed: GovernedConsortium) -> None:
    rows = verify_network(
        governed.reader, node=Path(sys.executable).parent / "node", node_modules=NODE_MODULES
    )
    assert {row["contract"] for row in rows} > {"ChainPermissions", "ValidatorSet", *LISTS}
