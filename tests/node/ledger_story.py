"""A network that goes through everything the contracts allow: members, bundles, rights, and jobs to each of their ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from eth_abi.abi import encode

from chain_fixture import CAST, KERNEL, TERMS, Consortium, Vote, reveal_moves, word
from usufruct.ledger.abi import load_abi
from usufruct.ledger.jobs import derived_id
from usufruct.ledger.reputation import faults_of, shown
from usufruct.records import (
    ArtifactId,
    ArtifactKind,
    GrantId,
    JobId,
    JobRequest,
    JobState,
    KeyId,
    MemberStatus,
    Refusal,
    ReputationRule,
    Role,
    Timings,
    label,
)

SCOPE, OTHER_SCOPE = label("gaze-research"), label("gait-research")
HOSTILE_ENDPOINT = b"\xff\xfe\x00[/red]"


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
            self.net.together(reveal_moves(votes))
        return votes

    def custodian(self, *moves: tuple, by: str = "north") -> None:
        self.net.together((self.net[by].node, "JobLedger", *move) for move in moves)


ALL = ("north", "south", "auditor")


def unanimous(results: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    return {name: dict.fromkeys(ALL, digest) for name, digest in results.items()}


def told_on(chain_url: str) -> Story:
    net = Consortium(chain_url, cast=CAST | {"rival": Role.PARTNER})
    told = Story(net)
    members_come_and_go(told)
    data_is_shared(told)
    rights_are_asked_for(told)
    jobs_are_refused(told)
    jobs_are_computed(told)
    jobs_stall(told)
    faults_are_reported(told)
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
        bundles[name] = net.bundle(
            "north", keys["north"], scope=SCOPE, budget=10 if name == "poor" else 10**9
        )
    bundles["retired"] = net.bundle("north", keys["retired"], scope=SCOPE)
    bundles["south"] = net.bundle(
        "south", keys["south"], scope=SCOPE, parents=(bundles["north"], bundles["stale"])
    )
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
    grants |= net.granted_all(
        "rival", {"rival": (bundles["south"], TERMS), "rival-north": (bundles["north"], TERMS)}
    )
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
            "old policy": (
                Refusal.POLICY_VERSION_STALE,
                told.request("changed", "changed", policy_version=1),
            ),
            "old epoch": (Refusal.CONSENT_EPOCH_STALE, told.request(consent_epoch=1)),
            "crowd": (Refusal.COHORT_TOO_SMALL, told.request(grant="crowd")),
            "staff": (Refusal.NOT_ENOUGH_VERIFIERS, told.request(grant="many")),
            "poor": (Refusal.BUDGET_EXCEEDED, told.request("poor", "poor")),
        }
    )
    told.denied({"rival": (Refusal.GRANT_REVOKED, told.request("south", "rival"))}, partner="rival")


def jobs_are_computed(told: Story) -> None:
    """Every end that needs no deadline; `verified`, `opened`, `disputed` and others stay where they are."""
    plain = (
        "released",
        "refused",
        "verified",
        "opened",
        "refuted",
        "dispute-upheld",
        "dispute-lost",
        "dispute-few",
    )
    told.post(
        {name: told.request() for name in (*plain, "disputed", "revealing", "committed", "claimed", "posted")}
    )
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
    for name in ("stale", "posted"):  # what is there already, and what may yet come
        result = derived_id(told.jobs[name], ArtifactKind.RESULT)
        told.net.govern("LineageRegistry", "setFrozen", result, True)
    for name, upheld in (("dispute-upheld", True), ("dispute-lost", False), ("dispute-few", True)):
        told.net.govern("JobLedger", "settleDispute", told.jobs[name], upheld)
    told.net.epoch("south", SCOPE)
    told.net["north"].ledger.transact("LineageRegistry", "setFrozen", told.bundles["stale"], True)
    told.custodian(("openRelease", told.jobs["stale"]), by="south")
    told.custodian(
        *(
            ("openRelease", told.jobs[name])
            for name in ("released", "released-rows", "opened", "frozen-late")
        ),
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
            (JobState.REFUTED, Refusal.NONE, ("refuted",)),
            (JobState.REFUTED, Refusal.RESULT_INVALID, ("dispute-lost",)),
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
    doors = (
        "late-claim",
        "late-compute",
        "late-commit",
        "few-commits",
        "late-reveal",
        "late-release",
        "late-record",
    )
    told.post({name: told.request() for name in (*doors[1:], "late-dispute")})
    net.claim(jobs[name] for name in (*doors[2:], "late-dispute"))
    results = {name: word() for name in (*doors[3:], "late-dispute")}
    net.commit({jobs[name]: digest for name, digest in results.items()})
    opening = told.vote(
        unanimous({"late-release": results["late-release"], "late-record": results["late-record"]}),
        reveal=False,
    )
    disagreed = {"north": results["late-dispute"], "south": results["late-dispute"], "auditor": word()}
    dissent = told.vote({"late-dispute": disagreed}, reveal=False)
    net.together(reveal_moves(vote for vote in opening if vote.job_id == jobs["late-record"]))
    one = Vote.of(net["north"], jobs["late-reveal"], results["late-reveal"])
    others = [
        Vote.of(net[name], jobs["late-reveal"], results["late-reveal"]) for name in ("south", "auditor")
    ]
    net.together(vote.commit_move(net.network) for vote in (one, others[0]))
    net.govern(
        "JobLedger", "setTimings", Timings(claim=1, compute=1, commit=1, reveal=1, dispute=1, release=1)
    )
    told.post({"late-claim": told.request()})
    net.claim([jobs["late-compute"]])
    net.commit({jobs["late-commit"]: word()})
    net.together(
        [
            others[1].commit_move(net.network),
            (net["north"].node, "JobLedger", "openRelease", jobs["late-record"]),
            *reveal_moves(vote for vote in opening if vote.job_id == jobs["late-release"]),
            *reveal_moves(dissent),
        ]
    )
    time.sleep(3.1)
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


def faults_are_reported(told: Story) -> None:
    """Of every job that has ended and in which somebody did wrong; under a rule that suspends nobody."""
    net = told.net
    net.govern("Reputation", "setRule", ReputationRule(limit=1000))
    reporter = net["auditor"].node
    for job_id in told.jobs.values():
        events = net.reader.job_events(job_id)
        if faults_of(events):
            net.together([(reporter, "Reputation", "report", job_id, shown(events))])
    net.govern("Reputation", "forgive", net["auditor"].id)
