"""The facade: one organisation's view of the network, its methods in the order of the path of a data item.

`Client(...)` takes what it needs as keyword arguments; `Client.open(home)` reads them from a home directory.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from usufruct import consent_book, differencing, evidence, job, lineage, register, release, rights
from usufruct.checked_events import CheckedEvents
from usufruct.consent import ConsentReceipt, ConsentStatus
from usufruct.consent_book import ConsentBook
from usufruct.consent_proof import CheckedConsents, ConsentProof, check_consents, prove_consents
from usufruct.content import Cid, Codec
from usufruct.content.node import NodeContent
from usufruct.errors import (
    BlockNotFoundError,
    ContentError,
    InputError,
    IntegrityError,
    JobPendingError,
    NodeUnreachableError,
    NoRightError,
    NotAuthorisedError,
    PeerError,
    VerificationError,
)
from usufruct.evidence import Evidence
from usufruct.features import Features, FeatureSchema, prepare_features
from usufruct.he.quantise import QuantisedModel, quantise_model
from usufruct.he.secret import SecretKey
from usufruct.home import Home
from usufruct.ids import find_id
from usufruct.job import Estimate, FeatureBundle, JobParameters
from usufruct.keys import identity
from usufruct.keys.identity import AuthorityKeys
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Ledger, Network
from usufruct.ledger.reputation import faults_of, shown
from usufruct.lineage import Lineage
from usufruct.privacy import MICRO
from usufruct.publish import Progress, PublishedBundle, publish_bundle, publish_round
from usufruct.records import (
    FINAL_JOB_STATES,
    ArtifactId,
    BudgetAccount,
    ConsentEpoch,
    Fault,
    FreezeState,
    GrantId,
    GrantStatus,
    GrantTerms,
    Job,
    JobId,
    JobState,
    KeyId,
    KeyStatus,
    MemberStatus,
    OrgId,
    Participant,
    Refusal,
    org_id,
    parse_id,
    unlabel,
)
from usufruct.register import Policy
from usufruct.release import Release
from usufruct.replication import Replication
from usufruct.rounds import Call, Contributed, RoundTerms, check_signed, contribute, gather, make_call
from usufruct.seal import SealedFeatures, seal_features
from usufruct.uses import Use, uses_of
from usufruct.verify import ResultManifest, check_possessions

_log = logging.getLogger(__name__)
_DAY = 86_400

MAX_RHO: Final = 1e9
"""Most privacy (rho) that can be named: far more than would protect anything, and nothing overflows."""

MAX_DAYS: Final = 365_000
"""Longest duration that can be named: a thousand years."""

_POLL_SECONDS = 0.25


class Client:
    """What an organisation's people do; holds the authority's keys, never the node's."""

    def __init__(
        self, *, name: str, content: NodeContent, ledger: Ledger, keys: AuthorityKeys, book: ConsentBook
    ) -> None:
        self.name = name
        self.content = content
        self.ledger = ledger
        self._keys = keys
        self._book = book

    @classmethod
    def open(cls, home: Home | Path | str, *, passphrase_file: Path | None = None) -> Client:
        """Open the client of a home directory; its node must run.

        Parameters
        ----------
        passphrase_file :
            File of mode 0600 with the passphrase of the authority's keys; the home's `authority.passphrase` when None, or a
            prompt when that is absent too.

        Raises
        ------
        ConfigurationError, WrongPassphraseError, NodeUnreachableError, LedgerUnreachableError, WrongChainError
        """
        place = home if isinstance(home, Home) else Home.at(home)
        organisation = place.organisation()
        keys = identity.load_authority_keys(open_authority_keystore(place, passphrase_file))
        ledger = Ledger.open(
            Network.load(place.network_file),
            private_key=keys.ledger_key,
            journal=place.root / "authority.transactions",
        )
        return cls(
            name=organisation.name,
            content=NodeContent(place.node_address().url, place.api_token),
            ledger=ledger,
            keys=keys,
            book=ConsentBook(
                place.consent_database,
                steward=organisation.id,
                pseudonym_key=keys.consent_pseudonym_key,
            ),
        )

    def find_id(self, kind: str, text: str) -> bytes:
        """The id of an artifact, job, grant or key domain from its first hex digits, as far as they are unambiguous.

        Raises
        ------
        InputError
            If no id, or more than one, begins with them.
        NodeUnreachableError
            If the node's index, which is to know it, stays behind the ledger.
        """
        return find_id(self.ledger, self.content, (kind,), text)[1]

    def find_artifact(self, text: str) -> ArtifactId:
        """An artifact by its id or that of its job, or the first digits of either; of a job the release, or else the result.

        Raises
        ------
        InputError
            As `find_id`, or if it is a job that ended without a result.
        JobPendingError
            If it is a job that has no result yet.
        """
        kind, found = find_id(self.ledger, self.content, ("artifact", "job"), text)
        return ArtifactId(found) if kind == "artifact" else self._left_by(JobId(found))

    def _left_by(self, job_id: JobId) -> ArtifactId:
        state = self.ledger.progress(job_id).state
        if state == JobState.RELEASED:
            return self.release_artifact(job_id)
        if artifacts := self.find_job(job_id)["artifacts"]:
            return ArtifactId(bytes.fromhex(artifacts[0]))
        if state not in FINAL_JOB_STATES:
            raise JobPendingError(job_id, state.name)
        raise InputError(f"job {job_id.hex()[:12]} ended as {state.name} and left no result")

    # 1 features, 2 seal.

    def features(
        self,
        matrix: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]],
        schema: FeatureSchema,
        columns: Sequence[str] | None = None,
    ) -> Features:
        """Check and quantise a feature matrix; see `usufruct.features.prepare_features`."""
        return prepare_features(matrix, schema, columns)

    def seal(self, features: Features, secret: SecretKey) -> SealedFeatures:
        """Encrypt column by column; see `usufruct.seal.seal_features`."""
        return seal_features(features, secret)

    # 3 publish, 4 register.

    def publish(
        self,
        sealed: SealedFeatures,
        *,
        scope: str,
        row_subjects: Sequence[int],
        progress: Progress | None = None,
    ) -> PublishedBundle:
        """Hand a sealed bundle to the own node; see `usufruct.publish.publish_bundle`.

        Raises
        ------
        InputError
            Also if the subjects' consents were not anchored yet.
        """
        self._book.check_anchored(scope, row_subjects)
        return publish_bundle(sealed, self.content, scope=scope, row_subjects=row_subjects, progress=progress)

    def bundles_of_subjects(self, positions: Collection[int], *, scope: str) -> list[FeatureBundle]:
        """Own bundles of a purpose, still in use, that have rows of any of these subjects: each has a budget of its own.

        Parameters
        ----------
        positions :
            Of the subjects in the status bitstring of `scope`.
        """
        subjects = np.asarray(list(positions))
        return [
            bundle
            for bundle in self._readable_bundles(self._own_bundles_in_use(scope))
            if np.isin(bundle.manifest.subjects, subjects).any()
        ]

    def call_for_updates(self, secret: SecretKey, terms: RoundTerms, *, scope: str) -> Call:
        """A signed call for updates of other members, to be summed under a key domain of which one keeps the secret."""
        call = make_call(secret, terms, steward=self.name, scope=scope)
        return call.signed(self.ledger.network, self._keys.ledger_key)

    def contribute(self, call: Call, update: npt.NDArray[Any]) -> Contributed:
        """Clip an update and encrypt it to a round; see `usufruct.rounds.contribute`.

        Raises
        ------
        InputError
            If the caller of the round is no active member, or not the custodian of the key.
        VerificationError
            If it did not sign the call.
        """
        steward = self._active(call.steward)
        call.check(self.ledger.network, steward)
        domain = self.ledger.key_domain(KeyId(call.terms.key_id))
        if domain.custodian != steward.id or domain.status != KeyStatus.ACTIVE:
            raise InputError(f"the key of this call is no active key domain of {call.steward}")
        return contribute(
            call,
            update,
            member=self.name,
            recipient_key=steward.hpke_key,
            network=self.ledger.network,
            signing_key=self._keys.ledger_key,
        )

    def publish_round(
        self,
        call: Call,
        contributions: Sequence[Contributed],
        *,
        consent_days: float,
        progress: Progress | None = None,
    ) -> PublishedBundle:
        """Check the contributions to one's own call and hand them to the own node, as one bundle.

        What a member signed is its consent to the call's purpose: who never had a receipt gets one, and the next epoch is
        anchored with it. May be repeated when it was interrupted.

        Raises
        ------
        InputError
            If a member is not active, contributed twice, or consents no more; or if other contributions to the call are
            registered already. Nothing was recorded or sent.
        VerificationError
            If the call is not one's own.
        ContributionRefusedError
            If a contribution is not what it says; nothing was recorded or sent.
        """
        call.check(self.ledger.network, self.member(self.name))
        checked = gather(
            call,
            contributions,
            member=self._active,
            hpke_private=self._keys.hpke_private,
            network=self.ledger.network,
            progress=progress,
        )
        self._check_not_closed(call, checked)
        members = [one.member for one in checked]
        now, receipts = self.ledger.finalised().timestamp, dict(self._book.subjects(call.scope))
        for member in members:
            # Its file is as old as its first consent: who went since then has to consent anew, not to be let in by it.
            if member in receipts and (state := receipts[member].state(now)) != "in force":
                raise InputError(
                    f"the consent of {member} to {call.scope} is {state}",
                    hint="leave its contribution out; if it consents anew, `usufruct consent record` it first",
                )
        if new := [member for member in members if member not in receipts]:
            self.record_consents(new, scope=call.scope, notice=call.to_bytes(), days=consent_days)
        self.anchor_consents(scope=call.scope)
        positions = [self._book.receipt(member, scope=call.scope).position for member in members]
        self._book.check_anchored(call.scope, positions)
        return publish_round(call, checked, self.content, positions=positions)

    def check_round(self, bundle: FeatureBundle) -> list[str]:
        """The members that contributed to a bundle, each of whose word for its blocks was checked.

        Raises
        ------
        InputError
            If no members contributed to this bundle.
        VerificationError
            If a member's authority, as the registry has it now, did not sign.
        """
        manifest = bundle.manifest
        if manifest.round is None:
            raise InputError("this bundle is of one steward's rows, nobody contributed to it")
        if manifest.round.steward != bundle.steward:
            raise VerificationError(f"these contributions answer a call of {manifest.round.steward}")
        members = [column.name for column in manifest.schema.columns]
        for feature, (name, word) in enumerate(zip(members, manifest.round.signatures, strict=True)):
            check_signed(
                self.ledger.network, self.member(name), manifest.round.call, manifest.blocks_of(feature), word
            )
        return members

    def register_key_domain(self, public: Mapping[str, object]) -> KeyId:
        """Register a key domain of which this organisation keeps the secret."""
        return register.register_key_domain(self.ledger, self.content, public)

    def register(
        self, published: PublishedBundle, *, policy: Policy, retain_days: float, budget_rho: float
    ) -> ArtifactId:
        """Register a published bundle; `budget_rho` is the zCDP budget over all partners together."""
        return register.register_bundle(
            self.ledger,
            self.content,
            published,
            policy=policy,
            retain_until=self._in_days(retain_days),
            budget_rho_micro=micro(budget_rho),
        )

    def change_policy(self, artifact_id: ArtifactId, policy: Policy) -> Cid:
        """Put a new policy in force."""
        return register.change_policy(self.ledger, self.content, artifact_id, policy)

    def set_replication(self, artifact_id: ArtifactId, replication: Replication) -> Cid:
        """Change how many members hold a bundle, and which may: its policy, otherwise unchanged, gets a new version."""
        record = register.registered_bundle(self.ledger, artifact_id)
        current = self.content.get_record(
            Cid.from_digest(record.policy_digest, Codec.DAG_CBOR), holder=unlabel(record.steward)
        )
        return self.change_policy(artifact_id, replace(Policy.from_record(current), replication=replication))

    def copies(self) -> list[dict[str, Any]]:
        """For each bundle: its holders, what the own node holds, and what its last challenges of them showed."""
        return list(self.content.query("/copies"))

    def challenges(self, *, limit: int = 100) -> dict[str, Any]:
        """The own node's log of storage challenges, newest first, with its length, head, and whether it is whole."""
        return dict(self.content.query("/challenges", limit=limit))

    def erasures(self, artifact_id: str | ArtifactId) -> dict[str, Any]:
        """Who has signed that it erased a bundle's ciphertexts or key at the end of its retention, and who has not yet."""
        return dict(self.content.query_members(f"/erasures/{_artifact_id(artifact_id).hex()}"))

    def freeze(self, artifact_id: ArtifactId, *, frozen: bool = True) -> None:
        """Freeze a bundle, or thaw it: no job on it is admitted or released meanwhile."""
        self.ledger.transact("LineageRegistry", "setFrozen", artifact_id, frozen)

    # 5 consent.

    def record_consents(
        self, subjects: Sequence[str], *, scope: str, notice: bytes, days: float
    ) -> dict[str, int]:
        """Sign one receipt per subject; subject -> position in the status bitstring. Takes effect with `anchor_consents`."""
        return self._book.record(
            subjects,
            scope=scope,
            notice=notice,
            expires_at=self._in_days(days),
            ledger=self.ledger,
            signing_key=self._keys.ledger_key,
        )

    def withdraw_consent(self, subject: str, *, scope: str) -> ConsentEpoch:
        """Process a withdrawal and anchor the next epoch, which every later job and release obeys."""
        self._book.withdraw(subject, scope=scope)
        return self.anchor_consents(scope=scope)

    def anchor_consents(self, *, scope: str, supersede: int | None = None) -> ConsentEpoch:
        """Anchor the next consent epoch; `supersede` names one that a restored, older consent book may follow.

        Such a book does not know to whom it gave positions since; those that the own bundles name, or the epoch, are given to
        nobody again.

        Raises
        ------
        InputError
            With `supersede`, if an own bundle of the purpose that is in use cannot be read; nothing was noted or sent.
        """
        taken = 0 if supersede is None else self._bound_positions(scope)
        return consent_book.anchor_epoch(
            self._book, self.ledger, self.content, scope=scope, supersede=supersede, taken=taken
        )

    def consent_receipt(self, subject: str, *, scope: str) -> ConsentReceipt:
        """A subject's signed receipt."""
        return self._book.receipt(subject, scope=scope)

    def consents(self, *, scope: str) -> list[dict[str, Any]]:
        """Who is in the own consent book for a purpose, by position; Unix seconds, states as of the newest block's time."""
        now = self.ledger.finalised().timestamp
        return [
            {
                "subject": subject,
                "position": receipt.position,
                "state": receipt.state(now),
                "given_at": receipt.given_at,
                "expires_at": receipt.expires_at,
                "withdrawn_at": receipt.withdrawn_at,
            }
            for subject, receipt in self._book.subjects(scope)
        ]

    def prove_consents(
        self, *, scope: str, epoch: int | None = None, subject: str | None = None
    ) -> ConsentProof:
        """The receipts of an own epoch, or that of one subject, for others to check; see `consent_proof.prove_consents`."""
        return prove_consents(
            self._book, self.ledger, self.content, scope=scope, epoch=epoch, subject=subject
        )

    def check_consents(
        self, proof: ConsentProof, *, job_id: JobId | None = None, progress: Progress | None = None
    ) -> CheckedConsents:
        """Check receipts of any steward against the ledger; see `consent_proof.check_consents`."""
        return check_consents(proof, self.ledger, self.content, job_id=job_id, progress=progress)

    def uses(self, subject: str, *, scope: str, progress: Progress | None = None) -> list[Use]:
        """Every job that touched rows of one of the own subjects, newest first: for whom, for what, and whether it counted.

        Raises
        ------
        InputError
            If the subject never consented to the purpose.
        ContentError, IntegrityError
            If an own bundle of the purpose cannot be read, so that some uses would be missing.
        """
        position = self._book.receipt(subject, scope=scope).position
        bundles = [self.bundle(entry["artifact_id"]) for entry in self._own_bundles(scope)]
        return uses_of(self.content, bundles, position, progress=progress)

    # 6 rights.

    def bundles(self) -> list[FeatureBundle]:
        """Every registered bundle that can be read: metadata, never a value.

        One whose steward does not answer, or sends what is no manifest, is left out and logged: no steward can hide the
        bundles of the others.
        """
        return list(self._readable_bundles(self.content.query("/bundles")))

    def bundle(self, artifact_id: str | ArtifactId) -> FeatureBundle:
        """One registered bundle, by id."""
        return job.read_bundle(self.ledger, self.content, _artifact_id(artifact_id))

    def request(
        self,
        bundle: FeatureBundle,
        *,
        kernels: Sequence[str],
        uses: int,
        rho: float,
        days: float = 30,
        row_level: bool = False,
        purpose: str | None = None,
    ) -> GrantId:
        """Ask a bundle's steward for rights."""
        wanted = rights.terms(
            kernels=kernels,
            uses=uses,
            expires_at=self._in_days(days),
            rho_micro=micro(rho),
            row_level=row_level,
        )
        return rights.request_usage(
            self.ledger, bundle.artifact_id, purpose=purpose or bundle.scope, wanted=wanted
        )

    def grants(self, *, mine: bool = True) -> list[dict[str, Any]]:
        """Requests and grants: of this organisation as partner, or as steward when `mine` is False."""
        return list(self.content.query("/grants", **{"grantee" if mine else "steward": self.name}))

    def grant(self, grant_id: GrantId, terms: GrantTerms) -> None:
        """Grant a request on the steward's own terms.

        Raises
        ------
        InputError
            If no job could ever be run under these terms, by the bundle's policy or for want of subjects or verifiers; nothing
            was sent.
        """
        asked = self.ledger.grant(grant_id)
        if asked.status != GrantStatus.NONE:
            bundle = self.bundle(asked.artifact_id)
            rights.check_terms(
                self.ledger, bundle.policy, asked.grantee, terms, n_subjects=bundle.manifest.n_subjects
            )
        rights.grant_usage(self.ledger, grant_id, terms)

    def deny(self, grant_id: GrantId, reason: Refusal) -> None:
        """Refuse a request."""
        rights.deny_usage(self.ledger, grant_id, reason)

    def revoke(self, grant_id: GrantId) -> None:
        """Take one grant back."""
        rights.revoke_usage(self.ledger, grant_id)

    def revoke_all(self, *, artifact_id: ArtifactId | None = None, grantee: str | None = None) -> None:
        """Take back every grant on a bundle, or every grant to a partner, in one call."""
        if (artifact_id is None) == (grantee is None):
            raise InputError("name either a bundle or a partner")
        if artifact_id is not None:
            rights.revoke_artifact(self.ledger, artifact_id)
        if grantee is not None:
            self.member(grantee)
            rights.revoke_grantee(self.ledger, org_id(grantee))

    def budget(self, artifact_id: ArtifactId) -> BudgetAccount:
        """What is left of a bundle's privacy budget; raises InputError if there is no such bundle."""
        register.registered_bundle(self.ledger, artifact_id)
        return self.ledger.budget(artifact_id)

    # 7 job.

    def quantise_model(
        self,
        bundle: FeatureBundle,
        weights: npt.NDArray[np.float64],
        bias: npt.NDArray[np.float64] | float,
        *,
        output: Literal["rows", "sum"] = "sum",
    ) -> QuantisedModel:
        """Turn a linear model into integers at the largest scale whose worst case fits."""
        _require_bundle(bundle)
        shape = bundle.manifest.shape
        return quantise_model(
            weights, bias, shape=shape, feature_scale=bundle.manifest.schema.scale, output=output
        )

    def parameters(
        self,
        bundle: FeatureBundle,
        kernel: str,
        parameters: QuantisedModel | Mapping[str, object] | None = None,
    ) -> JobParameters:
        """Kernel parameters, checked against the bundle's worst case."""
        _require_bundle(bundle)
        if isinstance(parameters, QuantisedModel):
            return job.job_parameters(
                bundle, kernel, parameters.parameters.to_dict(), result_scale=parameters.result_scale
            )
        return job.job_parameters(bundle, kernel, parameters or {})

    def estimate(
        self,
        bundle: FeatureBundle,
        parameters: JobParameters | QuantisedModel,
        *,
        rho: float,
        grant_id: GrantId | None = None,
    ) -> Estimate:
        """What a job would cost and how exact it would be, a quantised model's own error included; nothing is sent.

        Earlier releases that its cost is charged together with are those of this organisation. Without `grant_id` the job is
        taken to be posted under the right that `post` would use.
        """
        _require_bundle(bundle)
        if isinstance(parameters, QuantisedModel):
            asked, error = self.parameters(bundle, "linear", parameters), parameters.error_bound
        else:
            asked, error = parameters, 0.0
        cost, status = micro(rho), self._consent_status(bundle)
        job.check_allowed(bundle, asked, rho_micro=cost, status=status)
        joint = differencing.joint_cost(
            self.ledger,
            self.content,
            bundle,
            asked,
            rho_micro=cost,
            requester=self.name,
            min_cohort=self._min_cohort(bundle.artifact_id, asked, grant_id),
        )
        found = job.estimate(bundle, asked, rho_micro=cost, status=status, model_error=error)
        return replace(found, joint_rho_micro=joint)

    def post(
        self,
        bundle: FeatureBundle,
        kernel: str,
        parameters: QuantisedModel | Mapping[str, object] | JobParameters | None = None,
        *,
        rho: float,
        grant_id: GrantId | None = None,
        consent_epoch: int | None = None,
        nonce: int | None = None,
    ) -> JobId:
        """Post a job under the consent epoch in force, unless another is named; see `usufruct.job.post_job`.

        Without `grant_id` the newest right on the bundle is used that still holds and names the kernel, or else the newest that
        was granted: the ledger then records why it does not allow the job.

        Raises
        ------
        NoRightError
            Without `grant_id`, if no right on the bundle was ever granted, or none holds and the newest request is not answered
            yet; nothing was sent.
        DeniedError
            If the right allows the job and the bundle's policy does not: the ledger would admit what nobody would execute.
        """
        _require_bundle(bundle)
        checked = (
            parameters
            if isinstance(parameters, JobParameters)
            else self.parameters(bundle, kernel, parameters)
        )
        cost, used = micro(rho), grant_id or self._right_on(bundle.artifact_id, checked)
        allowed = self.ledger.grant(used).terms
        if (
            checked.kernel.kernel_id in allowed.kernels
            and (allowed.row_level or not checked.row_level)
            and cost <= allowed.rho_micro
        ):
            job.check_allowed(bundle, checked, rho_micro=cost)
        return job.post_job(
            self.ledger,
            self.content,
            bundle,
            checked,
            grant_id=used,
            rho_micro=cost,
            consent_epoch=consent_epoch,
            nonce=nonce,
        )

    # 8 verify, 9 release.

    def wait(
        self,
        job_id: JobId,
        *,
        timeout_s: float = 600.0,
        on_state: Callable[[JobState], None] | None = None,
    ) -> Release:
        """Wait until a job is verified and released, then open the release."""
        job.wait_for_job(self.ledger, job_id, timeout_s=timeout_s, on_state=on_state)
        return self.open_release(job_id)

    def verify(self, job_id: JobId) -> int:
        """Fetch a job's result, check it against the ledger, and count the verifiers that proved that they held it.

        For verifiers, auditors and the custodian: nobody else is given result ciphertexts.

        Raises
        ------
        VerificationError
            If fewer proofs are right than the job needs.
        BlockMismatchError, NotAuthorisedError
        """
        record = self.ledger.job(job_id)
        if record.state not in (JobState.VERIFIED, JobState.OPENED, JobState.RELEASED):
            raise InputError(f"job {job_id.hex()[:12]} is {record.state.name}: there is no verified result")
        executor = unlabel(record.executor)
        manifest = ResultManifest.from_record(
            self.content.get_record(Cid.from_digest(record.result_digest, Codec.DAG_CBOR), holder=executor)
        )
        artifact = self.ledger.artifact(record.request.artifact_id)
        named = (manifest.job_id, manifest.bundle.digest, manifest.parameters.digest)
        if named != (job_id, artifact.content_digest, record.request.parameters_digest):
            raise VerificationError("the result manifest names another job or other inputs")
        revealed = {
            OrgId(_bytes(event.args["verifier"])): _bytes(event.args["possession"])
            for event in self.ledger.job_events(job_id)
            if event.name == "VerdictRevealed" and event.args["agrees"]
        }
        blocks = [self.content.get(cid, holder=executor) for cid in manifest.blocks]
        return check_possessions(revealed, blocks, replicas=record.replicas)

    def find_job(self, job_id: JobId) -> dict[str, Any]:
        """What the own node tells of a job: its record, verdicts, artifacts and events.

        Raises
        ------
        BlockNotFoundError
            If the ledger knows no such job.
        NodeUnreachableError
        """
        path = f"/jobs/{job_id.hex()}"
        with contextlib.suppress(BlockNotFoundError):
            return dict(self.content.query(path))
        self.content.await_block(self.ledger.finalised().number)
        return dict(self.content.query(path))

    def open_release(self, job_id: JobId, *, patience_s: float = 30.0) -> Release:
        """Fetch, check and decrypt a release of one's own job.

        Raises
        ------
        InputError
            If the ledger knows no such job.
        JobPendingError, JobFailedError
            If the job is not over yet, or ended without a release.
        NotAuthorisedError
            If it is another's job.
        VerificationError
            If the custodian's signature or the digest on the ledger does not fit.
        """
        record, envelope, payload = self._opened(job_id, patience_s)
        return release.read_payload(envelope, payload, job_id, record.request)

    def _opened(self, job_id: JobId, patience_s: float = 30.0) -> tuple[Job, bytes, bytes]:
        """A job of one's own, its envelope, and the payload in it."""
        record = job.released_job(self.ledger, job_id)
        if record.requester != org_id(self.name):
            raise NotAuthorisedError(
                f"the release of job {job_id.hex()[:12]} is for {unlabel(record.requester)}, which alone can open it"
            )
        custodian = self.ledger.participant(self.ledger.key_domain(record.key_id).custodian)
        cid = Cid.from_digest(record.release_digest, Codec.DAG_CBOR)
        envelope = self._patiently(cid, custodian.name, patience_s)
        payload = release.open_envelope(
            self.ledger.network,
            job_id,
            record,
            envelope,
            custodian=custodian,
            hpke_private=self._keys.hpke_private,
        )
        return record, envelope, payload

    # 10 lineage.

    def release_artifact(self, job_id: JobId, *, patience_s: float = 30.0) -> ArtifactId:
        """Artifact id of a job's release; waits until the own node has indexed it.

        Raises
        ------
        InputError, JobPendingError, JobFailedError
            If the job has no release.
        NodeUnreachableError
            If the node does not come to it within `patience_s`.
        """
        job.released_job(self.ledger, job_id)
        deadline = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(BlockNotFoundError):
                artifacts = self.content.query(f"/jobs/{job_id.hex()}")["artifacts"]
                if len(artifacts) == 2:
                    return ArtifactId(bytes.fromhex(artifacts[1]))
            if time.monotonic() > deadline:
                raise NodeUnreachableError(f"the node has not indexed the release of job {job_id.hex()[:12]}")
            time.sleep(_POLL_SECONDS)

    def lineage(self, artifact_id: str | ArtifactId, *, progress: lineage.Progress | None = None) -> Lineage:
        """Walk from an artifact back to its bundles, re-checking every event and every content."""
        events = CheckedEvents(self.ledger)
        return lineage.lineage_of(events, self.content, _artifact_id(artifact_id), progress=progress)

    def collect_evidence(
        self,
        artifact_id: str | ArtifactId,
        *,
        disclose: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Evidence:
        """What shows an artifact's lineage to others who have no node; see `usufruct.evidence`.

        Parameters
        ----------
        disclose :
            Whether the values of a release of one's own become part of the evidence, for all who read it.

        Raises
        ------
        InputError, NotAuthorisedError
            If values are to be disclosed of what is no release, or another's.
        MissingEventError, ProofUnavailableError, VerificationError, ContentError, LedgerError
            As `usufruct.evidence.collect_evidence`.
        """
        return evidence.collect_evidence(
            self.ledger,
            self.content,
            _artifact_id(artifact_id),
            payload_of=(lambda job_id: self._opened(job_id)[2]) if disclose else None,
            progress=progress,
        )

    def impact(self, artifact_id: str | ArtifactId) -> list[dict[str, Any]]:
        """Results and releases that rest on a bundle, and whether the consent they used is still in force."""
        return list(self.content.query(f"/impact/{_artifact_id(artifact_id).hex()}"))

    def denials(self) -> list[dict[str, Any]]:
        """Every refusal on the ledger, newest first."""
        return self.content.query_all("/denials", key="id")

    def jobs(self, *, state: str | None = None) -> list[dict[str, Any]]:
        """Every job on the ledger, or those in one state, newest first."""
        return self.content.query_all("/jobs", key="job_id", **({"state": state} if state else {}))

    def report(self, job_id: JobId) -> list[tuple[OrgId, Fault]]:
        """Put on the ledger what members did wrong in a job that has ended; returns who did what.

        Raises
        ------
        InputError
            If the job has not ended, or nobody did wrong in it.
        TransactionRevertedError
            If it is recorded already.
        """
        events = self.ledger.job_events(job_id)
        faults = faults_of(events)
        if not faults:
            raise InputError(
                f"there is nothing to report of job {job_id.hex()[:12]}: it has not ended, or all did well"
            )
        self.ledger.transact("Reputation", "report", job_id, shown(events))
        return faults

    # Membership.

    def member(self, name: str) -> Participant:
        """A member's record on the ledger; raises InputError if there never was one of this name."""
        record = self.ledger.participant(org_id(name))
        if record.status == MemberStatus.NONE:
            raise InputError(f"{name} is no member", hint="`usufruct members list` shows all")
        return record

    def _active(self, name: str) -> Participant:
        record = self.member(name)
        if record.status != MemberStatus.ACTIVE:
            raise InputError(f"{name} is no active member: {record.status.name}")
        return record

    def propose(self, contract: str, function: str, *arguments: object) -> int:
        """Open a vote of the members' council on a governed call; returns the proposal's number."""
        target, data = self.ledger.call_data(contract, function, *arguments)
        receipt = self.ledger.transact("MemberCouncil", "propose", target, data)
        return int(str(self.ledger.event_of(receipt, "ProposalMade").args["proposalId"]))

    def vote(self, proposal: int, *, support: bool = True) -> None:
        """Cast this organisation's one vote."""
        self.ledger.transact("MemberCouncil", "vote", proposal, support)

    def execute(self, proposal: int) -> None:
        """Make the call of a proposal that has passed."""
        self.ledger.transact("MemberCouncil", "execute", proposal)

    def _own_bundles(self, scope: str) -> list[dict[str, Any]]:
        """What the own node's index has of this organisation's bundles of a purpose."""
        return [
            entry
            for entry in self.content.query("/bundles")
            if (entry["steward"], entry["scope"]) == (self.name, scope)
        ]

    def _own_bundles_in_use(self, scope: str) -> list[dict[str, Any]]:
        """Of the own bundles of a purpose those that are neither frozen nor past their retention."""
        now = self.ledger.finalised().timestamp
        return [
            entry
            for entry in self._own_bundles(scope)
            if entry["frozen"] == FreezeState.NONE.name and now < entry["retain_until"]
        ]

    def _check_not_closed(self, call: Call, contributions: Sequence[Contributed]) -> None:
        """Two bundles of one call would have two budgets, and their sums would differ by whom only one of them has."""
        cids = {cid for one in contributions for cid in one.cids}
        for entry in self._own_bundles(call.scope):
            known = self.bundle(entry["artifact_id"]).manifest
            if known.round is not None and known.round.call == call.digest and set(known.blocks) != cids:
                raise InputError(
                    f"this call was closed already, as {entry['artifact_id'][:12]}, with other contributions",
                    hint="who comes late answers the next call",
                )

    def _bound_positions(self, scope: str) -> int:
        """All positions to which rows of own bundles of a purpose are bound are below this."""
        bound = 0
        for entry in self._own_bundles_in_use(scope):
            try:
                bound = max(bound, int(self.bundle(entry["artifact_id"]).manifest.subjects.max()) + 1)
            except NodeUnreachableError:
                raise
            except (ContentError, IntegrityError, NotAuthorisedError) as exc:
                raise InputError(
                    f"to whom the rows of bundle {entry['artifact_id'][:12]} belong cannot be read: {exc}",
                    hint="wait until the node has it back from a holder; if nobody has it, `usufruct freeze` it before",
                ) from exc
        return bound

    def _readable_bundles(self, entries: Iterable[dict[str, Any]]) -> Iterator[FeatureBundle]:
        for entry in entries:
            try:
                yield self.bundle(entry["artifact_id"])
            except NodeUnreachableError:
                raise
            except (ContentError, IntegrityError, InputError, NotAuthorisedError) as exc:
                _log.warning(
                    "bundle %s of %s is left out: %s", entry["artifact_id"][:12], entry["steward"], exc
                )

    def _in_days(self, days: float) -> int:
        return max(int(time.time()), self.ledger.finalised().timestamp) + seconds(days)

    def _right_on(self, artifact_id: ArtifactId, parameters: JobParameters) -> GrantId:
        return rights.find_right(
            self.ledger,
            self.content,
            org_id(self.name),
            artifact_id,
            kernel_id=parameters.kernel.kernel_id,
            row_level=parameters.row_level,
        )

    def _min_cohort(
        self, artifact_id: ArtifactId, parameters: JobParameters, grant_id: GrantId | None
    ) -> int:
        """What the right asks that a job would be posted under; 0 as long as there is none."""
        try:
            return self.ledger.grant(grant_id or self._right_on(artifact_id, parameters)).terms.min_cohort
        except NoRightError:
            return 0

    def _consent_status(self, bundle: FeatureBundle) -> ConsentStatus | None:
        """What the epoch in force says; None where there is none."""
        epoch = self.ledger.consent_epoch(bundle.artifact.steward, bundle.artifact.consent_scope)
        if epoch.epoch == 0:
            return None
        cid = Cid.from_digest(epoch.status_digest, Codec.DAG_CBOR)
        return ConsentStatus.from_record(self.content.get_record(cid, holder=bundle.steward))

    def _patiently(self, cid: Cid, holder: str, patience_s: float) -> bytes:
        """The holder's node may be a block behind, or a connection be cut: ask again for a while."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self.content.get(cid, holder=holder)
            except (NotAuthorisedError, BlockNotFoundError, PeerError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.25)


def open_authority_keystore(home: Home, passphrase_file: Path | None) -> KeyStore:
    """The authority's keys: with the passphrase of this file, of the home's own, or asked for."""
    default = home.authority_passphrase if home.authority_passphrase.is_file() else None
    passphrase = read_passphrase(
        passphrase_file or default, prompt=f"Passphrase of {home.authority_keystore}: "
    )
    return KeyStore.open(home.authority_keystore, passphrase)


def micro(rho: float) -> int:
    """A privacy budget in rho as millionths, at least 1.

    Raises
    ------
    InputError
        If it is not a positive number up to `MAX_RHO`.
    """
    if not _is_number(rho) or not 0 < rho <= MAX_RHO:
        raise InputError(f"a privacy budget is a positive number (rho of zCDP) up to {MAX_RHO:g}")
    return max(1, round(rho * MICRO))


def seconds(days: float) -> int:
    """A duration in whole seconds.

    Raises
    ------
    InputError
        If it is not a positive number up to `MAX_DAYS`.
    """
    if not _is_number(days) or not 0 < days <= MAX_DAYS:
        raise InputError(f"a duration in days is a positive number up to {MAX_DAYS}")
    return int(days * _DAY)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require_bundle(bundle: object) -> None:
    if not isinstance(bundle, FeatureBundle):
        raise InputError(
            f"a bundle is wanted, not {type(bundle).__name__}",
            hint="`bundles()` lists them, `bundle(id)` finds one",
        )


def _artifact_id(value: str | ArtifactId) -> ArtifactId:
    return ArtifactId(value if isinstance(value, bytes) else parse_id(str(value), "artifact"))


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise VerificationError(f"an event carries {type(value).__name__} where bytes belong")
    return value
