"""The libp2p side of a node: identity, membership gate, block exchange.

Knows peers by their ids and blocks by their CIDs; what a member is and who may have which block is asked of
the callables that the node passes in. Gossip and address discovery are absent: addresses come from
the registry, and ledger events are what counts.
"""

from __future__ import annotations

from usufruct_node.peers.deadlines import Deadlines
from usufruct_node.peers.fetching import FetchReport, Holder, fetch_blocks
from usufruct_node.peers.gate import Refusal
from usufruct_node.peers.host import PeerHost, PeerState
from usufruct_node.peers.identity import PeerIdentity, parse_peer_id
from usufruct_node.peers.quota import Quota

__all__ = [
    "Deadlines",
    "FetchReport",
    "Holder",
    "PeerHost",
    "PeerIdentity",
    "PeerState",
    "Quota",
    "Refusal",
    "fetch_blocks",
    "parse_peer_id",
]
