"""The embedded block store: what it promises, and what crashes, crowds, full disks and liars do to it."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from usufruct.content import MAX_BLOCK_BYTES, Cid, EmbeddedBlockStore, embedded
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ContentError,
    StoreFullError,
)

BLOCK_BYTES = 27_000


def block(number: int, size_bytes: int = BLOCK_BYTES) -> bytes:
    return random.Random(number).randbytes(size_bytes)


def file_of(root: Path, cid: Cid) -> Path:
    return root / "blocks" / cid.digest[:1].hex() / str(cid)


def files(root: Path) -> set[str]:
    return {path.name for path in (root / "blocks").glob("*/*")}


def staged(root: Path) -> list[Path]:
    return list((root / "staging").glob("*/*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blockstore"


@pytest.fixture
def store(root: Path) -> Iterator[EmbeddedBlockStore]:
    with EmbeddedBlockStore(root) as opened:
        yield opened


def test_all_is_there_after_reopening(root: Path) -> None:
    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        loose = store.put(block(2))
    with EmbeddedBlockStore(root) as store:
        assert set(store.cids()) == {kept, loose}
        assert store.pins(kept) == {"bundle"}
        assert store.usage_bytes() == 2 * BLOCK_BYTES
    assert list((root / "staging").iterdir()) == []


def test_directories_and_files_are_the_owners_alone(root: Path, store: EmbeddedBlockStore) -> None:
    previous = os.umask(0)
    try:
        store.put(block(1), pin="bundle")
    finally:
        os.umask(previous)
    for path in [root, *root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


@pytest.mark.parametrize("damage", ["first", "last", "truncated", "longer", "swapped", "empty"])
def test_tampered_block_on_disk_is_never_handed_out(
    root: Path, store: EmbeddedBlockStore, damage: str
) -> None:
    data = block(1)
    cid = store.put(data)
    damaged = {
        "first": flip(data, 0),
        "last": flip(data, len(data) - 1),
        "truncated": data[:-1],
        "longer": data + b"\0",
        "swapped": block(2),
        "empty": b"",
    }[damage]
    file_of(root, cid).write_bytes(damaged)
    with pytest.raises(BlockMismatchError):
        store.get(cid)


def test_path_traversal_by_symlink_is_not_followed(
    root: Path, tmp_path: Path, store: EmbeddedBlockStore
) -> None:
    data = block(1)
    cid = store.put(data)
    outside = tmp_path / "outside"
    outside.write_bytes(data)
    file_of(root, cid).unlink()
    file_of(root, cid).symlink_to(outside)
    with pytest.raises(ContentError):
        store.get(cid)


def test_something_else_than_a_file_is_a_mismatch(root: Path, store: EmbeddedBlockStore) -> None:
    cid = store.put(block(1))
    file_of(root, cid).unlink()
    os.mkfifo(file_of(root, cid))
    with pytest.raises(BlockMismatchError):
        store.get(cid)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount], capture_output=True)
    if tried.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with EmbeddedBlockStore(mount / "store") as store:
            kept = []
            with pytest.raises(StoreFullError, match="full"):
                for number in range(1000):
                    kept.append(store.put(block(number), pin="bundle"))
            assert 20 < len(kept) < 100
            assert files(mount / "store") == {str(cid) for cid in kept}
            assert staged(mount / "store") == []
            assert all(store.get(cid) == block(n) for n, cid in enumerate(kept))
            for cid in kept[:10]:
                store.unpin(cid, "bundle")
            assert store.gc() == 10
            store.put(block(2000), pin="bundle")
            with pytest.raises(StoreFullError, match="full"):
                for number in range(3000, 4000):
                    kept.append(store.put(block(number), pin="bundle"))
        with EmbeddedBlockStore(mount / "store") as store:
            assert set(store.cids()) == {*kept[10:], Cid.of(block(2000))}
            store.unpin(kept[-1], "bundle")
            assert store.gc() == 1
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_write_cut_short_by_the_system_is_a_full_store(root: Path) -> None:
    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            with pytest.raises(StoreFullError):
                store.put_many([block(2), block(3, MAX_BLOCK_BYTES)], pin="bundle")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(store.cids()) == [kept]
        assert files(root) == {str(kept)}
        assert staged(root) == []
        assert store.usage_bytes() == BLOCK_BYTES


def test_a_commit_that_fails_takes_its_files_back(root: Path) -> None:
    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        with sqlite3.connect(root / "catalogue.db") as spoiler:
            spoiler.execute(
                "CREATE TRIGGER spoil BEFORE INSERT ON pins WHEN NEW.reason = 'late'"
                " BEGIN SELECT RAISE(ABORT, 'spoilt'); END"
            )
        spoiler.close()
        with pytest.raises(ContentError, match="spoilt"):
            store.put(block(2), pin="late")
        assert list(store.cids()) == [kept]
        assert files(root) == {str(kept)}
        assert staged(root) == []


def test_a_disk_that_fails_after_the_rename_leaves_no_file_without_a_row(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_sync(path: Path) -> None:
        if path.parent == root / "blocks":
            raise OSError(errno.EIO, "input/output error")

    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        with monkeypatch.context() as faults:
            faults.setattr(embedded, "sync_directory", failing_sync)
            with pytest.raises(ContentError, match="input/output"):
                store.put_many([block(1), block(2), block(3)], pin="late")
        assert list(store.cids()) == [kept]
        assert files(root) == {str(kept)}
        assert staged(root) == []
        assert store.get(kept) == block(1)
        assert store.pins(kept) == {"bundle"}


PUT_UNTIL_KILLED = """
import random, sys
from pathlib import Path
from usufruct.content import EmbeddedBlockStore
store = EmbeddedBlockStore(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    number += 3
    blocks = [random.Random(n).randbytes(27_000) for n in (number, number + 1, number + 2)]
    for cid in store.put_many(blocks, pin="run"):
        print(cid, flush=True)
"""


def start_putting(root: Path, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUT_UNTIL_KILLED, str(root), str(first)], stdout=subprocess.PIPE, text=True
    )


def test_kill_nine_in_the_middle_of_puts_loses_nothing_acknowledged(root: Path) -> None:
    acknowledged: list[Cid] = []
    for round_number in range(6):
        process = start_putting(root, 1_000_000 * round_number)
        assert process.stdout is not None
        acknowledged.append(Cid.parse(process.stdout.readline().strip()))
        time.sleep(random.Random(round_number).uniform(0.01, 0.25))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")
        process.wait()
        acknowledged += [Cid.parse(line) for line in lines[:-1] if line]
        with EmbeddedBlockStore(root) as store:
            held = set(store.cids())
            assert held >= set(acknowledged)
            for cid in held:
                assert len(store.get(cid)) == BLOCK_BYTES
                assert store.pins(cid) == {"run"}
            assert files(root) == {str(cid) for cid in held}
            assert staged(root) == []
            assert store.usage_bytes() == BLOCK_BYTES * len(held)
            assert len(held) % 3 == 0
    assert len(acknowledged) > 6


def test_files_that_a_crash_left_without_a_row_go_at_the_next_open(root: Path) -> None:
    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        orphan = Cid.of(block(2))
        file_of(root, orphan).parent.mkdir(exist_ok=True)
        file_of(root, orphan).write_bytes(block(2))
        assert not store.has(orphan)
        with pytest.raises(BlockNotFoundError):
            store.get(orphan)
    dead = root / "staging" / "0123456789abcdef"
    dead.mkdir()
    (dead / "half").write_bytes(b"half a block")
    with EmbeddedBlockStore(root) as store:
        assert files(root) == {str(kept)}
        assert not dead.exists()


def leave_orphan(root: Path, number: int) -> Cid:
    """A file without a row."""
    orphan = Cid.of(block(number))
    file_of(root, orphan).write_bytes(block(number))
    return orphan


def test_gc_looks_at_no_file_but_those_it_removes_until_a_session_died(
    root: Path, store: EmbeddedBlockStore
) -> None:
    kept, loose = store.put(block(1), pin="bundle"), store.put(block(2))
    orphan = leave_orphan(root, 3)
    assert store.gc() == 1
    assert not store.has(loose)
    assert files(root) == {str(kept), str(orphan)}
    (root / "staging" / "0123456789abcdef").mkdir()
    assert store.gc() == 0
    assert files(root) == {str(kept)}
    late = leave_orphan(root, 4)
    assert store.gc() == 0
    assert files(root) == {str(kept), str(late)}


KILLED_AT_THE_FIRST_UNLINK = """
import os, signal, sys
from pathlib import Path
from usufruct.content import EmbeddedBlockStore
store = EmbeddedBlockStore(Path(sys.argv[1]))
Path.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
store.gc()
"""


def test_a_kill_between_the_rows_deletion_and_the_unlinks_leaves_nothing_that_counts(root: Path) -> None:
    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        loose = store.put_many([block(2), block(3)])
        command = [sys.executable, "-c", KILLED_AT_THE_FIRST_UNLINK, str(root)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert files(root) == {str(cid) for cid in (kept, *loose)}
        assert list(store.cids()) == [kept]
        with pytest.raises(BlockNotFoundError):
            store.get(loose[0])
        with EmbeddedBlockStore(root):
            assert files(root) == {str(kept)}


def test_a_block_that_is_put_again_before_its_file_is_unlinked_keeps_it(
    root: Path, store: EmbeddedBlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_many([block(1), block(2)])
    drop = store._catalogue.drop_unkept

    def drop_and_put_again() -> int:
        removed = drop()
        store.put(block(1), pin="again")
        return removed

    monkeypatch.setattr(store._catalogue, "drop_unkept", drop_and_put_again)
    assert store.gc() == 2
    assert store.get(Cid.of(block(1))) == block(1)
    assert files(root) == {str(Cid.of(block(1)))}


@pytest.mark.parametrize("then", ["gc", "reopen"])
@pytest.mark.parametrize("during", ["gc", "put"])
def test_files_that_could_not_be_unlinked_go_with_the_next_gc_or_open(
    root: Path, monkeypatch: pytest.MonkeyPatch, during: str, then: str
) -> None:
    def failing(path: Path, **_: object) -> None:
        if path.is_relative_to(root / "blocks"):
            raise OSError(errno.EIO, "input/output error")

    with EmbeddedBlockStore(root) as store:
        kept = store.put(block(1), pin="bundle")
        if during == "gc":
            store.put_many([block(2), block(3)])
        with monkeypatch.context() as faults, pytest.raises(ContentError, match="input/output"):
            faults.setattr(Path, "unlink", failing)
            if during == "gc":
                store.gc()
            faults.setattr(embedded, "sync_directory", failing)
            store.put_many([block(2), block(3)])
        assert len(files(root)) == 3
        assert list(store.cids()) == [kept]
        if then == "gc":
            store.gc()
            assert files(root) == {str(kept)}
    with EmbeddedBlockStore(root):
        assert files(root) == {str(kept)}
    assert list((root / "staging").iterdir()) == []


def test_opening_leaves_the_staging_of_live_processes_alone(root: Path) -> None:
    with EmbeddedBlockStore(root) as first:
        live = set((root / "staging").iterdir())
        (next(iter(live)) / "being written").write_bytes(b"half")
        with EmbeddedBlockStore(root) as second:
            assert live < set((root / "staging").iterdir())
            assert len(staged(root)) == 1
            second.put(block(1))
        assert first.get(Cid.of(block(1))) == block(1)
        (next(iter(live)) / "being written").unlink()


def test_two_processes_putting_the_same_blocks_do_not_disturb_each_other(root: Path) -> None:
    writers = [start_putting(root, 0) for _ in range(2)]
    seen: list[set[str]] = []
    for process in writers:
        assert process.stdout is not None
        seen.append({process.stdout.readline().strip() for _ in range(60)})
    for process in writers:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert seen[0] == seen[1]
    with EmbeddedBlockStore(root) as store:
        held = set(store.cids())
        assert {Cid.parse(text) for text in seen[0]} <= held
        assert all(len(store.get(cid)) == BLOCK_BYTES for cid in held)
        assert store.usage_bytes() == BLOCK_BYTES * len(held)


def test_pinned_puts_survive_a_collector_that_hardly_rests(root: Path) -> None:
    stop = threading.Event()

    def collect() -> None:
        with EmbeddedBlockStore(root) as other:
            while not stop.is_set():
                other.gc()
                time.sleep(0.001)

    collector = threading.Thread(target=collect)
    with EmbeddedBlockStore(root) as store:
        store.put_many([block(n, 500) for n in range(100)])
        collector.start()
        try:
            cids = [store.put(block(n, 500), pin="bundle") for n in range(100)]
        finally:
            stop.set()
            collector.join()
        assert [store.get(cid) for cid in cids] == [block(n, 500) for n in range(100)]


def test_a_catalogue_from_the_future_is_not_touched(root: Path) -> None:
    EmbeddedBlockStore(root).close()
    with sqlite3.connect(root / "catalogue.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ContentError, match="version 99"):
        EmbeddedBlockStore(root)


def test_a_catalogue_that_is_no_database_is_a_content_error(root: Path) -> None:
    root.mkdir()
    (root / "catalogue.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(ContentError):
        EmbeddedBlockStore(root)


def test_a_root_that_is_a_file_is_a_content_error(root: Path) -> None:
    root.write_bytes(b"")
    with pytest.raises(ContentError):
        EmbeddedBlockStore(root)
