// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId} from "./Ids.sol";

/// @title IConsentRegistry
/// @notice Per steward and purpose one series of consent epochs: roots and digests only, whatever the number of subjects.
interface IConsentRegistry {
    struct ConsentEpoch {
        uint64 epoch;
        uint64 anchoredAt;
        /// Lower bound of the number of consenting subjects, on the scale 0, 10, 20, 50, 100, 200, 500, ...
        uint32 cohortFloor;
        /// Merkle root over the salted, pseudonymous consent leaves.
        bytes32 consentRoot;
        /// sha2-256 digest of the block with the status bitstring.
        bytes32 statusDigest;
    }

    /// @notice An epoch came into force; it replaces the one before it.
    event ConsentEpochAnchored(
        OrgId indexed steward,
        bytes32 indexed scope,
        uint64 indexed epoch,
        bytes32 consentRoot,
        bytes32 statusDigest,
        uint32 cohortFloor,
        uint64 sequence,
        bytes32 head
    );

    /// @notice Epochs leave no gap and never go back.
    error ConsentRegistryEpochNotNext(uint64 expected, uint64 given);

    /// @notice The scope, the root or the digest is zero.
    error ConsentRegistryInvalidEpoch(bytes32 scope);

    /// @notice An exact count would say too much; the floor must stand on the scale.
    error ConsentRegistryCohortNotOnScale(uint32 cohortFloor);

    /// @notice The caller's organisation (authority, role steward) anchors the next epoch of its series for `scope`;
    /// epochs start at 1 and grow by one.
    function anchorEpoch(
        bytes32 scope,
        uint64 epoch,
        bytes32 consentRoot,
        bytes32 statusDigest,
        uint32 cohortFloor
    ) external;

    /// @notice The epoch in force; `epoch` is 0 when none was anchored.
    function currentEpoch(OrgId steward, bytes32 scope) external view returns (ConsentEpoch memory);

    /// @notice Number and cohort floor of the epoch in force; both 0 when none was anchored.
    function inForce(OrgId steward, bytes32 scope) external view returns (uint64 epoch, uint32 cohortFloor);

    /// @notice Length of the steward's series for `scope` and head after its last event; both 0 while there is none.
    /// Whoever holds the events up to a block has all of them only if they end in what this says at that block.
    function seriesHead(OrgId steward, bytes32 scope) external view returns (uint64 length, bytes32 head);
}
