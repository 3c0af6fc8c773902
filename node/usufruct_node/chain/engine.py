"""One Anvil process and the calls to it.

Anvil makes a block only when told to, so that the same transactions in the same order with the same
timestamps give the same block hashes in any later process. It is spoken to over a socket in the chain's
directory, which is its owner's alone. Anvil cannot be kept from listening for HTTP as well: it does so on a
loopback address drawn at random, without CORS. It dies with this process.

Absent: durability, and any decision about what goes into a block.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from usufruct.errors import ChainEngineError
from usufruct_node.chain.lines import Lines
from usufruct_node.chain.settings import BLOCK_GAS_LIMIT

IN_ORDER_CALLS = 25
"""Calls of one batch that Anvil runs in order; from 31 on it interleaves them."""

START_TIMEOUT_S = 60.0
SOCKETS = "anvil-*.ipc"
"""Names of the sockets; one that no engine of the running process has is left over from a killed process."""

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class EngineRefusalError(ChainEngineError):
    """Anvil answered a call with a JSON-RPC error, kept as `code` and `message`."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"Anvil answered {code}: {message}")


class Engine:
    """A running Anvil.

    Made by `start`. Every method raises `ChainEngineError` when the process is gone or breaks the
    protocol; the engine is of no use after that.
    """

    def __init__(self, process: subprocess.Popen[bytes], lines: Lines) -> None:
        self._process = process
        self._lines = lines

    @classmethod
    async def start(
        cls,
        executable: Path,
        *,
        home: Path,
        chain_id: int,
        genesis_timestamp: int,
        state: Path | None,
    ) -> Engine:
        """Start Anvil, from `state` when given, and wait until it answers.

        Raises
        ------
        ChainEngineError
            If it exits, or is silent for `START_TIMEOUT_S`.
        """
        host, port = _private_address()
        socket_name = SOCKETS.replace("*", secrets.token_hex(4))
        command = [str(executable), "--ipc", socket_name, "--silent"]
        command += ["--host", host, "--port", str(port), "--no-cors"]
        command += ["--no-mining", "--order", "fifo", "--timestamp", str(genesis_timestamp)]
        # No slots: `finalized` is the newest block.
        command += ["--slots-in-an-epoch", "0", "--block-base-fee-per-gas", "0", "--gas-price", "0"]
        command += ["--disable-min-priority-fee", "--gas-limit", str(BLOCK_GAS_LIMIT)]
        command += ["--hardfork", "cancun", "--chain-id", str(chain_id), "--accounts", "0"]
        command += ["--prune-history", "256", "--no-request-size-limit"]
        if state is not None:
            command += ["--load-state", str(state)]
        log_path = home / "anvil.log"
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(log, 0)
            # In this thread: the kernel ends the child when the thread that forked it ends.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=home,
                umask=0o077,
                env={"HOME": str(home), "TMPDIR": str(home), "PATH": os.defpath},
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509
            )
        except OSError as exc:
            raise ChainEngineError(f"Anvil cannot be started: {exc}") from exc
        finally:
            os.close(log)
        engine = cls(process, Lines(home, socket_name))
        try:
            with trio.move_on_after(START_TIMEOUT_S):
                while engine.alive:
                    try:
                        await engine.call("web3_clientVersion", [])
                    except EngineRefusalError:
                        raise
                    except ChainEngineError:
                        await trio.sleep(0.01)
                    else:
                        return engine
            raise ChainEngineError(f"Anvil did not start; {log_path} has its last words")
        except BaseException:
            with trio.CancelScope(shield=True):
                await engine.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    async def close(self) -> None:
        """End the process at once; it holds nothing that is not in the journal."""
        if self.alive:
            self._process.kill()
        await trio.to_thread.run_sync(self._process.wait)
        await self._lines.close()

    async def post(self, body: bytes) -> bytes:
        """Send a JSON-RPC body without line breaks and return the answer's bytes."""
        return await self._lines.ask(body)

    async def call(self, method: str, params: Sequence[object]) -> Any:
        """Return the result of one call.

        Raises
        ------
        EngineRefusalError
            If Anvil answers with an error.
        """
        answer = _parse(await self.post(_encode_calls([(method, params)])[1:-1]))
        if not isinstance(answer, dict):
            raise ChainEngineError("Anvil's answer is no JSON-RPC object")
        result = _result(answer)
        if isinstance(result, EngineRefusalError):
            raise result
        return result

    async def call_in_order(
        self, calls: Sequence[tuple[str, Sequence[object]]], *, at_once: int = IN_ORDER_CALLS
    ) -> list[Any]:
        """Run `calls` one after the other, `at_once` of them in a batch.

        Returns
        -------
        results :
            One per call, in order; an `EngineRefusalError` stands where Anvil refused.
        """
        results: list[Any] = []
        for at in range(0, len(calls), at_once):
            part = calls[at : at + at_once]
            answers = _parse(await self.post(_encode_calls(part)))
            if not isinstance(answers, list) or len(answers) != len(part):
                raise ChainEngineError("Anvil answered a batch with another number of results")
            by_id = {answer.get("id"): answer for answer in answers if isinstance(answer, dict)}
            if set(by_id) != set(range(len(part))):
                raise ChainEngineError("Anvil answered a batch with other ids")
            results += [_result(by_id[index]) for index in range(len(part))]
        return results


def _private_address() -> tuple[str, int]:
    host = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return host, port


def _die_with_parent(parent: int) -> Any:
    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _encode_calls(calls: Sequence[tuple[str, Sequence[object]]]) -> bytes:
    return json.dumps(
        [
            {"jsonrpc": "2.0", "id": index, "method": method, "params": list(params)}
            for index, (method, params) in enumerate(calls)
        ],
        separators=(",", ":"),
    ).encode()


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as exc:
        raise ChainEngineError("Anvil's answer is no JSON") from exc


def _result(answer: dict[str, Any]) -> Any:
    if "result" in answer:
        return answer["result"]
    error = answer.get("error")
    if not isinstance(error, dict):
        raise ChainEngineError("Anvil's answer has neither result nor error")
    return EngineRefusalError(int(error.get("code", -32000)), str(error.get("message", "")))
