"""Step 5, for others than the steward: the receipts that a consent epoch was made of, and their check against the ledger.

A subject is given its own receipt with a path to the epoch's root; an auditor all of the epoch's receipts, which must make up
that root and fit the status bitstring bit by bit. They name pseudonyms, no subjects. Whoever checks trusts its chain endpoint
alone: not the steward, who hands them out, nor the index of a node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from usufruct.checked_events import CheckedEvents, registered
from usufruct.consent import (
    MAX_STATUS_BITS,
    ConsentReceipt,
    ConsentStatus,
    check_merkle_proof,
    check_receipt,
    leaves_of,
    merkle_levels,
    merkle_proof,
)
from usufruct.consent_book import ConsentBook
from usufruct.content import Cid, Codec
from usufruct.content.node import NodeContent
from usufruct.errors import InputError, VerificationError
from usufruct.ledger import Ledger
from usufruct.publish import read_manifest
from usufruct.records import ConsentEpoch, JobId, LedgerEvent, Participant, label, org_id, unlabel

PROOF_TYPE: Final = "usufruct/consent-proof/1"
_MAX_PATH: Final = MAX_STATUS_BITS.bit_length()

_WORDS: Final = ("salt", "pseudonym", "notice_digest")
_NUMBERS: Final = ("position", "given_at", "expires_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentProof:
    """Receipts of one epoch, with what shows that it was made of them."""

    steward: str
    scope: str
    epoch: int
    receipts: tuple[ConsentReceipt, ...]
    path: tuple[bytes, ...] | None
    """Siblings from the leaf of the only receipt to the root; None where these are all receipts of the epoch."""

    def to_json(self) -> dict[str, Any]:
        """The document that is handed out; bytes in hex, times in Unix seconds."""
        return {
            "type": PROOF_TYPE,
            "steward": self.steward,
            "scope": self.scope,
            "epoch": self.epoch,
            "receipts": [
                {name: getattr(receipt, name) for name in _NUMBERS}
                | {name: getattr(receipt, name).hex() for name in (*_WORDS, "signature")}
                for receipt in self.receipts
            ],
            "path": None if self.path is None else [sibling.hex() for sibling in self.path],
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> ConsentProof:
        """Parse a document strictly.

        Raises
        ------
        InputError
        """
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"not a consent proof: no JSON: {exc}") from exc
        fields = {"type", "steward", "scope", "epoch", "receipts", "path"}
        if not isinstance(given, dict) or given.get("type") != PROOF_TYPE or set(given) != fields:
            raise InputError(
                "not a consent proof",
                hint="`usufruct consent receipt` and `usufruct consent export` make them",
            )
        receipts, path = given["receipts"], given["path"]
        if not isinstance(receipts, list) or len(receipts) > MAX_STATUS_BITS:
            raise InputError("consent proof: `receipts` is no list of receipts")
        if path is not None and (not isinstance(path, list) or len(path) > _MAX_PATH or len(receipts) != 1):
            raise InputError("consent proof: `path` is no path of a single receipt")
        steward, scope = (_label(given, name) for name in ("steward", "scope"))
        return cls(
            steward=steward,
            scope=scope,
            epoch=_number(given, "epoch", least=1),
            receipts=tuple(_parse_receipt(entry, scope) for entry in receipts),
            path=None if path is None else tuple(_hex(sibling, "path", 32) for sibling in path),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConsents:
    """What the receipts say of one job."""

    job_id: str
    requester: str
    state: str
    rows: int
    """Rows, or contributions, of the job's bundle."""
    consenting_rows: int
    """Those whose subject consented at the job's epoch; of a single receipt, those of its subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedConsents:
    """A proof that holds."""

    steward: str
    scope: str
    epoch: int
    anchored_at: int
    """Unix seconds of the epoch's block."""
    in_force: bool
    """Whether no later epoch has replaced it."""
    first_expires_at: int
    """Unix seconds at which the first of the consents expires; 0 where there is none."""
    receipts: int
    whole: bool
    """Whether these are all consents of the epoch, rather than that of one subject."""
    job: JobConsents | None


def prove_consents(
    book: ConsentBook,
    ledger: Ledger,
    node: NodeContent,
    *,
    scope: str,
    epoch: int | None = None,
    subject: str | None = None,
) -> ConsentProof:
    """The receipts of an epoch of one's own, or that of one subject with its path.

    Parameters
    ----------
    epoch :
        By default the one in force.

    Raises
    ------
    InputError
        If there is no such epoch, the book did not make it, or the subject did not consent in it.
    VerificationError
        If the receipts in the book do not make up the anchored root.
    """
    steward = ledger.organisation_of(ledger.address)
    number = ledger.consent_epoch(steward, label(scope)).epoch if epoch is None else epoch
    anchored = _epoch(CheckedEvents(ledger), node, unlabel(steward), scope, number)
    receipts = book.receipts_of(anchored, _status(node, anchored, unlabel(steward), scope))
    leaves = leaves_of(receipts, steward, ledger)
    levels = merkle_levels(leaves)
    if levels[-1][0] != anchored.consent_root:
        raise VerificationError(
            f"the receipts in the consent book are not those that epoch {number} of {scope!r} was anchored with"
        )
    path = None
    if subject is not None:
        position = book.receipt(subject, scope=scope).position
        receipts = [receipt for receipt in receipts if receipt.position == position]
        if not receipts:
            raise InputError(
                f"subject {subject!r} did not consent in epoch {number} of {scope!r}",
                hint="`--epoch` names another epoch, `--job` that of a job",
            )
        path = tuple(merkle_proof(levels, leaves_of(receipts, steward, ledger)[0]))
    return ConsentProof(
        steward=unlabel(steward), scope=scope, epoch=number, receipts=tuple(receipts), path=path
    )


def check_consents(
    proof: ConsentProof,
    ledger: Ledger,
    node: NodeContent,
    *,
    job_id: JobId | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckedConsents:
    """Check receipts against what the ledger says of their epoch, and of a job that cites it.

    Every receipt was signed by the steward's authority, does not expire before the epoch says that it does, and belongs to a
    position that the bitstring says consents. One receipt is under the epoch's root; all of an epoch make up that root, one for
    each consenting position, each of another subject. When a job whose result was opened was posted, none had expired.

    Raises
    ------
    VerificationError, MissingEventError
        If any of that is not so, or the index tells of events that are not the chain's.
    InputError
        If there is no such epoch, or the job cites another.
    """
    events = CheckedEvents(ledger)
    steward = ledger.participant(org_id(proof.steward))
    try:
        anchored = _epoch(events, node, proof.steward, proof.scope, proof.epoch)
        status = _status(node, anchored, proof.steward, proof.scope)
        _check_receipts(proof, steward, ledger, status, progress)
        leaves = leaves_of(proof.receipts, steward.id, ledger)
        if proof.path is None:
            _check_whole(proof, status)
            if merkle_levels(leaves)[-1][0] != anchored.consent_root:
                raise VerificationError("the receipts do not make up the anchored root")
        else:
            check_merkle_proof(anchored.consent_root, leaves[0], proof.path)
        job = None if job_id is None else _job(events, ledger, node, proof, status, job_id)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
        raise VerificationError(f"the index tells of events in a form that makes no sense: {exc!r}") from exc
    return CheckedConsents(
        steward=proof.steward,
        scope=proof.scope,
        epoch=proof.epoch,
        anchored_at=anchored.anchored_at,
        in_force=ledger.consent_epoch(steward.id, label(proof.scope)).epoch == proof.epoch,
        first_expires_at=min((receipt.expires_at for receipt in proof.receipts), default=0),
        receipts=len(proof.receipts),
        whole=proof.path is None,
        job=job,
    )


def _check_receipts(
    proof: ConsentProof,
    steward: Participant,
    ledger: Ledger,
    status: ConsentStatus,
    progress: Callable[[int, int], None] | None,
) -> None:
    consenting = status.consenting()
    for done, receipt in enumerate(proof.receipts, start=1):
        position = receipt.position
        if position >= consenting.size or not consenting[position]:
            raise VerificationError(f"position {position} does not consent in epoch {proof.epoch}")
        # So that honest members have ended their jobs under the epoch by then.
        if receipt.expires_at < status.valid_until:
            raise VerificationError(f"the consent of position {position} expires while the epoch is in force")
        check_receipt(receipt, steward, ledger)
        if progress is not None:
            progress(done, len(proof.receipts))


def _check_whole(proof: ConsentProof, status: ConsentStatus) -> None:
    """One receipt for each consenting position, each of another subject."""
    positions = [receipt.position for receipt in proof.receipts]
    if sorted(positions) != np.flatnonzero(status.consenting()).tolist():
        raise VerificationError("there is not one receipt for each position that consents")
    if len({receipt.pseudonym for receipt in proof.receipts}) != len(positions):
        raise VerificationError("one subject has several positions, and would count as often")


def _epoch(events: CheckedEvents, node: NodeContent, steward: str, scope: str, number: int) -> ConsentEpoch:
    """An epoch as the chain has it; `events` checks what the node's index tells."""
    key = org_id(steward) + label(scope)
    raw = node.query("/consent-epochs", steward=steward, scope=scope)
    anchored = events.series("ConsentRegistry", key, raw, may_be_empty=True)
    found = next((event for event in anchored if event.args["epoch"] == number), None)
    if found is None:
        what = f"no epoch {number} of" if anchored else "no consents for"
        raise InputError(f"{steward} has anchored {what} {scope!r}")
    return _epoch_of(found)


def _epoch_of(event: LedgerEvent) -> ConsentEpoch:
    args: dict[str, Any] = event.args
    return ConsentEpoch(
        epoch=args["epoch"],
        anchored_at=event.timestamp,
        cohort_floor=args["cohortFloor"],
        consent_root=args["consentRoot"],
        status_digest=args["statusDigest"],
    )


def _status(node: NodeContent, anchored: ConsentEpoch, steward: str, scope: str) -> ConsentStatus:
    cid = Cid.from_digest(anchored.status_digest, Codec.DAG_CBOR)
    status = ConsentStatus.from_record(node.get_record(cid, holder=steward))
    if (status.scope, status.epoch) != (scope, anchored.epoch):
        raise VerificationError("the anchored bitstring is that of another epoch or purpose")
    return status


def _job(
    events: CheckedEvents,
    ledger: Ledger,
    node: NodeContent,
    proof: ConsentProof,
    status: ConsentStatus,
    job_id: JobId,
) -> JobConsents:
    told = node.query(f"/jobs/{job_id.hex()}")
    life = events.series("JobLedger", job_id, told["events"])
    posted: dict[str, Any] = life[0].args
    bundle, epoch = posted["request"]["artifactId"], posted["request"]["consentEpoch"]
    entry = node.query(f"/artifacts/{bundle.hex()}")
    steward, registration = registered(events.series("LineageRegistry", bundle, entry["events"]))
    cited = (unlabel(steward), unlabel(registration["consentScope"]), epoch)
    if cited != (proof.steward, proof.scope, proof.epoch):
        raise InputError(
            f"the job rests on epoch {cited[2]} of {cited[1]!r} of {cited[0]}",
            hint="these receipts are of another epoch; ask the steward for those with `--job`",
        )
    # A steward that decrypts, and one befriended executor, could run a job on an epoch that has run out.
    opened = any(event.name == "ReleaseOpened" for event in life)
    if opened and any(receipt.expires_at <= life[0].timestamp for receipt in proof.receipts):
        raise VerificationError("a consent had expired when the job was posted, and its result was opened")
    content = Cid.from_digest(registration["contentDigest"], Codec.DAG_CBOR)
    subjects = read_manifest(node.get_record(content, holder=proof.steward)).subjects
    consenting = status.mask_of(subjects)
    if proof.path is not None:
        consenting &= subjects == proof.receipts[0].position
    return JobConsents(
        job_id=job_id.hex(),
        requester=unlabel(posted["requester"]),
        state=ledger.progress(job_id).state.name,
        rows=len(subjects),
        consenting_rows=int(consenting.sum()),
    )


def _parse_receipt(entry: object, scope: str) -> ConsentReceipt:
    if not isinstance(entry, dict) or set(entry) != {*_NUMBERS, *_WORDS, "signature"}:
        raise InputError("consent proof: a receipt has other fields")
    position, given_at, expires_at = (_number(entry, name) for name in _NUMBERS)
    salt, pseudonym, notice_digest = (_hex(entry[name], name, 32) for name in _WORDS)
    receipt = ConsentReceipt(
        scope=scope,
        position=position,
        salt=salt,
        pseudonym=pseudonym,
        notice_digest=notice_digest,
        given_at=given_at,
        expires_at=expires_at,
        signature=_hex(entry["signature"], "signature", 65),
    )
    if receipt.position >= MAX_STATUS_BITS:
        raise InputError("consent proof: a position is out of range")
    return receipt


def _label(given: Mapping[str, object], name: str) -> str:
    text = given[name]
    if not isinstance(text, str):
        raise InputError(f"consent proof: `{name}` is no text")
    label(text)
    return text


def _number(given: Mapping[str, object], name: str, *, least: int = 0) -> int:
    value = given[name]
    if type(value) is not int or not least <= value < 1 << 63:
        raise InputError(f"consent proof: `{name}` is no whole number in range")
    return value


def _hex(text: object, name: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text) if isinstance(text, str) and len(text) == 2 * size else b""
    except ValueError:
        value = b""
    if len(value) != size:
        raise InputError(f"consent proof: `{name}` is not {size} bytes in hex")
    return value
