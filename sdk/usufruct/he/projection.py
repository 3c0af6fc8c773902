"""Inner products of many rows of residues with few short vectors, compiled at first use; exact.

What a check of a linear map needs: a row of thousands of residues becomes three numbers in one pass over it. Knows
residues only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.he.residues import Residues

ENTRY_BITS: Final = 20
"""Of a vector's entries."""

MAX_LENGTH: Final = 1 << 16
_MODULUS_BITS = 54
_HALF_BITS = 27
_TOGETHER = 3


def project(residues: Residues, vectors: NDArray[np.uint64], modulus: int) -> Residues:
    """Multiply rows of residues with vectors.

    Parameters
    ----------
    residues :
        shape (k, n), each below `modulus`; n at most 2^16.
    vectors :
        shape (c, n), entries below 2^20.
    modulus :
        At most 54 bits.

    Returns
    -------
    products :
        shape (k, c), `residues @ vectors.T` modulo `modulus`.

    Raises
    ------
    OverflowError
        If an entry, the modulus or the length is larger.

    Notes
    -----
    Residues are split in halves of 27 bits; 2^16 products of 47 bits fit a 64-bit sum. Three vectors are taken at once,
    so that a residue is split once for all of them.
    """
    length = residues.shape[1]
    if (
        modulus.bit_length() > _MODULUS_BITS
        or length > MAX_LENGTH
        or int(vectors.max(initial=0)) >> ENTRY_BITS
    ):
        raise OverflowError("these vectors or this modulus are outside what was proved exact")
    if vectors.shape[1] != length:
        raise ValueError(f"vectors of {vectors.shape[1]} entries for rows of {length}")
    n_vectors = vectors.shape[0]
    padded = np.zeros((-(-n_vectors // _TOGETHER) * _TOGETHER, length), dtype=np.uint32)
    padded[:n_vectors] = vectors
    made = np.empty((residues.shape[0], padded.shape[0]), dtype=np.uint64)
    _routine()(np.ascontiguousarray(residues), padded, made, modulus)
    return made[:, :n_vectors]


@lru_cache(maxsize=1)
def _routine() -> Callable[..., None]:
    """Compile for this processor."""
    from numba import njit, types

    @njit(types.uint64(types.uint64, types.uint64, types.uint64), nogil=True)  # type: ignore[untyped-decorator]
    def joined(low: Any, high: Any, modulus: Any) -> Any:
        # Three steps of nine bits: below 2^54, a residue can move up by ten.
        value = high % modulus
        for _ in range(3):
            value = (value << np.uint64(9)) % modulus
        return (value + low % modulus) % modulus

    @njit(  # type: ignore[untyped-decorator]
        types.void(
            types.Array(types.uint64, 2, "C", readonly=True),
            types.Array(types.uint32, 2, "C", readonly=True),
            types.uint64[:, ::1],
            types.uint64,
        ),
        nogil=True,
    )
    def products(residues: Any, vectors: Any, made: Any, modulus: Any) -> None:
        half, mask = np.uint64(_HALF_BITS), np.uint64((1 << _HALF_BITS) - 1)
        # The mask changes nothing; it tells LLVM that 32-bit multiplications do.
        limit = np.uint64((1 << ENTRY_BITS) - 1)
        line = np.empty(residues.shape[1], dtype=np.uint64)
        for row in range(residues.shape[0]):
            # Copied first, since a plain copy streams from memory much faster than the loop below reads.
            line[:] = residues[row]
            for first in range(0, vectors.shape[0], _TOGETHER):
                a, b, c = vectors[first], vectors[first + 1], vectors[first + 2]
                low_a, low_b, low_c = np.uint64(0), np.uint64(0), np.uint64(0)
                high_a, high_b, high_c = np.uint64(0), np.uint64(0), np.uint64(0)
                for at in range(line.size):
                    low, high = line[at] & mask, (line[at] >> half) & mask
                    entry_a = np.uint64(a[at]) & limit
                    entry_b = np.uint64(b[at]) & limit
                    entry_c = np.uint64(c[at]) & limit
                    low_a += low * entry_a
                    low_b += low * entry_b
                    low_c += low * entry_c
                    high_a += high * entry_a
                    high_b += high * entry_b
                    high_c += high * entry_c
                made[row, first] = joined(low_a, high_a, modulus)
                made[row, first + 1] = joined(low_b, high_b, modulus)
                made[row, first + 2] = joined(low_c, high_c, modulus)

    return products  # type: ignore[no-any-return]
