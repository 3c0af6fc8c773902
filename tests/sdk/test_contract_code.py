"""The shipped contract code is what `contracts/` compiles to, and what `deploy` puts on a real chain."""

from __future__ import annotations

import copy
import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_fixture import Organisation
from usufruct.errors import (
    CompilationError,
    ConfigurationError,
    LedgerError,
    TransactionRevertedError,
    WrongContractCodeError,
)
from usufruct.ledger.abi import load_abi
from usufruct.ledger.compile import (
    CONTRACTS,
    Artifact,
    compare_runtime,
    identify_runtime,
    immutable_values,
    load_artifact,
    load_standard_input,
    recompile,
)
from usufruct.ledger.deploy import (
    DEPLOYMENT_ORDER,
    ChainLevel,
    contract_address,
    contract_name_word,
    deploy,
)
from usufruct.ledger.endpoint import Endpoint
from usufruct.ledger.genesis import CREATION_GAS, found_network
from usufruct.ledger.permissions import LISTS
from usufruct.ledger.subnet_evm import (
    DEPLOYER_ALLOW_LIST,
    NATIVE_MINTER,
    TRANSACTION_ALLOW_LIST,
    AllowListRole,
    set_role_call,
)
from usufruct.records import ReputationRule, Role, Timings

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / "node_modules"
NODE = Path(sys.executable).parent / "node"
FOUNDERS = [
    (
        name.encode().ljust(32, b"\0"),
        f"0x{2 * i + 1:040x}",
        f"0x{2 * i + 2:040x}",
        63,
        0,
        bytes(32),
        name.encode(),
        "",
    )
    for i, name in enumerate(["clinic-north", "clinic-south", "auditor"], start=1)
]
PARAMETERS = b"\2" * 32


class Anvil:
    """A bare Anvil that mines every transaction at once, and the little JSON-RPC that these tests need."""

    def __init__(self) -> None:
        binary = next(NODE_MODULES.glob("@foundry-rs/anvil-*/bin/anvil"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [binary, "--port", str(port), "--hardfork", "cancun", "--silent", "--accounts", "1"]
        self._process = subprocess.Popen([*command, "--block-base-fee-per-gas", "0", "--gas-price", "0"])
        deadline = time.monotonic() + 20
        while True:
            try:
                self.account = self.call("eth_accounts")[0]
                return
            except OSError:
                if time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.05)

    def call(self, method: str, *params: object) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer["result"]

    def transact(self, to: str | None, data: bytes) -> Mined:
        transaction = {"from": self.account, "data": "0x" + data.hex(), "gas": hex(15_000_000)}
        digest = self.call("eth_sendTransaction", transaction | ({"to": to} if to else {}))
        while (receipt := self.call("eth_getTransactionReceipt", digest)) is None:
            time.sleep(0.01)
        if receipt["status"] != "0x1":
            raise RuntimeError(f"transaction to {to} reverted")
        return Mined(receipt["contractAddress"])

    def code(self, address: str) -> bytes:
        return bytes.fromhex(self.call("eth_getCode", address, "latest")[2:])

    def view(
        self, contracts: dict[str, str], name: str, function: str, *arguments: object
    ) -> tuple[Any, ...]:
        codec = load_abi(name).functions[function]
        data = "0x" + codec.encode(arguments).hex()
        return codec.decode(
            bytes.fromhex(self.call("eth_call", {"to": contracts[name], "data": data}, "latest")[2:])
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass
class Mined:
    contract_address: str | None


def deploy_on(chain: Anvil, level: ChainLevel | None = None) -> dict[str, str]:
    return deploy(
        transact=chain.transact,
        deployer=chain.account,
        founders=FOUNDERS,
        parameters=[(PARAMETERS, 128)],
        timings=Timings(claim=1, compute=2, commit=3, reveal=4, dispute=5, release=6),
        reputation=ReputationRule(limit=9),
        quorum=2,
        voting_period=60,
        quorum_bps=5000,
        chain=level,
    )


@pytest.fixture(scope="module")
def chain() -> Iterator[Anvil]:
    anvil = Anvil()
    yield anvil
    anvil.stop()


@pytest.fixture(scope="module")
def contracts(chain: Anvil) -> dict[str, str]:
    return deploy_on(chain)


@pytest.fixture(scope="module")
def recompiled() -> dict[str, Artifact]:
    return recompile(load_standard_input(), node=NODE, node_modules=NODE_MODULES)


def test_shipped_artifacts_are_what_the_shipped_sources_compile_to(recompiled: dict[str, Artifact]) -> None:
    assert set(recompiled) == set(CONTRACTS)
    for name in CONTRACTS:
        assert recompiled[name] == load_artifact(name)


def test_shipped_sources_are_the_sources_in_the_repository() -> None:
    sources = load_standard_input()["sources"]
    own = {f"contracts/{path.name}": path.read_text("utf-8") for path in (ROOT / "contracts").glob("*.sol")}
    assert {unit: entry["content"] for unit, entry in sources.items() if unit in own} == own
    for unit in sources.keys() - own.keys():
        assert sources[unit]["content"] == (NODE_MODULES / unit).read_text("utf-8")


def test_deployed_code_is_the_shipped_code(chain: Anvil, contracts: dict[str, str]) -> None:
    found = {name: identify_runtime(name, chain.code(address)).name for name, address in contracts.items()}
    assert found.pop("ChainPermissions") == "OpenPermissions"
    assert found == {name: name for name in [*DEPLOYMENT_ORDER, "AddressBook"] if name != "ChainPermissions"}


def test_a_contract_that_may_not_stand_under_a_name_is_wrong_code() -> None:
    for name, other in [
        ("ChainPermissions", "KeyRegistry"),
        ("KeyRegistry", "OpenPermissions"),
        ("JobLedger", "AddressBook"),
    ]:
        with pytest.raises(WrongContractCodeError, match=name):
            identify_runtime(name, load_artifact(other).deployed_bytecode)
    for name in ("OpenPermissions", "SubnetEvmPermissions"):
        assert identify_runtime("ChainPermissions", load_artifact(name).deployed_bytecode).name == name


EIP712_PARTS = {
    "_cachedChainId",
    "_cachedDomainSeparator",
    "_hashedName",
    "_hashedVersion",
    "_name",
    "_version",
}
"""What OpenZeppelin's domain keeps beside the contract's own address."""


def test_immutables_hold_the_addresses_of_the_address_book(chain: Anvil, contracts: dict[str, str]) -> None:
    wired = {
        "PARTICIPANTS": "ParticipantRegistry",
        "KEYS": "KeyRegistry",
        "LINEAGE": "LineageRegistry",
        "CONSENTS": "ConsentRegistry",
        "RIGHTS": "UsageRights",
        "BUDGETS": "PrivacyBudget",
        "JOB_LEDGER": "JobLedger",
        "JOBS": "JobLedger",
        "_cachedThis": "JobLedger",
        "PERMISSIONS": "ChainPermissions",
    }
    seen = set()
    for name, address in contracts.items():
        code = chain.code(address)
        for variable, word in immutable_values(identify_runtime(name, code), code).items():
            if variable == "CHAIN":
                assert word == bytes(32)
                continue
            if variable in EIP712_PARTS:
                continue
            assert word.hex() == contracts[wired[variable]].lower()[2:].rjust(64, "0")
            seen.add(variable)
    assert seen == set(wired)


def test_address_book_names_every_contract_in_order(chain: Anvil, contracts: dict[str, str]) -> None:
    (names,) = chain.view(contracts, "AddressBook", "names")
    assert list(names) == [contract_name_word(name) for name in DEPLOYMENT_ORDER]
    for name in DEPLOYMENT_ORDER:
        (address,) = chain.view(contracts, "AddressBook", "addressOf", contract_name_word(name))
        assert address == contracts[name].lower()


def test_only_the_council_administers_once_deployed(chain: Anvil, contracts: dict[str, str]) -> None:
    def holds(role: int, address: str) -> bool:
        return bool(chain.view(contracts, "AccessManager", "hasRole", role, address)[0])

    assert not holds(0, chain.account)
    assert holds(0, contracts["MemberCouncil"])
    assert holds(1, contracts["ParticipantRegistry"])
    assert holds(2, contracts["Reputation"])
    assert not holds(1, contracts["JobLedger"])
    with pytest.raises(RuntimeError, match="revert"):
        admit = load_abi("ParticipantRegistry").functions["admit"]
        data = admit.encode(
            [(b"x".ljust(32, b"\0"), "0x" + "99" * 20, "0x" + "98" * 20, 1, 0, bytes(32), b"x", "")]
        )
        chain.transact(contracts["ParticipantRegistry"], data)


def test_the_job_ledgers_functions_are_reserved_to_it(chain: Anvil, contracts: dict[str, str]) -> None:
    reserved = {
        "UsageRights": {"consumeUse": 2, "restoreUse": 2},
        "PrivacyBudget": {"reserve": 2, "settle": 2, "refund": 2},
    }
    for target, functions in reserved.items():
        for function, words in functions.items():
            data = load_abi(target).functions[function].encode([bytes(32), 0][:words])
            # Whom the contract takes for the job ledger shows in what it refuses: anybody else, before all else.
            refusal = keccak(f"{target}NotJobLedger(address)".encode())[:4].hex()
            call = {"to": contracts[target], "data": "0x" + data.hex()}
            with pytest.raises(RuntimeError, match=refusal):
                chain.call("eth_call", call | {"from": contracts["MemberCouncil"]}, "latest")
            try:
                chain.call("eth_call", call | {"from": contracts["JobLedger"]}, "latest")
            except RuntimeError as exc:
                assert refusal not in str(exc)


def test_founders_parameters_and_timings_are_in_force(chain: Anvil, contracts: dict[str, str]) -> None:
    (organisations,) = chain.view(contracts, "ParticipantRegistry", "organisations")
    assert list(organisations) == [founder[0] for founder in FOUNDERS]
    assert chain.view(contracts, "ParticipantRegistry", "activeCount") == (3,)
    assert chain.view(contracts, "KeyRegistry", "isAllowed", PARAMETERS) == (True,)
    assert chain.view(contracts, "JobLedger", "timings") == ((1, 2, 3, 4, 5, 6),)
    assert chain.view(contracts, "Reputation", "rule") == ((3600, 9, 15, 15, 3, 1),)
    assert chain.view(contracts, "JobLedger", "quorum") == (2,)


SUBNET = ChainLevel(permissions="SubnetEvmPermissions")


class Recorder:
    """Stands where the chain stands: keeps what is sent and says where contracts come to stand."""

    def __init__(self, deployer: str) -> None:
        self.deployer = deployer
        self.sent: list[tuple[str | None, bytes]] = []

    def __call__(self, to: str | None, data: bytes) -> Mined:
        self.sent.append((to, data))
        return Mined(None if to else contract_address(self.deployer, len(self.sent)))


def deploy_recorded(transact: Any, deployer: str, **changes: Any) -> dict[str, str]:
    usual = {
        "founders": FOUNDERS,
        "parameters": [],
        "timings": Timings(),
        "reputation": ReputationRule(),
        "quorum": 1,
        "voting_period": 1,
        "quorum_bps": 5000,
    }
    return deploy(transact=transact, deployer=deployer, **(usual | changes))


def test_deployment_stops_when_a_creation_has_no_address() -> None:
    sent = []

    def transact(to: str | None, data: bytes) -> Mined:
        sent.append(to)
        return Mined(None)

    with pytest.raises(LedgerError, match="AccessManager"):
        deploy_recorded(transact, "0x" + "11" * 20, founders=[])
    assert sent == [None]


def test_a_deployer_keeps_its_rights_until_all_before_has_succeeded() -> None:
    recorder = Recorder("0x" + "11" * 20)

    def settled() -> None:
        raise TransactionRevertedError("ParticipantRegistryAlreadyKnown", {})

    with pytest.raises(TransactionRevertedError):
        deploy_recorded(recorder, recorder.deployer, chain=SUBNET, settled=settled)
    called = {data[:4] for _, data in recorder.sent}
    assert load_abi("AccessManager").functions["renounceRole"].selector not in called
    assert load_abi("ParticipantRegistry").functions["admit"].selector in called


def test_a_network_whose_founding_fails_half_way_stays_the_deployers(chain_url: str) -> None:
    key = secrets.token_bytes(32)
    refused = replace(Organisation("north", Role.STEWARD).record, endpoint="/" + "x" * 300)
    with pytest.raises(TransactionRevertedError):
        found_network(chain_url, deployer_key=key, founders=[refused], parameters=[])
    deployer = Account.from_key(key).address
    codec = load_abi("AccessManager").functions["hasRole"]
    message = {"to": contract_address(deployer, 0), "data": "0x" + codec.encode([0, deployer]).hex()}
    assert codec.decode(Endpoint(chain_url).data("eth_call", message, "latest")) == (True, 0)


@pytest.mark.parametrize("member", [True, False], ids=["a founder deploys", "a stranger deploys"])
def test_lists_are_handed_over_after_the_contracts_and_the_one_that_lets_the_deployer_send_last(
    member: bool,
) -> None:
    deployer = FOUNDERS[0][1] if member else "0x" + "11" * 20
    recorder = Recorder(deployer)
    contracts, sent = deploy_recorded(recorder, deployer, chain=SUBNET), recorder.sent
    council, permissions = contracts["MemberCouncil"], contracts["ChainPermissions"]
    admit = load_abi("ParticipantRegistry").functions["admit"].selector
    first_admission = next(i for i, (_, data) in enumerate(sent) if data[:4] == admit)
    assert [call for call in sent[:first_admission] if call[0] in LISTS.values()] == [
        (TRANSACTION_ALLOW_LIST, set_role_call(permissions, AllowListRole.MANAGER)),
        (NATIVE_MINTER, set_role_call(permissions, AllowListRole.ENABLED)),
    ]
    stays = AllowListRole.ENABLED if member else AllowListRole.NONE
    assert sent[-6:] == [
        (DEPLOYER_ALLOW_LIST, set_role_call(council, AllowListRole.ADMIN)),
        (DEPLOYER_ALLOW_LIST, set_role_call(deployer, AllowListRole.NONE)),
        (NATIVE_MINTER, set_role_call(council, AllowListRole.ADMIN)),
        (NATIVE_MINTER, set_role_call(deployer, AllowListRole.NONE)),
        (TRANSACTION_ALLOW_LIST, set_role_call(council, AllowListRole.ADMIN)),
        (TRANSACTION_ALLOW_LIST, set_role_call(deployer, stays)),
    ]


def test_permissions_for_another_kind_of_chain_are_not_deployed_without_its_lists(chain: Anvil) -> None:
    with pytest.raises(RuntimeError, match="revert"):
        deploy_on(chain, ChainLevel(permissions="SubnetEvmPermissions"))
    with pytest.raises(ConfigurationError, match="Whatever"):
        deploy_on(chain, ChainLevel(permissions="Whatever"))


def test_a_chain_whose_blocks_are_too_small_is_refused_before_anything_is_sent() -> None:
    anvil = Anvil()
    try:
        anvil.call("evm_setBlockGasLimit", hex(CREATION_GAS - 1))
        anvil.call("evm_mine")
        with pytest.raises(ConfigurationError, match="gas"):
            found_network(anvil.url, deployer_key=b"\1" * 32, founders=[], parameters=[])
        assert anvil.call("eth_blockNumber") == "0x1"
    finally:
        anvil.stop()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_changed_byte_outside_the_immutables_is_wrong_code(data: st.DataObject) -> None:
    artifact = load_artifact(data.draw(st.sampled_from(CONTRACTS)))
    masked = {
        at
        for spans in artifact.immutables.values()
        for start, length in spans
        for at in range(start, start + length)
    }
    code = bytearray(artifact.deployed_bytecode)
    at = data.draw(st.integers(0, len(code) - 1))
    code[at] ^= data.draw(st.integers(1, 255))
    if at in masked:
        compare_runtime(artifact, bytes(code))
    else:
        with pytest.raises(WrongContractCodeError, match=f"from byte {at}$"):
            compare_runtime(artifact, bytes(code))


def test_missing_shorter_and_longer_code_is_wrong_code() -> None:
    artifact = load_artifact("JobLedger")
    whole = artifact.deployed_bytecode
    for code in [b"", whole[:-1], whole + b"\0"]:
        with pytest.raises(WrongContractCodeError, match="JobLedger"):
            compare_runtime(artifact, code)


def test_an_immutable_that_differs_between_its_places_is_wrong_code() -> None:
    artifact = load_artifact("JobLedger")
    variable, spans = next((name, spans) for name, spans in artifact.immutables.items() if len(spans) > 1)
    code = bytearray(artifact.deployed_bytecode)
    code[spans[0][0] + 31] = 1
    compare_runtime(artifact, bytes(code))
    with pytest.raises(WrongContractCodeError, match=variable):
        immutable_values(artifact, bytes(code))


@pytest.mark.parametrize("name", ["Nothing", "../errors", "standard-input", ""])
def test_no_artifact_but_a_contracts_can_be_loaded(name: str) -> None:
    with pytest.raises(ConfigurationError):
        load_artifact(name)


def test_a_changed_source_compiles_to_other_code(recompiled: dict[str, Artifact]) -> None:
    changed = copy.deepcopy(load_standard_input())
    unit = changed["sources"]["contracts/UsageRights.sol"]
    assert unit["content"].count("MAX_KERNELS = 16") == 1
    unit["content"] = unit["content"].replace("MAX_KERNELS = 16", "MAX_KERNELS = 17")
    other = recompile(changed, node=NODE, node_modules=NODE_MODULES)
    different = {
        name for name in CONTRACTS if other[name].deployed_bytecode != recompiled[name].deployed_bytecode
    }
    assert different == {"UsageRights"}
    with pytest.raises(WrongContractCodeError):
        compare_runtime(other["UsageRights"], recompiled["UsageRights"].deployed_bytecode)


def test_sources_that_do_not_compile_are_named() -> None:
    broken = copy.deepcopy(load_standard_input())
    broken["sources"]["contracts/Ids.sol"]["content"] += "\nnonsense"
    with pytest.raises(CompilationError, match=r"contracts/Ids\.sol"):
        recompile(broken, node=NODE, node_modules=NODE_MODULES)


def test_a_missing_compiler_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CompilationError):
        recompile(load_standard_input(), node=tmp_path / "node", node_modules=NODE_MODULES)
    with pytest.raises(CompilationError):
        recompile(load_standard_input(), node=NODE, node_modules=tmp_path)


def test_recompiling_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(CompilationError):
        recompile(load_standard_input(), node=tmp_path / "node", node_modules=NODE_MODULES)
    assert list(tmp_path.iterdir()) == []


def test_custom_errors_have_distinct_selectors_over_all_contracts() -> None:
    known: dict[bytes, str] = {}
    for name in CONTRACTS:
        for selector, error in load_abi(name).errors.items():
            assert known.setdefault(selector, error.name) == error.name


def test_a_stale_artifact_is_reported(tmp_path: Path) -> None:
    for folder in ["contracts", "scripts", "sdk"]:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ["node_modules", ".venv"]:
        (tmp_path / folder).symlink_to(ROOT / folder)
    stale = tmp_path / "sdk/usufruct/ledger/artifacts/UsageRights.json"
    stale.write_text(stale.read_text("utf-8").replace("MAX", "MIN") + "\n", "utf-8")
    (tmp_path / "sdk/usufruct/ledger/artifacts/Ghost.json").write_text("{}", "utf-8")
    command = [tmp_path / ".venv/bin/python", tmp_path / "scripts/build-contracts", "--check"]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(tmp_path / "sdk")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    folder = "sdk/usufruct/ledger/artifacts"
    named = [line.split(";")[0] for line in done.stderr.splitlines()]
    assert named == [f"stale: {folder}/Ghost.json", f"stale: {folder}/UsageRights.json"]
