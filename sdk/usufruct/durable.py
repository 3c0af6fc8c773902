"""Files and directories that must survive a crash, and their errors: what homes, keystores and block stores share."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from usufruct.errors import ContentError, StoreFullError, UsufructError

_AT_ONCE: Final = 8
"""Syncs that wait for the disk side by side; a journalling file system commits them together."""

Item = TypeVar("Item")

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of the operating system and of SQLite into ours.

    Raises
    ------
    StoreFullError
        If the disk or the file system's quota is full.
    ContentError
        On every other error.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StoreFullError(f"{what}: the disk is full") from exc
        raise ContentError(f"{what}: {exc.strerror or exc}") from exc
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorname", "") == "SQLITE_FULL":
            raise StoreFullError(f"{what}: the disk is full") from exc
        raise ContentError(f"{what}: {exc}") from exc


def make_directory(path: Path) -> None:
    """Make a directory of mode 0700 whose entry survives a crash; its parent exists or is made likewise."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Put a directory's entries on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def for_each(action: Callable[[Item], object], items: Collection[Item]) -> None:
    """Run what ends in a sync on every item, several at a time; all have ended when it returns or raises the first error."""
    if len(items) < 2:
        for item in items:
            action(item)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(items)), thread_name_prefix="sync") as pool:
        for _ in pool.map(action, items):
            pass


@contextlib.contextmanager
def new_file(target: Path, taken: UsufructError) -> Iterator[BinaryIO]:
    """A file of mode 0600 that appears under its name only when it is whole, and never in the place of another.

    Raises `taken` if there is something under that name.
    """
    if os.path.lexists(target):
        raise taken
    with _temporary(target) as (file, temporary):
        yield file
        _sync(file)
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            raise taken from None
        sync_directory(target.parent)


def write_private(target: Path, data: bytes) -> None:
    """Put a whole file of mode 0600 in the place of one that may be there; it survives a crash once this returns."""
    _replace(target, data, mode=0o600)


def write_public(target: Path, data: bytes) -> None:
    """As `write_private`, for what everybody may read: mode 0644."""
    _replace(target, data, mode=0o644)


def _replace(target: Path, data: bytes, *, mode: int) -> None:
    with _temporary(target) as (file, temporary):
        file.write(data)
        os.fchmod(file.fileno(), mode)
        _sync(file)
        temporary.replace(target)
        sync_directory(target.parent)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file of mode 0600 beside the target; under this name it is gone afterwards."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
