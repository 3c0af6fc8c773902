"""Omission shows: whoever drops, repeats, swaps or alters one event of a series is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain_fixture import Consortium, word
from usufruct.errors import MissingEventError
from usufruct.ledger.series import check_series, event_codec, next_head, series_of
from usufruct.records import LedgerEvent, label

SCOPE = label("series-study")


@pytest.fixture(scope="module")
def events(consortium: Consortium) -> list[LedgerEvent]:
    for cohort in (10, 20, 50, 100):
        consortium.epoch("north", SCOPE, cohort=cohort)
    return [e for e in consortium.events(["ConsentEpochAnchored"]) if e.args["scope"] == SCOPE]


def altered(event: LedgerEvent, **changes: object) -> LedgerEvent:
    return replace(event, args=event.args | changes)


def test_a_whole_series_passes_and_its_head_is_the_last_events(events: list[LedgerEvent]) -> None:
    assert len(events) == 4
    assert check_series(events) == events[-1].args["head"]
    assert check_series(events, final_head=events[-1].args["head"])
    assert check_series([]) == bytes(32)


@pytest.mark.parametrize("gone", range(3))
def test_a_missing_event_is_found(events: list[LedgerEvent], gone: int) -> None:
    with pytest.raises(MissingEventError, match=f"event {gone + 1} of the series is missing"):
        check_series(events[:gone] + events[gone + 1 :])


def test_a_missing_last_event_is_found_when_the_final_head_is_known(events: list[LedgerEvent]) -> None:
    check_series(events[:-1])
    with pytest.raises(MissingEventError, match="goes on"):
        check_series(events[:-1], final_head=events[-1].args["head"])
    with pytest.raises(MissingEventError, match="goes on"):
        check_series([], final_head=events[-1].args["head"])


def test_a_repeated_or_reordered_event_is_found(events: list[LedgerEvent]) -> None:
    for forged in (
        [events[0], *events],
        [*events, events[-1]],
        [events[1], events[0], *events[2:]],
        list(reversed(events)),
    ):
        with pytest.raises(MissingEventError):
            check_series(forged)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cohortFloor", 200),
        ("epoch", 9),
        ("consentRoot", bytes(32)),
        ("statusDigest", bytes(32)),
        ("steward", bytes(32)),
        ("scope", bytes(32)),
        ("head", bytes(32)),
        ("sequence", 3),
    ],
)
def test_an_altered_event_is_found(events: list[LedgerEvent], field: str, value: object) -> None:
    forged = [events[0], altered(events[1], **{field: value}), *events[2:]]
    with pytest.raises(MissingEventError):
        check_series(forged)


def test_an_event_made_up_with_a_fitting_hash_breaks_those_after_it(events: list[LedgerEvent]) -> None:
    made_up = altered(events[1], cohortFloor=500)
    codec = event_codec("ConsentRegistry", "ConsentEpochAnchored")
    made_up = altered(made_up, head=next_head(events[0].args["head"], codec, made_up.args))
    check_series([events[0], made_up])
    with pytest.raises(MissingEventError, match="number 3"):
        check_series([events[0], made_up, *events[2:]])


def test_an_event_of_another_series_does_not_fit(consortium: Consortium, events: list[LedgerEvent]) -> None:
    other = label("other-study")
    for _ in range(2):
        consortium.epoch("north", other)
    foreign = [e for e in consortium.events(["ConsentEpochAnchored"]) if e.args["scope"] == other]
    assert series_of(foreign[0]) != series_of(events[0])
    with pytest.raises(MissingEventError):
        check_series([events[0], foreign[1], *events[2:]])


def test_events_outside_any_series_have_no_key(consortium: Consortium) -> None:
    admitted = consortium.events(["ParticipantAdmitted"])[0]
    assert series_of(admitted) is None
    assert not event_codec("ParticipantRegistry", "ParticipantAdmitted").in_series
    with pytest.raises(MissingEventError, match="not bytes"):
        series_of(
            replace(consortium.events(["ConsentEpochAnchored"])[0], args={"steward": "x", "scope": word()})
        )
