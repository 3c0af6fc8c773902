"""The one writer of the embedded chain: orders transactions, makes blocks, rebuilds the engine.

**Invariant:** a transaction is on disk before the engine sees it, and a block with the order of its
transactions is on disk before any answer that could show it leaves. So the engine may die at any
moment, or all of it: replay gives the same blocks with the same hashes. A block that anybody has seen
is therefore final, and the engine is told so (`finalized` is its newest block).

Replay hands the engine each block's transactions in the recorded order and mines with the recorded
timestamp. A hash that differs stops the chain rather than serving another history.

Absent: HTTP and the choice of methods (see `front`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio
from eth_hash.auto import keccak

from usufruct.errors import ChainDataError, ChainEngineError, ConfigurationError, StoreFullError
from usufruct_node.chain.engine import IN_ORDER_CALLS, Engine, EngineRefusalError
from usufruct_node.chain.journal import (
    BlockMade,
    JournalWriter,
    Record,
    Refused,
    SegmentHeader,
    Transaction,
    read_segment,
    segment_path,
)
from usufruct_node.chain.settings import ChainSettings
from usufruct_node.chain.store import (
    ChainRecord,
    Checkpoint,
    check_state,
    checkpoint_path,
    load_record,
    remove_superseded,
    save_record,
    segments,
    write_state,
)

QUIET_BLOCKS = 8
"""Blocks made at the busy interval after the last transaction."""

MAX_WAITING = 100_000
_GROUP_TRANSACTIONS = 500
_GROUP_BYTES = 4 * 1024 * 1024
_CONCURRENT_READS = 48
_WATCH_S = 0.25
_RETRY_S = 1.0
_MAX_FAILURES = 5

_MAYBE_KEPT = "the chain is recovering; the transaction may have been kept, and sending it again is safe"

_log = logging.getLogger("usufruct.chain")


class JournalFullError(StoreFullError):
    """The journal cannot take a record."""


@dataclass(slots=True)
class _Seal:
    """Stands while a block exists in the engine that is not yet on disk."""

    done: trio.Event = field(default_factory=trio.Event)
    kept: bool = False


@dataclass(slots=True)
class _Submission:
    raw: bytes
    tx_hash: bytes
    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None


@dataclass(slots=True)
class _Head:
    number: int
    block_hash: bytes
    timestamp: int


class _ReplayMismatchError(ChainDataError):
    """A replayed block is not the one that was served."""


class Producer:
    """Runs one chain; `run` is its task, the other methods are for the front."""

    def __init__(self, settings: ChainSettings, executable: Path) -> None:
        self.ready = trio.Event()
        self._settings = settings
        self._executable = executable
        self._record: ChainRecord | None = None
        self._engine: Engine | None = None
        self._why_not = "the chain is starting"
        self._seal: _Seal | None = None
        self._journal: JournalWriter | None = None
        self._sequence = 0
        self._head = _Head(0, b"", 0)
        self._pending: dict[bytes, bytes] = {}
        self._queue: deque[_Submission] = deque()
        self._wake = trio.Event()
        self._stop = False
        self._quiet = 0
        self._weight = 0
        self._weight_limit = settings.checkpoint_every
        self._readers = trio.CapacityLimiter(_CONCURRENT_READS)

    @property
    def genesis_hash(self) -> str:
        """Hash of block 0, known once `run` has started."""
        return "" if self._record is None else self._record.genesis_hash

    def stop(self) -> None:
        """Make `run` take a last checkpoint and return."""
        self._stop = True
        self._wake.set()

    async def submit(self, raw: bytes) -> bytes:
        """Accept a transaction; durable on return. The same bytes again get the same answer.

        Returns
        -------
        tx_hash :
            32 bytes.

        Raises
        ------
        EngineRefusalError
            If the engine does not take it; it will not be in any block unless it is sent again.
        StoreFullError
            If it cannot be kept; the engine has not seen it.
        ChainEngineError
            If the chain is recovering; the transaction may have been kept, sending it again is safe.
        """
        tx_hash: bytes = keccak(raw)
        if self._engine is None:
            raise ChainEngineError(self._why_not)
        if tx_hash in self._pending:
            return tx_hash
        if len(self._pending) + len(self._queue) >= MAX_WAITING:
            raise EngineRefusalError(-32005, f"{MAX_WAITING} transactions wait for a block already")
        submission = _Submission(raw, tx_hash)
        self._queue.append(submission)
        self._wake.set()
        await submission.done.wait()
        if submission.error is not None:
            raise submission.error
        return tx_hash

    async def read(self, body: bytes) -> bytes:
        """Forward a JSON-RPC body that only reads and return the answer.

        Raises
        ------
        ChainEngineError
            If the chain is recovering.
        """
        engine = self._engine
        if engine is None:
            raise ChainEngineError(self._why_not)
        async with self._readers:
            answer = await engine.post(body)
        seal = self._seal
        if seal is not None:
            await seal.done.wait()
        if self._engine is not engine or (seal is not None and not seal.kept):
            raise ChainEngineError("the chain is recovering; repeat the call")
        return answer

    async def run(self) -> None:
        """Keep the chain going until `stop`; sets `ready` when a first block is made. Not cancellable.

        Raises
        ------
        ChainDataError
            If what is on disk is damaged; nothing is changed.
        ChainEngineError
            If the engine fails again and again.
        StoreFullError
            If the disk is full at the start.
        ConfigurationError
            If the directory cannot be used, or holds another chain.
        """
        failures = 0
        with trio.CancelScope(shield=True):
            while not self._stop:
                try:
                    async with await self._rebuild() as engine:
                        await self._make_block(engine)
                        self._engine = engine
                        self.ready.set()
                        served_from = self._head.number
                        try:
                            await self._produce(engine)
                        finally:
                            if self._head.number > served_from + QUIET_BLOCKS:
                                failures = 0
                            self._withdraw("the chain is recovering; repeat the call")
                        await self._checkpoint(engine)
                except JournalFullError as exc:
                    if not self.ready.is_set():
                        raise
                    self._why_not = f"the chain stands still: {exc}"
                    _log.error("%s", self._why_not)
                    await trio.sleep(_RETRY_S)
                except ChainEngineError as exc:
                    failures += 1
                    if not self.ready.is_set() or failures >= _MAX_FAILURES:
                        raise
                    _log.warning("rebuilding the engine: %s", exc)
                    await trio.sleep(_RETRY_S * (failures - 1))
                except OSError as exc:
                    home = self._settings.home
                    raise ConfigurationError(f"the data directory {home} cannot be used: {exc}") from exc
                finally:
                    self._withdraw(self._why_not)
                    if self._journal is not None:
                        self._journal.close()
                        self._journal = None

    def _withdraw(self, why_not: str) -> None:
        self._engine = None
        self._why_not = why_not
        while self._queue:
            submission = self._queue.popleft()
            submission.error = ChainEngineError(why_not)
            submission.done.set()

    async def _produce(self, engine: Engine) -> None:
        made_at = trio.current_time()
        self._quiet = 0
        while not self._stop:
            if not engine.alive:
                raise ChainEngineError("Anvil has died")
            if self._queue:
                await self._forward_group(engine)
            settings = self._settings
            busy = self._quiet < QUIET_BLOCKS
            due = made_at + (settings.block_interval_s if busy else settings.idle_interval_s)
            now = trio.current_time()
            if now >= due:
                made_at = now
                await self._make_block(engine)
                if self._weight >= self._weight_limit:
                    await self._checkpoint(engine)
            elif not self._queue:
                self._wake = trio.Event()
                with trio.move_on_at(min(due, now + _WATCH_S)):
                    await self._wake.wait()

    async def _forward_group(self, engine: Engine) -> None:
        """Journal waiting submissions with one fsync, then hand them to the engine in order."""
        group: dict[bytes, list[_Submission]] = {}
        size = 0
        while self._queue and len(group) < _GROUP_TRANSACTIONS and size < _GROUP_BYTES:
            submission = self._queue.popleft()
            if submission.tx_hash in self._pending:
                submission.done.set()
                continue
            group.setdefault(submission.tx_hash, []).append(submission)
            size += len(submission.raw)
        raws = {tx_hash: same[0].raw for tx_hash, same in group.items()}
        errors: dict[bytes, Exception] = {}
        try:
            await self._append([Transaction(raw) for raw in raws.values()])
        except JournalFullError as exc:
            errors = dict.fromkeys(raws, exc)
        else:
            errors = dict.fromkeys(raws, ChainEngineError(_MAYBE_KEPT))
            refused = await self._hand_over(engine, raws)
            await self._append([Refused(tx_hash) for tx_hash in refused])
            known = await self._known(engine, list(refused))
            self._pending.update((tx_hash, raw) for tx_hash, raw in raws.items() if tx_hash not in refused)
            errors = {tx_hash: why for tx_hash, why in refused.items() if tx_hash not in known}
            self._quiet = 0
        finally:
            for tx_hash, same in group.items():
                for submission in same:
                    submission.error = errors.get(tx_hash)
                    submission.done.set()

    async def _hand_over(
        self, engine: Engine, raws: dict[bytes, bytes], *, at_once: int = IN_ORDER_CALLS
    ) -> dict[bytes, EngineRefusalError]:
        """Submit `raws` in order; return those that the engine refused, and why."""
        answers = await engine.call_in_order(
            [("eth_sendRawTransaction", ["0x" + raw.hex()]) for raw in raws.values()], at_once=at_once
        )
        refused: dict[bytes, EngineRefusalError] = {}
        for tx_hash, answer in zip(raws, answers, strict=True):
            if isinstance(answer, EngineRefusalError):
                refused[tx_hash] = answer
            elif answer != "0x" + tx_hash.hex():
                await self._append([Refused(tx_hash)])
                raise ChainEngineError("Anvil took a transaction under another hash than that of its bytes")
        return refused

    async def _known(self, engine: Engine, tx_hashes: list[bytes]) -> set[bytes]:
        """Return those of `tx_hashes` that wait for a block or are in one."""
        found = await engine.call_in_order(
            [("eth_getTransactionByHash", ["0x" + tx_hash.hex()]) for tx_hash in tx_hashes]
        )
        return {tx_hash for tx_hash, answer in zip(tx_hashes, found, strict=True) if isinstance(answer, dict)}

    async def _append(self, records: list[Record]) -> None:
        journal = self._journal
        if journal is None or not records:
            return
        try:
            await trio.to_thread.run_sync(journal.append, records)
        except OSError as exc:
            raise JournalFullError(f"the chain's journal cannot be written: {exc}") from exc

    async def _make_block(self, engine: Engine) -> None:
        timestamp = max(self._head.timestamp, int(time.time()))
        seal = self._seal = _Seal()
        try:
            await engine.call("evm_mine", [timestamp])
            block = await engine.call("eth_getBlockByNumber", ["latest", False])
            made = _block_made(block)
            if made.number != self._head.number + 1 or made.timestamp != timestamp:
                raise ChainEngineError(f"Anvil made block {made.number} on its own")
            if not self._pending.keys() >= set(made.tx_hashes):
                raise ChainEngineError(f"block {made.number} holds a transaction that went past the door")
            await self._append([made])
            seal.kept = True
        finally:
            if not seal.kept:
                self._engine = None
            seal.done.set()
            self._seal = None
        self._head = _Head(made.number, made.block_hash, made.timestamp)
        for tx_hash in made.tx_hashes:
            del self._pending[tx_hash]
        self._weight += 1 + len(made.tx_hashes) // 8
        self._quiet = 0 if made.tx_hashes else self._quiet + 1

    async def _checkpoint(self, engine: Engine) -> None:
        """Put the engine's state on disk, prove that it loads, and start a new journal segment.

        A failure leaves the previous checkpoint and the whole journal in force.
        """
        record, settings = self._record, self._settings
        if record is None or self._journal is None:
            return
        self._weight = 0
        sequence = self._sequence + 1
        path = checkpoint_path(settings.home, sequence)
        try:
            dump = await engine.call("anvil_dumpState", [])
            if not isinstance(dump, str):
                raise ChainEngineError("Anvil's dump is no text")
            sha256 = await trio.to_thread.run_sync(write_state, path, dump)
            del dump
            head = self._head
            loaded = await self._loaded(path)
            if (loaded.number, loaded.block_hash) != (head.number, head.block_hash):
                raise ChainDataError(f"the dump of block {head.number} loads as block {loaded.number}")
            waiting = await self._known(engine, list(self._pending))
            carried = {tx_hash: raw for tx_hash, raw in self._pending.items() if tx_hash in waiting}
            header = SegmentHeader(
                chain_id=settings.chain_id,
                genesis_hash=bytes.fromhex(record.genesis_hash[2:]),
                sequence=sequence,
                parent_number=head.number,
                parent_hash=head.block_hash,
            )
            journal = await trio.to_thread.run_sync(
                JournalWriter.create, settings.home, header, list(carried.values())
            )
        except (OSError, ChainDataError) as exc:
            _log.error("no checkpoint at block %d: %s", self._head.number, exc)
            self._weight_limit *= 2
            # A segment that exists without being written to would contradict the one that goes on.
            segment_path(settings.home, sequence).unlink(missing_ok=True)
            await trio.to_thread.run_sync(remove_superseded, settings.home, record)
            return
        self._journal.close()
        self._journal, self._sequence, self._pending = journal, sequence, carried
        checkpoint = Checkpoint(number=head.number, block_hash="0x" + head.block_hash.hex(), sha256=sha256)
        moved = replace(record, first_segment=sequence, checkpoint=checkpoint)
        try:
            await trio.to_thread.run_sync(save_record, settings.home, moved)
            await trio.to_thread.run_sync(remove_superseded, settings.home, moved)
        except OSError as exc:
            raise JournalFullError(f"the chain's record cannot be written: {exc}") from exc
        self._record = moved
        self._weight_limit = _weight_limit(settings, path)
        _log.info("checkpoint at block %d", head.number)

    async def _loaded(self, state: Path) -> BlockMade:
        """The newest block of an engine of its own that starts from `state`.

        Raises
        ------
        ChainDataError
            If there is none: the chain's own engine is well, and needs no second beside it.
        """
        try:
            async with await self._start_engine(state) as trial:
                return _block_made(await trial.call("eth_getBlockByNumber", ["latest", False]))
        except ChainEngineError as exc:
            raise ChainDataError(f"the dump cannot be tried: {exc}") from exc

    async def _start_engine(self, state: Path | None) -> Engine:
        settings, record = self._settings, self._record
        return await Engine.start(
            self._executable,
            home=settings.home,
            chain_id=settings.chain_id,
            genesis_timestamp=int(time.time()) if record is None else record.genesis_timestamp,
            state=state,
        )

    async def _rebuild(self) -> Engine:
        """Return an engine that stands where the disk says, with the journal open behind it."""
        home = self._settings.home
        self._record = await trio.to_thread.run_sync(load_record, home)
        if self._record is None:
            await self._found_chain()
        record = self._record
        if record is None or record.chain_id != self._settings.chain_id:
            raise ConfigurationError(
                f"{home} holds chain {record and record.chain_id}, not chain {self._settings.chain_id}",
                hint="use the chain id of the first start, or another data directory",
            )
        state = None
        if record.checkpoint is not None:
            state = checkpoint_path(home, record.first_segment)
            await trio.to_thread.run_sync(check_state, state, record.checkpoint)
        self._weight_limit = _weight_limit(self._settings, state)
        for at_once in (IN_ORDER_CALLS, 1):
            engine = await self._start_engine(state)
            try:
                await self._replay(engine, record, at_once)
            except _ReplayMismatchError:
                await engine.close()
                if at_once == 1:
                    raise
            except BaseException:
                await engine.close()
                raise
            else:
                break
        return engine

    async def _found_chain(self) -> None:
        genesis_timestamp = int(time.time())
        home, chain_id = self._settings.home, self._settings.chain_id
        async with await Engine.start(
            self._executable, home=home, chain_id=chain_id, genesis_timestamp=genesis_timestamp, state=None
        ) as engine:
            genesis = _block_made(await engine.call("eth_getBlockByNumber", ["0x0", False])).block_hash
        header = SegmentHeader(
            chain_id=chain_id, genesis_hash=genesis, sequence=1, parent_number=0, parent_hash=genesis
        )
        record = ChainRecord(
            chain_id=chain_id,
            genesis_timestamp=genesis_timestamp,
            genesis_hash="0x" + genesis.hex(),
            first_segment=1,
            checkpoint=None,
        )
        try:
            JournalWriter.create(home, header, []).close()
            save_record(home, record)
        except OSError as exc:
            raise JournalFullError(f"a chain cannot be founded in {home}: {exc}") from exc
        self._record = record

    async def _replay(self, engine: Engine, record: ChainRecord, at_once: int) -> None:
        home = self._settings.home
        genesis = _block_made(await engine.call("eth_getBlockByNumber", ["0x0", False]))
        if genesis.block_hash.hex() != record.genesis_hash[2:]:
            raise ChainDataError(f"this Anvil gives another genesis than the one of the chain in {home}")
        start = _block_made(await engine.call("eth_getBlockByNumber", ["latest", False]))
        head = _Head(start.number, start.block_hash, start.timestamp)
        expected = record.checkpoint and (record.checkpoint.number, record.checkpoint.block_hash)
        if expected and (head.number, "0x" + head.block_hash.hex()) != expected:
            raise ChainDataError(f"the checkpoint loads as block {head.number}, not as block {expected[0]}")
        pending: dict[bytes, bytes] = {}
        self._weight = 0
        paths = segments(home, record)
        length = 0
        for path in paths:
            header, records, length = await trio.to_thread.run_sync(
                partial(read_segment, path, last=path is paths[-1])
            )
            place = (
                header.chain_id,
                "0x" + header.genesis_hash.hex(),
                header.parent_number,
                header.parent_hash,
            )
            if place != (record.chain_id, record.genesis_hash, head.number, head.block_hash):
                raise ChainDataError(f"journal segment {path.name} does not continue block {head.number}")
            self._sequence = header.sequence
            for entry in records:
                match entry:
                    case Transaction(raw):
                        pending[keccak(raw)] = raw
                    case Refused(tx_hash):
                        pending.pop(tx_hash, None)
                    case BlockMade():
                        await self._replay_block(engine, head, entry, pending, at_once)
                        head = _Head(entry.number, entry.block_hash, entry.timestamp)
                        self._weight += 1 + len(entry.tx_hashes) // 8
            await _compare_head(engine, head)
        self._journal = JournalWriter(paths[-1], length)
        self._head = head
        refused = await self._hand_over(engine, pending, at_once=at_once)
        await self._append([Refused(tx_hash) for tx_hash in refused])
        self._pending = {tx_hash: raw for tx_hash, raw in pending.items() if tx_hash not in refused}
        await trio.to_thread.run_sync(remove_superseded, home, record)

    async def _replay_block(
        self, engine: Engine, head: _Head, made: BlockMade, pending: dict[bytes, bytes], at_once: int
    ) -> None:
        if made.number != head.number + 1 or made.timestamp < head.timestamp:
            raise ChainDataError(f"the journal goes from block {head.number} to block {made.number}")
        try:
            raws = {tx_hash: pending.pop(tx_hash) for tx_hash in made.tx_hashes}
        except KeyError as exc:
            raise ChainDataError(f"the journal lacks a transaction of block {made.number}") from exc
        if await self._hand_over(engine, raws, at_once=at_once):
            raise _ReplayMismatchError(f"Anvil refuses a transaction of block {made.number} at replay")
        await engine.call("evm_mine", [made.timestamp])
        if raws:
            await _compare_head(engine, _Head(made.number, made.block_hash, made.timestamp))


def _weight_limit(settings: ChainSettings, state: Path | None) -> int:
    """Let checkpoints grow rarer with their size, so that they stay a small part of the work."""
    return max(settings.checkpoint_every, state.stat().st_size // 16_000 if state is not None else 0)


async def _compare_head(engine: Engine, head: _Head) -> None:
    found = _block_made(await engine.call("eth_getBlockByNumber", ["latest", False]))
    if (found.number, found.block_hash) != (head.number, head.block_hash):
        raise _ReplayMismatchError(
            f"block {head.number} was {head.block_hash.hex()} when it was served; "
            f"replay gives block {found.number}, {found.block_hash.hex()}"
        )


def _block_made(block: Any) -> BlockMade:
    """Read the fields that the journal keeps out of Anvil's block."""
    try:
        return BlockMade(
            int(block["number"], 16),
            int(block["timestamp"], 16),
            bytes.fromhex(block["hash"][2:]),
            tuple(bytes.fromhex(tx_hash[2:]) for tx_hash in block["transactions"]),
        )
    except (TypeError, KeyError, ValueError) as exc:
        raise ChainEngineError("Anvil's block lacks a field") from exc
