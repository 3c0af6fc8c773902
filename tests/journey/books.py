"""Reads the books after faults: every job done once, budgets conserved, homes whole, indexes equal to a fresh replay."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from organisations import CLINICS, Consortium

from usufruct.content import Cid, EmbeddedBlockStore
from usufruct.privacy import MICRO
from usufruct.records import JobId, JobState
from usufruct_node.index import Index, catch_up

ONCE = (
    "JobPosted", "JobClaimed", "ResultCommitted", "CommitsClosed", "JobVerified", "ReleaseOpened", "JobReleased"
)  # fmt: skip


def completed_once(network: Consortium, jobs: Sequence[JobId], *, verdicts: int = 3) -> None:
    """Each job was released, and every step of its life happened exactly once."""
    for job in jobs:
        assert network.ledger.job(job).state is JobState.RELEASED
        counted = Counter(network.events(job))
        assert {name: counted[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
        assert counted["VerdictCommitted"] == counted["VerdictRevealed"] == verdicts


def budgets_conserve(network: Consortium, jobs: Sequence[JobId]) -> None:
    """These jobs, all there ever were, cost one rho and one use each, and nothing is reserved."""
    for clinic in CLINICS:
        artifact = network.clinics[clinic].bundle.artifact_id
        count = sum(network.ledger.job(job).request.artifact_id == artifact for job in jobs)
        assert network.account(clinic) == (0, count * MICRO, count)


def home_is_whole(network: Consortium, name: str) -> None:
    """A stopped node's disk: every block is what it claims to be, nothing lies about, no database is damaged."""
    home = network.net.home(name)
    store_is_whole(network, name)
    assert list(home.root.glob(".*")) == []
    own = [home.custodian_database] if home.custodian_database.exists() else []
    for database in (home.index_database, home.node_database, home.blocks / "catalogue.db", *own):
        assert rows(database, "PRAGMA integrity_check") == [("ok",)]


def store_is_whole(network: Consortium, name: str) -> None:
    """A store that nobody writes to now: every block is what it claims to be, and there is no other file beside them."""
    home = network.net.home(name)
    with EmbeddedBlockStore(home.blocks) as store:
        kept = list(store.cids())
        for cid in kept:
            cid.check(store.get(cid))
    files = [path for path in (home.blocks / "blocks").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {str(cid) for cid in kept}
    for path in files:
        Cid.parse(path.name).check(path.read_bytes())
    assert [path for path in (home.blocks / "staging").rglob("*") if path.is_file()] == []


def index_equals_a_fresh_replay(network: Consortium, name: str) -> None:
    """What a node indexed, through whatever happened, is what the chain says from its first block on."""
    fresh = network.net.root / f"replay-{name}-{os.urandom(4).hex()}.db"
    index = Index(fresh)
    catch_up(index, network.ledger)
    index.close()
    tables = [row[0] for row in rows(fresh, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert {"event", "job", "verdict", "participant", "budget"} <= set(tables)
    for table in set(tables) - {"cursor"}:
        query = f"SELECT * FROM {table}"
        found = rows(network.net.home(name).index_database, query)
        assert sorted(found, key=repr) == sorted(rows(fresh, query), key=repr), table


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    """What a query gives on a database that is only read."""
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()
