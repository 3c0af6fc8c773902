"""The embedded block store: one directory, plain files, and a catalogue of what is here and why.

Under the root: `blocks/<first byte of the digest>/<cid>`, with all 256 directories from the beginning,
`staging/<session>/<unique>` and the catalogue's files.
A file without a row in the catalogue is rubbish. `gc` unlinks those whose rows it has deleted; what a crash left is looked for
by whoever finds the dead session, at the next open or in `gc`.
No network and no replication.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from usufruct.content.blockstore import check_blocks
from usufruct.content.catalogue import Catalogue, check_reason
from usufruct.content.catalogued import CataloguedStore
from usufruct.content.cid import Cid, Codec
from usufruct.content.files import BlockFiles
from usufruct.durable import for_each, make_directory, sync_directory, translated
from usufruct.errors import BlockNotFoundError, CidError, ContentError

_UNLINKED_AT_ONCE: Final = 100
"""Files between which others get at the catalogue."""


class EmbeddedBlockStore(CataloguedStore):
    """A `BlockStore` in one directory, for any number of threads and several processes.

    **Invariant:** a row in the catalogue is committed only after its file and the file's directory entry are
    on disk, and a file is unlinked only after its row's deletion is. What was acknowledged survives `kill -9`
    and power loss; what was not leaves nothing that counts.

    Not usable across `os.fork`: open one in each process.
    """

    def __init__(self, root: Path, *, quota_bytes: int | None = None) -> None:
        """Open, or make, the store at `root`.

        Parameters
        ----------
        root :
            Directory of this store alone; made with mode 0700 if missing.
        quota_bytes :
            Upper bound on the sum of block lengths; None for no bound but the disk's.

        Raises
        ------
        ContentError
            If the directory or its catalogue cannot be used.
        """
        self._blocks = root / "blocks"
        self.files = BlockFiles(self._blocks)
        """For processes that only read."""
        self._catalogue = Catalogue(root, quota_bytes=quota_bytes)
        try:
            with translated(f"the block store at {root} cannot be opened"):
                make_directory(self._blocks)
                self._make_shards()
                self._sweep_files()
        except BaseException:
            self.close()
            raise

    def put_many(
        self, blocks: Sequence[bytes], codec: Codec = Codec.RAW, *, pin: str | None = None
    ) -> list[Cid]:
        """Store all of `blocks` or none, in one catalogue transaction; see `BlockStore.put_many`."""
        if pin is not None:
            check_reason(pin)
        check_blocks(blocks)
        cids = [Cid.of(data, codec) for data in blocks]
        wanted = dict(zip(cids, blocks, strict=True))
        staged: dict[Cid, Path] = {}
        self._catalogue.check_room({cid: len(data) for cid, data in wanted.items()})
        with translated("the blocks could not be stored"):
            try:
                while True:
                    fresh = [
                        cid
                        for cid, data in wanted.items()
                        if cid not in staged and not self._is_intact(cid, data)
                    ]
                    staged |= {cid: self._catalogue.session_directory / secrets.token_hex(8) for cid in fresh}
                    for_each(_write_new, [(staged[cid], wanted[cid]) for cid in fresh])
                    if self._commit(wanted, staged, pin):
                        return cids
            finally:
                for path in staged.values():
                    path.unlink(missing_ok=True)

    def get(self, cid: Cid) -> bytes:
        """Return the block, hashed again; see `BlockStore.get`."""
        if not self.has(cid):
            raise BlockNotFoundError(f"block {cid} is not in this store")
        return self.files.read(cid)

    def check(self) -> None:
        """Look whether blocks can be stored now; see `BlockStore.check`."""
        if not os.access(self._blocks, os.R_OK | os.W_OK | os.X_OK):
            raise ContentError(f"{self._blocks} is not writable")
        self.usage_bytes()

    def _commit(self, wanted: dict[Cid, bytes], staged: dict[Cid, Path], pin: str | None) -> bool:
        """Move staged files into place and record them; False if an unstaged block has vanished meanwhile."""
        moved: set[Path] = set()
        try:
            with self._catalogue.transaction():
                for cid, data in wanted.items():
                    if cid not in staged and not self._is_intact(cid, data):
                        return False
                for cid in staged:
                    self._catalogue.record(cid, len(wanted[cid]))
                if pin is not None:
                    self._catalogue.record_pins(wanted, pin)
                for cid, path in staged.items():
                    target = self.files.path_of(cid)
                    path.rename(target)
                    moved.add(target.parent)
                for_each(sync_directory, moved)
        except BaseException:
            if moved:
                self._catalogue.suspect(staged)
                self._sweep_files()
            raise
        return True

    def _make_shards(self) -> None:
        """Make the directories that blocks go into, all at once: one sync instead of one for each while blocks are stored."""
        there = {entry.name for entry in self._blocks.iterdir()}
        missing = [name for first in range(256) if (name := f"{first:02x}") not in there]
        for name in missing:
            (self._blocks / name).mkdir(mode=0o700, exist_ok=True)
        if missing:
            sync_directory(self._blocks)

    def _collect(self) -> int:
        with translated("garbage collection failed"):
            removed = self._catalogue.drop_unkept()
            self._sweep_files()
        return removed

    def _is_intact(self, cid: Cid, data: bytes) -> bool:
        return self.has(cid) and self.files.read_unchecked(cid) == data

    def _sweep_files(self) -> None:
        """Unlink files that may have no row, after a crash any: inside transactions, which keep every `put` out."""
        catalogue = self._catalogue
        if catalogue.found_dead:
            with catalogue.transaction():
                self._unlink_unknown(self._files_there())
                catalogue.swept()
        while catalogue.unrecorded:
            with catalogue.transaction():
                some = list(islice(catalogue.unrecorded, _UNLINKED_AT_ONCE))
                self._unlink_unknown(some)
                catalogue.unrecorded.difference_update(some)

    def _unlink_unknown(self, cids: Iterable[Cid]) -> None:
        for cid in cids:
            if not self.has(cid):
                self.files.path_of(cid).unlink(missing_ok=True)

    def _files_there(self) -> Iterator[Cid]:
        for directory in self._blocks.iterdir():
            for path in directory.iterdir():
                with contextlib.suppress(CidError):
                    yield Cid.parse(path.name)


def _write_new(given: tuple[Path, bytes]) -> None:
    """A new file of mode 0600 whose bytes are on disk; whoever gave its name removes it."""
    path, data = given
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)
