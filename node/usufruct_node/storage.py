"""Where this node's blocks rest: the one place that chooses between the homes of blocks."""

from __future__ import annotations

from usufruct.content import BlockStore, EmbeddedBlockStore
from usufruct.content.kubo import Credentials, KuboBlockStore, KuboRpc
from usufruct.home import Home
from usufruct_node.config import NodeSettings


def open_store(home: Home, settings: NodeSettings) -> BlockStore:
    """The store that the settings name; Kubo's if there is a `kubo_address`, else the embedded one.

    Raises
    ------
    ConfigurationError
        If Kubo's address or credentials cannot be used.
    KuboUnreachableError, KuboRefusedError, KuboVersionError
    ContentError
        If the store cannot be opened.
    """
    if settings.kubo_address is None:
        return EmbeddedBlockStore(home.blocks, quota_bytes=settings.quota_bytes)
    rpc = open_rpc(home, settings.kubo_address, deadline_s=settings.kubo_deadline_s)
    return KuboBlockStore(home.kubo_catalogue, rpc, quota_bytes=settings.quota_bytes)


def open_rpc(home: Home, address: str, *, deadline_s: float) -> KuboRpc:
    """Kubo's RPC with the credentials of this home; connects to nothing yet."""
    return KuboRpc(address, Credentials.load(home.kubo_token), deadline_s=deadline_s)
