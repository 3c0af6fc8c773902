// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, ArtifactId, KeyId, JobId, Refusal} from "./Ids.sol";

/// @title ILineageRegistry
/// @notice The graph of artifacts: bundles that stewards register, results and releases that jobs leave behind.
/// @dev Results and releases have ids here and nothing else: the job ledger's events say all about them. A `JobVerified`
/// makes a result, whose parent is the job's bundle; a `JobReleased` makes a release, whose parent is the result.
interface ILineageRegistry {
    enum ArtifactKind {
        None,
        Bundle,
        Result,
        Release
    }

    enum FreezeState {
        None,
        BySteward,
        ByCouncil
    }

    struct Artifact {
        ArtifactKind kind;
        /// Who answers for it.
        OrgId steward;
        KeyId keyId;
        /// sha2-256 digest of the manifest's block (DAG-CBOR); the CID follows from it.
        bytes32 contentDigest;
        /// sha2-256 digest of the policy's block.
        bytes32 policyDigest;
        uint32 policyVersion;
        /// Purpose whose consent series governs the rows.
        bytes32 consentScope;
        /// Unix seconds; the artifact is unusable at and after this time.
        uint64 retainUntil;
        uint64 registeredAt;
        FreezeState frozen;
    }

    struct BundleRegistration {
        bytes32 contentDigest;
        ArtifactId[] parents;
        KeyId keyId;
        bytes32 policyDigest;
        bytes32 consentScope;
        uint64 retainUntil;
    }

    /// @notice A bundle entered the graph; first event of its series.
    event BundleRegistered(
        ArtifactId indexed artifactId,
        OrgId indexed steward,
        BundleRegistration registration,
        uint64 sequence,
        bytes32 head
    );
    /// @notice The bundle's policy was replaced.
    event PolicyChanged(
        ArtifactId indexed artifactId,
        bytes32 policyDigest,
        uint32 policyVersion,
        uint64 sequence,
        bytes32 head
    );
    /// @notice The artifact was frozen or thawed; `frozen` is the state from here on.
    event ArtifactFrozen(ArtifactId indexed artifactId, FreezeState frozen, uint64 sequence, bytes32 head);

    /// @notice The artifact is registered already.
    error LineageRegistryAlreadyKnown(ArtifactId artifactId);

    /// @notice No artifact, or no bundle where one is needed, has this id.
    error LineageRegistryUnknown(ArtifactId artifactId);

    /// @notice A parent is not registered.
    error LineageRegistryUnknownParent(ArtifactId parent);

    /// @notice More than 32 parents.
    error LineageRegistryTooManyParents(uint256 parents);

    /// @notice The key domain is not active, or its custodian is not.
    error LineageRegistryKeyNotUsable(KeyId keyId);

    /// @notice Another organisation, `custodian`, keeps the secret of the key domain.
    error LineageRegistryKeyNotOwn(KeyId keyId, OrgId custodian);

    /// @notice A digest, the scope or the kind is empty, or the retention not in the future.
    error LineageRegistryInvalidRegistration(bytes32 contentDigest);

    /// @notice `caller` is neither the authority of the artifact's steward nor, where that counts, the council.
    error LineageRegistryNotSteward(ArtifactId artifactId, address caller);

    /// @notice Only the council lifts its own freeze.
    error LineageRegistryFrozenByCouncil(ArtifactId artifactId);

    /// @notice Registers a bundle; the caller's organisation (role steward) answers for it. Policy version starts at 1.
    /// At most 32 parents, all known; digests, scope and retention non-zero, retention in the future; key usable, and
    /// in the caller's own custody: otherwise any steward could register another's sealed rows a second time, under a
    /// policy, consents and grants of its own, and the custodian, who follows the ledger, would decrypt for it.
    /// @return artifactId `keccak256(abi.encode(steward, contentDigest))`.
    function registerBundle(BundleRegistration calldata registration) external returns (ArtifactId artifactId);

    /// @notice Replaces the policy of a bundle; steward only; the version grows by one.
    function setPolicy(ArtifactId artifactId, bytes32 policyDigest) external;

    /// @notice Freezes or thaws; by the steward, or by the council. Each lifts its own freeze only: a steward's freeze
    /// outlasts the council's, and while the council's lasts, the steward may freeze but not thaw. What is no bundle,
    /// such as a job's result (`derivedIdOf`), only the council freezes; a frozen result is never decrypted.
    function setFrozen(ArtifactId artifactId, bool frozen) external;

    /// @notice The id that what a job leaves behind has or would have.
    function derivedIdOf(JobId jobId, ArtifactKind kind) external pure returns (ArtifactId);

    /// @notice The bundle's record; but for `frozen`, all fields are empty when no bundle has this id.
    function artifact(ArtifactId artifactId) external view returns (Artifact memory);

    /// @notice `None` when jobs may use the bundle now. Checks, in this order: a bundle (`ArtifactMismatch`), not frozen,
    /// retained, steward active and still in that role, key usable.
    function usability(ArtifactId artifactId) external view returns (Refusal);

    /// @notice What a job asks about its bundle: `usability`, and whose rows it holds, under which consent and policy.
    function bundle(
        ArtifactId artifactId
    ) external view returns (Refusal refusal, OrgId steward, bytes32 consentScope, uint32 policyVersion);

    /// @notice Who answers for a bundle; zero when no bundle has this id.
    function stewardOf(ArtifactId artifactId) external view returns (OrgId);

    /// @notice Whether the steward or the council froze what has this id.
    function isFrozen(ArtifactId artifactId) external view returns (bool);

    /// @notice Length of the artifact's series and head after its last event; both 0 while there is none. Whoever holds
    /// the events up to a block has all of them only if they end in what this says at that block.
    function seriesHead(ArtifactId artifactId) external view returns (uint64 length, bytes32 head);
}
