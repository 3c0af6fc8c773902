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
from usufruct.he.kernels import BundleShape
from usufruct.seal import SealedFeatures, read_sealed_manifest

BUNDLE_TYPE = "usufruct/bundle/1"
MAX_SUBJECTS = 1 << 24
_SUBJECT = np.dtype("<u4")
_LINK_BYTES = 42
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
class BundleManifest:
    """A bundle's manifest, parsed strictly."""

    shape: BundleShape
    schema: FeatureSchema
    scope: str
    """Label of the purpose whose consent series governs the rows."""
    row_subjects: npt.NDArray[np.int64]
    """Shape (n_rows,): for each row the subject's position in the consent status bitstring."""
    blocks: tuple[Cid, ...]
    """Ciphertext blocks, chunk-major: block of (chunk, feature) at chunk * n_features + feature."""

    @property
    def max_rows_per_subject(self) -> int:
        """Most rows that one subject contributes; scales the sensitivity of every release."""
        return int(np.unique(self.row_subjects, return_counts=True)[1].max())

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
    if any(not 0 <= index < MAX_SUBJECTS for index in row_subjects):
        raise InputError("a subject's position is negative or too large")
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
    """Parse a bundle manifest strictly.

    Raises
    ------
    ManifestError
        If a field is missing, unknown, of another type, or does not fit the shape.
    """
    if record.get("type") != BUNDLE_TYPE:
        raise ManifestError(f"not a bundle manifest: type {record.get('type')!r}")
    if set(record) != {"type", "sealed", "scope", "subjects", "blocks"}:
        raise ManifestError(f"bundle manifest with fields {sorted(record)}")
    sealed, scope, subjects, blocks = (record[k] for k in ("sealed", "scope", "subjects", "blocks"))
    if not isinstance(sealed, Mapping) or not isinstance(scope, str):
        raise ManifestError("bundle manifest: `sealed` is no map or `scope` no text")
    shape, schema = read_sealed_manifest(sealed)
    if not isinstance(subjects, bytes) or len(subjects) != shape.n_rows * _SUBJECT.itemsize:
        raise ManifestError(f"bundle manifest: `subjects` does not hold {shape.n_rows} positions")
    row_subjects = np.frombuffer(subjects, _SUBJECT).astype(np.int64)
    if (row_subjects >= MAX_SUBJECTS).any():
        raise ManifestError("bundle manifest: a subject's position is out of range")
    if not isinstance(blocks, list) or len(blocks) != shape.n_chunks * shape.n_features:
        raise ManifestError(
            f"bundle manifest: `blocks` does not list {shape.n_chunks * shape.n_features} blocks"
        )
    if any(not isinstance(cid, Cid) or cid.codec != Codec.RAW for cid in blocks):
        raise ManifestError("bundle manifest: a block is no raw CID")
    return BundleManifest(
        shape=shape,
        schema=schema,
        scope=scope,
        row_subjects=row_subjects,
        blocks=tuple(blocks),
    )
