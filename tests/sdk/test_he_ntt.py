"""Transforms: the definition, the product of polynomials, SEAL's order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal.sealapi import _sealapi_cpp

from bgv_oracle import context_of, with_special_prime
from usufruct.he.ntt import bit_reversed, constant_term, forward, inverse, smallest_root
from usufruct.he.parameters import BGV_MOMENTS, BGV_PAIRS, Parameters
from usufruct.he.residues import signed_remainder

MODULI = sorted(
    {
        (parameters.poly_modulus_degree, prime)
        for parameters in (BGV_PAIRS, BGV_MOMENTS)
        for prime in (*parameters.primes, parameters.plain_modulus)
    }
)
SMALL_PRIMES = (97, 193, 7681, 2147473409)
"""Each 1 modulo 32, the last the largest such below 2^31."""


def polynomials(degree: int, prime: int) -> st.SearchStrategy[list[int]]:
    edge = st.sampled_from([0, 1, prime - 1])
    return st.lists(edge | st.integers(0, prime - 1), min_size=degree, max_size=degree)


def schoolbook(left: list[int], right: list[int], prime: int) -> list[int]:
    """The product modulo X^N + 1 and the prime, term by term."""
    degree = len(left)
    product = [0] * degree
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            sign = -1 if i + j >= degree else 1
            product[(i + j) % degree] = (product[(i + j) % degree] + sign * a * b) % prime
    return product


@pytest.mark.parametrize("prime", SMALL_PRIMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), bits=st.integers(1, 4))
def test_products_of_values_are_the_schoolbook_product(prime: int, data: st.DataObject, bits: int) -> None:
    degree = 1 << bits
    left, right = (data.draw(polynomials(degree, prime)) for _ in range(2))
    values = [forward(np.array(one, dtype=np.uint64), prime) for one in (left, right)]
    product = inverse(values[0] * values[1] % np.uint64(prime), prime)
    assert product.tolist() == schoolbook(left, right, prime)


@pytest.mark.parametrize(("degree", "prime"), MODULI)
@pytest.mark.parametrize("kind", ["random", "highest", "zero"])
def test_the_inverse_undoes_the_transform_and_residues_stay_below_the_prime(
    degree: int, prime: int, kind: str
) -> None:
    polynomials = {
        "random": np.random.default_rng(1).integers(0, prime, (2, 3, degree), dtype=np.uint64),
        "highest": np.full((1, degree), prime - 1, dtype=np.uint64),
        "zero": np.zeros(degree, dtype=np.uint64),
    }[kind]
    before = polynomials.copy()
    values = forward(polynomials, prime)
    assert values.shape == polynomials.shape and int(values.max()) < prime
    assert np.array_equal(inverse(values, prime), polynomials)
    assert np.array_equal(polynomials, before)


@pytest.mark.parametrize(("degree", "prime"), MODULI)
def test_values_are_those_at_the_roots_that_the_format_page_names(degree: int, prime: int) -> None:
    polynomial = np.random.default_rng(2).integers(0, prime, degree, dtype=np.uint64)
    values, root = forward(polynomial, prime), smallest_root(degree, prime)
    assert pow(root, degree, prime) == prime - 1
    for place in (0, 1, 2, degree // 2 + 1, degree - 1):
        reversed_place = int(f"{place:0{degree.bit_length() - 1}b}"[::-1], 2)
        assert bit_reversed(degree)[place] == reversed_place
        x, value = pow(root, 2 * reversed_place + 1, prime), 0
        for coefficient in reversed(polynomial.tolist()):
            value = (value * x + coefficient) % prime
        assert int(values[place]) == value


@pytest.mark.parametrize("parameters", [BGV_PAIRS, BGV_MOMENTS])
def test_order_and_root_are_those_of_seal(parameters: Parameters) -> None:
    """SEAL's tables of a context begin with those of its first prime."""
    prime = with_special_prime(parameters).primes[0]
    data = context_of(parameters).key_context_data()
    polynomial = np.random.default_rng(3).integers(0, prime, parameters.poly_modulus_degree, dtype=np.uint64)
    theirs = _sealapi_cpp.util.ntt_negacyclic_harvey(polynomial.tolist(), data.small_ntt_tables())
    assert np.array_equal(forward(polynomial, prime), np.array(theirs, dtype=np.uint64) % np.uint64(prime))


@pytest.mark.parametrize(("degree", "prime"), MODULI)
def test_coefficient_zero_is_the_mean_of_the_values(degree: int, prime: int) -> None:
    polynomial = np.random.default_rng(4).integers(0, prime, degree, dtype=np.uint64)
    assert constant_term(forward(polynomial, prime), prime) == int(polynomial[0])


@pytest.mark.parametrize(("degree", "prime"), [(16, 101), (4096, 8191), (16, 2**32 + 15), (12, 97), (1, 97)])
def test_moduli_without_roots_and_other_degrees_are_refused(degree: int, prime: int) -> None:
    with pytest.raises(ValueError, match=r"prime|polynomial|root"):
        forward(np.zeros(degree, dtype=np.uint64), prime)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(1, 5), modulus=st.sampled_from([2, 97, 1032193, 2147352577]))
def test_signed_integers_come_back_from_their_residues(data: st.DataObject, count: int, modulus: int) -> None:
    """Also at the edges, where the sign changes."""
    primes = BGV_MOMENTS.primes[:count]
    total = 1
    for prime in primes:
        total *= prime
    half = total // 2
    edges = st.sampled_from([0, 1, -1, half, -half, half - 1, 1 - half])
    numbers = data.draw(st.lists(edges | st.integers(-half, half), min_size=1, max_size=20))
    residues = np.array([[number % prime for number in numbers] for prime in primes], dtype=np.uint64)
    found = signed_remainder(residues, primes, modulus)
    assert found.tolist() == [number % modulus for number in numbers]


def test_the_primes_are_in_falling_order_and_none_is_a_plaintext_modulus() -> None:
    for parameters in (BGV_PAIRS, BGV_MOMENTS):
        assert all(larger > smaller for larger, smaller in pairwise(parameters.primes))
        assert parameters.plain_modulus not in parameters.primes
