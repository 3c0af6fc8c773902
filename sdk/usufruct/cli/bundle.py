"""Commands about one bundle: what is in it, and carrying it in a file: `usufruct bundle show|seal|export|import`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from usufruct.carry import CarDestination, export_bundle, import_bundle
from usufruct.cli.steward import (
    check_cohort,
    checked_policy,
    read_features,
    register,
    warn_of_same_subjects,
)
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    CopiesOption,
    CustodianPassphraseOption,
    HolderOption,
    HomeOption,
    JsonOption,
    MatrixArgument,
    PassphraseOption,
    SchemaOption,
    counted,
    custodian_keystore,
    done,
    guarded,
    print_json,
    read_names,
    say_facts,
    show,
)
from usufruct.client import Client, open_authority_keystore
from usufruct.consent_book import ConsentBook
from usufruct.content import Cid, Codec
from usufruct.content.unixfs import FileCid
from usufruct.home import Home
from usufruct.keys import he_keys, identity
from usufruct.privacy import MICRO
from usufruct.publish import publish_bundle
from usufruct.records import ArtifactId
from usufruct.register import registered_bundle
from usufruct.seal import seal_features

bundle_app = typer.Typer(
    help="What is in a bundle; bundles as CAR files, for machines without a network.", no_args_is_help=True
)


@bundle_app.command("seal")
@guarded
def bundle_seal(
    matrix: MatrixArgument,
    file: Annotated[Path, typer.Argument(help="CAR file to make; nothing is overwritten.")],
    schema: SchemaOption,
    scope: Annotated[str, typer.Option(help="Purpose that the subjects consented to.")],
    subjects: Annotated[
        Path, typer.Option(help="One subject per line, in row order; needs recorded consents.")
    ],
    key_domain: Annotated[str, typer.Option(help="Id of the key domain.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    custodian_passphrase_file: CustodianPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Steps 1 to 3 without a network: check and seal a feature matrix into a file, and print the file's CID.

    Needs neither node nor ledger.
    """
    features = read_features(matrix, schema)
    place = Home.at(home)
    names = read_names(subjects)
    keys = identity.load_authority_keys(open_authority_keystore(place, passphrase_file))
    book = ConsentBook(
        place.consent_database,
        steward=place.organisation().id,
        pseudonym_key=keys.consent_pseudonym_key,
    )
    positions = [book.receipt(name, scope=scope).position for name in names]
    book.check_anchored(scope, positions)
    secret = he_keys.find_secret(custodian_keystore(place, custodian_passphrase_file), key_domain)
    destination = CarDestination(file)
    try:
        with counted("sealing") as progress:
            published = publish_bundle(
                seal_features(features, secret),
                destination,
                scope=scope,
                row_subjects=positions,
                progress=progress,
            )
    finally:
        destination.discard()
    answer = {
        "manifest": str(published.cid),
        "size_bytes": published.size_bytes,
        "archive_cid": str(destination.archive.cid),
        "archive_bytes": destination.archive.size_bytes,
    }
    done(f"manifest {published.cid} in {file}\narchive {destination.archive.cid}", answer, as_json=as_json)


@bundle_app.command("show")
@guarded
def bundle_show(
    bundle: Annotated[str, typer.Argument(help="Id of a registered bundle.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle has in it and what its policy allows: columns in the order in which models weigh them; no values."""
    client = Client.open(home, passphrase_file=passphrase_file)
    found = client.bundle(ArtifactId(client.find_id("artifact", bundle)))
    schema, policy, budget = found.manifest.schema, found.policy, client.budget(found.artifact_id)
    facts: dict[str, Any] = {
        "artifact_id": found.artifact_id.hex(),
        "steward": found.steward,
        "scope": found.scope,
        "features": schema.name,
        "kind": schema.kind,
        "rows": found.manifest.shape.n_rows,
        "subjects": found.manifest.n_subjects,
        "scale": schema.scale,
        "max_l2": schema.max_l2,
        "kernels": list(policy.kernels),
        "row_level": policy.row_level,
        "min_cohort": policy.min_cohort,
        "max_rho_per_job": policy.max_rho_micro_per_job / MICRO,
        "rho_left": budget.available / MICRO,
        "frozen": found.artifact.frozen.name,
        "retain_until": datetime.fromtimestamp(found.artifact.retain_until, UTC).isoformat(),
    }
    columns = [
        {"column": n, "name": one.name, "minimum": one.minimum, "maximum": one.maximum}
        for n, one in enumerate(schema.columns)
    ]
    if as_json:
        print_json(facts | {"columns": columns})
        return
    say_facts(facts)
    show("columns", columns, {name: name for name in columns[0]}, as_json=False)


@bundle_app.command("export")
@guarded
def bundle_export(
    bundle: Annotated[str, typer.Argument(help="Id of a registered bundle.")],
    file: Annotated[Path, typer.Argument(help="CAR file to make; nothing is overwritten.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an own bundle into a CAR file that every IPFS tool reads, and print the file's CID; ciphertext only."""
    client = Client.open(home, passphrase_file=passphrase_file)
    artifact = registered_bundle(client.ledger, ArtifactId(client.find_id("artifact", bundle)))
    cid = Cid.from_digest(artifact.content_digest, Codec.DAG_CBOR)
    with counted("exporting") as progress:
        archive = export_bundle(
            cid,
            lambda block: client.content.get(block, holder=client.name),
            file,
            progress=progress,
        )
    answer = {"manifest": str(cid), "size_bytes": archive.size_bytes, "archive_cid": str(archive.cid)}
    done(f"{file}: {archive.size_bytes} bytes, root {cid}\narchive {archive.cid}", answer, as_json=as_json)


@bundle_app.command("import")
@guarded
def bundle_import(
    file: Annotated[Path, typer.Argument(help="CAR file that `seal` or `export` made.")],
    kernel: Annotated[list[str], typer.Option(help="Kernel that the policy allows; may be repeated.")],
    cid: Annotated[
        str | None,
        typer.Option(
            help="CID of the file, as `seal` or `export` printed it: another file is refused before anything is taken in."
        ),
    ] = None,
    min_cohort: Annotated[int, typer.Option(help="Fewest consenting subjects of a release.")] = 20,
    row_level: Annotated[bool, typer.Option(help="Whether per-row results may be released.")] = False,
    max_rho: Annotated[float, typer.Option(help="Most privacy that one job may spend (rho).")] = 1.0,
    budget_rho: Annotated[float, typer.Option(help="Privacy budget over all partners (rho).")] = 10.0,
    retain_days: Annotated[float, typer.Option(help="Days after which the bundle is unusable.")] = 365,
    copies: CopiesOption = 1,
    holder: HolderOption = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Steps 3 and 4 of a carried bundle: verify it block by block, hand it to the node, register it."""
    expected = FileCid.parse(cid) if cid is not None else None
    client = Client.open(home, passphrase_file=passphrase_file)
    policy = checked_policy(
        client.ledger,
        kernel,
        parameters=None,
        min_cohort=min_cohort,
        row_level=row_level,
        max_rho=max_rho,
        copies=copies,
        holder=holder,
        budget_rho=budget_rho,
        retain_days=retain_days,
    )
    with counted("importing") as progress:
        published = import_bundle(file, client.content, expected=expected, progress=progress)
    manifest = published.manifest
    check_cohort(min_cohort, manifest.n_subjects)
    warn_of_same_subjects(client, manifest.scope, manifest.subjects.tolist(), but=published.cid)
    register(client, published, policy, retain_days=retain_days, budget_rho=budget_rho, as_json=as_json)
