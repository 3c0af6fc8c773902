"""Step 2, seal: encrypt a feature matrix under a key domain.

Every chunk of every column, as many rows as the ring's degree, becomes one block. Blocks are made while they are
iterated over, so a bundle never stands in memory as a whole. `publish` accepts nothing but `SealedFeatures`.
Stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from usufruct.errors import ContainerError, FeatureError, KernelParameterError, ManifestError
from usufruct.features import Features, FeatureSchema
from usufruct.he.kernels import BundleShape
from usufruct.he.parameters import parameters_by_id
from usufruct.he.scheme import scheme_of
from usufruct.he.secret import SecretKey

BLOCK_ORDER: Final = "chunk-major"
"""Block number `chunk * n_features + feature`."""

_FIELDS = frozenset(
    {
        "parameters_id",
        "key_id",
        "n_rows",
        "n_features",
        "n_chunks",
        "max_abs",
        "max_l2",
        "block_order",
        "schema",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBlock:
    """One encrypted block."""

    chunk: int
    feature: int

    data: bytes
    """A container in the seeded form (`docs/container.md`)."""


class SealedFeatures:
    """Encrypted features, ready to publish. Make it with `seal_features`.

    Iterating encrypts, and works once: a second pass would give other ciphertexts than the first.
    """

    def __init__(
        self, schema: FeatureSchema, shape: BundleShape, blocks: Iterator[tuple[int, int, bytes]]
    ) -> None:
        self.schema = schema
        self.shape = shape
        self._blocks: Iterator[tuple[int, int, bytes]] | None = blocks

    @property
    def n_blocks(self) -> int:
        """Number of blocks: n_chunks * n_features."""
        return self.shape.n_chunks * self.shape.n_features

    @property
    def manifest(self) -> dict[str, object]:
        """What a bundle's manifest says of the sealed matrix; plain data, read by `read_sealed_manifest`."""
        return {
            "parameters_id": self.shape.parameters.parameters_id,
            "key_id": self.shape.key_id,
            "n_rows": self.shape.n_rows,
            "n_features": self.shape.n_features,
            "n_chunks": self.shape.n_chunks,
            "max_abs": self.shape.max_abs,
            "max_l2": self.shape.max_l2,
            "block_order": BLOCK_ORDER,
            "schema": self.schema.to_dict(),
        }

    def __iter__(self) -> Iterator[SealedBlock]:
        blocks, self._blocks = self._blocks, None
        if blocks is None:
            raise FeatureError(
                "these sealed features were iterated over already", hint="seal the features again"
            )
        return (SealedBlock(chunk=chunk, feature=feature, data=data) for chunk, feature, data in blocks)


def seal_features(features: Features, secret: SecretKey) -> SealedFeatures:
    """Encrypt each feature column under the scheme of the key domain, BFV or BGV.

    Parameters
    ----------
    features :
        int32, shape (n_rows, n_features), already quantised; `features.schema.scale` units per 1.0.
    secret :
        Of one key domain; its ring degree N gives N rows per block.

    Returns
    -------
    sealed :
        ceil(n_rows / N) seeded blocks per column, row order kept; encrypted as it is iterated over.

    Raises
    ------
    FeatureError
        If the declared range does not fit the plaintext modulus, or there are more rows than a bundle
        holds.

    Source
    ------
    Fan and Vercauteren, ePrint 2012/144; Brakerski, Gentry and Vaikuntanathan, ePrint 2011/277.
    """
    try:
        shape = BundleShape(
            n_rows=features.n_rows,
            n_features=features.n_features,
            max_abs=features.max_abs,
            max_l2=features.max_l2,
            key_id=secret.key_id,
            parameters=secret.parameters,
        )
    except KernelParameterError as exc:
        raise FeatureError(f"these features cannot be sealed: {exc}", hint="declare a smaller scale") from exc
    return SealedFeatures(
        features.schema, shape, scheme_of(shape.parameters).encrypt_columns(features.values, secret)
    )


def read_sealed_manifest(fragment: Mapping[str, object]) -> tuple[BundleShape, FeatureSchema]:
    """Read what `SealedFeatures.manifest` wrote, from hostile data.

    Raises
    ------
    ManifestError
        If a field is missing, unknown or malformed, or the numbers contradict each other or the schema.
    """
    if not isinstance(fragment, Mapping) or set(fragment) != _FIELDS:
        raise ManifestError(f"sealed features: expected exactly the fields {', '.join(sorted(_FIELDS))}")
    parameters_id, key_id, schema_fields = fragment["parameters_id"], fragment["key_id"], fragment["schema"]
    if (
        not isinstance(parameters_id, bytes)
        or not isinstance(key_id, bytes)
        or not isinstance(schema_fields, Mapping)
    ):
        raise ManifestError("sealed features: parameters_id and key_id have to be bytes, schema a map")
    try:
        schema = FeatureSchema.from_dict(schema_fields)
        shape = BundleShape(
            n_rows=_integer(fragment, "n_rows"),
            n_features=_integer(fragment, "n_features"),
            max_abs=_integer(fragment, "max_abs"),
            max_l2=_integer(fragment, "max_l2"),
            key_id=key_id,
            parameters=parameters_by_id(parameters_id),
        )
    except (FeatureError, KernelParameterError, ContainerError) as exc:
        raise ManifestError(f"sealed features: {exc}") from exc
    stated = (shape.n_features, shape.max_abs, shape.max_l2)
    if stated != (len(schema.columns), schema.max_abs, schema.max_l2_quantised):
        raise ManifestError("sealed features: columns or bounds contradict the schema")
    if _integer(fragment, "n_chunks") != shape.n_chunks or fragment["block_order"] != BLOCK_ORDER:
        raise ManifestError("sealed features: chunks or block order contradict the shape")
    return shape, schema


def _integer(fragment: Mapping[str, object], name: str) -> int:
    value = fragment[name]
    if type(value) is not int:
        raise ManifestError(f"sealed features: {name} has to be an integer")
    return value
