"""What members state about copies of a bundle: proofs that they hold it, whom a steward leaves out, and that they erased it.

Every statement is signed by the node account that the registry names (EIP-712, domain: chain and `LineageRegistry`), so it can
be checked by whoever is shown it. Checks raise; nothing here stores, sends or fetches.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from usufruct.content import MAX_BLOCK_BYTES, Cid, dag
from usufruct.errors import InputError, ManifestError, StorageProofError, VerificationError
from usufruct.ledger import Network, typed_data
from usufruct.records import ArtifactId, OrgId, Participant, unlabel

MAX_SEGMENTS = 32
MAX_SEGMENT_BYTES = 16 * 1024
MAX_LEFT_OUT = 64
_CONTRACT = "LineageRegistry"
_SIGNATURE_BYTES = 65


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes `offset` to `offset + length` of one block."""

    cid: Cid
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MAX_SEGMENT_BYTES:
            raise InputError(f"a segment has 1 to {MAX_SEGMENT_BYTES} bytes, not {self.length}")
        if not 0 <= self.offset <= MAX_BLOCK_BYTES - self.length:
            raise InputError("a segment lies outside of any block")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageChallenge:
    """A question that only somebody with the bytes at hand can answer: a fresh nonce and random segments of a bundle."""

    artifact_id: ArtifactId
    challenger: OrgId
    nonce: bytes
    """32 random bytes, used once."""
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if len(self.artifact_id) != 32 or len(self.challenger) != 32 or len(self.nonce) != 32:
            raise InputError("a challenge's ids and nonce have 32 bytes")
        if not 1 <= len(self.segments) <= MAX_SEGMENTS:
            raise InputError(f"a challenge asks for 1 to {MAX_SEGMENTS} segments, not {len(self.segments)}")

    @property
    def segments_digest(self) -> bytes:
        """sha2-256 of the segments' DAG-CBOR."""
        return hashlib.sha256(dag.encode(self._listed())).digest()

    def to_record(self) -> dict[str, object]:
        """As it goes to the holder."""
        return {
            "artifact": self.artifact_id,
            "challenger": self.challenger,
            "nonce": self.nonce,
            "segments": self._listed(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StorageChallenge:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        _check_fields(record, {"artifact": bytes, "challenger": bytes, "nonce": bytes, "segments": list})
        if len(record["segments"]) > MAX_SEGMENTS:
            raise ManifestError("a challenge with too many segments")
        try:
            return cls(
                artifact_id=ArtifactId(record["artifact"]),
                challenger=OrgId(record["challenger"]),
                nonce=record["nonce"],
                segments=tuple(_segment(item) for item in record["segments"]),
            )
        except InputError as exc:
            raise ManifestError(str(exc)) from exc

    def _listed(self) -> list[list[object]]:
        return [[segment.cid, segment.offset, segment.length] for segment in self.segments]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageProof:
    """A holder's answer to a challenge."""

    proof: bytes
    """From `possession_proof`, 32 bytes."""
    answered_at: int
    """Unix seconds, chain time of the holder."""
    signature: bytes

    def to_record(self) -> dict[str, object]:
        """As it goes to the challenger."""
        return {"proof": self.proof, "answered_at": self.answered_at, "signature": self.signature}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> StorageProof:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        _check_fields(record, {"proof": bytes, "answered_at": int, "signature": bytes})
        _check_signed(record, "answered_at")
        if len(record["proof"]) != 32:
            raise ManifestError("a storage proof has 32 bytes")
        return cls(proof=record["proof"], answered_at=record["answered_at"], signature=record["signature"])


ReadBlock = Callable[[Cid], bytes]


def possession_proof(network: Network, holder: OrgId, challenge: StorageChallenge, read: ReadBlock) -> bytes:
    """`sha256("usufruct/possession/1", nonce, chain id, holder, artifact, then each segment: CID, offset, length, bytes)`.

    The holder's identity is inside: what one holder computed is of no use to another.

    Raises
    ------
    StorageProofError
        If a segment reaches beyond its block.
    """
    digest = hashlib.sha256(b"usufruct/possession/1" + challenge.nonce + network.chain_id.to_bytes(32, "big"))
    digest.update(holder + challenge.artifact_id)
    for segment in challenge.segments:
        data = read(segment.cid)
        if segment.offset + segment.length > len(data):
            raise StorageProofError(f"a segment reaches beyond the {len(data)} bytes of block {segment.cid}")
        digest.update(
            bytes(segment.cid) + segment.offset.to_bytes(4, "big") + segment.length.to_bytes(4, "big")
        )
        digest.update(data[segment.offset : segment.offset + segment.length])
    return digest.digest()


def prove_possession(
    network: Network,
    holder: OrgId,
    challenge: StorageChallenge,
    read: ReadBlock,
    *,
    answered_at: int,
    signing_key: bytes,
) -> StorageProof:
    """A holder's signed answer; errors as for `possession_proof`."""
    proof = possession_proof(network, holder, challenge, read)
    values = _proof_values(holder, challenge, proof, answered_at)
    signature = _sign(network, typed_data.STORAGE_PROOF, values, signing_key)
    return StorageProof(proof=proof, answered_at=answered_at, signature=signature)


def check_possession(
    network: Network, holder: Participant, challenge: StorageChallenge, answer: StorageProof, read: ReadBlock
) -> None:
    """Check an answer against the challenger's own copy.

    It shows that the holder could get at these bytes when it answered, not on whose disk they lay.

    Raises
    ------
    StorageProofError
        If the signature is not the holder's, or the answer is to another challenge or from other bytes.
    """
    values = _proof_values(holder.id, challenge, answer.proof, answer.answered_at)
    try:
        _check(network, holder, typed_data.STORAGE_PROOF, values, answer.signature)
    except VerificationError as exc:
        raise StorageProofError(f"{holder.name} did not sign this answer: {exc}") from exc
    if not hmac.compare_digest(possession_proof(network, holder.id, challenge, read), answer.proof):
        raise StorageProofError(f"the answer of {holder.name} does not follow from the bytes asked for")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementNotice:
    """A steward's word on which members it does not count as holders of a bundle for now: they failed a challenge."""

    artifact_id: ArtifactId
    sequence: int
    """The highest counts."""
    left_out: tuple[OrgId, ...]
    signature: bytes

    @classmethod
    def sign(
        cls,
        network: Network,
        artifact_id: ArtifactId,
        *,
        sequence: int,
        left_out: tuple[OrgId, ...],
        signing_key: bytes,
    ) -> PlacementNotice:
        """Make a notice."""
        values = _notice_values(artifact_id, sequence, left_out)
        signature = _sign(network, typed_data.PLACEMENT_NOTICE, values, signing_key)
        return cls(artifact_id=artifact_id, sequence=sequence, left_out=left_out, signature=signature)

    def check(self, network: Network, steward: Participant) -> None:
        """Raises VerificationError unless the steward's node signed it."""
        values = _notice_values(self.artifact_id, self.sequence, self.left_out)
        _check(network, steward, typed_data.PLACEMENT_NOTICE, values, self.signature)

    def to_record(self) -> dict[str, object]:
        """As it goes from member to member."""
        return {
            "artifact": self.artifact_id,
            "sequence": self.sequence,
            "left_out": list(self.left_out),
            "signature": self.signature,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PlacementNotice:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        _check_fields(record, {"artifact": bytes, "sequence": int, "left_out": list, "signature": bytes})
        _check_signed(record, "sequence")
        left_out = record["left_out"]
        if len(record["artifact"]) != 32 or len(left_out) > MAX_LEFT_OUT:
            raise ManifestError("a placement notice with a wrong id or too many members")
        if any(type(member) is not bytes or len(member) != 32 for member in left_out):
            raise ManifestError("a placement notice names what is no member")
        return cls(
            artifact_id=ArtifactId(record["artifact"]),
            sequence=record["sequence"],
            left_out=tuple(OrgId(member) for member in left_out),
            signature=record["signature"],
        )


class Erased(IntEnum):
    """What an erasure is of."""

    COPY = 1
    """Every ciphertext block of the bundle at this member."""
    KEY = 2
    """The secret under which the bundle was sealed, at its custodian: no copy anywhere can be opened any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureStatement:
    """A member's word that it erased a bundle's ciphertexts, or its key."""

    artifact_id: ArtifactId
    holder: OrgId
    what: Erased
    blocks: int
    """Blocks that went; 0 for a key."""
    erased_at: int
    """Unix seconds, chain time of the member."""
    signature: bytes

    @classmethod
    def sign(
        cls,
        network: Network,
        artifact_id: ArtifactId,
        holder: OrgId,
        *,
        what: Erased,
        blocks: int,
        erased_at: int,
        signing_key: bytes,
    ) -> ErasureStatement:
        """Make a statement."""
        values = _erasure_values(artifact_id, holder, what, blocks, erased_at)
        return cls(
            artifact_id=artifact_id,
            holder=holder,
            what=what,
            blocks=blocks,
            erased_at=erased_at,
            signature=_sign(network, typed_data.ERASURE, values, signing_key),
        )

    def check(self, network: Network, holder: Participant) -> None:
        """Raises VerificationError unless the node of `holder` signed it, about itself."""
        if holder.id != self.holder:
            raise VerificationError(f"{holder.name} is not {unlabel(self.holder)}, which states the erasure")
        values = _erasure_values(self.artifact_id, self.holder, self.what, self.blocks, self.erased_at)
        _check(network, holder, typed_data.ERASURE, values, self.signature)

    def to_record(self) -> dict[str, object]:
        """As it goes from member to member."""
        return {
            "artifact": self.artifact_id,
            "holder": self.holder,
            "what": int(self.what),
            "blocks": self.blocks,
            "erased_at": self.erased_at,
            "signature": self.signature,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ErasureStatement:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        fields = {"artifact": bytes, "holder": bytes, "what": int, "blocks": int, "erased_at": int}
        _check_fields(record, fields | {"signature": bytes})
        _check_signed(record, "erased_at", "blocks")
        if len(record["artifact"]) != 32 or len(record["holder"]) != 32:
            raise ManifestError("an erasure's ids have 32 bytes")
        if record["what"] not in tuple(Erased):
            raise ManifestError(f"an erasure of kind {record['what']}")
        return cls(
            artifact_id=ArtifactId(record["artifact"]),
            holder=OrgId(record["holder"]),
            what=Erased(record["what"]),
            blocks=record["blocks"],
            erased_at=record["erased_at"],
            signature=record["signature"],
        )


def _proof_values(
    holder: OrgId, challenge: StorageChallenge, proof: bytes, answered_at: int
) -> dict[str, object]:
    return {
        "artifactId": challenge.artifact_id,
        "holder": holder,
        "challenger": challenge.challenger,
        "nonce": challenge.nonce,
        "segmentsDigest": challenge.segments_digest,
        "proof": proof,
        "answeredAt": answered_at,
    }


def _notice_values(artifact_id: ArtifactId, sequence: int, left_out: tuple[OrgId, ...]) -> dict[str, object]:
    return {"artifactId": artifact_id, "sequence": sequence, "leftOut": list(left_out)}


def _erasure_values(
    artifact_id: ArtifactId, holder: OrgId, what: Erased, blocks: int, erased_at: int
) -> dict[str, object]:
    return {
        "artifactId": artifact_id,
        "holder": holder,
        "what": int(what),
        "blocks": blocks,
        "erasedAt": erased_at,
    }


def _sign(network: Network, types: dict[str, Any], values: Mapping[str, object], signing_key: bytes) -> bytes:
    contract = network.contracts[_CONTRACT]
    return typed_data.sign(signing_key, types, values, chain_id=network.chain_id, contract=contract)


def _check(
    network: Network,
    signer: Participant,
    types: dict[str, Any],
    values: Mapping[str, object],
    signature: bytes,
) -> None:
    contract = network.contracts[_CONTRACT]
    typed_data.check_signature(
        signer.node_account, signature, types, values, chain_id=network.chain_id, contract=contract
    )


def _segment(item: object) -> Segment:
    if not isinstance(item, list) or len(item) != 3:
        raise ManifestError("a segment is a CID, an offset and a length")
    cid, offset, length = item
    if not isinstance(cid, Cid) or type(offset) is not int or type(length) is not int:
        raise ManifestError("a segment is a CID, an offset and a length")
    return Segment(cid, offset, length)


def _check_fields(record: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    if set(record) != set(fields) or any(type(record[name]) is not kind for name, kind in fields.items()):
        raise ManifestError(f"not a record of {', '.join(sorted(fields))}")


def _check_signed(record: Mapping[str, Any], *numbers: str) -> None:
    if len(record["signature"]) != _SIGNATURE_BYTES or any(not 0 <= record[n] < 1 << 63 for n in numbers):
        raise ManifestError("a statement with a malformed signature or number")
