"""Follows the members' votes on validators from the founding set in the network file, each step proven by the set before it.

A change is an event of `ValidatorSet` in a block that the old set made final: proof of the block, header, receipt,
event. Asking for the evidence is the only thing here that speaks to an endpoint; `adopt` asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from usufruct.errors import (
    FinalityError,
    ForeignProofError,
    InclusionError,
    LedgerError,
    MissingEventError,
    ProofSignatureError,
    ProofUnavailableError,
)
from usufruct.fields import fault_of
from usufruct.ledger.abi import load_abi
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.finality import bls
from usufruct.ledger.finality.fetch import fetch_finality, fetch_header
from usufruct.ledger.finality.header import check_header
from usufruct.ledger.finality.proof import FinalityProof, Signers
from usufruct.ledger.finality.receipts import (
    ProvenLog,
    ReceiptProof,
    check_receipt_inclusion,
    encode_receipt,
    prove_receipt,
)
from usufruct.ledger.finality.verify import verify_finality
from usufruct.ledger.network import FinalityPin, Network, Validator
from usufruct.ledger.profile import ChainProfile
from usufruct.ledger.series import event_codec, next_head

_CONTRACT, _EVENT = "ValidatorSet", "ValidatorSetChanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorVersion:
    """One set of validators and since when it counts."""

    version: int
    """1 is the founding set."""
    pin: FinalityPin
    since_block: int
    """The block that holds the change; the set counts for those after it."""
    head: bytes
    """Rolling hash of the changes up to this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorChange:
    """Evidence of one change; believed only once `adopt` has checked it."""

    proof: FinalityProof
    header: bytes
    """RLP of the header of the block that holds the change."""
    receipt: ReceiptProof
    log: int
    """Position of the event among the receipt's."""


def founding_version(network: Network) -> ValidatorVersion:
    """The set that the network file pins.

    Raises
    ------
    ProofUnavailableError
        If the file pins none.
    """
    if network.finality is None:
        raise ProofUnavailableError(
            "the network file pins no validators", hint="chains of profile `embedded` have no finality proofs"
        )
    pin = network.finality
    arguments = {
        "chain": bytes.fromhex(pin.chain[2:]),
        "publicKeys": b"".join(bytes.fromhex(v.key[2:]) for v in pin.validators),
        "weights": [v.weight for v in pin.validators],
        "sequence": 1,
    }
    head = next_head(bytes(32), event_codec(_CONTRACT, _EVENT), arguments)
    return ValidatorVersion(version=1, pin=pin, since_block=network.deployed_at_block, head=head)


def adopt(network: Network, old: ValidatorVersion, change: ValidatorChange) -> ValidatorVersion:
    """The set after a change, provided that the set before it made the change final.

    Raises
    ------
    FinalityError
        If the block is not proven by the old set, or the event is not in it, or is not the next one.
    """
    profile = network.chain
    header = check_header(change.header, change.proof.block_hash, profile.header)
    verify_finality(change.proof, old.pin, change.proof.block_hash)
    receipt = check_receipt_inclusion(header.receipts_root, change.receipt)
    if not receipt.succeeded or not 0 <= change.log < len(receipt.logs):
        raise InclusionError("the receipt has no such event")
    arguments = _arguments(network, receipt.logs[change.log])
    if arguments["chain"] != bytes.fromhex(old.pin.chain[2:]):
        raise ForeignProofError("the change is of another chain's validators")
    head = next_head(old.head, event_codec(_CONTRACT, _EVENT), arguments)
    if arguments["sequence"] != old.version + 1 or arguments["head"] != head:
        raise InclusionError(f"the change is not the one after version {old.version}")
    return ValidatorVersion(
        version=old.version + 1, pin=_pin(old.pin, arguments), since_block=header.number, head=head
    )


def follow_validators(endpoint: Endpoint, network: Network) -> list[ValidatorVersion]:
    """Every set from the founding one to the one in force, each adopted from evidence; errors as of `trace_validators`."""
    return trace_validators(endpoint, network)[0]


def trace_validators(
    endpoint: Endpoint, network: Network
) -> tuple[list[ValidatorVersion], list[ValidatorChange]]:
    """Every set from the founding one to the one in force, and the evidence that each later one was adopted from.

    Raises
    ------
    MissingEventError
        If the endpoint shows fewer changes than the contract counts, or an event that does not follow.
    FinalityError, ProofUnavailableError
        If a change cannot be proven.
    LedgerError
    """
    versions = [founding_version(network)]
    if network.chain.proof != "warp":
        # The contract holds BLS keys: validators of other kinds are those of the network file.
        return versions, []
    topic = "0x" + event_codec(_CONTRACT, _EVENT).topic.hex()
    shown = endpoint.logs(
        [network.contracts[_CONTRACT]], network.deployed_at_block, endpoint.finalised().number
    )
    with well_formed(endpoint.url):
        logs = [log for log in shown if log["topics"][0] == topic]
    if not logs or not _is_founding(network, logs[0], versions[0]):
        raise MissingEventError("the chain does not show the founding validators that the network file pins")
    changes: list[ValidatorChange] = []
    for log in logs[1:]:
        changes.append(_evidence(endpoint, network, versions[-1].pin, log))
        versions.append(adopt(network, versions[-1], changes[-1]))
    codec = load_abi(_CONTRACT).functions["seriesHead"]
    chain = bytes.fromhex(versions[0].pin.chain[2:])
    length, head = endpoint.view(network.contracts[_CONTRACT], codec, [chain], network.chain.finality_tag)
    if (length, head) != (versions[-1].version, versions[-1].head):
        raise MissingEventError(f"the contract counts {length} sets of validators, {len(versions)} are shown")
    return versions, changes


def prove_final(
    endpoint: Endpoint, network: Network, versions: Sequence[ValidatorVersion], number: int
) -> tuple[FinalityProof, Signers, ValidatorVersion]:
    """A verified proof that the block at this height is final, and by which set.

    The set in force at the block proves it, or a later one: those who validate now vouch for the whole chain before
    them. An earlier one, which the members voted out, does not.

    Raises
    ------
    FinalityError, ProofUnavailableError, LedgerError
    """
    profile = network.chain
    header = fetch_header(endpoint, profile, number)
    block_hash = endpoint.block(number).hash
    check_header(header.encode(), block_hash, profile.header)
    failure: LedgerError | FinalityError | None = None
    for version in reversed(vouching(versions, number)):
        try:
            proof, signers = prove_block(endpoint, network.chain, version.pin, block_hash)
        except (FinalityError, ProofUnavailableError) as exc:
            failure = failure or exc
        else:
            return proof, signers, version
    raise failure or ProofUnavailableError(f"no set of validators proves block {number}")


def vouching(versions: Sequence[ValidatorVersion], number: int) -> Sequence[ValidatorVersion]:
    """The sets whose word counts for the block at this height: the one in force there, and those after it."""
    in_force = [v for v in versions if v.since_block < number] or list(versions[:1])
    return versions[versions.index(in_force[-1]) :]


def prove_block(
    endpoint: Endpoint, profile: ChainProfile, pin: FinalityPin, block_hash: bytes
) -> tuple[FinalityProof, Signers]:
    """A verified proof that this set of validators calls a block final.

    Raises
    ------
    FinalityError, ProofUnavailableError, LedgerError
    """
    try:
        proof = fetch_finality(endpoint, profile, pin, block_hash)
        return proof, verify_finality(proof, pin, block_hash)
    except (ProofSignatureError, ProofUnavailableError):
        # Somebody may have given another validator's name, or none.
        proof = fetch_finality(endpoint, profile, pin, block_hash, sceptical=True)
        return proof, verify_finality(proof, pin, block_hash)


def _evidence(endpoint: Endpoint, network: Network, pin: FinalityPin, log: dict[str, Any]) -> ValidatorChange:
    with well_formed(endpoint.url):
        number, position = int(log["blockNumber"], 16), int(log["transactionIndex"], 16)
        index, block_hash = int(log["logIndex"], 16), bytes.fromhex(log["blockHash"][2:])
    header = fetch_header(endpoint, network.chain, number)
    receipts = endpoint.call("eth_getBlockReceipts", hex(number))
    with well_formed(endpoint.url):
        encoded = [encode_receipt(receipt) for receipt in receipts]
        first = int(receipts[position]["logs"][0]["logIndex"], 16)
    proof, _ = prove_block(endpoint, network.chain, pin, block_hash)
    return ValidatorChange(
        proof=proof, header=header.encode(), receipt=prove_receipt(encoded, position), log=index - first
    )


def _is_founding(network: Network, log: dict[str, Any], founding: ValidatorVersion) -> bool:
    with well_formed("the endpoint"):
        proven = ProvenLog(
            log["address"].lower(),
            tuple(bytes.fromhex(topic[2:]) for topic in log["topics"]),
            bytes.fromhex(log["data"][2:]),
        )
    return bool(_arguments(network, proven)["head"] == founding.head)


def _arguments(network: Network, log: ProvenLog) -> dict[str, Any]:
    codec = event_codec(_CONTRACT, _EVENT)
    if log.address != network.contracts[_CONTRACT].lower() or log.topics[:1] != (codec.topic,):
        raise InclusionError(f"the event is no {_EVENT} of this network's {_CONTRACT}")
    with well_formed("the receipt"):
        return codec.decode(b"".join(log.topics[1:]) + log.data)


def _pin(old: FinalityPin, arguments: dict[str, Any]) -> FinalityPin:
    size = bls.PUBLIC_KEY_BYTES
    keys = [arguments["publicKeys"][at : at + size] for at in range(0, len(arguments["publicKeys"]), size)]
    try:
        validators = [
            Validator(key="0x" + key.hex(), weight=weight)
            for key, weight in zip(keys, arguments["weights"], strict=True)
        ]
        return FinalityPin(network_id=old.network_id, chain=old.chain, validators=tuple(validators))
    except ValueError as exc:
        raise ForeignProofError(f"the members voted for a set that cannot be one: {fault_of(exc)}") from exc
