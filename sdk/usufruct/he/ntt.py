"""Negacyclic number-theoretic transforms: polynomials as their values, where products are pointwise.

`forward` evaluates a polynomial modulo X^N + 1 at the primitive 2N-th roots of unity modulo a prime. The order and
the root are those of SEAL: value k belongs to psi^(2 r(k) + 1), psi the smallest primitive 2N-th root and r(k) the
number k with its log2(N) bits reversed. Exact integers modulo one prime of at most 31 bits; knows no ciphertext and
no key.

Source: Longa and Naehrig, ePrint 2016/504, algorithms 1 and 2; Harvey, arXiv 1205.2926, for the products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from usufruct.he.residues import Residues

MAX_PRIME_BITS: Final = 31
_WORD = np.uint64(32)


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """Factors of every stage, each with floor(factor 2^32 / prime) for `_times`; shape (2, N)."""

    forward: NDArray[np.uint64]
    inverse: NDArray[np.uint64]
    last: NDArray[np.uint64]
    """1 / N, shape (2,)."""


def forward(coefficients: Residues, prime: int) -> Residues:
    """Evaluate polynomials.

    Parameters
    ----------
    coefficients :
        shape (..., N), each below `prime`, lowest power first; N a power of two.
    prime :
        At most 31 bits, 1 modulo 2N.

    Returns
    -------
    values :
        shape (..., N), in the order of this module's description.

    Raises
    ------
    ValueError
        If the prime has no 2N-th roots of unity, or more bits.
    """
    degree = coefficients.shape[-1]
    factors = _tables(degree, prime).forward
    q = np.uint64(prime)
    values = np.array(coefficients, dtype=np.uint64).reshape(-1, degree)
    blocks = 1
    while blocks < degree:
        halves = values.reshape(-1, blocks, 2, degree // (2 * blocks))
        upper = halves[:, :, 0]
        lower = _times(halves[:, :, 1], factors[:, blocks : 2 * blocks, None], q)
        halves[:, :, 0], halves[:, :, 1] = _reduced(upper + lower, q), _reduced(upper + (q - lower), q)
        blocks *= 2
    return values.reshape(coefficients.shape)


def inverse(values: Residues, prime: int) -> Residues:
    """Undo `forward`; the same parameters and errors."""
    degree = values.shape[-1]
    tables = _tables(degree, prime)
    q = np.uint64(prime)
    found = np.array(values, dtype=np.uint64).reshape(-1, degree)
    blocks = degree // 2
    while blocks:
        halves = found.reshape(-1, blocks, 2, degree // (2 * blocks))
        upper, lower = halves[:, :, 0], halves[:, :, 1]
        total, difference = _reduced(upper + lower, q), _reduced(upper + (q - lower), q)
        halves[:, :, 0] = total
        halves[:, :, 1] = _times(difference, tables.inverse[:, blocks : 2 * blocks, None], q)
        blocks //= 2
    return _times(found, tables.last, q).reshape(values.shape)


def constant_term(values: Residues, prime: int) -> int:
    """Coefficient 0 of the polynomial with these values, shape (N,): their mean."""
    return int(values.sum(dtype=np.uint64)) * pow(values.size, -1, prime) % prime


def smallest_root(degree: int, prime: int) -> int:
    """The smallest primitive 2N-th root of unity; raises ValueError if the prime has none."""
    if (prime - 1) % (2 * degree) or prime.bit_length() > MAX_PRIME_BITS:
        raise ValueError(
            f"{prime} is not a prime of at most {MAX_PRIME_BITS} bits that is 1 modulo {2 * degree}"
        )
    candidates = (pow(base, (prime - 1) // (2 * degree), prime) for base in range(2, 1000))
    root = next((root for root in candidates if pow(root, degree, prime) == prime - 1), None)
    if root is None:
        raise ValueError(f"{prime} has no primitive root of unity of order {2 * degree}")
    smallest, power, step = root, root, root * root % prime
    for _ in range(degree - 1):
        power = power * step % prime
        smallest = min(smallest, power)
    return smallest


def bit_reversed(degree: int) -> NDArray[np.int64]:
    """The numbers below N, a power of two, with their bits reversed."""
    order = np.zeros(1, dtype=np.int64)
    while order.size < degree:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _times(x: Residues, factor: Residues, q: np.uint64) -> Residues:
    """Products modulo q of residues below 2^32 with a factor and its quotient, as `_with_quotients` made them."""
    # The quotient is one too small at most, so the remainder is below 2q; 64-bit words wrap alike on both sides.
    product: Residues = x * factor[0] - ((x * factor[1]) >> _WORD) * q
    return _reduced(product, q)


def _reduced(values: Residues, q: np.uint64) -> Residues:
    """Take values below 2q to values below q: where q is larger, the difference wraps to a huge number."""
    reduced: Residues = np.minimum(values, values - q)
    return reduced


@lru_cache(maxsize=32)
def _tables(degree: int, prime: int) -> _Tables:
    if degree < 2 or degree & (degree - 1):
        raise ValueError(f"a polynomial of {degree} coefficients")
    root = smallest_root(degree, prime)
    order = bit_reversed(degree).tolist()
    powers, inverses = [1] * degree, [1] * degree
    back = pow(root, -1, prime)
    for exponent in range(1, degree):
        powers[exponent] = powers[exponent - 1] * root % prime
        inverses[exponent] = inverses[exponent - 1] * back % prime
    last = _with_quotients([pow(degree, -1, prime)], prime)[:, 0]
    return _Tables(
        _with_quotients([powers[place] for place in order], prime),
        _with_quotients([inverses[place] for place in order], prime),
        last,
    )


def _with_quotients(factors: list[int], prime: int) -> NDArray[np.uint64]:
    table = np.array([factors, [(factor << 32) // prime for factor in factors]], dtype=np.uint64)
    table.setflags(write=False)
    return table
