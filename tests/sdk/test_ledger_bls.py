"""BLS against an independent implementation (py_ecc, the reference of Ethereum's researchers), and against hostile bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_arkworks_bls12381 import G1Point, G2Point
from py_ecc.bls import G2ProofOfPossession as Reference

from usufruct.ledger.finality import bls

SECRETS = [Reference.KeyGen(bytes([number]) * 32) for number in (1, 2, 3)]
KEYS = [bytes(Reference.SkToPk(secret)) for secret in SECRETS]
MESSAGE = b"block 7 is final"
SIGNATURES = [bytes(Reference.Sign(secret, MESSAGE)) for secret in SECRETS]
G1_IDENTITY, G2_IDENTITY = b"\xc0" + bytes(47), b"\xc0" + bytes(95)


def outside_the_group(point: type[G1Point] | type[G2Point], size: int) -> bytes:
    """The first compressed point of the curve that is not of the group of prime order."""
    for x in range(1, 1000):
        data = b"\x80" + x.to_bytes(size - 1, "big")
        try:
            found = point.from_compressed_bytes_unchecked(data)
        except ValueError:
            continue
        if not found.is_in_subgroup():
            return data
    raise AssertionError("every x below 1000 is of the group")


def test_sums_of_signatures_are_those_of_the_reference() -> None:
    summed = bls.aggregate(SIGNATURES)
    assert summed == Reference.Aggregate(SIGNATURES)
    assert bls.is_signed_by_all(KEYS, MESSAGE, summed)
    assert Reference.FastAggregateVerify(KEYS, MESSAGE, summed)


def test_a_signature_of_others_or_of_another_message_does_not_hold() -> None:
    summed = bls.aggregate(SIGNATURES)
    assert not bls.is_signed_by_all(KEYS[:2], MESSAGE, summed)
    assert not bls.is_signed_by_all([*KEYS, KEYS[0]], MESSAGE, summed)
    assert not bls.is_signed_by_all(KEYS, MESSAGE + b".", summed)
    assert not bls.is_signed_by_all([], MESSAGE, summed)


def test_possession_is_proved_by_the_key_s_own_proof_only() -> None:
    proof = bytes(Reference.PopProve(SECRETS[0]))
    assert bls.is_possessed(KEYS[0], proof)
    assert not bls.is_possessed(KEYS[1], proof)
    assert not bls.is_possessed(KEYS[0], bytes(Reference.Sign(SECRETS[0], KEYS[0])))  # another purpose's tag


def test_keys_that_cancel_each_other_sign_nothing() -> None:
    point = G1Point.from_compressed_bytes(KEYS[0])
    cancelling = (-point).to_compressed_bytes()
    assert bls.is_public_key(cancelling)
    assert not bls.is_signed_by_all([KEYS[0], cancelling], MESSAGE, G2_IDENTITY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(48),
        b"\xff" * 48,
        G1_IDENTITY,
        KEYS[0][:-1],
        KEYS[0] + b"\0",
        outside_the_group(G1Point, 48),
    ],
)
def test_what_is_no_key_is_refused(data: bytes) -> None:
    assert not bls.is_public_key(data)
    assert not bls.is_signed_by_all([data], MESSAGE, SIGNATURES[0])
    assert not bls.is_possessed(data, SIGNATURES[0])


@pytest.mark.parametrize(
    "data",
    [b"", bytes(96), b"\xff" * 96, SIGNATURES[0][:-1], SIGNATURES[0] + b"\0", outside_the_group(G2Point, 96)],
)
def test_what_is_no_signature_is_refused(data: bytes) -> None:
    assert not bls.is_signature(data)
    assert not bls.is_signed_by_all(KEYS[:1], MESSAGE, data)
    assert not bls.is_possessed(KEYS[0], data)


@given(at=st.integers(0, 48 * 8 - 1))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_makes_another_key_or_none_as_the_reference_has_it(at: int) -> None:
    flipped = bytearray(KEYS[0])
    flipped[at // 8] ^= 1 << at % 8
    assert bls.is_public_key(bytes(flipped)) == Reference.KeyValidate(bytes(flipped))
    assert not bls.is_signed_by_all([bytes(flipped)], MESSAGE, SIGNATURES[0])


@given(data=st.binary(max_size=100))
def test_arbitrary_bytes_only_ever_make_the_answer_no(data: bytes) -> None:
    assert not bls.is_signed_by_all([data], MESSAGE, SIGNATURES[0])
    assert not bls.is_signed_by_all(KEYS[:1], MESSAGE, data)
    assert not bls.is_possessed(KEYS[0], data)
