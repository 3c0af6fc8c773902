"""Deploys the contracts of a new network from one account and writes its network file's content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from usufruct.errors import ConfigurationError
from usufruct.ledger.abi import CONTRACTS
from usufruct.ledger.deploy import ChainLevel, contract_address, deploy
from usufruct.ledger.endpoint import Endpoint, well_formed
from usufruct.ledger.endpoints import Endpoints
from usufruct.ledger.journal import Pending
from usufruct.ledger.network import FinalityPin, Network
from usufruct.ledger.profile import ChainProfile, profile_of
from usufruct.ledger.sender import Sender
from usufruct.records import Participant, ReputationRule, Timings

QUORUM_BPS = 5_000
VOTING_SECONDS = 7 * 86_400

CREATION_GAS = 8_000_000
"""Gas limit of each transaction that creates a contract: the largest takes a little more than half of it (`docs/gas.md`)."""
_CALL_GAS = 1_000_000

MAX_ASKED = 32
"""Most verifiers that a job asks; source: `contracts/JobLedger.sol`."""


@dataclass(frozen=True, slots=True)
class _Created:
    contract_address: str | None


def found_network(
    rpc_urls: str | Sequence[str],
    *,
    deployer_key: bytes,
    founders: Sequence[Participant],
    parameters: Sequence[tuple[bytes, int]],
    timings: Timings | None = None,
    reputation: ReputationRule | None = None,
    quorum: int = 2,
    voting_period: int = VOTING_SECONDS,
    name: str = "usufruct",
    profile: str = "embedded",
    finality: FinalityPin | None = None,
) -> Network:
    """Deploy a network and hand it over to its members' council, contracts and chain alike.

    Parameters
    ----------
    rpc_urls :
        One endpoint of the chain or several; the network file will name them.
    parameters :
        (parameters id, security bits) of the allowed encryption parameters.
    quorum :
        Fewest verifiers that must agree on any job.
    profile :
        Kind of chain, a name in `usufruct.ledger.profile.PROFILES`.
    finality :
        The founding validators, for chains whose profile knows finality proofs.

    Raises
    ------
    LedgerUnreachableError, TransactionRevertedError
    ConfigurationError
        If the quorum is none, two founders share a name, an account or a peer id, or the chain's blocks hold less gas than
        the largest contract may need; nothing was sent.
    """
    if not 1 <= quorum <= MAX_ASKED:
        raise ConfigurationError(f"a quorum is between 1 and {MAX_ASKED} verifiers, not {quorum}")
    _check_founders(founders)
    urls = (rpc_urls,) if isinstance(rpc_urls, str) else tuple(rpc_urls)
    kind = profile_of(profile)
    first = Endpoint(urls[0], profile=kind)
    chain_id = first.quantity("eth_chainId")
    with well_formed(urls[0]):
        genesis = str(first.call("eth_getBlockByNumber", "0x0", False)["hash"])
    endpoint = Endpoints(urls, profile=kind, chain_id=chain_id, genesis_hash=genesis)
    with well_formed(endpoint.url):
        limit = int(endpoint.call("eth_getBlockByNumber", "latest", False)["gasLimit"], 16)
    if limit < CREATION_GAS:
        raise ConfigurationError(
            f"a block of this chain holds {limit} gas, but a contract may need {CREATION_GAS}"
        )
    first_block = endpoint.finalised().number
    sender = Sender(endpoint, chain_id, deployer_key)
    pending: list[Pending] = []

    def transact(to: str | None, data: bytes) -> _Created:
        """Send without waiting: what follows is valid once this is mined, and nonces keep the order."""
        (sent,) = sender.submit_many([(to, data)], gas=_CALL_GAS if to else CREATION_GAS)
        pending.append(sent)
        return _Created(None if to else contract_address(sender.address, sent.nonce))

    def settle() -> None:
        """Wait for all that was sent since the last time."""
        sender.settle(pending)
        pending.clear()

    addresses = deploy(
        transact=transact,
        deployer=sender.address,
        founders=founders,
        parameters=parameters,
        timings=timings or Timings(),
        reputation=reputation or ReputationRule(),
        quorum=quorum,
        voting_period=voting_period,
        quorum_bps=QUORUM_BPS,
        chain=_chain_level(kind, finality),
        settled=settle,
    )
    settle()
    return Network(
        name=name,
        profile=profile,
        chain_id=chain_id,
        genesis_hash=genesis,
        rpc_urls=urls,
        address_book=addresses["AddressBook"],
        contracts={contract: addresses[contract] for contract in CONTRACTS},
        deployed_at_block=first_block,
        finality=finality,
    )


def _chain_level(profile: ChainProfile, finality: FinalityPin | None) -> ChainLevel:
    if finality is None or profile.proof != "warp":
        return ChainLevel(permissions=profile.permissions)
    return ChainLevel(
        permissions=profile.permissions,
        proof_chain=bytes.fromhex(finality.chain[2:]),
        validators=tuple((bytes.fromhex(v.key[2:]), v.weight) for v in finality.validators),
    )


def _check_founders(founders: Sequence[Participant]) -> None:
    """Refuse what the registry would refuse once half of the network stands."""
    for what, values in (
        ("a name", [founder.id for founder in founders]),
        ("an account", [a.lower() for founder in founders for a in (founder.account, founder.node_account)]),
        ("a peer id", [founder.peer_id for founder in founders]),
    ):
        if len(set(values)) != len(values):
            raise ConfigurationError(f"two founders have {what} in common")
