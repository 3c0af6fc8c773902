"""Step 10, lineage: from any released number back to bundles, consents, policies, jobs and verifiers, every step re-checked.

The node's index proposes; this module disposes: every event is compared with the chain's own logs, every series must be without
a gap, every content is fetched and hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from usufruct.checked_events import CheckedEvents, registered
from usufruct.content import Cid, Codec, dag
from usufruct.errors import UnknownKernelError, VerificationError
from usufruct.he.kernels import kernel_by_id
from usufruct.ledger.jobs import derived_id
from usufruct.publish import read_manifest
from usufruct.records import ArtifactId, ArtifactKind, JobId, LedgerEvent, unlabel
from usufruct.verify import ResultManifest

Progress = Callable[[str], None]

_MAX_DEPTH = 200
_ID_DIGITS = 64

_JOB = ("job_id", "requester", "parameters_digest", "consent_epoch", "kernel", "level")
_POLICY = ("version", "digest", "holder")
_CONSENT = ("steward", "scope", "epoch", "status_digest", "consent_root")
"""What is kept of the index's word: that of it which is held against the events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event on the ledger."""

    what: str
    detail: str
    block_number: int
    transaction_hash: str | None
    """None where only the event is proven, and not by which transaction it came."""


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
    parents: tuple[LineageNode, ...] = field(repr=False)
    """Not in the `repr`: nodes share parents, and written out as a tree they have no end."""


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
        """The tree and what was re-checked, as JSON values.

        An artifact that several others rest on is told in full where it comes first; after that it is
        `{"artifact_id": ..., "repeated": true}`.
        """
        return {"root": _node_json(self.root, set()), "checked": asdict(self.checked)}


class Source(Protocol):
    """Where a lineage is told and its contents are, be it a node or evidence of one."""

    def query(self, path: str) -> Any:
        """What the index tells."""

    def get(self, cid: Cid, *, holder: str) -> bytes:
        """A content, of which the member `holder` has a copy."""


def lineage_of(
    events: CheckedEvents,
    node: Source,
    artifact_id: ArtifactId,
    *,
    ciphertexts: bool = True,
    progress: Progress | None = None,
) -> Lineage:
    """Walk from an artifact to its bundles and re-check everything on the way.

    Parameters
    ----------
    ciphertexts :
        Whether to fetch and hash every block of bundles and results, too, and not their manifests alone.

    Raises
    ------
    MissingEventError
        If a series of events has a gap.
    VerificationError
        If anything that the index tells is not what the chain says.
    BlockMismatchError, ContentError
        If a content has another hash, or cannot be had.
    """
    answer = node.query(f"/lineage/{artifact_id.hex()}")
    walk = _Walk(events, node, ciphertexts, progress or (lambda _: None))
    try:
        parents: dict[str, list[str]] = {}
        for child, parent in answer["edges"]:
            parents.setdefault(_id(child), []).append(_id(parent))
        walk.artifacts = {_id(entry["artifact_id"]): entry for entry in answer["artifacts"]}
        walk.parents = parents
        root = walk.visit(artifact_id.hex(), path=())
    except (
        *(KeyError, IndexError, TypeError, ValueError, AttributeError),
        *(OverflowError, RecursionError),
    ) as exc:
        raise VerificationError(
            f"the index tells of a lineage in a form that makes no sense: {exc!r}"
        ) from exc
    walk.checked.events, walk.checked.series = events.n_events, events.n_series
    return Lineage(root=root, checked=walk.checked)


@dataclass(slots=True)
class _Walk:
    events: CheckedEvents
    node: Source
    ciphertexts: bool
    progress: Progress
    artifacts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the index says of each artifact, by id in hex."""
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)
    checked: Checked = field(default_factory=Checked)
    contents: set[tuple[str, str]] = field(default_factory=set)
    visited: dict[str, LineageNode] = field(default_factory=dict)

    def visit(self, artifact: str, path: tuple[str, ...]) -> LineageNode:
        if artifact in path:
            raise VerificationError("the lineage runs in a circle")
        if len(path) > _MAX_DEPTH:
            raise VerificationError(f"the lineage is deeper than {_MAX_DEPTH} steps")
        if artifact in self.visited:
            return self.visited[artifact]
        entry = self.artifacts.get(artifact)
        if entry is None:
            raise VerificationError(f"artifact {artifact[:12]} is named but not described")
        self.progress(f"{entry['kind'].lower()} {artifact[:12]}")
        is_bundle = entry["kind"] == ArtifactKind.BUNDLE.name
        # A result or release has no events of its own until somebody freezes it.
        own = self.events.series(
            "LineageRegistry", bytes.fromhex(artifact), entry["events"], may_be_empty=not is_bundle
        )
        parents = tuple(self.visit(parent, (*path, artifact)) for parent in self.parents.get(artifact, ()))
        if is_bundle:
            stale, events = None, own
            self._check_bundle(artifact, entry, own)
        else:
            events, stale = self._check_job(artifact, entry)
            events = events + own
        self._contents(entry)
        found = LineageNode(
            artifact_id=ArtifactId(bytes.fromhex(artifact)),
            kind=entry["kind"],
            steward=entry["steward"],
            content=Cid.from_digest(bytes.fromhex(entry["content_digest"]), Codec.DAG_CBOR),
            stale=stale,
            job=None if is_bundle else _kept(entry["job"], _JOB),
            consent={} if is_bundle else _kept(entry["consent"], _CONSENT),
            policy={} if is_bundle else _kept(entry["policy"], _POLICY),
            steps=tuple(_step(event) for event in events),
            parents=parents,
        )
        self.visited[artifact] = found
        return found

    def _check_bundle(self, artifact: str, entry: Mapping[str, Any], events: Sequence[LedgerEvent]) -> None:
        """What the index says of a bundle must be what its events say; no job made it."""
        if {"job", "consent", "policy"} & set(entry):
            raise VerificationError(f"the index tells of a job behind bundle {artifact[:12]}")
        steward, registration = registered(events)
        _require(entry["policy_digest"], _policies(events)[-1], "policy", artifact)
        parents = {parent.hex() for parent in registration["parents"]}
        self._check_origin(artifact, entry, steward, registration["contentDigest"], parents)

    def _check_origin(
        self, artifact: str, entry: Mapping[str, Any], steward: bytes, content: bytes, parents: set[str]
    ) -> None:
        _require(entry["steward"], unlabel(steward), "steward", artifact)
        _require(entry["content_digest"], content.hex(), "content", artifact)
        _require(sorted(self.parents.get(artifact, ())), sorted(parents), "parents", artifact)

    def _check_derived(
        self, artifact: str, entry: Mapping[str, Any], job_id: JobId, life: Sequence[LedgerEvent]
    ) -> None:
        """A job leaves a result once it is verified, under its bundle, and a release under the result."""
        args: dict[str, dict[str, Any]] = {event.name: event.args for event in life}
        kind = ArtifactKind[entry["kind"]]
        _require(artifact, derived_id(job_id, kind).hex(), "id", artifact)
        if "JobVerified" not in args or (kind == ArtifactKind.RELEASE and "JobReleased" not in args):
            raise VerificationError(f"the job of artifact {artifact[:12]} never came so far")
        if kind == ArtifactKind.RESULT:
            made = args["ResultCommitted"]
            bundle = args["JobPosted"]["artifactId"].hex()
            self._check_origin(artifact, entry, made["executor"], made["resultDigest"], {bundle})
        else:
            made = args["JobReleased"]
            result = derived_id(job_id, ArtifactKind.RESULT).hex()
            self._check_origin(artifact, entry, made["custodian"], made["releaseDigest"], {result})

    def _check_job(self, artifact: str, entry: Mapping[str, Any]) -> tuple[list[LedgerEvent], bool]:
        """The job behind a result or release: its events, and whether the consent it used is no longer in force."""
        job = entry["job"]
        job_id = JobId(bytes.fromhex(job["job_id"]))
        life = self.events.series("JobLedger", job_id, job["events"])
        self._check_derived(artifact, entry, job_id, life)
        posted: dict[str, Any] = life[0].args
        request = posted["request"]
        bundle = request["artifactId"]
        if bundle.hex() not in self.visited:
            raise VerificationError(
                f"artifact {artifact[:12]} does not descend from the bundle that its job names"
            )
        origin = self.events.known["LineageRegistry", bundle]
        steward, registration = registered(origin)
        verified = next(e.args for e in life if e.name == "JobVerified")
        for told, true, what in (
            (job["requester"], unlabel(posted["requester"]), "requester"),
            (job["parameters_digest"], request["parametersDigest"].hex(), "parameters"),
            (job["consent_epoch"], request["consentEpoch"], "consent epoch"),
            (job["kernel"], _kernel_name(request["kernelId"]), "kernel"),
            (job["level"], f"REPLICATED({verified['agreeing']}/{verified['asked']})", "level"),
            (entry["policy"]["version"], request["policyVersion"], "policy version"),
            (entry["policy"]["digest"], _policies(origin)[request["policyVersion"] - 1], "policy"),
            (entry["policy"]["holder"], unlabel(steward), "policy holder"),
            (entry["consent"]["steward"], unlabel(steward), "consent steward"),
            (entry["consent"]["scope"], unlabel(registration["consentScope"]), "consent scope"),
            (entry["consent"]["epoch"], request["consentEpoch"], "consent epoch"),
        ):
            _require(told, true, what, artifact)
        self.events.series("UsageRights", request["grantId"], entry["grant"]["events"])
        scope = registration["consentScope"]
        epochs = self.events.series("ConsentRegistry", steward + scope, entry["consent"]["events"])
        used = [event for event in epochs if event.args["epoch"] == request["consentEpoch"]]
        for name, field_ in (("status_digest", "statusDigest"), ("consent_root", "consentRoot")):
            digest: Any = used[0].args[field_]
            _require(entry["consent"][name], digest.hex(), name, artifact)
        return life + used, epochs[-1].args["epoch"] != request["consentEpoch"]

    def _contents(self, entry: Mapping[str, Any]) -> None:
        steward = entry["steward"]
        record = self._record(entry["content_digest"], steward)
        if entry["kind"] == "BUNDLE":
            self._record(entry["policy_digest"], steward)
            self._ciphertexts(read_manifest(record).blocks, steward)
            return
        job = entry["job"]
        self._record(entry["policy"]["digest"], entry["policy"]["holder"])
        self._record(entry["consent"]["status_digest"], entry["consent"]["steward"])
        self._record(job["parameters_digest"], job["requester"])
        if entry["kind"] == "RESULT":
            self._ciphertexts(ResultManifest.from_record(record).blocks, steward)

    def _ciphertexts(self, cids: Sequence[Cid], holder: str) -> None:
        for cid in cids if self.ciphertexts else ():
            self._block(cid, holder)

    def _record(self, digest: str, holder: str) -> dict[str, dag.DagValue]:
        cid = Cid.from_digest(bytes.fromhex(digest), Codec.DAG_CBOR)
        return dag.decode_map(self._block(cid, holder))

    def _block(self, cid: Cid, holder: str) -> bytes:
        data = self.node.get(cid, holder=holder)
        if (str(cid), holder) not in self.contents:
            self.contents.add((str(cid), holder))
            self.checked.contents += 1
            self.checked.bytes += len(data)
        return data


def _node_json(node: LineageNode, told: set[ArtifactId]) -> dict[str, Any]:
    if node.artifact_id in told:
        return {"artifact_id": node.artifact_id.hex(), "repeated": True}
    told.add(node.artifact_id)
    return {
        "artifact_id": node.artifact_id.hex(),
        "kind": node.kind,
        "steward": node.steward,
        "content": str(node.content),
        "stale": node.stale,
        "job_id": node.job["job_id"] if node.job else None,
        "policy": dict(node.policy),
        "consent": dict(node.consent),
        "steps": [asdict(step) for step in node.steps],
        "parents": [_node_json(parent, told) for parent in node.parents],
    }


def _kept(told: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: told[name] for name in names}


def _id(told: object) -> str:
    """An artifact's id as the index tells it; nothing else is looked up, numbers can be made to collide."""
    if not isinstance(told, str) or len(told) != _ID_DIGITS:
        raise ValueError("an id is 64 hexadecimal digits")
    return told


def _require(told: object, true: object, what: str, artifact: str) -> None:
    if type(told) is not type(true) or told != true:
        raise VerificationError(f"artifact {artifact[:12]}: the index tells another {what} than the chain")


def _kernel_name(kernel_id: bytes) -> str:
    """Name of a kernel, as the index tells it; the id in hex of one that this package does not have."""
    try:
        return kernel_by_id(kernel_id).name
    except UnknownKernelError:
        return kernel_id.hex()


def _policies(events: Sequence[LedgerEvent]) -> list[str]:
    """Digests, in hex, of a bundle's policies by version, from 1."""
    _, registration = registered(events)
    changed: list[Any] = [event.args["policyDigest"] for event in events if event.name == "PolicyChanged"]
    return [digest.hex() for digest in (registration["policyDigest"], *changed)]


def _step(event: LedgerEvent) -> Step:
    return Step(
        what=event.name,
        detail=_detail(event),
        block_number=event.block_number,
        transaction_hash="0x" + event.transaction_hash.hex() if event.transaction_hash else None,
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
