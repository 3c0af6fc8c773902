"""Runs kernels over stored blocks: in worker processes, or on a cluster.

`execution` plans a job, hands its tasks to an executor and puts the results together; `work` is what happens in a worker;
`pool` is the executor of one machine, `cluster` that of several; `cache` keeps what is costly to derive. Knows files and
processes, and no ledger, peer or key.

**Invariant:** memory depends on the size of a task and the number of workers, never on the size of the bundle.
"""

from usufruct.compute.cache import CacheSettings, ExpansionCache
from usufruct.compute.execution import TaskExecutor, compute
from usufruct.compute.pool import WorkerPool
from usufruct.compute.work import BlockSource, CarriedBlocks, Work, carry_out

__all__ = [
    "BlockSource",
    "CacheSettings",
    "CarriedBlocks",
    "ExpansionCache",
    "TaskExecutor",
    "Work",
    "WorkerPool",
    "carry_out",
    "compute",
]
