"""Retention: at a bundle's deadline its steward erases its own copy, destroys the key, and collects what the holders state.

What was sealed under a destroyed secret can be opened by nobody, whoever kept a block. Backups of the keystore made before are
beyond this node's reach. So no key is destroyed on the word of an index that is behind the ledger, nor while a bundle under it
was handed over and is not registered yet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import trio

from usufruct.content import Cid, Codec, dag
from usufruct.custody import Erased, ErasureStatement
from usufruct.errors import (
    BlockNotFoundError,
    IntegrityError,
    LedgerError,
    ManifestError,
    PeerError,
    UsufructError,
    VerificationError,
)
from usufruct.publish import read_manifest
from usufruct.records import Artifact, ArtifactId, ArtifactKind, JobState, KeyId, OrgId, unlabel
from usufruct_node.custody_store import CustodyStore
from usufruct_node.holdings import Purpose, bundle_pin
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.custody_peers import CustodyPeers, Silent
from usufruct_node.roles.pinner import check_gone

_PAUSE_SECONDS = 0.1
_CATCHING_UP_SECONDS = 5.0
"""For how long the index may take to reach the newest final block; after that keys wait for the next look."""
_UNREGISTERED_SECONDS = 7 * 86_400
"""For how long a key is kept, once all registered bundles under it have ended, for one that was only handed over."""


class Retention:
    """Role of a steward that keeps its own keys."""

    def __init__(
        self,
        context: RoleContext,
        peers: CustodyPeers,
        store: CustodyStore,
        *,
        destroy_secret: Callable[[KeyId], None],
        signing_key: bytes,
    ) -> None:
        """Prepare.

        Parameters
        ----------
        destroy_secret :
            Removes a key domain's secret, if it is there. Called in a worker thread.
        """
        self._context = context
        self._peers = peers
        self._store = store
        self._destroy_secret = destroy_secret
        self._signing_key = signing_key
        self._silent = Silent(peers.answer_s)
        self.troubles: dict[str, str] = {}
        """Bundle id in hex -> what keeps it from being erased; empty when all is well."""

    async def tend(self) -> None:
        """One look at the own bundles whose retention is over; none waits for what other members state on another."""
        troubles: dict[str, str] = {}
        ended = await trio.to_thread.run_sync(self._ended, self._context.now())
        for artifact_id, artifact in ended:
            with self._noting(artifact_id, troubles):
                await self._end_copy(artifact_id, artifact)
        without_copy = [bundle for bundle in ended if bundle[0].hex() not in troubles]
        await self._end_keys(without_copy, troubles)
        self.troubles = troubles
        awaited = await trio.to_thread.run_sync(self._awaited, [artifact_id for artifact_id, _ in ended])
        async with trio.open_nursery() as nursery:
            for org, artifact_ids in awaited.items():
                if org not in self._silent:
                    nursery.start_soon(self._collect, org, artifact_ids)

    def _ended(self, now: int) -> list[tuple[ArtifactId, Artifact]]:
        context = self._context
        return [
            (artifact_id, artifact)
            for artifact_id, artifact in context.index.artifacts(ArtifactKind.BUNDLE)
            if artifact.steward == context.org and now >= artifact.retain_until
        ]

    @contextmanager
    def _noting(self, artifact_id: ArtifactId, troubles: dict[str, str]) -> Iterator[None]:
        """Inside, one bundle is dealt with: what goes wrong keeps no other waiting."""
        try:
            yield
        except (UsufructError, OSError) as exc:
            troubles[artifact_id.hex()] = str(exc)
            log.warning("retention of bundle %s: %s", artifact_id.hex()[:12], exc)

    async def _end_copy(self, artifact_id: ArtifactId, artifact: Artifact) -> None:
        # Most were erased long ago: they do not wait for what is being fetched back of others.
        if await trio.to_thread.run_sync(self._has_copy, artifact_id, artifact):
            async with self._context.own_blocks:
                await trio.to_thread.run_sync(self._erase_copy, artifact_id, artifact)

    async def _end_keys(
        self, bundles: Sequence[tuple[ArtifactId, Artifact]], troubles: dict[str, str]
    ) -> None:
        """Destroy the keys of these bundles that nothing needs any more."""
        bundles = await trio.to_thread.run_sync(self._with_key, bundles)
        if not bundles:
            return
        needed, _ = await trio.to_thread.run_sync(self._needed_keys)
        unneeded = [artifact_id.hex() for artifact_id, artifact in bundles if artifact.key_id not in needed]
        if unneeded:
            try:
                await self._catch_up()
            except LedgerError as exc:
                log.warning("no key is destroyed while the ledger is not known as it is: %s", exc)
                troubles |= dict.fromkeys(
                    unneeded, f"its key stays until the ledger is known as it is: {exc}"
                )
                return
            needed, abandoned = await trio.to_thread.run_sync(self._needed_keys)
            for bundle in abandoned:
                await trio.to_thread.run_sync(self._drop_unregistered, bundle)
        for artifact_id, artifact in bundles:
            if artifact.key_id in needed:
                if needed[artifact.key_id]:
                    troubles[artifact_id.hex()] = needed[artifact.key_id]
                continue
            with self._noting(artifact_id, troubles):
                await self._context.ask(partial(self._destroy_secret, artifact.key_id))
                await trio.to_thread.run_sync(self._state, artifact_id, Erased.KEY, 0)

    async def _catch_up(self) -> None:
        """Wait until the index has what is final now: what it lacks may need any key.

        Raises
        ------
        LedgerError
            If the ledger cannot be asked, or the index does not get there in time.
        """
        index, head = self._context.index, await trio.to_thread.run_sync(self._context.ledger.finalised)
        with trio.move_on_after(_CATCHING_UP_SECONDS):
            while (cursor := index.cursor()) is None or cursor.number < head.number:
                await trio.sleep(_PAUSE_SECONDS)
            return
        raise LedgerError(f"the index has not reached block {head.number}")

    def _with_key(self, bundles: Sequence[tuple[ArtifactId, Artifact]]) -> list[tuple[ArtifactId, Artifact]]:
        """Those of some bundles whose key was not destroyed."""
        org = self._context.org
        return [bundle for bundle in bundles if not self._store.has_erased(bundle[0], org, Erased.KEY)]

    def _has_copy(self, artifact_id: ArtifactId, artifact: Artifact) -> bool:
        """Whether blocks are here, also in spite of a statement, as after a restore; or nothing was stated yet."""
        kept = self._context.store.pinned(bundle_pin(artifact.content_digest))
        return next(iter(kept), None) is not None or not self._store.has_erased(
            artifact_id, self._context.org, Erased.COPY
        )

    def _erase_copy(self, artifact_id: ArtifactId, artifact: Artifact) -> None:
        if self._has_copy(artifact_id, artifact):
            self._state(artifact_id, Erased.COPY, self._erase(artifact))

    def _erase(self, artifact: Artifact) -> int:
        """Erase the ciphertexts; manifest and policy stay, as lineage is walked through them."""
        context = self._context
        try:
            record = context.store.get(Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR))
            blocks = list(dict.fromkeys(read_manifest(dag.decode_map(record)).blocks))
        except (BlockNotFoundError, IntegrityError):
            # A manifest that is lost must not keep the key.
            blocks = context.holdings.cids(Purpose.BUNDLE, artifact.content_digest)
        context.store.unpin_all(bundle_pin(artifact.content_digest))
        context.tidy()
        check_gone(context.store.has, blocks)
        context.holdings.drop(Purpose.BUNDLE, artifact.content_digest)
        return len(blocks)

    def _needed_keys(self) -> tuple[dict[KeyId, str], list[Cid]]:
        """Keys under which a bundle is retained, or a verified result still to be opened or refused, each with an empty
        text; and those of bundles that were handed over and are not registered, with what is to be said of it. Then such
        bundles that nobody will register any more: the last registered one under their key ended a week ago.
        """
        context, index = self._context, self._context.index
        bundles, now = [artifact for _, artifact in index.artifacts(ArtifactKind.BUNDLE)], context.now()
        own = [bundle for bundle in bundles if bundle.steward == context.org]
        last: dict[KeyId, int] = {}
        for bundle in own:
            last[bundle.key_id] = max(bundle.retain_until, last.get(bundle.key_id, 0))
        needed: dict[KeyId, str] = {}
        abandoned = []
        for cid, key_id in self._unregistered({bundle.content_digest for bundle in own}):
            if now < last.get(key_id, now) + _UNREGISTERED_SECONDS:
                needed[key_id] = f"its key stays: bundle {cid} under it was handed over and is not registered"
            else:
                abandoned.append(cid)
        needed |= {bundle.key_id: "" for bundle in bundles if now < bundle.retain_until}
        needed |= {row.job.key_id: "" for row in index.jobs(JobState.VERIFIED, JobState.OPENED)}
        return needed, abandoned

    def _unregistered(self, registered: Container[bytes]) -> Iterator[tuple[Cid, KeyId]]:
        """Manifests of own bundles that were handed over only, with their keys."""
        for digest in self._context.holdings.refs(Purpose.BUNDLE):
            if digest in registered:
                continue
            cid = Cid.from_digest(digest, Codec.DAG_CBOR)
            # One whose manifest is lost can be opened by nobody, and must not keep a key.
            with suppress(BlockNotFoundError, IntegrityError):
                yield cid, KeyId(read_manifest(dag.decode_map(self._context.store.get(cid))).shape.key_id)

    def _drop_unregistered(self, bundle: Cid) -> None:
        log.warning("bundle %s was handed over and never registered; it goes with its key", bundle)
        self._context.store.unpin_all(bundle_pin(bundle.digest))
        self._context.tidy()
        self._context.holdings.drop(Purpose.BUNDLE, bundle.digest)

    def _state(self, artifact_id: ArtifactId, what: Erased, blocks: int) -> None:
        context = self._context
        statement = ErasureStatement.sign(
            context.ledger.network,
            artifact_id,
            context.org,
            what=what,
            blocks=blocks,
            erased_at=context.now(),
            signing_key=self._signing_key,
        )
        self._store.keep_erasure(statement)
        log.info("bundle %s: %s erased", artifact_id.hex()[:12], what.name.lower())

    def _awaited(self, artifact_ids: Sequence[ArtifactId]) -> dict[OrgId, list[ArtifactId]]:
        """Bundles by the members that were to hold a copy and have not stated its erasure."""
        awaited: dict[OrgId, list[ArtifactId]] = {}
        for artifact_id in artifact_ids:
            for org in self._store.awaited(artifact_id):
                awaited.setdefault(org, []).append(artifact_id)
        return awaited

    async def _collect(self, org: OrgId, artifact_ids: Sequence[ArtifactId]) -> None:
        """Ask a member for its statements, until it fails to answer."""
        # In no fixed order: one question that it cannot answer is not always before the others.
        for artifact_id in random.sample(artifact_ids, len(artifact_ids)):
            try:
                statements, _ = await self._peers.erasures(org, artifact_id)
            except PeerError as exc:
                log.debug("no statements of %s yet: %s", unlabel(org), exc)
                self._silent.add(org)
                return
            except (ManifestError, VerificationError) as exc:
                log.debug("no statement of %s: %s", unlabel(org), exc)
                continue
            for statement in statements:
                if statement.holder == org:
                    await trio.to_thread.run_sync(self._store.keep_erasure, statement)
