"""Who a node is to its peers: an Ed25519 key and the libp2p peer id that follows from it.

The seed comes from the node's keystore; nothing here reads or writes a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import base58
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from usufruct.errors import InputError

SEED_BYTES: Final = 32

_TEXT = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}", re.ASCII)
_ED25519_IDENTITY_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes holding the protobuf of an Ed25519 public key of 32 bytes."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A peer id and the private key that proves it."""

    peer_id: str
    """Base58 text form, `12D3KooW…`; this is what the registry holds."""

    peer_id_bytes: bytes
    """Binary form, 38 bytes."""

    key_pair: Any = field(repr=False, compare=False)
    """The libp2p key pair; never leaves this process."""

    @classmethod
    def from_seed(cls, seed: bytes) -> PeerIdentity:
        """Derive the identity of an Ed25519 seed.

        Raises
        ------
        InputError
            Unless `seed` is 32 bytes.
        """
        if type(seed) is not bytes or len(seed) != SEED_BYTES:
            raise InputError(f"a peer identity needs a seed of {SEED_BYTES} bytes")
        key_pair = create_new_key_pair(seed)
        peer = ID.from_pubkey(key_pair.public_key)
        return cls(peer_id=str(peer), peer_id_bytes=peer.to_bytes(), key_pair=key_pair)


def parse_peer_id(text: str) -> bytes:
    """Return the 38 bytes of an Ed25519 peer id in its canonical text form.

    Raises
    ------
    InputError
        On any other text; ids of other key types are not used in this network.
    """
    if not isinstance(text, str) or _TEXT.fullmatch(text) is None:
        raise InputError(f"not a peer id of this network: {str(text)[:80]!r}", hint="it looks like 12D3KooW…")
    raw: bytes = base58.b58decode(text)
    if len(raw) != 38 or not raw.startswith(_ED25519_IDENTITY_PREFIX):
        raise InputError(f"not the peer id of an Ed25519 key: {text!r}")
    return raw


def peer_id_text(raw: bytes) -> str:
    """Text form of a peer id from the registry.

    Raises
    ------
    InputError
        If the bytes are no Ed25519 peer id; the registry takes any bytes, so this is checked at each use.
    """
    text: str = base58.b58encode(raw).decode("ascii")
    parse_peer_id(text)
    return text
