"""Says in the log when a part of a node's health fails, and when it is well again. Finds nothing out itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class HealthLog:
    """What goes on is said once, however often it is looked at and however its wording changes meanwhile."""

    def __init__(self) -> None:
        self._unwell: set[str] = set()

    def note(self, parts: Mapping[str, str]) -> None:
        """Tell how `parts` differ from those of the last call; at first all are taken to have been well."""
        for part, state in parts.items():
            if state != "ok" and part not in self._unwell:
                self._unwell.add(part)
                _log.warning("%s: %s", part, state)
            elif state == "ok" and part in self._unwell:
                self._unwell.remove(part)
                _log.info("%s: ok again", part)
