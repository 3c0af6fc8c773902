"""One node: the only place where concrete adapters are chosen.

One trio program: libp2p host, index, role loops and HTTP interface in one nursery; blocking calls in threads, kernels in worker
processes. Everything durable is under the home directory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypercorn.trio
import trio
from hypercorn.config import Config
from prometheus_client import CollectorRegistry
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from usufruct.compute import CacheSettings
from usufruct.content import Cid
from usufruct.durable import write_private
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    CustodianError,
    NotAuthorisedError,
    PeerRefusedError,
    PortTakenError,
    UsufructError,
)
from usufruct.home import Home, NodeAddress
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore
from usufruct.ledger import Ledger, Network
from usufruct.records import ArtifactId, JobId, JobState, KeyId, OrgId, Role, unlabel
from usufruct_node.api import build_api, new_token
from usufruct_node.chain_clock import ChainClock
from usufruct_node.chain_view import ChainView
from usufruct_node.challenge_log import ChallengeLog
from usufruct_node.config import NodeSettings
from usufruct_node.custodian import CustodianProcess
from usufruct_node.custody_service import CustodyService
from usufruct_node.custody_store import CustodyStore
from usufruct_node.custody_view import CustodyView
from usufruct_node.health_log import HealthLog
from usufruct_node.holdings import Holdings, may_read
from usufruct_node.index import Index, catch_up_in_thread, follow
from usufruct_node.intake import Uploads, forget_unnoted
from usufruct_node.membership import Membership
from usufruct_node.metrics import Metrics
from usufruct_node.peers import PeerHost, PeerIdentity
from usufruct_node.peers.custody import PROTOCOL_ID as CUSTODY
from usufruct_node.peers.custody import CustodyHandler
from usufruct_node.peers.identity import parse_peer_id
from usufruct_node.peers.private_network import load_swarm_key
from usufruct_node.peers.verdicts import PROTOCOL_ID as VERDICTS
from usufruct_node.peers.verdicts import Question, VerdictHandler
from usufruct_node.peers_view import describe_peers
from usufruct_node.placement import Placements
from usufruct_node.roles import (
    Custodian,
    Dispatcher,
    Executor,
    Journal,
    Rechecker,
    Reporter,
    RoleContext,
    Verifier,
)
from usufruct_node.roles.challenger import Challenger, ChallengeRules
from usufruct_node.roles.compute import Workers
from usufruct_node.roles.custody_peers import CustodyPeers
from usufruct_node.roles.dispatch import Role as RoleLoop
from usufruct_node.roles.keeper import Keeper
from usufruct_node.roles.pinner import Pinner
from usufruct_node.roles.retention import Retention
from usufruct_node.storage import open_store

if TYPE_CHECKING:
    from trio_typing import TaskStatus

_log = logging.getLogger(__name__)
_TIDY_SECONDS = 600.0
_STORE_SECONDS = 5.0
_ANNOUNCE_SECONDS = 15.0
"""Between two attempts to announce where this node listens."""


class Node:
    """A running node of one organisation."""

    def __init__(
        self,
        home: Home,
        settings: NodeSettings,
        passphrase: str,
        *,
        custodian_passphrase_file: Path | None = None,
    ) -> None:
        self._home = home
        self._settings = settings
        self._stack = ExitStack()
        self._custodian: CustodianProcess | None = None
        if Role.CUSTODIAN in home.organisation().role_bits:
            self._custodian = CustodianProcess(
                home, passphrase_file=custodian_passphrase_file, key_openings=settings.key_openings
            )
            self._stack.callback(self._custodian.close)
        self.org = home.organisation().id
        keys = identity.load_node_keys(KeyStore.open(home.node_keystore, passphrase))
        self._signing_key, self._verdict_key = keys.ledger_key, keys.verdict_key
        network = Network.load(home.network_file)
        self.ledger = Ledger.open(
            network,
            private_key=keys.ledger_key,
            journal=home.root / "node.transactions",
            patience=settings.ledger_patience_s,
            rpc_urls=settings.rpc_urls,
        )
        (authority,) = self.ledger.read("ParticipantRegistry", "authority")
        self.contracts = {**network.contracts, "AccessManager": authority}
        self._chain = ChainView(self.ledger)
        self.index = Index(home.index_database)
        self.store = open_store(home, settings)
        self._store_state = "ok"
        self.uploads = Uploads(self.store)
        self.holdings = Holdings(home.node_database)
        self._journal = Journal(home.node_database)
        cache = CacheSettings(path=home.expansion_cache, limit_bytes=settings.expansion_cache_bytes)
        self._workers = Workers(settings.workers, cache=cache if cache.limit_bytes else None)
        for resource in (self.index, self.store, self.holdings, self._journal, self._workers):
            self._stack.callback(resource.close)
        self._identity = PeerIdentity.from_seed(keys.peer_seed)
        self._membership = Membership(self.org, self.index, self.ledger)
        self.custody = CustodyStore(home.node_database)
        self.challenges = ChallengeLog(home.node_database)
        self.placements = Placements(self.index, self.custody)
        self._stack.callback(self.custody.close)
        self._stack.callback(self.challenges.close)
        self._clock = ChainClock(network.chain, home.node_database)
        self._stack.callback(self._clock.close)
        self._host = PeerHost(
            identity=self._identity,
            is_member=lambda peer: peer in self._membership.peers,
            authorise=self._authorise,
            read_block=self._read_block,
            has_block=self.store.has,
            listen_host=settings.listen_host,
            listen_port=settings.listen_port,
            quota=settings.quota(),
            swarm_key=None if settings.swarm_key_file is None else load_swarm_key(settings.swarm_key_file),
        )
        self._host.handle(CUSTODY, CustodyHandler(self._custody_service().answer).serve)
        self._host.handle(VERDICTS, VerdictHandler(self._answer_verdict).serve)
        self._context = RoleContext(
            org=self.org,
            ledger=self.ledger,
            index=self.index,
            store=self.store,
            holdings=self.holdings,
            placements=self.placements,
            journal=self._journal,
            host=self._host,
            workers=self._workers,
            clock=self._clock,
            on_stall=self._chain.stood_still,
        )
        self._verifier: Verifier | None = None
        self._dispatcher = Dispatcher(self._roles(home.organisation().role_bits))
        self._peers = CustodyPeers(self._context, answer_s=settings.challenge_answer_s)
        self._keeper = self._make_keeper()
        self.view = CustodyView(self.org, self.index, self.custody, self.challenges, self.placements)
        self._started_at = time.time()
        self._metrics = Metrics()

    async def run(self, *, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` gives the URL of the HTTP interface."""
        with self._stack:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_ledger_at_the_end)
                unlocked = trio.Event()
                nursery.start_soon(self._unlock, unlocked)
                await catch_up_in_thread(self.index, self.ledger)
                await nursery.start(self._host.run)
                await unlocked.wait()
                # Before anybody can begin another.
                await self._forget_begun()
                await nursery.start(self._serve_api)
                await self._follow_registry()
                await self._membership.announce(self._endpoint())
                if not self._membership.is_active():
                    _log.warning(
                        "%s is no active member yet: other nodes will not talk to it",
                        self._home.organisation().name,
                    )
                nursery.start_soon(
                    partial(
                        follow,
                        self.index,
                        self.ledger,
                        poll_s=self._settings.poll_s,
                        on_advance=self._advanced,
                        on_trouble=self._chain.heard,
                    )
                )
                nursery.start_soon(self._keep_membership)
                nursery.start_soon(self._keep_announced)
                nursery.start_soon(self._dispatcher.run)
                nursery.start_soon(self._keeper.run)
                nursery.start_soon(self._tidy)
                nursery.start_soon(self._watch_store)
                nursery.start_soon(self._log_health)
                task_status.started(self._home.node_address().url)

    # What the HTTP interface shows.

    def health(self) -> dict[str, Any]:
        """State of each dependency."""
        cursor, elsewhere = self.index.cursor(), self._membership.superseded_by
        parts = {
            "ledger": self._chain.state(),
            "index": "ok" if cursor else "empty",
            "membership": "ok" if self._membership.is_active() else "not an active member",
            "identity": "ok"
            if elsewhere is None
            else f"another node runs as this organisation at {elsewhere}",
            "store": self._store_state,
            "custodian": self._custodian_state(),
            "jobs": "ok" if not self._dispatcher.troubles else f"{len(self._dispatcher.troubles)} in trouble",
            "copies": "ok" if not self._keeper.troubles else f"{len(self._keeper.troubles)} in trouble",
        }
        return {"ok": all(state == "ok" for state in parts.values()), **parts}

    def _custodian_state(self) -> str:
        if self._custodian is None:
            return "ok"
        if self._custodian.is_starting:
            return "starting; without a passphrase file it asks for its passphrase at the terminal"
        if self._custodian.pid is None:
            return "not running; it is started again when a job needs it"
        return "ok"

    def _key_openings(self) -> dict[str, Any]:
        """Result blocks that each key has opened, and how many it may."""
        if self._custodian is None or self._custodian.pid is None:
            return {}
        try:
            state = self._custodian.state()
        except CustodianError as exc:
            return {"trouble": str(exc)}
        return {"limit": state["limit"], "opened": state["opened"]}

    async def read_metrics(self) -> CollectorRegistry:
        """Prometheus metrics as of now."""
        state = await self.status()
        jobs = await trio.to_thread.run_sync(lambda: {s: self.index.job_count(s) for s in JobState if s})
        return self._metrics.update(state, jobs)

    async def status(self) -> dict[str, Any]:
        """What an operator wants to see."""
        return await trio.to_thread.run_sync(self._status, self._host.connected())

    def _status(self, connected: list[str]) -> dict[str, Any]:
        cursor = self.index.cursor()
        return {
            "organisation": self._home.organisation().name,
            "health": self.health(),
            "uptime_s": round(time.time() - self._started_at),
            "chain_id": self.ledger.network.chain_id,
            "chain": self._chain.to_dict(),
            "indexed_block": cursor.number if cursor else None,
            "indexed_block_time": cursor.timestamp if cursor else None,
            "events": self.index.event_count(),
            "peer_id": self._identity.peer_id,
            "listening": self._host.multiaddr,
            "connected": connected,
            "refusals": self._host.refusal_counts(),
            "blocks_bytes": self.store.usage_bytes(),
            "holdings": self.holdings.count(),
            "key_openings": self._key_openings(),
            "jobs_in_trouble": self._dispatcher.troubles,
            "wrong_results": [row["job_id"] for row in self.rechecks() if row["is_same"] is False],
            "copies_in_trouble": self._keeper.troubles,
        }

    def peers(self) -> dict[str, Any]:
        """Who is connected, and who was refused what and why."""
        return describe_peers(self._host, self.index)

    async def fetch_block(self, cid: Cid, holder: OrgId) -> bytes:
        """A block from the store, or else from a member.

        Raises
        ------
        BlockNotFoundError, NotAuthorisedError, PeerRefusedError, PeerError
        """
        try:
            return await trio.to_thread.run_sync(self.store.get, cid)
        except (BlockNotFoundError, BlockMismatchError):
            if holder == self.org:
                raise
        if not self._membership.is_active():
            raise NotAuthorisedError(
                f"{self._home.organisation().name} is not an active member: no other node will talk to it",
                hint="`usufruct-node doctor` says why (not admitted, suspended, removed) and what to ask of a member",
            )
        try:
            return await self._context.fetch_once(cid, holder)
        except PeerRefusedError as exc:
            raise NotAuthorisedError(
                f"{unlabel(holder)} does not give block {cid} to {self._home.organisation().name}",
                hint="ciphertexts, results and releases go only to those whose part in a live job needs them, and to auditors",
            ) from exc

    async def erasures(self, artifact_id: ArtifactId) -> dict[str, Any]:
        """Statements on a bundle's erasure: the steward's collection, asked for by the other members' nodes.

        Raises
        ------
        UnknownRecordError, PeerError, ManifestError, VerificationError
        """
        artifact = self.view.bundle(artifact_id)
        if artifact.steward == self.org:
            waiting = await trio.to_thread.run_sync(self.custody.awaited, artifact_id)
            statements = await trio.to_thread.run_sync(self.custody.erasures, artifact_id)
        else:
            statements, waiting = await self._peers.erasures(artifact.steward, artifact_id)
        return self.view.erasures(artifact_id, artifact, statements, waiting)

    # Wiring.

    def _roles(self, roles: Role) -> list[RoleLoop]:
        loops: list[RoleLoop] = []
        if Role.COMPUTE in roles:
            loops.append(Executor(self._context, room=2 * self._settings.workers + 2))
        if Role.VERIFIER in roles:
            self._verifier = Verifier(
                self._context, verdict_key=self._verdict_key, node_key=self._signing_key
            )
            loops.append(self._verifier)
        if self._custodian is not None:
            loops.append(Custodian(self._context, process=self._custodian, signing_key=self._signing_key))
        if Role.AUDITOR in roles:
            loops += [Reporter(self._context), Rechecker(self._context)]
        return loops

    def rechecks(self) -> list[dict[str, Any]]:
        """Released jobs of members that were found to lie since, and whether they gave the same result when executed again."""
        return [
            {
                "job_id": row.job_id.hex(),
                "executor": unlabel(row.job.executor),
                "released_at": row.changed_at,
                "is_same": self._journal.recheck(row.job_id),
            }
            for row in self.index.doubtful_jobs()
        ]

    def _custody_service(self) -> CustodyService:
        return CustodyService(
            org=self.org,
            network=self.ledger.network,
            index=self.index,
            blocks=self.store,
            holdings=self.holdings,
            store=self.custody,
            record=self.challenges,
            placements=self.placements,
            signing_key=self._signing_key,
            now=self._now,
            on_damage=self._damaged,
        )

    def _make_keeper(self) -> Keeper:
        settings, key, peers = self._settings, self._signing_key, self._peers
        rules = ChallengeRules(
            every_s=settings.challenge_s,
            misses=settings.challenge_misses,
            grace_s=settings.hold_grace_s,
            left_out_s=settings.left_out_s,
        )
        context, store = self._context, self.custody
        pinner = Pinner(
            context,
            peers,
            store,
            signing_key=key,
            limit_bytes=settings.hold_bytes,
            silence_s=6 * settings.custody_s,
        )
        challenger = Challenger(
            context,
            peers,
            store,
            self.challenges,
            rules=rules,
            signing_key=key,
            on_damage=pinner.damaged,
        )
        retention = Retention(context, peers, store, destroy_secret=self._destroy_secret, signing_key=key)
        return Keeper(pinner, challenger, retention, every_s=settings.custody_s)

    def _destroy_secret(self, key_id: KeyId) -> None:
        if self._custodian is None:
            raise CustodianError("this node runs no custodian that could destroy a key")
        self._custodian.destroy(key_id)

    def _damaged(self, artifact_id: ArtifactId) -> None:
        self._keeper.damaged(artifact_id)

    def _now(self) -> int:
        return self._clock.now(self.index.cursor())

    def _authorise(self, peer_id: str, cid: Cid) -> bool:
        member = self.index.participant_by_peer(parse_peer_id(peer_id))
        if member is None:
            return False
        allowed = partial(
            may_read,
            self.index,
            self.org,
            member,
            cid,
            now=self._now(),
            is_holder=self.placements.is_holder,
        )
        return any(allowed(holding) for holding in self.holdings.of(cid))

    def _answer_verdict(self, peer_id: str, question: Question, job_id: JobId) -> bytes | None:
        member = self.index.participant_by_peer(parse_peer_id(peer_id))
        if member is None or self._verifier is None:
            return None
        return self._verifier.answer(member, question, job_id)

    def _read_block(self, cid: Cid) -> bytes | None:
        try:
            return self.store.get(cid)
        except BlockNotFoundError:
            return None

    def _advanced(self) -> None:
        self._dispatcher.wake()

    async def _forget_begun(self) -> None:
        """Free what uploads and rechecks before this start left behind."""
        try:
            await trio.to_thread.run_sync(self.uploads.forget)
            await trio.to_thread.run_sync(forget_unnoted, self.store, self.holdings, self._is_registered)
            await trio.to_thread.run_sync(self._context.forget_rechecks)
        except UsufructError as exc:
            _log.warning("cannot free what was begun before this start: %s", exc)

    def _is_registered(self, content_digest: bytes) -> bool:
        """Whether a bundle of this organisation has this manifest."""
        found = map(self.index.artifact, self.index.bundles_with_content(content_digest))
        return any(artifact is not None and artifact.steward == self.org for artifact in found)

    async def _tidy(self) -> None:
        """Free what ended jobs and uploads that broke off left behind."""
        while True:
            try:
                await trio.to_thread.run_sync(self.uploads.forget_given_up)
                removed = await trio.to_thread.run_sync(self._context.tidy)
                _log.debug("%d blocks of ended jobs and uploads removed", removed)
            except UsufructError as exc:
                _log.warning("cannot free what ended jobs and uploads left behind: %s", exc)
            await trio.sleep(_TIDY_SECONDS)

    async def _watch_store(self) -> None:
        while True:
            try:
                await trio.to_thread.run_sync(self.store.check)
                self._store_state = "ok"
            except UsufructError as exc:
                self._store_state = str(exc)
            await trio.sleep(_STORE_SECONDS)

    async def _log_health(self) -> None:
        log = HealthLog()
        while True:
            try:
                health = await trio.to_thread.run_sync(self.health)
            except UsufructError as exc:
                log.note({"health": str(exc)})
            else:
                log.note({part: state for part, state in health.items() if part != "ok"} | {"health": "ok"})
            await trio.sleep(_STORE_SECONDS)

    async def _keep_membership(self) -> None:
        seen = self.index.cursor()
        while True:
            await trio.sleep(self._settings.poll_s)
            now = self.index.cursor()
            if now != seen:
                seen = now
                self._chain.heard()
                await self._follow_registry()

    async def _close_ledger_at_the_end(self) -> None:
        """Threads that wait for the chain cannot be cancelled: their waiting is ended."""
        try:
            await trio.sleep_forever()
        finally:
            self.ledger.endpoint.close()

    async def _unlock(self, unlocked: trio.Event) -> None:
        """Start the custodian while the rest starts; a node that cannot have the one it needs does not run."""
        if self._custodian is not None:
            await trio.to_thread.run_sync(self._custodian.start, abandon_on_cancel=True)  # type: ignore[call-arg]
        unlocked.set()

    async def _keep_announced(self) -> None:
        """Announce where this node listens until the registry says so, also while no block comes; keeps nobody waiting."""
        while True:
            await trio.sleep(self._settings.poll_s)
            if self._membership.must_announce:
                await self._membership.announce(self._endpoint())
                # Blocks that came meanwhile were read without knowing that this node's announcement is in them.
                await self._follow_registry()
                if self._membership.must_announce:
                    await trio.sleep(_ANNOUNCE_SECONDS)

    def _endpoint(self) -> str:
        return self._settings.announce or self._host.multiaddr.split("/p2p/")[0]

    async def _follow_registry(self) -> None:
        for peer in await self._membership.refresh(self._endpoint()):
            _log.warning("peer %s is no longer an active member: closing its connections", peer)
            await self._host.close_peer(peer)
        superseded = self._membership.superseded_by is not None
        self._dispatcher.hold(superseded)
        self._keeper.hold(superseded)

    async def _serve_api(self, *, task_status: TaskStatus[None]) -> None:
        token = new_token()
        write_private(self._home.api_token, token.encode("ascii"))
        descriptor, port = _listen(self._settings.api_port)
        config = Config()
        config.bind = [f"fd://{descriptor}"]
        config.errorlog = logging.getLogger("hypercorn.error")
        config.accesslog = None
        config.graceful_timeout = 0.5
        app = build_api(self, token)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(hypercorn.trio.serve, app, config, mode="asgi")  # type: ignore[arg-type]
                )
                address = NodeAddress(url=f"http://127.0.0.1:{port}", pid=os.getpid())
                self._home.write("api.json", address)
                task_status.started()
        finally:
            (self._home.root / "api.json").unlink(missing_ok=True)


def _listen(port: int) -> tuple[int, int]:
    """A bound loopback socket as (descriptor, port); the server that gets the descriptor closes it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as exc:
        listener.close()
        raise PortTakenError(
            f"port {port} of the HTTP interface cannot be used: {exc}",
            hint="set another `api_port` in node.toml, or 0 for a free one",
        ) from exc
    taken = listener.getsockname()[1]
    return listener.detach(), taken


@contextmanager
def exclusive(home: Home) -> Iterator[None]:
    """Hold the home for one node process.

    Raises
    ------
    ConfigurationError
        If another node runs on it.
    """
    with (home.root / "node.lock").open("a") as handle:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(OSError),
                stop=stop_after_delay(1),
                wait=wait_fixed(0.05),
                reraise=True,
            ):
                # A command that looks whether a node runs holds the lock for an instant.
                with attempt:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigurationError(
                f"another node runs on {home.root}", hint="stop it first, or use another home"
            ) from exc
        yield
