"""Real peer hosts in one loop, and members that misbehave, for the tests of the peers."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from usufruct.content import Cid
from usufruct.errors import PeerError
from usufruct_node.peers import PeerHost, PeerIdentity
from usufruct_node.peers.connection import MemberStream
from usufruct_node.peers.protocol import PROTOCOL_ID, read_request

MEMBERS = [PeerIdentity.from_seed(bytes([n]) * 32) for n in range(1, 9)]


def made_blocks(count: int, size_bytes: int = 27_000) -> dict[Cid, bytes]:
    """So many different blocks by their CIDs, the same ones every time."""
    blocks = (hashlib.shake_128(n.to_bytes(4)).digest(size_bytes) for n in range(count))
    return {Cid.of(block): block for block in blocks}


class Network:
    """Hosts in one loop that share one set of members."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.members = {identity.peer_id for identity in MEMBERS}

    async def start(self, number: int, **options: Any) -> PeerHost:
        """A host under the identity of that number."""
        given: dict[str, Any] = {
            "is_member": self.members.__contains__,
            "authorise": lambda peer_id, cid: True,
            "read_block": {}.get,
        }
        host = PeerHost(identity=MEMBERS[number], **(given | options))
        await self.nursery.start(host.run)
        return host

    async def start_hostile(
        self, number: int, behaviour: Callable[[MemberStream, list[Cid]], Awaitable[None]]
    ) -> PeerHost:
        """A host that answers each request as `behaviour` does, until that raises or returns early."""
        host = await self.start(number)

        async def answer(peer_id: str, stream: MemberStream) -> None:
            while first := await stream.read(1):
                await behaviour(stream, await read_request(stream, first))

        host.handle(PROTOCOL_ID, answer)
        return host


def in_network(scenario: Callable[[Network], Awaitable[None]], *, seconds: float = 120) -> None:
    """Run `scenario` with a network that is torn down after it, within a bound that no healthy run comes near."""

    async def run() -> None:
        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                await scenario(Network(nursery))
                nursery.cancel_scope.cancel()

    trio.run(run)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`."""
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


async def swallow(stream: MemberStream) -> None:
    """Read what comes until the stream ends."""
    try:
        while await stream.read(1024):
            pass
    except PeerError:
        pass
