"""The only code that speaks to the contracts.

Start at `ledger.Ledger` (typed reads and writes), then `sender` (nonces, finality) with its `journal`, `endpoints`
(failover) over `endpoint` (JSON-RPC), `profile` (kinds of chain), `finality` (proofs), `abi` (codecs), `series` (no
event missing), `typed_data` (EIP-712), `deploy` and `compile`. Knows no content, no peer, no homomorphic key.
"""

import sys

_RECURSION_LIMIT = sys.getrecursionlimit()

from usufruct.ledger.endpoint import Endpoint, Head  # noqa: E402
from usufruct.ledger.endpoints import Endpoints  # noqa: E402
from usufruct.ledger.health import ChainHealth, EndpointHealth  # noqa: E402
from usufruct.ledger.ledger import Ledger  # noqa: E402
from usufruct.ledger.network import Network  # noqa: E402
from usufruct.ledger.profile import PROFILES, ChainProfile  # noqa: E402
from usufruct.ledger.sender import Receipt, Sender  # noqa: E402

# py_ecc, which web3 brings, raises the limit to 100,000 when it is imported: deeply nested JSON would then overflow the C stack
# and end the process instead of raising RecursionError.
sys.setrecursionlimit(_RECURSION_LIMIT)

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
