"""What the custodian process may not do: use a network, grow without bound, leave its memory to others (Linux)."""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import socket
import struct
from typing import Final

from usufruct.errors import CustodianError
from usufruct.he.isolated import keep_memory_private

MEMORY_BYTES: Final = 4 << 30
"""Address space of the process: libraries take a tenth of it, the largest release another tenth."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_ARCHITECTURES: Final = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}
"""Machine -> audit architecture, numbers of the system calls `socket` and `io_uring_setup`."""

_X32: Final = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine() -> None:
    """Give up for good what a custodian does not need; its workers inherit it.

    Raises
    ------
    CustodianError
        If the kernel does not do it: then there is no custodian.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        keep_memory_private()
        _deny_networks()
    except OSError as exc:
        raise CustodianError(f"the custodian cannot be confined on this machine: {exc}") from exc


def _deny_networks() -> None:
    """Let the kernel refuse every socket that is not a Unix domain one."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter is known for {machine}")
    architecture, socket_call, ring_call = _ARCHITECTURES[machine]
    denied = _ERRNO | errno.EPERM
    steps = (
        (_LOAD, 0, 0, 4),  # architecture
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # system call
        (_AT_LEAST, 5, 0, _X32),
        (_EQUAL, 4, 0, ring_call),
        (_EQUAL, 0, 2, socket_call),
        (_LOAD, 0, 0, 16),  # its first argument, the address family
        (_EQUAL, 0, 1, socket.AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, denied),
    )
    code = b"".join(struct.pack("<HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl refused")
