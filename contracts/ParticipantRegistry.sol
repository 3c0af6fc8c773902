// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {OrgId} from "./Ids.sol";
import {IChainPermissions} from "./IChainPermissions.sol";
import {IParticipantRegistry, ROLE_COMPUTE, ROLE_VERIFIER, ALL_ROLES} from "./IParticipantRegistry.sol";

/// @title ParticipantRegistry
/// @notice Members by id and by account, and how many of them are active in each role.
contract ParticipantRegistry is IParticipantRegistry, AccessManaged {
    uint256 private constant MAX_PEER_ID_BYTES = 64;
    uint256 private constant MAX_ENDPOINT_BYTES = 256;
    OrgId private constant NOBODY = OrgId.wrap(bytes32(0));

    IChainPermissions private immutable PERMISSIONS;

    /// @dev `Participant` without its id, and with what each step of a job asks for in one slot.
    struct Member {
        address account;
        address nodeAccount;
        uint16 roles;
        Status status;
        /// From 1 in order of admission.
        uint16 number;
        bytes32 hpkeKey;
        bytes peerId;
        string endpoint;
    }

    mapping(OrgId id => Member) private _members;
    mapping(address account => OrgId) private _owner;
    mapping(bytes32 peerIdHash => bool) private _peerTaken;
    mapping(uint16 role => uint256) private _activeWithRole;
    OrgId[] private _organisations;
    uint256 private _active;

    constructor(address authority, IChainPermissions permissions) AccessManaged(authority) {
        PERMISSIONS = permissions;
    }

    /// @inheritdoc IParticipantRegistry
    function admit(Participant calldata newcomer) external restricted {
        OrgId id = newcomer.id;
        _requireValid(newcomer);
        if (_members[id].status != Status.None) revert ParticipantRegistryAlreadyKnown(id);
        _take(newcomer.account, id);
        _take(newcomer.nodeAccount, id);
        bytes32 peerIdHash = keccak256(newcomer.peerId);
        if (_peerTaken[peerIdHash]) revert ParticipantRegistryPeerTaken(newcomer.peerId);

        _peerTaken[peerIdHash] = true;
        _organisations.push(id);
        _members[id] = Member({
            account: newcomer.account,
            nodeAccount: newcomer.nodeAccount,
            roles: newcomer.roles,
            status: Status.Active,
            number: SafeCast.toUint16(_organisations.length),
            hpkeKey: newcomer.hpkeKey,
            peerId: newcomer.peerId,
            endpoint: newcomer.endpoint
        });
        _countIn(newcomer.roles);
        emit ParticipantAdmitted(id, participant(id));
        _permit(_members[id], true);
    }

    /// @inheritdoc IParticipantRegistry
    function setStatus(OrgId id, Status status) external restricted {
        Member storage known = _changeable(id);
        if (status == Status.None) revert ParticipantRegistryInvalidParticipant(id);

        _setStatus(id, known, status);
    }

    /// @inheritdoc IParticipantRegistry
    function suspend(OrgId id) external restricted {
        Member storage known = _members[id];
        if (known.status == Status.Active) _setStatus(id, known, Status.Suspended);
    }

    /// @inheritdoc IParticipantRegistry
    function setRoles(OrgId id, uint16 roles) external restricted {
        Member storage known = _changeable(id);
        if (!_validRoles(roles)) revert ParticipantRegistryInvalidParticipant(id);

        if (known.status == Status.Active) {
            _countOut(known.roles);
            _countIn(roles);
        }
        known.roles = roles;
        emit ParticipantRolesChanged(id, roles);
    }

    /// @inheritdoc IParticipantRegistry
    function setEndpoint(string calldata endpoint) external {
        OrgId id = requireMember(msg.sender);
        if (bytes(endpoint).length > MAX_ENDPOINT_BYTES) revert ParticipantRegistryInvalidParticipant(id);

        _members[id].endpoint = endpoint;
        emit ParticipantEndpointChanged(id, endpoint);
    }

    /// @inheritdoc IParticipantRegistry
    function organisationOf(address account) external view returns (OrgId) {
        return _owner[account];
    }

    /// @inheritdoc IParticipantRegistry
    function organisations() external view returns (OrgId[] memory) {
        return _organisations;
    }

    /// @inheritdoc IParticipantRegistry
    function isActive(OrgId id) external view returns (bool) {
        return _members[id].status == Status.Active;
    }

    /// @inheritdoc IParticipantRegistry
    function activeCount() external view returns (uint256) {
        return _active;
    }

    /// @inheritdoc IParticipantRegistry
    function activeCountWithRole(uint16 role) external view returns (uint256) {
        return _activeWithRole[role];
    }

    /// @inheritdoc IParticipantRegistry
    function hasRole(OrgId id, uint16 role) external view returns (bool) {
        return _holds(_members[id], role);
    }

    /// @inheritdoc IParticipantRegistry
    function beside(OrgId id) external view returns (uint16 number, uint256 computing, uint256 verifying) {
        Member storage known = _members[id];
        number = known.number;
        computing = _activeWithRole[ROLE_COMPUTE];
        verifying = _activeWithRole[ROLE_VERIFIER];
        if (_holds(known, ROLE_COMPUTE)) --computing;
        if (_holds(known, ROLE_VERIFIER)) --verifying;
    }

    /// @inheritdoc IParticipantRegistry
    function requireAuthority(address account, uint16 role) external view returns (OrgId id) {
        id = requireMember(account);
        if (_members[id].account != account) revert ParticipantRegistryNotAuthority(id, account);
        _requireRole(id, role);
    }

    /// @inheritdoc IParticipantRegistry
    function requireNode(address account, uint16 role) external view returns (OrgId id, uint16 number) {
        id = requireMember(account);
        Member storage known = _members[id];
        if (known.nodeAccount != account) revert ParticipantRegistryNotNode(id, account);
        _requireRole(id, role);
        number = known.number;
    }

    /// @inheritdoc IParticipantRegistry
    function participant(OrgId id) public view returns (Participant memory) {
        Member storage known = _members[id];
        return
            Participant({
                id: known.number == 0 ? NOBODY : id,
                account: known.account,
                nodeAccount: known.nodeAccount,
                roles: known.roles,
                status: known.status,
                hpkeKey: known.hpkeKey,
                peerId: known.peerId,
                endpoint: known.endpoint
            });
    }

    /// @inheritdoc IParticipantRegistry
    function requireMember(address account) public view returns (OrgId id) {
        id = _owner[account];
        if (id == NOBODY) revert ParticipantRegistryNotMember(account);
        if (_members[id].status != Status.Active) revert ParticipantRegistryNotActive(id);
    }

    function _take(address account, OrgId id) private {
        if (_owner[account] != NOBODY) revert ParticipantRegistryAccountTaken(account);
        _owner[account] = id;
    }

    function _setStatus(OrgId id, Member storage known, Status status) private {
        if (known.status == Status.Active) _countOut(known.roles);
        if (status == Status.Active) _countIn(known.roles);
        known.status = status;
        emit ParticipantStatusChanged(id, status);
        _permit(known, status == Status.Active);
    }

    function _permit(Member storage member, bool active) private {
        (address account, address nodeAccount) = (member.account, member.nodeAccount);
        if (active) {
            PERMISSIONS.allow(account);
            PERMISSIONS.allow(nodeAccount);
        } else {
            PERMISSIONS.revoke(account);
            PERMISSIONS.revoke(nodeAccount);
        }
    }

    function _countIn(uint16 roles) private {
        ++_active;
        for (uint16 role = 1; role <= ALL_ROLES; role <<= 1) {
            if (roles & role != 0) ++_activeWithRole[role];
        }
    }

    function _countOut(uint16 roles) private {
        --_active;
        for (uint16 role = 1; role <= ALL_ROLES; role <<= 1) {
            if (roles & role != 0) --_activeWithRole[role];
        }
    }

    function _changeable(OrgId id) private view returns (Member storage known) {
        known = _members[id];
        if (known.status == Status.None) revert ParticipantRegistryUnknown(id);
        if (known.status == Status.Removed) revert ParticipantRegistryFinal(id);
    }

    function _requireRole(OrgId id, uint16 role) private view {
        if (role != 0 && _members[id].roles & role == 0) revert ParticipantRegistryMissingRole(id, role);
    }

    function _holds(Member storage known, uint16 role) private view returns (bool) {
        return known.status == Status.Active && known.roles & role != 0;
    }

    function _requireValid(Participant calldata newcomer) private pure {
        uint256 peerIdBytes = newcomer.peerId.length;
        bool valid = newcomer.id != NOBODY &&
            newcomer.account != address(0) &&
            newcomer.nodeAccount != address(0) &&
            _validRoles(newcomer.roles) &&
            peerIdBytes != 0 &&
            peerIdBytes <= MAX_PEER_ID_BYTES &&
            bytes(newcomer.endpoint).length <= MAX_ENDPOINT_BYTES;
        if (!valid) revert ParticipantRegistryInvalidParticipant(newcomer.id);
    }

    function _validRoles(uint16 roles) private pure returns (bool) {
        return roles != 0 && roles & ~ALL_ROLES == 0;
    }
}
