// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @title IChainPermissions
/// @notice Carries what the members decide about an account down to the chain itself: who may send a transaction at all,
/// and what it may spend on fees.
/// @dev One implementation per kind of chain. `OpenPermissions` does nothing: the chain keeps no list, or none that a
/// contract can change. `ParticipantRegistry` calls it in the transaction that admits, suspends, reinstates or removes.
interface IChainPermissions {
    /// @notice `account` received `amount` wei for fees.
    event AccountFuelled(address indexed account, uint256 amount);

    /// @notice From now on an account is filled up to `allowance` wei, with at most that much per `period` seconds.
    event FeesChanged(uint128 allowance, uint64 period);

    /// @notice This chain has no precompile at `precompile`.
    error ChainPermissionsMissing(address precompile);

    /// @notice `account` holds `role` on the chain's list, by a vote on the list itself: only such a vote takes it away.
    error ChainPermissionsNotManaged(address account, uint256 role);

    /// @notice The chain's list took a change of `account` without an error, but did not make it.
    error ChainPermissionsNotSet(address account);

    /// @notice `account` is not on the chain's list, so gets nothing for fees.
    error ChainPermissionsNotAllowed(address account);

    /// @notice The allowance or the period is zero.
    error ChainPermissionsInvalidFees();

    /// @notice Puts `account` on the chain's list, if it is not there, and fuels it; `ParticipantRegistry` only.
    function allow(address account) external;

    /// @notice Takes `account` off the chain's list; `ParticipantRegistry` only. What it has for fees, it cannot spend.
    function revoke(address account) external;

    /// @notice Fills the fees of an account that is on the list up to the allowance, within what is left of it in this
    /// period. Anyone may call: who can send a transaction is a member, and the bound is the account's own.
    /// @dev A member that has run dry cannot call for itself, so any other may.
    function refuel(address account) external;

    /// @notice Changes allowance (wei) and period (seconds), neither zero; council only.
    function setFees(uint128 allowance, uint64 period) external;

    /// @notice True when the chain takes transactions from `account`.
    function isAllowed(address account) external view returns (bool);

    /// @notice What an account is filled up to (wei), and for how long that has to do (seconds); zeros where fees are not
    /// the members' to give.
    function fees() external view returns (uint128 allowance, uint64 period);
}
