"""Scan and repair, and the way from one home of blocks to another, on both homes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from block_homes import BlockHome, EmbeddedHome
from kubo_fixture import Kubo
from usufruct.content import BlockStore, Cid, Codec, EmbeddedBlockStore, copy_pinned, repair, scan
from usufruct.errors import BlockNotFoundError, PeerError, StoreFullError

BLOCKS = [bytes([n]) * 1000 for n in range(6)]


@pytest.fixture(params=["embedded", "kubo"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> BlockHome:
    if request.param == "embedded":
        return EmbeddedHome(tmp_path / "store")
    kubo: Kubo = request.getfixturevalue("kubo")
    return kubo


@pytest.fixture
def store(home: BlockHome) -> Iterator[BlockStore]:
    opened = home.open()
    opened.put_many(BLOCKS, pin="bundle")
    yield opened
    opened.close()


def test_a_scan_names_what_is_corrupt_or_missing_and_why_it_was_kept(
    home: BlockHome, store: BlockStore
) -> None:
    corrupt, missing = Cid.of(BLOCKS[1]), Cid.of(BLOCKS[4])
    store.pin(missing, "job")
    home.damage(corrupt)
    home.lose(missing)
    seen: list[int] = []
    found = {damage.cid: (damage.state, damage.pins) for damage in scan(store, progress=seen.append)}
    assert found == {corrupt: ("corrupt", {"bundle"}), missing: ("missing", {"bundle", "job"})}
    assert seen == [1, 2, 3, 4, 5, 6]


def test_repair_brings_back_what_a_peer_has_and_names_what_none_has(
    home: BlockHome, store: BlockStore
) -> None:
    first, second, third, fourth = (Cid.of(block) for block in BLOCKS[:4])
    for cid in (first, second, third):
        home.damage(cid)
    home.lose(fourth)

    def fetch(cid: Cid) -> bytes:
        if cid == second:
            raise PeerError("nobody answers")
        return b"a lie" if cid == third else BLOCKS[[first, second, third, fourth].index(cid)]

    left = list(repair(store, [damage.cid for damage in scan(store)], fetch))
    assert {failure.cid for failure in left} == {second, third}
    assert {damage.cid for damage in scan(store)} == {second, third}
    assert store.get(first) == BLOCKS[0]
    assert store.get(fourth) == BLOCKS[3]
    assert store.pins(fourth) == {"bundle"}


def test_a_block_that_is_collected_during_a_scan_is_no_damage(store: BlockStore) -> None:
    scanning = scan(store, progress=lambda seen: store.unpin_all("bundle") + store.gc())
    assert list(scanning) == []


def test_a_full_store_ends_a_repair_instead_of_passing_for_a_failed_fetch(tmp_path: Path) -> None:
    home = EmbeddedHome(tmp_path / "store")
    with EmbeddedBlockStore(home.root, quota_bytes=100) as store:
        with pytest.raises(StoreFullError):
            list(repair(store, [Cid.of(bytes(101))], lambda _: bytes(101)))


def test_a_store_is_copied_with_its_reasons_and_without_what_nobody_keeps(
    store: BlockStore, tmp_path: Path
) -> None:
    record = store.put(b"\xa0", Codec.DAG_CBOR, pin="catalogue")
    store.pin(record, "job")
    loose = store.put(b"loose")
    with EmbeddedBlockStore(tmp_path / "target") as target:
        for _ in range(2):
            assert copy_pinned(store, target) == 7
        assert target.pins(record) == {"catalogue", "job"}
        assert set(target.pinned("bundle")) == {Cid.of(block) for block in BLOCKS}
        assert not target.has(loose)
        with pytest.raises(BlockNotFoundError):
            target.get(loose)
