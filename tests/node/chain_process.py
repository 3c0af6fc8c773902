"""Runs the embedded chain as a process of its own and speaks to its door. Absent: assertions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eth_account import Account

from usufruct.errors import LedgerUnreachableError
from usufruct_node.chain import ChainEndpoint, read_endpoint

CHAIN_ID = 4242
SINK = "0x00000000000000000000000000000000000000ff"


class ChainProcess:
    """`python -m usufruct_node.chain` on a directory."""

    def __init__(self, home: Path, *options: str, chain_id: int = CHAIN_ID) -> None:
        command = [sys.executable, "-m", "usufruct_node.chain", "--home", str(home)]
        self.home = home
        self.process = subprocess.Popen(
            [*command, "--chain-id", str(chain_id), "--idle-interval", "0.5", *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def wait_ready(self) -> ChainEndpoint:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the chain ended: {self.process.stderr.read().decode()}")
            try:
                endpoint = read_endpoint(self.home)
            except LedgerUnreachableError:
                endpoint = None
            if endpoint is not None and endpoint.pid == self.process.pid:
                return endpoint
            time.sleep(0.02)
        raise AssertionError("the chain was not ready within 30 s")

    def engine_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for file in children for pid in file.read_text().split()]

    def engine_url(self) -> str:
        """Where Anvil itself listens; nobody but the supervisor has business there."""
        words = Path(f"/proc/{self.engine_pids()[0]}/cmdline").read_bytes().decode().split("\0")
        return f"http://{words[words.index('--host') + 1]}:{words[words.index('--port') + 1]}"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> str:
        """Wait for the end and return what was written to stderr."""
        return self.process.communicate(timeout=30)[1].decode()


@contextmanager
def running_chain(home: Path, *options: str, chain_id: int = CHAIN_ID) -> Iterator[ChainProcess]:
    chain = ChainProcess(home, *options, chain_id=chain_id)
    try:
        chain.wait_ready()
        yield chain
    finally:
        if chain.process.poll() is None:
            chain.kill()


def post(url: str, body: object, **headers: str) -> tuple[int, Any]:
    """Post JSON (or raw bytes) and return the status and the parsed answer.

    Raises `OSError` or `http.client.HTTPException` when no whole answer comes.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    request = urllib.request.Request(url, content, fields)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def call(url: str, method: str, *params: object) -> Any:
    """Return a call's result, or its error object."""
    answer = post(url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})[1]
    return answer.get("result", answer.get("error"))


def signed(account: Any, nonce: int, *, chain_id: int = CHAIN_ID, **fields: object) -> tuple[str, str]:
    """Return (raw transaction, hash) as hexadecimal texts."""
    transaction = {"nonce": nonce, "to": SINK, "value": 0, "gas": 25_000, "gasPrice": 0, "chainId": chain_id}
    made = account.sign_transaction({**transaction, "data": nonce.to_bytes(4, "big"), **fields})
    return "0x" + bytes(made.raw_transaction).hex(), "0x" + bytes(made.hash).hex()


def account(number: int) -> Any:
    return Account.from_key(number.to_bytes(32, "big"))


def until(condition: Any, seconds: float = 15) -> Any:
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.03)
    raise AssertionError(f"did not become true within {seconds} s")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
