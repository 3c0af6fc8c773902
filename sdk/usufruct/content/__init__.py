"""Content-addressed storage: identifiers, DAG-CBOR records and where blocks rest.

Knows nothing of ledgers, keys, ciphertexts or peers. Other storage adapters belong here, behind `BlockStore`.
"""

from __future__ import annotations

from usufruct.content import dag
from usufruct.content.blockstore import MAX_BLOCK_BYTES, BlockStore
from usufruct.content.cid import Cid, Codec
from usufruct.content.embedded import EmbeddedBlockStore
from usufruct.content.files import BlockFiles
from usufruct.content.integrity import Damage, Unrepaired, copy_pinned, repair, scan

__all__ = [
    "MAX_BLOCK_BYTES",
    "BlockFiles",
    "BlockStore",
    "Cid",
    "Codec",
    "Damage",
    "EmbeddedBlockStore",
    "Unrepaired",
    "copy_pinned",
    "dag",
    "repair",
    "scan",
]
