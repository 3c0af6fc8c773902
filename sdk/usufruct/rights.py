"""Step 6, rights: a partner asks, a steward grants, denies or takes back. Nothing is allowed by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from usufruct.consent import cohort_floor
from usufruct.content.node import NodeContent
from usufruct.errors import InputError, NoRightError
from usufruct.he.kernels import kernel_by_id, kernel_by_name
from usufruct.ledger import Ledger
from usufruct.records import (
    REFUSAL_HINTS,
    ArtifactId,
    GrantId,
    GrantStatus,
    GrantTerms,
    OrgId,
    Refusal,
    UsageGrant,
    label,
    unlabel,
)
from usufruct.register import Policy

_REPEATED_WITHIN_S = 3600
"""What expires so much earlier or later, and is the same otherwise, is an earlier attempt at the same."""


def terms(
    *,
    kernels: Sequence[str],
    uses: int,
    expires_at: int,
    rho_micro: int,
    min_cohort: int = 10,
    replicas: int = 2,
    row_level: bool = False,
) -> GrantTerms:
    """Terms of a request or a grant, kernels by name.

    The ledger knows of a cohort only 0, 10, 20, 50, ... that it has as many; with fewer than ten contributions to a round it
    knows nothing, so that `min_cohort` has to be 0 there and the bundle's policy alone says how few are enough.

    Raises
    ------
    UnknownKernelError, InputError
        Before anything is sent.
    """
    if isinstance(kernels, str) or not kernels:
        raise InputError("name the kernels in a list of at least one")
    if uses < 1 or rho_micro < 1 or replicas < 1 or min_cohort < 0:
        raise InputError("uses, budget and replicas must be at least 1, and the minimum cohort at least 0")
    if max(uses, min_cohort) >= 1 << 32 or replicas >= 1 << 8:
        raise InputError("uses, replicas or minimum cohort are more than the ledger can note")
    return GrantTerms(
        kernels=tuple(kernel_by_name(name).kernel_id for name in kernels),
        uses=uses,
        expires_at=expires_at,
        rho_micro=rho_micro,
        min_cohort=min_cohort,
        replicas=replicas,
        row_level=row_level,
    )


def check_terms(
    ledger: Ledger, policy: Policy, grantee: OrgId, granted: GrantTerms, *, n_subjects: int
) -> None:
    """Check that terms could be used: against the bundle's policy and its subjects, and the verifiers that there are.

    Raises
    ------
    InputError
    """
    unused = {kernel_by_id(kernel).name for kernel in granted.kernels} - set(policy.kernels)
    if unused:
        raise InputError(
            f"the bundle's policy does not allow {', '.join(sorted(unused))}",
            hint=f"it allows {', '.join(policy.kernels)}",
        )
    if granted.row_level and not policy.row_level:
        raise InputError("the bundle's policy allows no per-row results")
    if granted.min_cohort > n_subjects:
        raise InputError(
            f"the bundle has {n_subjects} subjects, and no release may be of fewer than {granted.min_cohort}",
            hint="grant with a smaller `--min-cohort`",
        )
    if granted.min_cohort > cohort_floor(n_subjects):
        raise InputError(
            f"the ledger knows of {n_subjects} subjects only that they are {cohort_floor(n_subjects)} at least, and would"
            f" admit no job that needs {granted.min_cohort}",
            hint="grant with a smaller `--min-cohort`; the bundle's own policy counts every subject",
        )
    verifiers = int(ledger.read("ParticipantRegistry", "beside", grantee)[2])
    if granted.replicas > verifiers:
        raise InputError(f"{granted.replicas} verifiers are to agree, and {verifiers} could be asked")


def request_usage(ledger: Ledger, artifact_id: ArtifactId, *, purpose: str, wanted: GrantTerms) -> GrantId:
    """Ask a bundle's steward for rights; returns the id under which the answer will stand.

    An attempt that was given up while it was on its way, and differs by an hour at most in when it expires alone, is taken up.
    """
    receipt = ledger.transact_once(
        "UsageRights",
        "requestUsage",
        lambda at: [artifact_id, label(purpose), replace(wanted, expires_at=at)],
        wanted.expires_at,
        within=_REPEATED_WITHIN_S,
    )
    grant_id = ledger.event_of(receipt, "UsageRequested").args["grantId"]
    if not isinstance(grant_id, bytes):
        raise InputError("the contract returned no grant id")
    return GrantId(grant_id)


def grant_usage(ledger: Ledger, grant_id: GrantId, granted: GrantTerms) -> None:
    """Grant a request on the steward's own terms; an attempt that was given up is taken up as in `request_usage`."""
    ledger.transact_once(
        "UsageRights",
        "grantUsage",
        lambda at: [grant_id, replace(granted, expires_at=at)],
        granted.expires_at,
        within=_REPEATED_WITHIN_S,
    )


def deny_usage(ledger: Ledger, grant_id: GrantId, reason: Refusal) -> None:
    """Refuse a request, with a reason that goes on the ledger."""
    ledger.transact("UsageRights", "denyUsage", grant_id, reason)


def revoke_usage(ledger: Ledger, grant_id: GrantId) -> None:
    """Take one grant back."""
    ledger.transact("UsageRights", "revokeUsage", grant_id)


def revoke_artifact(ledger: Ledger, artifact_id: ArtifactId) -> None:
    """Take back every grant on a bundle in one call."""
    ledger.transact("UsageRights", "revokeArtifact", artifact_id)


def revoke_grantee(ledger: Ledger, grantee: OrgId) -> None:
    """Take back every grant of the calling steward to one partner in one call."""
    ledger.transact("UsageRights", "revokeGrantee", grantee)


def find_right(
    ledger: Ledger,
    node: NodeContent,
    grantee: OrgId,
    artifact_id: ArtifactId,
    *,
    kernel_id: bytes,
    row_level: bool,
) -> GrantId:
    """The right to post a job under: the newest on the bundle that holds and names the kernel, or else the newest granted.

    Under one that does not hold the ledger records why it does not allow the job; not while a newer request awaits its answer.
    The index names the requests, the ledger says what became of each; before none is found to fit, the index is waited for.

    Raises
    ------
    NoRightError
        If none was ever granted, or none holds and the newest request is not answered yet.
    NodeUnreachableError
        If the index stays behind the ledger.
    """
    head = ledger.finalised()

    def fits(grant: UsageGrant) -> bool:
        terms = grant.terms
        return (
            grant.status == GrantStatus.GRANTED
            and kernel_id in terms.kernels
            and grant.used < terms.uses
            and head.timestamp < terms.expires_at
            and (terms.row_level or not row_level)
        )

    for grant_id, grant in _requests(ledger, node, grantee, artifact_id):
        if fits(grant):
            return grant_id
    node.await_block(head.number)
    asked = list(_requests(ledger, node, grantee, artifact_id))
    for grant_id, grant in asked:
        if fits(grant):
            return grant_id
    if asked and asked[0][1].status == GrantStatus.REQUESTED:
        raise _no_right(asked)
    for status in (GrantStatus.GRANTED, GrantStatus.REVOKED):
        for grant_id, grant in asked:
            if grant.status == status:
                return grant_id
    raise _no_right(asked)


def _requests(
    ledger: Ledger, node: NodeContent, grantee: OrgId, artifact_id: ArtifactId
) -> Iterator[tuple[GrantId, UsageGrant]]:
    """A partner's requests on a bundle, newest first, each as it stands on the ledger."""
    for entry in node.query("/grants", grantee=unlabel(grantee)):
        if entry["artifact_id"] == artifact_id.hex():
            grant_id = GrantId(bytes.fromhex(entry["grant_id"]))
            yield grant_id, ledger.grant(grant_id)


def _no_right(asked: Sequence[tuple[GrantId, UsageGrant]]) -> NoRightError:
    for grant_id, grant in asked:
        if grant.status == GrantStatus.REQUESTED:
            return NoRightError(
                grant_id,
                f"your request {grant_id.hex()[:12]} on this bundle is not answered yet",
                hint=REFUSAL_HINTS[Refusal.GRANT_NOT_OPEN],
            )
    for grant_id, _ in asked:
        return NoRightError(
            grant_id,
            f"your request {grant_id.hex()[:12]} on this bundle was denied",
            hint="`usufruct denials` shows why; ask for what the steward allows",
        )
    return NoRightError(None, "you have no rights on this bundle", hint=REFUSAL_HINTS[Refusal.GRANT_UNKNOWN])
