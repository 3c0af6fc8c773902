"""Asks endpoints for headers and finality proofs; verifies nothing, believes nothing."""

from __future__ import annotations

import hashlib
from queue import Queue
from threading import Thread

from multiformats import multibase

from usufruct.errors import LedgerError, MalformedProofError, ProofUnavailableError
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.finality import bls
from usufruct.ledger.finality.header import BlockHeader
from usufruct.ledger.finality.proof import FinalityProof
from usufruct.ledger.finality.warp import QUORUM_PERCENT, WarpMessage, unsigned_message
from usufruct.ledger.network import FinalityPin
from usufruct.ledger.profile import ChainProfile


def fetch_header(endpoint: Endpoint, profile: ChainProfile, block: int | bytes) -> BlockHeader:
    """The header of a block by number or hash, as the endpoint tells it.

    Raises
    ------
    LedgerError
        If the endpoint has no such block, or not in the form of one.
    """
    if isinstance(block, int):
        answer = endpoint.call("eth_getBlockByNumber", hex(block), False)
    else:
        answer = endpoint.call("eth_getBlockByHash", "0x" + block.hex(), False)
    return BlockHeader.from_json(answer, profile.header)


def fetch_finality(
    endpoint: Endpoint, profile: ChainProfile, pin: FinalityPin, block_hash: bytes
) -> FinalityProof:
    """A finality proof of a block, to be verified by `verify_finality`.

    Raises
    ------
    ProofUnavailableError
        If this kind of chain has no such proofs, or the endpoint gives none for this block.
    LedgerUnreachableError
    """
    if profile.proof is None:
        raise ProofUnavailableError(f"chains of profile {profile.name} have no finality proofs")
    if profile.proof == "qbft":
        payload = fetch_header(endpoint, profile, block_hash).encode()
        return FinalityProof(
            kind="qbft", chain=bytes.fromhex(pin.chain[2:]), block_hash=block_hash, payload=payload
        )
    # All at once: an aggregator that waits for a peer of its own can hang for as long as it likes.
    members = endpoint.members()
    answers: Queue[FinalityProof | Exception] = Queue()
    for member in members:
        Thread(target=_ask, args=(member, block_hash, answers), daemon=True).start()
    reasons = []
    for _ in members:
        answer = answers.get()
        if isinstance(answer, FinalityProof):
            return answer
        reasons.append(str(answer))
    raise ProofUnavailableError(
        f"no endpoint gives a proof of block {block_hash.hex()}: {reasons[0] if reasons else 'none is fit'}",
        hint="validators with 67% of the weight must be up to prove a block",
    )


def collect_finality(endpoint: Endpoint, pin: FinalityPin, block_hash: bytes) -> FinalityProof:
    """A proof put together here from what each validator signs by itself, for any set of validators that can be asked.

    Each signature is verified on the way, so that a validator that answers with a wrong one does not spoil the sum.

    Raises
    ------
    ProofUnavailableError
        If too few validators of the pin can be asked.
    """
    chain = bytes.fromhex(pin.chain[2:])
    message = unsigned_message(pin.network_id, chain, block_hash)
    signed: dict[int, bytes] = {}
    total = sum(validator.weight for validator in pin.validators)
    for member in endpoint.members():
        try:
            answer = member.call("warp_getBlockSignature", cb58(block_hash))
            with well_formed(member.url):
                signature = bytes.fromhex(answer.removeprefix("0x"))
        except LedgerError:
            continue
        for position, validator in enumerate(pin.validators):
            key = bytes.fromhex(validator.key[2:])
            if position not in signed and bls.is_signed_by_all([key], message, signature):
                signed[position] = signature
                break
        if 100 * sum(pin.validators[i].weight for i in signed) >= QUORUM_PERCENT * total:
            payload = WarpMessage(
                network_id=pin.network_id,
                chain=chain,
                block_hash=block_hash,
                signers=sum(1 << i for i in signed),
                signature=bls.aggregate(list(signed.values())),
            ).encode()
            return FinalityProof(kind="warp", chain=chain, block_hash=block_hash, payload=payload)
    raise ProofUnavailableError(
        f"only {len(signed)} of {len(pin.validators)} validators could be asked for block {block_hash.hex()}",
        hint="name the RPC endpoints of more validators in rpc_urls",
    )


def _ask(endpoint: Endpoint, block_hash: bytes, answers: Queue[FinalityProof | Exception]) -> None:
    try:
        answers.put(_aggregated(endpoint, block_hash))
    except (LedgerError, MalformedProofError) as exc:
        answers.put(exc)


def _aggregated(endpoint: Endpoint, block_hash: bytes) -> FinalityProof:
    answer = endpoint.call("warp_getBlockAggregateSignature", cb58(block_hash), QUORUM_PERCENT, "")
    with well_formed(endpoint.url):
        payload = bytes.fromhex(answer.removeprefix("0x"))
    message = WarpMessage.parse(payload)
    return FinalityProof(kind="warp", chain=message.chain, block_hash=message.block_hash, payload=payload)


def cb58(data: bytes) -> str:
    """Avalanche's way to write identifiers: base58 with the last four bytes of SHA-256 behind."""
    checked = data + hashlib.sha256(data).digest()[-4:]
    return str(multibase.get("base58btc").encode(checked))[1:]
