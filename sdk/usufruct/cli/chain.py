"""Commands about the chain beneath the contracts: members' fees, who validates, recovery of a deadlocked council."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from usufruct.cli.founding import require_new, write_new
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    MemberArgument,
    PassphraseOption,
    done,
    guarded,
    read_text,
)
from usufruct.client import Client
from usufruct.errors import InputError
from usufruct.home import Home
from usufruct.ledger import Ledger, Network
from usufruct.ledger.network import FinalityPin, Validator, validator_order
from usufruct.ledger.recovery import recovery_upgrade
from usufruct.records import MemberStatus, org_id


@guarded
def members_refuel(
    name: MemberArgument,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill what a member's two accounts have for fees, within the allowance that the council set."""
    client = Client.open(home, passphrase_file=passphrase_file)
    member = client.member(name)
    accounts = [member.account, member.node_account]
    for account in accounts:
        client.ledger.transact("ChainPermissions", "refuel", account)
    done(f"refuelled {', '.join(accounts)}", {"member": name, "accounts": accounts}, as_json=as_json)


@guarded
def network_recovery(
    suspend: Annotated[list[str], typer.Option(help="Member that is lost; may be repeated.")],
    at: Annotated[int, typer.Option(help="Unix seconds; every validator must have the file before.")],
    output: Annotated[Path, typer.Option(help="The upgrade.json to write, for every validator's operator.")],
    earlier: Annotated[
        Path | None, typer.Option(help="The upgrade.json in use, if any: what was applied must stay in it.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compute the state upgrade that suspends lost members, when the council can decide nothing any more."""
    require_new(output)
    if at <= time.time():
        raise InputError(f"{at} is past", hint="give the operators time: all must restart before it")
    network = Network.load(Home.at(home).network_file)
    participants = Ledger.open(network).participants()
    active = {member.id for member in participants if member.status is MemberStatus.ACTIVE}
    for name in suspend:
        if org_id(name) not in active:
            raise InputError(f"{name!r} is not an active member")
    upgrade = recovery_upgrade(
        network,
        participants,
        {org_id(name) for name in suspend},
        activation=at,
        earlier=None if earlier is None else _read_upgrade(earlier),
    )
    write_new(output, upgrade)
    done(
        f"{output} suspends {', '.join(suspend)} from {at} on; give it to every validator's operator",
        {"upgrade_file": str(output), "activation": at, "suspended": suspend},
        as_json=as_json,
    )


@guarded
def network_propose_validators(
    description: Annotated[Path, typer.Argument(help="The consortium.json that names the validators.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose to pin another set of validators, after one joined, left or changed its keys."""
    client = Client.open(home, passphrase_file=passphrase_file)
    wanted = _read_validators(description)
    pinned = client.ledger.network.finality
    if pinned is None or pinned.chain != wanted.chain:
        raise InputError(f"{description} describes another chain than the network's")
    keys = b"".join(bytes.fromhex(validator.key[2:]) for validator in wanted.validators)
    weights = [validator.weight for validator in wanted.validators]
    number = client.propose("ValidatorSet", "replace", keys, weights)
    done(
        f"proposal {number}: {len(weights)} validators",
        {"proposal": number, "validators": len(weights)},
        as_json=as_json,
    )


def _read_validators(path: Path) -> FinalityPin:
    try:
        told = json.loads(read_text(path))
        voting = [
            Validator(key=validator["bls_public_key"], weight=validator["weight"])
            for validator in told["validators"]
            if validator["weight"]
        ]
        return FinalityPin(
            network_id=told["network_id"],
            chain=told["blockchain_id_hex"],
            validators=tuple(sorted(voting, key=lambda validator: validator_order(validator.key))),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise InputError(f"{path} describes no validators: {exc}") from exc


def _read_upgrade(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
        timestamps = [upgrade["blockTimestamp"] for upgrade in content.get("stateUpgrades", ())]
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise InputError(f"{path} is no upgrade file: {exc!r}") from exc
    if not all(isinstance(timestamp, int) for timestamp in timestamps):
        raise InputError(f"{path} is no upgrade file: a blockTimestamp is no number")
    return dict(content)
