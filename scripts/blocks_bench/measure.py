"""A process that is measured: `python -m blocks_bench.measure CASE DIRECTORY MEGABYTES [ADDRESS…]`; prints one JSON object."""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psutil
import trio

from blocks_bench.data import blocks, cids, root
from blocks_bench.memory import peak_mb
from blocks_bench.serve import RAW, identity
from usufruct.content import Cid, Codec, EmbeddedBlockStore
from usufruct_node.peers import Deadlines, Holder, PeerHost, fetch_blocks
from usufruct_node.peers.asking import WINDOW_BYTES
from usufruct_node.peers.connection import STREAM_READ_BYTES

FETCHERS = 200
FETCHER_BLOCKS = 40


def hash_and_fsync(directory: Path, megabytes: int) -> int:
    """The floor of publishing: each block hashed, written to a file of its own, and synced."""
    size = 0
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        for n, block in enumerate(blocks(megabytes)):
            hashlib.sha256(block).digest()
            with Path(folder, str(n)).open("wb", buffering=0) as file:
                file.write(block)
                os.fsync(file.fileno())
            size += len(block)
    return size


def publish(directory: Path, megabytes: int) -> int:
    """Blocks into a new store, in runs as a node takes them."""
    size, run = 0, []
    with tempfile.TemporaryDirectory(dir=directory) as folder, EmbeddedBlockStore(Path(folder)) as store:
        for block in blocks(megabytes):
            run.append(block)
            size += len(block)
            if len(run) == 64:
                store.put_many(run, pin="bench")
                run = []
        store.put_many(run, pin="bench")
    return size


def read_and_hash(directory: Path, megabytes: int) -> int:
    """The floor of reading: each file opened, read and hashed."""
    size = 0
    for path in (directory / "blocks").glob("*/b*"):
        data = path.read_bytes()
        hashlib.sha256(data).digest()
        size += len(data)
    return size


def local_read(directory: Path, megabytes: int) -> int:
    """Every block out of the store."""
    with EmbeddedBlockStore(directory) as store:
        return sum(len(store.get(cid)) for cid in cids(directory))


def make_host(number: int = 99) -> PeerHost:
    """A host that holds nothing."""
    return PeerHost(
        identity=identity(number),
        is_member=lambda peer: True,
        authorise=lambda peer, cid: False,
        read_block=lambda cid: None,
        deadlines=Deadlines(connect=120, negotiate=120, request=120, block=120),
    )


def holders(addresses: Sequence[str]) -> list[Holder]:
    """Addresses as the planner takes them."""
    return [Holder(address.rsplit("/", 1)[1], address) for address in addresses]


async def with_host(case: Callable[[PeerHost], Awaitable[int]]) -> int:
    """Run one case on a running host."""
    host = make_host()
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        size = await case(host)
        nursery.cancel_scope.cancel()
    return size


async def raw(addresses: Sequence[str], host: PeerHost) -> int:
    """The floor of fetching: bytes over a stream, thrown away."""
    (holder,) = holders(addresses)
    stream = await host.open_stream(holder.peer_id, holder.multiaddr, RAW)
    await stream.widen(WINDOW_BYTES)
    size = 0
    while data := await stream.read(STREAM_READ_BYTES):
        size += len(data)
    await stream.abandon()
    return size


async def fetch(addresses: Sequence[str], directory: Path, host: PeerHost) -> int:
    """Every block, checked and thrown away."""
    report = await fetch_blocks(
        host, holders(addresses), cids(directory), missing=list, keep=lambda some: None, stall_s=60
    )
    return report.size_bytes


async def fetch_into_store(addresses: Sequence[str], directory: Path, host: PeerHost) -> int:
    """Every block, checked and kept."""
    with tempfile.TemporaryDirectory(dir=directory) as folder, EmbeddedBlockStore(Path(folder)) as store:

        def keep(some: Sequence[tuple[Cid, bytes]]) -> None:
            store.put_many([data for _, data in some], pin="bench")

        report = await fetch_blocks(
            host, holders(addresses), cids(directory), missing=list, keep=keep, stall_s=60
        )
    return report.size_bytes


async def many(addresses: Sequence[str], directory: Path) -> int:
    """Two hundred members at once, each under its own identity, each a little over a megabyte."""
    wanted = [cid for cid, _ in zip(cids(directory), range(FETCHER_BLOCKS), strict=False)]
    size = 0

    async def one(host: PeerHost) -> None:
        nonlocal size
        report = await fetch_blocks(
            host, holders(addresses), wanted, missing=list, keep=lambda some: None, stall_s=60
        )
        size += report.size_bytes

    async with trio.open_nursery() as nursery:
        hosts = [make_host(1000 + n) for n in range(FETCHERS)]
        for host in hosts:
            await nursery.start(host.run)
        async with trio.open_nursery() as fetchers:
            for host in hosts:
                fetchers.start_soon(one, host)
        nursery.cancel_scope.cancel()
    return size


async def stock_bitswap(addresses: Sequence[str], directory: Path) -> int:
    """Every block through libp2p's own host and Bitswap."""
    from libp2p import new_host
    from libp2p.bitswap import BitswapClient, MemoryBlockStore
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    host = new_host()
    wanted = [bytes(cid) for cid in cids(directory)]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]))
        nursery = await stack.enter_async_context(trio.open_nursery())
        client = BitswapClient(host, MemoryBlockStore())
        client.set_nursery(nursery)
        await client.start()
        info = info_from_p2p_addr(Multiaddr(addresses[0]))
        await host.connect(info)
        found = await client.new_session().get_blocks_batch(wanted, info.peer_id)
        nursery.cancel_scope.cancel()
    return sum(map(len, found.values()))


def kubo(addresses: Sequence[str], directory: Path) -> dict[str, float]:
    """Every block from one Kubo daemon to another, kept and pinned; what the one that fetches took, without its start."""
    from foreign_ipfs import running_kubo

    wanted = Cid.of(root(directory), Codec.DAG_CBOR)
    with tempfile.TemporaryDirectory(dir=directory) as folder, running_kubo(Path(folder)) as daemon:
        (process,) = psutil.Process().children()
        daemon.connect(addresses[0])
        begun, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        daemon.call("pin/add", str(wanted), timeout=600)
        took, cpu = time.perf_counter() - begun, sum(process.cpu_times()[:2]) - cpu
        peak = peak_mb(process.pid)
        size = sum(len(daemon.get(cid)) for cid in cids(directory))
        return figures(size, took, cpu, peak)


def figures(size: int, took: float, cpu: float, peak_rss_mb: float) -> dict[str, float]:
    """A row."""
    return {
        "bytes": size,
        "seconds": took,
        "mb_per_s": size / took / 1e6,
        "cpu_s": cpu,
        "peak_rss_mb": peak_rss_mb,
    }


def main() -> None:
    """Run one case and print what it took."""
    case, directory, megabytes, addresses = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    local = {f.__name__: f for f in (hash_and_fsync, publish, read_and_hash, local_read)}
    if case == "kubo":
        sys.stdout.write(json.dumps(kubo(addresses, directory)) + "\n")
        return
    begun, cpu = time.perf_counter(), time.process_time()
    if case in local:
        size = local[case](directory, megabytes)
    elif case == "raw":
        size = trio.run(with_host, partial(raw, addresses))
    elif case == "fetch":
        size = trio.run(with_host, partial(fetch, addresses, directory))
    elif case == "fetch_into_store":
        size = trio.run(with_host, partial(fetch_into_store, addresses, directory))
    elif case == "many":
        size = trio.run(many, addresses, directory)
    else:
        size = trio.run(stock_bitswap, addresses, directory)
    took = time.perf_counter() - begun
    row = figures(size, took, time.process_time() - cpu, peak_mb())
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
