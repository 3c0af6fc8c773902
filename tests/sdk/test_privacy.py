"""Accounting in integer micro-rho and the noise that it pays for."""

import math
from fractions import Fraction

import numpy as np
import opendp.prelude as dp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import PrivacyError
from usufruct.privacy import (
    MAX_SCALE,
    MICRO,
    discrete_gaussian,
    epsilon,
    grid_for,
    linear_sensitivity,
    noise_bound,
    noise_levels,
    products_sensitivity,
    rho_micro_for,
    sigma_for,
    sum_sensitivity,
)

dp.enable_features("contrib")


def test_known_costs() -> None:
    assert rho_micro_for(10.0, 1) == 5000
    assert rho_micro_for(1.0, 1) == 500_000
    assert rho_micro_for(3.0, 1) == 55_556
    assert rho_micro_for(1e9, 1) == 1


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-3, 1e6), st.one_of(st.integers(1, 10**6), st.floats(1e-3, 1e6)))
def test_cost_is_never_under_counted_and_over_counted_by_less_than_one_micro(
    sigma: float, sensitivity: float
) -> None:
    exact = Fraction(sensitivity) ** 2 / (2 * Fraction(sigma) ** 2) * MICRO
    assert 0 <= rho_micro_for(sigma, sensitivity) - exact < 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_budget_buys_the_smallest_noise_that_it_covers(rho_micro: int, sensitivity: int) -> None:
    sigma = sigma_for(rho_micro, sensitivity)
    assert rho_micro_for(sigma, sensitivity) <= rho_micro
    assert rho_micro_for(math.nextafter(sigma, 0.0), sensitivity) > rho_micro


@pytest.mark.parametrize(("sigma", "sensitivity"), [(10.0, 1.0), (3.7, 12.0), (250.0, 133.0), (0.5, 2.0)])
def test_accounting_agrees_with_opendp(sigma: float, sensitivity: float) -> None:
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T=float)
    opendp_rho = dp.m.make_gaussian(*space, sigma).map(sensitivity)
    assert rho_micro_for(sigma, sensitivity) == math.ceil(round(opendp_rho * MICRO, 6))


def test_epsilon_is_the_published_figure_and_grows() -> None:
    assert epsilon(500_000, 1e-6) == pytest.approx(5.22, abs=0.01)
    assert epsilon(0, 1e-6) == 0
    series = [epsilon(rho, 1e-6) for rho in (1, 1000, 5000, 500_000, 2_000_000)]
    assert series == sorted(series)
    assert epsilon(5000, 1e-9) > epsilon(5000, 1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5_000_000), st.floats(1e-12, 1e-2))
def test_epsilon_keeps_below_the_closed_form_bound(rho_micro: int, delta: float) -> None:
    """Bun and Steinke: epsilon <= rho + 2 sqrt(rho ln(1/delta)); OpenDP's conversion is tighter, never above."""
    rho = rho_micro / MICRO
    assert 0 <= epsilon(rho_micro, delta) <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-9


def test_epsilon_of_a_cost_that_promises_nothing_is_still_a_number() -> None:
    """OpenDP's conversion overflows from a rho of 70,000 on; the ledger and `job post --rho` take more."""
    for delta in (1e-12, 1e-6, 0.999):
        series = [epsilon(rho, delta) for rho in (7 * 10**10, 71 * 10**9, 10**12, 1 << 63, (1 << 64) - 1)]
        assert series == sorted(series) and math.isfinite(series[-1]) and series[-1] > 1.8e13


@pytest.mark.parametrize("sigma", [0.7, 4.0, 250.0])
def test_noise_has_the_stated_scale_and_no_bias(sigma: float) -> None:
    n = 20_000
    noise = np.array(discrete_gaussian([1000] * n, sigma), dtype=float) - 1000
    # A discrete Gaussian's variance is at most sigma^2, and next to it from sigma = 0.7 on: limits at 8 sigma.
    assert abs(noise.mean()) < 8 * sigma / math.sqrt(n)
    assert abs(noise.var() - sigma**2) < 8 * sigma**2 * math.sqrt(2 / n) + 0.01 * sigma**2


def test_noise_is_independent_per_value_and_per_call() -> None:
    first, second = (np.array(discrete_gaussian([0] * 2000, 50.0)) for _ in range(2))
    assert (first != second).mean() > 0.9
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 8 / math.sqrt(len(a))


def test_noise_keeps_to_its_declared_bound() -> None:
    # Both tails: 2 exp(-8) is what lies beyond four deviations on either side.
    assert noise_bound(1000.0, 2 * math.exp(-8)) in (4000, 4001)
    bound = noise_bound(20.0, 1e-20)
    assert 190 < bound < 200
    assert max(map(abs, discrete_gaussian([0] * 20_000, 20.0))) <= bound
    assert noise_bound(20.0, 1e-3) < bound


def test_noisy_values_keep_their_order_and_count() -> None:
    noisy = discrete_gaussian([0, 10**9, -(10**9)], 3.0)
    assert [round(value / 10**9) for value in noisy] == [0, 1, -1]
    assert all(type(value) is int for value in noisy)
    assert discrete_gaussian([], 3.0) == []


@pytest.mark.parametrize("wrong", [0, -1, 0.0, math.nan, math.inf, True, "1", None])
def test_scales_and_sensitivities_that_are_not_positive_numbers_are_refused(wrong: object) -> None:
    for refused in (
        lambda: rho_micro_for(wrong, 1),  # type: ignore[arg-type]
        lambda: rho_micro_for(1.0, wrong),  # type: ignore[arg-type]
        lambda: sigma_for(wrong, 1),  # type: ignore[arg-type]
        lambda: sigma_for(1, wrong),  # type: ignore[arg-type]
        lambda: discrete_gaussian([1], wrong),  # type: ignore[arg-type]
        lambda: noise_bound(wrong, 0.1),  # type: ignore[arg-type]
        lambda: sum_sensitivity(wrong),  # type: ignore[arg-type]
    ):
        with pytest.raises(PrivacyError):
            refused()


def test_other_inputs_out_of_range_are_refused() -> None:
    for refused in (
        lambda: epsilon(-1, 1e-6),
        lambda: epsilon(1 << 64, 1e-6),
        lambda: epsilon(1, 0.0),
        lambda: epsilon(1, 1.0),
        lambda: epsilon(1, math.nan),
        lambda: noise_bound(1.0, 0.0),
        lambda: noise_bound(1.0, 1.0),
        lambda: discrete_gaussian([1 << 62], 1.0),
        lambda: discrete_gaussian([0], float(MAX_SCALE)),
        lambda: discrete_gaussian([1.5], 1.0),  # type: ignore[list-item]
        lambda: linear_sensitivity([[0]], [0], 1, 1),
        lambda: linear_sensitivity([[1]], [], 1, 1),
    ):
        with pytest.raises(PrivacyError):
            refused()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_row_moves_a_sum_of_scores_by_more_than_the_sensitivity(data: st.DataObject) -> None:
    m, d = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    max_abs = data.draw(st.integers(1, 50))
    integers = st.integers(-100, 100)
    weights = data.draw(st.lists(st.lists(integers, min_size=d, max_size=d), min_size=m, max_size=m))
    bias = data.draw(st.lists(integers, min_size=m, max_size=m).filter(any))
    row = data.draw(st.lists(st.integers(-max_abs, max_abs), min_size=d, max_size=d))
    max_l2 = max(1, math.isqrt(sum(x * x for x in row)) + 1)
    moved = [
        sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weights, bias, strict=True)
    ]
    assert sum(v * v for v in moved) <= linear_sensitivity(weights, bias, max_abs, max_l2) ** 2


def test_a_row_moves_the_column_sums_by_its_norm() -> None:
    assert sum_sensitivity(133) == 133
    assert linear_sensitivity([[1, 0], [0, 1]], [0, 0], 3, 5) == 5
    assert linear_sensitivity([[3, 4]], [0], 100, 1) == 5
    assert linear_sensitivity([[3, 4]], [2], 1, 1000) == 9


@given(row=st.lists(st.integers(-1000, 1000), min_size=1, max_size=8).filter(any))
def test_no_row_moves_sums_of_products_further_than_their_sensitivity(row: list[int]) -> None:
    """A row adds each product of two of its columns once."""
    products = [row[i] * row[j] for i in range(len(row)) for j in range(i, len(row))]
    norm = math.ceil(math.sqrt(sum(value * value for value in row)))
    assert sum(value * value for value in products) <= products_sensitivity(norm) ** 2


def test_sensitivity_of_products_is_reached_by_a_row_of_one_column() -> None:
    assert products_sensitivity(3) == 3 * 3
    with pytest.raises(PrivacyError):
        products_sensitivity(0)


@given(rho_micro=st.integers(2, 10**9), norms=st.lists(st.integers(1, 10**6), min_size=1, max_size=2))
def test_levels_of_noise_cost_no_more_together_than_the_budget(rho_micro: int, norms: list[int]) -> None:
    levels = noise_levels(rho_micro, [(3, norm) for norm in norms])
    assert [level.outputs for level in levels] == [3] * len(norms)
    costs = [rho_micro_for(level.sigma, norm) for level, norm in zip(levels, norms, strict=True)]
    assert rho_micro - len(norms) < sum(costs) <= rho_micro
    assert [level.grid for level in levels] == [grid_for(level.sigma) for level in levels]


def test_a_budget_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(PrivacyError, match="cannot be divided"):
        noise_levels(1, [(1, 5), (1, 25)])
    with pytest.raises(PrivacyError, match="a scale beyond"):
        noise_levels(2, [(1, 5), (1, 10**10)])
