// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @title IValidatorSet
/// @notice Who signs the chain's blocks, as the members decided: the pin against which an outsider checks finality proofs.
/// @dev Version 0 is the empty set: the chain has no proofs that this network would check. The versions are one series of
/// events (see `EventSeries`), so an outsider that follows them from the founding set knows when one is missing.
interface IValidatorSet {
    /// @notice Version `sequence` of the set of `chain` holds; `publicKeys` and `weights` as given to `replace`.
    event ValidatorSetChanged(
        bytes32 indexed chain,
        bytes publicKeys,
        uint64[] weights,
        uint64 sequence,
        bytes32 head
    );

    /// @notice The set is empty or above 256, a key is not 48 bytes long, or the weights add up to more than 64 bits.
    error ValidatorSetInvalid(uint256 keyBytes, uint256 weights);

    /// @notice The validator at `index` weighs nothing, its key is no compressed point, or it does not follow the one before.
    error ValidatorSetInvalidValidator(uint256 index);

    /// @notice Replaces the set; council only. Takes effect for blocks after the one that holds the change.
    /// @param publicKeys BLS12-381 public keys, compressed to 48 bytes each (so a set of n has 48 n bytes), strictly
    /// ascending by their x coordinate. That is the order in which the chain's signer bit sets count them, and it admits
    /// no key twice. Whether each is a point of the group, no contract checks: verifiers do.
    /// @param weights One for each key, none zero.
    function replace(bytes calldata publicKeys, uint64[] calldata weights) external;

    /// @notice The set in force; version 0, and empty, before the first change.
    function current() external view returns (uint64 version, bytes memory publicKeys, uint64[] memory weights);

    /// @notice Number of changes so far, which is the version in force, and rolling hash after the last; zeros for any
    /// chain but `chain()`.
    function seriesHead(bytes32 chain_) external view returns (uint64 length, bytes32 head);

    /// @notice What finality proofs call the chain (on Subnet-EVM its blockchain id); zero on chains without proofs.
    function chain() external view returns (bytes32);
}
