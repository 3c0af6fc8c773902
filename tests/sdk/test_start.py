"""What a program loads before it is asked to do anything, and what the libraries that it loads later leave behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SLOW = {"web3", "eth_account", "py_ecc", "aiohttp"}


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout


@pytest.mark.parametrize("module", ["usufruct.cli", "usufruct_node.custodian", "usufruct.compute"])
def test_what_speaks_to_no_chain_loads_no_chain_library(module: str) -> None:
    loaded = json.loads(
        run_python(f"import {module}, json, sys; print(json.dumps([m.split('.')[0] for m in sys.modules]))")
    )
    assert module.split(".")[0] in loaded
    assert not SLOW & set(loaded)


@pytest.mark.parametrize("module", ["accounts", "transport"])
def test_libraries_of_the_chain_leave_the_recursion_limit_alone(module: str) -> None:
    code = "\n".join(
        [
            "import sys",
            "before = sys.getrecursionlimit()",
            f"import usufruct.ledger.{module}",
            "assert 'py_ecc' in sys.modules",  # which is what raises it
            "assert sys.getrecursionlimit() == before",
            "import json, pytest",
            "with pytest.raises(RecursionError):",
            "    json.loads('[' * 50_000)",
        ]
    )
    run_python(code)
