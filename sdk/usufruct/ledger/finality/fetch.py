"""Asks endpoints for headers and finality proofs. What it gives is to be verified by whoever asks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import base58

from usufruct.errors import LedgerError, ProofUnavailableError
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
    endpoint: Endpoint,
    profile: ChainProfile,
    pin: FinalityPin,
    block_hash: bytes,
    *,
    sceptical: bool = False,
) -> FinalityProof:
    """A finality proof of a block, to be verified by `verify_finality`.

    Parameters
    ----------
    sceptical :
        Where validators are asked one by one, find out by its signature who each is, a pairing for each, instead of taking its
        word; for a second try, since one that gives another's name for its own spoils the sum.

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
    return _collected(endpoint, pin, block_hash, sceptical=sceptical)


def _collected(endpoint: Endpoint, pin: FinalityPin, block_hash: bytes, *, sceptical: bool) -> FinalityProof:
    """A proof put together here from what each validator signs by itself, for any set of validators that can be asked.

    `warp_getBlockAggregateSignature` would ask one validator for all. It is not used: every answer that arrives after the
    quorum blocks a goroutine of that validator for ever (AvalancheGo v1.14.0, `network/p2p/acp118`), and after a few calls it
    neither spreads transactions nor aggregates.
    """
    chain = bytes.fromhex(pin.chain[2:])
    members = endpoint.members()
    with ThreadPoolExecutor(max(1, len(members))) as pool:
        answers = [answer for answer in pool.map(partial(_signature, block_hash), members) if answer]
    keys = [bytes.fromhex(validator.key[2:]) for validator in pin.validators]
    if sceptical:
        message = unsigned_message(pin.network_id, chain, block_hash)
        signed = _attributed(keys, message, [signature for _, signature in answers])
    else:
        signed = {keys.index(key): signature for key, signature in answers if key in keys}
    weight = sum(pin.validators[i].weight for i in signed)
    if 100 * weight < QUORUM_PERCENT * sum(validator.weight for validator in pin.validators):
        raise ProofUnavailableError(
            f"only {len(signed)} of {len(keys)} validators could be asked for block {block_hash.hex()}",
            hint="name the RPC endpoints of validators with 67% of the weight in rpc_urls",
        )
    payload = WarpMessage(
        network_id=pin.network_id,
        chain=chain,
        block_hash=block_hash,
        signers=sum(1 << i for i in signed),
        signature=bls.aggregate(list(signed.values())),
    ).encode()
    return FinalityProof(kind="warp", chain=chain, block_hash=block_hash, payload=payload)


def _attributed(keys: Sequence[bytes], message: bytes, signatures: Sequence[bytes]) -> dict[int, bytes]:
    """Signatures by the position of the key under which they hold."""
    signed: dict[int, bytes] = {}
    for signature in signatures:
        for position, key in enumerate(keys):
            if position not in signed and bls.is_signed_by_all([key], message, signature):
                signed[position] = signature
                break
    return signed


def _signature(block_hash: bytes, endpoint: Endpoint) -> tuple[bytes, bytes] | None:
    """(Key that the validator says is its own, its signature); the key is empty when it does not say. None without one."""
    try:
        answer = endpoint.call("warp_getBlockSignature", cb58(block_hash))
        with well_formed(endpoint.url):
            signature = bytes.fromhex(answer.removeprefix("0x"))
    except LedgerError:
        return None
    if not bls.is_signature(signature):
        return None
    try:
        told = Endpoint(endpoint.url.split("/ext/")[0] + "/ext/info", patience=0.0).call("info.getNodeID")
        with well_formed(endpoint.url):
            return bytes.fromhex(told["nodePOP"]["publicKey"].removeprefix("0x")), signature
    except LedgerError:
        return b"", signature


def cb58(data: bytes) -> str:
    """Avalanche's way to write identifiers: base58 with the last four bytes of SHA-256 behind."""
    checked = data + hashlib.sha256(data).digest()[-4:]
    text: str = base58.b58encode(checked).decode("ascii")
    return text
