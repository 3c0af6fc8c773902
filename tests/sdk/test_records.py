"""Records against the contracts' ABIs and sources: same fields, same order, same members; labels there and back."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usufruct import records
from usufruct.errors import InputError
from usufruct.ledger.compile import CONTRACTS, load_artifact, load_standard_input
from usufruct.records import label, org_id, unlabel

RECORD_OF = {
    "Participant": records.Participant,
    "KeyDomain": records.KeyDomain,
    "Artifact": records.Artifact,
    "BundleRegistration": records.BundleRegistration,
    "ConsentEpoch": records.ConsentEpoch,
    "GrantTerms": records.GrantTerms,
    "Grant": records.UsageGrant,
    "Account": records.BudgetAccount,
    "JobRequest": records.JobRequest,
    "Progress": records.JobProgress,
    "SignedVerdict": records.SignedVerdict,
    "Commitments": records.Commitments,
    "Opening": records.Opening,
    "Limits": records.GrantLimits,
    "Timings": records.Timings,
    "Rule": records.ReputationRule,
    "SeriesEvent": records.SeriesEvent,
}
ENUM_OF = {
    "Refusal": records.Refusal,
    "Level": records.Level,
    "Status": records.MemberStatus,
    "KeyStatus": records.KeyStatus,
    "ArtifactKind": records.ArtifactKind,
    "FreezeState": records.FreezeState,
    "GrantStatus": records.GrantStatus,
    "ProposalStatus": records.ProposalStatus,
    "JobState": records.JobState,
    "Fault": records.Fault,
}


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def structs_of_abi() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every struct that a function, event or error of the contracts carries, with its components."""

    def walk(entry: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        if entry["type"].startswith("tuple"):
            yield (
                entry["internalType"].removesuffix("[]").removeprefix("struct ").split(".")[-1],
                entry["components"],
            )
        for component in entry.get("components", ()):
            yield from walk(component)

    for contract in CONTRACTS:
        for entry in load_artifact(contract).abi:
            for item in [*entry.get("inputs", ()), *entry.get("outputs", ())]:
                yield from walk(item)


def sources() -> str:
    return "\n".join(
        unit["content"]
        for name, unit in load_standard_input()["sources"].items()
        if "openzeppelin" not in name.lower()
    )


def solidity_enums() -> dict[str, list[str]]:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", sources(), flags=re.DOTALL)
    return {
        name: [member.strip() for member in body.split(",") if member.strip()]
        for name, body in re.findall(r"\benum\s+(\w+)\s*\{([^}]*)\}", text)
    }


def wire_type(hint: Any) -> str:
    """ABI type that a field's annotation stands for, as far as the annotation says."""
    hint = getattr(hint, "__supertype__", hint)
    if typing.get_origin(hint) is tuple:
        return wire_type(typing.get_args(hint)[0]) + "[]"
    if dataclasses.is_dataclass(hint):
        return "tuple"
    if issubclass(hint, bool):
        return "bool"
    return {bytes: "bytes", str: "text"}.get(hint, "uint")


def matches(kind: str, expected: str) -> bool:
    if expected == "text":
        return kind in ("address", "string")
    if expected == "bytes[]":
        return kind == "bytes32[]"
    return kind.startswith(expected)


def test_every_struct_of_the_abi_is_a_record_with_the_same_fields_in_the_same_order() -> None:
    seen = set()
    for name, components in structs_of_abi():
        record = RECORD_OF[name]
        fields = [field.name for field in dataclasses.fields(record)]
        assert fields == [snake(component["name"]) for component in components], name
        hints = typing.get_type_hints(record)
        for component in components:
            expected = wire_type(hints[snake(component["name"])])
            assert matches(component["type"], expected), (name, component["name"])
        seen.add(name)
    assert seen == set(RECORD_OF)


def test_every_struct_field_with_an_enum_has_that_enum_in_its_record() -> None:
    for name, components in structs_of_abi():
        hints = typing.get_type_hints(RECORD_OF[name])
        for component in components:
            kind, _, enum = component["internalType"].rpartition(" ")
            if kind == "enum":
                assert hints[snake(component["name"])] is ENUM_OF[enum.split(".")[-1]], (
                    name,
                    component["name"],
                )


def test_every_enum_of_the_sources_has_the_same_members_in_the_same_order() -> None:
    found = solidity_enums()
    assert found.keys() == ENUM_OF.keys()
    for name, members in found.items():
        mirrored: type[IntEnum] = ENUM_OF[name]
        assert [snake(member).upper() for member in members] == [member.name for member in mirrored], name
        assert [int(member) for member in mirrored] == list(range(len(members))), name


def test_enums_in_event_arguments_are_known() -> None:
    for contract in CONTRACTS:
        for entry in load_artifact(contract).abi:
            for item in entry.get("inputs", ()):
                kind, _, enum = item["internalType"].rpartition(" ")
                assert kind != "enum" or enum.split(".")[-1] in ENUM_OF, (contract, entry.get("name"))


def test_role_bits_are_those_of_the_registry() -> None:
    constants = dict(re.findall(r"uint16 constant ROLE_(\w+) = (\d+);", sources()))
    assert {role.name: str(int(role)) for role in records.Role if role} == constants


def test_final_states_are_those_that_the_job_ledger_enters_without_a_deadline() -> None:
    endings = re.findall(r"_end\(([^;]*)\);", sources()) + re.findall(r"_enter\(([^;]*), 0\);", sources())
    ends = {name for call in endings for name in re.findall(r"JobState\.(\w+)", call)}
    assert len(ends) > 3
    assert {snake(end).upper() for end in ends} == {state.name for state in records.FINAL_JOB_STATES}


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)


@given(LABELS)
def test_a_label_comes_back_from_its_word(text: str) -> None:
    word = label(text)
    assert len(word) == 32
    assert unlabel(word) == text
    assert org_id(text) == word


@given(st.text(max_size=40))
def test_any_text_is_either_a_label_or_refused_as_one(text: str) -> None:
    try:
        word = label(text)
    except InputError:
        assert not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", text)
    else:
        assert unlabel(word) == text


@given(st.binary(min_size=32, max_size=32))
def test_any_word_is_shown_as_a_label_or_as_hex_and_no_two_words_look_alike(word: bytes) -> None:
    shown = unlabel(word)
    assert shown == "0x" + word.hex() or label(shown) == word


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "a-",
        "-a",
        "A",
        "clinic north",
        "a" * 33,
        "a\0",
        "ä",
        "а",
        "١٢",
        "²",
        "../x",
        "a.b",
        "a_b",
        "0x ",
        "\ud800",
    ],
)
def test_hostile_labels_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        label(text)


@pytest.mark.parametrize(
    "word", [b"", bytes(32), b"a\0b" + bytes(29), b"\xff" * 32, b"A" + bytes(31), b"-" + bytes(31)]
)
def test_words_that_are_no_label_are_shown_as_hex(word: bytes) -> None:
    assert unlabel(word) == "0x" + word.hex()
