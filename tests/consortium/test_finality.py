"""Finality proofs fetched from five real validators, and a vote on the set followed from the founding pin."""

from __future__ import annotations

from functools import partial
from typing import Any

from chain_fixture import until
from governed_fixture import GovernedConsortium
from rpc_door import Call, door_to
from usufruct.errors import LedgerUnreachableError
from usufruct.ledger import Head, Ledger
from usufruct.ledger.finality import (
    block_hash_of,
    fetch_finality,
    fetch_header,
    follow_validators,
    prove_final,
    verify_finality,
)
from usufruct.ledger.finality.witness import is_final


def test_a_block_is_proven_final_against_the_pinned_validators(governed: GovernedConsortium) -> None:
    ledger = governed.reader
    versions = follow_validators(ledger.endpoint, ledger.network)
    number = ledger.finalised().number
    proof, signers, version = prove_final(ledger.endpoint, ledger.network, versions, number)
    assert proof.block_hash == ledger.endpoint.block(number).hash
    assert version.version == versions[-1].version
    assert 100 * signers.weight >= 67 * signers.total_weight
    first, _, _ = prove_final(ledger.endpoint, ledger.network, versions, 1)
    assert first.block_hash != proof.block_hash


def test_a_proof_put_together_from_each_validator_holds_too(governed: GovernedConsortium) -> None:
    ledger, pin = governed.reader, governed.network.finality
    assert pin is not None
    block_hash = ledger.finalised().hash
    signers = verify_finality(
        fetch_finality(ledger.endpoint, ledger.network.chain, pin, block_hash), pin, block_hash
    )
    assert len(signers.keys) >= 4


def test_validators_settle_which_of_two_blocks_is_final(governed: GovernedConsortium) -> None:
    ledger, pin = governed.reader, governed.network.finality
    assert pin is not None
    settles = partial(is_final, ledger.network.chain, pin, ledger.endpoint)
    head = ledger.finalised()
    assert settles(head)
    assert not settles(Head(head.number + 1, head.hash, head.timestamp)), (
        "the block is that of another height"
    )
    assert not settles(Head(head.number, bytes(32), head.timestamp)), "nobody has such a block"


def test_an_endpoint_that_contradicts_the_validators_is_refused_though_it_came_first(
    governed: GovernedConsortium,
) -> None:
    ledger = governed.reader
    truth = ledger.finalised()

    def lie(call: Call, result: Any) -> Any:
        is_head = call["method"] == "eth_getBlockByNumber" and result
        return result | {"hash": "0x" + "66" * 32} if is_head and int(result["number"], 16) > 0 else result

    with door_to(ledger.network.rpc_urls[0]) as liar:
        liar.lie = lie
        through_liar = ledger.network.model_copy(
            update={"rpc_urls": (liar.url, *ledger.network.rpc_urls[1:])}
        )
        fooled = Ledger.open(through_liar)
        assert fooled.finalised().hash == b"\x66" * 32
        fooled.endpoint.leave(LedgerUnreachableError("gone for a moment"))
        until(lambda: fooled.finalised().hash == truth.hash)
        assert fooled.endpoint.url != liar.url


def test_every_header_of_the_chain_hashes_to_its_block(governed: GovernedConsortium) -> None:
    ledger = governed.reader
    for number in range(min(ledger.finalised().number, 40) + 1):
        header = fetch_header(ledger.endpoint, ledger.network.chain, number)
        assert block_hash_of(header) == ledger.endpoint.block(number).hash


def test_a_vote_on_the_validators_is_followed_from_the_pin(governed: GovernedConsortium) -> None:
    ledger, pin = governed.reader, governed.network.finality
    assert pin is not None
    before = follow_validators(ledger.endpoint, ledger.network)
    keys = b"".join(bytes.fromhex(validator.key[2:]) for validator in pin.validators)
    weights = [validator.weight + 1 for validator in pin.validators]
    governed.govern("ValidatorSet", "replace", keys, weights)
    versions = follow_validators(ledger.endpoint, ledger.network)
    assert len(versions) == len(before) + 1
    assert [validator.weight for validator in versions[-1].pin.validators] == weights
    changed_at = versions[-1].since_block
    assert prove_final(ledger.endpoint, ledger.network, versions, changed_at)[1].weight > 0
