"""HTTP interface of a node, on loopback. Public: health and metrics. Everything else asks for the node's bearer token.

Reads the index and the block store; hands blocks to the store. Decides nothing about jobs.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Protocol

import trio
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from usufruct.content import BlockStore, Cid, Codec, dag
from usufruct.errors import (
    BlockNotFoundError,
    CidError,
    InputError,
    IntegrityError,
    NotAuthorisedError,
    PeerError,
    PeerRefusedError,
    StoreFullError,
    UsufructError,
)
from usufruct.records import ArtifactId, GrantId, JobId, JobState, OrgId, org_id, parse_id
from usufruct_node.custody_view import CustodyView
from usufruct_node.holdings import Holdings
from usufruct_node.index import Index
from usufruct_node.intake import Uploads, accept_record
from usufruct_node.queries import Queries

MAX_BODY_BYTES = 4 << 20

_bearer = HTTPBearer(auto_error=False)

_STATUS: tuple[tuple[type[UsufructError], int], ...] = (
    (BlockNotFoundError, 404),
    (PeerRefusedError, 403),
    (NotAuthorisedError, 403),
    (StoreFullError, 507),
    (PeerError, 502),
    (CidError, 400),
    (IntegrityError, 422),
    (InputError, 400),
)


class NodeView(Protocol):
    """What the interface needs of the running node."""

    @property
    def index(self) -> Index:
        """Finalised events."""

    @property
    def contracts(self) -> Mapping[str, str]:
        """Address of each contract of the network, by name."""

    @property
    def store(self) -> BlockStore:
        """Blocks."""

    @property
    def uploads(self) -> Uploads:
        """Blocks of bundles that are being published."""

    @property
    def holdings(self) -> Holdings:
        """What the blocks are for."""

    @property
    def view(self) -> CustodyView:
        """Copies, challenges, erasures."""

    def rechecks(self) -> list[dict[str, Any]]:
        """Doubtful jobs, and what came of executing them again."""

    async def erasures(self, artifact_id: ArtifactId) -> dict[str, Any]:
        """Statements on a bundle's erasure, from its steward's node."""

    async def read_metrics(self) -> CollectorRegistry:
        """Prometheus metrics as of now."""

    def health(self) -> dict[str, Any]:
        """State of each dependency; `ok` says whether all are well."""

    async def status(self) -> dict[str, Any]:
        """What an operator wants to see."""

    def peers(self) -> dict[str, Any]:
        """Who is connected, and who was refused what and why."""

    async def fetch_block(self, cid: Cid, holder: OrgId) -> bytes:
        """A block from the store or from a member."""


def build_api(node: NodeView, token: str) -> FastAPI:
    """The ASGI application of one node."""
    api = FastAPI(title="Usufruct node", version="1", docs_url=None, redoc_url=None)
    queries = Queries(node.index, node.contracts)

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "bearer token missing or wrong", {"WWW-Authenticate": "Bearer"})

    private = [Depends(authorised)]

    @api.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse foreign hosts (a page in a browser that rebinds a name to loopback) and oversized bodies."""
        host = request.headers.get("host", "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            return JSONResponse({"error": "Forbidden", "detail": "host is not loopback"}, 403)
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES or "transfer-encoding" in request.headers:
            return JSONResponse({"error": "InputError", "detail": "body too large or of unknown length"}, 413)
        return await call_next(request)

    @api.exception_handler(UsufructError)
    async def translated(request: Request, exc: UsufructError) -> JSONResponse:
        """One place that maps the error tree to HTTP."""
        code = next((status for kind, status in _STATUS if isinstance(exc, kind)), 500)
        return JSONResponse({"error": type(exc).__name__, "detail": str(exc), "hint": exc.hint}, code)

    @api.get("/health", tags=["public"])
    def health() -> JSONResponse:
        """Health of each dependency; 503 when one is not well."""
        state = node.health()
        return JSONResponse(state, 200 if state["ok"] else 503)

    @api.get("/metrics", tags=["public"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(await node.read_metrics()), media_type=CONTENT_TYPE_LATEST)

    @api.get("/status", dependencies=private, tags=["operator"])
    async def status() -> dict[str, Any]:
        """Membership, chain position, peers, blocks, jobs in trouble."""
        return await node.status()

    @api.get("/peers", dependencies=private, tags=["operator"])
    async def peers() -> dict[str, Any]:
        """Who is connected since when, bytes each way, quotas, and why somebody was refused."""
        return node.peers()

    @api.get("/cursor", dependencies=private, tags=["queries"])
    def cursor() -> dict[str, int]:
        """The block up to which the answers of this interface are."""
        return queries.cursor()

    @api.get("/members", dependencies=private, tags=["queries"])
    def members() -> list[dict[str, Any]]:
        """Every organisation ever admitted, with the points that it has for faults now and the number of faults ever."""
        return queries.members()

    @api.get("/members/{name}/faults", dependencies=private, tags=["queries"])
    def faults(name: Annotated[str, Path()]) -> list[dict[str, Any]]:
        """What a member did wrong in jobs, newest first."""
        return queries.faults(org_id(name))

    @api.get("/proposals", dependencies=private, tags=["queries"])
    def proposals() -> list[dict[str, Any]]:
        """Proposals of the members' council, newest first."""
        return queries.proposals()

    @api.get("/bundles", dependencies=private, tags=["queries"])
    def bundles() -> list[dict[str, Any]]:
        """Registered bundles with consent epoch and privacy account."""
        return queries.bundles()

    @api.get("/consent-epochs", dependencies=private, tags=["queries"])
    def consent_epochs(
        steward: Annotated[str, Query()], scope: Annotated[str, Query()]
    ) -> list[dict[str, Any]]:
        """The events of a steward's consent epochs for a purpose, in order."""
        return queries.consent_epochs(org_id(steward), scope)

    @api.get("/key-domains", dependencies=private, tags=["queries"])
    def key_domains() -> list[dict[str, Any]]:
        """Homomorphic key domains, newest first."""
        return queries.key_domains()

    @api.get("/grants", dependencies=private, tags=["queries"])
    def grants(
        grantee: Annotated[str | None, Query()] = None, steward: Annotated[str | None, Query()] = None
    ) -> list[dict[str, Any]]:
        """Requests and grants, newest first."""
        return queries.grants(
            grantee=None if grantee is None else org_id(grantee),
            steward=None if steward is None else org_id(steward),
        )

    @api.get("/jobs", dependencies=private, tags=["queries"])
    def jobs(
        state: Annotated[list[str] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> list[dict[str, Any]]:
        """Jobs, newest first, after the first `offset` of them."""
        return queries.jobs([_job_state(name) for name in state or []], limit, offset)

    @api.get("/rechecks", dependencies=private, tags=["queries"])
    def rechecks() -> list[dict[str, Any]]:
        """Released jobs of members found to lie since; an auditor's node executes them again."""
        return node.rechecks()

    @api.get("/jobs/{job_id}", dependencies=private, tags=["queries"])
    def job(job_id: Annotated[str, Path()]) -> dict[str, Any]:
        """One job with its verdicts and its series of events."""
        return queries.job(JobId(parse_id(job_id, "job")))

    @api.get("/denials", dependencies=private, tags=["queries"])
    def denials(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=10**9)] = 0
    ) -> list[dict[str, Any]]:
        """Refusals: jobs denied at admission, rights denied, releases refused; newest first, after the first `offset`."""
        return queries.denials(limit, offset)

    @api.get("/artifacts/{artifact_id}", dependencies=private, tags=["queries"])
    def artifact(artifact_id: Annotated[str, Path()]) -> dict[str, Any]:
        """One artifact with everything in force when it was made, and the events that say so."""
        return queries.artifact(ArtifactId(parse_id(artifact_id, "artifact")))

    @api.get("/lineage/{artifact_id}", dependencies=private, tags=["queries"])
    def lineage(
        artifact_id: Annotated[str, Path()],
        direction: Annotated[str, Query(pattern="^(ancestors|descendants)$")] = "ancestors",
    ) -> dict[str, Any]:
        """Artifacts and edges reachable from one artifact."""
        return queries.lineage(ArtifactId(parse_id(artifact_id, "artifact")), direction)

    @api.get("/impact/{artifact_id}", dependencies=private, tags=["queries"])
    def impact(artifact_id: Annotated[str, Path()]) -> list[dict[str, Any]]:
        """Results and releases that rest on a bundle, each with whether the consent it used is still in force."""
        return queries.impact(ArtifactId(parse_id(artifact_id, "artifact")))

    @api.get("/copies", dependencies=private, tags=["queries"])
    def copies() -> list[dict[str, Any]]:
        """For each bundle: who is to hold it, what is held here, what the last challenges showed."""
        return node.view.copies()

    @api.get("/challenges", dependencies=private, tags=["queries"])
    def challenges(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """This node's log of storage challenges, newest first, with its length, head, and whether it is whole."""
        return node.view.challenges(limit)

    @api.get("/erasures/{artifact_id}", dependencies=private, tags=["queries"])
    async def erasures(artifact_id: Annotated[str, Path()]) -> dict[str, Any]:
        """Who has signed that it erased a bundle's ciphertexts or key, and whose word is still awaited."""
        return await node.erasures(ArtifactId(parse_id(artifact_id, "artifact")))

    @api.get("/grants/{grant_id}", dependencies=private, tags=["queries"])
    def grant(grant_id: Annotated[str, Path()]) -> dict[str, Any]:
        """One grant with its series of events."""
        return queries.grant(GrantId(parse_id(grant_id, "grant")))

    @api.get("/ids/{prefix}", dependencies=private, tags=["queries"])
    def ids(prefix: Annotated[str, Path(pattern="^[0-9a-f]{4,64}$")]) -> list[dict[str, str]]:
        """Artifacts, jobs and grants whose id begins with these hex digits; at most 20."""
        return [{"kind": kind, "id": found.hex()} for kind, found in node.index.ids(prefix)]

    @api.get("/blocks/{cid}", dependencies=private, tags=["content"])
    async def get_block(cid: Annotated[str, Path()], holder: Annotated[str, Query()]) -> Response:
        """A block, from the store or from the member `holder`."""
        data = await node.fetch_block(Cid.parse(cid), org_id(holder))
        return Response(data, media_type="application/octet-stream")

    @api.post("/blocks", dependencies=private, tags=["content"])
    async def stage_blocks(request: Request) -> dict[str, int]:
        """Keep raw blocks (body: DAG-CBOR list of byte strings) until a record links them."""
        blocks = dag.decode(await request.body())
        if not isinstance(blocks, list) or not all(isinstance(block, bytes) for block in blocks):
            raise InputError("the body is not a list of byte strings")
        data = [block for block in blocks if isinstance(block, bytes)]
        await _in_thread(partial(node.uploads.stage, data))
        return {"kept": len(data)}

    @api.put("/records/{kind}/{cid}", dependencies=private, tags=["content"])
    async def put_record(
        request: Request, kind: Annotated[str, Path()], cid: Annotated[str, Path()]
    ) -> dict[str, str]:
        """Keep a DAG-CBOR record of a known kind; a bundle's blocks must have been staged before."""
        body = await request.body()
        wanted = Cid.parse(cid)
        if wanted.codec != Codec.DAG_CBOR:
            raise InputError(f"{wanted} is not the CID of a record")
        wanted.check(body)
        await _in_thread(partial(accept_record, node.store, node.holdings, kind, body))
        return {"cid": str(wanted)}

    return api


def new_token() -> str:
    """A fresh bearer token, 256 bits."""
    return secrets.token_urlsafe(32)


async def _in_thread(call: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(call)


def _job_state(name: str) -> JobState:
    try:
        return JobState[name.upper()]
    except KeyError as exc:
        raise InputError(f"{name!r} is no job state") from exc
