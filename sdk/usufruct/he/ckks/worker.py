"""The worker that hands CKKS ciphertexts to SEAL, to score or to open them: a process of its own.

Started by `ckks.isolated`, one argument: the limit of its address space in bytes. The first frame says what it is for; the
next ones are key id, evaluation key and model, or the secret. Writes no file, no log and no core.
"""

from __future__ import annotations

from functools import cache
from typing import IO

import numpy as np

from usufruct.he.ckks.container import parse_model
from usufruct.he.ckks.evaluate import CubicEvaluator
from usufruct.he.ckks.flooding import Flooding
from usufruct.he.ckks.isolated import EVALUATE, OPEN, OPENING, REALS
from usufruct.he.ckks.owner import CkksSecret, open_slots
from usufruct.he.isolated import ROWS, answer, read_frame, run_limited


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the input ends."""
    role = read_frame(requests)
    if role == EVALUATE:
        _evaluate(requests, answers)
    elif role == OPEN:
        _open(requests, answers)


def _evaluate(requests: IO[bytes], answers: IO[bytes]) -> None:
    greeting = _frames(requests, 3)
    if not greeting:
        return
    key_id, relinearisation_key, model = greeting

    @cache
    def evaluator() -> CubicEvaluator:
        return CubicEvaluator(relinearisation_key, model, key_id)

    def scored(*blocks: bytes) -> bytes:
        return evaluator().score(blocks)

    n_features = parse_model(model).multipliers.shape[1]
    while blocks := _frames(requests, n_features):
        answer(answers, scored, *blocks)


def _open(requests: IO[bytes], answers: IO[bytes]) -> None:
    key = read_frame(requests)
    if key is None:
        return
    secret = CkksSecret.from_bytes(key)

    def opened(opening: bytes, slots: bytes, model: bytes, block: bytes) -> bytes:
        max_abs, openings, security_bits = OPENING.unpack(opening)
        values = open_slots(
            block,
            secret,
            np.frombuffer(slots, dtype=ROWS).tolist(),
            model=model,
            max_abs=max_abs,
            flooding=Flooding(openings=openings, security_bits=security_bits),
        )
        return np.array(values, dtype=REALS).tobytes()

    while request := _frames(requests, 4):
        answer(answers, opened, *request)


def _frames(requests: IO[bytes], count: int) -> list[bytes]:
    """The next frames; none where the input ends before the last of them."""
    found = []
    for _ in range(count):
        frame = read_frame(requests)
        if frame is None:
            return []
        found.append(frame)
    return found


if __name__ == "__main__":
    run_limited(serve)
