"""`usufruct-node blocks` and `usufruct-node kubo`: what rests where, what for, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from usufruct.cli import DEFAULT_HOME, HomeOption, JsonOption, err, guarded, out, print_json, say, table_of
from usufruct.content import BlockStore, EmbeddedBlockStore, copy_pinned, repair, scan
from usufruct.content.node import NodeContent
from usufruct.errors import ConfigurationError
from usufruct.home import Home
from usufruct_node.config import NodeSettings
from usufruct_node.holdings import Holdings, Purpose
from usufruct_node.kubo import configure
from usufruct_node.storage import open_store

blocks_app = typer.Typer(
    help="What is stored and what for; the node may run meanwhile.", no_args_is_help=True
)
kubo_app = typer.Typer(help="A private Kubo daemon as this node's block store.", no_args_is_help=True)


@contextmanager
def _opened(home: Path) -> Iterator[tuple[Home, BlockStore]]:
    place = Home.at(home)
    with closing(open_store(place, NodeSettings.load(place.root))) as store:
        yield place, store


def _table(rows: list[dict[str, Any]], *, as_json: bool, none: str) -> None:
    if as_json:
        print_json(rows)
    elif not rows:
        say(none)
    else:
        shown = ([", ".join(v) if isinstance(v, list) else v for v in row.values()] for row in rows)
        out.print(table_of(rows[0], shown))


@blocks_app.command("list")
@guarded
def list_blocks(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Every block with its size and the reasons for which it is kept."""
    with _opened(home) as (_, store):
        rows = [
            {"cid": str(cid), "size_bytes": store.size(cid), "kept_for": sorted(store.pins(cid))}
            for cid in store.cids()
            if store.has(cid)
        ]
    _table(rows, as_json=as_json, none="no blocks")


@blocks_app.command("pins")
@guarded
def pins(
    home: HomeOption = DEFAULT_HOME,
    prefix: Annotated[str, typer.Option(help="Only reasons that begin so, such as `bundle:`.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What is kept for whom: reasons, and how many blocks and bytes each of them keeps."""
    with _opened(home) as (_, store):
        rows = []
        for reason in sorted(store.reasons(prefix)):
            sizes = [store.size(cid) for cid in store.pinned(reason) if store.has(cid)]
            rows.append({"reason": reason, "blocks": len(sizes), "size_bytes": sum(sizes)})
    _table(rows, as_json=as_json, none="nothing is pinned")


@blocks_app.command("missing")
@guarded
def missing(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Blocks of own bundles and records that are not in the store. Exit code 1 when there are any."""
    with _opened(home) as (place, store), closing(Holdings(place.node_database)) as holdings:
        rows = [
            {"cid": str(cid), "needed_for": f"{holding.purpose}:{holding.ref.hex()}".rstrip(":")}
            for cid, holding in holdings.all(Purpose.CATALOGUE, Purpose.BUNDLE)
            if not store.has(cid)
        ]
    _table(rows, as_json=as_json, none="nothing is missing")
    if rows:
        raise typer.Exit(1)


@blocks_app.command("scan")
@guarded
def scan_blocks(
    home: HomeOption = DEFAULT_HOME,
    repair_from: Annotated[
        str | None, typer.Option(help="Member from whom the running node fetches what is damaged.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read and hash every block. Exit code 1 when one is corrupt or missing and was not repaired."""
    with _opened(home) as (place, store):
        with err.status("scanning") as line:
            found = list(scan(store, progress=lambda seen: line.update(f"{seen} blocks read")))
        unrepaired = {damage.cid: "" for damage in found}
        if repair_from is not None and found:
            with closing(NodeContent(place.node_address().url, place.api_token)) as node:
                failed = repair(store, list(unrepaired), lambda cid: node.get(cid, holder=repair_from))
                unrepaired = {failure.cid: str(failure.error) for failure in failed}
        rows = [
            {
                "cid": str(damage.cid),
                "state": damage.state if damage.cid in unrepaired else "repaired",
                "kept_for": sorted(damage.pins),
                "error": unrepaired.get(damage.cid, ""),
            }
            for damage in found
        ]
    _table(rows, as_json=as_json, none="every block is whole")
    if unrepaired:
        raise typer.Exit(1)


@blocks_app.command("gc")
@guarded
def gc(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Remove what nobody keeps; the node does it by itself every ten minutes."""
    with _opened(home) as (_, store):
        before = store.usage_bytes()
        removed = store.gc()
        answer = {"removed": removed, "freed_bytes": before - store.usage_bytes()}
    print_json(answer) if as_json else say(f"{removed} blocks removed")


@blocks_app.command("adopt")
@guarded
def adopt(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Copy what the embedded store keeps into Kubo: after `kubo_address` was set, or after a restore."""
    with _opened(home) as (place, store):
        if isinstance(store, EmbeddedBlockStore):
            raise ConfigurationError(
                "blocks rest in the embedded store already", hint="set `kubo_address` in node.toml first"
            )
        with closing(EmbeddedBlockStore(place.blocks)) as source, err.status("copying") as line:
            copied = copy_pinned(source, store, progress=lambda done: line.update(f"{done} blocks copied"))
    answer = {"copied": copied}
    print_json(answer) if as_json else say(
        f"{copied} blocks are in Kubo; {place.blocks} can be removed once the node runs well"
    )


@kubo_app.command("config")
@guarded
def kubo_config(
    repository: Annotated[Path, typer.Option(help="Kubo's own directory (IPFS_PATH), made by `ipfs init`.")],
    home: HomeOption = DEFAULT_HOME,
    rpc: Annotated[str, typer.Option(help="Address of Kubo's RPC.")] = "/ip4/127.0.0.1/tcp/5001",
    swarm: Annotated[
        list[str] | None, typer.Option(help="Address for other Kubo daemons with the same swarm.key.")
    ] = None,
    new_secret: Annotated[bool, typer.Option("--new-secret", help="Replace the RPC's secret.")] = False,
) -> None:
    """Write the configuration of a private daemon: it stores blocks, obeys this node alone and talks to nobody."""
    place = Home.at(home)
    configure(place, repository, rpc_address=rpc, swarm=swarm or (), new_secret=new_secret)
    say(f"{repository / 'config'} is a private daemon's; its secret is in {place.kubo_token}")
    say(f"start it: LIBP2P_FORCE_PNET=1 IPFS_PATH={repository} ipfs daemon")
    settings = [f'kubo_address = "{rpc}"']
    if swarm:
        settings.append(f"kubo_swarm = [{', '.join(repr(address) for address in swarm)}]")
    say(f"then, in {place.root / 'node.toml'}: " + "; ".join(settings))
