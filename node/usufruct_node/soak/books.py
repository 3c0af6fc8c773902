"""What the events of a ledger say must be so, kept event by event. Pure: no chain, no file, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from usufruct.records import JobState, LedgerEvent

Fact = tuple[object, ...]
"""Something that somebody was told: a name and the ids that it is about."""

_FACTS: dict[str, Callable[[dict[str, Any]], Fact]] = {
    "JobPosted": lambda args: ("job", args["jobId"]),
    "JobDenied": lambda args: ("denial", args["jobId"]),
    "JobReleased": lambda args: ("release", args["jobId"], args["releaseDigest"]),
    "BundleRegistered": lambda args: ("bundle", args["artifactId"]),
    "ConsentEpochAnchored": lambda args: ("epoch", args["steward"], args["scope"], args["epoch"]),
    "UsageGranted": lambda args: ("right", args["grantId"]),
    "UsageDenied": lambda args: ("right denied", args["grantId"]),
    "UsageRevoked": lambda args: ("right revoked", args["grantId"]),
}

_NEEDED = {
    "JobClaimed": "JobPosted",
    "ResultCommitted": "JobClaimed",
    "CommitsClosed": "ResultCommitted",
    "JobVerified": "CommitsClosed",
    "ReleaseOpened": "JobVerified",
    "JobReleased": "ReleaseOpened",
}
"""What must have happened to a job before; JobVerified is what a release hangs on."""

_ONCE = (*(name for name in _NEEDED if name != "JobClaimed"), "JobPosted", "JobDenied", "JobEnded")
_ENDS = ("JobReleased", "JobEnded")


@dataclass(slots=True)
class Account:
    """Privacy budget of a bundle as its events add up, in micro-rho."""

    total: int = 0
    reserved: int = 0
    spent: int = 0


@dataclass(slots=True)
class Books:
    """Everything that follows from the events so far."""

    events: list[LedgerEvent] = field(default_factory=list)
    facts: set[Fact] = field(default_factory=set)
    accounts: dict[bytes, Account] = field(default_factory=dict)
    open_jobs: set[bytes] = field(default_factory=set)
    """Admitted and not over."""
    ends: Counter[str] = field(default_factory=Counter)
    """Jobs by how they ended."""
    released: dict[bytes, bytes] = field(default_factory=dict)
    """Digest of the release of each released job."""
    _seen: set[tuple[bytes, str]] = field(default_factory=set)
    _reserved: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """Bundle and micro-rho of each job that still holds its reservation."""

    def add(self, events: Sequence[LedgerEvent]) -> list[str]:
        """Take in finalised events in their order; returns what they break."""
        broken = [complaint for event in events for complaint in self._add(event)]
        self.events.extend(events)
        return broken

    def _add(self, event: LedgerEvent) -> list[str]:
        args: dict[str, Any] = event.args
        broken = []
        if fact := _FACTS.get(event.name):
            self.facts.add(fact(args))
        job = args.get("jobId")
        if isinstance(job, bytes):
            broken += self._job_event(event.name, job)
            if event.name == "JobReleased":
                self.released[job] = args["releaseDigest"]
            broken += self._move_budget(event.name, job, args)
            if event.name in _ENDS:
                self.ends[JobState(args.get("state", JobState.RELEASED)).name] += 1
        if event.name == "BudgetSet":
            self.accounts.setdefault(args["artifactId"], Account()).total = args["totalRhoMicro"]
        return broken

    def _job_event(self, name: str, job: bytes) -> list[str]:
        broken = []
        if name in _ONCE and (job, name) in self._seen:
            broken.append(f"{name} twice for job {job.hex()[:12]}")
        needed = _NEEDED.get(name)
        if needed is not None and (job, needed) not in self._seen:
            broken.append(f"{name} without {needed} for job {job.hex()[:12]}")
        if name in _NEEDED and any((job, end) in self._seen for end in _ENDS):
            broken.append(f"{name} after the end of job {job.hex()[:12]}")
        self._seen.add((job, name))
        if name == "JobPosted":
            self.open_jobs.add(job)
        if name in _ENDS:
            self.open_jobs.discard(job)
        return broken

    def _move_budget(self, name: str, job: bytes, args: dict[str, Any]) -> list[str]:
        """What a step of a job does to its bundle's account: reserve, spend, or give back."""
        if name == "JobPosted":
            bundle, rho = args["artifactId"], args["request"]["rhoMicro"]
            self._reserved[job] = bundle, rho
            account = self.accounts.setdefault(bundle, Account())
            account.reserved += rho
        elif name == "ReleaseOpened" or (name == "JobEnded" and args["from"] != JobState.OPENED):
            if job not in self._reserved:
                return [f"{name} of job {job.hex()[:12]}, which had nothing reserved"]
            bundle, rho = self._reserved.pop(job)
            account = self.accounts[bundle]
            account.reserved -= rho
            account.spent += rho if name == "ReleaseOpened" else 0
        else:
            return []
        if account.reserved < 0 or account.reserved + account.spent > account.total:
            return [f"budget of {bundle.hex()[:12]} does not conserve: {account}"]
        return []
