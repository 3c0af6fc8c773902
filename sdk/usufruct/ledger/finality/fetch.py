"""Asks endpoints for headers and finality proofs; verifies nothing, believes nothing."""

from __future__ import annotations

import hashlib

from multiformats import multibase

from usufruct.errors import LedgerError, LedgerUnreachableError, ProofUnavailableError
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.finality.header import BlockHeader
from usufruct.ledger.finality.proof import FinalityProof
from usufruct.ledger.finality.warp import QUORUM_PERCENT, WarpMessage
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
    try:
        answer = endpoint.call("warp_getBlockAggregateSignature", cb58(block_hash), QUORUM_PERCENT, "")
    except LedgerUnreachableError:
        raise
    except LedgerError as exc:
        raise ProofUnavailableError(
            f"no proof of block {block_hash.hex()}: {exc}",
            hint="67% of the validators must be up to prove a block; try again, or another endpoint",
        ) from exc
    with well_formed(endpoint.url):
        payload = bytes.fromhex(answer.removeprefix("0x"))
    message = WarpMessage.parse(payload)
    return FinalityProof(kind="warp", chain=message.chain, block_hash=message.block_hash, payload=payload)


def cb58(data: bytes) -> str:
    """Avalanche's way to write identifiers: base58 with the last four bytes of SHA-256 behind."""
    checked = data + hashlib.sha256(data).digest()[-4:]
    return str(multibase.get("base58btc").encode(checked))[1:]
