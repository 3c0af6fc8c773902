"""Who is connected to this node, what they take, and why somebody was refused: peers under the names of their organisations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from usufruct.errors import InputError
from usufruct.records import Participant
from usufruct_node.index import Index
from usufruct_node.peers import PeerHost
from usufruct_node.peers.identity import parse_peer_id

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


def describe_peers(host: PeerHost, index: Index) -> dict[str, Any]:
    """What an operator wants to know of the peers; plain data."""
    names: dict[str, str | None] = {}

    def name_of(peer_id: str) -> str | None:
        if peer_id not in names:
            found = _member(index, peer_id)
            names[peer_id] = None if found is None else found.name
        return names[peer_id]

    quota = host.quota
    return {
        "peer_id": host.peer_id,
        "listening": host.multiaddr,
        "private_network": host.is_private,
        "quota": {
            "streams": quota.streams,
            "blocks_per_s": quota.blocks_per_s,
            "bytes_per_s": quota.bytes_per_s,
            "bytes_per_day": quota.bytes_per_day,
        },
        "connected": [
            {
                "organisation": name_of(peer.peer_id),
                "peer_id": peer.peer_id,
                "address": peer.address,
                "dialled_by_us": peer.is_outgoing,
                "since": round(peer.opened_at),
                "received_bytes": peer.received_bytes,
                "sent_bytes": peer.sent_bytes,
                "given_bytes": host.shelf.given[peer.peer_id],
            }
            for peer in host.peers()
        ],
        "refused": host.refusal_counts(),
        "last_refusals": [
            {
                "organisation": name_of(refusal.peer_id),
                "peer_id": refusal.peer_id,
                "at": round(refusal.at),
                "reason": refusal.reason,
                "cid": None if refusal.cid is None else str(refusal.cid),
            }
            for refusal in host.refusals()
        ],
    }


def render_peers(told: dict[str, Any]) -> list[RenderableType]:
    """The same as tables."""
    connected = Table(
        "organisation", "address", "since", "received", "sent", "blocks given", title="connected"
    )
    for peer in told["connected"]:
        connected.add_row(
            peer["organisation"] or peer["peer_id"],
            f"{'to' if peer['dialled_by_us'] else 'from'} {peer['address']}",
            _time(peer["since"]),
            *(f"{peer[key]:,}" for key in ("received_bytes", "sent_bytes", "given_bytes")),
        )
    counts = Table("refused because", "times", "meaning", title="refusals since the node started")
    for reason, times in sorted(told["refused"].items()):
        counts.add_row(reason, f"{times:,}", WHY.get(reason, ""))
    last = Table("when", "organisation", "refused because", "block", title="last refusals")
    for refusal in told["last_refusals"][-20:]:
        last.add_row(
            _time(refusal["at"]),
            refusal["organisation"] or refusal["peer_id"],
            refusal["reason"],
            refusal["cid"] or "",
        )
    quota = told["quota"]
    daily = "any number" if quota["bytes_per_day"] is None else f"{quota['bytes_per_day']:,}"
    bounds = (
        f"each member: {quota['streams']} streams at once, {quota['blocks_per_s']:,.0f} blocks and"
        f" {quota['bytes_per_s']:,.0f} bytes per second, {daily} bytes per day"
    )
    return [connected, counts, last, bounds]


def _member(index: Index, peer_id: str) -> Participant | None:
    try:
        return index.participant_by_peer(parse_peer_id(peer_id))
    except InputError:
        return None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
