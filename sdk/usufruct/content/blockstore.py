"""The contract between the steps and wherever blocks rest.

Adapters (the embedded store, Kubo) implement `BlockStore`; nothing here touches a disk or a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, runtime_checkable

from usufruct.content.cid import Cid, Codec
from usufruct.errors import InputError

MAX_BLOCK_BYTES: Final = 2 * 1024 * 1024
"""The largest block; what other IPFS implementations also accept."""


@runtime_checkable
class BlockStore(Protocol):
    """Blocks by CID, kept as long as somebody has a reason.

    Every method is synchronous and may be called from any thread. Pins are counted by reason: a block goes
    with the next `gc` once its last reason is dropped; one that was put without `pin` has none from the start.
    A reason says who wants the block and what for, as `bundle:<digest>`; `reasons` finds them by prefix.
    """

    def put(self, data: bytes, codec: Codec = Codec.RAW, *, pin: str | None = None) -> Cid:
        """Store one block durably and, in the same step, pin it for `pin`.

        Raises
        ------
        InputError
            If `data` exceeds `MAX_BLOCK_BYTES`, or the reason is empty or over 200 characters.
        StoreFullError
            If the disk or the quota is full; nothing was kept.
        """

    def put_many(
        self, blocks: Sequence[bytes], codec: Codec = Codec.RAW, *, pin: str | None = None
    ) -> list[Cid]:
        """Store all of `blocks` or none, in order; errors as for `put`."""

    def get(self, cid: Cid) -> bytes:
        """Return the block, hashed again at each read.

        Raises
        ------
        BlockNotFoundError
            If it is not here.
        BlockMismatchError
            If what is stored under this CID is something else.
        """

    def has(self, cid: Cid) -> bool:
        """Say whether the block is here."""

    def size(self, cid: Cid) -> int:
        """Return the block's length in bytes.

        Raises
        ------
        BlockNotFoundError
            If it is not here.
        """

    def pin(self, cid: Cid, reason: str) -> None:
        """Keep the block for `reason`, durably; pinning twice for one reason is pinning once.

        Raises
        ------
        BlockNotFoundError
            If it is not here.
        """

    def pin_many(self, cids: Sequence[Cid], reason: str) -> list[Cid]:
        """Keep those of some blocks that are here for `reason`, durably and in one step; returns the others, in order."""

    def unpin(self, cid: Cid, reason: str) -> None:
        """Drop the pin for `reason`, if there is one."""

    def unpin_many(self, cids: Sequence[Cid], reason: str) -> None:
        """Drop the pins of some blocks for `reason`, as far as there are any, in one step."""

    def unpin_all(self, reason: str) -> int:
        """Drop the pins of every block for `reason`; returns how many there were."""

    def reasons(self, prefix: str) -> list[str]:
        """Return the reasons in use that begin with `prefix`."""

    def pins(self, cid: Cid) -> frozenset[str]:
        """Return the reasons for which the block is kept."""

    def pinned(self, reason: str) -> Iterator[Cid]:
        """Iterate over the blocks that are kept for `reason`; others may pin and unpin meanwhile."""

    def cids(self) -> Iterator[Cid]:
        """Iterate over the blocks that are here, in no particular order; others may put and collect meanwhile."""

    def holding(self, cids: Iterable[Cid]) -> AbstractContextManager[None]:
        """Keep blocks in flight, here or still to come, from `gc` until the context or this process ends.

        For what is being fetched or handed over and has no reason yet that would outlive this process.
        """

    def gc(self) -> int:
        """Remove every block that has neither a pin nor a hold and return how many there were."""

    def usage_bytes(self) -> int:
        """Return the total length of the blocks that are here, in bytes."""

    @property
    def quota_bytes(self) -> int | None:
        """Upper bound on `usage_bytes`, None for no bound but the disk's."""

    def check(self) -> None:
        """Look whether blocks can be stored now.

        Raises
        ------
        ContentError
            Saying why not.
        """

    def close(self) -> None:
        """Release files and connections; closing twice is harmless."""


def check_blocks(blocks: Sequence[bytes]) -> None:
    """Refuse what is no block.

    Raises
    ------
    InputError
        If one of `blocks` is not bytes, or exceeds `MAX_BLOCK_BYTES`.
    """
    for data in blocks:
        if type(data) is not bytes:
            raise InputError(f"a block is bytes, not {type(data).__name__}")
        if len(data) > MAX_BLOCK_BYTES:
            raise InputError(f"a block of {len(data)} bytes exceeds {MAX_BLOCK_BYTES}")
