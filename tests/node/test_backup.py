"""A home in one file and back: whole, private, while the node writes, and never half."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node_fixture import ROLES
from usufruct.content import Cid, Codec, EmbeddedBlockStore, dag
from usufruct.errors import (
    BackupError,
    BlockMismatchError,
    ConfigurationError,
    StoreFullError,
    UsufructError,
    WrongPassphraseError,
)
from usufruct.home import Home
from usufruct.keys import sealed
from usufruct.keys.keystore import KeyStore, derive, read_passphrase
from usufruct.keys.sealed import SealedReader, SealedWriter
from usufruct.records import JobId
from usufruct_node import backup
from usufruct_node.backup import BACKED_UP, back_up, restore, size_of
from usufruct_node.enrol import create_home_with_passphrase_files
from usufruct_node.holdings import Holdings, Purpose
from usufruct_node.index import Index
from usufruct_node.roles.journal import Journal, OwnRelease, OwnVerdict

LEFT_OUT = {
    "api.json",
    "api.token",
    "authority.passphrase",
    "authority.transactions.lock",
    "custodian.passphrase",
    "custodian.sock",
    "node.lock",
    "node.log",
    "node.passphrase",
    "node.transactions.lock",
}
JOB = JobId(b"\x07" * 32)
WORD = b"\x05" * 32


@pytest.fixture(autouse=True, scope="module")
def _derived_once() -> Iterator[None]:
    """The same function, remembered: each derivation costs 64 MiB and a good part of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "derive", functools.cache(derive))
        yield


def block(number: int, size: int = 3000) -> bytes:
    return number.to_bytes(8, "big") * (size // 8)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home that has lived: blocks under several pins, holdings, a verdict and a release."""
    home = Home(tmp_path_factory.mktemp("lived") / "home")
    create_home_with_passphrase_files(home.root, name="north", roles=ROLES)
    Index(home.index_database).close()
    (home.root / "node.toml").write_text("workers = 2\n")
    holdings, journal = Holdings(home.node_database), Journal(home.node_database)
    with EmbeddedBlockStore(home.blocks) as store:
        cids = store.put_many([block(n) for n in range(6)], pin="bundle:one")
        store.pin(cids[3], "job:two")
        envelope = store.put(dag.encode({"sealed": b"release"}), Codec.DAG_CBOR, pin="result:three")
        store.put(b"garbage, pinned by nobody")
    holdings.add(cids, Purpose.BUNDLE, WORD)
    journal.keep_verdict(JOB, OwnVerdict(result_digest=WORD, possession=WORD, salt=WORD))
    journal.keep_release(JOB, OwnRelease(envelope=envelope, sigma_micro=5))
    holdings.close()
    journal.close()
    return home


@pytest.fixture
def home(lived: Home, tmp_path: Path) -> Home:
    """A copy for one test to change."""
    return Home(shutil.copytree(lived.root, tmp_path / "home"))


@pytest.fixture
def passphrase(home: Home) -> str:
    return read_passphrase(home.node_passphrase)


def blocks_of(home: Home) -> dict[Cid, tuple[bytes, frozenset[str]]]:
    with EmbeddedBlockStore(home.blocks) as store:
        return {cid: (store.get(cid), store.pins(cid)) for cid in store.cids() if store.pins(cid)}


def rows_of(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        return list(db.iterdump())
    finally:
        db.close()


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_restored_home_equals_the_one_that_was_backed_up(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    archive, target = tmp_path / "archive", tmp_path / "other" / "home"
    done: list[int] = []
    made = back_up(home, archive, passphrase, advance=done.append)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert 0 < sum(done) <= size_of(home)
    found = restore(archive, target, passphrase)
    assert found == made
    assert (made.organisation, made.blocks, made.indexed_block) == ("north", 7, -1)

    restored = Home.at(target)
    assert left_in(target) == (BACKED_UP & left_in(home.root)) | {"blocks"}
    assert not left_in(target) & LEFT_OUT
    for name in BACKED_UP & left_in(home.root):
        if name.endswith(".db"):
            assert rows_of(target / name) == rows_of(home.root / name)
        else:
            assert (target / name).read_bytes() == (home.root / name).read_bytes()
        assert stat.S_IMODE((target / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert blocks_of(restored) == blocks_of(home)
    journal = Journal(restored.node_database)
    kept = journal.verdict(JOB)
    assert kept is not None and kept.salt == WORD
    journal.close()
    KeyStore.open(restored.authority_keystore, read_passphrase(home.authority_passphrase))
    assert left_in(target.parent) == {"home"}
    assert not [name for name in left_in(home.root) if name.startswith(".")]


def test_an_archive_shows_nothing_of_what_it_holds(home: Home, passphrase: str, tmp_path: Path) -> None:
    back_up(home, tmp_path / "archive", passphrase)
    data = (tmp_path / "archive").read_bytes()
    for hidden in (b"north", b"SQLite", block(7)[:64], WORD, b"node.keys", passphrase.encode()):
        assert hidden not in data
    assert passphrase.encode() not in open_frames(data, passphrase)
    assert read_passphrase(home.authority_passphrase).encode() not in open_frames(data, passphrase)


def test_every_file_of_a_running_nodes_home_is_backed_up_or_left_out_on_purpose(
    node_home: Home, tmp_path: Path
) -> None:
    passphrase = read_passphrase(node_home.node_passphrase)
    made = back_up(node_home, tmp_path / "archive", passphrase)
    assert made.indexed_block >= 0
    present = {name.removesuffix("-wal").removesuffix("-shm") for name in left_in(node_home.root)}
    assert present - {"blocks"} <= BACKED_UP | LEFT_OUT
    assert {"node.db", "index.db", "network.json"} <= set(made.files)
    restore(tmp_path / "archive", tmp_path / "restored", passphrase)
    index = Index(tmp_path / "restored" / "index.db")
    cursor = index.cursor()
    assert cursor is not None and cursor.number == made.indexed_block
    index.close()


def test_a_backup_of_a_node_that_goes_on_writing_never_lacks_a_block_that_a_row_names(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    """At every step of the backup the node stores a block and then a row that names it, as roles do."""
    holdings, journal = Holdings(home.node_database), Journal(home.node_database)
    store = EmbeddedBlockStore(home.blocks)
    numbers = iter(range(1000, 10_000))

    def write(_: int = 0) -> None:
        number = next(numbers)
        cid = store.put(block(number), pin=f"result:{number}")
        holdings.add([cid], Purpose.RESULT, number.to_bytes(32, "big"))
        journal.keep_release(JobId(number.to_bytes(32, "big")), OwnRelease(envelope=cid, sigma_micro=1))

    write()
    made = back_up(home, tmp_path / "archive", passphrase, advance=write)
    written = next(numbers)
    assert written > 1010
    restore(tmp_path / "archive", tmp_path / "restored", passphrase)
    with EmbeddedBlockStore(tmp_path / "restored" / "blocks") as restored:
        named = Holdings(tmp_path / "restored" / "node.db")
        releases = sqlite3.connect(tmp_path / "restored" / "node.db")
        rows = releases.execute("SELECT cid FROM holding UNION SELECT envelope FROM release").fetchall()
        assert len(rows) > 7
        assert [Cid.from_bytes(row[0]) for row in rows if not restored.has(Cid.from_bytes(row[0]))] == []
        releases.close()
        named.close()
    assert made.blocks > len(rows)
    for resource in (holdings, journal, store):
        resource.close()


def test_a_block_that_is_collected_meanwhile_is_no_error(home: Home, passphrase: str, tmp_path: Path) -> None:
    store = EmbeddedBlockStore(home.blocks)

    def collect(_: int) -> None:
        store.unpin_all("bundle:one")
        store.gc()

    made = back_up(home, tmp_path / "archive", passphrase, advance=collect)
    assert made.blocks == 2
    restore(tmp_path / "archive", tmp_path / "restored", passphrase)
    store.close()


def test_a_damaged_block_stops_the_backup_and_leaves_no_archive(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    victim = next(path for path in (home.blocks / "blocks").rglob("*") if path.is_file())
    data = bytearray(victim.read_bytes())
    data[0] ^= 1
    victim.write_bytes(data)
    with pytest.raises(BlockMismatchError):
        back_up(home, tmp_path / "archive", passphrase)
    assert left_in(tmp_path) == {"home"}


def rot(path: Path) -> None:
    """Two pages in the middle go bad: SQLite opens the file as ever."""
    db = sqlite3.connect(path)
    with db:
        db.execute("CREATE TABLE ballast (bytes BLOB)")
        db.executemany("INSERT INTO ballast VALUES (?)", [(os.urandom(300),)] * 3000)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(b"\xff" * 8192)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "rotten": rot,
    "garbled": lambda path: path.write_bytes(b"no database" * 1000),
}


@pytest.mark.parametrize("name", ["node.db", "consent.db", "custodian.db"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_named_while_it_can_still_be_mended_and_leaves_no_archive(
    home: Home, passphrase: str, tmp_path: Path, name: str, damage: str
) -> None:
    back_up(home, tmp_path / "before", passphrase)
    DAMAGES[damage](home.root / name)
    with pytest.raises(BackupError, match=f"^{name} is damaged") as raised:
        back_up(home, tmp_path / "archive", passphrase)
    assert "newest backup" in raised.value.hint
    assert left_in(tmp_path) == {"home", "before"}
    assert not [left for left in left_in(home.root) if left.startswith(".")]


@pytest.mark.parametrize("damage", [*DAMAGES, "empty"])
def test_a_damaged_index_is_left_out_since_it_is_built_anew(
    home: Home, passphrase: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (DAMAGES | {"empty": lambda path: path.write_bytes(b"")})[damage](home.index_database)
    made = back_up(home, tmp_path / "archive", passphrase)
    assert "index.db" not in made.files and made.indexed_block == -1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "index.db is damaged" in caplog.text and "\n" not in caplog.messages[0]
    assert restore(tmp_path / "archive", tmp_path / "restored", passphrase) == made
    assert "index.db" not in left_in(tmp_path / "restored")


def test_what_a_kill_left_goes_with_the_next_backup_or_restore_but_not_what_others_work_on(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    def leave(path: Path) -> Path:
        path.mkdir()
        (path / "consent.db").write_bytes(b"in the clear")
        return path

    @contextmanager
    def in_use(path: Path) -> Iterator[None]:
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.close(handle)

    snapshots = [leave(home.root / f".backup-{name}") for name in ("dead", "live")]
    halves = [leave(tmp_path / f".restored.restoring-{name}") for name in ("dead", "live")]
    others = leave(tmp_path / ".other.restoring-dead")
    working: set[str] = set()

    def advance(_: int) -> None:
        if not working:
            working.update(name for name in left_in(home.root) if name.startswith("."))
            back_up(home, tmp_path / "second", passphrase)
            assert working <= left_in(home.root)

    with in_use(snapshots[1]), in_use(halves[1]):
        back_up(home, tmp_path / "archive", passphrase, advance=advance)
        assert len(working) == 2
        restore(tmp_path / "archive", tmp_path / "restored", passphrase)
    assert [path for path in (*snapshots, *halves, others) if path.exists()] == [
        snapshots[1],
        halves[1],
        others,
    ]
    back_up(home, tmp_path / "third", passphrase)
    assert not [name for name in left_in(home.root) if name.startswith(".")]


def test_a_backup_overwrites_nothing_and_needs_the_passphrase(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    taken = tmp_path / "archive"
    taken.write_bytes(b"precious")
    with pytest.raises(ConfigurationError):
        back_up(home, taken, passphrase)
    assert taken.read_bytes() == b"precious"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError):
        back_up(home, link, passphrase)
    with pytest.raises(WrongPassphraseError):
        back_up(home, tmp_path / "other", "wrong")
    assert left_in(tmp_path) == {"home", "archive", "link"}


def test_an_archive_that_appears_while_another_is_made_is_not_replaced(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    target = tmp_path / "archive"
    with pytest.raises(ConfigurationError):
        back_up(home, target, passphrase, advance=lambda _: target.write_bytes(b"precious") and None)
    assert target.read_bytes() == b"precious"
    assert left_in(tmp_path) == {"home", "archive"}


def test_restoring_touches_no_directory_that_holds_something(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    back_up(home, tmp_path / "archive", passphrase)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"precious")
    for target in (tmp_path / "full", tmp_path / "full" / "file", home.root):
        with pytest.raises(ConfigurationError):
            restore(tmp_path / "archive", target, passphrase)
    assert (tmp_path / "full" / "file").read_bytes() == b"precious"
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "archive", tmp_path / "empty", passphrase)
    assert left_in(tmp_path) == {"home", "archive", "full", "empty"}


def test_a_full_disk_in_the_middle_of_a_restore_leaves_nothing(
    home: Home, passphrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(home, tmp_path / "archive", passphrase)
    real, synced = os.fsync, 0
    full_at: int | None = None

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced == full_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    restore(tmp_path / "archive", tmp_path / "whole", passphrase)
    assert synced > 3
    full_at, synced = synced // 2, 0
    with pytest.raises(StoreFullError):
        restore(tmp_path / "archive", tmp_path / "restored", passphrase)
    monkeypatch.undo()
    assert left_in(tmp_path) == {"home", "archive", "whole"}


# Hostile archives. Positive control: the same frames, untouched, restore.


def open_frames(data: bytes, passphrase: str) -> bytes:
    """The plaintext of an archive."""
    reader = SealedReader(io.BytesIO(data), passphrase)
    plain = bytearray()
    while True:
        try:
            plain += reader.read(1)
        except BackupError:
            return bytes(plain)


def split(plain: bytes) -> list[tuple[bytes, bytes]]:
    frames, at = [], 0
    while at < len(plain):
        size = int.from_bytes(plain[at + 1 : at + 5], "big")
        frames.append((plain[at : at + 1], plain[at + 5 : at + 5 + size]))
        at += 5 + size
    return frames


Frames = list[tuple[bytes, bytes]]


def join(frames: Frames) -> bytes:
    return b"".join(kind + len(payload).to_bytes(4, "big") + payload for kind, payload in frames)


def sealed_archive(path: Path, plain: bytes, passphrase: str) -> Path:
    with path.open("wb") as file:
        writer = SealedWriter(file, passphrase)
        writer.write(plain)
        writer.finish()
    return path


def position(frames: Frames, kind: bytes, name: str = "") -> int:
    return next(
        i for i, (k, p) in enumerate(frames) if k == kind and (not name or dag.decode_map(p)["name"] == name)
    )


def renamed(old: str, new: str) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        at = position(frames, b"F", old)
        frames[at] = (b"F", dag.encode(dag.decode_map(frames[at][1]) | {"name": new}))

    return change


def manifest_says(**changes: object) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames[-1] = (b"M", dag.encode(dag.decode_map(frames[-1][1]) | changes))

    return change


def first_block(change: Callable[[dict[str, object]], object]) -> Callable[[Frames], None]:
    def apply(frames: Frames) -> None:
        at = position(frames, b"B")
        record: dict[str, object] = dict(dag.decode_map(frames[at][1]))
        change(record)
        frames[at] = (b"B", dag.encode(record))

    return apply


def flipped_data(frames: Frames) -> None:
    at = position(frames, b"B") + 1
    frames[at] = (b"D", bytes([frames[at][1][0] ^ 1]) + frames[at][1][1:])


def without(kind: bytes, name: str) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        at = position(frames, kind, name)
        end = at + 1
        while frames[end][0] == b"D":
            end += 1
        del frames[at:end]

    return change


def twice(name: str) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        at = position(frames, b"F", name)
        frames[at:at] = frames[at : at + 2]

    return change


def damaged_database(frames: Frames, name: str = "node.db") -> None:
    at = position(frames, b"F", name) + 1
    frames[at] = (b"D", frames[at][1][:100] + bytes(len(frames[at][1]) - 100))
    digest = hashlib.sha256(frames[at][1]).hexdigest()
    record = dag.decode_map(frames[-1][1])
    files = record["files"]
    assert isinstance(files, dict) and isinstance(files[name], dict)
    files[name]["sha256"] = digest
    frames[-1] = (b"M", dag.encode(record))


HOSTILE: dict[str, Callable[[Frames], object]] = {
    "a path that climbs": renamed("node.toml", "../outside"),
    "an absolute path": renamed("node.toml", "/tmp/usufruct-outside"),
    "a path into the blocks": renamed("node.toml", "blocks/catalogue.db"),
    "a passphrase file": renamed("node.toml", "node.passphrase"),
    "the restored home's own name": renamed("node.toml", "."),
    "an empty name": renamed("node.toml", ""),
    "a name with a zero byte": renamed("node.toml", "node.toml\0"),
    "a file twice": twice("node.keys"),
    "files in another order": lambda f: f.__setitem__(slice(1, 5), f[3:5] + f[1:3]),
    "a frame of an unknown kind, such as a link": lambda f: f.insert(1, (b"L", b"/etc/passwd")),
    "bytes that belong to nothing": lambda f: f.insert(1, (b"D", b"x")),
    "a second head": lambda f: f.insert(1, f[0]),
    "no head": lambda f: f.pop(0),
    "another head": lambda f: f.__setitem__(0, (b"H", dag.encode({"type": "usufruct/backup/2"}))),
    "a block under another block's name": flipped_data,
    "a block that is kept for nothing": first_block(lambda r: r.update(pins=[])),
    "a block with a malformed reason": first_block(lambda r: r.update(pins=[5])),
    "a block with a reason that cannot be printed": first_block(lambda r: r.update(pins=["\x1b[31m"])),
    "a block with one reason twice": first_block(lambda r: r.update(pins=["a", "a"])),
    "a block entry with more fields": first_block(lambda r: r.update(more=1)),
    "a block entry without its CID": first_block(lambda r: r.pop("cid")),
    "a block without its bytes": lambda f: f.pop(position(f, b"B") + 1),
    "a manifest that names fewer blocks": manifest_says(blocks=1),
    "a manifest of another size": manifest_says(block_bytes=1),
    "a manifest of another organisation": manifest_says(organisation="south"),
    "a manifest without files": manifest_says(files={}),
    "a manifest with more fields": manifest_says(more=1),
    "no manifest": lambda f: f.pop(),
    "something after the manifest": lambda f: f.append((b"D", b"x")),
    "no keys": without(b"F", "node.keys"),
    "no organisation": without(b"F", "organisation.json"),
    "a frame that is no record": lambda f: f.__setitem__(1, (b"F", b"\xff\xff")),
    "a damaged database whose checksum is right": damaged_database,
}  # fmt: skip


@pytest.fixture(scope="module")
def untouched(lived: Home, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The plaintext of an archive."""
    archive, passphrase = tmp_path_factory.mktemp("untouched") / "a", read_passphrase(lived.node_passphrase)
    back_up(lived, archive, passphrase)
    return open_frames(archive.read_bytes(), passphrase)


@pytest.fixture
def frames(untouched: bytes, home: Home) -> Frames:
    """The frames of an archive, for one test to change."""
    return split(untouched)


def test_frames_put_together_again_restore(frames: Frames, passphrase: str, tmp_path: Path) -> None:
    restore(sealed_archive(tmp_path / "same", join(frames), passphrase), tmp_path / "restored", passphrase)
    assert (tmp_path / "restored" / "organisation.json").exists()


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archive_with_the_right_passphrase_is_refused_and_leaves_nothing(
    frames: Frames, passphrase: str, tmp_path: Path, change: Callable[[Frames], object]
) -> None:
    change(frames)
    archive = sealed_archive(tmp_path / "hostile", join(frames), passphrase)
    with pytest.raises(UsufructError):
        restore(archive, tmp_path / "below" / "restored", passphrase)
    assert left_in(tmp_path) == {"home", "hostile", "below"}
    assert left_in(tmp_path / "below") == set()
    assert not Path("/tmp/usufruct-outside").exists()


def test_a_damaged_index_in_an_archive_costs_only_the_rebuilding(
    frames: Frames, passphrase: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As releases that did not look at what they copied may have made."""
    damaged_database(frames, "index.db")
    archive = sealed_archive(tmp_path / "older", join(frames), passphrase)
    found = restore(archive, tmp_path / "restored", passphrase)
    assert "index.db" not in {*found.files, *left_in(tmp_path / "restored")} and found.indexed_block == -1
    assert "index.db is damaged" in caplog.text
    assert blocks_of(Home.at(tmp_path / "restored"))


def test_hostile_lengths_are_refused_before_memory_is_taken(
    frames: Frames, passphrase: str, tmp_path: Path
) -> None:
    plain = join(frames[:1]) + b"F\xff\xff\xff\xff"
    archive = sealed_archive(tmp_path / "hostile", plain, passphrase)
    tracemalloc.start()
    with pytest.raises(BackupError):
        restore(archive, tmp_path / "restored", passphrase)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    for size in (-1, 1 << 62):
        entry = (b"F", dag.encode({"name": "node.db", "size_bytes": size}))
        archive = sealed_archive(tmp_path / "hostile", join([frames[0], entry, frames[-1]]), passphrase)
        with pytest.raises(BackupError):
            restore(archive, tmp_path / "restored", passphrase)
    assert left_in(tmp_path) == {"home", "hostile"}


def test_a_flipped_byte_or_a_cut_anywhere_in_the_file_leaves_nothing(
    home: Home, passphrase: str, tmp_path: Path
) -> None:
    back_up(home, tmp_path / "archive", passphrase)
    data = (tmp_path / "archive").read_bytes()
    mutant = tmp_path / "mutant"
    for at in {0, 50, 150, 250, *range(len(data) // 7, len(data), len(data) // 7), len(data) - 1}:
        for changed in (data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], data[:at]):
            mutant.write_bytes(changed)
            with pytest.raises(UsufructError):
                restore(mutant, tmp_path / "restored", passphrase)
    with pytest.raises(WrongPassphraseError):
        restore(tmp_path / "archive", tmp_path / "restored", "wrong")
    assert left_in(tmp_path) == {"home", "archive", "mutant"}


def test_memory_does_not_grow_with_the_store(home: Home, passphrase: str, tmp_path: Path) -> None:
    with EmbeddedBlockStore(home.blocks) as store:
        for number in range(100, 164):
            store.put(block(number, 1 << 20), pin="bundle:large")
    tracemalloc.start()
    back_up(home, tmp_path / "archive", passphrase)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.reset_peak()
    restore(tmp_path / "archive", tmp_path / "restored", passphrase)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
    assert blocks_of(Home.at(tmp_path / "restored")) == blocks_of(home)


def test_the_commands_say_what_they_did_and_refuse_with_a_hint(home: Home, tmp_path: Path) -> None:
    def usufruct_node(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "usufruct_node", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    archive, target = str(tmp_path / "archive"), str(tmp_path / "restored")
    made = usufruct_node("backup", archive, "--home", str(home.root), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["blocks"] == 7
    again = usufruct_node("backup", archive, "--home", str(home.root))
    assert again.returncode == 2 and "exists already" in again.stderr
    words = ("restore", archive, "--home", target, "--passphrase-file")
    assert usufruct_node(*words, str(home.authority_passphrase)).returncode == 4
    told = usufruct_node(*words, str(home.node_passphrase))
    assert told.returncode == 0 and "north" in told.stdout and "7 blocks" in told.stdout
    refused = usufruct_node(*words, str(home.node_passphrase))
    assert refused.returncode == 2 and "empty directory" in refused.stderr
    Path(archive).write_bytes(Path(archive).read_bytes()[:-1])
    damaged = usufruct_node(*words[:3], f"{target}-2", *words[4:], str(home.node_passphrase))
    assert damaged.returncode == 3 and "BackupError" in damaged.stderr


def test_files_that_are_in_no_backup_are_named_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text("utf-8")
    for name in (BACKED_UP | LEFT_OUT) - {"node.log"}:
        assert name in page, name
    assert backup.__doc__ and "Passphrases" in backup.__doc__
