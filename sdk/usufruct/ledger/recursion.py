"""Keeps Python's recursion limit while libraries are imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def recursion_limit_kept() -> Iterator[None]:
    """Set the limit back at the end.

    py_ecc, which eth_account and so web3 bring, raises it to 100,000 on import: deeply nested JSON would then overflow
    the C stack and end the process instead of raising RecursionError.
    """
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
