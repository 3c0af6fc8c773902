"""Exact arithmetic on residues, against schoolbook integers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.residues import (
    _FFT_LIMB_BITS,
    _FLAT_LIMB_BITS,
    _FLAT_PEAK,
    combine,
    negacyclic_multiply,
    scale_up,
    spectrum_of,
    total_of,
)

Q, T, N = BFV_LINEAR.coeff_modulus, BFV_LINEAR.plain_modulus, BFV_LINEAR.poly_modulus_degree


def schoolbook(a: list[int], b: list[int], modulus: int) -> list[int]:
    n = len(a)
    out = [0] * n
    for j, y in enumerate(b):
        if y:
            for i, x in enumerate(a):
                k = i + j
                out[k % n] += x * y if k < n else -x * y
    return [x % modulus for x in out]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_combine_equals_python_integers(data: st.DataObject) -> None:
    m, d, k = (data.draw(st.integers(1, 4)) for _ in range(3))
    limit = data.draw(st.sampled_from([1, 300, 1 << 20, (1 << 41) - 1]))
    weights = data.draw(
        st.lists(st.lists(st.integers(-limit, limit), min_size=d, max_size=d), min_size=m, max_size=m)
    )
    values = st.one_of(st.integers(0, Q - 1), st.sampled_from([0, 1, Q - 1, Q // 2]))
    rows = data.draw(st.lists(st.lists(values, min_size=k, max_size=k), min_size=d, max_size=d))
    expected = [[sum(w * rows[j][i] for j, w in enumerate(row)) % Q for i in range(k)] for row in weights]
    assert combine(np.array(weights), np.array(rows, dtype=np.uint64), Q).tolist() == expected


def test_combine_is_exact_where_every_limb_is_at_its_bound() -> None:
    d = 512
    weights = np.full((2, d), (1 << 26) // d - 1)
    weights[1] *= -1
    words = np.full((d, 5), Q - 1, dtype=np.uint64)
    total = int(weights[0].sum()) * (Q - 1) % Q
    assert combine(weights, words, Q).tolist() == [[total] * 5, [-total % Q] * 5]


def test_combine_refuses_weights_that_no_limb_is_narrow_enough_for() -> None:
    residues = np.ones((2, 1), dtype=np.uint64)
    with pytest.raises(OverflowError, match="too large"):
        combine(np.array([[1 << 43, 1 << 43]]), residues, Q)
    with pytest.raises(OverflowError, match="too large"):
        combine(np.array([[1 << 62, 1 << 62]]), residues, Q)


def test_a_modulus_wider_than_54_bits_is_refused() -> None:
    with pytest.raises(OverflowError, match="54 bits"):
        combine(np.array([[1]]), np.ones((1, 1), dtype=np.uint64), (1 << 55) - 1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_negacyclic_product_equals_schoolbook(data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([1, 2, 8, 32]))
    values = st.one_of(st.integers(0, Q - 1), st.sampled_from([0, 1, Q - 1]))
    a = data.draw(st.lists(values, min_size=n, max_size=n))
    b = data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n))
    product = negacyclic_multiply(np.array(a, dtype=np.uint64), np.array(b), Q)
    assert product.tolist() == schoolbook(a, b, Q)


def slow_product(residues: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Full-size negacyclic product with Python integers, by shifts."""
    rows = residues.astype(object)
    total = np.zeros(N, dtype=object)
    for j in np.flatnonzero(small):
        total = total + int(small[j]) * np.concatenate([-rows[N - j :], rows[: N - j]])
    return (total % Q).astype(np.uint64)


@pytest.mark.parametrize("pattern", ["random", "largest", "all ones against all ones", "resonant"])
def test_negacyclic_product_is_exact_at_full_size_for_hostile_residues(pattern: str) -> None:
    rng = np.random.default_rng(7)
    small = rng.integers(-1, 2, N)
    residues = rng.integers(0, Q, N, dtype=np.uint64)
    if pattern == "largest":
        residues[:] = Q - 1
    elif pattern == "all ones against all ones":
        residues[:], small[:] = (1 << 54) - 1 - ((1 << 54) - Q), -1
    elif pattern == "resonant":
        # All energy where the mask's spectrum peaks: the worst that an uploaded c1 could do to rounding.
        small[:] = 1
        wave = np.cos(np.pi * (np.arange(N) + 0.5) / N) > 0
        residues = np.where(wave, Q - 1, 0).astype(np.uint64)
    assert np.array_equal(negacyclic_multiply(residues, small, Q), slow_product(residues, small))


def test_the_rounding_error_stays_within_the_proof_for_hostile_residues() -> None:
    """Largest limbs against the mask with the highest spectral peak, before rounding, beside exact integers."""
    bits = _FFT_LIMB_BITS
    proved = 2.0 ** (bits + 0.5) * 2**6 * 2**12 * 3 * 2.0**-46
    assert 3 * bits >= 54
    assert proved < 2**-7
    limb = np.full(N, (1 << bits) - 1, dtype=np.float64)
    twist = np.exp(1j * np.pi * np.arange(N) / N)
    small = np.ones(N)
    raw = (
        np.fft.ifft(np.fft.fft((limb + 1j * limb) * twist) * np.fft.fft(small * twist)) * twist.conj()
    ).real
    exact = np.array([(2 * k + 2 - N) * ((1 << bits) - 1) for k in range(N)], dtype=np.float64)
    assert np.abs(raw - exact).max() < proved


def test_two_limbs_stay_within_the_proof_where_hostile_residues_meet_the_peak_of_a_secrets_spectrum() -> None:
    """All energy in the frequency where the ternary polynomial is largest, beside exact integers and before rounding."""
    bits = _FLAT_LIMB_BITS
    proved = 2.0 ** (bits + 0.5) * 2**6 * _FLAT_PEAK * 3 * 2.0**-46
    assert 2 * bits >= 54 and proved < 2**-2.8
    rng = np.random.default_rng(9)
    small = rng.integers(-1, 2, N)
    spectrum = spectrum_of(small)
    assert spectrum.is_flat and not spectrum_of(np.ones(N, dtype=np.int64)).is_flat
    twist = np.exp(1j * np.pi * np.arange(N) / N)
    peak = int(np.abs(spectrum.values).argmax())
    wave = np.cos(np.pi * (2 * peak + 1) * np.arange(N) / N) > 0
    residues = np.where(wave, Q - 1, 0).astype(np.uint64)
    assert np.array_equal(negacyclic_multiply(residues, spectrum, Q), slow_product(residues, small))
    limb = np.where(wave, (1 << bits) - 1, 0).astype(np.float64)
    raw = np.fft.ifft(np.fft.fft((limb + 1j * limb) * twist) * spectrum.values) * twist.conj()
    exact = np.zeros(N, dtype=np.int64)
    for j in np.flatnonzero(small):
        whole = limb.astype(np.int64)
        exact += small[j] * np.concatenate([-whole[N - j :], whole[: N - j]])
    assert max(np.abs(part - exact).max() for part in (raw.real, raw.imag)) < proved


def test_both_numbers_of_limbs_give_the_same_product() -> None:
    rng = np.random.default_rng(10)
    small, residues = rng.integers(-1, 2, N), rng.integers(0, Q, (2, N), dtype=np.uint64)
    flat = spectrum_of(small)
    assert flat.is_flat
    other = replace(flat, is_flat=False)
    assert np.array_equal(negacyclic_multiply(residues, flat, Q), negacyclic_multiply(residues, other, Q))


def test_several_polynomials_are_multiplied_at_once() -> None:
    rng = np.random.default_rng(8)
    residues = rng.integers(0, Q, (3, N), dtype=np.uint64)
    small = rng.integers(-1, 2, N)
    together = negacyclic_multiply(residues, small, Q)
    assert all(np.array_equal(together[i], negacyclic_multiply(residues[i], small, Q)) for i in range(3))


def test_a_spectrum_that_is_used_again_gives_the_same_product() -> None:
    rng = np.random.default_rng(8)
    residues, small = rng.integers(0, Q, (2, N), dtype=np.uint64), rng.integers(-1, 2, N)
    spectrum = spectrum_of(small)
    assert "[" not in repr(spectrum)
    for row in residues:
        assert np.array_equal(negacyclic_multiply(row, spectrum, Q), negacyclic_multiply(row, small, Q))
    with pytest.raises(OverflowError):
        negacyclic_multiply(residues[:, :64], spectrum, Q)


def test_totals_are_exact_where_every_residue_is_the_largest() -> None:
    for residues in (np.full(N, Q - 1, dtype=np.uint64), np.zeros(0, dtype=np.uint64)):
        assert total_of(residues, Q) == sum(residues.tolist()) % Q


@pytest.mark.parametrize(("n", "largest"), [(8192, 1), (12, 1), (8, 2), (8, -2)])
def test_negacyclic_product_refuses_what_was_not_proved_exact(n: int, largest: int) -> None:
    with pytest.raises(OverflowError):
        negacyclic_multiply(np.zeros(n, dtype=np.uint64), np.full(n, largest), Q)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(1 << 40), 1 << 40))
def test_scaling_rounds_as_seal_does(value: int) -> None:
    m = value % T
    assert int(scale_up(np.array([value]), Q, T)[0]) == (Q * m + (T + 1) // 2) // T % Q
