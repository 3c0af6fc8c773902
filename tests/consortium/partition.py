"""A network of this thread's own, in which connections between groups of validators can be cut.

Processes started in it share a loopback device with nobody else. Classifiers on that device drop every packet of the
connections that cross from group to group, and every attempt at a new connection between validators. Whoever asks a
validator over HTTP is not cut off.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from validators_fixture import TestValidators

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NEXT, _DROP = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC: the next classifier decides; TC_ACT_SHOT
_ESTABLISHED = "01"

Connection = tuple[int, int]
"""Port that packets come from, port that they go to."""


@contextmanager
def private_network() -> Iterator[None]:
    """A network namespace for this thread and all processes that it starts; skips where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_NEW_NETWORK) != 0:
            pytest.skip(
                f"no right to a network namespace ({os.strerror(ctypes.get_errno())}): nothing was partitioned"
            )
        try:
            _tool("ip", "link", "set", "lo", "up")
            _tool("tc", "qdisc", "add", "dev", "lo", "clsact")
            _classify(1, [])
            _heal()
            yield
        finally:
            if libc.setns(before, _NEW_NETWORK) != 0:
                pytest.exit("the test process cannot return to its network", 1)
    finally:
        os.close(before)


def _tool(*words: str) -> None:
    """Run a network tool; skips where it is missing, or the kernel lacks what it asks for."""
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"{words[0]} (iproute2) is missing: nothing was partitioned")
    except subprocess.CalledProcessError as exc:
        pytest.skip(
            f"`{' '.join(words[:6])}` is not possible here ({exc.stderr.strip()}): nothing was partitioned"
        )


@contextmanager
def parted(validators: TestValidators, *groups: Sequence[int]) -> Iterator[None]:
    """Validators that reach those of their own group only; they keep the connections that they have."""
    described = json.loads((validators.directory / "consortium.json").read_text("utf-8"))["validators"]
    ports = [int(v["staking_address"].rpartition(":")[2]) for v in described]
    group_of = {
        v["pid"]: place for v in described for place, group in enumerate(groups) if v["number"] in group
    }
    assert len(group_of) == len(described), "a validator is in no group, or does not run"
    try:
        _classify(1, _opening(ports))
        crossing = _crossing(group_of, ports)
        assert crossing, "the groups were not connected before"
        _classify(2, _of_connections(crossing))
        yield
    finally:
        _heal()


def _crossing(group_of: dict[int, int], ports: Sequence[int]) -> list[Connection]:
    """Established connections between validators of different groups, in both directions."""
    owner = {link: group for pid, group in group_of.items() for link in _links(Path(f"/proc/{pid}/fd"))}
    group_at: dict[Connection, int] = {}
    for line in Path("/proc/thread-self/net/tcp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        here, there = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        group = owner.get(f"socket:[{fields[9]}]")
        if fields[3] == _ESTABLISHED and group is not None and {here, there} & set(ports):
            group_at[here, there] = group
    return [pair for pair, group in group_at.items() if group_at.get(pair[::-1], group) != group]


def _links(directory: Path) -> Iterator[str]:
    """What the entries of a directory point to; those that vanish meanwhile do not count."""
    for entry in directory.iterdir():
        with suppress(FileNotFoundError):
            yield str(entry.readlink())


def _heal() -> None:
    subprocess.run(["tc", "filter", "del", "dev", "lo", "egress"], check=True, capture_output=True)


# Classifiers, as programs of the classic packet filter over Ethernet, IPv4 without options, and TCP.

_TCP_ONLY = [
    (40, 0, 0, 12),
    (21, 1, 0, 0x0800),
    (6, 0, 0, _NEXT),
    (48, 0, 0, 23),
    (21, 1, 0, 6),
    (6, 0, 0, _NEXT),
]


def _opening(ports: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Drops the first packet of a connection to one of these ports."""
    is_first = [(48, 0, 0, 47), (84, 0, 0, 0x12), (21, 1, 0, 0x02), (6, 0, 0, _NEXT), (40, 0, 0, 36)]
    return is_first + [step for port in ports for step in ((21, 0, 1, port), (6, 0, 0, _DROP))]


def _of_connections(connections: Sequence[Connection]) -> list[tuple[int, int, int, int]]:
    """Drops packets from one of these ports to the other."""
    pairs = [source << 16 | target for source, target in connections]
    return [(32, 0, 0, 34), *(step for pair in pairs for step in ((21, 0, 1, pair), (6, 0, 0, _DROP)))]


def _classify(place: int, steps: list[tuple[int, int, int, int]]) -> None:
    program = [*_TCP_ONLY, *steps, (6, 0, 0, _NEXT)]
    text = ",".join([str(len(program)), *(" ".join(map(str, step)) for step in program)])
    words = ["tc", "filter", "add", "dev", "lo", "egress", "protocol", "all", "prio", str(place)]
    _tool(*words, "bpf", "direct-action", "bytecode", text)
