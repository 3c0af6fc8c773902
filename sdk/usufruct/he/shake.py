"""SHAKE128 of many short messages at once, one per vector lane, compiled at first use.

Expanding a seed costs more than everything else that is done to a block, and hashing one message leaves most of a
vector register empty. Here each of the 25 words of the sponge's state is a register that holds that word of several
messages; the same instructions then hash as many messages as a register has 64-bit words. Knows no ciphertext.

Source: FIPS 202, SHA-3 Standard: Permutation-Based Hash and Extendable-Output Functions, 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from usufruct.he.vector import vector_unit

RATE_BYTES: Final = 168
MAX_MESSAGE_BYTES: Final = RATE_BYTES - 1

_RATE_WORDS = RATE_BYTES // 8
_STATE_WORDS = 25
_LEAST_LANES = 4


def uniform_below(messages: Sequence[bytes], count: int, modulus: int) -> NDArray[np.uint64]:
    """The first integers below `modulus` in the SHAKE128 stream of each message.

    A stream is read in words of 8 bytes, little-endian, cut to the modulus' bit length; words at or above the modulus
    are skipped.

    Parameters
    ----------
    messages :
        Of one length, at most 167 bytes.
    count :
        How many integers of each stream.
    modulus :
        At least 2, at most 63 bits.

    Returns
    -------
    integers :
        shape (len(messages), count).

    Raises
    ------
    ValueError
        If a message or the modulus is outside of that.
    """
    size = len(messages[0]) if messages else 0
    if size > MAX_MESSAGE_BYTES or any(len(message) != size for message in messages):
        raise ValueError(f"messages have to be of one length of at most {MAX_MESSAGE_BYTES} bytes")
    if not 2 <= modulus < 1 << 63:
        raise ValueError(f"a modulus of {modulus.bit_length()} bits")
    padded = np.zeros((len(messages), RATE_BYTES), dtype=np.uint8)
    for row, message in zip(padded, messages, strict=True):
        row[:size] = np.frombuffer(message, dtype=np.uint8)
    # Padding of SHAKE: the suffix 1111 and the first bit of pad10*1, then its last bit.
    padded[:, size] = 0x1F
    padded[:, RATE_BYTES - 1] ^= 0x80
    words = padded.view("<u8").astype(np.uint64)
    mask = (1 << modulus.bit_length()) - 1
    routines = _routines()
    made = np.empty((len(messages), count), dtype=np.uint64)
    for first in range(0, len(messages), routines.lanes):
        # The last group repeats a message where there are fewer than lanes.
        which = np.minimum(np.arange(first, first + routines.lanes), len(messages) - 1)
        absorbed = np.ascontiguousarray(words[which].T)
        routines.squeeze(absorbed, made[first : first + routines.lanes], mask, modulus)
    return made


def is_faster() -> bool:
    """Whether the processor's registers hold enough messages to beat hashing them one after the other."""
    return vector_unit().lanes // 2 >= _LEAST_LANES


class _Routines(NamedTuple):
    lanes: int
    squeeze: Callable[..., None]


@lru_cache(maxsize=1)
def _routines() -> _Routines:
    """Compile for this processor."""
    from numba import njit, types

    lanes = vector_unit().lanes // 2
    permute = _permutation(lanes)

    @njit(  # type: ignore[untyped-decorator]
        types.void(types.uint64[:, ::1], types.uint64[:, ::1], types.uint64, types.uint64), nogil=True
    )
    def squeeze(absorbed: Any, made: Any, mask: Any, modulus: Any) -> None:
        n_rows, count = made.shape
        state = np.zeros(_STATE_WORDS * lanes, dtype=np.uint64)
        for word in range(_RATE_WORDS):
            for lane in range(lanes):
                state[word * lanes + lane] = absorbed[word, lane]
        filled = np.zeros(lanes, dtype=np.int64)
        least = 0
        while least < count:
            permute(state.ctypes.data)
            least = count
            for row in range(n_rows):
                at, line = filled[row], made[row]
                if at + _RATE_WORDS <= count:
                    for word in range(_RATE_WORDS):
                        value = state[word * lanes + row] & mask
                        line[at] = value
                        at += 1 if value < modulus else 0
                else:
                    for word in range(_RATE_WORDS):
                        value = state[word * lanes + row] & mask
                        if at < count and value < modulus:
                            line[at] = value
                            at += 1
                filled[row] = at
                least = min(least, at)

    return _Routines(lanes=lanes, squeeze=squeeze)


def _permutation(lanes: int) -> Any:
    """Make Keccak-f[1600] on as many states as there are lanes; takes the address of 25 times `lanes` words."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    i32, i64 = ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(i64, lanes)
    rotations, constants = _rotations(), _round_constants()

    def spread(value: int) -> Any:
        return ir.Constant(vector, [value] * lanes)

    def rotate(builder: Any, word: Any, by: int) -> Any:
        if by == 0:
            return word
        return builder.or_(builder.shl(word, spread(by)), builder.lshr(word, spread(64 - by)))

    def round_of(builder: Any, state: list[Any], constant: Any) -> list[Any]:
        columns = []
        for x in range(5):
            column = state[x]
            for y in range(1, 5):
                column = builder.xor(column, state[x + 5 * y])
            columns.append(column)
        mixed = [
            builder.xor(columns[(x - 1) % 5], rotate(builder, columns[(x + 1) % 5], 1)) for x in range(5)
        ]
        moved: list[Any] = [None] * _STATE_WORDS
        for x in range(5):
            for y in range(5):
                word = builder.xor(state[x + 5 * y], mixed[x])
                moved[y + 5 * ((2 * x + 3 * y) % 5)] = rotate(builder, word, rotations[x][y])
        made = []
        for y in range(5):
            row = moved[5 * y : 5 * y + 5]
            made += [
                builder.xor(row[x], builder.and_(builder.not_(row[(x + 1) % 5]), row[(x + 2) % 5]))
                for x in range(5)
            ]
        made[0] = builder.xor(made[0], constant)
        return made

    @intrinsic  # type: ignore[untyped-decorator]
    def permute(typing: Any, address: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], vector.as_pointer())
            places = [builder.gep(pointer, [ir.Constant(i64, word)]) for word in range(_STATE_WORDS)]
            loaded = [builder.load(place) for place in places]
            for word in loaded:
                word.align = 8
            table = cgutils.global_constant(
                builder, "keccak_round_constants", ir.Constant(ir.ArrayType(i64, len(constants)), constants)
            )
            before, body = builder.block, builder.append_basic_block("round")
            after = builder.append_basic_block("done")
            builder.branch(body)
            builder.position_at_end(body)
            number = builder.phi(i64)
            number.add_incoming(ir.Constant(i64, 0), before)
            state = [builder.phi(vector) for _ in range(_STATE_WORDS)]
            constant = builder.load(builder.gep(table, [ir.Constant(i64, 0), number]))
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), constant, ir.Constant(i32, 0))
            everywhere = builder.shuffle_vector(
                single, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(i32, lanes), [0] * lanes)
            )
            made = round_of(builder, state, everywhere)
            following = builder.add(number, ir.Constant(i64, 1))
            number.add_incoming(following, body)
            for phi, first, then in zip(state, loaded, made, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(then, body)
            builder.cbranch(
                builder.icmp_signed("<", following, ir.Constant(i64, len(constants))), body, after
            )
            builder.position_at_end(after)
            for word, place in zip(made, places, strict=True):
                builder.store(word, place).align = 8
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return permute


def _rotations() -> list[list[int]]:
    """Offsets of the step rho, as FIPS 202, section 3.2.2, generates them; [x][y]."""
    offsets = [[0] * 5 for _ in range(5)]
    x, y = 1, 0
    for t in range(24):
        offsets[x][y] = (t + 1) * (t + 2) // 2 % 64
        x, y = y, (2 * x + 3 * y) % 5
    return offsets


def _round_constants() -> list[int]:
    """Constants of the step iota, as FIPS 202, section 3.2.5, generates them."""
    constants, register = [], 1
    for _ in range(24):
        constant = 0
        for j in range(7):
            if register & 1:
                constant |= 1 << ((1 << j) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return constants
