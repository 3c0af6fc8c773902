"""A TCP proxy that breaks a connection's bytes the way a bad network does: late, in fits, one way only, not at all, or reset.

What the applications see of lost packets is what TCP makes of them: nothing is missing, but what follows waits until
the lost part was sent again. So a loss is a chunk, and all behind it, held back for the time that a retransmission takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import trio

CHUNK_BYTES = 16 * 1024
RETRANSMISSION_SECONDS = 0.2
_IN_FLIGHT = 256


@dataclass(slots=True)
class Way:
    """One direction between two parties: what is wrong with it, which may change meanwhile, and what went along it."""

    delay_s: float = 0.0
    loss: float = 0.0
    """Share of chunks that have to be sent again."""
    bytes_per_s: float = float("inf")
    blocked: bool = False
    """Nothing gets through; what waits is delivered once it does."""
    sent_bytes: int = 0
    """Delivered."""
    lost_chunks: int = 0
    """Sent again."""

    def mend(self) -> None:
        """Nothing is wrong any more."""
        self.delay_s, self.loss, self.bytes_per_s, self.blocked = 0.0, 0.0, float("inf"), False


Ways = tuple[Way, Way]
"""Towards the target, and back."""


class FaultProxy:
    """Passes connections on to one port of loopback, under faults that may be changed meanwhile."""

    def __init__(
        self, target_port: int, *, seed: int = 1, ways_of: Callable[[int], Ways | None] | None = None
    ) -> None:
        """Prepare.

        Parameters
        ----------
        ways_of :
            The ways of a connection from its port at the dialling side, or None for the proxy's own; called in a thread.
        """
        self.target_port = target_port
        self.up, self.down = Way(), Way()
        """Ways of connections that `ways_of` does not know."""
        self.accepted = 0
        self.cuts = 0
        """Connections that were reset."""
        self._ways_of = ways_of
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
        streams = list(self._streams)
        self.cuts += len(streams) // 2
        for stream in streams:
            await trio.aclose_forcefully(stream)

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self.accepted += 1
        try:
            up, down = await self._find_ways(near)
            far = await trio.open_tcp_stream("127.0.0.1", self.target_port)
        except OSError:
            return
        self._streams |= {near, far}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, up, nursery.cancel_scope)
                nursery.start_soon(self._pump, far, near, down, nursery.cancel_scope)
        finally:
            self._streams -= {near, far}
            for stream in (near, far):
                await trio.aclose_forcefully(stream)

    async def _find_ways(self, near: trio.SocketStream) -> Ways:
        if self._ways_of is not None:
            port = near.socket.getpeername()[1]
            found = await trio.to_thread.run_sync(self._ways_of, port)
            if found is not None:
                return found
        return self.up, self.down

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, way: Way, scope: trio.CancelScope
    ) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](_IN_FLIGHT)

        async def deliver() -> None:
            async for due, data in receive:
                await trio.sleep_until(due)
                if way.bytes_per_s != float("inf"):
                    await trio.sleep(len(data) / way.bytes_per_s)
                while way.blocked:
                    await trio.sleep(0.02)
                await sink.send_all(data)
                way.sent_bytes += len(data)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deliver)
                async with send:
                    while data := await source.receive_some(CHUNK_BYTES):
                        lost = self._random.random() < way.loss
                        way.lost_chunks += lost
                        late = way.delay_s + (RETRANSMISSION_SECONDS + 2 * way.delay_s if lost else 0.0)
                        await send.send((trio.current_time() + late, bytes(data)))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
