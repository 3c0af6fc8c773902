"""Commands of a steward: key domains, features, publication, consents, freezing."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from usufruct.cli.terminal import (
    DEFAULT_HOME,
    ArtifactArgument,
    CopiesOption,
    CustodianPassphraseOption,
    HolderOption,
    HomeOption,
    JsonOption,
    KeyDomainArgument,
    MatrixArgument,
    PassphraseOption,
    SchemaOption,
    YesOption,
    confirm,
    counted,
    custodian_keystore,
    done,
    guarded,
    read_names,
    read_text,
    show,
    warn,
)
from usufruct.client import Client, micro, seconds
from usufruct.content import Cid
from usufruct.errors import InputError
from usufruct.features import Features, FeatureSchema, prepare_features
from usufruct.he.parameters import PARAMETER_SETS, Parameters
from usufruct.home import Home
from usufruct.keys import he_keys
from usufruct.ledger import Ledger
from usufruct.privacy import MICRO
from usufruct.publish import PublishedBundle
from usufruct.records import ArtifactId, KeyId
from usufruct.register import Policy, check_policy, check_runnable
from usufruct.replication import Replication

key_domain_app = typer.Typer(help="Homomorphic key domains of a custodian.", no_args_is_help=True)

UNREADABLE = (
    *(OSError, EOFError, ValueError, IndexError, OverflowError, MemoryError),
    *(SyntaxError, TokenError, RecursionError, csv.Error),
)
"""What numpy raises for a file that is no matrix; a `.npy` header is parsed as Python."""


def read_features(matrix: Path, schema: Path) -> Features:
    """A `.npy` matrix (no pickles) or a `.csv` with a header line, against a JSON schema."""
    try:
        declared = FeatureSchema.from_dict(with_floats(json.loads(read_text(schema))))
    except (ValueError, OverflowError, RecursionError) as exc:
        raise InputError(f"{schema} is no JSON: {exc}") from exc
    try:
        if matrix.suffix == ".npy":
            with matrix.open("rb") as handle:
                return prepare_features(np.lib.format.read_array(handle, allow_pickle=False), declared)
        if matrix.suffix == ".csv":
            with matrix.open(encoding="utf-8-sig", newline="") as text:
                header = next(csv.reader(text), [])
            values = _read_numbers(matrix)
            if not values.size:
                raise InputError(
                    f"{matrix} has no rows", hint="a header line with the columns' names, then a line a row"
                )
            return prepare_features(values, declared, [name.strip() for name in header])
    except UNREADABLE as exc:
        raise InputError(f"{matrix} cannot be read as a matrix: {exc}") from exc
    raise InputError(f"{matrix} is neither .npy nor .csv", hint="save the feature matrix with numpy.save")


def _read_numbers(matrix: Path) -> npt.NDArray[np.float64]:
    """The rows of a CSV file; a cell that is no number is named by its place, and not shown: it is somebody's data."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return np.loadtxt(matrix, delimiter=",", quotechar='"', skiprows=1, ndmin=2, encoding="utf-8-sig")
    except ValueError as exc:
        place = re.search(r"at row (\d+), column (\d+)\.$", str(exc))
        if place is None:
            raise
        raise InputError(f"{matrix}: row {int(place[1]) + 1}, column {place[2]}: no number") from None


def with_floats(schema: Any, names: Sequence[str] = ("max_l2",)) -> Any:
    """A schema, or a round's terms, in which a bound that somebody wrote as a whole number is the float that it stands for."""
    if not isinstance(schema, dict):
        return schema
    columns = schema.get("columns")
    bounds = [(schema, name) for name in names]
    for column in columns if isinstance(columns, list) else ():
        if isinstance(column, dict):
            bounds += [(column, "minimum"), (column, "maximum")]
    for place, name in bounds:
        if type(place.get(name)) is int:
            place[name] = float(place[name])
    return schema


def checked_policy(
    ledger: Ledger,
    kernel: list[str],
    *,
    parameters: Parameters | None,
    min_cohort: int,
    row_level: bool,
    max_rho: float,
    copies: int,
    holder: list[str] | None,
    budget_rho: float,
    retain_days: float,
) -> Policy:
    """The policy that options ask for, but for its purpose; raises and warns, as registering would, before hours of sealing."""
    policy = Policy(
        purposes=(),
        kernels=tuple(kernel),
        min_cohort=min_cohort,
        row_level=row_level,
        max_rho_micro_per_job=micro(max_rho),
        replication=Replication(copies=copies, holders=tuple(holder or ())),
    )
    check_policy(ledger, policy, parameters)
    check_spending(policy.max_rho_micro_per_job, micro(budget_rho))
    seconds(retain_days)
    warn_of_copies(ledger, policy.replication)
    return policy


def warn_of_copies(ledger: Ledger, wanted: Replication) -> None:
    """Say so where fewer members than wanted can hold a copy: more may join, so that it is no error."""
    if wanted.copies == 1:
        return
    most = wanted.most_copies(ledger.organisation_of(ledger.address), ledger.participants())
    if wanted.copies > most:
        warn(
            f"{wanted.copies} copies are wanted, and as the members are now there can be {most}, the steward's among them"
        )


def warn_of_same_subjects(
    client: Client, scope: str, positions: Iterable[int], *, but: Cid | None = None
) -> None:
    """Say so where own bundles have rows of these subjects already, apart from the one with the manifest `but`."""
    others = [
        bundle.artifact_id.hex()[:12]
        for bundle in client.bundles_of_subjects(set(positions), scope=scope)
        if but is None or bundle.artifact.content_digest != but.digest
    ]
    if others:
        warn(
            f"rows of some of these subjects are in {', '.join(others)} too: budgets are per bundle, and releases of both add"
            " up for these subjects; `usufruct freeze` ends the use of a bundle that the new one replaces"
        )


def check_spending(job_rho_micro: int, budget_rho_micro: int) -> None:
    """Raise InputError where a policy promises a job more than the budget of all jobs together."""
    if job_rho_micro > budget_rho_micro:
        raise InputError(
            f"one job may spend rho {job_rho_micro / MICRO:g}, and the budget over all jobs is {budget_rho_micro / MICRO:g}",
            hint="a smaller `--max-rho`, or a larger budget (`--budget-rho`, `usufruct rights set-budget`)",
        )


def check_cohort(min_cohort: int, n_subjects: int) -> None:
    """Raise InputError where nothing could ever be released."""
    if min_cohort > n_subjects:
        raise InputError(
            f"the bundle has rows of {n_subjects} subjects, and no release may be of fewer than {min_cohort}"
        )


def register(
    client: Client,
    published: PublishedBundle,
    policy: Policy,
    *,
    retain_days: float,
    budget_rho: float,
    as_json: bool,
    **more: object,
) -> None:
    """Step 4 of whatever was published, for the purpose that its manifest names; says what it was, and `more` in JSON."""
    policy = replace(policy, purposes=(published.manifest.scope,))
    artifact_id = client.register(published, policy=policy, retain_days=retain_days, budget_rho=budget_rho)
    answer = {
        "artifact_id": artifact_id.hex(),
        "manifest": str(published.cid),
        "size_bytes": published.size_bytes,
        **more,
    }
    done(f"bundle {artifact_id.hex()}\nmanifest {published.cid}", answer, as_json=as_json)


@key_domain_app.command("create")
@guarded
def key_domain_create(
    parameters: Annotated[
        str,
        typer.Option(
            help="linear: sums, scores and distances; moments: covariances; pairs: covariances of small values or few rows,"
            " in less space."
        ),
    ] = "linear",
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    custodian_passphrase_file: CustodianPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key domain: the secret goes into the custodian's keystore, its public record onto the ledger."""
    if parameters not in PARAMETER_SETS:
        raise InputError(
            f"no parameter set is called {parameters!r}", hint=f"one of {', '.join(PARAMETER_SETS)}"
        )
    place = Home.at(home)
    client = Client.open(place, passphrase_file=passphrase_file)
    secret, public = he_keys.create_key_domain(PARAMETER_SETS[parameters])
    he_keys.store_secret(custodian_keystore(place, custodian_passphrase_file), secret)
    key_id = client.register_key_domain(public)
    done(f"key domain {key_id.hex()}", {"key_id": key_id.hex()}, as_json=as_json)


@key_domain_app.command("list")
@guarded
def key_domain_list(
    home: HomeOption = DEFAULT_HOME, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List every custodian's key domains, newest first."""
    rows = Client.open(home, passphrase_file=passphrase_file).content.query("/key-domains")
    columns = {
        "key domain": "key_id",
        "custodian": "custodian",
        "parameters": "parameters",
        "status": "status",
        "registered": "registered_at",
    }
    show("key domains", rows, columns, as_json=as_json, times=("registered_at",))


@key_domain_app.command("retire")
@guarded
def key_domain_retire(
    key_domain: KeyDomainArgument,
    yes: YesOption = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """No new bundle, job or release under this key domain, for good."""
    client = Client.open(home, passphrase_file=passphrase_file)
    key_id = KeyId(client.find_id("key domain", key_domain))
    confirm(
        f"Retire key domain {key_id.hex()} for good: nothing under it is computed or released any more?",
        yes=yes,
    )
    _set_key_status(client, key_id, "retire", as_json=as_json)


@key_domain_app.command("compromised")
@guarded
def key_domain_compromised(
    key_domain: KeyDomainArgument,
    yes: YesOption = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """The secret may be known to others: final, and on the ledger."""
    client = Client.open(home, passphrase_file=passphrase_file)
    key_id = KeyId(client.find_id("key domain", key_domain))
    confirm(
        f"Tell everybody, for good, that the secret of key domain {key_id.hex()} may be known to others?",
        yes=yes,
    )
    _set_key_status(client, key_id, "markCompromised", as_json=as_json)


def _set_key_status(client: Client, key_id: KeyId, function: str, *, as_json: bool) -> None:
    client.ledger.transact("KeyRegistry", function, key_id)
    status = client.ledger.key_domain(key_id).status.name
    done(f"key domain is {status}", {"key_id": key_id.hex(), "status": status}, as_json=as_json)


@guarded
def freeze(
    artifact: ArtifactArgument,
    thaw: Annotated[bool, typer.Option("--thaw", help="Lift the freeze.")] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze a bundle: no job on it is admitted or released until it is thawed."""
    client = Client.open(home, passphrase_file=passphrase_file)
    artifact_id = ArtifactId(client.find_id("artifact", artifact))
    client.freeze(artifact_id, frozen=not thaw)
    state = client.ledger.artifact(artifact_id).frozen.name
    done(f"freeze: {state}", {"artifact_id": artifact_id.hex(), "frozen": state}, as_json=as_json)


@guarded
def features_command(matrix: MatrixArgument, schema: SchemaOption, as_json: JsonOption = False) -> None:
    """Step 1: check a feature matrix against its schema; sends nothing."""
    features = read_features(matrix, schema)
    answer = {"rows": features.n_rows, "features": features.n_features, "max_abs": features.max_abs}
    done(f"{features.n_rows} rows of {features.n_features} features fit the schema", answer, as_json=as_json)


@guarded
def publish(
    matrix: MatrixArgument,
    schema: SchemaOption,
    scope: Annotated[str, typer.Option(help="Purpose that the subjects consented to.")],
    subjects: Annotated[
        Path, typer.Option(help="One subject per line, in row order; needs recorded consents.")
    ],
    key_domain: Annotated[str, typer.Option(help="Id of the key domain.")],
    kernel: Annotated[list[str], typer.Option(help="Kernel that the policy allows; may be repeated.")],
    min_cohort: Annotated[int, typer.Option(help="Fewest consenting subjects of a release.")] = 20,
    row_level: Annotated[bool, typer.Option(help="Whether per-row results may be released.")] = False,
    max_rho: Annotated[float, typer.Option(help="Most privacy that one job may spend (rho).")] = 1.0,
    budget_rho: Annotated[float, typer.Option(help="Privacy budget over all partners (rho).")] = 10.0,
    retain_days: Annotated[float, typer.Option(help="Days after which the bundle is unusable.")] = 365,
    copies: CopiesOption = 1,
    holder: HolderOption = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    custodian_passphrase_file: CustodianPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Steps 1 to 4: check, seal, publish and register a feature matrix as one stream; no ciphertext waits on disk."""
    features = read_features(matrix, schema)
    place = Home.at(home)
    names = read_names(subjects)
    client = Client.open(place, passphrase_file=passphrase_file)
    secret = he_keys.find_secret(custodian_keystore(place, custodian_passphrase_file), key_domain)
    positions = [client.consent_receipt(name, scope=scope).position for name in names]
    policy = checked_policy(
        client.ledger,
        kernel,
        parameters=secret.parameters,
        min_cohort=min_cohort,
        row_level=row_level,
        max_rho=max_rho,
        copies=copies,
        holder=holder,
        budget_rho=budget_rho,
        retain_days=retain_days,
    )
    check_cohort(min_cohort, len(set(positions)))
    warn_of_same_subjects(client, scope, positions)
    sealed = client.seal(features, secret)
    check_runnable(policy, sealed.shape)
    with counted("sealing and publishing") as progress:
        published = client.publish(sealed, scope=scope, row_subjects=positions, progress=progress)
    register(client, published, policy, retain_days=retain_days, budget_rho=budget_rho, as_json=as_json)
