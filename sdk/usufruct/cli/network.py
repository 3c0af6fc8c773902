"""Commands about the network: who is a member, votes of the council, deployed contracts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from usufruct.cli.terminal import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    MemberArgument,
    PassphraseOption,
    ProposalArgument,
    done,
    err,
    guarded,
    show,
)
from usufruct.client import Client, open_authority_keystore
from usufruct.errors import InputError
from usufruct.he.parameters import ALLOWED
from usufruct.home import Home, ParticipantFile
from usufruct.keys import identity
from usufruct.ledger import PROFILES, Ledger, Network
from usufruct.ledger.code import verify_network
from usufruct.ledger.compile import find_compiler
from usufruct.ledger.finality import follow_validators, prove_final
from usufruct.ledger.genesis import found_network
from usufruct.ledger.network import read_pin
from usufruct.ledger.profile import profile_of
from usufruct.records import MemberStatus

_LONG_HEX = re.compile(r"(0x[0-9a-f]{10})[0-9a-f]{54,}")
"""Keys and ids; addresses are short enough to be read whole."""

members_app = typer.Typer(help="Who is a member; votes of the council.", no_args_is_help=True)
network_app = typer.Typer(help="The network that a home belongs to.", no_args_is_help=True)


@members_app.command("list")
@guarded
def members_list(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List every organisation ever admitted, and what it has on its account for faults in jobs."""
    rows = Client.open(home, passphrase_file=passphrase_file).content.query("/members")
    columns = {
        "name": "name",
        "status": "status",
        "roles": "roles",
        "points": "points",
        "endpoint": "endpoint",
    }
    show("members", rows, columns, as_json=as_json)


@members_app.command("faults")
@guarded
def members_faults(
    name: Annotated[str, typer.Argument(help="Short name of the member.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a member did wrong in jobs, newest first; points fade with time, the council may take them away."""
    client = Client.open(home, passphrase_file=passphrase_file)
    rows = client.content.query(f"/members/{client.member(name).name}/faults")
    columns = {"job": "job_id", "fault": "fault", "points then": "points", "recorded": "recorded_at"}
    show("faults", rows, columns, as_json=as_json)


@members_app.command("admit")
@guarded
def members_admit(
    participant: Annotated[Path, typer.Argument(help="participant.json of the would-be member.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose to admit an organisation."""
    record = ParticipantFile.load(participant).to_participant()
    client = Client.open(home, passphrase_file=passphrase_file)
    known = client.ledger.participant(record.id).status
    if known != MemberStatus.NONE:
        raise InputError(
            f"{record.name} was admitted before and is {known.name}",
            hint="`usufruct members set-status` reinstates a member; a newcomer needs a name of its own",
        )
    number = client.propose("ParticipantRegistry", "admit", record)
    done(f"proposal {number}", {"proposal": number}, as_json=as_json)


@members_app.command("set-status")
@guarded
def members_set_status(
    name: MemberArgument,
    status: Annotated[str, typer.Option(help="active, suspended or removed.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose to suspend, reinstate or remove a member."""
    wanted = status.upper()
    if wanted not in ("ACTIVE", "SUSPENDED", "REMOVED"):
        raise InputError(f"{status!r} is no status", hint="active, suspended or removed")
    client = Client.open(home, passphrase_file=passphrase_file)
    number = client.propose("ParticipantRegistry", "setStatus", client.member(name).id, MemberStatus[wanted])
    done(f"proposal {number}", {"proposal": number}, as_json=as_json)


@members_app.command("forgive")
@guarded
def members_forgive(
    name: Annotated[str, typer.Argument(help="Short name of the member.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose to take all points from a member, as when it is reinstated after a suspension by rule."""
    client = Client.open(home, passphrase_file=passphrase_file)
    number = client.propose("Reputation", "forgive", client.member(name).id)
    done(f"proposal {number}: forgive {name}", {"proposal": number, "member": name}, as_json=as_json)


@members_app.command("proposals")
@guarded
def members_proposals(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List what the members vote on, newest first; keys and ids are whole in `--json`."""
    rows = Client.open(home, passphrase_file=passphrase_file).content.query("/proposals")
    if not as_json:
        rows = [row | {"call": _LONG_HEX.sub(r"\1…", row["call"])} for row in rows]
    columns = {
        "proposal": "proposal",
        "by": "proposer",
        "call": "call",
        "for": "for",
        "against": "against",
        "executed": "executed",
    }
    show("proposals", rows, columns, as_json=as_json)


@members_app.command("vote")
@guarded
def members_vote(
    proposal: ProposalArgument,
    against: Annotated[bool, typer.Option(help="Vote against it.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cast this organisation's one vote."""
    Client.open(home, passphrase_file=passphrase_file).vote(proposal, support=not against)
    done("voted", {"proposal": proposal, "support": not against}, as_json=as_json)


@members_app.command("execute")
@guarded
def members_execute(
    proposal: ProposalArgument,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry out a proposal that has enough support."""
    Client.open(home, passphrase_file=passphrase_file).execute(proposal)
    done("executed", {"proposal": proposal, "status": "EXECUTED"}, as_json=as_json)


@network_app.command("deploy")
@guarded
def network_deploy(
    rpc: Annotated[list[str], typer.Option(help="JSON-RPC address of the chain; may be repeated.")],
    founder: Annotated[
        list[Path], typer.Option(help="participant.json of a founding member; may be repeated.")
    ],
    output: Annotated[Path, typer.Option(help="Network file to write; hand it to every member.")],
    quorum: Annotated[int, typer.Option(help="Fewest verifiers that must agree on any job.")] = 2,
    name: Annotated[str, typer.Option(help="Name of the network.")] = "usufruct",
    profile: Annotated[str, typer.Option(help=f"Kind of chain: {', '.join(PROFILES)}.")] = "embedded",
    validators: Annotated[
        Path | None, typer.Option(help="consortium.json of the running validators, to pin them.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy the contracts of a new network from this home's authority and hand it over to the members' council."""
    if output.exists():
        raise InputError(f"{output} exists already", hint="choose another file: it may be a network in use")
    if not os.access(output.resolve().parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{output} cannot be written there", hint="choose a directory that exists and is yours"
        )
    pin = read_pin(validators) if validators else None
    if profile_of(profile).proof == "warp" and pin is None:
        raise InputError(
            f"a network of profile {profile} pins its validators", hint="--validators consortium.json"
        )
    founders = [ParticipantFile.load(path).to_participant() for path in founder]
    keys = identity.load_authority_keys(open_authority_keystore(Home.at(home), passphrase_file))
    with err.status("deploying"):
        network = found_network(
            rpc,
            deployer_key=keys.ledger_key,
            founders=founders,
            parameters=[(key, value.security_bits) for key, value in ALLOWED.items()],
            quorum=quorum,
            name=name,
            profile=profile,
            finality=pin,
        )
    network.save(output)
    done(
        f"{len(network.contracts)} contracts on chain {network.chain_id}; network file {output}",
        {"network_file": str(output), "chain_id": network.chain_id},
        as_json=as_json,
    )


@network_app.command("validators")
@guarded
def network_validators(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List who makes blocks final: the set in force, reached from the pinned one by proven votes."""
    ledger = Ledger.open(Network.load(Home.at(home).network_file))
    newest = follow_validators(ledger.endpoint, ledger.network)[-1]
    total = sum(validator.weight for validator in newest.pin.validators)
    rows = [
        {
            "position": position,
            "key": validator.key,
            "weight": validator.weight,
            "share": f"{100 * validator.weight / total:.1f}%",
            "version": newest.version,
            "since_block": newest.since_block,
        }
        for position, validator in enumerate(newest.pin.validators)
    ]
    columns = {"position": "position", "key": "key", "weight": "weight", "share": "share", "set": "version"}
    show("validators", rows, columns, as_json=as_json)


@network_app.command("finality")
@guarded
def network_finality(
    block: Annotated[int | None, typer.Option(help="Height; default: the newest final block.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Prove to an outsider that a block is final: verify the validators' signatures against the pinned set."""
    ledger = Ledger.open(Network.load(Home.at(home).network_file))
    number = ledger.finalised().number if block is None else block
    versions = follow_validators(ledger.endpoint, ledger.network)
    proof, signers, version = prove_final(ledger.endpoint, ledger.network, versions, number)
    share = 100 * signers.weight / signers.total_weight
    done(
        f"block {number} ({proof.block_hash.hex()}) is final: {len(signers.keys)} of"
        f" {len(version.pin.validators)} validators of set {version.version} signed, {share:.1f}% of the weight",
        {
            "block": number,
            "block_hash": proof.block_hash.hex(),
            "kind": proof.kind,
            "chain": proof.chain.hex(),
            "signers": list(signers.keys),
            "weight": signers.weight,
            "total_weight": signers.total_weight,
            "validators_version": version.version,
            "proof": proof.payload.hex(),
        },
        as_json=as_json,
    )


@network_app.command("verify")
@guarded
def network_verify(
    home: HomeOption = DEFAULT_HOME,
    node: Annotated[Path | None, typer.Option(help="The `node` program; default: on the PATH.")] = None,
    node_modules: Annotated[
        Path | None, typer.Option(help="Directory with the npm package `solc`; default: the clone's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompile the shipped sources with py-solc-x and prove that the code on the chain is this code."""
    network = Network.load(Home.at(home).network_file)
    program, modules = find_compiler(node, node_modules)
    ledger = Ledger.open(network)
    with err.status("compiling"):
        rows = verify_network(ledger, node=program, node_modules=modules)
    columns = {"contract": "contract", "address": "address", "bytes": "size_bytes", "code": "outcome"}
    show("contracts", rows, columns, as_json=as_json)
