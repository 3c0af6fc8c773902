"""Step 10, lineage: from any released number back to bundles, consents, policies, jobs and verifiers, every step re-checked.

The node's index proposes; this module disposes: every event is compared with the chain's own logs, every series must be without
a gap, every content is fetched and hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from usufruct.content import Cid, Codec, dag
from usufruct.content.node import NodeContent
from usufruct.errors import VerificationError
from usufruct.ledger import Ledger
from usufruct.ledger.abi import args_from_json
from usufruct.ledger.series import check_series, event_codec
from usufruct.publish import read_manifest
from usufruct.records import ArtifactId, LedgerEvent, unlabel
from usufruct.verify import ResultManifest

Progress = Callable[[str], None]

_RIGHTS = ("UsageRequested", "UsageGranted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event on the ledger."""

    what: str
    detail: str
    block_number: int
    transaction_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """One artifact and what stood behind it when it was made."""

    artifact_id: ArtifactId
    kind: str
    steward: str
    content: Cid
    stale: bool | None
    """Whether the consent used is no longer in force; None for bundles."""
    job: Mapping[str, Any] | None
    consent: Mapping[str, Any]
    policy: Mapping[str, Any]
    steps: tuple[Step, ...]
    parents: tuple[LineageNode, ...]


@dataclass(slots=True)
class Checked:
    """What was re-checked."""

    events: int = 0
    series: int = 0
    contents: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A lineage whose every step was re-checked; building one raises when a check fails."""

    root: LineageNode
    checked: Checked

    def to_json(self) -> dict[str, Any]:
        """The tree and what was re-checked, as JSON values."""
        return {"root": _node_json(self.root), "checked": asdict(self.checked)}


def lineage_of(
    ledger: Ledger, node: NodeContent, artifact_id: ArtifactId, *, progress: Progress | None = None
) -> Lineage:
    """Walk from an artifact to its bundles and re-check everything on the way.

    Raises
    ------
    MissingEventError
        If a series of events has a gap.
    VerificationError
        If an event is not on the chain as the index tells it.
    BlockMismatchError, ContentError
        If a content has another hash, or cannot be had.
    """
    answer = node.query(f"/lineage/{artifact_id.hex()}")
    walk = _Walk(ledger, node, progress or (lambda _: None))
    artifacts = {entry["artifact_id"]: entry for entry in answer["artifacts"]}
    parents: dict[str, list[str]] = {}
    for child, parent in answer["edges"]:
        parents.setdefault(child, []).append(parent)
    root = walk.visit(artifact_id.hex(), artifacts, parents, path=())
    return Lineage(root=root, checked=walk.checked)


@dataclass(slots=True)
class _Walk:
    ledger: Ledger
    node: NodeContent
    progress: Progress
    checked: Checked = field(default_factory=Checked)
    blocks: dict[int, list[LedgerEvent]] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def visit(
        self,
        artifact: str,
        artifacts: Mapping[str, Mapping[str, Any]],
        parents: Mapping[str, Sequence[str]],
        path: tuple[str, ...],
    ) -> LineageNode:
        if artifact in path:
            raise VerificationError("the lineage runs in a circle")
        entry = artifacts.get(artifact)
        if entry is None:
            raise VerificationError(f"artifact {artifact[:12]} is named but not described")
        self.progress(f"{entry['kind'].lower()} {artifact[:12]}")
        events = self._series(entry["events"])
        self._check_artifact(entry, parents.get(artifact, ()), events)
        job = entry.get("job")
        if job is not None:
            events += self._series(job["events"])
            events += [e for e in self._series(entry["grant"]["events"]) if e.name in _RIGHTS]
            events += [
                e for e in self._series(entry["consent"]["events"]) if _epoch(e) == job["consent_epoch"]
            ]
        self._contents(entry)
        return LineageNode(
            artifact_id=ArtifactId(bytes.fromhex(artifact)),
            kind=entry["kind"],
            steward=entry["steward"],
            content=Cid.from_digest(bytes.fromhex(entry["content_digest"]), Codec.DAG_CBOR),
            stale=entry.get("stale"),
            job=job,
            consent=entry.get("consent", {}),
            policy=entry.get("policy", {}),
            steps=tuple(_step(e) for e in sorted(events, key=lambda e: (e.block_number, e.log_index))),
            parents=tuple(
                self.visit(parent, artifacts, parents, (*path, artifact))
                for parent in parents.get(artifact, ())
            ),
        )

    def _series(self, raw: Sequence[Mapping[str, Any]]) -> list[LedgerEvent]:
        """Events of one series: each as it stands on the chain, none missing."""
        events = [self._on_chain(item) for item in raw]
        check_series(events)
        self.checked.series += 1
        return events

    def _on_chain(self, item: Mapping[str, Any]) -> LedgerEvent:
        number = int(item["block_number"])
        if number not in self.blocks:
            self.blocks[number] = self.ledger.events(number, number)
        codec = event_codec(item["contract"], item["name"])
        told = (item["name"], item["log_index"], args_from_json(codec, item["args"]))
        for event in self.blocks[number]:
            if (event.name, event.log_index, event.args) == told:
                self.checked.events += 1
                return event
        raise VerificationError(f"{item['name']} is not in block {number} as the index tells it")

    def _check_artifact(
        self, entry: Mapping[str, Any], parents: Sequence[str], events: Sequence[LedgerEvent]
    ) -> None:
        """The first event of the artifact must say the same as the index."""
        first = events[0].args if events else {}
        given = first.get("registration", first)
        if not isinstance(given, dict):
            raise VerificationError(f"artifact {entry['artifact_id'][:12]} has no registration on the chain")
        digest, named = given.get("contentDigest"), given.get("parents")
        if digest != bytes.fromhex(entry["content_digest"]):
            raise VerificationError(f"artifact {entry['artifact_id'][:12]} has another content on the chain")
        if not isinstance(named, list) or sorted(p.hex() for p in named) != sorted(parents):
            raise VerificationError(f"artifact {entry['artifact_id'][:12]} has other parents on the chain")

    def _contents(self, entry: Mapping[str, Any]) -> None:
        steward = entry["steward"]
        record = self._record(entry["content_digest"], steward)
        if entry["kind"] == "BUNDLE":
            self._record(entry["policy_digest"], steward)
            for cid in read_manifest(record).blocks:
                self._block(cid, steward)
            return
        job = entry["job"]
        self._record(entry["policy"]["digest"], entry["policy"]["holder"])
        self._record(entry["consent"]["status_digest"], entry["consent"]["steward"])
        self._record(job["parameters_digest"], job["requester"])
        if entry["kind"] == "RESULT":
            for cid in ResultManifest.from_record(record).blocks:
                self._block(cid, steward)

    def _record(self, digest: str, holder: str) -> dict[str, dag.DagValue]:
        cid = Cid.from_digest(bytes.fromhex(digest), Codec.DAG_CBOR)
        return dag.decode_map(self._block(cid, holder))

    def _block(self, cid: Cid, holder: str) -> bytes:
        data = self.node.get(cid, holder=holder)
        if (str(cid), holder) not in self.seen:
            self.seen.add((str(cid), holder))
            self.checked.contents += 1
            self.checked.bytes += len(data)
        return data


def _node_json(node: LineageNode) -> dict[str, Any]:
    return {
        "artifact_id": node.artifact_id.hex(),
        "kind": node.kind,
        "steward": node.steward,
        "content": str(node.content),
        "stale": node.stale,
        "job_id": node.job["job_id"] if node.job else None,
        "policy": dict(node.policy),
        "consent": {key: value for key, value in node.consent.items() if key != "events"},
        "steps": [asdict(step) for step in node.steps],
        "parents": [_node_json(parent) for parent in node.parents],
    }


def _epoch(event: LedgerEvent) -> object:
    return event.args.get("epoch")


def _step(event: LedgerEvent) -> Step:
    return Step(
        what=event.name,
        detail=_detail(event),
        block_number=event.block_number,
        transaction_hash="0x" + event.transaction_hash.hex(),
    )


def _detail(event: LedgerEvent) -> str:
    parts = []
    for key in ("requester", "executor", "verifier", "custodian", "steward"):
        value = event.args.get(key)
        if isinstance(value, bytes):
            parts.append(f"{key} {unlabel(value)}")
    if "agrees" in event.args:
        parts.append("agrees" if event.args["agrees"] else "dissents")
    for key in ("epoch", "policyVersion", "agreeing", "asked"):
        if isinstance(event.args.get(key), int):
            parts.append(f"{key} {event.args[key]}")
    return ", ".join(parts)
