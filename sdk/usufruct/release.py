"""Step 9, release: the custodian turns a verified result into a noised, signed envelope that only the partner can open.

Holds the arithmetic and the formats. When to decrypt, and in which order things become durable, is the custodian role's
matter in the node.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from usufruct.content import dag
from usufruct.errors import InputError, ManifestError, VerificationError
from usufruct.he.container import Form
from usufruct.he.isolated import IsolatedOpener
from usufruct.he.kernels import MAX_MOMENT_COLUMNS, MOMENTS, kernel_by_id, n_pairs, outputs, statistics
from usufruct.job import MAX_RELEASED_VALUES, MAX_SCALE, MIN_SCALE, JobInputs
from usufruct.keys import hpke
from usufruct.ledger import Network, typed_data
from usufruct.privacy import (
    MICRO,
    NoiseLevel,
    discrete_gaussian,
    epsilon,
    noise_bound,
    round_to_grid,
)
from usufruct.records import Job, JobId, JobRequest, Participant

ENVELOPE_TYPE = "usufruct/sealed-release/2"
PAYLOAD_TYPE = "usufruct/release/3"
_VALUE = np.dtype("<i8")
_COMMITMENT_BYTES = 32
_SALT_BYTES = 32

_PAYLOAD_FIELDS = {
    "type",
    "salt",
    "job",
    "kernel",
    "values",
    "columns",
    "count",
    "result_scale",
    "noise",
    "rho_micro",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A released result, as the partner reads it."""

    job_id: JobId
    kernel: str
    values: npt.NDArray[np.int64]
    """Noised integers: shape (n_outputs,) for aggregates, (n_consenting, n_outputs) in random order for rows.

    A sum of contributions has an output for each entry."""
    count: int
    """Rows that consented, public through the consent status; of contributions, what their weights add up to."""
    result_scale: float
    """Integer units per 1.0 of a feature's sum or of a score."""
    noise: tuple[NoiseLevel, ...]
    """Noise on the outputs, in their order: one level, or two for `moments`, whose sums have less than their products."""
    rho_micro: int
    """Privacy spent, zCDP, millionths of rho."""

    @property
    def row_level(self) -> bool:
        """Whether there is one value per row."""
        return self.values.ndim == 2

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on a value, in integer units; the largest where values differ in it."""
        return max(level.sigma for level in self.noise)

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean over the consenting rows, or weighted over contributions, of each output or column; natural units."""
        total = self.values.sum(axis=0) if self.row_level else self.values[: self.noise[0].outputs]
        return total / (self.result_scale * self.count)

    def natural(self) -> npt.NDArray[np.float64]:
        """Values in natural units, same shape; those of products are squares of them."""
        powers = np.repeat(np.arange(1, len(self.noise) + 1), [level.outputs for level in self.noise])
        return self.values / self.result_scale**powers

    def mean_error(self, failure_probability: float = 1e-6) -> float:
        """Bound on noise and rounding of each entry of `mean()`, natural units, except with this probability."""
        return self._error(0, failure_probability) / self.result_scale

    def covariances(self) -> npt.NDArray[np.float64]:
        """Covariances over the consenting rows as a population, shape (k, k), natural units squared; for `moments` only.

        They are those of the features as quantised. Noise can make a variance negative.

        Raises
        ------
        InputError
            If the release is of another kernel.
        """
        k = self._n_columns()
        return statistics(
            [int(value) for value in self.values], self.count, n_columns=k, feature_scale=self.result_scale
        ).covariances

    def covariance_errors(self, failure_probability: float = 1e-6) -> npt.NDArray[np.float64]:
        """Bounds on what noise and its grid change in each entry of `covariances()`, except with this probability each.

        Quantising the features changed them before: `Client.estimate` bounds that.

        Raises
        ------
        InputError
            As `covariances`.
        """
        self._n_columns()
        # An entry is a mean of products less a product of two means, each of the three within its own bound.
        mean, third = np.abs(self.mean()), failure_probability / 3
        of_mean, of_product = (
            self._error(level, third) / self.result_scale ** (level + 1) for level in (0, 1)
        )
        return of_product + of_mean * (mean[:, None] + mean[None, :]) + of_mean**2

    def _n_columns(self) -> int:
        if self.kernel != MOMENTS.name:
            raise InputError(f"a release of {self.kernel} has no covariances")
        return self.noise[0].outputs

    def _error(self, number: int, failure_probability: float) -> float:
        """Bound on noise and rounding of a mean of integer outputs of one level."""
        level, values = self.noise[number], self.count if self.row_level else 1
        noise = noise_bound(float(level.sigma * np.sqrt(values)), failure_probability)
        return (noise + values * (level.grid // 2)) / self.count

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
        Shape (n_outputs,) for aggregates, of which a sum of contributions has one for each entry; (n_consenting, n_outputs)
        in row order for rows. Withdrawn rows are never opened.

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
    if parameters.kernel.of_contributions:
        opened = [
            opener.open_values(block, range(output.coefficients))
            for output, block in zip(expected, blocks, strict=True)
        ]
        return np.concatenate(opened)
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
) -> tuple[npt.NDArray[np.int64], tuple[NoiseLevel, ...]]:
    """Clip to the kernel's static bound, add discrete Gaussian noise, round to the grid, and shuffle rows.

    Returns
    -------
    noised, levels :
        Values of the same shape; the noise on them, in the order of the outputs.
    """
    levels = inputs.parameters.noise(inputs.manifest, rho_micro)
    noised = np.empty_like(opened)
    first = 0
    for level, bound in zip(levels, inputs.value_bounds(), strict=True):
        part = opened[..., first : first + level.outputs]
        clipped = np.clip(part, -bound, bound)
        drawn = discrete_gaussian([int(value) for value in clipped.ravel()], level.sigma)
        rounded = np.array(round_to_grid(drawn, level.grid), dtype=np.int64)
        noised[..., first : first + level.outputs] = rounded.reshape(part.shape)
        first += level.outputs
    if first != opened.shape[-1]:
        raise VerificationError(f"{opened.shape[-1]} opened outputs, and noise for {first}")
    if noised.ndim == 2:
        order = list(range(len(noised)))
        secrets.SystemRandom().shuffle(order)
        noised = noised[order]
    return noised, levels


def sigma_micro(levels: Sequence[NoiseLevel]) -> int:
    """Noise scale as the ledger logs it: the largest, in millionths, rounded up."""
    return max(map(_micro, levels))


def _micro(level: NoiseLevel) -> int:
    return int(np.ceil(level.sigma * MICRO))


def seal_payload(
    chain_id: int,
    job_id: JobId,
    job: Job,
    inputs: JobInputs,
    noised: npt.NDArray[np.int64],
    levels: Sequence[NoiseLevel],
    *,
    recipient_key: bytes,
) -> bytes:
    """The noised values, encrypted to the partner with HPKE, behind 32 bytes that commit to them.

    The commitment is SHA-256 of the payload, which is salted: it says nothing to who does not have the payload, and lets the
    partner show others what was released.

    Parameters
    ----------
    recipient_key :
        32 bytes, the X25519 key under which the registry knows the partner.
    """
    payload = {
        "type": PAYLOAD_TYPE,
        "salt": secrets.token_bytes(_SALT_BYTES),
        "job": bytes(job_id),
        "kernel": inputs.parameters.kernel.name,
        "values": noised.astype(_VALUE).tobytes(),
        "columns": int(noised.shape[1]) if noised.ndim == 2 else 0,
        "count": inputs.count,
        "result_scale": inputs.parameters.result_scale,
        "noise": [[level.outputs, _micro(level), level.grid] for level in levels],
        "rho_micro": job.request.rho_micro,
    }
    data = dag.encode(payload)
    return hashlib.sha256(data).digest() + hpke.seal_to(recipient_key, data, _info(chain_id, job_id))


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
) -> bytes:
    """Check the custodian's signature and decrypt; returns the payload, for `read_payload`.

    Raises
    ------
    VerificationError
        If the signature is not the custodian's, or the envelope is for another job or committed to another payload.
    EnvelopeError, ManifestError
    """
    sealed, sigma, signature = _read_envelope(envelope, job_id)
    typed_data.check_signature(
        custodian.node_account,
        signature,
        typed_data.RELEASE,
        _signed_values(job_id, job, sealed, sigma),
        **_domain(network),
    )
    payload = hpke.open_from(hpke_private, sealed[_COMMITMENT_BYTES:], _info(network.chain_id, job_id))
    _check_commitment(sealed, payload)
    return payload


def read_payload(envelope: bytes, payload: bytes, job_id: JobId, request: JobRequest) -> Release:
    """What was released, from an envelope that is trusted and a payload that need not be.

    Raises
    ------
    VerificationError
        If the envelope committed to another payload, or this is of another job, kernel or budget.
    ManifestError, UnknownKernelError
        If either has not the form that it has.
    """
    sealed, sigma, _ = _read_envelope(envelope, job_id)
    _check_commitment(sealed, payload)
    return _read_payload(dag.decode_map(payload), job_id, sigma, request)


def _read_envelope(envelope: bytes, job_id: JobId) -> tuple[bytes, int, bytes]:
    """What an envelope seals, the scale of its noise in millionths, and its signature."""
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
    return sealed, sigma, signature


def _check_commitment(sealed: bytes, payload: bytes) -> None:
    if hashlib.sha256(payload).digest() != sealed[:_COMMITMENT_BYTES]:
        raise VerificationError("the sealed release committed to another payload")


def _read_payload(payload: Mapping[str, object], job_id: JobId, sigma: int, request: JobRequest) -> Release:
    if set(payload) != _PAYLOAD_FIELDS or payload["type"] != PAYLOAD_TYPE:
        raise ManifestError("not a release payload")
    salt = payload["salt"]
    if not isinstance(salt, bytes) or len(salt) != _SALT_BYTES:
        raise ManifestError("release payload: `salt` is no salt")
    noise, largest = _read_noise(payload["noise"])
    if payload["job"] != job_id or largest != sigma:
        raise VerificationError("the release's payload does not fit its envelope")
    if payload["rho_micro"] != request.rho_micro:
        raise VerificationError("the release spent another budget than the job reserved")
    kernel = kernel_by_id(request.kernel_id).name
    if payload["kernel"] != kernel:
        raise VerificationError(f"the release is of another kernel than the job's, {kernel}")
    numbers, scale = payload["values"], payload["result_scale"]
    columns, count = payload["columns"], payload["count"]
    if not isinstance(numbers, bytes) or not isinstance(scale, float):
        raise ManifestError("release payload: `values` or `result_scale` has the wrong type")
    if (
        type(columns) is not int
        or type(count) is not int
        or columns < 0
        or count < 1
        or not MIN_SCALE <= scale <= MAX_SCALE
    ):
        raise ManifestError("release payload: `columns`, `count` or `result_scale` is out of range")
    if not numbers or len(numbers) % _VALUE.itemsize:
        raise ManifestError("release payload: `values` are no 64-bit integers")
    values = np.frombuffer(numbers, _VALUE).astype(np.int64)
    if bool(columns) != request.row_level:
        raise ManifestError(
            "release payload: `values` are of rows where the job asks for none, or the other way round"
        )
    if columns and len(values) != count * columns:
        raise ManifestError(f"release payload: {len(values)} values for {count} rows of {columns}")
    if len(noise) != (2 if kernel == MOMENTS.name else 1):
        raise ManifestError(f"release payload: {len(noise)} levels of noise in a release of {kernel}")
    if (columns or len(values)) != sum(level.outputs for level in noise):
        raise ManifestError("release payload: there is noise for more or fewer outputs than `values` have")
    grids = np.repeat(
        np.array([level.grid for level in noise], dtype=np.int64), [level.outputs for level in noise]
    )
    shaped = values.reshape(count, columns) if columns else values
    if (shaped % grids).any():
        raise ManifestError("release payload: `values` are not on the grid")
    if kernel == MOMENTS.name and not _of_same_columns(*noise):
        raise ManifestError("release payload: these are not the sums and products of the same columns")
    return Release(
        job_id=job_id,
        kernel=kernel,
        values=shaped,
        count=count,
        result_scale=scale,
        noise=noise,
        rho_micro=request.rho_micro,
    )


def _of_same_columns(sums: NoiseLevel, products: NoiseLevel) -> bool:
    return sums.outputs <= MAX_MOMENT_COLUMNS and products.outputs == n_pairs(sums.outputs)


def _read_noise(told: object) -> tuple[tuple[NoiseLevel, ...], int]:
    """Levels of noise as a payload has them, and the largest of their scales in millionths."""
    levels, scales = [], []
    for entry in told if isinstance(told, list) else ():
        if not isinstance(entry, list) or len(entry) != 3 or any(type(number) is not int for number in entry):
            raise ManifestError("release payload: `noise` is no list of outputs, scale and grid")
        outputs, micro, grid = entry
        if not 1 <= outputs <= MAX_RELEASED_VALUES or micro < 1 or not 1 <= grid < 1 << 63:
            raise ManifestError("release payload: `noise` is out of range")
        levels.append(NoiseLevel(outputs, micro / MICRO, grid))
        scales.append(micro)
    if not levels:
        raise ManifestError("release payload: `noise` is missing")
    return tuple(levels), max(scales)


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
