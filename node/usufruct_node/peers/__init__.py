"""The libp2p side of a node: identity, membership gate, block exchange.

Knows peers by their ids and blocks by their CIDs; what a member is and who may have which block is asked of
the callables that the node passes in. Gossip, Bitswap and address discovery are absent: addresses come from
the registry, and ledger events are what counts.
"""

from __future__ import annotations

from usufruct_node.peers.gate import Refusal
from usufruct_node.peers.host import Deadlines, PeerHost
from usufruct_node.peers.identity import PeerIdentity, parse_peer_id

__all__ = ["Deadlines", "PeerHost", "PeerIdentity", "Refusal", "parse_peer_id"]
