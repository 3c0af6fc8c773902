"""The BGV rows of `scripts/bench he`: `blind-similarity` and `moments`, beside SEAL's evaluator."""

from collections.abc import Callable
from hashlib import sha256

import numpy as np
from bench_case import Case, threads
from bench_rivals import reader

from usufruct.he.container import Ciphertext, Form, encode, expand_seed
from usufruct.he.kernels import MOMENTS, BundleShape, MomentsParameters, run
from usufruct.he.parameters import BGV_MOMENTS, BGV_PAIRS, Parameters
from usufruct.he.tensor import Stack, Sums

KEY_ID = bytes(32)


def blind_similarity(d: int, m: int, n: int) -> Case:
    """Encrypted queries against an encrypted gallery, from resident residues to residues."""
    settings = BGV_PAIRS
    rng = np.random.default_rng(1)
    chunks = -(-n // settings.poly_modulus_degree)
    queries, gallery = Stack(m, d, settings.residues), Stack(chunks, d, settings.residues)
    part = uniform(settings, rng)
    for stack in (queries, gallery):
        for row in range(stack.rows):
            for term in range(d):
                # Turning every prime's residues by some places keeps them below it.
                c0, c1 = np.roll(part, row * d + term, axis=1), np.roll(part, 7 * term + 1, axis=1)
                stack.fill(row, term, c0.reshape(-1), c1.reshape(-1))
    pairs = [(query, chunk) for chunk in range(chunks) for query in range(m)]
    case = Case("blind-similarity", d=d, m=m, n=n, n_bytes=queries.size_bytes + gallery.size_bytes)

    def ours() -> None:
        sums = Sums(pairs, settings.primes, settings.residues)
        sums.add(queries, gallery, threads=threads())
        for _ in sums.results():
            pass

    case.timed = {"ours": ours, "seal_loop": seal_products(settings, d)}
    case.timed["memory_read"] = reader(
        [stack.words.reshape(-1).view(np.int64) for stack in (queries, gallery)]
    )
    case.scale["seal_loop"] = chunks * m / threads()
    return case


def moments(k: int, n: int) -> Case:
    """Moments of k columns from sealed blocks to result blocks on one thread, expanding and packing included.

    SEAL starts from resident ciphertexts: a product and an addition for every pair and chunk, without the mask.
    """
    settings = BGV_MOMENTS
    chunks = -(-n // settings.poly_modulus_degree)
    rng = np.random.default_rng(1)
    blocks = {(chunk, column): sealed(settings, rng) for chunk in range(chunks) for column in range(k)}
    shape = BundleShape(n_rows=n, n_features=k, max_abs=60, max_l2=240, key_id=KEY_ID, parameters=settings)
    chosen = MomentsParameters(columns=tuple(range(k)))
    mask = rng.random(n) < 0.9
    pairs = k * (k + 1) // 2
    case = Case("moments", d=k, m=k + pairs, n=n, n_bytes=sum(map(len, blocks.values())))

    def ours() -> None:
        for _ in run(MOMENTS, chosen, shape, lambda chunk, column: blocks[chunk, column], mask):
            pass

    case.timed = {"ours": ours, "seal_loop": seal_products(settings, 16)}
    case.timed["sha256"] = lambda: [sha256(block).digest() for block in blocks.values()]
    case.scale["seal_loop"] = chunks * pairs / 16
    return case


def uniform(settings: Parameters, rng: np.random.Generator) -> np.ndarray:
    """Residues of one polynomial, shape (primes, N)."""
    degree = settings.poly_modulus_degree
    return np.stack([rng.integers(0, prime, degree, dtype=np.uint64) for prime in settings.primes])


def sealed(settings: Parameters, rng: np.random.Generator) -> bytes:
    """A block that nobody can open: its c0 is random."""
    seed = rng.bytes(32)
    return encode(
        Ciphertext(
            form=Form.SEEDED,
            parameters=settings,
            key_id=KEY_ID,
            c0=uniform(settings, rng).reshape(-1),
            c1=expand_seed(seed, settings, KEY_ID),
            seed=seed,
        )
    )


def seal_products(settings: Parameters, d: int) -> Callable[[], object]:
    """Sum of d products of resident ciphertexts with SEAL's evaluator, no relinearisation.

    SEAL keeps the last of several primes for key switching: one more than ours is given, so that its ciphertexts
    have exactly our primes.
    """
    import tenseal.sealapi as sealapi

    degree = settings.poly_modulus_degree
    special = sealapi.CoeffModulus.Create(degree, [50])
    chosen = sealapi.EncryptionParameters(3)
    chosen.set_poly_modulus_degree(degree)
    chosen.set_coeff_modulus([*map(sealapi.Modulus, settings.primes), *special])
    chosen.set_plain_modulus(settings.plain_modulus)
    context = sealapi.SEALContext(chosen, True, sealapi.SEC_LEVEL_TYPE.NONE)
    encryptor = sealapi.Encryptor(context, sealapi.KeyGenerator(context).secret_key())
    evaluator = sealapi.Evaluator(context)

    def encrypted() -> object:
        made = sealapi.Ciphertext(context)
        encryptor.encrypt_symmetric(sealapi.Plaintext("1x^7 + 3"), made)
        return made

    rows = [(encrypted(), encrypted()) for _ in range(d)]

    def loop() -> None:
        total, product = sealapi.Ciphertext(context), sealapi.Ciphertext(context)
        evaluator.multiply(*rows[0], total)
        for left, right in rows[1:]:
            evaluator.multiply(left, right, product)
            evaluator.add_inplace(total, product)

    return loop
