"""Content identifiers against the multiformats library, and everything that must not pass as one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiformats import CID

from usufruct.content import Cid, Codec
from usufruct.errors import BlockMismatchError, CidError

digests = st.binary(min_size=32, max_size=32)
codecs = st.sampled_from(list(Codec))

HELLO = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
"""The CID of `hello world` that every IPFS tool prints."""


def oracle(codec: Codec, digest: bytes) -> CID:
    return CID("base32", 1, {Codec.RAW: "raw", Codec.DAG_CBOR: "dag-cbor"}[codec], ("sha2-256", digest))


@given(codecs, digests)
def test_both_forms_are_those_of_multiformats_and_parse_back(codec: Codec, digest: bytes) -> None:
    cid = Cid.from_digest(digest, codec)
    assert str(cid) == str(oracle(codec, digest))
    assert bytes(cid) == bytes(oracle(codec, digest))
    assert Cid.parse(str(cid)) == Cid.from_bytes(bytes(cid)) == cid


def test_a_known_cid_is_computed() -> None:
    assert str(Cid.of(b"hello world")) == HELLO
    assert Cid.parse(HELLO).digest == hashlib.sha256(b"hello world").digest()


@given(st.text(max_size=80))
def test_no_text_but_the_canonical_one_parses(text: str) -> None:
    try:
        cid = Cid.parse(text)
    except CidError:
        return
    assert str(cid) == text


@given(codecs, digests, st.data())
@settings(max_examples=200)
def test_changing_one_character_gives_another_cid_or_none(
    codec: Codec, digest: bytes, data: st.DataObject
) -> None:
    text = str(Cid.from_digest(digest, codec))
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("abcz234567=Q/0189")) + text[at + 1 :]
    if changed == text:
        return
    try:
        other = Cid.parse(changed)
    except CidError:
        return
    assert other != Cid.parse(text)
    assert str(other) == changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../../x",
        "/ipfs/" + HELLO,
        HELLO + "\0",
        HELLO + "\n",
        HELLO + "/..",
        HELLO[:-1],
        HELLO + "a",
        HELLO.upper(),
        HELLO[:5] + HELLO[5:].upper(),
        HELLO + "=",
        "z" + HELLO[1:],
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        HELLO[:-2] + "\u00e9e",
    ],
)
def test_path_traversal_and_foreign_texts_are_no_cids(text: str) -> None:
    with pytest.raises(CidError):
        Cid.parse(text)


def test_spare_bits_at_the_end_of_the_text_must_be_zero() -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    position = alphabet.index(HELLO[-1])
    with pytest.raises(CidError, match="canonical"):
        Cid.parse(HELLO[:-1] + alphabet[position | 1 if not position & 1 else position ^ 2])


@pytest.mark.parametrize(
    "multihash", ["sha1", "sha2-512", "sha3-256", "blake2b-256", "identity"], ids=lambda name: name
)
def test_other_hash_functions_are_refused(multihash: str) -> None:
    length = {"sha1": 20, "sha2-512": 64}.get(multihash, 32)
    foreign = CID("base32", 1, "raw", (multihash, bytes(length)))
    with pytest.raises(CidError):
        Cid.parse(str(foreign))
    with pytest.raises(CidError):
        Cid.from_bytes(bytes(foreign))


@pytest.mark.parametrize("codec", ["dag-pb", "dag-json", "libp2p-key", "git-raw"])
def test_other_codecs_are_refused(codec: str) -> None:
    foreign = CID("base32", 1, codec, ("sha2-256", bytes(32)))
    with pytest.raises(CidError):
        Cid.parse(str(foreign))
    with pytest.raises(CidError):
        Cid.from_bytes(bytes(foreign))


@given(st.binary(max_size=80))
def test_no_bytes_but_the_canonical_ones_parse(raw: bytes) -> None:
    try:
        cid = Cid.from_bytes(raw)
    except CidError:
        return
    assert bytes(cid) == raw


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), bytearray(32), "0" * 32])
def test_a_digest_has_thirty_two_bytes(digest: bytes) -> None:
    with pytest.raises(CidError):
        Cid.from_digest(digest)


def test_a_codec_given_as_a_number_is_refused() -> None:
    with pytest.raises(CidError):
        Cid(0x55, bytes(32))  # type: ignore[arg-type]


@given(st.binary(min_size=1, max_size=200), st.data())
def test_malicious_peer_wrong_block_is_told_by_any_flipped_byte(block: bytes, data: st.DataObject) -> None:
    cid = Cid.of(block)
    cid.check(block)
    at = data.draw(st.integers(0, len(block) - 1))
    flipped = block[:at] + bytes((block[at] ^ data.draw(st.integers(1, 255)),)) + block[at + 1 :]
    with pytest.raises(BlockMismatchError):
        cid.check(flipped)


def test_the_same_bytes_under_two_codecs_have_two_names() -> None:
    assert Cid.of(b"\xa0", Codec.RAW) != Cid.of(b"\xa0", Codec.DAG_CBOR)
    assert len({Cid.of(b"\xa0", Codec.RAW), Cid.of(b"\xa0", Codec.DAG_CBOR)}) == 2
