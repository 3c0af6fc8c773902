"""An encrypted file of named secrets.

One line of JSON (format version, Argon2id parameters, salt, key check, nonce), a newline, then AES-256-GCM
over the entries with that line as associated data. Every change writes a whole new file: temporary file,
fsync, atomic rename, under a lock on the directory, so that neither a crash nor a second process loses an
entry. Interprets no secret.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import getpass
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from usufruct.durable import write_private
from usufruct.errors import KeyStoreError, WrongPassphraseError

FORMAT_VERSION: Final = 1
MEMORY_KIB: Final = 64 * 1024
ITERATIONS: Final = 3
LANES: Final = 4
MAX_FILE_BYTES: Final = 4 << 20

KDF: Final = {"name": "argon2id", "memory_kib": MEMORY_KIB, "iterations": ITERATIONS, "lanes": LANES}
_LINE_END = re.compile("\r?\n")
"""Not `str.splitlines`, which ends a line at characters that a passphrase may well hold."""
_HEADER_FIELDS = {"version", "kdf", "salt", "check", "nonce"}


@dataclass(frozen=True, slots=True)
class _Header:
    salt: bytes
    check: bytes
    nonce: bytes

    def line(self) -> bytes:
        fields = {
            "version": FORMAT_VERSION,
            "kdf": KDF,
            "salt": self.salt.hex(),
            "check": self.check.hex(),
            "nonce": self.nonce.hex(),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


class KeyStore:
    """An unlocked keystore. Entries are read from the file at each call, so two processes may share it."""

    def __init__(self, path: Path, salt: bytes, key: bytes, check: bytes) -> None:
        self.path = path
        self._salt = salt
        self._key = key
        self._check = check

    @staticmethod
    def create(path: Path, passphrase: str) -> KeyStore:
        """Create an empty keystore.

        Raises
        ------
        KeyStoreError
            If the file exists, the passphrase is empty, or the file cannot be written.
        """
        salt = secrets.token_bytes(16)
        key, check = derive(passphrase, salt)
        store = KeyStore(path, salt, key, check)
        try:
            with locked(path.parent):
                if path.exists() or path.is_symlink():
                    raise KeyStoreError(
                        f"{path} exists already", hint="open it, or choose another place for the new keystore"
                    )
                store._write({})
        except OSError as exc:
            raise KeyStoreError(f"cannot create keystore {path}: {exc.strerror}") from exc
        return store

    @staticmethod
    def open(path: Path, passphrase: str) -> KeyStore:
        """Unlock a keystore.

        Raises
        ------
        WrongPassphraseError
            If the passphrase is not the one it was created with.
        KeyStoreError
            If the file is missing, readable by others, malformed or altered.
        """
        header, _, _ = _read(path)
        key, check = derive(passphrase, header.salt)
        if not hmac.compare_digest(check, header.check):
            raise WrongPassphraseError(f"the passphrase does not open {path}")
        store = KeyStore(path, header.salt, key, check)
        store._entries()
        return store

    def get(self, name: str) -> bytes:
        """Return a secret; raises KeyStoreError if there is none of this name."""
        try:
            return self._entries()[name]
        except KeyError:
            raise KeyStoreError(f"{self.path} has no entry {name!r}") from None

    def put(self, name: str, value: bytes, *, replace: bool = False) -> None:
        """Store a secret durably.

        Raises
        ------
        KeyStoreError
            If the name is taken and `replace` is not set, or the file cannot be written.
        """
        with self._changing() as entries:
            if name in entries and not replace:
                raise KeyStoreError(f"{self.path} already has an entry {name!r}")
            entries[name] = bytes(value)

    def put_all(self, values: dict[str, bytes]) -> None:
        """Store several new secrets in one step: all of them or none; KeyStoreError as for `put`."""
        with self._changing() as entries:
            taken = sorted(values.keys() & entries.keys())
            if taken:
                raise KeyStoreError(f"{self.path} already has entries {', '.join(taken)}")
            entries.update(values)

    def delete(self, name: str) -> None:
        """Remove a secret; raises KeyStoreError if there is none of this name."""
        with self._changing() as entries:
            if name not in entries:
                raise KeyStoreError(f"{self.path} has no entry {name!r}")
            del entries[name]

    def names(self) -> list[str]:
        """Names of all entries, sorted."""
        return sorted(self._entries())

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def __repr__(self) -> str:
        return f"KeyStore({str(self.path)!r})"

    @contextmanager
    def _changing(self) -> Iterator[dict[str, bytes]]:
        try:
            with locked(self.path.parent):
                entries = self._entries()
                yield entries
                self._write(entries)
        except OSError as exc:
            raise KeyStoreError(f"cannot write keystore {self.path}: {exc.strerror}") from exc

    def _entries(self) -> dict[str, bytes]:
        header, line, sealed = _read(self.path)
        if header.salt != self._salt or header.check != self._check:
            raise KeyStoreError(f"{self.path} was replaced by another keystore", hint="open it again")
        try:
            plain = AESGCM(self._key).decrypt(header.nonce, sealed, line)
        except InvalidTag as exc:
            raise KeyStoreError(
                f"{self.path} was altered or damaged", hint="restore it from a backup"
            ) from exc
        entries: dict[str, str] = json.loads(plain)
        return {name: base64.b64decode(value, validate=True) for name, value in entries.items()}

    def _write(self, entries: dict[str, bytes]) -> None:
        header = _Header(self._salt, self._check, secrets.token_bytes(12))
        plain = json.dumps(
            {name: base64.b64encode(entries[name]).decode() for name in sorted(entries)}
        ).encode()
        line = header.line()
        data = line + b"\n" + AESGCM(self._key).encrypt(header.nonce, plain, line)
        if len(data) > MAX_FILE_BYTES:
            raise KeyStoreError(f"{self.path} would grow over {MAX_FILE_BYTES} bytes")
        write_private(self.path, data)


def read_passphrase(
    file: Path | None,
    *,
    prompt: str = "Passphrase: ",
    confirm: bool = False,
    option: str = "--passphrase-file",
) -> str:
    """Read a passphrase from a file, or ask at the terminal if no file is named.

    Parameters
    ----------
    file :
        Readable by its owner only; its first line, up to a line feed or a carriage return and one, is the passphrase.
    prompt :
        Shown at the terminal.
    confirm :
        Ask twice at the terminal, for a new keystore.
    option :
        What names the file on the command line that asks.

    Raises
    ------
    KeyStoreError
        If the file is missing, readable by others or empty, the two entries differ, or there is neither a file nor a terminal.
    """
    if file is not None:
        try:
            text = _read_private(file, 4096).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise KeyStoreError(f"{file} is not UTF-8 text") from exc
        passphrase = _LINE_END.split(text, maxsplit=1)[0]
    else:
        hint = f"name a file that holds it with {option}"
        if not _has_terminal():
            raise KeyStoreError(f"there is no terminal to ask at: {prompt.rstrip(': ')}", hint=hint)
        try:
            passphrase = getpass.getpass(prompt)
            again = getpass.getpass("Again: ") if confirm else passphrase
        except EOFError:
            raise KeyStoreError("no passphrase was entered", hint=hint) from None
        if again != passphrase:
            raise KeyStoreError("the two passphrases differ")
    if not passphrase:
        raise KeyStoreError("the passphrase is empty")
    return passphrase


def _has_terminal() -> bool:
    """Whether `getpass` would find a terminal: without one it warns at length and reads the input, which may be echoed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin is not None and sys.stdin.isatty()
    return True


_DERIVING = threading.Lock()
"""OpenSSL's Argon2 waits for ever when two threads of one process derive with several lanes at once."""


def derive(passphrase: str, salt: bytes) -> tuple[bytes, bytes]:
    """Encryption key and the value that tells a wrong passphrase from a damaged file, 32 bytes each, by the costs of `KDF`.

    Raises KeyStoreError if the passphrase is empty or no text, as what is typed at a terminal of another encoding.
    """
    if not passphrase:
        raise KeyStoreError("the passphrase is empty")
    try:
        encoded = passphrase.encode("utf-8")
    except UnicodeEncodeError:
        raise KeyStoreError(
            "the passphrase holds bytes that are no UTF-8 text", hint="type it in a UTF-8 terminal"
        ) from None
    kdf = Argon2id(salt=salt, length=64, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB)
    with _DERIVING:
        derived = kdf.derive(encoded)
    return derived[:32], hashlib.sha256(b"usufruct/keystore-check/1\0" + derived[32:]).digest()


def _read(path: Path) -> tuple[_Header, bytes, bytes]:
    """Header, its line, and the sealed entries."""
    line, separator, sealed = _read_private(path, MAX_FILE_BYTES).partition(b"\n")
    malformed = KeyStoreError(f"{path} is not a keystore of this version", hint="restore it from a backup")
    try:
        fields = json.loads(line)
        if not separator or not isinstance(fields, dict) or set(fields) != _HEADER_FIELDS:
            raise malformed
        # The cost parameters are fixed by the version: a file cannot ask for weaker or for ruinous ones.
        if fields["version"] != FORMAT_VERSION or fields["kdf"] != KDF:
            raise malformed
        header = _Header(*(bytes.fromhex(fields[name]) for name in ("salt", "check", "nonce")))
    except (ValueError, TypeError, RecursionError, binascii.Error) as exc:
        raise malformed from exc
    if (len(header.salt), len(header.check), len(header.nonce)) != (16, 32, 12):
        raise malformed
    return header, line, sealed


def _read_private(path: Path, limit: int) -> bytes:
    """Read a regular file that nobody but its owner may read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyStoreError(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                raise KeyStoreError(f"{path} is open to other users", hint=f"chmod 600 {path}")
            data = file.read(limit + 1)
    except OSError as exc:
        raise KeyStoreError(f"cannot read {path}: {exc.strerror}") from exc
    if len(data) > limit:
        raise KeyStoreError(f"{path} is larger than {limit} bytes")
    return data


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Others who lock the directory wait, in this process and in others."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
