// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {IChainPermissions} from "./IChainPermissions.sol";

/// @title OpenPermissions
/// @notice For chains that take transactions from any account, or whose list no contract can change: does nothing.
contract OpenPermissions is IChainPermissions {
    /// @inheritdoc IChainPermissions
    function allow(address) external pure {} // solhint-disable-line no-empty-blocks

    /// @inheritdoc IChainPermissions
    function revoke(address) external pure {} // solhint-disable-line no-empty-blocks

    /// @inheritdoc IChainPermissions
    function refuel(address) external pure {} // solhint-disable-line no-empty-blocks

    /// @inheritdoc IChainPermissions
    function setFees(uint128, uint64) external pure {} // solhint-disable-line no-empty-blocks

    /// @inheritdoc IChainPermissions
    function isAllowed(address) external pure returns (bool) {
        return true;
    }

    /// @inheritdoc IChainPermissions
    function fees() external pure returns (uint128 allowance, uint64 period) {
        return (0, 0);
    }
}
