"""What every home of blocks promises: one suite, run against each of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from block_homes import BlockHome, EmbeddedHome
from kubo_fixture import Kubo
from usufruct.content import MAX_BLOCK_BYTES, BlockStore, Cid, Codec, catalogue
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ContentError,
    InputError,
    StoreFullError,
)

BLOCK_BYTES = 27_000


def block(number: int, size_bytes: int = BLOCK_BYTES) -> bytes:
    return random.Random(number).randbytes(size_bytes)


@pytest.fixture(params=["embedded", "kubo"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> BlockHome:
    if request.param == "embedded":
        return EmbeddedHome(tmp_path / "store")
    kubo: Kubo = request.getfixturevalue("kubo")
    return kubo


@pytest.fixture
def store(home: BlockHome) -> Iterator[BlockStore]:
    opened = home.open()
    yield opened
    opened.close()


def test_it_is_a_block_store(store: BlockStore) -> None:
    assert isinstance(store, BlockStore)


@pytest.mark.parametrize("codec", list(Codec))
def test_what_is_put_is_got(store: BlockStore, codec: Codec) -> None:
    for data in (b"", b"x", block(1), block(2, MAX_BLOCK_BYTES)):
        cid = store.put(data, codec)
        assert cid == Cid.of(data, codec)
        assert store.get(cid) == data
        assert store.has(cid)
        assert store.size(cid) == len(data)


def test_equal_bytes_under_two_codecs_are_two_blocks(store: BlockStore) -> None:
    raw, cbor = store.put(b"\xa0", Codec.RAW, pin="a"), store.put(b"\xa0", Codec.DAG_CBOR, pin="b")
    store.unpin(raw, "a")
    assert store.gc() == 1
    assert not store.has(raw)
    assert store.get(cbor) == b"\xa0"


def test_many_blocks_are_put_in_order_and_once_each(store: BlockStore) -> None:
    blocks = [block(n, 100) for n in (1, 2, 1, 3)]
    cids = store.put_many(blocks, pin="bundle")
    assert cids == [Cid.of(data) for data in blocks]
    assert store.usage_bytes() == 300
    assert set(store.cids()) == set(cids)
    assert store.put_many([]) == []


def test_all_is_there_after_reopening(home: BlockHome) -> None:
    store = home.open()
    kept, loose = store.put(block(1), pin="bundle"), store.put(block(2))
    store.close()
    store = home.open()
    assert set(store.cids()) == {kept, loose}
    assert store.pins(kept) == {"bundle"}
    assert store.usage_bytes() == 2 * BLOCK_BYTES
    assert store.get(kept) == block(1)
    store.close()


def test_the_listing_pages_through_more_blocks_than_one_query_returns(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_PAGE", 10)
    put = store.put_many([n.to_bytes(4) for n in range(40)], pin="bundle")
    assert len(list(store.cids())) == 40
    assert set(store.cids()) == set(store.pinned("bundle")) == set(put)


def test_an_absent_block_is_not_found(store: BlockStore) -> None:
    cid = Cid.of(b"never put")
    assert not store.has(cid)
    assert store.pins(cid) == frozenset()
    for ask in (store.get, store.size, lambda cid: store.pin(cid, "job")):
        with pytest.raises(BlockNotFoundError):
            ask(cid)


def test_gc_removes_what_nobody_pins_and_nothing_else(home: BlockHome, store: BlockStore) -> None:
    loose = store.put(block(1))
    kept = store.put(block(2), pin="bundle")
    late = store.put(block(3))
    store.pin(late, "job")
    assert store.gc() == 1
    assert not store.has(loose)
    assert home.at_rest() == {kept, late}
    assert store.usage_bytes() == 2 * BLOCK_BYTES
    assert store.gc() == 0


def test_a_block_stays_until_its_last_reason_goes(store: BlockStore) -> None:
    cid = store.put(block(1), pin="bundle a")
    store.put(block(1), pin="bundle b")
    store.pin(cid, "bundle b")
    assert store.pins(cid) == {"bundle a", "bundle b"}
    store.unpin(cid, "bundle b")
    store.unpin(cid, "no such reason")
    assert store.gc() == 0
    store.unpin(cid, "bundle a")
    assert store.gc() == 1
    with pytest.raises(BlockNotFoundError):
        store.get(cid)


def test_pins_are_found_by_reason_and_reasons_by_prefix(store: BlockStore) -> None:
    first, second = store.put(block(1), pin="job:1"), store.put(block(2), pin="job:2")
    store.pin(second, "job:1")
    store.put(block(3), pin="bundle:1")
    assert sorted(store.reasons("job:")) == ["job:1", "job:2"]
    assert set(store.pinned("job:1")) == {first, second}
    assert list(store.pinned("job:3")) == []
    assert store.unpin_all("job:1") == 2
    assert store.pins(first) == frozenset()
    assert store.pins(second) == {"job:2"}
    assert store.gc() == 1


def test_many_pins_are_one_transaction_and_what_is_absent_is_said(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each block would be some fifty times slower."""
    cids = store.put_many([block(n, 100) for n in range(20)])
    absent = [Cid.of(b"never put"), Cid.of(b"nor this")]
    made, begin = list[object](), catalogue.Catalogue.transaction
    monkeypatch.setattr(catalogue.Catalogue, "transaction", lambda self: made.append(self) or begin(self))
    assert store.pin_many([absent[0], *cids, absent[1], cids[0]], "job") == absent
    assert store.pin_many(cids, "job") == store.pin_many([], "job") == []
    assert set(store.pinned("job")) == set(cids)
    store.unpin_many([*cids[5:], absent[0], *cids[5:]], "job")
    store.unpin_many(cids[5:], "job")
    assert set(store.pinned("job")) == set(cids[:5])
    assert len(made) == 5
    assert store.gc() == 15


@pytest.mark.parametrize("reason", ["", "x" * 201, "two\nlines", "nul\0"])
def test_a_pin_needs_a_readable_reason(store: BlockStore, reason: str) -> None:
    with pytest.raises(InputError):
        store.put(b"data", pin=reason)
    cid = store.put(b"data")
    with pytest.raises(InputError):
        store.pin(cid, reason)
    with pytest.raises(InputError):
        store.pin_many([cid], reason)


def test_a_block_over_two_mebibytes_is_refused_and_its_batch_with_it(store: BlockStore) -> None:
    with pytest.raises(InputError):
        store.put_many([b"fine", bytes(MAX_BLOCK_BYTES + 1)])
    with pytest.raises(InputError):
        store.put(bytearray(3))  # type: ignore[arg-type]
    assert list(store.cids()) == []


def test_gc_never_takes_a_block_in_flight(home: BlockHome, store: BlockStore) -> None:
    here, coming = store.put(block(1)), Cid.of(block(2))
    other = home.open()
    with store.holding([here, coming]):
        with store.holding([here]):
            assert other.gc() == 0
        assert store.put(block(2)) == coming
        assert other.gc() == store.gc() == 0
        assert store.get(here) == block(1)
    assert other.gc() == 2
    other.close()


def test_a_hold_ends_with_the_store_that_took_it(home: BlockHome, store: BlockStore) -> None:
    cid = store.put(block(1))
    other = home.open()
    hold = other.holding([cid])
    hold.__enter__()
    assert store.gc() == 0
    other.close()
    assert store.gc() == 1


def test_a_damaged_block_is_never_handed_out_and_putting_it_again_repairs_it(
    home: BlockHome, store: BlockStore
) -> None:
    cid = store.put(block(1), pin="bundle")
    home.damage(cid)
    with pytest.raises(BlockMismatchError):
        store.get(cid)
    store.put(block(1))
    assert store.get(cid) == block(1)
    assert store.pins(cid) == {"bundle"}
    assert store.usage_bytes() == BLOCK_BYTES


def test_a_lost_block_is_not_found_and_putting_it_again_brings_it_back(
    home: BlockHome, store: BlockStore
) -> None:
    cid = store.put(block(1), pin="bundle")
    home.lose(cid)
    with pytest.raises(BlockNotFoundError, match="gone"):
        store.get(cid)
    store.put(block(1))
    assert store.get(cid) == block(1)
    assert store.usage_bytes() == BLOCK_BYTES


def test_a_lost_block_can_be_collected(home: BlockHome, store: BlockStore) -> None:
    cid = store.put(block(1))
    home.lose(cid)
    assert store.gc() == 1
    assert not store.has(cid)
    assert store.usage_bytes() == 0


def test_a_quota_is_kept_to_the_byte(home: BlockHome) -> None:
    store = home.open(quota_bytes=300)
    assert store.quota_bytes == 300
    kept = store.put(block(1, 200), pin="bundle")
    with pytest.raises(StoreFullError):
        store.put(block(2, 101), pin="bundle")
    with pytest.raises(StoreFullError):
        store.put_many([block(3, 60), block(4, 60)], pin="bundle")
    assert list(store.cids()) == [kept]
    store.put(block(1, 200))
    store.put(block(5, 100))
    assert store.usage_bytes() == 300
    assert store.gc() == 1
    store.put(block(2, 100))
    store.gc()
    assert home.at_rest() == {kept}
    store.close()


def test_threads_share_one_store(store: BlockStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(15):
                data = block(step % 5, 2000)
                cid = store.put(data, pin=f"thread {number}")
                assert store.get(cid) == data
                store.unpin(cid, f"thread {number}")
                store.gc()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store.gc()
    assert store.usage_bytes() == 0


def test_a_closed_store_answers_with_an_error(home: BlockHome) -> None:
    store = home.open()
    store.close()
    store.close()
    with pytest.raises(ContentError):
        store.has(Cid.of(b""))
    with pytest.raises(ContentError):
        store.put(b"")
