"""A bare Anvil: a block for every transaction, and time that a test moves."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from chain_fixture import until
from usufruct_node.chain.settings import find_anvil


class Chain:
    """An Anvil that makes a block for every transaction, and whose time can be moved."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, *arguments: object) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(arguments)}
        answer = httpx.post(self.url, json=request, trust_env=False, timeout=30).json()
        assert "result" in answer, answer
        return answer["result"]

    def pass_time(self, seconds: int) -> None:
        self.call("evm_increaseTime", seconds)
        self.call("evm_mine")


@contextmanager
def anvil(home: Path) -> Iterator[Chain]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--port", str(port), "--silent", "--block-base-fee-per-gas", "0", "--gas-price", "0"]
    words += ["--disable-min-priority-fee", "--hardfork", "cancun", "--accounts", "0", "--chain-id", "4242"]
    process = subprocess.Popen(
        [str(find_anvil()), *words], cwd=home, env={"HOME": str(home), "PATH": os.defpath}
    )
    chain = Chain(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        try:
            return bool(chain.call("eth_chainId"))
        except httpx.HTTPError:
            return False

    try:
        until(answers)
        yield chain
    finally:
        process.kill()
        process.wait()
