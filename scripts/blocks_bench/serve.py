"""A process that serves: `blocks_bench.serve ours|bitswap|stock|kubo NUMBER DIRECTORY MEGABYTES`; prints its address."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import trio

from blocks_bench.data import cids, root
from usufruct.content import Cid, Codec, EmbeddedBlockStore
from usufruct.errors import BlockNotFoundError
from usufruct_node.peers import Deadlines, PeerHost, PeerIdentity, Quota
from usufruct_node.peers.connection import MemberStream
from usufruct_node.peers.protocol import PROTOCOL_ID

RAW = "/usufruct/bench-raw"
RAW_BYTES = 256 * 1024


def identity(number: int) -> PeerIdentity:
    """The identity of that number."""
    return PeerIdentity.from_seed(number.to_bytes(32, "big"))


async def ours(kind: str, number: int, directory: Path, megabytes: int) -> None:
    """Serve as a node does; `raw` writes bytes that nobody looked up."""
    with EmbeddedBlockStore(directory) as store:

        def read(cid: Cid) -> bytes | None:
            try:
                return store.get(cid)
            except BlockNotFoundError:
                return None

        host = PeerHost(
            identity=identity(number),
            is_member=lambda peer: True,
            authorise=lambda peer, cid: True,
            read_block=read,
            deadlines=Deadlines(connect=120, negotiate=120, request=120, block=120),
            quota=Quota(bytes_per_s=1e12, blocks_per_s=1e9),
        )

        async def pour(peer_id: str, stream: MemberStream) -> None:
            data = os.urandom(RAW_BYTES)
            for _ in range(megabytes * 1_000_000 // RAW_BYTES):
                await stream.write(data)
            await stream.finish()
            await stream.read(1)

        host.handle(RAW, pour)
        if kind == "bitswap":
            del host._handlers[PROTOCOL_ID]
        async with trio.open_nursery() as nursery:
            say(await nursery.start(host.run))


async def stock(directory: Path) -> None:
    """Serve with libp2p's own host and Bitswap, out of memory."""
    from libp2p import new_host
    from libp2p.bitswap import BitswapClient, MemoryBlockStore
    from multiaddr import Multiaddr

    host = new_host()
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]), trio.open_nursery() as nursery:
        client = BitswapClient(host, MemoryBlockStore())
        client.set_nursery(nursery)
        await client.start()
        with EmbeddedBlockStore(directory) as store:
            for cid in cids(directory):
                await client.add_block(bytes(cid), store.get(cid))
        say(str(host.get_addrs()[0]))
        await trio.sleep_forever()


def kubo(directory: Path) -> None:
    """Serve with a Kubo daemon, which this process owns and ends with."""
    from foreign_ipfs import running_kubo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(dir=directory) as folder, running_kubo(Path(folder)) as daemon:
        with EmbeddedBlockStore(directory) as store:
            for cid in cids(directory):
                daemon.put(store.get(cid))
        daemon.put(root(directory), Codec.DAG_CBOR)
        say(daemon.multiaddr)
        signal.pause()


def say(address: str) -> None:
    """Tell the parent process."""
    sys.stdout.write(address + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    kind, number, place, size = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    if kind == "stock":
        trio.run(stock, place)
    elif kind == "kubo":
        kubo(place)
    else:
        trio.run(ours, kind, number, place, size)
