"""Registered kernels: the only computations that run on ciphertexts.

A kernel is a static record; its id is the hash of that record. `Kernel.validate` proves from declared ranges
alone that no plaintext wraps and that every result decrypts correctly. `plan` splits a job into
independent tasks, `execute` runs one of them on container bytes: exact integer arithmetic, so every honest
node produces the same blocks. Never sees a secret key, a file or a peer, and hands no byte to a
homomorphic library.

`record` says what a kernel is, `registry` which there are; every other module is one family of them, on `blocks`
for what they share. To add one, write its module and name it in the registry.
"""

from usufruct.he.kernels.blind import (
    BLIND,
    MAX_BLIND_QUERIES,
    BlindParameters,
    query_digest,
)
from usufruct.he.kernels.blocks import (
    check_mask,
    chunk_mask,
    features_by_chunk,
    mask_polynomial,
)
from usufruct.he.kernels.collect import Collector
from usufruct.he.kernels.distance import (
    DISTANCE,
    MAX_NORM_COLUMNS,
    DistanceParameters,
    norm_columns,
)
from usufruct.he.kernels.fedsum import (
    FEDSUM,
    FedsumParameters,
)
from usufruct.he.kernels.linear import (
    FRESH_NOISE,
    LINEAR,
    MAX_MODEL_OUTPUTS,
    LinearParameters,
    linear_form,
    weighted_sums,
)
from usufruct.he.kernels.moments import (
    MAX_MOMENT_COLUMNS,
    MOMENTS,
    MomentsParameters,
    Statistics,
    n_pairs,
    pairs_of,
    statistics,
)
from usufruct.he.kernels.record import (
    MARGIN_BITS,
    MAX_FEATURES,
    MAX_ROWS,
    UPLOAD_MARGIN_BITS,
    Bounds,
    BundleShape,
    Implementation,
    Inputs,
    Kernel,
    KernelId,
    KernelParameters,
    Mask,
    Output,
    Part,
    Task,
    noise_limit,
)
from usufruct.he.kernels.registry import (
    KERNELS,
    RESTRICTED,
    execute,
    kernel_by_id,
    kernel_by_name,
    outputs,
    plan,
    run,
)
from usufruct.he.kernels.similarity import (
    IDENTIFY,
    VERIFY,
    IdentifyParameters,
    VerifyParameters,
)
from usufruct.he.kernels.sums import (
    SUM,
    SumParameters,
)

__all__ = [
    "BLIND",
    "DISTANCE",
    "FEDSUM",
    "FRESH_NOISE",
    "IDENTIFY",
    "KERNELS",
    "LINEAR",
    "MARGIN_BITS",
    "MAX_BLIND_QUERIES",
    "MAX_FEATURES",
    "MAX_MODEL_OUTPUTS",
    "MAX_MOMENT_COLUMNS",
    "MAX_NORM_COLUMNS",
    "MAX_ROWS",
    "MOMENTS",
    "RESTRICTED",
    "SUM",
    "UPLOAD_MARGIN_BITS",
    "VERIFY",
    "BlindParameters",
    "Bounds",
    "BundleShape",
    "Collector",
    "DistanceParameters",
    "FedsumParameters",
    "IdentifyParameters",
    "Implementation",
    "Inputs",
    "Kernel",
    "KernelId",
    "KernelParameters",
    "LinearParameters",
    "Mask",
    "MomentsParameters",
    "Output",
    "Part",
    "Statistics",
    "SumParameters",
    "Task",
    "VerifyParameters",
    "check_mask",
    "chunk_mask",
    "execute",
    "features_by_chunk",
    "kernel_by_id",
    "kernel_by_name",
    "linear_form",
    "mask_polynomial",
    "n_pairs",
    "noise_limit",
    "norm_columns",
    "outputs",
    "pairs_of",
    "plan",
    "query_digest",
    "run",
    "statistics",
    "weighted_sums",
]
