"""Finality by warp messages: a BLS aggregate of the validators over a block's hash, made by AvalancheGo.

Layout, all integers big-endian: codec version u16 = 0, network id u32, blockchain id 32 bytes, payload length u32 = 38,
payload (codec version u16 = 0, type u32 = 0 "hash", block hash 32 bytes); then, not signed: signature type u32 = 0, length
u32 of the signers' bit set, the bit set (big-endian, no leading zero byte; bit i is validator i in the order of uncompressed
keys), signature 96 bytes.

Source: `vms/platformvm/warp` of AvalancheGo v1.14.0.
"""

from __future__ import annotations

from dataclasses import dataclass

from usufruct.errors import (
    ForeignProofError,
    MalformedProofError,
    OtherBlockProofError,
    ProofSignatureError,
    TooFewSignersError,
)
from usufruct.ledger.finality import bls
from usufruct.ledger.finality.proof import FinalityProof, Signers
from usufruct.ledger.network import FinalityPin

QUORUM_PERCENT = 67

_PAYLOAD_BYTES = 38
_MAX_SIGNERS_BYTES = 32
"""256 validators, as many as a pin may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpMessage:
    """A signed block hash, taken apart; not yet verified."""

    network_id: int
    chain: bytes
    block_hash: bytes
    signers: int
    """Bit i: validator i of the set is said to have signed."""
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> WarpMessage:
        """Parse strictly: the one encoding that the engine makes, nothing missing, nothing after it.

        Raises
        ------
        MalformedProofError
        """
        reader = _Reader(data)
        reader.constant(2, 0, "codec version")
        network_id = reader.integer(4)
        chain = reader.take(32)
        reader.constant(4, _PAYLOAD_BYTES, "payload length")
        reader.constant(2, 0, "payload codec version")
        reader.constant(4, 0, "payload type")
        block_hash = reader.take(32)
        reader.constant(4, 0, "signature type")
        length = reader.integer(4)
        if not 0 < length <= _MAX_SIGNERS_BYTES:
            raise MalformedProofError(f"warp message: a bit set of {length} bytes")
        bits = reader.take(length)
        if bits[0] == 0:
            raise MalformedProofError("warp message: the bit set of signers begins with a zero byte")
        signature = reader.take(bls.SIGNATURE_BYTES)
        reader.end()
        return cls(
            network_id=network_id,
            chain=chain,
            block_hash=block_hash,
            signers=int.from_bytes(bits, "big"),
            signature=signature,
        )

    def encode(self) -> bytes:
        """The bytes that `parse` takes."""
        bits = self.signers.to_bytes((self.signers.bit_length() + 7) // 8, "big")
        return (
            unsigned_message(self.network_id, self.chain, self.block_hash)
            + bytes(4)
            + len(bits).to_bytes(4, "big")
            + bits
            + self.signature
        )


def unsigned_message(network_id: int, chain: bytes, block_hash: bytes) -> bytes:
    """What a validator signs to say that it accepted a block."""
    return (
        bytes(2)
        + network_id.to_bytes(4, "big")
        + chain
        + _PAYLOAD_BYTES.to_bytes(4, "big")
        + bytes(6)
        + block_hash
    )


def verify(proof: FinalityProof, pin: FinalityPin, block_hash: bytes) -> Signers:
    """Verify that validators of the pin with at least 67% of its weight signed this block; see `verify_finality`."""
    message = WarpMessage.parse(proof.payload)
    if (message.network_id, message.chain) != (pin.network_id, bytes.fromhex(pin.chain[2:])):
        raise ForeignProofError(
            f"the proof is of chain {message.chain.hex()} on network {message.network_id},"
            f" not of {pin.chain[2:]} on {pin.network_id}"
        )
    if message.chain != proof.chain or message.block_hash != proof.block_hash:
        raise MalformedProofError("the proof's record and its payload name different blocks")
    if message.block_hash != block_hash:
        raise OtherBlockProofError(
            f"the proof is of block {message.block_hash.hex()}, not {block_hash.hex()}"
        )
    if message.signers.bit_length() > len(pin.validators):
        raise ForeignProofError(
            f"validator {message.signers.bit_length() - 1} is said to have signed,"
            f" but the pinned set has {len(pin.validators)}"
        )
    signed = [validator for i, validator in enumerate(pin.validators) if message.signers >> i & 1]
    weight, total = sum(v.weight for v in signed), sum(v.weight for v in pin.validators)
    if 100 * weight < QUORUM_PERCENT * total:
        raise TooFewSignersError(weight, total)
    keys = [bytes.fromhex(validator.key[2:]) for validator in signed]
    if not bls.is_signed_by_all(
        keys, unsigned_message(pin.network_id, message.chain, block_hash), message.signature
    ):
        raise ProofSignatureError("the aggregate signature is not that of the validators that it names")
    return Signers(keys=tuple(v.key for v in signed), weight=weight, total_weight=total)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise MalformedProofError("warp message: truncated")
        self._at += count
        return taken

    def integer(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def constant(self, count: int, value: int, what: str) -> None:
        found = self.integer(count)
        if found != value:
            raise MalformedProofError(f"warp message: {what} {found} instead of {value}")

    def end(self) -> None:
        if self._at != len(self._data):
            raise MalformedProofError(f"warp message: {len(self._data) - self._at} bytes after its end")
