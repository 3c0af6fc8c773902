"""The one CKKS parameter set. Knows no keys and no ciphertexts."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

SCHEME_CODE: Final = 3
"""Scheme byte of containers and of the canonical encoding; 1 and 2 are the exact schemes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CkksParameters:
    """One parameter set over Z[X]/(X^N + 1), real numbers in N / 2 slots."""

    poly_modulus_degree: int
    """N."""

    primes: tuple[int, ...]
    """Of ciphertexts, in SEAL's order: a rescaling drops the last one."""

    special_prime: int
    """Of evaluation keys only."""

    scale_bits: int
    """A slot's value x stands as x 2^scale_bits in every block."""

    security_bits: int
    """Classical security level of N and the product of all primes, the special one included."""

    @property
    def slots(self) -> int:
        """N / 2: rows per block."""
        return self.poly_modulus_degree // 2

    @property
    def top_level(self) -> int:
        """Level of fresh ciphertexts; a ciphertext of level l has the first l + 1 primes."""
        return len(self.primes) - 1

    @property
    def key_primes(self) -> tuple[int, ...]:
        """What an evaluation key's residues are taken by."""
        return (*self.primes, self.special_prime)

    @property
    def parameters_id(self) -> bytes:
        """SHA-256 over a tag and the fields, 32 bytes.

        The preimage is `"usufruct/parameters/1" 00`, then scheme (1 byte), N (4), each prime (8), the special one last,
        scale bits (2) and the security level (2), all little-endian.
        """
        fields = struct.pack(
            f"<BI{len(self.primes) + 1}QHH",
            SCHEME_CODE,
            self.poly_modulus_degree,
            *self.key_primes,
            self.scale_bits,
            self.security_bits,
        )
        return hashlib.sha256(b"usufruct/parameters/1\0" + fields).digest()


CKKS_CUBIC: Final = CkksParameters(
    poly_modulus_degree=8192,
    primes=(0x1FFFFFFF68001, 0xFFFFF3C001, 0xFFFFF4C001, 0xFFFFFDC001),
    special_prime=0x1FFFFFFF74001,
    scale_bits=40,
    security_bits=128,
)
"""Cubic polynomials of linear scores: SEAL's primes of 49, 40, 40, 40 and 49 bits.

Three rescalings take the three of 40 bits; the first leaves nine bits for the integer part of a result. 218 bits
together, all that the Homomorphic Encryption Standard (2018, table 1) allows at N = 8192 for 128-bit classical
security with ternary secrets.
"""
