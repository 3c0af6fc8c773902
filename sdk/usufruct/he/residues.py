"""Exact integer linear algebra on residues modulo one prime of at most 54 bits, or several of at most 31.

Everything here runs on floating-point units (BLAS, FFT) and is exact all the same: operands are cut into
limbs so narrow that each result is an integer known in advance to be representable, and the bound is
checked against the actual operands before the work. Hence the same bits on every machine, at any thread
count, in any order of summation. Knows residues only: no container, no kernel, no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.uint64]
"""Residues in [0, q)."""

_MANTISSA_BITS = 53
_BLAS_LIMB_BITS = 27
_FFT_LIMB_BITS = 18
_FLAT_LIMB_BITS = 27
_FLAT_PEAK = 1 << 8
_MAX_MODULUS_BITS = 54


def combine(weights: NDArray[np.int64], residues: Residues, modulus: int) -> Residues:
    """Matrix product of small signed integers with residues.

    Parameters
    ----------
    weights :
        shape (m, d); a row's magnitudes may sum to less than 2^44.
    residues :
        shape (d, k), each below `modulus`.
    modulus :
        At most 54 bits.

    Returns
    -------
    product :
        shape (m, k), `weights @ residues` modulo `modulus`.

    Raises
    ------
    OverflowError
        If the weights are too large for an exact product.

    Notes
    -----
    Residues are cut into limbs of b bits. A sum of any subset of the terms w_j * limb_j is an integer of
    magnitude at most l1 * (2^b - 1) with l1 the largest row sum of |w|; b is chosen from the weights at
    hand so that this stays below 2^53. Every partial sum is then exactly representable in float64,
    whatever the blocking, the order or the use of fused multiply-adds.
    """
    _check_modulus(modulus)
    widest = _widest_row(weights)
    limb_bits = min(_BLAS_LIMB_BITS, _MANTISSA_BITS - widest.bit_length())
    if limb_bits < _MANTISSA_BITS - 44:
        raise OverflowError(f"weights whose magnitudes sum to {widest} are too large for an exact product")
    float_weights = weights.astype(np.float64)
    limb_mask = np.uint64((1 << limb_bits) - 1)
    n_limbs = -(-modulus.bit_length() // limb_bits)
    total = np.zeros((weights.shape[0], residues.shape[1]), dtype=np.uint64)
    for limb in reversed(range(n_limbs)):
        part = (residues >> np.uint64(limb * limb_bits)) & limb_mask
        product = (float_weights @ part.astype(np.float64)).astype(np.int64)
        total = shift_left(total, limb_bits, modulus)
        total = (total + np.mod(product, modulus).astype(np.uint64)) % np.uint64(modulus)
    return total


def _widest_row(weights: NDArray[np.int64]) -> int:
    """Largest sum of magnitudes in a row."""
    peak = max(int(weights.max(initial=0)), -int(weights.min(initial=0)))
    if peak * weights.shape[1] < 1 << 63:
        return int(np.abs(weights).sum(axis=1).max(initial=0))
    # Python integers: a row of extreme weights must not wrap before the bound sees it.
    widest: int = max(sum(abs(w) for w in row) for row in weights.tolist())
    return widest


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Spectrum:
    """Transform of a small polynomial, ready for `negacyclic_multiply`; as secret as the polynomial."""

    values: NDArray[np.complex128]
    """shape (N,)."""

    is_flat: bool
    """Whether no value is above 2^8, as for random polynomials: residues then need two limbs instead of three."""


def spectrum_of(small: NDArray[np.int64]) -> Spectrum:
    """Transform a polynomial with coefficients in {-1, 0, 1}, a row mask or a ternary secret.

    Parameters
    ----------
    small :
        shape (N,), N a power of two, at most 4096.

    Raises
    ------
    OverflowError
        If it holds anything else, or N is larger.
    """
    degree = small.shape[0]
    if degree > 4096 or degree & (degree - 1):
        raise OverflowError(f"polynomials of {degree} coefficients are outside what was proved exact")
    if np.abs(small).max(initial=0) > 1:
        raise OverflowError("the small polynomial has a coefficient outside -1, 0, 1")
    values = np.fft.fft(small * _twist(degree))
    # Rounding of the transform moves a value by far less than the one that is left here.
    return Spectrum(values, is_flat=bool(np.abs(values).max() <= _FLAT_PEAK - 1))


def negacyclic_multiply(residues: Residues, small: NDArray[np.int64] | Spectrum, modulus: int) -> Residues:
    """Multiply polynomials by one polynomial with coefficients in {-1, 0, 1}, modulo X^N + 1 and the modulus.

    Parameters
    ----------
    residues :
        shape (..., N), each below `modulus`.
    small :
        The small polynomial, shape (N,), or its spectrum where it is used again.
    modulus :
        At most 54 bits.

    Returns
    -------
    product :
        shape (..., N).

    Raises
    ------
    OverflowError
        As `spectrum_of`, or if the degrees differ.

    Notes
    -----
    A residue is cut into limbs; two of them travel through one complex FFT as real and imaginary part, the sequence
    being twisted by the 2N-th roots of unity. A transform of length 4096 errs, in the 2-norm, by less than 2^-46 of its
    result (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., theorem 24.2).

    Three limbs of 18 bits: with |a| <= 2^18.5 * 2^6 in the 2-norm and no point of the small polynomial's spectrum above
    2^12, the result of the inverse transform is below 2^36.5 in the 2-norm, for hostile residues too. So no coefficient
    is off by more than 2^-7, all three transforms counted, and rounding to the nearest integer gives the exact product,
    below 2^30 in magnitude for every limb.

    Two limbs of 27 bits, where no point of the spectrum is above 2^8: |a| <= 2^27.5 * 2^6, so the result is below 2^41.5,
    no coefficient is off by more than 2^-2.9, and a limb's product is below 2^39.
    """
    _check_modulus(modulus)
    spectrum = spectrum_of(small) if isinstance(small, np.ndarray) else small
    degree = spectrum.values.size
    if residues.shape[-1] != degree:
        raise OverflowError(f"polynomials of {residues.shape[-1]} and {degree} coefficients")
    # A multiple of the modulus that makes every sum below positive.
    offset = -(-(1 << 50) // modulus) * modulus
    if spectrum.is_flat:
        low, high = _convolved(residues, _FLAT_LIMB_BITS, spectrum)
        upper = _reduced((high + offset).view(np.uint64), modulus)
        total = shift_left(upper, _FLAT_LIMB_BITS, modulus)
        return _reduced((total.view(np.int64) + (low + offset)).view(np.uint64), modulus)
    low, middle = _convolved(residues, _FFT_LIMB_BITS, spectrum)
    high, _ = _convolved(residues >> np.uint64(2 * _FFT_LIMB_BITS), _FFT_LIMB_BITS, spectrum)
    upper = ((high << _FFT_LIMB_BITS) + middle + offset).view(np.uint64)
    total = shift_left(_reduced(upper, modulus), _FFT_LIMB_BITS, modulus)
    return _reduced((total.view(np.int64) + (low + offset)).view(np.uint64), modulus)


def total_of(residues: Residues, modulus: int) -> int:
    """Sum of at most 2^37 residues of a modulus of at most 54 bits, modulo it."""
    _check_modulus(modulus)
    low = int((residues & np.uint64((1 << _BLAS_LIMB_BITS) - 1)).sum())
    return (low + (int((residues >> np.uint64(_BLAS_LIMB_BITS)).sum()) << _BLAS_LIMB_BITS)) % modulus


def signed_remainder(residues: Residues, primes: Sequence[int], modulus: int) -> Residues:
    """Read integers from their residues by several primes, as signed, and reduce them modulo another.

    Parameters
    ----------
    residues :
        shape (k, n): row i below `primes[i]`. Column j stands for the integer of least magnitude with these
        residues, which is below half of the primes' product.
    primes :
        Of at most 31 bits, all different.
    modulus :
        At most 31 bits.

    Returns
    -------
    remainders :
        shape (n,), below `modulus`.

    Notes
    -----
    Mixed radix: x = v_0 + v_1 p_0 + v_2 p_0 p_1 + ... with v_i < p_i, found by exact 64-bit arithmetic. Digits
    compare like the numbers, so the sign needs no wide integer.
    """
    digits: list[Residues] = []
    for index, prime in enumerate(primes):
        p = np.uint64(prime)
        below = _horner(digits, primes, prime)
        inverse = np.uint64(pow(prod(primes[:index]), -1, prime))
        digits.append((residues[index] + p - below) % p * inverse % p)
    total = prod(primes)
    greater = np.zeros(residues.shape[1], dtype=np.bool_)
    equal = np.ones(residues.shape[1], dtype=np.bool_)
    rest, half = total // 2, []
    for prime in primes:
        rest, digit = divmod(rest, prime)
        half.append(np.uint64(digit))
    for digit_of_half, found in zip(reversed(half), reversed(digits), strict=True):
        greater |= equal & (found > digit_of_half)
        equal &= found == digit_of_half
    remainder = _horner(digits, primes, modulus)
    wrapped = np.uint64(-total % modulus)
    signed: Residues = (remainder + wrapped * greater) % np.uint64(modulus)
    return signed


def _horner(digits: Sequence[Residues], primes: Sequence[int], modulus: int) -> Residues:
    """Value of mixed-radix digits modulo a modulus of at most 31 bits."""
    m = np.uint64(modulus)
    value = np.uint64(0) * (digits[0] if digits else np.zeros(1, dtype=np.uint64))
    for digit, prime in zip(reversed(digits), reversed(primes[: len(digits)]), strict=True):
        value = (value * (np.uint64(prime) % m) + digit) % m
    return value


def scale_up(values: NDArray[np.int64], modulus: int, plain_modulus: int) -> Residues:
    """Place signed plaintext values at the top of the residue range.

    Each value m is reduced modulo t and mapped to floor((q * m + floor((t + 1) / 2)) / t), the rounding
    that SEAL uses when it encrypts and when it adds a plaintext.

    Parameters
    ----------
    values :
        Any shape; reduced modulo `plain_modulus` first.
    modulus, plain_modulus :
        q of at most 54 bits and t of at most 31 bits.
    """
    _check_modulus(modulus)
    t = np.uint64(plain_modulus)
    m = (values - values // plain_modulus * plain_modulus).astype(np.uint64)
    quotient, remainder = divmod(modulus, plain_modulus)
    fix = (m * np.uint64(remainder) + np.uint64((plain_modulus + 1) // 2)) // t
    return _reduced(m * np.uint64(quotient) + fix, modulus)


def shift_left(residues: Residues, bits: int, modulus: int) -> Residues:
    """Return `residues * 2^bits` modulo a modulus of at most 54 bits, in steps that fit 64-bit words."""
    step = 64 - _MAX_MODULUS_BITS
    while bits:
        now = min(step, bits)
        residues = _reduced(residues << np.uint64(now), modulus)
        bits -= now
    return residues


def _reduced(values: NDArray[np.uint64], modulus: int) -> Residues:
    """Remainders; numpy divides by one number in vector registers, and takes remainders one by one."""
    q = np.uint64(modulus)
    remainders: Residues = values - values // q * q
    return remainders


def _convolved(
    residues: Residues, bits: int, spectrum: Spectrum
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Products of the lowest two limbs of that many bits with the small polynomial, exact integers."""
    twist, mask = _twist(spectrum.values.size), np.uint64((1 << bits) - 1)
    limbs = np.empty(residues.shape, dtype=np.complex128)
    limbs.real, limbs.imag = residues & mask, (residues >> np.uint64(bits)) & mask
    limbs *= twist
    # A transform in place of its input: pages that are fresh for every polynomial cost as much as the butterflies.
    np.fft.fft(limbs, out=limbs)
    limbs *= spectrum.values
    np.fft.ifft(limbs, out=limbs)
    limbs *= twist.conj()
    return np.rint(limbs.real).astype(np.int64), np.rint(limbs.imag).astype(np.int64)


def _check_modulus(modulus: int) -> None:
    if modulus.bit_length() > _MAX_MODULUS_BITS:
        raise OverflowError(f"modulus {modulus:#x} is wider than {_MAX_MODULUS_BITS} bits")


@lru_cache(maxsize=4)
def _twist(degree: int) -> NDArray[np.complex128]:
    """Powers of the primitive 2N-th root of unity, each computed on its own so that no error accumulates."""
    twist: NDArray[np.complex128] = np.exp(1j * np.pi * np.arange(degree) / degree)
    twist.setflags(write=False)
    return twist
