// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {ArtifactId} from "./Ids.sol";

/// @title IPrivacyBudget
/// @notice zCDP accounting in millionths of rho, per bundle jointly over all partners; `IUsageRights` counts per grant.
/// @dev reserved + spent never exceeds the total. What a job reserves is settled (spent for good) when decryption is
/// announced, or refunded before that; never both, never after. The job ledger's events say which: `JobPosted` reserves the
/// request's rho, `ReleaseOpened` settles it, `JobEnded` refunds it unless it leaves `Opened`.
interface IPrivacyBudget {
    struct Account {
        uint64 total;
        uint64 reserved;
        uint64 spent;
    }

    /// @notice The bundle's total is `totalRhoMicro` from here on.
    event BudgetSet(ArtifactId indexed artifactId, uint64 totalRhoMicro);

    /// @notice `caller` is not the authority of the bundle's steward.
    error PrivacyBudgetNotSteward(ArtifactId artifactId, address caller);

    /// @notice `caller` is not the job ledger.
    error PrivacyBudgetNotJobLedger(address caller);

    /// @notice `committed` is reserved or spent already.
    error PrivacyBudgetBelowCommitted(ArtifactId artifactId, uint64 total, uint64 committed);

    /// @notice The bundle has only `available` left.
    error PrivacyBudgetExceeded(ArtifactId artifactId, uint64 asked, uint64 available);

    /// @notice The bundle has less than `rhoMicro` reserved.
    error PrivacyBudgetNotReserved(ArtifactId artifactId, uint64 rhoMicro);

    /// @notice The bundle's steward sets the total; not below what is reserved and spent.
    function setBudget(ArtifactId artifactId, uint64 totalRhoMicro) external;

    /// @notice Sets rho aside for a job; job ledger only.
    function reserve(ArtifactId artifactId, uint64 rhoMicro) external;

    /// @notice Spends for good what a job reserved; job ledger only.
    function settle(ArtifactId artifactId, uint64 rhoMicro) external;

    /// @notice Gives back what a job reserved; job ledger only.
    function refund(ArtifactId artifactId, uint64 rhoMicro) external;

    /// @notice The bundle's joint account over all partners, in millionths of rho.
    function account(ArtifactId artifactId) external view returns (Account memory);

    /// @notice What of the bundle's total is neither reserved nor spent.
    function available(ArtifactId artifactId) external view returns (uint64);
}
