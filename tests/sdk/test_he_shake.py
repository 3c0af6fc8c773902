"""SHAKE128 on vector lanes is hashlib's, on every kind of vector unit."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.he import shake
from usufruct.he.container import expand_seed
from usufruct.he.parameters import ALLOWED
from usufruct.he.reading import expand_seeds


def by_hashlib(message: bytes, count: int, modulus: int) -> list[int]:
    words = np.frombuffer(hashlib.shake_128(message).digest(64 * (count + 8)), dtype="<u8")
    words = words & np.uint64((1 << modulus.bit_length()) - 1)
    return [int(word) for word in words if word < modulus][:count]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_message_gives_the_integers_of_its_own_stream(data: st.DataObject) -> None:
    """Moduli just above a power of two reject half of the words, so the lanes fill at different speeds."""
    size = data.draw(st.integers(0, shake.MAX_MESSAGE_BYTES))
    messages = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=19))
    modulus = data.draw(st.sampled_from([2, 3, 5, (1 << 53) + 1, (1 << 54) - 1, (1 << 63) - 1]))
    count = data.draw(st.integers(1, 90))
    made = shake.uniform_below(messages, count, modulus)
    assert made.tolist() == [by_hashlib(message, count, modulus) for message in messages]


def test_messages_and_moduli_outside_of_what_it_takes_are_refused() -> None:
    for messages, modulus in (([b"a", b"bc"], 7), ([bytes(168)], 7), ([b"a"], 1), ([b"a"], 1 << 63)):
        with pytest.raises(ValueError, match="of"):
            shake.uniform_below(messages, 1, modulus)
    assert shake.uniform_below([], 4, 7).shape == (0, 4)


@pytest.mark.parametrize("parameters", ALLOWED.values(), ids=lambda parameters: parameters.scheme)
def test_seeds_expanded_together_are_those_expanded_alone(parameters: object) -> None:
    seeds, key = [bytes([number]) * 32 for number in range(11)], bytes(range(32))
    for compiled in (True, False):
        together = expand_seeds(seeds, parameters, key, compiled=compiled)
        assert all(
            np.array_equal(row, expand_seed(seed, parameters, key))
            for row, seed in zip(together, seeds, strict=True)
        )


@pytest.mark.parametrize(("features", "lanes"), [("+sse2,+avx,+avx2", 4), ("+sse2,+cx16", 2), ("", 2)])
def test_narrower_vector_units_give_the_same_stream(features: str, lanes: int) -> None:
    code = (
        "import numpy as np\n"
        "from usufruct.he import shake\n"
        "made = shake.uniform_below([bytes([i]) * 112 for i in range(9)], 300, (1 << 54) - 27)\n"
        "print(shake._routines().lanes, made.sum() % (1 << 61))\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    expected = shake.uniform_below([bytes([i]) * 112 for i in range(9)], 300, (1 << 54) - 27)
    assert done.stdout.split() == [str(lanes), str(expected.sum() % (1 << 61))]
