"""Kubo's RPC, as much of it as a block store needs, through `ipfshttpclient`.

Answers, or the lines of a list, are measured against a limit and a deadline of ours while they come in, and Kubo's errors
become ours. What a block's bytes are worth is for the store to check.
"""

from __future__ import annotations

import ipaddress
import json
import re
import stat
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import ipfshttpclient.exceptions as foreign
import requests
import urllib3
from ipfshttpclient import multipart
from ipfshttpclient.encoding import get_encoding
from ipfshttpclient.http_common import map_args_to_params
from ipfshttpclient.http_requests import ClientSync
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from usufruct.content.cid import Cid, Codec
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    KuboError,
    KuboRefusedError,
    KuboUnreachableError,
    KuboVersionError,
    StoreFullError,
)

OLDEST: Final = (0, 37)
"""First release with the switches that a private daemon needs."""

# `ipfshttpclient` passes an argument that urllib3 2 ignores; urllib3 3, which would not, is excluded.
warnings.filterwarnings("ignore", "The 'strict' parameter is no longer needed", FutureWarning)

_BASE: Final = "api/v0"
_ARGUMENTS: Final = 100
"""CIDs in one request line at most."""

_JSON_BYTES: Final = 64 << 20
_LINE_BYTES: Final = 1 << 16
_ABSENT = re.compile(r"not found|could not find|is not pinned|not pinned or pinned indirectly")
_KEPT = re.compile(r"already pinned recursively")
_DAMAGED = re.compile(r"different hash than requested")
_FULL = re.compile(r"no space left on device|disk quota exceeded|file too large", re.IGNORECASE)
_CODECS: Final = {Codec.RAW: "raw", Codec.DAG_CBOR: "dag-cbor"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Basic authentication at the RPC; shown nowhere."""

    user: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Read `user:secret` from a file of mode 0600.

        Raises
        ------
        ConfigurationError
            If it cannot be read, others can read it, or it holds something else.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(path.stat().st_mode)
                text = file.read(1025).decode("ascii").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(
                f"the credentials for Kubo in {path} cannot be read: {exc}",
                hint="`usufruct-node kubo config` makes them",
            ) from exc
        if mode & 0o077:
            raise ConfigurationError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        user, colon, secret = text.partition(":")
        if not (user and colon and len(secret) >= 16 and text.isprintable() and len(text) <= 1024):
            raise ConfigurationError(
                f"{path} does not hold `user:secret` with a secret of 16 characters or more"
            )
        return cls(user, secret)


class KuboRpc:
    """Blocking client of one daemon, for any number of threads."""

    def __init__(self, address: str, credentials: Credentials, *, deadline_s: float = 60.0) -> None:
        """Connects to nothing yet.

        Parameters
        ----------
        address :
            Multiaddr of the RPC, `/ip4/127.0.0.1/tcp/5001`; a host that is not this machine needs `/https`.
        deadline_s :
            Seconds after which any one call is given up, whatever has come by then; of a list, any one entry.

        Raises
        ------
        ConfigurationError
            If the address is malformed, or would carry the credentials over a network in the clear.
        """
        check_address(address)
        self.address = address
        self._credentials = credentials
        self._deadline_s = deadline_s
        self._idle: list[ClientSync] = []
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Close the connections; one that is in use closes when its call ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            client.close_session()

    def check(self) -> str:
        """Say which version answers.

        Raises
        ------
        KuboUnreachableError, KuboRefusedError
        KuboVersionError
            If it is older than `OLDEST`, or no Kubo.
        """
        answer = self.one("/version")
        version = str(answer.get("Version", ""))
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
            raise KuboVersionError(version or "unknown", ".".join(map(str, OLDEST)))
        return version

    # Blocks.

    def put_blocks(self, blocks: Sequence[bytes], codec: Codec) -> None:
        """Store blocks, unpinned; their CIDs and lengths are compared with what Kubo says it stored.

        Raises
        ------
        StoreFullError
        BlockMismatchError
            If Kubo names other blocks.
        KuboError
        """
        expected = [(str(Cid.of(data, codec)), len(data)) for data in blocks]
        body, headers = multipart.stream_files([BytesIO(data) for data in blocks], chunk_size=1 << 20)
        opts = {"cid-codec": _CODECS[codec], "mhtype": "sha2-256", "pin": "false", "allow-big-block": "true"}
        answers = self._json("/block/put", opts=opts, data=body, headers=headers)
        stored = [(str(answer.get("Key")), answer.get("Size")) for answer in answers]
        if stored != expected:
            raise BlockMismatchError("Kubo says that it stored other blocks than it was given")

    def get_block(self, cid: Cid, limit_bytes: int) -> bytes:
        """Bytes that Kubo has under a CID, cut off one byte after `limit_bytes`; nothing is fetched from elsewhere.

        Raises
        ------
        BlockNotFoundError, KuboError
        BlockMismatchError
            If Kubo sees for itself that they are not the block.
        """
        with self._stream("/block/get", [str(cid)], {"offline": "true"}) as body:
            return b"".join(self._pieces("/block/get", body, limit_bytes))

    def remove_blocks(self, cids: Sequence[Cid]) -> None:
        """Remove blocks; those that are not there are as removed, and those that somebody else pinned stay."""
        for some in _portions(cids):
            answers = self._json(
                "/block/rm", [str(cid) for cid in some], opts={"force": "true", "offline": "true"}
            )
            for answer in answers:
                error = str(answer.get("Error", ""))
                if error and not _ABSENT.search(error) and "pinned" not in error:
                    raise KuboError(f"Kubo does not remove block {answer.get('Hash')}: {error[:200]}")

    # Pins.

    def pin(self, cids: Sequence[Cid], name: str) -> None:
        """Pin blocks themselves, not what they link, under a name.

        Raises
        ------
        BlockNotFoundError
            If Kubo lacks one of them.
        KuboError
        """
        opts = {"recursive": "false", "name": name, "offline": "true"}
        for some in _portions(cids):
            try:
                answer = self.one("/pin/add", [str(cid) for cid in some], **opts)
                if len(answer.get("Pins") or ()) != len(some):
                    raise KuboError(f"Kubo pinned fewer than {len(some)} blocks")
            except KuboError as exc:
                if not _KEPT.search(str(exc)):
                    raise
                if len(some) > 1:
                    for cid in some:
                        self.pin([cid], name)

    def unpin(self, cids: Sequence[Cid]) -> None:
        """Drop pins that `pin` made."""
        for some in _portions(cids):
            self._json("/pin/rm", [str(cid) for cid in some], opts={"recursive": "false"})

    def pinned(self, name: str) -> Iterator[Cid]:
        """CIDs that are pinned directly under a name, as they come, however many; pins of others are passed over.

        Raises
        ------
        KuboError
            If Kubo stops answering or answers something else, maybe after some of them.
        """
        opts = {"type": "direct", "names": "true", "stream": "true", "name": name}
        for answer in self._entries("/pin/ls", opts):
            if answer.get("Name") == name and answer.get("Cid"):
                yield Cid.parse(str(answer["Cid"]))

    # Anything.

    def one(self, path: str, args: Sequence[str] = (), **opts: str) -> dict[str, Any]:
        """The answer of a command that gives one JSON object."""
        answers = list(self._json(path, args, opts=opts))
        if len(answers) != 1:
            raise KuboError(f"Kubo gave {len(answers)} answers to {path}")
        return answers[0]

    def _json(
        self, path: str, args: Sequence[str] = (), *, opts: dict[str, str] | None = None, **sent: Any
    ) -> list[dict[str, Any]]:
        parser = get_encoding("json")
        found: list[object] = []
        with self._stream(path, args, opts or {}, **sent) as body:
            for piece in self._pieces(path, body, _JSON_BYTES):
                found += parser.parse_partial(piece)
            found += parser.parse_finalize()
            return [self._checked(path, answer) for answer in found]

    def _entries(self, path: str, opts: dict[str, str]) -> Iterator[dict[str, Any]]:
        """The JSON objects of an answer that has one a line, each given as it comes."""
        with self._stream(path, [], opts) as body:
            for line in self._lines(path, body):
                try:
                    answer = json.loads(line)
                except (ValueError, RecursionError) as exc:
                    raise self._no_kubo(path) from exc
                yield self._checked(path, answer)

    def _checked(self, path: str, answer: object) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise self._no_kubo(path)
        # An error that came up after the status was sent.
        if answer.get("Type") == "error":
            raise foreign.ErrorResponse(str(answer.get("Message")), None)
        return answer

    def _no_kubo(self, path: str) -> KuboError:
        return KuboError(f"what answers {path} at {self.address} is no Kubo")

    @contextmanager
    def _stream(self, path: str, args: Sequence[str], opts: dict[str, str], **sent: Any) -> Iterator[Any]:
        """The body of an answer, unread; errors while it is read become ours."""
        with self._translated(path), self._client() as client:
            # The library's own iterators read a whole body before they give any of it.
            closables, _ = client._request(
                "POST",
                path,
                map_args_to_params(list(args), opts),
                auth=None,
                data=sent.get("data"),
                headers=sent.get("headers"),
                timeout=(min(10.0, self._deadline_s), self._deadline_s),
                chunk_size=1,
            )
            try:
                yield closables[0].raw
            finally:
                for closable in closables:
                    closable.close()

    def _pieces(self, path: str, body: Any, limit_bytes: int) -> Iterator[bytes]:
        """A body as it comes, cut off one byte after its limit and given up after the deadline."""
        ends = time.monotonic() + self._deadline_s
        left = limit_bytes + 1
        while left and (piece := body.read1(min(left, 1 << 18))):
            left -= len(piece)
            yield piece
            self._check_time(path, ends)

    def _lines(self, path: str, body: Any) -> Iterator[bytes]:
        """The lines of a body as they come, however many: limit and deadline are each line's."""
        begun = b""
        ends = time.monotonic() + self._deadline_s
        while piece := body.read1(1 << 18):
            *lines, begun = (begun + piece).split(b"\n")
            if max(map(len, (begun, *lines))) > _LINE_BYTES:
                raise self._no_kubo(path)
            if lines:
                yield from lines
                ends = time.monotonic() + self._deadline_s
            self._check_time(path, ends)
        if begun:
            yield begun

    def _check_time(self, path: str, ends: float) -> None:
        if time.monotonic() > ends:
            raise KuboUnreachableError(f"Kubo's answer to {path} took longer than {self._deadline_s:g} s")

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except foreign.ErrorResponse as exc:
            message = str(exc)
            if _FULL.search(message):
                raise StoreFullError(f"Kubo's disk is full: {message[:200]}") from exc
            if _DAMAGED.search(message):
                raise BlockMismatchError(f"Kubo has something else: {message[:200]}") from exc
            if _ABSENT.search(message):
                raise BlockNotFoundError(f"Kubo does not have it: {message[:200]}") from exc
            raise KuboError(f"Kubo refuses {path}: {message[:200]}") from exc
        except foreign.StatusError as exc:
            status = getattr(getattr(exc.original, "response", None), "status_code", None)
            if status in (401, 403):
                raise KuboRefusedError(self.address) from exc
            raise KuboError(f"what answers {path} at {self.address} is no Kubo: HTTP {status}") from exc
        except (foreign.Error, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise KuboUnreachableError(
                f"Kubo at {self.address} does not answer {path}: {_brief(exc)}"
            ) from exc

    @contextmanager
    def _client(self) -> Iterator[ClientSync]:
        """A session that nobody else uses meanwhile; kept for any thread's next call, unless its connection failed."""
        with self._lock:
            if self._closed:
                raise KuboError("this store is closed")
            client = self._idle.pop() if self._idle else None
        if client is None:
            client = self._open()
        is_sound = False
        try:
            yield client
            is_sound = True
        except foreign.StatusError:
            is_sound = True
            raise
        finally:
            with self._lock:
                is_kept = is_sound and not self._closed
                if is_kept:
                    self._idle.append(client)
            if not is_kept:
                client.close_session()

    def _open(self) -> ClientSync:
        """A session that asks neither proxies nor `.netrc`."""
        client = ClientSync(
            self.address, _BASE, auth=(self._credentials.user, self._credentials.secret), timeout=10
        )
        client.open_session()
        client._session.trust_env = False
        client._session.max_redirects = 0
        return client


def check_address(address: str) -> None:
    """Refuse an RPC address that is malformed, or that would carry credentials over a network in the clear.

    Raises
    ------
    ConfigurationError
    """
    try:
        parts = [(protocol.name, value) for protocol, value in Multiaddr(address).items()]
    except (MultiaddrError, ValueError) as exc:
        raise ConfigurationError(
            f"{address!r} is no multiaddr of Kubo's RPC", hint="it looks like /ip4/127.0.0.1/tcp/5001"
        ) from exc
    names = [name for name, _ in parts]
    if names[1:2] != ["tcp"] or names[2:] not in ([], ["http"], ["https"]):
        raise ConfigurationError(
            f"{address!r} is no address of Kubo's RPC", hint="it looks like /ip4/127.0.0.1/tcp/5001"
        )
    if names[2:] == ["https"]:
        return
    if names[0] not in ("ip4", "ip6") or not ipaddress.ip_address(str(parts[0][1])).is_loopback:
        raise ConfigurationError(
            f"{address} would carry Kubo's credentials over a network in the clear",
            hint="let Kubo's RPC listen on loopback, or put TLS in front of it and end the address with /https",
        )


def _portions(cids: Sequence[Cid]) -> Iterator[Sequence[Cid]]:
    return (cids[start : start + _ARGUMENTS] for start in range(0, len(cids), _ARGUMENTS))


def _brief(exc: BaseException) -> str:
    """The innermost cause in a line; libraries wrap it five times."""
    text = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
    return text[-200:]
