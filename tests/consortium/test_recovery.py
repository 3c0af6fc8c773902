"""A council that cannot decide any more decides again, once the validators have suspended the members who are lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from eth_account import Account
from typer.testing import CliRunner

from chain_fixture import CAST
from governed_fixture import GovernedConsortium
from usufruct.cli import app
from usufruct.errors import TransactionRevertedError
from usufruct.home import Home
from usufruct.ledger.permissions import check_lists
from usufruct.records import MemberStatus, org_id, unlabel
from validators_fixture import CHAIN_ID

LOST = ("north", "south", "compute")
LEFT = ("auditor", "university")
RESTARTS_S = 90
"""Seconds within which all validators have the file; they restart one by one."""


def decide(governed: GovernedConsortium, contract: str, function: str, *arguments: object) -> None:
    """Propose, vote and execute with those who are left, however many more the council may ask for."""
    first, second = (governed[name].ledger for name in LEFT)
    target, data = governed.reader.call_data(contract, function, *arguments)
    receipt = first.transact("MemberCouncil", "propose", target, data)
    number = first.event_of(receipt, "ProposalMade").args["proposalId"]
    second.transact("MemberCouncil", "vote", number, True)
    first.transact("MemberCouncil", "execute", number)


def test_a_deadlocked_council_is_freed_by_its_validators(
    governed: GovernedConsortium, tmp_path: Path
) -> None:
    with pytest.raises(TransactionRevertedError, match="QuorumNotReached"):
        decide(governed, "JobLedger", "setQuorum", 1)

    lost = {org_id(name) for name in LOST}
    others = [
        m for m in governed.reader.participants() if m.name not in CAST and m.status is MemberStatus.ACTIVE
    ]
    suspended = lost | {member.id for member in others}
    activation = int(time.time()) + RESTARTS_S
    file = tmp_path / "upgrade.json"
    (tmp_path / "organisation.json").write_text("{}")
    governed.network.save(Home.at(tmp_path).network_file)
    words = ["network", "recovery", "--home", tmp_path, "--at", activation, "--output", file]
    for org in sorted(suspended):
        words += ["--suspend", unlabel(org)]
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    governed.validators.command("upgrade-state", str(file))
    assert time.time() < activation, "the validators took longer to restart than this test allows"
    governed.open()
    assert not suspended & {
        m.id for m in governed.reader.participants() if m.status is not MemberStatus.ACTIVE
    }

    time.sleep(max(0.0, activation + 1 - time.time()))
    governed[LEFT[0]].ledger.transact("ParticipantRegistry", "setEndpoint", "/dns4/auditor/tcp/4001")
    active = [m.name for m in governed.reader.participants() if m.status is MemberStatus.ACTIVE]
    assert sorted(active) == sorted(LEFT)
    check_lists(governed.reader)
    decide(governed, "JobLedger", "setQuorum", 1)
    assert governed.reader.read("JobLedger", "quorum") == (1,)

    for name in LOST:
        key = governed[name].authority_key
        address = Account.from_key(key).address
        nonce = governed.reader.endpoint.quantity("eth_getTransactionCount", address, "pending")
        fields = {
            "to": address,
            "nonce": nonce,
            "gas": 21_000,
            "gasPrice": 2,
            "value": 1,
            "chainId": CHAIN_ID,
        }
        reasons = governed.refusals(bytes(Account.sign_transaction(fields, key).raw_transaction))
        assert all("non-allow listed" in reason for reason in reasons), reasons

    for org in sorted(suspended):
        decide(governed, "ParticipantRegistry", "setStatus", org, MemberStatus.SUSPENDED)
    told = {
        event.args["id"]
        for event in governed.events(["ParticipantStatusChanged"])
        if event.args["status"] == MemberStatus.SUSPENDED
    }
    assert told >= suspended
    decide(governed, "ParticipantRegistry", "setStatus", org_id("north"), MemberStatus.ACTIVE)
    check_lists(governed.reader)
    governed["north"].ledger.transact("ParticipantRegistry", "setEndpoint", "/dns4/north/tcp/4001")
