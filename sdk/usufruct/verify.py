"""Step 8, verify: what a result is, and how a verifier shows that it computed the result itself.

Pure functions over records and bytes; the roles of the node and auditors call them. Verification raises, never returns False.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import eth_abi.abi
from eth_utils.crypto import keccak

from usufruct.content import Cid, Codec, dag
from usufruct.errors import ManifestError, ResultMismatchError, VerificationError
from usufruct.ledger import typed_data
from usufruct.records import JobId, OrgId, SignedVerdict

RESULT_TYPE = "usufruct/result/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultManifest:
    """What a job computed from what; the digest of its block is what executor and verifiers commit to."""

    job_id: JobId
    kernel_id: bytes
    bundle: Cid
    status: Cid
    parameters: Cid
    blocks: tuple[Cid, ...]
    """Result ciphertexts in the kernel's order of outputs."""

    def to_record(self) -> dict[str, object]:
        """The record whose DAG-CBOR block is committed to."""
        return {
            "type": RESULT_TYPE,
            "job": bytes(self.job_id),
            "kernel": self.kernel_id,
            "bundle": self.bundle,
            "status": self.status,
            "parameters": self.parameters,
            "blocks": list(self.blocks),
        }

    @property
    def cid(self) -> Cid:
        """CID of the record; its digest goes on the ledger."""
        return dag.cid_of(self.to_record())

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> ResultManifest:
        """Parse strictly.

        Raises
        ------
        ManifestError
        """
        links = ("bundle", "status", "parameters")
        if record.get("type") != RESULT_TYPE or set(record) != {"type", "job", "kernel", "blocks", *links}:
            raise ManifestError("not a result manifest")
        job, kernel, blocks = record["job"], record["kernel"], record["blocks"]
        if not isinstance(job, bytes) or not isinstance(kernel, bytes) or len(job) != 32 or len(kernel) != 32:
            raise ManifestError("result manifest: `job` or `kernel` is no id")
        if not isinstance(blocks, list) or not all(
            isinstance(c, Cid) and c.codec == Codec.RAW for c in blocks
        ):
            raise ManifestError("result manifest: `blocks` does not list raw CIDs")
        targets = {name: record[name] for name in links}
        if not all(isinstance(c, Cid) and c.codec == Codec.DAG_CBOR for c in targets.values()):
            raise ManifestError("result manifest: an input is no record's CID")
        return cls(job_id=JobId(job), kernel_id=kernel, blocks=tuple(blocks), **targets)  # type: ignore[arg-type]


def possession(verifier: OrgId, blocks: Iterable[bytes]) -> bytes:
    """SHA-256 over the verifier's id and the bytes of all result blocks in order; 32 bytes.

    Only who holds the bytes can make it, and it is worthless to anybody else.
    """
    digest = hashlib.sha256(verifier)
    for block in blocks:
        digest.update(block)
    return digest.digest()


def verdict_commitment(
    *,
    chain_id: int,
    job_ledger: str,
    job_id: JobId,
    verifier: OrgId,
    result_digest: bytes,
    held: bytes,
    salt: bytes,
) -> bytes:
    """Commitment of a verifier, 32 bytes. Source: `contracts/IJobLedger.sol`, struct `SignedVerdict`."""
    types = ["uint256", "address", "bytes32", "bytes32", "bytes32", "bytes32", "bytes32"]
    values = [chain_id, job_ledger, job_id, verifier, result_digest, held, salt]
    return bytes(keccak(eth_abi.abi.encode(types, values)))


def sign_verdict(
    node_key: bytes, *, chain_id: int, job_ledger: str, job_id: JobId, commitment: bytes, deadline: int
) -> SignedVerdict:
    """A verifier's word on its commitment, which anybody may bring to the ledger before `deadline` (Unix seconds)."""
    values = {"jobId": job_id, "commitment": commitment, "deadline": deadline}
    signature = typed_data.sign(node_key, typed_data.VERDICT, values, chain_id=chain_id, contract=job_ledger)
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return SignedVerdict(commitment=commitment, deadline=deadline, r=signature[:32], vs=s.to_bytes(32, "big"))


def signer_of(verdict: SignedVerdict, *, chain_id: int, job_ledger: str, job_id: JobId) -> str:
    """Checksummed address of the account whose word this is.

    Raises
    ------
    VerificationError
        If the signature is none.
    """
    s = int.from_bytes(verdict.vs, "big")
    parity = s >> 255
    signature = verdict.r + (s & ((1 << 255) - 1)).to_bytes(32, "big") + bytes([27 + parity])
    values = {"jobId": job_id, "commitment": verdict.commitment, "deadline": verdict.deadline}
    return typed_data.recover(signature, typed_data.VERDICT, values, chain_id=chain_id, contract=job_ledger)


def check_result(committed_digest: bytes, recomputed: ResultManifest) -> None:
    """Compare a committed result with one's own.

    Raises
    ------
    ResultMismatchError
    """
    actual = recomputed.cid.digest
    if actual != committed_digest:
        raise ResultMismatchError(committed_digest, actual)


def check_possessions(revealed: Mapping[OrgId, bytes], blocks: Sequence[bytes], *, replicas: int) -> int:
    """Check that enough verifiers that agreed also held the result's bytes; returns how many did.

    Parameters
    ----------
    revealed :
        Proof of possession of each agreeing verifier.

    Raises
    ------
    VerificationError
        If fewer than `replicas` proofs are right.
    """
    proven = [org for org, proof in revealed.items() if possession(org, blocks) == proof]
    if len(proven) < replicas:
        raise VerificationError(
            f"{len(proven)} of {len(revealed)} agreeing verifiers proved that they held the result; {replicas} needed"
        )
    return len(proven)
