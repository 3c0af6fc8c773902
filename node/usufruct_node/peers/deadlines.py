"""How long each step with a peer may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from usufruct.errors import PeerTooSlowError


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each step with a peer may take, in seconds."""

    connect: float = 10.0
    """Dialling, handshake and multiplexing, either direction."""

    silence: float = 3.0
    """An incoming connection before its first byte."""

    negotiate: float = 5.0
    """Agreeing on a protocol on a new stream."""

    idle: float = 30.0
    """A stream without a request before the server ends it."""

    request: float = 5.0
    """A request from its first byte to its last."""

    block: float = 30.0
    """One block from request to last byte, in either direction."""


@contextlib.contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Give what is inside so many seconds.

    Raises
    ------
    PeerTooSlowError
        If it takes longer.
    """
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as exc:
        raise PeerTooSlowError(f"{what} took more than {seconds:g} s") from exc
