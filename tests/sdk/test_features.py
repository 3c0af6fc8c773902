"""Features: what enters a bundle, and what is refused at the door."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.errors import FeatureError, FeatureRangeError, RawImageryRejectedError, UndeclaredColumnError
from usufruct.features import Column, Extractor, FeatureSchema, prepare_features

SCHEMA = FeatureSchema(
    name="faces",
    kind="descriptor",
    columns=(
        Column(name="hog.0", minimum=0.0, maximum=1.0),
        Column(name="hog.1", minimum=-2.0, maximum=0.5),
        Column(name="hog.2", minimum=0.0, maximum=1.0),
    ),
    extractor=Extractor(name="hog", sha256="ab" * 32),
    max_l2=2.0,
    scale=100,
)


def test_matrix_is_quantised_to_the_declared_scale() -> None:
    features = prepare_features(np.array([[0.125, -1.0, 1.0], [0.004, 0.25, 0.0]]), SCHEMA)
    assert features.values.tolist() == [[12, -100, 100], [0, 25, 0]]
    assert features.values.dtype == np.int32
    assert (features.n_rows, features.n_features) == (2, 3)
    with pytest.raises(ValueError, match="read-only"):
        features.values[0, 0] = 1


def test_bounds_come_from_the_schema_and_not_from_the_data() -> None:
    small = prepare_features(np.zeros((1, 3)), SCHEMA)
    large = prepare_features(np.array([[1.0, -1.0, 1.0]]), SCHEMA)
    assert (small.max_abs, small.max_l2) == (large.max_abs, large.max_l2) == (200, 201)


def test_columns_are_put_into_the_order_of_the_schema() -> None:
    rows = np.array([[0.3, 0.1, -0.2]])
    by_name = {"hog.2": rows[:, 0], "hog.0": rows[:, 1], "hog.1": rows[:, 2]}
    for features in (
        prepare_features(rows, SCHEMA, ["hog.2", "hog.0", "hog.1"]),
        prepare_features(by_name, SCHEMA),
    ):
        assert features.values.tolist() == [[10, -20, 30]]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 25, 25)),
        np.zeros((4, 25, 25, 3)),
        np.zeros((25, 3), dtype=np.uint8),
        np.zeros((25, 3), dtype=np.uint16),
        b"\xff\xd8\xff\xe0 a JPEG file",
        "face.png",
        Path("face.png"),
        memoryview(b"pixels"),
        {"hog.0": np.zeros((2, 2)), "hog.1": np.zeros(2), "hog.2": np.zeros(2)},
        {"hog.0": np.zeros(2, dtype=np.uint8), "hog.1": np.zeros(2), "hog.2": np.zeros(2)},
        {"hog.0": "face.png", "hog.1": np.zeros(2), "hog.2": np.zeros(2)},
    ],
)
def test_raw_imagery_is_refused_in_every_shape(images: object) -> None:
    with pytest.raises(RawImageryRejectedError):
        prepare_features(images, SCHEMA)  # type: ignore[arg-type]


def test_pillow_images_are_refused() -> None:
    image = pytest.importorskip("PIL.Image").new("L", (3, 3))
    with pytest.raises(RawImageryRejectedError, match="is an image"):
        prepare_features(image, SCHEMA)


@pytest.mark.parametrize(
    ("matrix", "columns"),
    [
        (np.zeros((2, 4)), None),
        (np.zeros((2, 2)), None),
        (np.zeros((2, 4)), ["hog.0", "hog.1", "hog.2", "name"]),
        (np.zeros((2, 2)), ["hog.0", "hog.1"]),
        (np.zeros((2, 3)), ["hog.0", "hog.1", "hog.1"]),
        (np.zeros((2, 4)), ["hog.0", "hog.1", "hog.2", "hog.2"]),
        ({"hog.0": np.zeros(2), "hog.1": np.zeros(2)}, None),
        ({"hog.0": np.zeros(2), "hog.1": np.zeros(2), "hog.2": np.zeros(2), "patient": np.zeros(2)}, None),
    ],
)
def test_undeclared_missing_and_repeated_columns_are_refused(
    matrix: object, columns: list[str] | None
) -> None:
    with pytest.raises(UndeclaredColumnError):
        prepare_features(matrix, SCHEMA, columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.51, -2.01, 1e300])
def test_value_that_is_not_finite_or_out_of_range_is_named_by_row_and_column_and_not_shown(
    value: float,
) -> None:
    matrix = np.zeros((5, 3))
    matrix[3, 1] = value
    with pytest.raises(FeatureRangeError, match=r"row 3, column 'hog\.1'") as caught:
        prepare_features(matrix, SCHEMA)
    assert str(value) not in str(caught.value)


def test_ends_of_a_range_belong_to_it() -> None:
    assert prepare_features(np.array([[1.0, 0.5, 0.0], [0.0, -2.0, 0.0]]), SCHEMA).n_rows == 2


def test_poisoned_bundle_row_heavier_than_the_declared_norm_is_refused() -> None:
    matrix = np.zeros((3, 3))
    matrix[2] = [0.1, -2.0, 0.1]
    with pytest.raises(FeatureRangeError, match="row 2"):
        prepare_features(matrix, SCHEMA)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((0, 3)),
        np.zeros(3),
        np.array(0.5),
        np.zeros((2, 3), dtype=bool),
        np.zeros((2, 3), dtype=complex),
        np.array([["a", "b", "c"]]),
        np.array([[None, 1, 2]], dtype=object),
        [[0.0, 0.0, 0.0]],
        None,
        {"hog.0": np.zeros(2), "hog.1": np.zeros(3), "hog.2": np.zeros(2)},
        {"hog.0": np.array(0.0), "hog.1": np.array(0.0), "hog.2": np.array(0.0)},
    ],
)
def test_what_is_not_a_numeric_matrix_is_refused(matrix: object) -> None:
    with pytest.raises(FeatureError):
        prepare_features(matrix, SCHEMA)  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [[[0, 0, 0], [1, 0, 0]], False])
def test_masked_arrays_are_refused_since_what_they_hide_would_be_sealed(masked: object) -> None:
    rows = np.ma.array([[0.5, 0.0, 0.0], [4000.0, 0.0, 0.0]], mask=masked)
    by_name = {column.name: rows[:, index] for index, column in enumerate(SCHEMA.columns)}
    for matrix in (rows, by_name):
        with pytest.raises(FeatureError, match="masked") as caught:
            prepare_features(matrix, SCHEMA)
        assert "leave the rows out" in caught.value.hint


def test_quantised_values_are_a_plain_array_whatever_kind_of_array_came() -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[0.5, 0.0, 0.0]])
    assert type(prepare_features(matrix, SCHEMA).values) is np.ndarray


def test_mapping_with_separate_column_names_is_ambiguous() -> None:
    columns = {column.name: np.zeros(1) for column in SCHEMA.columns}
    with pytest.raises(FeatureError, match="leave `columns` out"):
        prepare_features(columns, SCHEMA, ["hog.0", "hog.1", "hog.2"])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_quantised_rows_keep_to_the_bounds_that_the_schema_publishes(data: st.DataObject) -> None:
    d = data.draw(st.integers(1, 8))
    bound = data.draw(st.floats(0.01, 10))
    schema = FeatureSchema(
        name="s",
        kind="other",
        columns=tuple(Column(name=f"c{i}", minimum=-bound, maximum=bound) for i in range(d)),
        extractor=SCHEMA.extractor,
        max_l2=data.draw(st.floats(0.01, 20)),
        scale=data.draw(st.integers(1, 5000)),
    )
    row = np.array(data.draw(st.lists(st.floats(-bound, bound), min_size=d, max_size=d)))
    norm = float(np.linalg.norm(row))
    if norm > schema.max_l2:
        row *= schema.max_l2 / norm
    features = prepare_features(row.reshape(1, -1), schema)
    integers = [int(v) for v in features.values[0]]
    assert max(map(abs, integers)) <= features.max_abs
    assert sum(v * v for v in integers) <= features.max_l2**2
    assert all(abs(v - x * schema.scale) <= 0.5 + 1e-9 for v, x in zip(integers, row, strict=True))


def test_schema_comes_back_from_its_plain_form() -> None:
    assert FeatureSchema.from_dict(SCHEMA.to_dict()) == SCHEMA


@pytest.mark.parametrize(
    "change",
    [
        {"note": "x"},
        {"name": ""},
        {"name": "a b"},
        {"name": "ключ"},
        {"name": 3},
        {"kind": "image"},
        {"kind": ["gaze"]},
        {"columns": []},
        {"columns": "abc"},
        {"columns": [{"name": "a", "minimum": 0.0}]},
        {"columns": [{"name": "a", "minimum": 0.0, "maximum": 1.0, "unit": "m"}]},
        {"columns": [{"name": "a", "minimum": 0, "maximum": 1}]},
        {"columns": [{"name": "a", "minimum": 1.0, "maximum": 0.0}]},
        {"columns": [{"name": "a", "minimum": 0.0, "maximum": float("nan")}]},
        {"columns": [{"name": "a", "minimum": 0.0, "maximum": float("inf")}]},
        {"columns": [{"name": "a", "minimum": 0.0, "maximum": 1.0}] * 2},
        {"columns": [{"name": "a", "minimum": 0.0, "maximum": 1e9}]},
        {"extractor": None},
        {"extractor": {"name": "x", "sha256": "AB" * 32}},
        {"extractor": {"name": "x", "sha256": "ab" * 31}},
        {"max_l2": 0.0},
        {"max_l2": float("nan")},
        {"max_l2": 1},
        {"scale": 0},
        {"scale": 1.5},
        {"scale": True},
        {"scale": 1 << 40},
    ],
)
def test_malformed_schemas_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(FeatureError):
        FeatureSchema.from_dict(SCHEMA.to_dict() | change)


def test_schema_lacking_a_field_is_refused() -> None:
    for name in SCHEMA.to_dict():
        fields = SCHEMA.to_dict()
        del fields[name]
        with pytest.raises(FeatureError):
            FeatureSchema.from_dict(fields)


def test_columns_of_width_zero_still_have_a_positive_bound() -> None:
    flat = replace(SCHEMA, columns=(Column(name="a", minimum=0.0, maximum=0.0),))
    assert (flat.max_abs, flat.max_l2_quantised >= 1) == (1, True)
