"""Breaks processes of a network and brings them back. Knows processes, not people."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from usufruct.errors import NodeUnreachableError
from usufruct_node.devnet import ChainKind, Devnet
from usufruct_node.soak.plan import Action

SPARED = "auditor"
"""Never broken, so that one node's memory can be watched over the whole run."""

_ENGINE = "engine"
"""The child of the embedded chain's process that executes transactions."""

_VALIDATORS = 5


class Faults:
    """Everything that may be done to the processes of a devnet."""

    def __init__(self, net: Devnet, chain: ChainKind, *, block_interval_s: float) -> None:
        self._net = net
        self._chain = chain
        self._block_interval_s = block_interval_s

    @property
    def nodes(self) -> Sequence[str]:
        """Nodes that may be broken."""
        return [member.name for member in self._net.members if member.name != SPARED]

    @property
    def victims(self) -> Sequence[str]:
        """Processes that may be killed."""
        if self._chain == "embedded":
            return [*self.nodes, "chain", _ENGINE]
        return [*self.nodes, *(f"validator-{number}" for number in range(1, _VALIDATORS + 1))]

    def strike(self, action: Action) -> None:
        """Break a process, keep it broken for the action's while, bring it back."""
        if action.kind == "pause":
            self._pause(action.on, action.outage_s)
        elif action.on == _ENGINE:
            self._kill_engine()
        elif action.on.startswith("validator-"):
            number = int(action.on.rsplit("-", 1)[1])
            self._net.validators.kill(number)
            time.sleep(action.outage_s)
            self._net.validators.restart(number)
            self._net.refresh_endpoint()
        else:
            self._net.stop(action.on, how=signal.SIGKILL)
            time.sleep(action.outage_s)
            if action.on == "chain":
                self._net.start_chain(block_interval_s=self._block_interval_s)
            else:
                self._net.start_node(action.on)

    def _pause(self, name: str, seconds: float) -> None:
        pid = self._net.running()[name]
        if pid is None:
            raise NodeUnreachableError(f"{name} does not run although nobody stopped it")
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _kill_engine(self) -> None:
        parent = self._net.running()["chain"]
        children = Path(f"/proc/{parent}/task").glob("*/children")
        for child in [int(word) for file in children for word in file.read_text("ascii").split()]:
            os.kill(child, signal.SIGKILL)
