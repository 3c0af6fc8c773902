"""What every command shares: options, error handling, tables and JSON on the terminal."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from usufruct.durable import new_file, translated
from usufruct.errors import ConfigurationError, InputError, UsufructError
from usufruct.home import Home
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.records import Role

_PLAIN_WIDTH = 160

out = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
err = Console(stderr=True)
Command = TypeVar("Command", bound=Callable[..., Any])

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="USUFRUCT_HOME", help="The organisation's home directory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File of mode 0600 with the authority's passphrase; default: the home's, or a prompt.",
    ),
]
CustodianPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--custodian-passphrase-file",
        help="File of mode 0600 with the passphrase of the homomorphic secrets; default: the home's, or a prompt.",
    ),
]
CopiesOption = Annotated[
    int, typer.Option("--copies", help="Members that hold the ciphertexts, the steward among them.")
]
HolderOption = Annotated[
    list[str] | None,
    typer.Option("--holder", help="Member that may hold a copy; may be repeated. Default: any that fits."),
]
_DIGITS = "the first hex digits will do, as long as they stay unambiguous"
ArtifactArgument = Annotated[str, typer.Argument(help=f"Id of a bundle, result or release; {_DIGITS}.")]
BundleArgument = Annotated[str, typer.Argument(help=f"Id of a bundle; {_DIGITS}.")]
JobArgument = Annotated[str, typer.Argument(help=f"Id of a job; {_DIGITS}.")]
GrantArgument = Annotated[str, typer.Argument(help=f"Id of a request or grant; {_DIGITS}.")]
KeyDomainArgument = Annotated[str, typer.Argument(help=f"Id of a key domain; {_DIGITS}.")]
MemberArgument = Annotated[str, typer.Argument(help="Name of a member.")]
ProposalArgument = Annotated[
    int, typer.Argument(help="Number of a proposal, as `members proposals` lists it.")
]
SubjectArgument = Annotated[str, typer.Argument(help="Name of a subject, as it was recorded.")]
MatrixArgument = Annotated[
    Path, typer.Argument(help="`.npy` matrix, or `.csv` with a header line; a row for each sample.")
]
SchemaOption = Annotated[Path, typer.Option("--schema", help="JSON schema of the features.")]
JobRhoOption = Annotated[
    float,
    typer.Option(
        "--rho",
        help="Privacy to spend (zCDP): a sum's noise has a deviation of max_l2 / sqrt(2 rho), 0.5 is a common value.",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask first; for scripts.")]
DEFAULT_HOME = Path("~/.usufruct")


def _version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"usufruct {importlib.metadata.version('usufruct')}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version",
        help="Print the version and exit.",
        is_eager=True,
        callback=lambda asked: _version(asked=asked),
    ),
]


def guarded(command: Command) -> Command:
    """Print errors of the tree on stderr with their hint, and exit with their code."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> object:
        try:
            return command(*args, **kwargs)
        except UsufructError as exc:
            err.print(Text.assemble((type(exc).__name__, "red"), f": {printable(str(exc))}"), soft_wrap=True)
            if exc.hint:
                err.print(Text(f"  {printable(exc.hint)}"), soft_wrap=True)
            raise typer.Exit(exc.exit_code) from exc
        except KeyboardInterrupt as exc:
            raise typer.Exit(130) from exc

    return cast(Command, wrapped)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.integer | np.floating):
        return value.item()
    return str(value)


def done(text: str, answer: dict[str, Any], *, as_json: bool) -> None:
    """What a command did: a line for people, or a JSON document."""
    print_json(answer) if as_json else say(text)


def say(text: str) -> None:
    """A line on stdout as it is: neither markup nor breaks, so that what stands in it can be copied."""
    out.print(plain(text), soft_wrap=True, highlight=False)


def say_facts(facts: Mapping[str, object]) -> None:
    """A line for each fact about one thing."""
    for name, value in facts.items():
        say(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def show(
    title: str,
    rows: list[dict[str, Any]],
    columns: dict[str, str],
    *,
    as_json: bool,
    times: Collection[str] = (),
) -> None:
    """A list of records as a table, or whole as JSON; `times` are the keys whose values are Unix seconds."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(f"no {title}")
        return
    shown = (
        [cell(moment(row[key]) if key in times else row.get(key)) for key in columns.values()] for row in rows
    )
    out.print(table_of(columns, shown, title=title))


def table_of(columns: Iterable[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """A table of values that others may have chosen, shown as they are."""
    table = Table(*(Column(name, overflow="fold") for name in columns), title=title)
    for row in rows:
        table.add_row(*(plain(str(value)) for value in row))
    return table


def cell(value: object) -> str:
    """A value in a table; ids are shortened to as many digits as commands need."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)
    return printable(text[:12]) + "…" if len(text) == 64 else printable(text)


def moment(seconds: int | None) -> str:
    """Unix seconds as a date and time in UTC; nothing for a time that has not come."""
    if not seconds:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"second {seconds} of Unix time"


def plain(text: str) -> Text:
    """Text that others may have chosen, shown as it is: neither markup nor a terminal's commands in it count."""
    return Text(printable(text))


def printable(text: str) -> str:
    """Text that others may have chosen, with what could steer a terminal escaped."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def custodian_keystore(home: Home, passphrase_file: Path | None) -> KeyStore:
    """Homomorphic secrets: a steward seals with what its custodian opens results with.

    Raises
    ------
    ConfigurationError
        If this organisation has none.
    """
    if Role.CUSTODIAN not in home.organisation().role_bits:
        raise ConfigurationError(
            f"{home.organisation().name} is no custodian: it has no homomorphic secrets",
            hint="key domains are made, and data is sealed, in the home of an organisation with the role custodian",
        )
    default = home.custodian_passphrase if home.custodian_passphrase.is_file() else None
    prompt = f"Passphrase of {home.custodian_keystore}: "
    passphrase = read_passphrase(
        passphrase_file or default, prompt=prompt, option="--custodian-passphrase-file"
    )
    return KeyStore.open(home.custodian_keystore, passphrase)


def bar_of(*columns: ProgressColumn) -> Progress:
    """A bar on stderr that goes when it is done; where there is no terminal, none."""
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def warn(text: str) -> None:
    """A line on stderr about what was done all the same."""
    err.print(Text.assemble(("warning", "yellow"), f": {printable(text)}"), soft_wrap=True)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; whoever says no ends the command.

    Raises
    ------
    InputError
        If there is no terminal to ask at, and nobody said `--yes`.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(
            f"{question} There is no terminal to ask at", hint="`--yes` says so; nothing was changed"
        )
    typer.confirm(question, abort=True, err=True)


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that goes when it is done; give what this yields to whoever tells (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with bar_of(*columns) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def read_bytes(path: Path, *, most: int = 1 << 21) -> bytes:
    """A file that the user named, of at most `most` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc}") from exc
    if len(data) > most:
        raise InputError(f"{path} has more than {most} bytes")
    return data


def write_new(path: Path, data: bytes) -> None:
    """A file that is whole or not there, in the place of no other."""
    taken = InputError(f"{path} exists already", hint="choose another name, or move it away")
    with translated(f"{path} cannot be written"), new_file(path, taken) as file:
        file.write(data)


def read_text(path: Path) -> str:
    """A text file that the user named."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} cannot be read: {exc}") from exc


def read_names(path: Path) -> list[str]:
    """The names in a text file, one a line; empty lines count for nothing."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
