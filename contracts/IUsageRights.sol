// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, ArtifactId, GrantId, Refusal, Level} from "./Ids.sol";

/// @title IUsageRights
/// @notice Who may run which kernels on which bundle for which purpose, how often, until when. Default deny.
/// @dev What jobs take from a grant and give back stands in the job ledger's events: `JobPosted` takes one use and the
/// request's rho, `JobEnded` gives both back unless it leaves `Opened`.
interface IUsageRights {
    enum GrantStatus {
        None,
        Requested,
        Granted,
        Denied,
        Revoked
    }

    struct GrantTerms {
        /// Kernel ids allowed; an empty list allows none. At most 16.
        bytes32[] kernels;
        /// Number of jobs.
        uint32 uses;
        /// Unix seconds; the grant is void at and after this time.
        uint64 expiresAt;
        /// Privacy budget of the grant under zCDP, in millionths of rho.
        uint64 rhoMicro;
        /// Fewest consenting subjects that a job may aggregate.
        uint32 minCohort;
        /// Level below which nothing is decrypted; must be `Replicated`.
        Level level;
        /// Verifiers that must agree; at least 1.
        uint8 replicas;
        /// Whether per-row results may be released.
        bool rowLevel;
    }

    struct Grant {
        ArtifactId artifactId;
        OrgId grantee;
        bytes32 purpose;
        GrantStatus status;
        uint32 used;
        /// What the steward granted; empty until then (what was asked stands in `UsageRequested`).
        GrantTerms terms;
    }

    /// @notice What a grant asks of a job, and leaves to it.
    struct Limits {
        uint32 minCohort;
        uint8 replicas;
        /// Millionths of rho neither reserved nor spent under the grant.
        uint64 rhoMicro;
    }

    /// @notice A partner asked; first event of the grant's series; `terms` are what it asks for.
    event UsageRequested(
        GrantId indexed grantId,
        ArtifactId indexed artifactId,
        OrgId indexed grantee,
        bytes32 purpose,
        GrantTerms terms,
        uint64 sequence,
        bytes32 head
    );
    /// @notice The steward granted, on these terms.
    event UsageGranted(GrantId indexed grantId, GrantTerms terms, uint64 sequence, bytes32 head);
    /// @notice The steward refused the request.
    event UsageDenied(GrantId indexed grantId, Refusal reason, uint64 sequence, bytes32 head);
    /// @notice The steward took this grant back.
    event UsageRevoked(GrantId indexed grantId, uint64 sequence, bytes32 head);
    /// @notice Every grant on the artifact decided before this event is revoked.
    event ArtifactUsageRevoked(ArtifactId indexed artifactId, uint32 revocation);
    /// @notice Every grant of `steward` to `grantee` decided before this event is revoked.
    event GranteeUsageRevoked(OrgId indexed steward, OrgId indexed grantee, uint32 revocation);

    /// @notice Nobody ever made this request.
    error UsageRightsUnknown(GrantId grantId);

    /// @notice `caller` is not the authority of the bundle's steward.
    error UsageRightsNotSteward(ArtifactId artifactId, address caller);

    /// @notice The request was decided already.
    error UsageRightsNotRequested(GrantId grantId, GrantStatus status);

    /// @notice There is no live grant to take back.
    error UsageRightsNotGranted(GrantId grantId, GrantStatus status);

    /// @notice The terms break the rules of `grantUsage`, or list too many kernels.
    error UsageRightsInvalidTerms(GrantId grantId);

    /// @notice The bundle's rows were consented for `consentScope` (zero: no such bundle), not for `purpose`.
    error UsageRightsInvalidPurpose(bytes32 purpose, bytes32 consentScope);

    /// @notice The grant does not cover one more use.
    error UsageRightsRefused(GrantId grantId, Refusal reason);

    /// @notice A denial must say why.
    error UsageRightsReasonMissing(GrantId grantId);

    /// @notice `caller` is not the job ledger.
    error UsageRightsNotJobLedger(address caller);

    /// @notice No use of this grant, or not so much rho, is counted.
    error UsageRightsNothingToRestore(GrantId grantId);

    /// @notice A partner (authority) asks; `purpose` must be the bundle's consent scope. Terms are what it asks for;
    /// at most 16 kernels.
    /// @return grantId `keccak256(abi.encode(artifactId, grantee, n))`, n = number of requests ever made before.
    function requestUsage(
        ArtifactId artifactId,
        bytes32 purpose,
        GrantTerms calldata terms
    ) external returns (GrantId grantId);

    /// @notice The bundle's steward grants, on its own terms: expiry in the future, `Replicated`, replicas at least 1,
    /// at most 16 kernels.
    function grantUsage(GrantId grantId, GrantTerms calldata terms) external;

    /// @notice The bundle's steward refuses; `reason` is not `None`.
    function denyUsage(GrantId grantId, Refusal reason) external;

    /// @notice The bundle's steward takes one grant back.
    function revokeUsage(GrantId grantId) external;

    /// @notice The steward takes back every grant on a bundle, any number, in one call.
    function revokeArtifact(ArtifactId artifactId) external;

    /// @notice The calling member takes back every grant to `grantee` on any of its bundles, any number, in one call.
    function revokeGrantee(OrgId grantee) external;

    /// @notice Counts one use and sets `rhoMicro` aside; job ledger only; reverts when the grant does not stand, or its
    /// uses or its budget are exhausted.
    function consumeUse(GrantId grantId, uint64 rhoMicro) external;

    /// @notice Gives one use and its rho back for a job that ended before decryption; job ledger only.
    function restoreUse(GrantId grantId, uint64 rhoMicro) external;

    /// @notice The grant's record; `status` is `Revoked` after any of the three ways of revoking. All fields are empty when
    /// nobody made this request.
    function grant(GrantId grantId) external view returns (Grant memory);

    /// @notice Reserved plus spent under one grant, in millionths of rho.
    function committedUnder(GrantId grantId) external view returns (uint64);

    /// @notice Why a job could not run under this grant now; `None` when it can. Checks, in this order: `standing`, uses,
    /// grantee, artifact, purpose, kernel, row level. `limits` are empty unless it can.
    function evaluate(
        GrantId grantId,
        OrgId grantee,
        ArtifactId artifactId,
        bytes32 purpose,
        bytes32 kernelId,
        bool rowLevel
    ) external view returns (Refusal refusal, Limits memory limits);

    /// @notice Whether the grant still stands (granted, not revoked by any of the three ways, not expired), uses aside;
    /// and the fewest consenting subjects that it asks for.
    function standing(GrantId grantId) external view returns (Refusal refusal, uint32 minCohort);

    /// @notice Length of the grant's series and head after its last event; both 0 while there is none. Whoever holds
    /// the events up to a block has all of them only if they end in what this says at that block.
    /// `ArtifactUsageRevoked` and `GranteeUsageRevoked` belong to no series; `grant` tells their effect.
    function seriesHead(GrantId grantId) external view returns (uint64 length, bytes32 head);
}
