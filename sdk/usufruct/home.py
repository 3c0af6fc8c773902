"""One organisation's home directory: names of files, who the organisation is, where its own node listens.

Holds no secret itself: keystores are opened by `usufruct.keys`, the token is read by whoever calls the node.
"""

from __future__ import annotations

import fcntl
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from usufruct.durable import write_private
from usufruct.errors import ConfigurationError, NodeUnreachableError
from usufruct.fields import fault_of
from usufruct.records import MemberStatus, OrgId, Participant, Role, org_id

Model = TypeVar("Model", bound=BaseModel)

MAX_ENDPOINT_BYTES = 256
_ACCOUNT = re.compile("0x[0-9a-fA-F]{40}")
_PEER_ID = re.compile(rb"\x00\x24\x08\x01\x12\x20.{32}", re.DOTALL)
"""The identity multihash of an Ed25519 key in libp2p's protobuf."""


class Organisation(BaseModel):
    """`organisation.json`: the member's name and the roles that it asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    roles: list[str]

    @property
    def id(self) -> OrgId:
        """Ledger id of the organisation."""
        return org_id(self.name)

    @property
    def role_bits(self) -> Role:
        """Roles as the registry's bits."""
        bits = Role.NONE
        for role in self.roles:
            try:
                bits |= Role[role.upper()]
            except KeyError as exc:
                known = ", ".join(r.name.lower() for r in Role if r.name)
                raise ConfigurationError(f"{role!r} is no role", hint=f"roles are {known}") from exc
        if bits == Role.NONE:
            raise ConfigurationError("a member has at least one role")
        return bits


class ParticipantFile(BaseModel):
    """`participant.json`: everything public about a would-be member; hand it to a member that proposes the admission."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    roles: list[str]
    account: str
    node_account: str
    hpke_key: str
    peer_id: str
    endpoint: str

    @classmethod
    def load(cls, path: Path) -> ParticipantFile:
        """Read a file that somebody else wrote.

        Raises
        ------
        ConfigurationError
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as exc:
            raise ConfigurationError(f"{path} is no participant file: {fault_of(exc)}") from exc

    def to_participant(self) -> Participant:
        """The ledger record; the contract sets the status.

        Raises
        ------
        ConfigurationError
            If the ledger would not take it, or would and the member could not be reached or sealed to ever after.
        """
        try:
            record = Participant(
                id=org_id(self.name),
                account=self.account,
                node_account=self.node_account,
                roles=Organisation(name=self.name, roles=self.roles).role_bits,
                status=MemberStatus.NONE,
                hpke_key=bytes.fromhex(self.hpke_key),
                peer_id=bytes.fromhex(self.peer_id),
                endpoint=self.endpoint,
            )
            if len(record.hpke_key) != 32 or not any(record.hpke_key):
                raise ValueError("the HPKE key is no X25519 key of 32 bytes")
            if not _PEER_ID.fullmatch(record.peer_id):
                raise ValueError("the peer id is not that of an Ed25519 key")
            if len(self.endpoint.encode()) > MAX_ENDPOINT_BYTES:
                raise ValueError(f"the endpoint has more than {MAX_ENDPOINT_BYTES} bytes")
            for account in (self.account, self.node_account):
                if not _ACCOUNT.fullmatch(account) or not int(account, 16):
                    raise ValueError(f"{account!r} is no account")
        except ValueError as exc:
            raise ConfigurationError(f"participant file of {self.name}: {exc}") from exc
        return record


class NodeAddress(BaseModel):
    """`api.json`: written by a running node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one directory, readable by its owner only."""

    root: Path

    @classmethod
    def at(cls, root: Path | str) -> Home:
        """The home at `root`; it must exist.

        Raises
        ------
        ConfigurationError
        """
        path = Path(root).expanduser().resolve()
        if not (path / "organisation.json").is_file():
            raise ConfigurationError(
                f"{path} is not a home directory",
                hint="make one with `usufruct-node init --home DIR --name NAME --role ROLE`",
            )
        return cls(path)

    @property
    def network_file(self) -> Path:
        """Chain, contracts, endpoints."""
        return self.root / "network.json"

    @property
    def authority_keystore(self) -> Path:
        """Keys of the organisation's authority; never opened by the node."""
        return self.root / "authority.keys"

    @property
    def authority_passphrase(self) -> Path:
        """Default passphrase file of the authority keystore; absent means: ask."""
        return self.root / "authority.passphrase"

    @property
    def node_keystore(self) -> Path:
        """Keys of the node: ledger account, libp2p identity."""
        return self.root / "node.keys"

    @property
    def custodian_keystore(self) -> Path:
        """Homomorphic secrets; opened by the custodian's process and the steward's commands, never by the node."""
        return self.root / "custodian.keys"

    @property
    def custodian_passphrase(self) -> Path:
        """Default passphrase file of the custodian's keystore; absent means: ask."""
        return self.root / "custodian.passphrase"

    @property
    def custodian_database(self) -> Path:
        """What the custodian remembers: releases made, of whom they told, openings of each key."""
        return self.root / "custodian.db"

    @property
    def node_passphrase(self) -> Path:
        """Default passphrase file of the node keystore; absent means: ask."""
        return self.root / "node.passphrase"

    @property
    def blocks(self) -> Path:
        """Embedded block store."""
        return self.root / "blocks"

    @property
    def kubo_catalogue(self) -> Path:
        """What the blocks in Kubo are kept for, where Kubo is the block store."""
        return self.root / "kubo"

    @property
    def kubo_token(self) -> Path:
        """Credentials for Kubo's RPC, `user:secret`."""
        return self.root / "kubo.token"

    @property
    def expansion_cache(self) -> Path:
        """Expanded seeds of blocks, kept from one job to the next; can be deleted at any time."""
        return self.root / "expansions"

    @property
    def index_database(self) -> Path:
        """Finalised ledger events as SQL."""
        return self.root / "index.db"

    @property
    def node_database(self) -> Path:
        """What only this node knows: salts of its verdicts, what its blocks are for, releases given out."""
        return self.root / "node.db"

    @property
    def consent_database(self) -> Path:
        """A steward's receipts; never leaves the home."""
        return self.root / "consent.db"

    @property
    def api_token(self) -> Path:
        """Bearer token of the node's HTTP interface."""
        return self.root / "api.token"

    def organisation(self) -> Organisation:
        """Who this home belongs to."""
        return _load(Organisation, self.root / "organisation.json")

    def node_address(self) -> NodeAddress:
        """Where the running node listens.

        Raises
        ------
        NodeUnreachableError
            If no node runs on this home.
        """
        path = self.root / "api.json"
        if not path.is_file() or not self._lock_is_held():
            raise NodeUnreachableError(f"no node runs on {self.root}")
        return _load(NodeAddress, path)

    def _lock_is_held(self) -> bool:
        """A node that was killed leaves `api.json` behind, and its port to whoever takes it; its lock is gone."""
        try:
            with (self.root / "node.lock").open("a") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    def write(self, name: str, model: BaseModel) -> None:
        """Write a small JSON file durably, mode 0600."""
        write_private(self.root / name, (json.dumps(model.model_dump(mode="json"), indent=2) + "\n").encode())


def _load(model: type[Model], path: Path) -> Model:
    try:
        return model.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {fault_of(exc)}") from exc
