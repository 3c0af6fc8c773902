"""The ciphertext container: canonical bytes of one ciphertext, one block.

One value has one byte string and one byte string one value, so the CID of a block identifies the
ciphertext. Layout and rules are in `docs/container.md`. Parsing is strict and touches no homomorphic
library: whatever a peer sends ends here, as checked fields or as an error. Knows no secret key and
decrypts nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import gcd
from types import MappingProxyType
from typing import Any, Final

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

    PRODUCT = 4
    """c0, c1 and c2 of a product of two ciphertexts: every coefficient can be opened by the key's owner."""

    EXTRACTED_PRODUCT = 5
    """c1, c2 and coefficient 0 of c0: of a product, only coefficient 0 can be opened, by anybody."""

    @property
    def extracted(self) -> bool:
        """Whether only coefficient 0 of c0 is there."""
        return self in (Form.EXTRACTED, Form.EXTRACTED_PRODUCT)

    @property
    def parts(self) -> int:
        """Polynomials of the ciphertext, an extracted c0 counted."""
        return 3 if self in (Form.PRODUCT, Form.EXTRACTED_PRODUCT) else 2


_TWO_PARTS = frozenset({Form.SEEDED, Form.CIPHERTEXT, Form.EXTRACTED})

FORMS: Final[Mapping[str, frozenset[Form]]] = MappingProxyType(
    {"bfv": _TWO_PARTS, "bgv": _TWO_PARTS | {Form.PRODUCT, Form.EXTRACTED_PRODUCT}}
)
"""The forms that a scheme has."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ciphertext:
    """The checked fields of one container.

    A polynomial is a flat array: N residues by the first prime, N by the next, and so on. BFV writes coefficients,
    BGV evaluations (`ntt.forward`), except that an extracted c0 is a coefficient in both.
    """

    form: Form
    parameters: Parameters

    key_id: bytes
    """32 bytes: the key domain that this was encrypted in."""

    c0: Residues
    """shape (primes * N,), or (primes,) in the extracted forms."""

    c1: Residues
    """shape (primes * N,); expanded from the seed in the seeded form."""

    c2: Residues | None = None
    """shape (primes * N,) in the product forms, else None."""

    seed: bytes | None = None
    """32 bytes in the seeded form, else None."""


def block_size(form: Form, parameters: Parameters) -> int:
    """Size in bytes of every container of this form."""
    return _HEADER.size + _payload_size(form, parameters)


def encode(ciphertext: Ciphertext, *, packer: Callable[[Residues, int], bytes] | None = None) -> bytes:
    """Write the canonical bytes of a ciphertext.

    Parameters
    ----------
    packer :
        Used in place of `pack`; `packed.pack` is the compiled one.

    Raises
    ------
    ContainerError
        If the fields do not make a valid container of the stated form; nothing that `parse` would refuse is
        ever written.
    """
    parameters, form = ciphertext.parameters, ciphertext.form
    whole = (parameters.residues,)
    c0_shape = (len(parameters.primes),) if form.extracted else whole
    parts = [part for part in (ciphertext.c1, ciphertext.c2) if part is not None]
    if (
        form not in FORMS[parameters.scheme]
        or len(parts) != form.parts - 1
        or ciphertext.c0.shape != c0_shape
        or any(part.shape != whole for part in parts)
    ):
        raise ContainerError("polynomials that are not those of this form", field="length")
    if len(ciphertext.key_id) != 32:
        raise ContainerError("a key id has 32 bytes", field="key_id")
    _check_residues(ciphertext.c0, parts, parameters)
    if form is Form.SEEDED:
        seed = ciphertext.seed
        if seed is None or not np.array_equal(
            expand_seed(seed, parameters, ciphertext.key_id), ciphertext.c1
        ):
            raise ContainerError("c1 is not the expansion of the seed", field="seed")
        return encode_seeded(ciphertext.c0, seed, parameters, ciphertext.key_id, packer=packer)
    order = [*parts, ciphertext.c0] if form.extracted else [ciphertext.c0, *parts]
    # N is a multiple of eight, so every polynomial ends on a whole byte.
    payload = [(packer or pack)(part, parameters.residue_bits) for part in order]
    return _with_header(payload, form, parameters, ciphertext.key_id)


def encode_seeded(
    c0: Residues,
    seed: bytes,
    parameters: Parameters,
    key_id: bytes,
    *,
    packer: Callable[[Residues, int], bytes] | None = None,
) -> bytes:
    """Write a seeded container from what it holds; c1 is what `expand_seed` makes of the seed. `packer` as for `encode`.

    Raises
    ------
    ContainerError
        If a field has the wrong size, or a residue is not below the modulus.
    """
    if c0.shape != (parameters.residues,):
        raise ContainerError("a polynomial of the wrong degree for this form", field="length")
    if len(seed) != SEED_BYTES or len(key_id) != 32:
        raise ContainerError(f"a seed has {SEED_BYTES} bytes, a key id 32", field="seed")
    _check_residues(c0, [], parameters)
    payload = [(packer or pack)(c0, parameters.residue_bits), seed]
    return _with_header(payload, Form.SEEDED, parameters, key_id)


def _with_header(payload: Sequence[bytes], form: Form, parameters: Parameters, key_id: bytes) -> bytes:
    code, size = SCHEME_CODES[parameters.scheme], sum(map(len, payload))
    header = _HEADER.pack(MAGIC, VERSION, code, form, parameters.parameters_id, key_id, size)
    return b"".join((header, *payload))


def parse(
    data: bytes,
    *,
    key_id: bytes | None = None,
    parameters: Parameters | None = None,
    forms: Collection[Form] = tuple(Form),
    unpacker: Callable[[bytes, int, int], Residues] | None = None,
    expansion: Residues | None = None,
) -> Ciphertext:
    """Read a container from hostile bytes.

    Parameters
    ----------
    data :
        The whole block.
    key_id :
        The key domain that the block has to belong to, if the caller knows it.
    parameters :
        The parameter set that the block has to be of, if the caller knows it.
    forms :
        The forms that are acceptable here.
    unpacker :
        Used in place of `unpack`; `packed.unpack` is the compiled one.
    expansion :
        What `expand_seed` gives for the seed in the block's last bytes, `parameters` and `key_id`, if the caller has
        it; both have to be given then.

    Raises
    ------
    ContainerError
        `field` is one of `magic`, `version`, `scheme`, `form`, `parameters_id`, `length`, `residues`,
        `padding` and `transparent`.
    WrongKeyDomainError
        If the container names another key domain than `key_id`.
    """
    form, found, found_key = _read_header(data, parameters, forms)
    _check_key(found_key, key_id)
    return _parse_payload(data[_HEADER.size :], form, found, found_key, unpacker or unpack, expansion)


def check_header(data: bytes, *, key_id: bytes) -> None:
    """Check that a block is as long as its header says, and of a key domain; its residues are not looked at.

    For whoever only keeps blocks.

    Raises
    ------
    ContainerError, WrongKeyDomainError
        As for `parse`.
    """
    _, _, found_key = _read_header(data, None, tuple(Form))
    _check_key(found_key, key_id)


def _read_header(
    data: bytes, parameters: Parameters | None, forms: Collection[Form]
) -> tuple[Form, Parameters, bytes]:
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
    found = parameters_by_id(parameters_id)
    if parameters is not None and found != parameters:
        raise ContainerError("a ciphertext of other parameters than the bundle's", field="parameters_id")
    if SCHEME_CODES[found.scheme] != scheme:
        raise ContainerError(f"scheme {scheme} is not that of the parameter set", field="scheme")
    if form not in FORMS[found.scheme]:
        raise ContainerError(f"{found.scheme} has no {form.name.lower()} containers", field="form")
    expected = _payload_size(form, found)
    if length != expected or len(data) != _HEADER.size + expected:
        raise ContainerError(
            f"payload of {len(data) - _HEADER.size} bytes, stated {length}, expected {expected}",
            field="length",
        )
    return form, found, found_key


def _check_key(found_key: bytes, key_id: bytes | None) -> None:
    if key_id is not None and found_key != key_id:
        raise WrongKeyDomainError(
            f"ciphertext belongs to key domain {found_key.hex()[:16]}, not {key_id.hex()[:16]}",
            hint="use the bundle's own key domain; `usufruct lineage` shows which one that is",
        )


def _parse_payload(
    payload: bytes,
    form: Form,
    parameters: Parameters,
    key_id: bytes,
    unpack: Callable[[bytes, int, int], Residues],
    expansion: Residues | None,
) -> Ciphertext:
    size, bits = parameters.residues, parameters.residue_bits
    if form is Form.SEEDED:
        c0, seed = unpack(payload[:-SEED_BYTES], size, bits), payload[-SEED_BYTES:]
        c1 = expand_seed(seed, parameters, key_id) if expansion is None else expansion
        # An expansion is below its primes, and no prime's part of it is zero, as far as SHAKE128 is what it is said to be.
        _check_residues(c0, [], parameters)
        return Ciphertext(form=form, parameters=parameters, key_id=key_id, c0=c0, c1=c1, seed=seed)
    found = unpack(payload, _count(form, parameters), bits)
    parts = [found[at : at + size] for at in range(0, found.size, size)]
    c0, *others = [parts[-1], *parts[:-1]] if form.extracted else parts
    _check_residues(c0, others, parameters)
    c2 = others[1] if len(others) == 2 else None
    return Ciphertext(form=form, parameters=parameters, key_id=key_id, c0=c0, c1=others[0], c2=c2)


def expand_seed(seed: bytes, parameters: Parameters, key_id: bytes) -> Residues:
    """Derive c1 from its public seed.

    The stream is SHAKE128 over `"usufruct/seed/1" 00`, parameter id, key id and seed. It is read in words,
    little-endian, of 8 bytes, or of 4 where a residue has at most 32 bits; each word is cut to the primes'
    bit length, words at or above the prime are skipped, and the first N that remain are the residues; the
    next prime reads on. Binding the key id keeps one seed from ever giving the same polynomial under two
    keys.

    Parameters
    ----------
    seed :
        32 bytes.
    parameters, key_id :
        Of the ciphertext.

    Returns
    -------
    c1 :
        shape (primes * N,), uniform below each prime.
    """
    degree, bits = parameters.poly_modulus_degree, parameters.residue_bits
    stream = hashlib.shake_128(seed_message(seed, parameters, key_id))
    word = np.dtype("<u8" if bits > 32 else "<u4")
    word_mask = word.type((1 << bits) - 1)
    # Twice as many to spare as are rejected on average; too few only means another round.
    rejected = sum(((1 << bits) - prime) * degree >> bits for prime in parameters.primes)
    n_words = parameters.residues + 2 * rejected + 8
    while True:
        words = np.frombuffer(stream.digest(word.itemsize * n_words), dtype=word) & word_mask
        found = _read_residues(words, parameters)
        if found is not None:
            return found
        # At most half of the words are ever rejected, since a prime has its top bit set.
        n_words *= 2


def seed_message(seed: bytes, parameters: Parameters, key_id: bytes) -> bytes:
    """What SHAKE128 hashes to expand a seed; raises ContainerError if the seed has another length."""
    if len(seed) != SEED_BYTES:
        raise ContainerError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}", field="seed")
    return b"usufruct/seed/1\0" + parameters.parameters_id + key_id + seed


def _read_residues(words: NDArray[Any], parameters: Parameters) -> Residues | None:
    """Residues from the words of a stream; None if there are too few."""
    degree = parameters.poly_modulus_degree
    found = np.empty(parameters.residues, dtype=np.uint64)
    for index, prime in enumerate(parameters.primes):
        below = words < words.dtype.type(prime)
        if below[:degree].all():
            kept, used = words[:degree], degree
        else:
            at = np.flatnonzero(below)[:degree]
            kept, used = words[at], int(at[-1]) + 1 if at.size else 0
        if kept.size < degree:
            return None
        found[index * degree : (index + 1) * degree] = kept
        words = words[used:]
    return found


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
    out = np.zeros(n_groups * group_bytes + 8, dtype=np.uint8)
    for lane in range(lanes):
        words, shift = _words_at(out, lane * bits, n_groups, group_bytes)
        words |= columns[:, lane] << np.uint64(shift)
    return out[: -(-residues.size * bits // 8)].tobytes()


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
    padded = np.zeros(n_groups * group_bytes + 8, dtype=np.uint8)
    padded[:size] = np.frombuffer(data, dtype=np.uint8)
    values = np.empty((n_groups, lanes), dtype=np.uint64)
    value_mask = np.uint64((1 << bits) - 1)
    for lane in range(lanes):
        words, shift = _words_at(padded, lane * bits, n_groups, group_bytes)
        values[:, lane] = (words >> np.uint64(shift)) & value_mask
    return values.reshape(-1)[:count].copy()


def _words_at(
    data: NDArray[np.uint8], first_bit: int, n_groups: int, group_bytes: int
) -> tuple[NDArray[np.uint64], int]:
    """The eight bytes of every group in which the value at `first_bit` lies, and by how many bits it is shifted there.

    A view: words of neighbouring values overlap, those of neighbouring groups too, so only one value is written at a
    time. The last word may reach seven bytes beyond the groups.
    """
    first, shift = divmod(first_bit, 8)
    return np.ndarray(n_groups, "<u8", data, first, (group_bytes,)), shift


def _group(bits: int) -> tuple[int, int]:
    """Values and bytes after which the bit positions repeat; at least eight bytes."""
    lanes = 8 // gcd(bits, 8)
    lanes *= -(-64 // (lanes * bits))
    return lanes, lanes * bits // 8


def _count(form: Form, parameters: Parameters) -> int:
    """Packed residues of a form."""
    if form is Form.SEEDED:
        return parameters.residues
    c0 = len(parameters.primes) if form.extracted else parameters.residues
    return (form.parts - 1) * parameters.residues + c0


def _payload_size(form: Form, parameters: Parameters) -> int:
    packed = -(-_count(form, parameters) * parameters.residue_bits // 8)
    return packed + SEED_BYTES if form is Form.SEEDED else packed


def _check_residues(c0: Residues, others: Sequence[Residues], parameters: Parameters) -> None:
    """Check every residue against its prime, and that no prime has a part of zeros: it would show the message."""
    primes = parameters.primes
    largest = [[int(run.max()) for run in part.reshape(len(primes), -1)] for part in (c0, *others)]
    if any(peak >= prime for peaks in largest for peak, prime in zip(peaks, primes, strict=True)):
        raise ContainerError("a residue is not below its prime", field="residues")
    for number, peaks in enumerate(largest[1:], start=1):
        if not all(peaks):
            raise ContainerError(
                f"c{number} is zero, so the message would be in the clear", field="transparent"
            )
