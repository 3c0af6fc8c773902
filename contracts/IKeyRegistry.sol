// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, KeyId} from "./Ids.sol";

/// @title IKeyRegistry
/// @notice Homomorphic key domains: who keeps the secret, under which parameters, and whether it may still be used.
interface IKeyRegistry {
    enum KeyStatus {
        None,
        Active,
        Retired,
        Compromised
    }

    struct KeyDomain {
        OrgId custodian;
        bytes32 parametersId;
        /// sha2-256 digest of the public material's block.
        bytes32 publicDigest;
        /// Which of its custodian's key domains this is: 1 for the first, one more for each rotation.
        uint32 epoch;
        uint64 registeredAt;
        KeyStatus status;
    }

    /// @notice New key domains may use `parametersId`, which offers `securityBits` bits.
    event ParametersAllowed(bytes32 indexed parametersId, uint16 securityBits);
    /// @notice No new key domain may use `parametersId`.
    event ParametersDisallowed(bytes32 indexed parametersId);
    /// @notice A key domain became active; enough to rebuild its record.
    event KeyDomainRegistered(
        KeyId indexed keyId,
        OrgId indexed custodian,
        bytes32 indexed parametersId,
        bytes32 publicDigest,
        uint32 epoch
    );
    /// @notice The domain was retired or marked as compromised.
    event KeyStatusChanged(KeyId indexed keyId, KeyStatus status);

    /// @notice The parameters offer fewer than 128 bits.
    error KeyRegistryWeakParameters(bytes32 parametersId, uint16 securityBits);

    /// @notice The parameters are not on the list.
    error KeyRegistryParametersNotAllowed(bytes32 parametersId);

    /// @notice The key id or the digest of the public material is zero.
    error KeyRegistryInvalidDomain(KeyId keyId);

    /// @notice The key id is registered already.
    error KeyRegistryAlreadyKnown(KeyId keyId);

    /// @notice No domain has this key id.
    error KeyRegistryUnknown(KeyId keyId);

    /// @notice `caller` is not the authority of the domain's custodian.
    error KeyRegistryNotCustodian(KeyId keyId, address caller);

    /// @notice The domain's `status` does not allow this change any more.
    error KeyRegistryNotActive(KeyId keyId, KeyStatus status);

    /// @notice Puts a parameter set on the list; council only; at least 128 bits.
    function allowParameters(bytes32 parametersId, uint16 securityBits) external;

    /// @notice Takes a parameter set off the list; council only. Existing domains stay as they are.
    function disallowParameters(bytes32 parametersId) external;

    /// @notice Registers a key domain of which the caller's organisation (role custodian) keeps the secret.
    function registerKeyDomain(KeyId keyId, bytes32 parametersId, bytes32 publicDigest) external;

    /// @notice No new bundles or jobs under this key; custodian only; from `Active` only.
    function retire(KeyId keyId) external;

    /// @notice The secret may be known to others; custodian or council; final.
    function markCompromised(KeyId keyId) external;

    /// @notice Whether new key domains may use `parametersId`.
    function isAllowed(bytes32 parametersId) external view returns (bool);
    /// @notice The domain's record; all fields empty when it is not registered.
    function keyDomain(KeyId keyId) external view returns (KeyDomain memory);

    /// @notice True when the domain is active and its custodian an active member that still holds the role custodian.
    function isUsable(KeyId keyId) external view returns (bool);
}
