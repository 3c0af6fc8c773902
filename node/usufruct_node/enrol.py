"""Makes an organisation's home directory: keys, passphrase files, and the public record that others vote on.

A home is built in a private directory of its own and put into its place when it is whole: what is stopped on the way, even by a
kill, leaves no home, and the next attempt removes what is left of it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from usufruct.durable import sync_directory, write_private
from usufruct.errors import ConfigurationError
from usufruct.home import Home, Organisation, ParticipantFile
from usufruct.keys import identity
from usufruct.keys.keystore import KeyStore, locked
from usufruct.ledger import Network
from usufruct.ledger.signing import address_of
from usufruct.records import Role, org_id
from usufruct_node.peers import PeerIdentity

UNKNOWN_ENDPOINT = "/ip4/127.0.0.1/tcp/0"
"""Stands in the registry until the node has announced where it listens."""

_LAST = "organisation.json"
"""With this file a directory is a home."""


def create_home(
    root: Path,
    *,
    name: str,
    roles: Role,
    authority_passphrase: str,
    node_passphrase: str,
    custodian_passphrase: str | None = None,
    network: Network | None = None,
    passphrase_files: bool = False,
) -> ParticipantFile:
    """Make a home with fresh keys; whole, or not at all.

    Parameters
    ----------
    root :
        A new directory, or one that is there; files in it stay, and it keeps its mode unless it is empty.
    custodian_passphrase :
        Of the keystore for homomorphic secrets, which a custodian has beside the others.
    network :
        The network that the organisation joins, if it is known yet.
    passphrase_files :
        Keep the passphrases beside the keystores.

    Raises
    ------
    ConfigurationError
        If there is one already, or a custodian has no passphrase, or it cannot be written; nothing is overwritten.
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
    with _built(root.resolve()) as made:
        home = Home(made)
        authority = identity.create_authority_keys(
            KeyStore.create(home.authority_keystore, authority_passphrase)
        )
        node = identity.create_node_keys(KeyStore.create(home.node_keystore, node_passphrase))
        if custodian_passphrase is not None:
            KeyStore.create(home.custodian_keystore, custodian_passphrase)
        if passphrase_files:
            write_private(home.authority_passphrase, authority_passphrase.encode())
            write_private(home.node_passphrase, node_passphrase.encode())
            if custodian_passphrase is not None:
                write_private(home.custodian_passphrase, custodian_passphrase.encode())
        if network is not None:
            home.write(home.network_file.name, network)
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
        home.write(_LAST, organisation)
    return record


def check_place(root: Path) -> None:
    """Raise ConfigurationError if no home can be made here; writes nothing."""
    if (root / _LAST).exists():
        raise ConfigurationError(f"{root} is a home already", hint="choose another directory")
    nearest = next(place for place in (root, *root.resolve().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigurationError(f"{nearest} is no directory", hint="choose another directory")


def create_home_with_passphrase_files(root: Path, *, name: str, roles: Role) -> ParticipantFile:
    """Make a home whose passphrases are random and lie beside the keystores, mode 0600: for development networks."""
    return create_home(
        root,
        name=name,
        roles=roles,
        authority_passphrase=secrets.token_urlsafe(24),
        node_passphrase=secrets.token_urlsafe(24),
        custodian_passphrase=secrets.token_urlsafe(24) if Role.CUSTODIAN in roles else None,
        passphrase_files=True,
    )


@contextmanager
def _built(root: Path) -> Iterator[Path]:
    """A private directory whose files are in `root` when the block has ended, or none of them when it fails.

    It lies beside a root that is new, and in one that is there: that may be a mount point. What kills left goes first.
    """
    is_there = root.is_dir()
    parent, prefix = root if is_there else root.parent, f".{root.name}.making-"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent):
            for path in parent.iterdir():
                if path.name.startswith(prefix):
                    _clear(path, root)
            made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                yield made
                if is_there:
                    _fill(root, made)
                else:
                    made.rename(root)
                sync_directory(parent)
            finally:
                _clear(made, root)
    except FileExistsError as exc:
        raise ConfigurationError(
            f"{exc.filename2 or exc.filename} exists already",
            hint="choose another directory, or move it away",
        ) from exc
    except OSError as exc:
        raise ConfigurationError(f"{root} cannot be made a home: {exc.strerror}") from exc


def _fill(root: Path, made: Path) -> None:
    if list(root.iterdir()) == [made]:
        root.chmod(0o700)
    for file in sorted(made.iterdir(), key=lambda file: file.name == _LAST):
        # Unlike a rename, takes no file's place; and shows what of an unfinished home is in place.
        (root / file.name).hardlink_to(file)


def _clear(made: Path, root: Path) -> None:
    """Remove the place where a home was built, and an unfinished home with it."""
    if made.is_dir() and not _is_same(made / _LAST, root / _LAST):
        for file in made.iterdir():
            if _is_same(file, root / file.name):
                (root / file.name).unlink()
    shutil.rmtree(made, ignore_errors=True)


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
