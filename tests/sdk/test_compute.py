"""Jobs in worker processes: the same blocks as in one process, in bounded memory, ended when they are cancelled."""

import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from usufruct.compute import CacheSettings, CarriedBlocks, WorkerPool, compute, execution, work
from usufruct.compute.execution import TaskExecutor
from usufruct.content import BlockFiles, Cid, EmbeddedBlockStore
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ComputationCancelledError,
    ContainerError,
    WorkerError,
    WrongKeyDomainError,
)
from usufruct.he.container import Ciphertext, Form, encode, expand_seed
from usufruct.he.kernels import (
    LINEAR,
    SUM,
    BundleShape,
    Kernel,
    KernelParameters,
    LinearParameters,
    SumParameters,
    run,
)
from usufruct.he.parameters import BFV_LINEAR

N, Q = BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.coeff_modulus
KEY = bytes(range(32))
N_CHUNKS, N_FEATURES = 3, 5
SHAPE = BundleShape(
    n_rows=N_CHUNKS * N - 7, n_features=N_FEATURES, max_abs=2, max_l2=4, key_id=KEY, parameters=BFV_LINEAR
)
MASK = np.arange(SHAPE.n_rows) % 5 != 2
WEIGHTS = ((5, 0, -9, 1, 2), (1, 1, 1, -7, 0))
JOBS: dict[str, tuple[Kernel, KernelParameters]] = {
    "rows": (LINEAR, LinearParameters(output="rows", weights=WEIGHTS, bias=(4, -1))),
    "sum": (LINEAR, LinearParameters(output="sum", weights=((1, 0, -1, 0, 1),), bias=(-3,))),
    "columns": (SUM, SumParameters()),
}


def sealed(chunk: int, feature: int, key: bytes = KEY) -> bytes:
    rng = np.random.default_rng([chunk, feature])
    seed = rng.bytes(32)
    c0, c1 = rng.integers(0, Q, N, dtype=np.uint64), expand_seed(seed, BFV_LINEAR, key)
    return encode(Ciphertext(form=Form.SEEDED, parameters=BFV_LINEAR, key_id=key, c0=c0, c1=c1, seed=seed))


BLOCKS = {
    (chunk, feature): sealed(chunk, feature) for chunk in range(N_CHUNKS) for feature in range(N_FEATURES)
}
CIDS = {key: Cid.of(block) for key, block in BLOCKS.items()}


def cid_of(chunk: int, feature: int) -> Cid:
    return CIDS[chunk, feature]


def in_this_process(name: str) -> dict[int, bytes]:
    return dict(run(*JOBS[name], SHAPE, lambda chunk, feature: BLOCKS[chunk, feature], MASK))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> Iterator[BlockFiles]:
    with EmbeddedBlockStore(tmp_path / "store") as store:
        store.put_many(list(BLOCKS.values()), pin="test")
        yield store.files


class Inline:
    """An executor that does the work where it is called: for faults, and to see what is handed out."""

    in_flight = 2
    failures = ()

    def __init__(self) -> None:
        self.carried_out = 0

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        self.carried_out += 1
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def check(self) -> None:
        """Nobody dies here."""


def job(name: str, executor: TaskExecutor, files: object, **changes: object) -> Iterator[tuple[int, bytes]]:
    return compute(*JOBS[name], SHAPE, MASK, cid_of=cid_of, blocks=files, executor=executor, **changes)


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other nodes of this machine have leases of their own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def leases() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("usufruct-lease-*"))


@pytest.mark.parametrize("name", sorted(JOBS))
@pytest.mark.parametrize("carried", [False, True])
def test_worker_processes_give_the_blocks_of_one_process(
    name: str, carried: bool, pool: WorkerPool, files: BlockFiles
) -> None:
    told: list[tuple[int, int]] = []
    made = dict(job(name, pool, files, carried=carried, progress=lambda *done: told.append(done)))
    assert made == in_this_process(name)
    assert told == [(number, told[-1][1]) for number in range(1, told[-1][1] + 1)]
    assert not leases()


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_cold_and_a_warm_cache_of_expansions_change_no_block(
    name: str, files: BlockFiles, tmp_path: Path
) -> None:
    cache = CacheSettings(path=tmp_path / "cache", limit_bytes=3_000_000)
    for _ in range(2):
        assert dict(job(name, Inline(), files, cache=cache)) == in_this_process(name)
    entry_bytes = N * BFV_LINEAR.residue_bits // 8
    opened = work._open_cache(cache, entry_bytes)
    expected = {"rows": 15, "sum": 9, "columns": 15}[name]
    assert (opened.hits, opened.misses, opened.rejected) == (expected, expected, 0)
    assert (tmp_path / f"cache.{entry_bytes}").stat().st_size <= cache.limit_bytes


@pytest.mark.parametrize("broken", ["no room", "no directory", "read error"])
def test_a_cache_that_cannot_be_used_changes_no_block(
    broken: str, files: BlockFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "absent" if broken == "no directory" else tmp_path
    cache = CacheSettings(path=place / "cache", limit_bytes=100 if broken == "no room" else 3_000_000)
    for _ in range(2):
        assert dict(job("rows", Inline(), files, cache=cache)) == in_this_process("rows")
        if broken == "read error":
            opened = work._open_cache(cache, N * BFV_LINEAR.residue_bits // 8)
            opened._file, unreadable = os.open(cache.path, os.O_CREAT | os.O_WRONLY, 0o600), opened._file
            os.close(unreadable)


def test_poisoned_cache_is_expanded_over_and_never_reaches_a_result(
    files: BlockFiles, tmp_path: Path
) -> None:
    cache = CacheSettings(path=tmp_path / "cache", limit_bytes=3_000_000)
    dict(job("rows", Inline(), files, cache=cache))
    entry_bytes = N * BFV_LINEAR.residue_bits // 8
    path = tmp_path / f"cache.{entry_bytes}"
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    raw[4096 + 80_000 :] ^= 1
    path.write_bytes(raw.tobytes())
    assert dict(job("rows", Inline(), files, cache=cache)) == in_this_process("rows")
    assert work._open_cache(cache, entry_bytes).rejected > 0


def test_poisoned_cache_a_job_of_another_key_domain_that_names_a_block_leaves_nothing_for_it(
    files: BlockFiles, tmp_path: Path
) -> None:
    """The wrong job is refused, but only after its seeds were expanded under the wrong key."""
    cache = CacheSettings(path=tmp_path / "cache", limit_bytes=3_000_000)
    other = replace(SHAPE, key_id=bytes(32))
    with pytest.raises(WrongKeyDomainError):
        list(compute(*JOBS["rows"], other, MASK, cid_of=cid_of, blocks=files, executor=Inline(), cache=cache))
    assert dict(job("rows", Inline(), files, cache=cache)) == in_this_process("rows")


def test_malicious_store_a_block_with_other_bytes_is_refused_by_the_worker(
    pool: WorkerPool, files: BlockFiles
) -> None:
    path = files.path_of(CIDS[1, 2])
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BlockMismatchError):
        list(job("rows", pool, files))
    path.unlink()
    with pytest.raises(BlockNotFoundError):
        list(job("rows", pool, files))
    assert not leases()


def test_malicious_peer_a_well_named_block_that_is_no_ciphertext_fails_the_job_and_not_the_pool(
    pool: WorkerPool, files: BlockFiles
) -> None:
    wrong = bytearray(BLOCKS[0, 0])
    wrong[75:82] = b"\xff" * 7
    blocks = {CIDS[key]: block for key, block in BLOCKS.items()} | {Cid.of(bytes(wrong)): bytes(wrong)}
    with pytest.raises(ContainerError):
        list(
            compute(
                *JOBS["rows"],
                SHAPE,
                MASK,
                cid_of=lambda chunk, feature: (
                    Cid.of(bytes(wrong)) if (chunk, feature) == (1, 1) else cid_of(chunk, feature)
                ),
                blocks=CarriedBlocks(blocks),
                executor=pool,
            )
        )
    assert dict(job("rows", pool, files)) == in_this_process("rows")


def test_a_killed_worker_fails_the_job_with_a_typed_error_and_the_next_job_gets_new_workers(
    files: BlockFiles, tmp_path: Path
) -> None:
    """Killed while it reads for its second task."""
    slow = SlowFiles(files, tmp_path / "reads")
    with WorkerPool(1) as pool:
        victim = pool.submit(os.getpid).result(60)
        stopped = threading.Event()

        def progress(done: int, total: int) -> None:
            if not stopped.is_set():
                os.kill(victim, signal.SIGKILL)
                stopped.set()

        with pytest.raises(WorkerError):
            list(job("rows", pool, slow, progress=progress))
        assert not leases()
        assert dict(job("rows", pool, files)) == in_this_process("rows")
        assert pool.submit(os.getpid).result(60) != victim


def die_while_writing() -> None:
    """From now on this process is killed when half of a message is written."""

    def half(connection: Connection, data: bytes) -> None:
        os.write(connection.fileno(), struct.pack("!i", len(data)) + bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send_bytes = half


def test_a_worker_killed_in_the_middle_of_a_result_fails_the_job_at_once_and_the_next_job_gets_new_workers(
    files: BlockFiles,
) -> None:
    with WorkerPool(2, initializer=die_while_writing) as pool:
        begun = time.monotonic()
        with pytest.raises(WorkerError, match="died"):
            list(job("rows", pool, files))
        assert time.monotonic() - begun < execution.TASK_SECONDS / 10
        assert not leases()
        pool._initializer = None
        assert dict(job("rows", pool, files)) == in_this_process("rows")


def test_a_cancelled_job_ends_in_the_middle_of_a_task_and_leaves_nothing_behind(
    files: BlockFiles, tmp_path: Path
) -> None:
    """The second block that the worker reads is a named pipe's end: it hangs until the job is cancelled."""
    cancelled = threading.Event()
    reads = tmp_path / "reads"
    with WorkerPool(1) as pool:
        threading.Thread(target=lambda: (_until(reads.exists), cancelled.set()), daemon=True).start()
        with pytest.raises(ComputationCancelledError):
            list(job("rows", pool, SlowFiles(files, reads), cancelled=cancelled.is_set))
        assert not leases()
        before = reads.stat().st_size
        assert dict(job("rows", pool, files)) == in_this_process("rows")
        assert reads.stat().st_size == before < len(BLOCKS)


class SlowFiles:
    """Notes every read, and takes so long for one that a job is surely cancelled before it is over."""

    def __init__(self, files: BlockFiles, reads: Path) -> None:
        self.files, self.reads = files, reads

    def read(self, cid: Cid) -> bytes:
        with self.reads.open("ab") as file:
            file.write(b".")
        time.sleep(0.2)
        return self.files.read(cid)

    def announce(self, cids: object) -> None:
        pass


def _until(condition) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_result_that_nobody_takes_stops_the_job_when_the_iterator_is_closed(files: BlockFiles) -> None:
    executor = Inline()
    results = job("rows", executor, files)
    next(results)
    assert len(leases()) == 1
    results.close()
    assert executor.carried_out == executor.in_flight < N_CHUNKS and not leases()


MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_compute import *

def main(n_chunks):
    from usufruct.content import EmbeddedBlockStore
    shape = replace(SHAPE, n_rows=n_chunks * N)
    block = sealed(0, 0)
    with EmbeddedBlockStore(Path(sys.argv[2])) as store:
        cid = store.put(block, pin="test")
        parameters = LinearParameters(output="rows", weights=WEIGHTS * 20, bias=(0,) * 40)
        made = compute(LINEAR, parameters, shape, np.ones(shape.n_rows, dtype=bool),
                       cid_of=lambda chunk, feature: cid, blocks=store.files, executor=Inline())
        print(sum(1 for _ in made), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

main(int(sys.argv[3]))
"""


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path) -> None:
    peaks = {}
    for n_chunks in (4, 40):
        command = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), str(tmp_path), str(n_chunks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results, peak_kib = map(int, done.stdout.split())
        assert results == n_chunks * 40
        peaks[n_chunks] = peak_kib
    # Results of 36 more chunks are 80 MB, results of the two under way 4.
    assert peaks[40] - peaks[4] < 16_000
