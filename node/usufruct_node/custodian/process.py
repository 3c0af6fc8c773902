"""The node's side: starts the custodian, starts it again when it dies, and asks it. Sees no secret and no passphrase."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from usufruct.content.dag import DagValue
from usufruct.errors import CustodianError, ForgottenReleasesError, ReleaseRefusedError
from usufruct.home import Home
from usufruct.records import KeyId, Refusal
from usufruct_node.custodian import wire
from usufruct_node.custodian.case import Case, Records

KEY_OPENINGS: Final = 1 << 20
"""Unless the node's settings say otherwise."""

_ANSWER_SECONDS = 600.0
_TERMINATE_AGAIN_SECONDS = 0.5
_MODULE = "usufruct_node.custodian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A release as the custodian hands it out."""

    sealed: bytes
    """Encrypted to the partner."""
    sigma_micro: int


class CustodianProcess:
    """A running custodian process. A context manager; `start` has to come first.

    Parameters
    ----------
    home :
        Whose keystore it opens.
    passphrase_file :
        Of that keystore; by default the one in the home, or else it asks at the terminal.
    key_openings :
        Result blocks that one key may open in its life.
    """

    def __init__(
        self, home: Home, *, passphrase_file: Path | None = None, key_openings: int = KEY_OPENINGS
    ) -> None:
        self._home = home
        self._key_openings = key_openings
        self._passphrase_file = passphrase_file
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: subprocess.Popen[bytes] | None = None
        """A process that is not ready yet: it may be asking for its passphrase."""
        self._lock = threading.Lock()
        self._directory = os.open(home.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id, if it runs and is ready."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    @property
    def is_starting(self) -> bool:
        """Whether it was started and is not ready: it may be asking for its passphrase."""
        return self._starting is not None

    def start(self) -> None:
        """Start the process unless it runs; returns once it is unlocked and listens.

        Raises
        ------
        CustodianError
            If it ends instead; what it wrote to the log says why.
        """
        with self._lock:
            if self._closed:
                raise CustodianError("the custodian has been stopped")
            if self._process is not None and self._process.poll() is None:
                return
            words = ["--home", str(self._home.root), "--key-openings", str(self._key_openings)]
            if self._passphrase_file is not None:
                words += ["--passphrase-file", str(self._passphrase_file)]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=self._home.root,
            )
            assert process.stdin is not None and process.stdout is not None
            self._starting = process
            if self._closed:
                process.terminate()
            ready = process.stdout.readline() == b"ready\n"
            self._starting = None
            if not ready:
                code = process.wait()
                process.stdin.close()
                process.stdout.close()
                raise CustodianError(f"the custodian's process ended with code {code} before it was ready")
            self._process = process

    def close(self) -> None:
        """Stop the process, also one that waits for its passphrase, and wait for it."""
        self._closed = True
        while True:
            # Again and again: a signal that comes just before it begins to read the terminal is noticed with the next only.
            if (starting := self._starting) is not None:
                starting.terminate()
            if self._lock.acquire(timeout=_TERMINATE_AGAIN_SECONDS):
                break
        try:
            process, self._process = self._process, None
            os.close(self._directory)
        finally:
            self._lock.release()
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def state(self) -> dict[str, DagValue]:
        """Key domains whose secrets it has, blocks that each key has opened, and how many it may; raises CustodianError."""
        return _accepted(self._ask({"ask": "state"}, ()))

    def examine(self, case: Case, records: Records, blocks: Iterable[bytes]) -> None:
        """Let it check everything that can be checked before decryption is announced, and reserve a place for the release.

        Raises
        ------
        ReleaseRefusedError
        ForgottenReleasesError, CustodianError
        """
        _accepted(self._ask({"ask": "examine", "case": case.to_record()}, _frames(records, blocks)))

    def release(self, case: Case, records: Records, blocks: Iterable[bytes]) -> Sealed:
        """Have a result decrypted, noised and encrypted to the partner; the same answer every time.

        Raises
        ------
        ReleaseRefusedError
        ForgottenReleasesError, CustodianError
        """
        answer = _accepted(self._ask({"ask": "release", "case": case.to_record()}, _frames(records, blocks)))
        sealed, noise = answer.get("sealed"), answer.get("sigma_micro")
        if not isinstance(sealed, bytes) or type(noise) is not int or noise < 1:
            raise CustodianError("the custodian answered something that is no release")
        return Sealed(sealed=sealed, sigma_micro=noise)

    def remember(self, case: Case, records: Records) -> None:
        """Tell it of a release that it has forgotten; raises ReleaseRefusedError, CustodianError.

        Of the records it takes manifest and status; an empty status says that nobody has it any more.
        """
        frames = (getattr(records, name) for name in Records.names())
        _accepted(self._ask({"ask": "remember", "case": case.to_record()}, frames))

    def destroy(self, key_id: KeyId) -> None:
        """Have a key domain's secret deleted, if it is there: what was sealed under it stays closed. Raises CustodianError."""
        _accepted(self._ask({"ask": "destroy", "key": bytes(key_id)}, ()))

    def _ask(self, request: dict[str, object], frames: Iterable[bytes]) -> dict[str, Any]:
        self.start()
        with self._connect() as channel:
            wire.check_peer(channel)
            wire.send_record(channel, {"type": wire.PROTOCOL, **request})
            for frame in frames:
                wire.send(channel, frame)
            answer = wire.receive_record(channel)
        if answer is None:
            raise CustodianError("the custodian closed the connection without an answer")
        return answer

    def _connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(_ANSWER_SECONDS)
        try:
            # By way of the open directory: whole paths of sockets may have 107 bytes only.
            channel.connect(f"/proc/self/fd/{self._directory}/{wire.SOCKET_NAME}")
        except OSError as exc:
            channel.close()
            raise CustodianError(f"the custodian does not listen: {exc.strerror}") from exc
        return channel


def _frames(records: Records, blocks: Iterable[bytes]) -> Iterable[bytes]:
    for name in Records.names():
        yield getattr(records, name)
    yield from blocks
    yield b""


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    status, message = answer.get("status"), str(answer.get("message", ""))
    if status == "ok":
        return answer
    if status == "missing" and isinstance(answer.get("jobs"), list):
        raise ForgottenReleasesError([job for job in answer["jobs"] if isinstance(job, bytes)])
    reason = str(answer.get("reason"))
    if status == "refused" and reason in Refusal.__members__ and Refusal[reason] != Refusal.NONE:
        raise ReleaseRefusedError(reason, hint=message)
    raise CustodianError(message or "the custodian answered something that is no answer")
