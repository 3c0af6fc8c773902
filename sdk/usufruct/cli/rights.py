"""Commands about usage rights: a partner asks, a steward answers."""

from __future__ import annotations

from typing import Annotated

import typer

from usufruct import rights
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    BundleArgument,
    GrantArgument,
    HomeOption,
    JsonOption,
    PassphraseOption,
    done,
    guarded,
    moment,
    show,
)
from usufruct.client import Client, micro, seconds
from usufruct.errors import InputError
from usufruct.privacy import MICRO
from usufruct.records import ArtifactId, GrantId, Refusal
from usufruct.register import set_budget

rights_app = typer.Typer(help="Step 6: request, grant, deny, revoke.", no_args_is_help=True)


@rights_app.command("request")
@guarded
def rights_request(
    artifact: BundleArgument,
    kernel: Annotated[list[str], typer.Option(help="Kernel asked for; may be repeated.")],
    uses: Annotated[int, typer.Option(help="Number of jobs.")] = 10,
    rho: Annotated[float, typer.Option(help="Privacy budget asked for.")] = 1.0,
    days: Annotated[float, typer.Option(help="Days until the rights expire.")] = 30,
    row_level: Annotated[bool, typer.Option(help="Ask for per-row results.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a bundle's steward for rights."""
    client = Client.open(home, passphrase_file=passphrase_file)
    grant_id = client.request(
        client.bundle(ArtifactId(client.find_id("artifact", artifact))),
        kernels=kernel,
        uses=uses,
        rho=rho,
        days=days,
        row_level=row_level,
    )
    done(f"request {grant_id.hex()}", {"grant_id": grant_id.hex()}, as_json=as_json)


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
        row |= {
            "kernels": chosen["kernels"],
            "uses": f"{row['used']}/{chosen['uses']}",
            "rho": chosen["rho_micro"] / MICRO,
            "until": moment(chosen["expires_at"]),
            "min_cohort": chosen["min_cohort"],
            "replicas": chosen["replicas"],
        }
    columns = {
        "grant": "grant_id",
        "artifact": "artifact_id",
        "grantee": "grantee",
        "purpose": "purpose",
        "status": "status",
        "kernels": "kernels",
        "uses": "uses",
        "rho": "rho",
        "until": "until",
        "cohort at least": "min_cohort",
        "verifiers": "replicas",
    }
    show("rights", rows, columns, as_json=as_json)


@rights_app.command("grant")
@guarded
def rights_grant(
    grant: GrantArgument,
    kernel: Annotated[list[str], typer.Option(help="Kernel granted; may be repeated.")],
    uses: Annotated[int, typer.Option(help="Number of jobs.")] = 10,
    rho: Annotated[float, typer.Option(help="Privacy budget of the grant.")] = 1.0,
    days: Annotated[float, typer.Option(help="Days until the grant expires.")] = 30,
    min_cohort: Annotated[
        int,
        typer.Option(
            help="Fewest consenting subjects of a release; 0 for a round of fewer than ten members, whose policy then decides."
        ),
    ] = 20,
    replicas: Annotated[int, typer.Option(help="Verifiers that must agree.")] = 2,
    row_level: Annotated[bool, typer.Option(help="Allow per-row results.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grant a request on the steward's own terms."""
    client = Client.open(home, passphrase_file=passphrase_file)
    granted = rights.terms(
        kernels=kernel,
        uses=uses,
        expires_at=client.ledger.finalised().timestamp + seconds(days),
        rho_micro=micro(rho),
        min_cohort=min_cohort,
        replicas=replicas,
        row_level=row_level,
    )
    grant_id = GrantId(client.find_id("grant", grant))
    client.grant(grant_id, granted)
    done("granted", {"grant_id": grant_id.hex(), "status": "GRANTED"}, as_json=as_json)


@rights_app.command("deny")
@guarded
def rights_deny(
    grant: GrantArgument,
    reason: Annotated[str, typer.Option(help="One of the ledger's reasons, such as PURPOSE_NOT_GRANTED.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a request; the reason goes on the ledger."""
    reasons = [name for name in Refusal.__members__ if name != Refusal.NONE.name]
    if reason.upper() not in reasons:
        raise InputError(f"{reason!r} is no reason", hint=f"reasons are {', '.join(reasons)}")
    client = Client.open(home, passphrase_file=passphrase_file)
    grant_id = GrantId(client.find_id("grant", grant))
    client.deny(grant_id, Refusal[reason.upper()])
    done("denied", {"grant_id": grant_id.hex(), "status": "DENIED"}, as_json=as_json)


@rights_app.command("revoke")
@guarded
def rights_revoke(
    grant: Annotated[str | None, typer.Argument(help="One grant.")] = None,
    artifact: Annotated[str | None, typer.Option(help="Every grant on this bundle.")] = None,
    grantee: Annotated[str | None, typer.Option(help="Every grant to this partner.")] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back one grant, or all on a bundle or to a partner in one call."""
    if [grant, artifact, grantee].count(None) != 2:
        raise InputError("name one of: a grant, --artifact, --grantee")
    client = Client.open(home, passphrase_file=passphrase_file)
    if grant is not None:
        client.revoke(GrantId(client.find_id("grant", grant)))
    elif artifact is not None:
        client.revoke_all(artifact_id=ArtifactId(client.find_id("artifact", artifact)))
    else:
        client.revoke_all(grantee=grantee)
    done("revoked", {"status": "REVOKED"}, as_json=as_json)


@rights_app.command("set-budget")
@guarded
def rights_set_budget(
    artifact: BundleArgument,
    rho: Annotated[
        float, typer.Option(help="Privacy budget over all partners; not below what is committed.")
    ],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a bundle's privacy budget."""
    client = Client.open(home, passphrase_file=passphrase_file)
    artifact_id = ArtifactId(client.find_id("artifact", artifact))
    set_budget(client.ledger, artifact_id, micro(rho))
    done(f"budget {rho:g}", {"artifact_id": artifact_id.hex(), "rho": rho}, as_json=as_json)


@rights_app.command("budget")
@guarded
def rights_budget(
    artifact: BundleArgument,
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
    show("privacy budget (rho)", [row], {key: key for key in row}, as_json=as_json)
