// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @dev Short ASCII label of an organisation, padded with zeros on the right ("clinic-north").
type OrgId is bytes32;
/// @dev Node of the lineage graph: a bundle, a result or a release.
type ArtifactId is bytes32;
/// @dev Homomorphic key domain; equals the key id that every ciphertext container carries.
type KeyId is bytes32;
/// @dev One request for usage rights and what became of it.
type GrantId is bytes32;
/// @dev One job.
type JobId is bytes32;

using {equalOrg as ==, unequalOrg as !=} for OrgId global;

function equalOrg(OrgId a, OrgId b) pure returns (bool) {
    return OrgId.unwrap(a) == OrgId.unwrap(b);
}

function unequalOrg(OrgId a, OrgId b) pure returns (bool) {
    return OrgId.unwrap(a) != OrgId.unwrap(b);
}

/// @notice Why the network refused; recorded on the ledger, so every value has one plain meaning.
enum Refusal {
    None,
    GrantUnknown,
    GrantNotOpen,
    GrantRevoked,
    GrantExpired,
    UsesExhausted,
    GranteeMismatch,
    ArtifactMismatch,
    PurposeNotGranted,
    KernelNotGranted,
    RowLevelNotGranted,
    ArtifactFrozen,
    RetentionPassed,
    StewardNotActive,
    RequesterNotActive,
    KeyDomainNotActive,
    PolicyVersionStale,
    ConsentEpochStale,
    CohortTooSmall,
    BudgetExceeded,
    NotEnoughVerifiers,
    LevelTooLow,
    PossessionUnproven,
    ResultInvalid,
    CohortsTooClose,
    KeyExhausted
}

/// @notice What stands behind a result, as an honest label. Only `Replicated` is ever decrypted.
enum Level {
    None,
    Claimed,
    Sampled,
    Algebraic,
    Replicated
}
