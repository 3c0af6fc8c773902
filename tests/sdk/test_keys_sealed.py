"""Streams under a passphrase: what was written comes back whole, or not at all."""

from __future__ import annotations

import functools
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import BackupError, UsufructError, WrongPassphraseError
from usufruct.keys import sealed
from usufruct.keys.keystore import derive
from usufruct.keys.sealed import PIECE_BYTES, SealedReader, SealedWriter

PASSPHRASE = "a long enough passphrase"
SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7)


@pytest.fixture(autouse=True)
def _derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function, remembered: each derivation costs 64 MiB and a good part of a second."""
    monkeypatch.setattr(sealed, "derive", functools.cache(derive))


def seal(plain: bytes, *, step: int = 1 << 18) -> bytes:
    file = io.BytesIO()
    writer = SealedWriter(file, PASSPHRASE)
    for start in range(0, len(plain), step):
        writer.write(plain[start : start + step])
    writer.finish()
    return file.getvalue()


def unseal(data: bytes, size: int, passphrase: str = PASSPHRASE) -> bytes:
    reader = SealedReader(io.BytesIO(data), passphrase)
    plain = reader.read(size)
    reader.expect_end()
    return plain


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(scope="module")
def archive() -> bytes:
    return seal(pattern(SIZES[-1]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1 << 16, 3 << 20])
def test_a_stream_of_any_length_comes_back(size: int, step: int) -> None:
    plain = pattern(size)
    assert unseal(seal(plain, step=step), size) == plain


def test_equal_streams_are_sealed_differently_and_show_nothing(archive: bytes) -> None:
    assert seal(pattern(SIZES[-1])) != archive
    assert pattern(64) not in archive


def test_another_passphrase_is_told_from_damage(archive: bytes) -> None:
    with pytest.raises(WrongPassphraseError):
        unseal(archive, SIZES[-1], "another passphrase")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_is_accepted_anywhere(archive: bytes, data: st.DataObject) -> None:
    at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(archive) - 1)))
    mutant = bytearray(archive)
    mutant[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(UsufructError):
        unseal(bytes(mutant), SIZES[-1])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_truncation_is_accepted_and_nothing_may_follow(archive: bytes, data: st.DataObject) -> None:
    with pytest.raises(BackupError):
        unseal(archive[: data.draw(st.integers(0, len(archive) - 1))], SIZES[-1])
    with pytest.raises(BackupError):
        unseal(archive + data.draw(st.binary(min_size=1, max_size=2 * PIECE_BYTES)), SIZES[-1])


def test_pieces_can_be_neither_dropped_nor_exchanged_nor_taken_for_the_last(archive: bytes) -> None:
    start = archive.index(b"\n") + 1
    step = PIECE_BYTES + 16
    pieces = [archive[at : at + step] for at in range(start, len(archive), step)]
    assert len(pieces) == 4
    a, b, c, d = pieces
    for forged in ([a, c, d], [b, a, c, d], [a, b, d], [a, b, c], [a, a, b, c, d], [d], [a, b, c, d, d], []):
        with pytest.raises(BackupError):
            unseal(archive[:start] + b"".join(forged), SIZES[-1])
    other = seal(pattern(SIZES[-1]))
    with pytest.raises(BackupError):
        unseal(other[: other.index(b"\n") + 1] + archive[start:], SIZES[-1])


def test_reading_less_or_more_than_was_written_is_refused(archive: bytes) -> None:
    for size in (SIZES[-1] - 1, SIZES[-1] + 1, 0):
        with pytest.raises(BackupError):
            unseal(archive, size)


@pytest.mark.parametrize(
    "change",
    [
        {"kdf": {"name": "argon2id", "memory_kib": 1 << 30, "iterations": 3, "lanes": 4}},
        {"kdf": None},
        {"format": "usufruct/sealed-stream/2"},
        {"salt": "00"},
        {"salt": "zz"},
        {"check": "00" * 31},
        {"more": 1},
    ],
)
def test_a_head_that_asks_for_anything_else_is_refused(archive: bytes, change: dict[str, object]) -> None:
    line, _, rest = archive.partition(b"\n")
    head = json.dumps(json.loads(line) | change).encode()
    with pytest.raises(BackupError):
        unseal(head + b"\n" + rest, SIZES[-1])


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}\n", b"[" * 5000 + b"\n", b"\xff\xfe\n", b"null\n", b"x" * 5000]
)
def test_what_is_no_sealed_stream_is_refused(data: bytes) -> None:
    with pytest.raises(BackupError):
        unseal(data, 0)
