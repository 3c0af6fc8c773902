"""Nothing is lost: every process is killed with SIGKILL while jobs run, started again, and the books are read.

Kills are drawn with a fixed seed over the life of the jobs; two are aimed at the custodian between verification and release.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from books import budgets_conserve, completed_once, home_is_whole, index_equals_a_fresh_replay, rows
from organisations import BLOCK_SECONDS, CLINICS, Consortium, Impostor, error_of, processes_below

from usufruct import Client
from usufruct.content import Cid, Codec
from usufruct.errors import LedgerUnreachableError, UsufructError
from usufruct.ledger import Ledger, Network
from usufruct.records import Job, JobId, JobState
from usufruct_node.chain import read_endpoint

SEED = 20261123
NODES = ("clinic-north", "clinic-south", "compute-1", "auditor", "university")
VICTIMS = ("chain", "anvil", *NODES)
LIFE_SECONDS = 5.0
"""About what a job takes; kills are drawn over it."""


class Witness:
    """Remembers every block that the chain called final, as somebody who reads along sees it."""

    def __init__(self, network: Network) -> None:
        self.heads: dict[int, bytes] = {}
        self._ledger = Ledger.open(network, patience=60)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(90)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                head = self._ledger.finalised()
            except UsufructError:
                continue
            assert self.heads.setdefault(head.number, head.hash) == head.hash


class Killer:
    """Kills a victim without notice and starts it again."""

    def __init__(self, network: Consortium) -> None:
        self._net = network.net
        self.killed: Counter[str] = Counter()

    def kill(self, victim: str) -> None:
        """Kill, check that nothing of the victim lives on, and start it again."""
        parent = self._net.running()["chain" if victim == "anvil" else victim]
        assert parent is not None
        children = _children(parent)
        if victim == "anvil":
            os.kill(children[0], signal.SIGKILL)
        else:
            self._net.stop(victim, how=signal.SIGKILL)
        self.killed[victim] += 1
        Consortium.until(lambda: not any(_lives(pid) for pid in children), 10)
        if victim == "chain":
            self._net.start_chain(block_interval_s=BLOCK_SECONDS)
        elif victim != "anvil":
            self._net.start_node(victim)


def _children(parent: int) -> list[int]:
    files = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for file in files for pid in file.read_text().split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(700)
def test_nothing_is_lost_when_every_process_is_killed_at_random_points_of_running_jobs(
    private_network: Consortium,
) -> None:
    network, dice = private_network, random.Random(SEED)
    killer, jobs = Killer(network), []
    plan = [*VICTIMS, *VICTIMS]
    dice.shuffle(plan)
    receipts = {}
    with Witness(network.ledger.network) as witness:
        while plan:
            posted = network.together(network.post, lambda: network.post("clinic-south"))
            jobs += posted
            begun = time.monotonic()
            for at in sorted(dice.uniform(0.0, LIFE_SECONDS) for _ in range(min(3, len(plan)))):
                time.sleep(max(0.0, begun + at - time.monotonic()))
                killer.kill(plan.pop())
            network.together(*(lambda job=job: _released(network, job) for job in posted))
            _reopen(network)
        for state in (JobState.VERIFIED, JobState.OPENED):
            job = network.post()
            jobs.append(job)
            _await(network, job, state)
            killer.kill("clinic-north")
            _released(network, job)
            _reopen(network)
        network.indexed()
        for job in jobs:
            for event in network.university.content.query(f"/jobs/{job.hex()}")["events"]:
                receipts[event["transaction_hash"]] = event["block_hash"]

    assert sum(killer.killed.values()) >= 12 and set(killer.killed) == set(VICTIMS)
    _every_block_and_transaction_is_still_there(network, witness, receipts)
    completed_once(network, jobs)
    budgets_conserve(network, jobs)
    _releases_stand(network, jobs)
    for name in NODES:
        network.net.stop(name)
        home_is_whole(network, name)
        index_equals_a_fresh_replay(network, name)


def _await(network: Consortium, job: JobId, state: JobState) -> None:
    deadline = time.monotonic() + 60
    while network.ledger.job(job).state < state:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _released(network: Consortium, job: JobId) -> Job:
    return network.reached(job, JobState.RELEASED, seconds=100)


def _reopen(network: Consortium) -> None:
    """Nodes that were killed listen elsewhere now."""
    opened = network.together(*(lambda n=n: Client.open(network.net.home(n)) for n in network.clients))
    network.clients = dict(zip(network.clients, opened, strict=True))
    for name in CLINICS:
        network.clinics[name].client = network.clients[name]


def _every_block_and_transaction_is_still_there(
    network: Consortium, witness: Witness, receipts: dict[str, str]
) -> None:
    ledger = network.ledger
    assert len(witness.heads) > 50 and len(receipts) > 50
    for number, seen in witness.heads.items():
        assert ledger.endpoint.block(number).hash == seen
    for transaction, block in receipts.items():
        receipt = ledger.endpoint.call("eth_getTransactionReceipt", transaction)
        assert receipt is not None and receipt["status"] == "0x1"
        assert receipt["blockHash"] == block


def _releases_stand(network: Consortium, jobs: list[JobId]) -> None:
    """Each release is right, was made once, and is handed out again byte for byte, also by a custodian that restarted."""
    with Impostor(network.node_keys("university").peer_seed) as asker:
        for job in jobs:
            record = network.ledger.job(job)
            clinic = network.ledger.participant(network.ledger.key_domain(record.key_id).custodian).name
            release = network.university.open_release(job)
            truth = network.clinics[clinic].consenting().sum(axis=0)
            assert np.abs(release.values - truth).max() <= 12 * release.sigma
            cid = Cid.from_digest(record.release_digest, Codec.DAG_CBOR)
            (first,) = asker.fetch(network.ledger, clinic, cid)
            (second,) = asker.fetch(network.ledger, clinic, cid)
            assert first == second == network.university.content.get(cid, holder=clinic)
    for clinic in CLINICS:
        made = rows(network.net.home(clinic).node_database, "SELECT job_id, envelope FROM release")
        ours = {bytes(job): network.ledger.job(job) for job in jobs}
        custodian = {
            k: j
            for k, j in ours.items()
            if j.request.artifact_id == network.clinics[clinic].bundle.artifact_id
        }
        assert {bytes(key) for key, _ in made} == set(custodian)
        for key, envelope in made:
            assert Cid.from_bytes(envelope).digest == custodian[bytes(key)].release_digest


@pytest.mark.timeout(400)
def test_a_network_whose_chain_lost_its_port_goes_on_at_another(shared_network: Consortium) -> None:
    network = shared_network
    before = network.ledger.network.rpc_urls[0]
    released = network.post()
    _released(network, released)
    network.net.down()
    assert processes_below(network.net.root) == {}
    # Positive control: while all is down, the old address answers nobody.
    opening = lambda: Ledger.open(network.ledger.network, patience=0.1)  # noqa: E731
    assert isinstance(error_of(opening), LedgerUnreachableError)

    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(before.rsplit(":", 1)[1])))
        squatter.listen()
        network.net.up(block_interval_s=BLOCK_SECONDS)
        _reopen(network)
        assert read_endpoint(network.net.root / "chain").url != before
        assert network.ledger.network.rpc_urls != (before,)
        assert network.university.open_release(released).job_id == released
        _released(network, network.post())
