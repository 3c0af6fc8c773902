"""For how long an executor asks verifiers: those that are silent, and those that say that they are still computing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from usufruct.errors import PeerError
from usufruct_node.peers.verdicts import Question
from usufruct_node.roles import gather
from usufruct_node.roles.gather import Patience

PATIENCE = Patience(silent_s=2.0, working_s=20.0)


class Verifiers:
    """Verifiers by name: the second at which each has its word, or None for one that cannot be reached.

    One that is in `gone_at` cannot be reached from that second on.
    """

    def __init__(self, ready_at: dict[str, float | None], gone_at: Mapping[str, float] = {}) -> None:
        self.members: list[Any] = [SimpleNamespace(peer_id=b"", endpoint=n) for n in ready_at]
        self.asked = dict.fromkeys(ready_at, 0)
        self._ready_at = ready_at
        self._gone_at = gone_at

    async def ask(self, host: object, peer_id: str, endpoint: str, *_: object) -> bytes | None:
        self.asked[endpoint] += 1
        ready_at, now = self._ready_at[endpoint], trio.current_time() - self.begun
        if ready_at is None or now >= self._gone_at.get(endpoint, math.inf):
            raise PeerError("unreachable")
        return endpoint.encode() if now >= ready_at else None

    def gather(self, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], float]:
        """Names of those whose word was had, and the seconds until the executor went on."""
        monkeypatch.setattr(gather, "ask", self.ask)
        monkeypatch.setattr(gather, "peer_id_text", lambda peer_id: "")
        context: Any = SimpleNamespace(host=None)
        row: Any = SimpleNamespace(job_id=bytes(32))

        async def run() -> tuple[list[str], float]:
            self.begun = trio.current_time()
            found = await gather._answers(context, row, Question.COMMITMENT, self.members, PATIENCE)
            return [answer.decode() for _, answer in found], trio.current_time() - self.begun

        return trio.run(run, clock=MockClock(autojump_threshold=0))


def test_all_that_are_ready_are_asked_once_and_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers = Verifiers({"one": 0.0, "two": 0.0})
    found, seconds = verifiers.gather(monkeypatch)
    assert (sorted(found), seconds) == (["one", "two"], 0.0)
    assert set(verifiers.asked.values()) == {1}


def test_one_that_is_still_computing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers = Verifiers({"one": 0.0, "two": 12.0})
    found, seconds = verifiers.gather(monkeypatch)
    assert found == ["one", "two"]
    assert 12.0 <= seconds <= 13.0
    assert verifiers.asked["two"] < 20, "asked ever more rarely"


def test_one_that_is_silent_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seconds = Verifiers({"one": 0.0, "two": None}).gather(monkeypatch)
    assert (found, seconds) == (["one"], PATIENCE.silent_s)


def test_one_that_is_heard_of_no_more_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seconds = Verifiers({"one": 0.0, "two": 15.0}, gone_at={"two": 8.0}).gather(monkeypatch)
    assert found == ["one"]
    assert 8.0 <= seconds <= 8.0 + PATIENCE.silent_s


def test_one_that_never_has_a_word_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seconds = Verifiers({"one": 0.0, "two": 1000.0, "three": None}).gather(monkeypatch)
    assert (found, seconds) == (["one"], PATIENCE.working_s)
