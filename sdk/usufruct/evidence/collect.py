"""Collects the evidence of a lineage: walks it, and asks for a proof of everything that the walk rested on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from usufruct.checked_events import CheckedEvents
from usufruct.content import Cid
from usufruct.errors import InputError, LedgerError
from usufruct.evidence.check import check_evidence, network_digest
from usufruct.evidence.pack import (
    BlockEvidence,
    ContractEvidence,
    Evidence,
    ReceiptEvidence,
    SeriesEvidence,
)
from usufruct.ledger import Ledger
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.finality import (
    ValidatorChange,
    ValidatorVersion,
    encode_receipt,
    fetch_header,
    prove_final,
    prove_receipt,
    trace_validators,
)
from usufruct.ledger.finality.state import fetch_state, series_slots
from usufruct.ledger.network import Network
from usufruct.lineage import Progress, Source, lineage_of
from usufruct.records import ArtifactId, ArtifactKind, JobId, LedgerEvent


def collect_evidence(
    ledger: Ledger,
    node: Source,
    artifact_id: ArtifactId,
    *,
    payload_of: Callable[[JobId], bytes] | None = None,
    progress: Progress | None = None,
) -> Evidence:
    """Evidence of an artifact's lineage as of the newest final block, checked as its readers will check it.

    Parameters
    ----------
    payload_of :
        Opens the release of a job, whose values then become part of the evidence.

    Raises
    ------
    InputError
        If there is something to be opened, but the artifact is no release.
    MissingEventError
        If the ledger went on meanwhile; ask again.
    ProofUnavailableError, LedgerError
        If the endpoints do not give the proofs.
    VerificationError, ContentError
        As `lineage_of`.
    """
    tell = progress or (lambda _: None)
    recorder = _Recorder(node)
    events = CheckedEvents(ledger)
    root = lineage_of(events, recorder, artifact_id, ciphertexts=False, progress=progress).root
    payload = None
    if payload_of is not None:
        if root.kind != ArtifactKind.RELEASE.name or root.job is None:
            raise InputError(
                f"a {root.kind.lower()} has no released values", hint="name the release, or its job"
            )
        payload = payload_of(JobId(bytes.fromhex(root.job["job_id"])))
    newest = ledger.finalised().number
    versions: Sequence[ValidatorVersion] = ()
    changes: Sequence[ValidatorChange] = ()
    if ledger.network.chain.proof is not None:
        versions, changes = trace_validators(ledger.endpoint, ledger.network)
    of_block: dict[int, set[bytes]] = defaultdict(set)
    for event in _all(events.known.values()):
        of_block[event.block_number].add(event.transaction_hash)
    of_block[newest] |= set()
    blocks = []
    for number, transactions in sorted(of_block.items()):
        tell(f"block {number}")
        blocks.append(_block(ledger.endpoint, ledger.network, versions, number, transactions))
    keys: dict[str, list[bytes]] = defaultdict(list)
    for contract, key in events.known:
        keys[contract].append(key)
    contracts = []
    for contract, wanted in sorted(keys.items()):
        tell(contract)
        contracts.append(_contract(ledger.endpoint, ledger.network, contract, wanted, newest))
    evidence = Evidence(
        network=network_digest(ledger.network),
        artifact_id=artifact_id,
        told=json.dumps(recorder.told, sort_keys=True, separators=(",", ":")).encode(),
        changes=tuple(changes),
        blocks=tuple(blocks),
        contracts=tuple(contracts),
        contents=recorder.contents,
        payload=payload,
    )
    check_evidence(evidence, ledger.network, endpoint=ledger.endpoint)
    return evidence


class _Recorder:
    """Passes on what a walk asks of a node, and keeps it."""

    def __init__(self, node: Source) -> None:
        self._node = node
        self.told: Any = None
        self.contents: dict[Cid, bytes] = {}

    def query(self, path: str) -> Any:
        self.told = self._node.query(path)
        return self.told

    def get(self, cid: Cid, *, holder: str) -> bytes:
        self.contents[cid] = self._node.get(cid, holder=holder)
        return self.contents[cid]


def _block(
    endpoint: Endpoint,
    network: Network,
    versions: Sequence[ValidatorVersion],
    number: int,
    transactions: set[bytes],
) -> BlockEvidence:
    header = fetch_header(endpoint, network.chain, number)
    proof, version = None, 0
    if versions:
        proof, _, signers = prove_final(endpoint, network, versions, number)
        version = signers.version
    return BlockEvidence(
        header=header.encode(),
        proof=proof,
        version=version,
        receipts=_receipts(endpoint, number, transactions) if transactions else (),
    )


def _receipts(endpoint: Endpoint, number: int, transactions: set[bytes]) -> tuple[ReceiptEvidence, ...]:
    receipts = endpoint.call("eth_getBlockReceipts", hex(number))
    with well_formed(endpoint.url):
        hashes = [bytes.fromhex(receipt["transactionHash"][2:]) for receipt in receipts]
        firsts = [int(receipt["logs"][0]["logIndex"], 16) if receipt["logs"] else 0 for receipt in receipts]
        encoded = [encode_receipt(receipt) for receipt in receipts]
    if not transactions <= set(hashes):
        raise LedgerError(f"{endpoint.url} has lost transactions of block {number}")
    return tuple(
        ReceiptEvidence(proof=prove_receipt(encoded, position), first_log=firsts[position])
        for position, transaction in enumerate(hashes)
        if transaction in transactions
    )


def _contract(
    endpoint: Endpoint, network: Network, contract: str, keys: Sequence[bytes], number: int
) -> ContractEvidence:
    address = network.contracts[contract]
    slots = {key: series_slots(contract, key) for key in keys}
    state = fetch_state(endpoint, address, [slot for pair in slots.values() for slot in pair], number)
    answer = endpoint.call("eth_getCode", address, hex(number))
    with well_formed(endpoint.url):
        code = bytes.fromhex(answer.removeprefix("0x"))
    return ContractEvidence(
        name=contract,
        code=code,
        account=state.account,
        series=tuple(
            SeriesEvidence(key=key, length=state.slots[length], head=state.slots[head])
            for key, (length, head) in slots.items()
        ),
    )


def _all(series: Iterable[Sequence[LedgerEvent]]) -> Iterable[LedgerEvent]:
    return (event for events in series for event in events)
