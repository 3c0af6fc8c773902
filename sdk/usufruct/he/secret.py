"""The secret of a key domain: what it is made of, how it is kept, and that it does not leave.

The same object for every scheme; which one it serves is told by its parameters. Encrypts and decrypts nothing.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import KeyStoreError
from usufruct.he.parameters import ALLOWED, Parameters
from usufruct.he.residues import Residues, Spectrum

SALT_BYTES: Final = 32

_SECRET_MAGIC = b"UFSK\x01"


class SecretKey:
    """The secret of one key domain.

    The key id is SHA-256 over `"usufruct/key-domain/1" 00`, parameter id and commitment; the commitment is
    SHA-256 over `"usufruct/key-commitment/1" 00`, a random salt and the packed secret. Neither tells
    anything of the secret. The representation shows the key id only, and the object cannot be pickled or
    copied.
    """

    __slots__ = (
        "_coefficients",
        "_decryptor",
        "_powers",
        "_salt",
        "_spectrum",
        "commitment",
        "key_id",
        "parameters",
    )

    def __init__(self, parameters: Parameters, coefficients: NDArray[np.int64], salt: bytes) -> None:
        if coefficients.shape != (parameters.poly_modulus_degree,) or len(salt) != SALT_BYTES:
            raise KeyStoreError("a secret key of the wrong size")
        if np.abs(coefficients).max() != 1:
            raise KeyStoreError("a secret key whose coefficients are not ternary, or all zero")
        self.parameters = parameters
        self._coefficients = coefficients.copy()
        self._coefficients.setflags(write=False)
        self._salt = salt
        # What a scheme derives from the secret at first use, as secret as it.
        self._decryptor: Any = None
        self._powers: list[Residues] | None = None
        self._spectrum: Spectrum | None = None
        committed = b"usufruct/key-commitment/1\0" + salt + _pack_ternary(self._coefficients)
        self.commitment = hashlib.sha256(committed).digest()
        self.key_id = key_id_of(parameters.parameters_id, self.commitment)

    def to_bytes(self) -> bytes:
        """Serialise for a keystore: magic, version, parameter id, salt, then 2 bits per coefficient."""
        return _SECRET_MAGIC + self.parameters.parameters_id + self._salt + _pack_ternary(self._coefficients)

    @staticmethod
    def from_bytes(data: bytes) -> SecretKey:
        """Read what `to_bytes` wrote; raises KeyStoreError for anything else."""
        head = len(_SECRET_MAGIC)
        if data[:head] != _SECRET_MAGIC:
            raise KeyStoreError("not a secret key of this version")
        parameters = ALLOWED.get(data[head : head + 32])
        if parameters is None:
            raise KeyStoreError("a secret key for parameters that this release does not accept")
        salt = data[head + 32 : head + 32 + SALT_BYTES]
        packed = data[head + 32 + SALT_BYTES :]
        if len(packed) * 4 != parameters.poly_modulus_degree:
            raise KeyStoreError("a secret key of the wrong size")
        return SecretKey(parameters, _unpack_ternary(packed), salt)

    def __repr__(self) -> str:
        return f"SecretKey(key_id={self.key_id.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key leaves memory through a keystore only")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret key is not copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a secret key is not copied")


def key_id_of(parameters_id: bytes, commitment: bytes) -> bytes:
    """Key id of a key domain, 32 bytes, from its public record."""
    return hashlib.sha256(b"usufruct/key-domain/1\0" + parameters_id + commitment).digest()


def _pack_ternary(coefficients: NDArray[np.int64]) -> bytes:
    """Two bits per coefficient, lowest first: 0, 1, or 2 for -1."""
    codes = np.where(coefficients < 0, 2, coefficients).astype(np.uint8).reshape(-1, 4)
    return (codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6).astype(np.uint8).tobytes()


def _unpack_ternary(packed: bytes) -> NDArray[np.int64]:
    quads = np.frombuffer(packed, dtype=np.uint8)
    codes = np.stack([quads >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1)
    if (codes == 3).any():
        raise KeyStoreError("a secret key with a coefficient that is not ternary")
    return np.where(codes == 2, -1, codes.astype(np.int64))
