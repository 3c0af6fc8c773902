"""Keccak-256 of many messages at once, compiled at first use. One message is `eth_utils.keccak`'s business.

Source: FIPS 202 with the padding of the original submission (first byte 0x01), as Ethereum uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from eth_utils.crypto import keccak as keccak_one

_RATE = 136
_WORTH_COMPILING = 20_000
"""Messages. Only an index that is rebuilt has so many at once, and then again and again; compiling takes about two seconds."""

_ROUNDS = (
    0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000, 0x000000000000808B,
    0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008A, 0x0000000000000088,
    0x0000000080008009, 0x000000008000000A, 0x000000008000808B, 0x800000000000008B, 0x8000000000008089,
    0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
)  # fmt: skip
_ROTATIONS = (
    1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 2, 14, 27, 41, 56, 8, 25, 43, 62, 18, 39, 61, 20, 44
)  # fmt: skip
_LANES = (10, 7, 11, 17, 18, 3, 5, 16, 8, 21, 24, 4, 15, 23, 19, 13, 12, 2, 20, 14, 22, 9, 6, 1)
_compiling = threading.Lock()


def keccak_many(messages: Sequence[bytes]) -> list[bytes]:
    """Digests of all messages, in order; compiled code where there are enough of them to pay for compiling it."""
    if len(messages) < _WORTH_COMPILING:
        return [bytes(keccak_one(message)) for message in messages]
    padded = [_padded(message) for message in messages]
    lengths = np.fromiter((len(block) for block in padded), dtype=np.int64, count=len(padded))
    words = np.frombuffer(b"".join(padded), dtype="<u8")
    digests = np.empty((len(messages), 4), dtype=np.uint64)
    with _compiling:
        absorb = _compiled()
    absorb(words, lengths // _RATE, digests)
    raw = digests.astype("<u8", copy=False).tobytes()
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]


def _padded(message: bytes) -> bytes:
    gap = _RATE - len(message) % _RATE
    return message + (b"\x81" if gap == 1 else b"\x01" + bytes(gap - 2) + b"\x80")


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None]:
    from numba import njit, types

    rounds = np.array(_ROUNDS, dtype=np.uint64)
    rotations = np.array(_ROTATIONS, dtype=np.uint64)
    lanes = np.array(_LANES, dtype=np.int64)
    words_type = types.Array(types.uint64, 1, "C", readonly=True)

    @njit(types.void(words_type, types.int64[::1], types.uint64[:, ::1]), nogil=True)  # type: ignore[untyped-decorator]
    def absorb(words: Any, blocks: Any, digests: Any) -> None:
        state = np.empty(25, dtype=np.uint64)
        column = np.empty(5, dtype=np.uint64)
        at = 0
        for message in range(blocks.size):
            state[:] = 0
            for _ in range(blocks[message]):
                for word in range(17):
                    state[word] ^= words[at + word]
                at += 17
                for turn in range(24):
                    for x in range(5):
                        column[x] = state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20]
                    for x in range(5):
                        right = column[(x + 1) % 5]
                        mixed = column[(x + 4) % 5] ^ ((right << np.uint64(1)) | (right >> np.uint64(63)))
                        for y in range(0, 25, 5):
                            state[x + y] ^= mixed
                    moved = state[1]
                    for step in range(24):
                        place = lanes[step]
                        kept = state[place]
                        by = rotations[step]
                        state[place] = (moved << by) | (moved >> (np.uint64(64) - by))
                        moved = kept
                    for y in range(0, 25, 5):
                        for x in range(5):
                            column[x] = state[y + x]
                        for x in range(5):
                            state[y + x] = column[x] ^ (~column[(x + 1) % 5] & column[(x + 2) % 5])
                    state[0] ^= rounds[turn]
            digests[message] = state[:4]

    return cast(Callable[..., None], absorb)
