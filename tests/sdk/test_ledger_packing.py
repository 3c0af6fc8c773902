"""The quick reader and writer of events against eth-abi, and many hashes at once against one."""

from __future__ import annotations

from typing import Any

import eth_abi.abi
import eth_abi.exceptions
import pytest
from eth_utils.crypto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ledger_abi import EVENTS, flat, values_of

from usufruct.ledger import keccak as hashing
from usufruct.ledger.abi import EventCodec, abi_type
from usufruct.ledger.keccak import keccak_many
from usufruct.ledger.packing import Packing

FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
PACKED = [codec for _, codec in EVENTS if codec.inputs and Packing.of(codec.inputs) is not None]
MUST_BE_PACKED = {
    "JobPosted",
    "VerdictRevealed",
    "JobReleased",
}


def emitted(codec: EventCodec, values: tuple[Any, ...]) -> tuple[list[bytes], bytes]:
    both = list(zip(codec.inputs, values, strict=True))
    topics = [eth_abi.abi.encode([abi_type(e)], [v]) for e, v in both if e["indexed"]]
    plain = [(abi_type(e), v) for e, v in both if not e["indexed"]]
    return topics, eth_abi.abi.encode([kind for kind, _ in plain], [value for _, value in plain])


def events_of(codec: EventCodec) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*(values_of(abi_type(entry)) for entry in codec.inputs))


def test_the_events_of_a_jobs_life_are_packed() -> None:
    assert {codec.name for codec in PACKED} >= MUST_BE_PACKED


@pytest.mark.parametrize("codec", PACKED, ids=lambda codec: codec.name)
def test_packed_events_read_and_hash_as_eth_abi_has_them(codec: EventCodec) -> None:
    packing = Packing.of(codec.inputs)

    @FEW
    @given(events_of(codec))
    def agree(values: tuple[Any, ...]) -> None:
        topics, data = emitted(codec, values)
        arguments = packing.decode(b"".join(topics) + data)
        assert [flat(arguments[e["name"]]) for e in codec.inputs] == [flat(value) for value in values]
        covered = [abi_type(entry) for entry in codec.inputs[:-2]]
        if codec.in_series:
            payload = eth_abi.abi.encode(covered, values[:-2])
            assert packing.payload(arguments) == codec.covered(b"".join(topics) + data) == payload

    agree()


@pytest.mark.parametrize("codec", PACKED, ids=lambda codec: codec.name)
def test_words_that_no_contract_writes_are_left_to_eth_abi(codec: EventCodec) -> None:
    packing = Packing.of(codec.inputs)

    @FEW
    @given(events_of(codec), st.data())
    def refuse(values: tuple[Any, ...], draw: st.DataObject) -> None:
        topics, data = emitted(codec, values)
        words = b"".join(topics) + data
        place = draw.draw(st.integers(0, len(words) - 1))
        changed = words[:place] + bytes([words[place] ^ draw.draw(st.integers(1, 255))]) + words[place + 1 :]
        read = packing.decode(changed)
        if read is not None:
            # A change that the packing takes is a change of a value, and of nothing else.
            again = [_plain(read[entry["name"]]) for entry in codec.inputs]
            rewritten = emitted(codec, tuple(again))
            assert b"".join(rewritten[0]) + rewritten[1] == changed
        assert packing.decode(words[:-1]) is None
        assert packing.decode(words + bytes(32)) is None

    refuse()


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value.values())) if isinstance(value, dict) else value


def test_arguments_that_do_not_fit_are_never_packed() -> None:
    codec = next(codec for codec in PACKED if codec.name == "VerdictRevealed")
    topics, data = emitted(codec, (b"j" * 32, b"v" * 32, b"r" * 32, b"p" * 32, True, 7, b"h" * 32))
    packing, arguments = Packing.of(codec.inputs), codec.decode(b"".join(topics) + data)
    assert packing.payload(arguments) is not None
    for name, value in (
        ("jobId", b"j" * 33),
        ("jobId", b"j" * 31),
        ("jobId", "j" * 32),
        ("agrees", 2),
        ("possession", None),
    ):
        assert packing.payload(arguments | {name: value}) is None
    with pytest.raises(eth_abi.exceptions.EncodingError):
        codec.payload(arguments | {"jobId": b"j" * 33})


@pytest.mark.parametrize("enough", [1, 1 << 30], ids=["compiled", "one by one"])
def test_many_hashes_at_once_are_the_hashes_of_each(enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_WORTH_COMPILING", enough)
    messages = [bytes([length % 251]) * length for length in (*range(280), 1000, 136 * 5, 136 * 5 - 1)]
    assert keccak_many(messages) == [keccak(message) for message in messages]
    assert keccak_many([]) == []
