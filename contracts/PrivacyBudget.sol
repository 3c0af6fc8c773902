// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, ArtifactId} from "./Ids.sol";
import {IJobLedger} from "./IJobLedger.sol";
import {IParticipantRegistry, ROLE_STEWARD} from "./IParticipantRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";
import {IPrivacyBudget} from "./IPrivacyBudget.sol";

/// @title PrivacyBudget
/// @notice One account per bundle. Which job holds which part of what is reserved follows from the job's state.
contract PrivacyBudget is IPrivacyBudget {
    IParticipantRegistry private immutable PARTICIPANTS;
    ILineageRegistry private immutable LINEAGE;
    IJobLedger private immutable JOB_LEDGER;

    mapping(ArtifactId artifactId => Account) private _accounts;

    modifier onlyJobLedger() {
        if (msg.sender != address(JOB_LEDGER)) revert PrivacyBudgetNotJobLedger(msg.sender);
        _;
    }

    constructor(IParticipantRegistry participants, ILineageRegistry lineage, IJobLedger jobLedger) {
        PARTICIPANTS = participants;
        LINEAGE = lineage;
        JOB_LEDGER = jobLedger;
    }

    /// @inheritdoc IPrivacyBudget
    function setBudget(ArtifactId artifactId, uint64 totalRhoMicro) external {
        OrgId caller = PARTICIPANTS.requireAuthority(msg.sender, ROLE_STEWARD);
        if (LINEAGE.stewardOf(artifactId) != caller) revert PrivacyBudgetNotSteward(artifactId, msg.sender);
        Account storage joint = _accounts[artifactId];
        uint64 committed = joint.reserved + joint.spent;
        if (totalRhoMicro < committed) revert PrivacyBudgetBelowCommitted(artifactId, totalRhoMicro, committed);

        joint.total = totalRhoMicro;
        emit BudgetSet(artifactId, totalRhoMicro);
    }

    /// @inheritdoc IPrivacyBudget
    function reserve(ArtifactId artifactId, uint64 rhoMicro) external onlyJobLedger {
        uint64 left = available(artifactId);
        if (rhoMicro > left) revert PrivacyBudgetExceeded(artifactId, rhoMicro, left);

        _accounts[artifactId].reserved += rhoMicro;
    }

    /// @inheritdoc IPrivacyBudget
    function settle(ArtifactId artifactId, uint64 rhoMicro) external onlyJobLedger {
        Account storage joint = _accounts[artifactId];
        if (joint.reserved < rhoMicro) revert PrivacyBudgetNotReserved(artifactId, rhoMicro);

        joint.reserved -= rhoMicro;
        joint.spent += rhoMicro;
    }

    /// @inheritdoc IPrivacyBudget
    function refund(ArtifactId artifactId, uint64 rhoMicro) external onlyJobLedger {
        Account storage joint = _accounts[artifactId];
        if (joint.reserved < rhoMicro) revert PrivacyBudgetNotReserved(artifactId, rhoMicro);

        joint.reserved -= rhoMicro;
    }

    /// @inheritdoc IPrivacyBudget
    function account(ArtifactId artifactId) external view returns (Account memory) {
        return _accounts[artifactId];
    }

    /// @inheritdoc IPrivacyBudget
    function available(ArtifactId artifactId) public view returns (uint64) {
        Account storage joint = _accounts[artifactId];
        return joint.total - joint.reserved - joint.spent;
    }
}
