"""Encryption parameters that the network accepts, and nothing else.

A parameter set is fixed by its id, a hash over every field; peers never send parameters, only ids, and an
id that is not in `ALLOWED` is refused before a byte of ciphertext is looked at. Knows no keys and no
ciphertexts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from usufruct.errors import ContainerError

SCHEME_CODES: Final[Mapping[str, int]] = MappingProxyType({"bfv": 1})
"""Scheme byte of containers and of the canonical encoding."""

MAX_COEFF_MODULUS_BITS: Final[Mapping[int, int]] = MappingProxyType({4096: 109})
"""Ring degree to the widest modulus, in bits, that keeps 128-bit classical security with ternary secrets.

Source: Homomorphic Encryption Standard (homomorphicencryption.org, 2018), table 1.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One parameter set of one scheme over Z[X]/(X^N + 1) with a single prime modulus."""

    scheme: str
    """`bfv`."""

    poly_modulus_degree: int
    """N: coefficients per polynomial, hence rows per block."""

    coeff_modulus: int
    """q: the prime that residues are taken by."""

    plain_modulus: int
    """t: plaintexts are integers modulo t, read as signed."""

    security_bits: int
    """Classical security level that N and q were chosen for."""

    @property
    def residue_bits(self) -> int:
        """Bits that one residue takes in a container."""
        return self.coeff_modulus.bit_length()

    @property
    def value_limit(self) -> int:
        """Largest magnitude that a plaintext coefficient holds without wrapping."""
        return (self.plain_modulus - 1) // 2

    @property
    def parameters_id(self) -> bytes:
        """SHA-256 over a tag and the fields, 32 bytes.

        The preimage is `"usufruct/parameters/1" 00`, then scheme (1 byte), N (4), q (8), t (8) and the
        security level (2), all little-endian.
        """
        fields = struct.pack(
            "<BIQQH",
            SCHEME_CODES[self.scheme],
            self.poly_modulus_degree,
            self.coeff_modulus,
            self.plain_modulus,
            self.security_bits,
        )
        return hashlib.sha256(b"usufruct/parameters/1\0" + fields).digest()

    def to_dict(self) -> dict[str, object]:
        """Fields by name, for records and status pages."""
        return {
            "scheme": self.scheme,
            "poly_modulus_degree": self.poly_modulus_degree,
            "coeff_modulus": self.coeff_modulus,
            "plain_modulus": self.plain_modulus,
            "security_bits": self.security_bits,
        }


BFV_LINEAR: Final = Parameters(
    scheme="bfv",
    poly_modulus_degree=4096,
    coeff_modulus=0x3FFFFFFFFD6001,
    plain_modulus=1032193,
    security_bits=128,
)
"""Sums and linear scores: q is SEAL's 54-bit prime for N = 4096, t its 20-bit batching prime."""

ALLOWED: Final[Mapping[bytes, Parameters]] = MappingProxyType({BFV_LINEAR.parameters_id: BFV_LINEAR})
"""Every accepted parameter set by its id."""


def parameters_by_id(parameters_id: bytes) -> Parameters:
    """Look up an accepted parameter set; raises ContainerError (field `parameters_id`) for any other id."""
    try:
        return ALLOWED[parameters_id]
    except KeyError:
        raise ContainerError(
            f"parameter set {parameters_id.hex()} is not one that this network accepts",
            field="parameters_id",
            hint="seal the features again with the parameters of this release",
        ) from None
