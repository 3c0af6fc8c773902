"""Small random polynomials, errors and ternary secrets: from the operating system's generator, or a given stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

ERROR_BOUND: Final = 21
"""Largest magnitude of one coefficient of a fresh error: centred binomial over 21 + 21 bits."""


def centred_binomial(size: int, source: Callable[[int], bytes] = os.urandom) -> NDArray[np.int64]:
    """SEAL's error: the difference of two sums of 21 bits, standard deviation 3.24."""
    words = np.frombuffer(source(8 * size), dtype="<u8").astype(np.uint64)
    half = np.uint64((1 << ERROR_BOUND) - 1)
    up = np.bitwise_count(words & half).astype(np.int64)
    down = np.bitwise_count((words >> np.uint64(ERROR_BOUND)) & half).astype(np.int64)
    error: NDArray[np.int64] = up - down
    return error


def ternary(size: int, source: Callable[[int], bytes] = os.urandom) -> NDArray[np.int64]:
    """Coefficients that are -1, 0 or 1 with the same probability."""
    kept = np.empty(0, dtype=np.uint8)
    while kept.size < size:
        drawn = np.frombuffer(source(size + 64), dtype=np.uint8)
        # 255 is a multiple of three.
        kept = np.concatenate([kept, drawn[drawn < 255]])
    return (kept[:size] % 3).astype(np.int64) - 1
