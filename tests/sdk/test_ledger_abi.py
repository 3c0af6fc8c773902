"""Codecs of calls, events and errors, against values drawn for every entry of every ABI."""

from __future__ import annotations

import re
from typing import Any

import eth_abi.abi
import pytest
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usufruct.errors import DeniedError, InputError, TransactionRevertedError
from usufruct.ledger.abi import (
    EventCodec,
    FunctionCodec,
    abi_type,
    all_errors,
    args_from_json,
    args_to_json,
    decode_revert,
    from_abi,
    load_abi,
    to_abi,
)
from usufruct.ledger.compile import CONTRACTS, load_artifact
from usufruct.records import GrantTerms, Job, JobRequest, Level, Participant, Refusal, Role, Timings

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
FUNCTIONS = [(name, codec) for name in CONTRACTS for codec in load_abi(name).functions.values()]
EVENTS = [(name, codec) for name in CONTRACTS for codec in load_abi(name).events.values()]


def values_of(kind: str) -> st.SearchStrategy[Any]:
    """Any value of an ABI type, strings as text."""
    if kind.endswith("[]"):
        return st.lists(values_of(kind[:-2]), max_size=3).map(tuple)
    if kind.startswith("("):
        return st.tuples(*(values_of(part) for part in split(kind[1:-1])))
    if kind.startswith("uint"):
        return st.integers(0, (1 << int(kind[4:])) - 1)
    if kind == "bytes":
        return st.binary(max_size=70)
    if kind.startswith("bytes"):
        return st.binary(min_size=int(kind[5:]), max_size=int(kind[5:]))
    if kind == "address":
        return st.binary(min_size=20, max_size=20).map(to_checksum_address)
    return {"bool": st.booleans(), "string": st.text(max_size=40)}[kind]


def split(inner: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, char in enumerate(inner):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(inner[start:i])
            start = i + 1
    return [*parts, inner[start:]]


@pytest.mark.parametrize(("contract", "codec"), FUNCTIONS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_call_data_of_every_function_decodes_to_what_was_encoded(contract: str, codec: FunctionCodec) -> None:
    @FEW
    @given(st.tuples(*(values_of(kind) for kind in codec.input_types)))
    def round_trip(arguments: tuple[Any, ...]) -> None:
        data = codec.encode(arguments)
        assert data[:4] == codec.selector
        decoded = eth_abi.abi.decode(codec.input_types, data[4:])
        assert eth_abi.abi.encode(codec.input_types, decoded) == data[4:]
        assert lowered(decoded) == lowered(arguments)

    round_trip()


def lowered(value: Any) -> Any:
    if isinstance(value, str):
        return value.lower() if re.fullmatch("0x[0-9a-fA-F]{40}", value) else value
    return tuple(map(lowered, value)) if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize(("contract", "codec"), EVENTS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_event_decodes_to_what_was_emitted_and_survives_json(contract: str, codec: EventCodec) -> None:
    @FEW
    @given(st.tuples(*(values_of(abi_type(entry)) for entry in codec.inputs)))
    def round_trip(values: tuple[Any, ...]) -> None:
        both = list(zip(codec.inputs, values, strict=True))
        topics = [eth_abi.abi.encode([abi_type(e)], [v]) for e, v in both if e["indexed"]]
        plain = [(abi_type(e), v) for e, v in both if not e["indexed"]]
        data = eth_abi.abi.encode([kind for kind, _ in plain], [value for _, value in plain])
        arguments = codec.decode(b"".join(topics) + data)
        assert list(arguments) == [entry["name"] for entry in codec.inputs]
        assert [flat(arguments[e["name"]]) for e, _ in both] == [flat(value) for value in values]
        assert args_from_json(codec, args_to_json(arguments)) == arguments

    round_trip()


def flat(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(flat(item) for item in value.values())
    return tuple(map(flat, value)) if isinstance(value, (tuple, list)) else value


def test_topics_are_the_hash_of_the_signature_in_the_abi() -> None:
    for contract in CONTRACTS:
        for entry in load_artifact(contract).abi:
            if entry["type"] == "event":
                signature = f"{entry['name']}({','.join(abi_type(item) for item in entry['inputs'])})"
                assert load_abi(contract).events[keccak(signature.encode())].name == entry["name"]


TERMS = st.builds(
    GrantTerms,
    kernels=st.lists(st.binary(min_size=32, max_size=32), max_size=16).map(tuple),
    uses=st.integers(0, 2**32 - 1),
    expires_at=st.integers(0, 2**64 - 1),
    rho_micro=st.integers(0, 2**64 - 1),
    min_cohort=st.integers(0, 2**32 - 1),
    level=st.sampled_from(Level),
    replicas=st.integers(0, 255),
    row_level=st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(TERMS)
def test_a_record_comes_back_from_its_words(terms: GrantTerms) -> None:
    codec = load_abi("UsageRights").functions["grantUsage"]
    (_, words) = eth_abi.abi.decode(codec.input_types, codec.encode([bytes(32), terms])[4:])
    assert from_abi(GrantTerms, words) == terms
    assert isinstance(from_abi(GrantTerms, words).level, Level)


def test_records_turn_into_plain_words() -> None:
    assert to_abi(Timings()) == (600, 3600, 3600, 600, 86400, 3600)
    assert to_abi([Role.STEWARD | Role.VERIFIER, Level.REPLICATED]) == [17, 4]


def test_a_record_with_a_word_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        from_abi(Timings, (1, 2, 3))
    assert Job.__dataclass_fields__["request"].type == JobRequest.__name__


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("setBudget", [bytes(32), 1 << 64]),
        ("setBudget", [bytes(32), -1]),
        ("setBudget", [bytes(33), 1]),
        ("setBudget", [None, 1]),
        ("setBudget", [bytes(32), "many"]),
        ("setBudget", [bytes(32)]),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(
    function: str, arguments: list
) -> None:
    with pytest.raises(InputError, match=function):
        load_abi("PrivacyBudget").functions[function].encode(arguments)


def test_an_address_that_is_none_and_text_that_is_no_unicode_are_refused() -> None:
    with pytest.raises(InputError):
        load_abi("ParticipantRegistry").functions["organisationOf"].encode(["nobody"])
    with pytest.raises(InputError):
        load_abi("ParticipantRegistry").functions["setEndpoint"].encode(["\ud800"])


@given(st.binary(max_size=60))
def test_hostile_bytes_in_a_string_are_shown_escaped(raw: bytes) -> None:
    codec = next(
        c for c in load_abi("ParticipantRegistry").events.values() if c.name == "ParticipantEndpointChanged"
    )
    arguments = codec.decode(bytes(32) + eth_abi.abi.encode(["bytes"], [raw]))
    assert arguments["endpoint"] == raw.decode("utf-8", "backslashreplace")
    words = [bytes(32), "0x" + "11" * 20, "0x" + "22" * 20, 1, 1, bytes(32), b"peer", raw]
    assert from_abi(Participant, words).endpoint == arguments["endpoint"]


# Why a contract refused.


@pytest.mark.parametrize("selector", list(all_errors()), ids=lambda s: all_errors()[s][0])
def test_every_custom_error_is_decoded_with_its_values(selector: bytes) -> None:
    name, inputs, notice = all_errors()[selector]

    @FEW
    @given(st.tuples(*(values_of(abi_type(entry)) for entry in inputs)))
    def decoded(values: tuple[Any, ...]) -> None:
        error = decode_revert(selector + eth_abi.abi.encode([abi_type(e) for e in inputs], values))
        assert error.name == name
        assert [flat(v) for v in error.values.values()] == [flat(v) for v in values]
        assert name in str(error)
        assert error.hint == notice.replace("`", "")
        assert notice or not name.startswith((*CONTRACTS, "ChainPermissions"))

    decoded()


def test_a_refusal_is_shown_by_its_name() -> None:
    refused = next(selector for selector, error in all_errors().items() if error.name == "UsageRightsRefused")
    error = decode_revert(refused + bytes(32) + bytes([0] * 31 + [Refusal.USES_EXHAUSTED]))
    assert error.values["reason"] is Refusal.USES_EXHAUSTED
    assert "reason=USES_EXHAUSTED" in str(error)
    assert "does not cover one more use" in error.hint
    assert error.exit_code == DeniedError.exit_code
    assert decode_revert(refused + bytes(32) + bytes([0] * 31 + [255])).values["reason"] == 255


def test_error_strings_and_panics_are_decoded() -> None:
    said = decode_revert(keccak(b"Error(string)")[:4] + eth_abi.abi.encode(["string"], ["no"]))
    assert (said.name, said.values) == ("Error", {"message": "no"})
    overflow = decode_revert(keccak(b"Panic(uint256)")[:4] + eth_abi.abi.encode(["uint256"], [0x11]))
    assert (overflow.name, overflow.values) == ("Panic", {"code": 0x11})
    garbled = decode_revert(keccak(b"Error(string)")[:4] + eth_abi.abi.encode(["bytes"], [b"\xff"]))
    assert garbled.values == {"message": "\\xff"}


@given(
    st.sampled_from([b"", *all_errors(), keccak(b"Error(string)")[:4], keccak(b"Panic(uint256)")[:4]]),
    st.binary(max_size=80),
)
def test_any_revert_data_gives_a_typed_error(selector: bytes, body: bytes) -> None:
    assert isinstance(decode_revert(selector + body), TransactionRevertedError)
