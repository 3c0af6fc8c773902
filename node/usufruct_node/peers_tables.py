"""`usufruct-node peers`: what `peers_view` tells, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from usufruct.cli import moment, table_of

WHY = {
    "not a member": "no active member of the network",
    "peer id mismatch": "another identity answered at a member's address",
    "not authorised": "no live job or grant gives it a role that needs the block",
    "busy": "more streams, wants or handshakes at once than are served",
    "over quota": "took more than one member may in that time",
    "wrong block": "sent other bytes than those asked for; given up as a holder",
    "unsolicited": "sent blocks that nobody asked for",
    "protocol": "broke a protocol, or asked for one that is not spoken here",
    "too slow": "did not take or send what it should in time",
    "handshake": "never got through the handshake, so it has no name",
}
"""What each reason means."""


def render_peers(told: dict[str, Any]) -> list[RenderableType]:
    """The same as tables."""
    connected = table_of(
        ("organisation", "address", "since", "received", "sent", "blocks given"),
        (
            (
                peer["organisation"] or peer["peer_id"],
                f"{'to' if peer['dialled_by_us'] else 'from'} {peer['address']}",
                moment(peer["since"]),
                *(f"{peer[key]:,}" for key in ("received_bytes", "sent_bytes", "given_bytes")),
            )
            for peer in told["connected"]
        ),
        title="connected",
    )
    counts = table_of(
        ("refused because", "times", "meaning"),
        ((reason, f"{times:,}", WHY.get(reason, "")) for reason, times in sorted(told["refused"].items())),
        title="refusals since the node started",
    )
    last = table_of(
        ("when", "organisation", "refused because", "block"),
        (
            (
                moment(refusal["at"]),
                refusal["organisation"] or refusal["peer_id"],
                refusal["reason"],
                refusal["cid"] or "",
            )
            for refusal in told["last_refusals"][-20:]
        ),
        title="last refusals",
    )
    quota = told["quota"]
    daily = "any number" if quota["bytes_per_day"] is None else f"{quota['bytes_per_day']:,}"
    bounds = (
        f"each member: {quota['streams']} streams at once, {quota['blocks_per_s']:,.0f} blocks and"
        f" {quota['bytes_per_s']:,.0f} bytes per second, {daily} bytes per day"
    )
    return [connected, counts, last, bounds]
