"""CIDs of whole files: equal to Kubo's at every size where the tree changes its form, and trees that keep their rules."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.bitswap.dag_pb import decode_dag_pb

from kubo_fixture import Kubo
from usufruct.content import Cid, Codec
from usufruct.content.unixfs import CHUNK_BYTES, MAX_LINKS, FileCid, FileCodec, FileHasher
from usufruct.content.varint import varint
from usufruct.errors import CidError

IPFS_ADD = ["add", "--quieter", "--progress=false", "--only-hash", "--cid-version=1", "--raw-leaves"]
IMPORT = ["--chunker=size-262144", "--max-file-links=174"]
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
FULL = MAX_LINKS * CHUNK_BYTES
GOLDEN = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreihpns6scypk5j4uhtugso4yetjd2f4t76y4b7falnqa2oezwrgjo4",
    CHUNK_BYTES - 1: "bafkreibqgkzyz4762zk44x3blekg24ixtz4rzmdkytlcy2y3sx2zfr7dmq",
    CHUNK_BYTES: "bafkreia27q3g3f76jgijvdpzfvgdizklk32co2r2cqokynmgerws4jwpau",
    CHUNK_BYTES + 1: "bafybeib5t6tsacapmif67ycgyo6wcfv7kcxdqxaxzyntutodbknr7rrtdu",
    2 * CHUNK_BYTES: "bafybeifp34l6xjwzpndlzqgbaabux7px6q4td234q4sweocy27mfwixlza",
    3 * CHUNK_BYTES - 5: "bafybeigj573ki632a7kqcy3ciyocmtsp7nn7v3mceihudqlac5sbhe62qy",
    FULL - 1: "bafybeieziton2ba7frd4edmcxen3sjihyoe3csrgejbr3zgrsloduo6pw4",
    FULL: "bafybeie2b5vkbzqnv25qcb23un6isqh57nypqyx34tkhvhemmakqbidwhq",
    FULL + 1: "bafybeiff34in7gdagj6htrhuizwbsjb222ehauq3pmz654fijibbh57ooq",
    FULL + CHUNK_BYTES: "bafybeifctn6rhg6xsgcstav7jcy3chqm2qc2ineug5qi4mx7bvst6enkpq",
    FULL + CHUNK_BYTES + 1: "bafybeibrcohn2qptb4hexudl7vvplcqccwc5p2zstera4vskakkeqo3dni",
    2 * FULL + 1: "bafybeiewlfqgke26ot54pqjlhellbfs7n7a7bkwpunr3qg2n7h7ikctzm4",
}
"""Size in bytes to CID, as Kubo 0.39.0 gave them with `IPFS_ADD` and `IMPORT` for `content(size)`."""


def content(size: int) -> bytes:
    """The same bytes for the same size, on every machine."""
    return hashlib.shake_128(b"a file of usufruct").digest(size)


def cid_of(data: bytes, *, step: int = 1 << 20) -> FileCid:
    hasher = FileHasher()
    for start in range(0, len(data), step):
        hasher.update(data[start : start + step])
    return hasher.finish()


@pytest.mark.parametrize("size", GOLDEN)
def test_cid_is_the_one_that_kubo_gave(size: int) -> None:
    assert str(cid_of(content(size))) == GOLDEN[size]


def test_kubo_gives_the_same_cid_at_every_size_where_the_tree_changes(kubo: Kubo, tmp_path: Path) -> None:
    file = tmp_path / "file"
    for size in GOLDEN:
        file.write_bytes(content(size))
        assert kubo.ipfs(*IPFS_ADD, *IMPORT, str(file)).decode().strip() == GOLDEN[size], size


def test_kubo_gives_the_same_cid_to_trees_of_many_levels(kubo: Kubo, tmp_path: Path) -> None:
    """With small chunks and few links, since three levels of the usual ones take 8 GB."""
    file = tmp_path / "file"
    for leaves, links in [(3, 2), (8, 2), (9, 2), (27, 3), (28, 3), (82, 3), (500, 4)]:
        data = content(leaves * 64 - 1)
        file.write_bytes(data)
        said = kubo.ipfs(*IPFS_ADD, "--chunker=size-64", f"--max-file-links={links}", str(file))
        hasher = FileHasher(chunk_bytes=64, max_links=links)
        hasher.update(data)
        assert said.decode().strip() == str(hasher.finish()), (leaves, links)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 17])
def test_kubo_reads_a_file_out_of_our_blocks(kubo: Kubo, size: int) -> None:
    def put(cid: FileCid, data: bytes) -> None:
        codec = {FileCodec.RAW: "raw", FileCodec.DAG_PB: "dag-pb"}[cid.codec]
        answer = kubo.ipfs("block", "put", f"--cid-codec={codec}", stdin=data)
        assert answer.decode().strip() == str(cid)

    hasher = FileHasher(keep=put)
    hasher.update(content(size))
    assert kubo.ipfs("cat", str(hasher.finish())) == content(size)


@given(size=st.integers(0, 400), chunk=st.integers(1, 9), links=st.integers(2, 5), step=st.integers(1, 50))
def test_every_tree_is_balanced_full_on_the_left_and_right_about_its_lengths(
    size: int, chunk: int, links: int, step: int
) -> None:
    data, blocks = content(size), dict[bytes, bytes]()
    order: list[FileCid] = []

    def keep(cid: FileCid, block: bytes) -> None:
        assert cid.digest == hashlib.sha256(block).digest()
        blocks[bytes(cid)] = block
        order.append(cid)

    hasher = FileHasher(keep=keep, chunk_bytes=chunk, max_links=links)
    for start in range(0, size, step):
        hasher.update(data[start : start + step])
    root = hasher.finish()
    assert order[-1] == root
    depths: set[int] = set()

    def read(cid: bytes, depth: int, *, last: bool) -> tuple[bytes, int]:
        """The file below a node, and the bytes of all blocks below it."""
        block = blocks[cid]
        if cid[1] == FileCodec.RAW:
            depths.add(depth)
            assert len(block) == chunk or (last and len(block) <= chunk)
            return block, len(block)
        children, unixfs = decode_dag_pb(block)
        assert len(children) == links or (last and 1 <= len(children) <= links)
        assert unixfs is not None and unixfs.type == "file" and unixfs.data == b""
        parts, tree = [], len(block)
        for number, child in enumerate(children):
            part, below = read(child.cid, depth + 1, last=last and number == len(children) - 1)
            assert (child.name, child.size) == ("", below)
            parts.append(part)
            tree += below
        assert unixfs.blocksizes == [len(part) for part in parts]
        assert unixfs.filesize == sum(unixfs.blocksizes)
        return b"".join(parts), tree

    assert read(bytes(root), 0, last=True)[0] == data
    (depth,) = depths
    leaves = max(1, -(-size // chunk))
    assert links**depth >= leaves and (depth == 0 or links ** (depth - 1) < leaves)


def test_memory_does_not_grow_with_the_file() -> None:
    def peak(chunks: int) -> int:
        source, hasher = io.BytesIO(content(1 << 20)), FileHasher(chunk_bytes=4096)
        tracemalloc.start()
        for _ in range(chunks):
            source.seek(0)
            while part := source.read(4096):
                hasher.update(part)
        hasher.finish()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1) < 400_000
    assert peak(40) < 400_000, "10240 leaves under 59 nodes"


def test_a_file_cid_is_parsed_in_its_one_spelling_only() -> None:
    cid = FileCid.of(b"node", FileCodec.DAG_PB)
    assert FileCid.parse(str(cid)) == cid
    assert str(FileCid.of(b"leaf", FileCodec.RAW)) == str(Cid.of(b"leaf"))
    for wrong in (
        "",
        str(cid).upper(),
        str(cid) + "=",
        str(cid)[:-1],
        str(cid) + "\n",
        "z" + str(cid)[1:],
        str(Cid.of(b"record", Codec.DAG_CBOR)),
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        *(str(cid)[:-1] + letter for position, letter in enumerate(_BASE32) if position % 4),
    ):
        with pytest.raises(CidError):
            FileCid.parse(wrong)


def test_a_file_cid_names_no_block_of_the_network() -> None:
    with pytest.raises(CidError):
        Cid.parse(str(FileCid.of(b"node", FileCodec.DAG_PB)))


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1 << 35, "808080808001")]
)
def test_varints_are_the_shortest(value: int, encoded: str) -> None:
    assert varint(value).hex() == encoded
