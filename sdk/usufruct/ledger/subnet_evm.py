"""Subnet-EVM's side of a network: the genesis with its founders, and the precompiles that the council rules.

Pure: makes JSON and call data. Absent: how validators run (`scripts/consortium`), how contracts are deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from eth_abi.abi import encode
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak

from usufruct.errors import ConfigurationError
from usufruct.records import Participant

DEPLOYER_ALLOW_LIST = "0x0200000000000000000000000000000000000000"
"""Who may create contracts."""

NATIVE_MINTER = "0x0200000000000000000000000000000000000001"
"""Who may mint the coin that pays fees."""

TRANSACTION_ALLOW_LIST = "0x0200000000000000000000000000000000000002"
"""Who may send transactions."""

BLOCK_GAS_LIMIT = 100_000_000
"""Gas of one block, and so of one transaction."""

MIN_BASE_FEE_WEI = 1
"""A price of zero is taken into the pool and never mined."""

FOUNDER_FUNDS_WEI = 10**18
"""At 1 wei a unit of gas: 10^12 transactions of a million gas."""

WARP_QUORUM_PERCENT = 67
"""Weight of the validators that must have signed a warp message."""

GENESIS_SECONDS = 1_607_144_400
"""Unix seconds from which AvalancheGo's upgrades apply on a network of one's own; warp is refused before it."""

# The base fee rises when ten seconds hold more gas than this, which two-second blocks cannot: fees stay
# where the minimum is, whatever the load.
_TARGET_GAS = 100 * BLOCK_GAS_LIMIT


class AllowListRole(IntEnum):
    """What `readAllowList` answers.

    Source: `precompile/allowlist/role.go` of Subnet-EVM v0.8.0.
    """

    NONE = 0
    ENABLED = 1
    ADMIN = 2
    MANAGER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GenesisMember:
    """The two accounts of one founding member."""

    account: str
    node_account: str

    @classmethod
    def of(cls, participant: Participant) -> GenesisMember:
        """The accounts in a participant's record."""
        return cls(account=participant.account, node_account=participant.node_account)


def genesis(*, chain_id: int, members: Sequence[GenesisMember], deployer: str) -> dict[str, object]:
    """Genesis of a chain that only its members may use.

    Parameters
    ----------
    chain_id :
        EVM chain id; no other chain that the members use may have it.
    members :
        Founders; both accounts of each may send transactions and are funded, no other account is.
    deployer :
        One of the founders' accounts: administers the three lists until the deployment hands them over to
        the members' council.

    Raises
    ------
    ConfigurationError
        If an account is malformed, stands twice or is the zero address, or the deployer is no founder's.

    Source
    ------
    `core/genesis.go` and `params/extras/config.go` of Subnet-EVM v0.8.0.
    """
    if not 0 < chain_id < 1 << 53:
        raise ConfigurationError(f"{chain_id} is no chain id", hint="a number from 1 to 2^53 - 1")
    accounts = [_address(account) for member in members for account in (member.account, member.node_account)]
    if len(set(accounts)) != len(accounts):
        raise ConfigurationError("two founding members, or one member's two accounts, share an account")
    admin = _address(deployer)
    if admin not in accounts:
        raise ConfigurationError(f"the deployer {admin} is no founding member's account")
    others = [account for account in accounts if account != admin]
    since = {"blockTimestamp": GENESIS_SECONDS}
    return {
        "config": {
            "chainId": chain_id,
            "feeConfig": {
                "gasLimit": BLOCK_GAS_LIMIT,
                "targetBlockRate": 2,
                "minBaseFee": MIN_BASE_FEE_WEI,
                "targetGas": _TARGET_GAS,
                "baseFeeChangeDenominator": 36,
                "minBlockGasCost": 0,
                "maxBlockGasCost": 0,
                "blockGasCostStep": 0,
            },
            "txAllowListConfig": {**since, "adminAddresses": [admin], "enabledAddresses": others},
            "contractDeployerAllowListConfig": {**since, "adminAddresses": [admin]},
            "contractNativeMinterConfig": {**since, "adminAddresses": [admin]},
            "warpConfig": {**since, "quorumNumerator": WARP_QUORUM_PERCENT},
        },
        "alloc": {account: {"balance": hex(FOUNDER_FUNDS_WEI)} for account in accounts},
        "timestamp": hex(GENESIS_SECONDS),
        "gasLimit": hex(BLOCK_GAS_LIMIT),
        "difficulty": "0x0",
        "nonce": "0x0",
        "extraData": "0x",
        "mixHash": "0x" + "00" * 32,
        "coinbase": "0x" + "00" * 20,
        "number": "0x0",
        "gasUsed": "0x0",
        "parentHash": "0x" + "00" * 32,
    }


def read_allow_list_call(account: str) -> bytes:
    """Call data of `readAllowList(address)`, which answers an `AllowListRole`."""
    return _call("readAllowList(address)", _address(account))


def set_role_call(account: str, role: AllowListRole) -> bytes:
    """Call data that gives an account a role on a list."""
    function = {
        AllowListRole.NONE: "setNone",
        AllowListRole.ENABLED: "setEnabled",
        AllowListRole.ADMIN: "setAdmin",
        AllowListRole.MANAGER: "setManager",
    }[role]
    return _call(f"{function}(address)", _address(account))


def mint_call(account: str, amount_wei: int) -> bytes:
    """Call data of `mintNativeCoin(address,uint256)`, with which a council's vote may fund any account.

    Raises
    ------
    ConfigurationError
        If the amount is negative or does not fit 256 bits.
    """
    if not 0 <= amount_wei < 1 << 256:
        raise ConfigurationError(f"{amount_wei} is no amount of wei")
    selector = keccak(text="mintNativeCoin(address,uint256)")[:4]
    return selector + encode(["address", "uint256"], [_address(account), amount_wei])


def _call(signature: str, account: str) -> bytes:
    return keccak(text=signature)[:4] + encode(["address"], [account])


def _address(text: str) -> str:
    if not is_address(text) or int(text, 16) == 0:
        raise ConfigurationError(f"{text!r} is no account")
    return to_checksum_address(text)
