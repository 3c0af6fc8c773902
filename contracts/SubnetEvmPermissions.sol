// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IChainPermissions} from "./IChainPermissions.sol";
import {
    IAllowList,
    INativeMinter,
    MINTER,
    TRANSACTION_LIST,
    ROLE_NONE,
    ROLE_ENABLED
} from "./ISubnetEvm.sol";

/// @title SubnetEvmPermissions
/// @notice Keeps Subnet-EVM's transaction list equal to the accounts of active members, and gives them fees.
/// @dev Needs to be manager of the transaction list and enabled on the minter's; the council administers both. Every call
/// is to an interface, so one to a precompile that is not there reverts.
contract SubnetEvmPermissions is IChainPermissions, AccessManaged {
    /// What an account received in a period; worth nothing in any other.
    struct Draw {
        uint128 amount;
        uint64 period;
    }

    IAllowList private constant LIST = IAllowList(TRANSACTION_LIST);
    INativeMinter private constant COIN = INativeMinter(MINTER);

    uint128 private _allowance;
    uint64 private _period;
    mapping(address account => Draw) private _drawn;

    constructor(address authority, uint128 allowance, uint64 period) AccessManaged(authority) {
        if (TRANSACTION_LIST.code.length == 0) revert ChainPermissionsMissing(TRANSACTION_LIST);
        if (MINTER.code.length == 0) revert ChainPermissionsMissing(MINTER);
        _setFees(allowance, period);
    }

    /// @inheritdoc IChainPermissions
    function allow(address account) external restricted {
        if (LIST.readAllowList(account) == ROLE_NONE) {
            LIST.setEnabled(account);
            if (LIST.readAllowList(account) != ROLE_ENABLED) revert ChainPermissionsNotSet(account);
        }
        _fuel(account);
    }

    /// @inheritdoc IChainPermissions
    function revoke(address account) external restricted {
        uint256 role = LIST.readAllowList(account);
        if (role == ROLE_NONE) return;
        if (role != ROLE_ENABLED) revert ChainPermissionsNotManaged(account, role);

        LIST.setNone(account);
        if (LIST.readAllowList(account) != ROLE_NONE) revert ChainPermissionsNotSet(account);
    }

    /// @inheritdoc IChainPermissions
    function refuel(address account) external {
        if (!isAllowed(account)) revert ChainPermissionsNotAllowed(account);

        _fuel(account);
    }

    /// @inheritdoc IChainPermissions
    function setFees(uint128 allowance, uint64 period) external restricted {
        _setFees(allowance, period);
    }

    /// @inheritdoc IChainPermissions
    function fees() external view returns (uint128 allowance, uint64 period) {
        return (_allowance, _period);
    }

    /// @inheritdoc IChainPermissions
    function isAllowed(address account) public view returns (bool) {
        return LIST.readAllowList(account) != ROLE_NONE;
    }

    // By periods counted from the epoch, not from the last call: a call by somebody else must not start a new one.
    function _fuel(address account) private {
        uint64 period = uint64(block.timestamp) / _period;
        Draw memory drawn = _drawn[account];
        if (drawn.period != period) drawn = Draw({ amount: 0, period: period });
        uint256 allowance = _allowance;
        uint256 left = allowance > drawn.amount ? allowance - drawn.amount : 0;
        uint256 missing = allowance > account.balance ? allowance - account.balance : 0;
        uint128 amount = uint128(missing < left ? missing : left);
        if (amount > 0) {
            drawn.amount += amount;
            _drawn[account] = drawn;
            emit AccountFuelled(account, amount);
            COIN.mintNativeCoin(account, amount);
        }
    }

    function _setFees(uint128 allowance, uint64 period) private {
        if (allowance == 0 || period == 0) revert ChainPermissionsInvalidFees();

        _allowance = allowance;
        _period = period;
        emit FeesChanged(allowance, period);
    }
}
