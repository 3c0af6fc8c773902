"""Encryption parameters that the network accepts, and nothing else.

A parameter set is fixed by its id, a hash over every field; peers never send parameters, only ids, and an
id that is not in `ALLOWED` is refused before a byte of ciphertext is looked at. Knows no keys and no
ciphertexts.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import ConfigurationError, ContainerError, FeatureRangeError

SCHEME_CODES: Final[Mapping[str, int]] = MappingProxyType({"bfv": 1, "bgv": 2})
"""Scheme byte of containers and of the canonical encoding."""

MAX_COEFF_MODULUS_BITS: Final[Mapping[int, int]] = MappingProxyType({4096: 109, 8192: 218})
"""Ring degree to the widest modulus, in bits, that keeps 128-bit classical security with ternary secrets.

Source: Homomorphic Encryption Standard (homomorphicencryption.org, 2018), table 1.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One parameter set of one scheme over Z[X]/(X^N + 1), its modulus a product of primes of one width."""

    scheme: str
    """`bfv` or `bgv`."""

    poly_modulus_degree: int
    """N: coefficients per polynomial, hence rows per block."""

    primes: tuple[int, ...]
    """What residues are taken by: one prime for `bfv`, several for `bgv`, each 1 modulo 2N."""

    plain_modulus: int
    """t: plaintexts are integers modulo t, read as signed."""

    security_bits: int
    """Classical security level that N and q were chosen for."""

    @property
    def coeff_modulus(self) -> int:
        """q: the product of the primes."""
        return math.prod(self.primes)

    @property
    def residue_bits(self) -> int:
        """Bits that one residue takes in a container; the same for every prime."""
        return self.primes[0].bit_length()

    @property
    def residues(self) -> int:
        """Residues of one polynomial: N for each prime."""
        return len(self.primes) * self.poly_modulus_degree

    @property
    def value_limit(self) -> int:
        """Largest magnitude that a plaintext coefficient holds without wrapping."""
        return (self.plain_modulus - 1) // 2

    @property
    def parameters_id(self) -> bytes:
        """SHA-256 over a tag and the fields, 32 bytes.

        The preimage is `"usufruct/parameters/1" 00`, then scheme (1 byte), N (4), each prime (8), t (8) and
        the security level (2), all little-endian.
        """
        fields = struct.pack(
            f"<BI{len(self.primes)}QQH",
            SCHEME_CODES[self.scheme],
            self.poly_modulus_degree,
            *self.primes,
            self.plain_modulus,
            self.security_bits,
        )
        return hashlib.sha256(b"usufruct/parameters/1\0" + fields).digest()


BFV_LINEAR: Final = Parameters(
    scheme="bfv",
    poly_modulus_degree=4096,
    primes=(0x3FFFFFFFFD6001,),
    plain_modulus=1032193,
    security_bits=128,
)
"""Sums and linear scores: q is SEAL's 54-bit prime for N = 4096, t its 20-bit batching prime."""

BGV_PAIRS: Final = Parameters(
    scheme="bgv",
    poly_modulus_degree=4096,
    primes=(0x7FF6001, 0x7FE6001, 0x7FCE001, 0x7FC2001),
    plain_modulus=1032193,
    security_bits=128,
)
"""Inner products of encrypted rows with encrypted queries.

Four primes of 27 bits, 108 together: a product has 54 bits, so 512 features are summed in 64-bit words before
one reduction, and the worst case of a query that was encrypted under a public key leaves 20 bits and more.
"""

BGV_MOMENTS: Final = Parameters(
    scheme="bgv",
    poly_modulus_degree=8192,
    primes=(0x1FFD4001, 0x1FFC8001, 0x1FFC0001, 0x1FFB0001, 0x1FFA4001),
    plain_modulus=0x7FFE0001,
    security_bits=128,
)
"""Sums of products of two encrypted columns over the permitted rows.

t has 31 bits, for a sum over n rows of values up to A takes n A^2 < t / 2. A product and a row mask cost about
3 log2 t + 43 bits of modulus in the worst case, hence N = 8192 and five primes of 29 bits, 145 together.
"""

PARAMETER_SETS: Final[Mapping[str, Parameters]] = MappingProxyType(
    {"linear": BFV_LINEAR, "pairs": BGV_PAIRS, "moments": BGV_MOMENTS}
)
"""By the names that people use."""

ALLOWED: Final[Mapping[bytes, Parameters]] = MappingProxyType(
    {parameters.parameters_id: parameters for parameters in PARAMETER_SETS.values()}
)
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


def check_scheme(parameters: Parameters, scheme: str) -> None:
    """Raise ConfigurationError if a parameter set is not on the allow-list, or of another scheme."""
    if ALLOWED.get(parameters.parameters_id) != parameters:
        raise ConfigurationError("these encryption parameters are not on the allow-list")
    if parameters.scheme != scheme:
        raise ConfigurationError(f"these encryption parameters are for {parameters.scheme}, not {scheme}")


def check_values(values: NDArray[np.signedinteger[Any]], parameters: Parameters) -> None:
    """Raise FeatureRangeError if a matrix cannot be encrypted: its shape, its type, or a value beyond t / 2."""
    if values.ndim != 2 or values.dtype.kind != "i" or values.size == 0:
        raise FeatureRangeError("only a non-empty two-dimensional matrix of signed integers can be encrypted")
    lowest, highest = int(values.min()), int(values.max())
    if max(-lowest, highest) > parameters.value_limit:
        raise FeatureRangeError(
            f"values span {lowest}..{highest}, at most +-{parameters.value_limit} can be encrypted"
        )
