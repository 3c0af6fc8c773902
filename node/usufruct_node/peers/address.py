"""Where a member can be dialled: the multiaddrs of the registry, parsed strictly."""

from __future__ import annotations

import ipaddress
import re

from usufruct.errors import InputError

_MULTIADDR = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[0-9A-Za-z.:-]{1,253})/tcp/(?P<port>[0-9]{1,5})"
    r"(?:/p2p/(?P<peer>[0-9A-Za-z]{1,80}))?",
    re.ASCII,
)


def dial_address(multiaddr: str, peer_id: str) -> tuple[str, int]:
    """Return host and port of a multiaddr that, if it names a peer, names `peer_id`.

    Raises
    ------
    InputError
        On anything but `/ip4|ip6|dns|dns4|dns6/…/tcp/…`, with `/p2p/<peer_id>` or without.
    """
    match = _MULTIADDR.fullmatch(multiaddr)
    if match is None:
        raise InputError(
            f"not an address that can be dialled: {multiaddr[:200]!r}",
            hint="it looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
        )
    host, port = match["host"], int(match["port"])
    if match["peer"] is not None and match["peer"] != peer_id:
        raise InputError(f"the address {multiaddr!r} belongs to another peer than {peer_id}")
    if match["kind"] in ("ip4", "ip6"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError as exc:
            raise InputError(f"not an IP address: {host!r}") from exc
        if version != int(match["kind"][2]):
            raise InputError(f"not an IPv{match['kind'][2]} address: {host!r}")
    if not 1 <= port <= 65535:
        raise InputError(f"not a TCP port: {port}")
    return host, port
