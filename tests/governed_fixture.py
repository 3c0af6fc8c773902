"""A network that governs its own chain: five validators, whose genesis knows five founding members and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from chain_fixture import CAST, PARAMETERS_ID, Consortium, Organisation
from usufruct.errors import LedgerError
from usufruct.ledger import Ledger
from usufruct.ledger.endpoint import Endpoint
from usufruct.ledger.genesis import found_network
from usufruct.ledger.subnet_evm import GenesisMember, genesis
from validators_fixture import CHAIN_ID, TestValidators, running_validators


class GovernedConsortium(Consortium):
    """The moves of members on a chain of their own."""

    def __init__(self, validators: TestValidators, members: dict[str, Organisation]) -> None:
        self.validators, self.members = validators, members
        running = validators.describe()
        self.network = found_network(
            running.rpc_urls[0],
            deployer_key=next(iter(members.values())).authority_key,
            founders=[member.record for member in members.values()],
            parameters=[(PARAMETERS_ID, 128)],
            profile="subnet-evm",
            finality=running.finality(),
        )
        self._pool = ThreadPoolExecutor(8)
        self.open()

    def open(self) -> None:
        """Open every member's ledgers, at the addresses that the validators have now."""
        urls = self.validators.describe().rpc_urls
        self.network = self.network.model_copy(update={"rpc_urls": urls})
        for member in self.members.values():
            member.open(self.network)
        self.reader = Ledger.open(self.network)

    def refusals(self, raw: bytes) -> list[str]:
        """Why each validator does not take a signed transaction; "taken" where it does."""
        reasons = []
        for url in self.validators.describe().rpc_urls:
            try:
                Endpoint(url).call("eth_sendRawTransaction", "0x" + raw.hex())
                reasons.append("taken")
            except LedgerError as exc:
                reasons.append(str(exc))
        return reasons


@contextmanager
def governed_consortium(directory: Path) -> Iterator[GovernedConsortium]:
    """Validators, contracts and members, until the block ends."""
    members = {name: Organisation(name, roles) for name, roles in CAST.items()}
    founders = [GenesisMember.of(member.record) for member in members.values()]
    deployer = founders[0].account
    beginning = genesis(chain_id=CHAIN_ID, members=founders, deployer=deployer)
    with running_validators(directory, beginning) as validators:
        yield GovernedConsortium(validators, members)
