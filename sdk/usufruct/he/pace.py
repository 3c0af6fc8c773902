"""How long the steps of a linear task take on this machine, so that a planner compares what it measured.

Measured once per process, on one block of residues. Knows no job: `algebraic` adds the steps up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from usufruct.he import lanes, packed
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.projection import ENTRY_BITS, project

_FEATURES: Final = 8
_OUTPUTS: Final = 6
_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds per step; a block is a ciphertext of two polynomials."""

    fill: float
    """Laying out one input for a product."""

    multiply: float
    """One input times one weight, many outputs at once."""

    write: float
    """Packing one result."""

    read: float
    """Unpacking one result."""

    project: float
    """Multiplying one block with the vectors of a check."""

    def execution(self, inputs: int, outputs: int) -> float:
        """Seconds of computing scores from inputs that have been read."""
        return inputs * (self.fill + outputs * self.multiply) + outputs * self.write

    def check(self, inputs: int, outputs: int) -> float:
        """Seconds of checking them."""
        return inputs * self.project + outputs * (self.read + self.project)


@lru_cache(maxsize=1)
def measured_pace() -> Pace:
    """Time every step; takes some milliseconds, and the compiler's seconds where it has not run yet."""
    modulus, bits = BFV_LINEAR.coeff_modulus, BFV_LINEAR.residue_bits
    rng = np.random.default_rng(1)
    size = 2 * BFV_LINEAR.poly_modulus_degree
    residues = rng.integers(0, modulus, (_FEATURES, size), dtype=np.uint64)
    weights = rng.integers(-300, 301, (_OUTPUTS, _FEATURES))
    vectors = rng.integers(0, 1 << ENTRY_BITS, (2, size), dtype=np.uint64)
    panel = lanes.Panel(_FEATURES, size)
    text = packed.pack(residues[0], bits)

    def fill() -> None:
        for feature in range(0, _FEATURES, 2):
            panel.fill(feature, *residues[feature : feature + 2])

    return Pace(
        fill=_seconds(fill) / _FEATURES,
        multiply=_seconds(lambda: lanes.multiply(weights, panel, modulus)) / (_FEATURES * _OUTPUTS),
        write=_seconds(lambda: packed.pack(residues[0], bits)),
        read=_seconds(lambda: packed.unpack(text, size, bits)),
        project=_seconds(lambda: project(residues, vectors, modulus)) / _FEATURES,
    )


def _seconds(step: Callable[[], object]) -> float:
    """The least of several runs, after one that may compile."""
    step()
    taken = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return min(taken)
