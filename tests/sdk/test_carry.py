"""CAR archives of bundles: what they hold, what IPFS makes of them, and every way in which a hostile one is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_fixture import ROWS, SCOPE, SmallBundle
from kubo_fixture import Kubo
from usufruct import carry
from usufruct.carry import Archive, CarDestination, export_bundle, import_bundle
from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec, EmbeddedBlockStore, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.content.unixfs import FileHasher
from usufruct.errors import ArchiveMismatchError, BlockMismatchError, CarError, InputError, IntegrityError
from usufruct.publish import publish_bundle, read_manifest
from usufruct.seal import seal_features
from usufruct_node.holdings import Holdings
from usufruct_node.intake import STAGED, accept_record


class Intake:
    """A node's store and intake, without the wire before them."""

    def __init__(self, root: Path) -> None:
        self.store = EmbeddedBlockStore(root / "blocks")
        self.holdings = Holdings(root / "node.db")

    def stage(self, blocks: Iterable[bytes]) -> Iterator[Cid]:
        for block in blocks:
            yield self.store.put(block, pin=STAGED)

    def put_record(self, kind: str, record: object) -> Cid:
        return accept_record(self.store, self.holdings, kind, dag.encode(record))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Intake]:
    made = Intake(tmp_path)
    yield made
    made.store.close()
    made.holdings.close()


def archive(roots: list[Cid], blocks: list[tuple[Cid, bytes]]) -> bytes:
    file = io.BytesIO()
    writer = CarWriter(file, roots)
    for cid, data in blocks:
        writer.add(cid, data)
    return file.getvalue()


def parts(bundle: SmallBundle) -> tuple[tuple[Cid, bytes], list[tuple[Cid, bytes]]]:
    manifest = dag.encode(bundle.record)
    return (Cid.of(manifest, Codec.DAG_CBOR), manifest), [(Cid.of(block), block) for block in bundle.blocks]


def test_a_bundle_sealed_into_a_file_arrives_at_the_node_as_if_published_there(
    bundle: SmallBundle, node: Intake, tmp_path: Path
) -> None:
    file = tmp_path / "bundle.car"
    sealed = seal_features(bundle.features, bundle.secret)
    published = publish_bundle(sealed, CarDestination(file), scope=SCOPE, row_subjects=range(ROWS))
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    taken = import_bundle(file, node)
    assert (taken.cid, taken.size_bytes) == (published.cid, published.size_bytes)
    assert node.store.pins(taken.cid) == {"bundle"}
    for cid in taken.manifest.blocks:
        assert node.store.pins(cid) == {f"bundle:{taken.cid.digest.hex()}"}
    copy = tmp_path / "copy.car"
    assert export_bundle(taken.cid, node.store.get, copy).size_bytes == file.stat().st_size
    assert copy.read_bytes() == file.read_bytes()


def test_nothing_is_written_over(bundle: SmallBundle, node: Intake, tmp_path: Path) -> None:
    taken = tmp_path / "taken.car"
    taken.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists"):
        CarDestination(taken)
    with pytest.raises(InputError, match="exists"):
        export_bundle(Cid.of(b""), node.store.get, taken)
    assert taken.read_bytes() == b"precious"


def test_an_export_that_fails_leaves_no_file(bundle: SmallBundle, node: Intake, tmp_path: Path) -> None:
    (cid, manifest), _ = parts(bundle)
    with pytest.raises(BlockMismatchError):
        export_bundle(cid, lambda asked: manifest if asked == cid else b"a lie", tmp_path / "bundle.car")
    assert list(tmp_path.glob("*.car*")) == []


def sealed_into(bundle: SmallBundle, file: Path) -> Archive:
    destination = CarDestination(file)
    sealed = seal_features(bundle.features, bundle.secret)
    publish_bundle(sealed, destination, scope=SCOPE, row_subjects=range(ROWS))
    return destination.archive


def test_sealing_and_exporting_name_the_file_that_they_wrote(
    bundle: SmallBundle, node: Intake, tmp_path: Path
) -> None:
    file, copy = tmp_path / "bundle.car", tmp_path / "copy.car"
    archive = sealed_into(bundle, file)
    hasher = FileHasher()
    hasher.update(file.read_bytes())
    assert archive == Archive(hasher.finish(), file.stat().st_size)
    taken = import_bundle(file, node, expected=archive.cid)
    assert export_bundle(taken.cid, node.store.get, copy) == archive


def test_an_unfinished_file_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="manifest is missing"):
        _ = CarDestination(tmp_path / "bundle.car").archive


def test_another_file_than_the_expected_one_is_refused_before_the_node_gets_anything(
    bundle: SmallBundle, node: Intake, tmp_path: Path
) -> None:
    file, other = tmp_path / "bundle.car", tmp_path / "other.car"
    archive, foreign = sealed_into(bundle, file), sealed_into(bundle, other)
    with pytest.raises(ArchiveMismatchError) as caught:
        import_bundle(other, node, expected=archive.cid)
    assert (caught.value.expected, caught.value.actual) == (str(archive.cid), str(foreign.cid))
    assert list(node.store.cids()) == []
    # Positive control: it is a bundle like any other, and its name alone is wrong.
    import_bundle(other, node, expected=foreign.cid)


def test_a_file_that_changes_after_it_was_checked_is_refused(
    bundle: SmallBundle, node: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "bundle.car", tmp_path / "other.car"
    archive, foreign = sealed_into(bundle, file), sealed_into(bundle, other)
    check = carry._check_whole

    def check_then_swap(path: Path, *rest: Any) -> None:
        check(path, *rest)
        with path.open("r+b") as swapped:
            swapped.write(other.read_bytes())
            swapped.truncate()

    with monkeypatch.context() as patch:
        patch.setattr(carry, "_check_whole", check_then_swap)
        with pytest.raises(ArchiveMismatchError) as caught:
            import_bundle(file, node, expected=archive.cid)
    assert caught.value.actual == str(foreign.cid)
    assert node.store.reasons("bundle") == []
    # Positive control: what it changed into would be taken in.
    import_bundle(file, node)


def test_a_file_that_grew_behind_the_last_block_is_another_file(
    bundle: SmallBundle, node: Intake, tmp_path: Path
) -> None:
    file = tmp_path / "bundle.car"
    archive = sealed_into(bundle, file)
    with file.open("ab") as more:
        more.write(b"\0")
    with pytest.raises(ArchiveMismatchError):
        import_bundle(file, node, expected=archive.cid)
    assert list(node.store.cids()) == []


def test_what_can_be_read_once_only_is_not_checked_against_a_cid(
    bundle: SmallBundle, node: Intake, tmp_path: Path
) -> None:
    file, pipe = tmp_path / "bundle.car", tmp_path / "pipe"
    archive = sealed_into(bundle, file)
    os.mkfifo(pipe)

    def feed() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(file.read_bytes())

    for expected in (archive.cid, None):
        thread = Thread(target=feed, daemon=True)
        thread.start()
        if expected is None:
            import_bundle(pipe, node)
        else:
            with pytest.raises(InputError, match="twice"):
                import_bundle(pipe, node, expected=expected)
            assert list(node.store.cids()) == []
        thread.join(10)
        assert not thread.is_alive()


def test_a_directory_or_nothing_is_no_archive(node: Intake, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="cannot be read"):
            import_bundle(path, node)


@pytest.mark.parametrize(
    "fault",
    [
        "missing",
        "extra",
        "swapped",
        "doubled",
        "foreign root",
        "two roots",
        "no manifest",
        "not a bundle",
        "empty",
    ],
)
def test_an_archive_that_is_not_exactly_one_bundle_is_refused(
    bundle: SmallBundle, node: Intake, tmp_path: Path, fault: str
) -> None:
    head, blocks = parts(bundle)
    other = (Cid.of(b"other"), b"other")
    record = dag.encode({"type": "something"})
    faulty = {
        "missing": ([head[0]], [head, *blocks[:-1]]),
        "extra": ([head[0]], [head, *blocks, other]),
        "swapped": ([head[0]], [head, *blocks[::-1]]),
        "doubled": ([head[0]], [head, blocks[0], *blocks]),
        "foreign root": ([other[0]], [head, *blocks]),
        "two roots": ([head[0], other[0]], [head, *blocks]),
        "no manifest": ([head[0]], blocks),
        "not a bundle": ([c := Cid.of(record, Codec.DAG_CBOR)], [(c, record)]),
        "empty": ([head[0]], []),
    }
    file = tmp_path / "bundle.car"
    file.write_bytes(archive(*faulty[fault]))
    with pytest.raises(IntegrityError):
        import_bundle(file, node)
    assert node.store.reasons("bundle") == []


def test_every_flipped_byte_and_every_cut_of_an_archive_is_refused(
    bundle: SmallBundle, node: Intake, tmp_path: Path
) -> None:
    head, blocks = parts(bundle)
    whole = archive([head[0]], [head, *blocks])
    file = tmp_path / "bundle.car"
    places = [*range(150), *range(150, len(whole), len(whole) // 40), len(whole) - 1]
    for place in places:
        for faulty in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:place]):
            file.write_bytes(faulty)
            with pytest.raises(IntegrityError):
                import_bundle(file, node)
    assert node.store.reasons("bundle") == []
    file.write_bytes(whole)
    import_bundle(file, node)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x80",
        b"\xff" * 10,
        b"\x80\x00",
        b"\xff\xff\xff\x7f",
        b"\x81\x00\x00",
        bytes([17]) + b"\xa1gversion\x02eroots",
    ],
)
def test_a_malformed_head_is_refused_without_reading_what_it_announces(head: bytes) -> None:
    with pytest.raises(CarError):
        CarReader(io.BytesIO(head))


def test_a_section_larger_than_a_block_is_refused_before_it_is_read() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            self.largest = max(self.largest, size or 0)
            return super().read(size)

    start = archive([Cid.of(b"x")], [])
    for announced in (b"\xff\xff\xff\xff\x7f", (MAX_BLOCK_BYTES + 37).to_bytes(3, "little"), b"\x23"):
        file = Counting(start + announced + bytes(100))
        with pytest.raises(CarError):
            list(CarReader(file))
        assert file.largest <= 2048


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_what_is_written_is_read(blocks: list[bytes]) -> None:
    named = [(Cid.of(block), block) for block in blocks]
    reader = CarReader(io.BytesIO(archive([Cid.of(b"root")], named)))
    assert reader.roots == (Cid.of(b"root"),)
    assert list(reader) == named


@given(st.binary(max_size=400))
def test_rubbish_is_refused_or_means_the_same_when_written_again(data: bytes) -> None:
    try:
        reader = CarReader(io.BytesIO(data))
        blocks = list(reader)
    except IntegrityError:
        return
    assert archive(list(reader.roots), blocks) == data


def test_kubo_gives_the_archive_the_cid_that_we_print(
    bundle: SmallBundle, kubo: Kubo, tmp_path: Path
) -> None:
    file = tmp_path / "bundle.car"
    archive = sealed_into(bundle, file)
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text("utf-8")
    (shown,) = re.findall(r"^ipfs (add .*) clinic\.car$", page, re.MULTILINE)
    assert kubo.ipfs(*shlex.split(shown), str(file)).decode().strip() == str(archive.cid)


def test_kubo_imports_the_archive_and_walks_the_manifest(
    bundle: SmallBundle, kubo: Kubo, tmp_path: Path
) -> None:
    file = tmp_path / "bundle.car"
    sealed = seal_features(bundle.features, bundle.secret)
    published = publish_bundle(sealed, CarDestination(file), scope=SCOPE, row_subjects=range(ROWS))
    said = kubo.ipfs("dag", "import", "--stats", str(file)).decode()
    assert str(published.cid) in said
    assert {published.cid.digest, *(cid.digest for cid in published.manifest.blocks)} == {
        cid.digest for cid in kubo.at_rest()
    }
    walked = json.loads(kubo.ipfs("dag", "get", str(published.cid)))
    assert walked["type"] == "usufruct/bundle/1"
    assert [link["/"] for link in walked["blocks"]] == [str(cid) for cid in published.manifest.blocks]
    first = kubo.ipfs("block", "get", f"{published.cid}/blocks/0")
    published.manifest.blocks[0].check(first)


def test_an_archive_that_kubo_exports_is_imported(
    bundle: SmallBundle, kubo: Kubo, node: Intake, tmp_path: Path
) -> None:
    head, blocks = parts(bundle)
    with kubo.open() as store:
        store.put(head[1], Codec.DAG_CBOR, pin="bundle")
        store.put_many([data for _, data in blocks], pin="bundle")
        file = tmp_path / "kubo.car"
        file.write_bytes(kubo.ipfs("dag", "export", "--progress=false", str(head[0])))
    taken = import_bundle(file, node)
    assert taken.cid == head[0]
    assert read_manifest(bundle.record).blocks == taken.manifest.blocks
