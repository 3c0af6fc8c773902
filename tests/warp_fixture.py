"""Validators of our own whose keys are known, beside what real ones signed."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from eth_abi.abi import encode
from py_ecc.bls import G2ProofOfPossession as Scheme

from usufruct.ledger.finality import (
    BlockHeader,
    FinalityProof,
    ValidatorChange,
    ValidatorVersion,
    block_hash_of,
    encode_receipt,
    prove_receipt,
    receipts_root,
)
from usufruct.ledger.finality.warp import WarpMessage, unsigned_message
from usufruct.ledger.network import FinalityPin, Validator, validator_order
from usufruct.ledger.series import event_codec, next_head

WARP = json.loads((Path(__file__).parent / "vectors" / "finality.json").read_text())
PIN = FinalityPin.model_validate(WARP["pin"])
RECORDED = WARP["blocks"][-1]
BLOCK_HASH = bytes.fromhex(RECORDED["block"]["hash"][2:])


def warp_proof(payload: bytes, block_hash: bytes = BLOCK_HASH, chain: str = PIN.chain) -> FinalityProof:
    return FinalityProof(kind="warp", chain=bytes.fromhex(chain[2:]), block_hash=block_hash, payload=payload)


@lru_cache
def secret(number: int) -> int:
    return Scheme.KeyGen(bytes([number]) * 32)


@lru_cache
def public(number: int) -> str:
    return "0x" + Scheme.SkToPk(secret(number)).hex()


def own_pin(*numbers: int, weight: int = 1) -> FinalityPin:
    keys = sorted((public(number) for number in numbers), key=validator_order)
    return PIN.model_copy(update={"validators": tuple(Validator(key=key, weight=weight) for key in keys)})


def signed(pin: FinalityPin, numbers: list[int], block_hash: bytes, *, claimed: int | None = None) -> bytes:
    """A message signed by these of our own validators."""
    chain = bytes.fromhex(pin.chain[2:])
    message = unsigned_message(pin.network_id, chain, block_hash)
    position = {validator.key: i for i, validator in enumerate(pin.validators)}
    bits = sum(1 << position[public(n)] for n in set(numbers) if public(n) in position)
    return WarpMessage(
        network_id=pin.network_id,
        chain=chain,
        block_hash=block_hash,
        signers=bits if claimed is None else claimed,
        signature=Scheme.Aggregate([Scheme.Sign(secret(n), message) for n in numbers]),
    ).encode()


def change_to(
    pin: FinalityPin,
    *,
    signers: list[int],
    before: ValidatorVersion,
    address: str = "0x" + "ab" * 20,
    status: str = "0x1",
    number: int = 9,
    **changes: Any,
) -> ValidatorChange:
    """Evidence of a vote for this set, in a block of our own making that these validators signed."""
    codec = event_codec("ValidatorSet", "ValidatorSetChanged")
    arguments = {
        "chain": bytes.fromhex(pin.chain[2:]),
        "publicKeys": b"".join(bytes.fromhex(v.key[2:]) for v in pin.validators),
        "weights": [v.weight for v in pin.validators],
        "sequence": before.version + 1,
    } | changes
    arguments["head"] = changes.get("head", next_head(before.head, codec, arguments))
    data = encode(
        ["bytes", "uint64[]", "uint64", "bytes32"],
        [arguments[name] for name in ("publicKeys", "weights", "sequence", "head")],
    )
    log = {"address": address, "topics": ["0x" + codec.topic.hex(), "0x" + arguments["chain"].hex()]}
    receipt = {
        "status": status,
        "cumulativeGasUsed": "0x1",
        "logsBloom": "0x" + "00" * 256,
        "logs": [log | {"data": "0x" + data.hex()}],
    }
    encoded = [encode_receipt(receipt)]
    block = RECORDED["block"] | {"receiptsRoot": "0x" + receipts_root(encoded).hex(), "number": hex(number)}
    header = BlockHeader.from_json(block, "subnet-evm")
    block_hash = block_hash_of(header)
    return ValidatorChange(
        proof=warp_proof(signed(before.pin, signers, block_hash), block_hash),
        header=header.encode(),
        receipt=prove_receipt(encoded, 0),
        log=0,
    )
