"""The container: canonical, strict, and bounded in memory."""

import hashlib
import resource
import struct
import tracemalloc
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ContainerError, WrongKeyDomainError
from usufruct.he.container import (
    FORMS,
    Ciphertext,
    Form,
    block_size,
    encode,
    expand_seed,
    pack,
    parse,
    unpack,
)
from usufruct.he.parameters import (
    ALLOWED,
    BFV_LINEAR,
    BGV_MOMENTS,
    BGV_PAIRS,
    MAX_COEFF_MODULUS_BITS,
    Parameters,
    parameters_by_id,
)

Q, N = BFV_LINEAR.coeff_modulus, BFV_LINEAR.poly_modulus_degree
KEY = bytes(range(32))
HEADER = 75


CASES = [(parameters, form) for parameters in ALLOWED.values() for form in sorted(FORMS[parameters.scheme])]
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0].scheme}-{case[0].poly_modulus_degree}-{case[1].name.lower()}"
)


def uniform(parameters: Parameters, rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` residues by each prime."""
    return np.concatenate([rng.integers(0, prime, count, dtype=np.uint64) for prime in parameters.primes])


def ciphertext(parameters: Parameters, form: Form, seed: int = 0) -> Ciphertext:
    rng = np.random.default_rng(seed)
    degree = parameters.poly_modulus_degree
    public_seed = rng.bytes(32) if form is Form.SEEDED else None
    c1 = uniform(parameters, rng, degree)
    if public_seed is not None:
        c1 = expand_seed(public_seed, parameters, KEY)
    c2 = uniform(parameters, rng, degree) if form.parts == 3 else None
    c0 = uniform(parameters, rng, 1 if form.extracted else degree)
    return Ciphertext(form=form, parameters=parameters, key_id=KEY, c0=c0, c1=c1, c2=c2, seed=public_seed)


Case = tuple[Parameters, Form]
BLOCKS = {case: encode(ciphertext(*case)) for case in CASES}
SEEDED, WHOLE, EXTRACTED = ((BFV_LINEAR, form) for form in sorted(FORMS["bfv"]))


def refused(data: bytes) -> str:
    with pytest.raises(ContainerError) as caught:
        parse(data)
    return caught.value.field


def altered(case: Case, offset: int, new: bytes) -> bytes:
    block = BLOCKS[case]
    return block[:offset] + new + block[offset + len(new) :]


@every_case
def test_what_is_written_is_what_is_read(case: Case) -> None:
    parameters, form = case
    original = ciphertext(*case)
    found = parse(BLOCKS[case], key_id=KEY, forms=(form,))
    assert len(BLOCKS[case]) == block_size(form, parameters)
    assert np.array_equal(found.c0, original.c0)
    assert np.array_equal(found.c1, original.c1)
    assert (found.c2 is None) == (original.c2 is None) == (form.parts == 2)
    assert found.c2 is None or np.array_equal(found.c2, original.c2)
    assert (found.form, found.key_id, found.seed) == (form, KEY, original.seed)
    assert encode(found) == BLOCKS[case]


def test_block_sizes_are_those_of_the_format_page() -> None:
    assert [block_size(form, parameters) for parameters, form in CASES] == [
        *(27755, 55371, 27730),
        *(55403, 110667, 55385, 165963, 110681),
        *(148587, 297035, 148574, 445515, 297054),
    ]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 56), st.data())
def test_packing_puts_each_bit_where_the_format_page_says(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=30))
    packed = pack(np.array(values, dtype=np.uint64), bits)
    number = sum(value << (bits * i) for i, value in enumerate(values))
    assert packed == number.to_bytes(-(-len(values) * bits // 8), "little")
    assert unpack(packed, len(values), bits).tolist() == values


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 1 << 20), st.integers(1, 255))
def test_it_loads_so_it_is_valid_no_mutant_has_two_spellings(case: Case, position: int, flip: int) -> None:
    """A mutated block is refused, or is another value that is written back to exactly the mutated bytes."""
    mutant = bytearray(BLOCKS[case])
    mutant[position % len(mutant)] ^= flip
    try:
        found = parse(bytes(mutant))
    except ContainerError:
        return
    assert encode(found) == bytes(mutant) != BLOCKS[case]


@every_case
@pytest.mark.parametrize(
    ("offset", "new", "field"),
    [
        (0, b"X", "magic"),
        (4, b"\x02", "version"),
        (5, b"\x00", "scheme"),
        (6, b"\x00", "form"),
        (6, b"\x7f", "form"),
        (7, b"\x00\x00\x00", "parameters_id"),
        (71, b"\x01", "length"),
        (71, b"\xff\xff\xff\xff", "length"),
        (HEADER, b"\xff" * 7, "residues"),
    ],
)
def test_malicious_peer_every_byte_class_is_refused_by_name(
    case: Case, offset: int, new: bytes, field: str
) -> None:
    assert refused(altered(case, offset, new)) == field


@every_case
def test_malicious_peer_form_byte_of_another_form_is_refused(case: Case) -> None:
    parameters, own = case
    for form in Form:
        if form is not own:
            expected = "length" if form in FORMS[parameters.scheme] else "form"
            assert refused(altered(case, 6, bytes([form]))) == expected


def test_malicious_peer_scheme_byte_of_another_scheme_is_refused() -> None:
    assert refused(altered(SEEDED, 5, b"\x02")) == "scheme"
    assert refused(altered((BGV_PAIRS, Form.SEEDED), 5, b"\x01")) == "scheme"


@every_case
def test_set_bits_after_the_last_residue_are_refused(case: Case) -> None:
    parameters, form = case
    count = (len(BLOCKS[case]) - HEADER) * 8 // parameters.residue_bits
    spare = (len(BLOCKS[case]) - HEADER) * 8 - count * parameters.residue_bits
    if not form.extracted:
        assert form is Form.SEEDED or spare == 0
        return
    assert 0 < spare < 8
    for bit in range(8 - spare, 8):
        assert refused(BLOCKS[case][:-1] + bytes([BLOCKS[case][-1] | 1 << bit])) == "padding"


@every_case
def test_transparent_parts_are_refused_on_both_sides_for_each_prime(case: Case) -> None:
    """One prime's residues of c1 or c2 being zero shows the message in that prime's residues of c0."""
    parameters, form = case
    degree = parameters.poly_modulus_degree
    if form is Form.SEEDED:
        return
    for number in range(form.parts - 1):
        for prime in range(len(parameters.primes)):
            bare = ciphertext(*case)
            part = [bare.c1, bare.c2][number]
            assert part is not None
            part[prime * degree : (prime + 1) * degree] = 0
            with pytest.raises(ContainerError) as caught:
                encode(bare)
            assert caught.value.field == "transparent"
            zeros = bytes(degree * parameters.residue_bits // 8)
            before = number + (0 if form.extracted else 1)
            offset = HEADER + len(zeros) * (before * len(parameters.primes) + prime)
            assert refused(altered(case, offset, zeros)) == "transparent"


@every_case
def test_residue_equal_to_its_prime_is_refused_and_one_below_is_not(case: Case) -> None:
    parameters, _ = case
    bits, degree = parameters.residue_bits, parameters.poly_modulus_degree
    group = 8
    for index, prime in enumerate(parameters.primes):
        offset = HEADER + index * degree * bits // 8
        top = pack(np.array([prime - 1] * group, dtype=np.uint64), bits)
        found = parse(altered(case, offset, top))
        first = found.c1 if found.form.extracted else found.c0
        assert int(first[index * degree]) == prime - 1
        high = pack(np.array([prime] * group, dtype=np.uint64), bits)
        assert refused(altered(case, offset, high)) == "residues"


@every_case
def test_malformed_blob_truncations_and_trailing_bytes_are_refused(case: Case) -> None:
    block = BLOCKS[case]
    for length in (0, 1, 4, 74, 75, 76, len(block) // 2, len(block) - 1):
        assert refused(block[:length]) == "length"
    assert refused(block + b"\0") == "length"


def test_malformed_blob_a_bomb_takes_no_memory() -> None:
    """113 bytes that claim the largest payload are refused before anything is allocated."""
    bomb = BLOCKS[WHOLE][:71] + struct.pack("<I", 0xFFFFFFFF) + b"\x28\xb5\x2f\xfd" + b"\0" * 34
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
        parse(BLOCKS[SEEDED], key_id=bytes(32))


def test_form_that_is_not_acceptable_here_is_refused() -> None:
    with pytest.raises(ContainerError) as caught:
        parse(BLOCKS[WHOLE], forms=(Form.SEEDED,))
    assert caught.value.field == "form"


def test_writer_refuses_a_seed_that_does_not_give_c1() -> None:
    wrong = ciphertext(*SEEDED)
    wrong.c1[0] ^= np.uint64(1)
    with pytest.raises(ContainerError) as caught:
        encode(wrong)
    assert caught.value.field == "seed"


def test_writer_refuses_polynomials_that_are_not_those_of_the_form_and_short_key_ids() -> None:
    whole, product = ciphertext(*WHOLE), ciphertext(BGV_PAIRS, Form.PRODUCT)
    for wrong in (
        replace(whole, form=Form.EXTRACTED),
        replace(whole, c0=whole.c0[:1]),
        replace(whole, key_id=KEY[:31]),
        replace(whole, form=Form.PRODUCT),
        replace(whole, form=Form.PRODUCT, c2=whole.c1),
        replace(product, form=Form.CIPHERTEXT),
        replace(product, c2=None),
        replace(product, c1=product.c1[:-1]),
        replace(product, form=Form.EXTRACTED_PRODUCT),
    ):
        with pytest.raises(ContainerError):
            encode(wrong)


def is_prime(number: int) -> bool:
    """Miller and Rabin with bases that are proved enough below 2^64."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(
            (power := power * power % number) == number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def test_weak_parameters_are_not_on_the_allow_list() -> None:
    for identifier, parameters in ALLOWED.items():
        assert identifier == parameters.parameters_id
        assert parameters.security_bits >= 128
        assert parameters.coeff_modulus.bit_length() <= MAX_COEFF_MODULUS_BITS[parameters.poly_modulus_degree]
        assert len({*parameters.primes, parameters.plain_modulus}) == len(parameters.primes) + 1
        for prime in (*parameters.primes, parameters.plain_modulus):
            assert prime % (2 * parameters.poly_modulus_degree) == 1
            assert is_prime(prime)
        assert {prime.bit_length() for prime in parameters.primes} == {parameters.residue_bits}
    weak = Parameters(
        scheme="bfv", poly_modulus_degree=1024, primes=(Q,), plain_modulus=1032193, security_bits=128
    )
    with pytest.raises(ContainerError) as caught:
        parameters_by_id(weak.parameters_id)
    assert caught.value.field == "parameters_id"


def test_parameter_id_covers_every_field() -> None:
    fields = {
        "scheme": "bfv", "poly_modulus_degree": N, "primes": (Q,), "plain_modulus": 1032193, "security_bits": 128
    }  # fmt: skip
    assert Parameters(**fields) == BFV_LINEAR
    ids = {BFV_LINEAR.parameters_id, Parameters(**(fields | {"scheme": "bgv"})).parameters_id}
    for primes in ((Q + 1,), (Q, Q + 1)):
        ids.add(Parameters(**(fields | {"primes": primes})).parameters_id)
    for name in ("poly_modulus_degree", "plain_modulus", "security_bits"):
        ids.add(Parameters(**(fields | {name: fields[name] + 1})).parameters_id)
    assert len(ids) == 7


def slow_expansion(seed: bytes, parameters: Parameters, key_id: bytes) -> list[int]:
    """The format page's words, one by one."""
    bits, degree = parameters.residue_bits, parameters.poly_modulus_degree
    size = 8 if bits > 32 else 4
    data = b"usufruct/seed/1\0" + parameters.parameters_id + key_id + seed
    stream = hashlib.shake_128(data).digest(size * 10 * degree)
    words = (
        int.from_bytes(stream[i : i + size], "little") % (1 << bits) for i in range(0, len(stream), size)
    )
    return [
        residue
        for prime in parameters.primes
        for residue in islice((word for word in words if word < prime), degree)
    ]


@pytest.mark.parametrize("parameters", [BFV_LINEAR, BGV_PAIRS, BGV_MOMENTS])
@settings(max_examples=10, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), key_id=st.binary(min_size=32, max_size=32))
def test_seed_expands_as_the_format_page_says(parameters: Parameters, seed: bytes, key_id: bytes) -> None:
    assert expand_seed(seed, parameters, key_id).tolist() == slow_expansion(seed, parameters, key_id)


@pytest.mark.parametrize("primes", [((1 << 53) + 5,), ((1 << 26) + 5, (1 << 26) + 7)])
def test_seed_expansion_skips_words_at_or_above_the_modulus(primes: tuple[int, ...]) -> None:
    """A modulus just above a power of two rejects nearly every second word, so the stream has to be extended."""
    half = Parameters(
        scheme="bfv", poly_modulus_degree=N, primes=primes, plain_modulus=1032193, security_bits=128
    )
    found = expand_seed(bytes(32), half, KEY)
    assert found.shape == (N * len(primes),)
    assert found.tolist() == slow_expansion(bytes(32), half, KEY)


def test_one_seed_gives_unrelated_polynomials_under_two_keys() -> None:
    one, other = (expand_seed(bytes(32), BFV_LINEAR, key) for key in (KEY, bytes(32)))
    assert not (one == other).any()


def test_seed_of_another_length_is_refused() -> None:
    with pytest.raises(ContainerError):
        expand_seed(bytes(31), BFV_LINEAR, KEY)
