"""CKKS scores and openings in worker processes under a memory limit: the way to call this plug-in.

What SEAL makes of a peer's numbers ends in the worker, as with `he.isolated`, whose limits these are. Loads no
homomorphic library here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from usufruct.errors import KernelParameterError, KeyStoreError
from usufruct.he.ckks.container import parse_model
from usufruct.he.ckks.flooding import Flooding
from usufruct.he.ckks.parameters import CKKS_CUBIC
from usufruct.he.isolated import MEMORY_BYTES, ROWS, SECONDS, IsolatedWorker

EVALUATE, OPEN = b"evaluate", b"open"
"""First frame to a worker: what it is for."""

OPENING: Final = struct.Struct("<dIH")
"""Of an opening: max_abs, openings, security bits."""

REALS: Final = np.dtype("<f8")

_WORKER = "usufruct.he.ckks.worker"


class IsolatedEvaluator(IsolatedWorker):
    """Scores chunks under one model and one key domain; as `evaluate.CubicEvaluator`.

    Raises
    ------
    ContainerError
        If the model is malformed. The evaluation key is checked with the first chunk.
    """

    def __init__(
        self,
        relinearisation_key: bytes,
        model: bytes,
        key_id: bytes,
        *,
        memory_bytes: int = MEMORY_BYTES,
        seconds: float = SECONDS,
    ) -> None:
        self._n_features = parse_model(model).multipliers.shape[1]
        super().__init__(
            _WORKER,
            "scores CKKS blocks",
            lambda: [EVALUATE, key_id, relinearisation_key, model],
            memory_bytes=memory_bytes,
            seconds=seconds,
        )

    def score(self, blocks: Sequence[bytes]) -> bytes:
        """Score one chunk.

        Raises
        ------
        KernelParameterError
            If there are more or fewer blocks than features.
        ContainerError, WrongKeyDomainError
            If the worker refused a block or the evaluation key.
        WorkerError
            If the worker died, or reached a limit.
        """
        if len(blocks) != self._n_features:
            raise KernelParameterError(f"the model takes {self._n_features} blocks for every chunk of rows")
        return self.ask(*blocks)


class CkksOpener(IsolatedWorker):
    """Opens results of one key domain, flooded, and counts.

    Parameters
    ----------
    secret :
        `owner.CkksSecret.to_bytes()`.
    flooding :
        For the whole life of the secret.
    opened :
        How often the secret has opened something before; whoever keeps the secret keeps `opened` beside it.
    """

    def __init__(
        self,
        secret: bytes,
        flooding: Flooding,
        *,
        opened: int,
        memory_bytes: int = MEMORY_BYTES,
        seconds: float = SECONDS,
    ) -> None:
        if type(opened) is not int or opened < 0:
            raise KeyStoreError(f"{opened!r} earlier openings")
        self._flooding = flooding
        self._opened = opened
        super().__init__(
            _WORKER, "opens CKKS blocks", lambda: [OPEN, secret], memory_bytes=memory_bytes, seconds=seconds
        )

    @property
    def opened(self) -> int:
        """Openings of the secret so far, attempts counted."""
        return self._opened

    def open_slots(self, block: bytes, slots: Sequence[int], *, model: bytes, max_abs: float) -> list[float]:
        """Open a result; as `owner.open_slots`, and counted.

        Raises
        ------
        KeyStoreError
            Also if the secret has opened as often as its flooding allows: draw a new one and seal again.
        WorkerError
            If the worker died, or reached a limit.
        """
        if self._opened >= self._flooding.openings:
            raise KeyStoreError(
                f"this secret has opened {self._opened} times, all that its flooding allows for"
            )
        wanted = np.asarray(slots, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= CKKS_CUBIC.slots):
            raise KeyStoreError(f"slots have to be different numbers below {CKKS_CUBIC.slots}")
        # Counted before: an answer that gets lost here may have been seen elsewhere.
        self._opened += 1
        opening = OPENING.pack(max_abs, self._flooding.openings, self._flooding.security_bits)
        opened: list[float] = self.ask_numbers(
            REALS, wanted.size, opening, wanted.astype(ROWS).tobytes(), model, block
        ).tolist()
        return opened
