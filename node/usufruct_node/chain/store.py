"""The chain's data directory: its lock, its record, its checkpoints and which journal continues them.

    chain.json                 what chain this is and from where it is rebuilt; replaced atomically
    checkpoint-<sequence>.json Anvil's state at the block that journal segment <sequence> continues
    journal-<sequence>.log     see `journal`
    lock, port, anvil.log      one process per directory; the port of the last run; Anvil's last words

A file that chain.json does not lead to is left over from an interrupted checkpoint and is removed.

Absent: running or reading the engine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usufruct.errors import ChainDataError, ConfigurationError, HomeInUseError
from usufruct_node.chain.journal import read_segment, segment_path, sync_directory, write_durably

RECORD_FILE = "chain.json"
_HASH = re.compile(r"0x[0-9a-f]{64}")
_SEGMENT = re.compile(r"journal-(\d{8})\.log")
_OWN_FILE = re.compile(r"(journal|checkpoint)-(\d{8})\.(log|json)(\.tmp)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state of the engine on disk."""

    number: int
    """The block at which it was taken."""

    block_hash: str
    sha256: str
    """Of the file's bytes, in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecord:
    """What chain a directory holds and from where it is rebuilt."""

    chain_id: int
    genesis_timestamp: int
    genesis_hash: str
    first_segment: int
    """The journal segment to replay first; it continues `checkpoint`, or the genesis without one."""

    checkpoint: Checkpoint | None


def checkpoint_path(home: Path, sequence: int) -> Path:
    """Return where the state that segment `sequence` continues lies."""
    return home / f"checkpoint-{sequence:08d}.json"


@contextmanager
def locked_home(home: Path) -> Iterator[None]:
    """Make `home` if need be and hold its lock; the kernel drops it when the process ends.

    Raises
    ------
    HomeInUseError
        If another process holds it.
    ConfigurationError
        If the directory cannot be made or written.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"the data directory {home} cannot be used: {exc}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(lock)
        raise HomeInUseError(f"another chain process runs on {home}") from exc
    try:
        yield
    finally:
        os.close(lock)


def load_record(home: Path) -> ChainRecord | None:
    """Return the record of `home`, or None for a new directory.

    Raises
    ------
    ChainDataError
        If the record is malformed, or is missing although there is a journal with content.
    """
    try:
        content = (home / RECORD_FILE).read_bytes()
    except FileNotFoundError as exc:
        if any(read_segment(path, last=True)[1] for path in home.glob("journal-*.log")):
            raise ChainDataError(f"{home} has a journal but no {RECORD_FILE}") from exc
        return None
    try:
        fields = json.loads(content)
        if fields.pop("version") != 1:
            raise ValueError("unknown version")
        found = fields.pop("checkpoint")
        checkpoint = None if found is None else Checkpoint(**found)
        record = ChainRecord(checkpoint=checkpoint, **fields)
        _check(record)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ChainDataError(f"{home / RECORD_FILE} is malformed: {exc}") from exc
    return record


def save_record(home: Path, record: ChainRecord) -> None:
    """Replace the record; durable on return."""
    write_durably(home / RECORD_FILE, json.dumps({"version": 1, **asdict(record)}, indent=1).encode() + b"\n")


def segments(home: Path, record: ChainRecord) -> list[Path]:
    """Return the segments to replay, oldest first.

    Raises
    ------
    ChainDataError
        If one is missing.
    """
    present = sorted(
        int(match[1])
        for path in home.iterdir()
        if (match := _SEGMENT.fullmatch(path.name)) and int(match[1]) >= record.first_segment
    )
    if not present or present != list(range(record.first_segment, present[-1] + 1)):
        raise ChainDataError(f"{home} lacks a journal segment from {record.first_segment} on; has {present}")
    return [segment_path(home, sequence) for sequence in present]


def write_state(path: Path, dump: str) -> str:
    """Write an answer of `anvil_dumpState` (hexadecimal of gzip) as Anvil loads it; durable on return.

    Returns
    -------
    sha256 :
        Of the file, in hexadecimal.

    Raises
    ------
    ChainDataError
        If the dump is not whole.
    OSError
        If the disk is full.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        try:
            inflate = zlib.decompressobj(wbits=31)
            waiting = bytes.fromhex(dump.removeprefix("0x"))
            while waiting and not inflate.eof:
                part = inflate.decompress(waiting, 1 << 20)
                waiting = inflate.unconsumed_tail
                digest.update(part)
                file.write(part)
        except (ValueError, zlib.error) as exc:
            raise ChainDataError(f"Anvil's dump cannot be unpacked: {exc}") from exc
        if not inflate.eof:
            raise ChainDataError("Anvil's dump is cut short")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return digest.hexdigest()


def check_state(path: Path, checkpoint: Checkpoint) -> None:
    """Raise `ChainDataError` unless the file is the one that was checkpointed."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ChainDataError(f"checkpoint {path.name} cannot be read: {exc}") from exc
    if found != checkpoint.sha256:
        raise ChainDataError(f"checkpoint {path.name} has changed since it was written")


def remove_superseded(home: Path, record: ChainRecord) -> None:
    """Remove checkpoints and segments that `record` does not lead to; what cannot be removed stays."""
    for path in home.iterdir():
        match = _OWN_FILE.fullmatch(path.name)
        if match is None:
            continue
        kind, sequence, temporary = match[1], int(match[2]), match[4]
        kept = sequence >= record.first_segment if kind == "journal" else sequence == record.first_segment
        if kind == "checkpoint" and record.checkpoint is None:
            kept = False
        if temporary or not kept:
            with suppress(OSError):
                path.unlink()


def _check(record: ChainRecord) -> None:
    integers: list[Any] = [record.chain_id, record.genesis_timestamp, record.first_segment]
    hashes: list[Any] = [record.genesis_hash]
    if record.checkpoint is not None:
        integers.append(record.checkpoint.number)
        hashes.append(record.checkpoint.block_hash)
        hashes.append(f"0x{record.checkpoint.sha256}")
    if not all(type(value) is int and value >= 0 for value in integers):
        raise ValueError("a number is no natural number")
    if not all(isinstance(value, str) and _HASH.fullmatch(value) for value in hashes):
        raise ValueError("a hash is malformed")
