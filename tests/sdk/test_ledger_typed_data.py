"""Signature replay: nothing signed for one chain, contract or message is valid on another."""

from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import VerificationError
from usufruct.ledger.typed_data import CONSENT_RECEIPT, RELEASE, check_signature, digest, sign

KEY, OTHER_KEY = b"\x11" * 32, b"\x22" * 32
SIGNER = Account.from_key(KEY).address
PLACE = {"chain_id": 881812, "contract": "0x" + "ab" * 20}
WORDS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 2**64 - 1)
RELEASES = st.fixed_dictionaries(
    {"jobId": WORDS, "resultDigest": WORDS, "sealedDigest": WORDS, "sigmaMicro": NUMBERS, "rhoMicro": NUMBERS}
)
VALUES = {
    "jobId": b"\x01" * 32,
    "resultDigest": b"\x02" * 32,
    "sealedDigest": b"\x03" * 32,
    "sigmaMicro": 5,
    "rhoMicro": 7,
}
RECEIPT = {
    "steward": b"\x01" * 32,
    "position": 3,
    "pseudonym": b"\x02" * 32,
    "scope": b"\x03" * 32,
    "noticeDigest": b"\x04" * 32,
    "givenAt": 1,
    "expiresAt": 2,
}


@settings(max_examples=15, deadline=None)
@given(RELEASES)
def test_a_signature_is_good_for_what_was_signed(values: dict) -> None:
    signature = sign(KEY, RELEASE, values, **PLACE)
    assert len(signature) == 65
    check_signature(SIGNER, signature, RELEASE, values, **PLACE)
    assert len(digest(RELEASE, values, **PLACE)) == 32


@pytest.mark.parametrize(
    "place",
    [
        PLACE | {"chain_id": PLACE["chain_id"] + 1},
        PLACE | {"contract": "0x" + "ac" * 20},
    ],
    ids=["another chain", "another contract"],
)
def test_signature_replay_on_another_chain_or_contract_is_refused(place: dict) -> None:
    signature = sign(KEY, RELEASE, VALUES, **PLACE)
    with pytest.raises(VerificationError, match="signed by"):
        check_signature(SIGNER, signature, RELEASE, VALUES, **place)
    assert digest(RELEASE, VALUES, **place) != digest(RELEASE, VALUES, **PLACE)


@pytest.mark.parametrize(
    ("types", "values"), [(RELEASE, VALUES), (CONSENT_RECEIPT, RECEIPT)], ids=["release", "receipt"]
)
def test_signature_replay_for_any_other_field_value_is_refused(types: dict, values: dict) -> None:
    signature = sign(KEY, types, values, **PLACE)
    for name, value in values.items():
        changed = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
        with pytest.raises(VerificationError, match="signed by"):
            check_signature(SIGNER, signature, types, values | {name: changed}, **PLACE)


def test_signature_replay_for_another_kind_of_message_is_refused() -> None:
    renamed = {"Promise": RELEASE["Release"]}
    signature = sign(KEY, renamed, VALUES, **PLACE)
    check_signature(SIGNER, signature, renamed, VALUES, **PLACE)
    with pytest.raises(VerificationError, match="signed by"):
        check_signature(SIGNER, signature, RELEASE, VALUES, **PLACE)


def test_another_signer_is_refused() -> None:
    with pytest.raises(VerificationError, match="not by"):
        check_signature(SIGNER, sign(OTHER_KEY, RELEASE, VALUES, **PLACE), RELEASE, VALUES, **PLACE)


GOOD = sign(KEY, RELEASE, VALUES, **PLACE)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=70),
        st.builds(lambda i, b: GOOD[:i] + bytes([b]) + GOOD[i + 1 :], st.integers(0, 64), st.integers(2, 26)),
    )
)
def test_malformed_signatures_are_refused(signature: bytes) -> None:
    if signature == GOOD:
        return
    with pytest.raises(VerificationError):
        check_signature(SIGNER, signature, RELEASE, VALUES, **PLACE)


@pytest.mark.parametrize("cut", [0, 1, 64])
def test_truncated_and_extended_signatures_are_refused(cut: int) -> None:
    for signature in (GOOD[:cut], GOOD + b"\0"):
        with pytest.raises(VerificationError):
            check_signature(SIGNER, signature, RELEASE, VALUES, **PLACE)
