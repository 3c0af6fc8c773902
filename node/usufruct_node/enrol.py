"""Makes an organisation's home directory: keys, passphrase files, and the public record that others vote on."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from usufruct.errors import ConfigurationError
from usufruct.home import Home, Organisation, ParticipantFile, write_private
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore
from usufruct.ledger.signing import address_of
from usufruct.records import Role, org_id
from usufruct_node.peers import PeerIdentity

UNKNOWN_ENDPOINT = "/ip4/127.0.0.1/tcp/0"
"""Stands in the registry until the node has announced where it listens."""


def create_home(
    root: Path,
    *,
    name: str,
    roles: Role,
    authority_passphrase: str,
    node_passphrase: str,
    custodian_passphrase: str | None = None,
) -> ParticipantFile:
    """Make a home with fresh keys.

    Parameters
    ----------
    custodian_passphrase :
        Of the keystore for homomorphic secrets, which a custodian has beside the others.

    Raises
    ------
    ConfigurationError
        If there is one already, or a custodian has no passphrase; nothing is overwritten.
    InputError
        If the name is no label.
    """
    organisation = Organisation(
        name=name, roles=[r.name.lower() for r in Role if r and r in roles and r.name]
    )
    org_id(name)
    if (Role.CUSTODIAN in roles) != (custodian_passphrase is not None):
        raise ConfigurationError("a custodian, and nobody else, has a passphrase for homomorphic secrets")
    check_place(root)
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
    except OSError as exc:
        raise ConfigurationError(f"{root} cannot be made a home: {exc.strerror}") from exc
    home = Home(root.resolve())
    authority = identity.create_authority_keys(KeyStore.create(home.authority_keystore, authority_passphrase))
    node = identity.create_node_keys(KeyStore.create(home.node_keystore, node_passphrase))
    if custodian_passphrase is not None:
        KeyStore.create(home.custodian_keystore, custodian_passphrase)
    record = ParticipantFile(
        name=name,
        roles=organisation.roles,
        account=address_of(authority.ledger_key),
        node_account=address_of(node.ledger_key),
        hpke_key=authority.hpke_public.hex(),
        peer_id=PeerIdentity.from_seed(node.peer_seed).peer_id_bytes.hex(),
        endpoint=UNKNOWN_ENDPOINT,
    )
    home.write("participant.json", record)
    home.write("organisation.json", organisation)
    return record


def check_place(root: Path) -> None:
    """Raise ConfigurationError if no home can be made here; writes nothing."""
    if (root / "organisation.json").exists():
        raise ConfigurationError(f"{root} is a home already", hint="choose another directory")
    nearest = next(place for place in (root, *root.resolve().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigurationError(f"{nearest} is no directory", hint="choose another directory")


def create_home_with_passphrase_files(root: Path, *, name: str, roles: Role) -> ParticipantFile:
    """Make a home whose passphrases are random and lie beside the keystores, mode 0600: for development networks."""
    authority, node = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    custodian = secrets.token_urlsafe(24) if Role.CUSTODIAN in roles else None
    record = create_home(
        root,
        name=name,
        roles=roles,
        authority_passphrase=authority,
        node_passphrase=node,
        custodian_passphrase=custodian,
    )
    home = Home(root.resolve())
    if custodian is not None:
        write_private(home.custodian_passphrase, custodian.encode("ascii"))
    write_private(home.authority_passphrase, authority.encode("ascii"))
    write_private(home.node_passphrase, node.encode("ascii"))
    return record
