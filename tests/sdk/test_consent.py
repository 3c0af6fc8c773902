"""Step 5: receipts, pseudonyms, Merkle proofs, status bitstrings, and epochs on a real chain."""

from __future__ import annotations

import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_fixture import FAR, Consortium, word
from usufruct import consent_book
from usufruct.consent import (
    MAX_STATUS_BITS,
    ConsentStatus,
    check_merkle_proof,
    check_receipt,
    cohort_floor,
    consent_leaf,
    merkle_levels,
    merkle_proof,
    pseudonym_of,
    receipt_digest,
)
from usufruct.consent_book import ConsentBook, anchor_epoch
from usufruct.content import Cid, dag
from usufruct.errors import (
    BlockNotFoundError,
    ConfigurationError,
    InputError,
    ManifestError,
    ReleaseRefusedError,
    StaleConsentBookError,
    VerificationError,
)
from usufruct.records import ConsentEpoch, label, org_id

SCOPE, OTHER = "consent-study", "other-study"
NORTH = org_id("north")
WORDS = st.binary(min_size=32, max_size=32)


class Kept:
    """Stands where the organisation's node stands: keeps what it is given."""

    def __init__(self) -> None:
        self.records: dict[bytes, tuple[str, object]] = {}

    def put_record(self, kind: str, record: object) -> Cid:
        cid = dag.cid_of(record)
        self.records[cid.digest] = (kind, record)
        return cid

    def get_record(self, cid: Cid, *, holder: str) -> object:
        if cid.digest not in self.records:
            raise BlockNotFoundError(f"block {cid} is not in this store")
        return self.records[cid.digest][1]


@pytest.fixture
def book(tmp_path: Path) -> ConsentBook:
    return ConsentBook(tmp_path / "consent.db", steward=NORTH, pseudonym_key=b"\x07" * 32)


def record(
    book: ConsentBook, consortium: Consortium, subjects: list[str], **changes: object
) -> dict[str, int]:
    given_ = {"scope": SCOPE, "notice": b"you may withdraw", "expires_at": FAR}
    north = consortium["north"]
    return book.record(subjects, ledger=north.ledger, signing_key=north.authority_key, **(given_ | changes))


# Pseudonyms.


def test_pseudonyms_of_one_subject_differ_by_purpose_controller_and_key() -> None:
    seen = {
        pseudonym_of(key, subject, controller, scope)
        for key in (b"\x01" * 32, b"\x02" * 32)
        for subject in ("ada", "bob")
        for controller in (NORTH, org_id("south"))
        for scope in (SCOPE, OTHER)
    }
    assert len(seen) == 16
    assert pseudonym_of(b"k", "ada", NORTH, SCOPE) == pseudonym_of(b"k", "ada", NORTH, SCOPE)


# Merkle trees.


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=40, unique=True))
def test_every_leaf_is_proven_under_the_root_and_nothing_else_is(leaves: list[bytes]) -> None:
    levels = merkle_levels(leaves)
    (root,) = levels[-1]
    for leaf in leaves:
        proof = merkle_proof(levels, leaf)
        check_merkle_proof(root, leaf, proof)
        for forged in ([*proof, bytes(32)], [bytes(32), *proof]):
            with pytest.raises(VerificationError):
                check_merkle_proof(root, leaf, forged)
        if proof:
            with pytest.raises(VerificationError):
                check_merkle_proof(root, leaf, proof[:-1])
    stranger = keccak(b"".join(leaves))
    with pytest.raises(VerificationError):
        check_merkle_proof(root, stranger, merkle_proof(levels, leaves[0]))


@given(st.lists(WORDS, max_size=12, unique=True), st.randoms())
def test_the_root_says_nothing_about_the_order_of_leaves(leaves: list[bytes], random: object) -> None:
    shuffled = leaves.copy()
    random.shuffle(shuffled)
    assert merkle_levels(leaves)[-1] == merkle_levels(shuffled)[-1]


def test_no_leaves_give_a_root_that_no_leaf_has() -> None:
    (root,) = merkle_levels([])[-1]
    assert root == keccak(bytes(32))
    assert root != merkle_levels([bytes(32)])[-1][0]


# What the ledger learns of the cohort.


@given(st.integers(0, 10**9))
def test_cohort_floor_is_the_largest_step_not_above_the_count(count: int) -> None:
    steps = [0, *(factor * 10**power for power in range(1, 10) for factor in (1, 2, 5))]
    assert cohort_floor(count) == max(step for step in steps if step <= count)


@pytest.mark.parametrize(
    ("count", "floor"),
    [(0, 0), (9, 0), (10, 10), (19, 10), (20, 20), (49, 20), (50, 50), (99, 50), (100, 100), (4096, 2000)],
)
def test_cohort_floor_at_its_steps(count: int, floor: int) -> None:
    assert cohort_floor(count) == floor


# The status bitstring.


def test_positions_are_read_in_the_order_of_the_w3c_bitstring() -> None:
    """Position 0 is the left-most bit of the first byte (Bitstring Status List v1.0, section 3.2)."""
    status = ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=b"\x80\x01")
    withdrawn = np.flatnonzero(~status.consenting()).tolist()
    assert withdrawn == [0, 15]


@given(st.binary(max_size=40), st.lists(st.integers(0, 400), max_size=30))
def test_a_row_is_permitted_only_when_its_subjects_bit_is_there_and_clear(
    bits: bytes, positions: list[int]
) -> None:
    mask = ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=bits).mask_of(
        np.array(positions, dtype=np.int64)
    )
    expected = [p < 8 * len(bits) and not (bits[p // 8] >> (7 - p % 8)) & 1 for p in positions]
    assert mask.tolist() == expected


def test_positions_beyond_the_bitstring_do_not_consent() -> None:
    status = ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=b"\x00")
    assert status.mask_of(np.array([7, 8, 1 << 23])).tolist() == [True, False, False]
    assert not ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=b"").mask_of(np.array([0])).any()


STATUS = ConsentStatus(scope=SCOPE, epoch=3, valid_until=1 << 40, bits=b"\x0f").to_record()


def test_a_status_record_comes_back() -> None:
    assert ConsentStatus.from_record(STATUS).to_record() == STATUS


@pytest.mark.parametrize(
    "change",
    [
        {"type": "usufruct/status/2"},
        {"scope": 1},
        {"scope": None},
        {"epoch": "3"},
        {"epoch": True},
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 3.0},
        {"valid_until": -1},
        {"valid_until": None},
        {"valid_until": 1.0},
        {"bits": "0f"},
        {"bits": [15]},
        {"bits": bytes(MAX_STATUS_BITS // 8 + 1)},
        {"extra": 1},
        *({name: ...} for name in STATUS),
    ],
    ids=repr,
)
def test_a_malformed_status_record_is_refused(change: dict) -> None:
    record_ = {key: value for key, value in (STATUS | change).items() if value is not ...}
    with pytest.raises(ManifestError):
        ConsentStatus.from_record(record_)


# The book of receipts.


def test_receipts_are_signed_by_the_authority_and_a_tampered_one_is_refused(
    book: ConsentBook, consortium: Consortium
) -> None:
    record(book, consortium, ["ada", "bob"])
    receipt = book.receipt("ada", scope=SCOPE)
    ledger = consortium.reader
    check_receipt(receipt, ledger.participant(NORTH), ledger)
    for change in (
        {"pseudonym": word()},
        {"scope": OTHER},
        {"notice_digest": word()},
        {"given_at": receipt.given_at + 1},
        {"expires_at": receipt.expires_at + 1},
        {"signature": receipt.signature[:-1]},
        {"signature": book.receipt("bob", scope=SCOPE).signature},
    ):
        with pytest.raises(VerificationError):
            check_receipt(replace(receipt, **change), ledger.participant(NORTH), ledger)
    with pytest.raises(VerificationError):
        check_receipt(receipt, ledger.participant(consortium["south"].id), ledger)


def test_positions_are_drawn_at_random_and_filled_without_gaps(
    book: ConsentBook, consortium: Consortium
) -> None:
    subjects = [f"subject-{i:03d}" for i in range(40)]
    positions = record(book, consortium, subjects)
    assert sorted(positions.values()) == list(range(40))
    assert [positions[subject] for subject in subjects] != list(range(40)), "one chance in 40! of this"
    later = record(book, consortium, ["late-1", "late-2"])
    assert sorted(later.values()) == [40, 41]
    assert record(book, consortium, ["subject-000"], scope=OTHER) == {"subject-000": 0}
    assert {book.receipt(s, scope=SCOPE).position for s in subjects} == set(range(40))


def test_recording_a_subject_twice_is_refused_and_nothing_is_written(
    book: ConsentBook, consortium: Consortium
) -> None:
    record(book, consortium, ["ada"])
    before = book.subjects(SCOPE)
    for subjects in (["bob", "ada"], ["carl", "carl"]):
        with pytest.raises(InputError):
            record(book, consortium, subjects)
    assert book.subjects(SCOPE) == before
    with pytest.raises(InputError, match="no receipt"):
        book.receipt("bob", scope=SCOPE)


def test_the_book_is_private_and_holds_no_pseudonym_key(
    tmp_path: Path, book: ConsentBook, consortium: Consortium
) -> None:
    record(book, consortium, ["ada"])
    path = tmp_path / "consent.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"\x07" * 32 not in path.read_bytes()


def test_withdrawn_and_expired_receipts_do_not_consent_from_the_second_on(
    book: ConsentBook, consortium: Consortium
) -> None:
    positions = record(book, consortium, ["ada", "bob"]) | record(book, consortium, ["eve"], expires_at=1000)
    status, live, _ = book.status(SCOPE, 1, now=999)
    rows = np.array([positions[name] for name in ("ada", "bob", "eve")])
    assert status.mask_of(rows).tolist() == [True, True, True]
    assert len(live) == 3
    status, live, _ = book.status(SCOPE, 2, now=1000)
    assert status.mask_of(rows).tolist() == [True, True, False]
    book.withdraw("bob", scope=SCOPE)
    status, live, _ = book.status(SCOPE, 3, now=1000)
    assert status.mask_of(rows).tolist() == [True, False, False]
    assert [receipt.position for receipt in live] == [positions["ada"]]
    assert not status.consenting()[3:].any(), "positions never given out do not consent"


def test_a_withdrawal_noted_twice_changes_nothing_and_one_without_a_receipt_is_refused(
    book: ConsentBook, consortium: Consortium
) -> None:
    record(book, consortium, ["ada"])
    book.withdraw("ada", scope=SCOPE)
    withdrawn = book.receipt("ada", scope=SCOPE)
    assert withdrawn.withdrawn_at is not None
    book.withdraw("ada", scope=SCOPE)
    for subject, scope in (("nobody", SCOPE), ("ada", OTHER)):
        with pytest.raises(InputError):
            book.withdraw(subject, scope=scope)
    assert book.receipt("ada", scope=SCOPE) == withdrawn


def test_who_withdrew_may_consent_again_and_keeps_the_position(
    book: ConsentBook, consortium: Consortium
) -> None:
    positions = record(book, consortium, ["ada", "bob"])
    book.withdraw("ada", scope=SCOPE)
    former = book.receipt("ada", scope=SCOPE)
    assert record(book, consortium, ["ada"]) == {"ada": positions["ada"]}
    again = book.receipt("ada", scope=SCOPE)
    assert again.withdrawn_at is None
    assert again.salt != former.salt
    status, live, _ = book.status(SCOPE, 2, now=1)
    assert len(live) == 2
    assert status.mask_of(np.array([positions["ada"]])).all()


def test_an_epoch_is_void_from_the_second_that_its_first_consent_expires(
    book: ConsentBook, consortium: Consortium
) -> None:
    record(book, consortium, ["ada"])
    record(book, consortium, ["eve"], expires_at=1000)
    status, *_ = book.status(SCOPE, 1, now=999)
    assert status.valid_until == 1000
    status.check_in_force(999)
    with pytest.raises(ReleaseRefusedError, match="CONSENT_EPOCH_STALE"):
        status.check_in_force(1000)


def test_an_anchored_epoch_proves_each_consent_in_force_and_no_other(
    book: ConsentBook, consortium: Consortium
) -> None:
    north, node = consortium["north"], Kept()
    record(book, consortium, [f"subject-{i}" for i in range(25)])
    book.withdraw("subject-3", scope=SCOPE)
    epoch = anchor_epoch(book, north.ledger, node, scope=SCOPE)
    assert (epoch.epoch, epoch.cohort_floor) == (1, 20)
    assert epoch == consortium.reader.consent_epoch(NORTH, label(SCOPE))
    kind, published = node.records[epoch.status_digest]
    assert kind == "status"
    assert ConsentStatus.from_record(published) == book.status(SCOPE, 1, now=1)[0]
    _, live, _ = book.status(SCOPE, 1, now=1)
    leaves = {r.position: consent_leaf(r, receipt_digest(r, NORTH, north.ledger)) for r in live}
    levels = merkle_levels(list(leaves.values()))
    for leaf in leaves.values():
        check_merkle_proof(epoch.consent_root, leaf, merkle_proof(levels, leaf))
    gone = book.receipt("subject-3", scope=SCOPE)
    withdrawn_leaf = consent_leaf(gone, receipt_digest(gone, NORTH, north.ledger))
    with pytest.raises(VerificationError):
        check_merkle_proof(epoch.consent_root, withdrawn_leaf, merkle_proof(levels, levels[0][0]))
    assert anchor_epoch(book, north.ledger, node, scope=SCOPE) == epoch, "nothing changed, nothing to anchor"
    book.withdraw("subject-4", scope=SCOPE)
    assert anchor_epoch(book, north.ledger, node, scope=SCOPE).epoch == 2


def test_what_has_expired_by_the_clock_is_no_consent_although_the_chain_stands_still(
    book: ConsentBook, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that makes no empty blocks may have had its last one days ago."""
    north, scope = consortium["north"], "consent-quiet"
    expires_at = max(int(time.time()), north.ledger.finalised().timestamp) + 100_000
    record(book, consortium, ["ada", "bob"], scope=scope)
    record(book, consortium, ["eve"], scope=scope, expires_at=expires_at)
    node = Kept()
    before = anchor_epoch(book, north.ledger, node, scope=scope)
    monkeypatch.setattr(consent_book, "time", SimpleNamespace(time=lambda: float(expires_at)))
    after = anchor_epoch(book, north.ledger, node, scope=scope)
    assert (before.epoch, after.epoch) == (1, 2)
    told = ConsentStatus.from_record(node.records[after.status_digest][1])
    assert told == book.status(scope, 2, now=expires_at)[0]
    assert len(book.status(scope, 2, now=expires_at)[1]) == 2


def test_a_book_restored_from_before_a_withdrawal_lets_nobody_in_again(
    book: ConsentBook, consortium: Consortium, tmp_path: Path
) -> None:
    north, node, scope = consortium["north"], Kept(), "restored-study"
    record(book, consortium, ["ada", "eve"], scope=scope)
    assert anchor_epoch(book, north.ledger, node, scope=scope).epoch == 1
    path = tmp_path / "restored.db"
    with closing(sqlite3.connect(book._path)) as live, closing(sqlite3.connect(path)) as copy:
        live.backup(copy)
    book.withdraw("eve", scope=scope)
    current = anchor_epoch(book, north.ledger, node, scope=scope)
    assert current.epoch == 2

    restored = ConsentBook(path, steward=NORTH, pseudonym_key=b"\x07" * 32)
    for supersede in (None, 1, 3):
        with pytest.raises(StaleConsentBookError) as refused:
            anchor_epoch(restored, north.ledger, node, scope=scope, supersede=supersede)
        assert refused.value.epoch == 2
    assert consortium.reader.consent_epoch(NORTH, label(scope)) == current
    restored.withdraw("eve", scope=scope)
    followed = anchor_epoch(restored, north.ledger, node, scope=scope, supersede=2)
    status, live_receipts, _ = restored.status(scope, followed.epoch, now=1)
    assert restored.receipts_of(followed, status) == live_receipts, (
        "its receipts are those of the epoch that it followed"
    )
    assert (
        len(live_receipts) == 1
        and not status.mask_of(np.array([restored.receipt("eve", scope=scope).position])).any()
    )
    restored.withdraw("ada", scope=scope)
    assert anchor_epoch(restored, north.ledger, node, scope=scope).epoch == followed.epoch + 1
    # From now on it is the other copy that does not know what is in force.
    with pytest.raises(StaleConsentBookError):
        anchor_epoch(book, north.ledger, node, scope=scope)


def test_an_epoch_of_the_same_number_that_another_copy_of_the_book_made_is_not_followed(
    book: ConsentBook,
) -> None:
    """A copy notes its epoch before it is anchored; the other copy's may be anchored first."""
    own = ConsentEpoch(epoch=3, anchored_at=1, cohort_floor=0, consent_root=word(), status_digest=word())
    book.note_epoch(SCOPE, own.epoch, own.status_digest, own.consent_root, newest=1)
    book.check_made(SCOPE, own)
    with pytest.raises(StaleConsentBookError):
        book.check_made(SCOPE, replace(own, status_digest=word()))


@pytest.mark.parametrize("status_is_here", [True, False])
def test_a_restored_book_gives_no_position_to_another_subject(
    book: ConsentBook, consortium: Consortium, tmp_path: Path, status_is_here: bool
) -> None:
    north, node, scope = consortium["north"], Kept(), f"lost-study-{status_is_here}".lower()
    record(book, consortium, ["ada", "eve"], scope=scope)
    anchor_epoch(book, north.ledger, node, scope=scope)
    path = tmp_path / "restored.db"
    with closing(sqlite3.connect(book._path)) as live, closing(sqlite3.connect(path)) as copy:
        live.backup(copy)
    lost = record(book, consortium, ["xenia", "yves"], scope=scope)
    anchor_epoch(book, north.ledger, node, scope=scope)
    book.withdraw("xenia", scope=scope)
    current = anchor_epoch(book, north.ledger, node, scope=scope)
    rows = np.array(sorted(lost.values()))

    restored = ConsentBook(path, steward=NORTH, pseudonym_key=b"\x07" * 32)
    with pytest.raises(StaleConsentBookError):
        record(restored, consortium, ["zoe"], scope=scope)
    if not status_is_here:
        node.records.clear()
    followed = anchor_epoch(
        restored, north.ledger, node, scope=scope, supersede=current.epoch, taken=0 if status_is_here else 4
    )
    new = record(restored, consortium, ["zoe", "yves"], scope=scope)
    assert not set(new.values()) & set(rows.tolist())
    last = anchor_epoch(restored, north.ledger, node, scope=scope)
    assert last.epoch == followed.epoch + 1
    status, live_receipts, _ = restored.status(scope, last.epoch, now=1)
    assert len(live_receipts) == 4 and status.mask_of(np.array(list(new.values()))).all()
    assert not status.mask_of(rows).any(), "rows of whom the book no longer knows stay out"


def test_rows_are_bound_to_anchored_positions_only(book: ConsentBook, consortium: Consortium) -> None:
    scope, north, node = "bound-study", consortium["north"], Kept()
    positions = list(record(book, consortium, ["ada", "bob"], scope=scope).values())
    with pytest.raises(InputError, match="not anchored"):
        book.check_anchored(scope, positions)
    anchor_epoch(book, north.ledger, node, scope=scope)
    book.check_anchored(scope, positions)
    more = record(book, consortium, ["cleo"], scope=scope)
    with pytest.raises(InputError, match="not anchored"):
        book.check_anchored(scope, [*positions, more["cleo"]])
    anchor_epoch(book, north.ledger, node, scope=scope)
    book.check_anchored(scope, [*positions, more["cleo"]])


def test_a_subject_is_one_subject_however_its_name_is_spelled(
    book: ConsentBook, consortium: Consortium
) -> None:
    scope, composed, decomposed = "named-study", "Jos\u00e9", "Jose\u0301"
    positions = record(book, consortium, [decomposed], scope=scope)
    assert book.receipt(f" {composed} ", scope=scope).position == positions[decomposed]
    for subjects in ([composed], ["new", composed], ["x", " x"], ["new", "\ud800"], ["new", " "], ["a\x1bb"]):
        with pytest.raises(InputError):
            record(book, consortium, subjects, scope=scope)
    book.withdraw(composed, scope=scope)
    status, live, _ = book.status(scope, 1, now=1)
    assert not live and not status.consenting().any()


def test_two_that_record_at_once_give_every_subject_a_position_of_its_own(
    book: ConsentBook, consortium: Consortium
) -> None:
    other = ConsentBook(book._path, steward=NORTH, pseudonym_key=b"\x07" * 32)
    with ThreadPoolExecutor(2) as both:
        parts = [
            both.submit(record, one, consortium, [f"{n}-{i}" for i in range(30)], scope="busy-study")
            for n, one in enumerate((book, other))
        ]
        given_ = [position for part in parts for position in part.result().values()]
    assert sorted(given_) == list(range(60))


def test_chain_linkability_neither_subjects_nor_pseudonyms_reach_the_ledger_or_the_status_record(
    book: ConsentBook, consortium: Consortium
) -> None:
    node = Kept()
    record(book, consortium, ["patient-x"], scope=OTHER)
    anchor_epoch(book, consortium["north"].ledger, node, scope=OTHER)
    pseudonym = book.receipt("patient-x", scope=OTHER).pseudonym
    told = repr(consortium.events()) + repr(node.records)
    assert "patient-x" not in told
    assert repr(pseudonym)[2:-1] not in told
    assert pseudonym.hex() not in told


def test_a_book_that_is_no_database_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "consent.db"
    path.write_bytes(b"not a database, but somebody's only copy" * 100)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ConsentBook(path, steward=NORTH, pseudonym_key=b"k")
    assert path.read_bytes().startswith(b"not a database")
