"""A node's answers about copies: to whom, how often, and what it says when it cannot prove."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_peers_host import NORTH, SOUTH, in_network

from bundle_fixture import SmallBundle
from chain_fixture import CAST, FAR, Consortium, word
from usufruct.content import Cid, Codec, EmbeddedBlockStore, dag
from usufruct.custody import (
    MAX_LEFT_OUT,
    Erased,
    ErasureStatement,
    PlacementNotice,
    Segment,
    StorageChallenge,
    StorageProof,
    check_possession,
    prove_possession,
)
from usufruct.errors import ManifestError, StorageProofError, VerificationError
from usufruct.records import ArtifactId, MemberStatus, OrgId, Role, label
from usufruct.replication import Replication
from usufruct_node.challenge_log import ChallengeLog, Entry, Outcome
from usufruct_node.custody_service import MAX_NOTICES, Allowance, CustodyService
from usufruct_node.custody_store import CustodyStore, Held
from usufruct_node.holdings import Holdings, Purpose
from usufruct_node.index import Index, catch_up
from usufruct_node.peers.custody import PROTOCOL_ID, CustodyHandler, encode_message
from usufruct_node.placement import Placements
from usufruct_node.roles.custody_peers import CustodyPeers

SCOPE = label("custody-study")
BLOCKS = [hashlib.shake_256(bytes([n])).digest(8_000) for n in range(3)]
CIDS = [Cid.of(block) for block in BLOCKS]


@dataclass
class Holder:
    """The node of `holder`, which holds `bundle` of `north`."""

    net: Consortium
    bundle: ArtifactId
    index: Index
    blocks: EmbeddedBlockStore
    holdings: Holdings
    store: CustodyStore
    log: ChallengeLog
    damage: list[ArtifactId] = field(default_factory=list)

    def service(self, name: str = "holder", *, per_minute: int = 600, now: int = 1000) -> CustodyService:
        return CustodyService(
            org=self.net[name].id,
            network=self.net.network,
            index=self.index,
            blocks=self.blocks,
            holdings=self.holdings,
            store=self.store,
            record=self.log,
            placements=Placements(self.index, self.store),
            signing_key=self.net[name].node_key,
            now=lambda: now,
            on_damage=self.damage.append,
            allowance=Allowance(per_minute, now=lambda: 0.0),
        )

    def challenge(self, name: str = "north", *cids: Cid) -> StorageChallenge:
        return StorageChallenge(
            artifact_id=self.bundle,
            challenger=self.net[name].id,
            nonce=secrets.token_bytes(32),
            segments=tuple(Segment(cid, 7, 100) for cid in cids or CIDS),
        )

    def challenged(self, outcome: Outcome, at: int) -> None:
        """Log, as if on the steward's node, what a challenge of `holder` showed."""
        self.log.append(
            Entry(
                artifact_id=self.bundle,
                org=self.net["holder"].id,
                outcome=outcome,
                at=at,
                detail="",
                challenge=self.challenge(),
                answer=None,
            )
        )

    def ask(self, name: str, asked: StorageChallenge, service: CustodyService | None = None) -> dict:
        peer = self.net[name].peer.peer_id
        return (service or self.service()).answer(peer, {"ask": "proof", "challenge": asked.to_record()})


@pytest.fixture(scope="module")
def network(chain_url: str) -> tuple[Consortium, ArtifactId, bytes]:
    cast = CAST | {"holder": Role.VERIFIER, "gone": Role.AUDITOR}
    net = Consortium(chain_url, cast=cast)
    net.govern("ParticipantRegistry", "setStatus", net["gone"].id, MemberStatus.SUSPENDED)
    policy = word()
    bundle = net.bundle("north", net.key_domain("north"), scope=SCOPE, policy_digest=policy)
    return net, bundle, policy


@pytest.fixture
def holder(network: tuple[Consortium, ArtifactId, bytes], tmp_path: Path) -> Iterator[Holder]:
    net, bundle, policy = network
    index = Index(tmp_path / "index.db")
    catch_up(index, net.reader)
    with EmbeddedBlockStore(tmp_path / "blocks") as blocks:
        blocks.put_many(BLOCKS, pin="held")
        database = tmp_path / "node.db"
        one = Holder(
            net, bundle, index, blocks, Holdings(database), CustodyStore(database), ChallengeLog(database)
        )
        one.store.keep_replication(policy, Replication(copies=2, holders=("holder",)))
        one.holdings.add(CIDS, Purpose.HELD, bundle)
        yield one
        for resource in (one.log, one.store, one.holdings, index):
            resource.close()


@pytest.mark.parametrize("name", ["north", "auditor"])
def test_an_honest_holder_proves_to_steward_and_auditor_that_it_holds(holder: Holder, name: str) -> None:
    asked = holder.challenge(name)
    answer = holder.ask(name, asked)
    given = StorageProof.from_record(answer["proof"])
    record = holder.net.reader.participant(holder.net["holder"].id)
    check_possession(
        holder.net.network, record, asked, given, dict(zip(CIDS, BLOCKS, strict=True)).__getitem__
    )
    assert given.answered_at == 1000


@pytest.mark.parametrize("name", ["south", "compute", "university", "holder", "gone"])
def test_who_may_not_have_the_bytes_gets_no_digest_over_them_either(holder: Holder, name: str) -> None:
    """Digests over ranges of one's choosing, each a byte longer than the last, would give the bytes away."""
    assert holder.ask(name, holder.challenge(name)) == {"refused": "refused"}
    assert holder.ask("north", holder.challenge("north")).keys() == {"proof"}


def test_nobody_asks_in_anothers_name(holder: Holder) -> None:
    assert holder.ask("south", holder.challenge("north")) == {"refused": "refused"}
    assert holder.ask("auditor", holder.challenge("north")) == {"refused": "refused"}


def test_a_holder_that_deleted_a_block_says_so_and_looks_at_the_whole_again(holder: Holder) -> None:
    holder.blocks.unpin(CIDS[1], "held")
    holder.blocks.gc()
    assert holder.ask("north", holder.challenge("north", CIDS[0])).keys() == {"proof"}
    assert holder.damage == []
    assert holder.ask("north", holder.challenge("north")) == {"refused": "not-held"}
    assert holder.damage == [holder.bundle]


def test_an_altered_block_on_the_holders_disk_proves_nothing(holder: Holder) -> None:
    path = holder.blocks.files.path_of(CIDS[2])
    path.write_bytes(b"\0" * 8_000)
    assert holder.ask("north", holder.challenge("north", CIDS[2])) == {"refused": "not-held"}
    assert holder.damage == [holder.bundle]


def test_blocks_that_are_here_for_other_reasons_are_not_proved(holder: Holder) -> None:
    mine = holder.blocks.put(b"of another bundle" * 20, pin="job")
    holder.holdings.add([mine], Purpose.RESULT, holder.bundle)
    assert holder.ask("north", holder.challenge("north", mine)) == {"refused": "not-held"}


def test_challenges_are_rationed_by_member(holder: Holder) -> None:
    service = holder.service(per_minute=3)
    answers = [holder.ask("north", holder.challenge("north"), service) for _ in range(5)]
    assert [set(answer) for answer in answers] == [{"proof"}] * 3 + [{"refused"}] * 2
    assert answers[-1] == {"refused": "busy"}
    assert holder.ask("auditor", holder.challenge("auditor"), service).keys() == {"proof"}


def test_the_ration_refills_evenly_and_does_not_pile_up() -> None:
    clock = [0.0]
    allowance, member = Allowance(60, now=lambda: clock[0]), word()
    assert all(allowance.take(member) for _ in range(60)) and not allowance.take(member)
    clock[0] = 1.0
    assert allowance.take(member) and not allowance.take(member)
    clock[0] = 10_000.0
    assert sum(allowance.take(member) for _ in range(200)) == 60


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"ask": "anything"},
        {"ask": "proof"},
        {"ask": "proof", "challenge": 1},
        {"ask": "proof", "challenge": {}},
        {"ask": "proof", "challenge": {}, "extra": 1},
        {"ask": "notices", "artifacts": [b"\1" * 32] * (MAX_NOTICES + 1)},
        {"ask": "notices", "artifacts": [b"\1"]},
        {"ask": "notices", "artifacts": b"\1" * 32},
        {"ask": "erasures", "artifact": "0" * 32},
        {"ask": "erasures", "artifact": b"\1" * 32, "skip": -1},
        {"ask": "erasures", "artifact": b"\1" * 32, "skip": True},
        {"ask": "erasures", "artifact": b"\1" * 32, "extra": 1},
        {"ask": "replaced", "artifact": None},
        {"ask": ["proof"]},
    ],
    ids=repr,
)
def test_malformed_questions_are_refused_in_a_word(holder: Holder, question: dict) -> None:
    peer = holder.net["north"].peer.peer_id
    assert holder.service().answer(peer, question) == {"refused": "malformed"}


def test_notices_and_erasures_are_told_as_they_were_signed(holder: Holder) -> None:
    net = holder.net
    notice = PlacementNotice.sign(
        net.network, holder.bundle, sequence=5, left_out=(net["south"].id,), signing_key=net["north"].node_key
    )
    statement = ErasureStatement.sign(
        net.network,
        holder.bundle,
        net["holder"].id,
        what=Erased.COPY,
        blocks=3,
        erased_at=9,
        signing_key=net["holder"].node_key,
    )
    assert holder.store.keep_notice(notice)
    assert not holder.store.keep_notice(notice), "the same again is no news"
    holder.store.keep_erasure(statement)
    service, peer = holder.service(), net["university"].peer.peer_id
    asked = {"ask": "notices", "artifacts": [holder.bundle, word()]}
    assert service.answer(peer, asked) == {"notices": [notice.to_record()]}
    assert service.answer(peer, {"ask": "erasures", "artifact": holder.bundle}) == {
        "erasures": [statement.to_record()],
        "awaited": [],
    }
    stranger = net["gone"].peer.peer_id
    assert service.answer(stranger, asked) == {"refused": "refused"}


def test_what_a_member_tells_is_believed_only_with_the_signature_of_whose_word_it_is(holder: Holder) -> None:
    """Between real hosts: notices, statements and proofs that are forged, or of another bundle than was asked about."""
    net, other = holder.net, ArtifactId(word())
    asked = holder.challenge()

    def notice(artifact_id: ArtifactId, signer: str) -> dict[str, object]:
        key = net[signer].node_key
        signed = PlacementNotice.sign(net.network, artifact_id, sequence=1, left_out=(), signing_key=key)
        return {"notices": [signed.to_record()]}

    def statement(artifact_id: ArtifactId, signer: str) -> dict[str, object]:
        signed = ErasureStatement.sign(
            net.network,
            artifact_id,
            net["holder"].id,
            what=Erased.COPY,
            blocks=3,
            erased_at=9,
            signing_key=net[signer].node_key,
        )
        return {"erasures": [signed.to_record()], "awaited": []}

    def proof(challenge: StorageChallenge, signer: str) -> dict[str, object]:
        made = prove_possession(
            net.network,
            net["holder"].id,
            challenge,
            holder.blocks.get,
            answered_at=9,
            signing_key=net[signer].node_key,
        )
        return {"proof": made.to_record()}

    async def scenario(network: Any) -> None:
        answers: list[dict[str, object]] = []
        server = await network.start(NORTH)
        server.handle(PROTOCOL_ID, CustodyHandler(lambda *_: answers.pop()).serve)
        place = {"peer_id": NORTH.peer_id_bytes, "endpoint": server.multiaddr.split("/p2p/")[0]}
        context: Any = SimpleNamespace(
            host=await network.start(SOUTH),
            member=lambda org: replace(net.reader.participant(org), **place),
            ledger=SimpleNamespace(network=net.network),
            store=holder.blocks,
        )
        peers = CustodyPeers(context, answer_s=30.0)
        by, north = net["holder"].id, net["north"].id
        for ask, answer_of, subject, signer in (
            (lambda: peers.notices(by, [holder.bundle], north), notice, holder.bundle, "north"),
            (lambda: peers.erasures(by, holder.bundle), statement, holder.bundle, "holder"),
            (lambda: peers.prove(by, asked), proof, asked, "holder"),
        ):
            elsewhere = holder.challenge() if subject is asked else other
            for given, error in (
                (answer_of(subject, "south"), VerificationError),
                (answer_of(elsewhere, signer), (ManifestError, StorageProofError)),
            ):
                answers.append(given)
                with pytest.raises(error):
                    await ask()
            answers.append(answer_of(subject, signer))
            assert await ask()

    in_network(scenario)


def test_what_exceeds_one_answer_is_told_in_several(holder: Holder) -> None:
    """Between real hosts, whose messages have a bounded length."""
    net, key = holder.net, holder.net["north"].node_key
    left_out = tuple(word() for _ in range(MAX_LEFT_OUT))
    bundles = [ArtifactId(word()) for _ in range(64)]
    for artifact_id in bundles:
        notice = PlacementNotice.sign(
            net.network, artifact_id, sequence=2**63 - 1, left_out=left_out, signing_key=key
        )
        holder.store.keep_notice(notice)
    members = [OrgId(word()) for _ in range(300)]
    for member in members[:290]:
        holder.store.keep_erasure(
            ErasureStatement.sign(
                net.network,
                holder.bundle,
                member,
                what=Erased.COPY,
                blocks=2**63 - 1,
                erased_at=2**63 - 1,
                signing_key=key,
            )
        )
    holder.store.designate(holder.bundle, members, 50)
    service, asker = holder.service(), net["university"].peer.peer_id
    told: dict[str, set[bytes]] = {}

    async def scenario(network: Any) -> None:
        server = await network.start(NORTH)
        server.handle(PROTOCOL_ID, CustodyHandler(lambda _, question: service.answer(asker, question)).serve)
        one = replace(
            net.reader.participant(net["north"].id),
            peer_id=NORTH.peer_id_bytes,
            endpoint=server.multiaddr.split("/p2p/")[0],
        )
        context: Any = SimpleNamespace(
            host=await network.start(SOUTH),
            member=lambda org: replace(one, id=org),
            ledger=SimpleNamespace(network=net.network),
        )
        peers = CustodyPeers(context, answer_s=30.0)
        notices = await peers.notices(one.id, bundles, one.id)
        statements, awaited = await peers.erasures(one.id, holder.bundle)
        assert len(statements) == 290 and len(awaited) == 10
        told["notices"] = {notice.artifact_id for notice in notices}
        told["stated"] = {statement.holder for statement in statements}
        told["awaited"] = set(awaited)

    in_network(scenario)
    assert told == {
        "notices": set(bundles),
        "stated": set(members[:290]),
        "awaited": set(members[290:]),
    }
    encode_message(service.answer(asker, {"ask": "notices", "artifacts": bundles[:MAX_NOTICES]}))


def test_a_member_that_never_had_any_of_a_bundle_says_so_to_its_steward_once_it_has_ended(
    holder: Holder,
) -> None:
    net = holder.net
    manifest = {"of": "a bundle"}
    digest = dag.cid_of(manifest).digest
    ended = net.bundle(
        "north", net.key_domain("north"), scope=SCOPE, content_digest=digest, retain_until=FAR - 1
    )
    catch_up(holder.index, net.reader)
    question = {"ask": "erasures", "artifact": ended}
    early, late = holder.service(), holder.service(now=FAR - 1)

    def said(service: CustodyService, name: str = "north") -> list[ErasureStatement]:
        records = service.answer(net[name].peer.peer_id, question)["erasures"]
        return [ErasureStatement.from_record(record) for record in records]

    assert said(early) == [], "it is retained"
    assert said(late, "university") == [], "only its steward waits for the word"
    holder.store.hold(Held(artifact_id=ended, blocks=1, size_bytes=0))
    assert said(late) == [], "it is still to let go of what it has"
    holder.store.let_go(ended)
    holder.holdings.add(CIDS, Purpose.HELD, ended)
    assert said(late) == []
    holder.holdings.drop(Purpose.HELD, ended)
    (statement,) = said(late)
    statement.check(net.network, net.reader.participant(net["holder"].id))
    assert (statement.what, statement.blocks, statement.erased_at) == (Erased.COPY, 0, FAR - 1)
    assert said(holder.service(now=FAR)) == [statement], "once"


def test_a_member_that_has_blocks_of_an_ended_bundle_for_another_reason_does_not_say_that_it_has_none(
    holder: Holder, bundle: SmallBundle
) -> None:
    net = holder.net
    ended = net.bundle(
        "north",
        net.key_domain("north"),
        scope=SCOPE,
        content_digest=dag.cid_of(bundle.record).digest,
        retain_until=FAR - 1,
    )
    catch_up(holder.index, net.reader)
    service, question = holder.service(now=FAR - 1), {"ask": "erasures", "artifact": ended}
    holder.blocks.put(dag.encode(bundle.record), Codec.DAG_CBOR, pin="job")
    holder.blocks.put(bundle.blocks[1], pin="job")
    peer = net["north"].peer.peer_id
    assert service.answer(peer, question)["erasures"] == []
    holder.blocks.unpin_all("job")
    holder.blocks.gc()
    assert len(service.answer(peer, question)["erasures"]) == 1


def test_a_steward_calls_a_former_holder_replaced_only_when_the_present_ones_have_proved(
    holder: Holder,
) -> None:
    """Asked as if `north` ran on this store."""
    service, peer = holder.service("north"), holder.net["south"].peer.peer_id
    question = {"ask": "replaced", "artifact": holder.bundle}
    now = holder.net["holder"].id
    assert service.answer(peer, question) == {"replaced": False}, "it does not know its holder yet"
    holder.challenged(Outcome.PASSED, 40)
    holder.store.designate(holder.bundle, [now], 50)
    assert service.answer(peer, question) == {"replaced": False}, "the proof is from an earlier time"
    holder.challenged(Outcome.NOT_HELD, 60)
    assert service.answer(peer, question) == {"replaced": False}
    holder.challenged(Outcome.PASSED, 70)
    assert service.answer(peer, question) == {"replaced": True}
    assert holder.service("holder").answer(peer, question) == {"refused": "refused"}


def test_a_steward_calls_nobody_replaced_that_is_its_holder_as_far_as_it_knows(holder: Holder) -> None:
    """The asker has seen a block already that the steward has not: by that, others are to hold the bundle."""
    holder.store.designate(holder.bundle, [holder.net["holder"].id], 50)
    holder.challenged(Outcome.PASSED, 60)
    service, question = holder.service("north"), {"ask": "replaced", "artifact": holder.bundle}
    assert service.answer(holder.net["holder"].peer.peer_id, question) == {"replaced": False}
    assert service.answer(holder.net["south"].peer.peer_id, question) == {"replaced": True}


def test_a_steward_calls_nobody_replaced_under_a_policy_that_it_has_not_read_or_that_nobody_fits(
    holder: Holder,
) -> None:
    net = holder.net
    own = replace(holder, bundle=net.bundle("north", net.key_domain("north"), scope=SCOPE))
    service, question = own.service("north"), {"ask": "replaced", "artifact": own.bundle}

    def told(wanted: Replication | None) -> object:
        """What it says once another policy is in force."""
        policy = word()
        if wanted is not None:
            own.store.keep_replication(policy, wanted)
        net["north"].ledger.transact("LineageRegistry", "setPolicy", own.bundle, policy)
        catch_up(own.index, net.reader)
        return service.answer(net["south"].peer.peer_id, question)

    own.store.designate(own.bundle, [net["holder"].id], 50)
    own.challenged(Outcome.PASSED, 60)
    assert told(Replication(copies=2, holders=("holder",))) == {"replaced": True}
    assert told(None) == {"replaced": False}, "the policy is not read"
    assert told(Replication(copies=2, holders=("gone",))) == {"replaced": False}, "it is suspended"
    assert told(Replication(copies=1)) == {"replaced": True}, "nobody is to hold it"
