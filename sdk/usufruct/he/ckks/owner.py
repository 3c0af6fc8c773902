"""What the owner of a CKKS key domain does, and nobody else: draw a secret, seal, make an evaluation key, open.

SEAL encodes, encrypts and decrypts. Opening is the only way out, and adds flooding noise; a decoded plaintext never
leaves `open_slots`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

import numpy as np
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from usufruct.errors import ContainerError, FeatureRangeError, KeyStoreError
from usufruct.he.ckks import backend
from usufruct.he.ckks.container import (
    Form,
    N,
    encode_ciphertext,
    encode_relinearisation_key,
    parse_ciphertext,
    parse_model,
)
from usufruct.he.ckks.flooding import Flooding, flood
from usufruct.he.ckks.kernel import MAX_ABS, bounds_of
from usufruct.he.ckks.parameters import CKKS_CUBIC
from usufruct.he.container import pack, unpack
from usufruct.he.sampling import ternary
from usufruct.he.secret import SALT_BYTES, key_id_of

_MAGIC: Final = b"UFCS\x01"
_PACKED_BYTES: Final = N // 4


class CkksSecret:
    """The secret of one key domain, ternary. Not shown, not copied, not pickled.

    Key id and commitment are made as those of `he.secret.SecretKey`.
    """

    __slots__ = ("_coefficients", "_key", "_salt", "commitment", "key_id")

    def __init__(self, coefficients: NDArray[np.int64], salt: bytes) -> None:
        if coefficients.shape != (N,) or len(salt) != SALT_BYTES or np.abs(coefficients).max() != 1:
            raise KeyStoreError("not a ternary secret of this ring")
        self._coefficients = coefficients.copy()
        self._coefficients.setflags(write=False)
        self._salt = salt
        self._key: Any = None
        committed = b"usufruct/key-commitment/1\0" + salt + _packed(self._coefficients)
        self.commitment = hashlib.sha256(committed).digest()
        self.key_id = key_id_of(CKKS_CUBIC.parameters_id, self.commitment)

    def to_bytes(self) -> bytes:
        """Serialise for a keystore: magic, version, parameter id, salt, then 2 bits per coefficient."""
        return _MAGIC + CKKS_CUBIC.parameters_id + self._salt + _packed(self._coefficients)

    @staticmethod
    def from_bytes(data: bytes) -> CkksSecret:
        """Read what `to_bytes` wrote; raises KeyStoreError for anything else."""
        head = _MAGIC + CKKS_CUBIC.parameters_id
        if not data.startswith(head) or len(data) != len(head) + SALT_BYTES + _PACKED_BYTES:
            raise KeyStoreError("not a CKKS secret of this version and these parameters")
        codes = unpack(data[-_PACKED_BYTES:], N, 2).astype(np.int64)
        return CkksSecret(np.where(codes == 3, 2, codes - 1), data[len(head) : len(head) + SALT_BYTES])

    def seal_key(self) -> Any:
        """SEAL's form of it, made at first use."""
        if self._key is None:
            self._key = backend.secret_key_to_seal(backend.transformed(self._coefficients))
        return self._key

    def __repr__(self) -> str:
        return f"CkksSecret(key_id={self.key_id.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key leaves memory through a keystore only")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret key is not copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a secret key is not copied")


def _packed(coefficients: NDArray[np.int64]) -> bytes:
    """Two bits per coefficient, lowest first: the coefficient plus one."""
    return pack((coefficients + 1).astype(np.uint64), 2)


def generate_secret() -> CkksSecret:
    """Draw a ternary secret and a salt from the operating system."""
    return CkksSecret(ternary(N), secrets.token_bytes(SALT_BYTES))


def relinearisation_key(secret: CkksSecret) -> bytes:
    """An evaluation key, fresh at every call: a container of form RELINEARISATION_KEY.

    Make it once for a key domain: results depend on it bit by bit, and so does verifying them.
    """
    keys = sealapi.RelinKeys()
    sealapi.KeyGenerator(backend.context(), secret.seal_key()).create_relin_keys(keys)
    return encode_relinearisation_key(backend.relinearisation_key_from_seal(keys, secret.key_id))


def seal_columns(values: NDArray[np.float64], secret: CkksSecret) -> Iterator[tuple[int, int, bytes]]:
    """Encrypt a matrix column by column, one block for each chunk of N / 2 rows, lazily.

    Parameters
    ----------
    values :
        float64, shape (n_rows, n_features), finite, magnitude at most `kernel.MAX_ABS`.

    Yields
    ------
    chunk, feature, block :
        In the order of chunks, within a chunk of features; a container of form SEALED.

    Raises
    ------
    FeatureRangeError
        If a value is not finite or too large; before the first block.
    """
    if values.ndim != 2 or values.size == 0 or values.dtype != np.float64:
        raise FeatureRangeError("only a non-empty two-dimensional matrix of float64 can be encrypted")
    if not np.isfinite(values).all() or np.abs(values).max() > MAX_ABS:
        raise FeatureRangeError(f"a value is not finite or above {MAX_ABS}, the most that CKKS blocks hold")
    return _seal_columns(values, secret)


def _seal_columns(values: NDArray[np.float64], secret: CkksSecret) -> Iterator[tuple[int, int, bytes]]:
    encoder = sealapi.CKKSEncoder(backend.context())
    encryptor = sealapi.Encryptor(backend.context(), secret.seal_key())
    for chunk, start in enumerate(range(0, values.shape[0], CKKS_CUBIC.slots)):
        for feature in range(values.shape[1]):
            # Slots beyond the last row are zero.
            plain, sealed = sealapi.Plaintext(), sealapi.Ciphertext(backend.context())
            encoder.encode(values[start : start + CKKS_CUBIC.slots, feature].tolist(), backend.SCALE, plain)
            encryptor.encrypt_symmetric(plain, sealed)
            yield chunk, feature, encode_ciphertext(backend.from_seal(sealed, secret.key_id))


def open_slots(
    block: bytes,
    secret: CkksSecret,
    slots: Sequence[int],
    *,
    model: bytes,
    max_abs: float,
    flooding: Flooding,
) -> list[float]:
    """Decrypt a result and return only the named slots, flooded and rounded.

    Call it only for results that were verified to be what the kernel makes of this model: the noise is measured by it.
    Every call counts as one of `flooding.openings`; whoever keeps the secret keeps that count (`isolated.CkksOpener`
    does for its life).

    Parameters
    ----------
    block :
        A container of form RESULT.
    slots :
        Rows to open, each once, in [0, N / 2).
    model, max_abs :
        Of the job.

    Raises
    ------
    ContainerError, WrongKeyDomainError
        If a block is malformed or of another key domain.
    KernelBoundError, KernelParameterError
        If the model could not have been admitted.
    KeyStoreError
        If a slot does not exist or is named twice, or the block opens to what no score of the model is.
    """
    if not slots or len(set(slots)) != len(slots) or min(slots) < 0 or max(slots) >= CKKS_CUBIC.slots:
        raise KeyStoreError(f"slots have to be different numbers below {CKKS_CUBIC.slots}")
    ciphertext = parse_ciphertext(block, Form.RESULT, key_id=secret.key_id)
    bounds = bounds_of(parse_model(model), max_abs)
    plain = sealapi.Plaintext()
    try:
        sealapi.Decryptor(backend.context(), secret.seal_key()).decrypt(backend.to_seal(ciphertext), plain)
    except RuntimeError as exc:
        raise ContainerError("SEAL refuses this ciphertext", field="residues") from exc
    decoded = sealapi.CKKSEncoder(backend.context()).decode_double(plain)
    chosen = [decoded[slot] for slot in slots]
    sigma = flooding.sigma(bounds.noise_deviation, len(chosen))
    return flood(chosen, sigma, bounds.noise_deviation)
