"""RLP, decoded strictly: bytes of strangers have one encoding or none."""

from __future__ import annotations

from typing import Any, cast

import rlp

from usufruct.errors import MalformedProofError


def decode_rlp(data: bytes, what: str, *, limit: int) -> list[Any] | bytes:
    """Decode RLP strictly: nothing after it, no second way to write the same.

    Raises
    ------
    MalformedProofError
    """
    if len(data) > limit:
        raise MalformedProofError(f"{what}: {len(data)} bytes are too many")
    try:
        decoded = rlp.decode(data)
        again = rlp.encode(decoded)
    except (rlp.exceptions.RLPException, ValueError, TypeError, IndexError, RecursionError) as exc:
        raise MalformedProofError(f"{what} is no RLP: {exc}") from exc
    if again != data:
        raise MalformedProofError(f"{what} is not encoded canonically")
    return cast("list[Any] | bytes", decoded)
