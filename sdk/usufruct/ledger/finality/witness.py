"""What validators say of a block that endpoints differ about, and of whether they reach each other."""

from __future__ import annotations

from usufruct.errors import FinalityError, LedgerError
from usufruct.ledger.endpoint import Endpoint, Head, well_formed
from usufruct.ledger.finality.fetch import cb58
from usufruct.ledger.finality.header import BlockHeader, check_header
from usufruct.ledger.finality.validators import prove_block
from usufruct.ledger.network import FinalityPin
from usufruct.ledger.profile import ChainProfile

_QUORUM_SHARE = 0.75
"""Of the weight: 15 of 20 samples of Avalanche's consensus."""

_REQUEST_SECONDS = 5.0


def is_final(profile: ChainProfile, pin: FinalityPin, endpoint: Endpoint, head: Head) -> bool:
    """Whether the pinned validators sign that this is the block at its height; asks the endpoint's members only."""
    try:
        header = BlockHeader.from_json(
            endpoint.anyone("eth_getBlockByHash", "0x" + head.hash.hex(), False), profile.header
        )
        check_header(header.encode(), head.hash, profile.header)
        prove_block(endpoint, profile, pin, head.hash)
    except (LedgerError, FinalityError):
        return False
    return header.number == head.number


def reaches_quorum(pin: FinalityPin, endpoint: Endpoint) -> bool | None:
    """Whether the validator behind an endpoint is connected to as much weight as a block needs; None if it does not say.

    It believes the validator: a lie hides a standstill, or invents one, and changes nothing that is accepted.
    """
    chain = cb58(bytes.fromhex(pin.chain[2:]))
    try:
        health = Endpoint(
            endpoint.url.split("/ext/")[0] + "/ext/health", patience=0.0, request_s=_REQUEST_SECONDS
        )
        told = health.call("health.health")
        with well_formed(endpoint.url):
            return float(told["checks"][chain]["message"]["networking"]["percentConnected"]) >= _QUORUM_SHARE
    except LedgerError:
        return None
