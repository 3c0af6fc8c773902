"""The journal's format: what was durable comes back whole or is refused; a torn end is cut."""

from __future__ import annotations

import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import ChainDataError
from usufruct_node.chain.journal import (
    HEADER_BYTES,
    BlockMade,
    JournalWriter,
    Record,
    Refused,
    SegmentHeader,
    Transaction,
    read_segment,
)

HEADER = SegmentHeader(
    chain_id=4242, genesis_hash=b"g" * 32, sequence=1, parent_number=0, parent_hash=b"g" * 32
)
HASHES = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(0, 2**64 - 1)
RECORDS = st.one_of(
    st.builds(Transaction, st.binary(max_size=200)),
    st.builds(Refused, HASHES),
    st.builds(BlockMade, NUMBERS, NUMBERS, HASHES, st.lists(HASHES, max_size=4).map(tuple)),
)
GROUPS = st.lists(st.lists(RECORDS, min_size=1, max_size=4), min_size=1, max_size=4)


def written(home: Path, groups: list[list[Record]]) -> tuple[Path, list[int]]:
    """Append each group durably; return the segment and its length after each."""
    writer = JournalWriter.create(home, HEADER, [])
    path = home / "journal-00000001.log"
    lengths = [path.stat().st_size]
    for group in groups:
        writer.append(group)
        lengths.append(path.stat().st_size)
    writer.close()
    return path, lengths


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@settings(max_examples=40, deadline=None)
@given(groups=GROUPS)
def test_what_is_appended_is_read_back_in_order(home: Path, groups: list[list[Record]]) -> None:
    path, lengths = written(home, groups)
    header, records, length = read_segment(path, last=True)
    assert header == HEADER
    assert records == [record for group in groups for record in group]
    assert length == lengths[-1]


@settings(max_examples=40, deadline=None)
@given(groups=GROUPS, data=st.data())
def test_a_segment_cut_anywhere_keeps_every_whole_record_before_the_cut(
    home: Path, groups: list[list[Record]], data: st.DataObject
) -> None:
    path, lengths = written(home, groups)
    content = path.read_bytes()
    cut = data.draw(st.integers(HEADER_BYTES, len(content)))
    path.write_bytes(content[:cut])
    _, records, length = read_segment(path, last=True)
    everything = [record for group in groups for record in group]
    assert records == everything[: len(records)]
    assert length <= cut
    whole_groups = sum(1 for after in lengths[1:] if after <= cut)
    assert len(records) >= sum(map(len, groups[:whole_groups]))


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.lists(RECORDS, min_size=1, max_size=3), min_size=2, max_size=4), data=st.data())
def test_a_bit_flipped_before_a_later_durable_group_is_refused(
    home: Path, groups: list[list[Record]], data: st.DataObject
) -> None:
    path, lengths = written(home, groups)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, lengths[-2] - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ChainDataError):
        read_segment(path, last=True)


def test_an_older_segment_with_a_torn_end_is_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path, [[Transaction(b"one")]])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChainDataError, match="damaged at byte 110"):
        read_segment(path, last=False)


def test_a_frame_moved_within_or_between_segments_does_not_hold(tmp_path: Path) -> None:
    path, lengths = written(tmp_path, [[Transaction(b"aaaa")], [Transaction(b"bbbb")]])
    content = path.read_bytes()
    first, second = content[lengths[0] : lengths[1]], content[lengths[1] : lengths[2]]
    path.write_bytes(content[: lengths[0]] + second + first)
    assert read_segment(path, last=True)[1] == []
    other = SegmentHeader(
        chain_id=4242, genesis_hash=b"g" * 32, sequence=2, parent_number=9, parent_hash=b"h" * 32
    )
    path.write_bytes(other.encode() + first + second)
    assert read_segment(path, last=True)[1] == []


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path, [[Transaction(b"one")]])
    content = bytearray(path.read_bytes())
    content[4] = 2
    path.write_bytes(content)
    with pytest.raises(ChainDataError):
        read_segment(path, last=True)


def test_a_failed_append_leaves_the_segment_as_it_was_and_the_next_one_works(tmp_path: Path) -> None:
    writer = JournalWriter.create(tmp_path, HEADER, [b"carried"])
    path = tmp_path / "journal-00000001.log"
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.append([Transaction(b"x" * 500)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    writer.append([Transaction(b"y")])
    writer.close()
    assert read_segment(path, last=True)[1] == [Transaction(b"carried"), Transaction(b"y")]


def test_the_journal_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path, _ = written(tmp_path, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
