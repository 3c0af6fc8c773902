"""Quantisation: real weights to integers as finely as a job's worst case admits, and the error that rounding causes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KernelBoundError, KernelParameterError
from usufruct.he.kernels.distance import DistanceParameters
from usufruct.he.kernels.fedsum import FedsumParameters
from usufruct.he.kernels.linear import LINEAR, LinearParameters, linear_worst_case
from usufruct.he.kernels.moments import MomentsParameters
from usufruct.he.kernels.record import MARGIN_BITS, BundleShape, KernelParameters, noise_limit
from usufruct.he.kernels.sums import SumParameters

MAX_REAL_WEIGHT: Final = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedModel:
    """An integer model and the scale of its results."""

    parameters: LinearParameters

    weight_scale: float
    """Integer units per 1.0 of a weight."""

    result_scale: float
    """Integer units per 1.0 of a score; a real score is `opened / result_scale`."""

    error_bound: float
    """How far rounding the model can move the score of one real row within its declared range, in natural units; that the
    features are rounded too is `rounding_bound`, and the two add up."""


def quantise_model(
    weights: NDArray[np.floating[Any]],
    bias: NDArray[np.floating[Any]] | float,
    *,
    shape: BundleShape,
    feature_scale: int,
    output: Literal["rows", "sum"],
) -> QuantisedModel:
    """Round a real linear model to integers, as finely as the worst case admits.

    Parameters
    ----------
    weights :
        Finite, shape (m, n_features) or (n_features,), in natural units of the features.
    bias :
        Finite, shape (m,) or a number.
    shape :
        Of the bundle that the model will run on.
    feature_scale :
        Integer units per 1.0 of a feature.
    output :
        Results for a sum must fit for all rows together, so its scale is smaller.

    Returns
    -------
    model :
        Weights times `weight_scale`, rounded half to even, the scale being a multiple of 2^-16 found by
        bisection: it validates, and the next one does not.

    Raises
    ------
    KernelParameterError
        If the model is not numeric, not finite, or does not fit the bundle.
    KernelBoundError
        If no scale both validates and leaves every output a non-zero weight.
    """
    try:
        matrix = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        offsets = np.atleast_1d(np.asarray(bias, dtype=np.float64))
    except (TypeError, ValueError, OverflowError) as exc:
        raise KernelParameterError(f"the model has weights or biases that are no numbers: {exc}") from exc
    if matrix.ndim != 2 or matrix.shape[1] != shape.n_features or offsets.shape != (matrix.shape[0],):
        raise KernelParameterError(
            f"weights {matrix.shape} and bias {offsets.shape} do not fit {shape.n_features} features"
        )
    if not (np.abs(matrix) < MAX_REAL_WEIGHT).all() or not (np.abs(offsets) < MAX_REAL_WEIGHT).all():
        raise KernelParameterError(f"the model has a weight or bias that is not below {MAX_REAL_WEIGHT:g}")
    if feature_scale < 1:
        raise KernelParameterError(f"feature_scale is {feature_scale}, expected a positive integer")

    def rounded(step: int) -> LinearParameters:
        scale = step / 65536
        return LinearParameters(
            output=output,
            weights=tuple(tuple(int(w) for w in row) for row in np.rint(matrix * scale)),
            bias=tuple(int(b) for b in np.rint(offsets * scale * feature_scale)),
        )

    def fits(step: int) -> bool:
        value, noise = linear_worst_case(rounded(step), shape, zero_allowed=True)
        return value <= shape.parameters.value_limit and noise << MARGIN_BITS <= noise_limit(shape.parameters)

    low, high = 0, 1
    while fits(high):
        low, high = high, high * 2
        if high > 1 << 60:
            raise KernelParameterError("every weight of the model is zero, or next to it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    parameters = rounded(low)
    try:
        LINEAR.validate(parameters, shape)
    except KernelParameterError as exc:
        raise KernelBoundError(f"no weight scale fits the plaintext modulus: {exc}") from exc
    scale = low / 65536
    result_scale = scale * feature_scale
    # A real feature can be half a unit beyond what it is rounded to.
    highest = (shape.max_abs + 0.5) / feature_scale
    moved = np.abs(np.array(parameters.weights) / scale - matrix).sum(axis=1) * highest
    moved += np.abs(np.array(parameters.bias) / result_scale - offsets)
    return QuantisedModel(
        parameters=parameters,
        weight_scale=scale,
        result_scale=result_scale,
        error_bound=float(moved.max()),
    )


def rounding_bound(parameters: KernelParameters, shape: BundleShape) -> float:
    """How far rounding every feature to an integer can move a result's share of one row, in units of the result.

    A rounded value is at most half a unit from the real one, and a real value within the declared range.

    Raises
    ------
    KernelParameterError
        If the parameters do not fit the shape, or the kernel's inputs are no features.
    """
    if isinstance(parameters, SumParameters):
        return 0.5
    if isinstance(parameters, MomentsParameters):
        # (x + a)(y + b) - x y with a and b at most a half.
        return shape.max_abs + 0.25
    if isinstance(parameters, FedsumParameters):
        # Entries are rounded towards zero; a row of the result is what weighs 1 here.
        return 1.0
    if isinstance(parameters, DistanceParameters):
        sealed = {column for column, _ in parameters.norm}
        # (x + a - c)^2 - (x - c)^2 = 2 a (x - c) + a^2; the norm columns hold the norm of the rounded row, exactly.
        return max(
            sum(shape.max_abs + abs(value) + 0.25 for column, value in enumerate(row) if column not in sealed)
            for row in parameters.centroids
        )
    linear = parameters.linear_form(shape)
    if linear is None:
        raise KernelParameterError("these parameters are not for a kernel over sealed features")
    return max(sum(abs(weight) for weight in row) for row in linear.weights) / 2
