"""Golden vectors: ids, seed expansion, and what the kernels make of fixed blocks, in any thread count.

Run this file as a program to write `tests/vectors/he_container.json` again.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.kernels import (
    FEDSUM,
    KERNELS,
    RESTRICTED,
    BlindParameters,
    BundleShape,
    DistanceParameters,
    FedsumParameters,
    IdentifyParameters,
    KernelParameters,
    LinearParameters,
    MomentsParameters,
    SumParameters,
    VerifyParameters,
    run,
)
from usufruct.he.parameters import ALLOWED, BFV_LINEAR, BGV_MOMENTS, BGV_PAIRS, Parameters

PATH = Path(__file__).parents[1] / "vectors" / "he_container.json"
KEY = hashlib.sha256(b"golden key domain").digest()
N_ROWS, N_FEATURES = 5000, 3
REGISTERED = dict(KERNELS) | dict(RESTRICTED)


def block(chunk: int, feature: int, parameters: Parameters = BFV_LINEAR) -> bytes:
    """A seeded block whose two polynomials both come from named seeds; no message, no secret."""
    seeds = [hashlib.sha256(f"golden {part} {chunk} {feature}".encode()).digest() for part in ("c0", "c1")]
    c0, c1 = (expand_seed(seed, parameters, KEY) for seed in seeds)
    fields = {"form": Form.SEEDED, "parameters": parameters, "key_id": KEY}
    return encode(Ciphertext(**fields, c0=c0, c1=c1, seed=seeds[1]))


def hashes(made: list[bytes]) -> list[str]:
    """One hash per block, or one over all if they are many."""
    parts = made if len(made) < 10 else [b"".join(made)]
    return [hashlib.sha256(part).hexdigest() for part in parts]


def results(name: str, parameters: KernelParameters, settings: Parameters = BFV_LINEAR) -> list[str]:
    """Hashes of what a kernel makes of the golden blocks."""
    n_rows = N_ROWS * settings.poly_modulus_degree // BFV_LINEAR.poly_modulus_degree
    shape = BundleShape(
        n_rows=n_rows, n_features=N_FEATURES, max_abs=10, max_l2=30, key_id=KEY, parameters=settings
    )
    mask = np.arange(n_rows) % 7 != 3
    made = run(REGISTERED[name], parameters, shape, lambda c, f: block(c, f, settings), mask)
    return hashes([result for _, result in made])


def contributed_sum(parameters: FedsumParameters) -> list[str]:
    """Hashes of what `fedsum` makes of golden contributions, two chunks of them."""
    shape = BundleShape(
        n_rows=N_ROWS, n_features=N_FEATURES, max_abs=10, max_l2=30, key_id=KEY, parameters=BGV_PAIRS
    )

    def contribution(chunk: int, member: int) -> bytes:
        whole = parse(block(chunk, member, BGV_PAIRS))
        return encode(replace(whole, form=Form.CIPHERTEXT, seed=None))

    mask = np.ones(N_FEATURES, dtype=np.bool_)
    return hashes([made for _, made in run(FEDSUM, parameters, shape, contribution, mask)])


def vectors() -> dict[str, object]:
    jobs: dict[str, tuple[str, KernelParameters]] = {
        "sum": ("sum", SumParameters()),
        "linear rows": (
            "linear",
            LinearParameters(output="rows", weights=((5, 0, -9), (1, 1, 1)), bias=(-4, 0)),
        ),
        "linear rows, compiled": (
            "linear",
            LinearParameters(
                output="rows",
                weights=tuple((i % 7 - 3, 1 - i % 3, 5 + i) for i in range(360)),
                bias=tuple(range(360)),
            ),
        ),
        "distance": (
            "distance",
            DistanceParameters(centroids=((1, -2, 0), (0, 3, 0)), norm=((2, 5),)),
        ),
        "similarity-verify": (
            "similarity-verify",
            VerifyParameters(queries=((1, 2, 3), (-4, 0, 1), (0, 1, 0)), rows=(4999, 0, 4096)),
        ),
        "similarity-identify": ("similarity-identify", IdentifyParameters(queries=((1, 2, 3),))),
        "linear sum": ("linear", LinearParameters(output="sum", weights=((1, 0, -2),), bias=(-4,))),
    }
    tensor_jobs: dict[str, tuple[str, KernelParameters, Parameters]] = {
        "moments": ("moments", MomentsParameters(columns=(0, 2)), BGV_MOMENTS),
        "moments, small primes": ("moments", MomentsParameters(columns=(1,)), BGV_PAIRS),
        "blind-similarity": (
            "blind-similarity",
            BlindParameters(queries=(bytes(32), b"\1" * 32), max_abs=10, max_l2=30),
            BGV_PAIRS,
        ),
    }
    summed = {"fedsum": contributed_sum(FedsumParameters(weights=(3, 0, 70)))}
    return {
        "source": "tests/sdk/test_he_vectors.py; run it as a program to write this file again",
        "parameters_id": BFV_LINEAR.parameters_id.hex(),
        "parameter_sets": {
            identifier.hex(): {
                "scheme": found.scheme,
                "poly_modulus_degree": found.poly_modulus_degree,
                "primes": list(found.primes),
                "plain_modulus": found.plain_modulus,
                "security_bits": found.security_bits,
            }
            for identifier, found in ALLOWED.items()
        },
        "kernel_ids": {name: kernel.kernel_id.hex() for name, kernel in REGISTERED.items()},
        "seed_expansion": {
            "seed": bytes(range(32)).hex(),
            "key_id": KEY.hex(),
            "first": expand_seed(bytes(range(32)), BFV_LINEAR, KEY)[:4].tolist(),
        },
        "seed_expansion_bgv": {
            found.parameters_id.hex(): expand_seed(bytes(range(32)), found, KEY)[
                :: found.poly_modulus_degree
            ].tolist()
            for found in (BGV_PAIRS, BGV_MOMENTS)
        },
        "sealed_block_sha256": hashlib.sha256(block(0, 0)).hexdigest(),
        "sealed_block_bgv_sha256": hashlib.sha256(block(0, 0, BGV_PAIRS)).hexdigest(),
        "results_sha256": {title: results(*job) for title, job in (jobs | tensor_jobs).items()} | summed,
    }


def test_golden_vectors_hold() -> None:
    assert vectors() == json.loads(PATH.read_text())


@pytest.mark.parametrize("threads", ["1", "2"])
def test_golden_vectors_hold_in_another_process_with_other_thread_counts_and_vector_units(
    threads: str,
) -> None:
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_CORETYPE": {"1": "Prescott", "2": "Haswell"}[threads],
    }
    command = [sys.executable, __file__, "--print"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json.loads(PATH.read_text())


if __name__ == "__main__":
    text = json.dumps(vectors(), indent=2) + "\n"
    if sys.argv[1:] == ["--print"]:
        print(text)
    else:
        PATH.write_text(text)
