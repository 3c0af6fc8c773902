"""Evidence of one lineage in one file, that others check without asking any node.

`collect` makes it, `check` believes nothing in it, `pack` is the file. The walk over it is that of `usufruct.lineage`.
"""

from usufruct.evidence.check import CheckedEvidence, check_evidence
from usufruct.evidence.collect import collect_evidence
from usufruct.evidence.pack import Evidence, read_evidence, write_evidence

__all__ = [
    "CheckedEvidence",
    "Evidence",
    "check_evidence",
    "collect_evidence",
    "read_evidence",
    "write_evidence",
]
