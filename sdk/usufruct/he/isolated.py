"""Opens blocks in a worker process, so that whatever a ciphertext provokes in SEAL ends there.

The worker has a limit on its address space and a deadline for every block. If it crashes, reaches one of them, or
answers what no worker answers, that block fails with `WorkerError` and the next one gets a new worker; the caller hands
SEAL nothing. The secret crosses a pipe, never an argument, a file or the environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import (
    ContainerError,
    KernelBoundError,
    KernelParameterError,
    KeyStoreError,
    UsufructError,
    WorkerError,
    WrongKeyDomainError,
)
from usufruct.he.secret import SecretKey

MEMORY_BYTES: Final = 1 << 29
"""Address space of a worker: several times what opening the largest block takes (`docs/engine.md`)."""

SECONDS: Final = 60.0
"""Deadline of one block, with the start of its worker; opening takes milliseconds, starting about a second."""

MAX_FRAME_BYTES: Final = 1 << 24
"""Several times the largest frame, an evaluation key of CKKS."""

OPENED, REFUSED = b"opened", b"refused"
"""First frame of an answer; values follow, or the error as JSON."""

OUT_OF_MEMORY: Final = 3
"""Exit code of a worker."""

ROWS: Final = np.dtype("<u4")
VALUES: Final = np.dtype("<i8")

_WORKER = "usufruct.he.opener"
_PR_SET_DUMPABLE = 4
_LENGTH_BYTES = 4
_REFUSALS: Final[dict[str, type[UsufructError]]] = {
    error.__name__: error
    for error in (WrongKeyDomainError, KeyStoreError, KernelBoundError, KernelParameterError)
}


class IsolatedWorker:
    """A worker process under limits, which answers requests. A context manager; it starts at the first request.

    Parameters
    ----------
    module :
        What the worker runs: it reads frames from its standard input and answers with `answer`.
    task :
        What it does, for messages.
    greeting :
        Makes the frames that a new worker is sent before any request.
    memory_bytes, seconds :
        Limits of the worker, and of one request.
    """

    def __init__(
        self,
        module: str,
        task: str,
        greeting: Callable[[], Sequence[bytes]],
        *,
        memory_bytes: int = MEMORY_BYTES,
        seconds: float = SECONDS,
    ) -> None:
        self._module = module
        self._task = task
        self._greeting = greeting
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if one runs."""
        return None if self._worker is None else self._worker.pid

    def start(self) -> None:
        """Start the worker if none runs, so that the first request need not wait for it; raises WorkerError if it is late."""
        with self._in_step() as (_, late):
            pass
        if late.is_set():
            raise self._failure(late=True)

    def ask(self, *frames: bytes) -> bytes:
        """Send one request; return the answer.

        Raises
        ------
        UsufructError
            What the worker refused the request with.
        WorkerError
            If the worker died, reached its memory limit or the deadline, or its answer is none.
        """
        with self._in_step() as (worker, late):
            answer = _ask(worker, frames)
        if answer is None:
            raise self._failure(late.is_set())
        if isinstance(answer, UsufructError):
            raise answer
        return answer

    def ask_numbers(self, numbers: np.dtype[Any], count: int, *frames: bytes) -> NDArray[Any]:
        """As `ask`, where the answer is so many numbers of a type."""
        answer = self.ask(*frames)
        if len(answer) != count * numbers.itemsize:
            self._stop(kill=True)
            raise WorkerError(
                f"the worker that {self._task} answered {len(answer)} bytes for {count} numbers of {numbers.itemsize}"
            )
        return np.frombuffer(answer, dtype=numbers)

    @contextmanager
    def _in_step(self) -> Iterator[tuple[subprocess.Popen[bytes], threading.Event]]:
        """The worker, greeted, until the deadline, and whether that has passed.

        A worker that its caller breaks off with is killed: the next request would be answered with what this one left unread.
        """
        late = threading.Event()
        try:
            worker, fresh = self._worker or self._start(), self._worker is None
            self._worker = worker
            watchdog = threading.Timer(self._seconds, _end, (worker, late))
            watchdog.start()
            try:
                if fresh:
                    self._greet(worker)
                yield worker, late
            finally:
                watchdog.cancel()
        except BaseException:
            self._stop(kill=True)
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        # Nothing of the caller's environment is inherited but where to find the code.
        environment = {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OPENBLAS_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, str(self._memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )

    def _greet(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdin is not None
        # A worker that is gone already is noticed when it does not answer.
        with suppress(BrokenPipeError):
            for frame in self._greeting():
                write_frame(worker.stdin, frame)

    def _failure(self, late: bool) -> WorkerError:
        worker = self._worker
        code = self._stop()
        if late:
            reason = f"took more than {self._seconds:g} s"
        elif code == OUT_OF_MEMORY:
            reason = f"reached its memory limit of {self._memory_bytes >> 20} MiB"
        else:
            reason = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        pid = "" if worker is None else f" (process {worker.pid})"
        return WorkerError(f"the worker that {self._task} {reason}{pid}")

    def _stop(self, *, kill: bool = False) -> int:
        """End the worker and wait for it; returns its exit code. Killed, it has no time to end by itself."""
        worker, self._worker = self._worker, None
        if worker is None:
            return 0
        assert worker.stdin is not None and worker.stdout is not None
        if kill:
            worker.kill()
        with suppress(BrokenPipeError):
            worker.stdin.close()
        try:
            code = worker.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
        worker.stdout.close()
        return code


class IsolatedOpener(IsolatedWorker):
    """Opens blocks of one key domain.

    Parameters
    ----------
    secret :
        Of the key domain.
    memory_bytes, seconds :
        Limits of the worker, and of one block.
    """

    def __init__(
        self, secret: SecretKey, *, memory_bytes: int = MEMORY_BYTES, seconds: float = SECONDS
    ) -> None:
        super().__init__(
            _WORKER,
            "opens blocks",
            lambda: [secret.to_bytes()],
            memory_bytes=memory_bytes,
            seconds=seconds,
        )

    def open_values(self, block: bytes, rows: Sequence[int]) -> NDArray[np.int64]:
        """Decrypt a block and return only the named rows; as `scheme.Scheme.open_values`.

        Raises
        ------
        ContainerError, WrongKeyDomainError, KeyStoreError
            If the worker refused the block.
        WorkerError
            If the worker died, or reached its memory limit or the deadline.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= 1 << 31):
            raise KeyStoreError("a row number that no block has")
        return self.ask_numbers(VALUES, wanted.size, wanted.astype(ROWS).tobytes(), block).astype(np.int64)


def _end(worker: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    worker.kill()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Read 4 bytes of length, little-endian, and that many bytes; None where the stream ends too early.

    Raises WorkerError if the length is above `MAX_FRAME_BYTES`.
    """
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "little")
    if length > MAX_FRAME_BYTES:
        raise WorkerError(f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are read")
    body = stream.read(length)
    return body if len(body) == length else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Write what `read_frame` reads."""
    stream.write(len(body).to_bytes(_LENGTH_BYTES, "little") + body)
    stream.flush()


def answer(stream: IO[bytes], make: Callable[..., bytes], *request: bytes) -> None:
    """In a worker: answer a request with what `make` returns for its frames, or with the error that it refuses with."""
    try:
        body = make(*request)
    except UsufructError as exc:
        field = exc.field if isinstance(exc, ContainerError) else ""
        refusal = {"error": type(exc).__name__, "message": str(exc), "field": field}
        write_frame(stream, REFUSED)
        write_frame(stream, json.dumps(refusal).encode())
    else:
        write_frame(stream, OPENED)
        write_frame(stream, body)


def keep_memory_private() -> None:
    """Leave no core file, and let no other process of this user read or trace this one's memory (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot keep the memory of this process private")


def run_limited(serve: Callable[[IO[bytes], IO[bytes]], None]) -> None:
    """The main program of a worker: serve standard input under the limits; the only argument is that of memory."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    keep_memory_private()
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except MemoryError:
        # No unwinding through code that may want memory again.
        os._exit(OUT_OF_MEMORY)


def _ask(worker: subprocess.Popen[bytes], frames: Sequence[bytes]) -> bytes | UsufructError | None:
    """One request: the answer, the refusal, or None if the worker gave neither."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        for frame in frames:
            write_frame(worker.stdin, frame)
    except BrokenPipeError:
        return None
    status = read_frame(worker.stdout)
    body = None if status is None else read_frame(worker.stdout)
    if body is None or status == OPENED:
        return body
    return _refusal(body)


def _refusal(body: bytes) -> UsufructError:
    try:
        told = json.loads(body)
        error, message, field = (str(told[name]) for name in ("error", "message", "field"))
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise WorkerError("a worker's answer is neither one nor a refusal") from exc
    return _REFUSALS[error](message) if error in _REFUSALS else ContainerError(message, field=field)
