"""What a worker does: read the blocks of one task, check them, and run its kernel. Holds no key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from usufruct.compute.cache import CacheSettings, ExpansionCache
from usufruct.content import Cid
from usufruct.errors import BlockNotFoundError, ComputationCancelledError, ConfigurationError
from usufruct.he import packed
from usufruct.he.kernels import Mask, Task, execute
from usufruct.he.parameters import Parameters
from usufruct.he.reading import BlockKey, ExpandingInputs, expand_seeds
from usufruct.he.residues import Residues


class BlockSource(Protocol):
    """Where workers find blocks; plain data, so that it can cross to them. `content.BlockFiles` is one."""

    def read(self, cid: Cid) -> bytes:
        """One block, checked against its CID.

        Raises
        ------
        ContentError, BlockMismatchError
        """
        ...

    def announce(self, cids: Iterable[Cid]) -> None:
        """Say that these blocks are read soon."""
        ...


@dataclass(frozen=True, slots=True)
class CarriedBlocks:
    """Blocks that travel with the task, for workers that share no file system with the store."""

    blocks: Mapping[Cid, bytes]

    def read(self, cid: Cid) -> bytes:
        """One block, checked against its CID; raises BlockNotFoundError or BlockMismatchError."""
        data = self.blocks.get(cid)
        if data is None:
            raise BlockNotFoundError(f"block {cid} did not come with the task")
        cid.check(data)
        return data

    def announce(self, cids: Iterable[Cid]) -> None:
        """Nothing: they are in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One task and all that a worker has to know for it."""

    task: Task
    cids: tuple[Cid, ...]
    """Of the task's inputs, in their order."""

    blocks: BlockSource
    mask_bits: bytes
    """The row mask, eight rows to a byte, first row highest."""

    mask_length: int
    cache: CacheSettings | None = None
    lease: Path | None = None
    """A file that is there as long as somebody wants the result; None where workers cannot see it."""


def pack_mask(mask: Mask) -> bytes:
    """A row mask as `Work` carries it."""
    return np.packbits(mask).tobytes()


def carry_out(work: Work) -> list[bytes]:
    """Run one task; what `kernels.execute` returns.

    Raises
    ------
    ComputationCancelledError
        If the lease was withdrawn; looked at before every block.
    ContentError, IntegrityError, WrongKeyDomainError
        If a block is missing, or not what its CID or the bundle says.
    KernelParameterError
        As `kernels.execute`.
    """
    bits = np.frombuffer(work.mask_bits, dtype=np.uint8)
    mask = np.unpackbits(bits, count=work.mask_length).astype(np.bool_)
    return execute(work.task, _inputs(work), mask)


def _inputs(work: Work) -> StoredInputs | CachedInputs:
    """With a cache where there is one that can be used: without it a task takes longer, and gives the same."""
    stored = StoredInputs(work)
    if work.cache is not None:
        with contextlib.suppress(ConfigurationError):
            return CachedInputs(stored, work.task.shape.parameters, work.cache)
    return stored


class StoredInputs(Mapping[BlockKey, bytes]):
    """A task's blocks, read when they are looked up."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._cids = dict(zip(work.task.inputs, work.cids, strict=True))

    def __getitem__(self, key: BlockKey) -> bytes:
        if self._work.lease is not None and not self._work.lease.exists():
            raise ComputationCancelledError("nobody waits for this task any more")
        return self._work.blocks.read(self._cids[key])

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(self._cids)

    def __len__(self) -> int:
        return len(self._cids)

    def cid_of(self, key: BlockKey) -> Cid:
        """CID of an input block."""
        return self._cids[key]


class CachedInputs(ExpandingInputs):
    """A task's blocks, whose seeds' expansions are kept from one job to the next."""

    def __init__(self, stored: StoredInputs, parameters: Parameters, settings: CacheSettings) -> None:
        self._stored = stored
        self._cache = _open_cache(settings, -(-parameters.residues * parameters.residue_bits // 8))

    def __getitem__(self, key: BlockKey) -> bytes:
        return self._stored[key]

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def expansions(
        self, keys: Sequence[BlockKey], seeds: Sequence[bytes], parameters: Parameters, key_id: bytes
    ) -> Residues:
        """As `ExpandingInputs`; what is not in the cache is expanded, and kept."""
        count, bits = parameters.residues, parameters.residue_bits
        # A block's header is checked later: what its seed expands to under another key is never this entry.
        context = parameters.parameters_id + key_id
        cids = [self._stored.cid_of(key) for key in keys]
        found = [self._cache.get(cid, context) for cid in cids]
        expanded = np.empty((len(keys), count), dtype=np.uint64)
        missing = [index for index, entry in enumerate(found) if entry is None]
        for index, entry in enumerate(found):
            if entry is not None:
                expanded[index] = packed.unpack(entry, count, bits)
        if missing:
            expanded[missing] = expand_seeds([seeds[index] for index in missing], parameters, key_id)
            for index in missing:
                self._cache.put(cids[index], context, packed.pack(expanded[index], bits))
        return expanded


@lru_cache(maxsize=4)
def _open_cache(settings: CacheSettings, entry_bytes: int) -> ExpansionCache:
    """One open file for each process and cache. Entries of each size have a file of their own."""
    path = settings.path.with_name(f"{settings.path.name}.{entry_bytes}")
    return ExpansionCache(CacheSettings(path=path, limit_bytes=settings.limit_bytes), entry_bytes=entry_bytes)
