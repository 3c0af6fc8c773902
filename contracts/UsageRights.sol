// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, ArtifactId, GrantId, Refusal, Level} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {IJobLedger} from "./IJobLedger.sol";
import {IParticipantRegistry, ROLE_STEWARD, ROLE_PARTNER} from "./IParticipantRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";
import {IUsageRights} from "./IUsageRights.sol";

/// @title UsageRights
/// @notice Requests and grants, one record each; revoking everything on an artifact or of a grantee moves one counter.
contract UsageRights is IUsageRights {
    using EventSeries for EventSeries.Series;

    /// @dev What a job changes stands in the first slot, what it asks for in the second.
    struct Record {
        GrantStatus status;
        bool rowLevel;
        uint32 used;
        uint32 uses;
        uint64 committed;
        uint64 rhoMicro;
        uint64 expiresAt;
        uint32 minCohort;
        Level level;
        uint8 replicas;
        /// How often everything on the artifact had been revoked when the grant was made; the same for the grantee.
        uint32 artifactRevocation;
        uint32 granteeRevocation;
        ArtifactId artifactId;
        OrgId steward;
        OrgId grantee;
        bytes32 purpose;
        bytes32[] kernels;
    }

    uint256 private constant MAX_KERNELS = 16;

    IParticipantRegistry private immutable PARTICIPANTS;
    ILineageRegistry private immutable LINEAGE;
    IJobLedger private immutable JOB_LEDGER;

    uint256 private _requests;
    mapping(GrantId grantId => Record) private _records;
    mapping(GrantId grantId => EventSeries.Series) private _series;
    mapping(ArtifactId artifactId => uint32) private _artifactRevocations;
    mapping(OrgId steward => mapping(OrgId grantee => uint32)) private _granteeRevocations;

    modifier onlyJobLedger() {
        if (msg.sender != address(JOB_LEDGER)) revert UsageRightsNotJobLedger(msg.sender);
        _;
    }

    constructor(IParticipantRegistry participants, ILineageRegistry lineage, IJobLedger jobLedger) {
        PARTICIPANTS = participants;
        LINEAGE = lineage;
        JOB_LEDGER = jobLedger;
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
        record.rowLevel = terms.rowLevel;
        record.uses = terms.uses;
        record.rhoMicro = terms.rhoMicro;
        record.expiresAt = terms.expiresAt;
        record.minCohort = terms.minCohort;
        record.level = terms.level;
        record.replicas = terms.replicas;
        record.kernels = terms.kernels;
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

        uint32 revocation = ++_artifactRevocations[artifactId];
        emit ArtifactUsageRevoked(artifactId, revocation);
    }

    /// @inheritdoc IUsageRights
    function revokeGrantee(OrgId grantee) external {
        OrgId steward = PARTICIPANTS.requireAuthority(msg.sender, 0);

        uint32 revocation = ++_granteeRevocations[steward][grantee];
        emit GranteeUsageRevoked(steward, grantee, revocation);
    }

    /// @inheritdoc IUsageRights
    function consumeUse(GrantId grantId, uint64 rhoMicro) external onlyJobLedger {
        Record storage record = _records[grantId];
        Refusal refusal = _standing(record);
        if (refusal == Refusal.None && record.used >= record.uses) refusal = Refusal.UsesExhausted;
        if (refusal == Refusal.None && rhoMicro > record.rhoMicro - record.committed) refusal = Refusal.BudgetExceeded;
        if (refusal != Refusal.None) revert UsageRightsRefused(grantId, refusal);

        ++record.used;
        record.committed += rhoMicro;
    }

    /// @inheritdoc IUsageRights
    function restoreUse(GrantId grantId, uint64 rhoMicro) external onlyJobLedger {
        Record storage record = _requireKnown(grantId);
        if (record.used == 0 || record.committed < rhoMicro) revert UsageRightsNothingToRestore(grantId);

        --record.used;
        record.committed -= rhoMicro;
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
                terms: GrantTerms({
                    kernels: record.kernels,
                    uses: record.uses,
                    expiresAt: record.expiresAt,
                    rhoMicro: record.rhoMicro,
                    minCohort: record.minCohort,
                    level: record.level,
                    replicas: record.replicas,
                    rowLevel: record.rowLevel
                })
            });
    }

    /// @inheritdoc IUsageRights
    function committedUnder(GrantId grantId) external view returns (uint64) {
        return _records[grantId].committed;
    }

    /// @inheritdoc IUsageRights
    function evaluate(
        GrantId grantId,
        OrgId grantee,
        ArtifactId artifactId,
        bytes32 purpose,
        bytes32 kernelId,
        bool rowLevel
    ) external view returns (Refusal refusal, Limits memory limits) {
        Record storage record = _records[grantId];
        refusal = _standing(record);
        if (refusal != Refusal.None) return (refusal, limits);
        if (record.used >= record.uses) return (Refusal.UsesExhausted, limits);
        if (record.grantee != grantee) return (Refusal.GranteeMismatch, limits);
        bool same = ArtifactId.unwrap(record.artifactId) == ArtifactId.unwrap(artifactId);
        if (!same) return (Refusal.ArtifactMismatch, limits);
        if (record.purpose != purpose) return (Refusal.PurposeNotGranted, limits);
        if (!_lists(record.kernels, kernelId)) return (Refusal.KernelNotGranted, limits);
        if (rowLevel && !record.rowLevel) return (Refusal.RowLevelNotGranted, limits);
        limits = Limits(record.minCohort, record.replicas, record.rhoMicro - record.committed);
    }

    /// @inheritdoc IUsageRights
    function standing(GrantId grantId) external view returns (Refusal refusal, uint32 minCohort) {
        Record storage record = _records[grantId];
        return (_standing(record), record.minCohort);
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
        return block.timestamp < record.expiresAt ? Refusal.None : Refusal.GrantExpired;
    }

    function _lists(bytes32[] storage kernels, bytes32 kernelId) private view returns (bool) {
        uint256 count = kernels.length;
        for (uint256 i = 0; i < count; ++i) {
            if (kernels[i] == kernelId) return true;
        }
        return false;
    }
}
