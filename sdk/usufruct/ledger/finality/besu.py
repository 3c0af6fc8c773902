"""Finality by committed seals: Besu's QBFT validators sign the header itself, inside its extra data.

A seal signs the Keccak hash of the header whose extra data holds the round and no seals; the block hash is that of the header
with round 0 and no seals.

Sources: `BftBlockHeaderFunctions` and `BftHelpers.calculateRequiredValidatorQuorum` of Besu.
"""

from __future__ import annotations

from coincurve import PublicKey
from eth_utils.crypto import keccak

from usufruct.errors import (
    ForeignProofError,
    MalformedProofError,
    OtherBlockProofError,
    ProofSignatureError,
    TooFewSignersError,
)
from usufruct.ledger.finality.extra_data import QbftExtraData
from usufruct.ledger.finality.header import BlockHeader, block_hash_of
from usufruct.ledger.finality.proof import FinalityProof, Signers
from usufruct.ledger.network import FinalityPin

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half of the order of secp256k1: of the two signatures that are each other's mirror, the one below is canonical."""


def committed_hash(header: BlockHeader) -> bytes:
    """What validators sign to commit to a block."""
    extra = QbftExtraData.decode(header.extra_data)
    return bytes(keccak(header.with_extra_data(extra.encode(seals=())).encode()))


def verify(proof: FinalityProof, pin: FinalityPin, block_hash: bytes) -> Signers:
    """Verify that two thirds of the pinned validators committed to this block; see `verify_finality`.

    The seals do not name the chain: what ties them to it are the validators' keys, which must serve one chain only.
    """
    if proof.chain != bytes.fromhex(pin.chain[2:]):
        raise ForeignProofError(f"the proof is of chain {proof.chain.hex()}, not {pin.chain[2:]}")
    header = BlockHeader.decode(proof.payload, "qbft")
    found = block_hash_of(header)
    if found != proof.block_hash:
        raise MalformedProofError("the proof's record and its payload name different blocks")
    if found != block_hash:
        raise OtherBlockProofError(f"the proof is of block {found.hex()}, not {block_hash.hex()}")
    extra = QbftExtraData.decode(header.extra_data)
    weight_of = {bytes.fromhex(validator.key[2:]): validator.weight for validator in pin.validators}
    if extra.validators and set(extra.validators) != set(weight_of):
        raise ForeignProofError("the header names other validators than the pinned ones")
    digest = committed_hash(header)
    signers: list[bytes] = []
    for seal in extra.seals:
        signer = _recover(seal, digest)
        if signer not in weight_of:
            raise ForeignProofError(f"0x{signer.hex()} committed, who is no pinned validator")
        if signer in signers:
            raise ProofSignatureError(f"0x{signer.hex()} committed twice")
        signers.append(signer)
    weight, total = sum(weight_of[signer] for signer in signers), sum(weight_of.values())
    if 3 * weight < 2 * total:
        raise TooFewSignersError(weight, total)
    keys = tuple(validator.key for validator in pin.validators if bytes.fromhex(validator.key[2:]) in signers)
    return Signers(keys=keys, weight=weight, total_weight=total)


def _recover(seal: bytes, digest: bytes) -> bytes:
    if int.from_bytes(seal[32:64], "big") > _HALF_ORDER or seal[64] > 1:
        raise ProofSignatureError("a committed seal is not canonical")
    try:
        key = PublicKey.from_signature_and_message(seal, digest, hasher=None)
    except ValueError as exc:
        raise ProofSignatureError("a committed seal is no signature") from exc
    return bytes(keccak(key.format(compressed=False)[1:])[-20:])
