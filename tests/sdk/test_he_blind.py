"""The `blind-similarity` kernel: SEAL's bytes, numpy's scores, bounds at the edge, hostile queries."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from hypothesis import given, settings
from hypothesis import strategies as st

from bgv_oracle import context_of, from_seal, seal_key, to_seal
from usufruct.errors import (
    ContainerError,
    KernelBoundError,
    KernelParameterError,
    UnknownKernelError,
    WrongKeyDomainError,
)
from usufruct.he.bgv import encrypt_columns, encrypt_queries, generate_secret_key, open_values
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.contribution import Clip, encrypt_contribution
from usufruct.he.kernels import (
    KERNELS,
    BundleShape,
    execute,
    kernel_by_id,
    kernel_by_name,
    outputs,
    plan,
    run,
)
from usufruct.he.kernels.blind import BLIND, BlindParameters, query_digest
from usufruct.he.parameters import BGV_MOMENTS, BGV_PAIRS
from usufruct.he.secret import SecretKey

N = BGV_PAIRS.poly_modulus_degree
N_ROWS, N_FEATURES, N_QUERIES, MAX_ABS = N + 200, 19, 2, 60
Blocks = dict[tuple[int, int], bytes]


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return generate_secret_key(BGV_PAIRS)


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    return np.random.default_rng(3).integers(-MAX_ABS, MAX_ABS + 1, (N_ROWS, N_FEATURES))


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(4).integers(-MAX_ABS, MAX_ABS + 1, (N_QUERIES, N_FEATURES))


@pytest.fixture(scope="module")
def blocks(secret: SecretKey, gallery: np.ndarray, queries: np.ndarray) -> Blocks:
    """The gallery's blocks, and those of the queries beyond its chunks."""
    sealed = {(chunk, feature): block for chunk, feature, block in encrypt_columns(gallery, secret)}
    return sealed | {
        (2 + query, feature): block for query, feature, block in encrypt_queries(queries, secret)
    }


def shape_of(secret: SecretKey, **changes: Any) -> BundleShape:
    fields = {
        "n_rows": N_ROWS,
        "n_features": N_FEATURES,
        "max_abs": MAX_ABS,
        "max_l2": 5 * MAX_ABS,
        "key_id": secret.key_id,
        "parameters": BGV_PAIRS,
    }
    return BundleShape(**(fields | changes))


def parameters(
    n_queries: int = N_QUERIES, max_abs: int = MAX_ABS, max_l2: int = 5 * MAX_ABS
) -> BlindParameters:
    digests = tuple(bytes([query]) * 32 for query in range(n_queries))
    return BlindParameters(queries=digests, max_abs=max_abs, max_l2=max_l2)


def results(shape: BundleShape, blocks: Blocks, n_queries: int = N_QUERIES) -> list[bytes]:
    everyone = np.ones(shape.n_rows, dtype=bool)
    made = dict(run(BLIND, parameters(n_queries), shape, lambda c, f: blocks[c, f], everyone))
    assert sorted(made) == list(range(len(made)))
    return [made[index] for index in range(len(made))]


def test_scores_are_those_of_numpy_for_every_row_and_query(
    secret: SecretKey, gallery: np.ndarray, queries: np.ndarray, blocks: Blocks
) -> None:
    made = results(shape_of(secret), blocks)
    scores = gallery @ queries.T
    for output in outputs(BLIND, parameters(), shape_of(secret)):
        assert parse(made[output.index]).form is output.form is Form.PRODUCT
        opened = open_values(made[output.index], secret, range(output.coefficients))
        assert output.chunk is not None
        first = output.chunk * N
        assert opened == scores[first : first + output.coefficients, output.column].tolist()


def seal_score(blocks: Blocks, chunk: int, query: int) -> Any:
    """SEAL's evaluator: multiply and add, feature by feature."""
    evaluator, context = sealapi.Evaluator(context_of(BGV_PAIRS)), context_of(BGV_PAIRS)
    total = None
    for feature in range(N_FEATURES):
        left, right = (
            to_seal([(found := parse(blocks[row, feature])).c0, found.c1], BGV_PAIRS)
            for row in (2 + query, chunk)
        )
        product = sealapi.Ciphertext(context)
        evaluator.multiply(left, right, product)
        if total is None:
            total = product
        else:
            evaluator.add_inplace(total, product)
    return total


def test_results_are_the_bytes_of_seals_evaluator_and_keep_the_margin(
    secret: SecretKey, blocks: Blocks
) -> None:
    made = results(shape_of(secret), blocks)
    for chunk, query in ((0, 0), (1, 1)):
        total = seal_score(blocks, chunk, query)
        c0, c1, c2 = from_seal(total, BGV_PAIRS)
        fields = {"form": Form.PRODUCT, "parameters": BGV_PAIRS, "key_id": secret.key_id}
        assert made[chunk * N_QUERIES + query] == encode(Ciphertext(c0=c0, c1=c1, c2=c2, **fields))
        budget = sealapi.Decryptor(context_of(BGV_PAIRS), seal_key(secret)).invariant_noise_budget(total)
        assert budget >= BLIND.validate(parameters(), shape_of(secret)).margin_bits >= 20


def test_a_query_that_somebody_else_encrypted_under_the_public_key_gives_the_same_scores(
    secret: SecretKey, gallery: np.ndarray, queries: np.ndarray, blocks: Blocks
) -> None:
    public_key = next(encrypt_columns(np.zeros((1, 1), dtype=int), secret))[2]
    clip = Clip(n_entries=N, max_abs=MAX_ABS, max_l2=MAX_ABS * isqrt(N))
    uploaded = blocks | {
        (2, feature): encrypt_contribution(np.full(N, value), public_key, clip).blocks[0]
        for feature, value in enumerate(queries[0].tolist())
    }
    assert parse(uploaded[2, 0]).form is Form.CIPHERTEXT
    made = results(shape_of(secret), uploaded)
    assert open_values(made[0], secret, range(N)) == (gallery[:N] @ queries[0]).tolist()
    total = to_seal([(found := parse(made[0])).c0, found.c1, found.c2], BGV_PAIRS)  # type: ignore[list-item]
    budget = sealapi.Decryptor(context_of(BGV_PAIRS), seal_key(secret)).invariant_noise_budget(total)
    assert budget >= 20


def test_malicious_query_a_permitted_rows_score_depends_on_that_row_alone(
    secret: SecretKey, gallery: np.ndarray, blocks: Blocks
) -> None:
    """A query of other values in every slot still gives slot i a product with row i only."""
    rng = np.random.default_rng(8)
    hostile = rng.integers(-MAX_ABS, MAX_ABS + 1, (N, N_FEATURES))
    forged = blocks | {(2, feature): block for _, feature, block in encrypt_columns(hostile, secret)}
    opened = open_values(results(shape_of(secret), forged)[0], secret, range(N))
    assert opened == (gallery[:N] * hostile).sum(axis=1).tolist()


def test_groups_and_task_sizes_do_not_change_a_byte(
    secret: SecretKey, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from usufruct.he.kernels import blind

    expected = results(shape_of(secret), blocks)
    monkeypatch.setattr(blind, "_PAIRS_PER_TASK", N_QUERIES)
    monkeypatch.setattr(blind, "_FEATURES_PER_PASS", 3)
    tasks = plan(BLIND, parameters(), shape_of(secret))
    assert [task.outputs for task in tasks] == [(0, 1), (2, 3)]
    made: dict[int, bytes] = {}
    for task in reversed(tasks):
        read: list[tuple[int, int]] = []

        class Watched(Blocks):
            def __getitem__(self, key: tuple[int, int], seen: list[tuple[int, int]] = read) -> bytes:
                seen.append(key)
                return super().__getitem__(key)

        found = execute(task, Watched(blocks), np.ones(N_ROWS, dtype=bool))
        assert read == list(task.inputs)
        made |= dict(zip(task.outputs, found, strict=True))
    assert [made[index] for index in range(4)] == expected


def test_it_is_restricted_like_similarity_in_the_clear() -> None:
    assert BLIND.kernel_class == "identify-1:N" and BLIND.name not in KERNELS
    for look_up in (
        lambda **k: kernel_by_name("blind-similarity", **k),
        lambda **k: kernel_by_id(BLIND.kernel_id, **k),
    ):
        with pytest.raises(UnknownKernelError, match="not enabled"):
            look_up()
        with pytest.raises(UnknownKernelError, match="not enabled"):
            look_up(enabled=("verify-1:1",))
        assert look_up(enabled=("identify-1:N",)) is BLIND


def test_a_querys_identity_follows_from_its_blocks_in_order(blocks: Blocks) -> None:
    digests = [hashlib.sha256(blocks[2, feature]).digest() for feature in range(3)]
    expected = hashlib.sha256(b"usufruct/query/1\0" + b"".join(digests)).digest()
    assert query_digest(digests) == expected != query_digest(digests[::-1])


def test_parameters_come_back_from_their_plain_form() -> None:
    assert BLIND.parse(parameters().to_dict()) == parameters()


@pytest.mark.parametrize(
    "changes",
    [
        {"queries": []},
        {"queries": [b"\0" * 31]},
        {"queries": ["00" * 32]},
        {"queries": b"\0" * 32},
        {"queries": [bytes(32)] * 65},
        {"max_abs": 0},
        {"max_abs": True},
        {"max_l2": -1},
        {"max_l2": 1.0},
        {"max_l2": 1 << 31},
    ],
)
def test_malformed_parameters_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(KernelParameterError):
        BLIND.parse(parameters().to_dict() | changes)


@settings(max_examples=100, deadline=None)
@given(n_features=st.integers(1, 1 << 16), max_abs=st.integers(1, 700), query_abs=st.integers(1, 700))
def test_bounds_are_those_of_the_definition_and_refused_one_beyond(
    n_features: int, max_abs: int, query_abs: int
) -> None:
    t = BGV_PAIRS.plain_modulus
    value = n_features * max_abs * query_abs
    fresh, uploaded = (t - 1) // 2 + 21 * t, (t - 1) // 2 + 21 * t * (2 * N + 1)
    noise = n_features * N * fresh * uploaded
    margin = ((BGV_PAIRS.coeff_modulus // 2 - 1) // noise).bit_length() - 1
    wide = min(t // 2 * 256, max_abs * n_features)
    shape = BundleShape(
        n_rows=1, n_features=n_features, max_abs=max_abs, max_l2=wide, key_id=bytes(32), parameters=BGV_PAIRS
    )
    given_parameters = parameters(1, query_abs, query_abs * n_features)
    if value > t // 2 or margin < 20:
        with pytest.raises(KernelBoundError, match=str(t // 2) if value > t // 2 else "noise"):
            BLIND.validate(given_parameters, shape)
    else:
        bounds = BLIND.validate(given_parameters, shape)
        assert (bounds.value_bound, bounds.noise_bound, bounds.margin_bits) == (value, noise, margin)


def test_scores_at_the_bound_open_exactly_with_both_signs(secret: SecretKey) -> None:
    size = isqrt(BGV_PAIRS.value_limit // 4)
    shape = shape_of(secret, n_rows=3, n_features=4, max_abs=size, max_l2=2 * size)
    rows = np.array([[size] * 4, [-size] * 4, [size, -size, size, -size]])
    sealed = {(c, f): block for c, f, block in encrypt_columns(rows, secret)}
    sealed |= {(1 + q, f): block for q, f, block in encrypt_queries(rows[:1], secret)}
    own = parameters(1, size, 2 * size)
    assert BLIND.validate(own, shape).value_bound == 4 * size**2 > 0.99 * BGV_PAIRS.value_limit
    with pytest.raises(KernelBoundError):
        BLIND.validate(replace(own, max_abs=size + 3, max_l2=2 * size + 6), shape)
    ((_, block),) = run(BLIND, own, shape, lambda c, f: sealed[c, f], np.ones(3, dtype=bool))
    assert open_values(block, secret, range(3)) == [4 * size**2, -4 * size**2, 0]


Forge = Callable[[bytes, bytes], bytes]


@pytest.mark.parametrize("place", [(0, 3), (2, 3)], ids=["gallery", "query"])
@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (lambda block, other: other, WrongKeyDomainError),
        (lambda block, other: block[:6] + bytes([Form.PRODUCT]) + block[7:], ContainerError),
        (lambda block, other: block[:75] + b"\xff" * 8 + block[83:], ContainerError),
        (lambda block, other: block[:-1], ContainerError),
        (lambda block, other: b"", ContainerError),
    ],
)
def test_hostile_inputs_are_refused_by_the_kernel(
    secret: SecretKey, blocks: Blocks, place: tuple[int, int], forge: Forge, error: type[Exception]
) -> None:
    foreign = next(encrypt_columns(np.array([[1]]), generate_secret_key(BGV_PAIRS)))[2]
    with pytest.raises(error):
        results(shape_of(secret), blocks | {place: forge(blocks[place], foreign)})


def test_transparent_uploaded_queries_are_refused(secret: SecretKey, blocks: Blocks) -> None:
    """(0, 0 in one prime) as a query would be an oracle for the key."""
    part = parse(blocks[2, 0]).c0
    bare = Ciphertext(form=Form.CIPHERTEXT, parameters=BGV_PAIRS, key_id=secret.key_id, c0=part, c1=part)
    whole = encode(bare)
    size = N * BGV_PAIRS.residue_bits // 8
    at = 75 + 5 * size
    forged = whole[:at] + bytes(size) + whole[at + size :]
    with pytest.raises(ContainerError) as caught:
        results(shape_of(secret), blocks | {(2, 0): forged})
    assert caught.value.field == "transparent"


def test_foreign_key_parameters_of_the_other_set_are_refused(secret: SecretKey, blocks: Blocks) -> None:
    other = next(encrypt_columns(np.array([[1]]), generate_secret_key(BGV_MOMENTS)))[2]
    renamed = other[:39] + secret.key_id + other[71:]
    for place in ((0, 0), (2, 0)):
        with pytest.raises(ContainerError) as caught:
            results(shape_of(secret), blocks | {place: renamed})
        assert caught.value.field == "parameters_id"
