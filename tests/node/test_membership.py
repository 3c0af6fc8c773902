"""What a node does about the registry: announce itself until that is known, stop for another self, part from who left."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from usufruct.errors import LedgerError
from usufruct.ledger import Head
from usufruct.records import MemberStatus, Participant, Role, org_id
from usufruct_node import app
from usufruct_node.membership import Membership
from usufruct_node.peers import PeerIdentity

MINE, THEIRS, UNKNOWN = (f"/ip4/127.0.0.1/tcp/{port}" for port in (1, 2, 0))
NORTH, SOUTH = (PeerIdentity.from_seed(bytes([number]) * 32) for number in (1, 2))


def member(name: str, identity: PeerIdentity, endpoint: str = UNKNOWN) -> Participant:
    return Participant(
        id=org_id(name),
        account="0x" + "11" * 20,
        node_account="0x" + "22" * 20,
        roles=Role.STEWARD,
        status=MemberStatus.ACTIVE,
        hpke_key=bytes(32),
        peer_id=identity.peer_id_bytes,
        endpoint=endpoint,
    )


class Chain:
    """Ledger and index of two members; announcements go into the next block, which is indexed when a test says so."""

    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.block = 7
        self.members = [member("north", NORTH), member("south", SOUTH)]

    def cursor(self) -> Head:
        return Head(self.block, bytes(32), 0)

    def participants(self) -> list[Participant]:
        return self.members

    def transact(self, _contract: str, _function: str, endpoint: str) -> SimpleNamespace:
        self.may_go_on.wait(30)
        if self.failures:
            self.failures -= 1
            raise LedgerError("no fees")
        self.sent.append(endpoint)
        return SimpleNamespace(block_number=8)

    def index(self, endpoint: str, *, block: int = 8) -> None:
        self.members[0] = replace(self.members[0], endpoint=endpoint)
        self.block = block


class Host:
    multiaddr = f"{MINE}/p2p/{NORTH.peer_id}"

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def close_peer(self, peer: str) -> None:
        self.closed.append(peer)


def node_on(chain: Chain) -> Any:
    """The part of a node that follows the registry."""
    node = app.Node.__new__(app.Node)
    node.__dict__ |= {
        "index": chain,
        "_membership": Membership(org_id("north"), chain, chain),
        "_settings": SimpleNamespace(announce="", poll_s=0.01),
        "_host": Host(),
        "_chain": SimpleNamespace(heard=lambda: None),
        "_dispatcher": SimpleNamespace(hold=lambda held: None),
        "_keeper": SimpleNamespace(hold=lambda held: None),
    }
    return node


def run(node: Any, scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await node._follow_registry()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node._keep_membership)
                nursery.start_soon(node._keep_announced)
                await scenario()
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


def test_an_announcement_that_failed_is_tried_again_while_no_block_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "_ANNOUNCE_SECONDS", 0.01)
    chain = Chain(failures=2)

    async def scenario() -> None:
        await until(lambda: bool(chain.sent))
        await trio.sleep(0.1)

    run(node_on(chain), scenario)
    assert chain.sent == [MINE], "and once it is mined, not again"


def test_attempts_that_fail_are_not_made_at_every_look_at_the_chain() -> None:
    chain = Chain(failures=1_000)
    run(node_on(chain), lambda: trio.sleep(0.3))
    assert chain.failures == 999


def test_a_node_whose_announcement_another_followed_in_the_same_block_is_superseded() -> None:
    chain = Chain()
    node = node_on(chain)

    async def scenario() -> None:
        await until(lambda: bool(chain.sent))
        await node._follow_registry()
        assert node._membership.superseded_by is None, "its own announcement is not indexed yet"
        chain.index(THEIRS)
        await until(lambda: node._membership.superseded_by == THEIRS)
        chain.index(MINE, block=9)
        await until(lambda: node._membership.superseded_by is None)

    run(node, scenario)
    assert chain.sent == [MINE]


def test_a_node_that_learns_late_that_its_announcement_was_followed_is_superseded_without_another_block() -> (
    None
):
    chain = Chain()
    node = node_on(chain)
    chain.may_go_on.clear()

    async def scenario() -> None:
        await trio.sleep(0.05)
        chain.index(THEIRS)
        await trio.sleep(0.05)
        chain.may_go_on.set()
        await until(lambda: node._membership.superseded_by == THEIRS)

    run(node, scenario)
    assert chain.sent == [MINE]


def test_connections_of_a_removed_member_are_closed_while_an_announcement_waits() -> None:
    chain = Chain()
    node = node_on(chain)
    chain.may_go_on.clear()

    async def scenario() -> None:
        await trio.sleep(0.05)
        chain.members[1] = replace(chain.members[1], status=MemberStatus.REMOVED)
        chain.block += 1
        try:
            await until(lambda: bool(node._host.closed))
        finally:
            chain.may_go_on.set()

    run(node, scenario)
    assert node._host.closed == [SOUTH.peer_id]


def test_one_who_is_no_member_and_one_whose_address_is_known_announce_nothing() -> None:
    for change in ({"status": MemberStatus.SUSPENDED}, {"endpoint": MINE}):
        chain = Chain()
        chain.members[0] = replace(chain.members[0], **change)
        run(node_on(chain), lambda: trio.sleep(0.1))
        assert chain.sent == []
