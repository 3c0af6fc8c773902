"""Signs transactions of the first kind, which every EVM chain takes. Knows no nonce and no chain but the one it is told.

`eth_account` does the same with checks of every field that cost six times as much as the signature; the tests hold
the two against each other.

Source: EIP-155.
"""

from __future__ import annotations

import rlp
from coincurve import PrivateKey
from eth_utils.crypto import keccak


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
    digest = keccak(rlp.encode([*call, _integer(chain_id), b"", b""]))
    signature = key.sign_recoverable(digest, hasher=None)
    r, s = signature[:32].lstrip(b"\0"), signature[32:64].lstrip(b"\0")
    return bytes(rlp.encode([*call, _integer(signature[64] + 35 + 2 * chain_id), r, s]))


def _integer(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
