"""A running network with its people: every organisation's client, a small bundle per clinic, rights on both.

Also what attackers need: an organisation's raw keys, and a peer host that serves whatever it is told to. Absent: assertions
about the product.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from anyio.from_thread import BlockingPortal, start_blocking_portal

from usufruct import Client
from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, EmbeddedBlockStore, dag
from usufruct.errors import BlockNotFoundError, UsufructError
from usufruct.features import Column, Extractor, Features, FeatureSchema
from usufruct.he.bfv import SecretKey, open_coefficients
from usufruct.he.kernels import LinearParameters, run
from usufruct.home import ParticipantFile
from usufruct.job import FeatureBundle, JobParameters
from usufruct.keys import he_keys, identity
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Ledger, Network
from usufruct.privacy import MICRO
from usufruct.records import (
    FINAL_JOB_STATES,
    GrantId,
    Job,
    JobId,
    JobState,
    MemberStatus,
    ReputationRule,
    Timings,
    org_id,
)
from usufruct.register import Policy
from usufruct.replication import Replication
from usufruct.rights import terms
from usufruct.verify import ResultManifest
from usufruct_node.devnet import MEMBERS, ChainKind, Devnet, Member
from usufruct_node.peers import PeerHost, PeerIdentity
from usufruct_node.peers.identity import peer_id_text

SCOPE = "occupancy-research"
NOTICE = (
    b"Your features may be used, encrypted, to study how crowded a room is. You may withdraw at any time."
)
CLINICS = ("clinic-north", "clinic-south")
ROWS, FEATURES, SCALE = 60, 12, 64
BLOCK_SECONDS = 0.2
LASTING = Timings(claim=60, compute=60, commit=60, reveal=60, dispute=60, release=60)

PATIENT_RULE = ReputationRule(limit=10_000)
"""Nobody is suspended for what the tests do."""

Outcome = TypeVar("Outcome")


@dataclass(slots=True)
class Clinic:
    """What a clinic knows and nobody else does."""

    client: Client
    features: Features
    secret: SecretKey
    subjects: list[str]
    positions: dict[str, int]
    bundle: FeatureBundle
    withdrawn: set[int] = field(default_factory=set)
    """Rows whose subject has withdrawn."""

    def consenting(self) -> npt.NDArray[np.int64]:
        """Quantised rows that jobs may use, shape (n_consenting, n_features)."""
        kept = [row for row in range(self.features.n_rows) if row not in self.withdrawn]
        return self.features.values[kept].astype(np.int64)


class Consortium:
    """A devnet whose university has been admitted and may compute on both clinics' bundles."""

    def __init__(
        self,
        root: Path,
        *,
        chain: ChainKind = "embedded",
        members: Sequence[Member] = MEMBERS,
        timings: Timings = LASTING,
        uses: int = 1000,
        rho: int = 4000,
    ) -> None:
        self.net = Devnet(root, members=members)
        self._uses, self._rho = uses, rho
        self._pool = ThreadPoolExecutor(8)
        try:
            self.net.up(chain=chain, timings=timings, reputation=PATIENT_RULE, block_interval_s=BLOCK_SECONDS)
            names = [member.name for member in self.net.members]
            self.clients = dict(zip(names, self._pool.map(self._open, names), strict=True))
            self._timings = timings
            for newcomer in (member.name for member in members if not member.founder):
                self.admit(self.net.home(newcomer).root)
            self.clinics = dict(
                zip(CLINICS, self.together(*(partial(self._share, c) for c in CLINICS)), strict=True)
            )
            self.grants = {name: self.grant(name) for name in CLINICS}
            self.until(lambda: len(self.university.grants()) == len(CLINICS))
        except BaseException:
            self.net.down()
            raise

    @property
    def university(self) -> Client:
        """The partner."""
        return self.clients["university"]

    @property
    def auditor(self) -> Client:
        """The auditor, which holds no bundle and no key domain."""
        return self.clients["auditor"]

    @property
    def ledger(self) -> Ledger:
        """Somebody's view of the ledger."""
        return self.auditor.ledger

    def close(self) -> None:
        """Stop every process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.net.down()

    def together(self, *calls: Callable[[], Outcome]) -> list[Outcome]:
        """Run independent calls at the same time."""
        return [future.result() for future in [self._pool.submit(call) for call in calls]]

    @staticmethod
    def until(condition: Callable[[], Outcome], seconds: float = 30.0) -> Outcome:
        """Wait for the first true value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"did not become true within {seconds:.0f} s")
            time.sleep(0.05)
        return value

    # Council.

    def decide(self, contract: str, function: str, *arguments: object) -> None:
        """A call of the members' council, for which the founders vote."""
        number = self.auditor.propose(contract, function, *arguments)
        voters = [member.name for member in self.net.members if member.founder and member.name != "auditor"]
        self.together(*(partial(self.clients[name].vote, number) for name in voters))
        self.auditor.execute(number)

    def admit(self, home: Path) -> None:
        """Vote an organisation in."""
        record = ParticipantFile.load(home / "participant.json")
        self.decide("ParticipantRegistry", "admit", record.to_participant())

    def set_status(self, name: str, status: MemberStatus) -> None:
        """Suspend, remove or restore a member, and wait until every running node knows."""
        self.decide("ParticipantRegistry", "setStatus", org_id(name), status)
        self.indexed()

    def indexed(self) -> None:
        """Wait until every running node has indexed the block that is final now."""
        head = self.ledger.finalised().number
        for name, pid in self.net.running().items():
            if name in self.clients and pid is not None:
                content = self.clients[name].content
                self.until(lambda content=content: content.query("/status")["indexed_block"] >= head)

    @contextmanager
    def timings(self, **changes: int) -> Iterator[None]:
        """Let the council shorten the deadlines for a while."""
        self.decide("JobLedger", "setTimings", astuple(replace(self._timings, **changes)))
        try:
            yield
        finally:
            self.decide("JobLedger", "setTimings", astuple(self._timings))

    # People.

    def grant(self, clinic: str, client: Client | None = None, **changes: Any) -> GrantId:
        """Ask a clinic for rights and let it grant them."""
        partner = client or self.university
        bundle = self.clinics[clinic].bundle
        kernels = ("sum", "linear")
        grant_id = partner.request(bundle, kernels=kernels, uses=self._uses, rho=self._rho, row_level=True)
        granted = terms(
            kernels=kernels,
            uses=self._uses,
            expires_at=self.ledger.finalised().timestamp + 86_400,
            rho_micro=self._rho * MICRO,
            min_cohort=20,
            replicas=2,
            row_level=True,
        )
        self.clinics[clinic].client.grant(grant_id, replace(granted, **changes))
        self.indexed()
        return grant_id

    def post(
        self,
        clinic: str = "clinic-north",
        kernel: str = "sum",
        parameters: Mapping[str, object] | None = None,
        *,
        rho: float = 1.0,
        **options: Any,
    ) -> JobId:
        """Post a job of the university."""
        options.setdefault("grant_id", self.grants[clinic])
        return self.university.post(self.clinics[clinic].bundle, kernel, parameters, rho=rho, **options)

    def ended(self, job_id: JobId, *, seconds: float = 60.0) -> Job:
        """Wait until a job is over, however it ended."""
        return self.reached(job_id, *FINAL_JOB_STATES, seconds=seconds)

    def reached(self, job_id: JobId, *states: JobState, seconds: float = 60.0) -> Job:
        """Wait until a job is in one of these states."""
        deadline = time.monotonic() + seconds
        while (job := self.ledger.job(job_id)).state not in states:
            if time.monotonic() > deadline or job.state in FINAL_JOB_STATES:
                raise AssertionError(
                    f"job {job_id.hex()[:12]} is {job.state.name} {job.refusal.name}, not {states}"
                )
            time.sleep(0.1)
        return job

    def account(self, clinic: str = "clinic-north") -> tuple[int, int, int]:
        """What jobs may change: rho reserved and spent on a bundle, uses of the university's grant."""
        budget = self.ledger.budget(self.clinics[clinic].bundle.artifact_id)
        return budget.reserved, budget.spent, self.ledger.grant(self.grants[clinic]).used

    def events(self, job_id: JobId) -> list[str]:
        """Names of the events of a job's series, read from the chain itself."""
        logs = self.ledger.events(self.ledger.network.deployed_at_block, self.ledger.finalised().number)
        return [e.name for e in logs if e.contract == "JobLedger" and e.args.get("jobId") == job_id]

    # Arithmetic in the open.

    def inputs_of(
        self, job_id: JobId
    ) -> tuple[FeatureBundle, JobParameters, npt.NDArray[np.bool_], ConsentStatus]:
        """What an honest executor of a job works with."""
        request = self.ledger.job(job_id).request
        bundle = next(c.bundle for c in self.clinics.values() if c.bundle.artifact_id == request.artifact_id)
        epoch = self.ledger.consent_epoch(bundle.artifact.steward, bundle.artifact.consent_scope)
        content = self.university.content
        status = ConsentStatus.from_record(
            content.get_record(Cid.from_digest(epoch.status_digest, Codec.DAG_CBOR), holder=bundle.steward)
        )
        cid = Cid.from_digest(request.parameters_digest, Codec.DAG_CBOR)
        parameters = JobParameters.from_record(content.get_record(cid, holder="university"))
        return bundle, parameters, status.mask_of(bundle.manifest.subjects), status

    def opened(self, clinic: str, blocks: Sequence[bytes]) -> list[int]:
        """First coefficient of each block, under the clinic's own key: what its custodian would see."""
        return [open_coefficients(block, self.clinics[clinic].secret, [0])[0] for block in blocks]

    def block(self, clinic: str, chunk: int, feature: int) -> bytes:
        """A ciphertext block, out of the clinic's own store."""
        cid = self.clinics[clinic].bundle.manifest.block_of(chunk, feature)
        with EmbeddedBlockStore(self.net.home(clinic).blocks) as store:
            return store.get(cid)

    def computed(self, job_id: JobId, **other: Any) -> tuple[ResultManifest, list[bytes]]:
        """Result of a job; `mask`, `parameters` and `block` take the place of the right ones."""
        bundle, given, mask, status = self.inputs_of(job_id)
        block = other.get("block", partial(self.block, bundle.steward))
        parameters: Any = other.get("parameters", given.parameters)
        results = run(given.kernel, parameters, bundle.manifest.shape, block, other.get("mask", mask))
        blocks = [data for _, data in results]
        return self.manifest(job_id, blocks, status=status), blocks

    def manifest(self, job_id: JobId, blocks: Sequence[bytes], *, status: ConsentStatus) -> ResultManifest:
        """The manifest that names these blocks as a job's result."""
        request = self.ledger.job(job_id).request
        return ResultManifest(
            job_id=job_id,
            kernel_id=request.kernel_id,
            bundle=Cid.from_digest(self.ledger.artifact(request.artifact_id).content_digest, Codec.DAG_CBOR),
            status=dag.cid_of(status.to_record()),
            parameters=Cid.from_digest(request.parameters_digest, Codec.DAG_CBOR),
            blocks=tuple(Cid.of(block) for block in blocks),
        )

    # Attackers.

    def node_keys(self, name: str) -> identity.NodeKeys:
        """Raw keys of an organisation's node."""
        home = self.net.home(name)
        return identity.load_node_keys(
            KeyStore.open(home.node_keystore, read_passphrase(home.node_passphrase))
        )

    def as_node(self, name: str) -> Ledger:
        """The ledger, sending as an organisation's node."""
        network = Network.load(self.net.home(name).network_file)
        return Ledger.open(network, private_key=self.node_keys(name).ledger_key)

    @contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        """Stop nodes for a while."""
        for name in names:
            self.net.stop(name)
        try:
            yield
        finally:
            for name in names:
                self.net.start_node(name, wait=False)
            for name in names:
                self.net.wait_for_node(name)
                # The node listens on another port now; peers learn it from the ledger.
                self.clients[name].content.close()
                self.clients[name] = self._open(name)
                if name in self.clinics:
                    self.clinics[name].client = self.clients[name]
            self.indexed()

    @contextmanager
    def warmed(self, *names: str) -> Iterator[None]:
        """Let nodes keep what a job on north needs, so that the next one goes on while north is held still."""
        self.reached(self.post(), JobState.RELEASED)
        for name in names:
            with EmbeddedBlockStore(self.net.home(name).blocks) as store:
                for cid in store.cids():
                    with suppress(BlockNotFoundError):
                        store.pin(cid, "kept-by-test")
        try:
            yield
        finally:
            for name in names:
                with EmbeddedBlockStore(self.net.home(name).blocks) as store:
                    store.unpin_all("kept-by-test")

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Hold a node's process still."""
        pid = self.net.running()[name]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _open(self, name: str) -> Client:
        return Client.open(self.net.home(name))

    def _share(self, name: str) -> Clinic:
        client = self.clients[name]
        features = client.features(synthetic(name), schema())
        subjects = [f"{name}/patient-{row:03d}" for row in range(features.n_rows)]
        secret = self._key_domain(name)
        positions = client.record_consents(subjects, scope=SCOPE, notice=NOTICE, days=365)
        client.anchor_consents(scope=SCOPE)
        bundle = register(client, features, secret, [positions[s] for s in subjects])
        return Clinic(client, features, secret, subjects, positions, bundle)

    def _key_domain(self, name: str) -> SecretKey:
        secret, public = he_keys.create_key_domain()
        home = self.net.home(name)
        he_keys.store_secret(
            KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase)), secret
        )
        self.clients[name].register_key_domain(public)
        return secret


def register(
    client: Client,
    features: Features,
    secret: SecretKey,
    rows: Sequence[int],
    *,
    budget_rho: float = 5000,
    retain_days: float = 30,
    replication: Replication | None = None,
) -> FeatureBundle:
    """Seal, publish and register a bundle whose policy allows what the tests need."""
    published = client.publish(client.seal(features, secret), scope=SCOPE, row_subjects=rows)
    policy = Policy(
        purposes=(SCOPE,),
        kernels=("sum", "linear"),
        min_cohort=20,
        row_level=True,
        max_rho_micro_per_job=100 * MICRO,
        replication=replication or Replication(),
    )
    artifact_id = client.register(published, policy=policy, retain_days=retain_days, budget_rho=budget_rho)
    return client.bundle(artifact_id)


def synthetic(name: str) -> npt.NDArray[np.float64]:
    """Features between 0 and 1 in rows of norm at most 1, the same for the same name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rows = np.random.default_rng(seed).random((ROWS, FEATURES))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def schema() -> FeatureSchema:
    """What a column of the synthetic features is."""
    return FeatureSchema(
        name="synthetic",
        kind="descriptor",
        columns=tuple(Column(name=f"f-{i:02d}", minimum=0.0, maximum=1.0) for i in range(FEATURES)),
        extractor=Extractor(name="synthetic", sha256="0" * 64),
        max_l2=1.0,
        scale=SCALE,
    )


def model(output: str = "sum", *, bias: int = 3) -> dict[str, object]:
    """A small integer model for the `linear` kernel."""
    weights = [[(-1) ** i * (i + 1) for i in range(FEATURES)]]
    return LinearParameters(
        output="rows" if output == "rows" else "sum", weights=tuple(map(tuple, weights)), bias=(bias,)
    ).to_dict()


class Impostor:
    """A peer host in a thread, under any identity, that serves whatever `blocks` holds and keeps nothing back."""

    def __init__(self, keys_seed: bytes) -> None:
        self.blocks: dict[Cid, bytes] = {}
        self.asked: list[tuple[str, Cid]] = []
        self._host = PeerHost(
            identity=PeerIdentity.from_seed(keys_seed),
            is_member=lambda _: True,
            authorise=self._note,
            read_block=self.blocks.get,
        )
        self._stack = ExitStack()
        self._portal: BlockingPortal

    def __enter__(self) -> Impostor:
        self._portal = self._stack.enter_context(start_blocking_portal("trio"))
        running, _ = self._portal.start_task(self._host.run)
        self._stack.callback(running.cancel)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def endpoint(self) -> str:
        """Multiaddr without the peer id."""
        return self._host.multiaddr.split("/p2p/")[0]

    @property
    def peer_id(self) -> str:
        """Peer id in text form."""
        return self._host.peer_id

    def fetch(self, ledger: Ledger, holder: str, *cids: Cid) -> list[bytes]:
        """Ask a member for blocks, as any node does."""
        member = ledger.participant(org_id(holder))
        return self._portal.call(self._fetch, peer_id_text(member.peer_id), member.endpoint, cids)

    async def _fetch(self, peer_id: str, endpoint: str, cids: Sequence[Cid]) -> list[bytes]:
        async with aclosing(self._host.fetch(peer_id, endpoint, cids)) as found:
            return [data async for _, data in found]

    def _note(self, peer_id: str, cid: Cid) -> bool:
        self.asked.append((peer_id, cid))
        return True


def processes_below(root: Path) -> dict[int, str]:
    """Every process that works in a directory or names it, with its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            place = (entry / "cwd").readlink()
            zombie = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (OSError, ValueError):
            continue
        if not zombie and (place.is_relative_to(root) or str(root) in command):
            found[int(entry.name)] = command
    return found


def run_cli(
    program: str, *words: str, seconds: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the installed command-line programs, or a module, and return what it said."""
    script = Path(sys.executable).parent / program
    start = [str(script)] if script.exists() else [sys.executable, "-m", program]
    return subprocess.run(
        [*start, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        check=False,
    )


def error_of(call: Callable[[], object]) -> UsufructError:
    """The typed error that a call ends in."""
    try:
        call()
    except UsufructError as exc:
        return exc
    raise AssertionError("it was not refused")
