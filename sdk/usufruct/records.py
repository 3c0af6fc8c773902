"""Ids and ledger records as frozen dataclasses; standard library only.

Each record mirrors one Solidity struct: same fields, same order, names in snake case. A parity test walks the ABI.
Nothing here reads a chain, a file or a key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NewType

from usufruct.errors import InputError

OrgId = NewType("OrgId", bytes)
ArtifactId = NewType("ArtifactId", bytes)
KeyId = NewType("KeyId", bytes)
GrantId = NewType("GrantId", bytes)
JobId = NewType("JobId", bytes)

ZERO_32 = bytes(32)
_LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def label(text: str) -> bytes:
    """Encode a short ASCII label as 32 bytes, zero-padded on the right: organisation ids, purposes, contract names.

    Raises
    ------
    InputError
        If the text is empty, longer than 32 characters, or holds anything but a-z, 0-9 and inner hyphens.
    """
    if not 0 < len(text) <= 32 or not _LABEL_CHARACTERS.issuperset(text):
        raise InputError(
            f"{text!r} is not a label", hint="use 1 to 32 lower-case letters, digits and hyphens"
        )
    if text[0] == "-" or text[-1] == "-":
        raise InputError(f"{text!r} is not a label", hint="a label neither starts nor ends with a hyphen")
    return text.encode("ascii").ljust(32, b"\0")


def unlabel(value: bytes) -> str:
    """Decode a label; a value that is none comes back as `0x` and hex digits."""
    text = value.rstrip(b"\0")
    try:
        decoded = text.decode("ascii")
        return decoded if label(decoded) == value else "0x" + value.hex()
    except (UnicodeDecodeError, InputError):
        return "0x" + value.hex()


def org_id(name: str) -> OrgId:
    """Id of the organisation with this name."""
    return OrgId(label(name))


def id_digits(text: str, kind: str) -> str:
    """The first hex digits of an id, at least 4, lower case and without `0x`; `kind` names it in the error.

    Raises
    ------
    InputError
    """
    digits = text.lower().removeprefix("0x")
    if not 4 <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise InputError(f"{text!r} is no {kind}", hint="give at least the first 4 hex digits of its id")
    return digits


def parse_id(text: str, kind: str) -> bytes:
    """A 32-byte id from all its hex digits, with or without `0x`; `kind` names it in the error.

    Raises
    ------
    InputError
    """
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as exc:
        raise InputError(f"{text!r} is no {kind} id", hint="ids are 64 hex digits") from exc
    if len(raw) != 32:
        raise InputError(f"{text!r} is no {kind} id", hint="ids are 64 hex digits")
    return raw


class Refusal(IntEnum):
    """Why the network refused. Source: `contracts/Ids.sol`, enum `Refusal`."""

    NONE = 0
    GRANT_UNKNOWN = 1
    GRANT_NOT_OPEN = 2
    GRANT_REVOKED = 3
    GRANT_EXPIRED = 4
    USES_EXHAUSTED = 5
    GRANTEE_MISMATCH = 6
    ARTIFACT_MISMATCH = 7
    PURPOSE_NOT_GRANTED = 8
    KERNEL_NOT_GRANTED = 9
    ROW_LEVEL_NOT_GRANTED = 10
    ARTIFACT_FROZEN = 11
    RETENTION_PASSED = 12
    STEWARD_NOT_ACTIVE = 13
    REQUESTER_NOT_ACTIVE = 14
    KEY_DOMAIN_NOT_ACTIVE = 15
    POLICY_VERSION_STALE = 16
    CONSENT_EPOCH_STALE = 17
    COHORT_TOO_SMALL = 18
    BUDGET_EXCEEDED = 19
    NOT_ENOUGH_VERIFIERS = 20
    LEVEL_TOO_LOW = 21
    POSSESSION_UNPROVEN = 22
    RESULT_INVALID = 23
    COHORTS_TOO_CLOSE = 24
    KEY_EXHAUSTED = 25


REFUSAL_HINTS: dict[Refusal, str] = {
    Refusal.GRANT_UNKNOWN: "ask for rights first: `usufruct rights request`",
    Refusal.GRANT_NOT_OPEN: "the steward has not granted the request: `usufruct rights list` shows its status",
    Refusal.GRANT_REVOKED: "the steward took the grant back; ask why before asking again",
    Refusal.GRANT_EXPIRED: "ask the steward for a new grant",
    Refusal.USES_EXHAUSTED: "ask the steward for more uses",
    Refusal.KERNEL_NOT_GRANTED: "`usufruct rights list` shows the kernels of each grant",
    Refusal.ROW_LEVEL_NOT_GRANTED: 'ask for an aggregate (`output="sum"`), or for row-level rights',
    Refusal.ARTIFACT_FROZEN: "the steward or the council froze the bundle",
    Refusal.RETENTION_PASSED: "the bundle's retention is over; it cannot be used any more",
    Refusal.STEWARD_NOT_ACTIVE: "the bundle's steward is suspended or removed",
    Refusal.KEY_DOMAIN_NOT_ACTIVE: "the bundle's key is retired or compromised; ask the steward for a re-sealed bundle",
    Refusal.POLICY_VERSION_STALE: "read the new policy, then post the job again",
    Refusal.CONSENT_EPOCH_STALE: "post the job again: it will name the consent epoch in force",
    Refusal.COHORT_TOO_SMALL: (
        "fewer consent than grant or policy ask, and a grant counts them as 0, 10, 20, 50, ...: `usufruct rights list`"
        " shows its minimum cohort; ask for a grant with a smaller one, 0 for a round of fewer than ten members"
    ),
    Refusal.BUDGET_EXCEEDED: "`usufruct rights budget` shows what is left",
    Refusal.COHORTS_TOO_CLOSE: "nearly the same subjects were asked the same: ask for less rho, or later",
    Refusal.KEY_EXHAUSTED: "the bundle's key may open no more results; ask for a re-sealed bundle",
    Refusal.NOT_ENOUGH_VERIFIERS: "wait until more verifiers are active, or ask for a grant with fewer replicas",
}
"""What the refused may do next."""


class Level(IntEnum):
    """What stands behind a result. Source: `contracts/Ids.sol`, enum `Level`."""

    NONE = 0
    CLAIMED = 1
    SAMPLED = 2
    ALGEBRAIC = 3
    REPLICATED = 4


class Fault(IntEnum):
    """What a member did wrong in a job. Source: `contracts/IReputation.sol`, enum `Fault`."""

    NONE = 0
    REFUTED_RESULT = 1
    WRONG_VERDICT = 2
    UNREVEALED_VERDICT = 3
    LAPSED_CLAIM = 4


class Role(IntFlag):
    """Roles of a member. Source: `contracts/IParticipantRegistry.sol`, constants `ROLE_*`."""

    NONE = 0
    STEWARD = 1
    CUSTODIAN = 2
    PARTNER = 4
    COMPUTE = 8
    VERIFIER = 16
    AUDITOR = 32


class MemberStatus(IntEnum):
    """Source: `contracts/IParticipantRegistry.sol`, enum `Status`."""

    NONE = 0
    ACTIVE = 1
    SUSPENDED = 2
    REMOVED = 3


class KeyStatus(IntEnum):
    """Source: `contracts/IKeyRegistry.sol`, enum `KeyStatus`."""

    NONE = 0
    ACTIVE = 1
    RETIRED = 2
    COMPROMISED = 3


class ArtifactKind(IntEnum):
    """Source: `contracts/ILineageRegistry.sol`, enum `ArtifactKind`."""

    NONE = 0
    BUNDLE = 1
    RESULT = 2
    RELEASE = 3


class FreezeState(IntEnum):
    """Source: `contracts/ILineageRegistry.sol`, enum `FreezeState`."""

    NONE = 0
    BY_STEWARD = 1
    BY_COUNCIL = 2


class GrantStatus(IntEnum):
    """Source: `contracts/IUsageRights.sol`, enum `GrantStatus`."""

    NONE = 0
    REQUESTED = 1
    GRANTED = 2
    DENIED = 3
    REVOKED = 4


class ProposalStatus(IntEnum):
    """Source: `contracts/IMemberCouncil.sol`, enum `ProposalStatus`."""

    NONE = 0
    OPEN = 1
    EXECUTED = 2
    EXPIRED = 3


class JobState(IntEnum):
    """Source: `contracts/IJobLedger.sol`, enum `JobState`."""

    NONE = 0
    POSTED = 1
    DENIED = 2
    CLAIMED = 3
    COMMITTED = 4
    REVEALING = 5
    DISPUTED = 6
    VERIFIED = 7
    OPENED = 8
    RELEASED = 9
    REFUTED = 10
    EXPIRED = 11
    REFUSED = 12
    STALE_CONSENT = 13


FINAL_JOB_STATES = frozenset(
    {
        JobState.DENIED,
        JobState.RELEASED,
        JobState.REFUTED,
        JobState.EXPIRED,
        JobState.REFUSED,
        JobState.STALE_CONSENT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One member organisation. Source: `contracts/IParticipantRegistry.sol`, struct `Participant`."""

    id: OrgId
    account: str
    """Checksummed address of the organisation's authority."""
    node_account: str
    """Checksummed address of the organisation's node."""
    roles: Role
    status: MemberStatus
    hpke_key: bytes
    """X25519 public key, 32 bytes."""
    peer_id: bytes
    """libp2p peer id, binary."""
    endpoint: str
    """Multiaddr without the peer id."""

    @property
    def name(self) -> str:
        """The organisation's label."""
        return unlabel(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDomain:
    """Source: `contracts/IKeyRegistry.sol`, struct `KeyDomain`."""

    custodian: OrgId
    parameters_id: bytes
    public_digest: bytes
    epoch: int
    """Which of its custodian's key domains this is, from 1."""
    registered_at: int
    """Unix seconds."""
    status: KeyStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A node of the lineage graph. Source: `contracts/ILineageRegistry.sol`, struct `Artifact`."""

    kind: ArtifactKind
    steward: OrgId
    key_id: KeyId
    content_digest: bytes
    policy_digest: bytes
    policy_version: int
    consent_scope: bytes
    retain_until: int
    """Unix seconds; unusable at and after this time."""
    registered_at: int
    frozen: FreezeState


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRegistration:
    """Source: `contracts/ILineageRegistry.sol`, struct `BundleRegistration`."""

    content_digest: bytes
    parents: tuple[ArtifactId, ...] = ()
    key_id: KeyId
    policy_digest: bytes
    consent_scope: bytes
    retain_until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentEpoch:
    """Source: `contracts/IConsentRegistry.sol`, struct `ConsentEpoch`."""

    epoch: int
    anchored_at: int
    """Unix seconds."""
    cohort_floor: int
    consent_root: bytes
    status_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantTerms:
    """Source: `contracts/IUsageRights.sol`, struct `GrantTerms`."""

    kernels: tuple[bytes, ...]
    uses: int
    expires_at: int
    """Unix seconds; the grant is void at and after this time."""
    rho_micro: int
    """zCDP budget in millionths of rho."""
    min_cohort: int
    level: Level = Level.REPLICATED
    replicas: int = 2
    row_level: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantLimits:
    """What a grant asks of a job, and leaves to it. Source: `contracts/IUsageRights.sol`, struct `Limits`."""

    min_cohort: int
    replicas: int
    rho_micro: int
    """Millionths of rho neither reserved nor spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGrant:
    """A request for rights and what became of it. Source: `contracts/IUsageRights.sol`, struct `Grant`."""

    artifact_id: ArtifactId
    grantee: OrgId
    purpose: bytes
    status: GrantStatus
    used: int
    terms: GrantTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetAccount:
    """zCDP account of a bundle, in millionths of rho. Source: `contracts/IPrivacyBudget.sol`, struct `Account`."""

    total: int
    reserved: int
    spent: int

    @property
    def available(self) -> int:
        """Millionths of rho neither reserved nor spent."""
        return self.total - self.reserved - self.spent


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Source: `contracts/IJobLedger.sol`, struct `JobRequest`."""

    artifact_id: ArtifactId
    grant_id: GrantId
    kernel_id: bytes
    parameters_digest: bytes
    purpose: bytes
    consent_epoch: int
    policy_version: int
    rho_micro: int
    row_level: bool
    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its events tell it; see `usufruct.ledger.jobs`."""

    state: JobState
    requester: OrgId
    executor: OrgId
    key_id: KeyId
    deadline: int
    """Unix seconds by which the present state must be left."""
    replicas: int
    asked: int
    commits: int
    agreeing: int
    dissenting: int
    refusal: Refusal
    result_digest: bytes
    release_digest: bytes
    request: JobRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a job stands. Source: `contracts/IJobLedger.sol`, struct `Progress`."""

    state: JobState
    refusal: Refusal
    replicas: int
    asked: int
    commits: int
    agreeing: int
    dissenting: int
    turns: int
    """How often the job was claimed."""
    deadline: int
    """Unix seconds by which the present state must be left; 0 in final states."""
    posted_in: int
    """Number of the block in which it was posted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVerdict:
    """A verifier's commitment, for anybody to bring. Source: `contracts/IJobLedger.sol`, struct `SignedVerdict`."""

    commitment: bytes
    deadline: int
    """Unix seconds from which the signature is void."""
    r: bytes
    vs: bytes
    """Second half of the signature, as in ERC-2098."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitments:
    """A job's events since its result. Source: `contracts/IJobLedger.sol`, struct `Commitments`."""

    head: bytes
    executor: OrgId
    result_digest: bytes
    deadline: int
    verifiers: tuple[OrgId, ...]
    commitments: tuple[bytes, ...]
    revealed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a commitment was to. Source: `contracts/IJobLedger.sol`, struct `Opening`."""

    position: int
    """Index into `Commitments.verifiers`."""
    result_digest: bytes
    possession: bytes
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """What a verifier committed to, by its name."""

    verifier: OrgId
    result_digest: bytes
    possession: bytes
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that each job state may last. Source: `contracts/IJobLedger.sol`, struct `Timings`."""

    claim: int = 600
    compute: int = 3600
    commit: int = 3600
    reveal: int = 600
    dispute: int = 86400
    release: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ReputationRule:
    """What a fault costs, in points, and how many suspend a member. Source: `contracts/IReputation.sol`, struct `Rule`."""

    fade_seconds: int = 3600
    """In which one point fades."""
    limit: int = 30
    refuted_result: int = 15
    wrong_verdict: int = 15
    unrevealed_verdict: int = 3
    lapsed_claim: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEvent:
    """An event of a series, as its rolling hash covers it. Source: `contracts/IReputation.sol`, struct `SeriesEvent`."""

    topic: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """One decoded event of a finalised block."""

    contract: str
    name: str
    args: dict[str, object] = field(hash=False)
    """Arguments by their Solidity names, in order of declaration; structs as nested dicts."""
    block_number: int
    block_hash: bytes
    transaction_hash: bytes
    log_index: int
    timestamp: int
    """Unix seconds of the block."""
    words: bytes = field(repr=False, compare=False)
    """What `args` was decoded from, as the chain wrote it: the topics but the first, then the data."""
