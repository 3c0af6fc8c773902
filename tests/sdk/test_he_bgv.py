"""BGV: sealing and opening, held against SEAL; fresh randomness, typed refusals."""

from dataclasses import replace

import numpy as np
import pytest
import tenseal.sealapi as sealapi

from bgv_oracle import context_of, from_seal, polynomial, seal_key, seal_opens, to_seal
from usufruct.errors import (
    ConfigurationError,
    ContainerError,
    FeatureRangeError,
    KeyStoreError,
    WrongKeyDomainError,
)
from usufruct.he import bfv, bgv, ntt, slots
from usufruct.he.bgv import encrypt_columns, encrypt_queries, generate_secret_key, open_values
from usufruct.he.container import Ciphertext, Form, encode, parse
from usufruct.he.parameters import BFV_LINEAR, BGV_MOMENTS, BGV_PAIRS, Parameters
from usufruct.he.sampling import ternary
from usufruct.he.secret import SecretKey

SETS = [BGV_PAIRS, BGV_MOMENTS]


@pytest.fixture(scope="module", params=SETS, ids=["pairs", "moments"])
def secret(request: pytest.FixtureRequest) -> SecretKey:
    return generate_secret_key(request.param)


def seal_one(column: np.ndarray, secret: SecretKey) -> bytes:
    return next(encrypt_columns(column.reshape(-1, 1), secret))[2]


def parts_of(block: bytes) -> list[np.ndarray]:
    found = parse(block)
    return [part for part in (found.c0, found.c1, found.c2) if part is not None]


def phase_of(block: bytes, secret: SecretKey) -> list[int]:
    """c0 + c1 s + c2 s^2 as signed integers, by the definition."""
    parameters = secret.parameters
    primes = parameters.primes
    total = np.zeros((len(primes), parameters.poly_modulus_degree), dtype=np.uint64)
    power = slots.transformed(np.eye(1, parameters.poly_modulus_degree, dtype=np.int64)[0], parameters)
    s, q = slots.transformed(secret._coefficients, parameters), slots.moduli(parameters)
    for part in parts_of(block):
        total = (total + part.reshape(total.shape) * power % q) % q
        power = power * s % q
    residues = [ntt.inverse(row, prime).tolist() for row, prime in zip(total, primes, strict=True)]
    modulus = parameters.coeff_modulus
    basis = [modulus // prime * pow(modulus // prime, -1, prime) for prime in primes]
    values = [
        sum(r * b for r, b in zip(column, basis, strict=True)) % modulus
        for column in zip(*residues, strict=True)
    ]
    return [value - modulus if value > modulus // 2 else value for value in values]


def test_columns_longer_than_a_block_come_back_chunk_by_chunk(secret: SecretKey) -> None:
    degree = secret.parameters.poly_modulus_degree
    values = np.random.default_rng(1).integers(-1000, 1000, (degree + 3, 2))
    found = list(encrypt_columns(values, secret))
    assert [(chunk, feature) for chunk, feature, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for chunk, feature, block in found:
        rows = values[chunk * degree : (chunk + 1) * degree, feature].tolist()
        assert parse(block).form is Form.SEEDED
        assert open_values(block, secret, range(degree)) == rows + [0] * (degree - len(rows))


def test_the_whole_signed_range_is_exact_and_one_beyond_is_refused(secret: SecretKey) -> None:
    limit = secret.parameters.value_limit
    edge = np.array([limit, -limit, 0, 1, -1])
    assert open_values(seal_one(edge, secret), secret, range(5)) == edge.tolist()
    for beyond in (limit + 1, -limit - 1):
        for encrypt in (encrypt_columns, encrypt_queries):
            with pytest.raises(FeatureRangeError, match=str(beyond)):
                encrypt(np.array([[beyond]]), secret)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((0, 3), dtype=int), np.zeros(3, dtype=int), np.zeros((2, 2)), np.zeros((2, 2), dtype=np.uint8)],
)
def test_only_signed_integer_matrices_are_sealed(secret: SecretKey, wrong: np.ndarray) -> None:
    for encrypt in (encrypt_columns, encrypt_queries):
        with pytest.raises(FeatureRangeError):
            encrypt(wrong, secret)


def test_a_query_holds_its_value_in_every_slot(secret: SecretKey) -> None:
    degree = secret.parameters.poly_modulus_degree
    blocks = list(encrypt_queries(np.array([[5, -9], [0, 3]]), secret))
    assert [(query, feature) for query, feature, _ in blocks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for (_, _, block), value in zip(blocks, [5, -9, 0, 3], strict=True):
        assert open_values(block, secret, range(degree)) == [value] * degree


def test_only_the_slots_asked_for_are_opened_in_their_order(secret: SecretKey) -> None:
    block = seal_one(np.arange(10) - 5, secret)
    degree = secret.parameters.poly_modulus_degree
    assert open_values(block, secret, [9, 0, 0, degree - 1]) == [4, -5, -5, 0]
    assert open_values(block, secret, []) == []
    for outside in (-1, degree):
        with pytest.raises(KeyStoreError, match="cannot be opened"):
            open_values(block, secret, [outside])


def test_seal_decrypts_what_we_seal_to_the_polynomial_with_these_slots(secret: SecretKey) -> None:
    column = np.random.default_rng(2).integers(-500, 500, secret.parameters.poly_modulus_degree)
    block = seal_one(column, secret)
    opened = seal_opens(to_seal(parts_of(block), secret.parameters), secret)
    t = secret.parameters.plain_modulus
    assert opened == (slots.encode(column, secret.parameters) % t).tolist()
    assert ntt.forward(np.array(opened, dtype=np.uint64), t).tolist() == (column % t).tolist()


def test_what_seal_encrypts_is_opened_by_us(secret: SecretKey) -> None:
    parameters = secret.parameters
    column = np.random.default_rng(3).integers(-500, 500, parameters.poly_modulus_degree)
    encrypted = sealapi.Ciphertext(context_of(parameters))
    plain = polynomial(slots.encode(column, parameters), parameters)
    sealapi.Encryptor(context_of(parameters), seal_key(secret)).encrypt_symmetric(plain, encrypted)
    c0, c1 = from_seal(encrypted, parameters)
    block = encode(
        Ciphertext(form=Form.CIPHERTEXT, parameters=parameters, key_id=secret.key_id, c0=c0, c1=c1)
    )
    assert open_values(block, secret, range(column.size)) == column.tolist()


def test_a_sealed_block_has_the_noise_budget_of_seals_own_encryption(secret: SecretKey) -> None:
    parameters = secret.parameters
    encrypted = sealapi.Ciphertext(context_of(parameters))
    sealapi.Encryptor(context_of(parameters), seal_key(secret)).encrypt_symmetric(
        sealapi.Plaintext("1x^3 + 5"), encrypted
    )
    decryptor = sealapi.Decryptor(context_of(parameters), seal_key(secret))
    ours = decryptor.invariant_noise_budget(to_seal(parts_of(seal_one(np.arange(9), secret)), parameters))
    assert abs(ours - decryptor.invariant_noise_budget(encrypted)) <= 1


def test_opening_agrees_with_the_definition_of_decryption(secret: SecretKey) -> None:
    column = np.random.default_rng(4).integers(-90, 90, secret.parameters.poly_modulus_degree)
    block = seal_one(column, secret)
    phase = phase_of(block, secret)
    t = secret.parameters.plain_modulus
    assert max(map(abs, phase)) <= slots.sealed_phase(secret.parameters)
    assert np.array_equal(
        np.array([value % t for value in phase]), slots.encode(column, secret.parameters) % t
    )
    assert open_values(block, secret, range(column.size)) == column.tolist()


def test_a_product_opens_to_the_products_of_slots_as_seal_opens_it(secret: SecretKey) -> None:
    parameters = secret.parameters
    columns = np.random.default_rng(5).integers(-500, 500, (parameters.poly_modulus_degree, 2))
    sealed = [to_seal(parts_of(block), parameters) for _, _, block in encrypt_columns(columns, secret)]
    product = sealapi.Ciphertext(context_of(parameters))
    sealapi.Evaluator(context_of(parameters)).multiply(*sealed, product)
    c0, c1, c2 = from_seal(product, parameters)
    fields = {"parameters": parameters, "key_id": secret.key_id, "c1": c1, "c2": c2}
    whole = encode(Ciphertext(form=Form.PRODUCT, c0=c0, **fields))
    expected = columns[:, 0] * columns[:, 1]
    assert open_values(whole, secret, range(len(columns))) == expected.tolist()
    rows = zip(np.split(c0, len(parameters.primes)), parameters.primes, strict=True)
    first = np.array([ntt.constant_term(row, prime) for row, prime in rows], dtype=np.uint64)
    extracted = encode(Ciphertext(form=Form.EXTRACTED_PRODUCT, c0=first, **fields))
    t = parameters.plain_modulus
    assert open_values(extracted, secret, [0])[0] % t == seal_opens(product, secret)[0]
    with pytest.raises(KeyStoreError, match="only the first 1"):
        open_values(extracted, secret, [1])


def test_swapped_parts_open_to_something_else(secret: SecretKey) -> None:
    found = parse(seal_one(np.arange(1, 50), secret))
    whole = replace(found, form=Form.CIPHERTEXT, seed=None)
    assert open_values(encode(whole), secret, range(49)) == list(range(1, 50))
    swapped = replace(whole, c0=whole.c1, c1=whole.c0)
    assert open_values(encode(swapped), secret, range(49)) != list(range(1, 50))


def test_foreign_key_block_of_another_key_domain_is_refused_not_decrypted_to_garbage(
    secret: SecretKey,
) -> None:
    other = generate_secret_key(secret.parameters)
    block = seal_one(np.array([42]), secret)
    with pytest.raises(WrongKeyDomainError):
        open_values(block, other, [0])
    renamed = block[:39] + other.key_id + block[71:]
    assert open_values(renamed, other, [0]) != [42]


def test_other_parameters_under_the_same_key_id_are_refused() -> None:
    """A key id follows from the parameters, so only a forger writes such a block."""
    pairs, moments = (generate_secret_key(parameters) for parameters in SETS)
    forged = seal_one(np.array([1]), moments)
    forged = forged[:39] + pairs.key_id + forged[71:]
    with pytest.raises(KeyStoreError, match="parameters"):
        open_values(forged, pairs, [0])


def test_tampered_blocks_are_refused_before_anything_is_decrypted(
    secret: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object) -> None:
        raise AssertionError("a hostile block was decrypted")

    monkeypatch.setattr(bgv, "_masked", reached)
    block = seal_one(np.array([42]), secret)
    for wrong in (block[:-1], b"X" + block[1:], block[:75] + b"\xff" * 7 + block[82:]):
        with pytest.raises(ContainerError):
            open_values(wrong, secret, [0])


def test_reused_randomness_shows_the_message_when_the_guard_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control: one seed for two messages publishes their difference to anybody, without the key."""
    secret = generate_secret_key(BGV_PAIRS)
    one, other = np.array([1000, 7, 0]), np.array([250, -7, 0])
    monkeypatch.setattr(bgv.secrets, "token_bytes", lambda n: b"\x05" * n)
    difference = _difference(seal_one(one, secret), seal_one(other, secret), BGV_PAIRS)
    assert difference[:3] == [750, 14, 0]


def test_reused_randomness_cannot_be_set_up_through_the_interface() -> None:
    secret = generate_secret_key(BGV_PAIRS)
    column = np.array([1000, 7, 0])
    blocks = [seal_one(column, secret) for _ in range(20)]
    assert len({parse(block).seed for block in blocks}) == 20
    assert _difference(blocks[0], blocks[1], BGV_PAIRS)[:3] != [0, 0, 0]
    errors = [phase_of(block, secret) for block in blocks[:2]]
    assert np.mean([a != b for a, b in zip(*errors, strict=True)]) > 0.8


def _difference(first: bytes, second: bytes, parameters: Parameters) -> list[int]:
    """What anybody reads off two blocks that share c1."""
    q = slots.moduli(parameters)
    c0 = [parse(block).c0.reshape(len(parameters.primes), -1) for block in (first, second)]
    apart = (c0[0] + q - c0[1]) % q
    rows = [ntt.inverse(row, prime) for row, prime in zip(apart, parameters.primes, strict=True)]
    plain = bgv.signed_remainder(np.stack(rows), parameters.primes, parameters.plain_modulus)
    return ntt.forward(plain, parameters.plain_modulus).tolist()


def test_a_secret_comes_back_from_its_bytes_and_keeps_its_scheme(secret: SecretKey) -> None:
    restored = SecretKey.from_bytes(secret.to_bytes())
    assert (restored.key_id, restored.parameters) == (secret.key_id, secret.parameters)
    assert open_values(seal_one(np.array([-9]), secret), restored, [0]) == [-9]


def test_secrets_are_ternary_and_uniform() -> None:
    sample = ternary(200_000)
    counts = [int((sample == value).sum()) for value in (-1, 0, 1)]
    assert sum(counts) == sample.size
    assert all(abs(count - sample.size / 3) < 8 * (sample.size * 2 / 9) ** 0.5 for count in counts)


def test_one_schemes_keys_and_parameters_are_refused_by_the_other() -> None:
    linear = bfv.generate_secret_key()
    with pytest.raises(ConfigurationError, match="not bgv"):
        encrypt_columns(np.array([[1]]), linear)
    with pytest.raises(ConfigurationError, match="not bgv"):
        generate_secret_key(BFV_LINEAR)
    with pytest.raises(ConfigurationError, match="not bfv"):
        bfv.encrypt_columns(np.array([[1]]), generate_secret_key(BGV_PAIRS))
    with pytest.raises(ConfigurationError, match="allow-list"):
        generate_secret_key(replace(BGV_PAIRS, plain_modulus=65537))
