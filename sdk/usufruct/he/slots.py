"""Plaintexts of BGV: slots, polynomials, and how large a ciphertext's phase can be.

Slot i of a plaintext is its value at the i-th root of unity modulo t, in the order of `ntt`: sums and products act on
each slot alone. The phase of a ciphertext is c0 + c1 s + c2 s^2 = m + t e, read as signed; it opens rightly as long as
no coefficient reaches half of the modulus. Knows no key.

Source: Smart and Vercauteren, ePrint 2011/133.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from usufruct.he import ntt
from usufruct.he.parameters import Parameters
from usufruct.he.residues import Residues
from usufruct.he.sampling import ERROR_BOUND


def encode(slots: NDArray[np.int64], parameters: Parameters) -> NDArray[np.int64]:
    """The plaintext polynomial with these values in its slots.

    Parameters
    ----------
    slots :
        Any integers, shape (N,); reduced modulo t.

    Returns
    -------
    coefficients :
        shape (N,), of magnitude at most t / 2.
    """
    t = parameters.plain_modulus
    coefficients = ntt.inverse(np.mod(slots, t).astype(np.uint64), t).astype(np.int64)
    return np.where(coefficients > t // 2, coefficients - t, coefficients)


def transformed(coefficients: NDArray[np.int64], parameters: Parameters) -> Residues:
    """Values of a polynomial with signed coefficients, by each prime; shape (primes, N)."""
    return np.stack(
        [ntt.forward(np.mod(coefficients, prime).astype(np.uint64), prime) for prime in parameters.primes]
    )


def moduli(parameters: Parameters) -> Residues:
    """The primes as a column, shape (primes, 1)."""
    return np.array(parameters.primes, dtype=np.uint64)[:, None]


def reduced(values: Residues, parameters: Parameters) -> Residues:
    """Remainders by each prime, shape (..., primes, N): numpy divides by one number in vector registers, not by several."""
    remainders = np.empty_like(values)
    for index, prime in enumerate(parameters.primes):
        part = values[..., index, :]
        remainders[..., index, :] = part - part // np.uint64(prime) * np.uint64(prime)
    return remainders


def mask_values(rows: NDArray[np.bool_], parameters: Parameters) -> Residues:
    """What to multiply by, so that coefficient 0 of a plaintext becomes the sum of its permitted slots.

    The sum of all slots is N times coefficient 0, so permitted slots are multiplied by N and the others by 0.

    Parameters
    ----------
    rows :
        shape (N,).

    Returns
    -------
    values :
        By each prime, shape (primes, N), of a polynomial whose coefficients are at most t / 2.
    """
    return transformed(encode(rows.astype(np.int64) * rows.size, parameters), parameters)


def sealed_phase(parameters: Parameters) -> int:
    """Largest coefficient of the phase of a block that its owner sealed: m + t e."""
    return parameters.value_limit + parameters.plain_modulus * ERROR_BOUND


def uploaded_phase(parameters: Parameters) -> int:
    """Largest coefficient of the phase of a block encrypted under a public key: m + t (e u + e0 + e1 s).

    Secret s and mask u are ternary, so a product adds up to N errors.
    """
    errors = ERROR_BOUND * (2 * parameters.poly_modulus_degree + 1)
    return parameters.value_limit + parameters.plain_modulus * errors
