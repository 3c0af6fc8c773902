"""What both homes of blocks leave to their catalogue: pins, holds, sizes, and the order in which blocks are collected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from usufruct.content.catalogue import Catalogue
from usufruct.content.cid import Cid, Codec


class CataloguedStore(ABC):
    """The part of a `BlockStore` that knows no bytes; where these rest is the home's."""

    _catalogue: Catalogue

    def close(self) -> None:
        """Release the catalogue and this session's staging directory; closing twice is harmless."""
        self._catalogue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, data: bytes, codec: Codec = Codec.RAW, *, pin: str | None = None) -> Cid:
        """Store one block durably; see `BlockStore.put`."""
        return self.put_many([data], codec, pin=pin)[0]

    @abstractmethod
    def put_many(
        self, blocks: Sequence[bytes], codec: Codec = Codec.RAW, *, pin: str | None = None
    ) -> list[Cid]:
        """Store all of `blocks` or none; see `BlockStore.put_many`."""

    @abstractmethod
    def _collect(self) -> int:
        """Remove what nobody keeps, and what a crash left; return how many rows went."""

    def has(self, cid: Cid) -> bool:
        """Say whether the block is here."""
        return self._catalogue.has(cid)

    def size(self, cid: Cid) -> int:
        """Return the block's length in bytes; see `BlockStore.size`."""
        return self._catalogue.size(cid)

    def pin(self, cid: Cid, reason: str) -> None:
        """Keep the block for `reason`; see `BlockStore.pin`."""
        self._catalogue.pin(cid, reason)

    def pin_many(self, cids: Sequence[Cid], reason: str) -> list[Cid]:
        """Keep those of some blocks that are here for `reason`; see `BlockStore.pin_many`."""
        return self._catalogue.pin_many(cids, reason)

    def unpin(self, cid: Cid, reason: str) -> None:
        """Drop the pin for `reason`, if there is one."""
        self._catalogue.unpin_many([cid], reason)

    def unpin_many(self, cids: Sequence[Cid], reason: str) -> None:
        """Drop the pins of some blocks for `reason`; see `BlockStore.unpin_many`."""
        self._catalogue.unpin_many(cids, reason)

    def unpin_all(self, reason: str) -> int:
        """Drop the pins of every block for `reason`; returns how many there were."""
        return self._catalogue.unpin_all(reason)

    def reasons(self, prefix: str) -> list[str]:
        """Return the reasons in use that begin with `prefix`."""
        return self._catalogue.reasons(prefix)

    def pins(self, cid: Cid) -> frozenset[str]:
        """Return the reasons for which the block is kept."""
        return self._catalogue.pins(cid)

    def pinned(self, reason: str) -> Iterator[Cid]:
        """Iterate over the blocks that are kept for `reason`."""
        return self._catalogue.pinned(reason)

    def cids(self) -> Iterator[Cid]:
        """Iterate over the blocks that are here, in order of their binary form."""
        return self._catalogue.cids()

    def holding(self, cids: Iterable[Cid]) -> AbstractContextManager[None]:
        """Keep blocks in flight from `gc`; see `BlockStore.holding`."""
        return self._catalogue.holding(cids)

    def gc(self) -> int:
        """Remove every block that nobody keeps, and what a crash left; return how many rows went."""
        removed = self._catalogue.with_reserve(self._collect)
        self._catalogue.set_reserve()
        return removed

    def usage_bytes(self) -> int:
        """Return the total length of the blocks that are here, in bytes."""
        return self._catalogue.usage_bytes()

    @property
    def quota_bytes(self) -> int | None:
        """Upper bound on `usage_bytes`, None for no bound but the home's."""
        return self._catalogue.quota_bytes
