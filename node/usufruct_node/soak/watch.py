"""Compares what people were told, what the chain shows, and what nodes keep, again and again while a soak runs."""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from usufruct.content import Cid
from usufruct.errors import UsufructError
from usufruct.ledger import Head, Ledger
from usufruct.records import ArtifactId, BudgetAccount, JobId
from usufruct_node.devnet import Devnet
from usufruct_node.index import Index
from usufruct_node.soak.books import Account, Books, Fact

_ROUND_SECONDS = 2.0
_AUDIT_EVERY = 10
"""Rounds between two comparisons of a node's index with a replay."""

_BUDGETS_PER_ROUND = 3

_JUDGED_AFTER_SECONDS = 600.0
"""Age from which a process's memory has to be flat; until then caches fill."""

_GROWTH, _GROWTH_BYTES = 1.15, 16 << 20
"""Between the middle third of a process's life and its last third: both must be exceeded to count as growth."""


class Watcher:
    """Reads the chain with a client of its own. Violations are told once, as sentences."""

    def __init__(self, net: Devnet, ledger: Ledger, tell: Callable[[str], None]) -> None:
        self.books = Books()
        self.violations: list[str] = []
        self.checks = {"rounds": 0, "facts": 0, "budgets": 0, "indexes": 0, "releases": 0}
        self.memory: dict[tuple[str, int], list[tuple[float, int]]] = {}
        """Samples (seconds, resident bytes) by process name and id."""
        self._net = net
        self._ledger = ledger
        self._tell = tell
        self._told: list[tuple[int, str, Fact]] = []
        """Height at which the fact is on the ledger, who was told it, the fact."""
        self._lock = threading.Lock()
        self._reached: Head | None = None

    def told(self, who: str, facts: Sequence[Fact], *, height: int) -> None:
        """Somebody was told that these are on the ledger, by a client that had seen blocks up to `height`, or by a node.

        The endpoint that is watched through may be behind theirs: the facts are looked for once it shows the newest block that
        any of them had seen.
        """
        at = max([height, *(self._indexed_height(member.name) for member in self._net.members)])
        with self._lock:
            self._told += [(at, who, fact) for fact in facts]

    def watch(self, stop: threading.Event) -> None:
        """Go round until told to stop."""
        names = [member.name for member in self._net.members]
        while not stop.wait(_ROUND_SECONDS):
            try:
                self.round()
                if self.checks["rounds"] % _AUDIT_EVERY == 0:
                    self.audit(names[self.checks["rounds"] // _AUDIT_EVERY % len(names)])
            except UsufructError as exc:
                self._tell(f"the chain cannot be watched just now: {exc}")

    @property
    def doubtful(self) -> bool:
        """Whether something that somebody was told has not been seen on the ledger yet."""
        with self._lock:
            return bool(self._told)

    def round(self) -> None:
        """Take in what is final and compare it with what people were told and with the contracts."""
        with self._lock:
            told, self._told = self._told, []
        try:
            budgets = self._budgets()
            head = self._ledger.finalised()
            first = self._ledger.network.deployed_at_block
            if self._reached is not None:
                if self._ledger.endpoint.block(self._reached.number).hash != self._reached.hash:
                    self.violated(f"final block {self._reached.number} was replaced by another")
                first = self._reached.number + 1
            events = self._ledger.events(first, head.number)
        except UsufructError:
            with self._lock:
                self._told = told + self._told
            raise
        self._reached = head
        for complaint in self.books.add(events):
            self.violated(complaint)
        self.checks["rounds"] += 1
        missing = [(at, who, fact) for at, who, fact in told if fact not in self.books.facts]
        self.checks["facts"] += len(told) - len(missing)
        for at, who, fact in missing:
            if head.number >= at:
                self.violated(f"{who} was told of a {fact[0]} that is not on the ledger")
            else:
                with self._lock:
                    self._told.append((at, who, fact))
        self._compare_budgets(budgets)
        self._sample_memory()

    def audit(self, name: str) -> bool:
        """Compare a node's index, as it is now, with a replay of the chain's events up to the same block.

        Returns whether that was done: not while the index is new, or knows a block that the watched endpoint does not show yet.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy, fresh = Path(folder, "kept.db"), Path(folder, "replayed.db")
            try:
                _snapshot(self._net.home(name).index_database, copy)
                cursor = _cursor(copy)
            except sqlite3.Error as exc:
                self.violated(f"the index of {name} cannot be read: {exc}")
                return True
            if cursor is None:
                return False
            if self._reached is None or cursor.number > self._reached.number:
                # Blocks came since the last round.
                self.round()
            if self._reached is None or cursor.number > self._reached.number:
                return False
            with closing(Index(fresh)) as index:
                index.advance([e for e in self.books.events if e.block_number <= cursor.number], cursor)
            self.checks["indexes"] += 1
            for table, count in differences(copy, fresh).items():
                self.violated(
                    f"table {table} of the index of {name} differs from a replay in {count} rows"
                    f" at block {cursor.number}"
                )
        return True

    def audit_releases(self, clinics: Sequence[str]) -> None:
        """Compare what custodians remember to have released with the ledger: once each, and the same bytes."""
        made: dict[bytes, list[bytes]] = {}
        for name in clinics:
            with closing(sqlite3.connect(_read_only(self._net.home(name).node_database), uri=True)) as db:
                for job, envelope in db.execute("SELECT job_id, envelope FROM release"):
                    made.setdefault(bytes(job), []).append(Cid.from_bytes(envelope).digest)
        for job, digest in self.books.released.items():
            self.checks["releases"] += 1
            if made.get(job) != [digest]:
                self.violated(f"job {job.hex()[:12]} was not released exactly once, as the ledger has it")

    def judge_doubts(self) -> None:
        """Complain of what somebody was told and the watched endpoint never got to show."""
        with self._lock:
            told, self._told = self._told, []
        for at, who, fact in told:
            self.violated(f"{who} was told of a {fact[0]} in a block up to {at}, which never came")

    def judge_memory(self) -> None:
        """Complain of processes that grow."""
        for (name, pid), samples in self.memory.items():
            growth = grown(samples)
            if growth:
                self.violated(f"{name} (process {pid}) grew by {growth >> 20} MiB")

    def is_indexed(self, name: str) -> bool:
        """Whether a node has indexed the newest block of the last round."""
        cursor = _cursor(self._net.home(name).index_database)
        return cursor is not None and self._reached is not None and cursor.number >= self._reached.number

    def _indexed_height(self, name: str) -> int:
        try:
            cursor = _cursor(self._net.home(name).index_database)
        except sqlite3.Error:
            return 0  # Being made: it has told nobody anything.
        return 0 if cursor is None else cursor.number

    def open_jobs(self) -> list[JobId]:
        """Jobs that are not over."""
        return [JobId(job) for job in self.books.open_jobs]

    def _budgets(self) -> list[tuple[bytes, Account, BudgetAccount]]:
        """Some accounts in turn: what their events say so far, and what the contract says somewhat later."""
        known = sorted(self.books.accounts)
        at = self.checks["rounds"] * _BUDGETS_PER_ROUND
        some = {known[(at + i) % len(known)] for i in range(_BUDGETS_PER_ROUND)} if known else set()
        return [
            (artifact, replace(self.books.accounts[artifact]), self._ledger.budget(ArtifactId(artifact)))
            for artifact in some
        ]

    def _compare_budgets(self, budgets: list[tuple[bytes, Account, BudgetAccount]]) -> None:
        """Where events before and after the contract was asked say the same, the contract must have said it too."""
        for artifact, before, told in budgets:
            if before == self.books.accounts[artifact]:
                self.checks["budgets"] += 1
                if (told.total, told.reserved, told.spent) != (before.total, before.reserved, before.spent):
                    self.violated(
                        f"budget of {artifact.hex()[:12]}: the contract says {told}, its events {before}"
                    )

    def _sample_memory(self) -> None:
        for name, pid in self._net.running().items():
            if pid is not None:
                try:
                    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
                except (OSError, IndexError):
                    continue
                size = pages * os.sysconf("SC_PAGE_SIZE")
                self.memory.setdefault((name, pid), []).append((time.monotonic(), size))

    def violated(self, sentence: str) -> None:
        """Something that must hold does not."""
        if sentence not in self.violations:
            self.violations.append(sentence)
            self._tell(f"VIOLATION: {sentence}")


def grown(samples: Sequence[tuple[float, int]]) -> int:
    """Bytes by which a process grew between the middle and the last third of its life; 0 while it is too young to say."""
    begin, end = samples[0][0], samples[-1][0]
    if end - begin < _JUDGED_AFTER_SECONDS:
        return 0
    third = (end - begin) / 3
    middle = statistics.median(size for at, size in samples if third <= at - begin < 2 * third)
    last = statistics.median(size for at, size in samples if at - begin >= 2 * third)
    growth = int(last - middle)
    return growth if last > middle * _GROWTH and growth > _GROWTH_BYTES else 0


def differences(left: Path, right: Path) -> dict[str, int]:
    """Number of rows that only one of two indexes has, by table; the cursor does not count."""
    found = {}
    with closing(sqlite3.connect(_read_only(left), uri=True)) as db:
        db.execute("ATTACH ? AS other", (_read_only(right),))
        names = "SELECT name FROM {}.sqlite_master WHERE type = 'table' AND name <> 'cursor'"
        tables = {row[0] for side in ("main", "other") for row in db.execute(names.format(side))}
        for table in sorted(tables):
            one, two = f"SELECT * FROM main.{table}", f"SELECT * FROM other.{table}"  # noqa: S608
            (count,) = db.execute(
                f"SELECT count(*) FROM ({one} EXCEPT {two} UNION ALL SELECT * FROM ({two} EXCEPT {one}))"  # noqa: S608
            ).fetchone()
            if count:
                found[table] = int(count)
    return found


def _snapshot(database: Path, copy: Path) -> None:
    with (
        closing(sqlite3.connect(_read_only(database), uri=True, timeout=30)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _cursor(database: Path) -> Head | None:
    with closing(sqlite3.connect(_read_only(database), uri=True)) as db:
        row = db.execute("SELECT block_number, block_hash, block_time FROM cursor").fetchone()
    return None if row is None else Head(*row)


def _read_only(path: Path) -> str:
    return f"file:{path}?mode=ro"
