"""Key domains: the secret in a keystore, the public record for the ledger.

A key domain is one homomorphic secret and everything sealed under it. Its record names it by a salted
commitment, so the ledger can say which key a ciphertext belongs to and the record tells nothing of the key.
Encrypts and decrypts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from usufruct.errors import ContainerError, InputError, KeyStoreError
from usufruct.he.parameters import BFV_LINEAR, Parameters, parameters_by_id
from usufruct.he.scheme import scheme_of
from usufruct.he.secret import SecretKey, key_id_of
from usufruct.keys.keystore import KeyStore
from usufruct.records import id_digits

DOMAIN_PREFIX: Final = "key-domain:"
_RECORD_FIELDS = {"scheme", "parameters_id", "key_id", "commitment"}


def create_key_domain(parameters: Parameters = BFV_LINEAR) -> tuple[SecretKey, dict[str, object]]:
    """Draw a secret; returns it with the public record of its domain.

    The record holds `scheme` (text) and `parameters_id`, `key_id`, `commitment` (32 bytes each).
    """
    secret = scheme_of(parameters).generate_secret_key(parameters)
    return secret, key_domain_record(secret)


def key_domain_record(secret: SecretKey) -> dict[str, object]:
    """The public record of a secret's key domain."""
    return {
        "scheme": secret.parameters.scheme,
        "parameters_id": secret.parameters.parameters_id,
        "key_id": secret.key_id,
        "commitment": secret.commitment,
    }


def check_key_domain_record(record: Mapping[str, object]) -> None:
    """Check a record that somebody else wrote.

    Raises
    ------
    KeyStoreError
        If a field is missing, unknown or malformed, the parameters are not accepted, or the key id does not
        follow from the commitment.
    """
    if set(record) != _RECORD_FIELDS:
        raise KeyStoreError(f"a key domain record has the fields {sorted(_RECORD_FIELDS)}")
    parameters_id, key_id, commitment = record["parameters_id"], record["key_id"], record["commitment"]
    if not isinstance(parameters_id, bytes) or not isinstance(commitment, bytes) or len(commitment) != 32:
        raise KeyStoreError("a key domain record has 32 bytes for each of its ids")
    try:
        parameters = parameters_by_id(parameters_id)
    except ContainerError as exc:
        raise KeyStoreError(str(exc)) from exc
    if record["scheme"] != parameters.scheme:
        raise KeyStoreError(f"scheme {record['scheme']!r} is not that of the parameter set")
    if key_id != key_id_of(parameters_id, commitment):
        raise KeyStoreError("the key id does not follow from the commitment")


def find_secret(store: KeyStore, key_domain: str) -> SecretKey:
    """The secret of a key domain, from the first hex digits of its id, as far as they are unambiguous in this keystore.

    Raises
    ------
    InputError
        If the text is no beginning of an id, or more than one begins with it.
    KeyStoreError
        If no secret here is of such a domain.
    """
    digits = id_digits(key_domain, "key domain")
    found = [key_id for key_id in key_ids(store) if key_id.hex().startswith(digits)]
    if not found:
        raise KeyStoreError(f"this keystore holds no secret of a key domain {digits[:12]}")
    if len(found) > 1:
        raise InputError(f"{len(found)} key domains begin with {digits}", hint="give more digits of the id")
    return load_secret(store, found[0])


def store_secret(store: KeyStore, secret: SecretKey) -> None:
    """Put a key domain's secret into a keystore; raises KeyStoreError if it is there already."""
    store.put(DOMAIN_PREFIX + secret.key_id.hex(), secret.to_bytes())


def load_secret(store: KeyStore, key_id: bytes) -> SecretKey:
    """Read a key domain's secret; raises KeyStoreError if it is missing, malformed or another domain's."""
    secret = SecretKey.from_bytes(store.get(DOMAIN_PREFIX + key_id.hex()))
    if secret.key_id != key_id:
        raise KeyStoreError(f"the entry for key domain {key_id.hex()[:16]} holds another domain's secret")
    return secret


def destroy_secret(store: KeyStore, key_id: bytes) -> None:
    """Delete a key domain's secret: what was sealed under it can never be opened again."""
    store.delete(DOMAIN_PREFIX + key_id.hex())


def key_ids(store: KeyStore) -> list[bytes]:
    """Key ids of the secrets in a keystore, sorted."""
    names = (name.removeprefix(DOMAIN_PREFIX) for name in store.names() if name.startswith(DOMAIN_PREFIX))
    return [bytes.fromhex(name) for name in names]
