"""`usufruct-node`: what a node operator types."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import trio
import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from usufruct import waiting
from usufruct.cli import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    VersionOption,
    bar_of,
    err,
    guarded,
    out,
    plain,
    print_json,
    say,
    table_of,
)
from usufruct.content.node import NodeContent
from usufruct.errors import ConfigurationError, UsufructError
from usufruct.home import Home, Organisation
from usufruct.keys.keystore import read_passphrase
from usufruct.ledger import Network
from usufruct.records import Role, org_id
from usufruct_node.backup import Manifest, back_up, size_of
from usufruct_node.backup import restore as restore_home
from usufruct_node.config import NodeSettings
from usufruct_node.devnet import Devnet, chain_kind
from usufruct_node.doctor import examine
from usufruct_node.enrol import check_place, create_home
from usufruct_node.peers_tables import render_peers
from usufruct_node.storage_cli import blocks_app, kubo_app

if TYPE_CHECKING:
    from trio_typing import TaskStatus

app = typer.Typer(
    help="Run and look after a node of the Usufruct network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
devnet_app = typer.Typer(help="A whole network on this machine, for development.", no_args_is_help=True)
app.add_typer(devnet_app, name="devnet")
app.add_typer(blocks_app, name="blocks")
app.add_typer(kubo_app, name="kubo")
_log = logging.getLogger(__name__)


@app.callback()
def _about(version: VersionOption = False) -> None:
    pass


PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File of mode 0600; default: the one in the home, or a prompt."),
]
DirectoryOption = Annotated[Path, typer.Option("--dir", help="Directory of the development network.")]


@app.command()
@guarded
def init(
    home: Annotated[Path, typer.Option("--home", help="Directory to make.")],
    name: Annotated[str, typer.Option(help="Label of the organisation: a-z, 0-9 and hyphens.")],
    role: Annotated[
        list[str],
        typer.Option(help="steward, custodian, partner, compute, verifier, auditor; may be repeated."),
    ],
    network: Annotated[Path | None, typer.Option(help="network.json from another member.")] = None,
    authority_passphrase_file: Annotated[
        Path | None, typer.Option(help="File of mode 0600; default: a prompt.")
    ] = None,
    node_passphrase_file: Annotated[
        Path | None, typer.Option(help="File of mode 0600; default: a prompt.")
    ] = None,
    custodian_passphrase_file: Annotated[
        Path | None, typer.Option(help="File of mode 0600; default: a prompt, for custodians only.")
    ] = None,
) -> None:
    """Make a home: keys, and the public record on which the members vote."""
    joined = None if network is None else Network.load(network)
    # Before anything is asked.
    org_id(name)
    roles = Organisation(name=name, roles=role).role_bits
    check_place(home)
    record = create_home(
        home,
        name=name,
        roles=roles,
        authority_passphrase=read_passphrase(
            authority_passphrase_file,
            prompt="New passphrase of the authority's keys: ",
            confirm=True,
            option="--authority-passphrase-file",
        ),
        node_passphrase=read_passphrase(
            node_passphrase_file,
            prompt="New passphrase of the node's keys: ",
            confirm=True,
            option="--node-passphrase-file",
        ),
        custodian_passphrase=read_passphrase(
            custodian_passphrase_file,
            prompt="New passphrase of the homomorphic secrets: ",
            confirm=True,
            option="--custodian-passphrase-file",
        )
        if Role.CUSTODIAN in roles
        else None,
        network=joined,
    )
    say(f"home {home} of {record.name}")
    say(f"hand {home / 'participant.json'} to a member: `usufruct members admit FILE` proposes the admission")


@app.command()
@guarded
def run(
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    custodian_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="Read by the custodian's process; default: the one in the home, or its own prompt."
        ),
    ] = None,
) -> None:
    """Run the node until SIGINT or SIGTERM."""
    from usufruct_node.app import Node, exclusive

    place = Home.at(home)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "web3", "hypercorn", waiting.__name__):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # It calls an error whatever a stranger's connection does; what concerns this node reaches it as an exception.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    name, settings = place.organisation().name, NodeSettings.load(place.root)
    default = place.node_passphrase if place.node_passphrase.is_file() else None
    passphrase = read_passphrase(passphrase_file or default, prompt=f"Passphrase of {place.node_keystore}: ")

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            # Before the start, which reads a long chain for minutes.
            await nursery.start(until_told, nursery.cancel_scope)
            url = await nursery.start(node.run)
            _log.info("%s is up: %s", name, url)

    async def until_told(scope: trio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        """Stop at the first signal. A second Ctrl-C interrupts the stopping; a second SIGTERM says nothing new."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            await anext(signals)
        _log.info("%s is stopping", name)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        scope.cancel()

    with exclusive(place):
        _log.info("%s is starting on %s", name, place.root)
        node = Node(place, settings, passphrase, custodian_passphrase_file=custodian_passphrase_file)
        try:
            trio.run(serve)
        except BaseExceptionGroup as group:
            raise _own_error(group) from group
        _log.info("%s has stopped", name)


@app.command()
@guarded
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show what the running node sees: chain, membership, peers, jobs in trouble."""
    place = Home.at(home)
    answer = NodeContent(place.node_address().url, place.api_token).query("/status")
    if as_json:
        print_json(answer)
        return
    rows = (
        (key, json.dumps(value) if isinstance(value, (dict, list)) else value)
        for key, value in answer.items()
    )
    out.print(table_of(("what", "value"), rows, title=answer["organisation"]))


@app.command()
@guarded
def peers(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show who is connected, since when, what they took, and why somebody was refused."""
    place = Home.at(home)
    answer = NodeContent(place.node_address().url, place.api_token).query("/peers")
    if as_json:
        print_json(answer)
        return
    for part in render_peers(answer):
        out.print(part)


@app.command()
@guarded
def doctor(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """Check a home from outside: files, keys, chain, contracts, membership, disk. Exit code 1 when something is wrong."""
    place = Home.at(home)
    default = place.node_passphrase if place.node_passphrase.is_file() else None
    findings = examine(place, read_passphrase(passphrase_file or default))
    if as_json:
        print_json([{"check": f.check, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        for finding in findings:
            mark = ("ok  ", "green") if finding.ok else ("FAIL", "red")
            out.print(Text.assemble(mark, plain(f" {finding.check}: {finding.detail}")), soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
@guarded
def backup(
    file: Annotated[Path, typer.Argument(help="Archive to make; nothing is overwritten.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole home into one file, encrypted under the passphrase of the node's keys; the node may run meanwhile."""
    place = Home.at(home)
    default = place.node_passphrase if place.node_passphrase.is_file() else None
    passphrase = read_passphrase(passphrase_file or default, prompt=f"Passphrase of {place.node_keystore}: ")
    with _progress("backing up", size_of(place)) as advance:
        made = back_up(place, file, passphrase, advance=advance)
    _tell_archive(f"{file} holds", made, as_json=as_json)


@app.command()
@guarded
def restore(
    file: Annotated[Path, typer.Argument(help="Archive that `backup` made.")],
    home: Annotated[Path, typer.Option("--home", help="New or empty directory.")],
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File of mode 0600 with the passphrase; default: a prompt.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a home of a backup. The node that it was made of must not run any more."""
    passphrase = read_passphrase(passphrase_file, prompt=f"Passphrase of {file}: ")
    with _progress("restoring", file.stat().st_size if file.is_file() else 0) as advance:
        found = restore_home(file, home, passphrase, advance=advance)
    _tell_archive(f"{home} is restored:", found, as_json=as_json)
    if not as_json:
        say("passphrase files are in no backup; `usufruct-node doctor` looks whether all is well")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with bar_of(*columns) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)


def _tell_archive(what: str, manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        print_json(manifest.to_dict())
        return
    made = datetime.fromtimestamp(manifest.made_at, UTC).isoformat(" ", "seconds")
    say(
        f"{what} {manifest.organisation} as of {made}: {len(manifest.files)} files, {manifest.blocks} blocks"
        f" ({manifest.block_bytes:,} bytes), index up to block {manifest.indexed_block}"
    )


@devnet_app.command("up")
@guarded
def devnet_up(
    directory: DirectoryOption = Path(".devnet"),
    chain: Annotated[
        str | None,
        typer.Option(help="embedded (default): one process; consortium: five validators, needs Go."),
    ] = None,
    block_interval: Annotated[
        float, typer.Option(help="Seconds between blocks of the embedded chain.")
    ] = 0.25,
) -> None:
    """Start a chain and five nodes; a directory that holds a network goes on where it stopped."""
    net = Devnet(directory)
    kind = None if chain is None else chain_kind(chain)
    with err.status("starting") as line:
        net.up(chain=kind, say=lambda text: line.update(f"starting {text}"), block_interval_s=block_interval)
    say(f"network up in {net.root}; `usufruct-node devnet status --dir {directory}` shows it")
    names = ", ".join(member.name for member in net.members)
    say(f"homes below it: {names}; for example `usufruct bundles --home {directory}/{net.members[0].name}`")


@devnet_app.command("down")
@guarded
def devnet_down(directory: DirectoryOption = Path(".devnet")) -> None:
    """Stop every process of the development network; its data stays. Names what was started by hand and goes on."""
    _require_network(directory)
    net = Devnet(directory)
    with err.status("stopping") as line:
        net.down(say=line.update)
    left = [f"process {pid} on the home of {name}" for name, pid in net.strangers().items()]
    say(f"network down, but for what it did not start: {', '.join(left)}" if left else "network down")


@devnet_app.command("status")
@guarded
def devnet_status(directory: DirectoryOption = Path(".devnet"), as_json: JsonOption = False) -> None:
    """Show which processes run and whether they are well. Exit code 1 when one is down."""
    _require_network(directory)
    net = Devnet(directory)
    rows: list[dict[str, Any]] = []
    nodes = {member.name for member in net.members}
    for name, pid in net.running().items():
        health = _health(net, name) if pid is not None and name in nodes else ""
        rows.append({"process": name, "pid": pid, "health": health})
    if as_json:
        print_json(rows)
    else:
        shown = ((row["process"], row["pid"] or "-", row["health"]) for row in rows)
        out.print(table_of(("process", "pid", "health"), shown))
    if any(row["pid"] is None for row in rows):
        raise typer.Exit(1)


def _own_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours that ended a nursery, without the nurseries around it; the group itself when there is none."""
    found: BaseException = group.subgroup(UsufructError) or group
    while found is not group and isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _require_network(directory: Path) -> None:
    if not (directory / "network.json").is_file():
        raise ConfigurationError(
            f"there is no development network in {directory}", hint="`usufruct-node devnet up` makes one"
        )


def _health(net: Devnet, name: str) -> str:
    try:
        health = net.health(name)
    except (UsufructError, httpx.HTTPError) as exc:
        return str(exc)
    if health.pop("ok"):
        return "ok"
    return ", ".join(f"{part}: {state}" for part, state in health.items() if state != "ok")
