"""Two hundred jobs posted at once by three partners: all end, nothing is done twice, budgets conserve."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from books import index_equals_a_fresh_replay
from organisations import CLINICS, Consortium

from usufruct.content import dag
from usufruct.privacy import MICRO
from usufruct.records import GrantId, JobId, JobRequest, JobState, Role, Timings, label
from usufruct_node.devnet import MEMBERS, Member
from usufruct_node.soak.books import Books

JOBS = 200
PARTNERS = ("university", "institute", "hospital")
PATIENT = Timings(claim=900, compute=900, commit=900, reveal=900, dispute=900, release=900)
"""The last of two hundred waits for the others."""


def requests(
    network: Consortium, partner: str, grants: dict[str, GrantId], numbers: range
) -> list[JobRequest]:
    """Sums over the clinics' bundles in turn; the parameters are at the partner's node."""
    client = network.clients[partner]
    made = []
    for number in numbers:
        clinic = CLINICS[number % len(CLINICS)]
        bundle = network.clinics[clinic].bundle
        parameters = client.parameters(bundle, "sum")
        client.content.put_record("parameters", parameters.to_record())
        scope = label(bundle.scope)
        made.append(
            JobRequest(
                artifact_id=bundle.artifact_id,
                grant_id=grants[clinic],
                kernel_id=parameters.kernel.kernel_id,
                parameters_digest=dag.cid_of(parameters.to_record()).digest,
                purpose=scope,
                consent_epoch=client.ledger.consent_epoch(bundle.artifact.steward, scope).epoch,
                policy_version=bundle.artifact.policy_version,
                rho_micro=MICRO,
                row_level=False,
                nonce=number,
            )
        )
    return made


def post(network: Consortium, partner: str, wanted: list[JobRequest]) -> list[JobId]:
    """All of a partner's jobs in one batch."""
    ledger = network.clients[partner].ledger
    receipts = ledger.transact_many([ledger.call_data("JobLedger", "postJob", request) for request in wanted])
    return [JobId(bytes(ledger.event_of(receipt, "JobPosted").args["jobId"])) for receipt in receipts]


@pytest.mark.timeout(900)
def test_two_hundred_jobs_posted_at_once_by_three_partners_all_end_and_budgets_conserve(
    tmp_path: Path,
) -> None:
    newcomers = [Member(name, Role.PARTNER, founder=False) for name in PARTNERS[1:]]
    network = Consortium(tmp_path, members=(*MEMBERS, *newcomers), timings=PATIENT)
    try:
        grants = {
            partner: {clinic: network.grant(clinic, network.clients[partner]) for clinic in CLINICS}
            for partner in PARTNERS
        }
        wanted = {
            partner: requests(network, partner, grants[partner], range(at, JOBS, len(PARTNERS)))
            for at, partner in enumerate(PARTNERS)
        }
        posted = network.together(*(partial(post, network, partner, wanted[partner]) for partner in PARTNERS))
        jobs = [job for batch in posted for job in batch]
        assert len(set(jobs)) == JOBS
        books = all_over(network, jobs, seconds=600)
        assert Counter(network.ledger.job(job).state for job in jobs) == {JobState.RELEASED: JOBS}
        for clinic in CLINICS:
            artifact = network.clinics[clinic].bundle.artifact_id
            held, told = books.accounts[artifact], network.ledger.budget(artifact)
            assert (held.reserved, held.spent) == (told.reserved, told.spent) == (0, JOBS // 2 * MICRO)
            used = sum(network.ledger.grant(grants[partner][clinic]).used for partner in PARTNERS)
            assert used == JOBS // 2
        network.indexed()
        for member in network.net.members:
            network.net.stop(member.name)
            index_equals_a_fresh_replay(network, member.name)
    finally:
        network.close()


def all_over(network: Consortium, jobs: list[JobId], *, seconds: float) -> Books:
    """The books once no job is open; whatever the events break, breaks the test."""
    books, first = Books(), network.ledger.network.deployed_at_block
    deadline = time.monotonic() + seconds
    while not set(jobs) <= set(books.released) and time.monotonic() < deadline:
        last = network.ledger.finalised().number
        assert books.add(network.ledger.events(first, last)) == []
        first = last + 1
        time.sleep(1.0)
    assert books.open_jobs == set()
    return books
