"""Step 9, release: the custodian turns a verified result into a noised, signed envelope that only the partner can open.

Holds the arithmetic and the formats. When to decrypt, and in which order things become durable, is the custodian role's
matter in the node.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from usufruct.content import dag
from usufruct.errors import ManifestError, VerificationError
from usufruct.he.container import Form
from usufruct.he.isolated import IsolatedOpener
from usufruct.he.kernels import kernel_by_id, outputs
from usufruct.job import JobInputs
from usufruct.keys import hpke
from usufruct.ledger import Network, typed_data
from usufruct.privacy import (
    MICRO,
    discrete_gaussian,
    epsilon,
    grid_for,
    noise_bound,
    round_to_grid,
    sigma_for,
)
from usufruct.records import Job, JobId, JobRequest, Participant

ENVELOPE_TYPE = "usufruct/sealed-release/1"
PAYLOAD_TYPE = "usufruct/release/1"
_VALUE = np.dtype("<i8")

_PAYLOAD_FIELDS = {
    "type",
    "job",
    "kernel",
    "values",
    "columns",
    "count",
    "result_scale",
    "sigma_micro",
    "grid",
    "rho_micro",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A released result, as the partner reads it."""

    job_id: JobId
    kernel: str
    values: npt.NDArray[np.int64]
    """Noised integers: shape (n_outputs,) for aggregates, (n_consenting, n_outputs) in random order for rows."""
    count: int
    """Rows that consented; public through the consent status."""
    result_scale: float
    """Integer units per 1.0."""
    sigma: float
    """Standard deviation of the noise on each value, in integer units."""
    grid: int
    """Every value is a multiple of this, in integer units: digits far below the noise say nothing and are not sent."""
    rho_micro: int
    """Privacy spent, zCDP, millionths of rho."""

    @property
    def row_level(self) -> bool:
        """Whether there is one value per row."""
        return self.values.ndim == 2

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean over the consenting rows, shape (n_outputs,), natural units."""
        total = self.values.sum(axis=0) if self.row_level else self.values
        return total / (self.result_scale * self.count)

    def natural(self) -> npt.NDArray[np.float64]:
        """Values in natural units, same shape."""
        return self.values / self.result_scale

    def mean_error(self, failure_probability: float = 1e-6) -> float:
        """Bound on noise and rounding of each entry of `mean()`, natural units, except with this probability."""
        values = self.count if self.row_level else 1
        noise = noise_bound(float(self.sigma * np.sqrt(values)), failure_probability)
        return (noise + values * (self.grid // 2)) / (self.result_scale * self.count)

    def epsilon(self, delta: float = 1e-6) -> float:
        """The spent privacy as epsilon at `delta`."""
        return epsilon(self.rho_micro, delta)


def decrypt_result(
    inputs: JobInputs, blocks: Sequence[bytes], opener: IsolatedOpener
) -> npt.NDArray[np.int64]:
    """Open the permitted coefficients of a verified result; exact, before noise.

    Parameters
    ----------
    blocks :
        In the order of the kernel's outputs; read one at a time.
    opener :
        Worker process with limits that holds the key domain's secret.

    Returns
    -------
    values :
        Shape (n_outputs,) for aggregates; (n_consenting, n_outputs) in row order for rows. Withdrawn rows are never
        opened.

    Raises
    ------
    VerificationError
        If the blocks are not those that the kernel gives.
    ContainerError, WrongKeyDomainError, WorkerError
        If a block does not open.
    """
    parameters = inputs.parameters
    shape = inputs.manifest.shape
    expected = outputs(parameters.kernel, parameters.parameters, shape)
    if len(expected) != len(blocks):
        raise VerificationError(f"{len(blocks)} result blocks where the kernel gives {len(expected)}")
    if not parameters.row_level:
        return np.concatenate([opener.open_values(block, [0]) for block in blocks])
    columns: dict[int, list[npt.NDArray[np.int64]]] = {}
    for output, block in zip(expected, blocks, strict=True):
        if output.form != Form.CIPHERTEXT or output.chunk is None:
            raise VerificationError("a row-level result with an aggregate block")
        start = output.chunk * shape.parameters.poly_modulus_degree
        rows = inputs.mask[start : start + shape.rows_in_chunk(output.chunk)]
        values = opener.open_values(block, [int(row) for row in np.flatnonzero(rows)])
        columns.setdefault(output.column, []).append(values)
    return np.stack([np.concatenate(columns[column]) for column in sorted(columns)], axis=1)


def add_noise(
    opened: npt.NDArray[np.int64], inputs: JobInputs, *, rho_micro: int
) -> tuple[npt.NDArray[np.int64], float]:
    """Clip to the kernel's static bound, add discrete Gaussian noise, round to the grid, and shuffle rows.

    Returns
    -------
    noised, sigma :
        Values of the same shape, each a multiple of `grid_for(sigma)`; the noise's standard deviation.
    """
    sigma = sigma_for(rho_micro, inputs.parameters.sensitivity(inputs.manifest))
    clipped = np.clip(opened, -inputs.bounds.value_bound, inputs.bounds.value_bound)
    drawn = discrete_gaussian([int(v) for v in clipped.ravel()], sigma)
    noised = np.array(round_to_grid(drawn, grid_for(sigma)), dtype=np.int64).reshape(opened.shape)
    if noised.ndim == 2:
        order = list(range(len(noised)))
        secrets.SystemRandom().shuffle(order)
        noised = noised[order]
    return noised, sigma


def sigma_micro(sigma: float) -> int:
    """Noise scale as the ledger logs it: millionths, rounded up."""
    return int(np.ceil(sigma * MICRO))


def seal_payload(
    chain_id: int,
    job_id: JobId,
    job: Job,
    inputs: JobInputs,
    noised: npt.NDArray[np.int64],
    sigma: float,
    *,
    recipient_key: bytes,
) -> bytes:
    """The noised values, encrypted to the partner with HPKE.

    Parameters
    ----------
    recipient_key :
        32 bytes, the X25519 key under which the registry knows the partner.
    """
    payload = {
        "type": PAYLOAD_TYPE,
        "job": bytes(job_id),
        "kernel": inputs.parameters.kernel.name,
        "values": noised.astype(_VALUE).tobytes(),
        "columns": int(noised.shape[1]) if noised.ndim == 2 else 0,
        "count": int(inputs.mask.sum()),
        "result_scale": inputs.parameters.result_scale,
        "sigma_micro": sigma_micro(sigma),
        "grid": grid_for(sigma),
        "rho_micro": job.request.rho_micro,
    }
    return hpke.seal_to(recipient_key, dag.encode(payload), _info(chain_id, job_id))


def sign_release(
    network: Network, job_id: JobId, job: Job, sealed: bytes, noise_micro: int, *, signing_key: bytes
) -> bytes:
    """The release as a DAG-CBOR block, signed for the custodian's organisation; a function of its arguments."""
    values = _signed_values(job_id, job, sealed, noise_micro)
    return dag.encode(
        {
            "type": ENVELOPE_TYPE,
            "job": bytes(job_id),
            "sealed": sealed,
            "sigma_micro": noise_micro,
            "signature": typed_data.sign(signing_key, typed_data.RELEASE, values, **_domain(network)),
        }
    )


def open_envelope(
    network: Network,
    job_id: JobId,
    job: Job,
    envelope: bytes,
    *,
    custodian: Participant,
    hpke_private: bytes,
) -> Release:
    """Check the custodian's signature and decrypt.

    Raises
    ------
    VerificationError
        If the signature is not the custodian's, or the envelope is for another job, kernel or budget.
    EnvelopeError, ManifestError, UnknownKernelError
    """
    record = dag.decode_map(envelope)
    sealed, sigma, signature = record.get("sealed"), record.get("sigma_micro"), record.get("signature")
    if record.get("type") != ENVELOPE_TYPE or set(record) != {
        "type",
        "job",
        "sealed",
        "sigma_micro",
        "signature",
    }:
        raise ManifestError("not a sealed release")
    if not isinstance(sealed, bytes) or type(sigma) is not int or not isinstance(signature, bytes):
        raise ManifestError("sealed release: a field has the wrong type")
    if record["job"] != job_id:
        raise VerificationError("the sealed release is for another job")
    typed_data.check_signature(
        custodian.node_account,
        signature,
        typed_data.RELEASE,
        _signed_values(job_id, job, sealed, sigma),
        **_domain(network),
    )
    payload = dag.decode_map(hpke.open_from(hpke_private, sealed, _info(network.chain_id, job_id)))
    return _read_payload(payload, job_id, sigma, job.request)


def _read_payload(payload: Mapping[str, object], job_id: JobId, sigma: int, request: JobRequest) -> Release:
    if set(payload) != _PAYLOAD_FIELDS or payload["type"] != PAYLOAD_TYPE:
        raise ManifestError("not a release payload")
    if payload["job"] != job_id or payload["sigma_micro"] != sigma:
        raise VerificationError("the release's payload does not fit its envelope")
    if payload["rho_micro"] != request.rho_micro:
        raise VerificationError("the release spent another budget than the job reserved")
    kernel = kernel_by_id(request.kernel_id).name
    if payload["kernel"] != kernel:
        raise VerificationError(f"the release is of another kernel than the job's, {kernel}")
    numbers, scale = payload["values"], payload["result_scale"]
    columns, count, grid = payload["columns"], payload["count"], payload["grid"]
    if not isinstance(numbers, bytes) or not isinstance(scale, float):
        raise ManifestError("release payload: `values` or `result_scale` has the wrong type")
    if (
        type(columns) is not int
        or type(count) is not int
        or columns < 0
        or count < 1
        or not 0 < scale < math.inf
    ):
        raise ManifestError("release payload: `columns`, `count` or `result_scale` is out of range")
    if not numbers or len(numbers) % _VALUE.itemsize:
        raise ManifestError("release payload: `values` are no 64-bit integers")
    values = np.frombuffer(numbers, _VALUE).astype(np.int64)
    if type(grid) is not int or not 1 <= grid < 1 << 63 or (values % grid).any():
        raise ManifestError("release payload: `values` are not on the grid")
    if columns and len(values) != count * columns:
        raise ManifestError(f"release payload: {len(values)} values for {count} rows of {columns}")
    return Release(
        job_id=job_id,
        kernel=kernel,
        values=values.reshape(count, columns) if columns else values,
        count=count,
        result_scale=scale,
        sigma=sigma / MICRO,
        grid=grid,
        rho_micro=request.rho_micro,
    )


def _signed_values(job_id: JobId, job: Job, sealed: bytes, sigma: int) -> dict[str, object]:
    return {
        "jobId": bytes(job_id),
        "resultDigest": job.result_digest,
        "sealedDigest": hashlib.sha256(sealed).digest(),
        "sigmaMicro": sigma,
        "rhoMicro": job.request.rho_micro,
    }


def _info(chain_id: int, job_id: JobId) -> bytes:
    return b"usufruct/release/1\0" + chain_id.to_bytes(8, "big") + job_id


def _domain(network: Network) -> dict[str, Any]:
    return {"chain_id": network.chain_id, "contract": network.contracts["JobLedger"]}
