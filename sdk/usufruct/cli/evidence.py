"""Commands of step 10 for those who have no node: evidence of a lineage in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from usufruct.cli.jobs import lineage_tree, print_released, released_record
from usufruct.cli.terminal import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    PassphraseOption,
    done,
    err,
    guarded,
    moment,
    out,
    plain,
    print_json,
    say,
)
from usufruct.client import Client
from usufruct.evidence import check_evidence, read_evidence, write_evidence
from usufruct.home import Home
from usufruct.ledger import Ledger, Network

evidence_app = typer.Typer(
    help="Step 10: a lineage in one file, which others check without a node.", no_args_is_help=True
)


@evidence_app.command("export")
@guarded
def evidence_export(
    artifact: Annotated[
        str, typer.Argument(help="Id of a release, result or bundle, or of the job that left it.")
    ],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    disclose: Annotated[
        bool,
        typer.Option(
            "--disclose", help="With the released values, for all who read the file; of one's own job only."
        ),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write down a lineage with proofs of every block, event and content; ciphertexts stay where they are."""
    client = Client.open(home, passphrase_file=passphrase_file)
    with err.status("collecting") as line:
        evidence = client.collect_evidence(
            client.find_artifact(artifact), disclose=disclose, progress=lambda told: line.update(plain(told))
        )
    root = write_evidence(evidence, output)
    answer = {
        "artifact_id": evidence.artifact_id.hex(),
        "root": str(root),
        "file": str(output),
        "size_bytes": output.stat().st_size,
    }
    done(f"{output} ({answer['size_bytes']:,} bytes), to be cited as {root}", answer, as_json=as_json)


@evidence_app.command("check")
@guarded
def evidence_check(
    file: Annotated[Path, typer.Argument(help="What `evidence export` wrote.")],
    network: Annotated[
        Path | None, typer.Option(help="The network's file; by default the home's.", show_default=False)
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check evidence against the network file alone; a chain without finality proofs is asked for its blocks, too."""
    chain = Network.load(network or Home.at(home).network_file)
    with err.status("checking") as line:
        root, evidence = read_evidence(file)
        endpoint = Ledger.open(chain).endpoint if chain.chain.proof is None else None
        found = check_evidence(
            evidence, chain, endpoint=endpoint, progress=lambda told: line.update(plain(told))
        )
    released = None if found.release is None else released_record(found.release)
    if as_json:
        print_json(
            {
                "root": str(root),
                "artifact_id": evidence.artifact_id.hex(),
                "block_number": found.block_number,
                "block_hash": found.block_hash.hex(),
                "block_time": found.timestamp,
                "blocks": found.blocks,
                "validators_version": found.validators,
                "lineage": found.lineage.to_json(),
                "released": released,
            }
        )
        return
    out.print(lineage_tree(found.lineage.root))
    if released is not None:
        print_released(released, as_json=False)
    checked = found.lineage.checked
    final = (
        "as the chain's endpoint says" if found.validators is None else f"by validators {found.validators}"
    )
    say(
        f"checked {checked.events} events in {checked.series} series and {checked.contents} contents"
        f" ({checked.bytes} bytes), without ciphertexts"
    )
    say(f"{found.blocks} blocks are final, {final}")
    say(f"nothing is missing up to block {found.block_number} ({moment(found.timestamp)})")
    say(f"cite as {root}")
