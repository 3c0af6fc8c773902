"""Step 5, for others: receipts are checked against the chain, and no steward or index can say more than was signed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_fixture import SmallBundle
from chain_fixture import FAR, Consortium, Vote, reveal_moves, word
from usufruct.consent import ConsentReceipt, ConsentStatus, leaves_of, merkle_levels, sign_receipt
from usufruct.consent_book import ConsentBook, anchor_epoch
from usufruct.consent_proof import CheckedConsents, ConsentProof, check_consents, prove_consents
from usufruct.content import Cid, dag
from usufruct.errors import InputError, MissingEventError, VerificationError
from usufruct.records import ArtifactId, GrantId, JobId, JobRequest, label, org_id
from usufruct_node.index import Index, catch_up
from usufruct_node.queries import Queries

NORTH, SCOPE = org_id("north"), "shown-to-others"
SUBJECTS = [f"subject-{n}" for n in range(24)]
WITHDRAWN = "subject-5"

Lie = Callable[[str, Any], None]


@dataclass
class Node:
    """The checker's own node: its index, which may lie, and the records that members give it."""

    index: Index
    queries: Queries
    records: dict[Cid, dict[str, Any]] = field(default_factory=dict)
    lie: Lie = lambda path, answer: None

    def put_record(self, kind: str, record: Any) -> Cid:
        self.records[dag.cid_of(record)] = record
        return dag.cid_of(record)

    def get_record(self, cid: Cid, *, holder: str) -> dict[str, Any]:
        assert holder == "north"
        return self.records[cid]

    def query(self, path: str, **params: str) -> Any:
        where, _, given_id = path[1:].partition("/")
        answer = {
            "consent-epochs": lambda: self.queries.consent_epochs(org_id(params["steward"]), params["scope"]),
            "jobs": lambda: self.queries.job(JobId(bytes.fromhex(given_id))),
            "artifacts": lambda: self.queries.artifact(bytes.fromhex(given_id)),
        }[where]()
        answer = copy.deepcopy(answer)
        self.lie(where, answer)
        return json.loads(json.dumps(answer))


@dataclass
class Scene:
    net: Consortium
    book: ConsentBook
    node: Node
    positions: dict[str, int]
    jobs: dict[int, JobId]
    """A job of each epoch."""

    def prove(self, **given_: Any) -> ConsentProof:
        return prove_consents(self.book, self.net["north"].ledger, self.node, scope=SCOPE, **given_)

    def check(self, proof: ConsentProof, lie: Lie | None = None, **given_: Any) -> CheckedConsents:
        node = self.node if lie is None else replace(self.node, lie=lie)
        return check_consents(proof, self.net["auditor"].ledger, node, **given_)

    @staticmethod
    def request(artifact: ArtifactId, grant: GrantId, kernel: bytes, scope: str, *, epoch: int) -> JobRequest:
        return JobRequest(
            artifact_id=artifact,
            grant_id=grant,
            kernel_id=kernel,
            parameters_digest=word(),
            purpose=label(scope),
            consent_epoch=epoch,
            policy_version=1,
            rho_micro=5,
            row_level=False,
            nonce=epoch,
        )

    def signed(self, receipt: ConsentReceipt) -> ConsentReceipt:
        north = self.net["north"]
        key = north.authority_key
        return replace(receipt, signature=sign_receipt(receipt, NORTH, north.ledger, signing_key=key))

    def anchored(
        self, receipts: list[ConsentReceipt], status: ConsentStatus, scope: str
    ) -> Callable[..., ConsentProof]:
        """What a steward can anchor that does as it likes."""
        ledger = self.net["north"].ledger
        root = merkle_levels(leaves_of(receipts, NORTH, ledger))[-1][0]
        cid = self.node.put_record("status", status.to_record())
        ledger.transact("ConsentRegistry", "anchorEpoch", label(scope), 1, root, cid.digest, 0)
        catch_up(self.node.index, self.net.reader)
        return ConsentProof(steward="north", scope=scope, epoch=1, receipts=tuple(receipts), path=None)


@pytest.fixture(scope="module")
def scene(chain_url: str, bundle: SmallBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    net, folder = Consortium(chain_url), tmp_path_factory.mktemp("consents")
    north = net["north"]
    index = Index(folder / "index.db")
    node = Node(index, Queries(index, net.network.contracts))
    book = ConsentBook(folder / "consent.db", steward=NORTH, pseudonym_key=b"\x07" * 32)
    given_ = {
        "scope": SCOPE,
        "notice": b"what for",
        "ledger": north.ledger,
        "signing_key": north.authority_key,
    }
    positions = book.record(SUBJECTS, expires_at=FAR, **given_)
    manifest = dag.cid_of(bundle.record)
    node.records[manifest] = bundle.record
    artifact = net.bundle(
        "north", net.key_domain("north"), scope=label(SCOPE), content_digest=manifest.digest
    )
    kernel = word()
    grant = net.granted("university", "north", artifact, label(SCOPE), kernels=(kernel,))

    jobs = {}
    for epoch, change in ((1, None), (2, book.withdraw), (3, None)):
        if change is not None:
            change(WITHDRAWN, scope=SCOPE)
        elif epoch == 3:
            book.record([WITHDRAWN], expires_at=FAR, **given_)
        assert anchor_epoch(book, north.ledger, node, scope=SCOPE).epoch == epoch
        request = Scene.request(artifact, grant, kernel, SCOPE, epoch=epoch)
        (jobs[epoch],) = net.post("university", [request])
    catch_up(index, net.reader)
    yield Scene(net, book, node, positions, jobs)
    index.close()


def test_an_auditor_finds_a_signed_receipt_for_every_subject_that_counted_in_a_job(scene: Scene) -> None:
    proof = ConsentProof.from_json(json.dumps(scene.prove(epoch=2).to_json()))
    seen: list[tuple[int, int]] = []
    checked = scene.check(proof, job_id=scene.jobs[2], progress=lambda *at: seen.append(at))
    assert (checked.receipts, checked.whole, checked.in_force) == (23, True, False)
    assert checked.job is not None
    assert (checked.job.requester, checked.job.rows, checked.job.consenting_rows) == ("university", 24, 23)
    assert seen[-1] == (23, 23)
    assert scene.check(scene.prove()).in_force
    names = json.dumps(proof.to_json())
    assert not any(subject in names for subject in SUBJECTS)


def test_a_subject_shows_with_one_receipt_that_it_consented_and_how_many_of_its_rows_counted(
    scene: Scene,
) -> None:
    for epoch in (1, 3):
        proof = ConsentProof.from_json(json.dumps(scene.prove(subject=WITHDRAWN, epoch=epoch).to_json()))
        checked = scene.check(proof, job_id=scene.jobs[epoch])
        assert (checked.receipts, checked.whole) == (1, False)
        assert checked.job is not None
        assert checked.job.consenting_rows == 1


def test_a_receipt_of_each_epoch_is_the_one_that_was_in_force_then(scene: Scene) -> None:
    """Who withdrew and consented again has two receipts of one position."""
    first, again = (scene.prove(subject=WITHDRAWN, epoch=epoch).receipts[0] for epoch in (1, 3))
    assert first.position == again.position == scene.positions[WITHDRAWN]
    assert first.salt != again.salt
    with pytest.raises(InputError, match="did not consent in epoch 2"):
        scene.prove(subject=WITHDRAWN, epoch=2)
    with pytest.raises(VerificationError, match="root"):
        scene.check(replace(scene.prove(subject=WITHDRAWN, epoch=1), receipts=(again,)))


def test_a_receipt_counts_for_no_other_position_epoch_purpose_or_steward(scene: Scene) -> None:
    proof = scene.prove(subject="subject-7", epoch=3)
    (receipt,) = proof.receipts
    other = scene.positions["subject-8"]
    moved = replace(receipt, position=other)
    with pytest.raises(VerificationError, match="signed by"):
        scene.check(replace(proof, receipts=(moved,)))
    with pytest.raises(VerificationError, match="root"):
        scene.check(replace(proof, receipts=(scene.signed(moved),)))
    with pytest.raises(VerificationError, match="root"):
        scene.check(replace(proof, epoch=2))
    with pytest.raises(VerificationError, match="does not consent"):
        scene.check(replace(scene.prove(subject=WITHDRAWN, epoch=1), epoch=2))
    with pytest.raises(InputError, match="no consents"):
        scene.check(replace(proof, steward="south"))
    with pytest.raises(InputError, match="no epoch"):
        scene.check(replace(proof, epoch=9))
    with pytest.raises(InputError, match="rests on epoch 2"):
        scene.check(proof, job_id=scene.jobs[2])


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": FAR - 1},
        {"given_at": 1},
        {"notice_digest": b"\x01" * 32},
        {"pseudonym": b"\x01" * 32},
        {"salt": b"\x01" * 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_in_a_receipt_can_be_changed_not_even_by_the_steward(
    scene: Scene, change: dict[str, Any]
) -> None:
    proof = scene.prove(subject="subject-7")
    changed = replace(proof.receipts[0], **change)
    for receipt in (changed, scene.signed(changed)):
        with pytest.raises(VerificationError):
            scene.check(replace(proof, receipts=(receipt,)))


def test_a_receipt_too_few_or_too_many_does_not_make_up_the_epoch(scene: Scene) -> None:
    proof = scene.prove(epoch=2)
    with pytest.raises(VerificationError, match="not one receipt for each"):
        scene.check(replace(proof, receipts=proof.receipts[1:]))
    with pytest.raises(VerificationError, match="not one receipt for each"):
        scene.check(replace(proof, receipts=(*proof.receipts, proof.receipts[0])))
    with pytest.raises(VerificationError, match="root"):
        scene.check(replace(scene.prove(epoch=3), receipts=scene.prove(epoch=1).receipts))


def test_a_steward_that_anchors_positions_without_receipts_or_one_subject_twice_is_found_out(
    scene: Scene,
) -> None:
    scope = "made-up"
    receipts = [scene.signed(replace(r, scope=scope)) for r in scene.prove(epoch=1).receipts[:2]]
    honest = ConsentStatus(scope=scope, epoch=1, valid_until=FAR, bits=b"\x3f")
    positions = [replace(receipt, position=n) for n, receipt in enumerate(receipts)]
    good = [scene.signed(receipt) for receipt in positions]
    cases = {
        "more bits than receipts": (good, replace(honest, bits=b"\x1f"), "not one receipt"),
        "one subject twice": (
            [good[0], scene.signed(replace(good[1], pseudonym=good[0].pseudonym))],
            honest,
            "several positions",
        ),
        "a consent that ends before the epoch does": (
            [good[0], scene.signed(replace(good[1], expires_at=FAR - 1))],
            honest,
            "expires while",
        ),
        "not signed by the authority": ([good[0], positions[1]], honest, "signed by"),
        "another purpose's bitstring": (good, replace(honest, scope="made-up-2"), "another epoch or purpose"),
        "nothing wrong": (good, honest, None),
    }
    for number, (what, (made, status, why)) in enumerate(cases.items()):
        name = f"{scope}-case-{number}"
        renamed = [scene.signed(replace(r, scope=name)) for r in made]
        if what == "not signed by the authority":
            renamed[1] = replace(renamed[1], signature=scene.signed(made[0]).signature)
        told = status if what == "another purpose's bitstring" else replace(status, scope=name)
        proof = scene.anchored(renamed, told, name)
        if why is None:
            assert scene.check(proof).receipts == 2
        else:
            with pytest.raises(VerificationError, match=why):
                scene.check(proof)


def test_an_index_that_lies_about_epochs_or_jobs_is_not_believed(scene: Scene) -> None:
    proof = scene.prove(epoch=2)

    def forged(path: str, answer: Any) -> None:
        if path == "consent-epochs":
            answer[1]["args"]["consentRoot"] = answer[0]["args"]["consentRoot"]

    def shortened(path: str, answer: Any) -> None:
        if path == "consent-epochs":
            del answer[2:]

    def hidden(path: str, answer: Any) -> None:
        if path == "consent-epochs":
            answer.clear()

    def another_job(path: str, answer: Any) -> None:
        if path == "jobs":
            answer["events"][0]["args"]["request"]["consentEpoch"] = 1

    def nowhere(path: str, answer: Any) -> None:
        if path == "consent-epochs":
            answer[0]["block_number"] = float("inf")

    def nonsense(path: str, answer: Any) -> None:
        if path == "consent-epochs":
            del answer[0]["args"]

    for lie, error in (
        (forged, VerificationError),
        (shortened, MissingEventError),
        (hidden, MissingEventError),
        (another_job, VerificationError),
        (nowhere, VerificationError),
        (nonsense, VerificationError),
    ):
        with pytest.raises(error):
            scene.check(proof, lie, job_id=scene.jobs[2])

    def released(path: str, answer: Any) -> None:
        if path == "jobs":
            answer["state"] = "RELEASED"

    checked = scene.check(proof, released, job_id=scene.jobs[2])
    assert checked.job is not None
    assert checked.job.state == "POSTED"


def test_a_job_that_was_opened_on_consents_that_had_run_out_is_found_out(
    scene: Scene, bundle: SmallBundle
) -> None:
    """A steward is its own custodian: with one befriended executor it could run such a job."""
    net, scope = scene.net, "run-out"
    receipts = [
        scene.signed(replace(receipt, scope=scope, expires_at=200))
        for receipt in scene.prove(epoch=1).receipts
    ]
    status = ConsentStatus(scope=scope, epoch=1, valid_until=1, bits=bytes(3))
    proof = scene.anchored(receipts, status, scope)
    assert scene.check(proof).first_expires_at == 200
    manifest = scene.node.put_record("bundle", bundle.record | {"scope": scope})
    artifact = net.bundle(
        "north", net.key_domain("north"), scope=label(scope), content_digest=manifest.digest
    )
    kernel = word()
    grant = net.granted("university", "north", artifact, label(scope), kernels=(kernel,), min_cohort=0)
    request = scene.request(artifact, grant, kernel, scope, epoch=1)
    (job,) = net.post("university", [request])
    result = word()
    net.claim([job])
    net.commit({job: result})
    votes = [Vote.of(net[v], job, result) for v in ("north", "south", "auditor")]
    net.together(vote.commit_move(net.network) for vote in votes)
    net.together(reveal_moves(votes))
    catch_up(scene.node.index, net.reader)
    assert scene.check(proof, job_id=job).job is not None
    net.together([(net["north"].node, "JobLedger", "openRelease", job)])
    catch_up(scene.node.index, net.reader)
    with pytest.raises(VerificationError, match="had expired when the job was posted"):
        scene.check(proof, job_id=job)


def test_an_epoch_that_the_book_did_not_make_is_not_proven_from_it(scene: Scene, tmp_path: Path) -> None:
    lost = ConsentBook(tmp_path / "other.db", steward=NORTH, pseudonym_key=b"\x07" * 32)
    with pytest.raises(InputError, match="not made of this consent book"):
        replace(scene, book=lost).prove()


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_bytes_but_a_proof_pass_for_one(data: bytes | str) -> None:
    with pytest.raises(InputError):
        ConsentProof.from_json(data)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("type", "usufruct/consent-proof/2"),
        ("steward", 7),
        ("scope", "No Label"),
        ("epoch", 0),
        ("epoch", True),
        ("receipts", {}),
        ("path", []),
        ("path", ["00"]),
        ("more", 1),
        ("receipt.position", 1 << 23),
        ("receipt.position", -1),
        ("receipt.given_at", 1.5),
        ("receipt.salt", "zz" * 32),
        ("receipt.signature", "00" * 64),
        ("receipt.withdrawn_at", 4),
    ],
)
def test_a_proof_is_parsed_strictly(scene: Scene, where: str, value: Any) -> None:
    document = scene.prove().to_json()
    place, _, name = where.rpartition(".")
    (document["receipts"][0] if place else document)[name] = value
    with pytest.raises(InputError, match=r"consent proof|label"):
        ConsentProof.from_json(json.dumps(document))
