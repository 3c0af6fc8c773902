"""Small random polynomials, errors and ternary secrets: from the operating system's generator, or a given stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

ERROR_BOUND: Final = 21
"""Largest magnitude of one coefficient of a fresh error: centred binomial over 21 + 21 bits."""

_HALF = (1 << ERROR_BOUND) - 1


def operating_system(size: int) -> bytes:
    """Bytes of AES-256 in counter mode under a key that the operating system's generator gives for this call alone.

    A block's error takes 32 KiB, for which the generator itself needs as long as for everything else that sealing does.

    Source: NIST SP 800-38A, section 6.5; a fresh key for every call, so that no counter is ever used twice.
    """
    # Processes that compute read this module's bounds and draw nothing.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    return stream.update(bytes(size))


def centred_binomial(size: int, source: Callable[[int], bytes] = operating_system) -> NDArray[np.int64]:
    """SEAL's error: the difference of two sums of 21 bits, standard deviation 3.24."""
    words = np.frombuffer(source(8 * size), dtype="<u8").astype(np.uint64, copy=False)
    # up - down = up + (21 - down) - 21, and 21 - down counts the upper bits that are not set.
    upper, both = np.uint64(_HALF << ERROR_BOUND), np.uint64(_HALF << ERROR_BOUND | _HALF)
    counted: NDArray[np.int64] = np.bitwise_count((words ^ upper) & both).astype(np.int64)
    return counted - ERROR_BOUND


def ternary(size: int, source: Callable[[int], bytes] = operating_system) -> NDArray[np.int64]:
    """Coefficients that are -1, 0 or 1 with the same probability."""
    kept = np.empty(0, dtype=np.uint8)
    while kept.size < size:
        drawn = np.frombuffer(source(size + 64), dtype=np.uint8)
        # 255 is a multiple of three.
        kept = np.concatenate([kept, drawn[drawn < 255]])
    return (kept[:size] % 3).astype(np.int64) - 1
