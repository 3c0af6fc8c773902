"""DAG-CBOR records: one encoding per value, and hostile bytes that stay cheap."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import cbor2
import dag_cbor
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import CID

from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec, dag
from usufruct.errors import ManifestError

cids = st.builds(Cid.from_digest, st.binary(min_size=32, max_size=32), st.sampled_from(list(Codec)))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    cids,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=25,
)

MANIFEST = {
    "version": 1,
    "name": "hog-8x8",
    "columns": [{"cid": Cid.of(bytes([n])), "rows": 80} for n in range(6)],
    "parents": [],
    "retention": None,
    "scale": 1.5,
}


@given(values)
@settings(max_examples=200)
def test_what_is_encoded_decodes_to_itself(value: dag.DagValue) -> None:
    data = dag.encode(value)
    assert dag.decode(data) == value
    assert dag.encode(dag.decode(data)) == data


@given(values)
def test_the_order_in_which_a_map_was_built_does_not_show(value: dag.DagValue) -> None:
    assert dag.encode({"bb": value, "a": 1}) == dag.encode({"a": 1, "bb": value})


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_arbitrary_bytes_are_a_record_or_a_manifest_error(data: bytes) -> None:
    try:
        value = dag.decode(data)
    except ManifestError:
        return
    assert dag.encode(value) == data


def test_every_truncation_is_refused() -> None:
    data = dag.encode(MANIFEST)
    for length in range(len(data)):
        with pytest.raises(ManifestError):
            dag.decode(data[:length])


@given(st.binary(min_size=1, max_size=20))
def test_trailing_bytes_are_refused(tail: bytes) -> None:
    with pytest.raises(ManifestError):
        dag.decode(dag.encode(MANIFEST) + tail)


def test_every_flipped_byte_changes_the_cid_or_breaks_the_record() -> None:
    data = dag.encode(MANIFEST)
    for at in range(len(data)):
        flipped = data[:at] + bytes((data[at] ^ 0x11,)) + data[at + 1 :]
        try:
            value = dag.decode(flipped)
        except ManifestError:
            continue
        assert dag.cid_of(value) != dag.cid_of(MANIFEST)


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("1801"),
        bytes.fromhex("190001"),
        bytes.fromhex("9f01ff"),
        bytes.fromhex("5f4101ff"),
        bytes.fromhex("a2616201616101"),
        bytes.fromhex("a2616101616102"),
        bytes.fromhex("a10101"),
        bytes.fromhex("f7"),
        bytes.fromhex("fb7ff8000000000000"),
        bytes.fromhex("fb7ff0000000000000"),
        bytes.fromhex("f93c00"),
        bytes.fromhex("fa3f800000"),
        bytes.fromhex("c100"),
        bytes.fromhex("d82a00"),
        bytes.fromhex("c240"),
        bytes.fromhex("e0"),
        bytes.fromhex("f820"),
        bytes.fromhex("a1a000"),
        bytes.fromhex("a18000"),
        bytes.fromhex("d82a40"),
        bytes.fromhex("61ff"),
        bytes.fromhex("1f"),
        bytes.fromhex("ff"),
        b"",
    ],
    ids=lambda data: data.hex() or "empty",
)
def test_what_is_not_canonical_dag_cbor_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        dag.decode(data)


def to_oracle(value: dag.DagValue) -> Any:
    """Give `value` to the DAG-CBOR library of the multiformats."""
    if isinstance(value, Cid):
        return CID("base32", 1, value.codec.name.lower().replace("_", "-"), ("sha2-256", value.digest))
    if isinstance(value, dict):
        return {key: to_oracle(item) for key, item in value.items()}
    return [to_oracle(item) for item in value] if isinstance(value, list) else value


@given(values)
@settings(max_examples=100)
def test_records_are_byte_for_byte_those_of_another_dag_cbor_library(value: dag.DagValue) -> None:
    assert dag.encode(value) == dag_cbor.encode(to_oracle(value))


@given(values.map(dag.encode), st.data())
@settings(max_examples=300)
def test_no_altered_record_passes_that_another_dag_cbor_library_refuses(
    data: bytes, draw: st.DataObject
) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    data = data[:at] + draw.draw(st.binary(min_size=1, max_size=2)) + data[at + 1 :]
    try:
        value = dag.decode(data)
    except ManifestError:
        return
    assert dag_cbor.decode(data) == to_oracle(value)


def test_nothing_is_set_up_at_the_first_record() -> None:
    """A library that registered its hash function at first use failed where two threads came first together."""
    program = """
import sys
from usufruct.content import Cid, dag
loaded = set(sys.modules)
assert dag.decode(dag.encode([Cid.of(b"")])) == [Cid.of(b"")]
sys.exit(f"loaded at first use: {late}" if (late := set(sys.modules) - loaded) else 0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    "foreign",
    [
        CID("base32", 1, "dag-pb", ("sha2-256", bytes(32))),
        CID("base32", 1, "raw", ("sha2-512", bytes(64))),
        CID("base58btc", 0, "dag-pb", ("sha2-256", bytes(32))),
        CID("base32", 1, "raw", ("identity", bytes(32))),
    ],
    ids=str,
)
def test_links_to_foreign_blocks_are_refused(foreign: CID) -> None:
    with pytest.raises(ManifestError, match="link"):
        dag.decode(dag_cbor.encode({"link": foreign}))


def test_links_are_those_of_other_ipld_tools() -> None:
    cid = Cid.of(b"chunk")
    decoded = cbor2.loads(dag.encode({"link": cid}))
    assert decoded["link"].tag == 42
    assert decoded["link"].value == b"\0" + bytes(cid)


@pytest.mark.parametrize("length", ["9a7fffffff", "9b7fffffffffffffff", "bbffffffffffffffff"])
@pytest.mark.parametrize("kind", ["", "81"])
def test_announced_lengths_cost_nothing(length: str, kind: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ManifestError, match="truncated"):
        dag.decode(bytes.fromhex(kind + length) + bytes(1000))
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("head", ["5bffffffffffffffff", "7b7fffffffffffffff", "5a80000000"])
def test_announced_strings_cost_nothing(head: str) -> None:
    with pytest.raises(ManifestError, match="truncated"):
        dag.decode(bytes.fromhex(head) + b"abc")


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x60"])
def test_nesting_is_bounded_long_before_the_interpreter_is(opening: bytes) -> None:
    with pytest.raises(ManifestError, match="deeper"):
        dag.decode(opening * 200_000 + b"\x00")


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_the_deepest_record_that_encodes_also_decodes() -> None:
    assert dag.decode(dag.encode(nested(dag.MAX_DEPTH))) == nested(dag.MAX_DEPTH)
    for depth in (dag.MAX_DEPTH + 1, 5000):
        with pytest.raises(ManifestError, match="deeper"):
            dag.encode(nested(depth))
    with pytest.raises(ManifestError, match="deeper"):
        dag.decode(b"\x81" * (dag.MAX_DEPTH + 1) + b"\x00")


def test_a_record_of_too_many_items_is_refused_both_ways() -> None:
    assert len(dag.encode([0] * (dag.MAX_ITEMS - 1))) > dag.MAX_ITEMS
    with pytest.raises(ManifestError, match="items"):
        dag.encode([0] * dag.MAX_ITEMS)
    with pytest.raises(ManifestError, match="items"):
        dag.decode(b"\x9a" + dag.MAX_ITEMS.to_bytes(4) + bytes(dag.MAX_ITEMS))


def test_a_record_larger_than_a_block_is_refused_both_ways() -> None:
    with pytest.raises(ManifestError, match="exceeds"):
        dag.encode(bytes(MAX_BLOCK_BYTES))
    with pytest.raises(ManifestError, match="exceeds"):
        dag.decode(b"\x5a" + MAX_BLOCK_BYTES.to_bytes(4) + bytes(MAX_BLOCK_BYTES))


@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        {"a": {None: 1}},
        object(),
        {"a": {1, 2}},
        2**64,
        -(2**64) - 1,
        float("nan"),
        "\ud800",
        bytearray(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_encoded_is_a_manifest_error(value: object) -> None:
    with pytest.raises(ManifestError):
        dag.encode(value)


def test_a_map_is_asked_for_by_name() -> None:
    assert dag.decode_map(dag.encode(MANIFEST)) == MANIFEST
    with pytest.raises(ManifestError, match="map"):
        dag.decode_map(dag.encode([MANIFEST]))


def test_the_cid_of_a_record_is_that_of_its_bytes() -> None:
    assert dag.cid_of(MANIFEST) == Cid.of(dag.encode(MANIFEST), Codec.DAG_CBOR)
    assert str(dag.cid_of(MANIFEST)).startswith("bafyrei")
