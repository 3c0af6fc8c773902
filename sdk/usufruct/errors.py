"""Every error that Usufruct raises, in one tree.

UsufructError
├── InputError            what the caller handed in cannot be used
│   ├── FeatureError      features: schema, range, raw imagery
│   ├── KernelError       unknown kernel, parameters, overflow bounds
│   ├── PrivacyError      budgets and noise scales
│   └── ConfigurationError
├── IntegrityError        bytes are not what they claim to be
│   ├── CarError          malformed or incomplete CAR archive
│   ├── CidError          malformed content identifier
│   ├── ContainerError    malformed ciphertext container
│   ├── ContributionRefusedError
│   ├── EnvelopeError     encrypted envelope that does not open
│   └── ManifestError     malformed or truncated manifest
├── KeyStoreError         keystores, passphrases, key domains
├── CustodianError        the custodian's process
├── ContentError          block stores and peers
├── LedgerError           chain, contracts, transactions
├── JobPendingError       a job is not over yet
├── DeniedError           the network's rules say no
├── WorkerError           a worker process died or reached a limit
├── ComputationCancelledError
└── VerificationError     a result or a release does not check out

Library errors are translated where the library is called; nothing else leaks out.
Each error has `hint`: what the reader may do next; the command line prints it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum


class UsufructError(Exception):
    """Base of the tree."""

    hint: str = ""
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class InputError(UsufructError):
    """What the caller handed in cannot be used; nothing was changed."""

    exit_code = 2


class ConfigurationError(InputError):
    """A setting, a home directory or a network file is missing or wrong."""


class PortTakenError(ConfigurationError):
    """Another process listens on the port that was asked for."""

    hint = "stop the other process, or choose another port"


class HomeInUseError(ConfigurationError):
    """Another process runs on this data directory."""

    hint = "stop it first; two of them would destroy each other's records"


class StaleConsentBookError(ConfigurationError):
    """The ledger has a consent epoch that this consent book did not make: it was restored from an older backup."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        super().__init__(
            f"consent epoch {epoch} is in force, and this consent book does not know it: withdrawals may be missing from it",
            hint="enter again every withdrawal since the backup, then `usufruct consent anchor --supersede "
            f"{epoch}`; nothing was changed",
        )


class PrivacyError(InputError):
    """A privacy parameter is not a positive, finite number in its range."""


class FeatureError(InputError):
    """A feature matrix breaks its schema."""


class RawImageryRejectedError(FeatureError):
    """The input looks like images; only derived numeric features may enter a bundle."""

    hint = "extract features where the images are and pass the feature matrix instead"


class UndeclaredColumnError(FeatureError):
    """The matrix carries a column that the schema does not declare, or lacks one that it does."""

    hint = "declare every column in the schema, or drop it"


class FeatureRangeError(FeatureError):
    """A value is not finite or lies outside its declared range."""

    hint = "clean the row, or widen the declared range before sealing"


class KernelError(InputError):
    """A kernel cannot run as asked."""


class UnknownKernelError(KernelError):
    """No registered kernel has this name or id."""

    hint = "`usufruct kernels` lists what is registered"


class KernelParameterError(KernelError):
    """Kernel parameters do not fit the schema or the shapes of the inputs."""


class KernelBoundError(KernelError):
    """The worst case would overflow the plaintext modulus or decrypt wrongly."""

    hint = "use a smaller weight scale, fewer features or a bundle with a smaller declared range"


class IntegrityError(UsufructError):
    """Bytes are not what they claim to be."""

    exit_code = 3


class CidError(IntegrityError):
    """A content identifier is malformed or of a kind that this network does not use."""


class CarError(IntegrityError):
    """A CAR archive is malformed, cut, or does not hold exactly what it is said to hold; nothing of it was kept for good."""


class ArchiveMismatchError(CarError):
    """A CAR archive is another file than the one that was asked for; `expected` and `actual` are CIDs of files."""

    hint = "ask whoever made it for another copy; `ipfs add` gives the same CID with the options in docs/operating.md"

    def __init__(self, expected: str, actual: str) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(f"the archive is {actual}, not {expected}; nothing was taken in")


class ContainerError(IntegrityError):
    """A ciphertext container is malformed; `field` names the part that is wrong."""

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        self.field = field
        super().__init__(message, hint=hint)


class ContributionRefusedError(IntegrityError):
    """A contribution is not what it says: another's, for another call, or no honest encryption of a clipped update."""


class EnvelopeError(IntegrityError):
    """An encrypted envelope does not open: other key, other context, or altered bytes."""


class ManifestError(IntegrityError):
    """A manifest or another DAG-CBOR record is malformed or truncated."""


class ChainDataError(IntegrityError):
    """The embedded chain's journal or checkpoint is damaged, or belongs to another chain."""

    hint = "restore the chain's directory from a backup; nothing was changed"


class BackupError(IntegrityError):
    """A backup is truncated, altered, or holds what no backup holds, or cannot be made of a damaged database."""

    hint = "use another copy of the backup"


class BlockMismatchError(IntegrityError):
    """A block's bytes do not hash to its CID."""


class KeyStoreError(UsufructError):
    """A keystore cannot be read, written or unlocked."""

    exit_code = 4


class WrongPassphraseError(KeyStoreError):
    """The passphrase does not open this keystore."""

    hint = "check the passphrase file; nothing was changed"


class WrongKeyDomainError(KeyStoreError):
    """A ciphertext belongs to another key domain than the key at hand."""


class CustodianError(UsufructError):
    """The custodian's process does not run, does not answer, or is asked what no node asks."""

    exit_code = 4
    hint = "its log is that of the node; `usufruct-node doctor` looks at its keys"


class ForgottenReleasesError(CustodianError):
    """A custodian, restored from an older backup, has to be told first of these released `jobs`."""

    def __init__(self, jobs: list[bytes]) -> None:
        self.jobs = jobs
        super().__init__(f"the custodian has no memory of {len(jobs)} releases that the ledger names")


class ContentError(UsufructError):
    """A block store or a peer cannot do what was asked."""

    exit_code = 5


class BlockNotFoundError(ContentError):
    """No reachable holder has the block, or none will give it to this member."""


class StoreFullError(ContentError):
    """The disk or the quota is full; the block was not kept and nothing is half-written."""

    hint = "free space or raise the quota, then repeat the command"


class PeerError(ContentError):
    """A peer is unreachable, too slow, or breaks the protocol."""


class PeerRefusedError(PeerError):
    """The membership gate refused a peer, or a peer refused us."""


class PeerTooSlowError(PeerError):
    """A peer did not answer within the time allowed."""


class PeerBusyError(PeerError):
    """A peer serves as many of our requests as it will at once."""

    hint = "try again in a moment"


class PeerProtocolError(PeerError):
    """A peer speaks none of the protocols that could give what is wanted."""


class PeerQuotaError(PeerError):
    """A peer has given us as much as its quota for one member allows in this time."""

    hint = "try again later, or ask the peer's operator for a larger quota"


class KuboError(ContentError):
    """The Kubo daemon that holds the blocks refuses, or answers with what no Kubo answers."""


class KuboUnreachableError(KuboError):
    """The Kubo daemon does not answer, or not in time."""

    hint = "start it with `ipfs daemon`, and compare `kubo_address` in node.toml with its Addresses.API"


class KuboRefusedError(KuboError):
    """The Kubo daemon does not accept our credentials."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"Kubo at {address} does not accept the credentials in kubo.token",
            hint="`usufruct-node kubo config` writes them into both places; restart Kubo after it",
        )


class KuboVersionError(KuboError):
    """The Kubo daemon is too old to be run privately."""

    def __init__(self, version: str, oldest: str) -> None:
        self.version = version
        self.oldest = oldest
        super().__init__(f"Kubo {version} is older than {oldest}", hint="upgrade Kubo")


class NodeUnreachableError(ContentError):
    """The organisation's own node does not answer."""

    hint = "start it with `usufruct-node run`, then look at `usufruct-node status`"


class LedgerError(UsufructError):
    """The chain, a contract or a transaction."""

    exit_code = 6


class LedgerUnreachableError(LedgerError):
    """No ledger endpoint answers."""

    hint = "check that the chain runs and that the RPC address in network.json is right"


class MalformedAnswerError(LedgerError):
    """An endpoint's answer makes no sense."""


class AnswerTooLargeError(MalformedAnswerError):
    """An endpoint's answer is larger than this process takes."""


class ChainEngineError(LedgerError):
    """The EVM process behind the embedded chain fails or does not answer."""


class WrongChainError(LedgerError):
    """The endpoint serves another chain than the network file names."""

    hint = "compare chain_id and genesis in network.json with the endpoint"


class WrongContractCodeError(LedgerError):
    """The code on the chain is not the code that this package ships."""

    hint = "`usufruct network verify` shows which contract differs"


class ChainListError(LedgerError):
    """An account has another role on one of the chain's own lists than the members' decisions give it."""

    hint = "a vote on the list itself can have done this; only another such vote undoes it"

    def __init__(self, what: str, account: str, role: str, due: str) -> None:
        self.what = what
        self.account = account
        self.role = role
        self.due = due
        super().__init__(f"on the chain's list of {what}, {account} has the role {role} instead of {due}")


class CompilationError(LedgerError):
    """The shipped contract sources cannot be compiled here."""

    hint = "recompiling needs Node and the npm package `solc`; `npm ci` installs what the lock file names"


class TransactionRevertedError(LedgerError):
    """A contract refused a transaction; `name` and `values` are its custom error, the hint what that means.

    With a hint it is one of the network's rules that says no; without one something went wrong on the way.
    """

    def __init__(self, name: str, values: dict[str, object], *, hint: str = "") -> None:
        self.name = name
        self.values = values
        shown = ", ".join(f"{k}={_readable(v)}" for k, v in values.items())
        super().__init__(f"{name}({shown})", hint=hint)
        if hint:
            self.exit_code = DeniedError.exit_code


def _readable(value: object) -> str:
    """Labels as text, other bytes as hex, members of enums by name."""
    if isinstance(value, IntEnum):
        return value.name
    if not isinstance(value, bytes):
        return str(value)
    text = value.rstrip(b"\0")
    return (
        text.decode("ascii")
        if text.isascii() and text.decode("ascii").isprintable() and text
        else "0x" + value.hex()
    )


class TransactionLostError(LedgerError):
    """A transaction was sent but is not in a finalised block within the time allowed."""


class TransactionReplacedError(TransactionLostError):
    """Another transaction of the same account took the nonce; this one can never be included."""

    hint = "nothing of it happened: repeat the command"


class ChainStalledError(LedgerError):
    """The chain stands still: no block comes although one is due, or none could. What was sent is kept and sent again."""

    hint = "nothing is lost; once enough validators are back, repeat the command: what it sent is taken up, not sent twice"

    def __init__(self, height: int, since: float, *, hint: str = "") -> None:
        self.height = height
        self.since = since
        """Unix seconds: when the last block was seen to come, or when validators were first seen apart."""
        moment = datetime.fromtimestamp(since, UTC).strftime("%H:%M:%S")
        super().__init__(f"the chain has stood still at block {height} since {moment} UTC", hint=hint)


class ContradictingEndpointError(LedgerError):
    """An endpoint shows another block than one that is final; it lies, or follows a fork."""

    hint = "take this endpoint out of rpc_urls and ask its operator"


class ProofUnavailableError(LedgerError):
    """No endpoint can give a finality proof of a block."""


class StaleLedgerError(LedgerError):
    """An endpoint shows an older chain than was already seen."""


class DeniedError(UsufructError):
    """The network's rules say no; the refusal is on the ledger where the protocol records it."""

    exit_code = 7


class JobDeniedError(DeniedError):
    """Admission refused a job; `reason` is the reason recorded on the ledger."""

    def __init__(self, job_id: bytes, reason: str, *, hint: str = "") -> None:
        self.job_id = job_id
        self.reason = reason
        super().__init__(f"job {job_id.hex()[:12]} was denied: {reason}", hint=hint)


class NoRightError(DeniedError):
    """The caller has no right on a bundle that a job could be posted under; nothing was sent.

    `request` is its newest request there, which nobody granted; None where it never asked.
    """

    def __init__(self, request: bytes | None, message: str, *, hint: str) -> None:
        self.request = request
        super().__init__(message, hint=hint)


class JobFailedError(DeniedError):
    """A job ended without a release: refuted, expired, refused or stale."""

    def __init__(self, job_id: bytes, state: str, *, hint: str = "") -> None:
        self.job_id = job_id
        self.state = state
        super().__init__(f"job {job_id.hex()[:12]} ended as {state}", hint=hint)


class JobPendingError(UsufructError):
    """A job is not over yet; it goes on, and what it spends is spent once: do not post it again."""

    exit_code = 9
    hint = "`usufruct job wait` waits for it, `usufruct release` opens it later"

    def __init__(self, job_id: bytes, state: str) -> None:
        self.job_id = job_id
        self.state = state
        super().__init__(f"job {job_id.hex()[:12]} is still {state}")


class ReleaseRefusedError(DeniedError):
    """The custodian will not decrypt; `reason` is the reason recorded on the ledger."""

    def __init__(self, reason: str, *, hint: str = "") -> None:
        self.reason = reason
        super().__init__(f"release refused: {reason}", hint=hint)


class NotAuthorisedError(DeniedError):
    """The caller has no business with this record or block."""


class ComputationCancelledError(UsufructError):
    """A computation was cancelled by its caller before it was over; nothing of it goes on."""


class WorkerError(UsufructError):
    """A worker process died, or reached its memory limit or deadline; what it worked on has no result."""


class VerificationError(UsufructError):
    """A result, a release or a lineage does not check out."""

    exit_code = 8


class ResultMismatchError(VerificationError):
    """Re-execution gave other bytes than the ones committed."""

    def __init__(self, expected: bytes, actual: bytes) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(f"result digest {actual.hex()} is not the committed {expected.hex()}")


class StorageProofError(VerificationError):
    """A member does not show that it holds what it is to hold."""


class MissingEventError(VerificationError):
    """A series of ledger events has a gap or a broken rolling hash."""


class FinalityError(VerificationError):
    """What is offered as proof that a block is final does not show it."""


class MalformedProofError(FinalityError):
    """A proof is not encoded in the one way in which proofs are."""


class ForeignProofError(FinalityError):
    """A proof is of another chain, another network or other validators than the pinned ones."""

    hint = "compare the network file's validators with `usufruct network validators`"


class OtherBlockProofError(FinalityError):
    """A proof is of another block than the one in question."""


class TooFewSignersError(FinalityError):
    """Validators with too little weight signed; `weight` of `total_weight`."""

    def __init__(self, weight: int, total_weight: int) -> None:
        self.weight = weight
        self.total_weight = total_weight
        super().__init__(f"validators with weight {weight} of {total_weight} signed, which is too little")


class ProofSignatureError(FinalityError):
    """A signature in a proof does not hold."""


class HeaderMismatchError(FinalityError):
    """A block header does not hash to the block's hash."""


class InclusionError(FinalityError):
    """A receipt or an event is not in the block that it is said to be in."""
