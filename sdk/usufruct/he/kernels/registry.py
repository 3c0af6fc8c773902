"""The kernels that exist, and how a job on one of them is described, planned and run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from usufruct.errors import UnknownKernelError
from usufruct.he.kernels.blind import BLIND
from usufruct.he.kernels.blocks import check_mask
from usufruct.he.kernels.collect import Collector
from usufruct.he.kernels.distance import DISTANCE
from usufruct.he.kernels.fedsum import FEDSUM
from usufruct.he.kernels.linear import LINEAR
from usufruct.he.kernels.moments import MOMENTS
from usufruct.he.kernels.record import BundleShape, Inputs, Kernel, KernelParameters, Mask, Output, Task
from usufruct.he.kernels.similarity import IDENTIFY, VERIFY
from usufruct.he.kernels.sums import SUM

KERNELS: Final[Mapping[str, Kernel]] = MappingProxyType(
    {kernel.name: kernel for kernel in (SUM, LINEAR, DISTANCE, MOMENTS, FEDSUM)}
)
"""Every kernel that a steward may grant, by name."""

RESTRICTED: Final[Mapping[str, Kernel]] = MappingProxyType(
    {kernel.name: kernel for kernel in (VERIFY, IDENTIFY, BLIND)}
)
"""Kernels about single persons, by name.

No grant, policy or job reaches them: the look-ups refuse them unless the caller names their class as enabled,
which nothing in this release does. `identify-1:N` needs a vote of the members, for a purpose and until a date;
`verify-1:1` needs a release rule that holds without a minimum cohort.
"""


def kernel_by_name(name: str, *, enabled: Collection[str] = ()) -> Kernel:
    """Look up a kernel.

    Parameters
    ----------
    enabled :
        Restricted classes that are allowed here; the caller answers for that.

    Raises
    ------
    UnknownKernelError
        Also for a restricted kernel whose class is not enabled.
    """
    return _if_enabled(_registered(name), enabled)


def kernel_by_id(kernel_id: bytes, *, enabled: Collection[str] = ()) -> Kernel:
    """Look up a kernel by the id that the ledger holds; as `kernel_by_name`."""
    for kernel in (*KERNELS.values(), *RESTRICTED.values()):
        if kernel.kernel_id == kernel_id:
            return _if_enabled(kernel, enabled)
    raise UnknownKernelError(f"no kernel has the id {kernel_id.hex()}")


def _if_enabled(kernel: Kernel, enabled: Collection[str]) -> Kernel:
    if kernel.name in RESTRICTED and kernel.kernel_class not in enabled:
        raise UnknownKernelError(
            f"kernel {kernel.name} is of class {kernel.kernel_class}, which is not enabled for it",
            hint="only a vote of the members can enable a class, for a purpose and until a date",
        )
    return kernel


def _registered(name: str) -> Kernel:
    found = KERNELS.get(name) or RESTRICTED.get(name)
    if found is None:
        raise UnknownKernelError(f"no kernel is called {name!r}")
    return found


def outputs(kernel: Kernel, parameters: KernelParameters, shape: BundleShape) -> list[Output]:
    """Describe every result block in index order; errors as `Kernel.validate`."""
    kernel.validate(parameters, shape)
    found: list[Output] = kernel.implementation.outputs(parameters, shape)
    return found


def plan(kernel: Kernel, parameters: KernelParameters, shape: BundleShape) -> list[Task]:
    """Split a job into independent tasks.

    Each result belongs to exactly one task, or is the sum of an addend from every task; either way it does not depend
    on how tasks are spread. A `Collector` takes what they make. Errors as `Kernel.validate`, before any work.
    """
    kernel.validate(parameters, shape)
    return [
        Task(
            index=index,
            kernel=kernel.name,
            parameters=parameters,
            shape=shape,
            inputs=part.inputs,
            outputs=part.outputs,
            partial=part.partial,
        )
        for index, part in enumerate(kernel.implementation.plan(parameters, shape))
    ]


def execute(task: Task, inputs: Inputs, mask: Mask) -> list[bytes]:
    """Run one task.

    Parameters
    ----------
    task :
        From `plan`.
    inputs :
        Container bytes by (chunk, feature). Each of `task.inputs` is looked up once, in that order, so a
        mapping that loads on demand keeps one block at a time in memory.
    mask :
        bool, shape (n_rows,): True where consent is live. Applied to sums. Per-row scores are computed for
        every row and opened for permitted rows only.

    Returns
    -------
    blocks :
        Canonical containers, or addends for a `Collector`, in the order of `task.outputs`.

    Raises
    ------
    KernelParameterError
        If the mask does not fit or permits no row, or a query names a row that it does not permit.
    ContainerError, WrongKeyDomainError
        If an input is not a sealed block of the bundle's key domain.
    """
    kernel = _registered(task.kernel)
    own = kernel.implementation
    check_mask(mask, task.shape, of_columns=own.mask_of_columns)
    made: list[bytes] = own.execute(task, own.checked(task.parameters), inputs, mask)
    return made


def run(
    kernel: Kernel,
    parameters: KernelParameters,
    shape: BundleShape,
    block: Callable[[int, int], bytes],
    mask: Mask,
) -> Iterator[tuple[int, bytes]]:
    """Run a whole job in this process; yields (output index, block) in index order, as soon as they are complete.

    Parameters
    ----------
    block :
        Returns the container at (chunk, feature).
    mask :
        As for `execute`.
    """
    tasks = plan(kernel, parameters, shape)
    collector = Collector(kernel, parameters, shape, mask, tasks)
    for task in tasks:
        yield from collector.add(task, execute(task, _OnDemand(task.inputs, block), mask))


class _OnDemand(Mapping[tuple[int, int], bytes]):
    """A mapping that calls for each block as it is looked up."""

    def __init__(self, keys: tuple[tuple[int, int], ...], block: Callable[[int, int], bytes]) -> None:
        self._keys = keys
        self._block = block

    def __getitem__(self, key: tuple[int, int]) -> bytes:
        return self._block(*key)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
