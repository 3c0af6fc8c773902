"""Checks evidence against the network file and nothing else; where the chain has no finality proofs, against an endpoint, too.

From the founding validators to those that signed, from their signatures to blocks, from a block to events in it and to what the
contracts counted after it; then the walk of `usufruct.lineage` over what is proven.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_utils.crypto import keccak

from usufruct.checked_events import CheckedEvents
from usufruct.content import Cid, dag
from usufruct.errors import (
    BlockNotFoundError,
    ForeignProofError,
    InclusionError,
    MalformedProofError,
    MissingEventError,
    OtherBlockProofError,
    ProofUnavailableError,
    VerificationError,
)
from usufruct.evidence.pack import BlockEvidence, ContractEvidence, Evidence
from usufruct.ledger.abi import CONTRACTS, load_abi
from usufruct.ledger.compile import identify_runtime
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.finality import (
    BlockHeader,
    ProvenLog,
    ValidatorVersion,
    adopt,
    block_hash_of,
    check_receipt_inclusion,
    founding_version,
    verify_finality,
    vouching,
)
from usufruct.ledger.finality.state import check_account, check_slot, series_end, series_slots
from usufruct.ledger.jobs import request_of
from usufruct.ledger.network import Network
from usufruct.lineage import Lineage, LineageNode, Progress, lineage_of
from usufruct.records import ArtifactKind, JobId, LedgerEvent
from usufruct.release import Release, read_payload


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedEvidence:
    """An evidence that holds."""

    lineage: Lineage
    release: Release | None
    """What was released, where its partner disclosed that."""
    block_number: int
    """Up to this block nothing is missing."""
    block_hash: bytes
    timestamp: int
    """Unix seconds of that block."""
    blocks: int
    """How many blocks were shown to be final."""
    validators: int | None
    """Which set of validators signed for the newest block, 1 for the founding one; None where an endpoint vouches instead."""


def network_digest(network: Network) -> bytes:
    """What evidence names its network by: the chain and the contracts on it, not the endpoints."""
    identity = {
        "chain_id": network.chain_id,
        "genesis": network.genesis_hash.lower(),
        "contracts": {name: address.lower() for name, address in network.contracts.items()},
    }
    return dag.cid_of(identity).digest


def check_evidence(
    evidence: Evidence,
    network: Network,
    *,
    endpoint: Endpoint | None = None,
    progress: Progress | None = None,
) -> CheckedEvidence:
    """Check every proof in an evidence and walk its lineage.

    Ciphertexts are not part of evidence: that a kernel was applied to them is what the verifiers attested.

    Parameters
    ----------
    endpoint :
        Asked for the hashes of blocks where the chain has no finality proofs; whoever answers is trusted for these.

    Raises
    ------
    ForeignProofError
        If the evidence is of another network.
    ProofUnavailableError
        If the chain has no finality proofs and there is no endpoint.
    FinalityError, MissingEventError, VerificationError
        If anything in it is not proven, or events are missing.
    BlockNotFoundError
        If a content is missing.
    """
    if evidence.network != network_digest(network):
        raise ForeignProofError("the evidence is of another network", hint="use the network file of that one")
    if not evidence.blocks:
        raise InclusionError("the evidence has no blocks")
    tell = progress or (lambda _: None)
    judge = _Judge(network, evidence, endpoint)
    blocks: list[BlockHeader] = []
    for block in evidence.blocks:
        header = BlockHeader.decode(block.header, network.chain.header)
        if blocks and header.number <= blocks[-1].number:
            raise MalformedProofError("the blocks of the evidence are not in order")
        tell(f"block {header.number}")
        judge.check(block, header)
        blocks.append(header)
    newest = blocks[-1]
    proven = _Proven(network)
    for block, header in zip(evidence.blocks, blocks, strict=True):
        proven.take_events(block, header)
    for contract in evidence.contracts:
        tell(contract.name)
        proven.take_heads(contract, newest.state_root)
    events, contents = CheckedEvents(proven), _Contents(evidence)
    lineage = lineage_of(events, contents, evidence.artifact_id, ciphertexts=False, progress=progress)
    if events.known.keys() != proven.heads.keys() or contents.used != evidence.contents.keys():
        raise MalformedProofError("the evidence holds series or contents that its lineage does not need")
    return CheckedEvidence(
        lineage=lineage,
        release=None if evidence.payload is None else _release(evidence, lineage.root, events),
        block_number=newest.number,
        block_hash=block_hash_of(newest),
        timestamp=newest.timestamp,
        blocks=len(blocks),
        validators=judge.version,
    )


def _release(evidence: Evidence, root: LineageNode, events: CheckedEvents) -> Release:
    if evidence.payload is None or root.kind != ArtifactKind.RELEASE.name or root.job is None:
        raise VerificationError("the evidence discloses values of what is no release")
    job_id = JobId(bytes.fromhex(root.job["job_id"]))
    life, envelope = events.known["JobLedger", job_id], evidence.contents[root.content]
    logged = next(event.args["sigmaMicro"] for event in life if event.name == "JobReleased")
    if dag.decode_map(envelope).get("sigma_micro") != logged:
        raise VerificationError("the release tells of other noise than the ledger")
    return read_payload(envelope, evidence.payload, job_id, request_of(life[0]))


class _Judge:
    """Says whether blocks are final."""

    def __init__(self, network: Network, evidence: Evidence, endpoint: Endpoint | None) -> None:
        self._network = network
        self._endpoint = endpoint
        self._versions: list[ValidatorVersion] = []
        self.version: int | None = None
        """The set of validators that made the newest block final; None where an endpoint vouches for it."""
        if network.chain.proof is not None:
            self._versions.append(founding_version(network))
            for change in evidence.changes:
                self._versions.append(adopt(network, self._versions[-1], change))
        elif evidence.changes:
            raise ForeignProofError("the evidence names validators of a chain that has none")
        elif endpoint is None:
            raise ProofUnavailableError(
                f"chains of profile {network.profile} have no finality proofs: an endpoint must vouch for the blocks"
            )

    def check(self, block: BlockEvidence, header: BlockHeader) -> None:
        block_hash = block_hash_of(header)
        if not self._versions:
            if block.proof is not None or block.version:
                raise ForeignProofError("the evidence names validators of a chain that has none")
            self._ask(header.number, block_hash)
            return
        if block.proof is None:
            raise InclusionError(f"block {header.number} comes without a proof that it is final")
        version = next(
            (v for v in vouching(self._versions, header.number) if v.version == block.version), None
        )
        if version is None:
            raise ForeignProofError(f"validators {block.version} do not vouch for block {header.number}")
        if block.proof.kind != self._network.chain.proof:
            raise ForeignProofError(f"block {header.number} is proven as on another kind of chain")
        verify_finality(block.proof, version.pin, block_hash)
        self.version = version.version

    def _ask(self, number: int, block_hash: bytes) -> None:
        assert self._endpoint is not None
        if self._endpoint.block(number).hash != block_hash:
            raise OtherBlockProofError(f"block {number} of the evidence is not the one of the chain")


class _Proven:
    """What the proofs leave: a `usufruct.checked_events.Chronicle`."""

    def __init__(self, network: Network) -> None:
        self._addresses = {name: network.contracts[name].lower() for name in CONTRACTS}
        self._names = {address: name for name, address in self._addresses.items()}
        self._events: dict[int, list[LedgerEvent]] = {}
        self.heads: dict[tuple[str, bytes], tuple[int, bytes]] = {}
        """Number of events and rolling hash of each series, by contract and key."""
        self._shown: set[str] = set()

    def take_events(self, block: BlockEvidence, header: BlockHeader) -> None:
        found = self._events.setdefault(header.number, [])
        for evidence in block.receipts:
            receipt = check_receipt_inclusion(header.receipts_root, evidence.proof)
            for position, log in enumerate(receipt.logs, start=evidence.first_log):
                name = self._names.get(log.address)
                if receipt.succeeded and name is not None:
                    found.append(_event(name, log, header, position))

    def take_heads(self, contract: ContractEvidence, state_root: bytes) -> None:
        address = self._addresses.get(contract.name)
        if address is None:
            raise VerificationError("the evidence names a contract that the network does not have")
        if contract.name in self._shown:
            raise MalformedProofError(f"the evidence shows {contract.name} twice")
        self._shown.add(contract.name)
        account = check_account(state_root, address, contract.account)
        if keccak(contract.code) != account.code_hash:
            raise InclusionError(f"the code of {contract.name} is not the one at its address")
        identify_runtime(contract.name, contract.code)
        for series in contract.series:
            if (contract.name, series.key) in self.heads:
                raise MalformedProofError(f"the evidence shows the series of {series.key.hex()[:12]} twice")
            slots = series_slots(contract.name, series.key)
            nodes = (series.length, series.head)
            words = [check_slot(account.storage_root, *pair) for pair in zip(slots, nodes, strict=True)]
            self.heads[contract.name, series.key] = series_end(contract.name, (words[0], words[1]))

    def events(self, first: int, last: int) -> list[LedgerEvent]:
        return [event for number in range(first, last + 1) for event in self._events.get(number, ())]

    def series_head(self, contract: str, key: bytes) -> tuple[int, bytes]:
        try:
            return self.heads[contract, key]
        except KeyError:
            raise MissingEventError(
                f"the evidence does not show where the series of {key.hex()[:12]} ends"
            ) from None


class _Contents:
    """What the index told, and the contents: a `usufruct.lineage.Source`."""

    def __init__(self, evidence: Evidence) -> None:
        self._told = evidence.told
        self._contents: Mapping[Cid, bytes] = evidence.contents
        self.used: set[Cid] = set()

    def query(self, _path: str) -> Any:
        try:
            return json.loads(self._told)
        except (ValueError, RecursionError) as exc:
            raise VerificationError("what the index told is no JSON") from exc

    def get(self, cid: Cid, *, holder: str) -> bytes:
        data = self._contents.get(cid)
        if data is None:
            raise BlockNotFoundError(f"the evidence lacks content {cid} of {holder}")
        if cid not in self.used:
            cid.check(data)
            self.used.add(cid)
        return data


def _event(contract: str, log: ProvenLog, header: BlockHeader, position: int) -> LedgerEvent:
    """An event as a ledger decodes it; which transaction it came by is not proven, and not told."""
    codec = load_abi(contract).events.get(log.topics[0] if log.topics else b"")
    if codec is None:
        raise VerificationError(f"{contract} emitted an event that this package does not know")
    words = b"".join(log.topics[1:]) + log.data
    with well_formed("the evidence"):
        return LedgerEvent(
            contract=contract,
            name=codec.name,
            args=codec.decode(words),
            block_number=header.number,
            block_hash=block_hash_of(header),
            transaction_hash=b"",
            log_index=position,
            timestamp=header.timestamp,
            words=words,
        )
