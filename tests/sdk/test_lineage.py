"""Step 10: a walk from a release to its consents passes when all is true, and fails on any lie of the index."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from bundle_fixture import SCOPE
from lineage_fixture import Lie, Scene, Told
from usufruct import lineage as lineage_module
from usufruct.checked_events import CheckedEvents
from usufruct.cli import lineage_tree
from usufruct.cli.terminal import printable
from usufruct.content import Cid
from usufruct.errors import BlockMismatchError, MissingEventError, UnknownKernelError, VerificationError
from usufruct.lineage import Checked, Lineage, LineageNode, Step, lineage_of
from usufruct.records import ArtifactId, label


def test_an_honest_lineage_reaches_the_bundle_and_re_checks_everything(scene: Scene) -> None:
    found = scene.walk()
    kinds, node = [], found.root
    while True:
        kinds.append(node.kind)
        if not node.parents:
            break
        (node,) = node.parents
    assert kinds == ["RELEASE", "RESULT", "BUNDLE"]
    assert found.root.stale is False
    assert found.checked.series == 5, "bundle, job, grant, consent, the frozen result"
    assert [step.what for step in found.root.parents[0].steps][-1] == "ArtifactFrozen"
    assert found.checked.events > 15
    assert found.checked.contents > 5


def entry(answer: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(artifact for artifact in answer["artifacts"] if artifact["kind"] == kind)


def flipped(digest: str) -> str:
    return ("0" if digest[0] != "0" else "1") + digest[1:]


def told_as(answer: dict[str, Any], other: dict[str, Any]) -> None:
    """The whole of another lineage, under the id that was asked for."""
    told = json.loads(json.dumps(other).replace(other["root"], answer["root"]))
    answer.clear()
    answer.update(told)


LIES: dict[str, Callable[[Scene], Lie]] = {
    "artifact left out": lambda s: lambda a: a["artifacts"].remove(entry(a, "BUNDLE")),
    "edge left out": lambda s: lambda a: a["edges"].pop(),
    "edge made up": lambda s: lambda a: a["edges"].append([a["root"], entry(a, "BUNDLE")["artifact_id"]]),
    "circle": lambda s: lambda a: a["edges"].append([entry(a, "BUNDLE")["artifact_id"], a["root"]]),
    "no events": lambda s: lambda a: entry(a, "BUNDLE")["events"].clear(),
    "no job events": lambda s: lambda a: entry(a, "RELEASE")["job"]["events"].clear(),
    "no grant events": lambda s: lambda a: entry(a, "RELEASE")["grant"]["events"].clear(),
    "no consent events": lambda s: lambda a: entry(a, "RELEASE")["consent"]["events"].clear(),
    "first policy hidden": lambda s: lambda a: entry(a, "BUNDLE")["events"].pop(),
    "freeze of a result hidden": lambda s: lambda a: entry(a, "RESULT")["events"].clear(),
    "frozen result told as a bundle": lambda s: lambda a: entry(a, "RESULT").update(kind="BUNDLE"),
    "job behind a bundle": lambda s: (
        lambda a: entry(a, "BUNDLE").update(
            {key: entry(a, "RESULT")[key] for key in ("job", "consent", "policy")}
        )
    ),
    "events of another artifact": lambda s: (
        lambda a: entry(a, "RELEASE").update(events=entry(a, "BUNDLE")["events"])
    ),
    "content of a release": lambda s: (
        lambda a: entry(a, "RELEASE").update(content_digest=entry(s.other, "RELEASE")["content_digest"])
    ),
    "content of a result": lambda s: (
        lambda a: entry(a, "RESULT").update(content_digest=entry(s.other, "RESULT")["content_digest"])
    ),
    "steward of a result": lambda s: lambda a: entry(a, "RESULT").update(steward="south"),
    "another release": lambda s: (
        lambda a: entry(a, "RELEASE").update(
            {k: v for k, v in entry(s.other, "RELEASE").items() if k != "artifact_id"}
        )
    ),
    "another lineage": lambda s: lambda a: told_as(a, s.other),
    "job of another release": lambda s: (
        lambda a: entry(a, "RELEASE").update(job=entry(s.other, "RELEASE")["job"])
    ),
    "events of another job": lambda s: (
        lambda a: entry(a, "RELEASE")["job"].update(events=entry(s.other, "RELEASE")["job"]["events"])
    ),
    "kind": lambda s: lambda a: entry(a, "RELEASE").update(kind="RESULT"),
    "steward": lambda s: lambda a: entry(a, "BUNDLE").update(steward="south"),
    "content": lambda s: (
        lambda a: entry(a, "BUNDLE").update(content_digest=entry(a, "RESULT")["content_digest"])
    ),
    "policy of the bundle": lambda s: (
        lambda a: entry(a, "BUNDLE").update(policy_digest=flipped(entry(a, "BUNDLE")["policy_digest"]))
    ),
    "policy in force": lambda s: (
        lambda a: entry(a, "RELEASE")["policy"].update(
            digest=flipped(entry(a, "RELEASE")["policy"]["digest"])
        )
    ),
    "policy version": lambda s: lambda a: entry(a, "RELEASE")["policy"].update(version=1),
    "consent epoch": lambda s: lambda a: entry(a, "RELEASE")["consent"].update(epoch=2),
    "consent root": lambda s: lambda a: entry(a, "RELEASE")["consent"].update(consent_root="00" * 32),
    "consent status": lambda s: (
        lambda a: entry(a, "RELEASE")["consent"].update(status_digest=entry(a, "RELEASE")["policy"]["digest"])
    ),
    "consent scope": lambda s: lambda a: entry(a, "RELEASE")["consent"].update(scope="other"),
    "requester": lambda s: lambda a: entry(a, "RESULT")["job"].update(requester="south"),
    "parameters": lambda s: (
        lambda a: entry(a, "RESULT")["job"].update(parameters_digest=entry(a, "RESULT")["policy"]["digest"])
    ),
    "kernel": lambda s: lambda a: entry(a, "RELEASE")["job"].update(kernel="sum"),
    "level": lambda s: lambda a: entry(a, "RESULT")["job"].update(level="REPLICATED(9/9)"),
    "job without an end": lambda s: (
        lambda a: [e["job"].update(events=e["job"]["events"][:3]) for e in a["artifacts"] if "job" in e]
    ),
    "unknown contract": lambda s: lambda a: entry(a, "BUNDLE")["events"][0].update(contract="../../secret"),
    "unknown event": lambda s: lambda a: entry(a, "BUNDLE")["events"][0].update(name="BundleBlessed"),
    "another block": lambda s: lambda a: entry(a, "BUNDLE")["events"][0].update(block_number=1),
    "another place": lambda s: lambda a: entry(a, "BUNDLE")["events"][0].update(log_index=99),
    "malformed id": lambda s: lambda a: a["artifacts"][0].update(content_digest="zz"),
    "no artifacts": lambda s: lambda a: a.pop("artifacts"),
    "no edges": lambda s: lambda a: a.update(edges=None),
    "events of another kind": lambda s: lambda a: entry(a, "RELEASE").update(events=[1, 2]),
    "missing argument": lambda s: lambda a: entry(a, "BUNDLE")["events"][0]["args"].pop("steward"),
}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _retyped(answer: dict[str, Any]) -> None:
    for entry in answer["artifacts"]:
        if "policy" in entry:
            entry["policy"]["version"] = float(entry["policy"]["version"])


def _numbered(answer: dict[str, Any]) -> None:
    answer["artifacts"] += [dict(answer["artifacts"][0], artifact_id=n * (2**61 - 1)) for n in range(1, 9)]


@pytest.mark.parametrize("lie", [_retyped, _numbered])
def test_values_of_another_type_are_lies(scene: Scene, lie: Lie) -> None:
    with pytest.raises(VerificationError):
        scene.walk(lie)


def test_an_answer_nested_too_deeply_is_a_typed_error_or_none(scene: Scene) -> None:
    answer = copy.deepcopy(scene.told.answer)
    for entry in answer["artifacts"]:
        for part in (entry, entry.get("consent", {}), entry.get("grant", {})):
            for event in part.get("events", ()):
                event["more"] = nested(900)

    @dataclass
    class Deep(Told):
        def query(self, path: str) -> Any:
            return answer

    def walk(frames: int) -> None:
        if frames:
            walk(frames - 1)
            return
        with contextlib.suppress(VerificationError):
            lineage_of(CheckedEvents(scene.net.reader), Deep(answer, scene.told.blocks), scene.release)

    for frames in (0, 200, 400):
        walk(frames)


def test_what_the_index_adds_of_its_own_is_not_passed_on(scene: Scene) -> None:
    def lie(answer: dict[str, Any]) -> None:
        for entry in answer["artifacts"]:
            for part in (entry, *(entry[name] for name in ("job", "policy", "consent") if name in entry)):
                part["approved_by"] = "the regulator"

    told = json.dumps(scene.walk(lie).to_json())
    assert "approved_by" not in told
    assert "approved_by" not in repr(scene.walk(lie))
    assert told == json.dumps(scene.walk().to_json())


@pytest.mark.parametrize("lie", LIES)
def test_whatever_the_index_tells_otherwise_than_the_chain_is_found(scene: Scene, lie: str) -> None:
    with pytest.raises(VerificationError):
        scene.walk(LIES[lie](scene))


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_an_event_left_out_of_the_middle_is_named_as_missing(scene: Scene, gone: int) -> None:
    def lie(answer: dict[str, Any]) -> None:
        for artifact in answer["artifacts"]:
            if "job" in artifact:
                del artifact["job"]["events"][gone]

    with pytest.raises(MissingEventError, match=f"event {gone + 1}"):
        scene.walk(lie)


def test_any_content_with_one_byte_changed_is_found(scene: Scene) -> None:
    superseded = entry(scene.told.answer, "BUNDLE")["events"][0]["args"]["registration"]["policyDigest"][2:]
    others = entry(scene.other, "RELEASE")["content_digest"], entry(scene.other, "RESULT")["content_digest"]
    walked = [cid for cid in scene.told.blocks if cid.digest.hex() not in (superseded, *others)]
    assert len(walked) >= 7
    for cid in walked:
        data = scene.told.blocks[cid]
        forged = scene.told.blocks | {cid: data[:-1] + bytes([data[-1] ^ 1])}
        with pytest.raises(BlockMismatchError):
            lineage_of(CheckedEvents(scene.net.reader), Told(scene.told.answer, forged), scene.release)


def test_a_walk_does_not_visit_an_artifact_twice(scene: Scene) -> None:
    seen: list[str] = []
    lineage_of(CheckedEvents(scene.net.reader), scene.told, scene.release, progress=seen.append)
    assert len(seen) == len(set(seen)) == 3


def test_a_hidden_freeze_is_named_as_missing(scene: Scene) -> None:
    with pytest.raises(MissingEventError, match="1 events on the chain, the index shows 0"):
        scene.walk(LIES["freeze of a result hidden"](scene))


def test_a_kernel_that_this_package_does_not_have_is_shown_by_its_id(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(kernel_id: bytes) -> None:
        raise UnknownKernelError("no such kernel")

    def by_id(answer: dict[str, Any]) -> None:
        for artifact in answer["artifacts"]:
            if "job" in artifact:
                artifact["job"]["kernel"] = kernel_id

    kernel_id = entry(scene.told.answer, "RELEASE")["job"]["events"][0]["args"]["request"]["kernelId"][2:]
    monkeypatch.setattr(lineage_module, "kernel_by_id", unknown)
    with pytest.raises(VerificationError, match="kernel"):
        scene.walk()
    assert scene.walk(by_id).root.job["kernel"] == kernel_id


def made_up(number: int, parents: tuple[LineageNode, ...] = (), **changes: Any) -> LineageNode:
    usual = {
        "artifact_id": ArtifactId(number.to_bytes(2, "big") + bytes(30)),
        "kind": "BUNDLE",
        "steward": "north",
        "content": Cid.of(b"x"),
        "stale": None,
        "job": None,
        "consent": {},
        "policy": {},
        "steps": (),
        "parents": parents,
    }
    return LineageNode(**(usual | changes))


@pytest.fixture
def ladder() -> LineageNode:
    """Sixty layers of two bundles, each derived from both bundles below: 2^60 ways down."""
    layer = (made_up(0), made_up(1))
    for number in range(2, 120, 2):
        layer = (made_up(number, layer), made_up(number + 1, layer))
    return layer[0]


def shown(root: LineageNode, width: int = 1000) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(lineage_tree(root))
    return console.file.getvalue()


@pytest.mark.timeout(10)
def test_a_bundle_that_many_others_rest_on_is_json_once_in_full(ladder: LineageNode) -> None:
    found: list[dict[str, Any]] = []

    def walk(told: dict[str, Any]) -> None:
        found.append(told)
        for parent in told.get("parents", ()):
            walk(parent)

    walk(Lineage(root=ladder, checked=Checked()).to_json()["root"])
    in_full = [told["artifact_id"] for told in found if "repeated" not in told]
    again = [told for told in found if "repeated" in told]
    assert len(in_full) == len(set(in_full)) == 119
    assert all(told == {"artifact_id": told["artifact_id"], "repeated": True} for told in again)
    assert {told["artifact_id"] for told in again} < set(in_full)
    assert len(found) == 1 + 2 * 2 * 59 - 2, "every edge of a bundle told in full, and the root"


@pytest.mark.timeout(10)
def test_a_bundle_that_many_others_rest_on_is_shown_once_in_full(ladder: LineageNode) -> None:
    lines = shown(ladder).splitlines()
    assert sum("by north" in line for line in lines) == 119
    assert sum(line.endswith(" as above") for line in lines) == 116
    shown(ladder, width=80)


def test_nothing_told_in_a_lineage_is_markup_or_steers_the_terminal() -> None:
    evil = "[/x]:skull:\x1b[2J"
    job = {"job_id": evil, "kernel": evil, "requester": evil, "level": evil}
    policy = {"version": evil, "digest": evil}
    consent = {"epoch": evil, "steward": evil, "scope": evil, "consent_root": evil}
    step = Step(what=evil, detail=evil, block_number=1, transaction_hash=evil)
    node = made_up(
        0, kind=evil, steward=evil, stale=True, job=job, policy=policy, consent=consent, steps=(step,)
    )
    text = shown(node)
    assert "\x1b" not in text
    assert text.count(printable(evil)) == 14, "every field but the kind, which is shown in small letters"


def test_a_withdrawal_that_the_index_hides_is_missed_at_the_end_of_its_series(scene: Scene) -> None:
    """Last in this file: it moves the consent series on, and the scene's answers are of before."""
    assert scene.walk().root.stale is False
    scene.net.epoch("north", label(SCOPE))
    with pytest.raises(MissingEventError, match="2 events on the chain, the index shows 1"):
        scene.walk()
