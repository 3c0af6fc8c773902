"""The same tasks on a Dask cluster, for operators who have one: `pip install 'usufruct[dask]'`.

Whoever can speak to a Dask scheduler can run any code on its workers, so beyond the own machine a connection has to be TLS
with certificates on both sides (`distributed.Security`). What crosses it are tasks, ciphertext blocks and result blocks; no
key does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from distributed import Client, KilledWorker, Security
from distributed.comm import parse_host_port
from distributed.comm.addressing import parse_address
from distributed.comm.core import CommClosedError

from usufruct.errors import ConfigurationError, WorkerError


class ClusterExecutor:
    """Hands tasks to a Dask scheduler. A context manager; closing it leaves the cluster running.

    Workers need this package in the same version. They read blocks from the directory that the tasks name, if they share
    its file system; otherwise `compute(..., carried=True)` sends the blocks along.
    """

    def __init__(self, address: str, *, security: Security | None = None, timeout_s: float = 10.0) -> None:
        """Connect.

        Parameters
        ----------
        address :
            `tls://host:port`, or `tcp://` with a loopback address.
        security :
            Certificates; needed for `tls`.

        Raises
        ------
        ConfigurationError
            If the address is not one of these, or there are no certificates for `tls` that can be loaded.
        WorkerError
            If no scheduler answers within `timeout_s`.
        """
        scheme, host = _parsed(address)
        if scheme != "tls" and not (scheme == "tcp" and _is_loopback(host)):
            raise ConfigurationError(
                f"{address} would carry tasks unprotected", hint="use tls:// with certificates on both sides"
            )
        if scheme == "tls":
            _check_certificates(security)
        try:
            self._client = Client(address, security=security, timeout=timeout_s, set_as_default=False)
        except OSError as exc:
            raise WorkerError(f"no Dask scheduler answers at {address}") from exc
        self._executor = self._client.get_executor(pure=False)

    @property
    def in_flight(self) -> int:
        """Tasks to keep under way: two for each thread of the cluster as it is now."""
        threads: int = sum(self._client.nthreads().values())
        return 2 * max(1, threads)

    @property
    def failures(self) -> tuple[type[BaseException], ...]:
        """What a future's result raises if workers died, or the scheduler did."""
        return (KilledWorker, CommClosedError)

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Have a worker call a function. A task whose worker dies is tried on others first."""
        future: Future[Any] = self._executor.submit(function, *arguments)
        return future

    def check(self) -> None:
        """Nothing: the scheduler notices workers that die."""

    def close(self) -> None:
        """Let go of the scheduler."""
        self._executor.shutdown(wait=False)
        self._client.close()

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parsed(address: str) -> tuple[str, str]:
    """Scheme and host; raises ConfigurationError."""
    scheme, location = parse_address(address)
    try:
        host, port = parse_host_port(location, 0)
    except ValueError as exc:
        raise ConfigurationError(f"{address!r} is no address of a scheduler: {exc}") from exc
    if not host or not 0 < port < 1 << 16:
        raise ConfigurationError(f"{address!r} names no host or no port of a scheduler")
    return scheme, host


def _check_certificates(security: Security | None) -> None:
    hint = "name CA, certificate and key: distributed.Security(tls_ca_file, tls_client_cert, tls_client_key)"
    try:
        context = security and security.get_connection_args("client")["ssl_context"]
    except OSError as exc:
        raise ConfigurationError(f"the certificates for tls:// cannot be loaded: {exc}", hint=hint) from exc
    if not context:
        raise ConfigurationError("tls:// needs a certificate of one's own and a CA", hint=hint)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
