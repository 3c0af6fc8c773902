"""How much noise an opening needs, so that what is opened tells nothing of the noise in the ciphertext.

A CKKS result is a value and the noise of its ciphertext, and that noise is a linear equation about the secret: whoever
knows the ciphertext and an exact opening computes the secret. Noise of deviation sqrt(12 tau) 2^(s / 2) t hides a noise
whose 2-norm is at most t from an adversary who sees tau openings, up to s bits.

Knows no ciphertext and no key. Source: Li, Micciancio, Schultz and Sorrell, CRYPTO 2022 (ePrint 2022/816).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from usufruct.errors import KeyStoreError
from usufruct.privacy import MAX_SCALE, discrete_gaussian

MIN_SECURITY_BITS: Final = 30
TAIL: Final = 6.0
"""The 2-norm of k independent normal numbers passes sqrt(k) + 6 times their deviation with a probability below 2^-25."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flooding:
    """What the openings of one key domain have to withstand.

    Raises
    ------
    KeyStoreError
        If the security is below 30 bits, or a number is out of range.
    """

    openings: int = 1000
    """tau: how often anything is opened under the secret, over its whole life."""

    security_bits: int = MIN_SECURITY_BITS
    """s."""

    def __post_init__(self) -> None:
        if type(self.openings) is not int or not 1 <= self.openings <= 1 << 20:
            raise KeyStoreError(f"{self.openings!r} openings, expected 1 to 2^20")
        if type(self.security_bits) is not int or not MIN_SECURITY_BITS <= self.security_bits <= 128:
            raise KeyStoreError(
                f"flooding for {self.security_bits!r} bits, expected {MIN_SECURITY_BITS} to 128"
            )

    def sigma(self, noise_deviation: float, n_slots: int) -> float:
        """Deviation of the noise in every opened slot.

        Parameters
        ----------
        noise_deviation :
            Of the ciphertext's noise in one slot, in units of the result (`kernel.CubicBounds`).
        n_slots :
            How many are opened together.
        """
        # The grid that values are rounded to first moves each of them by one deviation more at most.
        norm = noise_deviation * (math.sqrt(n_slots) + TAIL) + math.sqrt(n_slots) * grid_of(noise_deviation)
        return math.sqrt(12 * self.openings) * 2 ** (self.security_bits / 2) * norm


def grid_of(deviation: float) -> float:
    """The largest power of two that is not above a deviation."""
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1)


def flood(values: Sequence[float], sigma: float, noise_deviation: float) -> list[float]:
    """Round values to a fine grid, add exact discrete Gaussian noise there, and round to a coarse one.

    Parameters
    ----------
    values :
        As decoded; they must not leave this process otherwise.
    sigma :
        From `Flooding.sigma`.

    Returns
    -------
    flooded :
        Multiples of a power of two of at most sigma / 4.

    Raises
    ------
    KeyStoreError
        If the noise does not fit 64 bits on the fine grid, or if a value is not finite or too large for it: nothing that
        the kernel made.
    """
    fine, coarse = grid_of(noise_deviation), grid_of(sigma / 4)
    if sigma / fine >= MAX_SCALE:
        raise KeyStoreError(
            f"flooding needs noise of {sigma / fine:.3g} steps of the grid, which does not fit 64 bits",
            hint="flood for fewer openings or fewer bits",
        )
    if any(not math.isfinite(value) or abs(value / fine) >= 1 << 52 for value in values):
        raise KeyStoreError("a block opens to numbers that no score has")
    noisy = discrete_gaussian([round(value / fine) for value in values], sigma / fine)
    # Whole numbers from here on: both grids are powers of two, the coarse one the larger.
    step = int(coarse / fine)
    return [(2 * number + step) // (2 * step) * coarse for number in noisy]
