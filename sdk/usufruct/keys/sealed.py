"""Encrypts a stream of any length under a passphrase, in memory that does not grow with it.

One line of JSON (format, Argon2id parameters, salt, passphrase check), a newline, then AES-256-GCM over pieces of
`PIECE_BYTES`; the nonce of each is its number and whether it is the last, so that pieces can be neither left out, nor
exchanged, nor cut off at the end. What the bytes mean belongs to the caller.

Source: the STREAM construction, Hoang, Reyhanitabar, Rogaway and Vizár, ePrint 2015/189; as in the age format.
"""

from __future__ import annotations

import hmac
import json
import secrets
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from usufruct.errors import BackupError, WrongPassphraseError
from usufruct.keys.keystore import KDF, derive

PIECE_BYTES: Final = 1 << 20
"""Plaintext per piece."""

_TAG_BYTES = 16
_MAX_LINE_BYTES = 1024
_FORMAT = "usufruct/sealed-stream/1"


class SealedWriter:
    """Writes a sealed stream; what was not ended with `finish` does not open."""

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        salt = secrets.token_bytes(16)
        # A key of its own for each stream: nonces may be plain numbers.
        key, check = derive(passphrase, salt)
        fields = {"format": _FORMAT, "kdf": KDF, "salt": salt.hex(), "check": check.hex()}
        self._line = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"
        self._cipher = AESGCM(key)
        self._file = file
        self._pending = bytearray()
        self._number = 0
        file.write(self._line)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._pending += data
        while len(self._pending) > PIECE_BYTES:
            self._put(PIECE_BYTES, last=False)

    def finish(self) -> None:
        """Write what is left, marked as the end."""
        self._put(len(self._pending), last=True)

    def _put(self, size: int, *, last: bool) -> None:
        piece = bytes(self._pending[:size])
        del self._pending[:size]
        self._file.write(self._cipher.encrypt(_nonce(self._number, last), piece, self._line))
        self._number += 1


class SealedReader:
    """Reads a sealed stream; hands out nothing that was not checked."""

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        """Read the head.

        Raises
        ------
        BackupError
            If it is none of this version.
        WrongPassphraseError
        """
        self._line = file.readline(_MAX_LINE_BYTES)
        salt, expected = _read_head(self._line)
        key, check = derive(passphrase, salt)
        if not hmac.compare_digest(check, expected):
            raise WrongPassphraseError(
                "the passphrase does not open this backup", hint="it is the one that the node's keys had then"
            )
        self._cipher = AESGCM(key)
        self._file = file
        self._ahead = file.read(PIECE_BYTES + _TAG_BYTES)
        self._ready = bytearray()
        self._number = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises
        ------
        BackupError
            If the stream was altered, cut, or ends before.
        """
        while len(self._ready) < size:
            if self._ended:
                raise BackupError("the backup ends in the middle of an entry")
            self._open_piece()
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def expect_end(self) -> None:
        """Check that everything was read.

        Raises
        ------
        BackupError
        """
        if not self._ended:
            self._open_piece()
        if self._ready or not self._ended:
            raise BackupError("the backup goes on after its end")

    def _open_piece(self) -> None:
        piece, self._ahead = self._ahead, self._file.read(PIECE_BYTES + _TAG_BYTES)
        last = not self._ahead
        try:
            self._ready += self._cipher.decrypt(_nonce(self._number, last), piece, self._line)
        except (InvalidTag, ValueError) as exc:
            raise BackupError("the backup was altered or cut off") from exc
        self._number += 1
        self._ended = last


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _read_head(line: bytes) -> tuple[bytes, bytes]:
    """Salt and passphrase check; the costs are fixed by the format, so a file cannot ask for ruinous ones."""
    foreign = BackupError("this is no backup of this version")
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict) or set(fields) != {"format", "kdf", "salt", "check"}:
            raise foreign
        if fields["format"] != _FORMAT or fields["kdf"] != KDF:
            raise foreign
        salt, check = bytes.fromhex(fields["salt"]), bytes.fromhex(fields["check"])
    except (ValueError, TypeError, RecursionError) as exc:
        raise foreign from exc
    if (len(salt), len(check)) != (16, 32):
        raise foreign
    return salt, check
