"""Blocks from several holders at once: who is asked for what, and what happens when one stalls, lies or vanishes.

Work is handed out in small batches to whoever has room, so the fastest holder gives most. What a holder leaves
undone goes back and is asked of another; near the end, idle holders are asked for what silent ones still owe. A
holder that lies is struck off at once, one that fails is tried again until its patience is used up. Every block is
hashed, in a thread, before it is kept; while that happens the next ones arrive. What is held already is not fetched,
so a fetch that was cut off goes on where it stopped.

Memory does not depend on the number of blocks: CIDs are taken from the caller a few hundred at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from usufruct.content import Cid
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    InputError,
    PeerBusyError,
    PeerError,
    PeerProtocolError,
    PeerRefusedError,
    PeerTooSlowError,
    UsufructError,
)
from usufruct_node.peers import gate
from usufruct_node.peers.asking import Line, refusal_of
from usufruct_node.peers.protocol import Status
from usufruct_node.peers.shelf import Answer

_LOG = logging.getLogger(__name__)

BATCH: Final = 16
"""CIDs asked for in one request."""

OUTSTANDING: Final = 64
"""CIDs that one holder may owe at once."""

WINDOW: Final = 512
"""CIDs taken from the caller at once, and looked up in the store in one call."""

KEEP_BYTES: Final = 2 * 1024 * 1024
"""Blocks are hashed and kept in runs of about this size."""

KEEP_AFTER_SECONDS: Final = 5.0
"""Shorter runs are kept when their first block has waited so long: whoever gives up a slow fetch goes on from there."""

STEAL: Final = 8
"""CIDs that an idle holder is asked for at once though another owes them."""

STEAL_AFTER_SECONDS: Final = 1.0
"""Silence after which what a holder owes is asked of idle ones too."""

_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A member that may have the blocks."""

    peer_id: str
    multiaddr: str


class Lines(Protocol):
    """What opens a way to ask a member; the peer host does."""

    async def line(self, peer_id: str, multiaddr: str) -> Line:
        """Open one, or raise PeerError or InputError."""

    def refuse(self, reason: str, peer_id: str, cid: Cid | None = None) -> None:
        """Record that a peer was struck off."""


@dataclass(slots=True)
class FetchReport:
    """What a fetch did."""

    blocks: int = 0
    """Blocks that were fetched and kept."""

    size_bytes: int = 0

    held: int = 0
    """Blocks that were here already."""

    by_holder: dict[str, int] = field(default_factory=dict)
    """Blocks kept, by the peer id that gave them."""

    struck: dict[str, UsufructError] = field(default_factory=dict)
    """Why a holder was given up, by peer id."""


async def fetch_blocks(
    lines: Lines,
    holders: Sequence[Holder],
    cids: Iterable[Cid],
    *,
    missing: Callable[[Sequence[Cid]], Sequence[Cid]],
    keep: Callable[[Sequence[tuple[Cid, bytes]]], None],
    stall_s: float = 10.0,
    patience_s: float = 3.0,
    report: FetchReport | None = None,
) -> FetchReport:
    """Fetch what is missing of `cids` from `holders`, and keep it.

    Parameters
    ----------
    lines :
        The peer host.
    holders :
        Distinct members; the order does not matter.
    cids :
        Any number, taken as the fetch goes on.
    missing :
        Those of some CIDs that are not here yet. Called in a worker thread.
    keep :
        Stores checked blocks durably. Called in worker threads, several at once.
    stall_s :
        A holder that gives nothing for so long is left alone for a while.
    patience_s :
        How long a holder that fails is tried again without getting a block.
    report :
        Filled as the fetch goes on, also when it fails; a new one by default.

    Raises
    ------
    BlockNotFoundError
        If no holder has a block.
    PeerRefusedError
        If those that have it say that we may not.
    BlockMismatchError
        If the last holder was struck off for giving other bytes.
    PeerError
        If no holder is left that could be reached. What was kept until then stays.
    """
    if len({holder.peer_id for holder in holders}) != len(holders):
        raise InputError("a holder is named twice")
    plan = _Plan(lines, holders, iter(cids), missing, keep, stall_s, patience_s, report)
    await plan.run()
    return plan.report


class _Source:
    """One holder, as the plan sees it."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.owed: dict[Cid, None] = {}
        self.arrived: list[Answer] = []
        self.arrived_bytes = 0
        self.arrived_since = 0.0
        """When the first of these arrived."""
        self.last_heard = trio.current_time()
        self.kept = 0
        self.is_sated = False
        """Whether nothing in the queue is for it: it owes it or refused it."""

        self.scope = trio.CancelScope()


class _Plan:
    def __init__(
        self,
        lines: Lines,
        holders: Sequence[Holder],
        cids: Iterable[Cid],
        missing: Callable[[Sequence[Cid]], Sequence[Cid]],
        keep: Callable[[Sequence[tuple[Cid, bytes]]], None],
        stall_s: float,
        patience_s: float,
        report: FetchReport | None = None,
    ) -> None:
        self.report = report or FetchReport()
        self._lines = lines
        self._cids = iter(cids)
        self._missing = missing
        self._keep = keep
        self._stall_s = stall_s
        self._patience_s = patience_s
        self._sources = {holder.peer_id: _Source(holder) for holder in holders}
        self._queue: deque[Cid] = deque()
        self._open: dict[Cid, dict[str, UsufructError]] = {}
        """CIDs taken from the caller and not kept yet, with what each holder said that will not give them."""
        self._all_taken = False
        self._taking = trio.Lock()
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self._failure: BaseException | None = None

    async def run(self) -> None:
        await self._take_more()
        with self._scope:
            async with trio.open_nursery() as nursery:
                if self._done():
                    return
                if not self._sources:
                    self._fail(BlockNotFoundError(f"no holder is known for block {next(iter(self._open))}"))
                for source in self._sources.values():
                    nursery.start_soon(self._run_source, source)
        if self._failure is not None:
            raise self._failure

    # What is to be had.

    async def _take_more(self) -> None:
        """Take CIDs from the caller until some are missing here, or there are no more."""
        async with self._taking:
            had = len(self._open)
            while len(self._open) == had and not self._all_taken:
                await trio.lowlevel.checkpoint_if_cancelled()
                # Whoever is struck off meanwhile must not lose what it took: nobody would ask for it again.
                with trio.CancelScope(shield=True):
                    await self._take_window()
        self._change()

    async def _take_window(self) -> None:
        part: dict[Cid, None] = {}
        for cid in self._cids:
            part[cid] = None
            if len(part) == WINDOW:
                break
        fresh = [cid for cid in part if cid not in self._open]
        lacking = await trio.to_thread.run_sync(self._missing, fresh) if fresh else []
        self.report.held += len(part) - len(lacking)
        self._open.update((cid, {}) for cid in lacking)
        # Not before these are open: others may find that all the rest is kept while these are looked up.
        self._all_taken = len(part) < WINDOW
        self._requeue(lacking)

    def _done(self) -> bool:
        return self._all_taken and not self._open

    async def _next_batch(self, source: _Source) -> list[Cid]:
        """CIDs to ask this holder for; none if there is nothing for it at the moment."""
        room = min(BATCH, OUTSTANDING - len(source.owed))
        if room < BATCH // 2:
            return []
        batch = self._from_queue(source, room)
        if not batch and not self._all_taken and len(self._open) < 4 * WINDOW:
            await self._take_more()
            batch = self._from_queue(source, room)
        if not batch and not source.owed:
            batch = self._owed_by_others(source)
        source.owed.update(dict.fromkeys(batch))
        return batch

    def _from_queue(self, source: _Source, room: int) -> list[Cid]:
        if source.is_sated:
            return []
        name = source.holder.peer_id
        batch: list[Cid] = []
        passed: list[Cid] = []
        while self._queue and len(batch) < room:
            cid = self._queue.popleft()
            if cid in self._open:
                (passed if name in self._open[cid] or cid in source.owed else batch).append(cid)
        self._queue.extend(passed)
        source.is_sated = not batch
        return batch

    def _requeue(self, cids: Iterable[Cid]) -> None:
        """Let any holder be asked for these."""
        self._queue.extend(cids)
        for one in self._sources.values():
            one.is_sated = False

    def _owed_by_others(self, source: _Source) -> list[Cid]:
        """What the most silent other holder still owes, last first: it gets to those last itself."""
        others = [one for one in self._sources.values() if one is not source and one.owed]
        slowest = min(others, key=lambda one: one.last_heard, default=None)
        if slowest is None or trio.current_time() - slowest.last_heard < STEAL_AFTER_SECONDS:
            return []
        name = source.holder.peer_id
        return [cid for cid in reversed(slowest.owed) if cid in self._open and name not in self._open[cid]][
            :STEAL
        ]

    def _give_back(self, source: _Source) -> None:
        """What a holder still owed is asked of others."""
        owed_elsewhere = {
            cid for one in self._sources.values() if one is not source for cid in one.owed
        } | set(self._queue)
        unkept = (*source.owed, *(answer.cid for answer in source.arrived))
        self._requeue(cid for cid in unkept if cid in self._open and cid not in owed_elsewhere)
        source.owed.clear()
        source.arrived, source.arrived_bytes = [], 0
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # One holder.

    async def _run_source(self, source: _Source) -> None:
        with source.scope:
            await self._try_source(source)
        self._give_back(source)
        self._check_hope(self._open)

    async def _try_source(self, source: _Source) -> None:
        wait = _BACKOFF_SECONDS
        failing_since: float | None = None
        while not self._done():
            kept, began = source.kept, trio.current_time()
            try:
                await self._use(source)
            except (PeerRefusedError, InputError, PeerProtocolError) as exc:
                return self._strike(source, exc)
            except PeerError as exc:
                if source.kept > kept or failing_since is None:
                    failing_since, wait = began, _BACKOFF_SECONDS
                if trio.current_time() - failing_since >= self._patience_s:
                    return self._strike(source, exc)
                self._give_back(source)
                await trio.sleep(wait)
                wait = min(2 * wait, _LONGEST_BACKOFF_SECONDS)
        return None

    async def _use(self, source: _Source) -> None:
        """Ask and take until nothing is left to have."""
        line = await self._lines.line(source.holder.peer_id, source.holder.multiaddr)
        give, take = trio.open_memory_channel[list[Answer]](0)
        failure: PeerError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_all, source, take)
                async with give:
                    try:
                        await self._receive(source, line, give)
                    except PeerError as exc:
                        failure = exc
                        await self._hand_on(source, give)
        finally:
            await line.abandon()
        if failure is not None:
            raise failure

    async def _receive(self, source: _Source, line: Line, give: trio.MemorySendChannel[list[Answer]]) -> None:
        while not self._done():
            changed = self._changed
            while batch := await self._next_batch(source):
                await line.ask(batch)
            if not source.owed:
                await self._hand_on(source, give)
                if not self._done():
                    with trio.move_on_after(STEAL_AFTER_SECONDS) as waiting:
                        await changed.wait()
                    if waiting.cancelled_caught:
                        self._forget_refusals(source)
                continue
            with trio.move_on_after(self._stall_s) as stalling:
                answers = await line.take()
            if stalling.cancelled_caught:
                raise PeerTooSlowError(f"{source.holder.peer_id} gave nothing for {self._stall_s:g} s")
            for answer in answers:
                self._take(source, answer)
            waited = trio.current_time() - source.arrived_since
            if source.arrived_bytes >= KEEP_BYTES or waited >= KEEP_AFTER_SECONDS or not source.owed:
                await self._hand_on(source, give)

    def _take(self, source: _Source, answer: Answer) -> None:
        if answer.cid not in source.owed:
            self._lines.refuse(gate.UNSOLICITED, source.holder.peer_id, answer.cid)
            raise PeerError(f"{source.holder.peer_id} sent a block that was not asked for")
        del source.owed[answer.cid]
        source.last_heard = trio.current_time()
        if answer.cid not in self._open:
            return
        if answer.status is Status.BLOCK:
            if not source.arrived:
                source.arrived_since = trio.current_time()
            source.arrived.append(answer)
            source.arrived_bytes += len(answer.data)
            return
        refusal = refusal_of(answer.status, source.holder.peer_id, answer.cid)
        if isinstance(refusal, PeerBusyError):
            raise refusal
        self._open[answer.cid][source.holder.peer_id] = refusal
        if not any(answer.cid in one.owed for one in self._sources.values()):
            self._queue.append(answer.cid)
            for name in self._sources.keys() - self._open[answer.cid].keys():
                self._sources[name].is_sated = False
        self._check_hope([answer.cid])
        self._change()

    def _forget_refusals(self, source: _Source) -> None:
        """While the others are silent, ask again: the block by which a member may have what it wants reaches some later."""
        for said in self._open.values():
            said.pop(source.holder.peer_id, None)
        source.is_sated = False

    async def _hand_on(self, source: _Source, give: trio.MemorySendChannel[list[Answer]]) -> None:
        if source.arrived:
            batch, source.arrived, source.arrived_bytes = source.arrived, [], 0
            try:
                await give.send(batch)
            except trio.Cancelled:
                # Nobody took it: it goes back with what the holder still owes.
                source.arrived += batch
                raise

    async def _keep_all(self, source: _Source, take: trio.MemoryReceiveChannel[list[Answer]]) -> None:
        """Check and keep what arrived, one run at a time, while the next arrives."""
        async for batch in take:
            wanted = [answer for answer in batch if answer.cid in self._open]
            try:
                kept, lie = await trio.to_thread.run_sync(self._check_and_keep, wanted)
            except Exception as exc:
                self._fail(exc)
                return
            self._note(source, kept)
            if lie is not None:
                self._lines.refuse(gate.WRONG_BLOCK, source.holder.peer_id)
                source.arrived += wanted
                self._strike(source, lie)
                return

    def _check_and_keep(self, answers: Sequence[Answer]) -> tuple[list[Answer], BlockMismatchError | None]:
        """Keep what is genuine up to the first lie; in a worker thread."""
        genuine: list[Answer] = []
        lie = None
        for answer in answers:
            try:
                answer.cid.check(answer.data)
            except BlockMismatchError as exc:
                lie = exc
                break
            genuine.append(answer)
        if genuine:
            self._keep([(answer.cid, answer.data) for answer in genuine])
        return genuine, lie

    def _note(self, source: _Source, kept: Sequence[Answer]) -> None:
        """Write down what is kept, and end when that was all."""
        report, name = self.report, source.holder.peer_id
        for answer in kept:
            if self._open.pop(answer.cid, None) is not None:
                report.blocks += 1
                report.size_bytes += len(answer.data)
                report.by_holder[name] = report.by_holder.get(name, 0) + 1
        source.kept += len(kept)
        if self._done():
            self._scope.cancel()
        self._change()

    # Ends.

    def _strike(self, source: _Source, why: UsufructError) -> None:
        _LOG.warning("%s is given up as a holder: %s", source.holder.peer_id, why)
        self.report.struck[source.holder.peer_id] = why
        source.scope.cancel()

    def _check_hope(self, cids: Iterable[Cid]) -> None:
        """Fail as soon as there is one of these open blocks that nobody can be asked for any more."""
        live = self._sources.keys() - self.report.struck.keys()
        for cid in cids:
            said = self._open[cid]
            if live <= said.keys():
                self._fail(_why_not(cid, said | self.report.struck))
                return

    def _fail(self, why: BaseException) -> None:
        if self._failure is None:
            self._failure = why
        self._scope.cancel()


def _why_not(cid: Cid, said: dict[str, UsufructError]) -> UsufructError:
    """One error for what several holders said of a block: the kind that tells the caller most."""
    reasons = list(said.values())
    if len(reasons) == 1:
        return reasons[0]
    kinds = (PeerRefusedError, BlockMismatchError, PeerError, BlockNotFoundError, UsufructError)
    best = min(
        reasons, key=lambda reason: next(n for n, kind in enumerate(kinds) if isinstance(reason, kind))
    )
    told = "; ".join(str(reason) for reason in reasons)
    return type(best)(f"no holder gives block {cid}: {told}", hint=best.hint)
