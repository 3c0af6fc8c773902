"""Commands on what a steward allows on a bundle: `usufruct policy show|set`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from usufruct.cli.steward import check_cohort, check_spending
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    PassphraseOption,
    done,
    guarded,
    print_json,
    say_facts,
)
from usufruct.client import Client, micro
from usufruct.errors import InputError
from usufruct.job import FeatureBundle
from usufruct.privacy import MICRO
from usufruct.records import ArtifactId
from usufruct.register import Policy

policy_app = typer.Typer(help="What a steward allows on a bundle.", no_args_is_help=True)


@policy_app.command("set")
@guarded
def policy_set(
    bundle: Annotated[str, typer.Argument(help="Id of an own bundle.")],
    kernel: Annotated[
        list[str] | None, typer.Option(help="Kernel to allow, in place of those before; may be repeated.")
    ] = None,
    min_cohort: Annotated[int | None, typer.Option(help="Fewest consenting subjects of a release.")] = None,
    row_level: Annotated[bool | None, typer.Option(help="Whether per-row results may be released.")] = None,
    max_rho: Annotated[float | None, typer.Option(help="Most privacy that one job may spend (rho).")] = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put another policy in force; what is not given stays. Jobs posted under the former one are not released."""
    client = Client.open(home, passphrase_file=passphrase_file)
    found = client.bundle(ArtifactId(client.find_id("artifact", bundle)))
    policy = _changed(found.policy, kernel, min_cohort, row_level, max_rho)
    if policy == found.policy:
        raise InputError("the policy in force says the same; nothing was changed")
    check_cohort(policy.min_cohort, found.manifest.n_subjects)
    check_spending(policy.max_rho_micro_per_job, client.budget(found.artifact_id).total)
    cid = client.change_policy(found.artifact_id, policy)
    done(f"policy {cid} is in force", {"policy": str(cid)}, as_json=as_json)


def _changed(
    policy: Policy,
    kernels: list[str] | None,
    min_cohort: int | None,
    row_level: bool | None,
    max_rho: float | None,
) -> Policy:
    return replace(
        policy,
        kernels=policy.kernels if kernels is None else tuple(kernels),
        min_cohort=policy.min_cohort if min_cohort is None else min_cohort,
        row_level=policy.row_level if row_level is None else row_level,
        max_rho_micro_per_job=policy.max_rho_micro_per_job if max_rho is None else micro(max_rho),
    )


@policy_app.command("show")
@guarded
def policy_show(
    bundle: Annotated[str, typer.Argument(help="Id of a registered bundle.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the policy in force on a bundle."""
    client = Client.open(home, passphrase_file=passphrase_file)
    facts = _facts(client.bundle(ArtifactId(client.find_id("artifact", bundle))))
    if as_json:
        print_json(facts)
        return
    say_facts(facts)


def _facts(bundle: FeatureBundle) -> dict[str, object]:
    policy = bundle.policy
    return {
        "artifact_id": bundle.artifact_id.hex(),
        "version": bundle.artifact.policy_version,
        "purposes": list(policy.purposes),
        "kernels": list(policy.kernels),
        "min_cohort": policy.min_cohort,
        "row_level": policy.row_level,
        "max_rho_per_job": policy.max_rho_micro_per_job / MICRO,
        "copies": policy.replication.copies,
        "holders": list(policy.replication.holders),
    }
