"""How verifiers take turns at ending what is overdue, without a chain; time and the index are fakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from usufruct.ledger.profile import PROFILES
from usufruct.records import JobId, JobState, MemberStatus, OrgId, Role
from usufruct_node.roles.verifier import Verifier

IDS = [OrgId(bytes([number]) * 32) for number in range(1, 6)]


class Overdue:
    """A posted job whose time is over, and members of whom the fifth is this node."""

    def __init__(self, chain: str) -> None:
        self.row: Any = SimpleNamespace(
            job_id=JobId(bytes(32)), job=SimpleNamespace(state=JobState.POSTED), overdue=lambda now: True
        )
        self.closed: list[float] = []
        roles = [Role.COMPUTE, Role.VERIFIER, Role.VERIFIER, Role.VERIFIER, Role.VERIFIER]
        status = [MemberStatus.ACTIVE] * 2 + [
            MemberStatus.SUSPENDED,
            MemberStatus.REMOVED,
            MemberStatus.ACTIVE,
        ]
        members = [
            SimpleNamespace(id=one, roles=role, status=state)
            for one, role, state in zip(IDS, roles, status, strict=True)
        ]
        context: Any = SimpleNamespace(
            org=IDS[-1],
            now=lambda: 0,
            index=SimpleNamespace(participants=lambda: members, job=lambda _: self.row),
            ledger=SimpleNamespace(network=SimpleNamespace(chain=PROFILES[chain])),
            close=self.close,
        )
        self.verifier = Verifier(context, verdict_key=bytes(32), node_key=bytes(32))

    async def close(self, function: str, job_id: JobId) -> None:
        assert function == "expireJob"
        self.closed.append(trio.current_time())

    def handled_after(self, change: Any = None) -> list[float]:
        """Seconds after which the node ended the job; once it waits, `change` is called."""

        async def main() -> list[float]:
            begun = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.verifier.handle, self.row)
                await trio.testing.wait_all_tasks_blocked()
                if change:
                    change()
            return [round(at - begun, 1) for at in self.closed]

        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


@pytest.mark.parametrize("chain", ["embedded", "subnet-evm"])
def test_a_turn_is_left_to_active_verifiers_only(chain: str) -> None:
    """And where nothing is simulated it lasts until the call of the one before is in a block."""
    wait = 1.0 if chain == "embedded" else 1.0 + PROFILES[chain].block_interval_s
    assert Overdue(chain).handled_after() == [wait]


def test_what_another_ended_meanwhile_is_not_paid_for_again() -> None:
    job = Overdue("subnet-evm")

    def end() -> None:
        job.row = SimpleNamespace(job_id=job.row.job_id)

    assert job.handled_after(end) == []
