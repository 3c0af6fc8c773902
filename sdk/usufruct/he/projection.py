"""Inner products of many rows of residues with few short vectors, compiled at first use; exact.

What a check of a linear map needs: a row of thousands of residues becomes two numbers in one pass over it. Knows
residues only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.he.residues import Residues

ENTRY_BITS: Final = 30
"""Of a vector's entries."""

MAX_LENGTH: Final = 1 << 16
_MODULUS_BITS = 54
_HALF_BITS = 27
_TOGETHER = 2
_LANES = 8
_RUN = 128
"""Products that a lane adds up before it is emptied: 2^7 of 57 bits fit 64."""


def project(residues: Residues, vectors: NDArray[np.uint64], modulus: int) -> Residues:
    """Multiply rows of residues with vectors.

    Parameters
    ----------
    residues :
        shape (k, n), each below `modulus`; n at most 2^16.
    vectors :
        shape (c, n), entries below 2^30.
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
    Residues are split in halves of 27 bits. Eight lanes add up 2^7 products of 57 bits each, then their words are split
    in halves of 32 bits, of which 2^9 for each of 2^6 runs at most are added to 64-bit sums. Two vectors are taken at
    once, so that a residue is split once for both of them.
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
    odd, missing = -n_vectors % _TOGETHER, -length % _LANES
    padded, rows = vectors.astype(np.uint64, copy=False), residues
    if odd or missing:
        padded = np.pad(padded, ((0, odd), (0, missing)))
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    made = np.empty((rows.shape[0], padded.shape[0]), dtype=np.uint64)
    _routine()(np.ascontiguousarray(rows), np.ascontiguousarray(padded), made, modulus)
    return made[:, :n_vectors]


@lru_cache(maxsize=1)
def _routine() -> Callable[..., None]:
    """Compile for this processor."""
    from numba import njit, types

    run = _run()

    @njit(types.uint64(types.uint64, types.uint64, types.uint64), nogil=True)  # type: ignore[untyped-decorator]
    def shifted(value: Any, nines: Any, modulus: Any) -> Any:
        # Steps of nine bits: below 2^54, a residue can move up by ten.
        value %= modulus
        for _ in range(nines):
            value = (value << np.uint64(9)) % modulus
        return value

    @njit(  # type: ignore[untyped-decorator]
        types.void(
            types.Array(types.uint64, 2, "C", readonly=True),
            types.Array(types.uint64, 2, "C", readonly=True),
            types.uint64[:, ::1],
            types.uint64,
        ),
        nogil=True,
    )
    def products(residues: Any, vectors: Any, made: Any, modulus: Any) -> None:
        words = vectors.shape[1]
        lanes = np.empty((2 * _TOGETHER, _LANES), dtype=np.uint64)
        bottom = np.uint64((1 << 32) - 1)
        for row in range(residues.shape[0]):
            start = residues.ctypes.data + row * np.int64(8 * words)
            for first in range(0, vectors.shape[0], _TOGETHER):
                low = np.zeros(2 * _TOGETHER, dtype=np.uint64)
                high = np.zeros(2 * _TOGETHER, dtype=np.uint64)
                for begin in range(0, words, _RUN * _LANES):
                    count = min(_RUN, (words - begin) // _LANES)
                    offset = np.int64(8 * begin)
                    run(
                        start + offset,
                        vectors[first].ctypes.data + offset,
                        vectors[first + 1].ctypes.data + offset,
                        np.int64(count),
                        lanes.ctypes.data,
                    )
                    for which in range(2 * _TOGETHER):
                        for lane in range(_LANES):
                            low[which] += lanes[which, lane] & bottom
                            high[which] += lanes[which, lane] >> np.uint64(32)
                for which in range(_TOGETHER):
                    # Bits 0 and 32 of the lower half, 27 and 59 of the upper.
                    value = low[which] % modulus
                    value += shifted(high[which] << np.uint64(5), 3, modulus)
                    value += shifted(low[_TOGETHER + which], 3, modulus)
                    value += shifted(high[_TOGETHER + which] << np.uint64(5), 6, modulus)
                    made[row, first + which] = value % modulus

    return products  # type: ignore[no-any-return]


def _run() -> Any:
    """Make the innermost loop: a run of one row against two vectors, its four sums in registers.

    Written as LLVM instructions, as in `tensor`, so that each sum stays in lanes whose number the proof counts. Arguments
    are addresses of the row's and both vectors' first words, the number of words per lane, at least one, and the address
    of the sums: lower halves with either vector, then upper halves.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    i64 = ir.IntType(64)
    wide = ir.VectorType(i64, _LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, left, right, count, sums = arguments

        def load(address: Any, offset: Any) -> Any:
            return builder.load(builder.inttoptr(builder.add(address, offset), wide.as_pointer()), align=8)

        def spread(value: int) -> Any:
            return ir.Constant(wide, [value] * _LANES)

        before = builder.block
        body, after = builder.append_basic_block("words"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        at = builder.phi(i64)
        at.add_incoming(ir.Constant(i64, 0), before)
        totals = [builder.phi(wide) for _ in range(2 * _TOGETHER)]
        for total in totals:
            total.add_incoming(spread(0), before)
        offset = builder.mul(at, ir.Constant(i64, 8 * _LANES))
        words = load(row, offset)
        # Masks of 32 bits change nothing; they tell LLVM that its multiplications of 32 bits do, and vanish in these.
        word = spread((1 << 32) - 1)
        entries = [builder.and_(load(vector, offset), word) for vector in (left, right)]
        halves = [
            builder.and_(words, spread((1 << _HALF_BITS) - 1)),
            builder.and_(builder.lshr(words, spread(_HALF_BITS)), word),
        ]
        products = [builder.mul(part, entry) for part in halves for entry in entries]
        following = builder.add(at, ir.Constant(i64, 1))
        at.add_incoming(following, body)
        made = [builder.add(total, product) for total, product in zip(totals, products, strict=True)]
        for total, value in zip(totals, made, strict=True):
            total.add_incoming(value, body)
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        builder.position_at_end(after)
        for index, value in enumerate(made):
            place = builder.add(sums, ir.Constant(i64, 8 * _LANES * index))
            builder.store(value, builder.inttoptr(place, wide.as_pointer()), align=8)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def run(typing: Any, row: Any, left: Any, right: Any, count: Any, sums: Any) -> tuple[Any, Any]:
        return types.void(*[types.int64] * 5), generate

    return run
