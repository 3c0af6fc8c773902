"""The steward's side of step 5: its receipts, who has which position, and the epochs that it makes of them."""

from __future__ import annotations

import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from usufruct.consent import (
    MAX_STATUS_BITS,
    ConsentReceipt,
    ConsentStatus,
    cohort_floor,
    leaves_of,
    merkle_levels,
    pseudonym_of,
    sign_receipt,
)
from usufruct.content import Cid, Codec, dag
from usufruct.content.node import NodeContent
from usufruct.errors import BlockNotFoundError, ConfigurationError, InputError, StaleConsentBookError
from usufruct.ledger import Ledger
from usufruct.records import ConsentEpoch, OrgId, label, unlabel

_RECEIPT = """
    scope TEXT NOT NULL,
    position INTEGER NOT NULL,
    subject TEXT NOT NULL,
    salt BLOB NOT NULL,
    pseudonym BLOB NOT NULL,
    notice_digest BLOB NOT NULL,
    given_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    signature BLOB NOT NULL,
    withdrawn_at INTEGER,
    number INTEGER NOT NULL"""
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS receipt ({_RECEIPT},"
    " PRIMARY KEY (scope, position), UNIQUE (scope, subject)) WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS former_receipt ({_RECEIPT},"
    " PRIMARY KEY (scope, position, given_at, salt)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS anchored (scope TEXT NOT NULL, epoch INTEGER NOT NULL, status_digest BLOB NOT NULL,"
    " consent_root BLOB NOT NULL, newest INTEGER, PRIMARY KEY (scope, epoch, status_digest, consent_root)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS taken (scope TEXT NOT NULL PRIMARY KEY, positions INTEGER NOT NULL) WITHOUT ROWID",
)
_COLUMNS = "scope, position, salt, pseudonym, notice_digest, given_at, expires_at, signature, withdrawn_at"


def subject_name(given: str) -> str:
    """A subject's name in the one spelling that the book knows it by: Unicode's composed form (NFC), no space around it.

    Raises
    ------
    InputError
        If it is empty or has characters that do not print.
    """
    name = unicodedata.normalize("NFC", given).strip()
    if not name or not name.isprintable():
        raise InputError(f"{given!r} is no subject's name", hint="printable characters, at least one")
    return name


class ConsentBook:
    """A steward's receipts, in one SQLite file of mode 0600."""

    def __init__(self, path: Path, *, steward: OrgId, pseudonym_key: bytes) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._steward = steward
        self._key = pseudonym_key
        with self._transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)

    def record(
        self,
        subjects: Sequence[str],
        *,
        scope: str,
        notice: bytes,
        expires_at: int,
        ledger: Ledger,
        signing_key: bytes,
    ) -> dict[str, int]:
        """Write and sign one receipt per subject; returns subject -> position in the status bitstring.

        Positions are drawn in random order, so that they say nothing about the order of `subjects`. Who withdrew, or whose
        consent has expired, may consent again and keeps the position; the former receipt is kept beside the new one.

        Raises
        ------
        InputError
            If a subject is repeated or has a receipt in force; nothing was written.
        StaleConsentBookError
            If the epoch in force was not made of this book: its positions may be others' already.
        """
        named = {subject: subject_name(subject) for subject in subjects}
        if not named:
            raise InputError("no subject is named")
        if len(set(named.values())) != len(subjects):
            raise InputError("a subject is listed twice")
        self.check_made(scope, ledger.consent_epoch(self._steward, label(scope)))
        now = int(time.time())
        order = list(named.items())
        secrets.SystemRandom().shuffle(order)
        positions: dict[str, int] = {}
        with self._transaction() as db:
            free = _positions(db, scope)
            for number, (given, subject) in enumerate(order, _newest(db) + 1):
                former = self._superseded(db, subject, scope, now)
                position = free if former is None else former
                free += former is None
                if position >= MAX_STATUS_BITS:
                    raise InputError(f"a purpose has room for {MAX_STATUS_BITS} subjects")
                receipt = ConsentReceipt(
                    scope=scope,
                    position=position,
                    salt=secrets.token_bytes(32),
                    pseudonym=pseudonym_of(self._key, subject, self._steward, scope),
                    notice_digest=Cid.of(notice).digest,
                    given_at=now,
                    expires_at=expires_at,
                    signature=b"",
                )
                signature = sign_receipt(receipt, self._steward, ledger, signing_key=signing_key)
                _insert(db, subject, number, replace(receipt, signature=signature))
                positions[given] = position
        return positions

    @staticmethod
    def _superseded(db: sqlite3.Connection, subject: str, scope: str, now: int) -> int | None:
        """Put a subject's former receipt aside; its position, or None when there was none."""
        row = db.execute(
            "SELECT position, expires_at, withdrawn_at FROM receipt WHERE scope = ? AND subject = ?",
            (scope, subject),
        ).fetchone()
        if row is None:
            return None
        position, expires_at, withdrawn_at = row
        if withdrawn_at is None and expires_at > now:
            raise InputError(f"subject {subject!r} has a receipt for {scope!r} already")
        db.execute(
            "INSERT INTO former_receipt SELECT * FROM receipt WHERE scope = ? AND position = ?",
            (scope, position),
        )
        db.execute("DELETE FROM receipt WHERE scope = ? AND position = ?", (scope, position))
        return int(position)

    def withdraw(self, subject: str, *, scope: str) -> None:
        """Note a withdrawal; it takes effect with the next epoch. Noting it again changes nothing.

        Raises
        ------
        InputError
            If the subject never consented.
        """
        name = subject_name(subject)
        with self._transaction() as db:
            known = db.execute(
                "UPDATE receipt SET withdrawn_at = coalesce(withdrawn_at, ?) WHERE scope = ? AND subject = ?",
                (int(time.time()), scope, name),
            ).rowcount
        if known != 1:
            raise InputError(f"subject {subject!r} has no receipt for {scope!r}")

    def receipt(self, subject: str, *, scope: str) -> ConsentReceipt:
        """A subject's receipt: what it agreed to, and when it withdrew.

        Raises
        ------
        InputError
        """
        name = subject_name(subject)
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM receipt WHERE scope = ? AND subject = ?",  # noqa: S608
                (scope, name),
            ).fetchone()
        if row is None:
            raise InputError(f"subject {subject!r} has no receipt for {scope!r}")
        return _receipt(row)

    def subjects(self, scope: str) -> list[tuple[str, ConsentReceipt]]:
        """Every subject of a purpose with its newest receipt, by position."""
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT subject, {_COLUMNS} FROM receipt WHERE scope = ? ORDER BY position",  # noqa: S608
                (scope,),
            ).fetchall()
        return [(row[0], _receipt(row[1:])) for row in rows]

    def status(self, scope: str, epoch: int, *, now: int) -> tuple[ConsentStatus, list[ConsentReceipt], int]:
        """Status bitstring, the receipts in force as of `now` (Unix seconds), and the number of the book's newest receipt."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM receipt WHERE scope = ?", (scope,)).fetchall()  # noqa: S608
            positions, newest = _positions(db, scope), _newest(db)
        receipts = sorted(map(_receipt, rows), key=attrgetter("position"))
        live = [r for r in receipts if r.state(now) == "in force"]
        bits = np.ones(max(8, -(-positions // 8) * 8), dtype=np.uint8)
        bits[[r.position for r in live]] = 0
        until = min((r.expires_at for r in live), default=0)
        status = ConsentStatus(scope=scope, epoch=epoch, valid_until=until, bits=np.packbits(bits).tobytes())
        return status, live, newest

    def receipts_of(self, epoch: ConsentEpoch, status: ConsentStatus) -> list[ConsentReceipt]:
        """The receipts that an epoch was made of, by position, whatever has become of their consents since.

        Parameters
        ----------
        status :
            What the epoch's status digest stands for.

        Raises
        ------
        InputError
            If the epoch was not made of this book.
        """
        with self._transaction() as db:
            made = db.execute(
                "SELECT newest FROM anchored WHERE scope = ? AND epoch = ? AND status_digest = ? AND consent_root = ?",
                (status.scope, epoch.epoch, epoch.status_digest, epoch.consent_root),
            ).fetchone()
            # Of each position the newest that there was then.
            rows = db.execute(
                f"SELECT {_COLUMNS}, max(number) FROM (SELECT * FROM receipt UNION ALL SELECT * FROM former_receipt)"  # noqa: S608
                " WHERE scope = ? AND number <= ? GROUP BY position ORDER BY position",
                (status.scope, made[0] if made else None),
            ).fetchall()
        if made is None or made[0] is None:
            raise InputError(
                f"epoch {epoch.epoch} of {status.scope!r} was not made of this consent book",
                hint="its receipts are in the copy of the book that was lost",
            )
        consenting = status.consenting()
        found = [_receipt(row[:-1]) for row in rows]
        return [
            receipt
            for receipt in found
            if receipt.position < consenting.size and consenting[receipt.position]
        ]

    def positions(self, scope: str) -> int:
        """Positions that are spoken for; the next new subject gets this one."""
        with self._transaction() as db:
            return _positions(db, scope)

    def note_epoch(
        self, scope: str, epoch: int, status_digest: bytes, root: bytes, *, newest: int | None
    ) -> None:
        """Remember that an epoch was made of this book, up to the receipt of this number; to be called before it is anchored.

        `newest` is None for an epoch that may be followed although the book did not make it.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO anchored VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET newest = coalesce(newest, excluded.newest)",
                (scope, epoch, status_digest, root, newest),
            )

    def note_positions(self, scope: str, positions: int) -> None:
        """Remember that an epoch tells of the positions below this: rows may be bound to them, and no new subject gets one."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO taken VALUES (?1, ?2) ON CONFLICT DO UPDATE SET positions = max(positions, ?2)",
                (scope, positions),
            )

    def check_anchored(self, scope: str, positions: Sequence[int]) -> None:
        """Check that an epoch was anchored that tells of these positions, so that rows may be bound to them.

        By that epoch an older copy of the book knows that it is old, and gives the positions to nobody else.

        Raises
        ------
        InputError
        """
        with self._transaction() as db:
            row = db.execute("SELECT positions FROM taken WHERE scope = ?", (scope,)).fetchone()
        if max(positions, default=-1) >= (row[0] if row else 0):
            raise InputError(
                f"consents for {scope!r} were recorded and are not anchored yet",
                hint="`usufruct consent anchor` first, then publish",
            )

    def check_made(self, scope: str, epoch: ConsentEpoch) -> None:
        """Check that the epoch in force, if there is one, was made of this book; an older copy of it does not know it.

        Raises
        ------
        StaleConsentBookError
        """
        if epoch.epoch == 0:
            return
        with self._transaction() as db:
            found = db.execute(
                "SELECT 1 FROM anchored WHERE scope = ? AND epoch = ? AND status_digest = ?",
                (scope, epoch.epoch, epoch.status_digest),
            ).fetchone()
        if found is None:
            raise StaleConsentBookError(epoch.epoch)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = FULL")
                db.execute("BEGIN IMMEDIATE")
                with db:
                    yield db
        except sqlite3.Error as exc:
            raise ConfigurationError(f"the consent book {self._path} cannot be used: {exc}") from exc


def anchor_epoch(
    book: ConsentBook,
    ledger: Ledger,
    node: NodeContent,
    *,
    scope: str,
    supersede: int | None = None,
    taken: int = 0,
) -> ConsentEpoch:
    """Publish the status bitstring and anchor the next epoch; returns the epoch in force.

    Anchors nothing when the epoch in force says the same already, so that an interrupted call may be repeated.

    Parameters
    ----------
    supersede :
        Epoch in force that may be followed although the book did not make it.
    taken :
        With `supersede`: rows are published under positions below this, whoever the book has there.

    Raises
    ------
    StaleConsentBookError
        If the epoch in force was not made of this book: withdrawals in it would be undone.
    InputError
        If the book has no receipt for the purpose.
    """
    steward = ledger.organisation_of(ledger.address)
    current = ledger.consent_epoch(steward, label(scope))
    if supersede is not None and supersede == current.epoch:
        book.note_positions(scope, max(taken, _positions_in(current, steward, node)))
        book.note_epoch(scope, current.epoch, current.status_digest, current.consent_root, newest=None)
    book.check_made(scope, current)
    if not current.epoch and not book.positions(scope):
        raise InputError(f"no consent for {scope!r} was ever recorded", hint="is the purpose spelled right?")
    # Without empty blocks the chain's time stands still, and consents expire all the same.
    now = max(int(time.time()), ledger.finalised().timestamp)
    positions = book.positions(scope)
    status, live, newest = book.status(scope, current.epoch, now=now)
    root = merkle_levels(leaves_of(live, steward, ledger))[-1][0]
    unchanged = dag.cid_of(status.to_record()).digest == current.status_digest
    if current.epoch and unchanged and root == current.consent_root:
        # A restored book may have come to say what its lost self anchored.
        book.note_epoch(scope, current.epoch, current.status_digest, root, newest=newest)
        book.note_positions(scope, positions)
        return current
    epoch = current.epoch + 1
    cid = node.put_record("status", replace(status, epoch=epoch).to_record())
    book.note_epoch(scope, epoch, cid.digest, root, newest=newest)
    ledger.transact(
        "ConsentRegistry",
        "anchorEpoch",
        label(scope),
        epoch,
        root,
        cid.digest,
        cohort_floor(len(live)),
    )
    book.note_positions(scope, positions)
    return ledger.consent_epoch(steward, label(scope))


def _positions_in(epoch: ConsentEpoch, steward: OrgId, node: NodeContent) -> int:
    """Positions of an epoch's bitstring; 0 when the own node has lost its block."""
    cid = Cid.from_digest(epoch.status_digest, Codec.DAG_CBOR)
    try:
        return 8 * len(ConsentStatus.from_record(node.get_record(cid, holder=unlabel(steward))).bits)
    except BlockNotFoundError:
        return 0


def _positions(db: sqlite3.Connection, scope: str) -> int:
    """Positions that are spoken for: of the book's receipts, and of those that an older copy of it does not know."""
    (positions,) = db.execute(
        "SELECT max(coalesce((SELECT max(position) + 1 FROM receipt WHERE scope = ?1), 0),"
        " coalesce((SELECT positions FROM taken WHERE scope = ?1), 0))",
        (scope,),
    ).fetchone()
    return int(positions)


def _newest(db: sqlite3.Connection) -> int:
    """Number of the newest receipt; they are counted through all purposes, and none is ever deleted."""
    (number,) = db.execute(
        "SELECT coalesce(max(number), 0) FROM (SELECT number FROM receipt UNION ALL SELECT number FROM former_receipt)"
    ).fetchone()
    return int(number)


def _insert(db: sqlite3.Connection, subject: str, number: int, receipt: ConsentReceipt) -> None:
    values = {name: getattr(receipt, name) for name in _COLUMNS.split(", ")}
    values |= {"subject": subject, "number": number}
    marks = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT INTO receipt ({', '.join(values)}) VALUES ({marks})", values)  # noqa: S608


def _receipt(row: Sequence[Any]) -> ConsentReceipt:
    return ConsentReceipt(**dict(zip(_COLUMNS.split(", "), row, strict=True)))
