"""The worker that opens blocks: a process of its own, because opening hands rebuilt ciphertexts to SEAL.

Started by `isolated.IsolatedOpener`, one argument: the limit of its address space in bytes. Reads frames from
standard input: first the secret, then for every request the rows to open and the block. Answers each request with a
status frame and a frame, and ends at the end of its input. Writes no file, no log and no core.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import BinaryIO

import numpy as np

from usufruct.errors import ContainerError, UsufructError
from usufruct.he.isolated import OPENED, OUT_OF_MEMORY, REFUSED, ROWS, VALUES, read_frame, write_frame
from usufruct.he.scheme import scheme_of
from usufruct.he.secret import SecretKey


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the input ends."""
    key = read_frame(requests)
    if key is None:
        return
    secret = SecretKey.from_bytes(key)
    scheme = scheme_of(secret.parameters)
    while (rows := read_frame(requests)) is not None and (block := read_frame(requests)) is not None:
        try:
            opened = scheme.open_values(block, secret, np.frombuffer(rows, dtype=ROWS).tolist())
        except UsufructError as exc:
            field = exc.field if isinstance(exc, ContainerError) else ""
            refusal = {"error": type(exc).__name__, "message": str(exc), "field": field}
            write_frame(answers, REFUSED)
            write_frame(answers, json.dumps(refusal).encode())
        else:
            write_frame(answers, OPENED)
            write_frame(answers, np.array(opened, dtype=VALUES).tobytes())


def main() -> None:
    """Run under the limits."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except MemoryError:
        # No unwinding through code that may want memory again.
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
