"""Incoming connections whose handshake is not over: how many there may be, and who gives way to the next one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import trio

from usufruct_node.peers.connection import TcpStream

PLACES: Final = 256
"""Handshakes under way at once. Each takes a few milliseconds of work, so all are done long before their deadline."""


class Doorstep:
    """A bounded number of places. The newest always gets one: whoever waits longest in silence gives way, or waits longest.

    Refusing the newest instead would let anybody with as many idle sockets keep every member out.
    """

    def __init__(self) -> None:
        self._waiting: dict[trio.CancelScope, TcpStream] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.contextmanager
    def place(self, tcp: TcpStream) -> Iterator[trio.CancelScope]:
        """Hold a place for what is inside; the scope is cancelled if it must give way."""
        if len(self._waiting) >= PLACES:
            self._make_room()
        with trio.CancelScope() as scope:
            self._waiting[scope] = tcp
            try:
                yield scope
            finally:
                self._waiting.pop(scope, None)

    def _make_room(self) -> None:
        silent = (scope for scope, tcp in self._waiting.items() if not tcp.received_bytes)
        oldest = next(silent, None) or next(iter(self._waiting))
        # It is gone a moment later only, and must not be chosen again until then.
        del self._waiting[oldest]
        oldest.cancel()
