"""Takes records of the node's own organisation into the store: parses each strictly, pins it, notes what it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from usufruct.consent import ConsentStatus
from usufruct.content import BlockStore, Cid, Codec, dag
from usufruct.errors import BlockNotFoundError, InputError, ManifestError
from usufruct.job import JobParameters
from usufruct.keys.he_keys import check_key_domain_record
from usufruct.publish import read_manifest
from usufruct.register import PUBLIC_TYPE, Policy
from usufruct_node.holdings import Holdings, Purpose

Record = Mapping[str, object]

STAGED = "staged"
"""Pin of blocks that were handed over but that no record links yet."""


def accept_record(store: BlockStore, holdings: Holdings, kind: str, data: bytes) -> Cid:
    """Keep a record of a known kind; a bundle takes its staged blocks with it.

    Raises
    ------
    InputError
        If the kind is unknown, or a block that a bundle links was not staged.
    IntegrityError
        If the record is malformed; nothing was kept.
    """
    if kind not in _CHECKS:
        raise InputError(f"{kind!r} is no kind of record", hint=f"kinds are {', '.join(_CHECKS)}")
    record = dag.decode_map(data)
    _CHECKS[kind](record)
    cid = Cid.of(data, Codec.DAG_CBOR)
    if kind == "bundle":
        _adopt_blocks(store, holdings, cid, read_manifest(record).blocks)
    store.put(data, Codec.DAG_CBOR, pin=kind)
    holdings.add([cid], Purpose.PARAMETERS if kind == "parameters" else Purpose.CATALOGUE)
    return cid


def _adopt_blocks(store: BlockStore, holdings: Holdings, bundle: Cid, blocks: tuple[Cid, ...]) -> None:
    pin = f"bundle:{bundle.digest.hex()}"
    absent = [block for block in blocks if not store.has(block)]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(blocks)} blocks of the bundle were not staged, first {absent[0]}"
        )
    try:
        for block in blocks:
            store.pin(block, pin)
    except BlockNotFoundError as exc:
        raise InputError(f"a block of the bundle was collected while it was taken in: {exc}") from exc
    holdings.add(blocks, Purpose.BUNDLE, bundle.digest)
    for block in blocks:
        store.unpin(block, STAGED)


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
