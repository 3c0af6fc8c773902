#!/usr/bin/env python3
"""Measure the homomorphic engine beside its rivals and floors, in the same run: `scripts/bench he`.

Each row runs in a process of its own, so that peak memory is that row's. Within a row, ours and every rival take
turns; figures are medians over the rounds. What is too slow to run in full (a ciphertext per subject, SEAL's
evaluator) is run on a sample and scaled up linearly; `sampled` in the JSON says by how much. Rivals:

plain_blas    numpy's float64 `W @ X` of the same shape, as many threads as ours
memory_read   reading as many bytes as the kernel has to, as many threads as ours
limbs_blas    the same product over residues as float64 BLAS on two limbs (`residues.combine`), one thread
seal_loop     SEAL's multiply_plain and add_inplace over resident ciphertexts, time divided by our threads
seal_encrypt  SEAL's bare encode and encrypt_symmetric, one thread, as ours
naive         a `CKKSVector` per subject and `dot` with plain weights, time divided by our threads
compute       computing what `verify` checks
sha256        hashing the blocks, as many threads as ours
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np

from usufruct.he import lanes
from usufruct.he.algebraic import combination_digits
from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.kernels import LINEAR, SUM, BundleShape, LinearParameters, SumParameters, execute, plan
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.residues import combine

N, Q, T = BFV_LINEAR.poly_modulus_degree, BFV_LINEAR.coeff_modulus, BFV_LINEAR.plain_modulus
KEY_ID = bytes(32)
LARGEST_WEIGHT = 300

Timed = dict[str, Callable[[], object]]


def threads() -> int:
    """How many threads ours and the rivals get; the parent process sets it."""
    return int(os.environ["OPENBLAS_NUM_THREADS"])


class Case:
    """One row: what to time, and what it is about.

    `timed` maps a name to something to call; the first is ours. `scale` says by how much a rival's time is
    multiplied.
    """

    def __init__(self, name: str, *, d: int, m: int, n: int, n_bytes: int) -> None:
        self.name, self.d, self.m, self.n, self.n_bytes = name, d, m, n, n_bytes
        self.timed: Timed = {}
        self.scale: dict[str, float] = {}

    def measure(self, rounds: int) -> dict[str, object]:
        """Warm up ours, note the peak memory, then take turns."""
        first = next(iter(self.timed))
        self.timed[first]()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        for name, call in self.timed.items():
            if name != first and name not in self.scale:
                call()
        seconds: dict[str, list[float]] = {name: [] for name in self.timed}
        for _ in range(rounds):
            for name, call in self.timed.items():
                begun = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - begun)
        median = {name: statistics.median(taken) * self.scale.get(name, 1) for name, taken in seconds.items()}
        ours = median.pop(first)
        return {
            "case": self.name,
            "d": self.d,
            "m": self.m,
            "n": self.n,
            "ours_s": ours,
            "us_per_row_output": 1e6 * ours / (self.n * self.m),
            "rivals": median,
            "sampled": self.scale,
            "bytes": self.n_bytes,
            "peak_rss_mb": peak,
            "rounds": rounds,
        }


def linear(d: int, m: int, n: int) -> Case:
    """Scores from resident residues to residues."""
    rng = np.random.default_rng(1)
    weights = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    row = rng.integers(0, Q, 2 * N, dtype=np.uint64)
    panels = [lanes.Panel(d, 2 * N) for _ in range(-(-n // N))]
    for chunk, panel in enumerate(panels):
        for feature in range(d):
            panel.fill(feature, np.roll(row, 97 * chunk + feature))
    case = Case("linear", d=d, m=m, n=n, n_bytes=sum(panel.size_bytes for panel in panels))

    def ours() -> None:
        for panel in panels:
            lanes.multiply(weights, panel, Q, threads=threads())

    case.timed = {"ours": ours}
    plain_weights, features = weights.astype(np.float64), rng.random((d, n))
    case.timed["plain_blas"] = lambda: plain_weights @ features
    case.timed["memory_read"] = reader([panel.words.reshape(-1).view(np.int64) for panel in panels])
    stacked = rng.integers(0, Q, (d, 2 * N), dtype=np.uint64)
    case.timed["limbs_blas"] = lambda: combine(weights, stacked, Q)
    case.scale["limbs_blas"] = len(panels)
    case.timed["seal_loop"] = seal_products(weights[0].tolist())
    case.scale["seal_loop"] = len(panels) * m / threads()
    case.timed["naive"] = naive(plain_weights[0])
    case.scale["naive"] = n * m / threads()
    return case


def check(d: int, m: int) -> Case:
    """The algebraic check of one chunk, resident residues; its rival is computing them, one thread."""
    rng = np.random.default_rng(1)
    weights = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    panel = lanes.Panel(d, 2 * N)
    for feature in range(d):
        panel.fill(feature, rng.integers(0, Q, 2 * N, dtype=np.uint64))
    results = lanes.multiply(weights, panel, Q)
    case = Case("verify", d=d, m=m, n=N, n_bytes=results.nbytes)

    def ours() -> None:
        factors = rng.integers(0, 1 << 30, (2, m), dtype=np.uint64)
        digits = combination_digits(factors, weights)
        lanes.multiply(digits, panel, Q)
        lanes.combine_rows(factors, results, Q)

    case.timed = {"ours": ours, "compute": lambda: lanes.multiply(weights, panel, Q)}
    return case


def aggregate(d: int, n: int) -> Case:
    """Column sums, blocks in memory to blocks."""
    block, shape = sealed_block(), shape_of(d, n)
    mask = np.random.default_rng(2).random(n) < 0.9
    tasks = plan(SUM, SumParameters(), shape)
    case = Case("sum", d=d, m=1, n=n, n_bytes=len(block) * shape.n_blocks)
    case.timed = {"ours": lambda: [execute(task, dict.fromkeys(task.inputs, block), mask) for task in tasks]}
    case.timed["sha256"] = hasher([block] * min(shape.n_blocks, 256))
    case.scale["sha256"] = shape.n_blocks / min(shape.n_blocks, 256)
    return case


def seal(d: int, n: int) -> Case:
    """Encrypting a matrix; one thread, since SEAL's encryption has one."""
    from usufruct.he.bfv import encrypt_columns, generate_secret_key

    secret = generate_secret_key()
    values = np.random.default_rng(3).integers(-600, 601, (n, d))
    sizes = {len(block) for _, _, block in encrypt_columns(values[:N, :1], secret)}
    case = Case("seal", d=d, m=1, n=n, n_bytes=sizes.pop() * d * -(-n // N))
    case.timed = {"ours": lambda: sum(len(block) for _, _, block in encrypt_columns(values, secret))}
    case.timed["seal_encrypt"] = seal_encryption(8)
    case.scale["seal_encrypt"] = d * -(-n // N) / 8
    return case


def parts(d: int) -> Iterable[Case]:
    """What a block costs before anything is computed, one thread."""
    block = sealed_block()
    packed = block[75:-32]
    seed = block[-32:]
    for name, ours in (
        ("unpack", lambda: packed.unpack(packed, N, BFV_LINEAR.residue_bits)),
        ("expand", lambda: expand_seed(seed, BFV_LINEAR, KEY_ID)),
        ("parse", lambda: parse(block, unpacker=packed.unpack)),
    ):
        case = Case(name, d=d, m=1, n=N, n_bytes=d * len(block))
        case.timed = {"ours": repeated(ours, d), "sha256": repeated(lambda: sha256(block).digest(), d)}
        yield case


def cold(d: int, m: int, n: int, folder: Path) -> Case:
    """Blocks on disk to result blocks on disk, one thread; the disk's cache is warm."""
    shape, rng = shape_of(d, n), np.random.default_rng(4)
    paths = {
        (chunk, feature): folder / f"{chunk}-{feature}"
        for chunk in range(shape.n_chunks)
        for feature in range(d)
    }
    for index, path in enumerate(paths.values()):
        path.write_bytes(sealed_block(index))
    weights = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    parameters = LinearParameters(output="rows", weights=tuple(map(tuple, weights.tolist())), bias=(0,) * m)
    mask = np.ones(n, dtype=np.bool_)

    def ours() -> None:
        for task in plan(LINEAR, parameters, shape):
            for index, made in enumerate(execute(task, FromDisk(paths), mask)):
                (folder / f"result-{task.index}-{index}").write_bytes(made)

    blocks = [path.read_bytes() for path in paths.values()]
    panel = lanes.Panel(d, 2 * N)
    case = Case("cold", d=d, m=m, n=n, n_bytes=sum(map(len, blocks)))
    case.timed = {
        "ours": ours,
        "sha256": lambda: [sha256(block).digest() for block in blocks],
        "unpack": repeated(lambda: packed.unpack(blocks[0][75:-32], N, BFV_LINEAR.residue_bits), len(blocks)),
        "expand": repeated(lambda: expand_seed(blocks[0][-32:], BFV_LINEAR, KEY_ID), len(blocks)),
        "resident": repeated(lambda: lanes.multiply(weights, panel, Q), shape.n_chunks),
    }
    return case


class FromDisk(dict[tuple[int, int], bytes]):
    """Blocks that are read as they are looked up."""

    def __init__(self, paths: dict[tuple[int, int], Path]) -> None:
        super().__init__()
        self.paths = paths

    def __missing__(self, key: tuple[int, int]) -> bytes:
        return self.paths[key].read_bytes()


class Shape(BundleShape):
    """A bundle's shape, and how many blocks that is."""

    @property
    def n_blocks(self) -> int:
        """Blocks in the bundle."""
        return self.n_chunks * self.n_features


def shape_of(d: int, n: int) -> Shape:
    """The shape of a bundle of small values."""
    return Shape(n_rows=n, n_features=d, max_abs=3, max_l2=8, key_id=KEY_ID, parameters=BFV_LINEAR)


def sealed_block(index: int = 0) -> bytes:
    """A valid block of random residues."""
    seed = index.to_bytes(32, "big")
    return encode(
        Ciphertext(
            form=Form.SEEDED,
            parameters=BFV_LINEAR,
            key_id=KEY_ID,
            c0=np.random.default_rng(index).integers(0, Q, N, dtype=np.uint64),
            c1=expand_seed(seed, BFV_LINEAR, KEY_ID),
            seed=seed,
        )
    )


def repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    """Do it several times."""

    def loop() -> None:
        for _ in range(times):
            call()

    return loop


def reader(arrays: list[np.ndarray]) -> Callable[[], object]:
    """Read every word once: compiled, one share per thread."""
    from numba import njit

    @njit(nogil=True)
    def read(words: np.ndarray) -> int:
        total = 0
        for index in range(words.size):
            total += words[index]
        return total

    shares = [part for array in arrays for part in np.array_split(array, threads())]
    pool = ThreadPoolExecutor(threads())
    return lambda: sum(pool.map(read, shares))


def hasher(blocks: list[bytes]) -> Callable[[], object]:
    """Hash blocks, shared among the threads."""
    pool = ThreadPoolExecutor(threads())
    shares = [blocks[first :: threads()] for first in range(threads())]
    return lambda: list(pool.map(lambda share: [sha256(block).digest() for block in share], shares))


def seal_context() -> object:
    """SEAL's context for our parameters."""
    import tenseal.sealapi as sealapi

    chosen = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    chosen.set_poly_modulus_degree(N)
    chosen.set_coeff_modulus([sealapi.Modulus(Q)])
    chosen.set_plain_modulus(T)
    return sealapi.SEALContext(chosen, False, sealapi.SEC_LEVEL_TYPE.TC128)


def seal_products(weights: list[int]) -> Callable[[], object]:
    """One output over resident ciphertexts, with SEAL's evaluator."""
    import tenseal.sealapi as sealapi

    context = seal_context()
    secret = sealapi.KeyGenerator(context).secret_key()
    encryptor, evaluator = sealapi.Encryptor(context, secret), sealapi.Evaluator(context)
    columns = []
    for _ in weights:
        column = sealapi.Ciphertext(context)
        encryptor.encrypt_symmetric(sealapi.Plaintext("1x^7 + 3"), column)
        columns.append(column)
    scalars = [sealapi.Plaintext(f"{max(1, abs(weight)):X}") for weight in weights]

    def loop() -> None:
        total, term = sealapi.Ciphertext(context), sealapi.Ciphertext(context)
        evaluator.multiply_plain(columns[0], scalars[0], total)
        for column, scalar, weight in zip(columns[1:], scalars[1:], weights[1:], strict=True):
            evaluator.multiply_plain(column, scalar, term)
            (evaluator.add_inplace if weight > 0 else evaluator.sub_inplace)(total, term)

    return loop


def seal_encryption(blocks: int) -> Callable[[], object]:
    """SEAL's own encoding and symmetric encryption of `blocks` full columns."""
    import tenseal.sealapi as sealapi

    context = seal_context()
    secret = sealapi.KeyGenerator(context).secret_key()
    encryptor, encoder = sealapi.Encryptor(context, secret), sealapi.BatchEncoder(context)
    values = np.random.default_rng(5).integers(-600, 601, N).tolist()

    def loop() -> None:
        for _ in range(blocks):
            plain, encrypted = sealapi.Plaintext(), sealapi.Ciphertext(context)
            encoder.encode(values, plain)
            encryptor.encrypt_symmetric(plain, encrypted)

    return loop


def naive(weights: np.ndarray) -> Callable[[], object]:
    """One subject, one output: a CKKS vector and its product with plain weights."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = 2**40
    context.generate_galois_keys()
    row = tenseal.ckks_vector(context, np.random.default_rng(6).random(weights.size).tolist())
    plain = weights.tolist()
    return lambda: row.dot(plain)


def cases(quick: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Every row as the name of its maker and that one's arguments."""
    sizes = [N] if quick else [N, 65536]
    rows: list[tuple[str, tuple[int, ...]]] = [
        ("linear", (d, m, n)) for n in sizes for d in (128, 512) for m in (1, 4, 16, 64, 256)
    ]
    rows += [("sum", (d, n)) for n in sizes for d in (128, 512)]
    rows += [("verify", (512, m)) for m in (16, 64, 256)]
    rows += [("seal", (64, N)), ("unpack", (512,)), ("expand", (512,)), ("parse", (512,))]
    rows += [("cold", (512, m, N)) for m in (1, 64)]
    if not quick:
        rows.append(("cold", (512, 64, 65536)))
        rows += [("million", (512, m, 1_000_000)) for m in (1, 64)]
    return rows


def measure(name: str, arguments: tuple[int, ...], rounds: int) -> dict[str, object]:
    """Make and measure one row; runs in a process of its own."""
    if name == "cold":
        with tempfile.TemporaryDirectory() as folder:
            return cold(*arguments, Path(folder)).measure(rounds)
    if name in ("unpack", "expand", "parse"):
        return next(case for case in parts(*arguments) if case.name == name).measure(rounds)
    makers: dict[str, Callable[..., Case]] = {
        "linear": linear,
        "million": linear,
        "sum": aggregate,
        "seal": seal,
        "verify": check,
    }
    return makers[name](*arguments).measure(rounds)


def host() -> dict[str, object]:
    """The machine, as far as it explains the figures."""
    from threadpoolctl import threadpool_info

    model = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    blas = [f"{lib['internal_api']} {lib['version']} {lib.get('architecture')}" for lib in threadpool_info()]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads(),
        "lanes": lanes.vector_lanes(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas,
    }


def main() -> int:
    """Measure, print a table, write JSON."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments.add_argument("--quick", action="store_true", help="4096 rows only, fewer rounds")
    arguments.add_argument("--case", action="append", help="only rows of this name; may be repeated")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    given = arguments.parse_args()
    # Set before a measuring process loads numpy, so that BLAS gets as many threads as ours.
    os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)
    rounds = 3 if given.quick else 7
    rows = []
    print(
        f"{'case':10} {'d':>4} {'m':>4} {'n':>8} {'ours':>10} {'us/row/out':>10}  time as a multiple of ours"
    )
    for name, sizes in cases(given.quick):
        if given.case and name not in given.case:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (name, sizes, rounds))
        rows.append(row)
        ours = row["ours_s"]
        beside = "  ".join(f"{rival} {seconds / ours:.3g}" for rival, seconds in row["rivals"].items())
        print(
            f"{row['case']:10} {row['d']:4} {row['m']:4} {row['n']:8} {1e3 * ours:7.2f} ms "
            f"{row['us_per_row_output']:10.4f}  {beside}  rss {row['peak_rss_mb']:.0f} MB",
            flush=True,
        )
    if given.json:
        text = json.dumps({"schema": "usufruct-bench/1", "host": host(), "rows": rows}, indent=1) + "\n"
        given.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
