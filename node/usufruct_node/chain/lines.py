"""JSON-RPC over Anvil's Unix socket: one line of JSON out, one line back.

A connection carries one request at a time, so that an answer needs no matching; as many are kept as were ever
needed at once. Absent: what the lines mean.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

from usufruct.errors import ChainEngineError

_AT_ONCE = 64
_ANSWER_TIMEOUT_S = 120.0
_READ_BYTES = 256 * 1024


class Lines:
    """Connections to the socket `name` in `folder`, whose path may be longer than an address may be."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._idle: list[trio.SocketStream] = []
        self._places = trio.CapacityLimiter(_AT_ONCE)
        self._closed = False

    async def ask(self, body: bytes) -> bytes:
        """Send one line and return the answer, without its line break.

        Parameters
        ----------
        body :
            One JSON value without line breaks.

        Raises
        ------
        ChainEngineError
            If there is no answer; whether the request was carried out is unknown.
        """
        async with self._places:
            try:
                with trio.fail_after(_ANSWER_TIMEOUT_S):
                    stream = self._idle.pop() if self._idle else await self._connect()
                    try:
                        await stream.send_all(body + b"\n")
                        answer = await _line(stream)
                    except BaseException:
                        # The answer may yet come: nobody may take it for that to another request.
                        await trio.aclose_forcefully(stream)
                        raise
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as exc:
                raise ChainEngineError(f"Anvil does not answer: {exc or type(exc).__name__}") from exc
            if self._closed:
                await trio.aclose_forcefully(stream)
            else:
                self._idle.append(stream)
            return answer

    async def close(self) -> None:
        """End all connections that are idle and take the socket away; those in use end with their answers."""
        self._closed = True
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop())
        (self._folder / self._name).unlink(missing_ok=True)

    async def _connect(self) -> trio.SocketStream:
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return await trio.open_unix_socket(f"/proc/self/fd/{folder}/{self._name}")
        finally:
            os.close(folder)


async def _line(stream: trio.SocketStream) -> bytes:
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        part = await stream.receive_some(_READ_BYTES)
        if not part:
            raise trio.BrokenResourceError("the connection ended before the answer did")
        parts.append(part)
    return b"".join(parts)[:-1]
