"""Runs a job's kernel in worker processes: inputs from the block store's files, result blocks back. Holds no key."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from usufruct.compute import CacheSettings, WorkerPool, compute
from usufruct.content import BlockStore, Cid, EmbeddedBlockStore
from usufruct.job import JobInputs
from usufruct_node.parent import end_with_parent


class Workers:
    """The node's worker processes, and where they keep expansions."""

    def __init__(self, count: int, *, cache: CacheSettings | None = None) -> None:
        self.pool = WorkerPool(count, initializer=end_with_parent)
        self.cache = cache

    def close(self) -> None:
        """Stop the processes."""
        self.pool.close()


def compute_result(
    inputs: JobInputs,
    store: BlockStore,
    workers: Workers,
    keep: Callable[[bytes], Cid],
    *,
    cancelled: Callable[[], bool] | None = None,
) -> list[Cid]:
    """Run a job's kernel over the local input blocks; CIDs of the result blocks in output order.

    Parameters
    ----------
    keep :
        Stores one result block; called as soon as it is complete, so memory holds few tasks' blocks.
    cancelled :
        As for `usufruct.compute.compute`.

    Raises
    ------
    WorkerError
        If a worker process died; the job can be tried again.
    ContentError, IntegrityError, WrongKeyDomainError, KernelError
        As `usufruct.compute.compute`.
    """
    parameters, manifest = inputs.parameters, inputs.manifest
    results = compute(
        parameters.kernel,
        parameters.parameters,
        manifest.shape,
        inputs.mask,
        cid_of=manifest.block_of,
        blocks=store.files if isinstance(store, EmbeddedBlockStore) else _Fetched(store),
        carried=not isinstance(store, EmbeddedBlockStore),
        executor=workers.pool,
        cache=workers.cache,
        cancelled=cancelled,
    )
    cids = {index: keep(block) for index, block in results}
    return [cids[index] for index in sorted(cids)]


class _Fetched:
    """Blocks of a store that workers cannot read themselves."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def read(self, cid: Cid) -> bytes:
        """One block; the store checks it."""
        return self._store.get(cid)

    def announce(self, cids: Iterable[Cid]) -> None:
        """Nothing: they are fetched when they are needed."""
