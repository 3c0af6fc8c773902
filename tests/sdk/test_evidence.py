"""Evidence of a lineage is checked without any node, and any change of it shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lineage_fixture import RELEASED, Scene
from usufruct.cli import app
from usufruct.content import Cid, Codec, dag
from usufruct.content.car import CarReader, CarWriter
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    CarError,
    FinalityError,
    ForeignProofError,
    InclusionError,
    InputError,
    MalformedProofError,
    ManifestError,
    MissingEventError,
    OtherBlockProofError,
    ProofUnavailableError,
    TooFewSignersError,
    UsufructError,
    VerificationError,
)
from usufruct.evidence import (
    CheckedEvidence,
    Evidence,
    check_evidence,
    collect_evidence,
    read_evidence,
    write_evidence,
)
from usufruct.evidence.pack import (
    MAX_TOLD_BYTES,
    BlockEvidence,
    ContractEvidence,
    ReceiptEvidence,
    SeriesEvidence,
)
from usufruct.ledger import Network
from usufruct.ledger.finality import BlockHeader, ValidatorVersion, block_hash_of, founding_version
from usufruct.ledger.finality.state import series_slots
from usufruct.records import ArtifactId, JobId
from usufruct.release import open_envelope
from warp_fixture import change_to, own_pin, signed, warp_proof


@pytest.fixture(scope="module")
def evidence(scene: Scene) -> Evidence:
    return collect_evidence(scene.net.reader, scene.told, scene.release)


def check(scene: Scene, evidence: Evidence) -> CheckedEvidence:
    return check_evidence(evidence, scene.net.network, endpoint=scene.net.reader.endpoint)


def without_places(told: Any) -> Any:
    """A lineage as JSON without what evidence does not prove."""
    if isinstance(told, dict):
        return {name: without_places(value) for name, value in told.items() if name != "transaction_hash"}
    return [without_places(value) for value in told] if isinstance(told, list) else told


def test_the_file_shows_the_lineage_that_the_chain_shows(
    scene: Scene, evidence: Evidence, tmp_path: Path
) -> None:
    path = tmp_path / "release.evidence"
    root = write_evidence(evidence, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_evidence(path) == (root, evidence)
    found = check(scene, read_evidence(path)[1])
    online = scene.walk()
    assert without_places(found.lineage.to_json()["root"]) == without_places(online.to_json()["root"])
    assert (found.lineage.checked.events, found.lineage.checked.series) == (
        online.checked.events,
        online.checked.series,
    )
    newest = scene.net.reader.endpoint.block(found.block_number)
    assert (found.block_hash, found.timestamp) == (newest.hash, newest.timestamp)
    assert found.blocks == len(evidence.blocks)
    assert found.validators is None


def test_a_chain_without_proofs_needs_an_endpoint_that_has_these_very_blocks(
    scene: Scene, evidence: Evidence
) -> None:
    with pytest.raises(ProofUnavailableError, match="an endpoint must vouch"):
        check_evidence(evidence, scene.net.network)
    block = evidence.blocks[0]
    header = BlockHeader.decode(block.header, "ethereum")
    forged = header.with_extra_data(b"another block")
    with pytest.raises(OtherBlockProofError):
        check(scene, replace(evidence, blocks=(replace(block, header=forged.encode()), *evidence.blocks[1:])))


def test_evidence_of_another_network_is_refused(scene: Scene, evidence: Evidence) -> None:
    other = scene.net.network.model_copy(update={"chain_id": scene.net.network.chain_id + 1})
    with pytest.raises(ForeignProofError, match="another network"):
        check_evidence(evidence, other, endpoint=scene.net.reader.endpoint)


@pytest.mark.parametrize("kind", ["event", "head", "contract"])
def test_what_is_left_out_is_missed(scene: Scene, evidence: Evidence, kind: str) -> None:
    """The newest event is the freeze of the result: whoever hides it hides it from the index's word as well."""
    told = json.loads(evidence.told)
    frozen = next(entry for entry in told["artifacts"] if entry["kind"] == "RESULT")
    key = bytes.fromhex(frozen["artifact_id"])
    frozen["events"] = []
    changed = replace(evidence, told=json.dumps(told).encode())
    if kind == "head":
        changed = replace(
            changed,
            contracts=tuple(
                replace(contract, series=tuple(one for one in contract.series if one.key != key))
                for contract in changed.contracts
            ),
        )
    elif kind == "contract":
        changed = replace(changed, contracts=changed.contracts[:-1])
    with pytest.raises(MissingEventError):
        check(scene, changed)


def test_an_event_that_no_receipt_proves_is_refused(scene: Scene, evidence: Evidence) -> None:
    blocks = (replace(evidence.blocks[0], receipts=()), *evidence.blocks[1:])
    with pytest.raises(VerificationError, match="is not in block"):
        check(scene, replace(evidence, blocks=blocks))


def test_a_receipt_of_another_block_is_refused(scene: Scene, evidence: Evidence) -> None:
    first, second = evidence.blocks[:2]
    with pytest.raises(FinalityError):
        check(
            scene, replace(evidence, blocks=(replace(first, receipts=second.receipts), *evidence.blocks[1:]))
        )


def test_what_contracts_hold_is_taken_from_no_other_place(scene: Scene, evidence: Evidence) -> None:
    rights = next(contract for contract in evidence.contracts if contract.name == "UsageRights")
    jobs = next(contract for contract in evidence.contracts if contract.name == "JobLedger")

    def with_contract(changed: ContractEvidence) -> Evidence:
        return replace(
            evidence,
            contracts=tuple(
                changed if contract.name == changed.name else contract for contract in evidence.contracts
            ),
        )

    with pytest.raises(FinalityError):
        check(scene, with_contract(replace(rights, account=jobs.account)))
    with pytest.raises(InclusionError, match="the code of UsageRights"):
        check(scene, with_contract(replace(rights, code=jobs.code)))
    with pytest.raises(InclusionError, match="the code of JobLedger"):
        check(scene, with_contract(replace(jobs, code=jobs.code[:-1] + b"\0")))
    (series,) = rights.series
    for changed in (
        replace(series, length=series.head),
        replace(series, head=jobs.series[0].head),
        replace(series, head=series.head[:-1]),
        replace(series, head=(*series.head, series.head[-1])),
        replace(series, head=()),
    ):
        with pytest.raises(FinalityError):
            check(scene, with_contract(replace(rights, series=(changed,))))
    with pytest.raises(VerificationError, match="the network does not have"):
        check(scene, replace(evidence, contracts=(replace(rights, name="Nobody's"),)))
    with pytest.raises(VerificationError, match="keeps no series"):
        series_slots("KeyRegistry", series.key)


def test_contents_and_the_index_s_word_are_checked_as_ever(scene: Scene, evidence: Evidence) -> None:
    cid = next(iter(evidence.contents))
    with pytest.raises(BlockNotFoundError, match="lacks content"):
        check(scene, replace(evidence, contents={c: d for c, d in evidence.contents.items() if c != cid}))
    told = json.loads(evidence.told)
    told["artifacts"][0]["steward"] = "south"
    with pytest.raises(VerificationError, match="another steward"):
        check(scene, replace(evidence, told=json.dumps(told).encode()))
    with pytest.raises(VerificationError, match="no JSON"):
        check(scene, replace(evidence, told=b"{"))
    with pytest.raises(InclusionError, match="no blocks"):
        check(scene, replace(evidence, blocks=()))


@settings(max_examples=150)
@given(data=st.data())
def test_no_bit_of_a_proof_or_a_content_can_be_changed(
    scene: Scene, evidence: Evidence, data: st.DataObject
) -> None:
    """By somebody who computes all hashes of the file anew."""

    def flipped(old: bytes) -> bytes:
        at, bit = data.draw(st.integers(0, len(old) - 1)), data.draw(st.integers(0, 7))
        return old[:at] + bytes([old[at] ^ 1 << bit]) + old[at + 1 :]

    def one_of(items: tuple[Any, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
        at = data.draw(st.integers(0, len(items) - 1))
        return (*items[:at], change(items[at]), *items[at + 1 :])

    def nodes(old: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return one_of(old, flipped)

    def receipt(old: ReceiptEvidence) -> ReceiptEvidence:
        return replace(old, proof=replace(old.proof, nodes=nodes(old.proof.nodes)))

    def series(old: SeriesEvidence) -> SeriesEvidence:
        name = data.draw(st.sampled_from(("length", "head")))
        return replace(old, **{name: nodes(getattr(old, name))})

    def contract(old: ContractEvidence) -> ContractEvidence:
        change = data.draw(st.sampled_from(("code", "account", "series")))
        changed = {"code": flipped, "account": nodes, "series": lambda old: one_of(old, series)}[change]
        return replace(old, **{change: changed(getattr(old, change))})

    with_receipts = [at for at, block in enumerate(evidence.blocks) if block.receipts]
    part = data.draw(st.sampled_from(("header", "receipt", "contract", "content")))
    if part == "content":
        cid = data.draw(st.sampled_from(sorted(evidence.contents, key=str)))
        changed = replace(evidence, contents={**evidence.contents, cid: flipped(evidence.contents[cid])})
    elif part == "contract":
        changed = replace(evidence, contracts=one_of(evidence.contracts, contract))
    else:
        at = data.draw(st.sampled_from(with_receipts))
        block = evidence.blocks[at]
        new = (
            replace(block, header=flipped(block.header))
            if part == "header"
            else replace(block, receipts=one_of(block.receipts, receipt))
        )
        changed = replace(evidence, blocks=(*evidence.blocks[:at], new, *evidence.blocks[at + 1 :]))
    with pytest.raises(UsufructError):
        check(scene, changed)


def test_what_is_shown_twice_or_for_nothing_is_refused(scene: Scene, evidence: Evidence) -> None:
    jobs = next(contract for contract in evidence.contracts if contract.name == "JobLedger")
    with pytest.raises(MalformedProofError, match="shows JobLedger twice"):
        check(scene, replace(evidence, contracts=(*evidence.contracts, jobs)))
    twice = tuple(replace(one, series=one.series * 2) for one in evidence.contracts)
    with pytest.raises(MalformedProofError, match="twice"):
        check(scene, replace(evidence, contracts=twice))
    more = {**evidence.contents, Cid.of(b"advice", Codec.RAW): b"advice"}
    with pytest.raises(MalformedProofError, match="does not need"):
        check(scene, replace(evidence, contents=more))


def test_no_validators_are_named_where_the_chain_has_none(scene: Scene, evidence: Evidence) -> None:
    first = evidence.blocks[0]
    for forged in (replace(first, version=7), replace(first, proof=warp_proof(b"signed"))):
        with pytest.raises(ForeignProofError, match="of a chain that has none"):
            check(scene, replace(evidence, blocks=(forged, *evidence.blocks[1:])))
    change = change_to(own_pin(1), signers=[1], before=replace(FOUNDING, pin=own_pin(1)))
    with pytest.raises(ForeignProofError, match="of a chain that has none"):
        check(scene, replace(evidence, changes=(change,)))


def test_evidence_of_one_artifact_is_not_that_of_another(scene: Scene, evidence: Evidence) -> None:
    other = scene.other["artifacts"][0]["artifact_id"]
    with pytest.raises(VerificationError):
        check(scene, replace(evidence, artifact_id=ArtifactId(bytes.fromhex(other))))


def test_a_partner_discloses_what_was_released_and_nothing_else_passes_for_it(
    scene: Scene, evidence: Evidence, tmp_path: Path
) -> None:
    def payload_of(job_id: JobId) -> bytes:
        job = scene.net.reader.job(job_id)
        envelope = scene.told.blocks[Cid.from_digest(job.release_digest, Codec.DAG_CBOR)]
        return open_envelope(
            *(scene.net.network, job_id, job, envelope),
            custodian=scene.net["north"].record,
            hpke_private=scene.net["university"].hpke_private,
        )

    assert check(scene, evidence).release is None
    disclosed = collect_evidence(scene.net.reader, scene.told, scene.release, payload_of=payload_of)
    assert disclosed.payload is not None
    path = tmp_path / "disclosed"
    write_evidence(disclosed, path)
    found = check(scene, read_evidence(path)[1]).release
    assert found is not None and tuple(found.values.tolist()) == RELEASED
    record = dag.decode_map(disclosed.payload)
    other = dag.encode(record | {"values": np.array([1235, 0], dtype="<i8").tobytes()})
    with pytest.raises(VerificationError, match="committed to another payload"):
        check(scene, replace(disclosed, payload=other))


def test_only_a_release_has_values_to_disclose(scene: Scene) -> None:
    told = next(entry for entry in scene.told.answer["artifacts"] if entry["kind"] == "RESULT")
    result = ArtifactId(bytes.fromhex(told["artifact_id"]))
    with pytest.raises(InputError, match="a result has no released values"):
        collect_evidence(scene.net.reader, scene.told, result, payload_of=lambda _: b"")
    of_result = collect_evidence(scene.net.reader, scene.told, result)
    with pytest.raises(VerificationError, match="of what is no release"):
        check(scene, replace(of_result, payload=b""))


@pytest.fixture(scope="module")
def file(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("evidence") / "file"
    write_evidence(evidence, path)
    return path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_no_bit_of_the_file_can_be_changed(file: bytes, tmp_path: Path, at: int, bit: int) -> None:
    changed = bytearray(file)
    changed[at % len(file)] ^= 1 << bit
    path = tmp_path / "changed"
    path.write_bytes(changed)
    with pytest.raises(UsufructError):
        read_evidence(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(end=st.integers(min_value=0))
def test_a_cut_file_is_refused(file: bytes, tmp_path: Path, end: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(file[: end % len(file)])
    with pytest.raises(UsufructError):
        read_evidence(path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"type": "usufruct/evidence/0"}, ManifestError),
        ({"network": b"short"}, MalformedProofError),
        ({"artifact": "text"}, MalformedProofError),
        ({"blocks": {}}, MalformedProofError),
        ({"blocks": [1]}, MalformedProofError),
        ({"more": 1}, MalformedProofError),
        ({"told": []}, CarError),
        ({"contracts": "self"}, MalformedProofError),
    ],
)
def test_a_root_of_another_form_is_refused(
    file: bytes, tmp_path: Path, change: dict[str, Any], error: type[UsufructError]
) -> None:
    """A whole file with right hashes, made by somebody else."""
    (_, data), *rest = CarReader(io.BytesIO(file))
    record = dag.decode_map(data)
    if change == {"contracts": "self"}:
        change = {"contracts": record["blocks"], "blocks": []}
    root = dag.encode(record | change)
    path = tmp_path / "forged"
    with path.open("wb") as out:
        writer = CarWriter(out, [Cid.of(root, Codec.DAG_CBOR)])
        writer.add(Cid.of(root, Codec.DAG_CBOR), root)
        for cid, block in rest:
            writer.add(cid, block)
    with pytest.raises(error):
        read_evidence(path)


def test_parts_that_nobody_names_or_that_come_twice_are_refused(file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "more"
    for more in (
        b"nobody asked",
        next(data for cid, data in CarReader(io.BytesIO(file)) if cid.codec == Codec.RAW),
    ):
        with path.open("wb") as out:
            out.write(file)
            sink = io.BytesIO()
            writer = CarWriter(sink, [Cid.of(more, Codec.RAW)])
            begin = sink.tell()
            writer.add(Cid.of(more, Codec.RAW), more)
            out.write(sink.getvalue()[begin:])
        with pytest.raises(CarError):
            read_evidence(path)


def test_a_part_that_is_named_again_and_again_does_not_fill_the_memory(file: bytes, tmp_path: Path) -> None:
    """A megabyte, and a root that names it a thousand times."""
    (_, data), *rest = CarReader(io.BytesIO(file))
    big = bytes(1024 * 1024)
    root = dag.encode(dag.decode_map(data) | {"told": [Cid.of(big, Codec.RAW)] * 1000})
    path = tmp_path / "bomb"
    with path.open("wb") as out:
        writer = CarWriter(out, [Cid.of(root, Codec.DAG_CBOR)])
        for block, codec in ((root, Codec.DAG_CBOR), (big, Codec.RAW)):
            writer.add(Cid.of(block, codec), block)
        for cid, block in rest:
            if cid.codec != Codec.RAW:
                writer.add(cid, block)
    with pytest.raises(CarError, match="twice"):
        read_evidence(path)


def test_a_series_that_a_contract_names_again_and_again_is_read_once(
    evidence: Evidence, tmp_path: Path
) -> None:
    contract = next(contract for contract in evidence.contracts if contract.series)
    often = replace(contract, series=contract.series[:1] * 1000)
    path = tmp_path / "bomb"
    write_evidence(replace(evidence, contracts=(often,)), path)
    with pytest.raises(CarError, match="twice"):
        read_evidence(path)


def test_a_lineage_that_is_too_large_is_not_written(evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with pytest.raises(ManifestError, match="too large"):
        write_evidence(replace(evidence, told=bytes(MAX_TOLD_BYTES + 1)), path)
    assert not path.exists()


def test_a_file_is_never_overwritten(evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_evidence(evidence, path)
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="cannot be read"):
        read_evidence(tmp_path)


# On a chain with finality proofs: the same blocks, signed by validators of our own. No endpoint is asked.


@dataclass
class Signed:
    network: Network
    evidence: Evidence

    def check(self, **changes: Any) -> CheckedEvidence:
        return check_evidence(replace(self.evidence, **changes), self.network)

    def with_block(self, position: int, **changes: Any) -> tuple[BlockEvidence, ...]:
        blocks = list(self.evidence.blocks)
        blocks[position] = replace(blocks[position], **changes)
        return tuple(blocks)


def signed_block(block: BlockEvidence, version: int, numbers: list[int], signers: list[int]) -> BlockEvidence:
    """By a set of some of our validators, of whom those sign."""
    block_hash = block_hash_of(BlockHeader.decode(block.header, "subnet-evm"))
    payload = signed(own_pin(*numbers), signers, block_hash)
    return replace(block, proof=warp_proof(payload, block_hash), version=version)


FOUNDING = ValidatorVersion(version=1, pin=own_pin(1), since_block=0, head=bytes(32))
OLD, NEW = [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def proven(scene: Scene, evidence: Evidence) -> Signed:
    """The members exchanged one of five validators after the first of the blocks."""
    network = scene.net.network.model_copy(update={"profile": "subnet-evm", "finality": own_pin(*OLD)})
    first = BlockHeader.decode(evidence.blocks[0].header, "subnet-evm").number
    change = change_to(
        own_pin(*NEW),
        signers=OLD[:4],
        before=founding_version(network),
        address=network.contracts["ValidatorSet"].lower(),
        number=first,
    )
    blocks = (
        signed_block(evidence.blocks[0], 1, OLD, OLD[:4]),
        *(signed_block(block, 2, NEW, NEW[1:]) for block in evidence.blocks[1:]),
    )
    return Signed(network, replace(evidence, blocks=blocks, changes=(change,)))


def test_signatures_of_the_pinned_validators_are_enough(proven: Signed, tmp_path: Path) -> None:
    found = proven.check()
    assert found.validators == 2
    assert found.lineage.root.artifact_id == proven.evidence.artifact_id
    path = tmp_path / "signed"
    write_evidence(proven.evidence, path)
    assert read_evidence(path)[1] == proven.evidence


def test_a_block_without_enough_signatures_of_those_in_force_proves_nothing(
    proven: Signed, evidence: Evidence
) -> None:
    last = evidence.blocks[-1]
    with pytest.raises(InclusionError, match="without a proof"):
        proven.check(blocks=proven.with_block(-1, proof=None))
    with pytest.raises(TooFewSignersError):
        proven.check(blocks=(*proven.evidence.blocks[:-1], signed_block(last, 2, NEW, NEW[:3])))
    with pytest.raises(ForeignProofError, match="do not vouch"):
        proven.check(blocks=(*proven.evidence.blocks[:-1], signed_block(last, 1, OLD, OLD)))
    with pytest.raises(FinalityError):
        proven.check(blocks=(*proven.evidence.blocks[:-1], signed_block(last, 2, OLD, OLD)))
    with pytest.raises(ForeignProofError, match="do not vouch"):
        proven.check(blocks=proven.with_block(-1, version=3))
    with pytest.raises(ForeignProofError, match="do not vouch"):
        proven.check(blocks=proven.with_block(-1, version=0))
    with pytest.raises(OtherBlockProofError):
        proven.check(blocks=proven.with_block(-1, proof=proven.evidence.blocks[-2].proof))


def test_validators_that_nobody_voted_for_are_not_believed(proven: Signed) -> None:
    with pytest.raises(ForeignProofError, match="do not vouch"):
        proven.check(changes=())
    first = founding_version(proven.network)
    address = proven.network.contracts["ValidatorSet"].lower()
    forged = change_to(own_pin(*NEW), signers=OLD[:3], before=first, address=address)
    with pytest.raises(TooFewSignersError):
        proven.check(changes=(forged,))


def test_a_proof_of_another_kind_of_chain_is_refused(proven: Signed) -> None:
    proof = proven.evidence.blocks[-1].proof
    assert proof is not None
    with pytest.raises(ForeignProofError, match="another kind of chain"):
        proven.check(blocks=proven.with_block(-1, proof=replace(proof, kind="qbft")))


def test_a_later_set_vouches_for_what_was_before_it(proven: Signed, evidence: Evidence) -> None:
    found = proven.check(
        blocks=(signed_block(evidence.blocks[0], 2, NEW, NEW[1:]), *proven.evidence.blocks[1:])
    )
    assert found.validators == 2


def test_blocks_are_in_order_and_contracts_are_shown_after_the_newest(proven: Signed) -> None:
    blocks = proven.evidence.blocks
    with pytest.raises(MalformedProofError, match="not in order"):
        proven.check(blocks=(*blocks[:-2], blocks[-1], blocks[-2]))
    with pytest.raises(MalformedProofError, match="not in order"):
        proven.check(blocks=(*blocks, blocks[-1]))
    with pytest.raises(InclusionError):
        proven.check(blocks=blocks[:-2])


# The command.


def test_the_command_checks_a_file_with_nothing_but_the_network_file(
    scene: Scene, evidence: Evidence, tmp_path: Path
) -> None:
    network, path = tmp_path / "network.json", tmp_path / "release.evidence"
    scene.net.network.save(network)
    root = write_evidence(evidence, path)
    told = CliRunner().invoke(app, ["evidence", "check", str(path), "--network", str(network)])
    assert told.exit_code == 0, told.stderr
    assert f"cite as {root}" in told.stdout and "as the chain's endpoint says" in told.stdout
    answer = json.loads(
        CliRunner().invoke(app, ["evidence", "check", str(path), "--network", str(network), "--json"]).stdout
    )
    assert answer["root"] == str(root) and answer["validators_version"] is None
    assert answer["lineage"]["root"]["artifact_id"] == scene.release.hex()

    spoilt = bytearray(path.read_bytes())
    spoilt[-1] ^= 1
    path.write_bytes(spoilt)
    told = CliRunner().invoke(app, ["evidence", "check", str(path), "--network", str(network)])
    assert told.exit_code == BlockMismatchError.exit_code
    assert "BlockMismatchError" in told.stderr and not told.stdout
