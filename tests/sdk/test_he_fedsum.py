"""Contributions of several members, and their weighted sum: exact, bounded, and closed to attacks on the key."""

import math
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from hypothesis import given, settings
from hypothesis import strategies as st

from bgv_oracle import context_of, from_seal, polynomial, seal_opens, to_seal
from usufruct.errors import (
    ConfigurationError,
    ContainerError,
    ContributionRefusedError,
    FeatureRangeError,
    KernelBoundError,
    KernelParameterError,
    WrongKeyDomainError,
)
from usufruct.he import bfv, bgv, contribution, slots
from usufruct.he.container import Form, encode, parse
from usufruct.he.contribution import Clip, Contribution, check_contribution, clip_update, encrypt_contribution
from usufruct.he.kernels import FEDSUM, BundleShape, FedsumParameters, execute, outputs, plan, run
from usufruct.he.parameters import BGV_MOMENTS, BGV_PAIRS
from usufruct.he.secret import SecretKey

DEGREE = BGV_PAIRS.poly_modulus_degree
N_ENTRIES, MEMBERS = DEGREE + 10, 4
CLIP = Clip(n_entries=N_ENTRIES, max_abs=500, max_l2=20_000)
WEIGHTS = (3, -1, 0, 7)


class Round:
    """Every member's update, encrypted under one public key."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.secret: SecretKey = bgv.generate_secret_key()
        self.public_key = bgv.public_key_of(self.secret)
        self.updates = rng.integers(-300, 301, (MEMBERS, N_ENTRIES))
        self.contributions = [encrypt_contribution(update, self.public_key, CLIP) for update in self.updates]
        self.shape = BundleShape(
            n_rows=N_ENTRIES,
            n_features=MEMBERS,
            max_abs=CLIP.max_abs,
            max_l2=CLIP.max_l2,
            key_id=self.secret.key_id,
            parameters=self.secret.parameters,
        )
        self.parameters = FedsumParameters(weights=WEIGHTS)

    def block(self, chunk: int, member: int) -> bytes:
        return self.contributions[member].blocks[chunk]

    def open(self, blocks: list[bytes]) -> np.ndarray:
        rows = [self.shape.rows_in_chunk(chunk) for chunk in range(self.shape.n_chunks)]
        opened = [
            bgv.open_values(block, self.secret, range(n)) for block, n in zip(blocks, rows, strict=True)
        ]
        return np.concatenate(opened)


@pytest.fixture(scope="module")
def party() -> Round:
    return Round()


# The kernel.


def test_sum_of_contributions_is_the_weighted_sum_of_the_updates(party: Round) -> None:
    made = dict(run(FEDSUM, party.parameters, party.shape, party.block, np.ones(MEMBERS, dtype=np.bool_)))
    assert np.array_equal(party.open([made[0], made[1]]), np.array(WEIGHTS) @ party.updates)
    described = outputs(FEDSUM, party.parameters, party.shape)
    assert [output.coefficients for output in described] == [DEGREE, 10]
    assert all(parse(block).form is Form.CIPHERTEXT for block in made.values())


def test_results_are_the_bytes_of_seals_evaluator_and_seal_opens_them(party: Round) -> None:
    """SEAL multiplies each contribution by its weight, a constant plaintext, and adds."""
    parameters = party.secret.parameters
    evaluator, total = sealapi.Evaluator(context_of(parameters)), None
    for member, weight in enumerate(WEIGHTS):
        if not weight:
            continue
        found = parse(party.block(0, member))
        term = to_seal([found.c0, found.c1], parameters)
        evaluator.multiply_plain_inplace(term, polynomial(np.array([weight]), parameters))
        if total is None:
            total = term
        else:
            evaluator.add_inplace(total, term)
    made = dict(run(FEDSUM, party.parameters, party.shape, party.block, np.ones(MEMBERS, dtype=np.bool_)))
    c0, c1 = from_seal(total, parameters)
    assert made[0] == encode(replace(parse(made[0]), c0=c0, c1=c1))
    coefficients = np.array(seal_opens(total, party.secret), dtype=np.uint64)
    opened = contribution.ntt.forward(coefficients, parameters.plain_modulus).astype(np.int64)
    expected = np.array(WEIGHTS) @ party.updates[:, :DEGREE]
    assert np.array_equal(opened, expected % parameters.plain_modulus)


def test_contribution_without_consent_is_neither_read_nor_counted(party: Round) -> None:
    read: list[int] = []

    def watched(chunk: int, member: int) -> bytes:
        read.append(member)
        return party.block(chunk, member)

    mask = np.array([True, False, True, True])
    made = dict(run(FEDSUM, party.parameters, party.shape, watched, mask))
    assert np.array_equal(party.open([made[0], made[1]]), np.array([3, 0, 0, 7]) @ party.updates)
    assert set(read) == {0, 3}


def test_mask_that_leaves_no_weight_is_refused(party: Round) -> None:
    for mask in (np.array([False, False, True, False]), np.zeros(MEMBERS, dtype=np.bool_)):
        with pytest.raises(KernelParameterError):
            list(run(FEDSUM, party.parameters, party.shape, party.block, mask))
    with pytest.raises(KernelParameterError, match=r"expected bool \(4,\)"):
        list(run(FEDSUM, party.parameters, party.shape, party.block, np.ones(N_ENTRIES, dtype=np.bool_)))


def test_sealed_columns_of_a_bundle_are_no_contributions(party: Round) -> None:
    """Else a grant for an aggregate would give a score for every person."""
    sealed = {(c, f): b for c, f, b in bgv.encrypt_columns(party.updates.T, party.secret)}
    with pytest.raises(ContainerError) as refused:
        list(
            run(FEDSUM, party.parameters, party.shape, lambda c, f: sealed[c, f], np.ones(MEMBERS, np.bool_))
        )
    assert refused.value.field == "form"


def test_block_of_another_key_domain_or_parameter_set_is_refused(party: Round) -> None:
    tasks = plan(FEDSUM, party.parameters, party.shape)
    mask = np.ones(MEMBERS, dtype=np.bool_)
    for parameters in (BGV_PAIRS, BGV_MOMENTS):
        stranger = bgv.public_key_of(bgv.generate_secret_key(parameters))
        foreign = encrypt_contribution(party.updates[0], stranger, CLIP).blocks[0]
        with pytest.raises((WrongKeyDomainError, ContainerError)):
            execute(tasks[0], dict.fromkeys(tasks[0].inputs, foreign), mask)


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": [1, 2, 3]},
        {"weights": [0, 0, 0, 0]},
        {"weights": [1, 2, 3, 2.0]},
        {"weights": [1, 2, 3, 1 << 31]},
        {"rows": 1},
    ],
)
def test_parameters_out_of_range_are_refused(party: Round, changed: dict[str, object]) -> None:
    fields: dict[str, object] = {"weights": list(WEIGHTS)}
    assert FEDSUM.parse(fields) == party.parameters
    assert FEDSUM.parse(fields).to_dict() == fields
    with pytest.raises(KernelParameterError):
        FEDSUM.validate(FEDSUM.parse(fields | changed), party.shape)


def test_round_that_could_overflow_is_refused_at_the_first_weight_beyond_the_bound(party: Round) -> None:
    limit = party.shape.parameters.value_limit
    fits, over = limit // CLIP.max_abs, limit // CLIP.max_abs + 1
    parameters = replace(party.parameters, weights=(fits, 0, 0, 0))
    assert FEDSUM.validate(parameters, party.shape).margin_bits >= 20
    with pytest.raises(KernelBoundError, match=f"{over * CLIP.max_abs} exceeds the limit {limit}"):
        FEDSUM.validate(replace(parameters, weights=(1 - over, 0, -1, 0)), party.shape)


def test_result_at_the_value_bound_opens_exactly(party: Round) -> None:
    fits = party.shape.parameters.value_limit // CLIP.max_abs
    clip = replace(CLIP, n_entries=DEGREE, max_l2=CLIP.max_abs * 64)
    shape = replace(party.shape, n_rows=DEGREE, n_features=2)
    entries = np.resize([CLIP.max_abs, -CLIP.max_abs], DEGREE)
    blocks = [encrypt_contribution(e, party.public_key, clip).blocks[0] for e in (entries, -entries)]
    parameters = FedsumParameters(weights=(fits - 1, -1))
    mask = np.ones(2, dtype=np.bool_)
    ((_, result),) = run(FEDSUM, parameters, shape, lambda chunk, member: blocks[member], mask)
    assert np.array_equal(bgv.open_values(result, party.secret, range(DEGREE)), fits * entries)


def test_phase_of_a_contribution_keeps_to_the_bound_that_admission_relies_on(party: Round) -> None:
    """c0 + c1 s = m + t e: its coefficients, read as signed integers, against `uploaded_phase`."""
    parameters = party.secret.parameters
    q = slots.moduli(parameters)
    s = slots.transformed(party.secret._coefficients, parameters)
    modulus = parameters.coeff_modulus
    for made in party.contributions:
        found = parse(made.blocks[0])
        phase = (found.c0.reshape(s.shape) + found.c1.reshape(s.shape) * s) % q
        rows = [contribution.ntt.inverse(v, p) for v, p in zip(phase, parameters.primes, strict=True)]
        lifted = [_lift([int(row[k]) for row in rows], parameters.primes) for k in range(0, DEGREE, 64)]
        worst = max(abs(value - modulus if value > modulus // 2 else value) for value in lifted)
        assert parameters.plain_modulus < worst <= slots.uploaded_phase(parameters)


def _lift(residues: list[int], primes: tuple[int, ...]) -> int:
    """Chinese remainder theorem in Python integers."""
    modulus = int(np.prod(np.array(primes, dtype=object)))
    parts = (r * (modulus // p) * pow(modulus // p, -1, p) for r, p in zip(residues, primes, strict=True))
    return sum(parts) % modulus


# Contributions.


def test_honest_contribution_passes_and_two_of_one_update_differ(party: Round) -> None:
    for made in party.contributions:
        check_contribution(made, party.public_key, CLIP)
    again = encrypt_contribution(party.updates[0], party.public_key, CLIP)
    assert not set(again.blocks) & set(party.contributions[0].blocks)
    assert again.randomness != party.contributions[0].randomness


def test_blocks_of_one_contribution_share_no_randomness(party: Round) -> None:
    """With the same c1 in two of them, the difference of their c0 would be that of their entries, for everybody to read."""
    for made in party.contributions:
        first, second = (parse(block) for block in made.blocks)
        assert np.count_nonzero(first.c1 == second.c1) < 10


def test_chosen_ciphertext_that_reads_the_key_works_unchecked_and_is_refused(party: Round) -> None:
    """Positive control first: k added to c1 adds k s to what is opened, which gives the secret."""
    made = party.contributions[0]
    parameters = party.secret.parameters
    found = parse(made.blocks[0])
    k = slots.transformed(np.eye(1, DEGREE, dtype=np.int64)[0] * 5, parameters).reshape(-1)
    primes = np.repeat(np.array(parameters.primes, dtype=np.uint64), DEGREE)
    attack = encode(replace(found, c1=(found.c1 + k) % primes))
    stolen = np.array(bgv.open_values(attack, party.secret, range(DEGREE))) - party.updates[0][:DEGREE]
    secret = slots.encode(stolen, parameters)
    assert np.array_equal(secret, 5 * party.secret._coefficients)
    with pytest.raises(ContributionRefusedError, match="c1 of block 0"):
        check_contribution(replace(made, blocks=(attack, made.blocks[1])), party.public_key, CLIP)


def test_noise_that_was_added_to_a_contribution_is_found(party: Round) -> None:
    made = party.contributions[0]
    parameters = party.secret.parameters
    found = parse(made.blocks[1])
    noise = slots.transformed(
        parameters.plain_modulus * np.eye(1, DEGREE, dtype=np.int64)[0], parameters
    ).reshape(-1)
    primes = np.repeat(np.array(parameters.primes, dtype=np.uint64), DEGREE)
    louder = encode(replace(found, c0=(found.c0 + noise) % primes))
    assert bgv.open_values(louder, party.secret, [0]) == [party.updates[0][DEGREE]]
    with pytest.raises(ContributionRefusedError, match="c0 of block 1"):
        check_contribution(replace(made, blocks=(made.blocks[0], louder)), party.public_key, CLIP)


def test_update_that_is_not_clipped_is_refused_by_both_sides(party: Round) -> None:
    wide = replace(CLIP, max_abs=party.secret.parameters.value_limit, max_l2=1 << 40)
    long = np.zeros(N_ENTRIES, dtype=np.int64)
    long[7] = CLIP.max_abs + 1
    heavy = np.full(N_ENTRIES, CLIP.max_abs)
    for update, reason in ((long, "magnitude 501"), (heavy, "2-norm")):
        with pytest.raises(FeatureRangeError, match=reason):
            encrypt_contribution(update, party.public_key, CLIP)
        cheating = encrypt_contribution(update, party.public_key, wide)
        check_contribution(cheating, party.public_key, wide)
        with pytest.raises(ContributionRefusedError, match=reason):
            check_contribution(cheating, party.public_key, CLIP)


def test_squares_that_pass_64_bits_are_counted_in_full_by_both_sides() -> None:
    """Sixteen entries next to 2^30 have a squared 2-norm next to 2^64, which a signed word takes for less than 0."""
    _, public_key = small_round()
    update = np.full(16, -(1 << 30) + (1 << 18), dtype=np.int64)
    tight = Clip(n_entries=16, max_abs=BGV_MOMENTS.value_limit, max_l2=(1 << 32) - (1 << 20) - 1)
    roomy = replace(tight, max_l2=tight.max_l2 + 1)
    assert int(update @ update) < tight.max_l2**2 < 16 * int(update[0]) ** 2 == roomy.max_l2**2
    with pytest.raises(FeatureRangeError, match="2-norm"):
        encrypt_contribution(update, public_key, tight)
    cheating = encrypt_contribution(update, public_key, roomy)
    check_contribution(cheating, public_key, roomy)
    with pytest.raises(ContributionRefusedError, match="2-norm"):
        check_contribution(cheating, public_key, tight)
    with pytest.raises(FeatureRangeError, match="magnitude 9223372036854775808"):
        encrypt_contribution(np.full(16, -(1 << 63)), public_key, roomy)


def test_entries_after_the_last_one_are_refused(party: Round) -> None:
    longer = encrypt_contribution(
        np.ones(N_ENTRIES + 1, dtype=np.int64), party.public_key, replace(CLIP, n_entries=N_ENTRIES + 1)
    )
    with pytest.raises(ContributionRefusedError, match="after the last"):
        check_contribution(longer, party.public_key, CLIP)


def test_swapped_missing_or_foreign_parts_of_a_contribution_are_refused(party: Round) -> None:
    made, other = party.contributions[:2]
    wrong = [
        replace(made, blocks=made.blocks[::-1]),
        replace(made, blocks=(made.blocks[0], other.blocks[1])),
        replace(made, blocks=made.blocks[:1]),
        replace(made, randomness=other.randomness),
        replace(made, randomness=made.randomness[:-1]),
    ]
    for forged in wrong:
        with pytest.raises(ContributionRefusedError):
            check_contribution(forged, party.public_key, CLIP)
    with pytest.raises(ContributionRefusedError):
        check_contribution(made, bgv.public_key_of(party.secret), CLIP)
    with pytest.raises(WrongKeyDomainError):
        check_contribution(made, bgv.public_key_of(bgv.generate_secret_key()), CLIP)


def test_public_key_of_another_scheme_or_a_clip_that_does_not_fit_is_refused(party: Round) -> None:
    update = np.zeros(N_ENTRIES, dtype=np.int64)
    zeros = next(iter(bfv.encrypt_columns(np.zeros((1, 1), dtype=np.int64), bfv.generate_secret_key())))[2]
    with pytest.raises(ConfigurationError, match="bgv"):
        encrypt_contribution(update, zeros, CLIP)
    for changed in ({"max_abs": party.secret.parameters.value_limit + 1}, {"max_abs": 0}):
        with pytest.raises(ConfigurationError):
            encrypt_contribution(update, party.public_key, replace(CLIP, **changed))


@settings(max_examples=150, deadline=None)
@given(
    update=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    scale=st.integers(1, 1000),
    max_abs=st.integers(1, 500_000),
    max_l2=st.integers(1, 1 << 40),
)
def test_clipped_update_keeps_to_the_clip_whatever_it_was(
    update: list[float], scale: int, max_abs: int, max_l2: int
) -> None:
    clip = Clip(n_entries=len(update), max_abs=max_abs, max_l2=max_l2)
    if not all(math.isfinite(entry * scale) for entry in update):
        with pytest.raises(FeatureRangeError, match="finite"):
            clip_update(np.array(update), scale=scale, clip=clip)
        return
    clipped = clip_update(np.array(update), scale=scale, clip=clip)
    clip.check(clipped)
    assert (np.sign(clipped) * np.sign(update) >= 0).all()


def test_update_within_the_clip_only_loses_its_fractions() -> None:
    clip = Clip(n_entries=3, max_abs=10, max_l2=12)
    assert clip_update(np.array([0.99, -0.55, 0.0]), scale=10, clip=clip).tolist() == [9, -5, 0]
    assert clip_update(np.array([3.0, -4.0, 0.0]), scale=10, clip=clip).tolist() == [7, -9, 0]
    for wrong in (np.ones(2), np.array([1.0, np.nan, 0.0]), np.array([np.inf, 0.0, 0.0])):
        with pytest.raises(FeatureRangeError):
            clip_update(wrong, scale=1, clip=clip)


def test_randomness_is_not_shown(party: Round) -> None:
    assert party.contributions[0].randomness.hex() not in repr(party.contributions[0])
    assert repr(party.contributions[0].randomness) not in repr(party.contributions[0])


@lru_cache(maxsize=1)
def small_round() -> tuple[SecretKey, bytes]:
    secret = bgv.generate_secret_key(BGV_MOMENTS)
    return secret, bgv.public_key_of(secret)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-(1 << 29), 1 << 29), min_size=1, max_size=12))
def test_any_update_within_the_clip_is_accepted_and_opens_to_itself(entries: list[int]) -> None:
    """With the plaintext modulus of 31 bits, wider than a prime of the ciphertext."""
    secret, public_key = small_round()
    clip = Clip(n_entries=len(entries), max_abs=1 << 29, max_l2=1 << 31)
    made: Contribution = encrypt_contribution(np.array(entries), public_key, clip)
    check_contribution(made, public_key, clip)
    assert bgv.open_values(made.blocks[0], secret, range(len(entries))) == entries


def test_kernel_record_is_a_static_aggregate(party: Round) -> None:
    assert FEDSUM.kernel_class == "aggregate" and FEDSUM.scheme == "bgv"
    assert isinstance(FEDSUM.bounds, MappingProxyType)
    assert FedsumParameters(weights=(2, -9)).sensitivity(party.shape) == 9 * CLIP.max_l2
