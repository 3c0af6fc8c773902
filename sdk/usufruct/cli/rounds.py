"""Commands of a round, in which several members' updates are summed: `usufruct round open|contribute|close|verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from usufruct.cli.steward import UNREADABLE, check_cohort, checked_policy, register, with_floats
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    CopiesOption,
    CustodianPassphraseOption,
    HolderOption,
    HomeOption,
    JsonOption,
    PassphraseOption,
    counted,
    custodian_keystore,
    done,
    guarded,
    read_bytes,
    read_text,
    write_new,
)
from usufruct.client import Client
from usufruct.errors import ContributionRefusedError, InputError, IntegrityError, ManifestError
from usufruct.he.kernels import FEDSUM
from usufruct.home import Home
from usufruct.keys import he_keys
from usufruct.records import ArtifactId
from usufruct.register import check_runnable
from usufruct.rounds import Call, Contributed, RoundTerms, read_contribution, write_contribution

round_app = typer.Typer(
    help="Sums of what several members contribute, such as model updates of federated learning.",
    no_args_is_help=True,
)
_TERMS = {"name", "extractor", "entries", "max_abs", "max_l2", "scale"}
CallArgument = Annotated[Path, typer.Argument(help="File that `round open` made.")]


@round_app.command("open")
@guarded
def round_open(
    terms: Annotated[
        Path, typer.Argument(help=f"JSON: {', '.join(sorted(_TERMS))}; extractor has name and sha256.")
    ],
    file: Annotated[Path, typer.Argument(help="File to make and to hand to the members.")],
    key_domain: Annotated[
        str, typer.Option(help="Id of an own key domain, made with `--parameters moments`.")
    ],
    scope: Annotated[str, typer.Option(help="Purpose for which the updates may be summed.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    custodian_passphrase_file: CustodianPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call for updates: what one is, how long it may be, and the public key under which members encrypt theirs."""
    told = _read_terms(terms)
    place = Home.at(home)
    client = Client.open(place, passphrase_file=passphrase_file)
    secret = he_keys.find_secret(custodian_keystore(place, custodian_passphrase_file), key_domain)
    ids = {"key_id": secret.key_id, "parameters_id": secret.parameters.parameters_id}
    try:
        agreed = RoundTerms.from_dict(told | ids)
    except ManifestError as exc:
        raise InputError(str(exc)) from exc
    call = client.call_for_updates(secret, agreed, scope=scope)
    write_new(file, call.to_bytes())
    answer = {"call": call.digest.hex(), "entries": agreed.n_entries, "scope": scope}
    done(f"call {call.digest.hex()} in {file}", answer, as_json=as_json)


@round_app.command("contribute")
@guarded
def round_contribute(
    call: CallArgument,
    update: Annotated[Path, typer.Argument(help="`.npy` file: one finite number for each entry.")],
    file: Annotated[Path, typer.Argument(help="File to make and to hand to the steward.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Clip an update to the call's bounds, encrypt it, and sign it: the signature is the consent to the call's purpose."""
    asked = _read_call(call)
    values = _read_update(update)
    client = Client.open(home, passphrase_file=passphrase_file)
    made = client.contribute(asked, values)
    write_contribution(made, file)
    norm = float(np.linalg.norm(values))
    answer = {
        "call": asked.digest.hex(),
        "steward": asked.steward,
        "scope": asked.scope,
        "entries": asked.terms.n_entries,
        "norm": norm,
        "shortened": norm > asked.terms.max_l2 or float(np.abs(values).max()) > asked.terms.max_abs,
    }
    told = ", shortened to the call's bounds" if answer["shortened"] else ""
    done(f"contribution to {asked.steward} for {asked.scope} in {file}{told}", answer, as_json=as_json)


@round_app.command("close")
@guarded
def round_close(
    call: CallArgument,
    contributions: Annotated[list[Path], typer.Argument(help="Files that members handed in.")],
    min_cohort: Annotated[int, typer.Option(help="Fewest contributions of a release.")] = 3,
    max_rho: Annotated[float, typer.Option(help="Most privacy that one job may spend (rho).")] = 1.0,
    budget_rho: Annotated[float, typer.Option(help="Privacy budget over all partners (rho).")] = 10.0,
    retain_days: Annotated[float, typer.Option(help="Days after which the round is unusable.")] = 365,
    copies: CopiesOption = 1,
    holder: HolderOption = None,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every contribution, record its member's consent, and publish and register them as one bundle."""
    asked = _read_call(call)
    client = Client.open(home, passphrase_file=passphrase_file)
    policy = checked_policy(
        client.ledger,
        [FEDSUM.name],
        parameters=asked.terms.parameters,
        min_cohort=min_cohort,
        row_level=False,
        max_rho=max_rho,
        copies=copies,
        holder=holder,
        budget_rho=budget_rho,
        retain_days=retain_days,
    )
    shape = asked.terms.shape(len(contributions))
    check_cohort(min_cohort, len(contributions))
    check_runnable(policy, shape, of_contributions=True)
    found = [_read_contribution(path, shape.n_chunks) for path in contributions]
    with counted("checking contributions") as progress:
        published = client.publish_round(asked, found, consent_days=retain_days, progress=progress)
    register(
        client,
        published,
        policy,
        retain_days=retain_days,
        budget_rho=budget_rho,
        as_json=as_json,
        members=[column.name for column in published.manifest.schema.columns],
    )


@round_app.command("verify")
@guarded
def round_verify(
    bundle: Annotated[str, typer.Argument(help="Id of a registered bundle of contributions.")],
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that every member whose column a bundle has signed for exactly these ciphertexts; for anybody."""
    client = Client.open(home, passphrase_file=passphrase_file)
    found = client.bundle(ArtifactId(client.find_id("artifact", bundle)))
    members = client.check_round(found)
    answer = {"artifact_id": found.artifact_id.hex(), "members": members}
    done(f"signed by {', '.join(members)}", answer, as_json=as_json)


def _read_call(file: Path) -> Call:
    try:
        return Call.from_bytes(read_bytes(file))
    except IntegrityError as exc:
        raise InputError(
            f"{file} is no call for updates: {exc}", hint="`usufruct round open` makes one"
        ) from exc


def _read_terms(path: Path) -> dict[str, Any]:
    try:
        told = with_floats(json.loads(read_text(path)), ("max_abs", "max_l2"))
    except (ValueError, OverflowError, RecursionError) as exc:
        raise InputError(f"{path} is no JSON: {exc}") from exc
    if not isinstance(told, dict) or set(told) != _TERMS:
        raise InputError(f"{path} is no round's terms", hint=f"fields are {', '.join(sorted(_TERMS))}")
    return told


def _read_contribution(path: Path, most_blocks: int) -> Contributed:
    try:
        return read_contribution(path, most_blocks=most_blocks)
    except IntegrityError as exc:
        raise ContributionRefusedError(f"{path} is no contribution: {exc}") from exc


def _read_update(path: Path) -> npt.NDArray[np.float64]:
    try:
        with path.open("rb") as handle:
            read = np.lib.format.read_array(handle, allow_pickle=False)
            values = np.asarray(read, dtype=np.float64)
    except UNREADABLE as exc:
        raise InputError(f"{path} cannot be read as an update: {exc}") from exc
    if values.ndim != 1 or not values.size:
        raise InputError(f"{path} has the shape {values.shape}; an update has one number for each entry")
    return values
