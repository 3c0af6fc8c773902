"""Tells members that ask what this node speaks: `/ipfs/id/1.0.0`, which other libp2p software wants before anything else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from usufruct_node.peers.connection import MemberStream
from usufruct_node.peers.deadlines import Deadlines, within
from usufruct_node.peers.identity import PeerIdentity

PROTOCOL_ID: Final = "/ipfs/id/1.0.0"


class Identification:
    """Answers identify streams; asks nobody."""

    def __init__(
        self,
        identity: PeerIdentity,
        *,
        multiaddr: Callable[[], str],
        protocols: Collection[str],
        deadlines: Deadlines,
    ) -> None:
        self._identity = identity
        self._multiaddr = multiaddr
        self._protocols = protocols
        self._deadlines = deadlines

    async def answer(self, peer_id: str, stream: MemberStream) -> None:
        """Send one message and end the stream."""
        message = Identify(
            protocol_version="ipfs/0.1.0",
            agent_version="usufruct",
            public_key=self._identity.key_pair.public_key.serialize(),
            listen_addrs=[Multiaddr(self._multiaddr().split("/p2p/")[0]).to_bytes()],
            protocols=sorted(self._protocols),
        )
        with within(self._deadlines.request, "saying what is spoken here"):
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
            await stream.finish()
        with trio.move_on_after(self._deadlines.request):
            await stream.read(1)
