"""Blocks that rest in a Kubo daemon, behind the same protocol as the embedded store.

The catalogue beside the node says what is here and why, as for the embedded store. In Kubo, each block of the catalogue is
pinned directly under one name, so that Kubo's own collector takes none of them, and `gc` touches nothing that an operator
pinned beside them. Kubo is not trusted more than a disk: what it hands out is measured and hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from usufruct.content.blockstore import check_blocks
from usufruct.content.catalogue import Catalogue, check_reason
from usufruct.content.catalogued import CataloguedStore
from usufruct.content.cid import Cid, Codec
from usufruct.content.kubo.rpc import KuboRpc
from usufruct.durable import translated
from usufruct.errors import BlockMismatchError, BlockNotFoundError, KuboError

_BATCH_BYTES: Final = 8 << 20
_ATTEMPTS: Final = 5


class KuboBlockStore(CataloguedStore):
    """A `BlockStore` whose blocks are in Kubo, for any number of threads and several processes of one node.

    **Invariant:** a row in the catalogue is committed only after Kubo has stored and pinned its block, and a block is unpinned
    and removed only after its row's deletion is committed. Pins under this store's name without a row are rubbish that a crash
    left; `gc` removes them.
    """

    def __init__(self, root: Path, rpc: KuboRpc, *, quota_bytes: int | None = None) -> None:
        """Open, or make, the catalogue at `root`; asks Kubo for its version.

        Parameters
        ----------
        root :
            Directory of this store alone, made with mode 0700 if missing.
        rpc :
            A daemon that no other node stores in; closed with the store.
        quota_bytes :
            Upper bound on the sum of block lengths; None for no bound but Kubo's.

        Raises
        ------
        KuboUnreachableError, KuboRefusedError, KuboVersionError
        ContentError
            If the directory or its catalogue cannot be used.
        """
        self._rpc = rpc
        self._catalogue = Catalogue(root, quota_bytes=quota_bytes)
        self._name = f"usufruct-{self._catalogue.identity}"
        try:
            rpc.check()
            if self._catalogue.found_dead:
                with translated("the block store cannot be opened"), self._catalogue.transaction():
                    self._sweep()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the catalogue and the connections; closing twice is harmless."""
        super().close()
        self._rpc.close()

    def put_many(
        self, blocks: Sequence[bytes], codec: Codec = Codec.RAW, *, pin: str | None = None
    ) -> list[Cid]:
        """Store all of `blocks` or none; see `BlockStore.put_many`. Errors of Kubo also as `KuboError`."""
        if pin is not None:
            check_reason(pin)
        check_blocks(blocks)
        cids = [Cid.of(data, codec) for data in blocks]
        wanted = dict(zip(cids, blocks, strict=True))
        with translated("the blocks could not be stored"):
            for _ in range(_ATTEMPTS):
                fresh = {cid: data for cid, data in wanted.items() if not self._is_intact(cid, data)}
                self._catalogue.check_room({cid: len(data) for cid, data in fresh.items()})
                self._send(fresh, codec)
                if self._commit(wanted, fresh, pin):
                    return cids
        raise KuboError("somebody removes blocks from Kubo as fast as they are put there")

    def get(self, cid: Cid) -> bytes:
        """Return the block, hashed again; see `BlockStore.get`. Errors of Kubo also as `KuboError`."""
        size_bytes = self.size(cid)
        try:
            data = self._rpc.get_block(cid, size_bytes)
        except BlockNotFoundError as exc:
            raise BlockNotFoundError(
                f"block {cid} is gone from Kubo", hint="fetch it again from its owner"
            ) from exc
        if len(data) != size_bytes:
            raise BlockMismatchError(f"block {cid} has another length in Kubo than when it was stored")
        cid.check(data)
        return data

    def check(self) -> None:
        """Look whether Kubo answers; see `BlockStore.check`."""
        self.usage_bytes()
        self._rpc.check()

    def _send(self, blocks: dict[Cid, bytes], codec: Codec) -> None:
        batch: list[bytes] = []
        size = 0
        for data in blocks.values():
            if batch and size + len(data) > _BATCH_BYTES:
                self._rpc.put_blocks(batch, codec)
                batch, size = [], 0
            batch.append(data)
            size += len(data)
        if batch:
            self._rpc.put_blocks(batch, codec)

    def _commit(self, wanted: dict[Cid, bytes], fresh: dict[Cid, bytes], pin: str | None) -> bool:
        """Pin what was sent and record it; False if a block has vanished meanwhile."""
        try:
            with self._catalogue.transaction():
                if any(cid not in fresh and not self.has(cid) for cid in wanted):
                    return False
                for cid in fresh:
                    self._catalogue.record(cid, len(wanted[cid]))
                if pin is not None:
                    self._catalogue.record_pins(wanted, pin)
                self._rpc.pin(list({_anchor(cid) for cid in fresh}), self._name)
        except BlockNotFoundError:
            return False
        return True

    def _collect(self) -> int:
        with translated("garbage collection failed"):
            removed = self._catalogue.drop_unkept()
            with self._catalogue.transaction():
                self._sweep()
        return removed

    def _sweep(self) -> None:
        """Remove blocks that are pinned under our name without a row; only inside a transaction, which keeps commits out."""
        orphans = [cid for cid in self._rpc.pinned(self._name) if not self._is_wanted(cid)]
        self._rpc.unpin(orphans)
        self._rpc.remove_blocks(orphans)
        self._catalogue.swept()

    def _is_intact(self, cid: Cid, data: bytes) -> bool:
        """Whether Kubo has these bytes; what it has instead of them is removed, since Kubo would not write over it."""
        if not self.has(cid):
            return False
        try:
            if self._rpc.get_block(cid, len(data)) == data:
                return True
        except BlockNotFoundError:
            return False
        except BlockMismatchError:
            pass
        self._rpc.unpin([_anchor(cid)])
        self._rpc.remove_blocks([cid])
        return False

    def _is_wanted(self, anchor: Cid) -> bool:
        return any(self.has(Cid(codec, anchor.digest)) for codec in Codec)


def _anchor(cid: Cid) -> Cid:
    """What is pinned for a block: Kubo stores by hash whatever the codec, and would parse a record before it pins it."""
    return Cid(Codec.RAW, cid.digest)
