"""Answers other members' questions about copies of bundles: prove that you hold it, who is left out, what was erased.

Runs in worker threads. Every question is hostile until parsed, and answered only to active members; a proof costs reading, so
each member gets a bounded number of them.

**Invariant:** a proof is given only to members that may have the bytes themselves: digests over ranges of their choosing would
give anybody else the bytes one by one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from usufruct.content import BlockStore, Cid, Codec, dag
from usufruct.custody import Erased, ErasureStatement, StorageChallenge, prove_possession
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    IntegrityError,
    ManifestError,
    StorageProofError,
    UsufructError,
)
from usufruct.ledger import Network
from usufruct.publish import read_manifest
from usufruct.records import Artifact, ArtifactId, ArtifactKind, MemberStatus, OrgId, Participant, Role
from usufruct_node.challenge_log import ChallengeLog, Outcome
from usufruct_node.custody_store import CustodyStore
from usufruct_node.holdings import Holding, Holdings, Purpose
from usufruct_node.index import Index
from usufruct_node.peers.identity import parse_peer_id
from usufruct_node.placement import Placements

_log = logging.getLogger(__name__)

MAX_NOTICES = 24
"""Bundles in one question for notices: as many as fit into one answer, however many members each notice leaves out."""

PAGE = 128
"""Statements, and members whose statements are missing, in one answer."""

PROOFS_PER_MINUTE = 60
"""Challenges of one member that are answered."""

NOT_HELD = "not-held"
BUSY = "busy"
REFUSED = "refused"
MALFORMED = "malformed"

Answer = dict[str, object]

_ERASURES = {"ask", "artifact", "skip"}


class Allowance:
    """How many questions each member has left; refills evenly, and never holds more than a minute's worth. Thread-safe."""

    def __init__(self, per_minute: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._now = now
        self._lock = threading.Lock()
        self._left: dict[OrgId, tuple[float, float]] = {}

    def take(self, member: OrgId) -> bool:
        """Use one up; False if there is none left."""
        now = self._now()
        with self._lock:
            left, at = self._left.get(member, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - at) * self._per_minute / 60)
            granted = left >= 1
            self._left[member] = (left - granted, now)
        return granted


class CustodyService:
    """One node's answers."""

    def __init__(
        self,
        *,
        org: OrgId,
        network: Network,
        index: Index,
        blocks: BlockStore,
        holdings: Holdings,
        store: CustodyStore,
        record: ChallengeLog,
        placements: Placements,
        signing_key: bytes,
        now: Callable[[], int],
        on_damage: Callable[[ArtifactId], None],
        allowance: Allowance | None = None,
    ) -> None:
        """Prepare.

        Parameters
        ----------
        now :
            Unix seconds, chain time.
        on_damage :
            Told of a bundle of which a block that should be here is not, or is something else.
        """
        self._org = org
        self._network = network
        self._index = index
        self._blocks = blocks
        self._holdings = holdings
        self._store = store
        self._record = record
        self._placements = placements
        self._signing_key = signing_key
        self._now = now
        self._on_damage = on_damage
        self._allowance = allowance or Allowance(PROOFS_PER_MINUTE)

    def answer(self, peer_id: str, question: Mapping[str, Any]) -> Answer:
        """Answer one question; whatever is wrong with it is said in a word."""
        member = self._index.participant_by_peer(parse_peer_id(peer_id))
        if member is None or member.status != MemberStatus.ACTIVE:
            return {"refused": REFUSED}
        try:
            if question.get("ask") == "proof" and set(question) == {"ask", "challenge"}:
                return self._prove(member, _map(question["challenge"]))
            if question.get("ask") == "notices" and set(question) == {"ask", "artifacts"}:
                return self._notices(question["artifacts"])
            if question.get("ask") == "replaced" and set(question) == {"ask", "artifact"}:
                return self._replaced(member, _id(question["artifact"]))
            if question.get("ask") == "erasures" and {"ask", "artifact"} <= set(question) <= _ERASURES:
                return self._erasures(member, _id(question["artifact"]), _count(question.get("skip", 0)))
        except ManifestError:
            return {"refused": MALFORMED}
        except UsufructError as exc:
            _log.warning("a question of %s cannot be answered: %s", member.name, exc)
            return {"refused": BUSY}
        return {"refused": MALFORMED}

    def _prove(self, member: Participant, record: Mapping[str, Any]) -> Answer:
        challenge = StorageChallenge.from_record(record)
        artifact = self._index.artifact(challenge.artifact_id)
        if artifact is None or artifact.kind != ArtifactKind.BUNDLE or challenge.challenger != member.id:
            return {"refused": REFUSED}
        if Role.AUDITOR not in member.roles and member.id != artifact.steward:
            return {"refused": REFUSED}
        if not self._allowance.take(member.id):
            return {"refused": BUSY}
        reason = self._reason(challenge.artifact_id, artifact)
        cids = {segment.cid for segment in challenge.segments}
        if any(reason not in self._holdings.of(cid) for cid in cids):
            return {"refused": NOT_HELD}
        try:
            proof = prove_possession(
                self._network,
                self._org,
                challenge,
                self._blocks.get,
                answered_at=self._now(),
                signing_key=self._signing_key,
            )
        except (BlockNotFoundError, BlockMismatchError):
            self._on_damage(challenge.artifact_id)
            return {"refused": NOT_HELD}
        except StorageProofError:
            return {"refused": MALFORMED}
        return {"proof": proof.to_record()}

    def _reason(self, artifact_id: ArtifactId, artifact: Artifact) -> Holding:
        if artifact.steward == self._org:
            return Holding(Purpose.BUNDLE, artifact.content_digest)
        return Holding(Purpose.HELD, artifact_id)

    def _notices(self, wanted: object) -> Answer:
        if not isinstance(wanted, list) or len(wanted) > MAX_NOTICES:
            raise ManifestError("not a short list of bundles")
        found = [self._store.notice(_id(artifact_id)) for artifact_id in wanted]
        return {"notices": [notice.to_record() for notice in found if notice is not None]}

    def _replaced(self, member: Participant, artifact_id: ArtifactId) -> Answer:
        """As its steward: whether every present holder of a bundle has proved that it holds it, so that a member may go.

        A member may have seen a newer block than this node: by what is known here it can be a holder still, and with the policy
        unread nobody is one.
        """
        artifact = self._index.artifact(artifact_id)
        if artifact is None or artifact.steward != self._org:
            return {"refused": REFUSED}
        replication = self._placements.replication(artifact)
        holders = self._placements.holders(artifact_id)
        if replication is None or member.id in holders or (replication.copies > 1 and not holders):
            return {"replaced": False}
        since = {d.org: d.since for d in self._store.designations(artifact_id) if d.in_force}
        for holder in holders:
            last = self._record.last(artifact_id, holder, limit=1)
            if (
                holder not in since
                or not last
                or last[0].outcome != Outcome.PASSED
                or last[0].at < since[holder]
            ):
                return {"replaced": False}
        return {"replaced": True}

    def _erasures(self, member: Participant, artifact_id: ArtifactId, skip: int) -> Answer:
        """A page of what is known; `more` says that another follows."""
        self._state_that_nothing_is_here(member, artifact_id)
        end = skip + PAGE
        statements, awaited = self._store.erasures(artifact_id), self._store.awaited(artifact_id)
        page: Answer = {
            "erasures": [statement.to_record() for statement in statements[skip:end]],
            "awaited": list(awaited[skip:end]),
        }
        return page | {"more": True} if max(len(statements), len(awaited)) > end else page

    def _state_that_nothing_is_here(self, member: Participant, artifact_id: ArtifactId) -> None:
        """A member that was to hold an ended bundle and never had any of it has nothing to erase, and its steward waits for
        its word all the same."""
        artifact = self._index.artifact(artifact_id)
        if artifact is None or artifact.kind != ArtifactKind.BUNDLE or self._now() < artifact.retain_until:
            return
        if member.id != artifact.steward or self._org == artifact.steward:
            return
        if self._store.has_erased(artifact_id, self._org, Erased.COPY) or self._has_any(
            artifact_id, artifact
        ):
            return
        statement = ErasureStatement.sign(
            self._network,
            artifact_id,
            self._org,
            what=Erased.COPY,
            blocks=0,
            erased_at=self._now(),
            signing_key=self._signing_key,
        )
        self._store.keep_erasure(statement)

    def _has_any(self, artifact_id: ArtifactId, artifact: Artifact) -> bool:
        """Whether something of a bundle is here, or is being let go of, for whatever reason; whoever has a block, as for a job,
        has the manifest."""
        held = any(one.artifact_id == artifact_id for one in self._store.held())
        if held or self._holdings.cids(Purpose.HELD, artifact_id):
            return True
        try:
            record = self._blocks.get(Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR))
            return any(map(self._blocks.has, read_manifest(dag.decode_map(record)).blocks))
        except BlockMismatchError:
            # Damaged: what it names cannot be looked up.
            return True
        except (BlockNotFoundError, IntegrityError):
            return False


def _map(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ManifestError("not a map")
    return value


def _id(value: object) -> ArtifactId:
    if type(value) is not bytes or len(value) != 32:
        raise ManifestError("not an id of 32 bytes")
    return ArtifactId(value)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ManifestError("not a number of statements")
    return value
