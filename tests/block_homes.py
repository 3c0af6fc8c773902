"""Homes of blocks that tests open, and damage behind the store's back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from usufruct.content import BlockStore, Cid, EmbeddedBlockStore


class BlockHome(ABC):
    """A place where blocks rest."""

    @abstractmethod
    def open(self, *, quota_bytes: int | None = None) -> BlockStore:
        """A store on this place, as one more process would open it."""

    @abstractmethod
    def damage(self, cid: Cid) -> None:
        """Change one byte of a block, its length stays."""

    @abstractmethod
    def lose(self, cid: Cid) -> None:
        """Take a block's bytes away."""

    @abstractmethod
    def at_rest(self) -> set[Cid]:
        """Blocks whose bytes are there, whatever the catalogue says."""


@dataclass
class EmbeddedHome(BlockHome):
    """A directory of the embedded store."""

    root: Path

    def open(self, *, quota_bytes: int | None = None) -> BlockStore:
        return EmbeddedBlockStore(self.root, quota_bytes=quota_bytes)

    def damage(self, cid: Cid) -> None:
        path = self._path(cid)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    def lose(self, cid: Cid) -> None:
        self._path(cid).unlink()

    def at_rest(self) -> set[Cid]:
        return {Cid.parse(path.name) for path in (self.root / "blocks").glob("*/*")}

    def _path(self, cid: Cid) -> Path:
        return self.root / "blocks" / cid.digest[:1].hex() / str(cid)
