"""What the registry says about this node and its peers: who may connect, where it listens, who else claims to be it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import trio

from usufruct.errors import InputError, UsufructError
from usufruct.ledger import Ledger
from usufruct.records import MemberStatus, OrgId
from usufruct_node.index import Index
from usufruct_node.peers.identity import peer_id_text

_log = logging.getLogger(__name__)


class Membership:
    """Follows the registry as of the indexed block.

    Two nodes under one identity (one restored beside a lost one that was not lost) are told apart by the address that they
    announce: whoever announced last goes on, the other sees its address replaced and knows that it is to stop.
    """

    def __init__(self, org: OrgId, index: Index, ledger: Ledger) -> None:
        self._org = org
        self._index = index
        self._ledger = ledger
        self._announced = ""
        self._was_in_force = False
        self.peers: frozenset[str] = frozenset()
        """Peer ids of the active members."""
        self.superseded_by: str | None = None
        """Address that another node announced as this organisation after this one had."""

    def is_active(self) -> bool:
        """Whether this node's organisation is an active member."""
        own = self._index.participant(self._org)
        return own is not None and own.status == MemberStatus.ACTIVE

    async def refresh(self, endpoint: str) -> frozenset[str]:
        """Read the registry, and announce `endpoint` if it says another; returns peers that are members no more."""
        members = await trio.to_thread.run_sync(self._index.participants)
        active = frozenset(_peers(m.peer_id for m in members if m.status == MemberStatus.ACTIVE))
        gone, self.peers = self.peers - active, active
        own = next((m for m in members if m.id == self._org), None)
        if own is None or own.status != MemberStatus.ACTIVE:
            return gone
        if own.endpoint == endpoint:
            self._was_in_force = True
            self.superseded_by = None
        elif self._was_in_force:
            if self.superseded_by is None:
                _log.error(
                    "another node runs as this organisation at %s: this one stops its work", own.endpoint
                )
            self.superseded_by = own.endpoint
        elif endpoint != self._announced:
            await self._announce(endpoint)
        return gone

    async def _announce(self, endpoint: str) -> None:
        try:
            await trio.to_thread.run_sync(
                self._ledger.transact, "ParticipantRegistry", "setEndpoint", endpoint
            )
            self._announced = endpoint
        except UsufructError as exc:
            _log.warning("cannot announce %s: %s", endpoint, exc)


def _peers(raw: Iterable[bytes]) -> Iterator[str]:
    for peer_id in raw:
        try:
            yield peer_id_text(peer_id)
        except InputError:
            _log.warning("the registry holds a peer id that is none: %s", peer_id.hex())
