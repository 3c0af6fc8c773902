"""Steps 4 and 6: policies, key domains, bundles and rights, on a real chain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from bundle_fixture import SCOPE, SmallBundle
from chain_fixture import FAR, Consortium
from usufruct import register
from usufruct.content import Cid, dag
from usufruct.errors import (
    ChainStalledError,
    InputError,
    KernelBoundError,
    ManifestError,
    TransactionRevertedError,
    UnknownKernelError,
    WrongKeyDomainError,
)
from usufruct.keys.he_keys import create_key_domain
from usufruct.publish import MAX_SUBJECTS, PublishedBundle, read_manifest
from usufruct.records import ArtifactId, ArtifactKind, KeyStatus, label
from usufruct.register import Policy, change_policy, register_bundle, register_key_domain
from usufruct.replication import Replication


@dataclass
class Kept:
    """Stands where the organisation's node stands: keeps what it is given."""

    records: list[tuple[str, object]] = field(default_factory=list)

    def put_record(self, kind: str, record: object) -> Cid:
        self.records.append((kind, record))
        return dag.cid_of(record)

    def get_record(self, cid: Cid, *, holder: str) -> object:
        return next(record for _, record in self.records if dag.cid_of(record) == cid)


POLICY = Policy(
    purposes=(SCOPE,), kernels=("sum",), min_cohort=10, row_level=False, max_rho_micro_per_job=1_000_000
)


def test_a_policy_comes_back_from_its_record() -> None:
    copied = replace(POLICY, replication=Replication(copies=3, holders=("south", "auditor")))
    for policy in (POLICY, copied):
        assert Policy.from_record(dag.decode_map(dag.encode(policy.to_record()))) == policy


@pytest.mark.parametrize(
    "change",
    [
        *({name: ...} for name in POLICY.to_record()),
        {"type": "usufruct/policy/1"},
        {"purposes": SCOPE},
        {"purposes": [1]},
        {"kernels": None},
        {"kernels": [b"sum"]},
        {"min_cohort": 0},
        {"min_cohort": -1},
        {"min_cohort": True},
        {"min_cohort": 10.0},
        {"min_cohort": MAX_SUBJECTS + 1},
        {"row_level": 0},
        {"row_level": None},
        {"max_rho_micro_per_job": 0},
        {"max_rho_micro_per_job": "1"},
        {"replication": None},
        {"replication": {"copies": 1}},
        {"replication": {"copies": 0, "holders": []}},
        {"replication": {"copies": 17, "holders": []}},
        {"replication": {"copies": True, "holders": []}},
        {"replication": {"copies": 2, "holders": "south"}},
        {"replication": {"copies": 2, "holders": [b"south"]}},
        {"replication": {"copies": 2, "holders": ["no label"]}},
        {"replication": {"copies": 2, "holders": ["south", "south"]}},
        {"replication": {"copies": 3, "holders": ["south"]}},
        {"replication": {"copies": 1, "holders": ["south"]}},
        {"replication": {"copies": 2, "holders": [], "extra": 1}},
        {"extra": 1},
    ],
    ids=repr,
)
def test_a_malformed_policy_is_refused(change: dict) -> None:
    record = {key: value for key, value in (POLICY.to_record() | change).items() if value is not ...}
    with pytest.raises(ManifestError):
        Policy.from_record(record)


@pytest.fixture(scope="module")
def record(consortium: Consortium, bundle: SmallBundle) -> dict[str, object]:
    """The manifest of the small bundle, under a key domain of `north`."""
    key_id = bytes(consortium.key_domain("north"))
    return bundle.record | {"sealed": dict(bundle.record["sealed"]) | {"key_id": key_id}}


@pytest.fixture(scope="module")
def published(record: dict[str, object]) -> PublishedBundle:
    return PublishedBundle(cid=dag.cid_of(record), manifest=read_manifest(record), size_bytes=1)


def test_a_key_domain_is_registered_with_the_digest_of_its_public_record(consortium: Consortium) -> None:
    secret, public = create_key_domain()
    node, ledger = Kept(), consortium["north"].ledger
    key_id = register_key_domain(ledger, node, public)
    domain = consortium.reader.key_domain(key_id)
    assert key_id == secret.key_id
    assert (domain.custodian, domain.status) == (consortium["north"].id, KeyStatus.ACTIVE)
    assert domain.public_digest == dag.cid_of(node.records[0][1]).digest
    with pytest.raises(TransactionRevertedError, match="KeyRegistryAlreadyKnown"):
        register_key_domain(ledger, Kept(), public)
    with pytest.raises(TransactionRevertedError, match="KeyRegistryParametersNotAllowed"):
        register_key_domain(ledger, Kept(), public | {"parameters_id": bytes(32)})
    with pytest.raises(InputError):
        register_key_domain(ledger, Kept(), public | {"key_id": None})


def test_a_bundle_is_registered_with_policy_and_budget(
    consortium: Consortium, record: dict[str, object], published: PublishedBundle
) -> None:
    node, ledger = Kept([("bundle", record)]), consortium["north"].ledger
    artifact_id = register_bundle(
        ledger, node, published, policy=POLICY, retain_until=FAR, budget_rho_micro=77
    )
    found = consortium.reader.artifact(artifact_id)
    assert (found.kind, found.content_digest) == (ArtifactKind.BUNDLE, published.cid.digest)
    assert found.policy_digest == dag.cid_of(POLICY.to_record()).digest
    assert found.consent_scope == label(SCOPE)
    assert consortium.reader.budget(artifact_id).total == 77
    repeated = register_bundle(
        ledger, node, published, policy=POLICY, retain_until=FAR - 3600, budget_rho_micro=77
    )
    assert (repeated, consortium.reader.budget(artifact_id).total) == (artifact_id, 77)
    assert consortium.reader.artifact(artifact_id).retain_until == FAR
    with pytest.raises(InputError, match="registered already") as refused:
        register_bundle(
            ledger, node, published, policy=POLICY, retain_until=FAR - 2 * 86_400, budget_rho_micro=77
        )
    assert "set-budget" in refused.value.hint
    again = replace(POLICY, min_cohort=20)
    cid = change_policy(ledger, node, artifact_id, again)
    changed = consortium.reader.artifact(artifact_id)
    assert (changed.policy_version, changed.policy_digest) == (2, cid.digest)
    with pytest.raises(InputError, match="registered already"):
        register_bundle(ledger, Kept(), published, policy=POLICY, retain_until=FAR, budget_rho_micro=1)
    with pytest.raises(TransactionRevertedError, match="LineageRegistryNotSteward"):
        change_policy(consortium["south"].ledger, node, artifact_id, again)
    with pytest.raises(InputError, match="sealed under bgv"):
        change_policy(ledger, node, artifact_id, replace(POLICY, kernels=("sum", "fedsum")))


def test_a_repeated_registration_opens_a_missing_budget_and_leaves_one_that_was_set_since(
    consortium: Consortium, published: PublishedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, fresh = consortium["north"].ledger, replace(published, cid=dag.cid_of("broken off"))

    def attempt() -> ArtifactId:
        return register_bundle(
            ledger, Kept(), fresh, policy=POLICY, retain_until=FAR, budget_rho_micro=10_000_000
        )

    def broken(*_: object) -> None:
        raise ChainStalledError(7, 0.0)

    with monkeypatch.context() as fault:
        fault.setattr(register, "set_budget", broken)
        with pytest.raises(ChainStalledError):
            attempt()
    artifact_id = attempt()
    assert consortium.reader.budget(artifact_id).total == 10_000_000
    register.set_budget(ledger, artifact_id, 2_000_000)
    with pytest.raises(InputError, match="another budget") as refused:
        attempt()
    assert "usufruct rights set-budget" in refused.value.hint
    assert consortium.reader.budget(artifact_id).total == 2_000_000


def test_what_cannot_be_registered_is_refused_before_anything_is_sent(
    consortium: Consortium, published: PublishedBundle
) -> None:
    north, south = consortium["north"].ledger, consortium["south"].ledger
    fresh = replace(published, cid=dag.cid_of("another"))
    for ledger, policy, error in (
        (north, replace(POLICY, kernels=("cube",)), UnknownKernelError),
        (north, replace(POLICY, kernels=("sum", "moments")), InputError),
        (north, replace(POLICY, purposes=("other",)), InputError),
        (north, replace(POLICY, replication=Replication(copies=2, holders=("nobody",))), InputError),
        (south, POLICY, WrongKeyDomainError),
    ):
        node = Kept()
        with pytest.raises(error):
            register_bundle(ledger, node, fresh, policy=policy, retain_until=FAR, budget_rho_micro=1)
        assert not node.records
    shape = published.manifest.shape
    wide = replace(published.manifest, shape=replace(shape, max_abs=shape.parameters.value_limit))
    with pytest.raises(KernelBoundError, match="no sum could ever be computed"):
        register_bundle(
            north, Kept(), replace(fresh, manifest=wide), policy=POLICY, retain_until=FAR, budget_rho_micro=1
        )
    with pytest.raises(TransactionRevertedError, match="LineageRegistryInvalidRegistration"):
        register_bundle(north, Kept(), fresh, policy=POLICY, retain_until=1, budget_rho_micro=1)
