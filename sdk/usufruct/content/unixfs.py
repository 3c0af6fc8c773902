"""The name that IPFS tools give a whole file: the root of its UnixFS tree.

What `ipfs add --cid-version=1 --raw-leaves --chunker=size-262144 --max-file-links=174` prints, so that a file that was carried
can be held against a CID that came another way, with these tools or with ours. Absent: directories, and reading files out of
such trees; the network's own records and blocks are named by `Cid`.

Source: the UnixFS and DAG-PB specifications (specs.ipfs.tech/unixfs, ipld.io/specs/codecs/dag-pb), balanced layout.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from usufruct.content.varint import varint
from usufruct.errors import CidError

CHUNK_BYTES: Final = 262_144
"""Bytes in every leaf but the last."""

MAX_LINKS: Final = 174
"""Children of a node at most."""

_HEAD: Final = re.compile(rb"\x01[\x55\x70]\x12\x20", re.DOTALL)
_TEXT: Final = re.compile(r"b[a-z2-7]{58}", re.ASCII)


class FileCodec(IntEnum):
    """What the root of a file's tree is; the numbers are the multicodec table's."""

    RAW = 0x55
    """The file itself: it fits one leaf."""

    DAG_PB = 0x70
    """A node that links parts."""


@dataclass(frozen=True, slots=True)
class FileCid:
    """The identifier of a file, or of a node of its tree: CIDv1 with sha2-256.

    Never the name of a block of this network, whose parsers refuse DAG-PB.
    """

    codec: FileCodec

    digest: bytes
    """sha2-256 of the root block, 32 bytes."""

    @classmethod
    def of(cls, data: bytes, codec: FileCodec) -> FileCid:
        """Return the identifier of one block."""
        return cls(codec, hashlib.sha256(data).digest())

    @classmethod
    def parse(cls, text: str) -> FileCid:
        """Parse the canonical text form, lower-case base32 without padding.

        Raises
        ------
        CidError
            On anything else: other versions, hashes, codecs and bases, upper case, padding, non-zero spare bits.
        """
        raw = base64.b32decode(text[1:].upper() + "======") if _TEXT.fullmatch(text) else b""
        if _HEAD.match(raw):
            cid = cls(FileCodec(raw[1]), raw[4:])
            if str(cid) == text:
                return cid
        raise CidError(
            f"not the CID of a file: {text[:80]!r}",
            hint="it looks like bafybei… or bafkrei…; `ipfs add` prints such ones with --cid-version=1",
        )

    def __bytes__(self) -> bytes:
        return bytes((1, self.codec, 0x12, 0x20)) + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode("ascii").rstrip("=").lower()


Keep = Callable[[FileCid, bytes], None]
"""Takes each block of a tree, children before parents."""


@dataclass(frozen=True, slots=True)
class _Link:
    cid: FileCid
    file_bytes: int
    """Bytes of the file below."""
    tree_bytes: int
    """Bytes of all blocks below."""


class FileHasher:
    """Builds a file's tree from left to right; memory holds one chunk and the open nodes, whatever the size."""

    def __init__(
        self, *, keep: Keep | None = None, chunk_bytes: int = CHUNK_BYTES, max_links: int = MAX_LINKS
    ) -> None:
        """Other parameters than the defaults give other CIDs.

        Parameters
        ----------
        keep :
            Takes the blocks, which otherwise are hashed and forgotten.
        chunk_bytes :
            At least 1.
        max_links :
            At least 2.
        """
        self._keep = keep
        self._chunk_bytes = chunk_bytes
        self._max_links = max_links
        self._pending = bytearray()
        self._levels: list[list[_Link]] = [[]]
        """Links that wait for their parent; leaves first. None is ever full."""

    def update(self, data: bytes) -> None:
        """Take the next bytes of the file, any number of them."""
        view = memoryview(data)
        while view:
            taken = view[: self._chunk_bytes - len(self._pending)]
            self._pending += taken
            view = view[len(taken) :]
            if len(self._pending) == self._chunk_bytes:
                self._leaf()

    def finish(self) -> FileCid:
        """The file's CID; nothing may be added after it."""
        if self._pending or not any(self._levels):
            self._leaf()
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._close(level)
            level += 1
        return self._levels[level][0].cid

    def _leaf(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        self._add(0, _Link(self._block(data, FileCodec.RAW), len(data), len(data)))

    def _add(self, level: int, link: _Link) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(link)
        if len(self._levels[level]) == self._max_links:
            self._close(level)

    def _close(self, level: int) -> None:
        """Make a node of the links that wait at a level."""
        links, self._levels[level] = self._levels[level], []
        data = _node(links)
        cid = self._block(data, FileCodec.DAG_PB)
        file_bytes = sum(link.file_bytes for link in links)
        self._add(level + 1, _Link(cid, file_bytes, len(data) + sum(link.tree_bytes for link in links)))

    def _block(self, data: bytes, codec: FileCodec) -> FileCid:
        cid = FileCid.of(data, codec)
        if self._keep is not None:
            self._keep(cid, data)
        return cid


def _node(links: list[_Link]) -> bytes:
    """A node of a file that has its bytes in its children: DAG-PB with its links first, around UnixFS without data."""
    unixfs = b"\x08\x02\x18" + varint(sum(link.file_bytes for link in links))
    unixfs += b"".join(b"\x20" + varint(link.file_bytes) for link in links)
    node = bytearray()
    for link in links:
        cid = bytes(link.cid)
        entry = b"\x0a" + varint(len(cid)) + cid + b"\x12\x00\x18" + varint(link.tree_bytes)
        node += b"\x12" + varint(len(entry)) + entry
    return bytes(node + b"\x0a" + varint(len(unixfs)) + unixfs)
