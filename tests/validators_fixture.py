"""Five real validators in a directory, driven by `scripts/consortium`; the test holds the keys of the chain's accounts."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from eth_account import Account
from eth_utils.crypto import keccak

from usufruct.ledger.subnet_evm import GenesisMember, genesis
from usufruct_node.validators import Validators

CHAIN_ID = 777_001
KEYS = [keccak(text=f"consortium-test-key-{i}") for i in range(10)]
"""Keys of five founders, authority and node in turn; the first administers the chain's lists."""
ACCOUNTS = [Account.from_key(key).address for key in KEYS]
GAS_PRICE = 2
PATIENCE_S = 240.0


def founders_genesis() -> dict[str, object]:
    members = [
        GenesisMember(account=ACCOUNTS[i], node_account=ACCOUNTS[i + 1]) for i in range(0, len(ACCOUNTS), 2)
    ]
    return genesis(chain_id=CHAIN_ID, members=members, deployer=ACCOUNTS[0])


class RefusedError(Exception):
    """A validator answered a call with an error."""


class TestValidators(Validators):
    """The launcher's commands and raw JSON-RPC to each validator by number, from 1."""

    __test__ = False

    def command(self, *words: str) -> str:
        return self._run(*words, *self._place)

    def numbers(self) -> list[int]:
        return [validator.number for validator in self.describe().validators]

    def url(self, number: int) -> str:
        described = json.loads((self.directory / "consortium.json").read_text("utf-8"))
        return next(v["rpc_url"] for v in described["validators"] if v["number"] == number)

    def call(self, number: int, method: str, *parameters: object) -> object:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        answer = httpx.post(self.url(number), json=request, timeout=30).json()
        if "error" in answer:
            raise RefusedError(answer["error"]["message"])
        return answer["result"]

    def height(self, number: int) -> int:
        return int(str(self.call(number, "eth_blockNumber")), 16)

    def balance(self, number: int, account: str) -> int:
        return int(str(self.call(number, "eth_getBalance", account, "latest")), 16)

    def sign(self, number: int, key: bytes, *, to: str, value: int = 0) -> str:
        """A signed payment with the account's next nonce, as hex."""
        sender = Account.from_key(key).address
        nonce = int(str(self.call(number, "eth_getTransactionCount", sender, "pending")), 16)
        fields = {
            "chainId": CHAIN_ID,
            "nonce": nonce,
            "to": to,
            "value": value,
            "gas": 21_000,
            "gasPrice": GAS_PRICE,
        }
        return "0x" + Account.sign_transaction(fields, key).raw_transaction.hex()

    def broadcast(self, number: int, raw: str) -> str:
        return str(self.call(number, "eth_sendRawTransaction", raw))

    def mined(self, number: int, transaction: str) -> dict[str, str] | None:
        receipt = self.call(number, "eth_getTransactionReceipt", transaction)
        assert receipt is None or isinstance(receipt, dict)
        return receipt

    def wait_mined(self, number: int, transaction: str) -> dict[str, str]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.HTTPError, RefusedError, ValueError):
                if receipt := self.mined(number, transaction):
                    return receipt
            assert time.monotonic() < deadline, (
                f"{transaction} is not mined as validator {number} sees it\n{self.troubles()}"
            )
            time.sleep(0.1)

    def pay(self, number: int, *, value: int = 1) -> dict[str, str]:
        """One payment between founders through one validator, mined."""
        raw = self.sign(number, KEYS[2], to=ACCOUNTS[4], value=value)
        return self.wait_mined(number, self.broadcast(number, raw))

    def make_whole(self) -> None:
        """Every validator runs and is in step: what a test must find, and leave."""
        for validator in self.describe().validators:
            if not validator.running:
                self.restart(validator.number)
        deadline = time.monotonic() + PATIENCE_S
        while not all(v["healthy"] for v in json.loads(self.command("status", "--json"))["validators"]):
            assert time.monotonic() < deadline, f"the validators are not healthy\n{self.troubles()}"
            time.sleep(0.2)

    def troubles(self) -> str:
        """What each validator says of its health, and its last warnings."""
        said = []
        for validator in self.describe().validators:
            said.append(f"validator {validator.number}: {validator}")
            with contextlib.suppress(httpx.HTTPError):
                said.append(
                    httpx.get(validator.rpc_url.partition("/ext/")[0] + "/ext/health", timeout=10).text
                )
            logs = self.directory / "network" / f"validator-{validator.number}" / "logs"
            for log in sorted(logs.glob("*.log")):
                lines = log.read_text("utf-8", "replace").splitlines()
                loud = [line for line in lines if "WARN" in line or "ERROR" in line or "FATAL" in line]
                said += [log.name, *loud[-10:]]
        return "\n".join(said)


@contextmanager
def running_validators(
    directory: Path, chain_genesis: dict[str, object] | None = None
) -> Iterator[TestValidators]:
    """Five validators of a new chain; none of their processes is left afterwards."""
    found = TestValidators(directory)
    try:
        found.up(chain_genesis or founders_genesis())
        yield found
    finally:
        found.command("down")
