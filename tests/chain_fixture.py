"""One real chain process and as many networks on it as tests want; the test holds the key of every member."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from eth_account import Account

from usufruct.he.parameters import BFV_LINEAR
from usufruct.keys.hpke import generate_hpke_key, hpke_public
from usufruct.ledger import Ledger, Network, Receipt
from usufruct.ledger.genesis import found_network
from usufruct.records import (
    ArtifactId,
    BundleRegistration,
    GrantId,
    GrantTerms,
    JobId,
    JobRequest,
    KeyId,
    LedgerEvent,
    MemberStatus,
    Participant,
    Reveal,
    Role,
    SignedVerdict,
    Timings,
    org_id,
)
from usufruct.verify import possession, sign_verdict, verdict_commitment
from usufruct_node.devnet import Devnet
from usufruct_node.peers import PeerIdentity

PARAMETERS_ID = BFV_LINEAR.parameters_id
KERNEL = b"\x05" * 32
GAS = 3_000_000
FAR = 1 << 40
"""Unix seconds that no test lives to see."""

Call = tuple[str | None, bytes]


def word() -> bytes:
    """Thirty-two random bytes: a digest, a salt, an id."""
    return secrets.token_bytes(32)


class Organisation:
    """A member's keys and record; ledgers that send as its authority and as its node."""

    def __init__(self, name: str, roles: Role) -> None:
        self.name = name
        self.id = org_id(name)
        self.authority_key, self.node_key = word(), word()
        self.hpke_private = generate_hpke_key()
        self.peer = PeerIdentity.from_seed(word())
        self.record = Participant(
            id=self.id,
            account=Account.from_key(self.authority_key).address,
            node_account=Account.from_key(self.node_key).address,
            roles=roles,
            status=MemberStatus.NONE,
            hpke_key=hpke_public(self.hpke_private),
            peer_id=self.peer.peer_id_bytes,
            endpoint="/ip4/127.0.0.1/tcp/0",
        )
        self.ledger: Ledger
        self.node: Ledger

    def open(self, network: Network) -> None:
        self.ledger = Ledger.open(network, private_key=self.authority_key)
        self.node = Ledger.open(network, private_key=self.node_key)


STEWARD = Role.STEWARD | Role.CUSTODIAN | Role.VERIFIER
CAST = {
    "north": STEWARD,
    "south": STEWARD,
    "compute": Role.COMPUTE,
    "auditor": Role.AUDITOR | Role.VERIFIER,
    "university": Role.PARTNER,
}


class Consortium:
    """A network on the chain, with the raw moves of its members."""

    def __init__(
        self,
        url: str,
        *,
        cast: dict[str, Role] = CAST,
        timings: Timings | None = None,
        profile: str = "embedded",
    ) -> None:
        self.members = {name: Organisation(name, roles) for name, roles in cast.items()}
        self.network = found_network(
            url,
            deployer_key=word(),
            founders=[member.record for member in self.members.values()],
            parameters=[(PARAMETERS_ID, 128)],
            timings=timings,
            profile=profile,
        )
        for member in self.members.values():
            member.open(self.network)
        self.reader = Ledger.open(self.network)
        self._pool = ThreadPoolExecutor(8)

    def __getitem__(self, name: str) -> Organisation:
        return self.members[name]

    def join(self, name: str, roles: Role, **changes: object) -> Organisation:
        """Make an organisation and vote it in."""
        newcomer = Organisation(name, roles)
        newcomer.record = replace(newcomer.record, **changes)
        self.govern("ParticipantRegistry", "admit", newcomer.record)
        newcomer.open(self.network)
        self.members[name] = newcomer
        return newcomer

    def govern(self, contract: str, function: str, *arguments: object) -> None:
        """Have every active member support a call of the council and make it."""
        target, data = self.reader.call_data(contract, function, *arguments)
        active = [
            m for m in self.members.values() if self.reader.participant(m.id).status == MemberStatus.ACTIVE
        ]
        first, *others = active
        receipt = first.ledger.transact("MemberCouncil", "propose", target, data)
        number = first.ledger.event_of(receipt, "ProposalMade").args["proposalId"]
        self.together((m.ledger, "MemberCouncil", "vote", number, True) for m in others)
        first.ledger.transact("MemberCouncil", "execute", number)

    def together(self, moves: Iterable[tuple]) -> list[list[Receipt]]:
        """Moves (ledger, contract, function, *arguments): one pre-signed batch per sender, all senders at once."""
        batches: dict[int, tuple[Ledger, list[Call]]] = {}
        for ledger, contract, function, *arguments in moves:
            batches.setdefault(id(ledger), (ledger, []))[1].append(
                ledger.call_data(contract, function, *arguments)
            )
        waiting = [
            self._pool.submit(ledger.transact_many, calls, gas=GAS) for ledger, calls in batches.values()
        ]
        return [future.result() for future in waiting]

    def events(self, names: Iterable[str] = ()) -> list[LedgerEvent]:
        """Every event of the network so far, or those with these names."""
        found = self.reader.events(self.network.deployed_at_block, self.reader.finalised().number)
        wanted = set(names)
        return [event for event in found if not wanted or event.name in wanted]

    # Moves of the path.

    def key_domain(self, steward: str) -> KeyId:
        key_id = KeyId(word())
        self[steward].ledger.transact("KeyRegistry", "registerKeyDomain", key_id, PARAMETERS_ID, word())
        return key_id

    def bundle(
        self, steward: str, key_id: KeyId, *, scope: bytes, budget: int = 10**9, **changes: object
    ) -> ArtifactId:
        given = {
            "content_digest": word(),
            "key_id": key_id,
            "policy_digest": word(),
            "consent_scope": scope,
            "retain_until": FAR,
        }
        ledger = self[steward].ledger
        receipt = ledger.transact(
            "LineageRegistry", "registerBundle", BundleRegistration(**(given | changes))
        )
        artifact = ArtifactId(ledger.event_of(receipt, "BundleRegistered").args["artifactId"])
        ledger.transact("PrivacyBudget", "setBudget", artifact, budget)
        return artifact

    def epoch(self, steward: str, scope: bytes, *, cohort: int = 50) -> int:
        ledger = self[steward].ledger
        number = ledger.consent_epoch(self[steward].id, scope).epoch + 1
        ledger.transact("ConsentRegistry", "anchorEpoch", scope, number, word(), word(), cohort)
        return number

    def request(self, partner: str, artifact: ArtifactId, scope: bytes, terms: GrantTerms) -> GrantId:
        ledger = self[partner].ledger
        receipt = ledger.transact("UsageRights", "requestUsage", artifact, scope, terms)
        return GrantId(ledger.event_of(receipt, "UsageRequested").args["grantId"])

    def granted(
        self, partner: str, steward: str, artifact: ArtifactId, scope: bytes, **changes: object
    ) -> GrantId:
        terms = replace(TERMS, **changes)
        grant_id = self.request(partner, artifact, scope, terms)
        self[steward].ledger.transact("UsageRights", "grantUsage", grant_id, terms)
        return grant_id

    def granted_all(
        self, partner: str, wanted: dict[str, tuple[ArtifactId, GrantTerms]]
    ) -> dict[str, GrantId]:
        """Ask for and grant rights in two batches; name -> (bundle, terms) to name -> grant."""
        ledger = self[partner].ledger
        records = {artifact: self.reader.artifact(artifact) for artifact, _ in wanted.values()}
        (receipts,) = self.together(
            (ledger, "UsageRights", "requestUsage", artifact, records[artifact].consent_scope, terms)
            for artifact, terms in wanted.values()
        )
        grants = {
            name: GrantId(ledger.event_of(receipt, "UsageRequested").args["grantId"])
            for name, receipt in zip(wanted, receipts, strict=True)
        }
        stewards = {member.id: member for member in self.members.values()}
        self.together(
            (stewards[records[artifact].steward].ledger, "UsageRights", "grantUsage", grants[name], terms)
            for name, (artifact, terms) in wanted.items()
        )
        return grants

    def post(self, partner: str, requests: Iterable[JobRequest]) -> list[JobId]:
        """Post jobs in one batch; their ids in order, admitted or not."""
        asked = list(requests)
        ledger = self[partner].ledger
        (receipts,) = self.together((ledger, "JobLedger", "postJob", request) for request in asked)
        return [JobId(self._job_event(ledger, receipt).args["jobId"]) for receipt in receipts]

    @staticmethod
    def _job_event(ledger: Ledger, receipt: Receipt) -> LedgerEvent:
        return next(e for e in ledger.events_of(receipt) if e.name in ("JobPosted", "JobDenied"))

    def claim(self, jobs: Iterable[JobId]) -> None:
        self.together((self["compute"].node, "JobLedger", "claimJob", job) for job in jobs)

    def commit(self, results: dict[JobId, bytes]) -> None:
        self.together(
            (self["compute"].node, "JobLedger", "commitResult", *item, []) for item in results.items()
        )


TERMS = GrantTerms(kernels=(KERNEL,), uses=1000, expires_at=FAR, rho_micro=10**9, min_cohort=10)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one verifier says of one job."""

    verifier: Organisation
    job_id: JobId
    result_digest: bytes
    salt: bytes
    held: bytes

    @classmethod
    def of(cls, verifier: Organisation, job_id: JobId, result_digest: bytes) -> Vote:
        return cls(verifier, job_id, result_digest, word(), possession(verifier.id, [b"result block"]))

    def commitment(self, network: Network) -> bytes:
        return verdict_commitment(
            chain_id=network.chain_id,
            job_ledger=network.contracts["JobLedger"],
            job_id=self.job_id,
            verifier=self.verifier.id,
            result_digest=self.result_digest,
            held=self.held,
            salt=self.salt,
        )

    def commit_move(self, network: Network) -> tuple:
        return (self.verifier.node, "JobLedger", "commitVerdicts", self.job_id, [self.word(network)])

    def word(self, network: Network, **changes: object) -> SignedVerdict:
        usual = {
            "chain_id": network.chain_id,
            "job_ledger": network.contracts["JobLedger"],
            "job_id": self.job_id,
            "commitment": self.commitment(network),
            "deadline": FAR,
        }
        return sign_verdict(self.verifier.node_key, **(usual | changes))

    @property
    def reveal(self) -> Reveal:
        return Reveal(
            verifier=self.verifier.id, result_digest=self.result_digest, possession=self.held, salt=self.salt
        )

    def reveal_move(self) -> tuple:
        return (self.verifier.node, "JobLedger", "revealVerdicts", self.job_id, [self.reveal])


def reveal_moves(votes: Iterable[Vote]) -> list[tuple]:
    """One call per job that reveals all of these votes on it; two calls on one job in one block would not both fit."""
    by_job: dict[JobId, list[Vote]] = {}
    for vote in votes:
        by_job.setdefault(vote.job_id, []).append(vote)
    return [
        (given[0].verifier.node, "JobLedger", "revealVerdicts", job_id, [vote.reveal for vote in given])
        for job_id, given in by_job.items()
    ]


@contextmanager
def running_chain(root: Path) -> Iterator[str]:
    """URL of a chain process with blocks every tenth of a second."""
    net = Devnet(root)
    try:
        yield net.start_chain(block_interval_s=0.1).url
    finally:
        net.stop("chain")


def until(condition: Callable[[], bool], *, wait_s: float = 30.0) -> None:
    """Wait for a condition; an assertion when it does not come true."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)
