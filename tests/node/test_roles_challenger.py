"""Whom a steward leaves out after a challenge: a holder that lost its copy, and nobody who was free to let go of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from usufruct.content import Cid
from usufruct.custody import Segment, StorageChallenge, StorageProof
from usufruct.records import ArtifactId, OrgId, org_id
from usufruct_node.challenge_log import ChallengeLog, Outcome
from usufruct_node.custody_store import CustodyStore
from usufruct_node.roles.challenger import Challenger, ChallengeRules
from usufruct_node.roles.custody_peers import NotHeldError

BUNDLE, SOUTH = ArtifactId(b"\x01" * 32), org_id("south")
RULES = ChallengeRules(every_s=0.0, misses=2, grace_s=3600, left_out_s=3600)


class Steward:
    """A challenger with a real store and log, one bundle, and one holder that answers as it is told."""

    def __init__(self, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.record = CustodyStore(database), ChallengeLog(database)
        self.now = 100
        self.holders: tuple[OrgId, ...] = (SOUTH,)
        self.lets_go_when_asked = False
        self.has_copy = True
        asked = StorageChallenge(
            artifact_id=BUNDLE,
            challenger=org_id("north"),
            nonce=bytes(32),
            segments=(Segment(Cid.of(b"x"), 0, 1),),
        )
        monkeypatch.setattr(Challenger, "_draw", lambda *_: asked)
        context: Any = SimpleNamespace(
            now=lambda: self.now, placements=SimpleNamespace(holders=lambda artifact_id: self.holders)
        )
        peers: Any = SimpleNamespace(prove=self.prove)
        self.challenger = Challenger(
            context,
            peers,
            self.store,
            self.record,
            rules=RULES,
            signing_key=b"",
            on_damage=lambda artifact_id: pytest.fail("the own copy is whole"),
        )
        self.store.designate(BUNDLE, self.holders, self.now)

    async def prove(self, holder: OrgId, asked: StorageChallenge) -> StorageProof:
        if self.lets_go_when_asked:
            self.holders, self.has_copy = (), False
        if not self.has_copy:
            raise NotHeldError("does not hold what it was asked for")
        return StorageProof(proof=bytes(32), answered_at=self.now, signature=bytes(65))

    def challenge(self) -> Outcome | None:
        self.now += 1
        artifact: Any = None
        return trio.run(self.challenger._try, BUNDLE, artifact, SOUTH)

    def left_out(self) -> tuple[OrgId, ...]:
        return self.store.failed(BUNDLE, self.now)


@pytest.fixture
def steward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steward]:
    made = Steward(tmp_path / "node.db", monkeypatch)
    yield made
    made.store.close()
    made.record.close()


def test_a_holder_that_lost_what_it_had_proved_is_left_out(steward: Steward) -> None:
    assert (steward.challenge(), steward.left_out()) == (Outcome.PASSED, ())
    steward.has_copy = False
    assert (steward.challenge(), steward.left_out()) == (Outcome.NOT_HELD, (SOUTH,))


def test_a_holder_that_is_still_fetching_is_not_left_out(steward: Steward) -> None:
    steward.has_copy = False
    assert (steward.challenge(), steward.left_out()) == (Outcome.NOT_HELD, ())


def test_a_holder_that_is_released_while_it_is_asked_may_let_go(steward: Steward) -> None:
    assert steward.challenge() == Outcome.PASSED
    steward.lets_go_when_asked = True
    assert (steward.challenge(), steward.left_out()) == (Outcome.NOT_HELD, ())
    (newest,) = steward.record.last(BUNDLE, SOUTH, limit=1)
    assert newest.outcome == Outcome.NOT_HELD, "what was answered stays in the log"


def test_holders_are_noted_again_when_they_are_others_and_every_minute(steward: Steward) -> None:
    def noted() -> set[tuple[int, int, bool]]:
        return {(d.since, d.last_at, d.in_force) for d in steward.store.designations(BUNDLE)}

    designate = steward.challenger._designate
    assert designate(BUNDLE, 101) == (SOUTH,) and noted() == {(100, 101, True)}
    assert designate(BUNDLE, 160) == (SOUTH,) and noted() == {(100, 101, True)}
    assert designate(BUNDLE, 161) == (SOUTH,) and noted() == {(100, 161, True)}
    steward.holders = ()
    assert designate(BUNDLE, 162) == () and noted() == {(100, 161, False)}
    steward.holders = (SOUTH,)
    assert designate(BUNDLE, 163) == (SOUTH,) and noted() == {(163, 163, True)}
