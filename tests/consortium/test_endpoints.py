"""The ledger client on five real validators: endpoints that die, a fee that is too low, a chain that stands still."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey

from chain_fixture import until
from governed_fixture import GovernedConsortium
from rpc_door import door_to
from usufruct.errors import ChainStalledError, LedgerError
from usufruct.ledger import Ledger
from usufruct.ledger.journal import InFlight, Journal
from usufruct.ledger.signing import sign_transaction


def count(ledger: Ledger) -> int:
    return int(ledger.endpoint.call("eth_getTransactionCount", ledger.address, "latest"), 16)


def say(ledger: Ledger, text: str) -> Any:
    return ledger.transact("ParticipantRegistry", "setEndpoint", text)


def say_at_last(ledger: Ledger, text: str) -> Any:
    """Repeat the call while the chain stands still: on a starved machine five validators may pause that long."""
    for _ in range(5):
        with suppress(ChainStalledError):
            return say(ledger, text)
    return say(ledger, text)


def test_a_transaction_survives_the_endpoint_that_took_it(
    governed: GovernedConsortium, tmp_path: Path
) -> None:
    member = governed["university"]
    with ExitStack() as stack:
        doors = [stack.enter_context(door_to(url)) for url in governed.network.rpc_urls[:3]]
        network = governed.network.model_copy(update={"rpc_urls": tuple(door.url for door in doors)})
        ledger = Ledger.open(network, private_key=member.authority_key, journal=tmp_path / "journal")
        before = count(ledger)

        def die(calls: list[dict[str, Any]]) -> bytes | None:
            if calls[0]["method"] != "eth_sendRawTransaction":
                return None
            doors[0].shut()
            return b""

        doors[0].after = die
        receipt = say(ledger, "/survivor")
        assert ledger.endpoint.url == doors[1].url
        assert count(ledger) == before + 1
        assert ledger.event_of(receipt, "ParticipantEndpointChanged").args["endpoint"] == "/survivor"


def test_a_transaction_stuck_at_too_low_a_fee_is_replaced_under_its_nonce(
    governed: GovernedConsortium, tmp_path: Path
) -> None:
    member = governed["auditor"]
    ledger = Ledger.open(governed.network, private_key=member.authority_key, journal=tmp_path / "journal")
    before = count(ledger)
    to, data = ledger.call_data("ParticipantRegistry", "setEndpoint", "/cheap")
    raw = sign_transaction(
        PrivateKey(member.authority_key),
        chain_id=ledger.network.chain_id,
        nonce=before,
        gas_price=0,
        gas=300_000,
        to=to,
        data=data,
    )
    stuck = InFlight.signed(raw)
    journal = Journal(tmp_path / "journal")
    with journal.locked():
        journal.add([stuck])
    journal.release([stuck.id])
    with suppress(LedgerError):  # Some engines leave it in the pool for ever, some do not even take it.
        ledger.endpoint.broadcast([raw])
    receipt = say_at_last(ledger, "/cheap")
    assert receipt.transaction_hash != stuck.id, "it was not replaced"
    assert count(ledger) == before + 1
    assert ledger.participant(member.id).endpoint == "/cheap"


def test_an_idle_chain_that_lost_its_quorum_is_said_to_stand_still_within_five_block_intervals(
    governed: GovernedConsortium,
) -> None:
    validators = governed.validators
    ledger = Ledger.open(governed.network)
    sent = ledger.health().waiting
    until(lambda: ledger.finalised().number > 0 and not ledger.health().stalled)
    try:
        for number in (4, 5):
            validators.kill(number)
        begun = time.monotonic()
        while not ledger.health().stalled:
            ledger.finalised()
            assert time.monotonic() - begun < 10 * ledger.network.chain.stall_after_s
            time.sleep(0.2)
        assert ledger.health().waiting == sent == 0, "a transaction waited: the chain was not idle"
        with pytest.raises(ChainStalledError):
            ledger.endpoint.watch.check()
    finally:
        validators.make_whole()
    governed.open()
    again = Ledger.open(governed.network)
    until(lambda: again.finalised().number > 0 and not again.health().stalled)


def test_a_chain_without_a_quorum_is_said_to_stand_still_and_work_goes_on_afterwards(
    governed: GovernedConsortium, tmp_path: Path
) -> None:
    member, validators = governed["compute"], governed.validators
    ledger = Ledger.open(governed.network, private_key=member.authority_key, journal=tmp_path / "journal")
    before = count(ledger)
    try:
        for number in (4, 5):
            validators.kill(number)
        begun = time.monotonic()
        with pytest.raises(ChainStalledError) as caught:
            while True:
                say(ledger, "/waiting")
        assert caught.value.height <= ledger.finalised().number
        assert time.monotonic() - begun > ledger.network.chain.apart_after_s
        assert ledger.health().height is not None
    finally:
        validators.make_whole()
    governed.open()
    again = Ledger.open(governed.network, private_key=member.authority_key, journal=tmp_path / "journal")
    say(again, "/waiting")
    until(lambda: again.participant(member.id).endpoint == "/waiting")
    assert count(again) >= before + 1
    assert not again.health().stalled
