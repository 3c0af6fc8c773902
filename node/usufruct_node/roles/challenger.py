"""Challenger: has the holders of this organisation's bundles prove now and then that they still hold them, and logs what came.

A holder that fails is left out for a while, in a signed notice that the others go by; the next in line takes its place. Sees
ciphertexts only.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from usufruct.content import Cid, Codec, dag
from usufruct.custody import MAX_LEFT_OUT, PlacementNotice, Segment, StorageChallenge, StorageProof
from usufruct.errors import ContentError, IntegrityError, PeerError, StorageProofError
from usufruct.publish import read_manifest
from usufruct.records import Artifact, ArtifactId, ArtifactKind, OrgId, unlabel
from usufruct_node.challenge_log import ChallengeLog, Entry, Outcome
from usufruct_node.custody_store import CustodyStore
from usufruct_node.roles.context import RoleContext, log
from usufruct_node.roles.custody_peers import CustodyPeers, NotHeldError

_SEGMENT_BYTES = 4096
_SEGMENTS = 16
_SOON_SECONDS = 60.0
_DESIGNATED_SECONDS = 60
"""Between two notes that the same members are still to hold a bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRules:
    """How a steward deals with its holders, in seconds where it is time."""

    every_s: float
    """Between two challenges of one holder on one bundle."""
    misses: int
    """Unanswered challenges in a row that count as a failure."""
    grace_s: int
    """For a new holder to fetch its copy."""
    left_out_s: int
    """How long a holder that failed does not count."""


class Challenger:
    """Challenges whose turn it is, all holders side by side; the caller decides when to look."""

    def __init__(
        self,
        context: RoleContext,
        peers: CustodyPeers,
        store: CustodyStore,
        record: ChallengeLog,
        *,
        rules: ChallengeRules,
        signing_key: bytes,
        on_damage: Callable[[ArtifactId], None],
    ) -> None:
        """Prepare.

        Parameters
        ----------
        on_damage :
            Told of a bundle whose own copy was found missing or altered.
        """
        self._context = context
        self._peers = peers
        self._store = store
        self._record = record
        self._rules = rules
        self._signing_key = signing_key
        self._on_damage = on_damage
        self._due: dict[tuple[ArtifactId, OrgId], float] = {}
        self._designated: dict[ArtifactId, tuple[tuple[OrgId, ...], int]] = {}
        """Holders that were noted last, and when."""

    async def tend(self) -> None:
        """Note who is to hold the own bundles, challenge whose turn it is, and say who is left out."""
        now = self._context.now()
        own = await trio.to_thread.run_sync(self._own, now)
        due: dict[OrgId, list[tuple[ArtifactId, Artifact]]] = {}
        for artifact_id, artifact in own:
            for holder in await trio.to_thread.run_sync(self._designate, artifact_id, now):
                if self._is_due(artifact_id, holder):
                    due.setdefault(holder, []).append((artifact_id, artifact))
        async with trio.open_nursery() as nursery:
            for holder, bundles in due.items():
                nursery.start_soon(self._challenge_all, holder, bundles)
        for artifact_id, _ in own:
            await trio.to_thread.run_sync(self._give_notice, artifact_id, self._context.now())

    def _own(self, now: int) -> list[tuple[ArtifactId, Artifact]]:
        """Own bundles that are retained and whose policy was read."""
        context = self._context
        return [
            (artifact_id, artifact)
            for artifact_id, artifact in context.index.artifacts(ArtifactKind.BUNDLE)
            if artifact.steward == context.org
            and now < artifact.retain_until
            and context.placements.replication(artifact) is not None
        ]

    def _designate(self, artifact_id: ArtifactId, now: int) -> tuple[OrgId, ...]:
        """The present holders, noted when they are others than before, and now and then."""
        holders = self._context.placements.holders(artifact_id)
        noted, at = self._designated.get(artifact_id, (None, 0))
        if holders != noted or now >= at + _DESIGNATED_SECONDS:
            self._store.designate(artifact_id, holders, now)
            self._designated[artifact_id] = (holders, now)
        return holders

    async def _challenge_all(self, holder: OrgId, bundles: Sequence[tuple[ArtifactId, Artifact]]) -> None:
        """Challenge one holder, one bundle after the other; one that is silent is left alone until the next look.

        Whose turn came first is first: a holder that answers a few only is not asked about the same ones for ever.
        """
        for artifact_id, artifact in sorted(bundles, key=lambda one: self._due.get((one[0], holder), 0.0)):
            if await self._try(artifact_id, artifact, holder) == Outcome.SILENT:
                return

    def _is_due(self, artifact_id: ArtifactId, holder: OrgId) -> bool:
        return time.monotonic() >= self._due.get((artifact_id, holder), 0.0)

    async def _try(self, artifact_id: ArtifactId, artifact: Artifact, holder: OrgId) -> Outcome | None:
        """Challenge, judge, and say what came; None when the own copy is not as it should be."""
        outcome: Outcome | None = None
        try:
            outcome = await self._challenge(artifact_id, artifact, holder)
        except (ContentError, IntegrityError) as exc:
            log.warning("no challenge on bundle %s: its own copy: %s", artifact_id.hex()[:12], exc)
            self._on_damage(artifact_id)
        # A new holder that is still fetching is asked again soon.
        soon = min(self._rules.every_s, _SOON_SECONDS)
        pause = soon if outcome == Outcome.NOT_HELD else self._rules.every_s
        self._due[artifact_id, holder] = time.monotonic() + pause
        now = self._context.now()
        # One that is a holder no longer, by a policy of this moment, may have let go while it was asked.
        if holder not in self._context.placements.holders(artifact_id):
            return outcome
        if await trio.to_thread.run_sync(self._has_failed, artifact_id, holder, now):
            log.error(
                "%s holds no copy of bundle %s: it is left out, another takes its place",
                unlabel(holder),
                artifact_id.hex()[:12],
            )
            until = now + self._rules.left_out_s
            await trio.to_thread.run_sync(self._store.fail, artifact_id, holder, until)
        return outcome

    async def _challenge(self, artifact_id: ArtifactId, artifact: Artifact, holder: OrgId) -> Outcome:
        """Challenge a member on a bundle that is here, and log what comes of it.

        Raises
        ------
        ContentError, IntegrityError
            If the bundle is not here as it should be.
        """
        asked = await trio.to_thread.run_sync(self._draw, artifact_id, artifact)
        answer: StorageProof | None = None
        detail = ""
        try:
            answer = await self._peers.prove(holder, asked)
            outcome = Outcome.PASSED
        except NotHeldError as exc:
            outcome, detail = Outcome.NOT_HELD, str(exc)
        except StorageProofError as exc:
            outcome, detail = Outcome.WRONG, str(exc)
        except PeerError as exc:
            outcome, detail = Outcome.SILENT, str(exc)
        entry = Entry(
            artifact_id=artifact_id,
            org=holder,
            outcome=outcome,
            at=self._context.now(),
            detail=detail,
            challenge=asked,
            answer=answer,
        )
        await trio.to_thread.run_sync(self._record.append, entry)
        if outcome != Outcome.PASSED:
            log.warning(
                "challenge of %s on bundle %s: %s", unlabel(holder), artifact_id.hex()[:12], detail or outcome
            )
        return outcome

    def _has_failed(self, artifact_id: ArtifactId, holder: OrgId, now: int) -> bool:
        """Judged by the newest entries since the member is a holder."""
        since = next((d.since for d in self._store.designations(artifact_id) if d.org == holder), now)
        recent = self._record.last(artifact_id, holder, limit=self._rules.misses)
        recent = [entry for entry in recent if entry.at >= since]
        if not recent or recent[0].outcome == Outcome.PASSED:
            return False
        if recent[0].outcome == Outcome.WRONG:
            return True
        if recent[0].outcome == Outcome.NOT_HELD:
            return now >= since + self._rules.grace_s or self._ever_passed(artifact_id, holder, since)
        silent = [entry for entry in recent if entry.outcome == Outcome.SILENT]
        return len(silent) >= self._rules.misses

    def _ever_passed(self, artifact_id: ArtifactId, holder: OrgId, since: int) -> bool:
        entries = self._record.last(artifact_id, holder, limit=1000)
        return any(entry.outcome == Outcome.PASSED and entry.at >= since for entry in entries)

    def _give_notice(self, artifact_id: ArtifactId, now: int) -> None:
        """Sign a new notice when another set of members is left out than the last one says."""
        left_out = self._store.failed(artifact_id, now)[:MAX_LEFT_OUT]
        last = self._store.notice(artifact_id)
        if left_out == (last.left_out if last else ()):
            return
        # A node that was restored may have lost notices: chain time is above whatever they were numbered with.
        sequence = max(now, last.sequence + 1 if last else 0)
        notice = PlacementNotice.sign(
            self._context.ledger.network,
            artifact_id,
            sequence=sequence,
            left_out=left_out,
            signing_key=self._signing_key,
        )
        self._store.keep_notice(notice)

    def _draw(self, artifact_id: ArtifactId, artifact: Artifact) -> StorageChallenge:
        """Random segments of random blocks under a fresh nonce."""
        store = self._context.store
        manifest = read_manifest(
            dag.decode_map(store.get(Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR)))
        )
        dice = secrets.SystemRandom()
        blocks = list(dict.fromkeys(manifest.blocks))
        segments = []
        for cid in dice.sample(blocks, min(_SEGMENTS, len(blocks))):
            size = store.size(cid)
            length = min(_SEGMENT_BYTES, size)
            segments.append(Segment(cid, dice.randint(0, size - length), length))
        return StorageChallenge(
            artifact_id=artifact_id,
            challenger=self._context.org,
            nonce=secrets.token_bytes(32),
            segments=tuple(segments),
        )
