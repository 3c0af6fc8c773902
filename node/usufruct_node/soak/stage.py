"""The people and processes of a soak: a devnet, its organisations' clients, and what each action of the plan does to them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from usufruct import Client
from usufruct.errors import JobDeniedError, UsufructError
from usufruct.features import Column, Extractor, FeatureSchema
from usufruct.he.bfv import SecretKey
from usufruct.home import ParticipantFile
from usufruct.job import FeatureBundle
from usufruct.keys import he_keys
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Ledger, Network
from usufruct.privacy import MICRO
from usufruct.records import GrantId, JobId, JobState, Refusal, ReputationRule, Timings, label, org_id
from usufruct.register import Policy
from usufruct.rights import terms
from usufruct_node.devnet import ChainKind, Devnet
from usufruct_node.soak.books import Fact
from usufruct_node.soak.plan import CLINICS, Action

SCOPE = "occupancy-research"
_NOTICE = (
    b"Your features may be used, encrypted, to study how crowded a room is. You may withdraw at any time."
)
_ROWS, _FEATURES = 60, 12
_MIN_COHORT = 20
_LEAST_ROWS = 30
"""Rows of the first subjects that are left consenting, so that the cohort stays large enough."""

_PLENTY = 1_000_000
_KERNELS = ("sum", "linear")
_WEIGHTS = [[(-1) ** i * (i + 1) for i in range(_FEATURES)]]
_EXPECTED_DENIALS = {"CONSENT_EPOCH_STALE"}
"""Of jobs that were meant to be admitted: the steward may anchor an epoch while a job is being posted."""

BLOCK_SECONDS = 0.1
_PATIENT = Timings(claim=300, compute=300, commit=300, reveal=300, dispute=300, release=300)
"""A job may wait for processes that are away, and may not expire for it."""

_POINTS = 10_000
"""Who is killed again and again lets claims lapse; nobody is to be suspended for it."""


_Place = tuple[str, tuple[str, ...]]
"""Where a node and the chain answer."""


class UnexpectedOutcomeError(UsufructError):
    """Somebody got an answer that the rules do not allow."""


class Clinic:
    """What a clinic knows and nobody else does. Used by one thread."""

    def __init__(self, name: str, secret: SecretKey) -> None:
        self.name = name
        self.secret = secret
        self.positions: dict[str, int] = {}
        self.patients: list[str] = []
        self.visitors: list[str] = []
        """Subjects without a row, for withdrawals when no more patients may go."""
        self.n_bundles = 0
        self.n_visitors = 0
        self.usable: tuple[FeatureBundle, GrantId]
        """The newest bundle, and the university's right on it."""


class Stage:
    """A running network. `perform` is called by one thread per organisation, faults by another."""

    def __init__(self, root: Path, chain: ChainKind) -> None:
        self.net = Devnet(root)
        self.chain = chain
        self._posted: list[JobId] = []
        self._clients: dict[str, tuple[Client, _Place]] = {}
        self._opening = threading.Lock()
        self._height = 0
        self._clinics: dict[str, Clinic] = {}
        self._values: dict[JobId, bytes] = {}
        self._acts: dict[str, Callable[[Action], list[Fact]]] = {
            "sum job": partial(self._post, kernel="sum"),
            "linear job": partial(self._post, kernel="linear"),
            "job on a right to another bundle": self._post_without_right,
            "job on an old epoch": self._post_on_old_epoch,
            "reading a release again": self._read_again,
            "consent": self._consent,
            "withdrawal": self._withdraw,
            "publication": self._publish,
            "rights granted and revoked": self._grant_and_revoke,
            "rights denied": self._deny,
        }

    # Life of the network.

    def open(self, say: Callable[[str], None]) -> None:
        """Start every process, admit the university, publish one bundle per clinic."""
        self.net.up(
            chain=self.chain,
            say=say,
            timings=_PATIENT,
            reputation=ReputationRule(limit=_POINTS),
            block_interval_s=BLOCK_SECONDS,
        )
        say("founders admit the university")
        record = ParticipantFile.load(self.net.home("university").root / "participant.json")
        number = self.client("auditor").propose("ParticipantRegistry", "admit", record.to_participant())
        voters = [self.client(name) for name in CLINICS]
        with ThreadPoolExecutor(len(voters)) as pool:
            list(pool.map(lambda voter: voter.vote(number), voters))
        self.client("auditor").execute(number)
        for name in CLINICS:
            say(f"{name} publishes")
            self._clinics[name] = self._found_clinic(name)
            self._new_bundle(self._clinics[name])

    def close(self) -> None:
        """Stop every process."""
        self.net.down()

    def reader(self) -> Ledger:
        """A view of the ledger that is nobody's client."""
        return Ledger.open(Network.load(self.net.network_file), patience=120)

    def client(self, name: str) -> Client:
        """The client of an organisation, opened again when node or chain moved to another port."""
        home = self.net.home(name)
        place = home.node_address().url, Network.load(home.network_file).rpc_urls
        with self._opening:
            if self._clients.get(name, (None, None))[1] != place:
                self._note_heights()
                self._clients[name] = Client.open(home), place
            return self._clients[name][0]

    def height(self) -> int:
        """The newest final block that any client has seen."""
        with self._opening:
            self._note_heights()
            return self._height

    def _note_heights(self) -> None:
        seen = [client.ledger.health().height or 0 for client, _ in self._clients.values()]
        self._height = max([self._height, *seen])

    def actor(self, action: Action) -> str:
        """Organisation whose people do this; nobody's for faults."""
        if action.is_fault:
            return "fault"
        by_university = action.kind.startswith(("sum", "linear", "job", "reading"))
        return "university" if by_university else action.on

    def perform(self, action: Action) -> list[Fact]:
        """Do it; returns what must now be on the ledger.

        Raises
        ------
        UnexpectedOutcomeError
            If the network answers what it must not.
        UsufructError
            If it could not be done, as when a process that it needs is away.
        """
        return self._acts[action.kind](action)

    # The university.

    def _post(self, action: Action, *, kernel: str) -> list[Fact]:
        bundle, grant_id = self._clinics[action.on].usable
        parameters = {"output": "sum", "weights": _WEIGHTS, "bias": [3]} if kernel == "linear" else None
        try:
            job_id = self.client("university").post(bundle, kernel, parameters, rho=1.0, grant_id=grant_id)
        except JobDeniedError as exc:
            if exc.reason not in _EXPECTED_DENIALS:
                raise UnexpectedOutcomeError(f"a job within its rights was denied: {exc.reason}") from exc
            return [("denial", exc.job_id)]
        self._posted.append(job_id)
        return [("job", job_id)]

    def _post_without_right(self, action: Action) -> list[Fact]:
        other = next(name for name in CLINICS if name != action.on)
        return self._denied(action, self._clinics[other].usable[1], epoch=None)

    def _post_on_old_epoch(self, action: Action) -> list[Fact]:
        return self._denied(action, self._clinics[action.on].usable[1], epoch=1)

    def _denied(self, action: Action, grant_id: GrantId, *, epoch: int | None) -> list[Fact]:
        bundle, _ = self._clinics[action.on].usable
        try:
            self.client("university").post(bundle, "sum", rho=1.0, grant_id=grant_id, consent_epoch=epoch)
        except JobDeniedError as exc:
            return [("denial", exc.job_id)]
        raise UnexpectedOutcomeError(f"{action.kind} was admitted")

    def _read_again(self, action: Action) -> list[Fact]:
        if not self._posted:
            return []
        job_id, client = self._posted[int(action.draw * len(self._posted))], self.client("university")
        if client.ledger.job(job_id).state != JobState.RELEASED:
            return []
        values = client.open_release(job_id).values.tobytes()
        if self._values.setdefault(job_id, values) != values:
            raise UnexpectedOutcomeError(f"the release of job {job_id.hex()[:12]} changed")
        return []

    # The clinics.

    def _consent(self, action: Action) -> list[Fact]:
        clinic = self._clinics[action.on]
        return self._epoch(clinic, self._new_visitor(clinic))

    def _new_visitor(self, clinic: Clinic) -> int:
        """Somebody new consents; returns the epoch from which it counts."""
        clinic.n_visitors += 1
        visitor = f"{clinic.name}/visitor-{clinic.n_visitors:05d}"
        self._record(clinic, [visitor])
        clinic.visitors.append(visitor)
        return self.client(clinic.name).anchor_consents(scope=SCOPE).epoch

    def _withdraw(self, action: Action) -> list[Fact]:
        clinic = self._clinics[action.on]
        among = clinic.patients if len(clinic.patients) > _LEAST_ROWS else clinic.visitors
        if not among:
            return self._consent(action)
        subject = among.pop(int(action.draw * len(among)))
        return self._epoch(clinic, self.client(clinic.name).withdraw_consent(subject, scope=SCOPE).epoch)

    def _publish(self, action: Action) -> list[Fact]:
        return self._new_bundle(self._clinics[action.on])

    def _grant_and_revoke(self, action: Action) -> list[Fact]:
        clinic = self._clinics[action.on]
        grant_id = self._granted(clinic, clinic.usable[0])
        self.client(clinic.name).revoke(grant_id)
        return [("right", grant_id), ("right revoked", grant_id)]

    def _deny(self, action: Action) -> list[Fact]:
        clinic = self._clinics[action.on]
        grant_id = self._requested(clinic.usable[0])
        self.client(clinic.name).deny(grant_id, Refusal.PURPOSE_NOT_GRANTED)
        return [("right denied", grant_id)]

    def _found_clinic(self, name: str) -> Clinic:
        secret, public = he_keys.create_key_domain()
        home = self.net.home(name)
        he_keys.store_secret(
            KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase)), secret
        )
        client = self.client(name)
        client.register_key_domain(public)
        clinic = Clinic(name, secret)
        clinic.patients = [f"{name}/patient-{row:03d}" for row in range(_ROWS)]
        self._record(clinic, clinic.patients)
        client.anchor_consents(scope=SCOPE)
        self._new_visitor(clinic)
        return clinic

    def _record(self, clinic: Clinic, subjects: list[str]) -> None:
        found = self.client(clinic.name).record_consents(subjects, scope=SCOPE, notice=_NOTICE, days=365)
        clinic.positions |= found

    def _new_bundle(self, clinic: Clinic) -> list[Fact]:
        client = self.client(clinic.name)
        clinic.n_bundles += 1
        features = client.features(_rows(clinic.name, clinic.n_bundles), _schema())
        rows = [clinic.positions[f"{clinic.name}/patient-{row:03d}"] for row in range(_ROWS)]
        published = client.publish(client.seal(features, clinic.secret), scope=SCOPE, row_subjects=rows)
        policy = Policy(
            purposes=(SCOPE,),
            kernels=_KERNELS,
            min_cohort=_MIN_COHORT,
            row_level=False,
            max_rho_micro_per_job=_PLENTY * MICRO,  # cohorts that one withdrawal parts are charged as one
        )
        artifact_id = client.register(published, policy=policy, retain_days=30, budget_rho=_PLENTY)
        bundle = client.bundle(artifact_id)
        grant_id = self._granted(clinic, bundle)
        clinic.usable = bundle, grant_id
        return [("bundle", artifact_id), ("right", grant_id)]

    def _requested(self, bundle: FeatureBundle) -> GrantId:
        return self.client("university").request(bundle, kernels=_KERNELS, uses=_PLENTY, rho=_PLENTY)

    def _granted(self, clinic: Clinic, bundle: FeatureBundle) -> GrantId:
        grant_id = self._requested(bundle)
        client = self.client(clinic.name)
        granted = terms(
            kernels=_KERNELS,
            uses=_PLENTY,
            expires_at=client.ledger.finalised().timestamp + 30 * 86_400,
            rho_micro=_PLENTY * MICRO,
            min_cohort=_MIN_COHORT,
            replicas=2,
        )
        client.grant(grant_id, granted)
        return grant_id

    def _epoch(self, clinic: Clinic, number: int) -> list[Fact]:
        return [("epoch", org_id(clinic.name), label(SCOPE), number)]


def _rows(name: str, number: int) -> npt.NDArray[np.float64]:
    """Features between 0 and 1 in rows of norm at most 1, the same for the same arguments."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {number}".encode()).digest()[:8], "big")
    rows: npt.NDArray[np.float64] = np.random.default_rng(seed).random((_ROWS, _FEATURES))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _schema() -> FeatureSchema:
    return FeatureSchema(
        name="soak",
        kind="descriptor",
        columns=tuple(Column(name=f"f-{i:02d}", minimum=0.0, maximum=1.0) for i in range(_FEATURES)),
        extractor=Extractor(name="soak", sha256="0" * 64),
        max_l2=1.0,
        scale=64,
    )
