"""Step 3, publish: ciphertext blocks and the manifest that links them go to the organisation's node.

Takes sealed features only; plaintext has no way in. The manifest's CID identifies the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from usufruct.content import Cid, Codec
from usufruct.content.node import NodeContent
from usufruct.errors import InputError, ManifestError
from usufruct.features import FeatureSchema
from usufruct.he.kernels import BundleShape
from usufruct.seal import SealedFeatures, read_sealed_manifest

BUNDLE_TYPE = "usufruct/bundle/1"
MAX_SUBJECTS = 1 << 24

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


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
    node: NodeContent,
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
    size = 0

    def blocks() -> Iterator[bytes]:
        nonlocal size
        for done, block in enumerate(sealed, start=1):
            size += len(block.data)
            yield block.data
            if progress:
                progress(done, sealed.n_blocks)

    cids = list(node.stage(blocks()))
    record: dict[str, object] = {
        "type": BUNDLE_TYPE,
        "sealed": sealed.manifest,
        "scope": scope,
        "subjects": [int(index) for index in row_subjects],
        "blocks": cids,
    }
    manifest = read_manifest(record)
    cid = node.put_record("bundle", record)
    return PublishedBundle(cid=cid, manifest=manifest, size_bytes=size)


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
    if not isinstance(subjects, list) or len(subjects) != shape.n_rows:
        raise ManifestError(f"bundle manifest: `subjects` does not list {shape.n_rows} rows")
    if any(type(i) is not int or not 0 <= i < MAX_SUBJECTS for i in subjects):
        raise ManifestError("bundle manifest: a subject's position is no integer in range")
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
        row_subjects=np.array(subjects, dtype=np.int64),
        blocks=tuple(blocks),
    )
