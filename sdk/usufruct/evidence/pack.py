"""The file of an evidence: a CAR whose root names all parts. Reads strictly, believes nothing, asks nobody.

Every part is a block of its own, under its CID: what the index told, proofs of blocks and their receipts, of contracts and
their series of events, of changes of the validators, and the contents (manifests, policies, status lists, parameters). Whoever
cites the root's CID has cited every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.durable import new_file
from usufruct.errors import CarError, InputError, MalformedProofError, ManifestError
from usufruct.ledger.finality import FinalityProof, ReceiptProof, ValidatorChange
from usufruct.records import ArtifactId

EVIDENCE_TYPE: Final = "usufruct/evidence/1"
MAX_BYTES: Final = 256 * 1024 * 1024
"""All parts of one evidence together."""
MAX_TOLD_BYTES: Final = 16 * 1024 * 1024
"""What the index told, some thousand artifacts."""

Nodes = tuple[bytes, ...]
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptEvidence:
    """A transaction's events."""

    proof: ReceiptProof
    first_log: int
    """Number of the block's events before it, as the endpoint told; only to find the events that the index names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEvidence:
    """A block, what makes it final, and those of its receipts that matter."""

    header: bytes
    proof: FinalityProof | None
    """None where the chain knows no such proofs."""
    version: int
    """Which set of validators signed; 0 without a proof."""
    receipts: tuple[ReceiptEvidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEvidence:
    """What the two slots of a series held."""

    key: bytes
    length: Nodes
    head: Nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractEvidence:
    """A contract after the newest block."""

    name: str
    code: bytes
    account: Nodes
    series: tuple[SeriesEvidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that shows a lineage; nothing in it is believed before `check_evidence` has checked it."""

    network: bytes
    """Digest of the network's identity, see `network_digest`."""
    artifact_id: ArtifactId
    told: bytes
    """What a node's index told of the lineage, as JSON."""
    changes: tuple[ValidatorChange, ...]
    blocks: tuple[BlockEvidence, ...]
    """In ascending order; the last is the one after which the contracts are shown."""
    contracts: tuple[ContractEvidence, ...]
    contents: Mapping[Cid, bytes]
    payload: bytes | None = None
    """What the release's envelope seals, where its partner discloses that."""


def write_evidence(evidence: Evidence, path: Path) -> Cid:
    """Write a new file of mode 0600, whole or not at all; returns the CID of its root.

    Raises
    ------
    InputError
        If the file exists, or cannot be written.
    ManifestError
        If a part does not fit a block, or all of them are more than an evidence may hold.
    """
    parts: dict[Cid, bytes] = {}

    def add(record: object) -> Cid:
        data = dag.encode(record)
        cid = Cid.of(data, Codec.DAG_CBOR)
        parts[cid] = data
        return cid

    def add_bytes(data: bytes) -> list[Cid]:
        pieces = [data[at : at + MAX_BLOCK_BYTES] for at in range(0, len(data), MAX_BLOCK_BYTES)]
        cids = [Cid.of(piece, Codec.RAW) for piece in pieces]
        parts.update(zip(cids, pieces, strict=True))
        return cids

    root = add(
        {
            "type": EVIDENCE_TYPE,
            "network": evidence.network,
            "artifact": evidence.artifact_id,
            "told": add_bytes(evidence.told),
            "changes": [add(_change_record(change)) for change in evidence.changes],
            "blocks": [add(_block_record(block)) for block in evidence.blocks],
            "contracts": [
                add(
                    {
                        "name": contract.name,
                        "code": contract.code,
                        "account": list(contract.account),
                        "series": [
                            add({"key": one.key, "length": list(one.length), "head": list(one.head)})
                            for one in contract.series
                        ],
                    }
                )
                for contract in evidence.contracts
            ],
            "contents": list(evidence.contents),
            "payload": None if evidence.payload is None else add_bytes(evidence.payload),
        }
    )
    parts.update(evidence.contents)
    size = sum(len(data) for data in parts.values())
    if size > MAX_BYTES or len(evidence.told) > MAX_TOLD_BYTES:
        raise ManifestError(f"the lineage is too large for evidence: {size} bytes of proofs and contents")
    try:
        with new_file(path, InputError(f"{path} exists already", hint="choose another name")) as file:
            writer = CarWriter(file, [root])
            writer.add(root, parts.pop(root))
            for cid, data in parts.items():
                writer.add(cid, data)
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    return root


def read_evidence(path: Path) -> tuple[Cid, Evidence]:
    """The root's CID and the evidence in a file that may be hostile.

    Raises
    ------
    InputError
        If the file cannot be read.
    CarError, BlockMismatchError, ManifestError, MalformedProofError
        If it is not an evidence in the one form that it has, or of more than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            reader = CarReader(file)
            parts: dict[Cid, bytes] = {}
            size = 0
            for cid, data in reader:
                size += len(data)
                if size > MAX_BYTES or cid in parts:
                    raise CarError("the evidence is too large, or has a block twice")
                parts[cid] = data
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if len(reader.roots) != 1:
        raise CarError("an evidence has one root")
    return reader.roots[0], _Reading(parts).evidence(reader.roots[0])


class _Reading:
    def __init__(self, parts: Mapping[Cid, bytes]) -> None:
        self._parts = parts
        self._used: set[Cid] = set()

    def evidence(self, root: Cid) -> Evidence:
        record = self._record(root)
        if record.get("type") != EVIDENCE_TYPE:
            raise ManifestError(f"not evidence, or of another version than {EVIDENCE_TYPE}")
        names = {
            "type",
            "network",
            "artifact",
            "told",
            "changes",
            "blocks",
            "contracts",
            "contents",
            "payload",
        }
        _only(record, names, "the root of the evidence")
        found = Evidence(
            network=_bytes(record["network"], 32),
            artifact_id=ArtifactId(_bytes(record["artifact"], 32)),
            told=self._joined(record["told"], most=MAX_TOLD_BYTES),
            changes=self._all(record["changes"], _change),
            blocks=self._all(record["blocks"], _block),
            contracts=self._all(record["contracts"], self._contract),
            contents={cid: self._data(cid) for cid in _links(record["contents"])},
            payload=None if record["payload"] is None else self._joined(record["payload"]),
        )
        if len(self._parts) != len(self._used):
            raise CarError("the evidence holds blocks that its root does not name")
        return found

    def _all(self, links: object, parse: Callable[[dict[str, Any]], Part]) -> tuple[Part, ...]:
        return tuple(parse(self._record(cid)) for cid in _links(links))

    def _joined(self, links: object, *, most: int = MAX_BLOCK_BYTES) -> bytes:
        pieces = [self._data(cid) for cid in _links(links)]
        if sum(map(len, pieces)) > most:
            raise CarError(f"a part of the evidence has more than {most} bytes")
        return b"".join(pieces)

    def _contract(self, record: dict[str, Any]) -> ContractEvidence:
        _only(record, {"name", "code", "account", "series"}, "a contract")
        return ContractEvidence(
            name=_text(record["name"]),
            code=_bytes(record["code"]),
            account=_nodes(record["account"]),
            series=self._all(record["series"], _series),
        )

    def _record(self, cid: Cid) -> dict[str, Any]:
        return dag.decode_map(self._data(cid))

    def _data(self, cid: Cid) -> bytes:
        if cid not in self._parts:
            raise CarError(f"the evidence lacks {cid}")
        if cid in self._used:
            # However often it were named, it would be read as often.
            raise CarError(f"the evidence names {cid} twice")
        self._used.add(cid)
        return self._parts[cid]


def _change_record(change: ValidatorChange) -> dict[str, object]:
    return {
        "proof": change.proof.to_record(),
        "header": change.header,
        "receipt": _receipt_record(change.receipt),
        "log": change.log,
    }


def _change(record: dict[str, Any]) -> ValidatorChange:
    _only(record, {"proof", "header", "receipt", "log"}, "a change of the validators")
    return ValidatorChange(
        proof=FinalityProof.from_record(record["proof"]),
        header=_bytes(record["header"]),
        receipt=_receipt(record["receipt"]),
        log=_number(record["log"]),
    )


def _block_record(block: BlockEvidence) -> dict[str, object]:
    return {
        "header": block.header,
        "proof": None if block.proof is None else block.proof.to_record(),
        "version": block.version,
        "receipts": [
            {**_receipt_record(receipt.proof), "first_log": receipt.first_log} for receipt in block.receipts
        ],
    }


def _block(record: dict[str, Any]) -> BlockEvidence:
    _only(record, {"header", "proof", "version", "receipts"}, "a block")
    receipts = []
    for receipt in _list(record["receipts"]):
        _only(receipt, {"position", "nodes", "first_log"}, "a receipt")
        proof = _receipt({name: receipt[name] for name in ("position", "nodes")})
        receipts.append(ReceiptEvidence(proof=proof, first_log=_number(receipt["first_log"])))
    return BlockEvidence(
        header=_bytes(record["header"]),
        proof=None if record["proof"] is None else FinalityProof.from_record(record["proof"]),
        version=_number(record["version"]),
        receipts=tuple(receipts),
    )


def _series(record: dict[str, Any]) -> SeriesEvidence:
    _only(record, {"key", "length", "head"}, "a series")
    return SeriesEvidence(
        key=_bytes(record["key"]), length=_nodes(record["length"]), head=_nodes(record["head"])
    )


def _receipt_record(proof: ReceiptProof) -> dict[str, object]:
    return {"position": proof.position, "nodes": list(proof.nodes)}


def _receipt(record: object) -> ReceiptProof:
    found = _only(record, {"position", "nodes"}, "a receipt")
    return ReceiptProof(position=_number(found["position"]), nodes=_nodes(found["nodes"]))


def _only(record: object, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(record, dict) or record.keys() != names:
        raise MalformedProofError(f"{what} has the fields {', '.join(sorted(names))}")
    return record


def _list(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise MalformedProofError("the evidence has something else where a list belongs")
    return value


def _links(value: object) -> list[Cid]:
    links = [link for link in _list(value) if isinstance(link, Cid)]
    if len(links) != len(_list(value)):
        raise MalformedProofError("the evidence has something else where a CID belongs")
    return links


def _nodes(value: object) -> Nodes:
    return tuple(_bytes(node) for node in _list(value))


def _bytes(value: object, length: int | None = None) -> bytes:
    if not isinstance(value, bytes) or length not in (None, len(value)):
        raise MalformedProofError("the evidence has something else where bytes belong")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MalformedProofError("the evidence has something else where text belongs")
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise MalformedProofError("the evidence has something else where a number belongs")
    return value
