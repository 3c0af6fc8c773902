"""The words that a recovery writes, against the compiler's layout and against what the registry itself writes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import solcx
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_fixture import CAST, Consortium, until
from usufruct.errors import InputError, LedgerError, TransactionRevertedError
from usufruct.ledger import recovery
from usufruct.ledger.code import check_counts
from usufruct.ledger.compile import SOLC_SHIM, load_standard_input
from usufruct.ledger.recovery import recovery_upgrade, suspension_storage
from usufruct.ledger.subnet_evm import TRANSACTION_ALLOW_LIST
from usufruct.records import MemberStatus, OrgId, Participant, Role, org_id
from usufruct_node.chain import find_anvil

NODE_MODULES = Path(__file__).resolve().parents[2] / "node_modules"
LOST = ("north", "south", "compute")
LEFT = ("auditor", "university")


def test_the_registry_lies_in_storage_where_recovery_writes(tmp_path: Path) -> None:
    solc = tmp_path / "solc"
    node = Path(sys.executable).parent / "node"
    solc.write_text(f"#!/bin/sh\nUSUFRUCT_SOLC_MODULES='{NODE_MODULES}' exec '{node}' '{SOLC_SHIM}' \"$@\"\n")
    solc.chmod(0o700)
    given = load_standard_input()
    unit = "contracts/ParticipantRegistry.sol"
    given["settings"]["outputSelection"] = {unit: {"ParticipantRegistry": ["storageLayout"]}}
    output = solcx.compile_standard(given, solc_binary=solc)
    layout = output["contracts"][unit]["ParticipantRegistry"]["storageLayout"]
    slots = {entry["label"]: (int(entry["slot"]), entry["offset"]) for entry in layout["storage"]}
    assert slots["_members"] == (recovery.MEMBERS_SLOT, 0)
    assert slots["_activeWithRole"] == (recovery.ACTIVE_WITH_ROLE_SLOT, 0)
    assert slots["_active"] == (recovery.ACTIVE_SLOT, 0)
    (struct,) = (t for name, t in layout["types"].items() if name.startswith("t_struct(Member)"))
    words = {member["label"]: (int(member["slot"]), member["offset"] * 8) for member in struct["members"]}
    assert words["nodeAccount"] == (recovery.NODE_ACCOUNT_WORD, 0)
    assert words["roles"] == (recovery.NODE_ACCOUNT_WORD, recovery.ROLES_SHIFT)
    assert words["status"] == (recovery.NODE_ACCOUNT_WORD, recovery.STATUS_SHIFT)
    assert words["number"] == (recovery.NODE_ACCOUNT_WORD, recovery.NUMBER_SHIFT)
    assert [label for label, (slot, _) in words.items() if slot == recovery.NODE_ACCOUNT_WORD] == [
        "nodeAccount",
        "roles",
        "status",
        "number",
    ]


@pytest.fixture(scope="module")
def consortium(chain_url: str) -> Consortium:
    return Consortium(chain_url)


@pytest.fixture
def bare_chain_url() -> Iterator[str]:
    """An Anvil that also takes what the embedded chain hides from its clients: writing to storage."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(find_anvil()), "--port", str(port), "--silent", "--accounts", "1", "--hardfork", "cancun"]
    command += [
        "--block-time",
        "0.1",
        "--slots-in-an-epoch",
        "1",
        "--disable-min-priority-fee",
        "--order",
        "fifo",
    ]
    anvil = subprocess.Popen([*command, "--block-base-fee-per-gas", "0", "--gas-price", "0"])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        anvil.terminate()
        anvil.wait()


def words_of(consortium: Consortium, slots: dict[int, int]) -> dict[int, int]:
    endpoint = consortium.reader.endpoint
    registry = consortium.network.contracts["ParticipantRegistry"]
    answers = endpoint.batch([("eth_getStorageAt", (registry, hex(slot), "latest")) for slot in slots])
    return {slot: int(answer, 16) for slot, answer in zip(slots, answers, strict=True)}


def test_recovery_writes_what_the_registry_itself_writes_when_members_are_suspended_by_vote(
    consortium: Consortium,
) -> None:
    consortium.join("former", Role.PARTNER | Role.AUDITOR)
    consortium.govern("ParticipantRegistry", "setStatus", org_id("former"), MemberStatus.REMOVED)
    suspend = {org_id("south"), org_id("auditor")}
    words = suspension_storage(consortium.reader.participants(), suspend)
    assert words_of(consortium, words) != words
    for org in suspend:
        consortium.govern("ParticipantRegistry", "setStatus", org, MemberStatus.SUSPENDED)
    assert words_of(consortium, words) == words


def test_members_who_are_left_after_a_recovery_decide_again_and_every_index_learns_of_it(
    bare_chain_url: str,
) -> None:
    consortium = Consortium(bare_chain_url)
    reader, left = consortium.reader, [consortium[name] for name in LEFT]
    target, data = reader.call_data("JobLedger", "setQuorum", 1)

    def attempt() -> None:
        receipt = left[0].ledger.transact("MemberCouncil", "propose", target, data)
        number = left[0].ledger.event_of(receipt, "ProposalMade").args["proposalId"]
        left[1].ledger.transact("MemberCouncil", "vote", number, True)
        left[0].ledger.transact("MemberCouncil", "execute", number)

    with pytest.raises(TransactionRevertedError, match="QuorumNotReached"):
        attempt()
    lost = {org_id(name) for name in LOST}
    registry = reader.network.contracts["ParticipantRegistry"]
    for slot, word in suspension_storage(reader.participants(), lost).items():
        reader.endpoint.call("anvil_setStorageAt", registry, f"0x{slot:064x}", f"0x{word:064x}")
    attempt()
    assert reader.read("JobLedger", "quorum") == (1,)
    with pytest.raises(TransactionRevertedError, match="NotActive"):
        consortium["north"].ledger.transact("MemberCouncil", "propose", target, data)
    assert reader.read("ParticipantRegistry", "activeCount") == (len(LEFT),)
    for role in Role:
        holders = sum(role in CAST[name] for name in LEFT)
        assert reader.read("ParticipantRegistry", "activeCountWithRole", role) == (holders,)

    before = reader.finalised().number
    for name in LOST:
        consortium.govern("ParticipantRegistry", "setStatus", org_id(name), MemberStatus.SUSPENDED)
    told = [
        e
        for e in reader.events(before + 1, reader.finalised().number)
        if e.name == "ParticipantStatusChanged"
    ]
    assert [(e.args["id"], e.args["status"]) for e in told] == [
        (org_id(name), MemberStatus.SUSPENDED) for name in LOST
    ]
    assert reader.read("ParticipantRegistry", "activeCount") == (len(LEFT),)


def test_counts_that_a_recovery_wrote_out_of_date_are_found(bare_chain_url: str) -> None:
    """The file was made, then a member was suspended, then the file was applied."""
    consortium = Consortium(bare_chain_url)
    reader, lost = consortium.reader, {org_id("north")}
    words = suspension_storage(reader.participants(), lost)
    check_counts(reader)
    consortium.govern("ParticipantRegistry", "setStatus", org_id("compute"), MemberStatus.SUSPENDED)
    check_counts(reader)
    registry = reader.network.contracts["ParticipantRegistry"]

    def write(words: dict[int, int]) -> None:
        for slot, word in words.items():
            reader.endpoint.call("anvil_setStorageAt", registry, f"0x{slot:064x}", f"0x{word:064x}")
        newest = reader.endpoint.quantity("eth_blockNumber")
        until(lambda: reader.finalised().number > newest)

    write(words)
    with pytest.raises(LedgerError, match="counts 4 active members, but 3 are"):
        check_counts(reader)
    write({recovery.ACTIVE_SLOT: 3})
    with pytest.raises(LedgerError, match="counts 1 active members with the role COMPUTE, but 0 are"):
        check_counts(reader)
    write(suspension_storage([*before_it(reader.participants(), lost)], lost))
    check_counts(reader)


def before_it(members: list[Participant], lost: set[OrgId]) -> Iterator[Participant]:
    """The members as they were before some were suspended."""
    for member in members:
        yield replace(member, status=MemberStatus.ACTIVE) if member.id in lost else member


# The file, without a chain.


def member(name: str, status: MemberStatus = MemberStatus.ACTIVE, roles: Role = Role.STEWARD) -> Participant:
    number = int.from_bytes(name.encode(), "big")
    return Participant(
        id=org_id(name),
        account=f"0x{2 * number:040x}",
        node_account=f"0x{2 * number + 1:040x}",
        roles=roles,
        status=status,
        hpke_key=bytes(32),
        peer_id=name.encode(),
        endpoint="",
    )


MEMBERS = [member("a"), member("b"), member("c"), member("d", MemberStatus.REMOVED)]


@given(
    st.lists(
        st.tuples(st.sampled_from([s for s in MemberStatus if s]), st.integers(1, 63).map(Role)),
        min_size=2,
        max_size=12,
    ),
    st.data(),
)
@settings(max_examples=50, deadline=None)
def test_counts_are_those_of_the_members_left(
    drawn: list[tuple[MemberStatus, Role]], data: st.DataObject
) -> None:
    members = [member(f"m{i}", status, roles) for i, (status, roles) in enumerate(drawn)]
    active = [m.id for m in members if m.status is MemberStatus.ACTIVE]
    suspend = (
        data.draw(st.sets(st.sampled_from(active), max_size=max(0, len(active) - 1))) if active else set()
    )
    if not suspend:
        with pytest.raises(InputError):
            suspension_storage(members, suspend)
        return
    words = suspension_storage(members, suspend)
    after = [replace(m, status=MemberStatus.SUSPENDED) if m.id in suspend else m for m in members]
    left = [m for m in after if m.status is MemberStatus.ACTIVE]
    assert words[recovery.ACTIVE_SLOT] == len(left) > 0
    assert len(words) == 1 + len(Role) + len(suspend)
    rest = [word >> recovery.STATUS_SHIFT for word in words.values() if word >> recovery.ROLES_SHIFT]
    numbers = [number for number, member in enumerate(members, start=1) if member.id in suspend]
    assert rest == [MemberStatus.SUSPENDED | number << 8 for number in numbers]


@pytest.mark.parametrize(
    "suspend",
    [set(), {org_id("a"), org_id("b"), org_id("c")}, {org_id("d")}, {org_id("a"), org_id("stranger")}],
    ids=["nobody", "everybody", "one that is removed already", "one that never was a member"],
)
def test_a_recovery_that_makes_no_sense_is_refused(suspend: set[OrgId]) -> None:
    with pytest.raises(InputError):
        suspension_storage(MEMBERS, suspend)


def test_the_upgrade_file_takes_members_off_the_chains_list_and_keeps_what_was_applied(
    consortium: Consortium,
) -> None:
    network = consortium.network.model_copy(update={"profile": "subnet-evm"})
    first = recovery_upgrade(network, MEMBERS, {org_id("a")}, activation=1000)
    (upgrade,) = first["stateUpgrades"]
    assert upgrade["blockTimestamp"] == 1000
    listed = upgrade["accounts"][TRANSACTION_ALLOW_LIST]["storage"]
    assert listed == {"0x" + address[2:].rjust(64, "0"): "0x" + "00" * 32 for address in accounts_of("a")}
    written = upgrade["accounts"][network.contracts["ParticipantRegistry"]]["storage"]
    assert {int(k, 16): int(v, 16) for k, v in written.items()} == suspension_storage(MEMBERS, {org_id("a")})

    earlier = {"precompileUpgrades": [{"x": 1}], **first}
    second = recovery_upgrade(network, MEMBERS, {org_id("b")}, activation=1001, earlier=earlier)
    assert second["precompileUpgrades"] == earlier["precompileUpgrades"]
    assert second["stateUpgrades"][0] == upgrade
    assert [u["blockTimestamp"] for u in second["stateUpgrades"]] == [1000, 1001]
    assert len(first["stateUpgrades"]) == 1
    with pytest.raises(InputError, match="does not follow"):
        recovery_upgrade(network, MEMBERS, {org_id("b")}, activation=1000, earlier=earlier)


def accounts_of(name: str) -> tuple[str, str]:
    return member(name).account, member(name).node_account


def test_a_chain_without_upgrade_files_is_told_so(consortium: Consortium) -> None:
    with pytest.raises(InputError, match="no upgrade file"):
        recovery_upgrade(consortium.network, MEMBERS, {org_id("a")}, activation=1)
