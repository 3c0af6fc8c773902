"""Plays the people: what stewards, partner and auditor do, each through its own home and client, in the order of the path.

The checks at the end compare with plaintext, which only this stage can: it stands in every organisation's office at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from usufruct import Client
from usufruct.content import Cid, Codec
from usufruct.errors import JobDeniedError
from usufruct.evidence import check_evidence, read_evidence, write_evidence
from usufruct.features import Features
from usufruct.he.bfv import SecretKey, open_coefficients
from usufruct.he.quantise import QuantisedModel
from usufruct.home import ParticipantFile
from usufruct.job import FeatureBundle
from usufruct.keys import he_keys
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.privacy import MICRO
from usufruct.records import GrantId, JobId
from usufruct.register import Policy
from usufruct.release import Release
from usufruct.rights import terms
from usufruct.verify import ResultManifest
from usufruct_node.demo.data import hog_features, hog_schema, split_patches
from usufruct_node.demo.report import JobLine, Report
from usufruct_node.devnet import Devnet

SCOPE = "occupancy-research"
NOTICE = b"Your image features may be used, encrypted, to study how crowded a room is. You may withdraw at any time."
CLINICS = ("clinic-north", "clinic-south")
MIN_COHORT = 50
_DAY = 86_400

Outcome = TypeVar("Outcome")


@dataclass(slots=True)
class Clinic:
    """What a clinic knows and nobody else does."""

    client: Client
    features: Features
    secret: SecretKey
    subjects: list[str]
    positions: dict[str, int]
    bundle: FeatureBundle | None = None


@dataclass(slots=True)
class Posted:
    """A job under way."""

    question: str
    clinic: str
    kernel: str
    job_id: JobId
    begun: float
    release: Release | None = None


class Story:
    """One run of the main job on a running network."""

    def __init__(self, net: Devnet, report: Report) -> None:
        self._net = net
        self._report = report
        self._pool = ThreadPoolExecutor(8)
        self._clinics: dict[str, Clinic] = {}
        self._university: Client
        self._auditor: Client
        self._patches = split_patches()

    def tell(self) -> None:
        """Everything, in order."""
        self._admit_university()
        self._clinics_share()
        self._university_asks()
        jobs = self._university_computes()
        self._subject_withdraws(jobs[0])
        self._auditor_looks(jobs[0])
        self._ledger_figures()

    def _admit_university(self) -> None:
        with self._report.step("opening five homes"):
            names = [member.name for member in self._net.members]
            clients = dict(zip(names, self._pool.map(self._open, names), strict=True))
            self._university, self._auditor = clients["university"], clients["auditor"]
        with self._report.step("founders vote to admit university"):
            record = ParticipantFile.load(self._net.home("university").root / "participant.json")
            number = clients["auditor"].propose("ParticipantRegistry", "admit", record.to_participant())
            self._together(
                lambda: clients["clinic-north"].vote(number), lambda: clients["clinic-south"].vote(number)
            )
            clients["auditor"].execute(number)
        with self._report.step("clinics compute HOG features where the images are"):
            for name in CLINICS:
                features = clients[name].features(hog_features(self._patches[name]), hog_schema())
                subjects = [f"{name}/patient-{row:03d}" for row in range(features.n_rows)]
                secret, public = he_keys.create_key_domain()
                home = self._net.home(name)
                keystore = KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase))
                he_keys.store_secret(keystore, secret)
                clients[name].register_key_domain(public)
                self._clinics[name] = Clinic(clients[name], features, secret, subjects, {})

    def _clinics_share(self) -> None:
        with self._report.step("clinics record consents, seal, publish and register"):
            self._together(*(partial(self._share, name) for name in CLINICS))
        for name in CLINICS:
            bundle = self._clinics[name].bundle
            if bundle is not None:
                self._report.note(
                    f"{name}: bundle {bundle.artifact_id.hex()[:16]}, {len(bundle.manifest.blocks)} blocks"
                )

    def _share(self, name: str) -> None:
        clinic = self._clinics[name]
        clinic.positions = clinic.client.record_consents(
            clinic.subjects, scope=SCOPE, notice=NOTICE, days=365
        )
        clinic.client.anchor_consents(scope=SCOPE)
        published = clinic.client.publish(
            clinic.client.seal(clinic.features, clinic.secret),
            scope=SCOPE,
            row_subjects=[clinic.positions[subject] for subject in clinic.subjects],
        )
        policy = Policy(
            purposes=(SCOPE,),
            kernels=("sum", "linear") if name == "clinic-north" else ("sum",),
            min_cohort=MIN_COHORT,
            row_level=name == "clinic-north",
            max_rho_micro_per_job=4 * MICRO,
        )
        artifact_id = clinic.client.register(published, policy=policy, retain_days=365, budget_rho=12)
        clinic.bundle = clinic.client.bundle(artifact_id)

    def _university_asks(self) -> None:
        with self._report.step("university finds the bundles and asks for rights"):
            bundles = self._bundles()
            asked = {
                name: self._university.request(
                    bundles[name], kernels=("sum", "linear"), uses=10, rho=10, row_level=True
                )
                for name in CLINICS
            }
        with self._report.step("north grants sum and linear, south grants sum only"):
            self._together(*(partial(self._grant, name, asked[name]) for name in CLINICS))

    def _grant(self, name: str, grant_id: GrantId) -> None:
        client = self._clinics[name].client
        granted = terms(
            kernels=("sum", "linear") if name == "clinic-north" else ("sum",),
            uses=8,
            expires_at=client.ledger.finalised().timestamp + 30 * _DAY,
            rho_micro=10 * MICRO,
            min_cohort=MIN_COHORT,
            replicas=2,
            row_level=name == "clinic-north",
        )
        client.grant(grant_id, granted)

    def _university_computes(self) -> list[Posted]:
        bundles = self._bundles()
        with self._report.step("university trains on its own 40 patches and quantises the model"):
            own = self._patches["university"]
            model = LogisticRegression(C=1.0, max_iter=1000).fit(hog_features(own), own.is_face)
            north = bundles["clinic-north"]
            rows = self._university.quantise_model(north, model.coef_, model.intercept_, output="rows")
            mean = self._university.quantise_model(north, model.coef_, model.intercept_, output="sum")
        with self._report.step("university posts four jobs"):
            jobs = self._together(
                lambda: self._post("mean features", "clinic-north", "sum", None, 1.0),
                lambda: self._post("mean features", "clinic-south", "sum", None, 1.0),
                lambda: self._post("score per row", "clinic-north", "linear", rows, 4.0),
                lambda: self._post("mean score", "clinic-north", "linear", mean, 1.0),
            )
        with self._report.step("scoring on south is denied, and the denial is on the ledger"):
            self._denied("mean score", "clinic-south", "linear", mean, expected="KERNEL_NOT_GRANTED")
        with self._report.step("compute-1 computes, three members re-execute, custodians release"):
            self._together(*(partial(self._finish, job) for job in jobs))
        for job in jobs:
            self._compare(job, None if job.kernel == "sum" else rows if "row" in job.question else mean)
        return jobs

    def _subject_withdraws(self, earlier: Posted) -> None:
        clinic = self._clinics["clinic-north"]
        gone = clinic.subjects[17]
        with self._report.step("one subject of north withdraws; a new consent epoch is anchored"):
            epoch = clinic.client.withdraw_consent(gone, scope=SCOPE)
            self._report.check("withdrawal anchors the next epoch", epoch.epoch == 2, f"epoch {epoch.epoch}")
        with self._report.step("a job against the old epoch is refused"):
            self._denied(
                "mean features", "clinic-north", "sum", None, expected="CONSENT_EPOCH_STALE", epoch=1
            )
        with self._report.step("the next mean leaves that row out"):
            job = self._post("mean, one withdrawn", "clinic-north", "sum", None, 1.0)
            self._finish(job)
            self._compare(job, None, without=17)
        bundle = self._bundles()["clinic-north"]
        impact = self._university.impact(bundle.artifact_id)
        stale = {entry["job_id"] for entry in impact if entry["stale"]}
        fresh = {entry["job_id"] for entry in impact if not entry["stale"]}
        self._report.check(
            "earlier results show as stale, the new one does not",
            earlier.job_id.hex() in stale and fresh == {job.job_id.hex()},
            f"{len(stale)} jobs stale, {len(fresh)} fresh",
        )

    def _auditor_looks(self, job: Posted) -> None:
        with self._report.step(
            "auditor walks from a released number to every consent, re-checking each step"
        ):
            found = self._auditor.lineage(self._auditor.release_artifact(job.job_id))
            self._report.lineage = found
        self._report.note(
            f"{found.checked.events} events in {found.checked.series} series,"
            f" {found.checked.contents} contents, {found.checked.bytes:,} bytes"
        )
        with self._report.step(
            "the university discloses the number with its evidence, which is checked without a node"
        ):
            file = self._net.home("university").root / f"{job.job_id.hex()}.evidence"
            write_evidence(self._university.collect_evidence(found.root.artifact_id, disclose=True), file)
            ledger = self._auditor.ledger
            alone = ledger.network.chain.proof is not None
            shown = check_evidence(
                read_evidence(file)[1], ledger.network, endpoint=None if alone else ledger.endpoint
            )
        self._report.check(
            "the evidence shows that number and the same lineage",
            shown.lineage.root.artifact_id == found.root.artifact_id
            and shown.lineage.checked.events == found.checked.events
            and shown.release is not None
            and bool(np.array_equal(shown.release.values, self._university.open_release(job.job_id).values)),
            f"{file.stat().st_size:,} bytes, up to block {shown.block_number}",
        )
        with self._report.step("the clinic hands out the receipts behind that job, the auditor checks them"):
            epoch = self._auditor.content.query(f"/jobs/{job.job_id.hex()}")["consent_epoch"]
            proof = self._clinics[job.clinic].client.prove_consents(scope=SCOPE, epoch=epoch)
            checked = self._auditor.check_consents(proof, job_id=job.job_id)
        consents = checked.job
        self._report.check(
            "every row of that job is of a subject whose consent was signed and anchored",
            consents is not None and checked.receipts == consents.consenting_rows == consents.rows,
            f"{checked.receipts} receipts of epoch {checked.epoch}",
        )
        reasons = {entry["reason"] for entry in self._auditor.denials()}
        self._report.check(
            "both denials are on the ledger",
            {"KERNEL_NOT_GRANTED", "CONSENT_EPOCH_STALE"} <= reasons,
            ", ".join(sorted(reasons)),
        )

    # Helpers of the stage.

    def _open(self, name: str) -> Client:
        return Client.open(self._net.home(name))

    def _bundles(self) -> dict[str, FeatureBundle]:
        deadline = time.monotonic() + 30
        while True:
            found = {bundle.steward: bundle for bundle in self._university.bundles()}
            if set(found) == set(CLINICS) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def _post(
        self, question: str, clinic: str, kernel: str, model: QuantisedModel | None, rho: float
    ) -> Posted:
        begun = time.monotonic()
        job_id = self._university.post(self._bundles()[clinic], kernel, model, rho=rho)
        return Posted(question, clinic, kernel, job_id, begun)

    def _denied(
        self,
        question: str,
        clinic: str,
        kernel: str,
        model: QuantisedModel | None,
        *,
        expected: str,
        epoch: int | None = None,
    ) -> None:
        try:
            self._university.post(self._bundles()[clinic], kernel, model, rho=1.0, consent_epoch=epoch)
        except JobDeniedError as exc:
            self._report.check(f"{question} on {clinic} is denied", exc.reason == expected, exc.reason)
            self._report.jobs.append(
                JobLine(
                    question=question,
                    bundle=clinic,
                    kernel=kernel,
                    state=f"DENIED {exc.reason}",
                    job_id=exc.job_id.hex(),
                )
            )
        else:
            self._report.check(f"{question} on {clinic} is denied", False, "it was admitted")

    def _finish(self, job: Posted) -> None:
        job.release = self._university.wait(job.job_id, timeout_s=300)
        seconds = time.monotonic() - job.begun
        self._report.jobs.append(
            JobLine(
                question=job.question,
                bundle=job.clinic,
                kernel=job.kernel,
                state="RELEASED",
                rho=job.release.rho_micro / MICRO,
                epsilon=job.release.epsilon(),
                seconds=seconds,
                job_id=job.job_id.hex(),
            )
        )

    def _compare(self, job: Posted, model: QuantisedModel | None, *, without: int | None = None) -> None:
        """Exactness before noise, and how far the release is from the truth."""
        release = job.release
        clinic = self._clinics[job.clinic]
        if release is None:
            return
        rows = (
            np.delete(clinic.features.values, without, axis=0)
            if without is not None
            else clinic.features.values
        )
        rows = rows.astype(np.int64)
        if model is None:
            truth, scale = rows.sum(axis=0), float(clinic.features.schema.scale)
        else:
            weights = np.array(model.parameters.weights, dtype=np.int64)
            scores = rows @ weights.T + np.array(model.parameters.bias, dtype=np.int64)
            truth = scores if model.parameters.output == "rows" else scores.sum(axis=0)
            scale = model.result_scale
        opened = self._opened(job, clinic, rows_only=truth.ndim == 2, count=len(rows))
        self._report.check(
            f"{job.question} on {job.clinic}: decrypted result equals plaintext exactly",
            bool(np.array_equal(opened, truth)),
            f"{truth.size} integers",
        )
        true_mean = truth.reshape(-1, truth.shape[-1] if truth.ndim == 2 else truth.size).sum(axis=0) / (
            scale * len(rows)
        )
        error, bound = float(np.abs(release.mean() - true_mean).max()), release.mean_error(1e-9)
        self._report.check(
            f"{job.question} on {job.clinic}: released mean within the declared noise",
            error <= bound,
            f"off by {error:.4f}, bound {bound:.4f}",
        )
        if without is not None:
            self._report.check(
                "the withdrawn row is absent", release.count == len(rows), f"{release.count} rows"
            )
        line = next(line for line in self._report.jobs if line.job_id == job.job_id.hex())
        line.truth = f"{np.linalg.norm(true_mean):.4f}" if true_mean.size > 1 else f"{true_mean[0]:.4f}"
        shown = release.mean()
        line.released = f"{np.linalg.norm(shown):.4f}" if shown.size > 1 else f"{shown[0]:.4f}"

    def _opened(self, job: Posted, clinic: Clinic, *, rows_only: bool, count: int) -> npt.NDArray[np.int64]:
        """North and south open the verified ciphertexts with their own keys, as their custodians did."""
        record = clinic.client.ledger.job(job.job_id)
        content = clinic.client.content
        manifest = ResultManifest.from_record(
            content.get_record(Cid.from_digest(record.result_digest, Codec.DAG_CBOR), holder="compute-1")
        )
        blocks = [content.get(cid, holder="compute-1") for cid in manifest.blocks]
        wanted = range(count) if rows_only else range(1)
        opened = [open_coefficients(block, clinic.secret, wanted) for block in blocks]
        values = np.array(opened, dtype=np.int64)
        return values.T if rows_only else values[:, 0]

    def _ledger_figures(self) -> None:
        """Verification level and gas of every job: all transactions of its life, whoever sent them."""
        ledger, content = self._auditor.ledger, self._auditor.content
        for line in self._report.jobs:
            told = content.query(f"/jobs/{line.job_id}")
            line.level = told["level"] or ""
            hashes = sorted({event["transaction_hash"] for event in told["events"]})
            receipts = ledger.endpoint.batch([("eth_getTransactionReceipt", (tx,)) for tx in hashes])
            line.gas = sum(int(receipt["gasUsed"], 16) for receipt in receipts)

    def _together(self, *calls: Callable[[], Outcome]) -> list[Outcome]:
        """Independent people act at the same time."""
        return [future.result() for future in [self._pool.submit(call) for call in calls]]
