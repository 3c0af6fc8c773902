// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {IParticipantRegistry, ROLE_STEWARD} from "./IParticipantRegistry.sol";
import {IConsentRegistry} from "./IConsentRegistry.sol";

/// @title ConsentRegistry
/// @notice The consent epoch in force per steward and scope; earlier ones stand in events only.
contract ConsentRegistry is IConsentRegistry {
    using EventSeries for EventSeries.Series;

    IParticipantRegistry private immutable PARTICIPANTS;

    mapping(OrgId steward => mapping(bytes32 scope => ConsentEpoch)) private _epochs;
    mapping(OrgId steward => mapping(bytes32 scope => EventSeries.Series)) private _series;

    constructor(IParticipantRegistry participants) {
        PARTICIPANTS = participants;
    }

    /// @inheritdoc IConsentRegistry
    function anchorEpoch(
        bytes32 scope,
        uint64 epoch,
        bytes32 consentRoot,
        bytes32 statusDigest,
        uint32 cohortFloor
    ) external {
        OrgId steward = PARTICIPANTS.requireAuthority(msg.sender, ROLE_STEWARD);
        if (scope == 0 || consentRoot == 0 || statusDigest == 0) revert ConsentRegistryInvalidEpoch(scope);
        if (!_onScale(cohortFloor)) revert ConsentRegistryCohortNotOnScale(cohortFloor);
        uint64 expected = _epochs[steward][scope].epoch + 1;
        if (epoch != expected) revert ConsentRegistryEpochNotNext(expected, epoch);

        _epochs[steward][scope] = ConsentEpoch({
            epoch: epoch,
            anchoredAt: uint64(block.timestamp),
            cohortFloor: cohortFloor,
            consentRoot: consentRoot,
            statusDigest: statusDigest
        });
        (uint64 sequence, bytes32 head) = _series[steward][scope].advance(
            ConsentEpochAnchored.selector,
            abi.encode(steward, scope, epoch, consentRoot, statusDigest, cohortFloor)
        );
        emit ConsentEpochAnchored(
            steward,
            scope,
            epoch,
            consentRoot,
            statusDigest,
            cohortFloor,
            sequence,
            head
        );
    }

    /// @inheritdoc IConsentRegistry
    function currentEpoch(OrgId steward, bytes32 scope) external view returns (ConsentEpoch memory) {
        return _epochs[steward][scope];
    }

    /// @inheritdoc IConsentRegistry
    function inForce(OrgId steward, bytes32 scope) external view returns (uint64 epoch, uint32 cohortFloor) {
        ConsentEpoch storage current = _epochs[steward][scope];
        return (current.epoch, current.cohortFloor);
    }

    /// @inheritdoc IConsentRegistry
    function seriesHead(OrgId steward, bytes32 scope) external view returns (uint64 length, bytes32 head) {
        return _series[steward][scope].end();
    }

    /// @dev 0, and 1, 2 or 5 times a power of ten from 10 on.
    function _onScale(uint32 floor) private pure returns (bool) {
        if (floor == 0) return true;
        if (floor < 10) return false;
        while (floor % 10 == 0) floor /= 10;
        return floor == 1 || floor == 2 || floor == 5;
    }
}
