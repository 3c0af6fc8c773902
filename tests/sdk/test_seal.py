"""Sealing a matrix and reading what its manifest says."""

from dataclasses import replace

import numpy as np
import pytest

from usufruct.errors import FeatureError, ManifestError
from usufruct.features import Column, Extractor, FeatureSchema, prepare_features
from usufruct.he.bfv import SecretKey, generate_secret_key, open_coefficients
from usufruct.he.container import Form, parse
from usufruct.seal import read_sealed_manifest, seal_features

SCHEMA = FeatureSchema(
    name="gaze",
    kind="gaze",
    columns=(Column(name="x", minimum=-1.0, maximum=1.0), Column(name="y", minimum=-1.0, maximum=1.0)),
    extractor=Extractor(name="tracker", sha256="00" * 32),
    max_l2=1.5,
    scale=100,
)


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return generate_secret_key()


def matrix(n_rows: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (n_rows, 2))


def test_sealed_blocks_open_to_the_quantised_matrix_in_row_order(secret: SecretKey) -> None:
    features = prepare_features(matrix(4100), SCHEMA)
    sealed = seal_features(features, secret)
    blocks = list(sealed)
    assert sealed.n_blocks == len(blocks) == 4
    assert [(b.chunk, b.feature) for b in blocks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for block in blocks:
        assert parse(block.data, key_id=secret.key_id).form is Form.SEEDED
        rows = features.values[block.chunk * 4096 :][:4096, block.feature]
        assert open_coefficients(block.data, secret, range(len(rows))) == rows.tolist()


def test_sealed_features_are_iterated_over_once(secret: SecretKey) -> None:
    sealed = seal_features(prepare_features(matrix(3), SCHEMA), secret)
    assert len(list(sealed)) == 2
    with pytest.raises(FeatureError, match="already"):
        iter(sealed)


def test_reused_randomness_sealing_twice_gives_unrelated_blocks(secret: SecretKey) -> None:
    features = prepare_features(matrix(3), SCHEMA)
    one, other = ([parse(block.data) for block in seal_features(features, secret)] for _ in range(2))
    assert not {block.seed for block in one} & {block.seed for block in other}
    assert not any((a.c1 == b.c1).any() for a, b in zip(one, other, strict=True))


def test_manifest_says_shape_bounds_and_schema_and_comes_back(secret: SecretKey) -> None:
    sealed = seal_features(prepare_features(matrix(4100), SCHEMA), secret)
    shape, schema = read_sealed_manifest(sealed.manifest)
    assert (shape, schema) == (sealed.shape, SCHEMA)
    assert (shape.n_rows, shape.n_features, shape.n_chunks, shape.max_abs) == (4100, 2, 2, 100)
    assert shape.key_id == secret.key_id


def test_manifest_does_not_depend_on_the_values(secret: SecretKey) -> None:
    one, other = (
        seal_features(prepare_features(values, SCHEMA), secret).manifest
        for values in (matrix(9), matrix(9) / 2)
    )
    assert one == other


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"parameters_id": bytes(32)},
        {"parameters_id": "text"},
        {"key_id": b"short"},
        {"key_id": "text"},
        {"n_rows": 0},
        {"n_rows": -1},
        {"n_rows": 1.0},
        {"n_rows": True},
        {"n_rows": 1 << 40},
        {"n_features": 3},
        {"n_chunks": 2},
        {"n_chunks": True},
        {"max_abs": 99},
        {"max_l2": 1},
        {"block_order": "feature-major"},
        {"schema": None},
        {"schema": {}},
        {"schema": SCHEMA.to_dict() | {"scale": 101}},
    ],
)
def test_contradictory_or_malformed_manifests_are_refused(
    secret: SecretKey, change: dict[str, object]
) -> None:
    fragment = seal_features(prepare_features(matrix(3), SCHEMA), secret).manifest
    with pytest.raises(ManifestError):
        read_sealed_manifest(fragment | change)


def test_truncated_manifest_is_refused_whichever_field_is_gone(secret: SecretKey) -> None:
    whole = seal_features(prepare_features(matrix(3), SCHEMA), secret).manifest
    for name in whole:
        with pytest.raises(ManifestError):
            read_sealed_manifest({key: value for key, value in whole.items() if key != name})


def test_declared_range_that_cannot_fit_the_plaintext_modulus_is_refused_before_encryption(
    secret: SecretKey,
) -> None:
    fine = replace(SCHEMA, scale=1_000_000)
    with pytest.raises(FeatureError, match="max_abs is 1000000") as caught:
        seal_features(prepare_features(matrix(3), fine), secret)
    assert caught.value.hint
