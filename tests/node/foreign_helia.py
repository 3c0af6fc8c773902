"""A real Helia in a process of its own, for interop tests; skipped, loudly, where the npm packages are not installed.

They are not among the packages of this clone, since they bring 470 others: `npm install --no-save --ignore-scripts helia`
in any folder, and `USUFRUCT_HELIA` naming that folder.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from usufruct.content import Cid

_SCRIPT = Path(__file__).with_name("helia_peer.mjs")
_MISSING = (
    "no Helia (USUFRUCT_HELIA names no folder in which npm installed it): nothing was tested against it"
)


@dataclass(frozen=True)
class Helia:
    """A running Helia."""

    process: subprocess.Popen[str]
    peer_id: str
    multiaddr: str

    def connect(self, multiaddr: str) -> None:
        """Dial a peer."""
        self._ask(command="connect", address=multiaddr)

    def get(self, cid: Cid, *, seconds: float = 60) -> bytes:
        """A block, from wherever it finds it."""
        return base64.b64decode(self._ask(command="get", cid=str(cid), ms=round(seconds * 1000)))

    def put(self, cid: Cid, data: bytes) -> None:
        """Store a block."""
        self._ask(command="put", cid=str(cid), data=base64.b64encode(data).decode())

    def _ask(self, **question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["ok"]


@contextmanager
def running_helia(root: Path) -> Iterator[Helia]:
    """A Helia on loopback TCP, until the block ends."""
    installed = Path(os.environ.get("USUFRUCT_HELIA", "")) / "node_modules"
    if not (installed / "helia").is_dir():
        warnings.warn(_MISSING, stacklevel=2)
        pytest.skip(_MISSING)
    (root / "node_modules").symlink_to(installed.resolve())
    script = shutil.copy(_SCRIPT, root)
    process = subprocess.Popen(
        ["node", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        yield Helia(process, first["peer"], first["address"])
    finally:
        process.kill()
        process.communicate()
