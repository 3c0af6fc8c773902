"""Finality proofs of real validators, and every way to spoil one.

`vectors/finality.json` was recorded from five running validators; it says how to make it again. `vectors/qbft.json` names
where its header was published.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rlp
from coincurve import PrivateKey
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc.bls import G2ProofOfPossession as Scheme
from trie import HexaryTrie

from chain_fixture import Consortium
from rpc_door import door_to
from usufruct.errors import (
    FinalityError,
    ForeignProofError,
    HeaderMismatchError,
    InclusionError,
    LedgerError,
    MalformedProofError,
    OtherBlockProofError,
    ProofSignatureError,
    ProofUnavailableError,
    TooFewSignersError,
)
from usufruct.ledger import PROFILES, Endpoint
from usufruct.ledger.finality import (
    BlockHeader,
    FinalityProof,
    ReceiptProof,
    adopt,
    block_hash_of,
    check_header,
    check_receipt_inclusion,
    encode_receipt,
    fetch_finality,
    fetch_header,
    founding_version,
    prove_block,
    prove_receipt,
    receipts_root,
    verify_finality,
)
from usufruct.ledger.finality.besu import committed_hash
from usufruct.ledger.finality.extra_data import QbftExtraData
from usufruct.ledger.finality.tree import path_of, value_at
from usufruct.ledger.finality.warp import WarpMessage, unsigned_message
from usufruct.ledger.network import FinalityPin, Network, Validator, validator_order
from warp_fixture import (
    BLOCK_HASH,
    PIN,
    RECORDED,
    WARP,
    change_to,
    own_pin,
    public,
    secret,
    signed,
    warp_proof,
)

VECTORS = Path(__file__).parents[1] / "vectors"
QBFT = json.loads((VECTORS / "qbft.json").read_text())


PROOF = warp_proof(bytes.fromhex(RECORDED["proof"]))
MESSAGE = WarpMessage.parse(PROOF.payload)


# Warp.


def test_the_proofs_of_real_validators_hold() -> None:
    for recorded in WARP["blocks"][1:]:
        block_hash = bytes.fromhex(recorded["block"]["hash"][2:])
        proof = warp_proof(bytes.fromhex(recorded["proof"]), block_hash)
        signers = verify_finality(proof, PIN, block_hash)
        assert len(signers.keys) >= 4
        assert 100 * signers.weight >= 67 * signers.total_weight
        assert FinalityProof.from_record(proof.to_record()) == proof
        assert WarpMessage.parse(proof.payload).encode() == proof.payload


FIELDS = {
    "codec version": (0, 2, MalformedProofError),
    "network": (2, 4, ForeignProofError),
    "chain": (6, 32, ForeignProofError),
    "payload length": (38, 4, MalformedProofError),
    "payload codec version": (42, 2, MalformedProofError),
    "payload type": (44, 4, MalformedProofError),
    "block hash": (48, 32, MalformedProofError),
    "signature type": (80, 4, MalformedProofError),
    "length of the signers": (84, 4, MalformedProofError),
    "signers": (88, 1, FinalityError),
    "signature": (89, 96, ProofSignatureError),
}


@pytest.mark.parametrize("field", FIELDS)
def test_one_flipped_bit_in_any_field_is_refused(field: str) -> None:
    at, length, error = FIELDS[field]
    for offset, bit in ((0, 0), (length - 1, 7), (length // 2, 3)):
        spoilt = bytearray(PROOF.payload)
        spoilt[at + offset] ^= 1 << bit
        with pytest.raises(error):
            verify_finality(warp_proof(bytes(spoilt)), PIN, BLOCK_HASH)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.integers(0, len(PROOF.payload)).map(lambda cut: PROOF.payload[:cut]))
def test_bytes_that_are_no_message_never_parse_as_one(data: bytes) -> None:
    if data == PROOF.payload:
        return
    with pytest.raises(MalformedProofError):
        WarpMessage.parse(data)


def test_a_second_encoding_of_the_same_message_is_refused() -> None:
    bits = PROOF.payload[88:89]
    longer = PROOF.payload[:84] + (2).to_bytes(4, "big") + b"\0" + bits + PROOF.payload[89:]
    none = PROOF.payload[:84] + bytes(4) + PROOF.payload[89:]
    for payload in (longer, none, PROOF.payload + b"\0", b"\0" + PROOF.payload):
        with pytest.raises(MalformedProofError):
            verify_finality(warp_proof(payload), PIN, BLOCK_HASH)


def test_a_good_proof_of_another_block_is_refused() -> None:
    with pytest.raises(OtherBlockProofError):
        verify_finality(PROOF, PIN, b"\x55" * 32)
    other = bytes.fromhex(WARP["blocks"][1]["block"]["hash"][2:])
    with pytest.raises(MalformedProofError):
        verify_finality(replace(PROOF, block_hash=other), PIN, other)


def test_a_proof_of_another_chain_or_network_is_refused() -> None:
    for change in ({"network_id": PIN.network_id + 1}, {"chain": "0x" + "77" * 32}):
        with pytest.raises(ForeignProofError):
            verify_finality(PROOF, PIN.model_copy(update=change), BLOCK_HASH)


def test_a_proof_of_other_validators_is_refused() -> None:
    ours, theirs = own_pin(1, 2, 3, 4, 5), own_pin(6, 7, 8, 9, 10)
    proof = warp_proof(signed(ours, [1, 2, 3, 4], BLOCK_HASH))
    assert len(verify_finality(proof, ours, BLOCK_HASH).keys) == 4  # Positive control.
    with pytest.raises(ProofSignatureError):
        verify_finality(proof, theirs, BLOCK_HASH)
    with pytest.raises(ProofSignatureError):
        verify_finality(proof, PIN, BLOCK_HASH)


def test_too_few_signers_are_refused_even_when_their_signature_holds() -> None:
    pin = own_pin(1, 2, 3, 4, 5)
    with pytest.raises(TooFewSignersError, match="weight 3 of 5"):
        verify_finality(warp_proof(signed(pin, [1, 2, 3], BLOCK_HASH)), pin, BLOCK_HASH)


def test_validators_that_did_not_sign_cannot_be_claimed() -> None:
    pin = own_pin(1, 2, 3, 4, 5)
    for claimed in (0b11111, 0b01111):
        payload = signed(pin, [1, 2, 3], BLOCK_HASH, claimed=claimed)
        with pytest.raises(ProofSignatureError):
            verify_finality(warp_proof(payload), pin, BLOCK_HASH)
    with pytest.raises(ForeignProofError, match="validator 5"):
        verify_finality(warp_proof(signed(pin, [1], BLOCK_HASH, claimed=0b111111)), pin, BLOCK_HASH)


def test_a_signer_that_signs_twice_counts_once_and_spoils_the_sum() -> None:
    pin = own_pin(1, 2, 3, 4, 5)
    with pytest.raises(TooFewSignersError):
        verify_finality(warp_proof(signed(pin, [1, 2, 3, 3], BLOCK_HASH)), pin, BLOCK_HASH)
    with pytest.raises(ProofSignatureError):
        verify_finality(warp_proof(signed(pin, [1, 2, 3, 4, 4], BLOCK_HASH)), pin, BLOCK_HASH)


def test_a_pin_with_a_validator_twice_or_out_of_order_is_refused() -> None:
    values = PIN.model_dump()
    for validators in (
        [*values["validators"], values["validators"][-1]],
        values["validators"][::-1],
        [],
        [values["validators"][0] | {"weight": 0}],
        [values["validators"][0] | {"key": "0x12"}],
        [v | {"weight": (1 << 63)} for v in values["validators"][:2]],
    ):
        with pytest.raises(ValueError, match="validator"):
            FinalityPin.model_validate(values | {"validators": validators})


@pytest.mark.parametrize("key", ["0xc0" + "00" * 47, "0x80" + "00" * 47, "0x9f" + "ff" * 47])
def test_a_pinned_key_that_is_no_point_of_the_group_proves_nothing(key: str) -> None:
    pin = PIN.model_copy(update={"validators": (Validator(key=key, weight=1),)})
    chain = bytes.fromhex(pin.chain[2:])
    message = WarpMessage(
        network_id=pin.network_id,
        chain=chain,
        block_hash=BLOCK_HASH,
        signers=1,
        signature=b"\xc0" + bytes(95),
    )
    with pytest.raises(ProofSignatureError):
        verify_finality(warp_proof(message.encode()), pin, BLOCK_HASH)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "ripple"},
        {"chain": b"short"},
        {"block_hash": "text"},
        {"payload": b""},
        {"payload": bytes(70_000)},
        {"surplus": 1},
    ],
)
def test_a_malformed_record_of_a_proof_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedProofError):
        FinalityProof.from_record(PROOF.to_record() | change)
    with pytest.raises(MalformedProofError):
        FinalityProof.from_record([])


# Headers.


def test_the_headers_of_subnet_evm_hash_to_their_blocks() -> None:
    for recorded in WARP["blocks"]:
        block_hash = bytes.fromhex(recorded["block"]["hash"][2:])
        header = BlockHeader.from_json(recorded["block"], "subnet-evm")
        assert check_header(header.encode(), block_hash, "subnet-evm") == header
        assert header.number == int(recorded["block"]["number"], 16)
        assert header.timestamp == int(recorded["block"]["timestamp"], 16)
        assert receipts_root([encode_receipt(r) for r in recorded["receipts"]]) == header.receipts_root


def test_the_headers_of_the_embedded_chain_hash_to_their_blocks(consortium: Consortium) -> None:
    endpoint = consortium.reader.endpoint
    for number in (0, 1, consortium.reader.finalised().number):
        header = fetch_header(endpoint, PROFILES["embedded"], number)
        assert block_hash_of(header) == endpoint.block(number).hash
        assert fetch_header(endpoint, PROFILES["embedded"], block_hash_of(header)) == header


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_header_with_one_flipped_bit_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(BlockHeader.from_json(RECORDED["block"], "subnet-evm").encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((HeaderMismatchError, MalformedProofError)):
        check_header(bytes(encoded), BLOCK_HASH, "subnet-evm")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=700))
def test_bytes_that_are_no_header_are_a_typed_error(data: bytes) -> None:
    for kind in ("ethereum", "subnet-evm", "qbft"):
        with pytest.raises(MalformedProofError):
            BlockHeader.decode(data, kind)


def test_a_second_encoding_of_a_header_is_refused() -> None:
    fields = list(BlockHeader.from_json(RECORDED["block"], "subnet-evm").fields)
    short = [*fields]
    short[8] = b"\0" + short[8]  # A number with a leading zero.
    for items in (short, fields[:14], [*fields, b""], [*fields[:13], [], *fields[14:]]):
        with pytest.raises(MalformedProofError):
            BlockHeader.decode(rlp.encode(items), "subnet-evm")


@pytest.mark.parametrize("change", [{"number": "12x"}, {"stateRoot": "0x12"}, {"miner": 5}, {"nonce": None}])
def test_a_malformed_block_of_an_endpoint_is_a_typed_error(change: dict[str, Any]) -> None:
    for block in (RECORDED["block"] | change, None, []):
        with pytest.raises(LedgerError):
            BlockHeader.from_json(block, "subnet-evm")


# Receipts.


@pytest.fixture(scope="module")
def busy_block(consortium: Consortium) -> tuple[bytes, list[dict[str, Any]], list[bytes]]:
    """Root of the receipts, receipts and their encodings, of a block with several transactions and events."""
    endpoint = consortium.reader.endpoint
    receipts = consortium.together(
        (member.ledger, "ParticipantRegistry", "setEndpoint", f"/block/{i}")
        for member in consortium.members.values()
        for i in range(30)
    )
    numbers = [receipt.block_number for batch in receipts for receipt in batch]
    number = max(set(numbers), key=numbers.count)
    answers = endpoint.call("eth_getBlockReceipts", hex(number))
    header = fetch_header(endpoint, PROFILES["embedded"], number)
    return header.receipts_root, answers, [encode_receipt(answer) for answer in answers]


Busy = tuple[bytes, list[dict[str, Any]], list[bytes]]


def test_every_receipt_of_a_block_is_proven_and_gives_its_events(busy_block: Busy) -> None:
    root, answers, encoded = busy_block
    assert len(encoded) > 16
    assert receipts_root(encoded) == root
    for position in (0, 1, len(encoded) // 2, len(encoded) - 1):
        receipt = check_receipt_inclusion(root, prove_receipt(encoded, position))
        assert receipt.succeeded
        assert [log.data.hex() for log in receipt.logs] == [
            log["data"][2:] for log in answers[position]["logs"]
        ]
        assert [log.address for log in receipt.logs] == [
            log["address"].lower() for log in answers[position]["logs"]
        ]


def test_a_receipt_proof_with_any_flipped_bit_a_missing_or_a_surplus_node_is_refused(
    busy_block: Busy,
) -> None:
    root, _, encoded = busy_block
    proof = prove_receipt(encoded, 5)
    check_receipt_inclusion(root, proof)  # Positive control.
    for index, node in enumerate(proof.nodes):
        for at in range(0, len(node), 7):
            spoilt = bytearray(node)
            spoilt[at] ^= 1 << (at % 8)
            nodes = (*proof.nodes[:index], bytes(spoilt), *proof.nodes[index + 1 :])
            with pytest.raises((InclusionError, MalformedProofError)):
                check_receipt_inclusion(root, replace(proof, nodes=nodes))
    other = prove_receipt(encoded, 17)
    wrong = [
        replace(proof, nodes=proof.nodes[1:]),
        replace(proof, nodes=proof.nodes[:-1]),
        replace(proof, nodes=(*proof.nodes, other.nodes[-1])),
        replace(proof, nodes=(*proof.nodes, proof.nodes[-1])),
        replace(proof, nodes=proof.nodes[::-1]),
        replace(proof, nodes=()),
        replace(proof, position=6),
        replace(proof, position=-1),
        replace(proof, position=len(encoded)),
    ]
    for bad in wrong:
        with pytest.raises((InclusionError, MalformedProofError)):
            check_receipt_inclusion(root, bad)
    with pytest.raises(InclusionError):
        check_receipt_inclusion(b"\x11" * 32, proof)
    with pytest.raises(InclusionError):
        prove_receipt(encoded, len(encoded))


def test_nodes_that_stand_in_the_one_above_are_not_asked_for_again() -> None:
    """As engines give proofs: a node of less than 32 bytes has no hash of its own."""
    tree = HexaryTrie({})
    for key, value in ((b"\x10", b"a"), (b"\x11", b"b"), (b"\x20", b"c" * 40)):
        tree[key] = value
    for key, value in (
        (b"\x10", b"a"),
        (b"\x11", b"b"),
        (b"\x20", b"c" * 40),
        (b"\x12", b""),
        (b"\x30", b""),
    ):
        nodes = path_of(tree, key)
        assert all(len(node) >= 32 for node in nodes[1:])
        assert value_at(tree.root_hash, key, nodes, "a key", limit=1024) == value
        inlined = [bytes(rlp.encode(node)) for node in tree.get_proof(key)]
        if tuple(inlined) != nodes:
            with pytest.raises(MalformedProofError):
                value_at(tree.root_hash, key, inlined, "a key", limit=1024)
    assert value_at(HexaryTrie({}).root_hash, b"k", (), "a key", limit=1024) == b""
    with pytest.raises(InclusionError):
        value_at(tree.root_hash, b"\x10", (), "a key", limit=1024)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=4), st.integers(0, 3))
def test_nodes_of_a_stranger_are_a_typed_error(nodes: list[bytes], position: int) -> None:
    root = bytes(keccak(nodes[0])) if nodes else bytes(32)
    with pytest.raises((InclusionError, MalformedProofError)):
        check_receipt_inclusion(root, ReceiptProof(position=position, nodes=tuple(nodes)))


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.binary(max_size=40), lambda inner: st.lists(inner, min_size=2, max_size=17), max_leaves=40
    )
)
def test_nodes_that_are_rlp_but_no_tree_are_a_typed_error(node: Any) -> None:
    encoded = rlp.encode(node)
    with pytest.raises((InclusionError, MalformedProofError)):
        check_receipt_inclusion(bytes(keccak(encoded)), ReceiptProof(position=0, nodes=(encoded,)))


@pytest.mark.parametrize("change", [{"logs": None}, {"status": "x"}, {"logsBloom": 5}, {"type": "0xff"}])
def test_a_malformed_receipt_of_an_endpoint_is_a_typed_error(
    busy_block: Busy, change: dict[str, Any]
) -> None:
    with pytest.raises(LedgerError):
        encode_receipt(busy_block[1][0] | change)


# Besu.


QBFT_HEADER = bytes.fromhex(QBFT["header"])
QBFT_PIN = FinalityPin(
    network_id=0,
    chain="0x" + "00" * 32,
    validators=tuple(Validator(key=key, weight=1) for key in QBFT["validators"]),
)


def qbft_proof(header: bytes, pin: FinalityPin = QBFT_PIN) -> tuple[FinalityProof, bytes]:
    try:
        block_hash = block_hash_of(BlockHeader.decode(header, "qbft"))
    except MalformedProofError:
        block_hash = bytes(32)
    return (
        FinalityProof(kind="qbft", chain=bytes.fromhex(pin.chain[2:]), block_hash=block_hash, payload=header),
        block_hash,
    )


def test_the_seals_of_a_published_besu_block_hold() -> None:
    header = BlockHeader.decode(QBFT_HEADER, "qbft")
    assert header.number == QBFT["number"]
    assert committed_hash(header).hex() == QBFT["committed_hash"]
    proof, block_hash = qbft_proof(QBFT_HEADER)
    signers = verify_finality(proof, QBFT_PIN, block_hash)
    assert list(signers.keys) == sorted(QBFT["signers"])
    assert (signers.weight, signers.total_weight) == (3, 4)


def test_the_published_extra_data_of_besu_is_read_and_written_the_same() -> None:
    known = bytes.fromhex(QBFT["extra_data"]["encoding"])
    extra = QbftExtraData.decode(known)
    assert extra.encode() == known
    assert extra.round_number == QBFT["extra_data"]["round"]
    assert [v.hex() for v in extra.validators] == QBFT["extra_data"]["validators"]
    assert extra.vote == (bytes.fromhex(QBFT["extra_data"]["vote"]), b"\xff")
    assert len(extra.seals) == 2


def resealed(seals: list[bytes], **changes: Any) -> bytes:
    header = BlockHeader.decode(QBFT_HEADER, "qbft")
    extra = QbftExtraData.decode(header.extra_data)
    return header.with_extra_data(replace(extra, **changes).encode(seals=seals)).encode()


SEALS = list(QbftExtraData.decode(BlockHeader.decode(QBFT_HEADER, "qbft").extra_data).seals)


def test_spoilt_seals_are_refused() -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    mirrored = (
        SEALS[0][:32]
        + (order - int.from_bytes(SEALS[0][32:64], "big")).to_bytes(32, "big")
        + bytes([SEALS[0][64] ^ 1])
    )
    flipped = bytes([SEALS[0][0] ^ 1]) + SEALS[0][1:]
    stranger = PrivateKey(b"\5" * 32)
    digest = committed_hash(BlockHeader.decode(QBFT_HEADER, "qbft"))
    foreign = stranger.sign_recoverable(digest, hasher=None)
    for seals, error in (
        (SEALS[:2], TooFewSignersError),
        ([], TooFewSignersError),
        ([*SEALS[:2], SEALS[1]], ProofSignatureError),
        ([mirrored, *SEALS[1:]], ProofSignatureError),
        ([flipped, *SEALS[1:]], FinalityError),
        ([*SEALS, foreign], ForeignProofError),
        ([bytes(65), *SEALS[1:]], ProofSignatureError),
    ):
        proof, block_hash = qbft_proof(resealed(seals))
        with pytest.raises(error):
            verify_finality(proof, QBFT_PIN, block_hash)


def test_seals_do_not_carry_over_to_another_round_block_chain_or_set() -> None:
    proof, block_hash = qbft_proof(resealed(SEALS, round_number=2))
    with pytest.raises(ForeignProofError):
        verify_finality(proof, QBFT_PIN, block_hash)
    header = BlockHeader.decode(QBFT_HEADER, "qbft")
    other = BlockHeader("qbft", (*header.fields[:8], b"\x01", *header.fields[9:])).encode()
    proof, block_hash = qbft_proof(other)
    with pytest.raises(ForeignProofError):
        verify_finality(proof, QBFT_PIN, block_hash)
    proof, block_hash = qbft_proof(QBFT_HEADER)
    with pytest.raises(OtherBlockProofError):
        verify_finality(proof, QBFT_PIN, bytes(32))
    with pytest.raises(ForeignProofError):
        verify_finality(proof, QBFT_PIN.model_copy(update={"chain": "0x" + "01" * 32}), block_hash)
    fewer = QBFT_PIN.model_copy(update={"validators": QBFT_PIN.validators[1:]})
    with pytest.raises(ForeignProofError):
        verify_finality(proof, fewer, block_hash)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_besu_header_with_one_flipped_bit_proves_nothing(data: st.DataObject) -> None:
    encoded = bytearray(QBFT_HEADER)
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    proof, block_hash = qbft_proof(bytes(encoded))
    with pytest.raises(FinalityError):
        verify_finality(proof, QBFT_PIN, block_hash)


@pytest.mark.parametrize(
    "items",
    [
        [bytes(31), [], [], b"", []],
        [bytes(32), [bytes(19)], [], b"", []],
        [bytes(32), [], [bytes(20)], b"", []],
        [bytes(32), [], [bytes(20), b"\xaa"], b"", []],
        [bytes(32), [], [], b"\0\1", []],
        [bytes(32), [], [], b"", [bytes(64)]],
        [bytes(32), [], [], b""],
        [bytes(32), [], [], b"", [], b"\1"],
    ],
)
def test_malformed_extra_data_is_refused(items: list[Any]) -> None:
    with pytest.raises(MalformedProofError):
        QbftExtraData.decode(rlp.encode(items))


# Changes of the set.


NETWORK = Network(
    profile="subnet-evm",
    chain_id=5,
    genesis_hash="0x" + "00" * 32,
    rpc_urls=("http://127.0.0.1:1",),
    address_book="0x" + "01" * 20,
    contracts={"ValidatorSet": "0x" + "ab" * 20},
    deployed_at_block=3,
    finality=own_pin(1, 2, 3, 4, 5),
)


def test_a_change_that_the_old_set_made_final_is_adopted_step_by_step() -> None:
    first = founding_version(NETWORK)
    second = adopt(NETWORK, first, change_to(own_pin(2, 3, 4, 5, 6), signers=[1, 2, 3, 4], before=first))
    assert (second.version, second.since_block) == (2, 9)
    assert second.pin == own_pin(2, 3, 4, 5, 6)
    third = adopt(NETWORK, second, change_to(own_pin(3, 4, 5, 6), signers=[6, 5, 4, 3], before=second))
    assert third.pin.validators == own_pin(3, 4, 5, 6).validators


def test_a_change_that_the_old_set_did_not_make_final_is_refused() -> None:
    first = founding_version(NETWORK)
    new = own_pin(6, 7, 8, 9, 10)
    intruders = replace(first, pin=new)
    by_the_new_ones = replace(
        change_to(new, signers=[6, 7, 8, 9], before=intruders),
    )
    with pytest.raises(FinalityError):
        adopt(NETWORK, first, by_the_new_ones)
    with pytest.raises(TooFewSignersError):
        adopt(NETWORK, first, change_to(new, signers=[1, 2, 3], before=first))


def test_an_event_that_is_not_the_next_change_of_this_network_is_refused() -> None:
    first = founding_version(NETWORK)
    new, signers = own_pin(2, 3, 4, 5, 6), [1, 2, 3, 4]
    good = change_to(new, signers=signers, before=first)
    adopt(NETWORK, first, good)  # Positive control.
    for bad, error in (
        (change_to(new, signers=signers, before=first, address="0x" + "cd" * 20), InclusionError),
        (change_to(new, signers=signers, before=first, sequence=3), InclusionError),
        (change_to(new, signers=signers, before=first, head=bytes(32)), InclusionError),
        (change_to(new, signers=signers, before=first, chain=bytes(32)), ForeignProofError),
        (change_to(new, signers=signers, before=first, status="0x0"), InclusionError),
        (change_to(new, signers=signers, before=first, weights=[1]), ForeignProofError),
        (change_to(new, signers=signers, before=first, publicKeys=b"short", weights=[1]), ForeignProofError),
        (replace(good, log=1), InclusionError),
        (
            replace(good, header=BlockHeader.from_json(RECORDED["block"], "subnet-evm").encode()),
            FinalityError,
        ),
    ):
        with pytest.raises(error):
            adopt(NETWORK, first, bad)


def weighed_pin(**weights: int) -> FinalityPin:
    """A pin of our validators `v1`, `v2` and so on with these weights."""
    keys = {public(int(name[1:])): weight for name, weight in weights.items()}
    ordered = sorted(keys, key=validator_order)
    return PIN.model_copy(update={"validators": tuple(Validator(key=k, weight=keys[k]) for k in ordered)})


def validator_door(stack: ExitStack, number: int, claims: int) -> Endpoint:
    """Validator `number`, that says it has the key of validator `claims`."""
    door = stack.enter_context(door_to("http://127.0.0.1:9"))
    message = unsigned_message(PIN.network_id, bytes.fromhex(PIN.chain[2:]), BLOCK_HASH)
    told = {
        "warp_getBlockSignature": "0x" + Scheme.Sign(secret(number), message).hex(),
        "info.getNodeID": {"nodePOP": {"publicKey": public(claims)}},
    }
    door.before = lambda calls: json.dumps(
        {"jsonrpc": "2.0", "id": calls[0]["id"], "result": told[calls[0]["method"]]}
    ).encode()
    return Endpoint(door.url, patience=0.0)


class Several(Endpoint):
    def __init__(self, members: list[Endpoint]) -> None:
        super().__init__(members[0].url)
        self._several = members

    def members(self) -> list[Endpoint]:
        return self._several


def test_a_validator_under_another_name_neither_spoils_a_proof_nor_counts_twice() -> None:
    profile = PROFILES["subnet-evm"]
    with ExitStack() as stack:
        honest = [validator_door(stack, n, n) for n in (1, 2)]
        liar = validator_door(stack, 3, 2)
        enough = weighed_pin(v1=40, v2=40, v3=20)
        _, signers = prove_block(Several([*honest, liar]), profile, enough, BLOCK_HASH)
        assert set(signers.keys) == {public(1), public(2), public(3)}
        with pytest.raises(ProofUnavailableError, match="only 2 of 3"):
            prove_block(Several([honest[0], liar]), profile, enough, BLOCK_HASH)
        _, signers = prove_block(
            Several([honest[0], liar]), profile, weighed_pin(v1=60, v2=25, v3=15), BLOCK_HASH
        )
        assert set(signers.keys) == {public(1), public(3)}


def test_a_network_without_pinned_validators_says_that_it_has_no_proofs(chain_url: str) -> None:
    with pytest.raises(ProofUnavailableError, match="pins no validators"):
        founding_version(NETWORK.model_copy(update={"finality": None}))
    with pytest.raises(ProofUnavailableError, match="no finality proofs"):
        fetch_finality(Endpoint(chain_url), PROFILES["embedded"], PIN, BLOCK_HASH)
    with pytest.raises(ProofUnavailableError, match="only 0 of"):
        fetch_finality(Endpoint(chain_url), PROFILES["subnet-evm"], PIN, BLOCK_HASH)
