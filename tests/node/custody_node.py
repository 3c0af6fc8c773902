"""What a node has of copies of bundles, on a real chain; its peers are whatever a test makes of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from bundle_fixture import ROWS, SCOPE, SmallBundle, small_bundle
from chain_fixture import PARAMETERS_ID, Consortium, word
from usufruct.content import Cid, Codec, EmbeddedBlockStore, dag
from usufruct.custody import PlacementNotice
from usufruct.errors import BlockNotFoundError, PeerError, UsufructError
from usufruct.publish import manifest_record
from usufruct.records import Artifact, ArtifactId
from usufruct.replication import Replication
from usufruct.seal import seal_features
from usufruct_node.custody_store import CustodyStore
from usufruct_node.holdings import Holdings
from usufruct_node.index import Index, catch_up
from usufruct_node.peers.protocol import Status
from usufruct_node.peers.shelf import Answer
from usufruct_node.placement import Placements
from usufruct_node.roles.context import RoleContext
from usufruct_node.roles.pinner import Pinner
from usufruct_node.roles.room import held_pin


@dataclass
class Story:
    """Bundles of `north`, all under one key; `compute` is to hold a copy of each."""

    net: Consortium
    made: SmallBundle = field(default_factory=small_bundle)
    records: dict[ArtifactId, dict[str, object]] = field(default_factory=dict)
    """Manifests by bundle."""
    blocks: dict[ArtifactId, list[bytes]] = field(default_factory=dict)
    """Ciphertexts by bundle."""

    def __post_init__(self) -> None:
        self.policy = replace(self.made.policy, replication=Replication(copies=2, holders=("compute",)))
        register = ("KeyRegistry", "registerKeyDomain", self.made.artifact.key_id, PARAMETERS_ID, word())
        self.net["north"].ledger.transact(*register)

    def bundle(self, *, record: dict[str, object] | None = None, **changes: object) -> ArtifactId:
        """Register a bundle, with an honest consent epoch; by default the same features, sealed anew."""
        self.anchor()
        sealed = seal_features(self.made.features, self.made.secret)
        blocks = [block.data for block in sealed]
        record = record or manifest_record(
            sealed.manifest, scope=SCOPE, row_subjects=range(ROWS), blocks=[Cid.of(block) for block in blocks]
        )
        artifact_id = self.net.bundle(
            "north",
            self.made.artifact.key_id,
            scope=self.made.artifact.consent_scope,
            content_digest=digest_of(record),
            policy_digest=digest_of(self.policy.to_record()),
            **changes,
        )
        self.records[artifact_id], self.blocks[artifact_id] = record, blocks
        return artifact_id

    def status(self, **changes: object) -> dict[str, object]:
        """The status record of the epoch that comes next."""
        north, scope = self.net["north"], self.made.artifact.consent_scope
        number = north.ledger.consent_epoch(north.id, scope).epoch + 1
        return replace(self.made.status, **({"epoch": number} | changes)).to_record()

    def anchor(self, record: dict[str, object] | None = None) -> dict[str, object]:
        """Anchor an epoch that cites a record; by default an honest one."""
        north, scope = self.net["north"], self.made.artifact.consent_scope
        number = north.ledger.consent_epoch(north.id, scope).epoch + 1
        cited = record or self.status()
        north.ledger.transact("ConsentRegistry", "anchorEpoch", scope, number, word(), digest_of(cited), 50)
        return cited


async def nothing(*_: object) -> None:
    """What a peer does before it answers."""


class Steward:
    """As the peers of a node: gives what it has, or does not answer."""

    def __init__(self) -> None:
        self.blocks: dict[Cid, bytes] = {}
        self.answers = True
        self.asked: list[Cid] = []
        self.before: Callable[[str, Sequence[Cid]], Awaitable[None]] = nothing
        """Awaited with the peer that is asked, and for what, before it answers."""

    async def fetch(
        self, peer_id: str, multiaddr: str, cids: Sequence[Cid]
    ) -> AsyncGenerator[tuple[Cid, bytes], None]:
        self.asked += cids
        await self.before(peer_id, cids)
        if not self.answers:
            raise PeerError("nobody answers")
        for cid in cids:
            if cid not in self.blocks:
                raise BlockNotFoundError("not here")
            yield cid, self.blocks[cid]

    async def line(self, peer_id: str, multiaddr: str) -> Asked:
        return Asked(self, peer_id)

    def refuse(self, *_: object) -> None:
        """Nobody is refused here."""


class Asked:
    """A way to ask for several blocks at once."""

    def __init__(self, steward: Steward, peer_id: str) -> None:
        self.steward, self.peer_id = steward, peer_id
        self.owed: list[Cid] = []

    async def ask(self, cids: Sequence[Cid]) -> None:
        self.owed += cids

    async def take(self) -> list[Answer]:
        cids, self.owed = self.owed, []
        self.steward.asked += cids
        await self.steward.before(self.peer_id, cids)
        if not self.steward.answers:
            raise PeerError("nobody answers")
        return [
            Answer(cid, Status.BLOCK, self.steward.blocks[cid])
            if cid in self.steward.blocks
            else Answer(cid, Status.NOT_FOUND)
            for cid in cids
        ]

    async def abandon(self) -> None:
        """Nothing is under way."""


async def no_notices(*_: object) -> list[PlacementNotice]:
    return []


class CustodyNode(ExitStack):
    """The node of a member."""

    def __init__(self, story: Story, root: Path, name: str = "compute") -> None:
        super().__init__()
        self.story, self.member = story, story.net[name]
        self.peers = Steward()
        self.index = self.enter_context(closing(Index(root / "index.db")))
        self.store = self.enter_context(EmbeddedBlockStore(root / "blocks"))
        self.custody = self.enter_context(closing(CustodyStore(root / "node.db")))
        self.holdings = self.enter_context(closing(Holdings(root / "node.db")))
        self.time = 1000
        unused: Any = None
        clock: Any = SimpleNamespace(now=lambda head: self.time)
        host: Any = self.peers
        self.context = RoleContext(
            org=self.member.id,
            ledger=story.net.reader,
            index=self.index,
            store=self.store,
            holdings=self.holdings,
            placements=Placements(self.index, self.custody),
            journal=unused,
            host=host,
            workers=unused,
            clock=clock,
            on_stall=unused,
        )
        self.follow()
        self.pinner = self.start()

    def follow(self) -> None:
        catch_up(self.index, self.story.net.reader)

    def start(self, *, limit_bytes: int | None = None) -> Pinner:
        """The pinner of a node that was just started."""
        peers: Any = SimpleNamespace(notices=no_notices)
        self.pinner = Pinner(
            self.context,
            peers,
            self.custody,
            signing_key=self.member.node_key,
            limit_bytes=limit_bytes,
            silence_s=60.0,
        )
        return self.pinner

    def given(self, record: dict[str, object], pin: str) -> Cid:
        """A record that is in the store already."""
        return self.store.put(dag.encode(record), Codec.DAG_CBOR, pin=pin)

    def give_all(self, artifact_id: ArtifactId, status: dict[str, object] | None = None) -> list[Cid]:
        """What a holder gets from the steward; returns the ciphertexts."""
        self.custody.keep_replication(digest_of(self.story.policy.to_record()), self.story.policy.replication)
        pin = held_pin(artifact_id)
        for record in (self.story.records[artifact_id], self.story.policy.to_record(), status):
            if record:
                self.given(record, pin)
        return self.store.put_many(self.story.blocks[artifact_id], pin=pin)

    def artifact(self, artifact_id: ArtifactId) -> Artifact:
        found = self.index.artifact(artifact_id)
        assert found is not None
        return found

    def look(self, artifact_id: ArtifactId, **changes: Any) -> UsufructError | None:
        """One look of the pinner at a bundle; what it complains of."""
        artifact = replace(self.artifact(artifact_id), **changes)
        held = any(one.artifact_id == artifact_id for one in self.custody.held())

        async def tend() -> None:
            await self.pinner._tend(artifact_id, artifact, held=held)

        try:
            trio.run(tend)
        except UsufructError as exc:
            return exc
        return None


def digest_of(record: dict[str, object]) -> bytes:
    return Cid.of(dag.encode(record), Codec.DAG_CBOR).digest
