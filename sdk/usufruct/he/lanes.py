"""Exact products of integer matrices with residues on 16-bit vector lanes, compiled at first use.

A residue of 54 bits is four limbs of 14 bits. Vector units multiply sixteen-bit integers and add neighbouring
products in one instruction, so one instruction takes two features of as many columns as a register has 32-bit
words. Sums stay in 32 bits as long as the weights at hand prove that they fit, then move to 64. No floating
point: the same bits at any thread count, in any order, on any processor. Compiled with numba; without the
instruction for it, LLVM makes code from the plain definition of the operation.

Knows residues only: no container, no kernel, no key. `residues.combine` computes the same product for weights
that are too wide for these lanes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from usufruct.he.residues import Residues
from usufruct.he.vector import vector_unit

LIMB_BITS: Final = 14
N_LIMBS: Final = 4
MAX_WEIGHT: Final = (1 << 15) - 1
MAX_WEIGHT_SUM: Final = (1 << 31) - 1
"""Of the magnitudes in one row; keeps the four limb sums below 2^45 in magnitude."""

_MODULUS_BITS = 54
_MAX_COMPLEMENT = 1 << 20
_SHIFT = 1 << 45
"""What is added to a limb sum, so that it is not negative."""

_TILE = 64
_TILE_BYTES = 4 * _TILE
_SUM_LIMIT: Final = ((1 << 31) - 1) // ((1 << LIMB_BITS) - 1)
"""Magnitudes of weights that one 32-bit sum can take."""

_ROWS_PER_PASS = 96
_ROW_BLOCKS = (6, 4, 2, 1)


class Panel:
    """Residues of several features, laid out for `multiply`.

    Word [tile, limb, pair, lane] holds, for column `64 * tile + lane`, limb number `limb` of features `2 * pair`
    (low half) and `2 * pair + 1` (high half). A product reads it from end to end once for every pass over the
    weights.

    Parameters
    ----------
    n_features, columns :
        What it has room for; 8 bytes per residue. Features that were never filled are zero.
    """

    def __init__(self, n_features: int, columns: int) -> None:
        if n_features < 1 or columns < 1:
            raise ValueError(f"a panel of {n_features} features and {columns} columns")
        self.n_features = n_features
        self.columns = columns
        pairs, tiles = -(-n_features // 2), -(-columns // _TILE)
        raw = np.zeros(tiles * N_LIMBS * pairs * _TILE + 16, dtype=np.int32)
        start = -raw.ctypes.data % 64 // 4
        self._words: NDArray[np.int32] = raw[start : start + tiles * N_LIMBS * pairs * _TILE].reshape(
            tiles, N_LIMBS, pairs, _TILE
        )

    @property
    def size_bytes(self) -> int:
        """Bytes that a product reads."""
        return self._words.nbytes

    @property
    def words(self) -> NDArray[np.int32]:
        """The laid out limbs, read-only; shape (tiles, 4, pairs, 64)."""
        view = self._words.view()
        view.setflags(write=False)
        return view

    def fill(self, feature: int, *rows: Residues, column: int = 0) -> None:
        """Write the residues of one feature, or of two that make a pair, beginning at `column`.

        Parameters
        ----------
        feature :
            The first that is written. Two together, the first of them even, are written several times as fast as one
            after the other.
        rows :
            One or two arrays of the same size.

        Raises
        ------
        IndexError
            If they do not fit.
        """
        size = rows[0].size
        if (
            not 0 <= feature <= self.n_features - len(rows)
            or not 0 <= column <= self.columns - size
            or len(rows) > 2 - feature % 2
            or any(row.shape != (size,) for row in rows)
        ):
            raise IndexError(f"{len(rows)} rows of {size} do not fit at feature {feature}, column {column}")
        if len(rows) == 2:
            left, right = (np.ascontiguousarray(row) for row in rows)
            _routines().fill_pair(self._words, feature // 2, column, left, right)
        else:
            _routines().fill(self._words.view(np.int16), feature, column, np.ascontiguousarray(rows[0]))


def is_compiled() -> bool:
    """Tell whether this process has compiled already, so that a small job need not avoid it."""
    return _routines.cache_info().currsize > 0


def is_exact(weights: NDArray[np.int64], modulus: int) -> bool:
    """Tell whether `multiply` takes these weights and this modulus."""
    return (
        modulus.bit_length() == _MODULUS_BITS
        and (1 << _MODULUS_BITS) - modulus < _MAX_COMPLEMENT
        and int(weights.max(initial=0)) <= MAX_WEIGHT
        and int(weights.min(initial=0)) >= -MAX_WEIGHT
        and weights.shape[1] <= MAX_WEIGHT_SUM // MAX_WEIGHT
    )


def multiply(
    weights: NDArray[np.int64],
    panel: Panel,
    modulus: int,
    *,
    addend: Residues | None = None,
    threads: int = 1,
) -> Residues:
    """Matrix product of signed integers with the residues of a panel.

    Parameters
    ----------
    weights :
        shape (m, panel.n_features), magnitudes at most `MAX_WEIGHT`.
    panel :
        Filled with residues below `modulus`.
    modulus :
        q = 2^54 - c with 0 < c < 2^20.
    addend :
        shape (m, panel.columns), residues that are added to the product.
    threads :
        How many share the work; the result does not depend on it.

    Returns
    -------
    product :
        shape (m, panel.columns), below `modulus`.

    Raises
    ------
    OverflowError
        If the product cannot be proved exact from the weights.

    Notes
    -----
    A 32-bit sum takes at most sum |w_j| (2^14 - 1). The features are cut where that would pass 2^31 - 1 for any
    row; a pair of features is always below. Limb sums s_0..s_3 over all cuts are then below 2^45 in magnitude. With
    2^45 added to each, which `offset` takes back modulo q, sum s_k 2^(14 k) = l + h 2^28 with 0 <= l, h < 2^61. With
    h = u 2^29 + v, u < 2^32, v < 2^29, and 2^54 = c modulo q, the value is congruent to l + 8 c u + v 2^28, and with
    addend and offset, each below 2^54, it is below 2^62: 2^61 + 2^55 + 2^57 + 2^55. Folding its bits above the 54th
    leaves a number below 2^54 + 2^28 and so below 2 q, which one subtraction of q puts in place.
    """
    n_models = weights.shape[0]
    if weights.shape[1] != panel.n_features:
        raise ValueError(f"{weights.shape[1]} weights for {panel.n_features} features")
    if not is_exact(weights, modulus):
        raise OverflowError("these weights or this modulus are outside what was proved exact")
    pairs = panel.words.shape[2]
    narrow = np.zeros((n_models, 2 * pairs), dtype=np.int16)
    narrow[:, : panel.n_features] = weights
    cuts = _cuts(np.abs(narrow.astype(np.int64)).reshape(n_models, pairs, 2).sum(axis=2))
    tiles = panel.words.shape[0]
    padded = np.zeros((n_models, tiles * _TILE), dtype=np.uint64)
    if addend is not None:
        padded[:, : panel.columns] = addend
    product = _routines().product
    words, packed = panel._words, narrow.view(np.int32)
    offset = -sum(_SHIFT << LIMB_BITS * limb for limb in range(N_LIMBS)) % modulus

    def work(first: int, last: int) -> None:
        product(packed, cuts, words, first, last, padded, modulus, offset)

    share = -(-tiles // max(1, min(threads, tiles)))
    others = [
        threading.Thread(target=work, args=(first, min(first + share, tiles)))
        for first in range(share, tiles, share)
    ]
    for other in others:
        other.start()
    work(0, share)
    for other in others:
        other.join()
    return padded[:, : panel.columns]


def _cuts(magnitudes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ends of the runs of pairs whose 32-bit sums cannot overflow, with 0 in front; input shape (m, pairs)."""
    n_pairs = magnitudes.shape[1]
    sums = np.cumsum(magnitudes, axis=1)
    cuts, reached = [0], np.zeros((magnitudes.shape[0], 1), dtype=np.int64)
    while cuts[-1] < n_pairs:
        widest = (sums - reached).max(axis=0)
        end = int(np.searchsorted(widest, _SUM_LIMIT, side="right"))
        cuts.append(end)
        reached = sums[:, end - 1 : end]
    return np.array(cuts, dtype=np.int64)


class _Routines(NamedTuple):
    fill: Callable[..., None]
    fill_pair: Callable[..., None]
    product: Callable[..., None]


@lru_cache(maxsize=1)
def _routines() -> _Routines:
    """Compile for this processor."""
    from numba import njit, types

    tile_6, tile_4, tile_2, tile_1 = (_tile(rows) for rows in _ROW_BLOCKS)

    @njit(  # type: ignore[untyped-decorator]
        types.void(
            types.int16[:, :, :, ::1],
            types.int64,
            types.int64,
            types.Array(types.uint64, 1, "C", readonly=True),
        ),
        nogil=True,
    )
    def fill(halves: Any, feature: int, column: int, residues: Any) -> None:
        pair, half = feature // 2, feature % 2
        for index in range(residues.size):
            tile, lane = (column + index) // _TILE, (column + index) % _TILE
            value = residues[index]
            for limb in range(N_LIMBS):
                halves[tile, limb, pair, 2 * lane + half] = np.int16(
                    (value >> np.uint64(LIMB_BITS * limb)) & np.uint64((1 << LIMB_BITS) - 1)
                )

    row_type = types.Array(types.uint64, 1, "C", readonly=True)

    @njit(  # type: ignore[untyped-decorator]
        types.void(types.int32[:, :, :, ::1], types.int64, types.int64, row_type, row_type), nogil=True
    )
    def fill_pair(words: Any, pair: int, column: int, left: Any, right: Any) -> None:
        mask = np.uint64((1 << LIMB_BITS) - 1)
        index = 0
        while index < left.size:
            tile, lane = (column + index) // _TILE, (column + index) % _TILE
            length = min(_TILE - lane, left.size - index)
            low, high = left[index : index + length], right[index : index + length]
            for limb in range(N_LIMBS):
                line = words[tile, limb, pair, lane : lane + length]
                shift = np.uint64(LIMB_BITS * limb)
                for at in range(length):
                    line[at] = np.int32(
                        ((low[at] >> shift) & mask) | (((high[at] >> shift) & mask) << np.uint64(16))
                    )
            index += length

    @njit(  # type: ignore[untyped-decorator]
        types.void(
            types.int32[:, ::1],
            types.int64[::1],
            types.int32[:, :, :, ::1],
            types.int64,
            types.int64,
            types.uint64[:, ::1],
            types.uint64,
            types.uint64,
        ),
        nogil=True,
    )
    def product(
        weights: Any, cuts: Any, words: Any, first: int, last: int, out: Any, modulus: Any, offset: Any
    ) -> None:
        n_models, pairs = weights.shape
        word = np.uint64((1 << 32) - 1)
        complement = (np.uint64(1) << np.uint64(_MODULUS_BITS)) - modulus
        eightfold = np.uint64(8) * complement
        fresh = np.empty((_ROWS_PER_PASS, N_LIMBS, _TILE), dtype=np.int32)
        total = np.empty((_ROWS_PER_PASS, N_LIMBS, _TILE), dtype=np.int64)
        w_stride = np.int64(4 * pairs)
        f_stride = np.int64(N_LIMBS * _TILE_BYTES)
        for tile in range(first, last):
            for top in range(0, n_models, _ROWS_PER_PASS):
                rows = min(_ROWS_PER_PASS, n_models - top)
                for cut in range(cuts.size - 1):
                    begin, length = cuts[cut], cuts[cut + 1] - cuts[cut]
                    for limb in range(N_LIMBS):
                        x = words.ctypes.data + ((tile * N_LIMBS + limb) * pairs + begin) * _TILE_BYTES
                        row = 0
                        while row < rows:
                            w = weights.ctypes.data + (top + row) * w_stride + 4 * begin
                            f = fresh.ctypes.data + row * f_stride + limb * _TILE_BYTES
                            if rows - row >= 6:
                                tile_6(w, w_stride, x, length, f, f_stride)
                                row += 6
                            elif rows - row >= 4:
                                tile_4(w, w_stride, x, length, f, f_stride)
                                row += 4
                            elif rows - row >= 2:
                                tile_2(w, w_stride, x, length, f, f_stride)
                                row += 2
                            else:
                                tile_1(w, w_stride, x, length, f, f_stride)
                                row += 1
                    for row in range(rows):
                        sums, made = total[row].reshape(-1), fresh[row].reshape(-1)
                        if cut == 0:
                            for index in range(N_LIMBS * _TILE):
                                sums[index] = made[index]
                        else:
                            for index in range(N_LIMBS * _TILE):
                                sums[index] += made[index]
                for row in range(rows):
                    s_0, s_1, s_2, s_3 = total[row, 0], total[row, 1], total[row, 2], total[row, 3]
                    line = out[top + row, tile * _TILE : (tile + 1) * _TILE]
                    for lane in range(_TILE):
                        low = np.uint64(s_0[lane] + _SHIFT) + (
                            np.uint64(s_1[lane] + _SHIFT) << np.uint64(LIMB_BITS)
                        )
                        high = np.uint64(s_2[lane] + _SHIFT) + (
                            np.uint64(s_3[lane] + _SHIFT) << np.uint64(LIMB_BITS)
                        )
                        # The masks change nothing: they tell LLVM that this is a product of 32-bit words.
                        value = (
                            low
                            + ((high >> np.uint64(29)) & word) * (eightfold & word)
                            + ((high & np.uint64((1 << 29) - 1)) << np.uint64(28))
                            + line[lane]
                            + offset
                        )
                        value = (value & np.uint64((1 << _MODULUS_BITS) - 1)) + (
                            (value >> np.uint64(_MODULUS_BITS)) & word
                        ) * (complement & word)
                        line[lane] = value - modulus if value >= modulus else value

    return _Routines(fill=fill, fill_pair=fill_pair, product=product)


def _tile(rows: int) -> Any:
    """Make the innermost loop: `rows` rows of weights against one tile of 64 columns.

    Written as LLVM instructions, since no compiler keeps `rows` times several registers of sums in place over the
    loop when it is spelt in Python. Arguments are addresses and strides in bytes: weights (32-bit words, two
    16-bit weights each), their row stride, panel words, number of pairs, sums to write, their row stride.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    lanes, name = vector_unit()
    i16, i32, i64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
    vector, halves = ir.VectorType(i32, lanes), ir.VectorType(i16, 2 * lanes)
    # As many sums as stay in registers: 32 registers with the widest unit, 16 with the others. With AVX2 eight take all
    # columns of a tile, so that a row of weights alone reads memory from end to end.
    across = 4 if lanes == 16 else max(2, 8 // rows)

    def multiply_add(builder: Any, total: Any, left: Any, right: Any) -> Any:
        if name:
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [halves, halves]), name
            )
            return builder.add(
                total, builder.call(function, [builder.bitcast(left, halves), builder.bitcast(right, halves)])
            )
        sixteen = ir.Constant(vector, [16] * lanes)
        high = builder.mul(builder.ashr(left, sixteen), builder.ashr(right, sixteen))
        low = builder.mul(
            builder.ashr(builder.shl(left, sixteen), sixteen),
            builder.ashr(builder.shl(right, sixteen), sixteen),
        )
        return builder.add(total, builder.add(low, high))

    def loop(builder: Any, arguments: Any, offset: int) -> None:
        w, w_stride, x, length, out, out_stride = arguments

        def at(address: Any, plus: Any, kind: Any) -> Any:
            plus = ir.Constant(i64, plus) if isinstance(plus, int) else plus
            return builder.inttoptr(builder.add(address, plus), kind.as_pointer())

        before = builder.block
        body = builder.append_basic_block("pairs")
        after = builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        pair = builder.phi(i64)
        pair.add_incoming(ir.Constant(i64, 0), before)
        sums = [[builder.phi(vector) for _ in range(across)] for _ in range(rows)]
        for one in [one for row in sums for one in row]:
            one.add_incoming(ir.Constant(vector, [0] * lanes), before)
        x_here = builder.add(x, builder.mul(pair, ir.Constant(i64, _TILE_BYTES)))
        w_here = builder.add(w, builder.mul(pair, ir.Constant(i64, 4)))
        columns = []
        for index in range(across):
            columns.append(builder.load(at(x_here, 4 * (offset + index * lanes), vector)))
            columns[-1].align = 4 * lanes
        made = []
        for row in range(rows):
            weight = builder.load(at(w_here, builder.mul(w_stride, ir.Constant(i64, row)), i32))
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.Constant(i32, 0))
            spread = builder.shuffle_vector(
                single, ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0] * lanes)
            )
            made.append(
                [multiply_add(builder, sums[row][index], columns[index], spread) for index in range(across)]
            )
        following = builder.add(pair, ir.Constant(i64, 1))
        pair.add_incoming(following, body)
        for row in range(rows):
            for index in range(across):
                sums[row][index].add_incoming(made[row][index], body)
        builder.cbranch(builder.icmp_signed("<", following, length), body, after)
        builder.position_at_end(after)
        for row in range(rows):
            place = builder.add(out, builder.mul(out_stride, ir.Constant(i64, row)))
            for index in range(across):
                store = builder.store(made[row][index], at(place, 4 * (offset + index * lanes), vector))
                store.align = 4

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing: Any, w: Any, w_stride: Any, x: Any, length: Any, out: Any, out_stride: Any
    ) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            for offset in range(0, _TILE, across * lanes):
                loop(builder, arguments, offset)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


def vector_lanes() -> int:
    """32-bit words per vector register on this machine."""
    return vector_unit().lanes
