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
from usufruct.he import container, packed
from usufruct.he.container import FORMS, Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.parameters import ALLOWED, SCHEME_CODES, Parameters

PEAK_LIMIT_MB = 300
HEADER = 75
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
CASES = [(parameters, form) for parameters in ALLOWED.values() for form in sorted(FORMS[parameters.scheme])]
REFUSALS = frozenset(
    {"magic", "version", "scheme", "form", "parameters_id", "length", "residues", "padding", "transparent"}
)


class FuzzFailure(AssertionError):
    """An input that was neither refused nor canonical."""


def valid_block(parameters: Parameters, form: Form, rng: random.Random) -> bytes:
    """A block of random residues."""
    import numpy as np

    source = np.random.default_rng(rng.getrandbits(64))

    def uniform(count: int) -> np.ndarray:
        return np.concatenate(
            [source.integers(0, prime, count, dtype=np.uint64) for prime in parameters.primes]
        )

    degree = parameters.poly_modulus_degree
    seed = source.bytes(32) if form is Form.SEEDED else None
    made = Ciphertext(
        form=form,
        parameters=parameters,
        key_id=KEY,
        c0=uniform(1 if form.extracted else degree),
        c1=expand_seed(seed, parameters, KEY) if seed else uniform(degree),
        c2=uniform(degree) if form.parts == 3 else None,
        seed=seed,
    )
    return encode(made)


def kind(block: bytes) -> tuple[Parameters, Form]:
    """The parameters and the form of a valid block."""
    return ALLOWED[block[7:39]], Form(block[6])


def layout(parameters: Parameters, form: Form) -> list[tuple[int, int]]:
    """How many residues of which prime follow each other, as the page has it."""
    degree = parameters.poly_modulus_degree
    whole = [(degree, prime) for prime in parameters.primes]
    single = [(1, prime) for prime in parameters.primes]
    return {
        Form.SEEDED: whole,
        Form.CIPHERTEXT: whole * 2,
        Form.EXTRACTED: whole + single,
        Form.PRODUCT: whole * 3,
        Form.EXTRACTED_PRODUCT: whole * 2 + single,
    }[form]


def transparent_runs(parameters: Parameters, form: Form) -> list[int]:
    """Places in `layout` of the residues of c1 and c2."""
    n = len(parameters.primes)
    return {
        Form.SEEDED: [],
        Form.CIPHERTEXT: list(range(n, 2 * n)),
        Form.EXTRACTED: list(range(n)),
        Form.PRODUCT: list(range(n, 3 * n)),
        Form.EXTRACTED_PRODUCT: list(range(2 * n)),
    }[form]


def with_residue(block: bytes, index: int, value: int) -> bytes:
    """Overwrite one packed residue with any number of that many bits."""
    bits = kind(block)[0].residue_bits
    first, shift = divmod(index * bits, 8)
    at = HEADER + first
    window = int.from_bytes(block[at : at + 8], "little")
    window = window & ~(((1 << bits) - 1) << shift) | value << shift
    size = min(8, len(block) - at)
    return block[:at] + window.to_bytes(8, "little")[:size] + block[at + size :]


def random_residue(block: bytes, rng: random.Random) -> tuple[int, int]:
    """The index of one residue and its prime."""
    runs = layout(*kind(block))
    run = rng.randrange(len(runs))
    return sum(count for count, _ in runs[:run]) + rng.randrange(runs[run][0]), runs[run][1]


Attack = Callable[[bytes, random.Random], tuple[bytes, str | None]]
"""Makes an input from a valid block; says for which field it has to be refused, or None if that varies."""


def residue_at_or_above_the_prime(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Also the prime itself, which is congruent to a valid zero."""
    (index, prime), top = random_residue(block, rng), 1 << kind(block)[0].residue_bits
    value = rng.choice([prime, prime + 1, top - 1, rng.randrange(prime, top)])
    return with_residue(block, index, value), "residues"


def residue_just_below_the_prime(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """A valid block: the neighbours of what is refused."""
    index, prime = random_residue(block, rng)
    return with_residue(block, index, rng.choice([prime - 1, 0, 1])), None


def transparent(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """c1 = 0 or c2 = 0, by one prime, shows the message to everybody."""
    parameters, form = kind(block)
    runs = transparent_runs(parameters, form)
    if not runs:
        return block[:HEADER] + bytes(len(block) - HEADER), None
    size = parameters.poly_modulus_degree * parameters.residue_bits // 8
    at = HEADER + size * rng.choice(runs)
    return block[:at] + bytes(size) + block[at + size :], "transparent"


def padding_bits(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Only the extracted forms have bits to spare; the others end on a whole byte."""
    parameters, form = kind(block)
    if not form.extracted:
        return block + b"\0", "length"
    used = sum(count for count, _ in layout(parameters, form)) * parameters.residue_bits % 8
    return block[:-1] + bytes([block[-1] | 1 << rng.randrange(used, 8)]), "padding"


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
    parameters, own = kind(block)
    other = rng.choice([form for form in Form if form is not own])
    refusal = "length" if other in FORMS[parameters.scheme] else "form"
    return block[:6] + bytes([other]) + block[7:], refusal


def scheme_swapped(block: bytes, rng: random.Random) -> tuple[bytes, str | None]:
    """Another scheme's byte before the same parameter set."""
    other = rng.choice([code for code in SCHEME_CODES.values() if code != block[5]])
    return block[:5] + bytes([other]) + block[6:], "scheme"


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
    scheme_swapped,
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
    again = parse(data, key_id=KEY, unpacker=packed.unpack)
    if any(
        (one != other).any()
        for one, other in zip((again.c0, again.c1, again.c2), (found.c0, found.c1, found.c2), strict=True)
        if one is not None
    ):
        raise FuzzFailure("the compiled reader reads something else")
    return "canonical"


def compiled_refusal(data: bytes) -> str | None:
    """The field for which the compiled reader refuses, or None."""
    try:
        parse(data, key_id=KEY, unpacker=packed.unpack)
    except ContainerError as refusal:
        return refusal.field
    return None


def independent_verdict(data: bytes) -> bool:
    """Whether these bytes are a valid block of `KEY`: the rules of the page, in Python integers."""
    parameters = ALLOWED.get(data[7:39])
    if len(data) < HEADER or data[:5] != b"UFCT\x01" or parameters is None or data[39:71] != KEY:
        return False
    if data[5] != SCHEME_CODES[parameters.scheme] or data[6] not in FORMS[parameters.scheme]:
        return False
    form, bits = Form(data[6]), parameters.residue_bits
    runs = layout(parameters, form)
    count, seeded = sum(run for run, _ in runs), 32 if form is Form.SEEDED else 0
    size = -(-count * bits // 8) + seeded
    if struct.unpack("<I", data[71:75])[0] != size or len(data) != HEADER + size:
        return False
    text, mask = data[HEADER : len(data) - seeded], (1 << bits) - 1
    if int.from_bytes(text, "little") >> bits * count:
        return False
    # Eight residues end on a whole byte, whatever their width.
    residues = []
    for group in range(0, len(text), bits):
        eight = int.from_bytes(text[group : group + bits], "little")
        residues += [eight >> bits * lane & mask for lane in range(8)]
    at, found = 0, []
    for run, prime in runs:
        found.append(residues[at : at + run])
        at += run
        if max(found[-1]) >= prime:
            return False
    return all(any(found[run]) for run in transparent_runs(parameters, form))


def peak_rss_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would count the process that started it as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def fuzz(n: int, seed: int) -> dict[str, object]:
    """Run `n` inputs; returns what became of them. One run is fixed by its seed."""
    rng = random.Random(seed)
    blocks = [valid_block(*case, rng) for case in CASES for _ in range(2)]
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
    for parameters, form in CASES:
        name = f"{parameters.scheme}-{parameters.poly_modulus_degree}-{form.name.lower()}"
        (corpus / name).write_bytes(valid_block(parameters, form, rng))

    def one_input(data: bytes) -> None:
        if (outcome(data) == "canonical") != independent_verdict(data):
            raise FuzzFailure("an independent reader does not agree")

    atheris.Setup([sys.argv[0], "-max_len=500000", "-rss_limit_mb=2000", *arguments, str(corpus)], one_input)
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
