"""Looks whether what a store says that it has is there and whole, mends what is not, and copies one store into another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from usufruct.content.blockstore import BlockStore
from usufruct.content.cid import Cid
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ContentError,
    DeniedError,
    IntegrityError,
    UsufructError,
)

Fetch = Callable[[Cid], bytes]
"""Gets a block from elsewhere; what it returns is hashed."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A block of which the store's record is all that is right."""

    cid: Cid
    state: Literal["corrupt", "missing"]
    pins: frozenset[str]
    """Reasons for which it is kept; a block without any is no loss."""


@dataclass(frozen=True, slots=True)
class Unrepaired:
    """A damaged block that stays so."""

    cid: Cid
    error: UsufructError


def scan(store: BlockStore, *, progress: Callable[[int], None] | None = None) -> Iterator[Damage]:
    """Read and hash every block; memory stays flat, and others may use the store meanwhile.

    Parameters
    ----------
    progress :
        Called with the number of blocks that were looked at.

    Raises
    ------
    ContentError
        If the store itself fails.
    """
    for seen, cid in enumerate(store.cids(), start=1):
        try:
            store.get(cid)
        except BlockMismatchError:
            yield Damage(cid, "corrupt", store.pins(cid))
        except BlockNotFoundError:
            # It may have been collected since it was listed.
            if store.has(cid):
                yield Damage(cid, "missing", store.pins(cid))
        if progress is not None:
            progress(seen)


def repair(store: BlockStore, damaged: Iterable[Cid], fetch: Fetch) -> Iterator[Unrepaired]:
    """Fetch each damaged block and store it in the place of what is there; its pins stay.

    Yields those that could not be had; what was fetched is hashed before it is kept. A failure of the store itself is raised.
    """
    for cid in damaged:
        try:
            data = fetch(cid)
            cid.check(data)
        except (ContentError, DeniedError, IntegrityError) as exc:
            yield Unrepaired(cid, exc)
            continue
        store.put(data, cid.codec)


def copy_pinned(
    source: BlockStore, target: BlockStore, *, progress: Callable[[int], None] | None = None
) -> int:
    """Copy every pinned block with its reasons and return how many there were; may be repeated when it was interrupted.

    Raises
    ------
    BlockMismatchError, BlockNotFoundError
        If the source is damaged: repair it first.
    StoreFullError, ContentError
    """
    copied = 0
    for cid in source.cids():
        reasons = sorted(source.pins(cid))
        if not reasons:
            continue
        target.put(source.get(cid), cid.codec, pin=reasons[0])
        for reason in reasons[1:]:
            target.pin(cid, reason)
        copied += 1
        if progress is not None:
            progress(copied)
    return copied
