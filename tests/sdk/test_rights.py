"""Step 6: rights are asked for, granted, denied and taken back on a real chain; nothing is allowed by default."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from chain_fixture import FAR, TERMS, Consortium, until
from rpc_door import door_to
from usufruct.errors import (
    InputError,
    NoRightError,
    TransactionLostError,
    TransactionRevertedError,
    UnknownKernelError,
)
from usufruct.he.kernels import KERNELS
from usufruct.ledger import Ledger, Sender
from usufruct.ledger.endpoint import Endpoint
from usufruct.records import ArtifactId, GrantId, GrantStatus, Level, Refusal, label
from usufruct.rights import (
    deny_usage,
    find_right,
    grant_usage,
    request_usage,
    revoke_artifact,
    revoke_grantee,
    revoke_usage,
    terms,
)

SCOPE = "rights-study"
WANTED = terms(kernels=("sum",), uses=3, expires_at=FAR, rho_micro=5)


@dataclass
class Desk:
    net: Consortium
    artifact: ArtifactId

    def asked(self) -> GrantId:
        return request_usage(self.net["university"].ledger, self.artifact, purpose=SCOPE, wanted=WANTED)

    def granted(self) -> GrantId:
        grant_id = self.asked()
        grant_usage(self.net["north"].ledger, grant_id, WANTED)
        return grant_id

    def standing(self, grant_id: GrantId) -> Refusal:
        return self.net.reader.grant_standing(grant_id)


@pytest.fixture
def desk(consortium: Consortium) -> Desk:
    key_id = consortium.key_domain("north")
    return Desk(consortium, consortium.bundle("north", key_id, scope=label(SCOPE)))


def test_terms_name_kernels_and_ask_for_replication() -> None:
    assert WANTED.kernels == (KERNELS["sum"].kernel_id,)
    assert (WANTED.level, WANTED.replicas, WANTED.row_level) == (Level.REPLICATED, 2, False)
    with pytest.raises(UnknownKernelError):
        terms(kernels=("cube",), uses=1, expires_at=1, rho_micro=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in ("uses", "rho_micro", "replicas") for value in (0, -1)), ("min_cohort", -1)],
)
def test_terms_below_what_makes_sense_are_refused(name: str, value: int) -> None:
    usual = {"kernels": ("sum",), "uses": 1, "expires_at": FAR, "rho_micro": 1}
    with pytest.raises(InputError):
        terms(**(usual | {name: value}))


def test_nothing_is_allowed_until_the_steward_grants(desk: Desk) -> None:
    assert desk.standing(GrantId(bytes(32))) == Refusal.GRANT_UNKNOWN
    grant_id = desk.asked()
    assert desk.standing(grant_id) == Refusal.GRANT_NOT_OPEN
    assert desk.net.reader.grant(grant_id).terms.uses == 0
    own = terms(kernels=("linear",), uses=1, expires_at=FAR, rho_micro=1, min_cohort=99)
    grant_usage(desk.net["north"].ledger, grant_id, own)
    record = desk.net.reader.grant(grant_id)
    assert (record.status, record.terms) == (GrantStatus.GRANTED, own)
    assert desk.standing(grant_id) == Refusal.NONE


@contextmanager
def request_given_up(desk: Desk, chain_url: str) -> Iterator[Ledger]:
    """The university's ledger, whose request for `WANTED` is on its way and was given up."""
    net = desk.net
    with door_to(chain_url) as door:
        endpoint = Endpoint(door.url)
        sender = Sender(endpoint, net.network.chain_id, net["university"].authority_key, patience=0.5)
        ledger = Ledger(net.network, endpoint, sender)
        door.keep_from_being_final()
        with pytest.raises(TransactionLostError):
            request_usage(ledger, desk.artifact, purpose=SCOPE, wanted=WANTED)
        door.open()
        sender._patience = 30.0
        yield ledger


def test_a_request_that_was_given_up_on_its_way_and_is_repeated_later_is_one_request(
    desk: Desk, chain_url: str
) -> None:
    before = len(desk.net.events(["UsageRequested"]))
    with request_given_up(desk, chain_url) as ledger:
        later = replace(WANTED, expires_at=WANTED.expires_at - 60)
        grant_id = request_usage(ledger, desk.artifact, purpose=SCOPE, wanted=later)
        (asked,) = desk.net.events(["UsageRequested"])[before:]
        assert asked.args["grantId"] == grant_id
        assert asked.args["terms"]["expiresAt"] == WANTED.expires_at
        assert request_usage(ledger, desk.artifact, purpose=SCOPE, wanted=later) != grant_id


def test_what_was_given_up_with_quite_another_expiry_was_another_call(desk: Desk, chain_url: str) -> None:
    before = len(desk.net.events(["UsageRequested"]))
    with request_given_up(desk, chain_url) as ledger:
        sooner = replace(WANTED, expires_at=WANTED.expires_at - 86_400)
        request_usage(ledger, desk.artifact, purpose=SCOPE, wanted=sooner)
        asked = desk.net.events(["UsageRequested"])[before:]
        expiries = [event.args["terms"]["expiresAt"] for event in asked]
        assert expiries == [WANTED.expires_at, WANTED.expires_at - 86_400]


def test_a_denial_stands_and_cannot_be_granted_later(desk: Desk) -> None:
    grant_id, north = desk.asked(), desk.net["north"].ledger
    with pytest.raises(TransactionRevertedError, match="UsageRightsReasonMissing"):
        deny_usage(north, grant_id, Refusal.NONE)
    deny_usage(north, grant_id, Refusal.PURPOSE_NOT_GRANTED)
    with pytest.raises(TransactionRevertedError, match="UsageRightsNotRequested") as caught:
        grant_usage(north, grant_id, WANTED)
    assert caught.value.values["status"] == GrantStatus.DENIED


def test_only_the_bundles_steward_answers(desk: Desk) -> None:
    grant_id, south = desk.asked(), desk.net["south"].ledger
    for call in (
        lambda: grant_usage(south, grant_id, WANTED),
        lambda: deny_usage(south, grant_id, Refusal.PURPOSE_NOT_GRANTED),
        lambda: revoke_artifact(south, desk.artifact),
    ):
        with pytest.raises(TransactionRevertedError, match="UsageRightsNotSteward"):
            call()
    with pytest.raises(TransactionRevertedError, match="MissingRole"):
        request_usage(south, desk.artifact, purpose=SCOPE, wanted=WANTED)


def test_another_purpose_than_the_subjects_consented_to_cannot_be_asked_for(desk: Desk) -> None:
    with pytest.raises(TransactionRevertedError, match="UsageRightsInvalidPurpose"):
        request_usage(desk.net["university"].ledger, desk.artifact, purpose="marketing", wanted=WANTED)


def test_rights_are_taken_back_one_by_one_by_bundle_or_by_partner(desk: Desk) -> None:
    north = desk.net["north"].ledger
    one, other = desk.granted(), desk.granted()
    revoke_usage(north, one)
    assert (desk.standing(one), desk.standing(other)) == (Refusal.GRANT_REVOKED, Refusal.NONE)
    with pytest.raises(TransactionRevertedError, match="UsageRightsNotGranted"):
        revoke_usage(north, one)
    revoke_artifact(north, desk.artifact)
    assert desk.standing(other) == Refusal.GRANT_REVOKED
    later = desk.granted()
    revoke_grantee(north, desk.net["university"].id)
    assert desk.standing(later) == Refusal.GRANT_REVOKED
    assert desk.standing(desk.granted()) == Refusal.NONE


def test_grant_is_void_from_the_second_it_expires(desk: Desk) -> None:
    expires_at = desk.net.reader.finalised().timestamp + 3
    grant_id = desk.asked()
    brief = terms(kernels=("sum",), uses=1, expires_at=expires_at, rho_micro=1)
    grant_usage(desk.net["north"].ledger, grant_id, brief)
    seen = {}
    deadline = time.monotonic() + 20
    while Refusal.GRANT_EXPIRED not in seen.values():
        assert time.monotonic() < deadline
        before = desk.net.reader.finalised().timestamp
        standing = desk.standing(grant_id)
        if desk.net.reader.finalised().timestamp == before:
            seen[before] = standing
        time.sleep(0.1)
    for now, standing in seen.items():
        assert standing == (Refusal.NONE if now < expires_at else Refusal.GRANT_EXPIRED)
    with pytest.raises(TransactionRevertedError, match="UsageRightsInvalidTerms"):
        grant_usage(desk.net["north"].ledger, desk.asked(), brief)


def test_terms_that_overflow_the_ledgers_numbers_are_refused_before_anything_is_sent(desk: Desk) -> None:
    grant_id = desk.asked()
    for name, value in {
        "uses": 1 << 32,
        "expires_at": 1 << 64,
        "rho_micro": 1 << 64,
        "replicas": 256,
    }.items():
        fields = {f: getattr(TERMS, f) for f in TERMS.__dataclass_fields__} | {name: value}
        with pytest.raises(InputError, match="grantUsage"):
            grant_usage(desk.net["north"].ledger, grant_id, type(TERMS)(**fields))


# Which right a job is posted under. The index lags the ledger: it is the ledger that says what became of a request.


class Index:
    """Stands where the partner's node stands, and learns of requests only when it is waited for."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.known: list[GrantId] = []
        self.behind: list[GrantId] = []
        self.waited_for: list[int] = []

    def query(self, path: str, *, grantee: str) -> list[dict[str, str]]:
        assert (path, grantee) == ("/grants", "university")
        return [{"grant_id": id_.hex(), "artifact_id": self.desk.artifact.hex()} for id_ in self.known]

    def await_block(self, number: int) -> None:
        self.waited_for.append(number)
        self.known = [*self.behind, *self.known]


@pytest.fixture
def index(desk: Desk) -> Index:
    return Index(desk)


def right(index: Index, kernel: str = "sum", *, artifact: ArtifactId | None = None) -> GrantId:
    net = index.desk.net
    return find_right(
        net["university"].ledger,
        index,  # type: ignore[arg-type]
        net["university"].id,
        artifact or index.desk.artifact,
        kernel_id=KERNELS[kernel].kernel_id,
        row_level=False,
    )


def answered(desk: Desk, **changes: object) -> GrantId:
    grant_id = desk.asked()
    grant_usage(desk.net["north"].ledger, grant_id, replace(WANTED, **changes))
    return grant_id


def test_a_request_granted_a_moment_ago_is_the_right_to_use(desk: Desk, index: Index) -> None:
    index.known = [desk.granted()]
    assert right(index) == index.known[0] and not index.waited_for
    later = desk.granted()
    index.known, index.behind = [], [later]
    assert right(index) == later and index.waited_for


def test_a_job_uses_the_newest_right_that_holds_and_names_the_kernel(desk: Desk, index: Index) -> None:
    fitting, older = desk.granted(), desk.granted()
    linear = answered(desk, kernels=(KERNELS["linear"].kernel_id,))
    soon = desk.net.reader.finalised().timestamp + 5
    expired = answered(desk, expires_at=soon)
    revoked = desk.granted()
    revoke_usage(desk.net["north"].ledger, revoked)
    until(lambda: desk.asked() and desk.net.reader.finalised().timestamp >= soon)
    pending, unfit = desk.asked(), [revoked, linear, expired]
    index.known = [pending, *unfit, fitting, older]
    assert right(index) == fitting
    index.known = [pending, *unfit]
    with pytest.raises(NoRightError, match="not answered yet"):
        right(index)
    index.known = [*unfit, pending]
    assert right(index) == linear, "the ledger says why it does not allow the job"
    index.known = [revoked]
    assert right(index) == revoked


def test_nobody_posts_under_rights_that_were_never_granted(desk: Desk, index: Index) -> None:
    with pytest.raises(NoRightError, match="no rights on this bundle") as refused:
        right(index)
    assert refused.value.request is None and "rights request" in refused.value.hint
    denied = desk.asked()
    deny_usage(desk.net["north"].ledger, denied, Refusal.PURPOSE_NOT_GRANTED)
    index.known = [denied]
    with pytest.raises(NoRightError, match=f"{denied.hex()[:12]} on this bundle was denied"):
        right(index)
    index.known = [desk.asked(), denied]
    with pytest.raises(NoRightError, match="not answered yet") as refused:
        right(index)
    assert refused.value.request == index.known[0] and refused.value.exit_code == 7
    with pytest.raises(NoRightError, match="no rights"):
        right(index, artifact=ArtifactId(bytes(32)))
