"""Usufruct: use each other's sensitive data without seeing it.

The path of a data item, and the module of each step:

1. `features`: typed matrix, ranges declared, raw imagery refused
2. `seal`: quantised, packed by column, encrypted under a key domain; `rounds`: what several members contribute
3. `publish`: blocks and manifest into content-addressed storage
4. `register`: bundle, policy and key domain on the ledger
5. `consent`: receipts kept, roots and status bitstrings anchored
6. `rights`: requested, granted, denied, revoked
7. `job`: posted, admitted or denied
8. `verify`: re-executed bit for bit, committed, revealed
9. `release`: decrypted by the custodian, noised, encrypted to the partner
10. `lineage`: from any released number back to every consent

`Client` has the steps as methods, `errors` every error, `records` every ledger record.
"""

from typing import TYPE_CHECKING

from usufruct.errors import UsufructError

if TYPE_CHECKING:
    from usufruct.client import Client

__all__ = ["Client", "UsufructError"]


def __getattr__(name: str) -> object:
    """Load the client when it is first asked for: a compute worker needs neither web3 nor TenSEAL."""
    if name == "Client":
        from usufruct.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
