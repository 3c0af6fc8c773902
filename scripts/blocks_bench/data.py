"""Blocks for the benchmark, the same ones in every process without passing them around."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from usufruct.content import Cid, EmbeddedBlockStore, dag

BLOCK_BYTES = 27_648
"""One sealed ciphertext of the linear scheme: 4096 values at 6.75 bytes."""


def count(megabytes: int) -> int:
    """How many blocks make so many megabytes."""
    return megabytes * 1_000_000 // BLOCK_BYTES


def blocks(megabytes: int) -> Iterator[bytes]:
    """The blocks, one at a time."""
    source = np.random.default_rng(20261128)
    for _ in range(count(megabytes)):
        yield source.bytes(BLOCK_BYTES)


def fill(directory: Path, megabytes: int) -> None:
    """Make a store that holds them, and a file with their CIDs."""
    with EmbeddedBlockStore(directory) as store, (directory / "cids").open("wb") as file:
        run: list[bytes] = []
        for block in blocks(megabytes):
            run.append(block)
            if len(run) == 256:
                file.writelines(map(bytes, store.put_many(run, pin="bench")))
                run = []
        file.writelines(map(bytes, store.put_many(run, pin="bench")))


def cids(directory: Path) -> Iterator[Cid]:
    """The CIDs of a store that `fill` made, read as they are needed."""
    with (directory / "cids").open("rb") as file:
        while raw := file.read(36):
            yield Cid.from_bytes(raw)


def root(directory: Path) -> bytes:
    """A record that links them all, so that one name stands for all."""
    return dag.encode({"links": list(cids(directory))})
