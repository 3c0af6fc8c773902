"""Kubo as a home of blocks: its RPC, the store on top of it, and the configuration that it must run under.

The only importer of `ipfshttpclient`. Kubo stores; it talks to no other node: blocks move between members through our own
gated host.
"""

from usufruct.content.kubo.hardening import Deviation, deviations, hardened
from usufruct.content.kubo.rpc import Credentials, KuboRpc
from usufruct.content.kubo.store import KuboBlockStore

__all__ = ["Credentials", "Deviation", "KuboBlockStore", "KuboRpc", "deviations", "hardened"]
