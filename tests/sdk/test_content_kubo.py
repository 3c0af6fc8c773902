"""The Kubo store beyond what every store promises: what daemons that are wrong, slow, old or lying do to it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from kubo_fixture import Kubo
from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec, dag
from usufruct.content.kubo import Credentials, KuboBlockStore, KuboRpc
from usufruct.content.kubo.rpc import _JSON_BYTES
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    KuboError,
    KuboRefusedError,
    KuboUnreachableError,
    KuboVersionError,
    StoreFullError,
)

SECRET = Credentials("node", "a secret that nobody guesses")
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def impostor(answer: Answer) -> Iterator[KuboRpc]:
    """Something else than Kubo at Kubo's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    rpc = KuboRpc(f"/ip4/127.0.0.1/tcp/{server.server_port}", SECRET, deadline_s=2)
    try:
        yield rpc
    finally:
        rpc.close()
        server.shutdown()
        thread.join()
        server.server_close()


def says(body: bytes, status: int = 200) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_a_block_that_kubo_swaps_or_grows_is_never_handed_out(tmp_path: Path) -> None:
    cid = Cid.of(b"right")
    replies = {
        "/version": json.dumps({"Version": "0.39.0"}).encode(),
        "/block/put": json.dumps({"Key": str(cid), "Size": 5}).encode(),
        "/pin/add": json.dumps({"Pins": [str(cid)]}).encode(),
        "/block/get": b"wrong",
    }

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0].removeprefix("/api/v0")
        says(replies[path])(handler)

    with impostor(answer) as rpc, KuboBlockStore(tmp_path / "kubo", rpc) as store:
        assert store.put(b"right") == cid
        for lie in (b"wrong", b"righ", b"right!", b""):
            replies["/block/get"] = lie
            with pytest.raises(BlockMismatchError):
                store.get(cid)
        replies["/block/get"] = b"right"
        assert store.get(cid) == b"right"


def test_kubo_that_stores_another_block_than_it_was_given_is_caught(tmp_path: Path) -> None:
    other = json.dumps({"Key": str(Cid.of(b"other")), "Size": 5, "Version": "0.39.0"}).encode()
    with impostor(says(other)) as rpc, KuboBlockStore(tmp_path / "kubo", rpc) as store:
        with pytest.raises(BlockMismatchError):
            store.put(b"right")
        assert list(store.cids()) == []


def test_an_answer_without_end_is_cut_off_at_the_blocks_length() -> None:
    sent = 0

    def flood(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        try:
            while sent < 1 << 30:
                handler.wfile.write(bytes(1 << 16))
                sent += 1 << 16
        except OSError:
            return

    with impostor(flood) as rpc:
        assert len(rpc.get_block(Cid.of(b""), 1000)) == 1001
        assert sent < 64 << 20
        with pytest.raises(KuboError, match="no Kubo"):
            list(rpc.pinned("ours"))
    assert sent < 128 << 20


@pytest.mark.parametrize("dribbles", [False, True])
def test_an_answer_that_does_not_end_in_time_is_given_up(dribbles: bool) -> None:
    over = threading.Event()

    def dawdle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not over.wait(0.05):
            if dribbles:
                try:
                    handler.wfile.write(b"x")
                    handler.wfile.flush()
                except OSError:
                    return

    with impostor(dawdle) as rpc:
        with pytest.raises(KuboUnreachableError):
            rpc.get_block(Cid.of(b""), MAX_BLOCK_BYTES)
        with pytest.raises(KuboUnreachableError):
            list(rpc.pinned("ours"))
        over.set()


def test_nobody_at_the_address_is_unreachable_and_says_what_to_start() -> None:
    rpc = KuboRpc("/ip4/127.0.0.1/tcp/1", SECRET)
    with pytest.raises(KuboUnreachableError) as caught:
        rpc.check()
    assert "ipfs daemon" in caught.value.hint
    assert SECRET.secret not in str(caught.value)


@pytest.mark.parametrize("version", ["0.22.0", "0.36.9", "", "nonsense"])
def test_a_kubo_that_cannot_be_private_is_too_old(version: str) -> None:
    with impostor(says(json.dumps({"Version": version}).encode())) as rpc:
        with pytest.raises(KuboVersionError, match=r"older than 0\.37"):
            rpc.check()


@pytest.mark.parametrize("body", [b"<html>", b"[1, 2]", b"1", b'{"a": 1}{"b": 2}', b""])
def test_something_else_than_kubo_is_told_apart(body: bytes) -> None:
    with impostor(says(body)) as rpc, pytest.raises(KuboError):
        rpc.check()


@pytest.mark.parametrize(
    "body", [b"<html>", b"[1, 2]\n", b"1", b'{"a": 1}{"b": 2}', b'{"Cid": "b', b"[" * 60_000]
)
def test_a_list_of_pins_that_is_none_is_told_apart(body: bytes) -> None:
    with impostor(says(body)) as rpc, pytest.raises(KuboError, match="no Kubo"):
        list(rpc.pinned("ours"))


def test_a_list_of_pins_may_be_longer_than_any_other_answer() -> None:
    others = json.dumps({"Cid": str(Cid.of(b"other")), "Type": "direct", "Name": "ours, nearly" * 80}) + "\n"
    ours = json.dumps({"Cid": str(Cid.of(b"ours")), "Type": "direct", "Name": "ours"})
    with impostor(says(others.encode() * (_JSON_BYTES // len(others) + 1) + ours.encode())) as rpc:
        assert list(rpc.pinned("ours")) == [Cid.of(b"ours")]


def test_an_error_in_a_list_of_pins_comes_after_what_was_listed() -> None:
    pin = json.dumps({"Cid": str(Cid.of(b"ours")), "Type": "direct", "Name": "ours"})
    error = json.dumps({"Message": "the datastore is closed", "Code": 0, "Type": "error"})
    with impostor(says(f"{pin}\n{error}\n".encode())) as rpc:
        pins = rpc.pinned("ours")
        assert next(pins) == Cid.of(b"ours")
        with pytest.raises(KuboError, match="the datastore is closed"):
            next(pins)


def test_a_full_disk_of_kubo_is_a_full_store() -> None:
    body = json.dumps({"Message": "write /blocks/x: no space left on device", "Code": 0, "Type": "error"})
    with impostor(says(body.encode(), 500)) as rpc, pytest.raises(StoreFullError):
        rpc.put_blocks([b"data"], Codec.RAW)


def test_a_redirect_takes_the_credentials_nowhere() -> None:
    with impostor(says(b"")) as elsewhere:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(307)
            handler.send_header("Location", f"http://127.0.0.1:{elsewhere.address.rsplit('/', 1)[1]}/")
            handler.end_headers()

        with impostor(redirect) as rpc, pytest.raises(KuboUnreachableError):
            rpc.check()


def test_a_wrong_secret_is_refused_and_not_shown(kubo: Kubo) -> None:
    rpc = KuboRpc(kubo.address, Credentials("node", "sixteen or more wrong"))
    with pytest.raises(KuboRefusedError) as caught:
        rpc.check()
    rpc.close()
    assert "sixteen or more wrong" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "address",
    ["/ip4/10.0.0.1/tcp/5001", "/dns/kubo.example/tcp/5001", "/ip4/127.0.0.1/udp/5001", "127.0.0.1:5001", ""],
)
def test_an_address_that_would_carry_the_secret_in_the_clear_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError):
        KuboRpc(address, SECRET)


def test_credentials_are_read_from_a_file_of_the_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "kubo.token"
    file.write_text("node:a secret that nobody guesses\n")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="by others"):
        Credentials.load(file)
    file.chmod(0o600)
    assert Credentials.load(file) == SECRET
    assert SECRET.secret not in repr(SECRET)
    for wrong in (
        "",
        "node",
        ":secretsecretsecret",
        "node:short",
        "node:" + "x" * 2000,
        "node:sixteen or more\nx",
    ):
        file.write_text(wrong)
        with pytest.raises(ConfigurationError):
            Credentials.load(file)


@pytest.mark.parametrize("size_bytes", [0, 1, (1 << 18) - 1, 1 << 18])
def test_kubo_adds_a_file_of_one_chunk_under_the_cid_that_we_give_its_bytes(
    kubo: Kubo, size_bytes: int
) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    assert kubo.ipfs("add", "--quieter", stdin=data).decode().strip() == str(Cid.of(data))


def test_a_record_whose_links_are_elsewhere_is_stored_without_asking_for_them(kubo: Kubo) -> None:
    record = dag.encode({"links": [Cid.of(b"not here"), Cid.of(b"nor here")]})
    with kubo.open() as store:
        cid = store.put(record, Codec.DAG_CBOR, pin="bundle")
        assert store.get(cid) == record
        kubo.ipfs("repo", "gc")
        assert store.get(cid) == record


def test_kubos_own_collector_takes_nothing_of_ours(kubo: Kubo) -> None:
    with kubo.open() as store:
        loose, kept = store.put(b"loose"), store.put(b"kept", pin="bundle")
        kubo.ipfs("repo", "gc")
        assert store.get(loose) == b"loose"
        assert store.get(kept) == b"kept"


def test_gc_leaves_what_an_operator_pinned(kubo: Kubo) -> None:
    foreign = kubo.ipfs("block", "put", "--pin=true", stdin=b"of the operator").decode().strip()
    shared = kubo.ipfs("block", "put", "--pin=true", stdin=b"of both").decode().strip()
    with kubo.open() as store:
        assert str(store.put(b"of both")) == shared
        assert store.gc() == 1
    assert {foreign, shared} == {str(cid) for cid in kubo.at_rest()}


def test_what_a_crash_left_in_kubo_goes_with_the_next_gc(kubo: Kubo) -> None:
    with kubo.open() as store:
        kept = store.put(b"kept", pin="bundle")
        name = store._name  # type: ignore[attr-defined]
        rpc = kubo.rpc()
        rpc.put_blocks([b"sent, not recorded"], Codec.RAW)
        rpc.pin([Cid.of(b"sent, not recorded")], name)
        rpc.close()
        assert len(kubo.at_rest()) == 2
        assert store.gc() == 0
        assert kubo.at_rest() == {kept}


def test_what_a_crash_left_is_found_among_more_pins_than_another_answer_may_hold(
    kubo: Kubo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kubo.open() as store:
        kept = store.put_many([b"%d" % n for n in range(400)], pin="bundle")
        rpc = kubo.rpc()
        rpc.put_blocks([b"sent, not recorded"], Codec.RAW)
        rpc.pin([Cid.of(b"sent, not recorded")], store._name)  # type: ignore[attr-defined]
        rpc.close()
        monkeypatch.setattr("usufruct.content.kubo.rpc._JSON_BYTES", 20_000)
        assert store.gc() == 0
    assert kubo.at_rest() == set(kept)


def test_a_store_of_blocks_is_put_in_batches_and_read_by_threads(kubo: Kubo) -> None:
    blocks = [random.Random(n).randbytes(1 << 20) for n in range(20)]
    with kubo.open() as store:
        cids = store.put_many(blocks, pin="bundle")
        found: dict[int, bytes] = {}

        def read(number: int) -> None:
            for index in range(number, 20, 4):
                found[index] = store.get(cids[index])

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[index] for index in range(20)] == blocks


def test_a_block_that_was_never_put_is_not_looked_for_elsewhere(kubo: Kubo) -> None:
    rpc = kubo.rpc(deadline_s=5)
    with pytest.raises(BlockNotFoundError):
        rpc.get_block(Cid.of(b"nowhere"), 100)
    rpc.close()


def connections_to(rpc: KuboRpc) -> int:
    """How many connections this process has to the daemon, live or left lying."""
    port = int(rpc.address.rsplit("/", 1)[1])
    found = psutil.Process().net_connections("tcp4")
    return sum(1 for one in found if one.raddr and one.raddr.port == port)


def in_a_thread(work: Callable[[], object]) -> None:
    """Do something in a new thread; what goes wrong there goes wrong here."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def test_threads_that_come_and_go_share_connections(kubo: Kubo) -> None:
    rpc = kubo.rpc()

    def ask_in_vain() -> None:
        with pytest.raises(BlockNotFoundError):
            rpc.get_block(Cid.of(b"nowhere"), 100)

    for _ in range(10):
        in_a_thread(rpc.check)
        in_a_thread(ask_in_vain)
    assert connections_to(rpc) == 1
    rpc.close()
    assert connections_to(rpc) == 0
    with pytest.raises(KuboError, match="closed"):
        rpc.check()


def test_calls_at_the_same_time_share_no_connection(kubo: Kubo) -> None:
    rpc = kubo.rpc()
    cids = [Cid.of(block) for block in (b"one", b"two", b"three")]
    rpc.put_blocks([b"one", b"two", b"three"], Codec.RAW)
    rpc.pin(cids, "ours")
    listed = []
    for cid in rpc.pinned("ours"):
        in_a_thread(rpc.check)
        listed.append((cid, rpc.get_block(cid, 5)))
    assert dict(listed) == dict(zip(cids, (b"one", b"two", b"three"), strict=True))
    rpc.close()
    assert connections_to(rpc) == 0


def test_a_connection_that_was_in_use_when_the_store_closed_does_not_stay(kubo: Kubo) -> None:
    rpc = kubo.rpc()
    rpc.put_blocks([b"one", b"two"], Codec.RAW)
    rpc.pin([Cid.of(b"one"), Cid.of(b"two")], "ours")
    pins = rpc.pinned("ours")
    listed = {next(pins)}
    rpc.close()
    assert listed | set(pins) == {Cid.of(b"one"), Cid.of(b"two")}
    assert connections_to(rpc) == 0


def test_a_connection_that_broke_is_replaced() -> None:
    says_all = says(json.dumps({"Version": "0.39.0"}).encode())
    calls = 0

    def breaks_off(handler: BaseHTTPRequestHandler) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            says_all(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")

    with impostor(breaks_off) as rpc:
        for _ in range(3):
            with pytest.raises(KuboUnreachableError):
                rpc.check()
            assert connections_to(rpc) == 0
            assert rpc.check() == "0.39.0"
