"""Blocks of an embedded store read as files, by processes that have no business with its catalogue.

Plain data that crosses to a worker process. Every block is hashed again when it is read, so it does not matter who could
write to the directory, or whether the block is being collected meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from usufruct.content.blockstore import MAX_BLOCK_BYTES
from usufruct.content.cid import Cid
from usufruct.errors import BlockMismatchError, BlockNotFoundError, ContentError


@dataclass(frozen=True, slots=True)
class BlockFiles:
    """The directory of an embedded store that holds `<first byte of the digest>/<cid>`."""

    directory: Path

    def path_of(self, cid: Cid) -> Path:
        """Where a block's file is, if it is here."""
        return Path(self._name_of(cid))

    def _name_of(self, cid: Cid) -> str:
        # Joining paths as objects takes longer than reading the file.
        return f"{self.directory}/{cid.digest[:1].hex()}/{cid}"

    def read(self, cid: Cid) -> bytes:
        """One block, checked against its CID.

        Raises
        ------
        BlockNotFoundError
            If there is no such file.
        BlockMismatchError
            If it holds anything else.
        ContentError
            If it cannot be read.
        """
        try:
            data = self.read_unchecked(cid)
        except OSError as exc:
            raise ContentError(f"block {cid} cannot be read: {exc.strerror or exc}") from exc
        if data is None:
            raise BlockNotFoundError(f"the file of block {cid} is gone", hint="fetch it again from its owner")
        cid.check(data)
        return data

    def read_unchecked(self, cid: Cid) -> bytes | None:
        """What is stored as this block, cut off where no block is that long; None if nothing is.

        Raises
        ------
        OSError
        BlockMismatchError
            If it is no file.
        """
        try:
            handle = os.open(self._name_of(cid), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BlockMismatchError(f"what is stored as {cid} is not a file")
            parts = []
            left = MAX_BLOCK_BYTES + 1
            while left:
                # A read takes memory for all that it asks for; one byte more than there is shows the end at once.
                asked = min(left, status.st_size + 1)
                parts.append(os.read(handle, asked))
                if len(parts[-1]) < asked:
                    break
                left -= asked
        finally:
            os.close(handle)
        return b"".join(parts)

    def announce(self, cids: Iterable[Cid]) -> None:
        """Tell the operating system that these blocks are read soon, so that it fetches them from the disk meanwhile."""
        for cid in cids:
            with contextlib.suppress(OSError):
                handle = os.open(
                    self.path_of(cid), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                )
                try:
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(handle)
