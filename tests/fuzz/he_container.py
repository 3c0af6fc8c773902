"""Hostile containers: `scripts/fuzz he --n N --seed S`.

Each input is a valid block with a few mutations, or one crafted for a known attack. Two things may happen to it:
`parse` refuses it with one of its own errors, or it is canonical, that is the fields that `parse` read, written by
`encode`, are the very bytes that came in. An independent reader, written from `docs/container.md` with Python
integers, has to agree about a share of the inputs. Crafted inputs whose refusal is known must be refused for the
stated field. Peak memory is reported and limited.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from usufruct.errors import ContainerError, WrongKeyDomainError
from usufruct.he import container, lanes
from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.parameters import BFV_LINEAR

PEAK_LIMIT_MB = 300
HEADER, N, Q, BITS = 75, BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.coeff_modulus, BFV_LINEAR.residue_bits
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
COUNTS = {Form.SEEDED: N, Form.CIPHERTEXT: 2 * N, Form.EXTRACTED: N + 1}
REFUSALS = frozenset(
    {"magic", "version", "scheme", "form", "parameters_id", "length", "residues", "padding", "transparent"}
)


class FuzzFailure(AssertionError):
    """An input that was neither refused nor canonical."""


def valid_block(form: Form, rng: random.Random) -> bytes:
    """A block of random residues."""
    import numpy as np

    source = np.random.default_rng(rng.getrandbits(64))
    seed = source.bytes(32) if form is Form.SEEDED else None
    c1 = expand_seed(seed, BFV_LINEAR, KEY) if seed else source.integers(0, Q, N, dtype=np.uint64)
    c0 = source.integers(0, Q, 1 if form is Form.EXTRACTED else N, dtype=np.uint64)
    return encode(Ciphertext(form=form, parameters=BFV_LINEAR, key_id=KEY, c0=c0, c1=c1, seed=seed))


def with_residue(block: bytes, index: int, value: int) -> bytes:
    """Overwrite one packed residue with any number of 54 bits."""
    packed = int.from_bytes(block[HEADER:], "little")
    packed &= ~(((1 << BITS) - 1) << (BITS * index))
    packed |= value << (BITS * index)
    return block[:HEADER] + packed.to_bytes(len(block) - HEADER, "little")


def form_of(block: bytes) -> Form:
    """The form of a valid block."""
    return Form(block[6])


Attack = Callable[[bytes, random.Random], tuple[bytes, str | None]]
"""Makes an input from a valid block; says for which field it has to be refused, or None if that varies."""


def residue_at_or_above_the_prime(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Also the prime itself, which is congruent to a valid zero."""
    index = rng.randrange(COUNTS[form_of(block)])
    return with_residue(
        block, index, rng.choice([Q, Q + 1, (1 << BITS) - 1, rng.randrange(Q, 1 << BITS)])
    ), "residues"


def residue_just_below_the_prime(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """A valid block: the neighbours of what is refused."""
    return with_residue(block, rng.randrange(COUNTS[form_of(block)]), rng.choice([Q - 1, 0, 1])), None


def transparent(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """c1 = 0 shows the message to everybody."""
    form = form_of(block)
    if form is Form.SEEDED:
        return block[:HEADER] + bytes(len(block) - HEADER), None
    count = COUNTS[form]
    packed = int.from_bytes(block[HEADER:], "little")
    first = N if form is Form.CIPHERTEXT else 0
    packed &= ~(((1 << BITS * N) - 1) << (BITS * first))
    return block[:HEADER] + packed.to_bytes(-(-count * BITS // 8), "little"), "transparent"


def padding_bits(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Only the extracted form has bits to spare; the others end on a whole byte."""
    if form_of(block) is not Form.EXTRACTED:
        return block + b"\0", "length"
    return block[:-1] + bytes([block[-1] | rng.choice([0x40, 0x80, 0xC0])]), "padding"


def other_key(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Same parameters, another key domain: loads in SEAL and decrypts to garbage."""
    return block[:39] + OTHER_KEY + block[71:], "key_id"


def other_parameters(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """An id that is not on the list, next to one that is."""
    at = 7 + rng.randrange(32)
    return block[:at] + bytes([block[at] ^ 1 << rng.randrange(8)]) + block[at + 1 :], "parameters_id"


def stated_length(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Allocation bombs by the length field."""
    said = rng.choice([0, 1, 2**31, 2**32 - 1, len(block) - HEADER + 1, len(block) - HEADER - 1, 2**20])
    return block[:71] + struct.pack("<I", said) + block[75:], "length"


def cut_or_extended(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Every other length."""
    if rng.random() < 0.5:
        return block[: rng.randrange(len(block))], "length"
    return block + rng.randbytes(rng.choice([1, 31, 32, 4096])), "length"


def form_swapped(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """The payload of one form under the name of another."""
    other = rng.choice([form for form in Form if form is not form_of(block)])
    return block[:6] + bytes([other]) + block[7:], "length"


def seal_bomb(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """SEAL's own header over a compressed stream that claims gigabytes, bare or inside a container."""
    inner = struct.pack(
        "<4QBQQQdQ", 1, 2, 3, 4, 0, 2**20, 2**15, 1, rng.choice([float("nan"), -1.0, 2.0**81]), 1
    )
    squeezed = zlib.compress(inner + bytes(4096))
    blob = struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, rng.choice([0, 1, 2]), 0, 16 + len(squeezed)) + squeezed
    if rng.random() < 0.5:
        return blob, "length" if len(blob) < HEADER else "magic"
    return block[:HEADER] + blob + block[HEADER + len(blob) :], None


def bits_flipped(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """One to eight bits, in the header as often as in the payload."""
    data = bytearray(block)
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(min(HEADER, len(data)) if rng.random() < 0.5 else len(data))
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data), None


def bytes_overwritten(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """A run of extreme or random bytes."""
    length = rng.choice([1, 2, 7, 8, 27, 64, 1024])
    at = rng.randrange(len(block) - length)
    run = rng.choice([b"\xff" * length, bytes(length), rng.randbytes(length)])
    return block[:at] + run + block[at + length :], None


def pieces_moved(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Cut out, doubled and joined."""
    first, last = sorted(rng.randrange(len(block)) for _ in range(2))
    return rng.choice(
        [block[:first] + block[last:], block[:last] + block[first:], block[last:] + block[:last]]
    ), None


ATTACKS: tuple[Attack, ...] = (
    residue_at_or_above_the_prime,
    residue_just_below_the_prime,
    transparent,
    padding_bits,
    other_key,
    other_parameters,
    stated_length,
    cut_or_extended,
    form_swapped,
    seal_bomb,
    bits_flipped,
    bytes_overwritten,
    pieces_moved,
)


def outcome(data: bytes) -> str:
    """`canonical`, or the field for which `parse` refuses; raises FuzzFailure for anything else."""
    try:
        found = parse(data, key_id=KEY)
    except ContainerError as refusal:
        if compiled_refusal(data) != refusal.field:
            raise FuzzFailure("the compiled reader does not refuse for the same reason") from refusal
        if refusal.field not in REFUSALS:
            raise FuzzFailure(f"refused for an unknown field {refusal.field!r}") from refusal
        return refusal.field
    except WrongKeyDomainError:
        return "key_id"
    if encode(found) != data:
        raise FuzzFailure("accepted, and not canonical")
    again = parse(data, key_id=KEY, unpacker=lanes.unpack)
    if (again.c0 != found.c0).any() or (again.c1 != found.c1).any():
        raise FuzzFailure("the compiled reader reads something else")
    return "canonical"


def compiled_refusal(data: bytes) -> str | None:
    """The field for which the compiled reader refuses, or None."""
    try:
        parse(data, key_id=KEY, unpacker=lanes.unpack)
    except ContainerError as refusal:
        return refusal.field
    return None


def independent_verdict(data: bytes) -> bool:
    """Whether these bytes are a valid block of `KEY`: the rules of the page, in Python integers."""
    if len(data) < HEADER or data[:6] != b"UFCT\x01\x01" or data[6] not in (1, 2, 3):
        return False
    form = Form(data[6])
    if data[7:39] != BFV_LINEAR.parameters_id or data[39:71] != KEY:
        return False
    size = -(-COUNTS[form] * BITS // 8) + (32 if form is Form.SEEDED else 0)
    if struct.unpack("<I", data[71:75])[0] != size or len(data) != HEADER + size:
        return False
    packed = int.from_bytes(data[HEADER : len(data) - (32 if form is Form.SEEDED else 0)], "little")
    if packed >> BITS * COUNTS[form]:
        return False
    mask = (1 << BITS) - 1
    text = packed.to_bytes(-(-COUNTS[form] * BITS // 216) * 27, "little")
    residues = []
    for group in range(0, len(text), 27):
        four = int.from_bytes(text[group : group + 27], "little")
        residues += [four & mask, four >> 54 & mask, four >> 108 & mask, four >> 162 & mask]
    residues = residues[: COUNTS[form]]
    second = {Form.SEEDED: [1], Form.CIPHERTEXT: residues[N:], Form.EXTRACTED: residues[:N]}[form]
    return max(residues) < Q and any(second)


def peak_rss_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would count the process that started it as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def fuzz(n: int, seed: int) -> dict[str, object]:
    """Run `n` inputs; returns what became of them. One run is fixed by its seed."""
    rng = random.Random(seed)
    blocks = [valid_block(form, rng) for form in Form for _ in range(4)]
    outcomes: Counter[str] = Counter()
    begun = time.monotonic()
    for number in range(n):
        attack = rng.choice(ATTACKS)
        block = rng.choice(blocks)
        data, expected = attack(block, rng)
        if data and rng.random() < 0.15:
            data, expected = bits_flipped(data, rng)
        try:
            seen = outcome(data)
            if expected is not None and seen != expected:
                raise FuzzFailure(f"{attack.__name__}: expected a refusal for {expected}, found {seen}")
            if rng.random() < 0.05 and independent_verdict(data) != (seen == "canonical"):
                raise FuzzFailure(f"{attack.__name__}: an independent reader does not agree with {seen}")
        except Exception as failure:
            place = Path(f"fuzz-he-{seed}-{number}.bin")
            place.write_bytes(data)
            raise FuzzFailure(f"input {number} of seed {seed}, kept as {place}: {failure}") from failure
        outcomes[seen] += 1
    return {
        "n": n,
        "seed": seed,
        "outcomes": dict(sorted(outcomes.items())),
        "seconds": round(time.monotonic() - begun, 1),
        "peak_rss_mb": round(peak_rss_mb(), 1),
    }


def coverage_guided(arguments: list[str]) -> None:
    """Let atheris choose the inputs; `arguments` go to libFuzzer. Does not return."""
    import atheris

    for function in (parse, container._parse_payload, container.unpack, container._check_residues):
        atheris.instrument_func(function)
    rng = random.Random(1)
    corpus = Path("fuzz-he-corpus")
    corpus.mkdir(exist_ok=True)
    for form in Form:
        (corpus / form.name.lower()).write_bytes(valid_block(form, rng))

    def one_input(data: bytes) -> None:
        if (outcome(data) == "canonical") != independent_verdict(data):
            raise FuzzFailure("an independent reader does not agree")

    atheris.Setup([sys.argv[0], "-max_len=60000", "-rss_limit_mb=2000", *arguments, str(corpus)], one_input)
    atheris.Fuzz()


def main() -> int:
    """Run and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=1, help="fixes the whole run")
    parser.add_argument("--coverage", action="store_true", help="let atheris choose; --n inputs at most")
    given = parser.parse_args()
    if given.coverage:
        coverage_guided([f"-runs={given.n}", f"-seed={given.seed}"])
    report = fuzz(given.n, given.seed)
    print(json.dumps(report))
    return 0 if float(str(report["peak_rss_mb"])) < PEAK_LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
