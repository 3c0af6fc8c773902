// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {OrgId, ArtifactId, GrantId, JobId} from "./Ids.sol";
import {IParticipantRegistry, ROLE_STEWARD} from "./IParticipantRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";
import {IUsageRights} from "./IUsageRights.sol";
import {IPrivacyBudget} from "./IPrivacyBudget.sol";

/// @title PrivacyBudget
/// @notice Accounts per bundle and per grant, and one reservation per job.
contract PrivacyBudget is IPrivacyBudget, AccessManaged {
    enum ReservationStatus {
        None,
        Reserved,
        Closed
    }

    struct Reservation {
        ArtifactId artifactId;
        GrantId grantId;
        uint64 rhoMicro;
        ReservationStatus status;
    }

    IParticipantRegistry private immutable PARTICIPANTS;
    ILineageRegistry private immutable LINEAGE;
    IUsageRights private immutable RIGHTS;

    mapping(ArtifactId artifactId => Account) private _accounts;
    mapping(GrantId grantId => uint64) private _committedUnder;
    mapping(JobId jobId => Reservation) private _reservations;

    constructor(
        address authority,
        IParticipantRegistry participants,
        ILineageRegistry lineage,
        IUsageRights rights
    ) AccessManaged(authority) {
        PARTICIPANTS = participants;
        LINEAGE = lineage;
        RIGHTS = rights;
    }

    /// @inheritdoc IPrivacyBudget
    function setBudget(ArtifactId artifactId, uint64 totalRhoMicro) external {
        OrgId caller = PARTICIPANTS.requireAuthority(msg.sender, ROLE_STEWARD);
        ILineageRegistry.Artifact memory artifact = LINEAGE.artifact(artifactId);
        bool bundle = artifact.kind == ILineageRegistry.ArtifactKind.Bundle;
        if (!bundle || artifact.steward != caller) revert PrivacyBudgetNotSteward(artifactId, msg.sender);
        Account storage joint = _accounts[artifactId];
        uint64 committed = joint.reserved + joint.spent;
        if (totalRhoMicro < committed) revert PrivacyBudgetBelowCommitted(artifactId, totalRhoMicro, committed);

        joint.total = totalRhoMicro;
        emit BudgetSet(artifactId, totalRhoMicro);
    }

    /// @inheritdoc IPrivacyBudget
    function reserve(
        JobId jobId,
        ArtifactId artifactId,
        GrantId grantId,
        uint64 rhoMicro
    ) external restricted {
        if (_reservations[jobId].status != ReservationStatus.None) revert PrivacyBudgetAlreadyReserved(jobId);
        uint64 available = _available(artifactId, grantId);
        if (rhoMicro > available) revert PrivacyBudgetExceeded(artifactId, rhoMicro, available);

        _accounts[artifactId].reserved += rhoMicro;
        _committedUnder[grantId] += rhoMicro;
        _reservations[jobId] = Reservation(artifactId, grantId, rhoMicro, ReservationStatus.Reserved);
        emit BudgetReserved(jobId, artifactId, grantId, rhoMicro);
    }

    /// @inheritdoc IPrivacyBudget
    function settle(JobId jobId) external restricted {
        (ArtifactId artifactId, GrantId grantId, uint64 rhoMicro) = _close(jobId);

        _accounts[artifactId].spent += rhoMicro;
        emit BudgetSettled(jobId, artifactId, grantId, rhoMicro);
    }

    /// @inheritdoc IPrivacyBudget
    function refund(JobId jobId) external restricted {
        (ArtifactId artifactId, GrantId grantId, uint64 rhoMicro) = _close(jobId);

        _committedUnder[grantId] -= rhoMicro;
        emit BudgetRefunded(jobId, artifactId, grantId, rhoMicro);
    }

    /// @inheritdoc IPrivacyBudget
    function account(ArtifactId artifactId) external view returns (Account memory) {
        return _accounts[artifactId];
    }

    /// @inheritdoc IPrivacyBudget
    function committedUnder(GrantId grantId) external view returns (uint64) {
        return _committedUnder[grantId];
    }

    /// @inheritdoc IPrivacyBudget
    function affordable(ArtifactId artifactId, GrantId grantId, uint64 rhoMicro) external view returns (bool) {
        return rhoMicro <= _available(artifactId, grantId);
    }

    function _close(JobId jobId) private returns (ArtifactId artifactId, GrantId grantId, uint64 rhoMicro) {
        Reservation storage reservation = _reservations[jobId];
        if (reservation.status != ReservationStatus.Reserved) revert PrivacyBudgetNotReserved(jobId);
        reservation.status = ReservationStatus.Closed;
        (artifactId, grantId, rhoMicro) = (reservation.artifactId, reservation.grantId, reservation.rhoMicro);
        _accounts[artifactId].reserved -= rhoMicro;
    }

    /// @dev Zero for a grant on another bundle; neither subtraction can underflow, for `reserve` and `setBudget` keep
    /// reserved + spent within the total, and terms never change once granted.
    function _available(ArtifactId artifactId, GrantId grantId) private view returns (uint64) {
        IUsageRights.Grant memory grant = RIGHTS.grant(grantId);
        if (ArtifactId.unwrap(grant.artifactId) != ArtifactId.unwrap(artifactId)) return 0;
        Account storage joint = _accounts[artifactId];
        uint64 ofBundle = joint.total - joint.reserved - joint.spent;
        uint64 ofGrant = grant.terms.rhoMicro - _committedUnder[grantId];
        return ofBundle < ofGrant ? ofBundle : ofGrant;
    }
}
