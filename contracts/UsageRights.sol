// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {OrgId, ArtifactId, GrantId, Refusal, Level} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {IParticipantRegistry, ROLE_STEWARD, ROLE_PARTNER} from "./IParticipantRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";
import {IUsageRights} from "./IUsageRights.sol";

/// @title UsageRights
/// @notice Requests and grants, one record each; revoking everything on an artifact or of a grantee moves one counter.
contract UsageRights is IUsageRights, AccessManaged {
    using EventSeries for EventSeries.Series;

    struct Record {
        GrantStatus status;
        uint32 used;
        /// How often everything on the artifact had been revoked when the grant was made; the same for the grantee.
        uint64 artifactRevocation;
        uint64 granteeRevocation;
        ArtifactId artifactId;
        OrgId steward;
        OrgId grantee;
        bytes32 purpose;
        GrantTerms terms;
    }

    uint256 private constant MAX_KERNELS = 16;

    IParticipantRegistry private immutable PARTICIPANTS;
    ILineageRegistry private immutable LINEAGE;

    uint256 private _requests;
    mapping(GrantId grantId => Record) private _records;
    mapping(GrantId grantId => EventSeries.Series) private _series;
    mapping(ArtifactId artifactId => uint64) private _artifactRevocations;
    mapping(OrgId steward => mapping(OrgId grantee => uint64)) private _granteeRevocations;

    constructor(
        address authority,
        IParticipantRegistry participants,
        ILineageRegistry lineage
    ) AccessManaged(authority) {
        PARTICIPANTS = participants;
        LINEAGE = lineage;
    }

    /// @inheritdoc IUsageRights
    function requestUsage(
        ArtifactId artifactId,
        bytes32 purpose,
        GrantTerms calldata terms
    ) external returns (GrantId grantId) {
        OrgId grantee = PARTICIPANTS.requireAuthority(msg.sender, ROLE_PARTNER);
        ILineageRegistry.Artifact memory artifact = LINEAGE.artifact(artifactId);
        if (purpose == 0 || purpose != artifact.consentScope) {
            revert UsageRightsInvalidPurpose(purpose, artifact.consentScope);
        }
        grantId = GrantId.wrap(keccak256(abi.encode(artifactId, grantee, _requests)));
        if (terms.kernels.length > MAX_KERNELS) revert UsageRightsInvalidTerms(grantId);

        ++_requests;
        Record storage record = _records[grantId];
        record.status = GrantStatus.Requested;
        record.artifactId = artifactId;
        record.steward = artifact.steward;
        record.grantee = grantee;
        record.purpose = purpose;
        (uint64 sequence, bytes32 head) = _series[grantId].advance(
            UsageRequested.selector,
            abi.encode(grantId, artifactId, grantee, purpose, terms)
        );
        emit UsageRequested(grantId, artifactId, grantee, purpose, terms, sequence, head);
    }

    /// @inheritdoc IUsageRights
    function grantUsage(GrantId grantId, GrantTerms calldata terms) external {
        Record storage record = _requireSteward(grantId, ROLE_STEWARD);
        _requireRequested(grantId, record);
        bool valid = terms.kernels.length <= MAX_KERNELS &&
            terms.expiresAt > block.timestamp &&
            terms.level == Level.Replicated &&
            terms.replicas != 0;
        if (!valid) revert UsageRightsInvalidTerms(grantId);

        record.status = GrantStatus.Granted;
        record.artifactRevocation = _artifactRevocations[record.artifactId];
        record.granteeRevocation = _granteeRevocations[record.steward][record.grantee];
        record.terms = terms;
        (uint64 sequence, bytes32 head) = _series[grantId].advance(
            UsageGranted.selector,
            abi.encode(grantId, terms)
        );
        emit UsageGranted(grantId, terms, sequence, head);
    }

    /// @inheritdoc IUsageRights
    function denyUsage(GrantId grantId, Refusal reason) external {
        Record storage record = _requireSteward(grantId, 0);
        _requireRequested(grantId, record);
        if (reason == Refusal.None) revert UsageRightsReasonMissing(grantId);

        record.status = GrantStatus.Denied;
        (uint64 sequence, bytes32 head) = _series[grantId].advance(
            UsageDenied.selector,
            abi.encode(grantId, reason)
        );
        emit UsageDenied(grantId, reason, sequence, head);
    }

    /// @inheritdoc IUsageRights
    function revokeUsage(GrantId grantId) external {
        Record storage record = _requireSteward(grantId, 0);
        GrantStatus status = _status(record);
        if (status != GrantStatus.Granted) revert UsageRightsNotGranted(grantId, status);

        record.status = GrantStatus.Revoked;
        (uint64 sequence, bytes32 head) = _series[grantId].advance(UsageRevoked.selector, abi.encode(grantId));
        emit UsageRevoked(grantId, sequence, head);
    }

    /// @inheritdoc IUsageRights
    function revokeArtifact(ArtifactId artifactId) external {
        OrgId caller = PARTICIPANTS.requireAuthority(msg.sender, 0);
        if (LINEAGE.artifact(artifactId).steward != caller) revert UsageRightsNotSteward(artifactId, msg.sender);

        uint64 revocation = ++_artifactRevocations[artifactId];
        emit ArtifactUsageRevoked(artifactId, revocation);
    }

    /// @inheritdoc IUsageRights
    function revokeGrantee(OrgId grantee) external {
        OrgId steward = PARTICIPANTS.requireAuthority(msg.sender, 0);

        uint64 revocation = ++_granteeRevocations[steward][grantee];
        emit GranteeUsageRevoked(steward, grantee, revocation);
    }

    /// @inheritdoc IUsageRights
    function consumeUse(GrantId grantId) external restricted {
        Record storage record = _records[grantId];
        Refusal refusal = _standing(record);
        if (refusal == Refusal.None && record.used >= record.terms.uses) refusal = Refusal.UsesExhausted;
        if (refusal != Refusal.None) revert UsageRightsRefused(grantId, refusal);

        uint32 used = ++record.used;
        (uint64 sequence, bytes32 head) = _series[grantId].advance(
            UsageConsumed.selector,
            abi.encode(grantId, used)
        );
        emit UsageConsumed(grantId, used, sequence, head);
    }

    /// @inheritdoc IUsageRights
    function restoreUse(GrantId grantId) external restricted {
        Record storage record = _requireKnown(grantId);
        if (record.used == 0) revert UsageRightsNothingToRestore(grantId);

        uint32 used = --record.used;
        (uint64 sequence, bytes32 head) = _series[grantId].advance(
            UsageRestored.selector,
            abi.encode(grantId, used)
        );
        emit UsageRestored(grantId, used, sequence, head);
    }

    /// @inheritdoc IUsageRights
    function grant(GrantId grantId) external view returns (Grant memory) {
        Record storage record = _records[grantId];
        return
            Grant({
                artifactId: record.artifactId,
                grantee: record.grantee,
                purpose: record.purpose,
                status: _status(record),
                used: record.used,
                terms: record.terms
            });
    }

    /// @inheritdoc IUsageRights
    function evaluate(
        GrantId grantId,
        OrgId grantee,
        ArtifactId artifactId,
        bytes32 purpose,
        bytes32 kernelId,
        bool rowLevel
    ) external view returns (Refusal) {
        Record storage record = _records[grantId];
        Refusal refusal = _standing(record);
        if (refusal != Refusal.None) return refusal;
        if (record.used >= record.terms.uses) return Refusal.UsesExhausted;
        if (record.grantee != grantee) return Refusal.GranteeMismatch;
        if (ArtifactId.unwrap(record.artifactId) != ArtifactId.unwrap(artifactId)) return Refusal.ArtifactMismatch;
        if (record.purpose != purpose) return Refusal.PurposeNotGranted;
        if (!_lists(record.terms.kernels, kernelId)) return Refusal.KernelNotGranted;
        if (rowLevel && !record.terms.rowLevel) return Refusal.RowLevelNotGranted;
        return Refusal.None;
    }

    /// @inheritdoc IUsageRights
    function standing(GrantId grantId) external view returns (Refusal) {
        return _standing(_records[grantId]);
    }

    /// @inheritdoc IUsageRights
    function seriesHead(GrantId grantId) external view returns (uint64 length, bytes32 head) {
        return _series[grantId].end();
    }

    function _requireSteward(GrantId grantId, uint16 role) private view returns (Record storage record) {
        OrgId caller = PARTICIPANTS.requireAuthority(msg.sender, role);
        record = _requireKnown(grantId);
        if (record.steward != caller) revert UsageRightsNotSteward(record.artifactId, msg.sender);
    }

    function _requireKnown(GrantId grantId) private view returns (Record storage record) {
        record = _records[grantId];
        if (record.status == GrantStatus.None) revert UsageRightsUnknown(grantId);
    }

    function _requireRequested(GrantId grantId, Record storage record) private view {
        if (record.status != GrantStatus.Requested) {
            revert UsageRightsNotRequested(grantId, _status(record));
        }
    }

    function _status(Record storage record) private view returns (GrantStatus) {
        if (record.status != GrantStatus.Granted) return record.status;
        bool revoked = record.artifactRevocation != _artifactRevocations[record.artifactId] ||
            record.granteeRevocation != _granteeRevocations[record.steward][record.grantee];
        return revoked ? GrantStatus.Revoked : GrantStatus.Granted;
    }

    function _standing(Record storage record) private view returns (Refusal) {
        GrantStatus status = _status(record);
        if (status == GrantStatus.None) return Refusal.GrantUnknown;
        if (status == GrantStatus.Revoked) return Refusal.GrantRevoked;
        if (status != GrantStatus.Granted) return Refusal.GrantNotOpen;
        return block.timestamp < record.terms.expiresAt ? Refusal.None : Refusal.GrantExpired;
    }

    function _lists(bytes32[] storage kernels, bytes32 kernelId) private view returns (bool) {
        uint256 count = kernels.length;
        for (uint256 i = 0; i < count; ++i) {
            if (kernels[i] == kernelId) return true;
        }
        return false;
    }
}
