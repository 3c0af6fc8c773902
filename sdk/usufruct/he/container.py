"""The ciphertext container: canonical bytes of one BFV ciphertext, one block.

One value has one byte string and one byte string one value, so the CID of a block identifies the
ciphertext. Layout and rules are in `docs/container.md`. Parsing is strict and touches no homomorphic
library: whatever a peer sends ends here, as checked fields or as an error. Knows no secret key and
decrypts nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import ContainerError, WrongKeyDomainError
from usufruct.he.parameters import SCHEME_CODES, Parameters, parameters_by_id
from usufruct.he.residues import Residues

MAGIC: Final = b"UFCT"
VERSION: Final = 1
SEED_BYTES: Final = 32

_HEADER = struct.Struct("<4sBBB32s32sI")


class Form(IntEnum):
    """What a container carries."""

    SEEDED = 1
    """c0 and the public seed that expands to c1: a fresh ciphertext as its owner sealed it."""

    CIPHERTEXT = 2
    """c0 and c1: every coefficient can be opened by the key's owner."""

    EXTRACTED = 3
    """c1 and coefficient 0 of c0: only coefficient 0 can be opened, by anybody."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ciphertext:
    """The checked fields of one container."""

    form: Form
    parameters: Parameters

    key_id: bytes
    """32 bytes: the key domain that this was encrypted in."""

    c0: Residues
    """shape (N,), or (1,) in the extracted form."""

    c1: Residues
    """shape (N,); expanded from the seed in the seeded form."""

    seed: bytes | None = None
    """32 bytes in the seeded form, else None."""


def block_size(form: Form, parameters: Parameters) -> int:
    """Size in bytes of every container of this form."""
    return _HEADER.size + _payload_size(form, parameters)


def encode(ciphertext: Ciphertext) -> bytes:
    """Write the canonical bytes of a ciphertext.

    Raises
    ------
    ContainerError
        If the fields do not make a valid container of the stated form; nothing that `parse` would refuse is
        ever written.
    """
    parameters, form = ciphertext.parameters, ciphertext.form
    degree, bits = parameters.poly_modulus_degree, parameters.residue_bits
    c0_shape = (1,) if form is Form.EXTRACTED else (degree,)
    if ciphertext.c0.shape != c0_shape or ciphertext.c1.shape != (degree,):
        raise ContainerError("polynomials of the wrong degree for this form", field="length")
    if len(ciphertext.key_id) != 32:
        raise ContainerError("a key id has 32 bytes", field="key_id")
    _check_residues(ciphertext.c0, ciphertext.c1, parameters)
    if form is Form.SEEDED:
        seed = ciphertext.seed
        if seed is None or not np.array_equal(
            expand_seed(seed, parameters, ciphertext.key_id), ciphertext.c1
        ):
            raise ContainerError("c1 is not the expansion of the seed", field="seed")
        return encode_seeded(ciphertext.c0, seed, parameters, ciphertext.key_id)
    if form is Form.CIPHERTEXT:
        payload = pack(np.concatenate([ciphertext.c0, ciphertext.c1]), bits)
    else:
        payload = pack(np.concatenate([ciphertext.c1, ciphertext.c0]), bits)
    return _with_header(payload, form, parameters, ciphertext.key_id)


def encode_seeded(c0: Residues, seed: bytes, parameters: Parameters, key_id: bytes) -> bytes:
    """Write a seeded container from what it holds; c1 is what `expand_seed` makes of the seed.

    Raises
    ------
    ContainerError
        If a field has the wrong size, or a residue is not below the modulus.
    """
    if c0.shape != (parameters.poly_modulus_degree,):
        raise ContainerError("a polynomial of the wrong degree for this form", field="length")
    if len(seed) != SEED_BYTES or len(key_id) != 32:
        raise ContainerError(f"a seed has {SEED_BYTES} bytes, a key id 32", field="seed")
    if (c0 >= np.uint64(parameters.coeff_modulus)).any():
        raise ContainerError("a residue is not below the modulus", field="residues")
    return _with_header(pack(c0, parameters.residue_bits) + seed, Form.SEEDED, parameters, key_id)


def _with_header(payload: bytes, form: Form, parameters: Parameters, key_id: bytes) -> bytes:
    code = SCHEME_CODES[parameters.scheme]
    return _HEADER.pack(MAGIC, VERSION, code, form, parameters.parameters_id, key_id, len(payload)) + payload


def parse(
    data: bytes,
    *,
    key_id: bytes | None = None,
    forms: Collection[Form] = tuple(Form),
    unpacker: Callable[[bytes, int, int], Residues] | None = None,
) -> Ciphertext:
    """Read a container from hostile bytes.

    Parameters
    ----------
    data :
        The whole block.
    key_id :
        The key domain that the block has to belong to, if the caller knows it.
    forms :
        The forms that are acceptable here.
    unpacker :
        Used in place of `unpack`; `lanes.unpack` is the compiled one.

    Raises
    ------
    ContainerError
        `field` is one of `magic`, `version`, `scheme`, `form`, `parameters_id`, `length`, `residues`,
        `padding` and `transparent`.
    WrongKeyDomainError
        If the container names another key domain than `key_id`.
    """
    if len(data) < _HEADER.size:
        raise ContainerError(f"{len(data)} bytes are too short for a container", field="length")
    magic, version, scheme, form_code, parameters_id, found_key, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ContainerError(f"magic is {magic.hex()}, not {MAGIC.hex()}", field="magic")
    if version != VERSION:
        raise ContainerError(f"container version {version} is unknown", field="version")
    if scheme not in SCHEME_CODES.values():
        raise ContainerError(f"scheme {scheme} is unknown", field="scheme")
    if form_code not in tuple(Form):
        raise ContainerError(f"form {form_code} is unknown", field="form")
    form = Form(form_code)
    if form not in forms:
        raise ContainerError(f"a {form.name.lower()} container is not acceptable here", field="form")
    parameters = parameters_by_id(parameters_id)
    if SCHEME_CODES[parameters.scheme] != scheme:
        raise ContainerError(f"scheme {scheme} is not that of the parameter set", field="scheme")
    expected = _payload_size(form, parameters)
    if length != expected or len(data) != _HEADER.size + expected:
        raise ContainerError(
            f"payload of {len(data) - _HEADER.size} bytes, stated {length}, expected {expected}",
            field="length",
        )
    if key_id is not None and found_key != key_id:
        raise WrongKeyDomainError(
            f"ciphertext belongs to key domain {found_key.hex()[:16]}, not {key_id.hex()[:16]}",
            hint="use the bundle's own key domain; `usufruct lineage` shows which one that is",
        )
    return _parse_payload(data[_HEADER.size :], form, parameters, found_key, unpacker or unpack)


def _parse_payload(
    payload: bytes,
    form: Form,
    parameters: Parameters,
    key_id: bytes,
    unpack: Callable[[bytes, int, int], Residues],
) -> Ciphertext:
    degree, bits = parameters.poly_modulus_degree, parameters.residue_bits
    seed: bytes | None = None
    if form is Form.SEEDED:
        c0, seed = unpack(payload[:-SEED_BYTES], degree, bits), payload[-SEED_BYTES:]
        c1 = expand_seed(seed, parameters, key_id)
    elif form is Form.CIPHERTEXT:
        both = unpack(payload, 2 * degree, bits)
        c0, c1 = both[:degree], both[degree:]
    else:
        both = unpack(payload, degree + 1, bits)
        c0, c1 = both[degree:], both[:degree]
    _check_residues(c0, c1, parameters)
    return Ciphertext(form=form, parameters=parameters, key_id=key_id, c0=c0, c1=c1, seed=seed)


def expand_seed(seed: bytes, parameters: Parameters, key_id: bytes) -> Residues:
    """Derive c1 from its public seed.

    The stream is SHAKE128 over `"usufruct/seed/1" 00`, parameter id, key id and seed. It is read in words
    of 8 bytes, little-endian; each word is cut to the modulus' bit length, words at or above the modulus
    are skipped, and the first N that remain are the coefficients. Binding the key id keeps one seed from
    ever giving the same polynomial under two keys.

    Parameters
    ----------
    seed :
        32 bytes.
    parameters, key_id :
        Of the ciphertext.

    Returns
    -------
    c1 :
        shape (N,), uniform below the modulus.
    """
    if len(seed) != SEED_BYTES:
        raise ContainerError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}", field="seed")
    degree, modulus = parameters.poly_modulus_degree, parameters.coeff_modulus
    stream = hashlib.shake_128(b"usufruct/seed/1\0" + parameters.parameters_id + key_id + seed)
    word_mask = np.uint64((1 << parameters.residue_bits) - 1)
    n_words = degree + 8
    while True:
        words = np.frombuffer(stream.digest(8 * n_words), dtype="<u8").astype(np.uint64) & word_mask
        accepted = words[words < np.uint64(modulus)]
        if accepted.size >= degree:
            return accepted[:degree]
        # At most half of the words are ever rejected, since the modulus has its top bit set.
        n_words *= 2


def pack(residues: Residues, bits: int) -> bytes:
    """Write each value on `bits` bits, least significant bit first, zero bits up to the last whole byte.

    Parameters
    ----------
    residues :
        shape (n,), each below 2^bits.
    bits :
        At most 56.
    """
    lanes, group_bytes = _group(bits)
    n_groups = -(-residues.size // lanes)
    padded = np.zeros(n_groups * lanes, dtype=np.uint64)
    padded[: residues.size] = residues
    columns = padded.reshape(n_groups, lanes)
    out = np.zeros((n_groups, group_bytes + 8), dtype=np.uint8)
    for lane in range(lanes):
        first, shift = divmod(lane * bits, 8)
        words = np.ascontiguousarray(columns[:, lane] << np.uint64(shift)).astype("<u8")
        out[:, first : first + 8] |= words.view(np.uint8).reshape(n_groups, 8)
    return out[:, :group_bytes].tobytes()[: -(-residues.size * bits // 8)]


def unpack(data: bytes, count: int, bits: int) -> Residues:
    """Read `count` values of `bits` bits, the inverse of `pack`.

    Raises
    ------
    ContainerError
        `length` if `data` is not exactly as long as `count` values take, `padding` if a bit after the last
        value is set.
    """
    size = -(-count * bits // 8)
    if len(data) != size:
        raise ContainerError(f"{len(data)} packed bytes, expected {size}", field="length")
    spare = 8 * size - count * bits
    if spare and data[-1] >> (8 - spare):
        raise ContainerError("bits after the last residue are set", field="padding")
    lanes, group_bytes = _group(bits)
    n_groups = -(-count // lanes)
    padded = np.zeros(n_groups * group_bytes, dtype=np.uint8)
    padded[:size] = np.frombuffer(data, dtype=np.uint8)
    groups: NDArray[np.uint8] = np.zeros((n_groups, group_bytes + 8), dtype=np.uint8)
    groups[:, :group_bytes] = padded.reshape(n_groups, group_bytes)
    values = np.empty((n_groups, lanes), dtype=np.uint64)
    value_mask = np.uint64((1 << bits) - 1)
    for lane in range(lanes):
        first, shift = divmod(lane * bits, 8)
        words = np.ascontiguousarray(groups[:, first : first + 8]).view("<u8").reshape(n_groups)
        values[:, lane] = (words.astype(np.uint64) >> np.uint64(shift)) & value_mask
    return values.reshape(-1)[:count].copy()


def _group(bits: int) -> tuple[int, int]:
    """Values and bytes after which the bit positions repeat."""
    lanes = 8 // gcd(bits, 8)
    return lanes, lanes * bits // 8


def _payload_size(form: Form, parameters: Parameters) -> int:
    degree, bits = parameters.poly_modulus_degree, parameters.residue_bits
    if form is Form.SEEDED:
        return -(-degree * bits // 8) + SEED_BYTES
    count = 2 * degree if form is Form.CIPHERTEXT else degree + 1
    return -(-count * bits // 8)


def _check_residues(c0: Residues, c1: Residues, parameters: Parameters) -> None:
    modulus = np.uint64(parameters.coeff_modulus)
    if (c0 >= modulus).any() or (c1 >= modulus).any():
        raise ContainerError("a residue is not below the modulus", field="residues")
    if not c1.any():
        raise ContainerError("c1 is zero, so the message would be in the clear", field="transparent")
