"""`usufruct`: the steps of the path as commands, the same verbs as in the library. `--json` prints for machines.

Errors go to stderr: what happened, and what to do. Exit codes: 2 input, 3 integrity, 4 keys, 5 content, 6 ledger, 7 denied,
8 verification, 9 not over yet.
"""

import typer

from usufruct.cli.bundle import bundle_app
from usufruct.cli.chain import members_refuel, network_propose_validators, network_recovery
from usufruct.cli.consent import consent_app
from usufruct.cli.evidence import evidence_app
from usufruct.cli.founding import network_init
from usufruct.cli.jobs import (
    bundles,
    denials,
    impact,
    job_app,
    kernels,
    lineage_command,
    lineage_tree,
    release,
    verify,
)
from usufruct.cli.network import members_app, network_app
from usufruct.cli.policy import policy_app
from usufruct.cli.replication import replication_app
from usufruct.cli.rights import rights_app
from usufruct.cli.rounds import round_app
from usufruct.cli.steward import features_command, freeze, key_domain_app, publish
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    VersionOption,
    bar_of,
    err,
    guarded,
    moment,
    out,
    plain,
    print_json,
    say,
    table_of,
)

__all__ = [
    "DEFAULT_HOME",
    "HomeOption",
    "JsonOption",
    "VersionOption",
    "app",
    "bar_of",
    "err",
    "guarded",
    "lineage_tree",
    "moment",
    "out",
    "plain",
    "print_json",
    "say",
    "table_of",
]

app = typer.Typer(
    help="Use each other's sensitive data without seeing it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _about(version: VersionOption = False) -> None:
    pass


app.add_typer(key_domain_app, name="key-domain")
app.command("features")(features_command)
app.command("publish")(publish)
app.add_typer(bundle_app, name="bundle")
app.add_typer(round_app, name="round")
app.add_typer(policy_app, name="policy")
app.command("freeze")(freeze)
app.add_typer(replication_app, name="replication")
app.add_typer(consent_app, name="consent")
app.command("bundles")(bundles)
app.command("kernels")(kernels)
app.add_typer(rights_app, name="rights")
app.add_typer(job_app, name="job")
app.command("verify")(verify)
app.command("release")(release)
app.command("lineage")(lineage_command)
app.add_typer(evidence_app, name="evidence")
app.command("impact")(impact)
app.command("denials")(denials)
members_app.command("refuel")(members_refuel)
app.add_typer(members_app, name="members")
network_app.command("propose-validators")(network_propose_validators)
network_app.command("recovery")(network_recovery)
network_app.command("init")(network_init)
app.add_typer(network_app, name="network")
