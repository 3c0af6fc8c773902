"""The custodian's custodian: no network, no second noise, nothing that ledger, consent or policy does not allow."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from custodian_fixture import STEPS, Question, custodian_home, opened_by_partner, question

from bundle_fixture import SmallBundle
from chain_fixture import until
from usufruct.content import MAX_BLOCK_BYTES, Cid, Codec, dag
from usufruct.errors import CustodianError, ForgottenReleasesError, ReleaseRefusedError
from usufruct.home import Home
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Network
from usufruct.ledger.abi import CONTRACTS
from usufruct.records import ArtifactId, FreezeState, GrantStatus, JobId, JobState, KeyId, KeyStatus, org_id
from usufruct.verify import ResultManifest
from usufruct_node.custodian import CustodianProcess, wire
from usufruct_node.custodian import process as process_module
from usufruct_node.custodian.service import Service

NETWORK = Network(
    profile="embedded",
    chain_id=881812,
    genesis_hash="0x" + "00" * 32,
    rpc_urls=("http://127.0.0.1:1",),
    address_book="0x" + "01" * 20,
    contracts={name: f"0x{number:040x}" for number, name in enumerate(CONTRACTS, start=2)},
    deployed_at_block=0,
)
DEAR = {"max_rho_micro_per_job": 10**12}
"""So much budget that noise is next to nothing: what an attacker dreams of."""


@pytest.fixture(scope="module")
def home(bundle: SmallBundle, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return custodian_home(tmp_path_factory.mktemp("custodian") / ("long" * 30) / "north", bundle)


@pytest.fixture(scope="module")
def custodian(home: Home) -> Iterator[CustodianProcess]:
    custodian = CustodianProcess(home)
    custodian.start()
    yield custodian
    pid = custodian.pid
    custodian.close()
    assert pid is not None and not psutil.pid_exists(pid)


@pytest.fixture
def own(bundle: SmallBundle, tmp_path: Path) -> Iterator[CustodianProcess]:
    """A custodian of one test's own."""
    custodian = CustodianProcess(custodian_home(tmp_path / "north", bundle))
    yield custodian
    custodian.close()


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(ReleaseRefusedError) as refused:
        call()
    return refused.value.reason


# The custodian.


def test_custodian_process_has_no_network_and_keeps_its_memory_to_itself(
    custodian: CustodianProcess, home: Home, bundle: SmallBundle
) -> None:
    question(bundle, job_id=b"\x77" * 32).examine(custodian)
    assert custodian.pid is not None
    family = [psutil.Process(custodian.pid), *psutil.Process(custodian.pid).children(recursive=True)]
    assert len(family) == 2, "the custodian and the worker that opens blocks"
    for member in family:
        assert member.net_connections(kind="inet") == []
        told = Path(f"/proc/{member.pid}/status").read_text()
        assert "Seccomp:\t2" in told and "NoNewPrivs:\t1" in told
        assert member.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert member.rlimit(psutil.RLIMIT_AS)[0] <= 4 << 30
        # What a process keeps to itself belongs to root, so no other process of its user reads or traces it.
        assert Path(f"/proc/{member.pid}/mem").stat().st_uid == 0
    place = home.root / wire.SOCKET_NAME
    assert stat.S_ISSOCK(place.stat().st_mode) and stat.S_IMODE(place.stat().st_mode) == 0o600


WITHOUT_PASSPHRASE = """
import signal, sys, threading
from pathlib import Path
from usufruct.errors import CustodianError
from usufruct.home import Home
from usufruct_node.custodian import CustodianProcess
custodian = CustodianProcess(Home(Path(sys.argv[1])))
def start():
    try: custodian.start()
    except CustodianError as exc: print("refused:", exc, flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
starting = threading.Thread(target=start)
starting.start()
if sys.argv[2] == "close":
    signal.sigwait({signal.SIGUSR1})
    custodian.close()
starting.join()
print("over", flush=True)
"""


@pytest.fixture
def locked(bundle: SmallBundle, tmp_path: Path) -> Home:
    """A custodian's home whose passphrase is in no file."""
    home = custodian_home(tmp_path / "north", bundle)
    home.custodian_passphrase.unlink()
    return home


def test_without_terminal_and_passphrase_file_the_start_fails_at_once_and_says_why(locked: Home) -> None:
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_PASSPHRASE, str(locked.root), "wait"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=True,
    )
    assert "no terminal to ask at" in told.stderr and "Traceback" not in told.stderr
    assert "refused: the custodian's process ended" in told.stdout


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_a_node_that_is_stopped_while_its_custodian_asks_for_the_passphrase_ends(
    locked: Home, how: str
) -> None:
    words = ["close"] if how == "close" else ["wait"]
    pid, terminal = pty.fork()
    if pid == 0:
        # A shell that runs the tests in the background has them ignore it, and so all that they start.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", WITHOUT_PASSPHRASE, str(locked.root), *words])
    told = b""
    try:
        deadline, asked = time.monotonic() + 120, False
        while b"over" not in told:
            assert time.monotonic() < deadline, told
            if select.select([terminal], [], [], 0.5)[0]:
                told += os.read(terminal, 4096)
            if not told.rstrip().endswith(b"custodian.keys:"):
                continue
            if not asked:
                assert not termios.tcgetattr(terminal)[3] & termios.ECHO, "it does not echo while it asks"
                if how == "close":
                    os.kill(pid, signal.SIGUSR1)
            if how == "interrupt":
                # As often as somebody at a terminal would press it.
                for child in psutil.Process(pid).children():
                    with suppress(psutil.Error):
                        if "usufruct_node.custodian" in child.cmdline():
                            child.send_signal(signal.SIGINT)
            asked = True
        assert asked, "it was never asked"
        assert b"refused: the custodian's process ended" in told, told
        assert termios.tcgetattr(terminal)[3] & termios.ECHO, "the terminal echoes again"
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.parametrize("confined", [False, True])
def test_confined_process_is_refused_every_socket_but_unix_ones(confined: bool) -> None:
    """Positive control: the same program opens them all when it is not confined."""
    script = (
        "import socket; from usufruct_node.custodian.confine import confine\n"
        f"if {confined}: confine()\n"
        "socket.socket(socket.AF_UNIX).close()\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):\n"
        "    try: socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_DGRAM).close()\n"
        "    except PermissionError: print('refused')\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["refused"] * 3 * confined


def test_a_wrong_passphrase_or_a_missing_keystore_ends_the_process_before_it_listens(
    bundle: SmallBundle, tmp_path: Path
) -> None:
    home = custodian_home(tmp_path / "north", bundle)
    home.custodian_passphrase.write_text("another")
    for custodian in (CustodianProcess(home), CustodianProcess(home, passphrase_file=tmp_path / "nowhere")):
        with pytest.raises(CustodianError, match="code 4"):
            custodian.start()
        custodian.close()
    assert not (home.root / wire.SOCKET_NAME).exists()


def test_a_custodian_that_dies_is_started_again_by_the_next_question(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    question(bundle).examine(own)
    first = own.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: own.pid is None)
    question(bundle).examine(own)
    assert own.pid not in (None, first)


def test_bytes_that_are_no_request_close_their_connection_only(
    custodian: CustodianProcess, home: Home, bundle: SmallBundle
) -> None:
    asked = question(bundle, job_id=b"\x66" * 32)
    case = asked.case.to_record()
    for hostile in (
        b"\xff\xff\xff\xff",
        (100).to_bytes(4, "little") + b"short",
        framed(b"\xa0"),
        framed(dag.encode([1])),
        framed(dag.encode({"type": "usufruct/custodian/2", "ask": "state"})),
        framed(dag.encode({"type": wire.PROTOCOL, "ask": "keys"})),
        framed(dag.encode({"type": wire.PROTOCOL, "ask": "release", "case": {"job": 1}})) + framed(b"") * 5,
        framed(dag.encode({"type": wire.PROTOCOL, "ask": "examine", "case": {**case, "x": 1}}))
        + framed(b"") * 5,
        framed(dag.encode({"type": wire.PROTOCOL, "ask": "examine", "case": {**case, "now": "1000000"}}))
        + framed(b"") * 5,
    ):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(20)
            channel.connect(path_of(home))
            channel.sendall(hostile)
            channel.shutdown(socket.SHUT_WR)
            assert channel.recv(100) == b"", hostile[:40]
    # Positive control: the case without its additions is answered.
    asked.examine(custodian)
    assert set(custodian.state()["keys"]) == {bundle.secret.key_id.hex()}


def test_processes_of_other_users_are_neither_answered_nor_asked(
    custodian: CustodianProcess, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert custodian.state()
    keystore = KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase))
    service, ours = Service(home, keystore, key_openings=1), os.geteuid()
    asking, answering = socket.socketpair()
    with asking, monkeypatch.context() as patch:
        asking.shutdown(socket.SHUT_WR)
        patch.setattr(os, "geteuid", lambda: ours + 1)
        for meet in (lambda: service.serve(answering), custodian.state):
            with pytest.raises(CustodianError, match="process of user"):
                meet()


def test_a_frame_longer_than_a_block_is_refused_before_it_is_read() -> None:
    one, other = socket.socketpair()
    with one, other, ThreadPoolExecutor(1) as pool:
        other.settimeout(20)
        longest = bytes(MAX_BLOCK_BYTES)
        sent = pool.submit(wire.send, one, longest)
        assert wire.receive(other) == longest
        sent.result()
        one.sendall((MAX_BLOCK_BYTES + 1).to_bytes(4, "little"))
        with pytest.raises(CustodianError, match="a frame of"):
            wire.receive(other)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def path_of(home: Home) -> str:
    """By way of an open directory, for the whole path is too long for a socket."""
    return f"/proc/self/fd/{os.open(home.root, os.O_RDONLY)}/{wire.SOCKET_NAME}"


# What it releases.


def test_custodian_releases_an_opened_job_once_and_then_the_same_bytes(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    asked = question(bundle)
    asked.examine(own)
    made = asked.opened().release(own)
    release = opened_by_partner(NETWORK, asked.opened(), made)
    assert (
        np.abs(release.values - bundle.truth(bundle.parameters())).max()
        <= 12 * release.sigma + release.noise[0].grid
    )
    assert not (release.values % release.noise[0].grid).any()
    assert asked.opened().release(own) == made
    # Whatever the node says later: what was made is not made again.
    assert asked.opened().altered(epoch_in_force=2).release(own) == made
    assert own.state()["opened"] == {bundle.secret.key_id.hex(): 2}


def test_nothing_is_decrypted_before_the_ledger_calls_it_opened(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    with pytest.raises(CustodianError):
        question(bundle).release(own)
    for state in (
        JobState.COMMITTED,
        JobState.REVEALING,
        JobState.DISPUTED,
        JobState.REFUTED,
        JobState.EXPIRED,
    ):
        asked = question(bundle)
        with pytest.raises(CustodianError):
            asked.altered(job=replace(asked.case.job, state=state)).release(own)
    assert own.state()["opened"] == {}
    # Positive control.
    question(bundle).opened().release(own)
    assert own.state()["opened"] == {bundle.secret.key_id.hex(): 2}


def _artifact(asked: Question, **changes: object) -> Question:
    return asked.altered(artifact=replace(asked.case.artifact, **changes))


def _grant(asked: Question, **changes: object) -> Question:
    return asked.altered(grant=replace(asked.case.grant, **changes))


def _terms(asked: Question, **changes: object) -> Question:
    return _grant(asked, terms=replace(asked.case.grant.terms, **changes))


def _request(asked: Question, **changes: object) -> Question:
    job = asked.case.job
    return asked.altered(job=replace(job, request=replace(job.request, **changes)))


REFUSED: dict[str, tuple[Callable[[Question], Question], str]] = {
    "frozen": (lambda q: _artifact(q, frozen=FreezeState.BY_STEWARD), "ARTIFACT_FROZEN"),
    "retention": (lambda q: _artifact(q, retain_until=q.case.now), "RETENTION_PASSED"),
    "another's bundle": (lambda q: _artifact(q, steward=org_id("south")), "ARTIFACT_MISMATCH"),
    "another's key": (
        lambda q: q.altered(domain=replace(q.case.domain, custodian=org_id("south"))),
        "ARTIFACT_MISMATCH",
    ),
    "a job under another key": (
        lambda q: q.altered(job=replace(q.case.job, key_id=KeyId(bytes(32)))),
        "ARTIFACT_MISMATCH",
    ),
    "retired key": (
        lambda q: q.altered(domain=replace(q.case.domain, status=KeyStatus.RETIRED)),
        "KEY_DOMAIN_NOT_ACTIVE",
    ),
    "requester gone": (lambda q: q.altered(requester_active=False), "REQUESTER_NOT_ACTIVE"),
    "grant revoked": (lambda q: _grant(q, status=GrantStatus.REVOKED), "GRANT_REVOKED"),
    "grant of another": (lambda q: _grant(q, grantee=org_id("rival")), "GRANTEE_MISMATCH"),
    "grant on another bundle": (
        lambda q: _grant(q, artifact_id=ArtifactId(bytes(32))),
        "ARTIFACT_MISMATCH",
    ),
    "rows not granted": (lambda q: _request(q, row_level=True), "ROW_LEVEL_NOT_GRANTED"),
    "other purpose": (lambda q: _grant(q, purpose=bytes(32)), "PURPOSE_NOT_GRANTED"),
    "grant expired": (lambda q: _terms(q, expires_at=q.case.now), "GRANT_EXPIRED"),
    "other kernel": (lambda q: _terms(q, kernels=(bytes(32),)), "KERNEL_NOT_GRANTED"),
    "too few replicas": (lambda q: _terms(q, replicas=3), "LEVEL_TOO_LOW"),
    "no replicas": (
        lambda q: _terms(q.altered(job=replace(q.case.job, replicas=0)), replicas=0),
        "LEVEL_TOO_LOW",
    ),
    "another epoch's status": (
        lambda q: q.altered(cited_epoch=replace(q.case.cited_epoch, epoch=2)),
        "CONSENT_EPOCH_STALE",
    ),
    "stale epoch": (lambda q: q.altered(epoch_in_force=2), "CONSENT_EPOCH_STALE"),
    "consent expired": (lambda q: q.altered(now=q.case.now + 1000), "CONSENT_EPOCH_STALE"),
    "stale policy": (lambda q: _artifact(q, policy_version=2), "POLICY_VERSION_STALE"),
    "too dear for the policy": (lambda q: _request(q, rho_micro=1_000_001), "BUDGET_EXCEEDED"),
    "too dear for the grant": (lambda q: _terms(q, rho_micro=1), "BUDGET_EXCEEDED"),
    "without a cost": (lambda q: _request(q, rho_micro=0), "BUDGET_EXCEEDED"),
    "cohort": (lambda q: _terms(q, min_cohort=23), "COHORT_TOO_SMALL"),
    "one proof short": (lambda q: q.altered(possessions=q.case.possessions[:1]), "POSSESSION_UNPROVEN"),
    "borrowed proofs": (
        lambda q: q.altered(possessions=tuple((o, q.case.possessions[0][1]) for o, _ in q.case.possessions)),
        "POSSESSION_UNPROVEN",
    ),
    "a result of another job": (lambda q: q.altered(job_id=JobId(b"\x01" * 32)), "RESULT_INVALID"),
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("opened", [False, True])
def test_custodian_checks_again_what_the_ledger_checked(
    custodian: CustodianProcess, bundle: SmallBundle, change: str, opened: bool
) -> None:
    alter, reason = REFUSED[change]
    asked = question(bundle, job_id=b"\x55" * 32)
    if opened:
        assert reason_of(lambda: alter(asked).opened().release(custodian)) == reason
    else:
        assert reason_of(lambda: alter(asked).examine(custodian)) == reason


def test_records_and_blocks_that_the_ledger_does_not_name_are_not_opened(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    asked, other = question(bundle), question(bundle, withdrawn=(3,), min_cohort=2)
    for name in ("manifest", "policy", "status", "parameters", "result"):
        record = getattr(asked.records, name)
        forged = replace(asked.records, **{name: record[:-1] + bytes([record[-1] ^ 1])})
        with pytest.raises((CustodianError, ReleaseRefusedError)):
            own.release(asked.opened().case, forged, asked.blocks)
    result = ResultManifest.from_record(dag.decode_map(asked.records.result))
    for changes in (
        {"kernel_id": bytes(32)},
        *({name: Cid.of(b"another", Codec.DAG_CBOR)} for name in ("bundle", "status", "parameters")),
    ):
        of_others = replace(result, **changes)
        case = replace(asked.case, job=replace(asked.case.job, result_digest=of_others.cid.digest))
        records = replace(asked.records, result=dag.encode(of_others.to_record()))
        assert reason_of(lambda q=Question(case, records, asked.blocks): q.examine(own)) == "RESULT_INVALID"
    for blocks in (asked.blocks[::-1], asked.blocks[:1], [*asked.blocks, asked.blocks[0]], other.blocks):
        with pytest.raises(CustodianError):
            own.release(asked.opened().case, asked.records, blocks)
    assert own.state()["opened"] == {}
    asked.opened().release(own)


def test_what_could_fail_once_the_budget_is_spent_is_tried_before(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    """An unusable key of the partner, or a secret that is gone, also when a worker still has it."""
    asked = question(bundle)
    unreadable = asked.altered(recipient_key=bytes(32))
    assert reason_of(lambda: unreadable.examine(own)) == "RESULT_INVALID"
    asked.examine(own)
    own.destroy(bundle.secret.key_id)
    assert own.state()["keys"] == []
    with pytest.raises(CustodianError, match="has no entry"):
        asked.examine(own)
    with pytest.raises(CustodianError, match="has no entry"):
        asked.opened().release(own)


# Differencing, and keys that have opened enough.


def test_query_differencing_isolates_a_subject_when_the_guard_is_off(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    """Positive control: two sums, of everybody and of everybody but one, give that one's row away."""
    values = []
    for job, withdrawn in ((b"\x01" * 32, (3,)), (b"\x02" * 32, (3, 20))):
        asked = question(bundle, job_id=job, rho_micro=6 * 10**11, withdrawn=withdrawn, min_cohort=1, **DEAR)
        asked.examine(own)
        values.append(opened_by_partner(NETWORK, asked.opened(), asked.opened().release(own)).values)
    assert np.abs(values[0] - values[1] - bundle.features.values[20]).max() <= 1


def test_query_differencing_cohorts_that_differ_by_fewer_than_the_minimum_are_charged_as_one(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    first = question(bundle, job_id=b"\x01" * 32, rho_micro=6 * 10**11, withdrawn=(3,), **DEAR)
    first.examine(own)
    first.opened().release(own)
    for number, parameters in enumerate(
        (None, bundle.parameters("linear", output="sum", weights=[[-7, 0]], bias=[9])), 2
    ):
        near = question(
            bundle, parameters, job_id=bytes([number]) * 32, rho_micro=6 * 10**11, withdrawn=(3, 20), **DEAR
        )
        assert reason_of(lambda q=near: q.examine(own)) == "COHORTS_TOO_CLOSE"
        # Nor if the node claims that the ledger opened it.
        assert reason_of(lambda q=near: q.opened().release(own)) == "COHORTS_TOO_CLOSE"
    # What fits into one job's bound together, what is asked of others again and again, and another question are released.
    others = {"rho_micro": 6 * 10**11, "withdrawn": tuple(range(3, 15))}
    for job, changes in (
        (b"\x11" * 32, {"rho_micro": 10**11, "withdrawn": (3, 20)}),
        (b"\x12" * 32, others),
        (b"\x13" * 32, others),
    ):
        asked = question(bundle, job_id=job, **(DEAR | changes))
        asked.examine(own)
        asked.opened().release(own)
    again = question(bundle, job_id=b"\x15" * 32, rho_micro=6 * 10**11, withdrawn=(3,), **DEAR)
    assert reason_of(lambda: again.examine(own)) == "COHORTS_TOO_CLOSE", "now that there is one near it"
    other = bundle.parameters("linear", output="sum", weights=[[2, 3]], bias=[0])
    asked = question(bundle, other, job_id=b"\x14" * 32, rho_micro=6 * 10**11, withdrawn=(3, 20), **DEAR)
    asked.examine(own)


@pytest.mark.parametrize("whose", ["policy's", "grant's"])
def test_query_differencing_counts_by_the_larger_minimum_cohort_of_policy_and_grant(
    own: CustodianProcess, bundle: SmallBundle, whose: str
) -> None:
    first = question(bundle, job_id=b"\x01" * 32, rho_micro=6 * 10**11, withdrawn=(3,), **DEAR)
    first.examine(own)
    first.opened().release(own)

    def by_ten_fewer(**policy: int) -> Question:
        withdrawn = tuple(range(3, 14))
        return question(
            bundle, job_id=b"\x02" * 32, rho_micro=6 * 10**11, withdrawn=withdrawn, **DEAR, **policy
        )

    stricter = by_ten_fewer(min_cohort=11) if whose == "policy's" else _terms(by_ten_fewer(), min_cohort=11)
    assert reason_of(lambda: stricter.examine(own)) == "COHORTS_TOO_CLOSE"
    by_ten_fewer().examine(own)


def test_places_of_jobs_that_ended_unopened_are_free_again(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    first = question(bundle, job_id=b"\x01" * 32, rho_micro=6 * 10**11, withdrawn=(3,), **DEAR)
    first.examine(own)
    near = question(bundle, job_id=b"\x02" * 32, rho_micro=6 * 10**11, **DEAR)
    both = near.altered(under_way=(first.case.job_id, near.case.job_id))
    assert reason_of(lambda: both.examine(own)) == "COHORTS_TOO_CLOSE"
    near.examine(own)


def test_a_restored_custodian_is_told_first_what_it_has_forgotten(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    lost = question(bundle, job_id=b"\x01" * 32, rho_micro=6 * 10**11, withdrawn=(3,), **DEAR)
    near = question(bundle, job_id=b"\x02" * 32, rho_micro=6 * 10**11, **DEAR)
    near = near.altered(released=bytes(lost.case.job_id))
    with pytest.raises(ForgottenReleasesError) as forgotten:
        near.examine(own)
    assert forgotten.value.jobs == [lost.case.job_id]
    # Also if it was restored once decryption had been announced.
    with pytest.raises(ForgottenReleasesError):
        near.opened().release(own)
    far = question(bundle, job_id=b"\x01" * 32, withdrawn=tuple(range(3, 15)))
    for name in ("manifest", "status"):
        forged = b"\xa0" if name == "manifest" else far.records.status
        with pytest.raises(CustodianError, match="hash"):
            own.remember(lost.case, replace(lost.records, **{name: forged}))
    with pytest.raises(ForgottenReleasesError):
        near.examine(own)
    own.remember(lost.case, replace(lost.records, policy=b"", parameters=b"", result=b""))
    assert reason_of(lambda: near.examine(own)) == "COHORTS_TOO_CLOSE"


def test_a_forgotten_release_of_whom_nobody_knows_any_more_is_near_to_every_other(
    own: CustodianProcess, bundle: SmallBundle
) -> None:
    """No cohort could be put in its place: whichever it were, the true one may be near to what comes next."""
    lost = question(bundle, job_id=b"\x01" * 32, rho_micro=6 * 10**11, withdrawn=tuple(range(3, 15)), **DEAR)
    own.remember(lost.case, replace(lost.records, policy=b"", status=b"", parameters=b"", result=b""))
    for withdrawn in (lost_of := tuple(range(3, 15)), (), (3,)):
        later = question(bundle, job_id=b"\x02" * 32, rho_micro=6 * 10**11, withdrawn=withdrawn, **DEAR)
        later = later.altered(released=bytes(lost.case.job_id))
        assert reason_of(lambda q=later: q.examine(own)) == "COHORTS_TOO_CLOSE"
    fits = question(bundle, job_id=b"\x02" * 32, rho_micro=4 * 10**11, withdrawn=lost_of, **DEAR)
    fits.altered(released=bytes(lost.case.job_id)).examine(own)


def test_what_is_announced_is_not_announced_to_another_of_the_same_key(
    bundle: SmallBundle, tmp_path: Path
) -> None:
    jobs = [question(bundle, job_id=bytes([number]) * 32) for number in (1, 2)]
    under_way = tuple(job.case.job_id for job in jobs)
    custodian = CustodianProcess(custodian_home(tmp_path / "north", bundle), key_openings=3)
    try:
        jobs[0].examine(custodian)
        both = jobs[1].altered(under_way=under_way)
        assert reason_of(lambda: both.examine(custodian)) == "KEY_EXHAUSTED"
        assert reason_of(lambda: both.opened().release(custodian)) == "KEY_EXHAUSTED"
        jobs[0].altered(under_way=under_way).opened().release(custodian)
    finally:
        custodian.close()


def test_a_key_opens_as_many_blocks_as_it_may_and_no_more_also_after_a_restart(
    bundle: SmallBundle, tmp_path: Path
) -> None:
    home = custodian_home(tmp_path / "north", bundle)
    jobs = [question(bundle, job_id=bytes([number]) * 32) for number in (1, 2, 3)]
    custodian = CustodianProcess(home, key_openings=5)
    for job in jobs[:2]:
        job.examine(custodian)
        job.opened().release(custodian)
    custodian.close()
    custodian = CustodianProcess(home, key_openings=5)
    try:
        assert reason_of(lambda: jobs[2].examine(custodian)) == "KEY_EXHAUSTED"
        assert reason_of(lambda: jobs[2].opened().release(custodian)) == "KEY_EXHAUSTED"
        # What was released under it is still handed out.
        jobs[0].opened().release(custodian)
        assert custodian.state()["opened"] == {bundle.secret.key_id.hex(): 4}
    finally:
        custodian.close()


# Crashes and replicas.


@pytest.mark.parametrize("step", STEPS)
def test_custodian_killed_at_every_step_never_shows_two_noises(
    bundle: SmallBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    home, asked = custodian_home(tmp_path / "north", bundle), question(bundle).opened()
    with monkeypatch.context() as patch:
        patch.setattr(process_module, "_MODULE", "custodian_fixture")
        patch.setenv("DIE", step)
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        dying = CustodianProcess(home)
        with pytest.raises(CustodianError):
            asked.release(dying)
        dying.close()
    after = CustodianProcess(home)
    try:
        # Counted before it is decrypted, and once, however often one result is decrypted.
        uncounted = step in ("before anything", "once it is checked")
        assert after.state()["opened"] == ({} if uncounted else {bundle.secret.key_id.hex(): 2})
        made = asked.release(after)
        assert asked.release(after) == made
        assert after.state()["opened"] == {bundle.secret.key_id.hex(): 2}
    finally:
        after.close()


def test_two_custodian_replicas_racing_hand_out_the_same_release(bundle: SmallBundle, tmp_path: Path) -> None:
    home, asked = custodian_home(tmp_path / "north", bundle), question(bundle).opened()
    # The socket has the name of the process that came last; each replica is asked through a directory of its own.
    replicas = []
    for number in (1, 2):
        place = tmp_path / f"replica-{number}"
        place.mkdir(mode=0o700)
        for name in ("organisation.json", "custodian.keys", "custodian.passphrase"):
            (place / name).write_bytes((home.root / name).read_bytes())
            (place / name).chmod(0o600)
        (place / "custodian.db").symlink_to(home.root / "custodian.db")
        replicas.append(CustodianProcess(Home.at(place)))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(asked.release, replicas * 2))
    for replica in replicas:
        replica.close()
    assert len(set(made)) == 1
