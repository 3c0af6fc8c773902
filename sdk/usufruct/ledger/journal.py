"""Signed transactions that may be on their way, kept until their outcome is known. Survives a crash at any moment.

A transaction is written down before it is handed to anybody. Whoever comes after a crash therefore knows every
transaction that can still be included, sends those same bytes again, and never signs the same intent a second time
under another nonce.

The file (mode 0600) has a JSON object per line: `{"id", "raw", "owner"}` for a signed transaction, another with the
same id for a replacement at a higher fee, `{"done"}` once the outcome was handed to whoever asked for it. A torn last
line was never sent. Once it has grown and most of it is done with, another file with the rest takes its place, under the
lock, which is a file of its own. Holds no key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import rlp

from usufruct.errors import ConfigurationError
from usufruct.ledger.endpoint import transaction_hash

_COMPACT_ABOVE_BYTES = 1 << 20

_waiting: set[bytes] = set()
"""Ids of transactions whose outcome a thread of this process waits for."""
_waiting_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """One intent: a call under one nonce, and every transaction that was signed for it."""

    id: bytes
    """Hash of the first."""
    raws: tuple[bytes, ...]
    """Signed transactions that differ in their fee only, oldest first."""
    owner: str
    """Process that signed it."""
    nonce: int
    """Position among the account's transactions."""
    gas_price: int
    """Wei per gas offered by the newest."""
    gas: int
    """Gas limit."""
    call: tuple[str | None, bytes]
    """Address in lower-case hex, or None for a creation, and call data."""

    @classmethod
    def signed(cls, raw: bytes, *, owner: str | None = None) -> InFlight:
        """The intent of a signed transaction, taken out of its bytes.

        Raises
        ------
        ValueError
            If it is no signed transaction of the first kind.
        """
        nonce, gas_price, gas, to, _, data, *signature = rlp.decode(raw)
        if len(signature) != 3 or not all(
            isinstance(part, bytes) for part in (nonce, gas_price, gas, to, data)
        ):
            raise ValueError("no signed transaction")
        return cls(
            id=transaction_hash(raw),
            raws=(raw,),
            owner=owner or _this_process(os.getpid()),
            nonce=int.from_bytes(nonce, "big"),
            gas_price=int.from_bytes(gas_price, "big"),
            gas=int.from_bytes(gas, "big"),
            call=("0x" + to.hex() if to else None, data),
        )

    @classmethod
    def fresh(
        cls, raw: bytes, *, nonce: int, gas_price: int, gas: int, to: str | None, data: bytes
    ) -> InFlight:
        """The intent of a transaction that this process just signed with these fields."""
        return cls(
            id=transaction_hash(raw),
            raws=(raw,),
            owner=_this_process(os.getpid()),
            nonce=nonce,
            gas_price=gas_price,
            gas=gas,
            call=(None if to is None else to.lower(), data),
        )

    def replaced(self, raw: bytes) -> InFlight:
        """The same intent with another transaction for it."""
        newest = InFlight.signed(raw, owner=self.owner)
        return dataclasses.replace(self, raws=(*self.raws, raw), gas_price=newest.gas_price)

    @property
    def hashes(self) -> list[bytes]:
        """Hashes of all that were signed."""
        return [self.id, *map(transaction_hash, self.raws[1:])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A transaction that was sent; not yet final."""

    transaction_hash: bytes
    """Of the first that was signed for it; names the intent, whatever replaced it since."""
    nonce: int
    to: str | None
    data: bytes

    @classmethod
    def of(cls, entry: InFlight) -> Pending:
        """What whoever sent an intent waits for."""
        to, data = entry.call
        return cls(transaction_hash=entry.id, nonce=entry.nonce, to=to, data=data)


class Journal:
    """What is in flight from one account; shared by threads, and with a file by processes too."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._held = 0
        self._kept: dict[bytes, InFlight] = {}
        self._read_to = 0
        self._file: BinaryIO | None = None
        """The file that `_read_to` is about; while it is open, no other file can have its inode."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else takes a nonce of this account meanwhile.

        Raises
        ------
        ConfigurationError
            If the file cannot be read or written, or is no journal.
        """
        with self._lock:
            if self._path is None or self._held:
                yield
                return
            try:
                handle = self._path.with_name(self._path.name + ".lock").open("a")
            except OSError as exc:
                raise ConfigurationError(f"the journal {self._path} cannot be used: {exc}") from exc
            with handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._held += 1
                try:
                    self._refresh()
                    yield
                finally:
                    self._held -= 1

    def in_flight(self) -> list[InFlight]:
        """All whose outcome nobody was told yet, by nonce; to be called while `locked`."""
        return sorted(self._kept.values(), key=lambda entry: entry.nonce)

    def add(self, entries: Sequence[InFlight]) -> None:
        """Write entries down; on return they survive a crash. To be called while `locked`."""
        self._append([_line(entry, entry.raws[-1]) for entry in entries], durable=True)
        for entry in entries:
            self._kept[entry.id] = entry
        with _waiting_lock:
            _waiting.update(entry.id for entry in entries)

    def hashes_of(self, entry_id: bytes) -> list[bytes]:
        """Every transaction of an intent; the id itself when the journal does not know it (any more)."""
        with self._lock:
            entry = self._kept.get(entry_id)
            return entry.hashes if entry else [entry_id]

    def replace(self, entry: InFlight, raw: bytes) -> None:
        """Write down another transaction for the same intent; to be called while `locked`, before it is sent."""
        self._append([_line(entry, raw)], durable=True)
        self._kept[entry.id] = entry.replaced(raw)

    def forget(self, ids: Sequence[bytes]) -> None:
        """Drop entries whose outcome was handed over, or that were refused; nobody waits for them any more in any case."""
        try:
            with self.locked():
                known = [entry_id for entry_id in ids if entry_id in self._kept]
                if known:
                    self._append([{"done": entry_id.hex()} for entry_id in known], durable=False)
                for entry_id in known:
                    del self._kept[entry_id]
                self._compact()
        finally:
            self.release(ids)

    def release(self, ids: Sequence[bytes]) -> None:
        """Nobody of this process waits for these any more; whoever makes the same call takes them up."""
        with _waiting_lock:
            _waiting.difference_update(ids)

    def take_up(self, call: tuple[str | None, bytes]) -> InFlight | None:
        """The transaction of an earlier attempt at the same call that nobody waits for; from now on the caller does."""
        to, data = call
        wanted = (None if to is None else to.lower(), data)
        for entry in self.in_flight():
            if entry.call != wanted or not self.is_orphan(entry):
                continue
            with _waiting_lock:
                if entry.id in _waiting:
                    continue
                _waiting.add(entry.id)
            return entry
        return None

    def is_orphan(self, entry: InFlight) -> bool:
        """Whether nobody waits for its outcome any more."""
        if entry.owner == _this_process(os.getpid()):
            with _waiting_lock:
                return entry.id not in _waiting
        with _waiting_lock:
            if entry.id in _waiting:
                return False
        return _process(int(entry.owner.split(".")[0])) != entry.owner

    def _refresh(self) -> None:
        """Take in what other processes wrote."""
        path = self._require_path()
        try:
            if self._file is None or not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                self._begin_anew()
                self._file = path.open("rb")
            self._file.seek(self._read_to)
            content = self._file.read()
        except FileNotFoundError:
            self._begin_anew()
            return
        except OSError as exc:
            raise ConfigurationError(f"the journal {path} cannot be read: {exc}") from exc
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._replay(line)
        self._read_to += len(whole)
        if len(whole) < len(content):
            os.truncate(path, self._read_to)

    def _replay(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            if "done" in record:
                self._kept.pop(bytes.fromhex(record["done"]), None)
                return
            entry_id, raw = bytes.fromhex(record["id"]), bytes.fromhex(record["raw"])
            known, owner = self._kept.get(entry_id), str(record["owner"])
            entry = known.replaced(raw) if known else InFlight.signed(raw, owner=owner)
            if entry.id != entry_id or not owner.split(".")[0].isdigit():
                raise ValueError("the record does not fit its transaction")
        except (ValueError, KeyError, TypeError, rlp.exceptions.RLPException) as exc:
            raise ConfigurationError(
                f"{self._path} is not a journal of transactions",
                hint="restore it, or remove it once no transaction of this account is on its way",
            ) from exc
        self._kept[entry_id] = entry

    def _append(self, records: Sequence[dict[str, str]], *, durable: bool) -> None:
        if self._path is None:
            return
        data = _encoded(records)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as handle:
                handle.write(data)
                handle.flush()
                if durable:
                    os.fsync(handle.fileno())
            if self._file is None:
                self._file = self._path.open("rb")
                _sync_directory(self._path.parent)
        except OSError as exc:
            raise ConfigurationError(f"the journal {self._path} cannot be written: {exc}") from exc
        self._read_to += len(data)

    def _compact(self) -> None:
        """Begin a new file with what is in flight, once the old one has grown and most of it is done with."""
        if self._path is None or self._read_to < _COMPACT_ABOVE_BYTES:
            return
        data = _encoded([_line(entry, raw) for entry in self.in_flight() for raw in entry.raws])
        if not data:
            self._path.unlink()
            self._begin_anew()
        elif 2 * len(data) <= self._read_to:
            # On a full disk the old one stays, and its outcomes are handed over all the same.
            with contextlib.suppress(OSError):
                self._replace_file(self._path, data)

    def _replace_file(self, path: Path, data: bytes) -> None:
        """Put a file with these lines in the place of the old one: both are whole, whichever a crash leaves."""
        fresh = path.with_name(path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        opened = fresh.open("rb")
        fresh.replace(path)
        if self._file is not None:
            self._file.close()
        self._file, self._read_to = opened, len(data)
        _sync_directory(path.parent)

    def _begin_anew(self) -> None:
        """Forget what was read: the file is another one, or none."""
        if self._file is not None:
            self._file.close()
        self._kept, self._read_to, self._file = {}, 0, None

    def _require_path(self) -> Path:
        if self._path is None:
            raise ConfigurationError("this journal has no file")
        return self._path


def _line(entry: InFlight, raw: bytes) -> dict[str, str]:
    """One signed transaction of an intent."""
    return {"id": entry.id.hex(), "raw": raw.hex(), "owner": entry.owner}


def _encoded(records: Sequence[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _sync_directory(path: Path) -> None:
    """Put a directory's entries on disk: a file whose name is lost is lost."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _this_process(pid: int) -> str:
    return _process(pid)


def _process(pid: int) -> str:
    """Names a process for good: its number and when it began, since numbers are used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return f"{pid}.gone"
    return f"{pid}.{stat.rpartition(')')[2].split()[19]}"
