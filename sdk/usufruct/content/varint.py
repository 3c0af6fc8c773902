"""Unsigned varints of the multiformats, as CAR files and DAG-PB write lengths and numbers."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Encode a number of at least 0 in its shortest form: seven bits a byte, lowest first."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
