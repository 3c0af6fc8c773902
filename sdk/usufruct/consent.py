"""Step 5, consent: signed receipts and pseudonyms stay with the steward; per epoch one root and one bitstring go out.

The ledger sees a Merkle root, the digest of the status bitstring and a coarse lower bound of the cohort. Withdrawal sets a
bit and anchors the next epoch.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from eth_utils.crypto import keccak

from usufruct.errors import (
    ManifestError,
    ReleaseRefusedError,
    VerificationError,
)
from usufruct.ledger import Ledger, typed_data
from usufruct.records import OrgId, Participant, Refusal, label

STATUS_TYPE = "usufruct/status/1"
MAX_STATUS_BITS = 1 << 23


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
    withdrawn_at: int | None = None
    """When the steward noted a withdrawal; neither signed nor handed out."""

    def state(self, now: int) -> str:
        """`in force`, `withdrawn` or `expired` as of `now` (Unix seconds)."""
        if self.withdrawn_at is not None:
            return "withdrawn"
        return "in force" if self.expires_at > now else "expired"

    def values(self, steward: OrgId) -> dict[str, object]:
        """The signed fields."""
        return {
            "steward": steward,
            "position": self.position,
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
    """Salted leaf of the consent tree: double Keccak-256 of (salt, receipt digest), which covers all that was signed."""
    return bytes(keccak(keccak(receipt.salt + receipt_digest)))


def leaves_of(receipts: Iterable[ConsentReceipt], steward: OrgId, ledger: Ledger) -> list[bytes]:
    """Leaves of an epoch that is made of these receipts, in their order."""
    return [consent_leaf(receipt, receipt_digest(receipt, steward, ledger)) for receipt in receipts]


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
    valid_until: int
    """Unix seconds at which the first consent in force expires; anchor the next epoch before. 0 when none is in force."""
    bits: bytes
    """Position i is bit 7 - i % 8 of byte i // 8, as in the W3C Bitstring Status List."""

    def to_record(self) -> dict[str, object]:
        """The record whose DAG-CBOR block is public to members."""
        return {
            "type": STATUS_TYPE,
            "scope": self.scope,
            "epoch": self.epoch,
            "valid_until": self.valid_until,
            "bits": self.bits,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> ConsentStatus:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        fields = {"type", "scope", "epoch", "valid_until", "bits"}
        if record.get("type") != STATUS_TYPE or set(record) != fields:
            raise ManifestError("not a consent status record")
        scope, epoch, until, bits = (record[name] for name in ("scope", "epoch", "valid_until", "bits"))
        if not isinstance(scope, str) or not isinstance(bits, bytes):
            raise ManifestError("consent status: a field has the wrong type")
        if type(epoch) is not int or type(until) is not int:
            raise ManifestError("consent status: a field has the wrong type")
        if epoch < 1 or until < 0 or len(bits) * 8 > MAX_STATUS_BITS:
            raise ManifestError("consent status: a field is out of range")
        return cls(scope=scope, epoch=epoch, valid_until=until, bits=bits)

    def check_in_force(self, now: int) -> None:
        """Refuse an epoch in which a consent has expired since it was anchored.

        Raises
        ------
        ReleaseRefusedError
        """
        if now >= self.valid_until:
            raise ReleaseRefusedError(
                Refusal.CONSENT_EPOCH_STALE.name,
                hint="a consent has expired: the steward must anchor the next epoch (`usufruct consent anchor`)",
            )

    def consenting(self) -> npt.NDArray[np.bool_]:
        """Shape (8 * len(bits),): True where consent is in force."""
        return np.logical_not(np.unpackbits(np.frombuffer(self.bits, np.uint8)))

    def mask_of(self, subjects: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For the position of each row's, or contribution's, subject whether it consents; one beyond the bitstring does not."""
        consenting = self.consenting()
        mask = np.zeros(subjects.shape, dtype=np.bool_)
        known = subjects < consenting.size
        mask[known] = consenting[subjects[known]]
        return mask


def sign_receipt(receipt: ConsentReceipt, steward: OrgId, ledger: Ledger, *, signing_key: bytes) -> bytes:
    """The signature of a receipt by its steward's authority, whatever stands in it now."""
    return typed_data.sign(
        signing_key, typed_data.CONSENT_RECEIPT, receipt.values(steward), **_domain(ledger)
    )


def receipt_digest(receipt: ConsentReceipt, steward: OrgId, ledger: Ledger) -> bytes:
    """EIP-712 digest of a receipt, 32 bytes; part of its leaf."""
    return typed_data.digest(typed_data.CONSENT_RECEIPT, receipt.values(steward), **_domain(ledger))


def check_receipt(receipt: ConsentReceipt, steward: Participant, ledger: Ledger) -> None:
    """Check that the steward's authority signed a receipt, for the network that `ledger` is on.

    Raises
    ------
    VerificationError
    """
    typed_data.check_signature(
        steward.account,
        receipt.signature,
        typed_data.CONSENT_RECEIPT,
        receipt.values(steward.id),
        **_domain(ledger),
    )


def _domain(ledger: Ledger) -> dict[str, Any]:
    network = ledger.network
    return {"chain_id": network.chain_id, "contract": network.contracts["ConsentRegistry"]}
