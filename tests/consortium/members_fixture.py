"""Five member organisations on five validators of their own, with what tests do to validators and clocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from organisations import Consortium

from usufruct import Client
from usufruct.records import Timings

LASTING = Timings(claim=300, compute=300, commit=300, reveal=300, dispute=300, release=300)
VALIDATORS = (1, 2, 3, 4, 5)

_SHIFTED = """
import os, time
_time, _shift = time.time, float(os.environ["TEST_CLOCK_SHIFT_S"])
time.time = lambda: _time() + _shift
"""


class Members(Consortium):
    """The journey's cast on five validators."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, chain="consortium", timings=LASTING)

    def reopen(self) -> None:
        """Nodes and validators may listen elsewhere now."""
        self.net.refresh_endpoint()
        for name in self.clients:
            self.clients[name] = Client.open(self.net.home(name))
        for name, clinic in self.clinics.items():
            clinic.client = self.clients[name]

    def in_use_by(self, name: str) -> int:
        """Number of the validator through which a member's node works now."""
        endpoints = self.clients[name].content.query("/status")["chain"]["endpoints"]
        url = next(endpoint["url"] for endpoint in endpoints if endpoint["in_use"])
        return next(v.number for v in self.net.validators.describe().validators if v.rpc_url == url)

    @contextmanager
    def killed(self, *numbers: int) -> Iterator[None]:
        """Kill validators without notice, and start them from their disks afterwards."""
        for number in numbers:
            self.net.validators.kill(number)
        try:
            yield
        finally:
            for number in numbers:
                self.net.validators.restart(number)

    def ledger_state(self, name: str) -> str:
        """What a node's health says of the chain."""
        return str(self.net.health(name)["ledger"])

    @contextmanager
    def clocks_wrong(self, directory: Path, **shift_s: float) -> Iterator[None]:
        """Nodes restarted with wall clocks that are wrong by so many seconds; names with `_` for `-`."""
        (directory / "sitecustomize.py").write_text(_SHIFTED)
        before = {key: os.environ.get(key) for key in ("PYTHONPATH", "TEST_CLOCK_SHIFT_S")}
        names = {key.replace("_", "-"): seconds for key, seconds in shift_s.items()}
        try:
            for name, seconds in names.items():
                os.environ["PYTHONPATH"] = os.pathsep.join(
                    filter(None, [str(directory), before["PYTHONPATH"]])
                )
                os.environ["TEST_CLOCK_SHIFT_S"] = str(seconds)
                self.net.stop(name)
                self.net.start_node(name)
            self._restore(before)
            self.reopen()
            yield
        finally:
            self._restore(before)
            for name in names:
                self.net.stop(name)
                self.net.start_node(name)
            self.reopen()

    @staticmethod
    def _restore(environment: dict[str, str | None]) -> None:
        for key, value in environment.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
