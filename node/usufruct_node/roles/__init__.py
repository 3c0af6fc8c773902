"""What a node does for the network, role by role.

`executor`, `verifier` and `custodian` each say which jobs want them and do one step at a time; `reporter` tells the ledger
who did wrong, `rechecker` executes again what such a member did before; `dispatch` runs them, `context` is what they share,
`compute` runs kernels in worker processes, `journal` remembers what must survive a crash.

**Invariant:** no role holds a homomorphic secret; `usufruct_node.custodian` does, in a process of its own.
"""

from usufruct_node.roles.context import RoleContext
from usufruct_node.roles.custodian import Custodian
from usufruct_node.roles.dispatch import Dispatcher
from usufruct_node.roles.executor import Executor
from usufruct_node.roles.journal import Journal
from usufruct_node.roles.rechecker import Rechecker
from usufruct_node.roles.reporter import Reporter
from usufruct_node.roles.verifier import Verifier

__all__ = [
    "Custodian",
    "Dispatcher",
    "Executor",
    "Journal",
    "Rechecker",
    "Reporter",
    "RoleContext",
    "Verifier",
]
