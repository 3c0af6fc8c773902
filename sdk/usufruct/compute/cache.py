"""A local cache of expanded seeds: one packed file of a fixed size, shared by any number of processes.

A sealed block's c1 is the expansion of a public seed, so an entry tells nothing that the block does not, holds no
ciphertext, and needs no care when a block is erased. Entries are found by the CID of their block and authenticated when they
are read; whatever does not check out, be it torn, flipped or swapped, is a miss and never a result.

The file is laid out like a processor's cache: a block's CID names a set of eight places, and the place that was unused for
longest gives way. Hence no lock, no index to repair after a crash, and no growth beyond the size that was given.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from usufruct.content import Cid
from usufruct.errors import ConfigurationError

_MAGIC = b"UFXC\x01"
_HEADER = struct.Struct("<5s3xQQ32s")
_HEADER_BYTES = 4096
_PLACE = struct.Struct("<Q32s12s16s")
"""When it was last used, digest of the block's CID, nonce, tag."""

_NONCE_BYTES = 12
PLACES_PER_SET: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Where a cache is, and how large; plain data, so that a worker process can open it."""

    path: Path
    limit_bytes: int
    """Size of the file, all included."""


class ExpansionCache:
    """Entries of one size by CID. Not usable across `os.fork`; threads and processes may share one file.

    **Invariant:** `get` returns what somebody who holds the file's key stored for this CID and context, or None.
    """

    def __init__(self, settings: CacheSettings, *, entry_bytes: int) -> None:
        """Open the file, or make it anew if it is missing, of other sizes, or damaged.

        Parameters
        ----------
        entry_bytes :
            Length of every entry.

        Raises
        ------
        ConfigurationError
            If the size leaves no room for a single set, or the file cannot be made.
        """
        self._entry_bytes = entry_bytes
        self._sets = (settings.limit_bytes - _HEADER_BYTES) // (PLACES_PER_SET * (_PLACE.size + entry_bytes))
        if self._sets < 1:
            raise ConfigurationError(
                f"a cache of {settings.limit_bytes} bytes has no room for {PLACES_PER_SET} entries of {entry_bytes}"
            )
        try:
            self._file, key = self._open(settings.path)
        except OSError as exc:
            raise ConfigurationError(
                f"the cache at {settings.path} cannot be opened: {exc.strerror or exc}"
            ) from exc
        self._cipher = AESGCM(key)
        self.hits = 0
        self.misses = 0
        self.rejected = 0
        """Entries that were found and did not check out."""

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def get(self, cid: Cid, context: bytes) -> bytes | None:
        """The entry of a block, checked; None if there is none, or it was stored under another context."""
        digest = cid.digest
        for place, (_, found, nonce, tag) in enumerate(self._places(digest)):
            if found != digest:
                continue
            try:
                data = os.pread(self._file, self._entry_bytes, self._entry_offset(digest, place))
                self._cipher.decrypt(nonce, tag, digest + context + data)
            except (InvalidTag, OSError):
                self.rejected += 1
                break
            self._touch(digest, place)
            self.hits += 1
            return data
        self.misses += 1
        return None

    def put(self, cid: Cid, context: bytes, data: bytes) -> None:
        """Keep an entry, in the place of the one of its set that was unused for longest.

        The context is whatever else the entry depends on, and always of one length. A disk that is full, or that
        fails, leaves a place whose tag does not fit: nothing is kept, and nobody is told.

        Raises
        ------
        ValueError
            If the entry has another length than this cache's.
        """
        if len(data) != self._entry_bytes:
            raise ValueError(f"an entry of {len(data)} bytes in a cache of {self._entry_bytes}")
        digest = cid.digest
        places = self._places(digest)
        same = [place for place, (_, found, _, _) in enumerate(places) if found == digest]
        place = same[0] if same else min(range(PLACES_PER_SET), key=lambda index: places[index][0])
        nonce = secrets.token_bytes(_NONCE_BYTES)
        tag = self._cipher.encrypt(nonce, b"", digest + context + data)
        with contextlib.suppress(OSError):
            os.pwrite(self._file, data, self._entry_offset(digest, place))
            record = _PLACE.pack(time.time_ns(), digest, nonce, tag)
            os.pwrite(self._file, record, self._place_offset(digest, place))

    def _open(self, path: Path) -> tuple[int, bytes]:
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                key = self._key_of(file)
                if key is not None:
                    return file, key
                os.close(file)
                path.unlink(missing_ok=True)
            self._make(path)

    def _key_of(self, file: int) -> bytes | None:
        """The key of a file of these sizes that only its owner may read, else None."""
        status = os.fstat(file)
        header = os.pread(file, _HEADER.size, 0)
        if len(header) < _HEADER.size or status.st_mode & 0o177 or status.st_uid != os.getuid():
            return None
        magic, sets, entry_bytes, key = _HEADER.unpack(header)
        stated = (magic, sets, entry_bytes, status.st_size)
        return key if stated == (_MAGIC, self._sets, self._entry_bytes, self._size_bytes) else None

    def _make(self, path: Path) -> None:
        """Put a new, empty file in place; another process may win, and then its file stands."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, self._size_bytes)
            header = _HEADER.pack(_MAGIC, self._sets, self._entry_bytes, secrets.token_bytes(32))
            os.pwrite(file, header, 0)
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            os.close(file)
            fresh.unlink()

    @property
    def _size_bytes(self) -> int:
        return _HEADER_BYTES + self._sets * PLACES_PER_SET * (_PLACE.size + self._entry_bytes)

    def _places(self, digest: bytes) -> list[tuple[int, bytes, bytes, bytes]]:
        # Beyond the end of a file that somebody cut short there is nothing, nor where a disk fails.
        table = b""
        with contextlib.suppress(OSError):
            table = os.pread(self._file, PLACES_PER_SET * _PLACE.size, self._place_offset(digest, 0))
        return list(_PLACE.iter_unpack(table.ljust(PLACES_PER_SET * _PLACE.size, b"\0")))

    def _touch(self, digest: bytes, place: int) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self._file, struct.pack("<Q", time.time_ns()), self._place_offset(digest, place))

    def _set_of(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "little") % self._sets

    def _place_offset(self, digest: bytes, place: int) -> int:
        return _HEADER_BYTES + (self._set_of(digest) * PLACES_PER_SET + place) * _PLACE.size

    def _entry_offset(self, digest: bytes, place: int) -> int:
        first = _HEADER_BYTES + self._sets * PLACES_PER_SET * _PLACE.size
        return first + (self._set_of(digest) * PLACES_PER_SET + place) * self._entry_bytes
