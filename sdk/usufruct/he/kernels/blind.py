"""The `blind-similarity` kernel: encrypted queries against every row of an encrypted gallery.

Query and gallery are of one key domain; whoever computes sees neither. A query is one block per feature that holds
the value in all slots, sealed by the key's owner (`bgv.encrypt_queries`) or encrypted by somebody else under its public
key, so the sum over features of query block times gallery block has the
inner product with row i in slot i. Nothing mixes slots: whatever a query really holds, the score of a permitted row
depends on that row alone.

A job's mapping of inputs holds the queries beyond the gallery's chunks: block (n_chunks + j, feature) is of query j.
The kernel is about single persons, hence restricted; see `registry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Final

from usufruct.errors import KernelParameterError
from usufruct.he import packed
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.kernels.linear import read_integers
from usufruct.he.kernels.record import (
    UPLOAD_MARGIN_BITS,
    BundleShape,
    Implementation,
    Inputs,
    Kernel,
    Mask,
    Output,
    Part,
    Task,
)
from usufruct.he.reading import read_sealed
from usufruct.he.slots import sealed_phase, uploaded_phase
from usufruct.he.tensor import Stack, Sums

MAX_BLIND_QUERIES: Final = 64

_PAIRS_PER_TASK = 128
"""Products of a query with a chunk whose sums are held at once; each takes 24 bytes per residue."""

_FEATURES_PER_PASS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindParameters:
    """Which encrypted queries, and what their owner declares of them."""

    queries: tuple[bytes, ...]
    """32 bytes each: `query_digest` of its blocks. Whoever fetches the blocks checks it."""

    max_abs: int
    """Declared bound on the magnitude of a query's value."""

    max_l2: int
    """Declared bound on the 2-norm of a query."""

    @property
    def row_level(self) -> bool:
        """Whether a result tells of single rows."""
        return True

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {"queries": list(self.queries), "max_abs": self.max_abs, "max_l2": self.max_l2}

    def linear_form(self, shape: BundleShape) -> None:
        """None: the weights are encrypted."""
        return


def query_digest(block_digests: Sequence[bytes]) -> bytes:
    """Identity of a query: SHA-256 over `"usufruct/query/1" 00` and its blocks' SHA-256, in feature order.

    A block's SHA-256 is the digest in its CID.
    """
    return hashlib.sha256(b"usufruct/query/1\0" + b"".join(block_digests)).digest()


def _parse(parameters: Mapping[str, object]) -> BlindParameters:
    queries = parameters["queries"]
    if not isinstance(queries, list | tuple) or not 1 <= len(queries) <= MAX_BLIND_QUERIES:
        raise KernelParameterError(f"queries has to be a list of 1 to {MAX_BLIND_QUERIES} digests")
    if any(not isinstance(query, bytes) or len(query) != 32 for query in queries):
        raise KernelParameterError("queries holds something else than digests of 32 bytes")
    max_abs, max_l2 = read_integers([parameters["max_abs"], parameters["max_l2"]], "max_abs and max_l2", 2)
    if max_abs < 1 or max_l2 < 1:
        raise KernelParameterError(f"max_abs is {max_abs} and max_l2 {max_l2}, expected at least 1")
    return BlindParameters(queries=tuple(queries), max_abs=max_abs, max_l2=max_l2)


def _worst_case(parameters: BlindParameters, shape: BundleShape) -> tuple[int, int]:
    if not parameters.queries:
        raise KernelParameterError("there is no query")
    by_values = shape.n_features * parameters.max_abs * shape.max_abs
    squared = (parameters.max_l2 * shape.max_l2) ** 2
    degree = shape.parameters.poly_modulus_degree
    noise = shape.n_features * degree * sealed_phase(shape.parameters) * uploaded_phase(shape.parameters)
    return min(by_values, isqrt(squared - 1) + 1), noise


def _n_outputs(parameters: BlindParameters, shape: BundleShape) -> int:
    return shape.n_chunks * len(parameters.queries)


def _outputs(parameters: BlindParameters, shape: BundleShape) -> list[Output]:
    n_queries = len(parameters.queries)
    return [
        Output(
            index=chunk * n_queries + query,
            form=Form.PRODUCT,
            column=query,
            chunk=chunk,
            coefficients=shape.rows_in_chunk(chunk),
        )
        for chunk in range(shape.n_chunks)
        for query in range(n_queries)
    ]


def _plan(parameters: BlindParameters, shape: BundleShape) -> list[Part]:
    n_queries, n_chunks = len(parameters.queries), shape.n_chunks
    width = max(1, _PAIRS_PER_TASK // n_queries)
    parts = []
    for first in range(0, n_chunks, width):
        chunks = range(first, min(n_chunks, first + width))
        # A query's blocks come before the gallery's, a few features at a time.
        rows = [*(n_chunks + query for query in range(n_queries)), *chunks]
        inputs = tuple((row, feature) for group in _groups(shape) for row in rows for feature in group)
        parts.append(Part(inputs=inputs, outputs=tuple(range(first * n_queries, chunks.stop * n_queries))))
    return parts


def _groups(shape: BundleShape) -> list[range]:
    """The features in the groups that are multiplied together."""
    return [
        range(first, min(shape.n_features, first + _FEATURES_PER_PASS))
        for first in range(0, shape.n_features, _FEATURES_PER_PASS)
    ]


def _execute(task: Task, parameters: BlindParameters, inputs: Inputs, mask: Mask) -> list[bytes]:
    shape, settings = task.shape, task.shape.parameters
    n_queries, size = len(parameters.queries), settings.residues
    n_chunks, first_chunk = len(task.outputs) // n_queries, task.outputs[0] // n_queries
    pairs = [(query, chunk) for chunk in range(n_chunks) for query in range(n_queries)]
    products = Sums(pairs, settings.primes, size)
    for group in _groups(shape):
        stacks = Stack(n_queries, len(group), size), Stack(n_chunks, len(group), size)
        for query in range(n_queries):
            for term, feature in enumerate(group):
                found = _query_block(inputs[shape.n_chunks + query, feature], shape)
                stacks[0].fill(query, term, found.c0, found.c1)
        keys = [(first_chunk + chunk, feature) for chunk in range(n_chunks) for feature in group]
        gallery = read_sealed(keys, inputs, settings, shape.key_id, compiled=True)
        for place, found in enumerate(gallery):
            stacks[1].fill(*divmod(place, len(group)), found.c0, found.c1)
        products.add(*stacks)
    return [
        encode(
            Ciphertext(
                form=Form.PRODUCT,
                parameters=settings,
                key_id=shape.key_id,
                c0=parts[0],
                c1=parts[1],
                c2=parts[2],
            ),
            packer=packed.pack,
        )
        for parts in products.results()
    ]


def _query_block(block: bytes, shape: BundleShape) -> Ciphertext:
    return parse(
        block,
        key_id=shape.key_id,
        parameters=shape.parameters,
        forms=(Form.SEEDED, Form.CIPHERTEXT),
        unpacker=packed.unpack,
    )


BLIND: Final = Kernel(
    name="blind-similarity",
    version=1,
    kernel_class="identify-1:N",
    scheme="bgv",
    parameter_schema=MappingProxyType({"queries": "list[m] of 32 bytes", "max_abs": "int", "max_l2": "int"}),
    bounds=MappingProxyType(
        {
            "value": "min(features*max_abs*query_max_abs,max_l2*query_max_l2)",
            "noise": "features*N*((t-1)/2+21*t)*((t-1)/2+21*t*(2*N+1))",
        }
    ),
    cost_model=MappingProxyType(
        {
            "expansions": "chunks*features+m*features*ceil(chunks*m/128)",
            "multiply_adds": "chunks*features*m*4*primes*N",
        }
    ),
    implementation=Implementation(
        parameters=BlindParameters,
        parse=_parse,
        worst_case=_worst_case,
        n_outputs=_n_outputs,
        outputs=_outputs,
        plan=_plan,
        execute=_execute,
        margin_bits=UPLOAD_MARGIN_BITS,
    ),
)
"""Inner product of each encrypted query with every encrypted row."""
