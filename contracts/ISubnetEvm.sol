// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @dev Addresses of Subnet-EVM's precompiles.
address constant DEPLOYER_LIST = 0x0200000000000000000000000000000000000000;
address constant MINTER = 0x0200000000000000000000000000000000000001;
address constant TRANSACTION_LIST = 0x0200000000000000000000000000000000000002;

/// @dev Roles on a precompile's list. An admin gives and takes any role; a manager puts accounts on the list and takes
/// them off, but touches no admin and no manager; all three may use what the list guards.
uint256 constant ROLE_NONE = 0;
uint256 constant ROLE_ENABLED = 1;
uint256 constant ROLE_ADMIN = 2;
uint256 constant ROLE_MANAGER = 3;

/// @title IAllowList
/// @notice What each of Subnet-EVM's precompiles offers over its own list; who may not, fails.
/// @dev Follows ava-labs/subnet-evm v0.8.0, `precompile/allowlist`.
interface IAllowList {
    /// @notice `sender` changed the role of `account`.
    event RoleSet(uint256 indexed role, address indexed account, address indexed sender, uint256 oldRole);

    /// @notice Makes `account` an administrator of the list.
    function setAdmin(address account) external;

    /// @notice Makes `account` a manager of the list.
    function setManager(address account) external;

    /// @notice Lets `account` use what the list guards.
    function setEnabled(address account) external;

    /// @notice Takes every role from `account`.
    function setNone(address account) external;

    /// @notice The role of `account`.
    function readAllowList(address account) external view returns (uint256 role);
}

/// @title INativeMinter
/// @notice The precompile that makes native coin, here worth nothing but fees.
interface INativeMinter is IAllowList {
    /// @notice `sender` gave `recipient` new coin, in wei.
    event NativeCoinMinted(address indexed sender, address indexed recipient, uint256 amount);

    /// @notice Makes `amount` wei for `account`; the caller must be on the minter's list.
    function mintNativeCoin(address account, uint256 amount) external;
}
