"""Commands of step 5: a steward's consents, and the check of their receipts by anybody."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from usufruct.cli.terminal import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    PassphraseOption,
    SubjectArgument,
    counted,
    done,
    err,
    guarded,
    moment,
    print_json,
    read_names,
    read_text,
    show,
)
from usufruct.client import Client
from usufruct.consent_proof import CheckedConsents, ConsentProof
from usufruct.errors import InputError
from usufruct.privacy import MICRO
from usufruct.records import JobId, unlabel

consent_app = typer.Typer(help="Step 5: receipts, withdrawals, epochs.", no_args_is_help=True)

ScopeOption = Annotated[str | None, typer.Option(help="Purpose; a job names it by itself.")]
EpochOption = Annotated[int | None, typer.Option(min=1, help="Consent epoch; by default the one in force.")]
JobOption = Annotated[str | None, typer.Option("--job", help="The epoch that this job rests on.")]


@consent_app.command("record")
@guarded
def consent_record(
    subjects: Annotated[Path, typer.Argument(help="One subject per line.")],
    scope: Annotated[str, typer.Option(help="Purpose.")],
    notice: Annotated[Path, typer.Option(help="The notice that the subjects were shown.")],
    days: Annotated[float, typer.Option(help="Days until the consent expires.")] = 365,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign one receipt per subject and anchor the next epoch."""
    client = Client.open(home, passphrase_file=passphrase_file)
    names = read_names(subjects)
    positions = client.record_consents(names, scope=scope, notice=read_text(notice).encode(), days=days)
    epoch = client.anchor_consents(scope=scope)
    answer = {"receipts": len(positions), "epoch": epoch.epoch}
    done(f"{len(positions)} receipts, epoch {epoch.epoch}", answer, as_json=as_json)


@consent_app.command("list")
@guarded
def consent_list(
    scope: Annotated[str, typer.Option(help="Purpose.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List who consented to a purpose, who withdrew, and whose consent had expired at the newest block; from the own book."""
    rows = Client.open(home, passphrase_file=passphrase_file).consents(scope=scope)
    columns = {
        "subject": "subject",
        "position": "position",
        "state": "state",
        "given": "given_at",
        "expires": "expires_at",
        "withdrawn": "withdrawn_at",
    }
    show("consents", rows, columns, as_json=as_json, times=("given_at", "expires_at", "withdrawn_at"))


@consent_app.command("withdraw")
@guarded
def consent_withdraw(
    subject: SubjectArgument,
    scope: Annotated[str, typer.Option(help="Purpose.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Process a withdrawal: the next epoch leaves the subject out of every later job and release."""
    epoch = Client.open(home, passphrase_file=passphrase_file).withdraw_consent(subject, scope=scope)
    done(f"withdrawn; epoch {epoch.epoch} is in force", {"epoch": epoch.epoch}, as_json=as_json)


@consent_app.command("anchor")
@guarded
def consent_anchor(
    scope: Annotated[str, typer.Option(help="Purpose.")],
    supersede: Annotated[
        int | None,
        typer.Option(
            help="Epoch in force that a restored consent book lacks; enter its withdrawals again before."
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Anchor what has changed: withdrawals and receipts whose anchoring was interrupted, and consents that expired."""
    client = Client.open(home, passphrase_file=passphrase_file)
    epoch = client.anchor_consents(scope=scope, supersede=supersede)
    done(f"epoch {epoch.epoch} is in force", {"epoch": epoch.epoch}, as_json=as_json)


@consent_app.command("uses")
@guarded
def consent_uses(
    subject: SubjectArgument,
    scope: Annotated[str, typer.Option(help="Purpose.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List who used a subject's data: every job on own bundles with its rows, for what, and whether the subject counted."""
    client = Client.open(home, passphrase_file=passphrase_file)
    with err.status("looking"):
        found = client.uses(subject, scope=scope)
    rows = [asdict(use) | {"rho": use.rho_micro / MICRO} for use in found]
    columns = {
        "job": "job_id",
        "partner": "partner",
        "kernel": "kernel",
        "per row": "row_level",
        "state": "state",
        "counted": "counted",
        "rho": "rho",
        "posted": "posted_at",
        "since": "changed_at",
    }
    show("uses", rows, columns, as_json=as_json, times=("posted_at", "changed_at"))


@consent_app.command("receipt")
@guarded
def consent_receipt(
    subject: SubjectArgument,
    scope: ScopeOption = None,
    epoch: EpochOption = None,
    job: JobOption = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Print a subject's signed receipt with its path to an epoch's root, as JSON: for the subject to show."""
    _print_proof(Client.open(home, passphrase_file=passphrase_file), scope, epoch, job, subject)


@consent_app.command("export")
@guarded
def consent_export(
    scope: ScopeOption = None,
    epoch: EpochOption = None,
    job: JobOption = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Print all receipts of an epoch, under pseudonyms, as JSON: for auditors, who check that each row's subject consented."""
    _print_proof(Client.open(home, passphrase_file=passphrase_file), scope, epoch, job, None)


@consent_app.command("check")
@guarded
def consent_check(
    file: Annotated[Path, typer.Argument(help="What `receipt` or `export` printed, of any steward.")],
    job: Annotated[str | None, typer.Option(help="Also whose rows consented to this job.")] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check receipts against the ledger: signatures, the epoch's root, the bitstring; trusts neither steward nor index."""
    proof = ConsentProof.from_json(read_text(file))
    client = Client.open(home, passphrase_file=passphrase_file)
    job_id = None if job is None else JobId(client.find_id("job", job))
    with counted("checking receipts") as progress:
        checked = client.check_consents(proof, job_id=job_id, progress=progress)
    done(_told(checked), asdict(checked), as_json=as_json)


def _print_proof(
    client: Client, scope: str | None, epoch: int | None, job: str | None, subject: str | None
) -> None:
    if job is not None:
        if scope is not None or epoch is not None:
            raise InputError("a job names purpose and epoch by itself", hint="leave out --scope and --epoch")
        row = client.find_job(JobId(client.find_id("job", job)))
        bundle = client.content.query(f"/artifacts/{row['artifact_id']}")
        own = unlabel(client.ledger.organisation_of(client.ledger.address))
        if bundle["steward"] != own:
            raise InputError(f"that job is on a bundle of {bundle['steward']}, which has its receipts")
        scope = bundle["scope"]
        epoch = row["consent_epoch"]
    if scope is None:
        raise InputError("which purpose?", hint="--scope NAME, or --job ID")
    print_json(client.prove_consents(scope=scope, epoch=epoch, subject=subject).to_json())


def _told(checked: CheckedConsents) -> str:
    what, root = (
        (f"all {checked.receipts} receipts", "make up") if checked.whole else ("the receipt", "is under")
    )
    text = (
        f"{what} of epoch {checked.epoch} of {checked.scope}: signed by {checked.steward}, {root} the root that was anchored"
        f" {moment(checked.anchored_at)}; the epoch is {'in force' if checked.in_force else 'not in force any more'}, the first"
        f" consent expires {moment(checked.first_expires_at)}"
    )
    if (job := checked.job) is None:
        return text
    whose = "subjects who consented" if checked.whole else "this subject, who consented"
    return (
        f"{text}\njob {job.job_id[:12]} of {job.requester}, {job.state}: {job.consenting_rows} of its {job.rows} rows are of"
        f" {whose}"
    )
