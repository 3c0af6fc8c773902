"""The only code that speaks to the contracts.

Start at `ledger.Ledger` (typed reads and writes), then `sender` (nonces, finality) with its `journal` and `receipts`,
`endpoints` (failover) over `endpoint` (JSON-RPC), `profile` (kinds of chain), `finality` (proofs), `abi` (codecs), `series`
(no event missing), `typed_data` (EIP-712), `deploy` and `compile`. Knows no content, no peer, no homomorphic key.
"""

from usufruct.ledger.endpoint import Endpoint, Head
from usufruct.ledger.endpoints import Endpoints
from usufruct.ledger.health import ChainHealth, EndpointHealth
from usufruct.ledger.ledger import Ledger
from usufruct.ledger.network import Network
from usufruct.ledger.profile import PROFILES, ChainProfile
from usufruct.ledger.sender import Receipt, Sender

__all__ = [
    "PROFILES",
    "ChainHealth",
    "ChainProfile",
    "Endpoint",
    "EndpointHealth",
    "Endpoints",
    "Head",
    "Ledger",
    "Network",
    "Receipt",
    "Sender",
]
