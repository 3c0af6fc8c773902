"""Step 4, register: key domains, bundles and their policies enter the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import eth_abi.abi
from eth_utils.crypto import keccak

from usufruct.content import Cid, Codec
from usufruct.content.node import NodeContent
from usufruct.errors import InputError, KernelBoundError, ManifestError, WrongKeyDomainError
from usufruct.he.kernels import BundleShape, kernel_by_name
from usufruct.he.parameters import Parameters, parameters_by_id
from usufruct.ledger import Ledger
from usufruct.publish import MAX_SUBJECTS, PublishedBundle, read_manifest
from usufruct.records import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    BundleRegistration,
    KeyId,
    MemberStatus,
    label,
    org_id,
    unlabel,
)
from usufruct.replication import Replication

_SMALLEST_JOBS: Mapping[str, Callable[[BundleShape], Mapping[str, object]]] = {
    "sum": lambda _: {},
    "moments": lambda _: {"columns": [0]},
    "fedsum": lambda shape: {"weights": [1] * shape.n_features},
}
"""Parameters of kernels whose worst case hangs on the bundle alone."""

POLICY_TYPE = "usufruct/policy/2"
PUBLIC_TYPE = "usufruct/key-domain/1"

_REPEATED_WITHIN_S = 86_400
"""A registration whose retention ends so much earlier or later is taken for an earlier attempt at the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a steward allows on a bundle; a block that every member may read, cited by version on the ledger."""

    purposes: tuple[str, ...]
    kernels: tuple[str, ...]
    min_cohort: int
    """Fewest consenting subjects that a release may aggregate."""
    row_level: bool
    """Whether per-row results may ever be released."""
    max_rho_micro_per_job: int
    """zCDP, millionths of rho."""
    replication: Replication = field(default_factory=Replication)
    """How many members hold the ciphertexts, and which may."""

    def __post_init__(self) -> None:
        """Raise InputError for a bound that no member would take for one."""
        if min(self.min_cohort, self.max_rho_micro_per_job) < 1:
            raise InputError("a policy's minimum cohort and its budget of one job are at least 1")
        if self.min_cohort > MAX_SUBJECTS:
            raise InputError(
                f"a policy's minimum cohort is at most {MAX_SUBJECTS}, as many subjects as a bundle may have"
            )

    def to_record(self) -> dict[str, object]:
        """The record whose DAG-CBOR block is cited on the ledger."""
        return {
            "type": POLICY_TYPE,
            "purposes": list(self.purposes),
            "kernels": list(self.kernels),
            "min_cohort": self.min_cohort,
            "row_level": self.row_level,
            "max_rho_micro_per_job": self.max_rho_micro_per_job,
            "replication": self.replication.to_record(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Policy:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        fields = {"purposes", "kernels", "min_cohort", "row_level", "max_rho_micro_per_job", "replication"}
        if record.get("type") != POLICY_TYPE or set(record) != fields | {"type"}:
            raise ManifestError("not a policy record")
        purposes, kernels = record["purposes"], record["kernels"]
        cohort, rho, rows = record["min_cohort"], record["max_rho_micro_per_job"], record["row_level"]
        if not isinstance(purposes, list) or not isinstance(kernels, list):
            raise ManifestError("policy: `purposes` or `kernels` is no list")
        if not all(isinstance(item, str) for item in [*purposes, *kernels]):
            raise ManifestError("policy: a purpose or kernel is no text")
        if type(cohort) is not int or type(rho) is not int or type(rows) is not bool or min(cohort, rho) < 1:
            raise ManifestError("policy: a bound has the wrong type or is below 1")
        replication = Replication.from_record(record["replication"])
        try:
            return cls(
                purposes=tuple(str(item) for item in purposes),
                kernels=tuple(str(item) for item in kernels),
                min_cohort=cohort,
                row_level=rows,
                max_rho_micro_per_job=rho,
                replication=replication,
            )
        except InputError as exc:
            raise ManifestError(f"policy: {exc}") from exc


def registered_bundle(ledger: Ledger, artifact_id: ArtifactId) -> Artifact:
    """The ledger's record of a bundle.

    Raises
    ------
    InputError
        If the ledger knows no such bundle: results and releases have no record of their own.
    """
    artifact = ledger.artifact(artifact_id)
    if artifact.kind != ArtifactKind.BUNDLE:
        raise InputError(
            f"{artifact_id.hex()[:12]} is no registered bundle", hint="`usufruct bundles` lists them"
        )
    return artifact


def register_key_domain(ledger: Ledger, node: NodeContent, public: Mapping[str, object]) -> KeyId:
    """Publish a key domain's public record and register it; the caller's organisation is its custodian.

    Parameters
    ----------
    public :
        From `usufruct.keys.he_keys.create_key_domain`: scheme, parameters id, key id, commitment.
    """
    cid = node.put_record("public", {"type": PUBLIC_TYPE, **public})
    key_id, parameters_id = public["key_id"], public["parameters_id"]
    if not isinstance(key_id, bytes) or not isinstance(parameters_id, bytes):
        raise InputError("the key domain's record lacks its ids")
    ledger.transact("KeyRegistry", "registerKeyDomain", key_id, parameters_id, cid.digest)
    return KeyId(key_id)


def register_bundle(
    ledger: Ledger,
    node: NodeContent,
    published: PublishedBundle,
    *,
    policy: Policy,
    retain_until: int,
    budget_rho_micro: int,
    parents: tuple[ArtifactId, ...] = (),
) -> ArtifactId:
    """Register a published bundle with its policy and open its privacy budget; may be repeated when it was interrupted.

    Parameters
    ----------
    retain_until :
        Unix seconds; no job may use the bundle at or after this time. Where it is registered already, the registered time
        stands; one that differs by more than a day is refused.
    budget_rho_micro :
        zCDP budget over all partners together, in millionths of rho. A budget that the bundle has already stands; another is
        refused.

    Raises
    ------
    InputError
        As `check_policy` and `check_runnable`, if the policy does not name the bundle's purpose, or if the
        bundle is registered already with another policy, retention or budget; nothing was sent.
    WrongKeyDomainError
        If the bundle's key domain is not the caller's.
    TransactionRevertedError
    """
    manifest = published.manifest
    check_policy(ledger, policy, manifest.shape.parameters)
    check_runnable(policy, manifest.shape, of_contributions=manifest.of_contributions)
    scope = manifest.scope
    if scope not in policy.purposes:
        raise InputError(f"the policy does not name the bundle's purpose {scope!r}")
    key_id = KeyId(manifest.shape.key_id)
    if ledger.key_domain(key_id).custodian != ledger.organisation_of(ledger.address):
        raise WrongKeyDomainError(f"key domain {key_id.hex()[:12]} is not this organisation's")
    policy_cid = node.put_record("policy", policy.to_record())
    registration = BundleRegistration(
        content_digest=published.cid.digest,
        parents=parents,
        key_id=key_id,
        policy_digest=policy_cid.digest,
        consent_scope=label(scope),
        retain_until=retain_until,
    )
    artifact_id = _bundle_id(registration, ledger)
    known = ledger.artifact(artifact_id)
    if known.kind == ArtifactKind.NONE:
        ledger.transact_once(
            "LineageRegistry",
            "registerBundle",
            lambda until: [replace(registration, retain_until=until)],
            retain_until,
            within=_REPEATED_WITHIN_S,
        )
    elif (
        known.policy_digest != policy_cid.digest
        or abs(known.retain_until - retain_until) > _REPEATED_WITHIN_S
    ):
        raise InputError(
            f"the bundle is registered already as {artifact_id.hex()[:12]}, with another policy or retention",
            hint="`usufruct policy set` puts another policy in force, `usufruct rights set-budget` another budget",
        )
    total = ledger.budget(artifact_id).total
    if total not in (0, budget_rho_micro):
        raise InputError(
            f"the bundle is registered already as {artifact_id.hex()[:12]}, with another budget, which stays in force",
            hint="`usufruct rights set-budget` changes it",
        )
    if total == 0:
        set_budget(ledger, artifact_id, budget_rho_micro)
    return artifact_id


def set_budget(ledger: Ledger, artifact_id: ArtifactId, rho_micro: int) -> None:
    """Set a bundle's privacy budget over all partners, in millionths of rho; not below what is committed already."""
    ledger.transact("PrivacyBudget", "setBudget", artifact_id, rho_micro)


def _bundle_id(registration: BundleRegistration, ledger: Ledger) -> ArtifactId:
    """Source: `contracts/ILineageRegistry.sol`, `registerBundle`."""
    steward = ledger.organisation_of(ledger.address)
    words = eth_abi.abi.encode(["bytes32", "bytes32"], [steward, registration.content_digest])
    return ArtifactId(bytes(keccak(words)))


def change_policy(ledger: Ledger, node: NodeContent, artifact_id: ArtifactId, policy: Policy) -> Cid:
    """Put a new policy in force; its version grows by one and jobs posted against the old one are not released.

    Raises
    ------
    InputError
        As `registered_bundle`, `check_policy` and `check_runnable`; nothing was sent.
    ContentError, IntegrityError
        If the bundle's manifest cannot be read.
    TransactionRevertedError
    """
    artifact = registered_bundle(ledger, artifact_id)
    check_policy(ledger, policy, parameters_by_id(ledger.key_domain(artifact.key_id).parameters_id))
    content = Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR)
    manifest = read_manifest(node.get_record(content, holder=unlabel(artifact.steward)))
    check_runnable(policy, manifest.shape, of_contributions=manifest.of_contributions)
    cid = node.put_record("policy", policy.to_record())
    ledger.transact("LineageRegistry", "setPolicy", artifact_id, cid.digest)
    return cid


def check_policy(ledger: Ledger, policy: Policy, parameters: Parameters | None) -> None:
    """Check that jobs can be run under a policy on a bundle that is sealed with `parameters`; None: not known yet.

    Raises
    ------
    InputError
        If it names an unknown kernel, one that runs under another scheme, or a holder that is no member.
    """
    for kernel in policy.kernels:
        needed = kernel_by_name(kernel).scheme
        if parameters is not None and needed != parameters.scheme:
            raise InputError(
                f"kernel {kernel} runs on bundles sealed under {needed}, and this key domain is for {parameters.scheme}",
                hint="`usufruct kernels` lists kernels with their schemes; `usufruct key-domain create --parameters`",
            )
    for name in policy.replication.holders:
        if ledger.participant(org_id(name)).status == MemberStatus.NONE:
            raise InputError(f"the policy names {name} as a holder, which is no member")


def check_runnable(policy: Policy, shape: BundleShape, *, of_contributions: bool = False) -> None:
    """Check that a bundle's values leave room for the kernels that its policy names.

    Parameters
    ----------
    of_contributions :
        Whether the columns are what several members contributed.

    Raises
    ------
    InputError
        If a kernel is for bundles of the other kind.
    KernelBoundError
        If even the smallest job of a kernel could overflow or decrypt wrongly.
    """
    for name in policy.kernels:
        kernel = kernel_by_name(name)
        if kernel.of_contributions != of_contributions:
            raise InputError(
                f"kernel {name} runs on {'contributions to a round' if kernel.of_contributions else 'rows of one steward'}",
                hint="`usufruct round close` makes bundles of contributions, `usufruct publish` of rows",
            )
        if name in _SMALLEST_JOBS and kernel.scheme == shape.parameters.scheme:
            try:
                kernel.validate(kernel.parse(_SMALLEST_JOBS[name](shape)), shape)
            except KernelBoundError as exc:
                raise KernelBoundError(
                    f"no {name} could ever be computed on this bundle: {exc}",
                    hint="declare a smaller scale or range, seal fewer rows into a bundle, or leave the kernel out",
                ) from exc
