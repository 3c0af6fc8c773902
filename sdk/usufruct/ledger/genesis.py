"""Deploys the contracts of a new network from one account and writes its network file's content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rlp
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from usufruct.ledger.abi import CONTRACTS
from usufruct.ledger.deploy import deploy
from usufruct.ledger.endpoint import Endpoint
from usufruct.ledger.network import FinalityPin, Network
from usufruct.ledger.sender import Pending, Sender
from usufruct.records import Participant, Timings

QUORUM_BPS = 5_000
VOTING_SECONDS = 7 * 86_400


_CREATION_GAS = 8_000_000
_CALL_GAS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Created:
    contract_address: str | None


def _created_address(sender: str, nonce: int) -> str:
    """Address of the contract that a transaction creates: the last 20 bytes of keccak(rlp(sender, nonce))."""
    return to_checksum_address(keccak(rlp.encode([bytes.fromhex(sender[2:]), nonce]))[-20:])


def found_network(
    rpc_url: str,
    *,
    deployer_key: bytes,
    founders: Sequence[Participant],
    parameters: Sequence[tuple[bytes, int]],
    timings: Timings | None = None,
    quorum: int = 2,
    voting_period: int = VOTING_SECONDS,
    name: str = "usufruct",
    profile: str = "embedded",
    finality: FinalityPin | None = None,
) -> Network:
    """Deploy a network and hand it over to its members' council.

    Parameters
    ----------
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
    """
    endpoint = Endpoint(rpc_url)
    chain_id = int(endpoint.call("eth_chainId"), 16)
    genesis = endpoint.call("eth_getBlockByNumber", "0x0", False)["hash"]
    first_block = endpoint.finalised().number
    sender = Sender(endpoint, chain_id, deployer_key)
    pending: list[Pending] = []

    def transact(to: str | None, data: bytes) -> _Created:
        """Send without waiting: what follows is valid once this is mined, and nonces keep the order."""
        (sent,) = sender.submit_many([(to, data)], gas=_CALL_GAS if to else _CREATION_GAS)
        pending.append(sent)
        return _Created(None if to else _created_address(sender.address, sent.nonce))

    addresses = deploy(
        transact=transact,
        deployer=sender.address,
        founders=founders,
        parameters=parameters,
        timings=timings or Timings(),
        quorum=quorum,
        voting_period=voting_period,
        quorum_bps=QUORUM_BPS,
    )
    sender.settle(pending)
    return Network(
        name=name,
        profile=profile,
        chain_id=chain_id,
        genesis_hash=genesis,
        rpc_urls=(rpc_url,),
        address_book=addresses["AddressBook"],
        contracts={contract: addresses[contract] for contract in CONTRACTS},
        deployed_at_block=first_block,
        finality=finality,
    )
