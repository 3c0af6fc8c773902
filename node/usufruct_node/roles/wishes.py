"""Learns what stewards wish for their bundles: the policies in force, and whom they leave out. Holds nothing of the bundles."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from usufruct.content import Cid, Codec, dag
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ContentError,
    IntegrityError,
    ManifestError,
    PeerError,
    UsufructError,
    VerificationError,
)
from usufruct.records import Artifact, ArtifactId, MemberStatus, OrgId, unlabel
from usufruct.register import Policy
from usufruct_node.custody_store import CustodyStore
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.custody_peers import CustodyPeers, Silent

_LOST_SECONDS = 300.0


class Wishes:
    """Reads them one steward after the other, as it is asked to."""

    def __init__(
        self,
        context: RoleContext,
        peers: CustodyPeers,
        store: CustodyStore,
        *,
        silent: Silent,
        unheard: Silent,
    ) -> None:
        """Prepare; members that gave no blocks lately, or did not answer questions, are not asked again for a while."""
        self._context = context
        self._peers = peers
        self._store = store
        self._silent = silent
        self._unheard = unheard
        self._unreadable: set[bytes] = set()
        self._lost: dict[bytes, float] = {}
        """Policies of own bundles that nobody had, and until when nobody is asked for them again."""

    async def read_policies(self, bundles: Sequence[tuple[ArtifactId, Artifact]]) -> None:
        """Learn policies that are in force and not yet known, each from its steward; one that is none stops no other."""
        context = self._context
        for artifact_id, artifact in bundles:
            await trio.lowlevel.checkpoint()
            digest = artifact.policy_digest
            is_lost = self._silent.now() < self._lost.get(digest, 0.0)
            if digest in self._unreadable or is_lost or context.now() >= artifact.retain_until:
                continue
            if context.placements.replication(artifact) is None:
                try:
                    await self._read_policy(artifact_id, digest, artifact.steward)
                except (UsufructError, OSError) as exc:
                    log.warning("policy of bundle %s cannot be read: %s", artifact_id.hex()[:12], exc)

    async def _read_policy(self, artifact_id: ArtifactId, digest: bytes, steward: OrgId) -> None:
        try:
            data = await self._block(Cid.from_digest(digest, Codec.DAG_CBOR), steward)
            replication = Policy.from_record(dag.decode_map(data)).replication
        except (ContentError, BlockMismatchError) as exc:
            log.debug("policy of bundle %s: %s", artifact_id.hex()[:12], exc)
        except IntegrityError as exc:
            log.warning("policy of bundle %s is none: %s", artifact_id.hex()[:12], exc)
            self._unreadable.add(digest)
        else:
            await trio.to_thread.run_sync(self._store.keep_replication, digest, replication)

    async def _block(self, cid: Cid, steward: OrgId) -> bytes:
        try:
            return await trio.to_thread.run_sync(self._context.store.get, cid)
        except (BlockNotFoundError, BlockMismatchError):
            if steward == self._context.org:
                return await self._own_block(cid)
            if steward in self._silent:
                raise
        with self._silent.noting(steward):
            return await self._context.fetch_once(cid, steward)

    async def _own_block(self, cid: Cid) -> bytes:
        """What a steward lost itself: only the policy says who holds its bundle, so whoever has it is asked."""
        context = self._context
        for member in await trio.to_thread.run_sync(context.index.participants):
            if member.status != MemberStatus.ACTIVE or member.id == context.org or member.id in self._silent:
                continue
            try:
                with self._silent.noting(member.id):
                    return await context.fetch_once(cid, member.id)
            except (PeerError, BlockNotFoundError, BlockMismatchError) as exc:
                log.debug("no block %s from %s: %s", cid, member.name, exc)
        self._lost[cid.digest] = self._silent.now() + _LOST_SECONDS
        raise BlockNotFoundError(f"nobody who answers has block {cid}")

    async def read_notices(self, steward: OrgId, bundles: Sequence[tuple[ArtifactId, Artifact]]) -> None:
        """Ask a steward whom it leaves out; where it is silent, those who hold its bundles repeat its words."""
        context, asked, holders = self._context, list[ArtifactId](), set[OrgId]()
        if steward == context.org:
            return
        for artifact_id, artifact in bundles:
            await trio.lowlevel.checkpoint()
            replication = context.placements.replication(artifact)
            if replication is None or replication.copies == 1 or context.now() >= artifact.retain_until:
                continue
            asked.append(artifact_id)
            holders.update(context.placements.holders(artifact_id))
        if not asked:
            return
        for source in (steward, *sorted(holders - {steward, context.org})):
            if source in self._silent or source in self._unheard:
                continue
            began = self._unheard.now()
            try:
                notices = await self._peers.notices(source, asked, steward)
            except (PeerError, ManifestError, VerificationError) as exc:
                self._unheard.add(source)
                log.debug("no notices of %s from %s: %s", unlabel(steward), unlabel(source), exc)
                continue
            self._unheard.add_if_slow(source, began)
            for notice in notices:
                await trio.to_thread.run_sync(self._store.keep_notice, notice)
            return
