"""Step 8: result manifests, proofs of possession, and commitments as the contract computes them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_fixture import JOB_ID, SmallBundle
from chain_fixture import KERNEL, Consortium, Vote, reveal_moves, word
from usufruct.content import Cid, Codec, dag
from usufruct.errors import ManifestError, ResultMismatchError, TransactionRevertedError, VerificationError
from usufruct.records import JobRequest, JobState, label, org_id
from usufruct.verify import (
    ResultManifest,
    check_possessions,
    check_result,
    possession,
    sign_verdict,
    signer_of,
)

RAW, RECORD = Cid.of(b"x", Codec.RAW), Cid.of(b"x", Codec.DAG_CBOR)
RESULT = ResultManifest(
    job_id=JOB_ID, kernel_id=bytes(32), bundle=RECORD, status=RECORD, parameters=RECORD, blocks=(RAW, RAW)
)
NORTH, SOUTH, AUDITOR = (org_id(name) for name in ("north", "south", "auditor"))


def test_a_result_manifest_comes_back_and_its_cid_is_that_of_its_block() -> None:
    assert ResultManifest.from_record(dag.decode_map(dag.encode(RESULT.to_record()))) == RESULT
    assert RESULT.cid == Cid.of(dag.encode(RESULT.to_record()), Codec.DAG_CBOR)


@pytest.mark.parametrize(
    "change",
    [
        *({name: ...} for name in RESULT.to_record()),
        {"type": "usufruct/result/2"},
        {"job": "text"},
        {"job": bytes(31)},
        {"kernel": bytes(33)},
        {"kernel": None},
        {"bundle": RAW},
        {"status": str(RECORD)},
        {"parameters": bytes(RECORD)},
        {"blocks": RAW},
        {"blocks": [RECORD]},
        {"blocks": [RAW, None]},
        {"extra": 1},
    ],
    ids=repr,
)
def test_a_malformed_result_manifest_is_refused(change: dict) -> None:
    record = {key: value for key, value in (RESULT.to_record() | change).items() if value is not ...}
    with pytest.raises(ManifestError):
        ResultManifest.from_record(record)


@pytest.mark.parametrize("field", ["job_id", "kernel_id", "bundle", "status", "parameters", "blocks"])
def test_a_result_that_differs_in_anything_is_a_mismatch_with_both_digests(field: str) -> None:
    other = {"blocks": (RAW,), "job_id": b"\1" * 32, "kernel_id": b"\1" * 32}
    changed = replace(RESULT, **{field: other.get(field, Cid.of(b"y", Codec.DAG_CBOR))})
    check_result(RESULT.cid.digest, RESULT)
    with pytest.raises(ResultMismatchError) as caught:
        check_result(RESULT.cid.digest, changed)
    assert (caught.value.expected, caught.value.actual) == (RESULT.cid.digest, changed.cid.digest)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_possession_is_the_hash_of_verifier_and_all_bytes_in_order(blocks: list[bytes]) -> None:
    assert possession(NORTH, blocks) == hashlib.sha256(NORTH + b"".join(blocks)).digest()
    assert possession(NORTH, blocks) != possession(SOUTH, blocks)


def test_possession_of_one_verifier_is_worthless_to_another() -> None:
    blocks = [b"one", b"two"]
    copied = possession(NORTH, blocks)
    honest = {NORTH: copied, SOUTH: possession(SOUTH, blocks)}
    assert check_possessions(honest, blocks, replicas=2) == 2
    with pytest.raises(VerificationError, match="1 of 2"):
        check_possessions({NORTH: copied, SOUTH: copied}, blocks, replicas=2)


def test_possessions_below_the_quorum_are_refused() -> None:
    blocks = [b"one"]
    proofs = {org: possession(org, blocks) for org in (NORTH, SOUTH, AUDITOR)}
    assert check_possessions(proofs, blocks, replicas=3) == 3
    assert check_possessions(proofs | {AUDITOR: bytes(32)}, blocks, replicas=2) == 2
    for proven, replicas in ((proofs, 4), ({}, 1), (proofs | {AUDITOR: b""}, 3)):
        with pytest.raises(VerificationError):
            check_possessions(proven, blocks, replicas=replicas)
    for changed in ([], [b"onE"], [b"one", b"more"], [b"two", b"one"]):
        with pytest.raises(VerificationError):
            check_possessions(proofs, changed, replicas=1)


# The contract's side of it.


def test_the_contract_opens_exactly_the_commitments_that_were_made(consortium: Consortium) -> None:
    net, scope = consortium, label("verify-study")
    bundle = net.bundle("north", net.key_domain("north"), scope=scope)
    epoch = net.epoch("north", scope)
    grant_id = net.granted("university", "north", bundle, scope)
    request = JobRequest(
        artifact_id=bundle,
        grant_id=grant_id,
        kernel_id=KERNEL,
        parameters_digest=word(),
        purpose=scope,
        consent_epoch=epoch,
        policy_version=1,
        rho_micro=1,
        row_level=False,
        nonce=501,
    )
    job, other = net.post("university", [request, replace(request, nonce=502)])
    digest = word()
    net.claim([job, other])
    net.commit({job: digest, other: digest})
    votes = [Vote.of(net[name], job, digest) for name in ("north", "south", "auditor")]
    net.together(vote.commit_move(net.network) for vote in votes)
    assert net.reader.job(job).state == JobState.REVEALING
    north, south, auditor = votes
    forgeries = (
        replace(north, result_digest=word()),
        replace(north, salt=word()),
        replace(north, held=word()),
        replace(north, salt=south.salt, held=south.held),
    )
    for forged in forgeries:
        ledger, contract, *call = forged.reveal_move()
        with pytest.raises(TransactionRevertedError, match="JobLedgerCommitmentMismatch"):
            ledger.transact(contract, *call)
    copied = replace(north, job_id=other)
    word_on_other = north.word(net.network, job_id=other)
    net.together([(net["north"].node, "JobLedger", "commitVerdicts", other, [word_on_other])])
    net.together(Vote.of(net[name], other, digest).commit_move(net.network) for name in ("south", "auditor"))
    ledger, contract, *call = copied.reveal_move()
    with pytest.raises(TransactionRevertedError, match="JobLedgerCommitmentMismatch"):
        ledger.transact(contract, *call)
    net.together(reveal_moves((north, south, auditor)))
    assert net.reader.job(job).state == JobState.VERIFIED


@settings(max_examples=10)
@given(st.integers(1, 2**63), st.binary(min_size=32, max_size=32))
def test_commitments_differ_by_chain_contract_job_verifier_and_salt(chain_id: int, salt: bytes) -> None:
    from usufruct.verify import verdict_commitment

    usual = {
        "chain_id": chain_id,
        "job_ledger": "0x" + "11" * 20,
        "job_id": JOB_ID,
        "verifier": NORTH,
        "result_digest": b"\1" * 32,
        "held": b"\2" * 32,
        "salt": salt,
    }
    changes = [
        {},
        {"chain_id": chain_id + 1},
        {"job_ledger": "0x" + "12" * 20},
        {"job_id": b"\x0b" * 32},
        {"verifier": SOUTH},
        {"result_digest": b"\3" * 32},
        {"held": b"\4" * 32},
        {"salt": bytes([salt[0] ^ 1]) + salt[1:]},
    ]
    assert len({verdict_commitment(**(usual | change)) for change in changes}) == len(changes)


def test_a_verdict_is_recovered_to_the_account_that_signed_it_and_to_no_other_for_anything_else() -> None:
    key = bytes(range(1, 33))
    usual = {"chain_id": 7, "job_ledger": "0x" + "11" * 20, "job_id": JOB_ID}
    given = sign_verdict(key, **usual, commitment=b"\1" * 32, deadline=1000)
    account = Account.from_key(key).address
    assert signer_of(given, **usual) == account
    for changed in (
        signer_of(given, **(usual | {"chain_id": 8})),
        signer_of(given, **(usual | {"job_ledger": "0x" + "12" * 20})),
        signer_of(given, **(usual | {"job_id": b"\x0b" * 32})),
        signer_of(replace(given, commitment=b"\2" * 32), **usual),
        signer_of(replace(given, deadline=1001), **usual),
    ):
        assert changed != account
    with pytest.raises(VerificationError):
        signer_of(replace(given, r=bytes(32)), **usual)


def test_honest_executors_get_the_same_bits(bundle: SmallBundle) -> None:
    for kernel in ("sum", "linear"):
        parameters = bundle.parameters(kernel)
        assert bundle.result(parameters) == bundle.result(parameters)
