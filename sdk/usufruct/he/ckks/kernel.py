"""The `cubic-score` kernel: its record, its pre-encoded models, and what can be proved of its results.

For every row, a0 + a1 z + a2 z^2 + a3 z^3 of the linear score z = w x + b; with suitable coefficients an approximation of
a logistic score. All that a job multiplies and adds is in its model, three linear maps in integers:

    z = (sum W_j x_j / p3 + B_z) / D        the score over `unit`
    u = (sum U_j x_j / p3 + B_u) / S        a2 unit^2 + a3 unit^3 z
    v = (sum V_j x_j / p3 + B_v) / D        a0 + a1 unit z
    result = u z^2 + v

where x_j stands scaled by D = 2^40, p1, p2 and p3 are the primes that the three rescalings take, in that order from the
last, and S = p1 p2 / D makes the scale of u z^2 come out as D exactly. `unit` is a power of two that keeps z within 1, so
that the noise of u is not multiplied. Rounding is exact rational arithmetic: a model has the same bytes wherever it is
encoded, and whoever evaluates or checks a job encodes nothing.

Touches no homomorphic library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt
from types import MappingProxyType
from typing import Final

import numpy as np

from usufruct.errors import KernelBoundError, KernelParameterError
from usufruct.he.ckks.container import MAX_FEATURES, MAX_MULTIPLIER_BITS, Model, N, encode_model_block
from usufruct.he.ckks.parameters import CKKS_CUBIC
from usufruct.he.kernels.record import KernelId, id_of_record
from usufruct.he.sampling import ERROR_BOUND

MAX_ABS: Final = 32
"""Largest magnitude of a feature: its encoder works in doubles, and stays within one unit of 2^-40 up to here."""

LOGISTIC: Final = (0.5, 0.15012, 0.0, -0.0015930)
"""Least-squares cubic of the logistic function on [-8, 8]; off by less than 0.115 there.

Source: Kim, Song, Wang, Xia and Jiang, JMIR Medical Informatics 6(2), 2018, with its coefficients per z written out.
"""

D: Final = 1 << CKKS_CUBIC.scale_bits
P0, P1, P2, P3 = CKKS_CUBIC.primes
S: Final = Fraction(P1 * P2, D)
RESULT_SCALES: Final = (Fraction(D), S, Fraction(D))
"""Scale of z, u and v after the first rescaling, in the order of a model's rows."""

FRESH_ERROR: Final = ERROR_BOUND + 1
"""Largest error of a coefficient of a sealed block: SEAL's error, and one unit for the encoder."""

ROUNDING: Final = N * (N + 1) // 2
"""Largest error in a slot that a rescaling or a division by the special prime makes: half a unit in N coefficients of c0,
and of c1, where it meets a secret whose magnitudes add up to at most N."""

RECORD: Final[Mapping[str, object]] = MappingProxyType(
    {
        "name": "cubic-score",
        "version": 1,
        "kernel_class": "score",
        "scheme": "ckks",
        "parameter_schema": {"model": "block of form MODEL"},
        "bounds": {
            "value": "U*Z^2+V, each from sum(abs(multipliers))*max_abs and abs(bias)",
            "error": "E_v+(U*E_2+Z_2*E_u+E_2*E_u+K_1)/p1+R, E_2=(2*Z*E_z+E_z^2+K_2)/p2+R, "
            "E_row=l1(row)*22*N/p3+R+(features*max_abs*D/p3+1)/2, K_l=21*N^2*sum(p_0..p_l)/P+R, R=N*(N+1)/2",
        },
        "cost_model": {
            "multiply_plain": "chunks*3*features",
            "relinearise": "chunks*2",
            "rescale": "chunks*5",
        },
    }
)
"""The record as plain data."""

KERNEL_ID: Final[KernelId] = id_of_record(RECORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class CubicScore:
    """A cubic polynomial of a linear score, in real numbers."""

    weights: tuple[float, ...]
    bias: float

    coefficients: tuple[float, float, float, float]
    """a0 to a3; a3 is not zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CubicBounds:
    """What `bounds_of` proved for every row that keeps to the declared range."""

    value_bound: float
    """Largest magnitude of a result."""

    error_bound: float
    """Largest difference between a result before flooding and the polynomial, for every polynomial that rounds to this
    model."""

    noise_deviation: float
    """Standard deviation of a result's noise in a slot, estimated from above: noises of different origin count as
    independent where they are, and add up where they are not. What flooding is measured by."""


def encode_model(score: CubicScore, max_abs: float) -> bytes:
    """Pre-encode a score, once, by whoever posts the job.

    Parameters
    ----------
    max_abs :
        Declared largest magnitude of a feature, at most `MAX_ABS`.

    Returns
    -------
    block :
        A container of form MODEL.

    Raises
    ------
    KernelParameterError
        If a number is not finite or does not fit, or the shapes are wrong.
    ContainerError
        If one of the three maps is zero for every feature, so that its value would not be encrypted.
    """
    _check_range(max_abs)
    numbers = (*score.weights, score.bias, *score.coefficients)
    if not 1 <= len(score.weights) <= MAX_FEATURES or not np.isfinite(numbers).all():
        raise KernelParameterError(
            f"a score takes 1 to {MAX_FEATURES} finite weights and finite coefficients"
        )
    w, b = [Fraction(weight) for weight in score.weights], Fraction(score.bias)
    a0, a1, a2, a3 = (Fraction(coefficient) for coefficient in score.coefficients)
    largest = sum(map(abs, w)) * Fraction(max_abs) + abs(b)
    unit = Fraction(2) ** max(0, (ceil(largest) - 1).bit_length())
    slopes = (1 / unit, a3 * unit**2, a1)
    constants = (b / unit, a2 * unit**2 + a3 * unit**2 * b, a0 + a1 * b)
    rows = [
        [round(weight * slope * scale / D * P3) for weight in w]
        for slope, scale in zip(slopes, RESULT_SCALES, strict=True)
    ]
    biases = [round(constant * scale) for constant, scale in zip(constants, RESULT_SCALES, strict=True)]
    if max(abs(number) for row in (*rows, biases) for number in row) >> MAX_MULTIPLIER_BITS:
        raise KernelParameterError(f"a coefficient needs more than {MAX_MULTIPLIER_BITS} bits")
    return encode_model_block(
        Model(biases=np.array(biases, dtype=np.int64), multipliers=np.array(rows, dtype=np.int64))
    )


def bounds_of(model: Model, max_abs: float) -> CubicBounds:
    """Prove the worst case of a model before a job starts.

    Errors are followed through every step as the largest magnitude in a slot, for every secret, every randomness and every
    row within the range; a coefficient is at most as large as the largest slot.

    Raises
    ------
    KernelParameterError
        If the range is not within `MAX_ABS`.
    KernelBoundError
        If a value could come within a factor of two of wrapping on its level.
    """
    _check_range(max_abs)
    largest = Fraction(max_abs)
    sums = [sum(abs(int(number)) for number in row) for row in model.multipliers]
    # Rounding of the real model: half a unit in every multiplier and in the bias.
    rounded = (model.multipliers.shape[1] * largest * D / P3 + 1) / 2
    z, u, v = (
        total * largest * D / P3 + abs(int(bias)) + rounded
        for total, bias in zip(sums, model.biases, strict=True)
    )
    e_z, e_u, e_v = (Fraction(total * FRESH_ERROR * N, P3) + ROUNDING + rounded for total in sums)
    square, e_2 = z * z / P2, (2 * z * e_z + e_z**2 + _switching_error(2)) / P2 + ROUNDING
    product = u * square
    e_product = (square * e_u + u * e_2 + e_2 * e_u + _switching_error(1)) / P1 + ROUNDING
    value, error = product / P1 + v, e_product + e_v
    for level, reached in (
        (3, max(z, u, v) * P3 + max(e_z, e_u, e_v) * P3),
        (2, (z + e_z) ** 2 + _switching_error(2)),
        (1, (square + e_2) * (u + e_u) + _switching_error(1)),
        (0, value + error),
    ):
        modulus = _modulus(level)
        if 4 * reached >= modulus:
            raise KernelBoundError(
                f"kernel cubic-score: worst-case value {float(reached):.4g} on level {level} exceeds the limit "
                f"{modulus / 4:.4g}",
                hint="use smaller weights or coefficients, or a bundle with a smaller declared range",
            )
    return CubicBounds(
        value_bound=float(value / D) * _UP,
        error_bound=float(error / D) * _UP,
        noise_deviation=_deviation(model, float(z), float(u)) / D,
    )


_UP: Final = 1 + 2.0**-50
"""Takes a rounded quotient to at least the exact one."""


def _modulus(level: int) -> int:
    product = 1
    for prime in CKKS_CUBIC.primes[: level + 1]:
        product *= prime
    return product


def _switching_error(level: int) -> Fraction:
    """Largest error in a slot of a relinearisation: digits below each prime times a fresh error, over the special prime."""
    digits = sum(CKKS_CUBIC.primes[: level + 1])
    return Fraction(digits * ERROR_BOUND * N * N, CKKS_CUBIC.special_prime) + ROUNDING


def _deviation(model: Model, z: float, u: float) -> float:
    """Standard deviation of the noise in a slot of a result, in units of 1 / D.

    A sealed coefficient has SEAL's variance of 21 / 2 and that of rounding, a twelfth; a slot N times that. A rescaling adds
    a twelfth in c0, and in c1 for each of at most N coefficients of the secret. A digit below p has a mean square of p^2 / 3.
    The noises of z, u and v come of the same blocks, so that they are added as they are.
    """
    rescaled = sqrt(N * (1 + N) / 12)
    fresh = sqrt(N * (ERROR_BOUND / 2 + 1 / 12))
    s_z, s_u, s_v = (
        sqrt((fresh / P3) ** 2 * float(np.square(row.astype(np.float64)).sum()) + rescaled**2)
        for row in model.multipliers
    )

    def switched(level: int) -> float:
        digits = sum(float(prime) ** 2 for prime in CKKS_CUBIC.primes[: level + 1])
        return sqrt(N * N * digits / 3 * ERROR_BOUND / 2) / CKKS_CUBIC.special_prime + rescaled

    s_2 = (2 * z * s_z + switched(2)) / P2 + rescaled
    return (z * z / P2 * s_u + u * s_2 + switched(1)) / P1 + rescaled + s_v


def _check_range(max_abs: float) -> None:
    if not 0 < max_abs <= MAX_ABS:
        raise KernelParameterError(f"max_abs is {max_abs!r}, expected above 0 and at most {MAX_ABS}")
