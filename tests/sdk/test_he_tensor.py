"""Sums of tensor products: the definition, at the edge of 64 bits, in any number of threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.he import tensor
from usufruct.he.parameters import BGV_MOMENTS, BGV_PAIRS
from usufruct.he.tensor import Stack, Sums, sums_of_each

PRIMES = (97, 2147352577)
PER_PRIME = 32
RESIDUES = PER_PRIME * len(PRIMES)


def random_residues(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Ciphertexts of two parts, with extreme residues among them; shape (*shape, 2, RESIDUES)."""
    parts = [rng.integers(0, prime, (*shape, 2, PER_PRIME), dtype=np.uint64) for prime in PRIMES]
    for part, prime in zip(parts, PRIMES, strict=True):
        extreme = rng.random(part.shape) < 0.3
        part[extreme] = prime - 1
    return np.concatenate(parts, axis=-1)


def stack_of(ciphertexts: np.ndarray) -> Stack:
    stack = Stack(ciphertexts.shape[0], ciphertexts.shape[1], RESIDUES)
    for row in range(ciphertexts.shape[0]):
        for term in range(ciphertexts.shape[1]):
            stack.fill(row, term, *ciphertexts[row, term])
    return stack


def expected(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The definition, in Python integers."""
    a, b = left.astype(object), right.astype(object)
    parts = [a[:, 0] * b[:, 0], a[:, 0] * b[:, 1] + a[:, 1] * b[:, 0], a[:, 1] * b[:, 1]]
    moduli = np.repeat(np.array(PRIMES, dtype=object), PER_PRIME)
    return np.stack([part.sum(axis=0) % moduli for part in parts]).astype(np.uint64)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    terms=st.integers(1, 9),
    threads=st.integers(1, 5),
    cut=st.integers(0, 8),
)
def test_sums_are_those_of_the_definition_however_they_are_cut_and_shared(
    seed: int, rows: tuple[int, int], terms: int, threads: int, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    left, right = random_residues(rng, rows[0], terms), random_residues(rng, rows[1], terms)
    pairs = [(i, j) for i in range(rows[0]) for j in range(rows[1])]
    sums = Sums(pairs, PRIMES, RESIDUES)
    for part in (slice(0, cut), slice(cut, None)):
        if left[:, part].shape[1]:
            sums.add(stack_of(left[:, part]), stack_of(right[:, part]), threads=threads)
    found = list(sums.results())
    assert np.array_equal(found, list(sums.results()))
    for (i, j), parts in zip(pairs, found, strict=True):
        assert np.array_equal(parts, expected(left[i], right[j]))


def test_products_of_every_size_of_prime_leave_room_for_the_stated_number_of_terms() -> None:
    for primes in (PRIMES, BGV_PAIRS.primes, BGV_MOMENTS.primes):
        highest = max(primes) - 1
        terms = Sums([(0, 0)], primes, 80 * len(primes)).terms_per_reduction
        assert highest + terms * 2 * highest**2 < 1 << 64 <= highest + (terms + 1) * 2 * highest**2
    assert Sums([(0, 0)], BGV_PAIRS.primes, 64).terms_per_reduction == 512
    assert Sums([(0, 0)], BGV_MOMENTS.primes, 80).terms_per_reduction == 32


@pytest.mark.parametrize("parameters", [BGV_PAIRS, BGV_MOMENTS])
@pytest.mark.parametrize("beyond", [-1, 0, 1, 2])
def test_the_largest_residues_do_not_wrap_around_a_reduction(parameters: object, beyond: int) -> None:
    primes = parameters.primes  # type: ignore[attr-defined]
    size = 16 * len(primes)
    highest = np.repeat(np.array([prime - 1 for prime in primes], dtype=np.uint64), 16)
    sums = Sums([(0, 0)], primes, size)
    terms = sums.terms_per_reduction + beyond
    stack = Stack(1, terms, size)
    for term in range(terms):
        stack.fill(0, term, highest, highest)
    for _ in range(2):
        sums.add(stack, stack)
    # (-1)(-1) = 1 by every prime, twice in the middle.
    assert next(sums.results()).tolist() == [
        [2 * terms * part % p for p in primes for _ in range(16)] for part in (1, 2, 1)
    ]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="stack"):
        Stack(1, 1, 17)
    with pytest.raises(ValueError, match="pair"):
        Sums([], PRIMES, RESIDUES)
    with pytest.raises(ValueError, match="31 bits"):
        Sums([(0, 0)], ((1 << 31) + 11,), 16)
    stack, short = Stack(1, 2, RESIDUES), Stack(1, 1, RESIDUES)
    part = np.zeros(RESIDUES, dtype=np.uint64)
    for row, term in ((1, 0), (0, 2), (-1, 0), (0, -1)):
        with pytest.raises(IndexError):
            stack.fill(row, term, part, part)
    with pytest.raises(IndexError):
        stack.fill(0, 0, part, part[:-1])
    with pytest.raises(ValueError, match="terms"):
        Sums([(0, 0)], PRIMES, RESIDUES).add(stack, short)
    for pair in ((1, 0), (0, 1), (-1, 0)):
        with pytest.raises(ValueError, match="row"):
            Sums([pair], PRIMES, RESIDUES).add(stack, stack)


def test_sums_of_each_pair_are_those_of_all_together() -> None:
    rng = np.random.default_rng(6)
    left, right = random_residues(rng, 3, 5), random_residues(rng, 2, 5)
    pairs = [(2, 0), (0, 1), (0, 0)]
    together = Sums(pairs, PRIMES, RESIDUES)
    together.add(stack_of(left), stack_of(right))
    apart = sums_of_each(pairs, stack_of(left), stack_of(right), PRIMES)
    for one, all_, (i, j) in zip(apart, together.results(), pairs, strict=True):
        assert np.array_equal(one, all_) and np.array_equal(one, expected(left[i], right[j]))


def test_words_at_both_ends_are_reduced_exactly() -> None:
    """Multiples of a prime and their neighbours, up to the largest word."""
    top = (1 << 64) - 1
    for primes in (PRIMES, BGV_PAIRS.primes[:2], (2, 3)):
        words = []
        for prime in primes:
            some = [0, 1, prime - 1, prime, prime + 1, 2 * prime - 1, 2 * prime, 3 * prime, 4 * prime - 1]
            some += [1 << 32, (1 << 32) - 1, top, top - 1, top // prime * prime, top // prime * prime - 1]
            words.append([*some, top // 3])
        sums = np.repeat(np.array(words, dtype=np.uint64)[:, None], 3, axis=1)
        found = tensor._reduced(sums, primes)
        assert found[0].tolist() == [
            word % prime for row, prime in zip(words, primes, strict=True) for word in row
        ]
