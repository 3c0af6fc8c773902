"""The embedded development chain: one Anvil process behind a door that loses nothing.

`settings` names the parameters and the files that tell others where the chain listens.
`journal` keeps every transaction and every block record on disk before anyone is told of them.
`engine` runs Anvil and speaks to it. `store` ties checkpoint and journal together.
`producer` orders transactions, makes blocks and rebuilds the engine. `front` is the JSON-RPC door.
`service` puts them together.

Absent: contracts, keys and anything that knows what a transaction means. One machine, one block
producer: a network that outgrows this uses a chain with several validators instead.
"""

from usufruct_node.chain.service import serve_chain
from usufruct_node.chain.settings import ChainEndpoint, ChainSettings, find_anvil, read_endpoint

__all__ = ["ChainEndpoint", "ChainSettings", "find_anvil", "read_endpoint", "serve_chain"]
