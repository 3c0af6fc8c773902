"""Answers of the index as JSON, on a network that went through everything."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from ledger_story import HOSTILE_ENDPOINT, Story

from usufruct.records import ArtifactId, GrantId, JobId, JobState, MemberStatus, Refusal
from usufruct_node.index import Index, catch_up, database
from usufruct_node.index.rows import event_of
from usufruct_node.queries import Queries, UnknownRecordError


@pytest.fixture(scope="module")
def queries(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queries]:
    index = Index(tmp_path_factory.mktemp("queries") / "index.db")
    catch_up(index, story.net.reader)
    yield Queries(index, story.net.network.contracts)
    index.close()


def test_members_are_told_with_status_and_roles_and_hostile_endpoints_are_plain_text(
    queries: Queries,
) -> None:
    members = {member["name"]: member for member in queries.members()}
    assert members["late"]["status"] == "ACTIVE"
    assert members["late"]["roles"] == ["PARTNER"]
    assert members["gone"]["status"] == "REMOVED"
    assert members["rival"]["endpoint"] == HOSTILE_ENDPOINT.decode("utf-8", "backslashreplace")
    assert json.loads(json.dumps(queries.members())) == queries.members()


def test_every_denial_is_listed_once_with_its_reason_newest_first(story: Story, queries: Queries) -> None:
    told = queries.denials(1000)
    refused = {
        story.jobs[name].hex(): reason.name
        for name, (_, reason) in story.expected.items()
        if reason != Refusal.NONE
    }
    refused[story.grants["refused"].hex()] = Refusal.PURPOSE_NOT_GRANTED.name
    assert {entry["id"]: entry["reason"] for entry in told} == refused
    assert len(told) == len(refused)
    assert [e["block_number"] for e in told] == sorted((e["block_number"] for e in told), reverse=True)
    assert queries.denials(3) == told[:3]
    assert queries.denials(2, 1) == told[1:3]
    assert queries.denials(1000, len(told)) == []
    by_rival = [entry for entry in told if entry["requester"] == "rival"]
    assert [entry["reason"] for entry in by_rival] == ["GRANT_REVOKED"]


def test_a_page_of_denials_reads_no_other_events_than_it_tells(
    queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads all pages of a long list would otherwise read it all for each."""
    read = 0

    def counted(row: sqlite3.Row) -> dict[str, Any]:
        nonlocal read
        read += 1
        return event_of(row)

    told = queries.denials(1000)
    monkeypatch.setattr(database, "event_of", counted)
    assert queries.denials(1, len(told) - 1) == told[-1:] and read == 1


def test_jobs_on_a_bundle_are_looked_up_by_it_and_not_searched_for(story: Story, index: Index) -> None:
    asked: list[str] = []
    index._db.set_trace_callback(asked.append)
    (bundle,) = {row.job.request.artifact_id for row in index.jobs() if row.job_id == story.jobs["released"]}
    asked.clear()
    found = index.jobs(JobState.POSTED, JobState.RELEASED, artifact_id=bundle)
    index._db.set_trace_callback(None)
    assert {row.job_id for row in found} >= {story.jobs["released"]}
    assert all(row.job.request.artifact_id == bundle for row in found)
    assert found == [
        row for row in index.jobs(JobState.POSTED, JobState.RELEASED) if row.job.request.artifact_id == bundle
    ]
    plan = index._db.execute(f"EXPLAIN QUERY PLAN {asked[-1]}").fetchall()
    assert "USING INDEX job_artifact" in str([tuple(row) for row in plan])


def test_jobs_are_filtered_by_state_newest_first(story: Story, queries: Queries) -> None:
    everything = queries.jobs([], 1000)
    assert len(everything) == len(story.jobs)
    assert [j["posted_at"] for j in everything] == sorted((j["posted_at"] for j in everything), reverse=True)
    assert queries.jobs([], 2, 1) == everything[1:3]
    assert queries.jobs([], 2, len(everything)) == []
    released = queries.jobs([JobState.RELEASED], 1000)
    assert {job["job_id"] for job in released} == {story.jobs[n].hex() for n in ("released", "released-rows")}
    assert all(job["level"] == "REPLICATED(3/3)" for job in released)
    claimed = queries.jobs([JobState.COMMITTED, JobState.REVEALING, JobState.DISPUTED], 1000)
    assert len(claimed) >= 3 and all(job["level"] == "CLAIMED" for job in claimed)
    assert all(job["level"] is None for job in queries.jobs([JobState.POSTED, JobState.REFUTED], 1000))
    assert len(queries.jobs([], 5)) == 5


def test_a_job_is_told_with_verdicts_artifacts_and_every_event(story: Story, queries: Queries) -> None:
    job = queries.job(story.jobs["released"])
    assert [event["name"] for event in job["events"]] == [
        "JobPosted",
        "JobClaimed",
        "ResultCommitted",
        *["VerdictCommitted"] * 3,
        "CommitsClosed",
        *["VerdictRevealed"] * 3,
        "JobVerified",
        "ReleaseOpened",
        "JobReleased",
    ]
    assert {verdict["verifier"] for verdict in job["verdicts"]} == {"north", "south", "auditor"}
    assert len(job["artifacts"]) == 2
    silent = queries.job(story.jobs["revealing"])["verdicts"]
    assert [(v["revealed"], v["agrees"]) for v in silent] == [(False, None)] * 3


def test_the_lineage_of_a_release_names_what_was_in_force(story: Story, queries: Queries) -> None:
    release = ArtifactId(bytes.fromhex(queries.job(story.jobs["released"])["artifacts"][1]))
    told = queries.lineage(release, "ancestors")
    assert [artifact["kind"] for artifact in told["artifacts"]] == ["RELEASE", "RESULT", "BUNDLE"]
    first = told["artifacts"][0]
    assert (first["policy"]["version"], first["consent"]["epoch"], first["stale"]) == (1, 2, False)
    assert first["grant"]["status"] == "GRANTED"
    down = queries.lineage(story.bundles["north"], "descendants")
    assert [release.hex(), first["artifact_id"]] != down["edges"][0]
    assert {edge[1] for edge in down["edges"]} >= {story.bundles["north"].hex()}


def test_impact_tells_which_results_rest_on_consent_that_is_no_longer_in_force(
    story: Story, queries: Queries
) -> None:
    stale = {entry["job_id"]: entry["stale"] for entry in queries.impact(story.bundles["south"])}
    assert stale[story.jobs["stale"].hex()] is True
    fresh = {entry["job_id"]: entry["stale"] for entry in queries.impact(story.bundles["north"])}
    assert fresh[story.jobs["released"].hex()] is False
    assert fresh[story.jobs["stale"].hex()] is True, "reached over the bundle that descends from this one"


def test_bundles_and_grants_are_told_with_budget_epoch_and_terms(story: Story, queries: Queries) -> None:
    bundles = {bundle["artifact_id"]: bundle for bundle in queries.bundles()}
    north = bundles[story.bundles["north"].hex()]
    assert north["budget"]["spent"] == 4000
    assert (north["consent_epoch"], north["cohort_floor"], north["steward"]) == (2, 50, "north")
    assert bundles[story.bundles["banned"].hex()]["frozen"] == "BY_COUNCIL"
    mine = queries.grants(grantee=story.net["rival"].id, steward=None)
    assert {grant["grantee"] for grant in mine} == {"rival"}
    assert queries.grant(story.grants["rows"])["terms"]["row_level"] is True
    asked = queries.grant(story.grants["asked"])
    assert (asked["status"], asked["terms"]["uses"], asked["asked"]["uses"]) == ("REQUESTED", 0, 1000)


def test_a_grant_is_looked_up_by_its_id_and_not_searched_for(story: Story, queries: Queries) -> None:
    db = queries._index._db
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    queries.grant(story.grants["asked"])
    db.set_trace_callback(None)
    plans = [row["detail"] for sql in statements for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert plans
    assert all(plan.startswith("SEARCH") for plan in plans), plans


def test_a_proposal_names_arguments_roles_and_states_and_hides_no_bit(story: Story, queries: Queries) -> None:
    net = story.net
    record, org = net["late"].record, net["late"].id
    ledger = net["north"].ledger
    for function, arguments in (
        ("admit", [record]),
        ("setRoles", [org, 68]),
        ("setStatus", [org, MemberStatus.SUSPENDED]),
    ):
        call = ledger.call_data("ParticipantRegistry", function, *arguments)
        ledger.transact("MemberCouncil", "propose", *call)
    catch_up(queries._index, net.reader)
    suspended, roles, admitted = [row["call"] for row in queries.proposals()[:3]]
    assert suspended == "ParticipantRegistry.setStatus(id late, status SUSPENDED)"
    assert roles == "ParticipantRegistry.setRoles(id late, roles PARTNER+UNKNOWN 64)"
    assert admitted.startswith("ParticipantRegistry.admit(newcomer (id late, account 0x")
    assert f"roles PARTNER+AUDITOR, status NONE, hpkeKey 0x{record.hpke_key.hex()}, peerId 0x" in admitted


def test_unknown_records_are_a_typed_error(queries: Queries) -> None:
    nothing = bytes(32)
    for ask in (
        lambda: queries.job(JobId(nothing)),
        lambda: queries.grant(GrantId(nothing)),
        lambda: queries.artifact(ArtifactId(nothing)),
        lambda: queries.lineage(ArtifactId(nothing), "ancestors"),
        lambda: queries.impact(ArtifactId(nothing)),
    ):
        with pytest.raises(UnknownRecordError):
            ask()
