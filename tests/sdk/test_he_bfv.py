"""Sealing and opening: fresh randomness, typed refusals, secrets that stay put."""

import copy
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from usufruct.errors import ContainerError, FeatureRangeError, KeyStoreError, WrongKeyDomainError
from usufruct.he import bfv
from usufruct.he.bfv import SecretKey, encrypt_columns, generate_secret_key, key_id_of, open_coefficients
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.parameters import BFV_LINEAR, BGV_PAIRS
from usufruct.he.residues import negacyclic_multiply

Q, T, N = BFV_LINEAR.coeff_modulus, BFV_LINEAR.plain_modulus, BFV_LINEAR.poly_modulus_degree


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return generate_secret_key()


def seal_one(message: np.ndarray, secret: SecretKey) -> bytes:
    return next(encrypt_columns(message.reshape(-1, 1), secret))[2]


def test_columns_longer_than_a_block_come_back_chunk_by_chunk(secret: SecretKey) -> None:
    values = np.random.default_rng(1).integers(-1000, 1000, (N + 3, 2))
    found = list(encrypt_columns(values, secret))
    assert [(chunk, feature) for chunk, feature, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for chunk, feature, block in found:
        rows = values[chunk * N : (chunk + 1) * N, feature].tolist()
        assert open_coefficients(block, secret, range(N)) == rows + [0] * (N - len(rows))


def test_the_whole_signed_range_is_exact_and_one_beyond_is_refused(secret: SecretKey) -> None:
    limit = T // 2
    edge = np.array([limit, -limit, 0, 1, -1])
    assert open_coefficients(seal_one(edge, secret), secret, range(5)) == edge.tolist()
    for beyond in (limit + 1, -limit - 1):
        with pytest.raises(FeatureRangeError, match=str(beyond)):
            encrypt_columns(np.array([[beyond]]), secret)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((0, 3), dtype=int), np.zeros(3, dtype=int), np.zeros((2, 2)), np.zeros((2, 2), dtype=np.uint8)],
)
def test_only_signed_integer_matrices_are_sealed(secret: SecretKey, wrong: np.ndarray) -> None:
    with pytest.raises(FeatureRangeError):
        encrypt_columns(wrong, secret)


def test_only_the_coefficients_asked_for_are_opened_in_their_order(secret: SecretKey) -> None:
    block = seal_one(np.arange(10) - 5, secret)
    assert open_coefficients(block, secret, [9, 0, 0, 4095]) == [4, -5, -5, 0]
    assert open_coefficients(block, secret, []) == []
    for outside in (-1, N):
        with pytest.raises(KeyStoreError, match="cannot be opened"):
            open_coefficients(block, secret, [outside])


def test_malicious_compute_node_no_row_can_be_opened_from_an_extracted_block(secret: SecretKey) -> None:
    sealed = parse(seal_one(np.arange(1, 11), secret))
    block = encode(
        Ciphertext(
            form=Form.EXTRACTED, parameters=BFV_LINEAR, key_id=secret.key_id, c0=sealed.c0[:1], c1=sealed.c1
        )
    )
    assert open_coefficients(block, secret, [0]) == [1]
    with pytest.raises(KeyStoreError, match="cannot be opened"):
        open_coefficients(block, secret, [1])


def test_foreign_key_block_of_another_key_domain_is_refused_not_decrypted_to_garbage(
    secret: SecretKey,
) -> None:
    other = generate_secret_key()
    block = seal_one(np.array([42]), secret)
    with pytest.raises(WrongKeyDomainError):
        open_coefficients(block, other, [0])


def test_tampered_block_is_refused_before_seal_sees_it(
    secret: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object) -> None:
        raise AssertionError("SEAL was handed hostile bytes")

    monkeypatch.setattr(bfv, "_decrypt", reached)
    block = seal_one(np.array([42]), secret)
    for wrong in (block[:-1], b"X" + block[1:], block[:75] + b"\xff" * 7 + block[82:]):
        with pytest.raises(ContainerError):
            open_coefficients(wrong, secret, [0])


def test_reused_randomness_shows_the_message_when_the_guard_is_off(
    secret: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positive control: one seed for two messages publishes their difference to anybody, without the key."""
    one, other = np.array([1000, 7, 0]), np.array([250, -7, 0])
    monkeypatch.setattr(bfv.secrets, "token_bytes", lambda n: b"\x05" * n)
    first, second = parse(seal_one(one, secret)), parse(seal_one(other, secret))
    difference = (first.c0 + np.uint64(Q) - second.c0) % np.uint64(Q)
    recovered = [(int(x) * T + Q // 2) // Q % T for x in difference[:3]]
    assert recovered == [750, 14, 0]


def test_reused_randomness_cannot_be_set_up_through_the_interface(secret: SecretKey) -> None:
    message = np.array([1000, 7, 0])
    sealed = [parse(seal_one(message, secret)) for _ in range(20)]
    assert len({found.seed for found in sealed}) == 20
    assert not (sealed[0].c1 == sealed[1].c1).any()
    errors = []
    for found in sealed[:2]:
        phase = (found.c0 + negacyclic_multiply(found.c1, secret._coefficients, Q)) % np.uint64(Q)
        errors.append(phase[3:])
    assert (errors[0] != errors[1]).mean() > 0.8


def test_a_secret_shows_nothing_and_leaves_neither_to_another_process_nor_by_copy(secret: SecretKey) -> None:
    assert repr(secret) == str(secret) == f"SecretKey(key_id={secret.key_id.hex()})"
    for leave in (ForkingPickler.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(secret)


def test_a_secret_comes_back_from_its_bytes(secret: SecretKey) -> None:
    restored = SecretKey.from_bytes(secret.to_bytes())
    assert (restored.key_id, restored.commitment) == (secret.key_id, secret.commitment)
    assert open_coefficients(seal_one(np.array([-9]), secret), restored, [0]) == [-9]


def test_malformed_secrets_are_refused(secret: SecretKey) -> None:
    data = secret.to_bytes()
    for wrong in (
        b"",
        data[:-1],
        data + b"\0",
        b"X" + data[1:],
        data[:4] + b"\x02" + data[5:],
        data[:5] + bytes(32) + data[37:],
        data[:-1] + b"\xff",
        data[:69] + bytes(1024),
    ):
        with pytest.raises(KeyStoreError):
            SecretKey.from_bytes(wrong)


def test_key_id_depends_on_secret_and_salt_and_follows_from_the_commitment(secret: SecretKey) -> None:
    assert secret.key_id == key_id_of(BFV_LINEAR.parameters_id, secret.commitment)
    same_secret = SecretKey(BFV_LINEAR, secret._coefficients, b"\x01" * 32)
    assert same_secret.key_id != secret.key_id
    assert generate_secret_key().key_id != secret.key_id


def test_weak_parameters_make_no_key() -> None:
    from dataclasses import replace

    from usufruct.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="allow-list"):
        generate_secret_key(replace(BFV_LINEAR, plain_modulus=65537))
    with pytest.raises(ConfigurationError, match="not bfv"):
        generate_secret_key(BGV_PAIRS)


def test_blocks_of_a_large_matrix_are_sealed_by_compiled_code_and_open_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bfv, "_COMPILED_BLOCKS", 1)
    secret = generate_secret_key()
    values = np.random.default_rng(9).integers(-500, 501, (N + 3, 10))
    blocks = {(chunk, feature): block for chunk, feature, block in encrypt_columns(values, secret)}
    assert list(blocks) == [(chunk, feature) for chunk in range(2) for feature in range(10)]
    assert len({block[-32:] for block in blocks.values()}) == 20
    for (chunk, feature), block in blocks.items():
        rows = values[chunk * N : (chunk + 1) * N, feature].tolist()
        assert open_coefficients(block, secret, range(len(rows))) == rows
