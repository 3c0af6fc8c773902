"""Puts the embedded chain together: lock, producer, door, and the file that says where it listens.

Absent: signals and the command line (see `__main__`).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Protocol, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from usufruct.errors import ConfigurationError, PortTakenError, StoreFullError
from usufruct_node.chain.engine import SOCKETS
from usufruct_node.chain.front import Front
from usufruct_node.chain.journal import write_durably
from usufruct_node.chain.producer import Producer
from usufruct_node.chain.settings import ENDPOINT_FILE, ChainEndpoint, ChainSettings, find_anvil
from usufruct_node.chain.store import locked_home

PORT_FILE = "port"
_HOST = "127.0.0.1"


class TaskStatus(Protocol):
    """The part of trio's task status that `serve_chain` uses."""

    def started(self, value: ChainEndpoint) -> None:
        """Tell the parent task where the chain listens."""


async def serve_chain(settings: ChainSettings, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
    """Run the chain of `settings.home` until cancelled; then take a checkpoint and stop.

    Starts with the `ChainEndpoint`, after every acknowledged transaction is back in place.

    Raises
    ------
    HomeInUseError
        If another process runs on the directory.
    PortTakenError
        If `settings.port` is taken.
    ConfigurationError
        If Anvil is not found, or the directory holds a chain with another id.
    ChainDataError
        If what is on disk is damaged; nothing is changed.
    ChainEngineError
        If Anvil fails again and again.
    StoreFullError
        If the disk is full at the start.
    """
    executable = find_anvil(settings.anvil)
    with locked_home(settings.home):
        listener = _listen(settings)
        try:
            for left in (settings.home / ENDPOINT_FILE, *settings.home.glob(SOCKETS)):
                left.unlink(missing_ok=True)
            await _run(settings, executable, listener, task_status)
        finally:
            (settings.home / ENDPOINT_FILE).unlink(missing_ok=True)
            listener.close()


async def _run(
    settings: ChainSettings,
    executable: Path,
    listener: socket.socket,
    task_status: TaskStatus,
) -> None:
    port: int = listener.getsockname()[1]
    producer = Producer(settings, executable)
    config = Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]
    config.loglevel = "WARNING"
    config.include_server_header = False
    config.graceful_timeout = 2
    failure: Exception | None = None

    async def produce() -> None:
        nonlocal failure
        try:
            await producer.run()
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(produce)
            await producer.ready.wait()
            await nursery.start(serve_front, producer, settings.chain_id, config)
            endpoint = ChainEndpoint(
                url=f"http://{_HOST}:{port}",
                chain_id=settings.chain_id,
                pid=os.getpid(),
                genesis_hash=producer.genesis_hash,
            )
            try:
                write_durably(settings.home / PORT_FILE, str(port).encode())
                write_durably(settings.home / ENDPOINT_FILE, endpoint.to_json())
            except OSError as exc:
                failure = StoreFullError(f"{settings.home / ENDPOINT_FILE} cannot be written: {exc}")
                nursery.cancel_scope.cancel()
            else:
                task_status.started(endpoint)
            await trio.sleep_forever()
        finally:
            producer.stop()
    if failure is not None:
        raise failure


async def serve_front(
    producer: Producer, chain_id: int, config: Config, *, task_status: Any = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the door with hypercorn until cancelled."""
    await serve(cast("Any", Front(producer, chain_id)), config, mode="asgi", task_status=task_status)


def _listen(settings: ChainSettings) -> socket.socket:
    """Return a listening socket on the port asked for, else that of the last run, else any."""
    for port in (settings.port,) if settings.port else (_last_port(settings.home), 0):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
            listener.listen(128)
        except OSError as exc:
            listener.close()
            if settings.port:
                raise PortTakenError(f"port {port} on {_HOST} cannot be had: {exc.strerror}") from exc
        else:
            listener.setblocking(False)
            return listener
    raise ConfigurationError(f"no port is free on {_HOST}")


def _last_port(home: Path) -> int:
    try:
        text = (home / PORT_FILE).read_text("ascii")
        return int(text) if text.isdecimal() and 0 < int(text) < 65536 else 0
    except (OSError, ValueError):
        return 0
