"""Statements on copies: what is signed holds, and nothing else does."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace

import pytest

from chain_fixture import Consortium, word
from usufruct.content import Cid, dag
from usufruct.custody import (
    MAX_LEFT_OUT,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENTS,
    Erased,
    ErasureStatement,
    PlacementNotice,
    Segment,
    StorageChallenge,
    StorageProof,
    check_possession,
    possession_proof,
    prove_possession,
)
from usufruct.errors import (
    BlockNotFoundError,
    InputError,
    ManifestError,
    StorageProofError,
    VerificationError,
)
from usufruct.records import ArtifactId

BLOCKS = [hashlib.shake_256(bytes([n])).digest(9_000) for n in range(4)]
HELD = {Cid.of(block): block for block in BLOCKS}
BUNDLE = ArtifactId(b"\x01" * 32)


def read(cid: Cid) -> bytes:
    if cid not in HELD:
        raise BlockNotFoundError("gone")
    return HELD[cid]


def challenge(net: Consortium, **changes: object) -> StorageChallenge:
    usual = StorageChallenge(
        artifact_id=BUNDLE,
        challenger=net["north"].id,
        nonce=secrets.token_bytes(32),
        segments=tuple(Segment(cid, 17 * at, 4096) for at, cid in enumerate(HELD)),
    )
    return replace(usual, **changes)


def proof_of(net: Consortium, asked: StorageChallenge, holder: str = "south") -> StorageProof:
    return prove_possession(
        net.network, net[holder].id, asked, read, answered_at=77, signing_key=net[holder].node_key
    )


def record_of(net: Consortium, name: str):
    return net.reader.participant(net[name].id)


def test_an_honest_answer_holds_and_survives_the_wire(consortium: Consortium) -> None:
    asked = challenge(consortium)
    given = StorageChallenge.from_record(dag.decode_map(dag.encode(asked.to_record())))
    assert given == asked
    answer = proof_of(consortium, given)
    told = StorageProof.from_record(dag.decode_map(dag.encode(answer.to_record())))
    assert told == answer
    check_possession(consortium.network, record_of(consortium, "south"), asked, told, read)


def test_a_replayed_answer_under_another_nonce_bundle_segment_or_challenger_is_refused(
    consortium: Consortium,
) -> None:
    asked = challenge(consortium)
    answer = proof_of(consortium, asked)
    for other in (
        challenge(consortium),
        replace(asked, nonce=word()),
        replace(asked, artifact_id=ArtifactId(word())),
        replace(asked, challenger=consortium["auditor"].id),
        replace(asked, segments=asked.segments[:-1]),
        replace(asked, segments=asked.segments[::-1]),
    ):
        with pytest.raises(StorageProofError, match="did not sign"):
            check_possession(consortium.network, record_of(consortium, "south"), other, answer, read)


def test_another_holders_answer_is_of_no_use_even_signed_anew(consortium: Consortium) -> None:
    """`auditor` hands its digest to `south`, which signs it as its own."""
    asked = challenge(consortium)
    borrowed = possession_proof(consortium.network, consortium["auditor"].id, asked, read)
    south = record_of(consortium, "south")
    with pytest.raises(StorageProofError, match="did not sign"):
        check_possession(consortium.network, south, asked, proof_of(consortium, asked, "auditor"), read)

    own = proof_of(consortium, asked)
    assert own.proof != borrowed
    with pytest.raises(StorageProofError):
        check_possession(consortium.network, south, asked, replace(own, proof=borrowed), read)


def test_an_answer_from_other_bytes_is_refused_although_it_is_signed(consortium: Consortium) -> None:
    asked = challenge(consortium)
    lying = prove_possession(
        consortium.network,
        consortium["south"].id,
        asked,
        lambda cid: bytes(9_000),
        answered_at=77,
        signing_key=consortium["south"].node_key,
    )
    with pytest.raises(StorageProofError, match="does not follow"):
        check_possession(consortium.network, record_of(consortium, "south"), asked, lying, read)


def test_a_holder_that_fetches_the_bytes_from_another_passes_so_a_proof_says_nothing_of_place(
    consortium: Consortium,
) -> None:
    """The limit of a challenge: `south` has no block, and asks an accomplice for each when it is challenged."""
    asked, fetched = challenge(consortium), []

    def relay(cid: Cid) -> bytes:
        fetched.append(cid)
        return read(cid)

    relayed = prove_possession(
        consortium.network,
        consortium["south"].id,
        asked,
        relay,
        answered_at=77,
        signing_key=consortium["south"].node_key,
    )
    check_possession(consortium.network, record_of(consortium, "south"), asked, relayed, read)
    assert fetched == list(HELD)


def test_a_holder_without_the_bytes_has_no_answer(consortium: Consortium) -> None:
    asked = challenge(consortium, segments=(Segment(Cid.of(b"never stored"), 0, 1),))
    with pytest.raises(BlockNotFoundError):
        proof_of(consortium, asked)
    beyond = challenge(consortium, segments=(Segment(next(iter(HELD)), 8_999, 2),))
    with pytest.raises(StorageProofError, match="beyond"):
        proof_of(consortium, beyond)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, -1), (0, MAX_SEGMENT_BYTES + 1), (-1, 1), (2 << 20, 1), (1 << 62, 1)],
)
def test_an_oversize_segment_cannot_be_asked_for(offset: int, length: int) -> None:
    with pytest.raises(InputError):
        Segment(Cid.of(b"x"), offset, length)


def test_malformed_challenges_are_refused(consortium: Consortium) -> None:
    good = challenge(consortium).to_record()
    segment = [Cid.of(b"x"), 0, 1]
    for change in (
        {"nonce": b"short"},
        {"nonce": "0" * 32},
        {"artifact": b""},
        {"segments": []},
        {"segments": [segment] * (MAX_SEGMENTS + 1)},
        {"segments": [[Cid.of(b"x"), 0]]},
        {"segments": [[b"x", 0, 1]]},
        {"segments": [[Cid.of(b"x"), 0, True]]},
        {"segments": [[Cid.of(b"x"), 0, MAX_SEGMENT_BYTES + 1]]},
        {"extra": 1},
    ):
        with pytest.raises(ManifestError):
            StorageChallenge.from_record(good | change)


def test_a_notice_holds_for_its_steward_only(consortium: Consortium) -> None:
    net = consortium
    notice = PlacementNotice.sign(
        net.network, BUNDLE, sequence=3, left_out=(net["south"].id,), signing_key=net["north"].node_key
    )
    told = PlacementNotice.from_record(dag.decode_map(dag.encode(notice.to_record())))
    assert told == notice
    told.check(net.network, record_of(net, "north"))
    with pytest.raises(VerificationError):
        told.check(net.network, record_of(net, "south"))
    for altered in (
        replace(told, sequence=4),
        replace(told, left_out=()),
        replace(told, artifact_id=ArtifactId(word())),
        replace(told, signature=bytes(65)),
    ):
        with pytest.raises(VerificationError):
            altered.check(net.network, record_of(net, "north"))
    for change in (
        {"left_out": [b"short"]},
        {"left_out": [word()] * (MAX_LEFT_OUT + 1)},
        {"sequence": -1},
        {"sequence": True},
        {"signature": bytes(64)},
        {"extra": 1},
    ):
        with pytest.raises(ManifestError):
            PlacementNotice.from_record(notice.to_record() | change)


def test_an_erasure_holds_for_the_member_that_states_it_only(consortium: Consortium) -> None:
    net = consortium
    statement = ErasureStatement.sign(
        net.network,
        BUNDLE,
        net["south"].id,
        what=Erased.COPY,
        blocks=4,
        erased_at=99,
        signing_key=net["south"].node_key,
    )
    told = ErasureStatement.from_record(dag.decode_map(dag.encode(statement.to_record())))
    assert told == statement
    told.check(net.network, record_of(net, "south"))
    with pytest.raises(VerificationError, match="is not south"):
        told.check(net.network, record_of(net, "north"))
    for altered in (
        replace(told, holder=net["auditor"].id),
        replace(told, what=Erased.KEY),
        replace(told, blocks=5),
        replace(told, erased_at=98),
    ):
        with pytest.raises(VerificationError):
            altered.check(net.network, net.reader.participant(altered.holder))
    for change in ({"what": 3}, {"what": True}, {"blocks": -1}, {"holder": b""}, {"signature": b""}):
        with pytest.raises(ManifestError):
            ErasureStatement.from_record(statement.to_record() | change)


def test_statements_of_one_network_mean_nothing_in_another(consortium: Consortium) -> None:
    net = consortium
    elsewhere = net.network.model_copy(update={"chain_id": net.network.chain_id + 1})
    asked = challenge(net)
    with pytest.raises(StorageProofError):
        check_possession(elsewhere, record_of(net, "south"), asked, proof_of(net, asked), read)
