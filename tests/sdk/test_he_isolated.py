"""Opening in a worker process: what it answers, and that it can die without taking anybody with it."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from usufruct.errors import ContainerError, KeyStoreError, WorkerError, WrongKeyDomainError
from usufruct.he import isolated
from usufruct.he.bfv import encrypt_columns, generate_secret_key, open_coefficients
from usufruct.he.isolated import IsolatedOpener, IsolatedWorker
from usufruct.he.secret import SecretKey

VALUES = np.arange(-20, 20).reshape(20, 2)


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return generate_secret_key()


@pytest.fixture(scope="module")
def blocks(secret: SecretKey) -> list[bytes]:
    return [block for _, _, block in encrypt_columns(VALUES, secret)]


@pytest.fixture
def opener(secret: SecretKey) -> Iterator[IsolatedOpener]:
    with IsolatedOpener(secret) as opener:
        yield opener


def gone(pid: int) -> bool:
    """Whether no process has this id."""
    return not Path(f"/proc/{pid}").exists()


def frame(body: bytes) -> bytes:
    stream = io.BytesIO()
    isolated.write_frame(stream, body)
    return stream.getvalue()


def test_blocks_open_in_a_worker_as_they_do_here(
    secret: SecretKey, opener: IsolatedOpener, blocks: list[bytes]
) -> None:
    opened = [opener.open_values(block, range(20)) for block in blocks]
    assert np.array_equal(np.stack(opened, axis=1), VALUES)
    assert opener.open_values(blocks[0], []).size == 0
    some = opener.open_values(blocks[1], [7, 3]).tolist()
    assert some == open_coefficients(blocks[1], secret, [7, 3])


def test_one_worker_opens_many_blocks_and_is_gone_afterwards(secret: SecretKey, blocks: list[bytes]) -> None:
    with IsolatedOpener(secret) as opener:
        opener.open_values(blocks[0], [0])
        pid = opener.pid
        opener.open_values(blocks[1], [0])
        assert pid is not None and opener.pid == pid and not gone(pid)
    assert gone(pid)


def test_refusals_of_the_worker_keep_their_type_and_the_worker_goes_on(
    opener: IsolatedOpener, blocks: list[bytes]
) -> None:
    opener.open_values(blocks[0], [0])
    pid = opener.pid
    with pytest.raises(ContainerError) as refused:
        opener.open_values(blocks[0][:-1], [0])
    assert refused.value.field == "length"
    foreign = next(iter(encrypt_columns(VALUES, generate_secret_key())))[2]
    with pytest.raises(WrongKeyDomainError):
        opener.open_values(foreign, [0])
    with pytest.raises(KeyStoreError, match="4096"):
        opener.open_values(blocks[0], [4096])
    with pytest.raises(KeyStoreError, match="row number"):
        opener.open_values(blocks[0], [-1])
    assert opener.open_values(blocks[0], [19]).tolist() == [18] and opener.pid == pid


def test_worker_that_is_killed_fails_one_block_and_the_next_gets_another(
    opener: IsolatedOpener, blocks: list[bytes]
) -> None:
    opener.open_values(blocks[0], [0])
    assert opener.pid is not None
    killed = opener.pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(WorkerError, match=f"signal 9 .process {killed}"):
        opener.open_values(blocks[0], [0])
    assert opener.open_values(blocks[0], [0]).tolist() == [-20]
    assert opener.pid != killed and gone(killed)


def test_worker_that_reaches_its_memory_limit_fails_the_block_and_not_the_caller(
    secret: SecretKey, blocks: list[bytes]
) -> None:
    """The limit is below what the interpreter holds already, so the first larger allocation fails."""
    with (
        IsolatedOpener(secret, memory_bytes=32 << 20) as opener,
        pytest.raises(WorkerError, match="memory limit of 32 MiB"),
    ):
        opener.open_values(blocks[0], [0])
    with IsolatedOpener(secret) as opener:
        assert opener.open_values(blocks[0], [0]).tolist() == [-20]


def test_worker_that_hangs_is_ended_at_its_deadline(secret: SecretKey, blocks: list[bytes]) -> None:
    with IsolatedOpener(secret, seconds=2) as opener:
        opener.open_values(blocks[0], [0])
        assert opener.pid is not None
        stopped = opener.pid
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(WorkerError, match="more than 2 s"):
            opener.open_values(blocks[0], [0])
        assert gone(stopped)


@pytest.mark.parametrize("interruption", [MemoryError, KeyboardInterrupt])
def test_an_answer_that_was_not_read_is_never_that_of_the_next_request(
    opener: IsolatedOpener,
    blocks: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    opener.open_values(blocks[0], [0])
    assert opener.pid is not None
    left = opener.pid

    def interrupted(stream: object) -> None:
        raise interruption

    with monkeypatch.context() as patch, pytest.raises(interruption):
        patch.setattr(isolated, "read_frame", interrupted)
        opener.open_values(blocks[0], [19])
    assert gone(left)
    assert opener.open_values(blocks[0], [0]).tolist() == [-20]


Worker = Callable[[str], str]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Makes a module that does what a worker should not."""

    def made(code: str) -> str:
        (tmp_path / "strange_worker.py").write_text(f"import sys, time\nout = sys.stdout.buffer\n{code}\n")
        monkeypatch.syspath_prepend(tmp_path)
        return "strange_worker"

    return made


def test_the_deadline_covers_the_start_and_the_greeting_of_a_worker(worker: Worker) -> None:
    """A greeting of more than a pipe holds waits for a worker that reads it."""
    module = worker("time.sleep(600)")
    with IsolatedWorker(module, "idles", lambda: [bytes(1 << 20)], seconds=1) as idle:
        with pytest.raises(WorkerError, match="idles took more than 1 s"):
            idle.ask(b"?")
        with pytest.raises(WorkerError, match="idles took more than 1 s"):
            idle.start()
        assert idle.pid is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (frame(b"opened") + frame(bytes(12)), "12 bytes for 1 numbers of 8"),
        (frame(b"opened") + frame(bytes(16)), "16 bytes for 1 numbers of 8"),
        (frame(b"opened") + b"\xff" * 4, "4294967295 bytes"),
        (b"\xff" * 4, "4294967295 bytes"),
        (frame(b"maybe") + frame(bytes(8)), "neither one nor a refusal"),
        (frame(b"refused") + frame(b"{}"), "neither one nor a refusal"),
        (frame(b"refused") + frame(b"[" * 100_000), "neither one nor a refusal"),
    ],
)
def test_an_answer_that_is_none_is_a_typed_error_and_ends_the_worker(
    worker: Worker, answer: bytes, told: str
) -> None:
    module = worker(f"out.write({answer!r})\nout.flush()\ntime.sleep(600)")
    with IsolatedWorker(module, "lies", lambda: []) as liar:
        liar.start()
        assert liar.pid is not None
        ended = liar.pid
        with pytest.raises(WorkerError, match=told):
            liar.ask_numbers(isolated.VALUES, 1, b"?")
        assert liar.pid is None and gone(ended)


def test_secret_reaches_the_worker_through_its_pipe_only(
    opener: IsolatedOpener, blocks: list[bytes], secret: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USUFRUCT_PASSPHRASE", "of the caller")
    opener.open_values(blocks[0], [0])
    process = Path(f"/proc/{opener.pid}")
    exposed = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert b"usufruct.he.opener" in exposed and b"of the caller" not in exposed
    key = secret.to_bytes()
    for start in range(0, len(key), 16):
        assert key[start : start + 16] not in exposed
    limits = (process / "limits").read_text()
    assert f"Max address space         {isolated.MEMORY_BYTES}" in limits
    assert any(line.split()[:6] == ["Max", "core", "file", "size", "0", "0"] for line in limits.splitlines())


def test_opening_in_a_worker_loads_no_homomorphic_library_here() -> None:
    code = "import sys, usufruct.he.isolated; sys.exit('tenseal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
