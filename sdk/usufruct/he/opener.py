"""The worker that opens blocks: a process of its own, because opening hands rebuilt ciphertexts to SEAL.

Started by `isolated.IsolatedOpener`, one argument: the limit of its address space in bytes. Reads frames from
standard input: first the secret, then for every request the rows to open and the block. Answers each request with a
status frame and a frame, and ends at the end of its input. Writes no file, no log and no core.
"""

from __future__ import annotations

from typing import IO

import numpy as np

from usufruct.he.isolated import ROWS, VALUES, answer, read_frame, run_limited
from usufruct.he.scheme import scheme_of
from usufruct.he.secret import SecretKey


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the input ends."""
    key = read_frame(requests)
    if key is None:
        return
    secret = SecretKey.from_bytes(key)

    def opened(rows: bytes, block: bytes) -> bytes:
        wanted = np.frombuffer(rows, dtype=ROWS).tolist()
        return np.array(
            scheme_of(secret.parameters).open_values(block, secret, wanted), dtype=VALUES
        ).tobytes()

    while (rows := read_frame(requests)) is not None and (block := read_frame(requests)) is not None:
        answer(answers, opened, rows, block)


if __name__ == "__main__":
    run_limited(serve)
