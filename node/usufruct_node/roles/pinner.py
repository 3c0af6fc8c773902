"""Pinner: holds copies of other members' bundles where policies want them, and lets go of what it is no longer to hold.

Each node decides by itself from policy, registry and the steward's notice, so nobody hands out work: a member that leaves, is
suspended or fails a challenge is replaced by the next in line, which finds that out alone. Every step may be repeated after a
crash. Holds no key.

What has ended is let go of before anything is fetched. Then each steward's bundles have a turn of their own, side by side, that
ends after some time wherever it is: what was fetched until then stays, and the next turn goes on. So one steward, however slow
or strange, holds up its own bundles only.

**Invariant:** a block is noted as held, and so given to others, only after it was found to belong to the bundle's own key
domain, and a record only after it was parsed as what the ledger says it is: digests there may be those of anything. While the
bundle is retained, a whole copy is dropped only after its steward says that those that replace it proved theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import trio

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.custody import Erased, ErasureStatement
from usufruct.errors import (
    BlockNotFoundError,
    ContainerError,
    ContentError,
    ManifestError,
    PeerError,
    StoreFullError,
    UsufructError,
    WrongKeyDomainError,
)
from usufruct.he.container import block_size
from usufruct.publish import BundleManifest, read_manifest
from usufruct.records import (
    FINAL_JOB_STATES,
    Artifact,
    ArtifactId,
    ArtifactKind,
    ConsentEpoch,
    JobState,
    MemberStatus,
    OrgId,
    label,
    unlabel,
)
from usufruct.register import Policy
from usufruct_node.custody_store import CustodyStore, Held
from usufruct_node.holdings import Purpose, bundle_pin
from usufruct_node.index.faults import DOUBTFUL_SECONDS
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.copier import Copier
from usufruct_node.roles.custody_peers import CustodyPeers, Silent
from usufruct_node.roles.room import HELD_PIN, Room, held_pin
from usufruct_node.roles.wishes import Wishes

Parsed = TypeVar("Parsed")
Bundle = tuple[ArtifactId, Artifact]

_BATCH = 64
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 3600.0
_TURN_SECONDS = 30.0
_TURNS_AT_ONCE = 32
_LIVE = frozenset(JobState) - FINAL_JOB_STATES - {JobState.NONE}


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
        turn_s: float = _TURN_SECONDS,
    ) -> None:
        """Prepare.

        Parameters
        ----------
        limit_bytes :
            A new copy is taken only if no more bytes are held for others then; None for no bound but the block store's.
        silence_s :
            How long a member that did not answer is not asked again.
        turn_s :
            How long one steward's bundles are looked at, and fetched, before all of them are looked at again.
        """
        self._context = context
        self._peers = peers
        self._store = store
        self._signing_key = signing_key
        self._turn_s = turn_s
        self._silent = Silent(silence_s)
        """Members that gave no blocks."""
        self._unheard = Silent(silence_s)
        """Members that did not answer questions about copies; they may give blocks all the same."""
        self._wishes = Wishes(context, peers, store, silent=self._silent, unheard=self._unheard)
        self._copier = Copier(context, self._silent)
        self._room = Room(store, context.store, limit_bytes=limit_bytes)
        self._whole: dict[ArtifactId, tuple[bytes, bytes]] = {}
        """Bundles known to be complete here, with the digests of the policy and consent status that are here."""
        self._begun: dict[ArtifactId, tuple[int, int]] = {}
        """Of bundles that are not complete, how many blocks are known to be here and sound, and their bytes."""
        self._suspect: set[ArtifactId] = set()
        """Bundles of which every byte is to be read again."""
        self._pauses: dict[ArtifactId, tuple[float, float]] = {}
        """Bundles that cannot be taken: seconds of the last pause, and when it ends."""
        self._turns = trio.Semaphore(_TURNS_AT_ONCE)
        self._cut_off: dict[OrgId, ArtifactId] = {}
        """By steward, the bundle that was being fetched when its last turn ended."""
        self._is_first = True
        self.troubles: dict[str, str] = {}
        """Bundle id in hex -> why it is not as it should be; empty when all is well."""

    def damaged(self, artifact_id: ArtifactId) -> None:
        """A block of a bundle was found missing or altered: look at the whole again."""
        self._suspect.add(artifact_id)
        self._whole.pop(artifact_id, None)
        self._begun.pop(artifact_id, None)

    async def tend(self) -> None:
        """One look at every bundle."""
        if self._is_first:
            await trio.to_thread.run_sync(self._drop_left_over)
            self._is_first = False
        troubles: dict[str, str] = {}
        held = {one.artifact_id for one in await trio.to_thread.run_sync(self._store.held)}
        turns: dict[OrgId, list[Bundle]] = {}
        # There may be thousands: other tasks run after each.
        for artifact_id, artifact in await trio.to_thread.run_sync(
            self._context.index.artifacts, ArtifactKind.BUNDLE
        ):
            await trio.lowlevel.checkpoint()
            if not self._is_over(artifact):
                turns.setdefault(artifact.steward, []).append((artifact_id, artifact))
            elif artifact_id in held:
                await self._look(artifact_id, artifact, held, troubles)
        async with trio.open_nursery() as nursery:
            for steward, bundles in turns.items():
                nursery.start_soon(self._turn, steward, bundles, held, troubles)
        self.troubles = troubles

    async def _turn(
        self,
        steward: OrgId,
        bundles: Sequence[Bundle],
        held: Collection[ArtifactId],
        troubles: dict[str, str],
    ) -> None:
        """Look at one steward's bundles, beginning after the one that took up the rest of the last turn."""
        places = {artifact_id: at for at, (artifact_id, _) in enumerate(bundles)}
        after = self._cut_off.pop(steward, None)
        first = places[after] + 1 if after in places else 0
        left = dict([*bundles[first:], *bundles[:first]])
        async with self._turns:
            with trio.move_on_after(self._turn_s) as turn:
                await self._learn(steward, list(left.items()))
                for artifact_id, artifact in list(left.items()):
                    await trio.lowlevel.checkpoint()
                    await self._look(artifact_id, artifact, held, troubles)
                    del left[artifact_id]
        if turn.cancelled_caught and left:
            self._cut_off[steward] = next(iter(left))
            troubles.update(
                (one.hex(), self.troubles[one.hex()]) for one in left if one.hex() in self.troubles
            )
            log.debug("bundles of %s: %d are left for the next turn", unlabel(steward), len(left))

    async def _learn(self, steward: OrgId, bundles: Sequence[Bundle]) -> None:
        """What a steward wishes, as far as it is to be had in a part of its turn: the rest is for its bundles."""
        with trio.move_on_after(self._turn_s / 3) as part:
            try:
                await self._wishes.read_policies(bundles)
                await self._wishes.read_notices(steward, bundles)
            except Exception as exc:
                # Whatever one steward provokes must not end the turns of the others.
                if not isinstance(exc, (UsufructError, OSError)):
                    log.exception("wishes of %s: unexpected error", unlabel(steward))
                else:
                    log.warning("wishes of %s: %s", unlabel(steward), exc)
        if part.cancelled_caught:
            log.debug("wishes of %s: some are left for the next turn", unlabel(steward))

    async def _look(
        self,
        artifact_id: ArtifactId,
        artifact: Artifact,
        held: Collection[ArtifactId],
        troubles: dict[str, str],
    ) -> None:
        name = artifact_id.hex()
        try:
            await self._tend(artifact_id, artifact, held=artifact_id in held)
        except Exception as exc:
            # Whatever one member's bundle provokes must not keep the others from being looked at.
            if not isinstance(exc, (UsufructError, OSError)):
                log.exception("copy of bundle %s: unexpected error", name[:12])
            elif self.troubles.get(name) != str(exc):
                log.warning("copy of bundle %s: %s", name[:12], exc)
            troubles[name] = str(exc)

    def _is_over(self, artifact: Artifact) -> bool:
        """Whether nothing of a bundle is to be here: it is retained no longer, or this member was removed."""
        own = self._context.index.participant(self._context.org)
        return self._context.now() >= artifact.retain_until or (
            own is not None and own.status == MemberStatus.REMOVED
        )

    async def _tend(self, artifact_id: ArtifactId, artifact: Artifact, *, held: bool) -> None:
        context = self._context
        if self._is_over(artifact):
            if held:
                await trio.to_thread.run_sync(self._let_go, artifact_id)
            return
        own = context.index.participant(context.org)
        if own is None or own.status != MemberStatus.ACTIVE:
            return
        if artifact.steward == context.org:
            await self._restore(artifact_id, artifact)
        elif context.placements.replication(artifact) is None:
            return
        elif context.placements.is_holder(artifact_id, context.org):
            await self._try(artifact_id, artifact)
        elif held and await self._is_replaced(artifact_id, artifact.steward):
            await trio.to_thread.run_sync(self._let_go, artifact_id)

    async def _is_replaced(self, artifact_id: ArtifactId, steward: OrgId) -> bool:
        if steward in self._unheard:
            return False
        with self._unheard.noting(steward):
            return await self._peers.is_replaced(steward, artifact_id)

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
        await trio.to_thread.run_sync(self._drop_former_records, artifact_id, artifact, digests)
        self._suspect.discard(artifact_id)
        self._whole[artifact_id] = digests

    async def _take_record(
        self, artifact_id: ArtifactId, digest: bytes, parse: Callable[[Mapping[str, object]], Parsed]
    ) -> Parsed:
        """Have a record here, open to all members if `parse` takes it for what the ledger says it is."""
        context, pin = self._context, held_pin(artifact_id)
        cid = Cid.from_digest(digest, Codec.DAG_CBOR)
        data = await self._copier.sound(cid, context.sources(artifact_id), pin)
        try:
            record = parse(dag.decode_map(data))
        except UsufructError:
            await trio.to_thread.run_sync(context.store.unpin, cid, pin)
            raise
        await trio.to_thread.run_sync(context.holdings.add, [cid], Purpose.CATALOGUE, artifact_id)
        return record

    def _drop_former_records(
        self, artifact_id: ArtifactId, artifact: Artifact, digests: Collection[bytes]
    ) -> None:
        """Let go of policies and consent status that are neither in force nor cited by a job that runs, or may be doubted."""
        context, index, pin = self._context, self._context.index, held_pin(artifact_id)
        needed = {artifact.content_digest, *digests}
        doubted_from = context.now() - DOUBTFUL_SECONDS
        for row in index.jobs(*_LIVE, JobState.RELEASED, artifact_id=artifact_id):
            if row.job.state == JobState.RELEASED and row.changed_at < doubted_from:
                continue
            request = row.job.request
            epoch = index.consent_epoch(artifact.steward, artifact.consent_scope, request.consent_epoch)
            needed.add(index.policy_digest(artifact_id, request.policy_version) or b"")
            needed.add(epoch.status_digest if epoch else b"")
        former = [
            cid
            for cid in context.store.pinned(pin)
            if cid.codec == Codec.DAG_CBOR and cid.digest not in needed
        ]
        context.holdings.remove(former, Purpose.CATALOGUE, artifact_id)
        for cid in former:
            context.store.unpin(cid, pin)

    async def _take_blocks(
        self, artifact_id: ArtifactId, artifact: Artifact, manifest: BundleManifest
    ) -> None:
        context, pin = self._context, held_pin(artifact_id)
        sources, planned = context.sources(artifact_id), _size_of(manifest)
        blocks = list(dict.fromkeys(manifest.blocks))
        # Noted in any case: also a member that has no room is to state, at the end, that it has no copy.
        await trio.to_thread.run_sync(
            self._store.hold, Held(artifact_id=artifact_id, blocks=len(blocks), size_bytes=0)
        )
        await self._require_room(artifact_id, planned)
        begun, size = self._begun.get(artifact_id, (0, 0))
        for at in range(begun, len(blocks), _BATCH):
            batch = blocks[at : at + _BATCH]
            await self._copier.fetch(batch, sources, pin)
            try:
                size += await self._copier.admit(artifact, batch, sources, pin)
            except (WrongKeyDomainError, ContainerError):
                await trio.to_thread.run_sync(self._drop, artifact_id)
                await trio.to_thread.run_sync(self._store.let_go, artifact_id)
                raise
            await self._require_room(artifact_id, max(planned, size))
            await trio.to_thread.run_sync(context.holdings.add, batch, Purpose.HELD, artifact_id)
            self._begun[artifact_id] = (at + len(batch), size)
        await trio.to_thread.run_sync(
            self._store.hold, Held(artifact_id=artifact_id, blocks=len(blocks), size_bytes=size)
        )
        self._begun.pop(artifact_id, None)
        log.info("bundle %s is held here: %d blocks", artifact_id.hex()[:12], len(blocks))

    async def _require_room(self, artifact_id: ArtifactId, size_bytes: int) -> None:
        """Raise StoreFullError if a new copy does not fit; what was begun of it goes."""
        try:
            await trio.to_thread.run_sync(self._room.reserve, artifact_id, size_bytes)
        except StoreFullError:
            await trio.to_thread.run_sync(self._drop, artifact_id)
            raise

    # Own bundles.

    async def _restore(self, artifact_id: ArtifactId, artifact: Artifact) -> None:
        """Fetch back what the steward itself lost, once after each start and whenever damage was found."""
        context = self._context
        epoch = context.index.consent_epoch(artifact.steward, artifact.consent_scope)
        digests = (artifact.policy_digest, epoch.status_digest if epoch else b"")
        if self._whole.get(artifact_id) == digests:
            return
        sources = context.sources(artifact_id)
        if artifact_id not in self._whole:
            check_manifest = partial(_read_manifest, artifact_id, artifact)
            manifest = await self._restore_record(artifact.content_digest, sources, "bundle", check_manifest)
            await self._restore_blocks(artifact_id, artifact, manifest, sources)
            self._suspect.discard(artifact_id)
            self._whole[artifact_id] = (b"", b"")
        await self._restore_record(digests[0], sources, "policy", Policy.from_record)
        if epoch:
            check = partial(_check_status, artifact, epoch)
            await self._restore_record(digests[1], sources, "status", check)
        self._whole[artifact_id] = digests

    async def _restore_blocks(
        self,
        artifact_id: ArtifactId,
        artifact: Artifact,
        manifest: BundleManifest,
        sources: Sequence[OrgId],
    ) -> None:
        """Have the ciphertexts here, and given out again to those who may have them; none once retention is over."""
        context, ref = self._context, artifact.content_digest
        pin = bundle_pin(ref)
        blocks = list(dict.fromkeys(manifest.blocks))
        noted = set(await trio.to_thread.run_sync(context.holdings.cids, Purpose.BUNDLE, ref))
        for at in range(self._begun.get(artifact_id, (0, 0))[0], len(blocks), _BATCH):
            batch = blocks[at : at + _BATCH]
            fresh = [cid for cid in batch if cid not in noted]
            async with context.own_blocks:
                if self._is_over(artifact):
                    return
                if artifact_id in self._suspect:
                    await self._copier.mend(batch, sources, pin)
                await self._copier.fetch(batch, sources, pin)
                await self._copier.admit(artifact, fresh, sources, pin)
                await trio.to_thread.run_sync(context.holdings.add, fresh, Purpose.BUNDLE, ref)
            self._begun[artifact_id] = (at + len(batch), 0)
        self._begun.pop(artifact_id, None)

    async def _restore_record(
        self,
        digest: bytes,
        sources: Sequence[OrgId],
        pin: str,
        parse: Callable[[Mapping[str, object]], Parsed],
    ) -> Parsed:
        """Have an own record here, open to all members if `parse` takes it for what the ledger says it is."""
        cid = Cid.from_digest(digest, Codec.DAG_CBOR)
        record = parse(dag.decode_map(await self._copier.sound(cid, sources, pin)))
        await trio.to_thread.run_sync(self._context.holdings.add, [cid], Purpose.CATALOGUE)
        return record

    # Letting go.

    def _let_go(self, artifact_id: ArtifactId) -> None:
        """Erase a copy and state it; a statement is made only when no block is left, for whatever reason it was kept."""
        context = self._context
        # Before anything goes: if the rest fails, what is left is no whole copy.
        self._whole.pop(artifact_id, None)
        self._begun.pop(artifact_id, None)
        noted = context.holdings.cids(Purpose.HELD, artifact_id)
        context.store.unpin_all(held_pin(artifact_id))
        context.tidy()
        check_gone(context.store.has, noted)
        statement = ErasureStatement.sign(
            context.ledger.network,
            artifact_id,
            context.org,
            what=Erased.COPY,
            blocks=len(noted),
            erased_at=context.now(),
            signing_key=self._signing_key,
        )
        # Until then a crash leaves what the blocks are counted by, so that the next start states as many.
        self._store.let_go(artifact_id, statement)
        self._drop(artifact_id)
        log.info("bundle %s is held here no more: %d blocks erased", artifact_id.hex()[:12], len(noted))

    def _drop(self, artifact_id: ArtifactId) -> None:
        context = self._context
        self._whole.pop(artifact_id, None)
        self._begun.pop(artifact_id, None)
        context.store.unpin_all(held_pin(artifact_id))
        context.holdings.drop(Purpose.HELD, artifact_id)
        context.holdings.drop(Purpose.CATALOGUE, artifact_id)
        context.store.gc()
        self._room.free(artifact_id)

    def _drop_left_over(self) -> None:
        """Let go of what a crash left of bundles that are not held any more, or not noted yet."""
        context = self._context
        found = {bytes.fromhex(reason.removeprefix(HELD_PIN)) for reason in context.store.reasons(HELD_PIN)}
        for purpose in (Purpose.HELD, Purpose.CATALOGUE):
            found.update(ref for ref in context.holdings.refs(purpose) if ref)
        for ref in found - {one.artifact_id for one in self._store.held()}:
            self._drop(ArtifactId(ref))


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
