"""The index against the contracts: a network that goes through every state, then the same record from both sides."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from ledger_story import ALL, HOSTILE_ENDPOINT, SCOPE, Story

from chain_fixture import FAR, KERNEL, Consortium, until, word
from rpc_door import Call, door_to
from usufruct.errors import (
    LedgerError,
    LedgerUnreachableError,
    MalformedAnswerError,
    MissingEventError,
    StaleLedgerError,
    TransactionRevertedError,
    WrongContractCodeError,
)
from usufruct.ledger import Endpoints, Head, Ledger
from usufruct.ledger.endpoint import Endpoint
from usufruct.ledger.jobs import derived_id
from usufruct.ledger.reputation import Points, faded, faults_of, shown
from usufruct.ledger.series import check_series, event_codec, series_of
from usufruct.records import (
    ArtifactKind,
    Fault,
    GrantStatus,
    JobRequest,
    JobState,
    LedgerEvent,
    MemberStatus,
)
from usufruct_node.index import Index, catch_up, catch_up_in_thread, follow
from usufruct_node.index.database import IndexFileError

WHOLE = (1 << 64) - 1


def tables(path: Path) -> dict[str, list[tuple]]:
    """Every row of every table."""
    with sqlite3.connect(path) as db:
        names = [
            row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
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
    results, releases = (
        {derived_id(job, kind): job for job in ids_of(story, name, "jobId")}
        for name, kind in (("JobVerified", ArtifactKind.RESULT), ("JobReleased", ArtifactKind.RELEASE))
    )
    bundles = ids_of(story, "BundleRegistered", "artifactId")
    assert {artifact_id for artifact_id, _ in known} == bundles | results.keys() | releases.keys()
    for artifact_id, record in known:
        assert index.artifact(artifact_id) == record
        told = story.net.reader.artifact(artifact_id)
        if artifact_id in bundles:
            assert record == told
            continue
        job = story.net.reader.job((results | releases)[artifact_id])
        derived = (record.content_digest, record.key_id, record.frozen)
        if artifact_id in results:
            assert derived == (job.result_digest, job.key_id, told.frozen)
            assert record.steward == job.executor
            assert index.ancestors(artifact_id)[0] == (artifact_id, job.request.artifact_id)
        else:
            assert derived == (job.release_digest, job.key_id, told.frozen)
            assert index.ancestors(artifact_id)[0][1] in results
    assert {record.frozen for _, record in known} == {0, 1, 2}
    assert {record.kind for _, record in known} == set(ArtifactKind) - {ArtifactKind.NONE}


def test_index_and_contracts_agree_on_every_consent_epoch(story: Story, index: Index) -> None:
    for event in story.net.events(["ConsentEpochAnchored"]):
        steward, scope, epoch = (event.args[key] for key in ("steward", "scope", "epoch"))
        kept = index.consent_epoch(steward, scope, epoch)
        assert kept is not None
        assert (kept.consent_root, kept.status_digest) == (
            event.args["consentRoot"],
            event.args["statusDigest"],
        )
        assert index.consent_epoch(steward, scope) == story.net.reader.consent_epoch(steward, scope)


def test_index_and_contracts_agree_on_every_grant(story: Story, index: Index) -> None:
    told = {
        grant_id: story.net.reader.grant(grant_id) for grant_id in ids_of(story, "UsageRequested", "grantId")
    }
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
    turns = {job_id: story.net.reader.progress(job_id).turns for job_id in told}
    assert {row.job_id: row.turns for row in index.jobs(limit=10_000)} == turns
    for state in JobState:
        assert index.job_count(state) == sum(job.state == state for job in told.values())
        if state:
            assert {row.job_id for row in index.jobs(state)} == {
                i for i, job in told.items() if job.state == state
            }
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
        "Reputation",
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


class Deadly(Index):
    """Dies by SIGKILL when a step is about to write its row number `fatal`."""

    def advance(self, events: Sequence[LedgerEvent], head: Head, *, fatal: int = 0) -> None:
        written = count(1)

        def trace(statement: str) -> None:
            if statement.startswith(("INSERT", "UPDATE")) and next(written) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        self._db.set_trace_callback(trace)
        super().advance(events, head)


def killed_while_advancing(path: Path, batch: list[LedgerEvent], head: Head, fatal: int) -> None:
    child = os.fork()
    if child == 0:
        Deadly(path).advance(batch, head, fatal=fatal)
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
        killed_while_advancing(path, batch, head, fatal=1 + len(batch) * (start % 3) // 2)
        resumed = Index(path)
        assert resumed.cursor() == (blocks[start - 1][1] if start else None)
        resumed.advance(batch, head)
        resumed.close()
    resumed = Index(path)
    resumed.advance([], index.cursor())
    resumed.close()
    assert tables(path) == tables(tmp_path / "index.db")


def trees(path: Path) -> set[str]:
    with sqlite3.connect(path) as db:
        return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE INDEX%'")}


def test_index_built_in_many_spans_read_ahead_equals_one_built_in_one(
    story: Story, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["usufruct_node.index.follow"], "_SPAN", 3)
    spanned = Index(tmp_path / "spanned.db")
    catch_up(spanned, story.net.reader)
    index.advance([], spanned.cursor())  # Blocks may have come since.
    spanned.close()
    assert tables(tmp_path / "spanned.db") == tables(tmp_path / "index.db")
    assert trees(tmp_path / "spanned.db") == trees(tmp_path / "index.db") != set()


def test_work_that_is_cancelled_ends_after_a_span_and_goes_on_from_there(
    story: Story, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["usufruct_node.index.follow"], "_SPAN", 3)
    stopped = Index(tmp_path / "stopped.db")
    advance = stopped.advance
    scope = trio.CancelScope()

    def advance_and_cancel(events: list[LedgerEvent], reached: Head) -> None:
        advance(events, reached)
        trio.from_thread.run_sync(scope.cancel)

    async def cancelled() -> None:
        monkeypatch.setattr(stopped, "advance", advance_and_cancel)
        with scope:
            await catch_up_in_thread(stopped, story.net.reader)

    trio.run(cancelled)
    assert scope.cancelled_caught
    first = story.net.reader.network.deployed_at_block
    assert stopped.cursor().number == first + 2
    monkeypatch.setattr(stopped, "advance", advance)
    assert catch_up(stopped, story.net.reader)
    index.advance([], stopped.cursor())
    stopped.close()
    assert tables(tmp_path / "stopped.db") == tables(tmp_path / "index.db")


def test_search_trees_that_a_killed_rebuild_did_without_are_back_when_the_file_is_opened_again(
    index: Index, tmp_path: Path
) -> None:
    path = tmp_path / "index.db"
    whole = trees(path)
    child = os.fork()
    if child == 0:
        with Index(path).growing():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert trees(path) == set()
    Index(path).close()
    assert trees(path) == whole


def test_search_trees_for_which_the_disk_had_no_space_are_built_with_the_next_step(
    story: Story, index: Index, tmp_path: Path
) -> None:
    path = tmp_path / "index.db"
    whole = trees(path)

    def fill_disk() -> None:
        index._db.execute("VACUUM")
        (pages,) = index._db.execute("PRAGMA page_count").fetchone()
        index._db.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(IndexFileError, match="full"), index.growing():
        fill_disk()
    assert trees(path) == set()
    with pytest.raises(IndexFileError, match="full"):
        catch_up(index, story.net.reader)
    with pytest.raises(IndexFileError, match="full"), index.growing():
        pass
    index._db.execute("PRAGMA max_page_count = 1000000")
    catch_up(index, story.net.reader)
    assert trees(path) == whole


@pytest.mark.parametrize("damage", ["no database", "a damaged page"])
def test_a_file_that_is_no_database_is_set_aside_and_built_anew(
    story: Story, index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path, log_of_old = tmp_path / "damaged.db", tmp_path / "damaged.db-wal"
    garbage = b"garbage!" * 1000
    if damage == "a damaged page":
        Index(path).close()
        content = path.read_bytes()
        garbage = content[:100] + garbage[:996] + content[1096:]
    path.write_bytes(garbage)
    log_of_old.write_bytes(b"of the old file")
    with caplog.at_level(logging.WARNING):
        built = Index(path)
    assert "damaged.db.damaged" in caplog.text
    assert (tmp_path / "damaged.db.damaged").read_bytes() == garbage
    catch_up(built, story.net.reader)
    index.advance([], built.cursor())
    built.close()
    assert tables(path) == tables(tmp_path / "index.db")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_opened_is_a_typed_error_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "index.db"
    folder.mkdir()
    with pytest.raises(IndexFileError, match="unable to open"):
        Index(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_an_index_of_another_version_is_built_anew(story: Story, index: Index, tmp_path: Path) -> None:
    path = tmp_path / "older.db"
    with sqlite3.connect(path) as db:
        db.executescript(
            "CREATE TABLE event (block_number INTEGER, args TEXT); CREATE TABLE gone (id INTEGER);"
        )
        db.execute("INSERT INTO event VALUES (1, '{}')")
    older = Index(path)
    assert older.cursor() is None
    catch_up(older, story.net.reader)
    index.advance([], older.cursor())
    older.close()
    assert tables(path) == tables(tmp_path / "index.db")
    Index(path).close()
    assert tables(path) == tables(tmp_path / "index.db")


@pytest.mark.parametrize("fault", ["left out", "shown twice", "changed", "forged head", "swapped"])
def test_an_endpoint_that_tampers_with_a_series_is_refused_and_leaves_the_index_as_it_was(
    story: Story, tmp_path: Path, fault: str
) -> None:
    events = story.net.events()
    path, half = tmp_path / "tampered.db", len(events) // 2
    head = Head(events[-1].block_number + 1, word(), events[-1].timestamp)
    place = next(
        i for i, e in enumerate(events) if e.name == "VerdictRevealed" and i > half and e.args["sequence"] > 2
    )
    victim = events[place]
    words = victim.words
    forged = {
        "changed": words[:-65] + bytes([words[-65] ^ 1]) + words[-64:],
        "forged head": words[:-32] + word(),
    }.get(fault, words)
    args = event_codec(victim.contract, victim.name).decode(forged)
    assert (args != victim.args) == (fault in ("changed", "forged head"))
    tampered = {
        "left out": events[:place] + events[place + 1 :],
        "shown twice": [*events[: place + 1], *events[place:]],
        "swapped": [*events[:place], *reversed(series_after(events, place)), *events[place + 1 :]],
    }.get(fault, [*events[:place], replace(victim, args=args, words=forged), *events[place + 1 :]])
    built = Index(path)
    built.advance(events[:half], Head(events[half].block_number, word(), 1))
    before = tables(path)
    with pytest.raises(StaleLedgerError):
        built.advance(tampered[half:], head)
    assert tables(path) == before
    built.advance(events[half:], head)
    built.close()


def test_an_endpoint_that_is_stale_then_forges_logs_then_serves_another_chain_corrupts_no_index(
    story: Story, index: Index, tmp_path: Path
) -> None:
    """Each time the other endpoint takes over, and the index goes on to equal a fresh one."""
    network = story.net.network
    path, victim = tmp_path / "lied-to.db", "JobVerified"

    def stale(call: Call, result: Any) -> Any:
        return genesis if call["params"][:1] == ["finalized"] else result

    def forged(call: Call, result: Any) -> Any:
        if call["method"] != "eth_getLogs":
            return result
        topic = "0x" + topic_of(victim).hex()
        return [log for log in result if log["topics"][0] != topic]

    def nonsense(call: Call, result: Any) -> Any:
        return None if call["method"] == "eth_getLogs" else result

    def foreign(call: Call, result: Any) -> Any:
        return "0x1" if call["method"] == "eth_chainId" else result

    with door_to(network.rpc_urls[0]) as liar, door_to(network.rpc_urls[0]) as honest:
        genesis = Endpoint(network.rpc_urls[0]).call("eth_getBlockByNumber", "0x0", False)
        for lie, said in (
            (stale, "is at block 0"),
            (forged, "left out an event"),
            (nonsense, "answers eth_getLogs with no list"),
            (foreign, "serves chain 1"),
        ):
            path.unlink(missing_ok=True)
            liar.lie = lie
            ledger = through(network, liar.url, honest.url)
            with closing(Index(path)) as built:
                if lie in (forged, nonsense):
                    with pytest.raises(LedgerError, match=said):
                        catch_up(built, ledger)
                    assert built.cursor() is None, "nothing of a forged span is kept"
                catch_up(built, ledger)
                assert ledger.endpoint.url == honest.url
                assert said in (ledger.health().endpoints[0].trouble or "")
            assert without_cursor(path) == without_cursor(tmp_path / "index.db")


def unknown_event(network: Any, log: dict[str, Any]) -> dict[str, Any]:
    return {"address": network.contracts["ValidatorSet"], "topics": ["0x" + "77" * 32], "data": "0x"}


def unknown_status(network: Any, log: dict[str, Any]) -> dict[str, Any]:
    topic = "0x" + event_codec("ParticipantRegistry", "ParticipantStatusChanged").topic.hex()
    address = network.contracts["ParticipantRegistry"]
    return {"address": address, "topics": [topic, "0x" + word().hex()], "data": "0x" + "00" * 31 + "c8"}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (unknown_event, WrongContractCodeError, "does not know"),
        (unknown_status, MalformedAnswerError, "200 is not a valid MemberStatus"),
        (lambda _, log: {"logIndex": log["logIndex"]}, StaleLedgerError, "showed an event twice: UNIQUE"),
        (lambda _, log: {"blockNumber": "0x" + "ff" * 8, "blockTimestamp": "0x1"}, MalformedAnswerError, "63 bits"),
        (lambda _, log: {"logIndex": "0x" + "ff" * 8}, MalformedAnswerError, "63 bits"),
        (lambda _, log: {"blockTimestamp": "0x" + "ff" * 8}, MalformedAnswerError, "63 bits"),
        (None, LedgerError, "query exceeds limit"),
    ],
    ids=["event", "status", "shown twice", "block number", "log index", "time", "an error"],
)  # fmt: skip
def test_an_endpoint_whose_events_the_index_cannot_take_is_left_for_another(
    story: Story, index: Index, tmp_path: Path, change: Any, error: type[LedgerError], said: str
) -> None:
    network = story.net.network
    plain = next(e for e in story.net.events() if series_of(e) is None)

    def one_more(call: Call, result: Any) -> Any:
        if call["method"] != "eth_getLogs":
            return result
        place = (hex(plain.block_number), hex(plain.log_index))
        (log,) = [log for log in result if (log["blockNumber"], log["logIndex"]) == place]
        beyond = {"logIndex": hex(1 + max(int(log["logIndex"], 16) for log in result))}
        return [*result, log | beyond | change(network, log)]

    def refuse(calls: list[Call]) -> bytes | None:
        if calls[0]["method"] != "eth_getLogs":
            return None
        refusal = {"code": -32005, "message": "query exceeds limit"}
        return json.dumps({"jsonrpc": "2.0", "id": calls[0]["id"], "error": refusal}).encode()

    with door_to(network.rpc_urls[0]) as liar, door_to(network.rpc_urls[0]) as honest:
        if change is None:
            liar.before = refuse
        else:
            liar.lie = one_more
        ledger = through(network, liar.url, honest.url)
        with closing(Index(tmp_path / "lied-to.db")) as built:
            with pytest.raises(error, match=said):
                catch_up(built, ledger)
            assert built.cursor() is None
            catch_up(built, ledger)
            assert ledger.endpoint.url == honest.url
            assert said in (ledger.health().endpoints[0].trouble or "")
        assert without_cursor(tmp_path / "lied-to.db") == without_cursor(tmp_path / "index.db")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ParticipantStatusChanged", {"status": 200}),
        ("KeyStatusChanged", {"status": 200}),
        ("ArtifactFrozen", {"frozen": 200}),
        ("UsageRequested", {"terms": {"level": 200}}),
        ("UsageGranted", {"terms": {"level": 200}}),
        ("UsageDenied", {"reason": 200}),
        ("JobDenied", {"reason": 200}),
        ("JobEnded", {"state": 200}),
        ("JobEnded", {"reason": 200}),
        ("FaultRecorded", {"fault": 200}),
        ("FaultRecorded", {"points": WHOLE}),
        ("ConsentEpochAnchored", {"epoch": WHOLE}),
    ],
)
def test_a_value_that_there_is_not_is_refused_before_anything_is_kept(
    story: Story, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    events = story.net.events()
    place = max(i for i, event in enumerate(events) if event.name == name)
    args = events[place].args
    for key, value in changes.items():
        args = args | {key: args[key] | value if isinstance(value, dict) else value}
    path = tmp_path / "refused.db"
    built = Index(path)
    before = tables(path)
    head = Head(events[-1].block_number, word(), events[-1].timestamp)
    with pytest.raises(MalformedAnswerError, match="no contract emits"):
        built.advance([*events[:place], replace(events[place], args=args), *events[place + 1 :]], head)
    assert tables(path) == before
    built.advance(events, head)
    built.close()


def test_a_block_indexed_last_that_no_endpoint_has_is_said_to_be_helped_by_a_new_index(
    story: Story, index: Index
) -> None:
    network = story.net.network
    catch_up(index, story.net.reader)
    cursor = index.cursor()

    def another(call: Call, result: Any) -> Any:
        is_it = call["method"] == "eth_getBlockByNumber" and call["params"][0] == hex(cursor.number)
        return result | {"hash": "0x" + "66" * 32} if is_it else result

    with door_to(network.rpc_urls[0]) as one, door_to(network.rpc_urls[0]) as other:
        one.lie = another
        until(lambda: story.net.reader.finalised().number > cursor.number)
        ledger = through(network, one.url, other.url)
        ledger.finalised()
        assert ledger.endpoint.url == one.url
        with pytest.raises(StaleLedgerError, match="another block") as caught:
            catch_up(index, ledger)
        assert caught.value.hint == "", "the other endpoint has it"
        assert catch_up(index, ledger)
        assert ledger.endpoint.url == other.url
        one.open()
        for number in (index.cursor().number, index.cursor().number + 1_000):
            index.advance([], Head(number, word(), cursor.timestamp))
            with pytest.raises(StaleLedgerError) as caught:
                catch_up(index, ledger)
            assert "delete index.db" in caught.value.hint


def through(network: Any, *urls: str) -> Ledger:
    endpoints = Endpoints(
        urls, profile=network.chain, chain_id=network.chain_id, genesis_hash=network.genesis_hash
    )
    return Ledger(network, endpoints)


def without_cursor(path: Path) -> dict[str, list[tuple]]:
    return {name: rows for name, rows in tables(path).items() if name != "cursor"}


def topic_of(name: str) -> bytes:
    return event_codec("JobLedger", name).topic


def series_after(events: list[LedgerEvent], place: int) -> list[LedgerEvent]:
    """An event and the next one of its series."""
    key = series_of(events[place])
    return [events[place], next(e for e in events[place + 1 :] if series_of(e) == key)]


def test_reorg_rollback_an_older_or_another_head_is_refused(
    story: Story, index: Index, tmp_path: Path
) -> None:
    before, cursor = tables(tmp_path / "index.db"), index.cursor()
    with pytest.raises(StaleLedgerError, match="older"):
        index.advance([], Head(cursor.number - 1, word(), cursor.timestamp))

    class Behind(Endpoint):
        def finalised(self) -> Head:
            return self.block(cursor.number - 1)

    class Forked(Endpoint):
        """Other blocks at every height, whether the chain has moved on since or not."""

        def _head(self, at: str) -> Head:
            return replace(super()._head(at), hash=word())

    for fault, said in ((Behind, "is at block"), (Forked, "another block")):
        network = story.net.network
        ledger = Ledger(network, fault(network.rpc_urls[0]))
        with pytest.raises(StaleLedgerError, match=said):
            catch_up(index, ledger)
    assert tables(tmp_path / "index.db") == before


def test_follower_reports_trouble_and_goes_on_when_the_endpoint_recovers(
    story: Story, tmp_path: Path
) -> None:
    faults: list[LedgerError] = [
        LedgerUnreachableError("nobody answers"),
        LedgerError("eth_getLogs: limit exceeded"),
    ]
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
        "university",
        "north",
        bundle,
        SCOPE,
        rho_micro=WHOLE,
        expires_at=WHOLE,
        uses=(1 << 32) - 1,
        min_cohort=1,
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
    assert index.grant(grant).terms.expires_at > FAR
    index.close()


# Faults: the index, the pure function and the contract, each by itself.


def test_contract_and_sdk_agree_on_who_did_wrong_in_every_job(story: Story) -> None:
    recorded: dict[object, list[tuple[object, object]]] = {}
    for event in story.net.events(["FaultRecorded"]):
        recorded.setdefault(event.args["jobId"], []).append((event.args["organisation"], event.args["fault"]))
    for name, job_id in story.jobs.items():
        events = story.net.reader.job_events(job_id)
        assert faults_of(events) == recorded.get(job_id, []), name
        expected = "AlreadyReported" if job_id in recorded else "(NoFault|NotEnded)"
        with pytest.raises(TransactionRevertedError, match=f"Reputation{expected}"):
            story.net["south"].node.transact("Reputation", "report", job_id, shown(events))
    told = {fault for found in recorded.values() for _, fault in found}
    assert told == set(Fault) - {Fault.NONE}


def test_index_and_contract_agree_on_points_and_what_was_reported(story: Story, index: Index) -> None:
    head = index.cursor()
    assert head is not None
    found = index.reputation(head.timestamp)
    for member in index.participants():
        (points,) = story.net.reader.read("Reputation", "pointsOf", member.id)
        assert points == (found[member.id].points if member.id in found else 0), member.name
        assert len(index.faults(member.id)) == (found[member.id].faults if member.id in found else 0)
    assert found[story.net["compute"].id].points > 0
    assert found[story.net["auditor"].id].faults > found[story.net["auditor"].id].points == 0
    faultless = [row.job_id for row in index.suspect_jobs()]
    assert all(faults_of(story.net.reader.job_events(job_id)) == [] for job_id in faultless)
    assert story.jobs["late-dispute"] in faultless


@given(
    points=st.integers(0, 1000),
    since=st.integers(0, 10**6),
    later=st.lists(st.integers(0, 10**5), max_size=4),
)
def test_points_fade_the_same_however_often_one_looks(points: int, since: int, later: list[int]) -> None:
    held, now = Points(points, since), since
    for passed in later:
        now += passed
        held = faded(held, now, 3600)
    assert (
        held.points
        == faded(Points(points, since), now, 3600).points
        == max(0, points - (now - since) // 3600)
    )
