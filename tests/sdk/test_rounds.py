"""Rounds: a steward's call, what members contribute to it, and everything that a hostile file could say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_release import NETWORK

from bundle_fixture import JOB_ID, SmallBundle
from chain_fixture import Organisation
from usufruct.carry import import_bundle
from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.differencing import Asked, near
from usufruct.errors import (
    CarError,
    ConfigurationError,
    ContainerError,
    ContributionRefusedError,
    FeatureError,
    InputError,
    KernelBoundError,
    KernelParameterError,
    ManifestError,
    ReleaseRefusedError,
    UsufructError,
    VerificationError,
    WrongKeyDomainError,
)
from usufruct.features import Extractor
from usufruct.he import bgv
from usufruct.he.container import Form
from usufruct.he.contribution import encrypt_contribution
from usufruct.he.isolated import IsolatedOpener
from usufruct.he.kernels import FEDSUM, SUM, FedsumParameters, SumParameters, run
from usufruct.he.parameters import BFV_LINEAR, BGV_MOMENTS
from usufruct.he.secret import SecretKey
from usufruct.job import FeatureBundle, JobInputs, JobParameters, check_job, estimate, job_parameters
from usufruct.keys import hpke
from usufruct.ledger import typed_data
from usufruct.privacy import MICRO, sigma_for
from usufruct.publish import BundleManifest, PublishedBundle, publish_round, read_manifest
from usufruct.records import Participant, Role, label
from usufruct.register import Policy, check_runnable
from usufruct.release import (
    add_noise,
    decrypt_result,
    open_envelope,
    read_payload,
    seal_payload,
    sigma_micro,
    sign_release,
)
from usufruct.rounds import (
    MAX_ENTRIES,
    Call,
    Contributed,
    RoundTerms,
    _domain,
    _info,
    check_contributed,
    check_signed,
    contribute,
    gather,
    make_call,
    read_contribution,
    signed_values,
    write_contribution,
)

SCOPE = "shared-model"
ENTRIES = BGV_MOMENTS.poly_modulus_degree + 5
STEWARD = Organisation("steward", Role.CUSTODIAN | Role.STEWARD)
MEMBERS = {name: Organisation(name, Role.STEWARD) for name in ("east", "north", "south", "west")}
WITHDRAWN = "south"
PARTNER = Organisation("university", Role.PARTNER)
RHO_MICRO = 500_000


class Kept:
    """Stands where the organisation's node stands."""

    def __init__(self) -> None:
        self.blocks: dict[Cid, bytes] = {}
        self.records: list[dict[str, object]] = []

    def stage(self, blocks: list[bytes]) -> Iterator[Cid]:
        for block in blocks:
            self.blocks[Cid.of(block)] = block
            yield Cid.of(block)

    def put_record(self, kind: str, record: dict[str, object]) -> Cid:
        assert kind == "bundle"
        self.records.append(record)
        return dag.cid_of(record)


def terms_of(secret: SecretKey, **changes: object) -> RoundTerms:
    usual: dict[str, object] = {
        "name": "gait-model",
        "extractor": Extractor(name="trainer", sha256="ab" * 32),
        "n_entries": ENTRIES,
        "max_abs": 0.5,
        "max_l2": 4.0,
        "scale": 1000,
        "key_id": secret.key_id,
        "parameters": secret.parameters,
    }
    return RoundTerms(**usual | changes)


class Round:
    """Four members' updates to one call; one is longer than the terms allow, and one member has withdrawn since."""

    def __init__(self) -> None:
        self.secret = bgv.generate_secret_key(BGV_MOMENTS)
        self.call = make_call(self.secret, terms_of(self.secret), steward="steward", scope=SCOPE)
        self.call = self.call.signed(NETWORK, STEWARD.authority_key)
        rng = np.random.default_rng(3)
        self.updates = {name: rng.normal(0, 0.01, ENTRIES) for name in MEMBERS}
        self.updates["west"] *= 100
        self.contributions = {name: self.contribution(name) for name in MEMBERS}

    def contribution(self, name: str) -> Contributed:
        return contribute(
            self.call,
            self.updates[name],
            member=name,
            recipient_key=STEWARD.record.hpke_key,
            network=NETWORK,
            signing_key=MEMBERS[name].authority_key,
        )

    def gathered(self) -> list[Contributed]:
        found = list(self.contributions.values())
        return gather(
            self.call, found[::-1], member=member, hpke_private=STEWARD.hpke_private, network=NETWORK
        )

    def published(self) -> tuple[PublishedBundle, Kept]:
        node = Kept()
        return publish_round(self.call, self.gathered(), node, positions=[7, 2, 4, 0]), node

    def quantised(self, name: str) -> np.ndarray:
        """What counts of an update, worked out anew: shortened to 4 units of length, cut to half a unit, towards zero."""
        update = self.updates[name]
        shortened = update * min(1.0, 4.0 / np.linalg.norm(update))
        return np.trunc(np.clip(shortened, -0.5, 0.5) * 1000)


def member(name: str) -> Participant:
    if name not in MEMBERS:
        raise InputError(f"{name} is no member")
    return MEMBERS[name].record


@pytest.fixture(scope="module")
def party() -> Round:
    return Round()


# Call and contribution.


def test_a_call_comes_back_from_its_bytes_and_shows_who_signed_it(party: Round) -> None:
    call = Call.from_bytes(party.call.to_bytes())
    assert call == party.call and "public_key" not in repr(call)
    call.check(NETWORK, STEWARD.record)
    for wrong in (
        replace(call, scope="another"),
        replace(call, terms=terms_of(party.secret, max_l2=8.0)),
        replace(call, public_key=bgv.public_key_of(party.secret)),
    ):
        with pytest.raises(VerificationError):
            wrong.check(NETWORK, STEWARD.record)
    with pytest.raises(VerificationError):
        call.check(NETWORK, MEMBERS["north"].record)
    with pytest.raises(VerificationError):
        call.check(NETWORK.model_copy(update={"chain_id": 5}), STEWARD.record)


def test_the_terms_of_a_round_are_checked() -> None:
    secret = bgv.generate_secret_key(BGV_MOMENTS)
    for change in (
        {"n_entries": 0},
        {"n_entries": MAX_ENTRIES + 1},
        {"max_abs": 0.0},
        {"max_l2": float("inf")},
        {"max_l2": 1},
        {"scale": 0},
        {"scale": 1 << 40},
        {"max_l2": 1e-6},
        {"name": "a name"},
        {"parameters": BFV_LINEAR},
    ):
        with pytest.raises(FeatureError):
            terms_of(secret, **change)
    endless = terms_of(secret, max_l2=1e308)
    assert endless.clip == replace(terms_of(secret).clip, max_l2=int(500 * ENTRIES**0.5))
    assert terms_of(secret, max_abs=1e308, max_l2=2.0).clip.max_abs == 2000
    other = bgv.generate_secret_key(BGV_MOMENTS)
    with pytest.raises(ConfigurationError, match="another key domain"):
        make_call(other, terms_of(secret), steward="steward", scope=SCOPE)


@pytest.mark.parametrize("name", ["type", "steward", "scope", "terms", "public_key", "signature"])
def test_a_malformed_call_is_refused(party: Round, name: str) -> None:
    record = dag.decode_map(party.call.to_bytes())
    foreign = bgv.public_key_of(bgv.generate_secret_key(BGV_MOMENTS))
    for changed in (
        {key: value for key, value in record.items() if key != name},
        record | {name: 5},
        record | {name: "Not A Label"},
        record | {"more": 1},
        record | {"public_key": foreign},
        record | {"terms": dict(record["terms"]) | {"entries": True}},
        record | {"terms": dict(record["terms"]) | {"extractor": {"name": "x"}}},
    ):
        with pytest.raises((ManifestError, ContainerError, WrongKeyDomainError)):
            Call.from_bytes(dag.encode(changed))
    with pytest.raises(ManifestError, match="at most"):
        Call.from_bytes(bytes(1 << 21))


def test_a_contribution_travels_in_a_file_of_its_own(party: Round, tmp_path: Path) -> None:
    path = tmp_path / "north.car"
    write_contribution(party.contributions["north"], path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_contribution(path, most_blocks=2) == party.contributions["north"]
    with pytest.raises(InputError, match="exists already"):
        write_contribution(party.contributions["north"], path)
    with pytest.raises(ManifestError, match="up to 1"):
        read_contribution(path, most_blocks=1)
    with pytest.raises(InputError, match="cannot be read"):
        read_contribution(tmp_path / "absent", most_blocks=2)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["north.car"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_contribution_with_any_byte_changed_is_refused(
    party: Round, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    write_contribution(party.contributions["north"], folder / "whole")
    whole = bytearray((folder / "whole").read_bytes())
    # Half of the changes fall into the header and the record, which are a thousandth of the file.
    place = data.draw(st.integers(0, 500) | st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    (folder / "changed").write_bytes(whole)
    with pytest.raises(UsufructError):
        found = read_contribution(folder / "changed", most_blocks=2)
        gather(party.call, [found], member=member, hpke_private=STEWARD.hpke_private, network=NETWORK)


def test_a_file_with_more_fewer_or_other_blocks_is_refused(party: Round, tmp_path: Path) -> None:
    made = party.contributions["north"]
    write_contribution(made, tmp_path / "whole")
    with (tmp_path / "whole").open("rb") as file:
        (root, record), first, second = CarReader(file)

    def attempt(sections: list[tuple[Cid, bytes]], roots: list[Cid]) -> None:
        with (tmp_path / "file").open("wb") as file:
            writer = CarWriter(file, roots)
            for cid, data in sections:
                writer.add(cid, data)
        read_contribution(tmp_path / "file", most_blocks=2)

    attempt([(root, record), first, second], [root])
    for sections in (
        [(root, record), first],
        [(root, record), first, second, second],
        [(root, record), second, first],
        [first, second],
        [],
    ):
        with pytest.raises(CarError):
            attempt(sections, [root])
    with pytest.raises(CarError):
        attempt([(root, record), first, second], [root, root])
    raw = Cid.of(b"no record", Codec.RAW)
    with pytest.raises(CarError):
        attempt([(raw, b"no record")], [raw])


# Gathering.


def test_contributions_are_checked_and_come_in_the_order_of_names(party: Round) -> None:
    seen: list[tuple[int, int]] = []
    found = gather(
        party.call,
        list(party.contributions.values())[::-1],
        member=member,
        hpke_private=STEWARD.hpke_private,
        network=NETWORK,
        progress=lambda *step: seen.append(step),
    )
    assert [one.member for one in found] == sorted(MEMBERS)
    assert seen[-1] == (4, 4)


def test_nobody_hands_in_what_another_made_or_made_for_another_call(party: Round) -> None:
    def check(contributed: Contributed, call: Call = party.call) -> None:
        gather(call, [contributed], member=member, hpke_private=STEWARD.hpke_private, network=NETWORK)

    north, east = party.contributions["north"], party.contributions["east"]
    check(north)
    with pytest.raises(ContributionRefusedError, match=r"of (north|east) is refused"):
        check(replace(north, member="east"))
    with pytest.raises(ContributionRefusedError, match=r"of (north|east) is refused"):
        check(replace(north, blocks=east.blocks))
    with pytest.raises(InputError, match="no member"):
        check(replace(north, member="stranger"))
    with pytest.raises(InputError, match="two contributions of north"):
        gather(party.call, [north, north], member=member, hpke_private=STEWARD.hpke_private, network=NETWORK)
    again = make_call(party.secret, terms_of(party.secret), steward="steward", scope=SCOPE)
    with pytest.raises(ContributionRefusedError, match="another call"):
        check(north, again.signed(NETWORK, STEWARD.authority_key))


def signed_by_east(party: Round, contributed: Contributed) -> Contributed:
    """The same as a contribution of `east`, whose authority signs what stands in it now."""
    values = signed_values(contributed.call, "east", contributed.cids)
    signature = typed_data.sign(
        MEMBERS["east"].authority_key, typed_data.CONTRIBUTION, values, **_domain(NETWORK)
    )
    return replace(contributed, member="east", signature=signature)


def test_a_member_that_signs_anothers_blocks_cannot_say_what_they_were_made_from(party: Round) -> None:
    """Positive control: the steward itself can open what they were made from, and they are in order."""
    north = party.contributions["north"]
    check_contributed(
        north, party.call, member=member("north"), hpke_private=STEWARD.hpke_private, network=NETWORK
    )
    stolen = signed_by_east(party, north)
    with pytest.raises(ContributionRefusedError, match="does not open"):
        check_contributed(
            stolen, party.call, member=member("east"), hpke_private=STEWARD.hpke_private, network=NETWORK
        )


def test_what_a_contribution_was_made_from_opens_for_its_own_call_only(party: Round) -> None:
    """Though its member signs the same blocks for another call under the same key."""
    north, other = party.contributions["north"], replace(party.call, scope="another-model")
    values = signed_values(other.digest, "north", north.cids)
    signature = typed_data.sign(
        MEMBERS["north"].authority_key, typed_data.CONTRIBUTION, values, **_domain(NETWORK)
    )
    moved = replace(north, call=other.digest, signature=signature)
    with pytest.raises(ContributionRefusedError, match="does not open"):
        check_contributed(
            moved, other, member=member("north"), hpke_private=STEWARD.hpke_private, network=NETWORK
        )


def test_an_update_longer_than_the_terms_is_refused_though_its_member_signed(party: Round) -> None:
    """With four times the norm it would weigh four times as much in the sum."""
    clip = replace(party.call.terms.clip, max_l2=16_000)
    update = np.full(ENTRIES, 100)
    made = encrypt_contribution(update, party.call.public_key, clip)
    found = Contributed(call=party.call.digest, member="east", blocks=made.blocks, randomness=b"")
    sealed = hpke.seal_to(STEWARD.record.hpke_key, made.randomness, _info(found))
    long = signed_by_east(party, replace(found, randomness=sealed))
    with pytest.raises(ContributionRefusedError, match="not clipped"):
        check_contributed(
            long, party.call, member=member("east"), hpke_private=STEWARD.hpke_private, network=NETWORK
        )


def test_an_update_of_another_shape_or_without_a_number_is_refused(party: Round) -> None:
    for update in (np.zeros(3), np.zeros((1, ENTRIES)), np.full(ENTRIES, np.nan), np.full(ENTRIES, np.inf)):
        with pytest.raises(FeatureError):
            contribute(
                party.call,
                update,
                member="east",
                recipient_key=STEWARD.record.hpke_key,
                network=NETWORK,
                signing_key=MEMBERS["east"].authority_key,
            )


# The bundle of a round, and jobs on it.


def test_a_round_becomes_one_bundle_that_says_who_contributed(party: Round) -> None:
    published, node = party.published()
    manifest = published.manifest
    again = read_manifest(dag.decode_map(dag.encode(node.records[0])))
    assert (again.blocks, again.round, again.shape) == (manifest.blocks, manifest.round, manifest.shape)
    assert again.subjects.tolist() == manifest.subjects.tolist() == [7, 2, 4, 0]
    assert [column.name for column in manifest.schema.columns] == sorted(MEMBERS)
    assert (manifest.shape.n_rows, manifest.shape.n_features) == (ENTRIES, 4)
    assert (manifest.shape.max_abs, manifest.shape.max_l2) == (500, 4000)
    assert manifest.block_form is Form.CIPHERTEXT and manifest.max_items_per_subject == 1
    for feature, name in enumerate(sorted(MEMBERS)):
        made = party.contributions[name]
        assert manifest.blocks_of(feature) == made.cids
        check_signed(NETWORK, member(name), manifest.round.call, manifest.blocks_of(feature), made.signature)
    with pytest.raises(VerificationError):
        check_signed(
            NETWORK, member("east"), manifest.round.call, manifest.blocks_of(1), manifest.round.signatures[0]
        )


@pytest.mark.parametrize(
    ("place", "value"),
    [("scope", "marketing"), ("steward", "north"), ("key_digest", bytes(32)), ("max_l2", 8.0), ("scale", 10)],
)
def test_what_members_signed_for_cannot_be_registered_as_something_else(
    party: Round, place: str, value: object
) -> None:
    """Else updates within one bound would be released with the noise of another, or for another purpose."""
    record = party.published()[1].records[0]
    terms = dict(record["terms"])
    changed = record | ({"terms": terms | {place: value}} if place in terms else {place: value})

    def check(told: dict[str, object]) -> None:
        manifest = read_manifest(told)
        found, cids = manifest.round, manifest.blocks_of(0)
        check_signed(NETWORK, member("east"), found.call, cids, found.signatures[0])

    check(record)
    with pytest.raises(VerificationError):
        check(changed)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {name: ...}
            for name in (
                *("steward", "terms", "key_digest", "members", "signatures", "scope", "subjects", "blocks"),
            )
        ),
        {"more": 1},
        {"key_digest": bytes(31)},
        {"steward": 5},
        {"scope": 5},
        {"members": ["east", "north", "south"]},
        {"members": ["east", "east", "south", "west"]},
        {"members": ["east", "north", "south", "We st"]},
        {"members": ["east", "north", "south", 4]},
        {"members": []},
        {"signatures": [bytes(65)] * 3},
        {"signatures": [bytes(64)] * 4},
        {"signatures": b""},
        {"subjects": np.array([7, 2, 4, 7], dtype="<u4").tobytes()},
        {"subjects": np.array([7, 2, 4], dtype="<u4").tobytes()},
        {"subjects": np.array([7, 2, 4, 1 << 25], dtype="<u4").tobytes()},
        {"blocks": []},
    ],
    ids=repr,
)
def test_a_malformed_manifest_of_a_round_is_refused(party: Round, change: dict[str, object]) -> None:
    _, node = party.published()
    record = {key: value for key, value in (node.records[0] | change).items() if value is not ...}
    with pytest.raises(ManifestError):
        read_manifest(record)


def test_positions_have_to_fit_the_contributions(party: Round) -> None:
    for positions in ([0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 2.5], [0, 1, 2, -1]):
        with pytest.raises(InputError):
            publish_round(party.call, party.gathered(), Kept(), positions=positions)
    with pytest.raises(InputError):
        publish_round(party.call, [], Kept(), positions=[])


def policy_of(**changes: object) -> Policy:
    usual = Policy(
        purposes=(SCOPE,), kernels=("fedsum",), min_cohort=2, row_level=False, max_rho_micro_per_job=MICRO
    )
    return replace(usual, **changes)


def status_of(*withdrawn: int) -> ConsentStatus:
    bits = np.zeros(8, dtype=np.uint8)
    bits[list(withdrawn)] = 1
    return ConsentStatus(scope=SCOPE, epoch=1, valid_until=1 << 40, bits=np.packbits(bits).tobytes())


def inputs_of(
    bundle: SmallBundle,
    manifest: BundleManifest,
    parameters: JobParameters,
    *withdrawn: int,
    policy: Policy | None = None,
) -> JobInputs:
    """What executor, verifiers and custodian take from a job on the round."""
    return check_job(
        bundle.request(parameters, purpose=label(SCOPE), rho_micro=RHO_MICRO),
        replace(
            bundle.artifact,
            steward=STEWARD.id,
            key_id=manifest.shape.key_id,
            consent_scope=label(SCOPE),
        ),
        manifest=manifest,
        policy=policy or policy_of(),
        status=status_of(*withdrawn),
        parameters=parameters,
        min_cohort=0,
    )


def featured(bundle: SmallBundle, manifest: BundleManifest) -> FeatureBundle:
    artifact = replace(bundle.artifact, key_id=manifest.shape.key_id)
    return FeatureBundle(
        artifact_id=bundle.request(bundle.parameters()).artifact_id,
        artifact=artifact,
        steward="steward",
        manifest=manifest,
        policy=policy_of(),
    )


def result_of(inputs: JobInputs, node: Kept) -> list[bytes]:
    manifest, columns = inputs.manifest, inputs.manifest.shape.n_features
    made = run(
        FEDSUM,
        inputs.parameters.parameters,
        manifest.shape,
        lambda chunk, feature: node.blocks[manifest.blocks[chunk * columns + feature]],
        inputs.mask,
    )
    return [block for _, block in made]


def test_a_partner_reads_the_noised_sum_of_those_that_still_consent(
    party: Round, bundle: SmallBundle
) -> None:
    published, node = party.published()
    manifest = published.manifest
    weights = {"east": 3, "north": 1, "south": 2, "west": 5}
    parameters = job_parameters(
        featured(bundle, manifest), "fedsum", {"weights": [weights[name] for name in sorted(MEMBERS)]}
    )
    # `south` has position 4 and withdraws.
    inputs = inputs_of(bundle, manifest, parameters, 4)
    with IsolatedOpener(party.secret) as opener:
        opened = decrypt_result(inputs, result_of(inputs, node), opener)
    expected = sum(weights[name] * party.quantised(name) for name in MEMBERS if name != WITHDRAWN)
    assert np.array_equal(opened, expected)

    noised, levels = add_noise(opened, inputs, rho_micro=RHO_MICRO)
    (level,) = levels
    assert level.outputs == ENTRIES
    assert level.sigma == pytest.approx(sigma_for(RHO_MICRO, 5 * 4000))
    job = replace(
        bundle.job(parameters),
        request=replace(bundle.request(parameters), rho_micro=RHO_MICRO),
        key_id=manifest.shape.key_id,
    )
    sealed = seal_payload(
        *(NETWORK.chain_id, JOB_ID, job, inputs, noised, levels),
        recipient_key=PARTNER.record.hpke_key,
    )
    envelope = sign_release(NETWORK, JOB_ID, job, sealed, sigma_micro(levels), signing_key=STEWARD.node_key)
    payload = open_envelope(
        NETWORK, JOB_ID, job, envelope, custodian=STEWARD.record, hpke_private=PARTNER.hpke_private
    )
    released = read_payload(envelope, payload, JOB_ID, job.request)
    assert released.count == 3 + 1 + 5 and not released.row_level
    truth = expected / 1000 / 9
    assert np.abs(released.mean() - truth).max() <= released.mean_error(1e-9)
    assert np.std(released.mean() - truth) == pytest.approx(level.sigma / 1000 / 9, rel=0.1)


def test_contributions_count_alike_where_nothing_else_is_asked(party: Round, bundle: SmallBundle) -> None:
    published, _ = party.published()
    given = job_parameters(featured(bundle, published.manifest), "fedsum", {})
    assert given.parameters == FedsumParameters(weights=(1, 1, 1, 1))
    whole = estimate(featured(bundle, published.manifest), given, rho_micro=RHO_MICRO)
    assert whole.sigma == pytest.approx(sigma_for(RHO_MICRO, 4000) / 1000 / 4)
    assert whole.quantisation_error == 1 / 1000
    fewer = estimate(featured(bundle, published.manifest), given, rho_micro=RHO_MICRO, status=status_of(4, 0))
    assert fewer.sigma == pytest.approx(whole.sigma * 2)


def test_kernels_for_rows_and_for_contributions_do_not_reach_each_others_bundles(
    party: Round, bundle: SmallBundle
) -> None:
    """A steward's rows summed column by column would be a score of every person."""
    published, _ = party.published()
    for manifest, parameters in (
        (
            replace(bundle.manifest, scope=SCOPE),
            JobParameters(kernel=FEDSUM, parameters=FedsumParameters(weights=(1, 1)), result_scale=1.0),
        ),
        (published.manifest, JobParameters(kernel=SUM, parameters=SumParameters(), result_scale=1.0)),
    ):
        with pytest.raises(KernelParameterError, match="is for"):
            parameters.validate(manifest)
        with pytest.raises(KernelParameterError, match="is for"):
            inputs_of(bundle, manifest, parameters, policy=policy_of(kernels=("fedsum", "sum")))


def test_a_policy_names_kernels_of_the_bundles_own_kind(party: Round, bundle: SmallBundle) -> None:
    shape = party.published()[0].manifest.shape
    check_runnable(policy_of(), shape, of_contributions=True)
    for policy, of_contributions in ((policy_of(), False), (policy_of(kernels=("fedsum", "moments")), True)):
        with pytest.raises(InputError, match="runs on"):
            check_runnable(policy, shape, of_contributions=of_contributions)
    wide = replace(shape, max_abs=shape.parameters.value_limit, max_l2=shape.parameters.value_limit)
    with pytest.raises(KernelBoundError, match="no fedsum"):
        check_runnable(policy_of(), wide, of_contributions=True)


def fedsum(*weights: int) -> JobParameters:
    return JobParameters(kernel=FEDSUM, parameters=FedsumParameters(weights=weights), result_scale=1000.0)


def test_weights_that_leave_too_few_or_are_negative_are_refused(party: Round, bundle: SmallBundle) -> None:
    manifest = party.published()[0].manifest
    assert inputs_of(bundle, manifest, fedsum(1, 1, 0, 0)).count == 2
    for parameters, withdrawn in (
        (fedsum(9, 0, 0, 0), ()),
        (fedsum(1, 1, 0, 0), (7,)),
        (fedsum(0, 0, 1, 1), (4,)),
    ):
        with pytest.raises(ReleaseRefusedError, match="COHORT_TOO_SMALL"):
            inputs_of(bundle, manifest, parameters, *withdrawn)
    with pytest.raises(KernelParameterError, match="not negative"):
        inputs_of(bundle, manifest, fedsum(1, 1, 1, -1))


def test_sums_that_weigh_contributions_differently_are_charged_as_one(
    party: Round, bundle: SmallBundle
) -> None:
    """Positive control: two sums with one weight changed differ by that member's update alone, but for the noise."""
    manifest = party.published()[0].manifest

    def asked(*weights: int, withdrawn: tuple[int, ...] = ()) -> Asked:
        return Asked.by(inputs_of(bundle, manifest, fedsum(*weights), *withdrawn), RHO_MICRO)

    first = asked(1, 1, 1, 1)
    assert near(first, asked(1, 1, 1, 2), 2)
    assert near(first, asked(1, 1, 1, 0), 2)
    assert near(first, asked(9, 7, 5, 3), 2)
    assert near(first, asked(1, 1, 1, 1, withdrawn=(0,)), 2)
    assert not near(first, asked(1, 1, 1, 1), 2), "the same again tells nothing of anybody in particular"
    assert not near(first, asked(3, 3, 3, 3), 2)


def test_a_release_that_a_restored_custodian_forgot_is_near_to_every_other_sum(
    party: Round, bundle: SmallBundle
) -> None:
    """It knows who consented, and not who was given a weight."""
    manifest = party.published()[0].manifest
    asked = Asked.by(inputs_of(bundle, manifest, fedsum(1, 1, 1, 1)), RHO_MICRO)
    for status in (status_of(4), None):
        forgotten = Asked.forgotten(manifest, status, RHO_MICRO)
        assert near(asked, forgotten, 2) and near(forgotten, forgotten, 2)


def test_a_round_of_another_stewards_call_gives_no_job(party: Round, bundle: SmallBundle) -> None:
    published = party.published()[0]
    foreign = replace(published.manifest, round=replace(published.manifest.round, steward="north"))
    with pytest.raises(ManifestError, match="another steward"):
        inputs_of(bundle, foreign, fedsum(1, 1, 1, 1))


def test_more_or_fewer_weights_than_contributions_are_refused(party: Round, bundle: SmallBundle) -> None:
    manifest = party.published()[0].manifest
    for weights in ((1,), (1, 1, 1), (1, 1, 1, 1, 1)):
        with pytest.raises(KernelParameterError, match="weights for 4"):
            inputs_of(bundle, manifest, fedsum(*weights))
        with pytest.raises(KernelParameterError, match="weights for 4"):
            fedsum(*weights).used(np.ones(4, dtype=np.bool_))


def test_contributions_are_not_taken_from_an_archive(party: Round, tmp_path: Path) -> None:
    """Whoever exchanged the file could have ciphertexts of its choice opened."""
    published, node = party.published()
    record = dag.encode(node.records[0])
    with (tmp_path / "round.car").open("wb") as file:
        writer = CarWriter(file, [published.cid])
        writer.add(published.cid, record)
        for cid in published.manifest.blocks:
            writer.add(cid, node.blocks[cid])
    taken = Kept()
    with pytest.raises(InputError, match="not taken from an archive"):
        import_bundle(tmp_path / "round.car", taken)
    assert not taken.blocks and not taken.records
