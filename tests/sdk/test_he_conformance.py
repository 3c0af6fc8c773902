"""One suite for every scheme and kernel: exact values, proven bounds, and the same bytes wherever they are made.

That bytes are those of SEAL's evaluator is shown kernel by kernel in `test_he_oracle`, `test_he_moments`,
`test_he_blind` and `test_he_fedsum`. Run this file as a program to print what the kernels make of fixed blocks.
"""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usufruct.he import bfv, bgv, ntt, slots
from usufruct.he.container import Ciphertext, Form, encode, expand_seed, parse
from usufruct.he.contribution import Clip, encrypt_contribution
from usufruct.he.kernels import (
    BLIND,
    DISTANCE,
    FEDSUM,
    IDENTIFY,
    KERNELS,
    LINEAR,
    MOMENTS,
    RESTRICTED,
    SUM,
    VERIFY,
    BlindParameters,
    BundleShape,
    DistanceParameters,
    FedsumParameters,
    IdentifyParameters,
    Kernel,
    KernelParameters,
    LinearParameters,
    Mask,
    MomentsParameters,
    SumParameters,
    VerifyParameters,
    execute,
    outputs,
    plan,
    run,
)
from usufruct.he.kernels.collect import Collector
from usufruct.he.parameters import BFV_LINEAR, BGV_MOMENTS, BGV_PAIRS, Parameters
from usufruct.he.residues import negacyclic_multiply
from usufruct.he.sampling import ERROR_BOUND
from usufruct.he.scheme import SCHEMES, scheme_of
from usufruct.he.secret import SecretKey

N_FEATURES, MAX_ABS = 4, 15
QUERIES = np.array([[3, -1, 0, 15], [-7, 7, 7, 1]])
WEIGHTS = ((5, 0, -9, 2), (1, 1, 1, -300))
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One kernel under one parameter set."""

    kernel: Kernel
    chosen: Parameters
    parameters: KernelParameters

    truth: Truth
    """From values (n_rows, 4) and a mask, what the outputs open to: shape (n_outputs,), or (n_rows, m)."""

    n_rows: int = 70

    @property
    def name(self) -> str:
        output = getattr(self.parameters, "output", "")
        return "-".join(part for part in (self.kernel.scheme, self.kernel.name, output) if part)

    def shape(self, key_id: bytes) -> BundleShape:
        return BundleShape(
            n_rows=self.n_rows,
            n_features=N_FEATURES,
            max_abs=MAX_ABS,
            max_l2=2 * MAX_ABS,
            key_id=key_id,
            parameters=self.chosen,
        )

    @property
    def mask(self) -> Mask:
        length = N_FEATURES if self.kernel.implementation.mask_of_columns else self.n_rows
        return np.arange(length) % 7 != 3


def moments_of(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    rows = values[mask][:, [0, 2]]
    return np.concatenate([rows.sum(axis=0), [rows[:, i] @ rows[:, j] for i, j in ((0, 0), (0, 1), (1, 1))]])


W = np.array(WEIGHTS)
CASES = [
    Case(SUM, BFV_LINEAR, SumParameters(), lambda v, m: v[m].sum(axis=0), 4100),
    Case(
        LINEAR,
        BFV_LINEAR,
        LinearParameters(output="rows", weights=WEIGHTS, bias=(-4, 9)),
        lambda v, m: v @ W.T + [-4, 9],
        4100,
    ),
    Case(
        LINEAR,
        BFV_LINEAR,
        LinearParameters(output="sum", weights=((1, 0, -2, 1), (0, 1, 0, 0)), bias=(-4, 9)),
        lambda v, m: (v @ np.array([[1, 0, -2, 1], [0, 1, 0, 0]]).T + [-4, 9])[m].sum(axis=0),
        4100,
    ),
    Case(
        DISTANCE,
        BFV_LINEAR,
        DistanceParameters(centroids=((1, -2, 0, 0), (0, 3, 5, 0)), norm=((3, 5),)),
        lambda v, m: np.stack(
            [5 * v[:, 3] - 2 * v[:, :3] @ c + c @ c for c in (np.array([1, -2, 0]), np.array([0, 3, 5]))],
            axis=1,
        ),
    ),
    Case(
        VERIFY,
        BFV_LINEAR,
        VerifyParameters(queries=tuple(map(tuple, QUERIES.tolist())), rows=(69, 0)),
        lambda v, m: np.array([QUERIES[0] @ v[69], QUERIES[1] @ v[0]]),
    ),
    Case(
        IDENTIFY,
        BFV_LINEAR,
        IdentifyParameters(queries=tuple(map(tuple, QUERIES.tolist()))),
        lambda v, m: v @ QUERIES.T,
    ),
    Case(MOMENTS, BGV_MOMENTS, MomentsParameters(columns=(0, 2)), moments_of),
    Case(
        BLIND,
        BGV_PAIRS,
        BlindParameters(queries=(bytes(32), bytes(31) + b"\1"), max_abs=15, max_l2=30),
        lambda v, m: v @ QUERIES.T,
    ),
    Case(
        FEDSUM,
        BGV_PAIRS,
        FedsumParameters(weights=(3, -1, 2, 50)),
        lambda v, m: (v @ (np.array([3, -1, 2, 50]) * m))[:, None],
    ),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@lru_cache(maxsize=4)
def secret_of(chosen: Parameters) -> SecretKey:
    return scheme_of(chosen).generate_secret_key(chosen)


def sealed(case: Case, values: np.ndarray) -> dict[tuple[int, int], bytes]:
    """Every input block, as its owner makes it."""
    secret = secret_of(case.chosen)
    if case.kernel is FEDSUM:
        public_key = bgv.public_key_of(secret)
        clip = Clip(n_entries=case.n_rows, max_abs=MAX_ABS, max_l2=1000)
        return {
            (chunk, member): block
            for member in range(N_FEATURES)
            for chunk, block in enumerate(encrypt_contribution(values[:, member], public_key, clip).blocks)
        }
    blocks = {(c, f): block for c, f, block in scheme_of(case.chosen).encrypt_columns(values, secret)}
    if case.kernel is BLIND:
        n_chunks = case.shape(secret.key_id).n_chunks
        blocks |= {(n_chunks + j, f): block for j, f, block in bgv.encrypt_queries(QUERIES, secret)}
    return blocks


def values_of(case: Case, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(-MAX_ABS, MAX_ABS + 1, (case.n_rows, N_FEATURES))


def results_of(case: Case, key_id: bytes, block: Callable[[int, int], bytes]) -> list[bytes]:
    made = dict(run(case.kernel, case.parameters, case.shape(key_id), block, case.mask))
    return [made[index] for index in sorted(made)]


def opened(case: Case, made: list[bytes]) -> np.ndarray:
    """What the owner of the key opens, in the shape of `Case.truth`."""
    secret = secret_of(case.chosen)
    columns: dict[int, list[int]] = {}
    for output, block in zip(
        outputs(case.kernel, case.parameters, case.shape(secret.key_id)), made, strict=True
    ):
        found = scheme_of(case.chosen).open_values(block, secret, range(output.coefficients))
        columns.setdefault(output.column, []).extend(found)
    stacked = np.array([columns[column] for column in sorted(columns)])
    return stacked[:, 0] if stacked.shape[1] == 1 else stacked.T


def noise_of(block: bytes, secret: SecretKey) -> int:
    """Largest noise of a result, from the definition of decryption; of an extracted one, that of coefficient 0."""
    parameters, found = secret.parameters, parse(block)
    modulus, t = parameters.coeff_modulus, parameters.plain_modulus
    if parameters.scheme == "bfv":
        masked = negacyclic_multiply(found.c1, secret._coefficients, modulus)[: found.c0.size]
        phase = [int(c) for c in (found.c0 + masked) % np.uint64(modulus)]
        # The distance to the nearest multiple of q / t, rounded up.
        return max(min(x * t % modulus, -x * t % modulus) // t + 1 for x in phase)
    shape = (len(parameters.primes), parameters.poly_modulus_degree)
    s = slots.transformed(secret._coefficients, parameters)
    q = slots.moduli(parameters)
    phase = found.c1.reshape(shape) * s % q
    if found.c2 is not None:
        phase += found.c2.reshape(shape) * (s * s % q) % q
    if not found.form.extracted:
        phase += found.c0.reshape(shape)
    rows = [ntt.inverse(v % np.uint64(p), p).tolist() for v, p in zip(phase, parameters.primes, strict=True)]
    if found.form.extracted:
        rows = [[row[0] + int(c0)] for row, c0 in zip(rows, found.c0, strict=True)]
    factors = [modulus // p * pow(modulus // p, -1, p) for p in parameters.primes]
    lifted = (
        sum(r * f for r, f in zip(column, factors, strict=True)) % modulus
        for column in zip(*rows, strict=True)
    )
    return max(min(value, modulus - value) for value in lifted)


def test_every_registered_kernel_of_every_scheme_is_here() -> None:
    """The dictionary of schemes and the registry grow by a line; so does this list."""
    registered = {kernel.name: kernel for kernel in (*KERNELS.values(), *RESTRICTED.values())}
    assert {case.kernel.name for case in CASES} == set(registered)
    assert {case.chosen.scheme for case in CASES} == set(SCHEMES)
    assert all(case.kernel.scheme == case.chosen.scheme for case in CASES)


@EVERY_CASE
def test_opened_values_are_those_of_numpy_on_plaintext(case: Case) -> None:
    values = values_of(case)
    blocks = sealed(case, values)
    made = results_of(case, secret_of(case.chosen).key_id, lambda c, f: blocks[c, f])
    assert np.array_equal(opened(case, made), case.truth(values, case.mask))


@EVERY_CASE
def test_parameters_come_back_from_their_plain_form_and_nothing_else_is_read(case: Case) -> None:
    plain = case.parameters.to_dict()
    assert case.kernel.parse(plain) == case.parameters
    for wrong in (plain | {"code": "import os"}, {"n": 1}, [], None):
        with pytest.raises(Exception, match=f"kernel {case.kernel.name} takes"):
            case.kernel.parse(wrong)


@EVERY_CASE
def test_results_have_the_form_place_and_number_that_were_announced(case: Case) -> None:
    blocks = sealed(case, values_of(case))
    shape = case.shape(secret_of(case.chosen).key_id)
    described = outputs(case.kernel, case.parameters, shape)
    made = results_of(case, shape.key_id, lambda c, f: blocks[c, f])
    assert [parse(block).form for block in made] == [output.form for output in described]
    assert [output.index for output in described] == list(range(len(made)))
    assert case.kernel.validate(case.parameters, shape).n_outputs == len(made)


def test_every_module_but_the_owners_three_and_the_plug_in_runs_without_the_homomorphic_library() -> None:
    """And the contract of the import linter names every one of them."""
    package = Path(bfv.__file__).parent
    modules = {
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    modules -= {"__init__", "bfv", "opener", "scheme", "ckks"}
    contracts = tomllib.loads((package.parents[2] / "pyproject.toml").read_text())["tool"]["importlinter"]
    (named,) = (c["source_modules"] for c in contracts["contracts"] if "three and the CKKS" in c["name"])
    assert set(named) == {f"usufruct.he.{module}" for module in modules}
    code = (
        "import importlib, sys\n"
        "sys.modules['tenseal'] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "try:\n"
        "    import usufruct.he.scheme\n"
        "except ImportError:\n"
        "    sys.exit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, *sorted(named)], check=False)
    assert ended.returncode == 7


# Bounds: a search for an input within its declared ranges that passes them.


@EVERY_CASE
@settings(max_examples=6, deadline=None)
@given(signs=st.lists(st.sampled_from([-1, 1]), min_size=N_FEATURES, max_size=N_FEATURES), flip=st.booleans())
def test_no_input_and_no_error_at_their_bounds_pass_the_proven_ones(
    case: Case, signs: list[int], flip: bool
) -> None:
    """Every value at its bound, every error at its largest, signs chosen by the search: the worst that admission counts on."""
    case = replace(case, n_rows=70)
    secret = secret_of(case.chosen)
    values = np.tile(MAX_ABS * np.array(signs), (case.n_rows, 1))
    columns = iter(range(1 << 30))

    def largest(size: int, *_: object) -> np.ndarray:
        sign = signs[next(columns) % N_FEATURES] * (-1 if flip else 1)
        return np.full(size, sign * ERROR_BOUND, dtype=np.int64)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("usufruct.he.bfv", "usufruct.he.bgv", "usufruct.he.contribution"):
            patch.setattr(f"{module}.centred_binomial", largest)
        blocks = sealed(case, values)
    bounds = case.kernel.validate(case.parameters, case.shape(secret.key_id))
    made = results_of(case, secret.key_id, lambda c, f: blocks[c, f])
    found = opened(case, made)
    assert np.array_equal(found, case.truth(values, case.mask))
    assert np.abs(found).max() <= bounds.value_bound <= bounds.value_limit
    assert max(noise_of(block, secret) for block in made) <= bounds.noise_bound <= bounds.noise_limit
    assert bounds.noise_bound << case.kernel.implementation.margin_bits <= bounds.noise_limit


def test_noise_that_is_measured_here_is_that_of_the_definition() -> None:
    """A positive control: a block of zeros with the error at its largest has exactly that noise."""
    for module, chosen, expected in ((bfv, BFV_LINEAR, 21), (bgv, BGV_PAIRS, 21 * BGV_PAIRS.plain_modulus)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "centred_binomial", lambda size, *_: np.full(size, -21, dtype=np.int64))
            ((_, _, block),) = module.encrypt_columns(np.zeros((1, 1), dtype=np.int64), secret_of(chosen))
        assert expected <= noise_of(block, secret_of(chosen)) <= expected + 1


# The same bytes wherever they are made.


def fixed_block(case: Case, number: int) -> bytes:
    """A block whose polynomials come from named seeds: no message, no secret, the same in every process."""
    key_id = hashlib.sha256(b"conformance").digest()
    seeds = [hashlib.sha256(f"{case.name} {part} {number}".encode()).digest() for part in ("c0", "c1")]
    c0, c1 = (expand_seed(seed, case.chosen, key_id) for seed in seeds)
    seeded = case.kernel is not FEDSUM
    return encode(
        Ciphertext(
            form=Form.SEEDED if seeded else Form.CIPHERTEXT,
            parameters=case.chosen,
            key_id=key_id,
            c0=c0,
            c1=c1,
            seed=seeds[1] if seeded else None,
        )
    )


def digest(case: Case, *, backwards: bool = False) -> str:
    """SHA-256 over all results from fixed blocks, tasks in either order."""
    case = replace(case, n_rows=case.chosen.poly_modulus_degree + 4)
    shape = case.shape(hashlib.sha256(b"conformance").digest())
    tasks = plan(case.kernel, case.parameters, shape)
    collector = Collector(case.kernel, case.parameters, shape, case.mask, tasks)
    made: dict[int, bytes] = {}
    for task in reversed(tasks) if backwards else tasks:
        inputs = {key: fixed_block(case, key[0] * N_FEATURES + key[1]) for key in task.inputs}
        made.update(collector.add(task, execute(task, inputs, case.mask)))
    return hashlib.sha256(b"".join(made[index] for index in sorted(made))).hexdigest()


@EVERY_CASE
def test_results_do_not_depend_on_the_order_of_tasks(case: Case) -> None:
    assert digest(case, backwards=True) == digest(case)


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"},
        {
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "+sse2,+cx16",
            "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
        },
    ],
    ids=["one-thread-old-blas", "two-threads", "no-avx2-no-fma"],
)
def test_results_are_the_same_bytes_in_processes_of_other_threads_and_processors(
    environment: dict[str, str],
) -> None:
    printed = subprocess.run(
        [sys.executable, __file__], env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed) == {case.name: digest(case) for case in CASES}


if __name__ == "__main__":
    print(json.dumps({case.name: digest(case) for case in CASES}))
