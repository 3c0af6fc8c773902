"""Who holds copies: the choice is the same everywhere, moves little, and takes nobody that may not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from usufruct.errors import InputError
from usufruct.records import ArtifactId, MemberStatus, Participant, Role, org_id
from usufruct.replication import MAX_COPIES, Replication

BUNDLE = ArtifactId(b"\x01" * 32)


def member(name: str, roles: Role = Role.VERIFIER, status: MemberStatus = MemberStatus.ACTIVE) -> Participant:
    return Participant(
        id=org_id(name),
        account="",
        node_account="",
        roles=roles,
        status=status,
        hpke_key=b"",
        peer_id=b"",
        endpoint="",
    )


STEWARD = member("north", Role.STEWARD)
OTHERS = [member(f"member-{number}") for number in range(12)]
ALL = [STEWARD, *OTHERS]


def test_the_choice_does_not_depend_on_the_order_of_the_registry() -> None:
    wish = Replication(copies=4)
    chosen = wish.choose(BUNDLE, STEWARD.id, ALL)
    assert len(chosen) == 3 and STEWARD.id not in chosen
    assert wish.choose(BUNDLE, STEWARD.id, reversed(ALL)) == chosen


def test_one_copy_stays_at_home() -> None:
    assert Replication().choose(BUNDLE, STEWARD.id, ALL) == ()


def test_a_holder_that_goes_is_replaced_by_one_and_nothing_else_moves() -> None:
    wish = Replication(copies=4)
    chosen = wish.choose(BUNDLE, STEWARD.id, ALL)
    for gone in chosen:
        suspended = [replace(m, status=MemberStatus.SUSPENDED) if m.id == gone else m for m in ALL]
        for after in (
            wish.choose(BUNDLE, STEWARD.id, suspended),
            wish.choose(BUNDLE, STEWARD.id, ALL, left_out={gone}),
        ):
            assert set(chosen) - set(after) == {gone}
            assert len(after) == 3


def test_a_newcomer_takes_over_from_at_most_one_holder_of_each_bundle() -> None:
    wish, grown = Replication(copies=3), [*ALL, member("newcomer")]
    moved = 0
    for number in range(200):
        bundle = ArtifactId(number.to_bytes(32, "big"))
        lost = set(wish.choose(bundle, STEWARD.id, ALL)) - set(wish.choose(bundle, STEWARD.id, grown))
        assert len(lost) <= 1
        moved += len(lost)
    assert 0 < moved < 100


def test_bundles_spread_over_the_members() -> None:
    wish = Replication(copies=2)
    load = Counter(
        wish.choose(ArtifactId(number.to_bytes(32, "big")), STEWARD.id, ALL)[0] for number in range(1200)
    )
    assert set(load) == {m.id for m in OTHERS}
    assert max(load.values()) < 2 * min(load.values())


def test_a_steward_that_is_no_active_member_is_replaced_too() -> None:
    for status in (MemberStatus.SUSPENDED, MemberStatus.REMOVED):
        members = [replace(STEWARD, status=status), *OTHERS]
        assert len(Replication(copies=3).choose(BUNDLE, STEWARD.id, members)) == 3


def test_partners_hold_nothing_unless_named() -> None:
    partner = member("university", Role.PARTNER | Role.VERIFIER | Role.STEWARD)
    plain = member("guest", Role.PARTNER)
    anybody, named = Replication(copies=2), Replication(copies=2, holders=("university",))
    assert not anybody.may_hold(partner, STEWARD.id) and not anybody.may_hold(plain, STEWARD.id)
    assert named.may_hold(partner, STEWARD.id) and not named.may_hold(OTHERS[0], STEWARD.id)
    assert named.choose(BUNDLE, STEWARD.id, [*ALL, partner]) == (partner.id,)


def test_named_holders_that_are_not_active_are_not_replaced_by_others() -> None:
    named = Replication(copies=2, holders=("member-0",))
    members = [replace(m, status=MemberStatus.REMOVED) if m.name == "member-0" else m for m in ALL]
    assert named.choose(BUNDLE, STEWARD.id, members) == ()


@pytest.mark.parametrize(
    "wish",
    [
        {"copies": 0},
        {"copies": MAX_COPIES + 1},
        {"copies": True},
        {"copies": 3, "holders": ("one",)},
        {"copies": 2, "holders": ("one", "one")},
        {"copies": 1, "holders": ("one",)},
        {"copies": 2, "holders": ("Not A Label",)},
        {"copies": 2, "holders": tuple(f"m-{n}" for n in range(65))},
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(wish: dict) -> None:
    with pytest.raises(InputError):
        Replication(**wish)
