"""EIP-712 typed data of the network: receipts, contributions, verdicts, releases, statements on copies. Pure signing, recovery.

The domain carries chain id and contract, so nothing signed for one network or contract is valid on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eth_utils.crypto import keccak

from usufruct.errors import VerificationError

if TYPE_CHECKING:
    from usufruct.ledger.accounts import SignableMessage

CONSENT_RECEIPT = {
    "ConsentReceipt": [
        {"name": "steward", "type": "bytes32"},
        {"name": "position", "type": "uint32"},
        {"name": "pseudonym", "type": "bytes32"},
        {"name": "scope", "type": "bytes32"},
        {"name": "noticeDigest", "type": "bytes32"},
        {"name": "givenAt", "type": "uint64"},
        {"name": "expiresAt", "type": "uint64"},
    ]
}

CALL = {
    "Call": [
        {"name": "steward", "type": "bytes32"},
        {"name": "digest", "type": "bytes32"},
    ]
}

CONTRIBUTION = {
    "Contribution": [
        {"name": "call", "type": "bytes32"},
        {"name": "member", "type": "bytes32"},
        {"name": "blocks", "type": "bytes32"},
    ]
}

VERDICT = {
    "Verdict": [
        {"name": "jobId", "type": "bytes32"},
        {"name": "commitment", "type": "bytes32"},
        {"name": "deadline", "type": "uint64"},
    ]
}

RELEASE = {
    "Release": [
        {"name": "jobId", "type": "bytes32"},
        {"name": "resultDigest", "type": "bytes32"},
        {"name": "sealedDigest", "type": "bytes32"},
        {"name": "sigmaMicro", "type": "uint64"},
        {"name": "rhoMicro", "type": "uint64"},
    ]
}

STORAGE_PROOF = {
    "StorageProof": [
        {"name": "artifactId", "type": "bytes32"},
        {"name": "holder", "type": "bytes32"},
        {"name": "challenger", "type": "bytes32"},
        {"name": "nonce", "type": "bytes32"},
        {"name": "segmentsDigest", "type": "bytes32"},
        {"name": "proof", "type": "bytes32"},
        {"name": "answeredAt", "type": "uint64"},
    ]
}

PLACEMENT_NOTICE = {
    "PlacementNotice": [
        {"name": "artifactId", "type": "bytes32"},
        {"name": "sequence", "type": "uint64"},
        {"name": "leftOut", "type": "bytes32[]"},
    ]
}

ERASURE = {
    "Erasure": [
        {"name": "artifactId", "type": "bytes32"},
        {"name": "holder", "type": "bytes32"},
        {"name": "what", "type": "uint8"},
        {"name": "blocks", "type": "uint64"},
        {"name": "erasedAt", "type": "uint64"},
    ]
}


def _message(
    types: dict[str, Any], values: Mapping[str, Any], *, chain_id: int, contract: str
) -> SignableMessage:
    from usufruct.ledger.accounts import encode_typed_data

    domain = {"name": "Usufruct", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    return encode_typed_data(domain, types, dict(values))


def digest(types: dict[str, Any], values: Mapping[str, Any], *, chain_id: int, contract: str) -> bytes:
    """EIP-712 digest, 32 bytes."""
    signable = _message(types, values, chain_id=chain_id, contract=contract)
    return bytes(keccak(b"\x19" + signable.version + signable.header + signable.body))


def sign(
    private_key: bytes, types: dict[str, Any], values: Mapping[str, Any], *, chain_id: int, contract: str
) -> bytes:
    """Sign; 65 bytes r || s || v."""
    from usufruct.ledger.accounts import Account

    signable = _message(types, values, chain_id=chain_id, contract=contract)
    return bytes(Account.sign_message(signable, private_key).signature)


def recover(
    signature: bytes, types: dict[str, Any], values: Mapping[str, Any], *, chain_id: int, contract: str
) -> str:
    """Checksummed address of the account that signed.

    Raises
    ------
    VerificationError
        If the signature is malformed.
    """
    from usufruct.ledger.accounts import Account

    try:
        return str(
            Account.recover_message(
                _message(types, values, chain_id=chain_id, contract=contract), signature=signature
            )
        )
    except Exception as exc:
        raise VerificationError(f"malformed signature: {exc}") from exc


def check_signature(
    signer: str,
    signature: bytes,
    types: dict[str, Any],
    values: Mapping[str, Any],
    *,
    chain_id: int,
    contract: str,
) -> None:
    """Check who signed.

    Raises
    ------
    VerificationError
        If the signature is malformed or not by `signer`.
    """
    actual = recover(signature, types, values, chain_id=chain_id, contract=contract)
    if actual != signer:
        raise VerificationError(f"signed by {actual}, not by {signer}")
