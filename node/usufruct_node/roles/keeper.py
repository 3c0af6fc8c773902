"""Runs what goes on by time rather than by job: pinner, challenger and retention, side by side."""

from __future__ import annotations

import logging

import trio

from usufruct.errors import UsufructError
from usufruct.records import ArtifactId
from usufruct_node.roles.challenger import Challenger
from usufruct_node.roles.pinner import Pinner
from usufruct_node.roles.retention import Retention

_log = logging.getLogger(__name__)


class Keeper:
    """One look at all bundles every few seconds."""

    def __init__(
        self, pinner: Pinner, challenger: Challenger, retention: Retention, *, every_s: float
    ) -> None:
        self._pinner = pinner
        self._challenger = challenger
        self._retention = retention
        self._every_s = every_s
        self._held = False
        self._failures: dict[str, str] = {}
        """Part -> why its last look at the bundles broke off."""

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong, empty when all is well: bundle id in hex -> with a copy here, or with its erasure; name of a part
        -> with its whole last look."""
        return self._pinner.troubles | self._retention.troubles | self._failures

    def hold(self, held: bool) -> None:
        """Begin nothing more, or begin again; what is under way ends."""
        self._held = held

    def damaged(self, artifact_id: ArtifactId) -> None:
        """A block of a bundle was found missing or altered."""
        self._pinner.damaged(artifact_id)

    async def run(self) -> None:
        """Serve until cancelled; a member that sends something strange must not take the node down."""
        async with trio.open_nursery() as nursery:
            for part in (self._pinner, self._challenger, self._retention):
                nursery.start_soon(self._repeat, part)

    async def _repeat(self, part: Pinner | Challenger | Retention) -> None:
        name = type(part).__name__.lower()
        while True:
            if not self._held:
                try:
                    await part.tend()
                    self._failures.pop(name, None)
                except (UsufructError, OSError) as exc:
                    _log.warning("%s: %s", name, exc)
                    self._failures[name] = str(exc)
                except Exception as exc:
                    _log.exception("%s: unexpected error", name)
                    self._failures[name] = f"unexpected error: {exc!r}"
            await trio.sleep(self._every_s)
