"""The cache of expansions gives back what was stored, or nothing, whatever happens to its file."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from usufruct.compute import CacheSettings, ExpansionCache
from usufruct.compute.cache import PLACES_PER_SET
from usufruct.content import Cid
from usufruct.errors import ConfigurationError

ENTRY, CONTEXT = 300, b"context"
ONE_SET = 4096 + PLACES_PER_SET * (ENTRY + 68)


def entry(number: int) -> tuple[Cid, bytes]:
    data = number.to_bytes(4, "big") * (ENTRY // 4)
    return Cid.of(data), data


def opened(path: Path, limit: int = 20 * ONE_SET) -> ExpansionCache:
    return ExpansionCache(CacheSettings(path=path, limit_bytes=limit), entry_bytes=ENTRY)


def test_an_entry_comes_back_also_in_another_process_until_the_place_is_needed(tmp_path: Path) -> None:
    cache = opened(tmp_path / "cache")
    cid, data = entry(1)
    assert cache.get(cid, CONTEXT) is None
    cache.put(cid, CONTEXT, data)
    assert cache.get(cid, CONTEXT) == data
    code = (
        "import sys; from pathlib import Path; from usufruct.compute import *; from usufruct.content import Cid\n"
        f"cache = ExpansionCache(CacheSettings(path=Path(sys.argv[1]), limit_bytes={20 * ONE_SET}), entry_bytes={ENTRY})\n"
        f"data = (1).to_bytes(4, 'big') * {ENTRY // 4}\n"
        "assert cache.get(Cid.of(data), b'context') == data\n"
        f"other = (2).to_bytes(4, 'big') * {ENTRY // 4}\n"
        "cache.put(Cid.of(other), b'context', other)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "cache")], check=True)
    assert cache.get(entry(2)[0], CONTEXT) == entry(2)[1]


def test_the_entry_that_was_unused_for_longest_gives_way(tmp_path: Path) -> None:
    cache = opened(tmp_path / "cache", ONE_SET)
    for number in range(PLACES_PER_SET):
        cache.put(entry(number)[0], CONTEXT, entry(number)[1])
    assert cache.get(entry(0)[0], CONTEXT) is not None
    cache.put(entry(99)[0], CONTEXT, entry(99)[1])
    kept = [number for number in range(PLACES_PER_SET) if cache.get(entry(number)[0], CONTEXT)]
    assert kept == [0, 2, 3, 4, 5, 6, 7] and cache.get(entry(99)[0], CONTEXT)


def test_the_file_never_grows_beyond_its_limit_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache"
    limit = 5 * ONE_SET + 17
    cache = opened(path, limit)
    for number in range(200):
        cache.put(entry(number)[0], CONTEXT, entry(number)[1])
    assert path.stat().st_size <= limit
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [name.name for name in path.parent.iterdir()] == ["cache"]


@pytest.mark.parametrize("offset", range(0, 4096 + 68 + ENTRY, 41))
def test_poisoned_cache_a_flipped_byte_is_a_miss_or_changes_nothing(tmp_path: Path, offset: int) -> None:
    path, (cid, data) = tmp_path / "cache", entry(1)
    cache = opened(path, ONE_SET)
    cache.put(cid, CONTEXT, data)
    cache.close()
    # Header, then the table of one set, then the entries; the first place is the one in use.
    at = offset if offset < 4096 + 68 else offset + (PLACES_PER_SET - 1) * 68
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(bytes(raw))
    assert opened(path, ONE_SET).get(cid, CONTEXT) in (None, data)


def test_poisoned_cache_every_byte_of_an_entry_and_of_its_tag_counts(tmp_path: Path) -> None:
    path, (cid, data) = tmp_path / "cache", entry(1)
    cache = opened(path, ONE_SET)
    cache.put(cid, CONTEXT, data)
    raw = path.read_bytes()
    tag = range(4096 + 8 + 32, 4096 + 68)
    body = range(4096 + PLACES_PER_SET * 68, 4096 + PLACES_PER_SET * 68 + ENTRY)
    for at in (*tag, *body):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x80]) + raw[at + 1 :])
        assert cache.get(cid, CONTEXT) is None
    assert cache.rejected == len(tag) + len(body)
    path.write_bytes(raw)
    assert cache.get(cid, CONTEXT) == data


def test_poisoned_cache_entries_swapped_between_cids_and_contexts_are_misses(tmp_path: Path) -> None:
    path, cache = tmp_path / "cache", opened(tmp_path / "cache", ONE_SET)
    (first, data), (second, other) = entry(1), entry(2)
    cache.put(first, CONTEXT, data)
    cache.put(second, CONTEXT, other)
    assert cache.get(first, b"another") is None
    raw = bytearray(path.read_bytes())
    table = 4096
    left, right = raw[table + 8 : table + 40], raw[table + 68 + 8 : table + 68 + 40]
    assert {bytes(left), bytes(right)} == {first.digest, second.digest}
    raw[table + 8 : table + 40], raw[table + 68 + 8 : table + 68 + 40] = right, left
    path.write_bytes(bytes(raw))
    assert cache.get(first, CONTEXT) is None and cache.get(second, CONTEXT) is None


@pytest.mark.parametrize("size", [0, 10, 4096, 4096 + 30, ONE_SET - 1])
def test_a_truncated_file_is_made_anew_and_one_cut_under_an_open_cache_only_misses(
    tmp_path: Path, size: int
) -> None:
    path, (cid, data) = tmp_path / "cache", entry(1)
    cache = opened(path, ONE_SET)
    cache.put(cid, CONTEXT, data)
    os.truncate(path, size)
    assert cache.get(cid, CONTEXT) in (None, data)
    again = opened(path, ONE_SET)
    assert again.get(cid, CONTEXT) is None
    again.put(cid, CONTEXT, data)
    assert again.get(cid, CONTEXT) == data


def test_a_file_that_others_may_read_or_of_other_sizes_is_made_anew(tmp_path: Path) -> None:
    path, (cid, data) = tmp_path / "cache", entry(1)
    opened(path).put(cid, CONTEXT, data)
    path.chmod(0o644)
    assert opened(path).get(cid, CONTEXT) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    opened(path).put(cid, CONTEXT, data)
    assert opened(path, ONE_SET).get(cid, CONTEXT) is None


def test_a_symlink_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / "cache").symlink_to(target)
    with pytest.raises(ConfigurationError):
        opened(tmp_path / "cache")
    assert target.read_bytes() == b"precious"


def test_a_limit_without_room_and_entries_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no room"):
        opened(tmp_path / "cache", ONE_SET - 1)
    with pytest.raises(ValueError, match="entry of 3 bytes"):
        opened(tmp_path / "cache").put(entry(1)[0], CONTEXT, b"abc")
