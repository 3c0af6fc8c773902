"""Differential privacy of released numbers: noise, and what it costs.

Costs are in zero-concentrated differential privacy (zCDP), counted in integer micro-rho (1_000_000 is rho
= 1) and always rounded up, since the ledger adds integers and must never undercount. Neighbouring inputs
differ in that all rows of one subject are zero rows in one of them; sensitivities here are those of one row, and
the caller multiplies them by the most rows that one subject has. Noise is OpenDP's discrete Gaussian, sampled exactly
from the operating system's randomness. Keeps no budget and no memory of what was released.

Source: Bun and Steinke, arXiv 1605.02065; Canonne, Kamath and Steinke, arXiv 2004.00010.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from opendp.combinators import make_zCDP_to_approxDP
from opendp.domains import atom_domain, vector_domain
from opendp.measurements import make_gaussian
from opendp.metrics import l2_distance
from opendp.mod import OpenDPException, enable_features

from usufruct.errors import PrivacyError

MICRO: Final = 1_000_000
"""Micro-rho per rho."""

MAX_SCALE: Final = 1 << 58
"""OpenDP cuts what passes 63 bits; from a value below 2^62 that is 16 deviations away at least."""

_MAX_INTEGER = 1 << 62

_MAX_SIGMA = 1e12
"""Noise beyond this hides any result, and its millionths would not fit the 64 bits that the ledger has for them."""

enable_features("contrib")


def rho_micro_for(sigma: float, sensitivity: float) -> int:
    """Cost of one discrete Gaussian release, in micro-rho, rounded up.

    Parameters
    ----------
    sigma :
        Scale of the noise, in units of the released integers.
    sensitivity :
        How far one row can move the released vector, in the 2-norm, same units.

    Raises
    ------
    PrivacyError
        If either is not positive and finite.
    """
    _check_positive(sigma=sigma, sensitivity=sensitivity)
    return math.ceil(MICRO * Fraction(sensitivity) ** 2 / (2 * Fraction(sigma) ** 2))


def sigma_for(rho_micro: int, sensitivity: float) -> float:
    """Least noise that a budget buys: the smallest float whose cost is at most `rho_micro`.

    Parameters
    ----------
    rho_micro :
        Budget, a positive integer.
    sensitivity :
        As for `rho_micro_for`.

    Raises
    ------
    PrivacyError
        If either is not positive and finite.
    """
    _check_positive(rho_micro=rho_micro, sensitivity=sensitivity)
    sigma = sensitivity / math.sqrt(2 * rho_micro / MICRO)
    _check_positive(sigma=sigma)
    while rho_micro_for(sigma, sensitivity) > rho_micro:
        sigma = math.nextafter(sigma, math.inf)
    while rho_micro_for(below := math.nextafter(sigma, 0.0), sensitivity) <= rho_micro:
        sigma = below
    return sigma


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Noise on so many outputs of a release, one after the other."""

    outputs: int
    sigma: float
    """Standard deviation on each of them, in integer units."""
    grid: int
    """Each of them is a multiple of this: digits far below the noise say nothing and are not sent."""


def noise_levels(rho_micro: int, moved: Sequence[tuple[int, int]]) -> tuple[NoiseLevel, ...]:
    """Noise for outputs that one subject moves by different amounts; each group of them gets an equal part of the budget.

    Parameters
    ----------
    rho_micro :
        Budget of all of them together.
    moved :
        Per group the number of outputs, and the 2-norm by which one subject moves them together.

    Raises
    ------
    PrivacyError
        If there is less than a millionth for each group, a sensitivity is not positive, or the noise is larger than the
        ledger can log.

    Source
    ------
    Bun and Steinke, arXiv 1605.02065, lemma 1.7: the costs of independent mechanisms add up.
    """
    part = rho_micro // len(moved)
    if part < 1:
        raise PrivacyError(
            f"{rho_micro} millionths of rho cannot be divided among {len(moved)} kinds of outputs"
        )
    sigmas = [(outputs, sigma_for(part, norm)) for outputs, norm in moved]
    if max(sigma for _, sigma in sigmas) >= _MAX_SIGMA:
        raise PrivacyError(f"{rho_micro} millionths of rho ask for noise of a scale beyond {_MAX_SIGMA:.0e}")
    return tuple(NoiseLevel(outputs, sigma, grid_for(sigma)) for outputs, sigma in sigmas)


def discrete_gaussian(values: Sequence[int], scale: float) -> list[int]:
    """Add independent discrete Gaussian noise to each integer.

    Parameters
    ----------
    values :
        Exact results, magnitude below 2^62.
    scale :
        The parameter sigma of the distribution.

    Returns
    -------
    noisy :
        As many integers, in the same order.

    Raises
    ------
    PrivacyError
        If the scale is not positive and below `MAX_SCALE`, or a value is out of range.
    """
    _check_positive(scale=scale)
    if scale >= MAX_SCALE:
        raise PrivacyError(f"noise of scale {scale:g} does not fit 64 bits")
    if any(type(value) is not int or abs(value) >= _MAX_INTEGER for value in values):
        raise PrivacyError("noise can be added to integers below 2^62 only")
    noisy = _mechanism(float(scale))(list(values))
    return [int(value) for value in noisy]


GRID_PER_SIGMA: Final = 8
"""Steps of the grid in one standard deviation: rounding then adds at most 1/16 of it to an error."""


def grid_for(sigma: float) -> int:
    """Grid that released values are rounded to: the largest power of two of at most sigma / 8, and at least 1.

    Raises
    ------
    PrivacyError
        If sigma is not positive and finite.
    """
    _check_positive(sigma=sigma)
    return 1 << max(0, math.frexp(sigma / GRID_PER_SIGMA)[1] - 1)


def round_to_grid(values: Sequence[int], grid: int) -> list[int]:
    """Nearest multiple of the grid for each value, halves upwards; after noise, so that it costs no privacy.

    Raises
    ------
    PrivacyError
        If the grid is no positive integer.
    """
    if type(grid) is not int or grid < 1:
        raise PrivacyError(f"a grid is a positive integer, not {grid!r}")
    return [(value + grid // 2) // grid * grid for value in values]


def epsilon(rho_micro: int, delta: float) -> float:
    """Translate a zCDP cost into the epsilon of (epsilon, delta)-differential privacy.

    Parameters
    ----------
    rho_micro :
        Total spent, 0 to 2^64 - 1.
    delta :
        In (0, 1).

    Raises
    ------
    PrivacyError
        If either is out of range.

    Source
    ------
    OpenDP's conversion; beyond its range, from a rho of 70,000 on, Bun and Steinke, arXiv 1605.02065, proposition 1.3.
    """
    if type(rho_micro) is not int or not 0 <= rho_micro < 1 << 64 or not 0 < delta < 1:
        raise PrivacyError(
            f"rho_micro {rho_micro!r} has to be from 0 to 2^64 - 1 and delta {delta!r} between 0 and 1"
        )
    if rho_micro == 0:
        return 0.0
    # At scale 1, a distance d costs rho = d^2 / 2; the distance is rounded up.
    distance = math.nextafter(math.sqrt(2 * rho_micro / MICRO), math.inf)
    converted = make_zCDP_to_approxDP(_mechanism(1.0))
    try:
        return float(converted.map(distance).epsilon(delta))
    except OpenDPException as exc:
        if exc.variant != "Overflow":
            raise
    rho = rho_micro / MICRO
    return math.ceil(rho + 2 * math.sqrt(rho * -math.log(delta)))


def noise_bound(sigma: float, failure_probability: float) -> int:
    """Bound that one noise value keeps to, except with at most the given probability.

    The discrete Gaussian is sub-Gaussian: P(|X| >= k) <= 2 exp(-k^2 / (2 sigma^2)).

    Raises
    ------
    PrivacyError
        If sigma is not positive and finite, or the probability not between 0 and 1.
    """
    _check_positive(sigma=sigma)
    if not 0 < failure_probability < 1:
        raise PrivacyError(f"failure_probability {failure_probability!r} has to be between 0 and 1")
    return math.ceil(sigma * math.sqrt(2 * math.log(2 / failure_probability)))


def sum_sensitivity(max_l2: int) -> int:
    """2-norm by which one row moves the vector of all column sums: the bound on a row's own norm."""
    _check_positive(max_l2=max_l2)
    return max_l2


def products_sensitivity(max_l2: int) -> int:
    """2-norm by which one row moves the sums of all products of two columns, each pair once.

    A row x adds x_i x_j with i <= j; their 2-norm is at most B^2 with B the bound on that of x.
    """
    _check_positive(max_l2=max_l2)
    return max_l2**2


def linear_sensitivity(
    weights: Sequence[Sequence[int]], bias: Sequence[int], max_abs: int, max_l2: int
) -> int:
    """2-norm by which one row moves the vector of summed scores of a linear model, rounded up.

    It is the bound on one row's own score vector, bias included, so it holds as well where the row is missing instead
    of zero; where it is changed to another, twice this value does.

    Parameters
    ----------
    weights, bias :
        Integer model, shapes (m, d) and (m,).
    max_abs, max_l2 :
        Declared bounds of a quantised row.

    Raises
    ------
    PrivacyError
        If a bound is not positive, or the model is empty or all zero.
    """
    _check_positive(max_abs=max_abs, max_l2=max_l2)
    if len(weights) != len(bias):
        raise PrivacyError(f"{len(bias)} biases for {len(weights)} rows of weights")
    squared = 0
    for row, offset in zip(weights, bias, strict=True):
        l1 = sum(abs(weight) for weight in row) * max_abs
        l2 = _isqrt_up(sum(weight * weight for weight in row) * max_l2**2)
        squared += (min(l1, l2) + abs(offset)) ** 2
    if squared == 0:
        raise PrivacyError("an all-zero model has no sensitivity")
    return _isqrt_up(squared)


def _isqrt_up(value: int) -> int:
    return math.isqrt(value - 1) + 1 if value else 0


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value <= 0
        ):
            raise PrivacyError(f"{name} is {value!r}, expected a positive finite number")


@lru_cache(maxsize=16)
def _mechanism(scale: float) -> Any:
    space = vector_domain(atom_domain(T="i64")), l2_distance(T=float)
    return make_gaussian(*space, scale)
