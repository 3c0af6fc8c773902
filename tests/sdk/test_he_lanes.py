"""Products on vector lanes: equal to Python integers at every bound, on every kind of vector unit."""

import hashlib
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ContainerError
from usufruct.he import container, lanes, packed
from usufruct.he.lanes import MAX_WEIGHT, Panel, is_exact, multiply
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.residues import combine

Q = BFV_LINEAR.coeff_modulus


def panel_of(residues: np.ndarray) -> Panel:
    panel = Panel(*residues.shape)
    for feature, row in enumerate(residues):
        panel.fill(feature, row)
    return panel


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_product_equals_python_integers(data: st.DataObject) -> None:
    m, d, k = (data.draw(st.integers(1, high)) for high in (8, 9, 70))
    limit = data.draw(st.sampled_from([1, 300, MAX_WEIGHT]))
    weights = data.draw(
        st.lists(st.lists(st.integers(-limit, limit), min_size=d, max_size=d), min_size=m, max_size=m)
    )
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    residues = rng.integers(0, Q, (d, k), dtype=np.uint64)
    residues[rng.random((d, k)) < 0.3] = data.draw(st.sampled_from([0, 1, Q - 1, Q // 2, (1 << 53) - 1]))
    expected = [
        [sum(w * int(residues[j, i]) for j, w in enumerate(row)) % Q for i in range(k)] for row in weights
    ]
    assert multiply(np.array(weights), panel_of(residues), Q, threads=2).tolist() == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_product_is_exact_where_every_limb_and_every_weight_is_at_its_bound(sign: int) -> None:
    """Every 32-bit sum comes as close to its limit as the cuts let it."""
    d = 1000
    weights = np.full((7, d), sign * MAX_WEIGHT)
    weights[1::2, 1::2] *= -1
    residues = np.full((d, 65), Q - 1, dtype=np.uint64)
    for high in (Q - 1, (1 << 54) - (1 << 42) - 1, (1 << 53) - 1):
        residues[:] = high
        expected = [[int(row.sum()) * high % Q] * 65 for row in weights]
        assert multiply(weights, panel_of(residues), Q).tolist() == expected


def test_cuts_keep_every_32_bit_sum_below_its_limit_and_are_no_more_than_needed() -> None:
    rng = np.random.default_rng(1)
    magnitudes = rng.integers(0, 2 * MAX_WEIGHT + 1, (5, 300))
    cuts = lanes._cuts(magnitudes).tolist()
    assert cuts[0] == 0 and cuts[-1] == 300
    for begin, end in pairwise(cuts):
        assert begin < end
        assert magnitudes[:, begin:end].sum(axis=1).max() * ((1 << 14) - 1) < 1 << 31
        if end < 300:
            assert magnitudes[:, begin : end + 1].sum(axis=1).max() * ((1 << 14) - 1) >= 1 << 31


def test_the_bound_at_which_a_32_bit_sum_is_cut_is_tight() -> None:
    """Without the cut, weights one step over the limit would wrap: the guard is what keeps them right."""
    limb = (1 << 14) - 1
    assert lanes._SUM_LIMIT * limb < 1 << 31 <= (lanes._SUM_LIMIT + 1) * limb
    weights = np.array([[MAX_WEIGHT] * 4 + [lanes._SUM_LIMIT - 4 * MAX_WEIGHT, 0, 1, 0]])
    assert lanes._cuts(np.abs(weights).reshape(1, 4, 2).sum(axis=2)).tolist() == [0, 3, 4]
    residues = np.full((8, 64), limb, dtype=np.uint64)
    assert set(multiply(weights, panel_of(residues), Q)[0].tolist()) == {int(weights.sum()) * limb}


def test_addend_and_partial_panels_give_the_whole_product() -> None:
    rng = np.random.default_rng(2)
    weights, residues = rng.integers(-500, 501, (9, 21)), rng.integers(0, Q, (21, 130), dtype=np.uint64)
    first = multiply(weights[:, :8], panel_of(residues[:8]), Q)
    whole = multiply(weights[:, 8:], panel_of(residues[8:]), Q, addend=first)
    assert np.array_equal(whole, combine(weights, residues, Q))


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_product_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    rng = np.random.default_rng(3)
    weights, residues = rng.integers(-500, 501, (105, 40)), rng.integers(0, Q, (40, 300), dtype=np.uint64)
    assert np.array_equal(
        multiply(weights, panel_of(residues), Q, threads=threads), combine(weights, residues, Q)
    )


def test_weights_and_moduli_outside_the_proof_are_refused() -> None:
    panel = Panel(2, 1)
    for weights in ([[MAX_WEIGHT + 1, 0]], [[0, -MAX_WEIGHT - 1]]):
        assert not is_exact(np.array(weights), Q)
        with pytest.raises(OverflowError):
            multiply(np.array(weights), panel, Q)
    for modulus in ((1 << 54) - (1 << 20), (1 << 53) - 1, 1 << 54):
        with pytest.raises(OverflowError):
            multiply(np.array([[1, 1]]), panel, modulus)


@pytest.mark.parametrize("column", [0, 1, 63, 64, 100])
def test_two_features_written_at_once_are_where_they_would_be_one_by_one(column: int) -> None:
    rng = np.random.default_rng(7)
    left, right = rng.integers(0, Q, (2, 150), dtype=np.uint64)
    together, apart = Panel(4, 300), Panel(4, 300)
    together.fill(2, left, right, column=column)
    apart.fill(2, left, column=column)
    apart.fill(3, right, column=column)
    assert np.array_equal(together.words, apart.words) and together.words.any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compiled_packing_and_unpacking_are_the_containers(data: st.DataObject) -> None:
    bits, count = data.draw(st.integers(1, 56)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.integers(0, 1 << bits, count, dtype=np.uint64)
    written = container.pack(values, bits)
    assert packed.pack(values, bits) == written
    assert np.array_equal(packed.unpack(written, count, bits), values)
    wrong = data.draw(st.sampled_from([written + b"\0", written[:-1], written[:-1] + b"\xff"]))
    for reader in (packed.unpack, container.unpack):
        spare = -count * bits % 8
        if len(wrong) != len(written) or spare:
            with pytest.raises(ContainerError) as caught:
                reader(wrong, count, bits)
            assert caught.value.field == ("padding" if len(wrong) == len(written) else "length")


def test_residues_outside_a_panel_are_refused_before_memory_is_touched() -> None:
    panel = Panel(3, 64)
    row = np.zeros(64, dtype=np.uint64)
    for feature, column in ((3, 0), (-1, 0), (0, 1), (0, -1)):
        with pytest.raises(IndexError):
            panel.fill(feature, row, column=column)
    for feature, rows in ((2, (row, row)), (1, (row, row)), (0, (row, row, row)), (0, (row, row[:-1]))):
        with pytest.raises(IndexError):
            panel.fill(feature, *rows)
    with pytest.raises(ValueError, match="2 weights for 3 features"):
        multiply(np.array([[1, 1]]), panel, Q)


UNITS = {
    "avx2": "+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+avx,+avx2",
    "sse2": "+sse2,+cx16",
    "definition": "",
}


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_narrower_vector_units_give_the_same_residues(unit: str) -> None:
    """Code for other units runs here too; `definition` is what processors without the instruction get."""
    code = (
        "import sys, hashlib, numpy as np\n"
        "from usufruct.he import lanes\n"
        "from usufruct.he.vector import VectorUnit\n"
        "if sys.argv[1] == 'definition': lanes.vector_unit = lambda: VectorUnit(4, '')\n"
        f"rng = np.random.default_rng(4); q = {Q}\n"
        "w, r = rng.integers(-32767, 32768, (13, 11)), rng.integers(0, q, (11, 200), dtype=np.uint64)\n"
        "panel = lanes.Panel(11, 200)\n"
        "for j in range(11): panel.fill(j, r[j])\n"
        "made = lanes.multiply(w, panel, q)\n"
        "print(lanes.vector_lanes(), hashlib.sha256(np.ascontiguousarray(made)).hexdigest())\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": UNITS[unit]}
    done = subprocess.run(
        [sys.executable, "-c", code, unit], env=environment, capture_output=True, text=True, check=True
    )
    width, digest = done.stdout.split()
    rng = np.random.default_rng(4)
    weights, residues = rng.integers(-32767, 32768, (13, 11)), rng.integers(0, Q, (11, 200), dtype=np.uint64)
    assert digest == hashlib.sha256(combine(weights, residues, Q)).hexdigest()
    assert int(width) == {"avx2": 8, "sse2": 4, "definition": 4}[unit]
