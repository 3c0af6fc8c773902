"""Which members are to hold which bundle, as of the indexed block: policy, registry and the steward's notice put together."""

from __future__ import annotations

import threading

from usufruct.records import Artifact, ArtifactId, OrgId
from usufruct.replication import Replication
from usufruct_node.custody_store import CustodyStore
from usufruct_node.index import Index

_CACHED = 4096


class Placements:
    """Answers from the index and the node's own store; fetches nothing. Thread-safe."""

    def __init__(self, index: Index, store: CustodyStore) -> None:
        self._index = index
        self._store = store
        self._lock = threading.Lock()
        self._cache: dict[ArtifactId, tuple[object, tuple[OrgId, ...]]] = {}

    def replication(self, artifact: Artifact) -> Replication | None:
        """What the policy in force says; None until it was read."""
        return self._store.replication(artifact.policy_digest)

    def holders(self, artifact_id: ArtifactId) -> tuple[OrgId, ...]:
        """Members that are to hold a copy beside the steward, best first; none while the policy is unread."""
        artifact = self._index.artifact(artifact_id)
        notice = self._store.notice(artifact_id)
        cursor = self._index.cursor()
        if artifact is None or cursor is None:
            return ()
        # Another block, policy or notice may mean other holders.
        version = (cursor.hash, artifact.policy_digest, notice and notice.sequence)
        with self._lock:
            known, holders = self._cache.get(artifact_id, (None, ()))
            if known == version:
                return holders
        replication = self.replication(artifact)
        if replication is None:
            return ()
        left_out = frozenset(notice.left_out) if notice else frozenset()
        holders = replication.choose(
            artifact_id, artifact.steward, self._index.participants(), left_out=left_out
        )
        with self._lock:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[artifact_id] = (version, holders)
        return holders

    def is_holder(self, artifact_id: ArtifactId, org: OrgId) -> bool:
        """Whether a member is to hold a copy."""
        return org in self.holders(artifact_id)

    def sources(self, artifact_id: ArtifactId, *, but: OrgId) -> tuple[OrgId, ...]:
        """Members that a bundle's blocks may be had from, steward first, without `but`."""
        artifact = self._index.artifact(artifact_id)
        if artifact is None:
            return ()
        return tuple(org for org in (artifact.steward, *self.holders(artifact_id)) if org != but)
