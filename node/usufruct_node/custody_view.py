"""What a node shows of copies of bundles: who is to hold them, what is here, what challenges and erasures say. Read-only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from usufruct.custody import ErasureStatement
from usufruct.errors import MissingEventError
from usufruct.records import Artifact, ArtifactId, ArtifactKind, OrgId, unlabel
from usufruct_node.challenge_log import ChallengeLog, Logged
from usufruct_node.custody_store import CustodyStore
from usufruct_node.index import Index
from usufruct_node.placement import Placements
from usufruct_node.queries import UnknownRecordError


class CustodyView:
    """Every answer is as of the newest indexed block."""

    def __init__(
        self,
        org: OrgId,
        index: Index,
        store: CustodyStore,
        record: ChallengeLog,
        placements: Placements,
    ) -> None:
        self._org = org
        self._index = index
        self._store = store
        self._record = record
        self._placements = placements

    def bundle(self, artifact_id: ArtifactId) -> Artifact:
        """A registered bundle.

        Raises
        ------
        UnknownRecordError
        """
        artifact = self._index.artifact(artifact_id)
        if artifact is None or artifact.kind != ArtifactKind.BUNDLE:
            raise UnknownRecordError(f"no bundle {artifact_id.hex()}")
        return artifact

    def copies(self) -> list[dict[str, Any]]:
        """Bundles with their holders, newest first; `copies` is null where the policy was not read yet."""
        held = {one.artifact_id: one for one in self._store.held()}
        answers = []
        for artifact_id, artifact in reversed(self._index.artifacts(ArtifactKind.BUNDLE)):
            replication = self._placements.replication(artifact)
            holders = self._placements.holders(artifact_id)
            notice = self._store.notice(artifact_id)
            here = held.get(artifact_id)
            answers.append(
                {
                    "artifact_id": artifact_id.hex(),
                    "steward": unlabel(artifact.steward),
                    "retain_until": artifact.retain_until,
                    "copies": replication.copies if replication else None,
                    "named": list(replication.holders) if replication else [],
                    "holders": [unlabel(org) for org in holders],
                    "left_out": [unlabel(org) for org in notice.left_out] if notice else [],
                    "held_bytes": here.size_bytes if here else None,
                    "challenges": self._latest(artifact_id, holders),
                }
            )
        return answers

    def challenges(self, limit: int) -> dict[str, Any]:
        """The log's newest entries, newest first, and whether the whole of it holds together."""
        entries = self._record.last(limit=limit)
        try:
            length, head = self._record.check()
            found: dict[str, Any] = {"length": length, "head": head.hex(), "whole": True}
        except MissingEventError as exc:
            found = {"length": None, "head": None, "whole": False, "trouble": str(exc)}
        return found | {"entries": [_entry(entry) for entry in entries]}

    def erasures(
        self,
        artifact_id: ArtifactId,
        artifact: Artifact,
        statements: Sequence[ErasureStatement],
        awaited: Sequence[OrgId],
    ) -> dict[str, Any]:
        """Checked statements as JSON."""
        cursor = self._index.cursor()
        return {
            "artifact_id": artifact_id.hex(),
            "steward": unlabel(artifact.steward),
            "retain_until": artifact.retain_until,
            "over": cursor is not None and cursor.timestamp >= artifact.retain_until,
            "statements": [
                {
                    "holder": unlabel(statement.holder),
                    "what": statement.what.name.lower(),
                    "blocks": statement.blocks,
                    "erased_at": statement.erased_at,
                    "signature": statement.signature.hex(),
                }
                for statement in statements
            ],
            "awaited": [unlabel(org) for org in awaited],
        }

    def _latest(self, artifact_id: ArtifactId, holders: Sequence[OrgId]) -> dict[str, Any]:
        found = {}
        for holder in holders:
            last = self._record.last(artifact_id, holder, limit=1)
            if last:
                found[unlabel(holder)] = {"outcome": str(last[0].outcome), "at": last[0].at}
        return found


def _entry(entry: Logged) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "artifact_id": entry.artifact_id.hex(),
        "holder": unlabel(entry.org),
        "outcome": str(entry.outcome),
        "detail": entry.detail,
        "at": entry.at,
        "head": entry.head.hex(),
    }
