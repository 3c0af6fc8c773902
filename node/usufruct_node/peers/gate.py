"""The membership gate: a Noise transport that lets only members through, and the record of who was refused.

It stands before multiplexing, so a stranger never opens a stream. What a member may have is decided later,
per block.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from libp2p.crypto.keys import KeyType
from libp2p.crypto.serialization import key_type_to_public_key_deserializer
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import Transport as NoiseTransport

from usufruct.content import Cid
from usufruct_node.peers.identity import PeerIdentity

REFUSALS_KEPT: Final = 256

NOT_A_MEMBER: Final = "not a member"
ID_MISMATCH: Final = "peer id mismatch"
NOT_AUTHORISED: Final = "not authorised"
BUSY: Final = "busy"
OVER_QUOTA: Final = "over quota"
WRONG_BLOCK: Final = "wrong block"
UNSOLICITED: Final = "unsolicited"
PROTOCOL: Final = "protocol"
TOO_SLOW: Final = "too slow"
HANDSHAKE: Final = "handshake"
"""Counted only: before the handshake ends there is no peer to name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refusal by this node."""

    peer_id: str

    at: float
    """Unix seconds."""

    reason: str
    """One of this module's reasons."""

    cid: Cid | None = None
    """The block that was asked for, where the refusal concerns one."""


class RefusalLog:
    """Counts refusals by reason and remembers the last `REFUSALS_KEPT` of them."""

    def __init__(self) -> None:
        self._last: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, peer_id: str, cid: Cid | None = None) -> None:
        """Record one refusal of a known peer."""
        self._counts[reason] += 1
        self._last.append(Refusal(peer_id=peer_id, at=time.time(), reason=reason, cid=cid))

    def count(self, reason: str) -> None:
        """Count one refusal of somebody unknown."""
        self._counts[reason] += 1

    def last(self) -> list[Refusal]:
        """Return what is remembered, oldest first."""
        return list(self._last)

    def counts(self) -> dict[str, int]:
        """Return how many refusals there were since the start, by reason."""
        return dict(self._counts)


# Members have Ed25519 keys. A stranger sends one of any kind before anything is known of it, and the library parses
# it at once in the event loop, for minutes if it is a long RSA key. Its table is the one place that decides what it parses.
for _kind in key_type_to_public_key_deserializer.keys() - {KeyType.Ed25519.value}:
    del key_type_to_public_key_deserializer[_kind]


class NotAMemberError(HandshakeFailure):  # type: ignore[misc]
    """The handshake proved an identity that is not a member's; already recorded."""


class GatedNoise(NoiseTransport):  # type: ignore[misc]
    """Noise XX that refuses every peer id that is not a member's, in both directions."""

    def __init__(
        self, identity: PeerIdentity, *, is_member: Callable[[str], bool], refusals: RefusalLog
    ) -> None:
        super().__init__(identity.key_pair, noise_privkey=create_noise_key_pair().private_key)
        self._is_member = is_member
        self._refusals = refusals

    async def secure_inbound(self, conn: Any) -> Any:
        """Shake hands as the responder.

        Raises
        ------
        HandshakeFailure
            If the handshake fails or the peer is not a member.
        """
        session = await super().secure_inbound(conn)
        await self._admit(session, str(session.get_remote_peer()))
        return session

    async def secure_outbound(self, conn: Any, peer_id: Any) -> Any:
        """Shake hands as the initiator.

        Raises
        ------
        HandshakeFailure
            If the handshake fails, the peer is not a member, or it is not the peer that was dialled.
        """
        await self._admit(conn, str(peer_id))
        try:
            session = await super().secure_outbound(conn, peer_id)
        except PeerIDMismatchesPubkey:
            self._refusals.add(ID_MISMATCH, str(peer_id))
            raise
        if session.get_remote_peer() != peer_id:
            self._refusals.add(ID_MISMATCH, str(peer_id))
            await session.close()
            raise HandshakeFailure(ID_MISMATCH)
        return session

    async def _admit(self, conn: Any, peer_id: str) -> None:
        if not self._is_member(peer_id):
            self._refusals.add(NOT_A_MEMBER, peer_id)
            await conn.close()
            raise NotAMemberError(NOT_A_MEMBER)
