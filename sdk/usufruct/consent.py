"""Step 5, consent: signed receipts and pseudonyms stay with the steward; per epoch one root and one bitstring go out.

The ledger sees a Merkle root, the digest of the status bitstring and a coarse lower bound of the cohort. Withdrawal sets a
bit and anchors the next epoch.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import eth_abi.abi
import numpy as np
import numpy.typing as npt
from eth_utils.crypto import keccak

from usufruct.content import Cid
from usufruct.content.node import NodeContent
from usufruct.errors import ConfigurationError, InputError, ManifestError, VerificationError
from usufruct.ledger import Ledger, typed_data
from usufruct.records import ConsentEpoch, OrgId, label

STATUS_TYPE = "usufruct/status/1"
MAX_STATUS_BITS = 1 << 23

_SCHEMA = """
CREATE TABLE IF NOT EXISTS receipt (
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
    PRIMARY KEY (scope, position),
    UNIQUE (scope, subject)
) WITHOUT ROWID;
"""

_COLUMNS = "scope, position, salt, pseudonym, notice_digest, given_at, expires_at, signature, withdrawn_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentReceipt:
    """What a subject agreed to, signed by the steward; kept off the ledger."""

    scope: str
    position: int
    """Position in the status bitstring."""
    salt: bytes
    pseudonym: bytes
    notice_digest: bytes
    """sha2-256 of the notice that the subject was shown."""
    given_at: int
    expires_at: int
    """Unix seconds; void at and after this time."""
    signature: bytes
    """EIP-712 `ConsentReceipt`, by the steward's authority."""
    withdrawn_at: int | None

    def values(self, steward: OrgId) -> dict[str, object]:
        """The signed fields."""
        return {
            "steward": steward,
            "pseudonym": self.pseudonym,
            "scope": label(self.scope),
            "noticeDigest": self.notice_digest,
            "givenAt": self.given_at,
            "expiresAt": self.expires_at,
        }


def pseudonym_of(key: bytes, subject: str, controller: OrgId, scope: str) -> bytes:
    """Pseudonym of a subject for one controller and purpose, 32 bytes; purposes cannot be joined without `key`."""
    message = b"usufruct/pseudonym/1\0" + controller + label(scope) + subject.encode()
    return hmac.digest(key, message, "sha256")


def consent_leaf(receipt: ConsentReceipt, receipt_digest: bytes) -> bytes:
    """Salted leaf of the consent tree: double Keccak-256 of (salt, pseudonym, scope, expiry, receipt digest)."""
    words = (receipt.salt, receipt.pseudonym, label(receipt.scope), receipt.expires_at, receipt_digest)
    return bytes(
        keccak(keccak(eth_abi.abi.encode(["bytes32", "bytes32", "bytes32", "uint64", "bytes32"], words)))
    )


def merkle_levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Levels of a Merkle tree with sorted pairs (as OpenZeppelin's `MerkleProof` checks), leaves first, root last.

    A node without a sibling moves up unchanged. No leaves give the root of 32 zero bytes hashed once.
    """
    level = sorted(leaves) or [bytes(keccak(bytes(32)))]
    levels = [level]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [bytes(keccak(b"".join(sorted(pair)))) if len(pair) == 2 else pair[0] for pair in pairs]
        levels.append(level)
    return levels


def merkle_proof(levels: Sequence[Sequence[bytes]], leaf: bytes) -> list[bytes]:
    """Siblings from the leaf to the root."""
    index = levels[0].index(leaf)
    proof: list[bytes] = []
    for level in levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append(level[sibling])
        index //= 2
    return proof


def check_merkle_proof(root: bytes, leaf: bytes, proof: Sequence[bytes]) -> None:
    """Check that a leaf is under a root.

    Raises
    ------
    VerificationError
    """
    node = leaf
    for sibling in proof:
        node = bytes(keccak(b"".join(sorted((node, sibling)))))
    if node != root:
        raise VerificationError("the consent leaf is not under the anchored root")


def cohort_floor(count: int) -> int:
    """Largest step of 0, 10, 20, 50, 100, 200, 500, ... that is at most `count`: all that the ledger learns of it."""
    floor, decade = 0, 10
    while decade <= count:
        floor = max(step * decade for step in (1, 2, 5) if step * decade <= count)
        decade *= 10
    return floor


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentStatus:
    """The public status bitstring of one epoch. A set bit: no consent (withdrawn, expired or never given)."""

    scope: str
    epoch: int
    bits: bytes
    """Position i is bit 7 - i % 8 of byte i // 8, as in the W3C Bitstring Status List."""

    def to_record(self) -> dict[str, object]:
        """The record whose DAG-CBOR block is public to members."""
        return {"type": STATUS_TYPE, "scope": self.scope, "epoch": self.epoch, "bits": self.bits}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> ConsentStatus:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        if record.get("type") != STATUS_TYPE or set(record) != {"type", "scope", "epoch", "bits"}:
            raise ManifestError("not a consent status record")
        scope, epoch, bits = record["scope"], record["epoch"], record["bits"]
        if not isinstance(scope, str) or type(epoch) is not int or not isinstance(bits, bytes):
            raise ManifestError("consent status: a field has the wrong type")
        if epoch < 1 or len(bits) * 8 > MAX_STATUS_BITS:
            raise ManifestError("consent status: epoch below 1 or bitstring too long")
        return cls(scope=scope, epoch=epoch, bits=bits)

    def consenting(self) -> npt.NDArray[np.bool_]:
        """Shape (8 * len(bits),): True where consent is in force."""
        return np.logical_not(np.unpackbits(np.frombuffer(self.bits, np.uint8)))

    def row_mask(self, row_subjects: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Shape (n_rows,): True for rows whose subject consents; positions beyond the bitstring do not."""
        consenting = self.consenting()
        mask = np.zeros(row_subjects.shape, dtype=np.bool_)
        known = row_subjects < consenting.size
        mask[known] = consenting[row_subjects[known]]
        return mask


class ConsentBook:
    """A steward's receipts, in one SQLite file of mode 0600."""

    def __init__(self, path: Path, *, steward: OrgId, pseudonym_key: bytes) -> None:
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._steward = steward
        self._key = pseudonym_key
        with self._transaction() as db:
            db.executescript(_SCHEMA)

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

        Positions are drawn in random order, so that they say nothing about the order of `subjects`.

        Raises
        ------
        InputError
            If a subject is repeated or has a receipt already; nothing was written.
        """
        if len(set(subjects)) != len(subjects):
            raise InputError("a subject is listed twice")
        now = int(time.time())
        notice_digest = Cid.of(notice).digest
        order = list(subjects)
        secrets.SystemRandom().shuffle(order)
        positions: dict[str, int] = {}
        with self._transaction() as db:
            (first,) = db.execute(
                "SELECT coalesce(max(position) + 1, 0) FROM receipt WHERE scope = ?", (scope,)
            ).fetchone()
            for position, subject in enumerate(order, start=first):
                receipt = ConsentReceipt(
                    scope=scope,
                    position=position,
                    salt=secrets.token_bytes(32),
                    pseudonym=pseudonym_of(self._key, subject, self._steward, scope),
                    notice_digest=notice_digest,
                    given_at=now,
                    expires_at=expires_at,
                    signature=b"",
                    withdrawn_at=None,
                )
                signature = typed_data.sign(
                    signing_key,
                    typed_data.CONSENT_RECEIPT,
                    receipt.values(self._steward),
                    **_domain(ledger),
                )
                try:
                    db.execute(
                        "INSERT INTO receipt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                        (
                            scope,
                            position,
                            subject,
                            receipt.salt,
                            receipt.pseudonym,
                            notice_digest,
                            now,
                            expires_at,
                            signature,
                        ),
                    )
                except sqlite3.IntegrityError as exc:
                    raise InputError(f"subject {subject!r} has a receipt for {scope!r} already") from exc
                positions[subject] = position
        return positions

    def withdraw(self, subject: str, *, scope: str) -> None:
        """Note a withdrawal; it takes effect with the next epoch.

        Raises
        ------
        InputError
            If the subject has no receipt in force.
        """
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE receipt SET withdrawn_at = ? WHERE scope = ? AND subject = ? AND withdrawn_at IS NULL",
                (int(time.time()), scope, subject),
            ).rowcount
        if changed != 1:
            raise InputError(f"subject {subject!r} has no consent in force for {scope!r}")

    def receipt(self, subject: str, *, scope: str) -> ConsentReceipt:
        """A subject's receipt: what it agreed to, and when it withdrew.

        Raises
        ------
        InputError
        """
        with self._transaction() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM receipt WHERE scope = ? AND subject = ?",  # noqa: S608
                (scope, subject),
            ).fetchone()
        if row is None:
            raise InputError(f"subject {subject!r} has no receipt for {scope!r}")
        return _receipt(row)

    def receipts(self, scope: str) -> list[ConsentReceipt]:
        """Every receipt of a purpose, by position."""
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM receipt WHERE scope = ? ORDER BY position",  # noqa: S608
                (scope,),
            ).fetchall()
        return [_receipt(row) for row in rows]

    def status(self, scope: str, epoch: int, *, now: int) -> tuple[ConsentStatus, list[ConsentReceipt]]:
        """Status bitstring and the receipts in force as of `now` (Unix seconds)."""
        receipts = self.receipts(scope)
        bits = np.ones(max(8, -(-len(receipts) // 8) * 8), dtype=np.uint8)
        live = [r for r in receipts if r.withdrawn_at is None and r.expires_at > now]
        bits[[r.position for r in live]] = 0
        status = ConsentStatus(scope=scope, epoch=epoch, bits=np.packbits(bits).tobytes())
        return status, live

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as db:
                db.execute("PRAGMA synchronous = FULL")
                with db:
                    yield db
        except sqlite3.Error as exc:
            raise ConfigurationError(f"the consent book {self._path} cannot be used: {exc}") from exc


def anchor_epoch(book: ConsentBook, ledger: Ledger, node: NodeContent, *, scope: str) -> ConsentEpoch:
    """Publish the status bitstring and anchor the next epoch; returns the epoch in force."""
    steward = ledger.organisation_of(ledger.address)
    epoch = ledger.consent_epoch(steward, label(scope)).epoch + 1
    status, live = book.status(scope, epoch, now=ledger.finalised().timestamp)
    leaves = [consent_leaf(receipt, receipt_digest(receipt, steward, ledger)) for receipt in live]
    cid = node.put_record("status", status.to_record())
    ledger.transact(
        "ConsentRegistry",
        "anchorEpoch",
        label(scope),
        epoch,
        merkle_levels(leaves)[-1][0],
        cid.digest,
        cohort_floor(len(live)),
    )
    return ledger.consent_epoch(steward, label(scope))


def receipt_digest(receipt: ConsentReceipt, steward: OrgId, ledger: Ledger) -> bytes:
    """EIP-712 digest of a receipt, 32 bytes; part of its leaf."""
    return typed_data.digest(typed_data.CONSENT_RECEIPT, receipt.values(steward), **_domain(ledger))


def check_receipt(receipt: ConsentReceipt, steward: OrgId, ledger: Ledger) -> None:
    """Check that the steward's authority signed a receipt.

    Raises
    ------
    VerificationError
    """
    typed_data.check_signature(
        ledger.participant(steward).account,
        receipt.signature,
        typed_data.CONSENT_RECEIPT,
        receipt.values(steward),
        **_domain(ledger),
    )


def _receipt(row: Sequence[Any]) -> ConsentReceipt:
    return ConsentReceipt(**dict(zip(_COLUMNS.split(", "), row, strict=True)))


def _domain(ledger: Ledger) -> dict[str, Any]:
    network = ledger.network
    return {"chain_id": network.chain_id, "contract": network.contracts["ConsentRegistry"]}
