"""The keys that make up an organisation, and which keystore holds which.

The authority's keystore belongs to the people who sign consents, grants and key rotations. The node's
keystore is unlocked by a process that runs day and night, so it holds only what that process needs: its
own ledger key and its peer identity. Secrets of key domains are in a third, which the node never opens: that
of the custodian's process (`he_keys`, `Home.custodian_keystore`). Signs nothing.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final

from coincurve import PrivateKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from usufruct.errors import KeyStoreError
from usufruct.keys.hpke import generate_hpke_key, hpke_public
from usufruct.keys.keystore import KeyStore

NODE_KEYSTORE: Final = "node.keys"
AUTHORITY_KEYSTORE: Final = "authority.keys"

NODE_LEDGER_KEY: Final = "node-ledger-secp256k1"
PEER_SEED: Final = "peer-ed25519-seed"
AUTHORITY_LEDGER_KEY: Final = "authority-ledger-secp256k1"
CONSENT_PSEUDONYM_KEY: Final = "consent-pseudonym-hmac"
HPKE_KEY: Final = "hpke-x25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKeys:
    """What a running node holds."""

    ledger_key: bytes = field(repr=False)
    """32 bytes, secp256k1: signs the node's transactions."""

    peer_seed: bytes = field(repr=False)
    """32 bytes, Ed25519 seed of the libp2p identity."""

    @property
    def verdict_key(self) -> bytes:
        """32 bytes that salts of verdicts are derived with, so that a restored node finds those of its lost self again."""
        return HKDF(hashes.SHA256(), 32, None, b"usufruct/verdict-salt/1").derive(self.ledger_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityKeys:
    """What speaks for the organisation."""

    ledger_key: bytes = field(repr=False)
    """32 bytes, secp256k1: signs grants, consents, votes and key rotations."""

    consent_pseudonym_key: bytes = field(repr=False)
    """32 bytes, HMAC-SHA256 key that pseudonyms of subjects are derived with."""

    hpke_private: bytes = field(repr=False)
    """32 bytes, X25519: opens results that were released to the organisation."""

    @property
    def hpke_public(self) -> bytes:
        """32 bytes: what custodians encrypt released results to."""
        return hpke_public(self.hpke_private)


def create_node_keys(store: KeyStore) -> NodeKeys:
    """Draw a node's keys and store them durably; raises KeyStoreError if the store has some already."""
    keys = NodeKeys(ledger_key=PrivateKey().secret, peer_seed=secrets.token_bytes(32))
    store.put_all({NODE_LEDGER_KEY: keys.ledger_key, PEER_SEED: keys.peer_seed})
    return keys


def load_node_keys(store: KeyStore) -> NodeKeys:
    """Read a node's keys; raises KeyStoreError if one is missing or malformed."""
    return NodeKeys(ledger_key=_entry(store, NODE_LEDGER_KEY), peer_seed=_entry(store, PEER_SEED))


def create_authority_keys(store: KeyStore) -> AuthorityKeys:
    """Draw an organisation's keys and store them durably; KeyStoreError if the store has some already."""
    keys = AuthorityKeys(
        ledger_key=PrivateKey().secret,
        consent_pseudonym_key=secrets.token_bytes(32),
        hpke_private=generate_hpke_key(),
    )
    store.put_all(
        {
            AUTHORITY_LEDGER_KEY: keys.ledger_key,
            CONSENT_PSEUDONYM_KEY: keys.consent_pseudonym_key,
            HPKE_KEY: keys.hpke_private,
        }
    )
    return keys


def load_authority_keys(store: KeyStore) -> AuthorityKeys:
    """Read an organisation's keys; raises KeyStoreError if one is missing or malformed."""
    return AuthorityKeys(
        ledger_key=_entry(store, AUTHORITY_LEDGER_KEY),
        consent_pseudonym_key=_entry(store, CONSENT_PSEUDONYM_KEY),
        hpke_private=_entry(store, HPKE_KEY),
    )


def _entry(store: KeyStore, name: str) -> bytes:
    value = store.get(name)
    if len(value) != 32:
        raise KeyStoreError(f"entry {name!r} of {store.path} has {len(value)} bytes, expected 32")
    return value
