"""Answers a node's requests about jobs: refuses, or decrypts, adds noise, and encrypts to the partner.

Order of a release: recall one that was made; check the case and its records; take in the result blocks, each against its CID;
proofs of possession; differencing and the key's count, durably; decrypt the permitted slots in a worker; clip, noise, grid;
encrypt to the partner; keep; answer. Only what was kept is ever answered, so whatever a crash interrupts shows one noise.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from tempfile import TemporaryFile
from typing import IO, Final, overload

from usufruct.consent import ConsentStatus
from usufruct.content import Cid, Codec, dag
from usufruct.content.dag import DagValue
from usufruct.differencing import Asked
from usufruct.errors import (
    BlockMismatchError,
    CustodianError,
    InputError,
    IntegrityError,
    ReleaseRefusedError,
    UsufructError,
    VerificationError,
    WrongKeyDomainError,
)
from usufruct.he.isolated import IsolatedOpener
from usufruct.home import Home
from usufruct.job import JobInputs
from usufruct.keys import he_keys, hpke
from usufruct.keys.keystore import KeyStore
from usufruct.publish import read_manifest
from usufruct.records import JobState, KeyId
from usufruct.release import add_noise, decrypt_result, seal_payload, sigma_micro
from usufruct.verify import check_possessions
from usufruct_node.custodian import wire
from usufruct_node.custodian.case import Case, Records, check_case
from usufruct_node.custodian.vault import Entry, Kept, Vault

MOST_MISSING: Final = 64
"""Forgotten releases that are asked for at a time."""


class Service:
    """The custodian of one home.

    Parameters
    ----------
    keystore :
        Unlocked; a secret is read when it is first needed, so new ones are found without a restart.
    key_openings :
        Result blocks that one key may open in its life.
    """

    def __init__(self, home: Home, keystore: KeyStore, *, key_openings: int) -> None:
        self._org = home.organisation().id
        self._root = home.root
        self._keystore = keystore
        self._key_openings = key_openings
        self._vault = Vault(home.custodian_database)
        self._openers: dict[KeyId, IsolatedOpener] = {}
        self._opening = threading.Lock()

    def serve(self, channel: socket.socket) -> None:
        """Answer the requests of one connection until it ends, or breaks the protocol."""
        with channel:
            wire.check_peer(channel)
            while (request := wire.receive_record(channel)) is not None:
                wire.send_record(channel, self._answer(channel, request))

    def _answer(self, channel: socket.socket, request: dict[str, DagValue]) -> dict[str, object]:
        if request.get("type") != wire.PROTOCOL:
            raise CustodianError("a request of another protocol")
        try:
            match request.get("ask"):
                case "state":
                    return {"status": "ok", **self._state()}
                case "examine":
                    return self._examine(channel, request)
                case "release":
                    return self._release(channel, request)
                case "remember":
                    return self._remember(channel, request)
                case "destroy":
                    return self._destroy(request)
            raise CustodianError(f"nothing is called {request.get('ask')!r}")
        except CustodianError:
            raise
        except ReleaseRefusedError as exc:
            return {"status": "refused", "reason": exc.reason, "message": exc.hint or str(exc)}
        except VerificationError as exc:
            return {"status": "refused", "reason": "POSSESSION_UNPROVEN", "message": str(exc)}
        except BlockMismatchError as exc:
            return {"status": "failed", "message": str(exc)}
        except (InputError, IntegrityError, WrongKeyDomainError) as exc:
            return {"status": "refused", "reason": "RESULT_INVALID", "message": str(exc)}
        except UsufructError as exc:
            return {"status": "failed", "message": str(exc)}

    def _state(self) -> dict[str, object]:
        return {
            "limit": self._key_openings,
            "opened": {key.hex(): count for key, count in self._vault.openings().items()},
            "keys": [key.hex() for key in he_keys.key_ids(self._keystore)],
        }

    def _destroy(self, request: dict[str, DagValue]) -> dict[str, object]:
        """Forget a secret for good, in the keystore and in the worker that opens with it."""
        key_id = request.get("key")
        if set(request) != {"type", "ask", "key"} or not isinstance(key_id, bytes):
            raise CustodianError("a request without a key id")
        with self._opening:
            if (opener := self._openers.pop(KeyId(key_id), None)) is not None:
                opener.__exit__(None, None, None)
            if key_id in he_keys.key_ids(self._keystore):
                he_keys.destroy_secret(self._keystore, key_id)
        return {"status": "ok"}

    def _examine(self, channel: socket.socket, request: dict[str, DagValue]) -> dict[str, object]:
        case, records = _read_case(channel, request)
        with TemporaryFile(dir=self._root) as file:
            blocks = _Spool(file)
            inputs = self._checked(channel, case, records, blocks, JobState.VERIFIED)
            missing = self._missing(case)
            if missing:
                return missing
            # Whatever could fail once the budget is spent is tried before: the secret, its worker, the partner's key.
            hpke.seal_to(case.recipient_key, b"rehearsal", b"usufruct/rehearsal")
            with self._opening:
                self._opener(case.job.key_id).start()
            self._vault.announce(self._entry(case, inputs, len(blocks)))
        return {"status": "ok"}

    def _release(self, channel: socket.socket, request: dict[str, DagValue]) -> dict[str, object]:
        case, records = _read_case(channel, request)
        with TemporaryFile(dir=self._root) as file:
            blocks, kept = _Spool(file), self._vault.kept(case.job_id)
            if kept is not None:
                blocks.drain(channel)
            else:
                inputs = self._checked(channel, case, records, blocks, JobState.OPENED)
                missing = self._missing(case)
                if missing:
                    return missing
                kept = self._made(case, inputs, blocks)
        return {"status": "ok", "sealed": kept.sealed, "sigma_micro": kept.sigma_micro}

    def _made(self, case: Case, inputs: JobInputs, blocks: Sequence[bytes]) -> Kept:
        self._vault.open(self._entry(case, inputs, len(blocks)))
        with self._opening:
            opened = decrypt_result(inputs, blocks, self._opener(case.job.key_id))
        noised, levels = add_noise(opened, inputs, rho_micro=case.job.request.rho_micro)
        sealed = seal_payload(
            case.chain_id, case.job_id, case.job, inputs, noised, levels, recipient_key=case.recipient_key
        )
        return self._vault.keep(case.job_id, Kept(sealed=sealed, sigma_micro=sigma_micro(levels)))

    def _remember(self, channel: socket.socket, request: dict[str, DagValue]) -> dict[str, object]:
        """A release of an earlier self: of whom it told is known from the consent epoch, if somebody still has its status;
        what it told is not.
        """
        case, records = _read_case(channel, request)
        manifest_cid = Cid.from_digest(case.artifact.content_digest, Codec.DAG_CBOR)
        manifest_cid.check(records.manifest)
        manifest = read_manifest(dag.decode_map(records.manifest))
        status = None
        if records.status:
            Cid.from_digest(case.cited_epoch.status_digest, Codec.DAG_CBOR).check(records.status)
            status = ConsentStatus.from_record(dag.decode_map(records.status))
        asked = Asked.forgotten(manifest, status, case.job.request.rho_micro)
        self._vault.remember(case.job_id, case.job.request.artifact_id, asked)
        return {"status": "ok"}

    def _checked(
        self, channel: socket.socket, case: Case, records: Records, blocks: _Spool, state: JobState
    ) -> JobInputs:
        try:
            inputs, result = check_case(case, records, self._org, state)
        except UsufructError:
            blocks.drain(channel)
            raise
        blocks.take(channel, result.blocks)
        check_possessions(dict(case.possessions), blocks, replicas=case.job.replicas)
        return inputs

    def _missing(self, case: Case) -> dict[str, object] | None:
        unknown = self._vault.unknown(case.released_jobs - {case.job_id})
        if not unknown:
            return None
        return {"status": "missing", "jobs": [bytes(job) for job in unknown[:MOST_MISSING]]}

    def _entry(self, case: Case, inputs: JobInputs, openings: int) -> Entry:
        request = case.job.request
        return Entry(
            job_id=case.job_id,
            artifact_id=request.artifact_id,
            key_id=case.job.key_id,
            result_digest=case.job.result_digest,
            asked=Asked.by(inputs, request.rho_micro),
            under_way=set(case.under_way),
            minimum=max(inputs.policy.min_cohort, case.grant.terms.min_cohort),
            limit_rho_micro=inputs.policy.max_rho_micro_per_job,
            openings=openings,
            most_openings=self._key_openings,
        )

    def _opener(self, key_id: KeyId) -> IsolatedOpener:
        if key_id not in self._openers:
            secret = he_keys.load_secret(self._keystore, key_id)
            self._openers[key_id] = IsolatedOpener(secret)
        return self._openers[key_id]


class _Spool(Sequence[bytes]):
    """Result blocks of one request in a nameless file, so that memory holds one at a time. Ciphertexts only."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ends = [0]

    def take(self, channel: socket.socket, cids: Sequence[Cid]) -> None:
        """Take in exactly these blocks; raises BlockMismatchError once all have been read if one is another."""
        wrong: UsufructError | None = None
        for cid in cids:
            block = wire.receive(channel)
            if not block:
                raise CustodianError("the result blocks broke off")
            try:
                cid.check(block)
            except UsufructError as exc:
                wrong = exc
            self._file.write(block)
            self._ends.append(self._file.tell())
        if wire.receive(channel) != b"":
            raise CustodianError("more result blocks than the manifest names")
        if wrong is not None:
            raise wrong

    def drain(self, channel: socket.socket) -> None:
        """Read past blocks that are not needed."""
        while block := wire.receive(channel):
            del block

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        self._file.seek(self._ends[index])
        return self._file.read(self._ends[index + 1] - self._ends[index])


def _read_case(channel: socket.socket, request: dict[str, DagValue]) -> tuple[Case, Records]:
    told = request.get("case")
    if set(request) != {"type", "ask", "case"} or not isinstance(told, dict):
        raise CustodianError("a request without a case")
    bodies = {name: wire.receive(channel) for name in Records.names()}
    if None in bodies.values():
        raise CustodianError("the records broke off")
    records = Records(**{name: body or b"" for name, body in bodies.items()})
    return Case.from_record(told), records
