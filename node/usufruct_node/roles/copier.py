"""Brings blocks of bundles here from members that have them, and puts right what is damaged here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from usufruct.content import Cid
from usufruct.errors import BlockMismatchError, BlockNotFoundError, PeerError, PeerRefusedError, UsufructError
from usufruct.he.container import check_header
from usufruct.records import Artifact, OrgId, unlabel
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.custody_peers import Silent


class Copier:
    """Asks nobody that was silent lately, and notes who is."""

    def __init__(self, context: RoleContext, silent: Silent) -> None:
        self._context = context
        self._silent = silent

    async def fetch(self, cids: Sequence[Cid], sources: Sequence[OrgId], pin: str) -> None:
        """Have blocks here; errors as for `RoleContext.fetch`."""
        asked = [org for org in sources if org not in self._silent]
        began = self._silent.now()
        try:
            await self._context.fetch(cids, *asked, pin=pin, gave_up=self._note)
        except BlockNotFoundError:
            # Of several, who was slow to say so is not known.
            if len(asked) == 1:
                self._silent.add_if_slow(asked[0], began)
            raise

    def _note(self, org: OrgId, why: UsufructError) -> None:
        if isinstance(why, PeerError) and not isinstance(why, PeerRefusedError):
            self._silent.add(org)

    async def sound(self, cid: Cid, sources: Sequence[OrgId], pin: str) -> bytes:
        """A block, fetched if it is not here, and again if it is damaged here."""
        await self.fetch([cid], sources, pin)
        try:
            return await trio.to_thread.run_sync(self._context.store.get, cid)
        except (BlockMismatchError, BlockNotFoundError):
            return await self._replace(cid, sources, pin)

    async def mend(self, cids: Sequence[Cid], sources: Sequence[OrgId], pin: str) -> None:
        """Replace those of some blocks that the store counts as here and that are gone or something else."""
        for cid in await trio.to_thread.run_sync(self._context.damaged_among, cids):
            await self._replace(cid, sources, pin)

    async def admit(
        self, artifact: Artifact, batch: Sequence[Cid], sources: Sequence[OrgId], pin: str
    ) -> int:
        """Length of blocks that are sealed under the bundle's key; those that are damaged here are replaced first.

        Raises
        ------
        WrongKeyDomainError, ContainerError
            If a block is sealed under another key, or is no ciphertext.
        BlockMismatchError
            If one is damaged, and nobody has it.
        """
        try:
            return await trio.to_thread.run_sync(self._sealed_size, artifact, batch)
        except (BlockMismatchError, BlockNotFoundError):
            await self.mend(batch, sources, pin)
        return await trio.to_thread.run_sync(self._sealed_size, artifact, batch)

    def _sealed_size(self, artifact: Artifact, batch: Sequence[Cid]) -> int:
        """Blocks under another key could be somebody else's, whom we would serve."""
        size = 0
        for cid in batch:
            data = self._context.store.get(cid)
            check_header(data, key_id=artifact.key_id)
            size += len(data)
        return size

    async def _replace(self, cid: Cid, sources: Sequence[OrgId], pin: str) -> bytes:
        for source in sources:
            if source in self._silent:
                continue
            try:
                with self._silent.noting(source):
                    data = await self._context.fetch_once(cid, source)
            except (PeerError, BlockNotFoundError, BlockMismatchError) as exc:
                log.debug("no block %s from %s: %s", cid, unlabel(source), exc)
                continue
            await trio.to_thread.run_sync(partial(self._context.store.put, data, cid.codec, pin=pin))
            return data
        raise BlockMismatchError(f"block {cid} is damaged here, and nobody who answers has it")
