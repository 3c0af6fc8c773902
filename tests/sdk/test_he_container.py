"""The container: canonical, strict, and bounded in memory."""

import hashlib
import resource
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ContainerError, WrongKeyDomainError
from usufruct.he.container import Ciphertext, Form, block_size, encode, expand_seed, pack, parse, unpack
from usufruct.he.parameters import ALLOWED, BFV_LINEAR, MAX_COEFF_MODULUS_BITS, Parameters, parameters_by_id

Q, N = BFV_LINEAR.coeff_modulus, BFV_LINEAR.poly_modulus_degree
KEY = bytes(range(32))
HEADER = 75


def ciphertext(form: Form, seed: int = 0) -> Ciphertext:
    rng = np.random.default_rng(seed)
    public_seed = rng.bytes(32) if form is Form.SEEDED else None
    c1 = rng.integers(0, Q, N, dtype=np.uint64)
    if public_seed is not None:
        c1 = expand_seed(public_seed, BFV_LINEAR, KEY)
    c0 = rng.integers(0, Q, 1 if form is Form.EXTRACTED else N, dtype=np.uint64)
    return Ciphertext(form=form, parameters=BFV_LINEAR, key_id=KEY, c0=c0, c1=c1, seed=public_seed)


BLOCKS = {form: encode(ciphertext(form)) for form in Form}


def refused(data: bytes) -> str:
    with pytest.raises(ContainerError) as caught:
        parse(data)
    return caught.value.field


def altered(form: Form, offset: int, new: bytes) -> bytes:
    block = BLOCKS[form]
    return block[:offset] + new + block[offset + len(new) :]


@pytest.mark.parametrize("form", list(Form))
def test_what_is_written_is_what_is_read(form: Form) -> None:
    original = ciphertext(form)
    found = parse(BLOCKS[form], key_id=KEY, forms=(form,))
    assert len(BLOCKS[form]) == block_size(form, BFV_LINEAR)
    assert np.array_equal(found.c0, original.c0)
    assert np.array_equal(found.c1, original.c1)
    assert (found.form, found.key_id, found.seed) == (form, KEY, original.seed)
    assert encode(found) == BLOCKS[form]


def test_block_sizes_are_those_of_the_format_page() -> None:
    assert [block_size(form, BFV_LINEAR) for form in Form] == [27755, 55371, 27730]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 56), st.data())
def test_packing_puts_each_bit_where_the_format_page_says(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=30))
    packed = pack(np.array(values, dtype=np.uint64), bits)
    number = sum(value << (bits * i) for i, value in enumerate(values))
    assert packed == number.to_bytes(-(-len(values) * bits // 8), "little")
    assert unpack(packed, len(values), bits).tolist() == values


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(Form)), st.integers(0, 1 << 20), st.integers(1, 255))
def test_it_loads_so_it_is_valid_no_mutant_has_two_spellings(form: Form, position: int, flip: int) -> None:
    """A mutated block is refused, or is another value that is written back to exactly the mutated bytes."""
    mutant = bytearray(BLOCKS[form])
    mutant[position % len(mutant)] ^= flip
    try:
        found = parse(bytes(mutant))
    except ContainerError:
        return
    assert encode(found) == bytes(mutant) != BLOCKS[form]


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize(
    ("offset", "new", "field"),
    [
        (0, b"X", "magic"),
        (4, b"\x02", "version"),
        (5, b"\x00", "scheme"),
        (6, b"\x00", "form"),
        (6, b"\x04", "form"),
        (7, b"\x00\x00\x00", "parameters_id"),
        (71, b"\x01", "length"),
        (71, b"\xff\xff\xff\xff", "length"),
        (HEADER, b"\xff" * 7, "residues"),
    ],
)
def test_malicious_peer_every_byte_class_is_refused_by_name(
    form: Form, offset: int, new: bytes, field: str
) -> None:
    assert refused(altered(form, offset, new)) == field


def test_malicious_peer_form_byte_of_another_form_is_refused() -> None:
    assert refused(altered(Form.SEEDED, 6, bytes([Form.CIPHERTEXT]))) == "length"
    assert refused(altered(Form.EXTRACTED, 6, bytes([Form.SEEDED]))) == "length"


def test_set_bits_after_the_last_residue_are_refused() -> None:
    last = BLOCKS[Form.EXTRACTED][-1]
    for bit in (0x40, 0x80):
        assert refused(BLOCKS[Form.EXTRACTED][:-1] + bytes([last | bit])) == "padding"


@pytest.mark.parametrize("form", [Form.CIPHERTEXT, Form.EXTRACTED])
def test_transparent_ciphertexts_are_refused_on_both_sides(form: Form) -> None:
    bare = ciphertext(form)
    bare.c1[:] = 0
    with pytest.raises(ContainerError) as caught:
        encode(bare)
    assert caught.value.field == "transparent"
    zeros = b"\0" * (N * 54 // 8)
    offset = HEADER + (len(zeros) if form is Form.CIPHERTEXT else 0)
    assert refused(altered(form, offset, zeros)) == "transparent"


def test_residue_equal_to_the_modulus_is_refused_and_one_below_is_not() -> None:
    top = pack(np.array([Q - 1, 0, 0, 0], dtype=np.uint64), 54)
    assert int(parse(altered(Form.SEEDED, HEADER, top)).c0[0]) == Q - 1
    assert (
        refused(altered(Form.SEEDED, HEADER, pack(np.array([Q, 0, 0, 0], dtype=np.uint64), 54))) == "residues"
    )


@pytest.mark.parametrize("form", list(Form))
def test_malformed_blob_truncations_and_trailing_bytes_are_refused(form: Form) -> None:
    block = BLOCKS[form]
    for length in (0, 1, 4, 74, 75, 76, len(block) // 2, len(block) - 1):
        assert refused(block[:length]) == "length"
    assert refused(block + b"\0") == "length"


def test_malformed_blob_a_bomb_takes_no_memory() -> None:
    """113 bytes that claim the largest payload are refused before anything is allocated."""
    bomb = BLOCKS[Form.CIPHERTEXT][:71] + struct.pack("<I", 0xFFFFFFFF) + b"\x28\xb5\x2f\xfd" + b"\0" * 34
    assert len(bomb) == 113
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    assert refused(bomb) == "length"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ContainerError):
        parse(data)


def test_foreign_key_same_parameters_other_key_domain_is_refused() -> None:
    with pytest.raises(WrongKeyDomainError, match="key domain"):
        parse(BLOCKS[Form.SEEDED], key_id=bytes(32))


def test_form_that_is_not_acceptable_here_is_refused() -> None:
    with pytest.raises(ContainerError) as caught:
        parse(BLOCKS[Form.CIPHERTEXT], forms=(Form.SEEDED,))
    assert caught.value.field == "form"


def test_writer_refuses_a_seed_that_does_not_give_c1() -> None:
    wrong = ciphertext(Form.SEEDED)
    wrong.c1[0] ^= np.uint64(1)
    with pytest.raises(ContainerError) as caught:
        encode(wrong)
    assert caught.value.field == "seed"


def test_writer_refuses_polynomials_of_the_wrong_degree_and_short_key_ids() -> None:
    whole = ciphertext(Form.CIPHERTEXT)
    for wrong in (
        Ciphertext(form=Form.EXTRACTED, parameters=BFV_LINEAR, key_id=KEY, c0=whole.c0, c1=whole.c1),
        Ciphertext(form=Form.CIPHERTEXT, parameters=BFV_LINEAR, key_id=KEY, c0=whole.c0[:1], c1=whole.c1),
        Ciphertext(form=Form.CIPHERTEXT, parameters=BFV_LINEAR, key_id=KEY[:31], c0=whole.c0, c1=whole.c1),
    ):
        with pytest.raises(ContainerError):
            encode(wrong)


def test_weak_parameters_are_not_on_the_allow_list() -> None:
    for identifier, parameters in ALLOWED.items():
        assert identifier == parameters.parameters_id
        assert parameters.security_bits >= 128
        assert parameters.coeff_modulus.bit_length() <= MAX_COEFF_MODULUS_BITS[parameters.poly_modulus_degree]
        assert parameters.coeff_modulus % (2 * parameters.poly_modulus_degree) == 1
    weak = Parameters(
        scheme="bfv", poly_modulus_degree=1024, coeff_modulus=Q, plain_modulus=1032193, security_bits=128
    )
    with pytest.raises(ContainerError) as caught:
        parameters_by_id(weak.parameters_id)
    assert caught.value.field == "parameters_id"


def test_parameter_id_covers_every_field() -> None:
    fields = {
        "scheme": "bfv", "poly_modulus_degree": N, "coeff_modulus": Q, "plain_modulus": 1032193, "security_bits": 128
    }  # fmt: skip
    assert BFV_LINEAR.to_dict() == fields
    ids = {BFV_LINEAR.parameters_id}
    for name in ("poly_modulus_degree", "coeff_modulus", "plain_modulus", "security_bits"):
        ids.add(Parameters(**(fields | {name: fields[name] + 1})).parameters_id)
    assert len(ids) == 5


def slow_expansion(seed: bytes, parameters: Parameters, key_id: bytes) -> list[int]:
    """The format page's words, one by one."""
    data = b"usufruct/seed/1\0" + parameters.parameters_id + key_id + seed
    stream = hashlib.shake_128(data).digest(8 * 40000)
    words = (int.from_bytes(stream[i : i + 8], "little") % (1 << 54) for i in range(0, len(stream), 8))
    return [word for word in words if word < parameters.coeff_modulus][: parameters.poly_modulus_degree]


@settings(max_examples=10, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_seed_expands_as_the_format_page_says(seed: bytes, key_id: bytes) -> None:
    assert expand_seed(seed, BFV_LINEAR, key_id).tolist() == slow_expansion(seed, BFV_LINEAR, key_id)


def test_seed_expansion_skips_words_at_or_above_the_modulus() -> None:
    """A modulus just above 2^53 rejects nearly every second word, so the stream has to be extended."""
    half = Parameters(
        scheme="bfv",
        poly_modulus_degree=N,
        coeff_modulus=(1 << 53) + 5,
        plain_modulus=1032193,
        security_bits=128,
    )
    found = expand_seed(bytes(32), half, KEY)
    assert found.shape == (N,)
    assert found.tolist() == slow_expansion(bytes(32), half, KEY)
    assert int(found.max()) < half.coeff_modulus


def test_one_seed_gives_unrelated_polynomials_under_two_keys() -> None:
    one, other = (expand_seed(bytes(32), BFV_LINEAR, key) for key in (KEY, bytes(32)))
    assert not (one == other).any()


def test_seed_of_another_length_is_refused() -> None:
    with pytest.raises(ContainerError):
        expand_seed(bytes(31), BFV_LINEAR, KEY)
