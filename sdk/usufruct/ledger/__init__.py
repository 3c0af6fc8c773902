"""The only code that speaks to the contracts.

Start at `ledger.Ledger` (typed reads and writes), then `sender` (nonces, finality), `endpoint` (JSON-RPC), `abi` (codecs),
`series` (no event missing), `typed_data` (EIP-712), `deploy` and `compile`. Knows no content, no peer, no homomorphic key.
"""

import sys

_RECURSION_LIMIT = sys.getrecursionlimit()

from usufruct.ledger.endpoint import Endpoint, Head  # noqa: E402
from usufruct.ledger.ledger import Ledger  # noqa: E402
from usufruct.ledger.network import Network  # noqa: E402
from usufruct.ledger.sender import Receipt, Sender  # noqa: E402

# py_ecc, which web3 brings, raises the limit to 100,000 when it is imported: deeply nested JSON would then overflow the C stack
# and end the process instead of raising RecursionError.
sys.setrecursionlimit(_RECURSION_LIMIT)

__all__ = ["Endpoint", "Head", "Ledger", "Network", "Receipt", "Sender"]
