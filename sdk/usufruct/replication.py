"""Which members hold copies of a bundle: the steward's wish, and the choice that every node makes of it by itself.

Decides from names alone; knows no ledger, store or peer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from usufruct.errors import InputError, ManifestError
from usufruct.records import ArtifactId, MemberStatus, OrgId, Participant, Role, label

MAX_COPIES = 16
MAX_NAMED = 64

_KEEPERS = Role.STEWARD | Role.COMPUTE | Role.VERIFIER | Role.AUDITOR
"""Any of these roles makes a member one that holds bundles of others, unless a policy names the holders itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """How many members hold a bundle's ciphertexts, and which may."""

    copies: int = 1
    """Holders in all, the steward among them: 1 keeps the bundle at home."""
    holders: tuple[str, ...] = ()
    """Names of the members among which the others are chosen; empty for any member whose roles fit."""

    def __post_init__(self) -> None:
        if type(self.copies) is not int or not 1 <= self.copies <= MAX_COPIES:
            raise InputError(f"a bundle has 1 to {MAX_COPIES} copies, not {self.copies!r}")
        for name in self.holders:
            label(name)
        if len(set(self.holders)) != len(self.holders) or len(self.holders) > MAX_NAMED:
            raise InputError(f"a policy names at most {MAX_NAMED} holders, each once")
        if self.holders and len(self.holders) < self.copies - 1:
            raise InputError(
                f"{len(self.holders)} named holders cannot hold {self.copies - 1} copies beside the steward's",
                hint="name more holders, or none to let any fitting member hold",
            )
        if self.holders and self.copies == 1:
            raise InputError(
                "holders are named for a bundle that is to have no copy", hint="ask for 2 copies"
            )

    def to_record(self) -> dict[str, object]:
        """As a policy's record holds it."""
        return {"copies": self.copies, "holders": list(self.holders)}

    @classmethod
    def from_record(cls, record: object) -> Replication:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        if not isinstance(record, Mapping) or set(record) != {"copies", "holders"}:
            raise ManifestError("policy: `replication` is not a map of `copies` and `holders`")
        copies, holders = record["copies"], record["holders"]
        if type(copies) is not int or not isinstance(holders, list):
            raise ManifestError("policy: `copies` is no number or `holders` no list")
        if len(holders) > MAX_NAMED or not all(isinstance(name, str) for name in holders):
            raise ManifestError("policy: a holder is no name, or there are too many")
        try:
            return cls(copies=copies, holders=tuple(holders))
        except InputError as exc:
            raise ManifestError(f"policy: {exc}") from exc

    def may_hold(self, member: Participant, steward: OrgId) -> bool:
        """Whether a member is one of those among which the holders are chosen.

        A partner is none unless it is named: who asks for results is not handed the ciphertexts beside them.
        """
        if member.status != MemberStatus.ACTIVE or member.id == steward:
            return False
        if self.holders:
            return member.name in self.holders
        return bool(member.roles & _KEEPERS) and Role.PARTNER not in member.roles

    def most_copies(self, steward: OrgId, members: Iterable[Participant]) -> int:
        """How many copies there can be as the members are now, the steward's among them."""
        return 1 + sum(self.may_hold(member, steward) for member in members)

    def choose(
        self,
        artifact_id: ArtifactId,
        steward: OrgId,
        members: Iterable[Participant],
        *,
        left_out: Collection[OrgId] = (),
    ) -> tuple[OrgId, ...]:
        """The members that are to hold a copy beside the steward; the same at every node, best first.

        Each member has a score for each bundle, and the highest hold: when one goes, its bundles alone move. While the
        steward is no active member, its copy does not count.

        Parameters
        ----------
        members :
            Every organisation of the registry.
        left_out :
            Those that the steward does not count as holders for the time being.

        Source
        ------
        Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998 (rendezvous hashing).
        """
        known = list(members)
        at_home = any(m.id == steward and m.status == MemberStatus.ACTIVE for m in known)
        fit = [m.id for m in known if self.may_hold(m, steward) and m.id not in left_out]
        fit.sort(key=lambda member: (_score(artifact_id, member), member), reverse=True)
        return tuple(fit[: self.copies - at_home])


def _score(artifact_id: ArtifactId, member: OrgId) -> bytes:
    return hashlib.sha256(b"usufruct/placement/1" + artifact_id + member).digest()
