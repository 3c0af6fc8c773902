"""Signs transactions of the first kind, which every EVM chain takes. Knows no nonce and no chain but the one it is told.

`eth_account` does the same with checks of every field that cost six times as much as the signature, and `rlp` takes as
long as the signature for a list of nine strings; the tests hold the bytes against theirs.

Sources: EIP-155; Yellow Paper, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence

from coincurve import PrivateKey
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak


def address_of(private_key: bytes) -> str:
    """Checksummed address of the account that this key signs for."""
    public = PrivateKey(private_key).public_key.format(compressed=False)[1:]
    return to_checksum_address(keccak(public)[-20:])


def sign_transaction(
    key: PrivateKey,
    *,
    chain_id: int,
    nonce: int,
    gas_price: int,
    gas: int,
    to: str | None,
    data: bytes,
) -> bytes:
    """A signed call, or a contract creation when `to` is None, that carries no value."""
    recipient = b"" if to is None else bytes.fromhex(to[2:])
    call = [_integer(nonce), _integer(gas_price), _integer(gas), recipient, b"", data]
    digest = keccak(_list([*call, _integer(chain_id), b"", b""]))
    signature = key.sign_recoverable(digest, hasher=None)
    r, s = signature[:32].lstrip(b"\0"), signature[32:64].lstrip(b"\0")
    return _list([*call, _integer(signature[64] + 35 + 2 * chain_id), r, s])


def _list(items: Sequence[bytes]) -> bytes:
    """RLP of a list of strings."""
    body = b"".join([_headed(0x80, item) if len(item) != 1 or item[0] >= 0x80 else item for item in items])
    return _headed(0xC0, body)


def _headed(kind: int, body: bytes) -> bytes:
    length = len(body)
    if length < 56:
        return bytes([kind + length]) + body
    digits = _integer(length)
    return bytes([kind + 55 + len(digits)]) + digits + body


def _integer(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
