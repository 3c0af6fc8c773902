"""A TCP proxy that breaks a connection's bytes the way a bad network does: late, in fits, one way only, not at all, or reset.

What the applications see of lost packets is what TCP makes of them: nothing is missing, but what follows waits until
the lost part was sent again. So a loss is a chunk, and all behind it, held back for the time that a retransmission takes.
"""

from __future__ import annotations

import random
from typing import Literal

import trio

Direction = Literal["up", "down"]
CHUNK_BYTES = 16 * 1024
RETRANSMISSION_SECONDS = 0.2
_IN_FLIGHT = 256


class FaultProxy:
    """Passes connections on to one port of loopback, under faults that may be changed meanwhile."""

    def __init__(self, target_port: int, *, seed: int = 1) -> None:
        self.target_port = target_port
        self.delay_s = 0.0
        """One way."""
        self.loss = 0.0
        """Share of chunks that have to be sent again."""
        self.blocked: set[Direction] = set()
        """Directions in which nothing gets through; `up` is towards the target."""
        self.accepted = 0
        self._random = random.Random(seed)
        self._streams: set[trio.SocketStream] = set()
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass on until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            task_status.started(self.port)
            await trio.serve_listeners(self._pass_on, listeners, handler_nursery=nursery)

    async def cut(self) -> None:
        """Reset every connection."""
        for stream in list(self._streams):
            await trio.aclose_forcefully(stream)

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self.accepted += 1
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target_port)
        except OSError:
            return
        self._streams |= {near, far}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, "up", nursery.cancel_scope)
                nursery.start_soon(self._pump, far, near, "down", nursery.cancel_scope)
        finally:
            self._streams -= {near, far}
            for stream in (near, far):
                await trio.aclose_forcefully(stream)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, way: Direction, scope: trio.CancelScope
    ) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](_IN_FLIGHT)

        async def deliver() -> None:
            async for due, data in receive:
                await trio.sleep_until(due)
                while way in self.blocked:
                    await trio.sleep(0.02)
                await sink.send_all(data)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deliver)
                async with send:
                    while data := await source.receive_some(CHUNK_BYTES):
                        lost = self._random.random() < self.loss
                        late = self.delay_s + (RETRANSMISSION_SECONDS + 2 * self.delay_s if lost else 0.0)
                        await send.send((trio.current_time() + late, bytes(data)))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
