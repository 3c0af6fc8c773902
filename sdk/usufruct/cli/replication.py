"""Commands on copies of bundles: who holds them, what challenges showed, what was erased."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from usufruct.cli.steward import warn_of_copies
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    CopiesOption,
    HolderOption,
    HomeOption,
    JsonOption,
    PassphraseOption,
    done,
    guarded,
    moment,
    print_json,
    say,
    show,
)
from usufruct.client import Client
from usufruct.records import ArtifactId
from usufruct.replication import Replication

replication_app = typer.Typer(help="Copies of bundles at other members.", no_args_is_help=True)


@replication_app.command("set")
@guarded
def replication_set(
    bundle: Annotated[str, typer.Argument(help="Id of the bundle.")],
    copies: CopiesOption,
    holder: HolderOption = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change how many members hold a bundle, and which may; jobs posted under the former policy are not released."""
    client = Client.open(home, passphrase_file=passphrase_file)
    wanted = Replication(copies=copies, holders=tuple(holder or ()))
    warn_of_copies(client.ledger, wanted)
    cid = client.set_replication(ArtifactId(client.find_id("artifact", bundle)), wanted)
    done(f"policy {cid} is in force", {"policy": str(cid)}, as_json=as_json)


@replication_app.command("show")
@guarded
def replication_show(
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List bundles with the members that are to hold them, and what the last challenges by the own node showed."""
    rows = Client.open(home, passphrase_file=passphrase_file).copies()
    if not as_json:
        rows = [row | {"shown": [_holder(row, name) for name in row["holders"]]} for row in rows]
    columns = {
        "bundle": "artifact_id",
        "steward": "steward",
        "copies": "copies",
        "holders": "shown",
        "left out": "left_out",
        "bytes here": "held_bytes",
    }
    show("bundles", rows, columns, as_json=as_json)


@replication_app.command("challenges")
@guarded
def replication_challenges(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most entries.")] = 20,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the storage challenges that the own node made, newest first. Exit code 1 when the log is not whole."""
    log = Client.open(home, passphrase_file=passphrase_file).challenges(limit=limit)
    if as_json:
        print_json(log)
    else:
        columns = {name: name for name in ("sequence", "artifact_id", "holder", "outcome", "detail")}
        show("challenges", log["entries"], columns, as_json=False)
        say(f"{log['length']} entries, head {log['head']}" if log["whole"] else log["trouble"])
    if not log["whole"]:
        raise typer.Exit(1)


@replication_app.command("erasures")
@guarded
def replication_erasures(
    bundle: Annotated[str, typer.Argument(help="Id of the bundle.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who has signed that it erased a bundle, and who has not yet."""
    client = Client.open(home, passphrase_file=passphrase_file)
    answer = client.erasures(ArtifactId(client.find_id("artifact", bundle)))
    if as_json:
        print_json(answer)
        return
    columns = {"member": "holder", "erased": "what", "blocks": "blocks", "at": "erased_at"}
    show("erasures", answer["statements"], columns, as_json=False, times=("erased_at",))
    over = "over since" if answer["over"] else "until"
    awaited = ", ".join(answer["awaited"]) or "nobody"
    say(f"retention {over} {moment(answer['retain_until'])}; awaited: {awaited}")


def _holder(row: dict[str, Any], name: str) -> str:
    last = row["challenges"].get(name)
    return name if last is None else f"{name} ({last['outcome']} {moment(last['at'])})"
