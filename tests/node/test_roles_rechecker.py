"""What a liar did before is executed again, and what comes out otherwise is told. The ledger's story is a real chain's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from ledger_story import Story

from usufruct.content import Cid, Codec, EmbeddedBlockStore
from usufruct.records import ArtifactId
from usufruct_node.index import Index, JobRow, catch_up, faults
from usufruct_node.roles.context import RoleContext, job_pin, recheck_pin
from usufruct_node.roles.journal import Journal
from usufruct_node.roles.rechecker import Rechecker


class Results:
    """A node's context that executes to what the test says; everything else is the real thing."""

    def __init__(self, index: Index, journal: Journal, now: int, store: EmbeddedBlockStore) -> None:
        self.index, self.journal, self.store, self._now = index, journal, store, now
        self.found: dict[bytes, bytes] = {}
        self.sound: set[ArtifactId] = set()

    def now(self) -> int:
        return self._now

    async def inputs(self, row: JobRow, *, pin: str | None = None) -> JobRow:
        self.store.put(row.job_id, pin=pin or job_pin(row.job_id))
        return row

    async def execute(self, row: JobRow, inputs: JobRow, *, pin: str | None = None) -> SimpleNamespace:
        RoleContext.tidy(self)  # type: ignore[arg-type]
        assert self.store.get(Cid.of(row.job_id)) == row.job_id, "what is computed with is kept meanwhile"
        return SimpleNamespace(cid=Cid.from_digest(self.found[row.job_id], Codec.DAG_CBOR))


def test_what_a_liar_released_before_is_executed_again_once_and_a_wrong_result_is_told(
    story: Story, index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = index.cursor()
    assert head is not None
    journal = Journal(tmp_path / "node.db")
    store = EmbeddedBlockStore(tmp_path / "blocks")
    context = Results(index, journal, head.timestamp, store)
    rechecker = Rechecker(context)  # type: ignore[arg-type]
    rows = rechecker.wanted()
    # The story's compute node was refuted after it had both of these released.
    assert {row.job_id for row in rows} == {story.jobs["released"], story.jobs["released-rows"]}
    context.found = {row.job_id: row.job.result_digest for row in rows}
    context.found[story.jobs["released-rows"]] = bytes(32)
    for row in rows:
        trio.run(rechecker.handle, row)
    assert journal.recheck(story.jobs["released"]) is True
    assert journal.recheck(story.jobs["released-rows"]) is False
    assert "WRONG" in caplog.text and story.jobs["released-rows"].hex()[:12] in caplog.text
    assert rechecker.wanted() == []
    assert store.reasons("") == [], "and not after"
    store.close()
    journal.close()


def test_a_recheck_that_fails_or_that_a_kill_cuts_off_leaves_nothing(
    story: Story, index: Index, tmp_path: Path
) -> None:
    journal, store = Journal(tmp_path / "node.db"), EmbeddedBlockStore(tmp_path / "blocks")
    row = index.job(story.jobs["released"])
    assert row is not None
    context = Results(index, journal, 0, store)
    with pytest.raises(KeyError):
        trio.run(Rechecker(context).handle, row)  # type: ignore[arg-type]
    assert store.reasons("") == []
    store.put(b"of a run before", pin=recheck_pin(row.job_id))
    RoleContext.forget_rechecks(context)  # type: ignore[arg-type]
    assert store.reasons("") == []
    store.close()
    journal.close()


def test_nothing_is_asked_for_that_nobody_keeps_any_more_or_that_was_long_before(
    story: Story, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "node.db")
    row = index.job(story.jobs["released"])
    assert row is not None
    artifact = index.artifact(ArtifactId(row.job.request.artifact_id))
    assert artifact is not None
    store = EmbeddedBlockStore(tmp_path / "blocks")
    rechecker = Rechecker(Results(index, journal, artifact.retain_until, store))  # type: ignore[arg-type]
    assert index.doubtful_jobs() and rechecker.wanted() == []
    monkeypatch.setattr(faults, "DOUBTFUL_SECONDS", 0)
    with closing(Index(tmp_path / "short.db")) as short_memory:
        catch_up(short_memory, story.net.reader)
        assert short_memory.doubtful_jobs() == []
    store.close()
    journal.close()
