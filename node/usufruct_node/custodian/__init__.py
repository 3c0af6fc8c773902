"""The custodian: a process of its own, the only one that ever holds a homomorphic secret.

`process` starts and asks it, from the node's side; `__main__` is the process; `service` answers requests, `case` is what
the node tells about one job, `vault` what the custodian remembers, `confine` what it may not do, `wire` how the two speak.

**Invariant:** it has no network. It speaks over one Unix domain socket of mode 0600 in the home, to processes of its own
user, and hands out nothing but refusals and noised values that are encrypted to the partner.
"""

from usufruct_node.custodian.case import Case, Records
from usufruct_node.custodian.process import CustodianProcess, Sealed

__all__ = ["Case", "CustodianProcess", "Records", "Sealed"]
