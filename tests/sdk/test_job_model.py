"""The protocol's states, as hypothesis drives them over the real contracts on a real chain whose time the test moves.

What is shown for every sequence of moves, with one colluding liar among three verifiers and two replicas asked for: nothing is
opened that was not verified; only honest digests are verified; every job ends, and then reserves nothing; budgets conserve.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from anvil_fixture import Chain, anvil
from chain_fixture import GAS, KERNEL, STEWARD, Consortium, Vote, word
from usufruct.errors import TransactionRevertedError
from usufruct.ledger import sender
from usufruct.records import FINAL_JOB_STATES, JobId, JobRequest, JobState, Refusal, Role, Timings, label

CAST = {
    "north": STEWARD,
    "south": STEWARD,
    "compute": Role.COMPUTE,
    "auditor": Role.AUDITOR | Role.VERIFIER,
    "university": Role.PARTNER,
}
VERIFIERS = ("north", "south", "auditor")
LIAR = "auditor"
HOUR = Timings(claim=3600, compute=3600, commit=3600, reveal=3600, dispute=3600, release=3600)
RHO = 7
SCOPE = label("model")
CLOSERS = {JobState.COMMITTED: "closeCommits", JobState.REVEALING: "closeReveals"}


@dataclass
class Posted:
    """What the model knows of one job."""

    job_id: JobId
    truth: bytes
    """What the inputs give; known to every honest verifier."""
    lie: bytes
    """What the liar and a lying executor agreed on."""
    seen: list[JobState] = field(default_factory=list)
    votes: dict[str, Vote] = field(default_factory=dict)

    @property
    def was_opened(self) -> bool:
        return JobState.OPENED in self.seen


class Protocol(RuleBasedStateMachine):
    """Any member makes any move at any time; the contracts say which of them count."""

    network: Consortium
    chain: Chain

    jobs = Bundle("jobs")

    @initialize()
    def found(self) -> None:
        network = self.network
        self.posted: list[Posted] = []
        key_id = network.key_domain("north")
        self.artifact = network.bundle("north", key_id, scope=SCOPE, budget=10 * RHO)
        self.epoch = network.epoch("north", SCOPE)
        self.grant = network.granted("university", "north", self.artifact, SCOPE)

    def move(self, name: str, function: str, *arguments: object) -> bool:
        """A node's move; whether the contract accepted it."""
        try:
            self.network[name].node.transact("JobLedger", function, *arguments)
        except TransactionRevertedError:
            return False
        return True

    def look(self, posted: Posted) -> JobState:
        job = self.network.reader.job(posted.job_id)
        if not posted.seen or posted.seen[-1] != job.state:
            posted.seen.append(job.state)
        return job.state

    @rule(target=jobs)
    def post(self) -> Posted:
        request = JobRequest(
            artifact_id=self.artifact,
            grant_id=self.grant,
            kernel_id=KERNEL,
            parameters_digest=word(),
            purpose=SCOPE,
            consent_epoch=self.epoch,
            policy_version=1,
            rho_micro=RHO,
            row_level=False,
            nonce=int.from_bytes(os.urandom(7), "big"),
        )
        before = self.network.reader.budget(self.artifact)
        (job_id,) = self.network.post("university", [request])
        posted = Posted(job_id, word(), word())
        # Admitted exactly while the budget lasts.
        assert (self.look(posted) == JobState.POSTED) == (
            before.total - before.reserved - before.spent >= RHO
        )
        self.posted.append(posted)
        return posted

    @rule(job=jobs)
    def claim(self, job: Posted) -> None:
        self.move("compute", "claimJob", job.job_id)

    @rule(job=jobs, honest=st.booleans())
    def commit_result(self, job: Posted, honest: bool) -> None:
        self.move("compute", "commitResult", job.job_id, job.truth if honest else job.lie, [])

    @rule(job=jobs, names=st.sets(st.sampled_from(VERIFIERS), min_size=1))
    def commit_verdicts(self, job: Posted, names: set[str]) -> None:
        for name in sorted(names - job.votes.keys()):
            vote = Vote.of(self.network[name], job.job_id, job.lie if name == LIAR else job.truth)
            if self.accepted(vote.commit_move(self.network.network)):
                job.votes[name] = vote

    @rule(job=jobs, names=st.sets(st.sampled_from(VERIFIERS), min_size=1))
    def reveal_verdicts(self, job: Posted, names: set[str]) -> None:
        for name in sorted(names & job.votes.keys()):
            self.accepted(job.votes[name].reveal_move())

    @rule(job=jobs)
    def reveal_of_another(self, job: Posted) -> None:
        """What one verifier committed to opens for nobody else."""
        if {"north", "south"} <= job.votes.keys():
            stolen = replace(job.votes["north"].reveal, verifier=self.network["south"].id)
            assert not self.move("south", "revealVerdicts", job.job_id, [stolen])

    @rule(job=jobs)
    def open_release(self, job: Posted) -> None:
        before = self.look(job)
        if self.move("north", "openRelease", job.job_id):
            assert before == JobState.VERIFIED
        assert not self.move("south", "openRelease", job.job_id), "another member's custodian opened it"

    @rule(job=jobs)
    def refuse_release(self, job: Posted) -> None:
        self.move("north", "refuseRelease", job.job_id, Refusal.RESULT_INVALID)

    @rule(job=jobs)
    def record_release(self, job: Posted) -> None:
        before = self.look(job)
        if self.move("north", "recordRelease", job.job_id, word(), 5):
            assert before == JobState.OPENED

    @rule()
    def withdraw_a_consent(self) -> None:
        self.epoch = self.network.epoch("north", SCOPE)

    @rule()
    def pass_an_hour(self) -> None:
        self.chain.pass_time(3600)

    @rule(job=jobs)
    def close(self, job: Posted) -> None:
        self.move("auditor", CLOSERS.get(self.look(job), "expireJob"), job.job_id)

    @rule(job=jobs)
    def go_all_the_way(self, job: Posted) -> None:
        """Honest members, whatever the liar does: a quorum of them wins."""
        if self.look(job) != JobState.POSTED or not self.move("compute", "claimJob", job.job_id):
            return
        self.commit_result(job, honest=True)
        self.commit_verdicts(job, {"north", "south"})
        self.chain.pass_time(3600)
        self.move("auditor", "closeCommits", job.job_id)
        self.reveal_verdicts(job, {"north", "south"})
        assert self.look(job) in (JobState.VERIFIED, JobState.REVEALING)
        if self.look(job) == JobState.REVEALING:
            self.chain.pass_time(3600)
            self.move("auditor", "closeReveals", job.job_id)
        assert self.look(job) == JobState.VERIFIED

    def accepted(self, move: tuple) -> bool:
        ledger, contract, function, *arguments = move
        try:
            ledger.transact(contract, function, *arguments, least_gas=GAS)
        except TransactionRevertedError:
            return False
        return True

    @invariant()
    def nothing_is_opened_that_was_not_verified_and_no_lie_is_verified(self) -> None:
        for posted in getattr(self, "posted", ()):
            state = self.look(posted)
            job = self.network.reader.job(posted.job_id)
            if state in (JobState.VERIFIED, JobState.OPENED, JobState.RELEASED):
                assert job.result_digest == posted.truth
                assert job.agreeing >= job.replicas == 2
            if state == JobState.RELEASED:
                assert posted.was_opened

    @invariant()
    def budgets_conserve(self) -> None:
        if not hasattr(self, "posted"):
            return
        live = [p for p in self.posted if self.look(p) not in FINAL_JOB_STATES]
        spent = sum(p.was_opened for p in self.posted) * RHO
        reserved = sum(not p.was_opened for p in live) * RHO
        account = self.network.reader.budget(self.artifact)
        assert (account.reserved, account.spent) == (reserved, spent)
        used = sum(p.was_opened or p in live for p in self.posted)
        assert self.network.reader.grant(self.grant).used == used

    def teardown(self) -> None:
        """Every job ends, if only time passes and somebody closes what is overdue."""
        posted = getattr(self, "posted", [])
        for _ in range(12):
            live = [p for p in posted if self.look(p) not in FINAL_JOB_STATES]
            if not live:
                break
            self.chain.pass_time(3600)
            for job in live:
                before = self.look(job)
                closed = self.move("auditor", CLOSERS.get(before, "expireJob"), job.job_id)
                assert closed or before == JobState.CLAIMED, "a lapsed claim may be taken over for an hour"
        for job in posted:
            assert self.look(job) in FINAL_JOB_STATES
        self.budgets_conserve()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with anvil(tmp_path_factory.mktemp("anvil")) as chain:
        yield chain


def test_protocol_opens_nothing_unverified_ends_every_job_and_conserves_budgets(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_POLL_SECONDS", (0.01, 0.01))
    network = Consortium(chain.url, cast=CAST, timings=HOUR, profile="besu-qbft")

    class Model(Protocol):
        pass

    Model.network, Model.chain = network, chain
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=4,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
