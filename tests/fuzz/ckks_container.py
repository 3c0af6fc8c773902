"""Hostile containers of the CKKS plug-in: `scripts/fuzz ckks --n N --seed S`.

As `he_container`, for the four forms of `usufruct.he.ckks.container`: an input is refused with one of the parser's own
errors, or what was read is written back as the very bytes that came in; a reader written from `docs/engine.md` with
Python integers agrees about a share of them.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from he_container import PEAK_LIMIT_MB, FuzzFailure, peak_rss_mb

from usufruct.errors import ContainerError, WrongKeyDomainError
from usufruct.he.ckks.container import (
    NO_KEY,
    Ciphertext,
    Form,
    Model,
    N,
    RelinearisationKey,
    encode_ciphertext,
    encode_model_block,
    encode_relinearisation_key,
    parse_ciphertext,
    parse_model,
    parse_relinearisation_key,
)
from usufruct.he.ckks.parameters import CKKS_CUBIC

HEADER = 77
KEY = bytes(range(32))
REFUSALS = frozenset(
    {
        "magic", "version", "scheme", "form", "level", "scale",
        "parameters_id", "length", "residues", "transparent", "key_id",
    }
)  # fmt: skip
PLACES = {Form.SEALED: (3, 40), Form.RESULT: (0, 40), Form.RELINEARISATION_KEY: (3, 0), Form.MODEL: (3, 0)}


def runs_of(form: Form) -> list[int]:
    """The prime of every run of N residues, as the page has it."""
    return {
        Form.SEALED: [*CKKS_CUBIC.primes] * 2,
        Form.RESULT: [CKKS_CUBIC.primes[0]] * 2,
        Form.RELINEARISATION_KEY: [*CKKS_CUBIC.key_primes] * 2 * len(CKKS_CUBIC.primes),
        Form.MODEL: [],
    }[form]


def c1_runs(form: Form) -> list[int]:
    """Places in `runs_of` that must not be zero."""
    width = {Form.SEALED: 4, Form.RESULT: 1, Form.RELINEARISATION_KEY: 5, Form.MODEL: 1}[form]
    return [place for place in range(len(runs_of(form))) if place // width % 2]


def valid_block(form: Form, rng: random.Random) -> bytes:
    """A block of random residues, or a model of random integers."""
    source = np.random.default_rng(rng.getrandbits(64))

    def uniform(primes: tuple[int, ...]) -> np.ndarray:
        return np.stack([source.integers(0, prime, N, dtype=np.uint64) for prime in primes])

    if form is Form.MODEL:
        numbers = source.integers(-(2**56) + 1, 2**56, (3, 1 + rng.randrange(1, 9)))
        return encode_model_block(Model(biases=numbers[:, 0], multipliers=numbers[:, 1:]))
    if form is Form.RELINEARISATION_KEY:
        pairs = [[uniform(CKKS_CUBIC.key_primes) for _ in range(2)] for _ in CKKS_CUBIC.primes]
        return encode_relinearisation_key(RelinearisationKey(key_id=KEY, digits=np.array(pairs)))
    primes = CKKS_CUBIC.primes if form is Form.SEALED else CKKS_CUBIC.primes[:1]
    return encode_ciphertext(Ciphertext(key_id=KEY, c0=uniform(primes), c1=uniform(primes)))


def read_and_write(data: bytes, form: Form) -> bytes:
    """What the parser of this form read, as the writer writes it."""
    if form is Form.MODEL:
        return encode_model_block(parse_model(data))
    if form is Form.RELINEARISATION_KEY:
        return encode_relinearisation_key(parse_relinearisation_key(data, key_id=KEY))
    return encode_ciphertext(parse_ciphertext(data, form, key_id=KEY))


def outcome(data: bytes, form: Form) -> str:
    """`canonical`, or the field for which the parser refuses; raises FuzzFailure for anything else."""
    try:
        written = read_and_write(data, form)
    except ContainerError as refusal:
        if refusal.field not in REFUSALS:
            raise FuzzFailure(f"refused for an unknown field {refusal.field!r}") from refusal
        return refusal.field
    except WrongKeyDomainError:
        return "key_id"
    if written != data:
        raise FuzzFailure("accepted, and not canonical")
    return "canonical"


def independent_verdict(data: bytes, form: Form) -> bool:
    """Whether these bytes are a valid block: the rules of the page, in Python integers."""
    key = NO_KEY if form is Form.MODEL else KEY
    start = b"UFCK\x01\x03" + bytes([form, *PLACES[form]]) + CKKS_CUBIC.parameters_id + key
    if data[:73] != start or len(data) < HEADER:
        return False
    payload = data[HEADER:]
    if data[73:77] != struct.pack("<I", len(payload)):
        return False
    if form is Form.MODEL:
        width, rest = divmod(len(payload), 24)
        if rest or not 2 <= width <= 4097:
            return False
        numbers = [
            int.from_bytes(payload[at : at + 8], "little", signed=True) for at in range(0, len(payload), 8)
        ]
        rows = [numbers[row * width : (row + 1) * width] for row in range(3)]
        return max(map(abs, numbers)) < 2**56 and all(any(row[1:]) for row in rows)
    runs, at = runs_of(form), 0
    if len(payload) != sum(N * prime.bit_length() // 8 for prime in runs):
        return False
    for place, prime in enumerate(runs):
        bits = prime.bit_length()
        text, at = payload[at : at + N * bits // 8], at + N * bits // 8
        # Eight residues end on a whole byte, whatever their width.
        groups = [int.from_bytes(text[first : first + bits], "little") for first in range(0, len(text), bits)]
        largest = max(group >> bits * lane & (1 << bits) - 1 for group in groups for lane in range(8))
        if largest >= prime or (place in c1_runs(form) and largest == 0):
            return False
    return True


Attack = Callable[[bytes, Form, random.Random], tuple[bytes, str | None]]


def residue_above_the_prime(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """All bits of eight neighbours set; of a model, a number that is too wide."""
    if form is Form.MODEL:
        at = HEADER + 8 * rng.randrange((len(block) - HEADER) // 8)
        wide = rng.choice([2**56, -(2**56), 2**63 - 1, -(2**63)])
        return block[:at] + wide.to_bytes(8, "little", signed=True) + block[at + 8 :], "residues"
    runs = runs_of(form)
    run = rng.randrange(len(runs))
    bits = runs[run].bit_length()
    at = HEADER + sum(N * prime.bit_length() // 8 for prime in runs[:run]) + bits * rng.randrange(N // 8)
    return block[:at] + b"\xff" * bits + block[at + bits :], "residues"


def transparent(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """c1 = 0 by one prime; of a model, a map of zeros."""
    if form is Form.MODEL:
        width = (len(block) - HEADER) // 3
        at = HEADER + width * rng.randrange(3) + 8
        return block[:at] + bytes(width - 8) + block[at + width - 8 :], "transparent"
    runs, place = runs_of(form), rng.choice(c1_runs(form))
    at = HEADER + sum(N * prime.bit_length() // 8 for prime in runs[:place])
    size = N * runs[place].bit_length() // 8
    return block[:at] + bytes(size) + block[at + size :], "transparent"


def other_place(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """Another level or scale, among them those that a double could not hold."""
    at, field = rng.choice([(7, "level"), (8, "scale")])
    other = rng.choice([value for value in (0, 1, 2, 3, 4, 39, 40, 41, 80, 255) if value != block[at]])
    return block[:at] + bytes([other]) + block[at + 1 :], field


def stated_length(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """Allocation bombs by the length field."""
    said = rng.choice([0, 1, 2**31, 2**32 - 1, len(block)])
    return block[:73] + struct.pack("<I", said) + block[77:], "length"


def cut_or_extended(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """Every other length."""
    if rng.random() < 0.5:
        return block[: rng.randrange(len(block))], "length"
    return block + rng.randbytes(rng.choice([1, 7, 24, 4096])), "length"


def other_key(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """Another key domain; a model has none."""
    return block[:41] + bytes(range(1, 33)) + block[73:], "key_id"


def form_swapped(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """The payload of one form under the name of another."""
    other = rng.choice([one for one in range(6) if one != form])
    return block[:6] + bytes([other]) + block[7:], "form"


def bits_flipped(block: bytes, form: Form, rng: random.Random) -> tuple[bytes, str | None]:
    """One to eight bits, in the header as often as in the payload."""
    data = bytearray(block)
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(HEADER if rng.random() < 0.5 else len(data))
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data), None


ATTACKS: tuple[Attack, ...] = (
    residue_above_the_prime,
    transparent,
    other_place,
    stated_length,
    cut_or_extended,
    other_key,
    form_swapped,
    bits_flipped,
)


def fuzz(n: int, seed: int) -> dict[str, object]:
    """Run `n` inputs; returns what became of them. One run is fixed by its seed."""
    rng = random.Random(seed)
    blocks = [(form, valid_block(form, rng)) for form in Form]
    outcomes: Counter[str] = Counter()
    begun = time.monotonic()
    for number in range(n):
        (form, block), attack = rng.choice(blocks), rng.choice(ATTACKS)
        data, expected = attack(block, form, rng)
        try:
            seen = outcome(data, form)
            if expected is not None and seen != expected:
                raise FuzzFailure(f"{attack.__name__}: expected a refusal for {expected}, found {seen}")
            if rng.random() < 0.05 and independent_verdict(data, form) != (seen == "canonical"):
                raise FuzzFailure(f"{attack.__name__}: an independent reader does not agree with {seen}")
        except Exception as failure:
            place = Path(f"fuzz-ckks-{seed}-{number}.bin")
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


def main() -> int:
    """Run and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=1, help="fixes the whole run")
    given = parser.parse_args()
    report = fuzz(given.n, given.seed)
    print(json.dumps(report))
    return 0 if float(str(report["peak_rss_mb"])) < PEAK_LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
