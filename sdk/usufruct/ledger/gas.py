"""What the transactions of one job cost, as `docs/gas.md` measured them; a test keeps the two the same."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

JOB_GAS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "postJob": 180_207,
        "claimJob": 49_206,
        "commitResult, with the words of three verifiers": 107_774,
        "revealVerdicts, all three": 90_129,
        "openRelease": 118_881,
        "recordRelease": 46_711,
    }
)
"""Gas by transaction, where three verifiers answer."""

VERIFIER_GAS: Final = 27_537
"""What each verifier more adds."""


def job_gas(verifiers: int) -> int:
    """Gas of one job from posting to release, all parties together, where this many verifiers answer."""
    return sum(JOB_GAS.values()) + (verifiers - 3) * VERIFIER_GAS
