"""Finalised ledger events as SQL, and the queries on them.

`database.Index` holds tables and queries, `apply` turns events into rows, `rows` turns rows into records, `follow` keeps up
with the chain. The events are enough: an index that is lost is rebuilt from them.
"""

from usufruct_node.index.database import Index
from usufruct_node.index.follow import catch_up, catch_up_in_thread, follow
from usufruct_node.index.rows import JobRow

__all__ = ["Index", "JobRow", "catch_up", "catch_up_in_thread", "follow"]
