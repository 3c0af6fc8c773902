"""Signature replay: what was signed once, for one chain, one contract and one job, is worth nothing anywhere else.

Also what partners gain who pool what they may spend: nothing.
"""

from __future__ import annotations

import pytest
from coincurve import PrivateKey

from chain_fixture import KERNEL, PARAMETERS_ID, Consortium, word
from usufruct.errors import LedgerError
from usufruct.ledger.signing import sign_transaction
from usufruct.records import JobId, JobRequest, JobState, Refusal, Role, label, org_id
from usufruct.verify import verdict_commitment


def test_signed_transactions_are_good_once_and_on_one_chain(consortium: Consortium) -> None:
    north = consortium["north"]
    reader, network = consortium.reader, consortium.network
    _, data = reader.call_data("KeyRegistry", "registerKeyDomain", word(), PARAMETERS_ID, word())
    key_domain = (network.contracts["KeyRegistry"], data)

    def signed(chain_id: int, nonce: int) -> str:
        return (
            "0x"
            + sign_transaction(
                PrivateKey(north.authority_key),
                chain_id=chain_id,
                nonce=nonce,
                gas_price=0,
                gas=500_000,
                to=key_domain[0],
                data=key_domain[1],
            ).hex()
        )

    nonce = reader.endpoint.quantity("eth_getTransactionCount", north.record.account, "latest")
    once = signed(network.chain_id, nonce)
    sent = reader.endpoint.call("eth_sendRawTransaction", once)
    while reader.endpoint.call("eth_getTransactionReceipt", sent) is None:
        pass
    # Another time it is told where it stands, and not done again: the next transaction has the next nonce.
    receipt = reader.endpoint.call("eth_getTransactionReceipt", sent)
    assert reader.endpoint.call("eth_sendRawTransaction", once) == sent
    north.ledger.transact("KeyRegistry", "registerKeyDomain", word(), PARAMETERS_ID, word())
    assert reader.endpoint.call("eth_getTransactionReceipt", sent) == receipt
    used = reader.endpoint.quantity("eth_getTransactionCount", north.record.account, "latest")
    assert used == nonce + 2
    # One for another chain is not taken, though its nonce is the next.
    with pytest.raises(LedgerError, match="not signed for chain"):
        reader.endpoint.call("eth_sendRawTransaction", signed(network.chain_id + 1, used))
    assert reader.endpoint.call("eth_sendRawTransaction", signed(network.chain_id, used))


def test_commitments_differ_for_every_job_verifier_contract_and_chain() -> None:
    salt, usual = (
        word(),
        {
            "chain_id": 1,
            "job_ledger": "0x" + "01" * 20,
            "job_id": JobId(word()),
            "verifier": org_id("north"),
            "result_digest": word(),
            "held": word(),
            "salt": word(),
        },
    )
    others = {
        "chain_id": 2,
        "job_ledger": "0x" + "02" * 20,
        "job_id": JobId(word()),
        "verifier": org_id("south"),
        "result_digest": word(),
        "held": word(),
        "salt": salt,
    }
    made = {verdict_commitment(**usual), *(verdict_commitment(**(usual | {k: v})) for k, v in others.items())}
    assert len(made) == 1 + len(others)


def test_two_partners_together_spend_no_more_than_one_account_holds(consortium: Consortium) -> None:
    scope = label("pooled")
    consortium.join("institute", Role.PARTNER)
    artifact = consortium.bundle("north", consortium.key_domain("north"), scope=scope, budget=10)
    epoch = consortium.epoch("north", scope)
    grants = {
        name: consortium.granted(name, "north", artifact, scope) for name in ("university", "institute")
    }

    def post(partner: str, rho: int) -> JobState:
        request = JobRequest(
            artifact_id=artifact,
            grant_id=grants[partner],
            kernel_id=KERNEL,
            parameters_digest=word(),
            purpose=scope,
            consent_epoch=epoch,
            policy_version=1,
            rho_micro=rho,
            row_level=False,
            nonce=int.from_bytes(word()[:7], "big"),
        )
        (job,) = consortium.post(partner, [request])
        record = consortium.reader.job(job)
        assert record.refusal in (Refusal.NONE, Refusal.BUDGET_EXCEEDED)
        return record.state

    tried = [post("university", 6), post("institute", 6), post("institute", 4), post("university", 1)]
    assert tried == [JobState.POSTED, JobState.DENIED, JobState.POSTED, JobState.DENIED]
    # Positive control: each of them alone could have spent what was refused.
    committed = {
        name: consortium.reader.read("UsageRights", "committedUnder", grant) for name, grant in grants.items()
    }
    assert [sum(values) for values in committed.values()] == [6, 4]
    assert consortium.reader.budget(artifact).reserved == 10
