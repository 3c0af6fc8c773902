"""What the registry says about this node and its peers: who may connect, where it listens, who else claims to be it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import trio

from usufruct.errors import InputError, UsufructError
from usufruct.ledger import Ledger
from usufruct.records import MemberStatus, OrgId, Participant
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
        self._announced_in: int | None = None
        """Block that this node's announcement is in."""
        self._was_in_force = False
        self._refreshing = trio.Lock()
        self.peers: frozenset[str] = frozenset()
        """Peer ids of the active members."""
        self.superseded_by: str | None = None
        """Address that another node announced as this organisation after this one had."""
        self.must_announce = False
        """Whether the registry has still to be told where this node listens."""

    def is_active(self) -> bool:
        """Whether this node's organisation is an active member."""
        own = self._index.participant(self._org)
        return own is not None and own.status == MemberStatus.ACTIVE

    async def refresh(self, endpoint: str) -> frozenset[str]:
        """Read the registry, and whether it has this node at `endpoint`; returns peers that are members no more."""
        async with self._refreshing:
            block, members = await trio.to_thread.run_sync(self._read)
            active = frozenset(_peers(m.peer_id for m in members if m.status == MemberStatus.ACTIVE))
            gone, self.peers = self.peers - active, active
            own = next((m for m in members if m.id == self._org), None)
            is_member = own is not None and own.status == MemberStatus.ACTIVE
            self._compare(own.endpoint if own and is_member else None, endpoint, block)
        return gone

    async def announce(self, endpoint: str) -> None:
        """Say in the registry that this node listens at `endpoint`, if that is to be said; a failure leaves it to be said."""
        if not self.must_announce:
            return
        try:
            receipt = await trio.to_thread.run_sync(
                self._ledger.transact, "ParticipantRegistry", "setEndpoint", endpoint
            )
        except UsufructError as exc:
            _log.warning("cannot announce %s: %s", endpoint, exc)
            return
        self._announced_in = receipt.block_number
        self.must_announce = False

    def _read(self) -> tuple[int, list[Participant]]:
        """The members, as of this block or a later one."""
        cursor = self._index.cursor()
        return -1 if cursor is None else cursor.number, self._index.participants()

    def _compare(self, told: str | None, endpoint: str, block: int) -> None:
        """Draw the conclusions from what the registry told as of a block; None: nothing about an active member."""
        self.must_announce = False
        if told is None:
            return
        # The block may hold another node's announcement behind this one's: then this one's never stands in the index.
        passed = self._announced_in is not None and block >= self._announced_in
        if told == endpoint:
            self._was_in_force = True
            self.superseded_by = None
        elif self._was_in_force or passed:
            if self.superseded_by is None:
                _log.error("another node runs as this organisation at %s: this one stops its work", told)
            self.superseded_by = told
        else:
            self.must_announce = self._announced_in is None


def _peers(raw: Iterable[bytes]) -> Iterator[str]:
    for peer_id in raw:
        try:
            yield peer_id_text(peer_id)
        except InputError:
            _log.warning("the registry holds a peer id that is none: %s", peer_id.hex())
