"""Takes records of the node's own organisation into the store: parses each strictly, pins it, notes what it is for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from usufruct.consent import ConsentStatus
from usufruct.content import BlockStore, Cid, Codec, dag
from usufruct.errors import InputError, ManifestError
from usufruct.job import JobParameters
from usufruct.keys.he_keys import check_key_domain_record
from usufruct.publish import read_manifest
from usufruct.register import PUBLIC_TYPE, Policy
from usufruct_node.holdings import BUNDLE_PIN, Holdings, Purpose, bundle_pin

Record = Mapping[str, object]

STAGED = "staged"
"""Pin of blocks that were handed over but that no record links yet."""

_IDLE_SECONDS = 3600.0


class Uploads:
    """Blocks that are handed over before the record that links them."""

    def __init__(self, store: BlockStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._last = clock()

    def stage(self, blocks: Sequence[bytes]) -> None:
        """Keep raw blocks until a record links them, or nothing has been staged for an hour."""
        with self._lock:
            self._last = self._clock()
        self._store.put_many(blocks, Codec.RAW, pin=STAGED)

    def forget(self) -> None:
        """Let everything go that no record links: nobody goes on with what an earlier run of the node was given."""
        with self._lock:
            self._store.unpin_all(STAGED)

    def forget_given_up(self) -> None:
        """Let go of what was staged by uploads that broke off."""
        with self._lock:
            if self._clock() - self._last >= _IDLE_SECONDS:
                self._store.unpin_all(STAGED)


def accept_record(store: BlockStore, holdings: Holdings, kind: str, data: bytes) -> Cid:
    """Keep a record of a known kind; a bundle takes its staged blocks with it. All of it, or nothing.

    Raises
    ------
    InputError
        If the kind is unknown, or a block that a bundle links was not staged.
    IntegrityError
        If the record is malformed.
    StoreFullError, ContentError
    """
    if kind not in _CHECKS:
        raise InputError(f"{kind!r} is no kind of record", hint=f"kinds are {', '.join(_CHECKS)}")
    record = dag.decode_map(data)
    _CHECKS[kind](record)
    cid = Cid.of(data, Codec.DAG_CBOR)
    blocks = read_manifest(record).blocks if kind == "bundle" else ()
    _require_staged(store, blocks)
    with ExitStack() as undo:
        if kind not in store.pins(cid):
            undo.callback(store.unpin, cid, kind)
        # Before its blocks: of a bundle that a kill cuts off here the manifest stays, and the blocks go as staged ones do.
        store.put(data, Codec.DAG_CBOR, pin=kind)
        _adopt_blocks(store, holdings, cid, blocks, undo)
        holdings.add([cid], Purpose.PARAMETERS if kind == "parameters" else Purpose.CATALOGUE)
        undo.pop_all()
    store.unpin_many(blocks, STAGED)
    return cid


def forget_unnoted(store: BlockStore, holdings: Holdings, is_registered: Callable[[bytes], bool]) -> None:
    """Let go of blocks that a kill left pinned for a bundle and noted for nobody.

    Parameters
    ----------
    is_registered :
        Whether a bundle with a manifest of this digest is registered: it keeps its blocks, and what is noted of them is put
        right elsewhere.
    """
    for reason in store.reasons(BUNDLE_PIN):
        digest = bytes.fromhex(reason.removeprefix(BUNDLE_PIN))
        if not holdings.cids(Purpose.BUNDLE, digest) and not is_registered(digest):
            store.unpin_all(reason)


def _require_staged(store: BlockStore, blocks: tuple[Cid, ...]) -> None:
    absent = [block for block in blocks if not store.has(block)]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(blocks)} blocks of the bundle were not staged, first {absent[0]}"
        )


def _adopt_blocks(
    store: BlockStore, holdings: Holdings, bundle: Cid, blocks: tuple[Cid, ...], undo: ExitStack
) -> None:
    """Keep a bundle's blocks for it; `undo` gets what lets them go, unless an earlier handing over keeps them already."""
    pin = bundle_pin(bundle.digest)
    if blocks and not holdings.cids(Purpose.BUNDLE, bundle.digest):
        undo.callback(holdings.drop, Purpose.BUNDLE, bundle.digest)
        undo.callback(store.unpin_all, pin)
    if absent := store.pin_many(blocks, pin):
        raise InputError(f"a block of the bundle was collected while it was taken in: {absent[0]}")
    holdings.add(blocks, Purpose.BUNDLE, bundle.digest)


def _check_public(record: Record) -> None:
    if record.get("type") != PUBLIC_TYPE:
        raise ManifestError("not a key domain's public record")
    check_key_domain_record({key: value for key, value in record.items() if key != "type"})


_CHECKS: dict[str, Callable[[Record], object]] = {
    "bundle": read_manifest,
    "policy": Policy.from_record,
    "status": ConsentStatus.from_record,
    "parameters": JobParameters.from_record,
    "public": _check_public,
}
