"""Merkle-Patricia trees: what stands under a key, or that nothing does, from a root that is trusted and nodes that are not.

Source: Yellow Paper, appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence

import rlp
from eth_utils.crypto import keccak
from trie import HexaryTrie
from trie.exceptions import MissingTrieNode, TraversedPartialPath, ValidationError

from usufruct.errors import InclusionError, MalformedProofError
from usufruct.ledger.finality.strict_rlp import decode_rlp

MAX_NODES = 64
_HASH_BYTES = 32
_EMPTY_ROOT = bytes(keccak(rlp.encode(b"")))


def value_at(root: bytes, key: bytes, nodes: Sequence[bytes], what: str, *, limit: int) -> bytes:
    """What the tree with this root has under a key; nothing where the nodes show that it has nothing there.

    Parameters
    ----------
    nodes :
        From the root down, each in RLP; none for a tree that is empty.
    what :
        What the proof is about, for messages.
    limit :
        Bytes that a node may have.

    Raises
    ------
    MalformedProofError
        If a node is malformed, or there are nodes that the path does not need.
    InclusionError
        If the nodes do not lead from the root to where the key belongs.
    """
    if len(nodes) > MAX_NODES:
        raise MalformedProofError(f"the proof of {what} has {len(nodes)} nodes")
    if not nodes and root == _EMPTY_ROOT:
        return b""
    for node in nodes:
        decode_rlp(node, f"node of the proof of {what}", limit=limit)
    tree = HexaryTrie({bytes(keccak(node)): node for node in nodes}, root)
    try:
        value, needed = tree.get(key), path_of(tree, key)
    except (MissingTrieNode, TraversedPartialPath, ValidationError, rlp.exceptions.RLPException) as exc:
        raise InclusionError(f"the proof of {what} does not lead from the root to its place") from exc
    except Exception as exc:
        # The library takes nodes for its own: for a stranger's it raises whatever comes of it, bare `Exception` included.
        raise MalformedProofError(f"a node of the proof of {what} has no form that a tree has") from exc
    if needed != tuple(nodes):
        raise MalformedProofError(f"the proof of {what} holds nodes that its path does not need")
    return bytes(value)


def path_of(tree: HexaryTrie, key: bytes) -> tuple[bytes, ...]:
    """The nodes from the root to where a key belongs, each in RLP, as `eth_getProof` has them.

    A node of less than 32 bytes stands in the one above it, and not by itself.
    """
    nodes = [bytes(rlp.encode(node)) for node in tree.get_proof(key)]
    return tuple(node for place, node in enumerate(nodes) if not place or len(node) >= _HASH_BYTES)
