"""Who is connected to this node, what they take, and why somebody was refused: peers under the names of their organisations."""

from __future__ import annotations

from typing import Any

from usufruct.errors import InputError
from usufruct.records import Participant
from usufruct_node.index import Index
from usufruct_node.peers import PeerHost
from usufruct_node.peers.identity import parse_peer_id


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


def _member(index: Index, peer_id: str) -> Participant | None:
    try:
        return index.participant_by_peer(parse_peer_id(peer_id))
    except InputError:
        return None
