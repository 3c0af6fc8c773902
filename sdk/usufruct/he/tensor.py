"""Sums of tensor products of ciphertexts with small primes, compiled at first use.

The product of (a0, a1) and (b0, b1), kept as values, is (a0 b0, a0 b1 + a1 b0, a1 b1), value by value. Residues have at
most 31 bits, so a product fits a 64-bit word and many are added up before one reduction; how many follows from the
primes. Residues lie in tiles of sixteen, feature after feature, so that a sum is one pass over memory with its three
totals in registers. Exact integers: the same bits at any thread count, in any order, on any processor. No modulus is
needed inside, so one loop serves all primes.

Knows residues only: no container, no kernel, no key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from usufruct.he.residues import Residues

MAX_PRIME_BITS: Final = 31

_LANES = 16


class Stack:
    """Ciphertexts of two parts, in rows of terms, laid out for `Sums.add`.

    Parameters
    ----------
    rows, terms :
        What it has room for: `terms` ciphertexts in each row. What was never filled is zero.
    residues :
        Of one polynomial, all primes together; a multiple of 16. 4 bytes each.
    """

    def __init__(self, rows: int, terms: int, residues: int) -> None:
        if rows < 1 or terms < 1 or residues < 1 or residues % _LANES:
            raise ValueError(f"a stack of {rows} rows of {terms} terms with {residues} residues")
        self.rows, self.terms, self.residues = rows, terms, residues
        shape = (rows, residues // _LANES, terms, 2, _LANES)
        raw = np.zeros(rows * terms * 2 * residues + _LANES, dtype=np.uint32)
        start = -raw.ctypes.data % 64 // 4
        self._words: NDArray[np.uint32] = raw[start : start + rows * terms * 2 * residues].reshape(shape)

    @property
    def size_bytes(self) -> int:
        """Bytes that a product reads."""
        return self._words.nbytes

    @property
    def words(self) -> NDArray[np.uint32]:
        """The laid out residues, read-only; shape (rows, tiles, terms, 2, 16)."""
        view = self._words.view()
        view.setflags(write=False)
        return view

    def fill(self, row: int, term: int, c0: Residues, c1: Residues) -> None:
        """Write one ciphertext.

        Parameters
        ----------
        c0, c1 :
            shape (residues,), of at most 31 bits.

        Raises
        ------
        IndexError
            If it does not fit.
        """
        if not (0 <= row < self.rows and 0 <= term < self.terms):
            raise IndexError(f"no place for row {row}, term {term}")
        if c0.shape != (self.residues,) or c1.shape != (self.residues,):
            raise IndexError(f"parts of {c0.shape} and {c1.shape}, expected {self.residues} residues")
        for part, residues in enumerate((c0, c1)):
            self._words[row, :, term, part] = residues.reshape(-1, _LANES)


class Sums:
    """Sums of products of chosen rows of two stacks, over all terms of all stacks that are added.

    Parameters
    ----------
    pairs :
        (row of the left stack, row of the right stack) of every sum.
    primes :
        Of the residues, which lie prime after prime; at most 31 bits.
    residues :
        Of one polynomial, all primes together.

    Notes
    -----
    A term adds to the middle part two products of residues below p, to a total that was last reduced: with
    n terms it stays at most (p - 1) + 2 n (p - 1)^2. `terms_per_reduction` is the largest n for which that
    is below 2^64.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], primes: Sequence[int], residues: int) -> None:
        if not pairs or max(primes).bit_length() > MAX_PRIME_BITS or residues % (_LANES * len(primes)):
            raise ValueError("sums need at least one pair, and primes of at most 31 bits")
        self._pairs = np.array(pairs, dtype=np.int64)
        self._primes = tuple(primes)
        self._residues = residues
        self._totals = np.zeros((len(pairs), residues // _LANES, 3, _LANES), dtype=np.uint64)
        self._terms = 0
        highest = max(primes) - 1
        self.terms_per_reduction = ((1 << 64) - 1 - highest) // (2 * highest**2)

    def add(self, left: Stack, right: Stack, *, threads: int = 1) -> None:
        """Add the products of two stacks, term by term.

        Parameters
        ----------
        left, right :
            Of the same number of terms; residues below their primes.
        threads :
            How many share the work; the result does not depend on it.

        Raises
        ------
        ValueError
            If the stacks differ in shape, or a pair names a row that they do not have.
        """
        if left.terms != right.terms or left.residues != self._residues or right.residues != self._residues:
            raise ValueError("stacks of other terms or residues")
        if (self._pairs < 0).any() or (self._pairs >= [left.rows, right.rows]).any():
            raise ValueError("a pair names a row that the stacks do not have")
        for first in range(0, left.terms, self.terms_per_reduction):
            last = min(left.terms, first + self.terms_per_reduction)
            if self._terms + last - first > self.terms_per_reduction:
                self._reduce()
            self._add(left._words, right._words, first, last, threads)
            self._terms += last - first

    def _add(
        self, left: NDArray[np.uint32], right: NDArray[np.uint32], first: int, last: int, threads: int
    ) -> None:
        tiles = self._totals.shape[1]
        share = -(-tiles // max(1, threads))
        routine = _routines().add

        def work(start: int) -> None:
            routine(left, right, self._pairs, first, last, start, min(tiles, start + share), self._totals)

        helpers = [threading.Thread(target=work, args=(start,)) for start in range(share, tiles, share)]
        for helper in helpers:
            helper.start()
        work(0)
        for helper in helpers:
            helper.join()

    def _reduce(self) -> None:
        tiles = self._totals.shape[1] // len(self._primes)
        # Pair by pair and prime by prime, so that what numpy makes in between stays in the cache.
        for sums in self._totals:
            for index, prime in enumerate(self._primes):
                part = sums[index * tiles : (index + 1) * tiles]
                # Division by a scalar is vectorised, the remainder is not.
                part -= part // np.uint64(prime) * np.uint64(prime)
        self._terms = 0

    def results(self) -> Iterator[Residues]:
        """The sums so far, pair by pair, each residue below its prime; shape (3, residues) each."""
        for sums in self._totals:
            yield _reduced(sums, self._primes)


def sums_of_each(
    pairs: Sequence[tuple[int, int]], left: Stack, right: Stack, primes: Sequence[int]
) -> Iterator[Residues]:
    """What `Sums` gives over all terms of two stacks, one pair after the other.

    For many pairs of few terms: the totals of one pair stay in the cache until they are reduced, where `Sums` writes
    those of all pairs to memory and reads them again.
    """
    for pair in pairs:
        sums = Sums([pair], primes, left.residues)
        sums.add(left, right)
        yield from sums.results()


def _reduced(sums: NDArray[np.uint64], primes: Sequence[int]) -> Residues:
    """Remainders by each prime of one pair's totals, shape (tiles, 3, 16), part by part; shape (3, residues).

    With a word h 2^32 + l and c = 2^32 modulo p, h c and l are each taken to less than 2p by a quotient that is one too
    small at most, in products of 32 bits with 32.
    """
    made = np.empty((3, sums.shape[0] * _LANES), dtype=np.uint64)
    tiles = sums.shape[0] // len(primes)
    for index, prime in enumerate(primes):
        carry = (1 << 32) % prime
        factors = (prime, carry, (carry << 32) // prime, (1 << 32) // prime)
        _routines().reduce(sums, index * tiles, (index + 1) * tiles, *factors, made)
    return made


class _Routines(NamedTuple):
    add: Callable[..., None]
    reduce: Callable[..., None]


@lru_cache(maxsize=1)
def _routines() -> _Routines:
    """Compile for this processor."""
    from numba import njit, types

    multiply_add = _multiply_add()
    words = types.uint32[:, :, :, :, ::1]

    @njit(  # type: ignore[untyped-decorator]
        types.void(
            words,
            words,
            types.int64[:, ::1],
            types.int64,
            types.int64,
            types.int64,
            types.int64,
            types.uint64[:, :, :, ::1],
        ),
        nogil=True,
    )
    def routine(
        left: Any, right: Any, pairs: Any, first: int, last: int, top: int, bottom: int, totals: Any
    ) -> None:
        tile_bytes = left.shape[2] * 2 * _LANES * 4
        left_bytes, right_bytes = left.shape[1] * tile_bytes, right.shape[1] * tile_bytes
        sum_bytes = totals.shape[1] * 3 * _LANES * 8
        for tile in range(top, bottom):
            offset = tile * tile_bytes + first * 2 * _LANES * 4
            for pair in range(pairs.shape[0]):
                multiply_add(
                    left.ctypes.data + pairs[pair, 0] * left_bytes + offset,
                    right.ctypes.data + pairs[pair, 1] * right_bytes + offset,
                    last - first,
                    totals.ctypes.data + pair * sum_bytes + tile * 3 * _LANES * 8,
                )

    @njit(  # type: ignore[untyped-decorator]
        types.void(
            types.uint64[:, :, ::1], types.int64, types.int64, *[types.uint64] * 4, types.uint64[:, ::1]
        ),
        nogil=True,
    )
    def reduce(
        sums: Any, top: int, bottom: int, prime: Any, carry: Any, of_carry: Any, of_word: Any, made: Any
    ) -> None:
        word, bits = np.uint64((1 << 32) - 1), np.uint64(32)
        # Masks of 32 bits change nothing; they tell LLVM that multiplications of 32 bits do.
        prime, carry, of_carry, of_word = prime & word, carry & word, of_carry & word, of_word & word
        for part in range(3):
            for tile in range(top, bottom):
                line, out = sums[tile, part], made[part, tile * _LANES : (tile + 1) * _LANES]
                for lane in range(_LANES):
                    upper, lower = line[lane] >> bits, line[lane] & word
                    value = upper * carry - ((upper * of_carry) >> bits) * prime
                    value += lower - ((lower * of_word) >> bits) * prime
                    value = min(value, value - np.uint64(2) * prime)
                    out[lane] = min(value, value - prime)

    return _Routines(add=routine, reduce=reduce)


def _multiply_add() -> Any:
    """Make the innermost loop: one tile of two rows over all terms, the totals in registers.

    Written as LLVM instructions, since no compiler keeps the totals in place over the loop when it is spelt in
    Python. LLVM splits the vectors into registers of whatever width the processor has. Arguments are addresses of
    the rows' first terms, the number of terms, at least one, and the address of the totals.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    i64 = ir.IntType(64)
    narrow, wide = ir.VectorType(ir.IntType(32), _LANES), ir.VectorType(i64, _LANES)

    def at(builder: Any, address: Any, plus: int, kind: Any) -> Any:
        return builder.inttoptr(builder.add(address, ir.Constant(i64, plus)), kind.as_pointer())

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, terms, totals = arguments
        places = [at(builder, totals, part * _LANES * 8, wide) for part in range(3)]
        begun = [builder.load(place, align=8) for place in places]
        before = builder.block
        body, after = builder.append_basic_block("terms"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        term = builder.phi(i64)
        term.add_incoming(ir.Constant(i64, 0), before)
        sums = [builder.phi(wide) for _ in range(3)]
        for one, value in zip(sums, begun, strict=True):
            one.add_incoming(value, before)
        offset = builder.mul(term, ir.Constant(i64, 2 * _LANES * 4))

        def part(address: Any, number: int) -> Any:
            place = at(builder, builder.add(address, offset), number * _LANES * 4, narrow)
            return builder.zext(builder.load(place, align=4), wide)

        a0, a1, b0, b1 = part(left, 0), part(left, 1), part(right, 0), part(right, 1)
        made = [
            builder.add(sums[0], builder.mul(a0, b0)),
            builder.add(builder.add(sums[1], builder.mul(a0, b1)), builder.mul(a1, b0)),
            builder.add(sums[2], builder.mul(a1, b1)),
        ]
        following = builder.add(term, ir.Constant(i64, 1))
        term.add_incoming(following, body)
        for one, value in zip(sums, made, strict=True):
            one.add_incoming(value, body)
        builder.cbranch(builder.icmp_signed("<", following, terms), body, after)
        builder.position_at_end(after)
        for place, value in zip(places, made, strict=True):
            builder.store(value, place, align=8)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply_add(typing: Any, left: Any, right: Any, terms: Any, totals: Any) -> tuple[Any, Any]:
        return types.void(*[types.int64] * 4), generate

    return multiply_add
