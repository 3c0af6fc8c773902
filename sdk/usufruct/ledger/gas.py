"""What the transactions of one job cost, as `docs/gas.md` measured them; a test keeps the two the same."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

JOB_GAS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "postJob": 543_270,
        "claimJob": 76_191,
        "commitResult": 87_114,
        "commitVerdict": 77_010,
        "commitVerdict, last verifier": 83_640,
        "revealVerdict": 59_912,
        "revealVerdict, last verifier": 233_578,
        "openRelease": 204_630,
        "recordRelease": 251_001,
    }
)
"""Gas by transaction."""


def job_gas(verifiers: int) -> int:
    """Gas of one job from posting to release, all parties together, where this many verifiers answer."""
    others = verifiers - 1
    each = JOB_GAS["commitVerdict"] + JOB_GAS["revealVerdict"]
    return sum(JOB_GAS.values()) + (others - 1) * each
