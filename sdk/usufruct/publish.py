"""Step 3, publish: ciphertext blocks and the manifest that links them go to the organisation's node.

Takes sealed features only; plaintext has no way in. The manifest's CID identifies the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec
from usufruct.errors import InputError, ManifestError
from usufruct.features import FeatureSchema
from usufruct.he.container import Form
from usufruct.he.kernels import BundleShape
from usufruct.records import label
from usufruct.rounds import Call, Contributed, RoundTerms, call_digest
from usufruct.seal import SealedFeatures, read_sealed_manifest

BUNDLE_TYPE = "usufruct/bundle/1"
ROUND_TYPE = "usufruct/round/1"
MAX_SUBJECTS = 1 << 24
_SUBJECT = np.dtype("<u4")
_LINK_BYTES = 42
_SIGNATURE_BYTES = 65
_ROOM_BYTES = MAX_BLOCK_BYTES - (256 << 10)
"""A manifest is one block; the rest is for schema and framing."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Destination(Protocol):
    """What a bundle is handed to: the organisation's node (`NodeContent`), or a file that is carried to it."""

    def stage(self, blocks: Iterable[bytes]) -> Iterator[Cid]:
        """Take ciphertext blocks; yields their CIDs in order."""

    def put_record(self, kind: str, record: object) -> Cid:
        """Take the record that links them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Who contributed the columns of a bundle, and their word for it."""

    steward: str
    """Who called."""

    call: bytes
    """Digest of the call that they answered, 32 bytes: it follows from purpose, terms, steward and key."""

    signatures: tuple[bytes, ...]
    """Of the members that the schema's columns name, in order; over call, member and blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleManifest:
    """A bundle's manifest, parsed strictly."""

    shape: BundleShape
    schema: FeatureSchema
    scope: str
    """Label of the purpose whose consent series governs the rows, or contributions."""
    subjects: npt.NDArray[np.int64]
    """Shape (n_rows,): for each row the subject's position in the consent status bitstring. Of a round, for each column."""
    blocks: tuple[Cid, ...]
    """Ciphertext blocks, chunk-major: block of (chunk, feature) at chunk * n_features + feature."""
    round: Round | None = None
    """What is known of the contributions, where several members made the columns; else None."""

    @property
    def max_items_per_subject(self) -> int:
        """Most rows, or contributions, of one subject; scales the sensitivity of every release."""
        return int(np.unique(self.subjects, return_counts=True)[1].max())

    @property
    def n_subjects(self) -> int:
        """How many subjects, or members, have rows, or columns."""
        return len(np.unique(self.subjects))

    @property
    def of_contributions(self) -> bool:
        """Whether several members made the columns; only kernels that say the same of themselves take such a bundle."""
        return self.round is not None

    @property
    def block_form(self) -> Form:
        """Form of the ciphertexts: a steward's carry seeds, contributions do not."""
        return Form.CIPHERTEXT if self.of_contributions else Form.SEEDED

    def blocks_of(self, feature: int) -> tuple[Cid, ...]:
        """CIDs of one column's blocks, in the order of chunks."""
        return self.blocks[feature :: self.shape.n_features]

    def block_of(self, chunk: int, feature: int) -> Cid:
        """CID of one column's block."""
        return self.blocks[chunk * self.shape.n_features + feature]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedBundle:
    """What publishing leaves behind; `register_bundle` takes it."""

    cid: Cid
    manifest: BundleManifest
    size_bytes: int


def publish_bundle(
    sealed: SealedFeatures,
    node: Destination,
    *,
    scope: str,
    row_subjects: Sequence[int],
    progress: Progress | None = None,
) -> PublishedBundle:
    """Hand a sealed bundle to the organisation's node.

    Parameters
    ----------
    sealed :
        From `seal_features`; consumed.
    row_subjects :
        Length n_rows: position of each row's subject in the status bitstring of `scope`.

    Raises
    ------
    InputError
        If `row_subjects` does not fit; nothing was sent.
    StoreFullError, NodeUnreachableError
    """
    if len(row_subjects) != sealed.shape.n_rows:
        raise InputError(f"{len(row_subjects)} subjects for {sealed.shape.n_rows} rows")
    _check_positions(row_subjects)
    needed = len(row_subjects) * _SUBJECT.itemsize + sealed.n_blocks * _LINK_BYTES
    if needed > _ROOM_BYTES:
        raise InputError(
            f"{sealed.shape.n_rows} rows in {sealed.n_blocks} blocks do not fit one manifest",
            hint="publish the rows as several bundles",
        )
    size = 0

    def blocks() -> Iterator[bytes]:
        nonlocal size
        for done, block in enumerate(sealed, start=1):
            size += len(block.data)
            yield block.data
            if progress:
                progress(done, sealed.n_blocks)

    cids = list(node.stage(blocks()))
    record = manifest_record(sealed.manifest, scope=scope, row_subjects=row_subjects, blocks=cids)
    manifest = read_manifest(record)
    cid = node.put_record("bundle", record)
    return PublishedBundle(cid=cid, manifest=manifest, size_bytes=size)


def publish_round(
    call: Call, contributions: Sequence[Contributed], node: Destination, *, positions: Sequence[int]
) -> PublishedBundle:
    """Hand the contributions of a round to the organisation's node, as one bundle.

    Parameters
    ----------
    contributions :
        Checked, from `usufruct.rounds.gather`; a column each.
    positions :
        Of each member in the status bitstring of the call's purpose.

    Raises
    ------
    InputError
        If there are no contributions, or the positions do not fit; nothing was sent.
    StoreFullError, NodeUnreachableError
    """
    if not contributions or len(set(positions)) != len(contributions):
        raise InputError(f"{len(set(positions))} positions for {len(contributions)} contributions")
    _check_positions(positions)
    shape = call.terms.shape(len(contributions))
    blocks = [one.blocks[chunk] for chunk in range(shape.n_chunks) for one in contributions]
    if len(blocks) * _LINK_BYTES > _ROOM_BYTES:
        raise InputError(f"{len(blocks)} blocks do not fit one manifest")
    cids = list(node.stage(blocks))
    record = {
        "type": ROUND_TYPE,
        "steward": call.steward,
        "terms": call.terms.to_dict(),
        "key_digest": call.key_digest,
        "members": [one.member for one in contributions],
        "signatures": [one.signature for one in contributions],
        "scope": call.scope,
        "subjects": np.asarray(positions, dtype=_SUBJECT).tobytes(),
        "blocks": cids,
    }
    manifest = read_manifest(record)
    cid = node.put_record("bundle", record)
    return PublishedBundle(cid=cid, manifest=manifest, size_bytes=sum(map(len, blocks)))


def manifest_record(
    sealed: Mapping[str, object], *, scope: str, row_subjects: Sequence[int], blocks: Sequence[Cid]
) -> dict[str, object]:
    """The record whose DAG-CBOR block is a bundle's manifest; positions as little-endian 32-bit words."""
    return {
        "type": BUNDLE_TYPE,
        "sealed": sealed,
        "scope": scope,
        "subjects": np.asarray(row_subjects, dtype=_SUBJECT).tobytes(),
        "blocks": list(blocks),
    }


def read_manifest(record: Mapping[str, object]) -> BundleManifest:
    """Parse a bundle manifest strictly: of one steward's rows, or of a round.

    Raises
    ------
    ManifestError
        If a field is missing, unknown, of another type, or does not fit the shape.
    """
    if record.get("type") == ROUND_TYPE:
        return _read_round(record)
    if record.get("type") != BUNDLE_TYPE:
        raise ManifestError(f"not a bundle manifest: type {record.get('type')!r}")
    if set(record) != {"type", "sealed", "scope", "subjects", "blocks"}:
        raise ManifestError(f"bundle manifest with fields {sorted(record)}")
    sealed, scope = record["sealed"], record["scope"]
    if not isinstance(sealed, Mapping) or not isinstance(scope, str):
        raise ManifestError("bundle manifest: `sealed` is no map or `scope` no text")
    shape, schema = read_sealed_manifest(sealed)
    return BundleManifest(
        shape=shape,
        schema=schema,
        scope=scope,
        subjects=_read_subjects(record["subjects"], shape.n_rows),
        blocks=_read_blocks(record["blocks"], shape),
    )


def _read_round(record: Mapping[str, object]) -> BundleManifest:
    fields = {
        *("type", "steward", "terms", "key_digest", "members", "signatures", "scope", "subjects", "blocks")
    }
    if set(record) != fields:
        raise ManifestError(f"a round's manifest with fields {sorted(record)}")
    members, signatures, scope = (record[k] for k in ("members", "signatures", "scope"))
    steward, key = record["steward"], record["key_digest"]
    if not isinstance(key, bytes) or len(key) != 32:
        raise ManifestError("a round's manifest: `key_digest` is no digest")
    if not isinstance(scope, str) or not isinstance(steward, str):
        raise ManifestError("a round's manifest: `scope` or `steward` is no text")
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        raise ManifestError("a round's manifest: `members` is no list of names")
    words = [word for word in signatures if isinstance(word, bytes)] if isinstance(signatures, list) else []
    if not 0 < len(members) == len(words) or any(len(word) != _SIGNATURE_BYTES for word in words):
        raise ManifestError("a round's manifest: `signatures` does not hold one of each member")
    terms = RoundTerms.from_dict(record["terms"])
    try:
        for member in members:
            label(member)
        shape, schema = terms.shape(len(members)), terms.schema(members)
    except InputError as exc:
        raise ManifestError(f"a round's manifest: {exc}") from exc
    subjects = _read_subjects(record["subjects"], len(members))
    if len(np.unique(subjects)) != len(members):
        raise ManifestError("a round's manifest: two contributions are of one subject")
    return BundleManifest(
        shape=shape,
        schema=schema,
        scope=scope,
        subjects=subjects,
        blocks=_read_blocks(record["blocks"], shape),
        round=Round(
            steward=steward,
            call=call_digest(steward=steward, scope=scope, terms=terms, key_digest=key),
            signatures=tuple(words),
        ),
    )


def _check_positions(subjects: Sequence[int]) -> None:
    found = np.asarray(subjects)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= MAX_SUBJECTS:
        raise InputError(f"a subject's position is not a whole number from 0 to {MAX_SUBJECTS - 1}")


def _read_subjects(told: object, count: int) -> npt.NDArray[np.int64]:
    if not isinstance(told, bytes) or len(told) != count * _SUBJECT.itemsize:
        raise ManifestError(f"bundle manifest: `subjects` does not hold {count} positions")
    subjects = np.frombuffer(told, _SUBJECT).astype(np.int64)
    if (subjects >= MAX_SUBJECTS).any():
        raise ManifestError("bundle manifest: a subject's position is out of range")
    return subjects


def _read_blocks(blocks: object, shape: BundleShape) -> tuple[Cid, ...]:
    if not isinstance(blocks, list) or len(blocks) != shape.n_chunks * shape.n_features:
        raise ManifestError(
            f"bundle manifest: `blocks` does not list {shape.n_chunks * shape.n_features} blocks"
        )
    if any(not isinstance(cid, Cid) or cid.codec != Codec.RAW for cid in blocks):
        raise ManifestError("bundle manifest: a block is no raw CID")
    return tuple(blocks)
