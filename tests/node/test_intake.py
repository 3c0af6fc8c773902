"""Records enter the store whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle_fixture import SmallBundle
from usufruct.content import Cid, Codec, EmbeddedBlockStore, dag
from usufruct.errors import BlockNotFoundError, InputError, IntegrityError, StoreFullError, UsufructError
from usufruct.keys.he_keys import key_domain_record
from usufruct.register import PUBLIC_TYPE
from usufruct_node.holdings import Holding, Holdings, Purpose
from usufruct_node.intake import Uploads, accept_record, forget_unnoted


@dataclass
class Shelf:
    store: EmbeddedBlockStore
    holdings: Holdings

    def accept(self, kind: str, record: object) -> Cid:
        return accept_record(self.store, self.holdings, kind, dag.encode(record))


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with EmbeddedBlockStore(tmp_path / "blocks") as store:
        holdings = Holdings(tmp_path / "node.db")
        yield Shelf(store, holdings)
        holdings.close()


def records(bundle: SmallBundle) -> dict[str, object]:
    return {
        "policy": bundle.policy.to_record(),
        "status": bundle.status.to_record(),
        "parameters": bundle.parameters("linear").to_record(),
        "public": {"type": PUBLIC_TYPE, **key_domain_record(bundle.secret)},
    }


@pytest.mark.parametrize("kind", ["policy", "status", "parameters", "public"])
def test_a_sound_record_is_pinned_and_its_purpose_noted(shelf: Shelf, bundle: SmallBundle, kind: str) -> None:
    cid = shelf.accept(kind, records(bundle)[kind])
    assert shelf.store.pins(cid) == {kind}
    purpose = Purpose.PARAMETERS if kind == "parameters" else Purpose.CATALOGUE
    assert shelf.holdings.of(cid) == [Holding(purpose, b"")]


@pytest.mark.parametrize(
    "kind", ["bundle", "policy", "status", "parameters", "public", "unknown", "", "Policy"]
)
def test_a_record_under_another_kind_is_refused_and_nothing_is_kept(
    shelf: Shelf, bundle: SmallBundle, kind: str
) -> None:
    for true_kind, record in records(bundle).items():
        if true_kind != kind:
            with pytest.raises((InputError, IntegrityError)):
                shelf.accept(kind, record)
    assert list(shelf.store.cids()) == []
    assert shelf.holdings.count() == 0


def test_a_bundle_takes_its_staged_blocks_with_it(shelf: Shelf, bundle: SmallBundle) -> None:
    shelf.store.put_many(bundle.blocks, Codec.RAW, pin="staged")
    cid = shelf.accept("bundle", bundle.record)
    for block in bundle.manifest.blocks:
        assert shelf.store.pins(block) == {f"bundle:{cid.digest.hex()}"}
        assert shelf.holdings.of(block) == [Holding(Purpose.BUNDLE, cid.digest)]
    shelf.store.gc()
    assert shelf.store.get(bundle.manifest.blocks[0]) == bundle.blocks[0]
    assert shelf.accept("bundle", bundle.record) == cid, "handing it over again changes nothing"
    assert shelf.holdings.count() == len(bundle.blocks) + 1


def test_what_an_upload_that_broke_off_had_staged_goes_after_an_hour_of_silence_and_not_before(
    shelf: Shelf, bundle: SmallBundle
) -> None:
    now = 0.0
    uploads = Uploads(shelf.store, clock=lambda: now)
    first, second = bundle.manifest.blocks
    uploads.stage(bundle.blocks[:1])
    now = 3000.0
    uploads.stage(bundle.blocks[1:])
    now = 6000.0
    uploads.forget_given_up()
    assert shelf.store.gc() == 0
    now = 6600.0
    uploads.forget_given_up()
    assert shelf.store.gc() == 2
    assert not shelf.store.has(first) and not shelf.store.has(second)
    uploads.stage(bundle.blocks)
    kept = shelf.accept("bundle", bundle.record)
    uploads.forget()
    shelf.store.gc()
    assert shelf.store.has(kept) and shelf.store.has(first), "what a record links stays"


def test_a_bundle_with_a_block_missing_leaves_no_trace(shelf: Shelf, bundle: SmallBundle) -> None:
    shelf.store.put_many(bundle.blocks[:1], Codec.RAW, pin="staged")
    with pytest.raises(InputError, match="1 of 2 blocks"):
        shelf.accept("bundle", bundle.record)
    staged, missing = bundle.manifest.blocks
    assert shelf.store.pins(staged) == {"staged"}
    assert shelf.holdings.count() == 0
    with pytest.raises(BlockNotFoundError):
        shelf.store.get(missing)
    with pytest.raises(BlockNotFoundError):
        shelf.store.get(dag.cid_of(bundle.record))


def fail(*_: object, **__: object) -> None:
    raise StoreFullError("the disk is full")


@pytest.mark.parametrize("at", ["put", "pin", "note", "last note"])
def test_a_bundle_that_no_longer_fits_leaves_no_trace_and_an_earlier_one_as_it_was(
    shelf: Shelf, bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(patched: pytest.MonkeyPatch) -> None:
        add = shelf.holdings.add
        if at == "put":
            patched.setattr(shelf.store, "put", fail)
        elif at == "pin":
            patched.setattr(shelf.store, "pin_many", fail)
        else:
            wrong = Purpose.BUNDLE if at == "note" else Purpose.CATALOGUE
            patched.setattr(
                shelf.holdings,
                "add",
                lambda cids, why, *ref: (fail if why is wrong else add)(cids, why, *ref),
            )

    shelf.store.put_many(bundle.blocks, Codec.RAW, pin="staged")
    with monkeypatch.context() as patched, pytest.raises(StoreFullError):
        full(patched)
        shelf.accept("bundle", bundle.record)
    assert shelf.holdings.count() == 0
    assert shelf.store.reasons("") == ["staged"]
    cid = shelf.accept("bundle", bundle.record)
    with monkeypatch.context() as patched, pytest.raises(StoreFullError):
        full(patched)
        shelf.accept("bundle", bundle.record)
    assert shelf.store.pins(cid) == {"bundle"}
    assert shelf.store.reasons("") == ["bundle", f"bundle:{cid.digest.hex()}"]
    assert shelf.holdings.count() == len(bundle.blocks) + 1


def test_of_a_bundle_that_a_kill_cut_off_the_blocks_go_with_the_other_staged_ones(
    shelf: Shelf, bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(shelf.store)
    uploads.stage(bundle.blocks)
    monkeypatch.setattr(shelf.store, "unpin", lambda *_: None)
    monkeypatch.setattr(shelf.store, "pin_many", fail)
    with pytest.raises(StoreFullError):
        shelf.accept("bundle", bundle.record)
    uploads.forget()
    shelf.store.gc()
    assert list(shelf.store.cids()) == [dag.cid_of(bundle.record)]


def test_blocks_that_a_kill_left_pinned_and_noted_for_nobody_go_unless_their_bundle_is_registered(
    shelf: Shelf, bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    digest = dag.cid_of(bundle.record).digest
    monkeypatch.setattr(EmbeddedBlockStore, "unpin_all", lambda *_: 0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shelf.holdings, "add", die)
        patched.setattr(shelf.holdings, "drop", die)
        shelf.store.put_many(bundle.blocks, Codec.RAW, pin="staged")
        shelf.accept("bundle", bundle.record)
    monkeypatch.undo()
    Uploads(shelf.store).forget()
    forget_unnoted(shelf.store, shelf.holdings, lambda one: one == digest)
    shelf.store.gc()
    assert all(map(shelf.store.has, bundle.manifest.blocks))
    forget_unnoted(shelf.store, shelf.holdings, lambda one: False)
    shelf.store.gc()
    assert not any(map(shelf.store.has, bundle.manifest.blocks))

    shelf.store.put_many(bundle.blocks, Codec.RAW, pin="staged")
    shelf.accept("bundle", bundle.record)
    forget_unnoted(shelf.store, shelf.holdings, lambda one: False)
    shelf.store.gc()
    assert all(map(shelf.store.has, bundle.manifest.blocks)), (
        "what was taken in and is not registered yet stays"
    )


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\x80", b"\xa0", b"\xa1aa\x01", b"\xa1aa\x01\x00", b"\xbf\xff"]
)
def test_bytes_that_are_no_record_are_refused(shelf: Shelf, data: bytes) -> None:
    for kind in ("bundle", "policy", "status", "parameters", "public"):
        with pytest.raises(UsufructError):
            accept_record(shelf.store, shelf.holdings, kind, data)
    assert list(shelf.store.cids()) == []


def test_a_public_record_must_hold_a_commitment_that_gives_its_key_id(
    shelf: Shelf, bundle: SmallBundle
) -> None:
    public = records(bundle)["public"]
    for change in (
        {"key_id": bytes(32)},
        {"commitment": bytes(32)},
        {"scheme": "ckks"},
        {"parameters_id": bytes(32)},
    ):
        with pytest.raises(UsufructError):
            shelf.accept("public", public | change)
    assert shelf.holdings.count() == 0
