"""Commands about jobs and what they leave behind: post, follow, verify, open, trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text
from rich.tree import Tree

from usufruct.cli.terminal import (
    DEFAULT_HOME,
    ArtifactArgument,
    BundleArgument,
    HomeOption,
    JobArgument,
    JobRhoOption,
    JsonOption,
    PassphraseOption,
    done,
    err,
    guarded,
    moment,
    out,
    plain,
    print_json,
    printable,
    read_text,
    say,
    say_facts,
    show,
)
from usufruct.client import Client
from usufruct.errors import InputError
from usufruct.he.kernels import KERNELS, MOMENTS
from usufruct.job import wait_for_job
from usufruct.lineage import LineageNode
from usufruct.privacy import MICRO
from usufruct.records import REFUSAL_HINTS, ArtifactId, GrantId, Job, JobId, JobState, Refusal, unlabel
from usufruct.release import Release

job_app = typer.Typer(help="Step 7: post jobs and follow them.", no_args_is_help=True)


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
    show("bundles", rows, columns, as_json=as_json)


def _left(budget: dict[str, int]) -> float:
    return (budget["total"] - budget["reserved"] - budget["spent"]) / MICRO


@guarded
def kernels(as_json: JsonOption = False) -> None:
    """List the registered kernels, on bundles of which scheme they run, and what their parameters are."""
    rows = [k.to_dict() | {"kernel_id": k.kernel_id.hex()} for k in KERNELS.values()]
    for row, kernel in zip(rows, KERNELS.values(), strict=True):
        fields = [f"{name}: {kind}" for name, kind in kernel.parameter_schema.items()]
        row["parameters"] = "; ".join(fields) or "none"
    columns = {
        "name": "name",
        "version": "version",
        "class": "kernel_class",
        "scheme": "scheme",
        "parameters": "parameters",
        "id": "kernel_id",
    }
    show("kernels", rows, columns, as_json=as_json)


@job_app.command("post")
@guarded
def job_post(
    artifact: BundleArgument,
    kernel: Annotated[str, typer.Option(help="Kernel to run.")],
    rho: JobRhoOption,
    parameters: Annotated[
        Path | None, typer.Option(help="JSON file with the kernel's integer parameters.")
    ] = None,
    grant: Annotated[
        str | None, typer.Option(help="Right to use; default: the newest that holds and names the kernel.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the release and print it.")] = True,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Post a job; exit code 7 when it is denied."""
    given = _read_parameters(parameters)
    client = Client.open(home, passphrase_file=passphrase_file)
    bundle = client.bundle(ArtifactId(client.find_id("artifact", artifact)))
    grant_id = None if grant is None else GrantId(client.find_id("grant", grant))
    job_id = client.post(bundle, kernel, given, rho=rho, grant_id=grant_id)
    if not wait:
        done(f"job {job_id.hex()}", {"job_id": job_id.hex()}, as_json=as_json)
        return
    err.print(f"job {job_id.hex()} is posted; it goes on, whoever waits", highlight=False)
    _wait(client, job_id)
    _print_release(client, job_id, as_json=as_json)


def _wait(client: Client, job_id: JobId, *, timeout_s: float = 600.0) -> Job:
    """Wait until a job is released, and show meanwhile where it stands."""
    with err.status("waiting") as line:
        return wait_for_job(
            client.ledger,
            job_id,
            timeout_s=timeout_s,
            on_state=lambda state: line.update(state.name.lower()),
        )


@job_app.command("wait")
@guarded
def job_wait(
    job: JobArgument,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 600,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a job is over, and print the release of one's own; exit code 7 when it failed, 9 when it is not over yet."""
    client = Client.open(home, passphrase_file=passphrase_file)
    job_id = JobId(client.find_id("job", job))
    requester = unlabel(_wait(client, job_id, timeout_s=timeout).requester)
    if requester == client.name:
        _print_release(client, job_id, as_json=as_json)
    else:
        answer = {"job_id": job_id.hex(), "state": JobState.RELEASED.name, "requester": requester}
        done(f"released, for {requester}", answer, as_json=as_json)


@job_app.command("estimate")
@guarded
def job_estimate(
    artifact: BundleArgument,
    kernel: Annotated[str, typer.Option(help="Kernel to run.")],
    rho: JobRhoOption,
    parameters: Annotated[
        Path | None, typer.Option(help="JSON file with the kernel's integer parameters.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a job would cost and how exact it would be; runs a sample of the work here and sends nothing."""
    given = _read_parameters(parameters)
    client = Client.open(home, passphrase_file=passphrase_file)
    bundle = client.bundle(ArtifactId(client.find_id("artifact", artifact)))
    found = asdict(client.estimate(bundle, client.parameters(bundle, kernel, given), rho=rho))
    if as_json:
        print_json(found)
        return
    if found["joint_rho_micro"] > bundle.policy.max_rho_micro_per_job:
        out.print(f"[red]it will be refused: {REFUSAL_HINTS[Refusal.COHORTS_TOO_CLOSE]}[/red]")
    for key, value in found.items():
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
        say(f"{key}: {shown} {_UNITS[key]}".rstrip())


_UNITS = {
    "sensitivity": "units of the integer result: the most that one subject changes it",
    "sigma": "in the result's natural units: the noise's standard deviation on a row's score, or on a mean",
    "product_sigma": "natural units squared: the same on the mean of a product of two columns, for moments",
    "value_bound": "units of the integer result: the most that it can be",
    "value_limit": "units of the integer result: where the scheme would overflow",
    "margin_bits": "bits between the ciphertext's noise and a wrong decryption",
    "quantisation_error": "in the result's natural units (squared for moments): the most that rounding features can cost",
    "seconds": "s for one execution, one process of this machine",
    "read_bytes": "bytes, read by the executor and by every verifier",
    "result_bytes": "bytes",
    "joint_rho_micro": "millionths of rho, charged with the organisation's earlier releases over nearly the same subjects",
    "gas": "gas over all transactions, from posting to release",
}


def _read_parameters(path: Path | None) -> dict[str, object]:
    try:
        given = {} if path is None else json.loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path} is no JSON: {exc}") from exc
    if not isinstance(given, dict):
        raise InputError(f"{path} holds no JSON object")
    return given


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
    rows = client.jobs(state=state)
    for row in rows:
        row |= {"rho": row["rho_micro"] / MICRO, "posted": moment(row["posted_at"])}
        row["why"] = row["refusal"] if row["refusal"] != Refusal.NONE.name else ""
    columns = {
        "job": "job_id",
        "posted": "posted",
        "kernel": "kernel",
        "requester": "requester",
        "artifact": "artifact_id",
        "rho": "rho",
        "state": "state",
        "level": "level",
        "refusal": "why",
    }
    show("jobs", rows, columns, as_json=as_json)


@job_app.command("show")
@guarded
def job_show(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job with its verdicts and every event of its life."""
    client = Client.open(home, passphrase_file=passphrase_file)
    found = client.find_job(JobId(client.find_id("job", job)))
    if as_json:
        print_json(found)
        return
    say_facts(_facts(found))
    columns = {"verifier": "verifier", "agrees": "agrees", "revealed": "revealed"}
    show("verdicts", found["verdicts"], columns, as_json=False)
    columns = {
        "time": "block_time",
        "block": "block_number",
        "event": "name",
        "transaction": "transaction_hash",
    }
    show("events", found["events"], columns, as_json=False, times=("block_time",))


def _facts(job: dict[str, Any]) -> dict[str, object]:
    """What there is to say of a job, in units that people read; what does not apply to it is left out."""
    facts = {key: value for key, value in job.items() if key not in ("artifacts", "verdicts", "events")}
    facts |= {key: moment(facts[key]) for key in ("deadline", "posted_at", "changed_at")}
    facts |= dict(zip(("result", "release"), job["artifacts"], strict=False))
    facts["rho"] = facts.pop("rho_micro") / MICRO
    if sigma := facts.pop("sigma_micro"):
        facts["sigma"] = f"{sigma / MICRO:g} units of the integer result"
    return {key: value for key, value in facts.items() if str(value).strip("0") not in ("", "None", "NONE")}


@job_app.command("rechecks")
@guarded
def job_rechecks(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List released jobs of members found to lie since, and whether an auditor's node found the same result again."""
    rows = Client.open(home, passphrase_file=passphrase_file).content.query("/rechecks")
    told = {None: "not executed again", True: "same result", False: "WRONG RESULT"}
    shown = rows if as_json else [row | {"outcome": told[row["is_same"]]} for row in rows]
    columns = {"job": "job_id", "executor": "executor", "released": "released_at", "outcome": "outcome"}
    show("rechecks", shown, columns, as_json=as_json, times=("released_at",))


@job_app.command("report")
@guarded
def job_report(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put on the ledger what members did wrong in a job that has ended; auditors' nodes do it by themselves."""
    client = Client.open(home, passphrase_file=passphrase_file)
    job_id = JobId(client.find_id("job", job))
    faults = [{"member": unlabel(org), "fault": fault.name} for org, fault in client.report(job_id)]
    told = ", ".join(f"{entry['member']} {entry['fault'].lower()}" for entry in faults)
    done(f"recorded: {told}", {"job_id": job_id.hex(), "faults": faults}, as_json=as_json)


@guarded
def verify(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Step 8: check a job's result blocks against the ledger, and the verifiers' proofs that they held them."""
    client = Client.open(home, passphrase_file=passphrase_file)
    job_id = JobId(client.find_id("job", job))
    proven = client.verify(job_id)
    done(
        f"result as committed; {proven} verifiers proved that they held it",
        {"job_id": job_id.hex(), "proofs_of_possession": proven},
        as_json=as_json,
    )


@guarded
def release(
    job: JobArgument,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Step 9: open the release of one's own job."""
    client = Client.open(home, passphrase_file=passphrase_file)
    _print_release(client, JobId(client.find_id("job", job)), as_json=as_json)


def _print_release(client: Client, job_id: JobId, *, as_json: bool) -> None:
    opened = client.open_release(job_id)
    answer = {"job_id": job_id.hex(), "artifact_id": client.release_artifact(job_id).hex()}
    print_released({**answer, **released_record(opened)}, as_json=as_json)


def released_record(opened: Release) -> dict[str, Any]:
    """What was released, by the names under which commands show it."""
    answer: dict[str, Any] = {
        "kernel": opened.kernel,
        "count": opened.count,
        "rho": opened.rho_micro / MICRO,
        "epsilon_at_delta_1e-6": opened.epsilon(),
        "mean": opened.mean(),
        "mean_error_bound_1e-6": opened.mean_error(),
        "values": opened.natural(),
    }
    if opened.kernel == MOMENTS.name:
        answer["covariances"] = opened.covariances()
        answer["covariance_error_bounds_1e-6"] = opened.covariance_errors()
    return answer


def print_released(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """A release for machines, or a line each for people."""
    if as_json:
        print_json(answer)
        return
    for key, value in answer.items():
        if isinstance(value, np.ndarray):
            digits = np.array2string(value, formatter={"float_kind": lambda number: f"{number:.5g}"})
            say(f"{key}:{' ' if value.ndim == 1 else chr(10)}{digits}")
        else:
            say(f"{key}: {value}")


@guarded
def lineage_command(
    artifact: Annotated[
        str, typer.Argument(help="Id of a release, result or bundle, or of the job that left it.")
    ],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Step 10: walk from an artifact to every consent, re-checking events and contents, and print the tree."""
    client = Client.open(home, passphrase_file=passphrase_file)
    with err.status("checking") as line:
        found = client.lineage(client.find_artifact(artifact), progress=lambda told: line.update(plain(told)))
    if as_json:
        print_json(found.to_json())
        return
    out.print(lineage_tree(found.root))
    checked = found.checked
    say(
        f"re-checked {checked.events} events in {checked.series} series and {checked.contents} contents"
        f" ({checked.bytes} bytes)"
    )


def lineage_tree(root: LineageNode) -> Tree:
    """A lineage as a tree for the terminal; an artifact that several others rest on is shown in full once."""
    return _branch(root, set())


def _branch(node: LineageNode, shown: set[ArtifactId]) -> Tree:
    title = Text.assemble((printable(node.kind.lower()), "bold"), f" {node.artifact_id.hex()[:16]}")
    if node.artifact_id in shown:
        return Tree(title.append(" as above"))
    shown.add(node.artifact_id)
    title.append(f" by {printable(node.steward)}")
    if node.stale is not None:
        title.append(*(" (consent no longer in force)", "red") if node.stale else (" (consent in force)",))
    tree = Tree(title)
    tree.add(plain(f"content {node.content}"))
    if node.job:
        for line in (
            f"job {node.job['job_id'][:16]}: {node.job['kernel']} for {node.job['requester']}, {node.job['level']}",
            f"policy version {node.policy['version']}, {node.policy['digest'][:16]}",
            f"consent epoch {node.consent['epoch']} of {node.consent['steward']} for {node.consent['scope']},"
            f" root {node.consent['consent_root'][:16]}",
        ):
            tree.add(plain(line))
    steps = tree.add("ledger")
    for step in node.steps:
        place = [f"block {step.block_number}", (step.transaction_hash or "")[:18]]
        steps.add(plain(" ".join(word for word in (*place, step.what, step.detail) if word)))
    for parent in node.parents:
        tree.children.append(_branch(parent, shown))
    return tree


@guarded
def impact(
    artifact: ArtifactArgument,
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
    show("impact", rows, columns, as_json=as_json)


@guarded
def denials(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List every refusal on the ledger with its reason."""
    rows = Client.open(home, passphrase_file=passphrase_file).denials()
    for row in rows:
        row["time"] = moment(row["block_time"])
    columns = {
        "time": "time",
        "what": "what",
        "id": "id",
        "reason": "reason",
        "requester": "requester",
        "kernel": "kernel",
        "block": "block_number",
    }
    show("denials", rows, columns, as_json=as_json)
