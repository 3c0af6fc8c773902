"""The index against the contracts: a network that goes through every state, then the same record from both sides."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import pytest
import trio
from chain_fixture import CAST, FAR, KERNEL, TERMS, Consortium, Vote, word
from eth_abi.abi import encode

from usufruct.errors import LedgerError, LedgerUnreachableError, MissingEventError, StaleLedgerError
from usufruct.ledger import Head, Ledger
from usufruct.ledger.abi import load_abi
from usufruct.ledger.endpoint import Endpoint
from usufruct.ledger.series import check_series, series_of
from usufruct.records import (
    ArtifactId,
    ArtifactKind,
    GrantId,
    GrantStatus,
    JobId,
    JobRequest,
    JobState,
    KeyId,
    LedgerEvent,
    MemberStatus,
    Refusal,
    Role,
    Timings,
    label,
)
from usufruct_node.index import Index, catch_up, follow

SCOPE, OTHER_SCOPE = label("gaze-research"), label("gait-research")
HOSTILE_ENDPOINT = b"\xff\xfe\x00[/red]"
WHOLE = (1 << 64) - 1


@dataclass
class Story:
    """What the scenario left on the ledger, by the names that the tests use."""

    net: Consortium
    keys: dict[str, KeyId] = field(default_factory=dict)
    bundles: dict[str, ArtifactId] = field(default_factory=dict)
    grants: dict[str, GrantId] = field(default_factory=dict)
    jobs: dict[str, JobId] = field(default_factory=dict)
    expected: dict[str, tuple[JobState, Refusal]] = field(default_factory=dict)
    nonce: int = 0

    def request(self, bundle: str = "north", grant: str = "north", **changes: object) -> JobRequest:
        self.nonce += 1
        artifact = self.net.reader.artifact(self.bundles[bundle])
        usual = JobRequest(
            artifact_id=self.bundles[bundle],
            grant_id=self.grants.get(grant, GrantId(word())),
            kernel_id=KERNEL,
            parameters_digest=word(),
            purpose=SCOPE,
            consent_epoch=self.net.reader.consent_epoch(artifact.steward, SCOPE).epoch,
            policy_version=artifact.policy_version,
            rho_micro=1000,
            row_level=False,
            nonce=self.nonce,
        )
        return replace(usual, **changes)

    def post(self, names: dict[str, JobRequest], *, partner: str = "university") -> None:
        self.jobs |= dict(zip(names, self.net.post(partner, names.values()), strict=True))

    def denied(self, names: dict[str, tuple[Refusal, JobRequest]], *, partner: str = "university") -> None:
        self.post({name: request for name, (_, request) in names.items()}, partner=partner)
        self.expected |= {name: (JobState.DENIED, refusal) for name, (refusal, _) in names.items()}

    def compute(self, *names: str) -> dict[str, bytes]:
        """Claim and commit results; name -> result digest."""
        results = {name: word() for name in names}
        self.net.claim(self.jobs[name] for name in names)
        self.net.commit({self.jobs[name]: digest for name, digest in results.items()})
        return results

    def vote(self, ballots: dict[str, dict[str, bytes]], *, reveal: bool = True) -> list[Vote]:
        """Job name -> verifier -> result digest; every verifier commits, then all reveal."""
        votes = [
            Vote.of(self.net[verifier], self.jobs[name], digest)
            for name, given in ballots.items()
            for verifier, digest in given.items()
        ]
        self.net.together(vote.commit_move(self.net.network) for vote in votes)
        if reveal:
            self.net.together(vote.reveal_move() for vote in votes)
        return votes

    def custodian(self, *moves: tuple, by: str = "north") -> None:
        self.net.together((self.net[by].node, "JobLedger", *move) for move in moves)


ALL = ("north", "south", "auditor")


def unanimous(results: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    return {name: dict.fromkeys(ALL, digest) for name, digest in results.items()}


@pytest.fixture(scope="module")
def story(chain_url: str) -> Story:
    net = Consortium(chain_url, cast=CAST | {"rival": Role.PARTNER})
    told = Story(net)
    members_come_and_go(told)
    data_is_shared(told)
    rights_are_asked_for(told)
    jobs_are_refused(told)
    jobs_are_computed(told)
    jobs_stall(told)
    return told


def members_come_and_go(told: Story) -> None:
    net = told.net
    for name in ("late", "gone"):
        net.join(name, Role.PARTNER | Role.AUDITOR)
    net.govern("ParticipantRegistry", "setStatus", net["late"].id, MemberStatus.SUSPENDED)
    net.govern("ParticipantRegistry", "setRoles", net["late"].id, Role.PARTNER)
    net.govern("ParticipantRegistry", "setStatus", net["late"].id, MemberStatus.ACTIVE)
    net.govern("ParticipantRegistry", "setStatus", net["gone"].id, MemberStatus.REMOVED)
    net["late"].ledger.transact("ParticipantRegistry", "setEndpoint", "/ip4/10.0.0.1/tcp/4001")
    selector = load_abi("ParticipantRegistry").functions["setEndpoint"].selector
    hostile = selector + encode(["bytes"], [HOSTILE_ENDPOINT])
    net["rival"].ledger.transact_many([(net.network.contracts["ParticipantRegistry"], hostile)])


def data_is_shared(told: Story) -> None:
    net, keys, bundles = told.net, told.keys, told.bundles
    for name, steward in {"north": "north", "retired": "north", "south": "south", "leaked": "south"}.items():
        keys[name] = net.key_domain(steward)
    for name in ("north", "stale", "poor", "frozen", "banned", "changed"):
        bundles[name] = net.bundle("north", keys["north"], scope=SCOPE, budget=10 if name == "poor" else 10**9)
    bundles["retired"] = net.bundle("north", keys["retired"], scope=SCOPE)
    bundles["south"] = net.bundle("south", keys["south"], scope=SCOPE, parents=(bundles["north"], bundles["stale"]))
    bundles["leaked"] = net.bundle("south", keys["leaked"], scope=SCOPE, parents=(bundles["south"],))
    net["north"].ledger.transact("KeyRegistry", "retire", keys["retired"])
    net["south"].ledger.transact("KeyRegistry", "markCompromised", keys["leaked"])
    north = net["north"].ledger
    net.together(
        [
            (north, "LineageRegistry", "setPolicy", bundles["changed"], word()),
            (north, "LineageRegistry", "setPolicy", bundles["changed"], word()),
            (north, "LineageRegistry", "setFrozen", bundles["frozen"], True),
            (north, "LineageRegistry", "setFrozen", bundles["banned"], True),
            (north, "LineageRegistry", "setFrozen", bundles["stale"], True),
            (north, "LineageRegistry", "setFrozen", bundles["stale"], False),
        ]
    )
    net.govern("LineageRegistry", "setFrozen", bundles["banned"], True)
    for steward, scope, epochs in (("north", SCOPE, 2), ("south", SCOPE, 1), ("south", OTHER_SCOPE, 3)):
        for _ in range(epochs):
            net.epoch(steward, scope)


def rights_are_asked_for(told: Story) -> None:
    net, grants, bundles = told.net, told.grants, told.bundles
    north, south = net["north"].ledger, net["south"].ledger
    soon = net.reader.finalised().timestamp + 3
    special = {
        "once": {"uses": 1},
        "crowd": {"min_cohort": 100},
        "many": {"replicas": 9},
        "rows": {"row_level": True},
        "short": {"expires_at": soon},
        "revoked": {},
    }
    wanted = {name: (bundle, TERMS) for name, bundle in bundles.items()} | {
        name: (bundles["north"], replace(TERMS, **changes)) for name, changes in special.items()
    }
    grants |= net.granted_all("university", wanted)
    for name in ("asked", "refused"):
        grants[name] = net.request("university", bundles["north"], SCOPE, replace(TERMS, kernels=()))
    grants |= net.granted_all("rival", {"rival": (bundles["south"], TERMS), "rival-north": (bundles["north"], TERMS)})
    net.together(
        [
            (north, "UsageRights", "denyUsage", grants["refused"], Refusal.PURPOSE_NOT_GRANTED),
            (north, "UsageRights", "revokeUsage", grants["revoked"]),
            (north, "UsageRights", "revokeArtifact", bundles["changed"]),
            (south, "UsageRights", "revokeGrantee", net["rival"].id),
        ]
    )
    grants["rival-again"] = net.granted("rival", "south", bundles["south"], SCOPE)


def jobs_are_refused(told: Story) -> None:
    told.post({"once": told.request(grant="once")})
    told.denied(
        {
            "unknown grant": (Refusal.GRANT_UNKNOWN, told.request(grant="nobody's")),
            "asked only": (Refusal.GRANT_NOT_OPEN, told.request(grant="asked")),
            "denied": (Refusal.GRANT_NOT_OPEN, told.request(grant="refused")),
            "revoked": (Refusal.GRANT_REVOKED, told.request(grant="revoked")),
            "revoked bundle": (Refusal.GRANT_REVOKED, told.request("changed", "changed")),
            "exhausted": (Refusal.USES_EXHAUSTED, told.request(grant="once")),
            "another's": (Refusal.GRANTEE_MISMATCH, told.request(grant="rival-north")),
            "other bundle": (Refusal.ARTIFACT_MISMATCH, told.request(grant="south")),
            "no bundle": (Refusal.ARTIFACT_MISMATCH, told.request(artifact_id=ArtifactId(word()))),
            "purpose": (Refusal.PURPOSE_NOT_GRANTED, told.request(purpose=OTHER_SCOPE)),
            "kernel": (Refusal.KERNEL_NOT_GRANTED, told.request(kernel_id=word())),
            "rows": (Refusal.ROW_LEVEL_NOT_GRANTED, told.request(row_level=True)),
            "frozen": (Refusal.ARTIFACT_FROZEN, told.request("frozen", "frozen")),
            "banned": (Refusal.ARTIFACT_FROZEN, told.request("banned", "banned")),
            "retired": (Refusal.KEY_DOMAIN_NOT_ACTIVE, told.request("retired", "retired")),
            "leaked": (Refusal.KEY_DOMAIN_NOT_ACTIVE, told.request("leaked", "leaked")),
            "old policy": (Refusal.POLICY_VERSION_STALE, told.request("changed", "changed", policy_version=1)),
            "old epoch": (Refusal.CONSENT_EPOCH_STALE, told.request(consent_epoch=1)),
            "crowd": (Refusal.COHORT_TOO_SMALL, told.request(grant="crowd")),
            "staff": (Refusal.NOT_ENOUGH_VERIFIERS, told.request(grant="many")),
            "poor": (Refusal.BUDGET_EXCEEDED, told.request("poor", "poor")),
        }
    )
    told.denied({"rival": (Refusal.GRANT_REVOKED, told.request("south", "rival"))}, partner="rival")


def jobs_are_computed(told: Story) -> None:
    """Every end that needs no deadline; `verified`, `opened`, `disputed` and others stay where they are."""
    plain = ("released", "refused", "verified", "opened", "refuted", "dispute-upheld", "dispute-lost", "dispute-few")
    told.post({name: told.request() for name in (*plain, "disputed", "revealing", "committed", "claimed", "posted")})
    told.post({"released-rows": told.request(grant="rows", row_level=True)})
    told.post({"stale": told.request("south", "south"), "frozen-late": told.request("stale", "stale")})
    computed = (*plain, "disputed", "revealing", "released-rows", "stale", "frozen-late")
    results = told.compute(*computed)
    told.net.claim([told.jobs["claimed"], told.jobs["committed"]])
    told.net.commit({told.jobs["committed"]: word()})
    contested = ("refuted", "dispute-upheld", "dispute-lost", "dispute-few", "disputed", "revealing")
    ballots = unanimous({name: digest for name, digest in results.items() if name not in contested})
    wrong = word()
    ballots["refuted"] = {"north": results["refuted"], "south": wrong, "auditor": wrong}
    for name in ("dispute-upheld", "dispute-lost", "disputed"):
        ballots[name] = {"north": results[name], "south": results[name], "auditor": word()}
    ballots["dispute-few"] = {"north": results["dispute-few"], "south": word(), "auditor": word()}
    told.vote(ballots)
    told.vote(unanimous({"revealing": results["revealing"]}), reveal=False)
    for name, upheld in (("dispute-upheld", True), ("dispute-lost", False), ("dispute-few", True)):
        told.net.govern("JobLedger", "settleDispute", told.jobs[name], upheld)
    told.net.epoch("south", SCOPE)
    told.net["north"].ledger.transact("LineageRegistry", "setFrozen", told.bundles["stale"], True)
    told.custodian(("openRelease", told.jobs["stale"]), by="south")
    told.custodian(
        *(("openRelease", told.jobs[name]) for name in ("released", "released-rows", "opened", "frozen-late")),
        ("refuseRelease", told.jobs["refused"], Refusal.POSSESSION_UNPROVEN),
        ("recordRelease", told.jobs["released"], word(), 1_500_000),
        ("recordRelease", told.jobs["released-rows"], word(), 2_500_000),
    )
    told.expected |= {
        name: (state, refusal)
        for state, refusal, names in (
            (JobState.RELEASED, Refusal.NONE, ("released", "released-rows")),
            (JobState.REFUSED, Refusal.POSSESSION_UNPROVEN, ("refused",)),
            (JobState.REFUSED, Refusal.ARTIFACT_FROZEN, ("frozen-late",)),
            (JobState.STALE_CONSENT, Refusal.CONSENT_EPOCH_STALE, ("stale",)),
            (JobState.VERIFIED, Refusal.NONE, ("verified", "dispute-upheld")),
            (JobState.OPENED, Refusal.NONE, ("opened",)),
            (JobState.REFUTED, Refusal.NONE, ("refuted", "dispute-lost")),
            (JobState.EXPIRED, Refusal.NONE, ("dispute-few",)),
            (JobState.DISPUTED, Refusal.NONE, ("disputed",)),
            (JobState.REVEALING, Refusal.NONE, ("revealing",)),
            (JobState.COMMITTED, Refusal.NONE, ("committed",)),
            (JobState.CLAIMED, Refusal.NONE, ("claimed",)),
            (JobState.POSTED, Refusal.NONE, ("posted", "once")),
        )
        for name in names
    }


def jobs_stall(told: Story) -> None:
    """Bring a job to the door of every state, let the states last one second, walk through, and wait."""
    net, jobs = told.net, told.jobs
    doors = ("late-claim", "late-compute", "late-commit", "few-commits", "late-reveal", "late-release", "late-record")
    told.post({name: told.request() for name in (*doors[1:], "late-dispute")})
    net.claim(jobs[name] for name in (*doors[2:], "late-dispute"))
    results = {name: word() for name in (*doors[3:], "late-dispute")}
    net.commit({jobs[name]: digest for name, digest in results.items()})
    opening = told.vote(
        unanimous({"late-release": results["late-release"], "late-record": results["late-record"]}), reveal=False
    )
    disagreed = {"north": results["late-dispute"], "south": results["late-dispute"], "auditor": word()}
    dissent = told.vote({"late-dispute": disagreed}, reveal=False)
    net.together(vote.reveal_move() for vote in opening if vote.job_id == jobs["late-record"])
    one = Vote.of(net["north"], jobs["late-reveal"], results["late-reveal"])
    others = [Vote.of(net[name], jobs["late-reveal"], results["late-reveal"]) for name in ("south", "auditor")]
    net.together(vote.commit_move(net.network) for vote in (one, others[0]))
    net.govern("JobLedger", "setTimings", Timings(claim=1, compute=1, commit=1, reveal=1, dispute=1, release=1))
    told.post({"late-claim": told.request()})
    net.claim([jobs["late-compute"]])
    net.commit({jobs["late-commit"]: word()})
    net.together(
        [
            others[1].commit_move(net.network),
            (net["north"].node, "JobLedger", "openRelease", jobs["late-record"]),
            *(vote.reveal_move() for vote in opening if vote.job_id == jobs["late-release"]),
            *(vote.reveal_move() for vote in dissent),
        ]
    )
    time.sleep(2.1)
    closer = net["auditor"].node
    expired = [n for n in (*doors, "late-dispute") if n not in ("late-commit", "few-commits", "late-reveal")]
    net.together(
        [
            *((closer, "JobLedger", "expireJob", jobs[name]) for name in expired),
            (closer, "JobLedger", "closeCommits", jobs["late-commit"]),
            (closer, "JobLedger", "closeReveals", jobs["late-reveal"]),
        ]
    )
    net.govern("JobLedger", "setTimings", Timings())
    told.denied({"expired grant": (Refusal.GRANT_EXPIRED, told.request(grant="short"))})
    told.expected |= dict.fromkeys((*expired, "late-commit", "late-reveal"), (JobState.EXPIRED, Refusal.NONE))
    told.expected |= {
        "late-dispute": (JobState.REFUTED, Refusal.NONE),
        "few-commits": (JobState.COMMITTED, Refusal.NONE),
    }


@pytest.fixture
def index(story: Story, tmp_path: Path) -> Iterator[Index]:
    built = Index(tmp_path / "index.db")
    catch_up(built, story.net.reader)
    yield built
    built.close()


def tables(path: Path) -> dict[str, list[tuple]]:
    """Every row of every table."""
    with sqlite3.connect(path) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {name: sorted(map(repr, db.execute(f"SELECT * FROM {name}"))) for name in names}


def ids_of(story: Story, event: str, key: str) -> set[bytes]:
    return {bytes(e.args[key]) for e in story.net.events([event])}


# The scenario did what it says.


def test_every_end_of_a_job_was_reached_as_the_contracts_tell_it(story: Story) -> None:
    reached = {name: story.net.reader.job(job) for name, job in story.jobs.items()}
    assert {name: (job.state, job.refusal) for name, job in reached.items()} == story.expected
    assert {job.state for job in reached.values()} == set(JobState) - {JobState.NONE}


# The same record from both sides.


def test_index_and_registry_agree_on_every_participant(story: Story, index: Index) -> None:
    told = story.net.reader.participants()
    assert index.participants() == sorted(told, key=lambda member: member.id)
    assert {member.status for member in told} == {MemberStatus.ACTIVE, MemberStatus.REMOVED}
    for member in told:
        assert index.participant_by_peer(member.peer_id) == member


def test_index_and_contracts_agree_on_every_key_domain(story: Story, index: Index) -> None:
    for key_id in story.keys.values():
        assert index.key_domain(key_id) == story.net.reader.key_domain(key_id)
    assert len({index.key_domain(key).status for key in story.keys.values()}) == 3


def test_index_and_contracts_agree_on_every_artifact(story: Story, index: Index) -> None:
    known = [item for kind in ArtifactKind if kind for item in index.artifacts(kind)]
    assert {artifact_id for artifact_id, _ in known} == (
        ids_of(story, "BundleRegistered", "artifactId") | ids_of(story, "DerivedRecorded", "artifactId")
    )
    for artifact_id, record in known:
        assert record == story.net.reader.artifact(artifact_id)
        assert index.artifact(artifact_id) == record
    assert {record.frozen for _, record in known} == {0, 1, 2}
    assert {record.kind for _, record in known} == set(ArtifactKind) - {ArtifactKind.NONE}


def test_index_and_contracts_agree_on_every_consent_epoch(story: Story, index: Index) -> None:
    for event in story.net.events(["ConsentEpochAnchored"]):
        steward, scope, epoch = (event.args[key] for key in ("steward", "scope", "epoch"))
        kept = index.consent_epoch(steward, scope, epoch)
        assert kept is not None
        assert (kept.consent_root, kept.status_digest) == (event.args["consentRoot"], event.args["statusDigest"])
        assert index.consent_epoch(steward, scope) == story.net.reader.consent_epoch(steward, scope)


def test_index_and_contracts_agree_on_every_grant(story: Story, index: Index) -> None:
    told = {grant_id: story.net.reader.grant(grant_id) for grant_id in ids_of(story, "UsageRequested", "grantId")}
    assert told.keys() == set(story.grants.values())
    for grant_id, grant in told.items():
        assert index.grant(grant_id) == grant
    assert {grant.status for grant in told.values()} == set(GrantStatus) - {GrantStatus.NONE}
    of_rival = index.grants(grantee=story.net["rival"].id, steward=story.net["south"].id)
    assert {grant.status for _, grant, _ in of_rival} == {GrantStatus.REVOKED, GrantStatus.GRANTED}


def test_index_and_contracts_agree_on_every_budget(story: Story, index: Index) -> None:
    accounts = {name: story.net.reader.budget(bundle) for name, bundle in story.bundles.items()}
    assert {name: index.budget(bundle) for name, bundle in story.bundles.items()} == accounts
    assert accounts["north"].spent == 4 * 1000, "released twice, opened twice"
    assert accounts["north"].reserved > 0


def test_index_and_contracts_agree_on_every_job(story: Story, index: Index) -> None:
    told = {job_id: story.net.reader.job(job_id) for job_id in story.jobs.values()}
    assert {row.job_id: row.job for row in index.jobs(limit=10_000)} == told
    for state in JobState:
        assert index.job_count(state) == sum(job.state == state for job in told.values())
        if state:
            assert {row.job_id for row in index.jobs(state)} == {i for i, job in told.items() if job.state == state}
    sigma = {index.job(story.jobs[name]).sigma_micro for name in ("released", "released-rows")}
    assert sigma == {1_500_000, 2_500_000}


def test_index_knows_what_each_verifier_committed_and_revealed(story: Story, index: Index) -> None:
    verdicts = {verdict.verifier: verdict for verdict in index.verdicts(story.jobs["disputed"])}
    assert {name: verdicts[story.net[name].id].agrees for name in ALL} == {
        "north": True,
        "south": True,
        "auditor": False,
    }
    silent = index.verdicts(story.jobs["revealing"])
    assert len(silent) == 3
    assert all(v.agrees is None and v.result_digest is None and v.possession is None for v in silent)


def test_every_series_of_the_run_is_without_a_gap(story: Story) -> None:
    series: dict[tuple[str, bytes], list[LedgerEvent]] = {}
    for event in story.net.events():
        key = series_of(event)
        if key is not None:
            series.setdefault((event.contract, key), []).append(event)
    assert {contract for contract, _ in series} == {
        "ConsentRegistry",
        "JobLedger",
        "LineageRegistry",
        "UsageRights",
    }
    for events in series.values():
        head = check_series(events)
        assert check_series(events, final_head=head) == head
        if len(events) > 1:
            with pytest.raises(MissingEventError):
                check_series(events[1:])
            with pytest.raises(MissingEventError):
                check_series(events[:-1], final_head=head)


def test_lineage_reaches_from_a_release_to_its_bundle_and_back(story: Story, index: Index) -> None:
    result, release = index.derived(story.jobs["released"])
    north = story.bundles["north"]
    assert index.ancestors(release) == [(release, result), (result, north)]
    assert (north, result) in index.descendants(north)
    assert (result, release) in index.descendants(north)
    assert set(index.ancestors(story.bundles["leaked"])) == {
        (story.bundles["leaked"], story.bundles["south"]),
        (story.bundles["south"], north),
        (story.bundles["south"], story.bundles["stale"]),
    }
    assert index.artifact_job(release) == story.jobs["released"]
    assert index.artifact_job(north) is None


def test_policies_of_all_versions_are_kept(story: Story, index: Index) -> None:
    changed = story.bundles["changed"]
    digests = [index.policy_digest(changed, version) for version in (1, 2, 3)]
    assert len(set(digests)) == 3
    assert digests[2] == story.net.reader.artifact(changed).policy_digest
    assert index.policy_digest(changed, 4) is None


def test_hostile_bytes_in_an_endpoint_do_not_stop_the_index(story: Story, index: Index) -> None:
    rival = index.participant(story.net["rival"].id)
    assert rival.endpoint == HOSTILE_ENDPOINT.decode("utf-8", "backslashreplace")
    assert rival.endpoint == story.net.reader.participant(rival.id).endpoint


# However it was built, the index is the same.


def by_block(story: Story) -> list[tuple[list[LedgerEvent], Head]]:
    groups = [list(group) for _, group in groupby(story.net.events(), key=lambda e: e.block_number)]
    return [(g, Head(g[0].block_number, g[0].block_hash, g[0].timestamp)) for g in groups]


def test_index_that_followed_block_by_block_equals_one_built_from_scratch(
    story: Story, index: Index, tmp_path: Path
) -> None:
    followed = Index(tmp_path / "followed.db")
    for events, head in by_block(story):
        followed.advance(events, head)
    followed.advance([], index.cursor())
    followed.close()
    assert tables(tmp_path / "followed.db") == tables(tmp_path / "index.db")


class Deadly(list):
    """Events that kill the process when the one with this number is asked for."""

    def __init__(self, events: list[LedgerEvent], fatal: int) -> None:
        super().__init__(events)
        self._fatal = fatal

    def __iter__(self) -> Iterator[LedgerEvent]:
        for number, event in enumerate(super().__iter__()):
            if number == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            yield event


def killed_while_advancing(path: Path, batch: list[LedgerEvent], head: Head, fatal: int) -> None:
    child = os.fork()
    if child == 0:
        Index(path).advance(Deadly(batch, fatal), head)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_index_killed_in_the_middle_of_a_step_loses_nothing_and_doubles_nothing(
    story: Story, index: Index, tmp_path: Path
) -> None:
    path = tmp_path / "killed.db"
    blocks = by_block(story)
    for start in range(0, len(blocks), 7):
        batch = [event for events, _ in blocks[start : start + 7] for event in events]
        head = blocks[min(start + 6, len(blocks) - 1)][1]
        killed_while_advancing(path, batch, head, fatal=len(batch) * (start % 3 + 1) // 4)
        resumed = Index(path)
        assert resumed.cursor() == (blocks[start - 1][1] if start else None)
        resumed.advance(batch, head)
        resumed.close()
    resumed = Index(path)
    resumed.advance([], index.cursor())
    resumed.close()
    assert tables(path) == tables(tmp_path / "index.db")


def test_reorg_rollback_an_older_or_another_head_is_refused(story: Story, index: Index, tmp_path: Path) -> None:
    before, cursor = tables(tmp_path / "index.db"), index.cursor()
    with pytest.raises(StaleLedgerError, match="older"):
        index.advance([], Head(cursor.number - 1, word(), cursor.timestamp))

    class Behind(Endpoint):
        def finalised(self) -> Head:
            return self.block(cursor.number - 1)

    class Forked(Endpoint):
        def block(self, number: int) -> Head:
            return Head(number, word(), 0)

    for fault, said in ((Behind, "is at block"), (Forked, "another block")):
        network = story.net.network
        ledger = Ledger(network, fault(network.rpc_urls[0]))
        with pytest.raises(StaleLedgerError, match=said):
            catch_up(index, ledger)
    assert tables(tmp_path / "index.db") == before


def test_follower_reports_trouble_and_goes_on_when_the_endpoint_recovers(story: Story, tmp_path: Path) -> None:
    faults: list[LedgerError] = [LedgerUnreachableError("nobody answers"), LedgerError("eth_getLogs: limit exceeded")]
    network = story.net.network

    class Flaky(Endpoint):
        def finalised(self) -> Head:
            if faults:
                raise faults.pop(0)
            return super().finalised()

    async def run() -> list[str | None]:
        index = Index(tmp_path / "followed.db")
        seen: list[str | None] = []
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: follow(
                        index,
                        Ledger(network, Flaky(network.rpc_urls[0])),
                        poll_s=0.01,
                        on_advance=nursery.cancel_scope.cancel,
                        on_trouble=seen.append,
                    )
                )
        assert index.cursor() is not None
        return seen

    assert trio.run(run) == ["nobody answers", "eth_getLogs: limit exceeded", None]


# Hostile numbers.


def test_largest_numbers_of_the_ledger_are_indexed_exactly(chain_url: str, tmp_path: Path) -> None:
    net = Consortium(chain_url)
    key = net.key_domain("north")
    bundle = net.bundle("north", key, scope=SCOPE, budget=WHOLE, retain_until=WHOLE)
    epoch = net.epoch("north", SCOPE, cohort=2_000_000_000)
    grant = net.granted(
        "university", "north", bundle, SCOPE, rho_micro=WHOLE, expires_at=WHOLE, uses=(1 << 32) - 1, min_cohort=1
    )
    usual = JobRequest(
        artifact_id=bundle,
        grant_id=grant,
        kernel_id=KERNEL,
        parameters_digest=word(),
        purpose=SCOPE,
        consent_epoch=epoch,
        policy_version=1,
        rho_micro=(1 << 63) - 1,
        row_level=False,
        nonce=WHOLE,
    )
    jobs = net.post(
        "university",
        [
            usual,
            replace(usual, nonce=WHOLE - 1),
            replace(usual, nonce=1 << 63, rho_micro=1),
            replace(usual, nonce=0, consent_epoch=WHOLE, rho_micro=WHOLE, policy_version=(1 << 32) - 1),
            replace(usual, nonce=1, consent_epoch=WHOLE),
        ],
    )
    index = Index(tmp_path / "index.db")
    catch_up(index, net.reader)
    states = [JobState.POSTED] * 3 + [JobState.DENIED] * 2
    for job, state in zip(jobs, states, strict=True):
        assert index.job(job).job == net.reader.job(job)
        assert index.job(job).job.state == state
    assert index.artifact(bundle) == net.reader.artifact(bundle)
    assert index.artifact(bundle).retain_until == WHOLE
    assert index.budget(bundle) == net.reader.budget(bundle)
    assert index.budget(bundle).reserved == WHOLE
    assert index.budget(bundle).available == 0
    assert index.grant(grant) == net.reader.grant(grant)
    assert FAR < index.grant(grant).terms.expires_at
    index.close()
