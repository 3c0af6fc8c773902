// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {ArtifactId, GrantId, JobId} from "./Ids.sol";

/// @title IPrivacyBudget
/// @notice zCDP accounting in millionths of rho: per bundle jointly over all partners, and per grant.
/// @dev reserved + spent never exceeds the total. A reservation is settled (spent for good) when decryption is announced,
/// or refunded before that; never both, never after.
interface IPrivacyBudget {
    struct Account {
        uint64 total;
        uint64 reserved;
        uint64 spent;
    }

    /// @notice The bundle's total is `totalRhoMicro` from here on.
    event BudgetSet(ArtifactId indexed artifactId, uint64 totalRhoMicro);
    /// @notice A job was admitted and its cost set aside.
    event BudgetReserved(JobId indexed jobId, ArtifactId indexed artifactId, GrantId indexed grantId, uint64 rhoMicro);
    /// @notice Decryption was announced; the cost is spent for good.
    event BudgetSettled(JobId indexed jobId, ArtifactId indexed artifactId, GrantId indexed grantId, uint64 rhoMicro);
    /// @notice The job ended before decryption; the cost is available again.
    event BudgetRefunded(JobId indexed jobId, ArtifactId indexed artifactId, GrantId indexed grantId, uint64 rhoMicro);

    /// @notice `caller` is not the authority of the bundle's steward.
    error PrivacyBudgetNotSteward(ArtifactId artifactId, address caller);

    /// @notice `committed` is reserved or spent already.
    error PrivacyBudgetBelowCommitted(ArtifactId artifactId, uint64 total, uint64 committed);

    /// @notice `available` is the smaller of what the bundle and the grant have left.
    error PrivacyBudgetExceeded(ArtifactId artifactId, uint64 asked, uint64 available);

    /// @notice The job had its reservation before, whatever became of it.
    error PrivacyBudgetAlreadyReserved(JobId jobId);

    /// @notice The job holds no reservation, or not any more.
    error PrivacyBudgetNotReserved(JobId jobId);

    /// @notice The bundle's steward sets the total; not below what is reserved and spent.
    function setBudget(ArtifactId artifactId, uint64 totalRhoMicro) external;

    /// @notice Sets rho aside for a job; job ledger only.
    function reserve(JobId jobId, ArtifactId artifactId, GrantId grantId, uint64 rhoMicro) external;

    /// @notice Spends the reservation for good; job ledger only.
    function settle(JobId jobId) external;

    /// @notice Gives the reservation back; job ledger only.
    function refund(JobId jobId) external;

    /// @notice The bundle's joint account over all partners, in millionths of rho.
    function account(ArtifactId artifactId) external view returns (Account memory);

    /// @notice Reserved plus spent under one grant, in millionths of rho.
    function committedUnder(GrantId grantId) external view returns (uint64);

    /// @notice Whether `reserve` would succeed, given the grant's own limit.
    function affordable(ArtifactId artifactId, GrantId grantId, uint64 rhoMicro) external view returns (bool);
}
