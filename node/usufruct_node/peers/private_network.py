"""The optional outer layer of a private swarm: every byte under a key that all members share, as Kubo's `swarm.key` has it.

It hides from outsiders that libp2p is spoken here at all. It does not replace the membership gate: the key is shared, and is
not revoked with a member.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import struct
from pathlib import Path
from typing import Final, Protocol

from Crypto.Cipher import Salsa20
from libp2p.io.exceptions import ConnectionClosedError

from usufruct.errors import ConfigurationError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24

_FILE = re.compile(rb"/key/swarm/psk/1\.0\.0/\r?\n/base16/\r?\n([0-9a-f]{64})\r?\n?", re.ASCII)
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")


class Wire(Protocol):
    """A connection's bytes, both ways."""

    async def read(self, n: int | None = None) -> bytes:
        """Return up to `n` bytes, none at the end."""

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""

    async def close(self) -> None:
        """Close it."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's address."""


class PrivateWire:
    """A connection under the shared key: each side sends a nonce, then XSalsa20 of everything."""

    def __init__(self, wire: Wire, key: bytes) -> None:
        self._wire = wire
        self._key = key
        self._reading: Salsa20.Salsa20Cipher | None = None
        self._writing: Salsa20.Salsa20Cipher | None = None

    async def read(self, n: int | None = None) -> bytes:
        """Return up to `n` bytes, none at the end."""
        if self._reading is None:
            nonce = b""
            while len(nonce) < NONCE_BYTES:
                part = await self._wire.read(NONCE_BYTES - len(nonce))
                if not part:
                    raise ConnectionClosedError("the connection ended before its nonce", transport="tcp")
                nonce += part
            self._reading = xsalsa20(self._key, nonce)
        return self._reading.decrypt(await self._wire.read(n))

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        if self._writing is None:
            nonce = secrets.token_bytes(NONCE_BYTES)
            self._writing = xsalsa20(self._key, nonce)
            await self._wire.write(nonce + self._writing.encrypt(data))
            return
        await self._wire.write(self._writing.encrypt(data))

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's address."""
        return self._wire.get_remote_address()


def load_swarm_key(path: Path) -> bytes:
    """Read a `swarm.key` file.

    Raises
    ------
    ConfigurationError
        If it cannot be read, others may read it, or it is not such a file.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(1024)
    except OSError as exc:
        raise ConfigurationError(f"the swarm key {path} cannot be read: {exc.strerror or exc}") from exc
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(f"others may read the swarm key {path}", hint=f"chmod 600 {path}")
    found = _FILE.fullmatch(data)
    if found is None:
        raise ConfigurationError(
            f"{path} is not a swarm key",
            hint="three lines: /key/swarm/psk/1.0.0/, then /base16/, then 64 hex digits",
        )
    return bytes.fromhex(found[1].decode("ascii"))


def xsalsa20(key: bytes, nonce: bytes) -> Salsa20.Salsa20Cipher:
    """Return the cipher's stream from its beginning.

    Parameters
    ----------
    key :
        32 bytes.
    nonce :
        24 bytes; the first 16 derive a key of their own, the last 8 are Salsa20's nonce.

    Source
    ------
    Bernstein, Extending the Salsa20 nonce, 2011. The library at hand has Salsa20 only.
    """
    return Salsa20.new(key=_hsalsa20(key, nonce[:16]), nonce=nonce[16:])


def _hsalsa20(key: bytes, block: bytes) -> bytes:
    """Derive a key of 32 bytes; once per connection and direction."""
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", block)
    x = [_SIGMA[0], *k[:4], _SIGMA[1], *n, _SIGMA[2], *k[4:], _SIGMA[3]]
    columns = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
    rows = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))
    for _ in range(10):
        for a, b, c, d in columns + rows:
            for target, one, other, turn in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
                word = (x[one] + x[other]) & 0xFFFFFFFF
                x[target] ^= (word << turn | word >> (32 - turn)) & 0xFFFFFFFF
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))
