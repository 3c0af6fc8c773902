"""Step 3: what goes to the node, and how strictly a manifest that somebody else wrote is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle_fixture import ROWS, SCHEMA, SCOPE, SmallBundle
from usufruct.content import Cid, Codec, dag
from usufruct.errors import InputError, ManifestError
from usufruct.features import prepare_features
from usufruct.publish import MAX_SUBJECTS, publish_bundle, read_manifest
from usufruct.seal import seal_features


class Kept:
    """Stands where the organisation's node stands: keeps what it is given."""

    def __init__(self) -> None:
        self.staged: list[bytes] = []
        self.records: list[tuple[str, object]] = []

    def stage(self, blocks: Iterable[bytes]) -> Iterator[Cid]:
        for block in blocks:
            self.staged.append(block)
            yield Cid.of(block, Codec.RAW)

    def put_record(self, kind: str, record: object) -> Cid:
        self.records.append((kind, record))
        return dag.cid_of(record)


def test_published_manifest_names_every_block_and_its_cid_is_the_bundles(bundle: SmallBundle) -> None:
    node, seen = Kept(), []
    sealed = seal_features(bundle.features, bundle.secret)
    published = publish_bundle(
        sealed, node, scope=SCOPE, row_subjects=range(ROWS), progress=lambda *step: seen.append(step)
    )
    assert [kind for kind, _ in node.records] == ["bundle"]
    assert published.cid == dag.cid_of(node.records[0][1])
    assert published.manifest.blocks == tuple(Cid.of(block, Codec.RAW) for block in node.staged)
    assert published.size_bytes == sum(map(len, node.staged))
    assert seen == [(1, 2), (2, 2)]
    assert read_manifest(dag.decode_map(dag.encode(node.records[0][1]))).blocks == published.manifest.blocks
    assert published.manifest.block_of(0, 1) == published.manifest.blocks[1]


@pytest.mark.parametrize(
    "subjects",
    [
        range(ROWS - 1),
        range(ROWS + 1),
        [],
        *([*range(ROWS - 1), wrong] for wrong in (-1, MAX_SUBJECTS, 1 << 70, 0.5, 1.0, "1")),
    ],
)
def test_subjects_that_do_not_fit_the_rows_are_refused_before_anything_is_sent(
    bundle: SmallBundle, subjects: Iterable[int]
) -> None:
    """Half a position was rounded down: the row became another subject's."""
    node = Kept()
    with pytest.raises(InputError):
        publish_bundle(
            seal_features(bundle.features, bundle.secret), node, scope=SCOPE, row_subjects=list(subjects)
        )
    assert not node.staged
    assert not node.records


def test_a_subject_with_many_rows_raises_the_sensitivity_of_every_release(bundle: SmallBundle) -> None:
    rows = prepare_features(np.zeros((6, 2)), SCHEMA)
    node = Kept()
    published = publish_bundle(
        seal_features(rows, bundle.secret), node, scope=SCOPE, row_subjects=[0, 1, 1, 1, 2, 2]
    )
    assert published.manifest.max_items_per_subject == 3
    ((_, many),) = bundle.parameters().sensitivities(published.manifest)
    ((_, one),) = bundle.parameters().sensitivities(bundle.manifest)
    assert many == 3 * one


CID = Cid.of(b"x", Codec.RAW)
RECORD_CID = Cid.of(b"x", Codec.DAG_CBOR)


@pytest.mark.parametrize("field", ["type", "sealed", "scope", "subjects", "blocks"])
def test_a_manifest_that_lacks_a_field_is_refused(bundle: SmallBundle, field: str) -> None:
    with pytest.raises(ManifestError):
        read_manifest({key: value for key, value in bundle.record.items() if key != field})


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"type": "usufruct/bundle/2"},
        {"type": None},
        {"sealed": []},
        {"sealed": {}},
        {"scope": b"x"},
        {"subjects": "many"},
        {"subjects": list(range(ROWS))},
        {"subjects": bytes(4 * (ROWS - 1))},
        {"subjects": bytes(4 * ROWS - 1)},
        {"subjects": bytes(4 * ROWS + 1)},
        {"subjects": bytes(4 * (ROWS - 1)) + MAX_SUBJECTS.to_bytes(4, "little")},
        {"subjects": dict.fromkeys(range(ROWS))},
        {"blocks": []},
        {"blocks": [CID]},
        {"blocks": [CID] * 3},
        {"blocks": [CID, RECORD_CID]},
        {"blocks": [CID, str(CID)]},
        {"blocks": [CID, bytes(CID)]},
    ],
    ids=lambda change: repr(change)[:50],
)
def test_a_malformed_manifest_is_refused(bundle: SmallBundle, change: dict) -> None:
    with pytest.raises(ManifestError):
        read_manifest(bundle.record | change)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_manifest_with_junk_anywhere_is_read_or_refused_but_nothing_else(
    bundle: SmallBundle, data: st.DataObject
) -> None:
    record = {**bundle.record, "sealed": dict(bundle.record["sealed"])}
    target = data.draw(st.sampled_from([record, record["sealed"]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JUNK)
    try:
        read_manifest(record)
    except ManifestError:
        return
    assert record == bundle.record or record["scope"] != bundle.record["scope"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_truncated_or_flipped_manifest_block_is_refused(bundle: SmallBundle, data: st.DataObject) -> None:
    encoded = dag.encode(bundle.record)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ManifestError):
        dag.decode_map(encoded[:cut])
    flipped = encoded[:cut] + bytes([encoded[cut] ^ data.draw(st.integers(1, 255))]) + encoded[cut + 1 :]
    assert Cid.of(flipped, Codec.DAG_CBOR) != Cid.of(encoded, Codec.DAG_CBOR)
    try:
        read_manifest(dag.decode_map(flipped))
    except ManifestError:
        return
