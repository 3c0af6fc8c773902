// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId} from "./Ids.sol";

/// @dev Bits of `Participant.roles`.
uint16 constant ROLE_STEWARD = 1;
uint16 constant ROLE_CUSTODIAN = 2;
uint16 constant ROLE_PARTNER = 4;
uint16 constant ROLE_COMPUTE = 8;
uint16 constant ROLE_VERIFIER = 16;
uint16 constant ROLE_AUDITOR = 32;
uint16 constant ALL_ROLES = 63;

/// @title IParticipantRegistry
/// @notice Who is a member, with which keys and roles, and where its node is found.
interface IParticipantRegistry {
    enum Status {
        None,
        Active,
        Suspended,
        Removed
    }

    struct Participant {
        OrgId id;
        /// The organisation's authority: votes, registers, grants, posts jobs.
        address account;
        /// The organisation's node: claims, verifies, releases. Never the same key as `account`.
        address nodeAccount;
        uint16 roles;
        Status status;
        /// X25519 public key to which releases are encrypted.
        bytes32 hpkeKey;
        /// libp2p peer id in its binary form.
        bytes peerId;
        /// Multiaddr of the node, without the peer id.
        string endpoint;
    }

    /// @notice A member joined; `participant` is what was stored.
    event ParticipantAdmitted(OrgId indexed id, Participant participant);
    /// @notice A member was suspended, reinstated or removed.
    event ParticipantStatusChanged(OrgId indexed id, Status status);
    /// @notice A member's roles were replaced by `roles`.
    event ParticipantRolesChanged(OrgId indexed id, uint16 roles);
    /// @notice A member's node moved to `endpoint`.
    event ParticipantEndpointChanged(OrgId indexed id, string endpoint);

    /// @notice A field of the record of `id` is empty, too long, or outside its range.
    error ParticipantRegistryInvalidParticipant(OrgId id);

    /// @notice `id` was admitted before, whatever its status now.
    error ParticipantRegistryAlreadyKnown(OrgId id);

    /// @notice `account` belongs to a member already, in either capacity, or serves twice in this record.
    error ParticipantRegistryAccountTaken(address account);

    /// @notice `peerId` belongs to a member already.
    error ParticipantRegistryPeerTaken(bytes peerId);

    /// @notice No member was ever admitted under `id`.
    error ParticipantRegistryUnknown(OrgId id);

    /// @notice `id` was removed, which nothing undoes.
    error ParticipantRegistryFinal(OrgId id);

    /// @notice `account` belongs to no member.
    error ParticipantRegistryNotMember(address account);

    /// @notice `id` is suspended or removed.
    error ParticipantRegistryNotActive(OrgId id);

    /// @notice `id` does not hold `role`.
    error ParticipantRegistryMissingRole(OrgId id, uint16 role);

    /// @notice `account` is the authority of `id`, but its node has to act.
    error ParticipantRegistryNotNode(OrgId id, address account);

    /// @notice `account` is the node of `id`, but its authority has to act.
    error ParticipantRegistryNotAuthority(OrgId id, address account);

    /// @notice Adds a member; council only. `newcomer.status` is ignored and becomes `Active`.
    /// The id must be non-zero, both accounts non-zero, distinct and unused, at least one known role, peer id of 1 to 64
    /// bytes and unused, endpoint at most 256 bytes. In the same transaction the chain itself begins to take transactions
    /// from both accounts, and gives them fees (`IChainPermissions`).
    function admit(Participant calldata newcomer) external;

    /// @notice Suspends, reinstates or removes a member; council only. `Removed` is final; `None` is refused.
    /// In the same transaction the chain itself stops taking transactions from both accounts, or begins to again.
    function setStatus(OrgId id, Status status) external;

    /// @notice Suspends an active member, as `setStatus` does, and leaves any other as it is; for `IReputation` only.
    function suspend(OrgId id) external;

    /// @notice Replaces the roles of a member; council only.
    function setRoles(OrgId id, uint16 roles) external;

    /// @notice A member's node or authority says where its node is found.
    function setEndpoint(string calldata endpoint) external;

    /// @notice The record of `id`; all fields empty when it was never admitted.
    function participant(OrgId id) external view returns (Participant memory);

    /// @notice The organisation that owns `account` in either capacity; zero when none does.
    function organisationOf(address account) external view returns (OrgId);

    /// @notice All ids ever admitted, in order of admission.
    function organisations() external view returns (OrgId[] memory);

    /// @notice True when `id` is a member that is neither suspended nor removed.
    function isActive(OrgId id) external view returns (bool);

    /// @notice Number of active members.
    function activeCount() external view returns (uint256);

    /// @notice Number of active members that hold `role` (a single bit).
    function activeCountWithRole(uint16 role) external view returns (uint256);

    /// @notice True when `id` is active and holds `role`.
    function hasRole(OrgId id, uint16 role) external view returns (bool);

    /// @notice The number of `id`, and how many active members beside it compute and verify.
    function beside(OrgId id) external view returns (uint16 number, uint256 computing, uint256 verifying);

    /// @notice Returns the organisation whose authority `account` is; reverts unless it is active and holds `role`
    /// (0 = any member).
    function requireAuthority(address account, uint16 role) external view returns (OrgId);

    /// @notice The same for the organisation's node account. `number` counts members from 1 in order of admission.
    function requireNode(address account, uint16 role) external view returns (OrgId id, uint16 number);

    /// @notice Returns the organisation that owns `account` in either capacity; reverts unless it is active.
    function requireMember(address account) external view returns (OrgId);
}
