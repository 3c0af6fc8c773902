"""Hands the actions of a plan to one thread per organisation and one for faults, and brings everything to rest at the end."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from usufruct.errors import UsufructError
from usufruct_node.soak.faults import SPARED, Faults
from usufruct_node.soak.plan import CLINICS, Action, plan
from usufruct_node.soak.report import Report
from usufruct_node.soak.stage import Stage, UnexpectedOutcomeError
from usufruct_node.soak.watch import Watcher

_BACKLOG = 2
_MOST_OPEN_JOBS = 8
_SETTLE_SECONDS = 300.0
_EXPLAINED_SECONDS = 60.0
"""For so long after a fault, an action may fail because of it."""

_LANES = ("fault", "university", *CLINICS)

SABOTAGE = {"policy": "UPDATE policy SET digest = zeroblob(32)"}
"""What a test may do to the spared node's index, to see that it is found."""


class Conductor:
    """One run."""

    def __init__(self, stage: Stage, faults: Faults, watcher: Watcher, report: Report) -> None:
        self._stage = stage
        self._faults = faults
        self._watcher = watcher
        self._report = report
        self._lanes = {name: queue.Queue[Action | None](_BACKLOG) for name in _LANES}
        self._last_fault = float("-inf")
        self._ended = threading.Event()

    def end(self) -> None:
        """Start no further action; what was begun is brought to rest and judged as at the end of the time."""
        self._ended.set()

    def run(self, seed: int, seconds: float, *, sabotage: str | None = None) -> None:
        """Act for so long, bring everything back, wait until every job is over, and check everything once more."""
        stop = threading.Event()
        with ThreadPoolExecutor(len(_LANES) + 1) as pool:
            watching = pool.submit(self._watcher.watch, stop)
            working: list[Future[None]] = [pool.submit(self._work, lane) for lane in self._lanes.values()]
            try:
                self._act(seed, time.monotonic() + seconds)
            finally:
                for lane in self._lanes.values():
                    lane.put(None)
                for worker in working:
                    worker.result()
                stop.set()
                watching.result()
        self._settle(sabotage)

    def _act(self, seed: int, ends: float) -> None:
        for action in plan(seed, victims=self._faults.victims, pausable=self._faults.nodes):
            if time.monotonic() + action.after_s > ends or self._ended.wait(action.after_s):
                return
            while action.posts and len(self._watcher.books.open_jobs) >= _MOST_OPEN_JOBS:
                if time.monotonic() > ends or self._ended.wait(0.2):
                    return
            self._lanes[self._stage.actor(action)].put(action)

    def _work(self, lane: queue.Queue[Action | None]) -> None:
        while (action := lane.get()) is not None:
            try:
                if action.is_fault:
                    self._strike(action)
                else:
                    facts = self._stage.perform(action)
                    self._watcher.told(action.kind, facts, height=self._stage.height())
                    self._report.done(action, "done")
            except UnexpectedOutcomeError as exc:
                self._watcher.violated(f"action {action.number}, {action.kind}: {exc}")
            except UsufructError as exc:
                self._report.done(action, "not done", type(exc).__name__)
                if action.is_fault or time.monotonic() - self._last_fault > _EXPLAINED_SECONDS:
                    self._watcher.violated(
                        f"action {action.number}, {action.kind}, failed and no fault explains it: {exc}"
                    )
            except Exception as exc:  # the library promises that only its own errors come out
                self._watcher.violated(f"action {action.number}, {action.kind}, ended in {exc!r}")

    def _strike(self, action: Action) -> None:
        self._last_fault = float("inf")
        try:
            self._faults.strike(action)
            self._report.struck(action)
        finally:
            self._last_fault = time.monotonic()

    def _settle(self, sabotage: str | None) -> None:
        watcher, names = self._watcher, [member.name for member in self._stage.net.members]
        self._report.tell("waiting until every job is over")
        watcher.round()
        if not _until(lambda: self._another_round() and not watcher.books.open_jobs and not watcher.doubtful):
            for job in watcher.open_jobs():
                watcher.violated(
                    f"job {job.hex()[:12]} is not over {_SETTLE_SECONDS:.0f} s after the last action"
                )
        for name in names:
            if not _until(lambda name=name: watcher.is_indexed(name)):  # type: ignore[misc]
                watcher.violated(f"the index of {name} stands still")
        watcher.round()
        watcher.judge_doubts()
        if sabotage is not None:
            self._sabotage(sabotage)
        for name in names:
            if not _until(lambda name=name: watcher.audit(name)):  # type: ignore[misc]
                watcher.violated(f"the index of {name} could not be compared with a replay")
        watcher.audit_releases(CLINICS)
        watcher.judge_memory()

    def _another_round(self) -> bool:
        self._watcher.round()
        return True

    def _sabotage(self, what: str) -> None:
        with closing(sqlite3.connect(self._stage.net.home(SPARED).index_database, timeout=30)) as db, db:
            db.execute(SABOTAGE[what])


def _until(condition: Callable[[], bool]) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
