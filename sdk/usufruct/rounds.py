"""Step 2 for several organisations: a steward calls for updates, members encrypt theirs under its key, it takes them in.

A call says what an update is, how long it may be, and under which key it is encrypted; the steward's authority signs it. A
contribution is one file, a CAR: the record that the member's authority signed, then its ciphertext blocks. What the
ciphertexts were made from goes with them, encrypted to the steward, who holds the key anyway: so what is no honest
encryption of a clipped update is refused before it is part of anything (`usufruct.he.contribution` says why it has to be).
Posts nothing and stores nothing but the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from usufruct.content import Cid, Codec, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.durable import new_file, translated
from usufruct.errors import (
    CarError,
    ConfigurationError,
    ContributionRefusedError,
    EnvelopeError,
    FeatureError,
    InputError,
    IntegrityError,
    KernelParameterError,
    ManifestError,
    VerificationError,
    WrongKeyDomainError,
)
from usufruct.features import MAX_QUANTISED, Column, Extractor, FeatureSchema
from usufruct.he import bgv
from usufruct.he.container import Form, parse
from usufruct.he.contribution import (
    RANDOMNESS_BYTES,
    Clip,
    Contribution,
    check_contribution,
    clip_update,
    encrypt_contribution,
)
from usufruct.he.kernels import BundleShape
from usufruct.he.parameters import Parameters, parameters_by_id
from usufruct.he.secret import SecretKey
from usufruct.keys import hpke
from usufruct.ledger import Network, typed_data
from usufruct.records import Participant, label

CALL_TYPE: Final = "usufruct/call/1"
CONTRIBUTION_TYPE: Final = "usufruct/contribution/1"
UPDATE_KIND: Final = "update"

MAX_ENTRIES: Final = 200_000
"""Entries of an update: what a release has room for."""

_CALL_BYTES: Final = 1 << 20
_TERMS = {"name", "extractor", "entries", "max_abs", "max_l2", "scale", "key_id", "parameters_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms:
    """What every update of a round keeps to; public to members."""

    name: str
    extractor: Extractor
    """What computed the updates: the training code or model that they change."""

    n_entries: int

    max_abs: float
    """Bound on the magnitude of an entry, natural units."""

    max_l2: float
    """Bound on the 2-norm of an update, natural units: what one member can weigh in the sum."""

    scale: int
    """Integer units per 1.0."""

    key_id: bytes
    parameters: Parameters

    def __post_init__(self) -> None:
        """Raise FeatureError if there can be no such round."""
        for what, bound in (("max_abs", self.max_abs), ("max_l2", self.max_l2)):
            if type(bound) is not float or not math.isfinite(bound) or bound <= 0:
                raise FeatureError(f"{what} has to be a positive finite float")
        if type(self.n_entries) is not int or not 1 <= self.n_entries <= MAX_ENTRIES:
            raise FeatureError(f"an update has 1 to {MAX_ENTRIES} entries")
        if type(self.scale) is not int or not 1 <= self.scale <= MAX_QUANTISED:
            raise FeatureError(f"scale has to be an integer from 1 to {MAX_QUANTISED}")
        if self.parameters.scheme != "bgv":
            raise FeatureError(
                "updates are encrypted under bgv", hint="`usufruct key-domain create --parameters moments`"
            )
        if not 1 <= self._highest * self.scale <= MAX_QUANTISED:
            raise FeatureError(
                f"bounds of {self.max_abs:g} and {self.max_l2:g} at scale {self.scale} are no 1 to {MAX_QUANTISED} units"
            )
        self.schema(("one",))
        self.shape(1)

    @property
    def clip(self) -> Clip:
        """The bounds in integer units, rounded down: nothing longer than declared ever counts."""
        # No update is longer than one whose entries are all as large as may be.
        longest = min(self.max_l2, self._highest * math.sqrt(self.n_entries))
        return Clip(
            n_entries=self.n_entries,
            max_abs=int(self._highest * self.scale),
            max_l2=int(longest * self.scale),
        )

    def shape(self, n_members: int) -> BundleShape:
        """Of the bundle of as many updates: a column is a member, a row an entry."""
        clip = self.clip
        try:
            return BundleShape(
                n_rows=clip.n_entries,
                n_features=n_members,
                max_abs=clip.max_abs,
                max_l2=clip.max_l2,
                key_id=self.key_id,
                parameters=self.parameters,
            )
        except KernelParameterError as exc:
            raise FeatureError(f"there can be no such round: {exc}", hint="declare a smaller scale") from exc

    def schema(self, members: Sequence[str]) -> FeatureSchema:
        """What the columns are: one for each member, in order."""
        highest = self._highest
        return FeatureSchema(
            name=self.name,
            kind=UPDATE_KIND,
            columns=tuple(Column(name=member, minimum=-highest, maximum=highest) for member in members),
            extractor=self.extractor,
            max_l2=self.max_l2,
            scale=self.scale,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain form for DAG-CBOR."""
        return {
            "name": self.name,
            "extractor": self.extractor.to_dict(),
            "entries": self.n_entries,
            "max_abs": self.max_abs,
            "max_l2": self.max_l2,
            "scale": self.scale,
            "key_id": self.key_id,
            "parameters_id": self.parameters.parameters_id,
        }

    @classmethod
    def from_dict(cls, told: object) -> RoundTerms:
        """Parse strictly; raises ManifestError."""
        if not isinstance(told, Mapping) or set(told) != _TERMS:
            raise ManifestError(f"a round's terms are {', '.join(sorted(_TERMS))}")
        if not isinstance(told["key_id"], bytes) or not isinstance(told["parameters_id"], bytes):
            raise ManifestError("a round's key_id and parameters_id are bytes")
        try:
            return cls(
                name=told["name"],
                extractor=Extractor.from_dict(told["extractor"]),
                n_entries=told["entries"],
                max_abs=told["max_abs"],
                max_l2=told["max_l2"],
                scale=told["scale"],
                key_id=told["key_id"],
                parameters=parameters_by_id(told["parameters_id"]),
            )
        except (FeatureError, IntegrityError) as exc:
            raise ManifestError(f"a round's terms: {exc}") from exc

    @property
    def _highest(self) -> float:
        """An entry is no larger than the whole update is long."""
        return min(self.max_abs, self.max_l2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A steward's call for updates."""

    steward: str
    scope: str
    """Label of the purpose for which the updates may be summed."""

    terms: RoundTerms
    public_key: bytes = field(repr=False)
    """A sealed block of zeros, under which contributions are encrypted."""

    signature: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Raise InputError, ContainerError or WrongKeyDomainError if steward, purpose or key are none."""
        label(self.steward)
        label(self.scope)
        parse(
            self.public_key, key_id=self.terms.key_id, parameters=self.terms.parameters, forms=(Form.SEEDED,)
        )

    @property
    def key_digest(self) -> bytes:
        """SHA-256 of the public key, 32 bytes."""
        return hashlib.sha256(self.public_key).digest()

    @property
    def digest(self) -> bytes:
        """What contributions answer to, 32 bytes; see `call_digest`."""
        return call_digest(
            steward=self.steward, scope=self.scope, terms=self.terms, key_digest=self.key_digest
        )

    def signed(self, network: Network, signing_key: bytes) -> Call:
        """The call with its steward's signature."""
        signature = typed_data.sign(signing_key, typed_data.CALL, self._values(), **_domain(network))
        return replace(self, signature=signature)

    def check(self, network: Network, steward: Participant) -> None:
        """Check that the steward's authority signed it; raises VerificationError."""
        if steward.name != self.steward:
            raise VerificationError(f"the call is of {self.steward}, not of {steward.name}")
        typed_data.check_signature(
            steward.account, self.signature, typed_data.CALL, self._values(), **_domain(network)
        )

    def to_bytes(self) -> bytes:
        """As it is handed round."""
        return dag.encode(
            {
                "type": CALL_TYPE,
                "steward": self.steward,
                "scope": self.scope,
                "terms": self.terms.to_dict(),
                "public_key": self.public_key,
                "signature": self.signature,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Call:
        """Parse strictly; raises ManifestError, ContainerError or WrongKeyDomainError. Says nothing of who signed."""
        if len(data) > _CALL_BYTES:
            raise ManifestError(f"a call for updates has at most {_CALL_BYTES} bytes")
        record = dag.decode_map(data)
        if record.get("type") != CALL_TYPE or set(record) != {
            "type",
            "steward",
            "scope",
            "terms",
            "public_key",
            "signature",
        }:
            raise ManifestError("not a call for updates")
        steward, scope, key, signature = (record[k] for k in ("steward", "scope", "public_key", "signature"))
        if not isinstance(steward, str) or not isinstance(scope, str):
            raise ManifestError("a call for updates: `steward` or `scope` is no text")
        if not isinstance(key, bytes) or not isinstance(signature, bytes):
            raise ManifestError("a call for updates: `public_key` or `signature` is no bytes")
        terms = RoundTerms.from_dict(record["terms"])
        try:
            return cls(steward=steward, scope=scope, terms=terms, public_key=key, signature=signature)
        except InputError as exc:
            raise ManifestError(f"a call for updates: {exc}") from exc

    def _values(self) -> dict[str, object]:
        return {"steward": label(self.steward), "digest": self.digest}


def call_digest(*, steward: str, scope: str, terms: RoundTerms, key_digest: bytes) -> bytes:
    """SHA-256 of a call, 32 bytes, with its key's digest in the key's place: a manifest has room for that."""
    said = {
        "type": CALL_TYPE,
        "steward": steward,
        "scope": scope,
        "terms": terms.to_dict(),
        "public_key": key_digest,
    }
    return hashlib.sha256(dag.encode(said)).digest()


def make_call(secret: SecretKey, terms: RoundTerms, *, steward: str, scope: str) -> Call:
    """A call with a fresh public key; not signed yet.

    Parameters
    ----------
    secret :
        Of the key domain that the terms name.

    Raises
    ------
    FeatureError, InputError
    """
    if secret.key_id != terms.key_id:
        raise ConfigurationError("the terms name another key domain than the secret's")
    return Call(steward=steward, scope=scope, terms=terms, public_key=bgv.public_key_of(secret))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributed:
    """A member's contribution, as its file has it."""

    call: bytes
    """Digest of the call that it answers."""

    member: str
    blocks: tuple[bytes, ...] = field(repr=False)
    randomness: bytes = field(repr=False)
    """What the blocks were made from, encrypted to the steward."""

    signature: bytes = field(default=b"", repr=False)

    @property
    def cids(self) -> tuple[Cid, ...]:
        """Of the blocks, in order."""
        return tuple(map(Cid.of, self.blocks))


def contribute(
    call: Call,
    update: npt.NDArray[np.floating[Any]],
    *,
    member: str,
    recipient_key: bytes,
    network: Network,
    signing_key: bytes,
) -> Contributed:
    """Clip, quantise and encrypt an update; the caller has checked the call.

    Parameters
    ----------
    update :
        Shape (n_entries,), natural units; what is longer than the terms allow is shortened, rounded towards zero.
    recipient_key :
        32 bytes, X25519: the steward's, from the registry.

    Raises
    ------
    FeatureError
        If the update has another shape, or an entry that is not finite.
    EnvelopeError
        If the steward's key is none.
    """
    clip = call.terms.clip
    quantised = clip_update(update, scale=call.terms.scale, clip=clip)
    made = encrypt_contribution(quantised, call.public_key, clip)
    found = Contributed(call=call.digest, member=member, blocks=made.blocks, randomness=b"")
    found = replace(found, randomness=hpke.seal_to(recipient_key, made.randomness, _info(found)))
    signature = typed_data.sign(
        signing_key,
        typed_data.CONTRIBUTION,
        signed_values(found.call, member, found.cids),
        **_domain(network),
    )
    return replace(found, signature=signature)


def write_contribution(contributed: Contributed, path: Path) -> None:
    """Put a contribution into a new file, whole or not at all; raises InputError if the file exists."""
    record = {
        "type": CONTRIBUTION_TYPE,
        "call": contributed.call,
        "member": contributed.member,
        "blocks": list(contributed.cids),
        "randomness": contributed.randomness,
        "signature": contributed.signature,
    }
    data = dag.encode(record)
    root = Cid.of(data, Codec.DAG_CBOR)
    taken = InputError(f"{path} exists already", hint="choose another name, or move it away")
    with translated(f"{path} cannot be written"), new_file(path, taken) as file:
        writer = CarWriter(file, [root])
        writer.add(root, data)
        for block in contributed.blocks:
            writer.add(Cid.of(block), block)


def read_contribution(path: Path, *, most_blocks: int) -> Contributed:
    """Read a contribution's file strictly; says nothing yet of who made it, or of what is in the blocks.

    Parameters
    ----------
    most_blocks :
        Blocks that an update of the round has.

    Raises
    ------
    InputError
        If the file cannot be read.
    CarError, ManifestError, BlockMismatchError
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            reader = CarReader(file)
            sections = iter(reader)
            root, data = next(sections, (None, b""))
            if root is None or reader.roots != (root,) or root.codec != Codec.DAG_CBOR:
                raise CarError("a contribution has one root, its record, and begins with it")
            found, cids = _read_record(dag.decode_map(data), most_blocks)
            blocks = []
            for due in cids:
                cid, block = next(sections, (None, b""))
                if cid != due:
                    raise CarError(f"the contribution holds {cid} where its record names {due}")
                blocks.append(block)
            if next(sections, None) is not None:
                raise CarError("the contribution holds more blocks than its record names")
        except OSError as exc:
            raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    return replace(found, blocks=tuple(blocks))


def _read_record(record: Mapping[str, object], most_blocks: int) -> tuple[Contributed, list[Cid]]:
    fields = {"type", "call", "member", "blocks", "randomness", "signature"}
    if record.get("type") != CONTRIBUTION_TYPE or set(record) != fields:
        raise ManifestError("not a contribution")
    call, member, cids = record["call"], record["member"], record["blocks"]
    randomness, signature = record["randomness"], record["signature"]
    if not isinstance(call, bytes) or not isinstance(member, str) or not isinstance(cids, list):
        raise ManifestError("contribution: a field has the wrong type")
    if not isinstance(randomness, bytes) or not isinstance(signature, bytes):
        raise ManifestError("contribution: a field has the wrong type")
    if any(not isinstance(cid, Cid) or cid.codec != Codec.RAW for cid in cids) or len(cids) > most_blocks:
        raise ManifestError(f"contribution: `blocks` are no list of up to {most_blocks} raw CIDs")
    try:
        label(member)
    except InputError as exc:
        raise ManifestError(f"contribution: {exc}") from exc
    found = Contributed(call=call, member=member, blocks=(), randomness=randomness, signature=signature)
    return found, [cid for cid in cids if isinstance(cid, Cid)]


def check_contributed(
    contributed: Contributed, call: Call, *, member: Participant, hpke_private: bytes, network: Network
) -> None:
    """Check who made a contribution and that it is an honest encryption of a clipped update.

    Parameters
    ----------
    member :
        Whom the registry knows by the contribution's name.
    hpke_private :
        The steward's.

    Raises
    ------
    VerificationError
        If it answers another call, or the member's authority did not sign it.
    ContributionRefusedError, ContainerError, WrongKeyDomainError
        If it is not what it says.
    """
    if contributed.call != call.digest:
        raise VerificationError(f"the contribution of {contributed.member} answers another call")
    check_signed(network, member, contributed.call, contributed.cids, contributed.signature)
    try:
        randomness = hpke.open_from(hpke_private, contributed.randomness, _info(contributed))
    except EnvelopeError as exc:
        raise ContributionRefusedError(
            f"what the contribution of {contributed.member} was made from does not open"
        ) from exc
    if len(randomness) != RANDOMNESS_BYTES:
        raise ContributionRefusedError(f"{len(randomness)} bytes of randomness from {contributed.member}")
    check_contribution(
        Contribution(blocks=contributed.blocks, randomness=randomness), call.public_key, call.terms.clip
    )


def check_signed(
    network: Network, member: Participant, call: bytes, cids: Sequence[Cid], signature: bytes
) -> None:
    """Check that a member's authority signed these blocks for this call; raises VerificationError."""
    typed_data.check_signature(
        member.account,
        signature,
        typed_data.CONTRIBUTION,
        signed_values(call, member.name, cids),
        **_domain(network),
    )


def signed_values(call: bytes, member: str, cids: Sequence[Cid]) -> dict[str, object]:
    """What a member signs: the call, its own name, and which blocks."""
    return {"call": call, "member": label(member), "blocks": _blocks_digest(cids)}


def gather(
    call: Call,
    contributions: Sequence[Contributed],
    *,
    member: Callable[[str], Participant],
    hpke_private: bytes,
    network: Network,
    progress: Callable[[int, int], None] | None = None,
) -> list[Contributed]:
    """Check every contribution of a round; returns them in the order of the members' names.

    Parameters
    ----------
    member :
        Looks an active member up; raises InputError for any other.

    Raises
    ------
    InputError
        If a member is none, or contributed twice.
    ContributionRefusedError
        If one is not what it says; names the member.
    """
    by_name: dict[str, Contributed] = {}
    for contributed in contributions:
        if contributed.member in by_name:
            raise InputError(f"there are two contributions of {contributed.member}")
        by_name[contributed.member] = contributed
    for done, contributed in enumerate(contributions, start=1):
        known = member(contributed.member)
        try:
            check_contributed(contributed, call, member=known, hpke_private=hpke_private, network=network)
        except (VerificationError, IntegrityError, WrongKeyDomainError) as exc:
            raise ContributionRefusedError(
                f"the contribution of {contributed.member} is refused: {exc}"
            ) from exc
        if progress is not None:
            progress(done, len(contributions))
    return [by_name[name] for name in sorted(by_name)]


def _blocks_digest(cids: Sequence[Cid]) -> bytes:
    return hashlib.sha256(b"".join(map(bytes, cids))).digest()


def _info(contributed: Contributed) -> bytes:
    """Binds what a contribution was made from to call, member and blocks: nobody else can hand it in as its own."""
    context = contributed.call + label(contributed.member) + _blocks_digest(contributed.cids)
    return b"usufruct/contribution/1\0" + context


def _domain(network: Network) -> dict[str, Any]:
    return {"chain_id": network.chain_id, "contract": network.contracts["LineageRegistry"]}
