"""The BFV rows of `scripts/bench he`: scores, sums, sealing, reading blocks, and whole jobs from disk to disk."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from bench_case import Case, threads
from bench_rivals import N, Q, hasher, naive, reader, repeated, seal_encryption, seal_products

from usufruct.compute import CacheSettings, ExpansionCache, WorkerPool, compute
from usufruct.content import BlockFiles, Cid, dag
from usufruct.features import Column, Extractor, FeatureSchema
from usufruct.he import lanes, packed
from usufruct.he.algebraic import N_VECTORS
from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.kernels import (
    LINEAR,
    SUM,
    BundleShape,
    LinearParameters,
    SumParameters,
    execute,
    plan,
)
from usufruct.he.parameters import BFV_LINEAR
from usufruct.he.projection import ENTRY_BITS, project
from usufruct.he.reading import GROUP_BLOCKS, expand_seeds
from usufruct.he.residues import combine
from usufruct.publish import manifest_record
from usufruct.seal import SealedFeatures

KEY_ID = bytes(32)
LARGEST_WEIGHT = 300
_SEAL_CIPHERTEXTS = 8192
"""As many of SEAL's ciphertexts are in memory as a bundle of 65,536 x 512 has, 64 KiB each."""


def linear(d: int, m: int, n: int, name: str = "linear") -> Case:
    """Scores from resident residues to residues. `similarity` is the same product, with queries as weights."""
    rng = np.random.default_rng(1)
    if name == "similarity":
        queries = rng.standard_normal((m, d))
        weights = np.rint(600 * queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.int64)
    else:
        weights = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    row = rng.integers(0, Q, 2 * N, dtype=np.uint64)
    panels = [lanes.Panel(d, 2 * N) for _ in range(-(-n // N))]
    for chunk, panel in enumerate(panels):
        for feature in range(0, d, 2):
            panel.fill(feature, np.roll(row, 97 * chunk + feature), np.roll(row, 89 * chunk + feature + 1))
    case = Case(name, d=d, m=m, n=n, n_bytes=sum(panel.size_bytes for panel in panels))

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
    chunks = min(len(panels), max(1, _SEAL_CIPHERTEXTS // d)) if m == 1 else 1
    case.timed["seal_loop"] = seal_products(weights[0].tolist(), chunks)
    case.scale["seal_loop"] = len(panels) / chunks * m / threads()
    case.timed["naive"] = naive(plain_weights[0])
    case.scale["naive"] = n * m / threads()
    return case


def check(d: int, m: int) -> Case:
    """The algebraic check of one chunk, resident residues; its rival is computing them, one thread."""
    rng = np.random.default_rng(1)
    weights = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    residues = rng.integers(0, Q, (d, 2 * N), dtype=np.uint64)
    panel = lanes.Panel(d, 2 * N)
    for feature in range(d):
        panel.fill(feature, residues[feature])
    results = lanes.multiply(weights, panel, Q)
    vectors = rng.integers(0, 1 << ENTRY_BITS, (N_VECTORS, 2 * N), dtype=np.uint64)
    case = Case("verify", d=d, m=m, n=N, n_bytes=residues.nbytes + results.nbytes)

    def ours() -> None:
        expected = combine(weights, project(residues, vectors, Q), Q)
        if not np.array_equal(project(results, vectors, Q), expected):
            raise AssertionError

    case.timed = {"ours": ours, "compute": lambda: lanes.multiply(weights, panel, Q)}
    return case


def aggregate(d: int, n: int) -> Case:
    """Column sums, blocks in memory to blocks."""
    block, shape = sealed_block(), shape_of(d, n)
    mask = np.random.default_rng(2).random(n) < 0.9
    tasks = plan(SUM, SumParameters(), shape)
    n_blocks = shape.n_chunks * d
    case = Case("sum", d=d, m=1, n=n, n_bytes=len(block) * n_blocks)
    case.timed = {"ours": lambda: [execute(task, dict.fromkeys(task.inputs, block), mask) for task in tasks]}
    case.timed["sha256"] = hasher([block] * min(n_blocks, 256))
    case.scale["sha256"] = n_blocks / min(n_blocks, 256)
    return case


def seal(d: int, n: int) -> Case:
    """Encrypting a matrix; one thread, since SEAL's encryption has one."""
    from usufruct.he.bfv import encrypt_columns
    from usufruct.he.scheme import scheme_of

    secret = scheme_of(BFV_LINEAR).generate_secret_key(BFV_LINEAR)
    values = np.random.default_rng(3).integers(-600, 601, (n, d))
    sizes = {len(block) for _, _, block in encrypt_columns(values[:N, :1], secret)}
    case = Case("seal", d=d, m=1, n=n, n_bytes=sizes.pop() * d * -(-n // N))
    case.timed = {"ours": lambda: sum(len(block) for _, _, block in encrypt_columns(values, secret))}
    case.timed["seal_encrypt"] = seal_encryption(8)
    case.scale["seal_encrypt"] = d * -(-n // N) / 8
    return case


def parts(d: int, folder: Path) -> Iterable[Case]:
    """What a block costs before anything is computed, one thread."""
    block = sealed_block()
    residues, seed = block[75:-32], block[-32:]
    seeds = [seed] * GROUP_BLOCKS
    c1 = expand_seed(seed, BFV_LINEAR, KEY_ID)
    settings = CacheSettings(path=folder / "cache", limit_bytes=1 << 28)
    cache, cid = ExpansionCache(settings, entry_bytes=len(residues)), Cid.of(block)
    cache.put(cid, KEY_ID, packed.pack(c1, BFV_LINEAR.residue_bits))
    unpacker = packed.unpack
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "unpack": (lambda: unpacker(residues, N, BFV_LINEAR.residue_bits), 1),
        "expand": (lambda: expand_seeds(seeds, BFV_LINEAR, KEY_ID), GROUP_BLOCKS),
        "expand-alone": (lambda: expand_seed(seed, BFV_LINEAR, KEY_ID), 1),
        "expand-cached": (lambda: unpacker(cache.get(cid, KEY_ID) or b"", N, BFV_LINEAR.residue_bits), 1),
        "parse": (
            lambda: parse(block, key_id=KEY_ID, parameters=BFV_LINEAR, unpacker=unpacker, expansion=c1),
            1,
        ),
    }
    for name, (ours, blocks) in calls.items():
        case = Case(name, d=d, m=1, n=N, n_bytes=d * len(block))
        case.timed = {
            "ours": repeated(ours, d // blocks),
            "sha256": repeated(lambda: sha256(block).digest(), d),
        }
        yield case


def cold(d: int, m: int, n: int, folder: Path) -> Case:
    """Blocks on disk to result blocks on disk, one process; the disk's cache is warm."""
    shape, rng = shape_of(d, n), np.random.default_rng(4)
    job = Job(shape, folder)
    weights = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    parameters = linear_parameters(weights)
    seeds = [bytes([index]) * 32 for index in range(GROUP_BLOCKS)]
    panel = lanes.Panel(d, 2 * N)
    sample = [job.files.read(cid) for cid in job.cids[: min(len(job.cids), 1024)]]
    case = Case("cold", d=d, m=m, n=n, n_bytes=len(sample[0]) * len(job.cids))
    share = len(job.cids) / len(sample)
    case.timed = {
        "ours": lambda: job.run(parameters, None),
        "sha256": lambda: [sha256(block).digest() for block in sample],
        "unpack": repeated(lambda: packed.unpack(sample[0][75:-32], N, BFV_LINEAR.residue_bits), len(sample)),
        "expand": repeated(lambda: expand_seeds(seeds, BFV_LINEAR, KEY_ID), len(sample) // GROUP_BLOCKS),
        "resident": repeated(lambda: lanes.multiply(weights, panel, Q), shape.n_chunks),
    }
    case.scale = {"sha256": share, "unpack": share, "expand": share}
    return case


def processes(d: int, m: int, n: int, folder: Path) -> Case:
    """The same in two worker processes; its rival is one worker process."""
    shape = shape_of(d, n)
    job = Job(shape, folder)
    weights = np.random.default_rng(4).integers(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (m, d))
    parameters = linear_parameters(weights)
    pools = {count: WorkerPool(count) for count in (2, 1)}
    case = Case("processes", d=d, m=m, n=n, n_bytes=job.size_bytes)
    case.timed = {
        "ours": lambda: job.run(parameters, pools[2]),
        "one_process": lambda: job.run(parameters, pools[1]),
    }
    case.close = lambda: [pool.close() for pool in pools.values()]
    return case


def published(d: int, n: int) -> Case:
    """Bytes per value of a bundle as it is published, manifest included; timed is writing the manifest."""
    schema = FeatureSchema(
        name="gallery",
        kind="embedding",
        columns=tuple(Column(name=f"feature-{index}", minimum=-1.0, maximum=1.0) for index in range(d)),
        extractor=Extractor(name="benchmark", sha256="00" * 32),
        max_l2=1.0,
        scale=600,
    )
    shape, block = shape_of(d, n), sealed_block()
    n_blocks = shape.n_chunks * d
    cids = [Cid.of(index.to_bytes(4, "big")) for index in range(n_blocks)]
    record = manifest_record(
        SealedFeatures(schema, shape, iter(())).manifest, scope="research", row_subjects=range(n), blocks=cids
    )
    size = n_blocks * len(block) + len(dag.encode(record))
    case = Case("published", d=d, m=1, n=n, n_bytes=size)
    case.facts = {"bytes_per_value": size / (n * d)}
    case.timed = {"ours": lambda: dag.encode(record), "sha256": hasher([block])}
    case.scale = {"sha256": n_blocks}
    return case


class Job:
    """Sealed blocks on disk, and where results go."""

    def __init__(self, shape: BundleShape, folder: Path) -> None:
        self.shape, self.folder = shape, folder
        self.files = BlockFiles(folder / "blocks")
        self.cids: list[Cid] = []
        self.size_bytes = 0
        for index in range(shape.n_chunks * shape.n_features):
            block = sealed_block(index)
            cid = Cid.of(block)
            path = self.files.path_of(cid)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(block)
            self.cids.append(cid)
            self.size_bytes += len(block)
        self.mask = np.ones(shape.n_rows, dtype=np.bool_)

    def run(self, parameters: LinearParameters, pool: WorkerPool | None) -> None:
        """Read, check, compute and write; in this process, or in workers."""
        if pool is None:
            results = self._here(parameters)
        else:
            results = compute(
                LINEAR,
                parameters,
                self.shape,
                self.mask,
                cid_of=lambda chunk, feature: self.cids[chunk * self.shape.n_features + feature],
                blocks=self.files,
                executor=pool,
            )
        # In a folder of their own: a file system may first write out what a file held that is written again.
        folder = Path(tempfile.mkdtemp(prefix="results-", dir=self.folder))
        for index, block in results:
            (folder / str(index)).write_bytes(block)

    def _here(self, parameters: LinearParameters) -> Iterator[tuple[int, bytes]]:
        for task in plan(LINEAR, parameters, self.shape):
            inputs = FromDisk(self)
            yield from zip(task.outputs, execute(task, inputs, self.mask), strict=True)


class FromDisk(dict[tuple[int, int], bytes]):
    """Blocks that are read, and checked, as they are looked up."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def __missing__(self, key: tuple[int, int]) -> bytes:
        chunk, feature = key
        return self.job.files.read(self.job.cids[chunk * self.job.shape.n_features + feature])


def linear_parameters(weights: np.ndarray) -> LinearParameters:
    """Scores per row, no bias."""
    rows = tuple(map(tuple, weights.tolist()))
    return LinearParameters(output="rows", weights=rows, bias=(0,) * len(rows))


def shape_of(d: int, n: int) -> BundleShape:
    """The shape of a bundle of small values."""
    return BundleShape(n_rows=n, n_features=d, max_abs=3, max_l2=8, key_id=KEY_ID, parameters=BFV_LINEAR)


def sealed_block(index: int = 0) -> bytes:
    """A block that nobody can open: its c0 is random."""
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
