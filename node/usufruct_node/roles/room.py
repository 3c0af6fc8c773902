"""How much of other members' bundles is kept here, and whether one more copy fits."""

from __future__ import annotations

import threading

from usufruct.content import BlockStore
from usufruct.errors import StoreFullError
from usufruct.records import ArtifactId
from usufruct_node.custody_store import CustodyStore

HELD_PIN = "held:"


def held_pin(artifact_id: ArtifactId) -> str:
    """Pin under which the copy of another member's bundle is kept."""
    return HELD_PIN + artifact_id.hex()


class Room:
    """Counts every copy: a whole one by its bytes, one under way by what it will be when it is whole. Thread-safe."""

    def __init__(self, store: CustodyStore, blocks: BlockStore, *, limit_bytes: int | None) -> None:
        self._store = store
        self._blocks = blocks
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._planned: dict[ArtifactId, int] = {}
        """Bytes of copies that are not whole yet."""

    def reserve(self, artifact_id: ArtifactId, size_bytes: int) -> None:
        """Set bytes aside for a copy that is noted as being fetched.

        A copy that is whole has its room, also when the limit was lowered since: it is counted on.

        Raises
        ------
        StoreFullError
            If it does not fit beside the others; what was set aside for it before is free again.
        """
        with self._lock:
            sizes = {held.artifact_id: held.size_bytes for held in self._store.held()}
            if self._limit_bytes is None or sizes.pop(artifact_id, 0):
                return
            others = sum(size or self._of_partial(one) for one, size in sizes.items())
            if others + size_bytes > self._limit_bytes:
                self._planned.pop(artifact_id, None)
                raise StoreFullError(
                    f"bundle {artifact_id.hex()[:12]} does not fit: {others} of {self._limit_bytes} bytes are held for others"
                )
            self._planned[artifact_id] = size_bytes

    def free(self, artifact_id: ArtifactId) -> None:
        """Forget what was set aside for a copy."""
        with self._lock:
            self._planned.pop(artifact_id, None)

    def _of_partial(self, artifact_id: ArtifactId) -> int:
        """What it will be; of one that an earlier run began and this one has not gone on with, what is here, looked up once."""
        if artifact_id not in self._planned:
            blocks = self._blocks.pinned(held_pin(artifact_id))
            self._planned[artifact_id] = sum(map(self._blocks.size, blocks))
        return self._planned[artifact_id]
