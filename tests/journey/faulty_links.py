"""The links between the nodes of a network, each through a fault-injecting proxy, and faults by who speaks to whom.

A member announces its proxy's address, so that whoever dials it comes through there. The proxy finds out which node dialled,
and so a fault can lie on the way from one member to another, whichever of them opened the connection. Absent: the chain, which
every node reaches directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
from anyio.from_thread import BlockingPortal, start_blocking_portal

from fault_proxy import FaultProxy, Way, Ways
from free_ports import free_ports
from usufruct_node.devnet import Devnet, Member
from usufruct_node.enrol import create_home_with_passphrase_files


class FaultyLinks:
    """One proxy for each member, in a thread of its own."""

    def __init__(self, root: Path, members: Sequence[Member], *, settings: str = "") -> None:
        """Make the members' homes, whose nodes will listen behind the proxies.

        Parameters
        ----------
        settings :
            Further lines of each `node.toml`.
        """
        self._net = Devnet(root, members=members)
        self.names = [member.name for member in members]
        self._settings = settings
        self._ways = {(a, b): Way() for a in self.names for b in self.names if a != b}
        self.proxies = {
            name: FaultProxy(port, seed=number, ways_of=partial(self._ways_to, name))
            for number, (name, port) in enumerate(zip(self.names, free_ports(len(members)), strict=True))
        }
        self._stack = ExitStack()
        self._portal: BlockingPortal

    def __enter__(self) -> FaultyLinks:
        self._portal = self._stack.enter_context(start_blocking_portal("trio"))
        for proxy in self.proxies.values():
            running, _ = self._portal.start_task(proxy.run)
            self._stack.callback(running.cancel)
        for member in self._net.members:
            home = self._net.home(member.name).root
            create_home_with_passphrase_files(home, name=member.name, roles=member.roles)
            proxy = self.proxies[member.name]
            (home / "node.toml").write_text(
                f"listen_port = {proxy.target_port}\n"
                f'announce = "{self.endpoint(member.name)}"\n'
                f"{self._settings}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def endpoint(self, name: str) -> str:
        """What a member announces."""
        return f"/ip4/127.0.0.1/tcp/{self.proxies[name].port}"

    def way(self, source: str, target: str) -> Way:
        """What goes from one member to another."""
        return self._ways[source, target]

    def ways(self) -> Iterator[Way]:
        """Every way."""
        return iter(self._ways.values())

    def between(self, these: Iterable[str], those: Iterable[str]) -> list[Way]:
        """Ways between two sides, both directions."""
        pairs = [(a, b) for a in these for b in those]
        return [self._ways[pair] for a, b in pairs for pair in ((a, b), (b, a))]

    def sent_bytes(self) -> int:
        """Delivered on all ways since the start."""
        return sum(way.sent_bytes for way in self.ways())

    def mend(self) -> None:
        """Nothing is wrong any more."""
        for way in self.ways():
            way.mend()

    def cut(self) -> None:
        """Reset every connection between nodes."""
        for proxy in self.proxies.values():
            self._portal.call(proxy.cut)

    def _ways_to(self, target: str, port: int) -> Ways | None:
        """Ways of the connection that some node opened to a member's proxy from this port."""
        proxy = self.proxies[target].port
        for name, pid in self._net.running().items():
            if pid is None or name in ("chain", target):
                continue
            with suppress(psutil.Error):
                for found in psutil.Process(pid).net_connections("tcp4"):
                    if found.raddr and (found.laddr.port, found.raddr.port) == (port, proxy):
                        return self._ways[name, target], self._ways[target, name]
        return None
