"""Pinner: holds copies of other members' bundles where policies want them, and lets go of what it is no longer to hold.

Each node decides by itself from policy, registry and the steward's notice, so nobody hands out work: a member that leaves, is
suspended or fails a challenge is replaced by the next in line, which finds that out alone. Every step may be repeated after a
crash. Holds no key.

**Invariant:** a block is noted as held, and so given to others, only after it was found to belong to the bundle's own key
domain, and a record only after it was parsed as what the ledger says it is: digests there may be those of anything. While the
bundle is retained, a whole copy is dropped only after its steward says that those that replace it proved theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import trio

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.custody import Erased, ErasureStatement
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ContainerError,
    ContentError,
    IntegrityError,
    ManifestError,
    PeerError,
    StoreFullError,
    UsufructError,
    VerificationError,
    WrongKeyDomainError,
)
from usufruct.he.container import block_size, check_header
from usufruct.publish import BundleManifest, read_manifest
from usufruct.records import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    ConsentEpoch,
    MemberStatus,
    OrgId,
    label,
    unlabel,
)
from usufruct.register import Policy
from usufruct_node.custody_store import CustodyStore, Held
from usufruct_node.holdings import Purpose
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.custody_peers import CustodyPeers, Silent

Parsed = TypeVar("Parsed")

_HELD_PIN = "held:"
_BATCH = 64
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 3600.0


class Pinner:
    """Role of every member: what it is to hold follows from policies."""

    def __init__(
        self,
        context: RoleContext,
        peers: CustodyPeers,
        store: CustodyStore,
        *,
        signing_key: bytes,
        limit_bytes: int | None,
        silence_s: float,
    ) -> None:
        """Prepare.

        Parameters
        ----------
        limit_bytes :
            A new copy is taken only if no more bytes are held for others then; None for no bound but the block store's.
        silence_s :
            How long a member that did not answer is not asked again.
        """
        self._context = context
        self._peers = peers
        self._store = store
        self._signing_key = signing_key
        self._limit_bytes = limit_bytes
        self._whole: dict[ArtifactId, tuple[bytes, bytes]] = {}
        """Bundles known to be complete here, with the digests of the policy and consent status that are here."""
        self._suspect: set[ArtifactId] = set()
        """Bundles of which every byte is to be read again."""
        self._unreadable: set[bytes] = set()
        self._silent = Silent(silence_s)
        self._pauses: dict[ArtifactId, tuple[float, float]] = {}
        """Bundles that cannot be taken: seconds of the last pause, and when it ends."""
        self.troubles: dict[str, str] = {}
        """Bundle id in hex -> why it is not as it should be; empty when all is well."""

    def damaged(self, artifact_id: ArtifactId) -> None:
        """A block of a bundle was found missing or altered: look at the whole again."""
        self._suspect.add(artifact_id)
        self._whole.pop(artifact_id, None)

    async def tend(self) -> None:
        """One look at every bundle."""
        await self._read_policies()
        await self._read_notices()
        troubles: dict[str, str] = {}
        held = {one.artifact_id for one in await trio.to_thread.run_sync(self._store.held)}
        for artifact_id, artifact in await self._bundles():
            await trio.lowlevel.checkpoint()
            try:
                await self._tend(artifact_id, artifact, held=artifact_id in held)
            except (UsufructError, OSError) as exc:
                troubles[artifact_id.hex()] = str(exc)
                if self.troubles.get(artifact_id.hex()) != str(exc):
                    log.warning("copy of bundle %s: %s", artifact_id.hex()[:12], exc)
        self.troubles = troubles

    async def _bundles(self) -> list[tuple[ArtifactId, Artifact]]:
        """All of them; whoever goes through them lets other tasks run after each, as there may be thousands."""
        return await trio.to_thread.run_sync(self._context.index.artifacts, ArtifactKind.BUNDLE)

    async def _tend(self, artifact_id: ArtifactId, artifact: Artifact, *, held: bool) -> None:
        context = self._context
        own = context.index.participant(context.org)
        if context.now() >= artifact.retain_until or (own and own.status == MemberStatus.REMOVED):
            if held:
                await self._let_go(artifact_id)
        elif own is None or own.status != MemberStatus.ACTIVE:
            return
        elif artifact.steward == context.org:
            await self._restore(artifact_id, artifact)
        elif context.placements.replication(artifact) is None:
            return
        elif context.placements.is_holder(artifact_id, context.org):
            await self._try(artifact_id, artifact)
        elif held and await self._peers.is_replaced(artifact.steward, artifact_id):
            await self._let_go(artifact_id)

    # What stewards wish.

    async def _read_policies(self) -> None:
        """Learn policies that are in force and not yet known, each from its steward."""
        context = self._context
        for artifact_id, artifact in await self._bundles():
            await trio.lowlevel.checkpoint()
            digest = artifact.policy_digest
            if digest in self._unreadable or context.now() >= artifact.retain_until:
                continue
            if context.placements.replication(artifact) is None:
                await self._read_policy(artifact_id, digest, artifact.steward)

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
            if steward == self._context.org or steward in self._silent:
                raise
        try:
            return await self._context.fetch_once(cid, steward)
        except PeerError:
            self._silent.add(steward)
            raise

    async def _read_notices(self) -> None:
        """Ask stewards whom they leave out; where one is silent, those who hold its bundles repeat its words."""
        context, asked = self._context, dict[OrgId, list[ArtifactId]]()
        for artifact_id, artifact in await self._bundles():
            await trio.lowlevel.checkpoint()
            replication = context.placements.replication(artifact)
            if replication is None or replication.copies == 1 or artifact.steward == context.org:
                continue
            if context.now() < artifact.retain_until:
                asked.setdefault(artifact.steward, []).append(artifact_id)
        for steward, artifact_ids in asked.items():
            holders = set[OrgId]()
            for one in artifact_ids:
                await trio.lowlevel.checkpoint()
                holders.update(context.placements.holders(one))
            for source in (steward, *sorted(holders - {steward, context.org})):
                if source in self._silent:
                    continue
                try:
                    notices = await self._peers.notices(source, artifact_ids, steward)
                except (PeerError, ManifestError, VerificationError) as exc:
                    self._silent.add(source)
                    log.debug("no notices of %s from %s: %s", unlabel(steward), unlabel(source), exc)
                    continue
                for notice in notices:
                    await trio.to_thread.run_sync(self._store.keep_notice, notice)
                break

    # Holding.

    async def _try(self, artifact_id: ArtifactId, artifact: Artifact) -> None:
        """Take a bundle; one that is not what it should be, or too large, is not fetched again and again."""
        pause, until = self._pauses.get(artifact_id, (_FIRST_PAUSE, 0.0))
        if time.monotonic() < until:
            raise ContentError(self.troubles.get(artifact_id.hex(), "it could not be taken"))
        try:
            await self._take(artifact_id, artifact)
        except (PeerError, BlockNotFoundError):
            # Somebody may be back at the next look.
            raise
        except (UsufructError, OSError):
            self._pauses[artifact_id] = (min(2 * pause, _LONGEST_PAUSE), time.monotonic() + pause)
            raise
        self._pauses.pop(artifact_id, None)

    async def _take(self, artifact_id: ArtifactId, artifact: Artifact) -> None:
        """Have the whole bundle here, with what a job on it needs beside the ciphertexts."""
        epoch = self._context.index.consent_epoch(artifact.steward, artifact.consent_scope)
        digests = (artifact.policy_digest, epoch.status_digest if epoch else b"")
        if self._whole.get(artifact_id) == digests:
            return
        manifest = await self._take_record(
            artifact_id, artifact.content_digest, partial(_read_manifest, artifact_id, artifact)
        )
        if artifact_id not in self._whole:
            await self._take_blocks(artifact_id, artifact, manifest)
            self._whole[artifact_id] = (b"", b"")
        await self._take_record(artifact_id, artifact.policy_digest, Policy.from_record)
        if epoch:
            await self._take_record(artifact_id, epoch.status_digest, partial(_check_status, artifact, epoch))
        self._suspect.discard(artifact_id)
        self._whole[artifact_id] = digests

    async def _take_record(
        self, artifact_id: ArtifactId, digest: bytes, parse: Callable[[Mapping[str, object]], Parsed]
    ) -> Parsed:
        """Have a record here, open to all members if `parse` takes it for what the ledger says it is."""
        context, pin = self._context, held_pin(artifact_id)
        cid = Cid.from_digest(digest, Codec.DAG_CBOR)
        data = await self._sound(cid, context.sources(artifact_id), pin)
        try:
            record = parse(dag.decode_map(data))
        except UsufructError:
            await trio.to_thread.run_sync(context.store.unpin, cid, pin)
            raise
        await trio.to_thread.run_sync(context.holdings.add, [cid], Purpose.CATALOGUE, artifact_id)
        return record

    async def _take_blocks(
        self, artifact_id: ArtifactId, artifact: Artifact, manifest: BundleManifest
    ) -> None:
        context, pin = self._context, held_pin(artifact_id)
        sources, size = context.sources(artifact_id), 0
        blocks = list(dict.fromkeys(manifest.blocks))
        # Noted in any case: also a member that has no room is to state, at the end, that it has no copy.
        await trio.to_thread.run_sync(
            self._store.hold, Held(artifact_id=artifact_id, blocks=len(blocks), size_bytes=0)
        )
        await self._require_room(artifact_id, _size_of(manifest))
        for at in range(0, len(blocks), _BATCH):
            batch = blocks[at : at + _BATCH]
            await context.fetch(batch, *sources, pin=pin)
            try:
                size += await self._admit(artifact, batch, sources, pin)
            except (WrongKeyDomainError, ContainerError):
                await trio.to_thread.run_sync(self._drop, artifact_id)
                await trio.to_thread.run_sync(self._store.let_go, artifact_id)
                raise
            await self._require_room(artifact_id, size)
            await trio.to_thread.run_sync(context.holdings.add, batch, Purpose.HELD, artifact_id)
        await trio.to_thread.run_sync(
            self._store.hold, Held(artifact_id=artifact_id, blocks=len(blocks), size_bytes=size)
        )
        log.info("bundle %s is held here: %d blocks", artifact_id.hex()[:12], len(blocks))

    async def _admit(
        self, artifact: Artifact, batch: Sequence[Cid], sources: Sequence[OrgId], pin: str
    ) -> int:
        """Length of blocks that are sealed under the bundle's key; those that are damaged here are replaced first."""
        try:
            return await trio.to_thread.run_sync(self._sealed_size, artifact, batch)
        except (BlockMismatchError, BlockNotFoundError):
            for cid in await trio.to_thread.run_sync(self._damaged_among, batch):
                await self._replace(cid, sources, pin)
        return await trio.to_thread.run_sync(self._sealed_size, artifact, batch)

    def _sealed_size(self, artifact: Artifact, batch: Sequence[Cid]) -> int:
        """Blocks under another key could be somebody else's, whom we would serve."""
        size = 0
        for cid in batch:
            data = self._context.store.get(cid)
            check_header(data, key_id=artifact.key_id)
            size += len(data)
        return size

    async def _require_room(self, artifact_id: ArtifactId, size_bytes: int) -> None:
        """Raise StoreFullError if a new copy does not fit; what was begun of it goes."""
        try:
            await trio.to_thread.run_sync(self._check_room, artifact_id, size_bytes)
        except StoreFullError:
            await trio.to_thread.run_sync(self._drop, artifact_id)
            raise

    def _check_room(self, artifact_id: ArtifactId, size_bytes: int) -> None:
        """A copy that is whole has its room, also when the limit was lowered since: it is counted on."""
        sizes = {held.artifact_id: held.size_bytes for held in self._store.held()}
        if self._limit_bytes is None or sizes.pop(artifact_id, 0):
            return
        others = sum(sizes.values())
        if others + size_bytes > self._limit_bytes:
            raise StoreFullError(
                f"bundle {artifact_id.hex()[:12]} does not fit: {others} of {self._limit_bytes} bytes are held for others"
            )

    async def _restore(self, artifact_id: ArtifactId, artifact: Artifact) -> None:
        """Fetch back what the steward itself lost, once after each start and whenever damage was found."""
        context = self._context
        epoch = context.index.consent_epoch(artifact.steward, artifact.consent_scope)
        digests = (artifact.policy_digest, epoch.status_digest if epoch else b"")
        if self._whole.get(artifact_id) == digests:
            return
        sources = context.sources(artifact_id)
        if artifact_id not in self._whole:
            await self._restore_blocks(artifact_id, artifact, sources)
            self._suspect.discard(artifact_id)
            self._whole[artifact_id] = (b"", b"")
        await self._restore_record(digests[0], sources, "policy", Policy.from_record)
        if epoch:
            check = partial(_check_status, artifact, epoch)
            await self._restore_record(digests[1], sources, "status", check)
        self._whole[artifact_id] = digests

    async def _restore_blocks(
        self, artifact_id: ArtifactId, artifact: Artifact, sources: Sequence[OrgId]
    ) -> None:
        context, pin = self._context, f"bundle:{artifact.content_digest.hex()}"
        cid = Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR)
        manifest = read_manifest(dag.decode_map(await self._sound(cid, sources, "bundle")))
        blocks = list(dict.fromkeys(manifest.blocks))
        if artifact_id in self._suspect:
            for cid in await trio.to_thread.run_sync(self._damaged_among, blocks):
                await self._replace(cid, sources, pin)
        await context.fetch(blocks, *sources, pin=pin)

    async def _restore_record(
        self,
        digest: bytes,
        sources: Sequence[OrgId],
        pin: str,
        parse: Callable[[Mapping[str, object]], object],
    ) -> None:
        """Have an own record here, open to all members if `parse` takes it for what the ledger says it is."""
        cid = Cid.from_digest(digest, Codec.DAG_CBOR)
        parse(dag.decode_map(await self._sound(cid, sources, pin)))
        await trio.to_thread.run_sync(self._context.holdings.add, [cid], Purpose.CATALOGUE)

    async def _sound(self, cid: Cid, sources: Sequence[OrgId], pin: str) -> bytes:
        """A block, fetched if it is not here, and again if it is damaged here."""
        await self._context.fetch([cid], *sources, pin=pin)
        try:
            return await trio.to_thread.run_sync(self._context.store.get, cid)
        except (BlockMismatchError, BlockNotFoundError):
            return await self._replace(cid, sources, pin)

    def _damaged_among(self, blocks: Sequence[Cid]) -> list[Cid]:
        """Blocks that the store counts as here and that are gone or something else."""
        damaged = []
        for cid in filter(self._context.store.has, blocks):
            try:
                self._context.store.get(cid)
            except (BlockMismatchError, BlockNotFoundError):
                damaged.append(cid)
        return damaged

    async def _replace(self, cid: Cid, sources: Sequence[OrgId], pin: str) -> bytes:
        for source in sources:
            try:
                data = await self._context.fetch_once(cid, source)
            except (PeerError, BlockNotFoundError, BlockMismatchError) as exc:
                log.debug("no block %s from %s: %s", cid, unlabel(source), exc)
                continue
            await trio.to_thread.run_sync(partial(self._context.store.put, data, cid.codec, pin=pin))
            return data
        raise BlockMismatchError(f"block {cid} is damaged here, and nobody who answers has it")

    # Letting go.

    async def _let_go(self, artifact_id: ArtifactId) -> None:
        """Erase a copy and state it; a statement is made only when no block is left, for whatever reason it was kept."""
        context = self._context
        self._whole.pop(artifact_id, None)
        blocks = await trio.to_thread.run_sync(self._erase, artifact_id)
        statement = ErasureStatement.sign(
            context.ledger.network,
            artifact_id,
            context.org,
            what=Erased.COPY,
            blocks=blocks,
            erased_at=context.now(),
            signing_key=self._signing_key,
        )
        await trio.to_thread.run_sync(self._store.keep_erasure, statement)
        await trio.to_thread.run_sync(self._drop, artifact_id)
        await trio.to_thread.run_sync(self._store.let_go, artifact_id)
        log.info("bundle %s is held here no more: %d blocks erased", artifact_id.hex()[:12], blocks)

    def _erase(self, artifact_id: ArtifactId) -> int:
        context = self._context
        noted = context.holdings.cids(Purpose.HELD, artifact_id)
        context.store.unpin_all(held_pin(artifact_id))
        context.tidy()
        check_gone(context.store.has, noted)
        return len(noted)

    def _drop(self, artifact_id: ArtifactId) -> None:
        self._context.store.unpin_all(held_pin(artifact_id))
        self._context.holdings.drop(Purpose.HELD, artifact_id)
        self._context.holdings.drop(Purpose.CATALOGUE, artifact_id)
        self._context.store.gc()


def held_pin(artifact_id: ArtifactId) -> str:
    """Pin under which the copy of another member's bundle is kept."""
    return _HELD_PIN + artifact_id.hex()


def check_gone(has: Callable[[Cid], bool], cids: Sequence[Cid]) -> None:
    """Raises ContentError if a block is still here, because a job that is not over needs it."""
    left = sum(map(has, cids))
    if left:
        raise ContentError(f"{left} of {len(cids)} blocks to erase are still kept for a job that is not over")


def _read_manifest(
    artifact_id: ArtifactId, artifact: Artifact, record: Mapping[str, object]
) -> BundleManifest:
    manifest = read_manifest(record)
    if manifest.shape.key_id != artifact.key_id or label(manifest.scope) != artifact.consent_scope:
        raise ManifestError(f"the manifest of bundle {artifact_id.hex()[:12]} is not what the ledger says")
    return manifest


def _check_status(artifact: Artifact, epoch: ConsentEpoch, record: Mapping[str, object]) -> None:
    status = ConsentStatus.from_record(record)
    if status.scope != unlabel(artifact.consent_scope) or status.epoch != epoch.epoch:
        raise ManifestError(f"the status of consent epoch {epoch.epoch} is not what the ledger says")


def _size_of(manifest: BundleManifest) -> int:
    """Bytes of a bundle as its owner sealed it."""
    return len(set(manifest.blocks)) * block_size(manifest.block_form, manifest.shape.parameters)
