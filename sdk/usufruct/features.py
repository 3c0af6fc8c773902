"""Step 1, features: a typed matrix that keeps to its declared schema.

Rows are subjects' samples, columns are features. Raw imagery, undeclared columns and values outside their
declared range are refused here, before anything is encrypted; bounds that leave the organisation come from
the schema, never from the data. Reads no file and encrypts nothing. Error texts name rows and columns,
never values.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import FeatureError, FeatureRangeError, RawImageryRejectedError, UndeclaredColumnError

KINDS: Final = ("descriptor", "embedding", "gaze", "motion", "proximity", "update", "other")
MAX_COLUMNS: Final = 1 << 16
MAX_QUANTISED: Final = (1 << 23) - 1
NORM_SLACK: Final = 1e-9
"""Relative slack of the norm check, for rows that floating point normalised to exactly `max_l2`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One feature and its declared range, ends included, in natural units."""

    name: str
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        _check_name(self.name, "column name")
        for bound in (self.minimum, self.maximum):
            if type(bound) is not float or not math.isfinite(bound):
                raise FeatureError(f"column {self.name!r}: a bound is not a finite float")
        if self.minimum > self.maximum:
            raise FeatureError(
                f"column {self.name!r}: minimum {self.minimum} is above maximum {self.maximum}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor:
    """What computed the features, so that bundles of different extractors are not mixed."""

    name: str

    sha256: str
    """64 hex digits: digest of the extractor's code or configuration."""

    def __post_init__(self) -> None:
        _check_name(self.name, "extractor name")
        if type(self.sha256) is not str or not _DIGEST.fullmatch(self.sha256):
            raise FeatureError("the extractor's sha256 has to be 64 lower-case hex digits")

    def to_dict(self) -> dict[str, object]:
        """Plain form for manifests."""
        return {"name": self.name, "sha256": self.sha256}

    @staticmethod
    def from_dict(fields: Mapping[str, object]) -> Extractor:
        """Read the plain form; raises FeatureError for missing, unknown or malformed fields."""
        return Extractor(**_fields(fields, ("name", "sha256"), "extractor"))


@dataclass(frozen=True, kw_only=True)
class FeatureSchema:
    """Declared columns, bounds and resolution of a feature matrix."""

    name: str

    kind: str
    """One of `KINDS`."""

    columns: tuple[Column, ...]
    extractor: Extractor

    max_l2: float
    """Bound on the 2-norm of a row, in natural units: what one row can weigh in a sum."""

    scale: int
    """Integer units per 1.0."""

    def __post_init__(self) -> None:
        _check_name(self.name, "schema name")
        if self.kind not in KINDS:
            raise FeatureError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        if not 1 <= len(self.columns) <= MAX_COLUMNS:
            raise FeatureError(f"a schema has 1 to {MAX_COLUMNS} columns, not {len(self.columns)}")
        if len({column.name for column in self.columns}) != len(self.columns):
            raise FeatureError("two columns have the same name")
        if type(self.max_l2) is not float or not math.isfinite(self.max_l2) or self.max_l2 <= 0:
            raise FeatureError("max_l2 has to be a positive finite float")
        if type(self.scale) is not int or not 1 <= self.scale <= MAX_QUANTISED:
            raise FeatureError(f"scale has to be an integer from 1 to {MAX_QUANTISED}")
        widest = max(max(abs(column.minimum), abs(column.maximum)) for column in self.columns)
        if widest * self.scale > MAX_QUANTISED:
            raise FeatureError(f"ranges up to {widest} at scale {self.scale} exceed {MAX_QUANTISED} units")

    @cached_property
    def max_abs(self) -> int:
        """Bound on the magnitude of a quantised value, in integer units; at least 1."""
        widest = max(max(abs(column.minimum), abs(column.maximum)) for column in self.columns)
        return max(1, round(widest * self.scale))

    @cached_property
    def max_l2_quantised(self) -> int:
        """Bound on the 2-norm of a quantised row: half a unit of rounding per column is allowed for."""
        d = len(self.columns)
        declared = self.max_l2 * (1 + NORM_SLACK) * self.scale + math.sqrt(d) / 2
        return math.ceil(min(declared, self.max_abs * math.sqrt(d)) * (1 + NORM_SLACK))

    def to_dict(self) -> dict[str, object]:
        """Plain form for the manifest."""
        return {
            "name": self.name,
            "kind": self.kind,
            "columns": [
                {"name": column.name, "minimum": column.minimum, "maximum": column.maximum}
                for column in self.columns
            ],
            "extractor": self.extractor.to_dict(),
            "max_l2": self.max_l2,
            "scale": self.scale,
        }

    @staticmethod
    def from_dict(fields: Mapping[str, object]) -> FeatureSchema:
        """Read the plain form; raises FeatureError for missing, unknown or malformed fields."""
        values = _fields(fields, ("name", "kind", "columns", "extractor", "max_l2", "scale"), "schema")
        columns = values["columns"]
        if not isinstance(columns, list) or len(columns) > MAX_COLUMNS:
            raise FeatureError("schema columns have to be a list")
        return FeatureSchema(
            name=values["name"],
            kind=values["kind"],
            columns=tuple(
                Column(**_fields(column, ("name", "minimum", "maximum"), "column")) for column in columns
            ),
            extractor=Extractor.from_dict(values["extractor"]),
            max_l2=values["max_l2"],
            scale=values["scale"],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A quantised matrix that keeps to its schema. Make it with `prepare_features`."""

    schema: FeatureSchema

    values: NDArray[np.int32]
    """shape (n_rows, n_features), read-only, `schema.scale` units per 1.0."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.values.shape[0])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.values.shape[1])

    @property
    def max_abs(self) -> int:
        """Declared bound on a value's magnitude, in integer units."""
        return self.schema.max_abs

    @property
    def max_l2(self) -> int:
        """Declared bound on a row's 2-norm, in integer units."""
        return self.schema.max_l2_quantised


def prepare_features(
    matrix: NDArray[np.floating[Any]] | Mapping[str, NDArray[np.floating[Any]]],
    schema: FeatureSchema,
    columns: Sequence[str] | None = None,
) -> Features:
    """Check a matrix against its schema and quantise it.

    Parameters
    ----------
    matrix :
        Floats or signed integers in natural units: shape (n_rows, n_features), or one array of shape
        (n_rows,) per column name.
    schema :
        Declares every column; the result has the schema's column order.
    columns :
        Names of a two-dimensional matrix's columns, if they are not in the schema's order.

    Returns
    -------
    features :
        int32, `schema.scale` units per 1.0, rounded half to even.

    Raises
    ------
    RawImageryRejectedError
        If the input is an image, an image file, or an array of unsigned bytes or of more than two
        dimensions.
    UndeclaredColumnError
        If columns are missing, undeclared or repeated.
    FeatureRangeError
        If a value is not finite or out of its range, or a row's norm exceeds `max_l2`; names row and
        column.
    FeatureError
        If the matrix is empty, masked or not numeric.
    """
    natural = (
        _from_mapping(matrix, schema)
        if isinstance(matrix, Mapping)
        else _from_matrix(matrix, schema, columns)
    )
    if isinstance(matrix, Mapping) and columns is not None:
        raise FeatureError("a mapping names its columns itself; leave `columns` out")
    if natural.shape[0] == 0:
        raise FeatureError("the matrix has no rows")
    _refuse_first(~np.isfinite(natural), schema, "is not a finite number")
    lowest = np.array([column.minimum for column in schema.columns])
    highest = np.array([column.maximum for column in schema.columns])
    _refuse_first((natural < lowest) | (natural > highest), schema, "lies outside its declared range")
    norms = np.linalg.norm(natural, axis=1)
    too_long = np.flatnonzero(norms > schema.max_l2 * (1 + NORM_SLACK))
    if too_long.size:
        raise FeatureRangeError(f"row {too_long[0]}: its norm exceeds the declared max_l2 of {schema.max_l2}")
    values = np.rint(natural * schema.scale).astype(np.int32)
    values.setflags(write=False)
    return Features(schema=schema, values=values)


def _from_mapping(matrix: Mapping[str, Any], schema: FeatureSchema) -> NDArray[np.float64]:
    arrays = {name: _numeric(array, f"column {name!r}") for name, array in matrix.items()}
    _check_columns(list(arrays), schema)
    for name, array in arrays.items():
        if array.ndim > 1:
            raise RawImageryRejectedError(f"column {name!r} has {array.ndim} dimensions, expected one")
    if len({array.shape for array in arrays.values()}) != 1 or any(
        array.ndim == 0 for array in arrays.values()
    ):
        raise FeatureError("the columns differ in length")
    return np.stack([arrays[column.name] for column in schema.columns], axis=1)


def _from_matrix(matrix: object, schema: FeatureSchema, columns: Sequence[str] | None) -> NDArray[np.float64]:
    array = _numeric(matrix, "the matrix")
    if array.ndim > 2:
        raise RawImageryRejectedError(f"the matrix has {array.ndim} dimensions, like a stack of images")
    if array.ndim != 2:
        raise FeatureError(f"the matrix has {array.ndim} dimensions, expected two")
    names = [column.name for column in schema.columns] if columns is None else list(columns)
    if columns is not None:
        _check_columns(names, schema)
    if array.shape[1] != len(names):
        raise UndeclaredColumnError(f"the matrix has {array.shape[1]} columns, {len(names)} are declared")
    if columns is None:
        return array
    position = {name: index for index, name in enumerate(names)}
    return array[:, [position[column.name] for column in schema.columns]]


def _numeric(value: object, what: str) -> NDArray[np.float64]:
    """Refuse whatever looks like imagery, then whatever is not numeric."""
    if isinstance(value, bytes | bytearray | memoryview | str | os.PathLike):
        raise RawImageryRejectedError(f"{what} is a file or its bytes, expected a numeric array")
    if type(value).__module__.partition(".")[0] == "PIL":
        raise RawImageryRejectedError(f"{what} is an image")
    if not isinstance(value, np.ndarray):
        raise FeatureError(f"{what} is a {type(value).__name__}, expected a numpy array")
    if isinstance(value, np.ma.MaskedArray):
        # Comparisons skip masked cells, so what lies under the mask would pass every check and be sealed.
        raise FeatureError(
            f"{what} is a masked array, expected a plain one", hint="missing values: leave the rows out"
        )
    if value.dtype.kind == "u":
        raise RawImageryRejectedError(f"{what} holds unsigned integers ({value.dtype}), as pixels do")
    if value.dtype.kind not in "fi":
        raise FeatureError(f"{what} holds {value.dtype}, expected floats or signed integers")
    return np.asarray(value).astype(np.float64)


def _check_columns(names: Sequence[str], schema: FeatureSchema) -> None:
    declared = {column.name for column in schema.columns}
    undeclared = [name for name in names if name not in declared]
    if undeclared:
        raise UndeclaredColumnError(f"column {undeclared[0]!r} is not declared in schema {schema.name!r}")
    missing = sorted(declared - set(names))
    if missing:
        raise UndeclaredColumnError(f"column {missing[0]!r} of schema {schema.name!r} is missing")
    if len(names) != len(declared):
        raise UndeclaredColumnError("a column is given twice")


def _refuse_first(wrong: NDArray[np.bool_], schema: FeatureSchema, what: str) -> None:
    if wrong.any():
        row, column = (int(index[0]) for index in np.nonzero(wrong))
        declared = schema.columns[column]
        raise FeatureRangeError(
            f"row {row}, column {declared.name!r}: value {what} ({declared.minimum} to {declared.maximum})"
        )


def _check_name(name: object, what: str) -> None:
    if type(name) is not str or not _NAME.fullmatch(name):
        raise FeatureError(f"{what} {name!r}: use 1 to 64 letters, digits, '_', '.' or '-'")


def _fields(value: object, names: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise FeatureError(f"{what}: expected the fields {', '.join(names)}")
    missing, unknown = [n for n in names if n not in value], [str(n) for n in value if n not in names]
    if missing or unknown:
        wrong = [
            f"{word} {', '.join(some)}" for word, some in (("lacks", missing), ("knows no", unknown)) if some
        ]
        raise FeatureError(f"{what}: {' and '.join(wrong)}", hint=f"its fields are {', '.join(names)}")
    return dict(value)
