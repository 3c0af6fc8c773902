"""The README's quickstart for a partner, word for word, as a stranger would paste it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from organisations import Consortium

from usufruct.records import JobState

README = Path(__file__).parents[2] / "README.md"
HEADING = "Quickstart for a partner"


def _quickstart(text: str) -> str:
    section = re.split(rf"^#+ {re.escape(HEADING)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
    block = re.search(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert block, f"no Python block below {HEADING!r}"
    return block[1]


def _uses(network: Consortium) -> int:
    """Jobs counted under all of the university's grants: other tests may have left it several."""
    return sum(grant["used"] for grant in network.university.grants())


def test_quickstart_of_the_readme_runs_word_for_word(shared_network: Consortium, tmp_path: Path) -> None:
    code = _quickstart(README.read_text("utf-8"))
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 10 and 'Client.open("~/university")' in code

    before, uses = shared_network.account(), _uses(shared_network)
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(shared_network.net.root)},
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip()

    reserved, spent, _ = shared_network.account()
    assert reserved == 0 and spent > before[1] and _uses(shared_network) == uses + 1
    newest = shared_network.university.content.query("/jobs", limit=1)[0]
    assert newest["state"] == JobState.RELEASED.name and newest["requester"] == "university"
