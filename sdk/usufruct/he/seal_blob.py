"""SEAL's serialisation, rebuilt from checked fields: the only bytes that its loader is ever given.

Uncompressed, and so as long as what it holds. Loads no homomorphic library itself.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from usufruct.he.residues import Residues

_MAGIC, _HEADER_BYTES, _VERSION, _UNCOMPRESSED = 0xA15E, 16, (4, 3), 0


def seal_blob(payload: bytes) -> bytes:
    """SEAL's uncompressed serialisation header before a payload."""
    size = _HEADER_BYTES + len(payload)
    return struct.pack("<HBBBBHQ", _MAGIC, _HEADER_BYTES, *_VERSION, _UNCOMPRESSED, 0, size) + payload


def seal_array(words: Residues) -> bytes:
    """SEAL's array of words."""
    return seal_blob(struct.pack("<Q", words.size) + words.astype("<u8").tobytes())


def load(target: Any, payload: bytes, context: Any) -> None:
    """Load through an anonymous file, since the binding takes nothing but paths."""
    descriptor = os.memfd_create("usufruct", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(seal_blob(payload))
        target.load(context, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
