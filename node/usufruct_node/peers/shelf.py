"""What this node gives out, block by block, to whom, and how fast: the one place that every protocol asks.

**Invariant:** no byte of a block leaves before `is_member` and `authorise` have both said yes for this very request.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from usufruct.content import MAX_BLOCK_BYTES, Cid
from usufruct.errors import UsufructError
from usufruct_node.peers import gate
from usufruct_node.peers.gate import RefusalLog
from usufruct_node.peers.protocol import Status
from usufruct_node.peers.quota import Quotas

_LOG = logging.getLogger(__name__)

BATCH_BYTES: Final = 256 * 1024
"""Blocks are read in runs of about this size, one thread call each; it bounds what a slow peer keeps in memory."""

_LOOKUP_THREADS = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one requested block."""

    cid: Cid
    status: Status
    data: bytes = b""


class Shelf:
    """Decides and reads on behalf of every protocol that hands out blocks."""

    def __init__(
        self,
        *,
        is_member: Callable[[str], bool],
        authorise: Callable[[str, Cid], bool],
        read_block: Callable[[Cid], bytes | None],
        has_block: Callable[[Cid], bool] | None = None,
        refusals: RefusalLog,
        quotas: Quotas,
    ) -> None:
        self._is_member = is_member
        self._authorise = authorise
        self._read_block = read_block
        self._has_block = has_block or (lambda cid: read_block(cid) is not None)
        self._refusals = refusals
        self._quotas = quotas
        self._threads = trio.CapacityLimiter(_LOOKUP_THREADS)
        self.given: Counter[str] = Counter()
        """Bytes of blocks given, by peer id."""

    async def take(self, peer_id: str, cids: Sequence[Cid], *, size_bytes: int = BATCH_BYTES) -> list[Answer]:
        """Answers for the first of `cids`: at least one, as many as `size_bytes` hold; none once it is no member.

        Waits while the member is over its quota; if that would take too long, all are refused.
        """
        return await self._answer(peer_id, cids, self._read_block, size_bytes)

    async def look(self, peer_id: str, cids: Sequence[Cid]) -> list[Answer]:
        """Say as `take` does which of `cids` the member may have and are here, with no bytes: none are read or charged."""
        return await self._answer(peer_id, cids, self._nothing_of, BATCH_BYTES)

    def _nothing_of(self, cid: Cid) -> bytes | None:
        return b"" if self._has_block(cid) else None

    async def _answer(
        self, peer_id: str, cids: Sequence[Cid], read: Callable[[Cid], bytes | None], size_bytes: int
    ) -> list[Answer]:
        if not self._still_member(peer_id, cids[0]):
            return []
        wait = self._quotas.wait_s(peer_id)
        if wait is None:
            for cid in cids:
                self._refusals.add(gate.OVER_QUOTA, peer_id, cid)
            return [Answer(cid, Status.OVER_QUOTA) for cid in cids]
        if wait:
            await trio.sleep(wait)
        answers = await trio.to_thread.run_sync(
            partial(self._look_up, peer_id, cids, read, size_bytes), limiter=self._threads
        )
        given_bytes = sum(len(answer.data) for answer in answers)
        self._quotas.charge(peer_id, blocks=len(answers), size_bytes=given_bytes)
        for answer in answers:
            if answer.status is Status.NOT_AUTHORISED:
                self._refusals.add(gate.NOT_AUTHORISED, peer_id, answer.cid)
        if not self._still_member(peer_id, cids[0]):
            return []
        self.given[peer_id] += given_bytes
        return answers

    def _still_member(self, peer_id: str, cid: Cid) -> bool:
        if self._is_member(peer_id):
            return True
        self._refusals.add(gate.NOT_A_MEMBER, peer_id, cid)
        return False

    def _look_up(
        self, peer_id: str, cids: Sequence[Cid], read: Callable[[Cid], bytes | None], room: int
    ) -> list[Answer]:
        """Decide and read, in a worker thread."""
        answers: list[Answer] = []
        for cid in cids:
            answers.append(self._look_up_one(peer_id, cid, read))
            room -= len(answers[-1].data)
            if room <= 0:
                break
        return answers

    def _look_up_one(self, peer_id: str, cid: Cid, read: Callable[[Cid], bytes | None]) -> Answer:
        """A failure of this node looks like an absent block."""
        try:
            if not self._authorise(peer_id, cid):
                return Answer(cid, Status.NOT_AUTHORISED)
            data = read(cid)
        except UsufructError as exc:
            _LOG.warning("block %s cannot be served: %s", cid, exc)
            return Answer(cid, Status.NOT_FOUND)
        if data is None or len(data) > MAX_BLOCK_BYTES:
            return Answer(cid, Status.NOT_FOUND)
        return Answer(cid, Status.BLOCK, data)
