"""Finalised ledger events as SQL, and the queries on them.

`database.Index` holds tables and queries, `apply` turns events into rows, `follow` keeps up with the chain. The events are
enough: an index that is lost is rebuilt from them.
"""

from usufruct_node.index.database import Index, JobRow
from usufruct_node.index.follow import catch_up, follow

__all__ = ["Index", "JobRow", "catch_up", "follow"]
