"""What is particular to each kind of chain that a network may live on. Plain data; speaks to nobody.

A network file names its profile. Everything else in the library reads the record instead of asking which engine it talks to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from usufruct.errors import ConfigurationError

ProofKind = Literal["warp", "qbft"]
"""How validators sign blocks: BLS aggregates of Avalanche's warp messages, committed seals in Besu's block headers."""

HeaderKind = Literal["ethereum", "subnet-evm", "qbft"]
"""How a block header is encoded and hashed."""

STALL_INTERVALS = 5
"""Block intervals without a block, while one is due, after which a chain counts as standing still."""


APART_INTERVALS = 2
"""Block intervals without a quorum, after which a chain counts as standing still although no block is due.

Less than the above by what it takes validators to notice that others are gone.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainProfile:
    """One kind of chain.

    Nothing here assumes that gas is free: the price is asked of the chain, and never below `minimum_gas_price`. An endpoint
    that asks more than `maximum_gas_price` is not believed.
    """

    name: str
    block_interval_s: float
    """Longest time between blocks while the chain is well and one is due."""
    empty_blocks: bool
    """Whether blocks come when nobody sends; if not, silence alone says nothing about the chain's health."""
    minimum_gas_price: int
    """Wei per gas below which a transaction is accepted into the pool and then never mined."""
    maximum_gas_price: int
    """Wei per gas above which no price is paid, whatever an endpoint asks."""
    finality_tag: str
    """Block tag of the newest block that cannot be taken back."""
    header: HeaderKind
    proof: ProofKind | None
    """Finality that an outsider can check; None when the operator's word is all there is."""
    block_gas: int
    """Gas of all transactions of a block."""
    transaction_gas: int
    """Gas limit above which the chain refuses a transaction."""
    permissions: str
    """Contract that keeps the chain's own allow-lists in step with the members."""
    tested: bool
    """Whether the project's tests run on this kind of chain."""

    @property
    def stall_after_s(self) -> float:
        """Seconds without a block, while one is due, after which the chain counts as standing still."""
        return STALL_INTERVALS * self.block_interval_s

    @property
    def apart_after_s(self) -> float:
        """Seconds without a quorum after which the chain counts as standing still, whether or not a block is due."""
        return APART_INTERVALS * self.block_interval_s


PROFILES = {
    profile.name: profile
    for profile in (
        ChainProfile(
            name="embedded",
            block_interval_s=2.0,
            empty_blocks=True,
            minimum_gas_price=0,
            maximum_gas_price=10**9,
            finality_tag="finalized",
            header="ethereum",
            proof=None,
            block_gas=300_000_000,
            transaction_gas=300_000_000,
            permissions="OpenPermissions",
            tested=True,
        ),
        ChainProfile(
            name="subnet-evm",
            # 2 s in good health, up to 3 s while one of five validators is down.
            block_interval_s=3.0,
            empty_blocks=False,
            minimum_gas_price=2,
            # Fees stay at their minimum whatever the load. At this price the dearest transaction costs a ten-millionth of
            # an allowance.
            maximum_gas_price=1_000,
            finality_tag="finalized",
            header="subnet-evm",
            proof="warp",
            block_gas=100_000_000,
            transaction_gas=100_000_000,
            permissions="SubnetEvmPermissions",
            tested=True,
        ),
        ChainProfile(
            name="besu-qbft",
            block_interval_s=2.0,
            empty_blocks=True,
            minimum_gas_price=0,
            maximum_gas_price=10**11,
            # A QBFT block is final when it is there. Besu answers "finalized" only once a consensus client has told it.
            finality_tag="latest",
            header="qbft",
            proof="qbft",
            block_gas=30_000_000,
            transaction_gas=16_777_216,
            permissions="OpenPermissions",
            tested=False,
        ),
    )
}
"""Every known kind of chain by name."""


def profile_of(name: str) -> ChainProfile:
    """The profile with this name.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    try:
        return PROFILES[name]
    except KeyError as exc:
        raise ConfigurationError(
            f"{name!r} is no chain profile", hint=f"profiles are {', '.join(sorted(PROFILES))}"
        ) from exc
