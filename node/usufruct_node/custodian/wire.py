"""Frames between a node and its custodian: 4 bytes of length, little-endian, and a body. Either side may be hostile."""

from __future__ import annotations

import os
import socket
import struct

from usufruct.content import MAX_BLOCK_BYTES, dag
from usufruct.content.dag import DagValue
from usufruct.errors import CustodianError, ManifestError

PROTOCOL = "usufruct/custodian/1"
SOCKET_NAME = "custodian.sock"
"""In the home."""

_LENGTH = struct.Struct("<I")
_PEER = struct.Struct("3i")


def send(channel: socket.socket, body: bytes) -> None:
    """Send one frame; raises CustodianError if the other side is gone."""
    try:
        channel.sendall(_LENGTH.pack(len(body)) + body)
    except OSError as exc:
        raise CustodianError(f"the other side does not read: {exc.strerror or exc}") from exc


def receive(channel: socket.socket) -> bytes | None:
    """One frame of at most `MAX_BLOCK_BYTES`; None at the end between two frames.

    Raises
    ------
    CustodianError
        If the frame is longer, or breaks off, or does not come in time.
    """
    head = _exactly(channel, _LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise CustodianError("a frame broke off")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BLOCK_BYTES:
        raise CustodianError(f"a frame of {length} bytes")
    body = _exactly(channel, length)
    if len(body) < length:
        raise CustodianError("a frame broke off")
    return body


def send_record(channel: socket.socket, record: object) -> None:
    """Send a record as canonical DAG-CBOR."""
    send(channel, dag.encode(record))


def receive_record(channel: socket.socket) -> dict[str, DagValue] | None:
    """One record; None at the end. Raises CustodianError for anything that is none."""
    body = receive(channel)
    if body is None:
        return None
    try:
        return dag.decode_map(body)
    except ManifestError as exc:
        raise CustodianError(f"a frame is no record: {exc}") from exc


def check_peer(channel: socket.socket) -> None:
    """Let in processes of this user only; raises CustodianError."""
    _, user, _ = _PEER.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if user != os.geteuid():
        raise CustodianError(f"a process of user {user} is at the other end")


def _exactly(channel: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        try:
            part = channel.recv(min(1 << 20, length - len(parts)))
        except OSError as exc:
            raise CustodianError(f"the other side does not answer: {exc.strerror or exc}") from exc
        if not part:
            break
        parts += part
    return bytes(parts)
