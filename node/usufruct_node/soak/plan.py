"""What happens, and when: drawn from a seed alone, so that a run can be made again. Knows no network."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CLINICS = ("clinic-north", "clinic-south")

_WEIGHTS = {
    "sum job": 26,
    "linear job": 8,
    "job on a right to another bundle": 4,
    "job on an old epoch": 4,
    "reading a release again": 6,
    "consent": 5,
    "withdrawal": 6,
    "publication": 2,
    "rights granted and revoked": 3,
    "rights denied": 3,
    "kill": 4,
    "pause": 2,
}
_PAUSE_SECONDS = 1.6
"""Between two actions, on average; jobs need longer than that, so that several are under way."""

_LONGEST_OUTAGE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that is done to the network."""

    number: int
    kind: str
    on: str
    """A clinic, or for faults the process."""
    draw: float
    """In [0, 1): whatever else has to be chosen."""
    after_s: float
    """Seconds since the action before."""

    @property
    def is_fault(self) -> bool:
        """Whether something is broken on purpose."""
        return self.kind in ("kill", "pause")

    @property
    def posts(self) -> bool:
        """Whether a job is admitted if all goes well."""
        return self.kind in ("sum job", "linear job")

    @property
    def outage_s(self) -> float:
        """For faults: how long the process stays away."""
        return self.draw * _LONGEST_OUTAGE_SECONDS


def plan(seed: int, *, victims: Sequence[str], pausable: Sequence[str]) -> Iterator[Action]:
    """Actions without end; the same for the same arguments."""
    dice = random.Random(seed)  # noqa: S311
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    number = 0
    while True:
        number += 1
        (kind,) = dice.choices(kinds, weights)
        among = {"kill": victims, "pause": pausable}.get(kind, CLINICS)
        yield Action(
            number=number,
            kind=kind,
            on=dice.choice(among),
            draw=dice.random(),
            after_s=dice.expovariate(1 / _PAUSE_SECONDS),
        )
