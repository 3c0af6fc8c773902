"""Cases for a custodian, made with real keys and real ciphertexts, and a custodian process that dies where it is told to."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bundle_fixture import ROWS, SCOPE, SmallBundle
from chain_fixture import Organisation
from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.home import Home
from usufruct.job import JobParameters
from usufruct.keys import he_keys
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct.records import (
    Artifact,
    ConsentEpoch,
    GrantStatus,
    GrantTerms,
    Job,
    JobId,
    JobState,
    KeyDomain,
    KeyStatus,
    Level,
    OrgId,
    Role,
    UsageGrant,
    label,
    org_id,
)
from usufruct.release import Release, open_envelope, read_payload, sign_release
from usufruct.verify import ResultManifest, possession
from usufruct_node.custodian import Case, CustodianProcess, Records, Sealed
from usufruct_node.enrol import create_home_with_passphrase_files

NOW = 1_000_000
PARTNER = Organisation("university", Role.PARTNER)
CUSTODIAN = Organisation("north", Role.CUSTODIAN)
VERIFIERS = [org_id(name) for name in ("south", "auditor", "east")]


@dataclass(frozen=True)
class Question:
    """One job, ready to be put to a custodian."""

    case: Case
    records: Records
    blocks: list[bytes]

    def opened(self) -> Question:
        """The same once decryption was announced."""
        return self.altered(job=replace(self.case.job, state=JobState.OPENED))

    def altered(self, **changes: object) -> Question:
        """The same with another word of the ledger."""
        return replace(self, case=replace(self.case, **changes))

    def examine(self, process: CustodianProcess) -> None:
        process.examine(self.case, self.records, self.blocks)

    def release(self, process: CustodianProcess) -> Sealed:
        return process.release(self.case, self.records, self.blocks)


def question(
    bundle: SmallBundle,
    parameters: JobParameters | None = None,
    *,
    job_id: bytes = b"\x0a" * 32,
    rho_micro: int = 500_000,
    withdrawn: tuple[int, ...] = (3, 20),
    **policy: Any,
) -> Question:
    """A verified job on the bundle."""
    asked = bundle.parameters() if parameters is None else parameters
    bits = np.zeros(ROWS, dtype=np.uint8)
    bits[list(withdrawn)] = 1
    status = ConsentStatus(scope=SCOPE, epoch=1, valid_until=NOW + 1000, bits=np.packbits(bits).tobytes())
    bundle = replace(bundle, status=status, policy=replace(bundle.policy, **policy))
    told = {
        "manifest": dag.encode(bundle.record),
        "policy": dag.encode(bundle.policy.to_record()),
        "status": dag.encode(status.to_record()),
        "parameters": dag.encode(asked.to_record()),
    }
    cids = {name: Cid.of(data, Codec.DAG_CBOR) for name, data in told.items()}
    blocks = bundle.result(asked)
    result = ResultManifest(
        job_id=JobId(job_id),
        kernel_id=asked.kernel.kernel_id,
        bundle=cids["manifest"],
        status=cids["status"],
        parameters=cids["parameters"],
        blocks=tuple(Cid.of(block) for block in blocks),
    )
    artifact: Artifact = replace(
        bundle.artifact, content_digest=cids["manifest"].digest, policy_digest=cids["policy"].digest
    )
    job: Job = bundle.job(
        asked,
        state=JobState.VERIFIED,
        result_digest=result.cid.digest,
        request=bundle.request(asked, parameters_digest=cids["parameters"].digest, rho_micro=rho_micro),
    )
    terms = GrantTerms(
        kernels=(asked.kernel.kernel_id,),
        uses=10,
        expires_at=1 << 40,
        rho_micro=1 << 60,
        min_cohort=1,
        level=Level.REPLICATED,
        replicas=2,
        row_level=asked.row_level,
    )
    case = Case(
        chain_id=881812,
        now=NOW,
        job_id=JobId(job_id),
        job=job,
        artifact=artifact,
        policy_digest=cids["policy"].digest,
        domain=KeyDomain(
            custodian=OrgId(CUSTODIAN.id),
            parameters_id=bundle.secret.parameters.parameters_id,
            public_digest=b"\x05" * 32,
            epoch=1,
            registered_at=1,
            status=KeyStatus.ACTIVE,
        ),
        grant=UsageGrant(
            artifact_id=job.request.artifact_id,
            grantee=job.requester,
            purpose=label(SCOPE),
            status=GrantStatus.GRANTED,
            used=1,
            terms=terms,
        ),
        cited_epoch=ConsentEpoch(
            epoch=1,
            anchored_at=1,
            cohort_floor=20,
            consent_root=b"\x06" * 32,
            status_digest=cids["status"].digest,
        ),
        epoch_in_force=1,
        requester_active=True,
        recipient_key=PARTNER.record.hpke_key,
        possessions=tuple((org, possession(org, blocks)) for org in VERIFIERS),
        under_way=(JobId(job_id),),
        released=b"",
    )
    return Question(case, Records(**told, result=dag.encode(result.to_record())), blocks)


def custodian_home(root: Path, bundle: SmallBundle) -> Home:
    """A custodian's home whose keystore holds the bundle's secret."""
    create_home_with_passphrase_files(root, name="north", roles=Role.STEWARD | Role.CUSTODIAN)
    home = Home.at(root)
    store = KeyStore.open(home.custodian_keystore, read_passphrase(home.custodian_passphrase))
    he_keys.store_secret(store, bundle.secret)
    return home


def opened_by_partner(network: Any, asked: Question, made: Sealed) -> Release:
    """What the partner reads."""
    job, job_id = asked.case.job, asked.case.job_id
    envelope = sign_release(
        network, job_id, job, made.sealed, made.sigma_micro, signing_key=CUSTODIAN.node_key
    )
    payload = open_envelope(
        network, job_id, job, envelope, custodian=CUSTODIAN.record, hpke_private=PARTNER.hpke_private
    )
    return read_payload(envelope, payload, job_id, job.request)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    _die()
    return call(*arguments, **named)


def _after(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    call(*arguments, **named)
    _die()


STEPS = {
    "before anything": ("check_case", _before),
    "once it is checked": ("check_possessions", _after),
    "once it is counted": ("Vault.open", _after),
    "once it is decrypted": ("decrypt_result", _after),
    "once noise is drawn": ("add_noise", _after),
    "once it is encrypted": ("seal_payload", _after),
    "once it is kept": ("Vault.keep", _after),
    "while it answers": ("wire.send_record", _before),
}
"""Where a process can be made to die."""

ASKING = "asking"
"""In place of a step: a process that asks for its passphrase, and nobody types it."""


def _run_and_die(step: str) -> int:
    from usufruct_node.custodian import __main__, service

    if step == ASKING:
        __main__._passphrase = lambda *_: signal.pause()  # type: ignore[assignment]
        return __main__.main()
    path, how = STEPS[step]
    owner: Any = service
    *above, name = path.split(".")
    for part in above:
        owner = getattr(owner, part)
    true = getattr(owner, name)
    if above == ["Vault"]:
        setattr(owner, name, lambda self, *a, **k: how(partial(true, self), *a, **k))
    else:
        setattr(owner, name, partial(how, true))
    return __main__.main()


if __name__ == "__main__":
    sys.exit(_run_and_die(os.environ["DIE"]))
