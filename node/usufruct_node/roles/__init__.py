"""What a node does for the network, role by role.

`executor`, `verifier` and `custodian` each say which jobs want them and do one step at a time; `dispatch` runs them, `context`
is what they share, `compute` runs kernels in worker processes, `journal` remembers what must survive a crash.

**Invariant:** only `custodian` ever holds a homomorphic secret, and it decrypts nothing that the ledger does not call Opened.
"""

from usufruct_node.roles.context import RoleContext
from usufruct_node.roles.custodian import Custodian
from usufruct_node.roles.dispatch import Dispatcher
from usufruct_node.roles.executor import Executor
from usufruct_node.roles.journal import Journal
from usufruct_node.roles.verifier import Verifier

__all__ = ["Custodian", "Dispatcher", "Executor", "Journal", "RoleContext", "Verifier"]
